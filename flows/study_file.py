"""A study from its file, as a flow of its own: for schedules and sweeps, which start without a command line."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from eelsflow.store import home
from eelsflow.study.config import load_study
from flows.cluster import cluster_client
from flows.server import current_server
from flows.server_watch import end, watched
from flows.study import study
from flows.tell import tell_of_failure


@flow(
    name="eelsflow-study-file", flow_run_name="study {study_file}", persist_result=False, on_failure=[tell_of_failure]
)
def study_from_file(
    study_file: Path, out: Path, quick: bool = False, promote: bool = False, strict: bool = False
) -> None:
    """Run a study as `eelsflow study STUDY.yaml --out DIR` does, on a cluster of its own.

    Parameters
    ----------
    study_file, out
        The study file, and where results are written.
    quick, promote, strict
        As the options of the command.
    """
    resolved = load_study(study_file)
    resolved = resolved.quick() if quick else resolved
    server = current_server()
    kept = "what was computed is kept, and the next run goes on from there"
    with (
        watched(server, lambda: end(server, kept, say=print)),
        cluster_client(resolved.cluster, home=home()) as client,
    ):
        study(
            resolved,
            out=str(out.expanduser().resolve()),
            store=str((home() / "store").resolve()),
            scheduler=client.scheduler.address,
            promote=promote,
            strict=strict,
        )
