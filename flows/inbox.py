"""The scheduled flow: prepare and classify what is new in a folder of acquisitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task, unmapped
from prefect.artifacts import create_table_artifact
from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from eelsflow.edges import Edge
from eelsflow.inbox import SETTLE_SECONDS, Entry, Ledger, find_new, judge, summarize
from tasks.options import task_options


@task(**task_options("look into {inbox}", tags=("inbox",), cached=False))
def list_new(inbox: Path, out: Path, settle_seconds: float) -> list[Entry]:
    """List the files that have to be processed."""
    return find_new(inbox, Ledger(out), settle_seconds=settle_seconds)


@task(**task_options("check the model {model}", tags=("check",), cached=False))
def check_model(model: str, edge: str) -> tuple[Path, Edge]:
    """Load the model; return its directory and the edge that the files must show."""
    from eelsflow import maps

    return maps.check_model(model, edge=edge)


@task(**task_options("check {entry.name}", tags=("check",), cached=False))
def check_acquisition(entry: Entry, edge: Edge) -> list[int]:
    """Read the file and refuse it where it does not show the edge; return its shape."""
    from eelsflow.maps import check_file

    return list(check_file(Path(entry.path), edge=edge).shape)


@task(**task_options("classify {entry.name}", tags=("classify",), cached=False))
def classify_acquisition(entry: Entry, shape: list[int], model: Path, out: Path) -> str:
    """Prepare and classify one acquisition; return the folder of its maps."""
    from eelsflow.maps import classify_file

    folder = Ledger(out).folder_for(entry)
    classify_file(Path(entry.path), model=model, out=folder)
    return str(folder)


@flow(
    name="eelsflow-inbox",
    flow_run_name="inbox {inbox}",
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # each holds a spectrum image and a network
    persist_result=False,
)
def process_inbox(
    inbox: Path, model: str, out: Path, edge: str = "O_K", settle_seconds: float = SETTLE_SECONDS
) -> list[dict[str, Any]]:
    """Prepare and classify every acquisition of a folder that is not done yet.

    What cannot be used is written down in ``OUT/quarantine`` with the reason, and the rest goes on. The folder itself
    is only read. The model is loaded before any file is looked at: if it is missing, damaged or for another edge, the
    run ends with its error and judges no file, so that the next run finds them all again.

    Parameters
    ----------
    inbox
        The folder that new acquisitions are written to.
    model
        A study's results, a model directory, a registered name, or "default".
    out
        Where maps, ledger and quarantine notes go.
    edge
        Name of the edge that the model is for and that every acquisition must show.
    settle_seconds
        Files that changed less than this ago are still being written, and left for the next run; in s.

    Returns
    -------
    list of dict
        What became of each file processed now: path, sha256, state, reason, alias_of, map.

    Raises
    ------
    UnusableModelError
        If the model cannot be used; nothing is recorded of the files then.
    RuntimeError
        If some files failed by a fault that was not theirs; the next run tries them again.
    """
    ledger = Ledger(out)
    new = list_new(inbox, out, settle_seconds)
    if not new:
        get_run_logger().info("nothing is new in %s", inbox)
        return []

    directory, model_edge = check_model(model, edge)
    shapes = check_acquisition.map(new, unmapped(model_edge))
    maps = classify_acquisition.map(new, shapes, unmapped(directory), unmapped(out))
    outcomes = [_outcome(*each) for each in zip(new, shapes, maps, strict=True)]
    for entry in outcomes:
        ledger.record(entry)
    table = summarize(outcomes)
    create_table_artifact(table, key="inbox", description=f"What was new in {inbox}")
    if failed := [entry for entry in outcomes if entry.state == "failed"]:
        raise RuntimeError(f"{len(failed)} of {len(new)} files failed, {failed[0].path}: {failed[0].reason}")
    return table


def _outcome(entry: Entry, shape: PrefectFuture[list[int]], folder: PrefectFuture[str]) -> Entry:
    """Wait for a file's tasks; return its entry with what came of it."""
    try:
        return replace(entry, state="done", map=folder.result())
    except UnfinishedRun:  # never started, because the check before it failed
        error = shape.result(raise_on_failure=False)
    except Exception as caught:
        error = caught
    return judge(entry, error)
