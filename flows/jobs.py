"""Worker jobs in the queue of SLURM: how they are asked for, waited for, and asked for again where they are lost."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from eelsflow.errors import InputError
from eelsflow.store import make_directory

POLL_SECONDS = 0.2
LOOK_SECONDS = 5
"""Between two looks at the queue while the first worker is waited for."""
AGAIN_SECONDS = 20
"""Between two looks for lost workers: longer than Dask takes (15 s) to forget one, and its job."""
UNKNOWN_SECONDS = 3600
"""How long the first worker is waited for where the queue does not tell what became of its job."""


def with_defaults(options: Mapping[str, Any], factory: Any, home: Path) -> dict[str, Any]:
    """Return the options of a ``SLURMCluster``, completed.

    By default its scheduler and its workers listen on every interface of their machines, and run what anybody sends
    who reaches them. Here they listen on this machine alone, unless an interface is named in the study file or in
    Dask's own configuration: ``interface``, which both then listen on and on no other; or, for the scheduler alone,
    ``host`` or ``interface`` in ``scheduler_options``. Dashboards stay on their machines unless ``dashboard_address``
    (in ``scheduler_options``) or ``--dashboard-address`` (in ``worker_extra_args``) says otherwise. What workers print
    is kept in the home folder, not where the study was started.
    """
    import dask

    section = f"jobqueue.{options.get('config_name') or 'slurm'}"

    def given(option: str) -> Any:
        written = options.get(option)
        return dask.config.get(f"{section}.{option.replace('_', '-')}", None) if written is None else written

    scheduler = {"dashboard_address": "127.0.0.1:0"}
    worker = ["--dashboard-address", "127.0.0.1:0"]
    own = given("scheduler_options") or {}
    if not given("interface") and not {"host", "interface"} & set(own):
        scheduler["host"] = "127.0.0.1"
        worker += ["--host", "127.0.0.1"]
    return {
        **options,
        "job_cls": _job_class(factory.job_cls),
        "log_directory": given("log_directory") or str(make_directory(home / "slurm").resolve()),
        "scheduler_options": {**scheduler, **own},
        "worker_extra_args": [*worker, *(given("worker_extra_args") or [])],  # the last one counts
    }


def _job_class(base: Any) -> Any:
    """Return a class of jobs that keep why they were refused: raised, it would be lost in the log of an event loop."""
    from distributed import Status

    class Job(base):  # type: ignore[misc]
        refused: str | None = None

        async def start(self) -> None:
            try:
                await super().start()
            except (OSError, RuntimeError, ValueError) as error:
                self.refused = str(error).strip()
                self.status = Status.running  # or nobody would close it

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

    return Job


def wait_for_a_worker(
    cluster: Any, *, say: Callable[[str], None], given_up: threading.Event, output: str | None
) -> None:
    """Wait for the first worker, as long as the queue has a job that may become one.

    Parameters
    ----------
    cluster
        The cluster, which was asked for its workers.
    say
        Told what is waited for, whenever that changes.
    given_up
        Ends the wait when it is set.
    output
        Where the jobs' output is, if that is known.

    Raises
    ------
    InputError
        If the queue took no job; if all jobs ended and no worker was there; or if the queue does not answer and no
        worker has come for an hour.
    CancelledError
        If `given_up` is set.
    """
    said, looked, known = "", -float(LOOK_SECONDS), time.monotonic()
    while not cluster.scheduler_info["workers"]:
        if given_up.wait(POLL_SECONDS):
            raise CancelledError("nobody waits for a worker any more")
        if time.monotonic() - looked < LOOK_SECONDS:
            continue
        looked = time.monotonic()
        asked = list(getattr(cluster, "workers", {}).values())  # empty at first; Kubernetes keeps its own account
        if refused := _refusal(asked):
            raise InputError(f"SLURM takes no job of a worker: {refused}")
        what = "waiting for the first worker"
        queue = _queue() if asked else None
        if queue is not None:
            known = time.monotonic()
            states = Counter(queue[job.job_id] for job in asked if getattr(job, "job_id", None) in queue)
            if not states and not cluster.scheduler_info["workers"]:
                raise InputError(_why_none(cluster, len(asked), output))
            what += "; jobs: " + ", ".join(f"{number} {state}" for state, number in states.most_common())
        elif time.monotonic() - known > UNKNOWN_SECONDS:
            raise InputError(
                f"no worker has come for {UNKNOWN_SECONDS / 60:.0f} minutes, and what became of its job is not known: "
                "look at the queue, and run the same command again"
            )
        if what != said and not cluster.scheduler_info["workers"]:
            said = what
            say(what)


def _refusal(asked: list[Any]) -> str | None:
    """Return why the last job was refused, if all were."""
    reasons = [getattr(job, "refused", None) for job in asked]
    return reasons[-1] if reasons and all(reasons) else None


def _why_none(cluster: Any, n_jobs: int, output: str | None) -> str:
    address = cluster.scheduler_address
    jobs = "the only job of a worker" if n_jobs == 1 else f"all {n_jobs} jobs of workers"
    alone = (
        f" The scheduler listens at {address}, which only this machine reaches: workers on others need `interface:` in "
        "the study file (the name of a network interface that the nodes have, such as ib0)."
        if "//127." in address
        else f" The scheduler listens at {address}, which must be reached from their nodes."
    )
    where = f", in {output}" if output else ""
    return f"{jobs} ended and no worker came to be. Their output says why{where}.{alone}"


def _queue() -> dict[str, str] | None:
    """Return the state of every job that this user has in the queue; None if that cannot be told."""
    command = ["squeue", "--me", "--noheader", "--format=%i|%T|%r"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    states = {}
    for line in listed.splitlines():
        job, state, reason = line.split("|", 2)
        told = state == "PENDING" and reason.strip() != "None"  # none yet, right after it was asked for
        states[job.strip()] = state.lower() + (f" ({reason.strip()})" if told else "")
    return states


@contextlib.contextmanager
def asked_for_again(cluster: Any, n_workers: int, *, say: Callable[[str], None]) -> Iterator[None]:
    """Ask for a new job wherever one has ended, for the time of a ``with`` block.

    Dask asks for each worker once: jobs that come to the end of their time, or are cancelled, would leave a study with
    fewer and fewer workers, and at last with none, for which it would wait for ever.
    """
    ended = threading.Event()

    def look() -> None:
        missing: set[Any] = set()
        said = ""
        while not ended.wait(AGAIN_SECONDS):
            missing = _forget_ended(cluster, missing)
            cluster.scale(n_workers)  # asks for those that are forgotten
            now = "" if cluster.scheduler_info["workers"] else "no worker is left; their jobs were asked for again"
            if now and now != said:
                say(now)
            said = now

    thread = threading.Thread(target=look, name="eelsflow-jobs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _forget_ended(cluster: Any, before: set[Any]) -> set[Any]:
    """Forget jobs that are neither in the queue nor workers, at two looks; return those of this look.

    Dask forgets a worker that was there and left. It never forgets a job that ended before it was a worker, nor one of
    several workers.
    """
    jobs = dict(cluster.workers)
    names = {worker["name"] for worker in list(cluster.scheduler_info["workers"].values())}
    absent = {
        name: job
        for name, job in jobs.items()
        if not any(worker == name or str(worker).startswith(f"{name}-") for worker in names)
    }
    queue = _queue() if absent else {}
    if queue is None:
        return before
    missing = {name: job for name, job in absent.items() if getattr(job, "job_id", None) not in queue}
    for name, job in missing.items():
        if job in before and cluster.workers.get(name) is job:
            del cluster.workers[name]
    return set(missing.values())
