"""The scheduled flow: everything new in an inbox comes to its map, by the watcher of the library."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Event
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from eelsflow.catalogue.ledger import Catalogue
from eelsflow.catalogue.service import make_order, open_pool, watch
from eelsflow.catalogue.states import Acquisition, State
from eelsflow.catalogue.watch import Pool, say_end
from flows.server import current_server
from flows.server_watch import end, watched
from flows.tell import tell_of_failure
from tasks.inbox import RUNNING, map_acquisition

SETTLE_SECONDS = 5.0


class ShownWorkers:
    """A pool of the library, each of whose acquisitions is a task run that tells what became of it."""

    def __init__(self, pool: Pool) -> None:
        self._workers = pool
        self._shown: list[Any] = []

    @property
    def n_workers(self) -> int:
        """How many acquisitions are worked on at once."""
        return self._workers.n_workers

    @property
    def n_free(self) -> int:
        """How many more acquisitions can begin now."""
        return self._workers.n_free

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Begin the work, and a task run that waits for it; the watcher waits for the work alone."""
        future = self._workers.submit(function, *args)
        acquisition: Acquisition = args[0]
        RUNNING[acquisition.id] = future
        self._shown.append(map_acquisition.submit(acquisition.id, acquisition.name))
        return future

    def collect(self) -> None:
        """Make the workers free whose work has ended."""
        self._workers.collect()

    def close(self) -> None:
        """End the workers, and wait for the task runs to say so."""
        self._workers.close()
        for future in self._shown:
            future.wait(timeout=10)


@flow(
    name="eelsflow-inbox",
    flow_run_name="inbox {inbox}",
    task_runner=ThreadPoolTaskRunner(max_workers=64),  # they wait for the workers, of which there are fewer
    persist_result=False,
    on_failure=[tell_of_failure],
)
def process_inbox(
    inbox: str,
    model: str = "default",
    out: str | Path | None = None,
    edge: str | None = None,
    settle_seconds: float = SETTLE_SECONDS,
    workers: int | None = None,
    cluster: str | None = None,
) -> list[dict[str, Any]]:
    """Take every acquisition of a folder that is not done yet to its map, as `eelsflow watch --once` does.

    What cannot be used is written down in ``OUT/quarantine`` with the reason, and the rest goes on. The folder itself
    is only read. Where there is no model, or no space left, files wait for the next run.

    Parameters
    ----------
    inbox
        The folder, or URL, that new acquisitions are written to.
    model
        A study's results, a model directory, a registered name, or "default".
    out
        Where maps and quarantine notes go; eelsflow's home by default.
    edge
        Name of the edge that every acquisition must show; the model's by default.
    settle_seconds
        A file is taken when it looks the same twice, so long apart; s.
    workers
        Acquisitions worked on at once; by default one a core.
    cluster
        Address of a Dask scheduler, on whose workers they are worked on instead; none if empty.

    Returns
    -------
    list of dict
        What became of each file in this run: path, sha256, state, reason, alias_of, map and more.

    Raises
    ------
    RuntimeError
        If files wait because of a fault that is not theirs; the next run tries them again.
    """
    logger = get_run_logger()
    order = make_order(inbox, out=out, model=model, edge=edge)
    catalogue = Catalogue()
    ended: list[Acquisition] = []
    server = current_server()
    with watched(server, lambda: end(server, "files that are not done wait for the next run", say=print)):
        waiting = watch(
            order,
            pool=ShownWorkers(open_pool(workers=workers, cluster=cluster or None)),
            interval=settle_seconds,
            once=True,
            stop=Event(),
            catalogue=catalogue,
            on_end=ended.append,
        )
    if not ended:
        logger.info("nothing is new in %s", inbox)
    for one in ended:
        (logger.info if one.state is State.CLASSIFIED else logger.warning)(say_end(one))
    table = [one.summary() for one in ended]
    if table:
        create_table_artifact([_row(one) for one in ended], key="inbox", description=f"What was new in {inbox}")
    if waiting:
        raise RuntimeError(f"{len(waiting)} files wait, {waiting[0].path}: {waiting[0].reason}")
    return table


def _row(one: Acquisition) -> dict[str, Any]:
    facts = one.facts
    offset = (facts.get("energy_offset") or {}).get("value")
    return {
        "acquisition": one.name,
        "state": str(one.state),
        "classes": ", ".join(f"{name} {pixels}" for name, pixels in facts.get("classes", {}).items()),
        "offset (eV)": "" if offset is None else f"{offset:+.2f}",
        "warnings": len(facts.get("warnings", [])),
        "map, or reason": one.reason or one.map or "",
    }
