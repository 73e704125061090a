"""What all tasks have in common: names, tags, retries, and results that are found again by their digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from prefect.tasks import exponential_backoff

from eelsflow.errors import EelsflowError
from eelsflow.executors import DaskExecutor, Executor, LoopExecutor
from eelsflow.store import Store, home

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.context import TaskRunContext


CANCELLED = Event()
"""Set when the flow of this process is interrupted or has failed: its tasks cancel their work on the cluster."""


def task_options(
    run_name: str,
    *,
    tags: tuple[str, ...] = (),
    retries: int = 2,
    timeout_seconds: float | None = None,
    cached: bool = True,
) -> dict[str, Any]:
    """Return the keywords of a task's decorator: ``@task(**task_options("prepare {name}", tags=("prepare",)))``.

    The task's result is kept in ``HOME/prefect/results`` and reused by any later run with the same digest: the
    decorated function takes a keyword ``digest``, the address of what it computes. If it also takes ``store`` (the
    root of the content-addressed store), results are forgotten when entries are removed there; without it, the store
    of the home folder counts. No other parameter is part of the key, so addresses of a scheduler or of an output
    directory may differ between runs.

    Parameters
    ----------
    run_name
        What a person sees; the task's parameters may stand in it, as in ``"prepare {name}"``.
    tags
        Shown in the user interface, and what a concurrency limit refers to.
    retries
        How often a fault is tried again, after about 2, 4, 8 ... s. Bad input is never tried again.
    timeout_seconds
        A run that takes longer fails, and is tried again.
    cached
        False for a task that acts rather than computes, such as one that writes a report: it takes no `digest`.
    """
    caching = {"cache_key_fn": cache_key, "persist_result": True, "result_serializer": "json"}
    return {
        "task_run_name": run_name,
        "tags": list(tags),
        "retries": retries,
        "retry_delay_seconds": exponential_backoff(2),
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": is_worth_retrying,
        "timeout_seconds": timeout_seconds,
        **(caching if cached else {"persist_result": False}),
    }


def cache_key(context: TaskRunContext, parameters: Mapping[str, Any]) -> str | None:
    """Return the key that the result of a task run is kept under: task, digest and generation of the store.

    Prefect's own default holds the run's id, so it never finds anything of an earlier run.
    """
    digest = parameters.get("digest")
    if digest is None:
        return None
    store = Store(Path(parameters.get("store") or home() / "store"))
    return f"{context.task.name}-{digest}-{store.generation}"


def is_worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Tell whether a failed task run may succeed the next time: not if its input is bad."""
    if CANCELLED.is_set():
        return False
    try:
        state.result()
    except EelsflowError:
        return False
    except Exception:
        return True
    return False


def executor_at(address: str | None, *, resources: dict[str, float] | None = None) -> Executor:
    """Return what a task runs its work with: the Dask cluster at an address, or a plain loop for None.

    The flow process has one client, shared by its threads; a task gets the address, because a client cannot be a
    task's parameter.
    """
    if address is None:
        return LoopExecutor()
    from distributed import Client

    try:
        client = Client.current()
        if client.scheduler.address == address:
            return DaskExecutor(client, resources=resources, cancelled=CANCELLED)
    except (ValueError, AttributeError):
        pass
    return DaskExecutor(
        Client(address, name="eelsflow task", set_as_default=True), resources=resources, cancelled=CANCELLED
    )
