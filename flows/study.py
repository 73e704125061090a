"""The study as a Prefect flow: the same stages as the plain loop, as tasks that drive a Dask cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from uuid import UUID

from prefect import Task, flow, unmapped
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.futures import as_completed
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from eelsflow.dataset.aside import SetAside
from eelsflow.executors import DaskExecutor
from eelsflow.store import Store, home
from eelsflow.study import stages
from eelsflow.study.config import Study
from eelsflow.study.journal import Journal, using_store
from eelsflow.study.plan import Step, plan_data
from eelsflow.study.run import OnStep, Outcome, claim_directory, fit_final_model, prepare_acquisitions, run_stages
from eelsflow.study.run import run_study as run_without_server
from eelsflow.study.stages import Place
from flows.cluster import cluster_client, load_queue
from flows.server import running_server
from flows.server_watch import WITHOUT_SERVER, begin_again_without_server, watched
from tasks.assess import assess_model, judge_outside, score_maps
from tasks.options import CANCELLED, executor_at
from tasks.prepare import build_dataset, fit_features, prepare_acquisition
from tasks.progress import ON_STEP
from tasks.report import record_in_artifact_store, record_report, write_report
from tasks.train import fit_model

TASKS: dict[Callable[..., Outcome], Task[..., str | SetAside]] = {
    stages.prepare_acquisition: prepare_acquisition,
    stages.build_dataset: build_dataset,
    stages.fit_features: fit_features,
    stages.fit_model: fit_model,
    stages.assess_model: assess_model,
    stages.score_maps: score_maps,
    stages.judge_outside: judge_outside,
}

TASKS_AT_ONCE = 4
"""A task waits for the cluster most of its time, but a search writes a matrix of up to 2 GiB in the flow process: more
workers do not mean more tasks."""


@flow(name="eelsflow-study", flow_run_name="{study.name}", task_runner=ThreadPoolTaskRunner(max_workers=TASKS_AT_ONCE))
def study(
    study: Study,
    out: str,
    store: str | None = None,
    scheduler: str | None = None,
    promote: bool = False,
    strict: bool = False,
) -> None:
    """Prepare the acquisitions, search and train the models, assess them, report.

    Parameters
    ----------
    study
        The study file, resolved.
    out
        The results directory.
    store
        Root of the content-addressed store; by default in eelsflow's home.
    scheduler
        Address of the Dask scheduler; None runs everything in the flow's own process.
    promote
        Whether the final model becomes the default one for its edge.
    strict
        Refuse acquisitions that cannot be used, instead of setting them aside.
    """
    claim_directory(Path(out))
    journal = Journal(Path(out))
    root = store or str(home() / "store")
    place = Place(Store(Path(root)), executor_at(scheduler))
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    plan = plan_data(study, place.store, strict=strict)

    def run(stage: Callable[..., Outcome], steps: Sequence[Step]) -> list[str | SetAside]:
        journal.note(step.digest for step in steps)
        return _run_tasks(TASKS[stage], steps, store=root, scheduler=scheduler)

    CANCELLED.clear()
    _link_dask(place)
    with using_store(Path(root)), _cancelled_at_failure():
        plan = prepare_acquisitions(plan, run, strict=strict)
        if plan.set_aside:
            table = [one.model_dump() for one in plan.set_aside]
            create_table_artifact(key="set-aside", table=table, description="Acquisitions set aside")
        measured, final = run_stages(plan, place, run)
        # Beside the last fit and the figures, which are the workers': the artifact store waits for its database.
        recorded = record_in_artifact_store.submit(
            plan, measured.assessed, final, store=root, prefect_run=flow_run.ui_url or ""
        )
        fit_final_model(plan, final, place, run)
        about = {
            "runner": "prefect",
            "started": started,
            "seconds": time.perf_counter() - clock,
            "links": {"prefect": flow_run.ui_url or ""},
        }
        write_report(plan, measured, final, out=out, store=root, scheduler=scheduler, run=about, promote=promote)
        record_report(plan, recorded.result(), out=out)


def _link_dask(place: Place) -> None:
    """Show where the cluster can be watched at work."""
    if isinstance(place.executor, DaskExecutor) and (link := place.executor.client.dashboard_link):
        create_link_artifact(key="dask", link=link, link_text="Dask", description="The cluster at work, while it works")


@contextmanager
def _cancelled_at_failure() -> Iterator[None]:
    """Let the work on the cluster be cancelled where the flow is interrupted or has failed."""
    try:
        yield
    except BaseException:
        CANCELLED.set()
        raise


def _run_tasks(
    task: Task[..., str | SetAside], steps: Sequence[Step], *, store: str, scheduler: str | None
) -> list[str | SetAside]:
    """Run one task for every step and show the progress; return the results in order, or raise the first failure."""
    if not steps:
        return []
    futures = task.map(
        list(steps),
        digest=[step.digest for step in steps],
        title=[step.title for step in steps],
        store=unmapped(store),
        scheduler=unmapped(scheduler),
    )
    progress = create_progress_artifact(0.0, key=task.name.replace("_", "-"), description=task.description)
    on_step = ON_STEP.get()
    for number, future in enumerate(as_completed(list(futures)), start=1):
        future.result()
        if on_step is not None:
            on_step(task.name.replace("_", " "), number, len(futures))
        if number == len(futures) or number % 10 == 0:
            assert isinstance(progress, UUID)  # created in a synchronous flow
            update_progress_artifact(progress, 100.0 * number / len(futures))
    return [future.result() for future in futures]


def run_study(
    resolved: Study,
    out: Path,
    *,
    store: Store,
    on_step: OnStep | None,
    promote: bool,
    strict: bool,
    say: Callable[[str], None],
) -> None:
    """Run the flow with a server and a cluster for the time of the study.

    Parameters
    ----------
    resolved
        The study.
    out, store, promote, strict
        As in the flow.
    on_step
        Called as ``on_step(task, number, total)`` when a step of a stage has ended.
    say
        Tells the user where the UI is, and what is waited for.
    """
    environment = dict(os.environ)
    load_queue(resolved.cluster)
    if gone := environment.get(WITHOUT_SERVER):
        say(f"warning: the Prefect server at {gone} is gone; the study goes on without it, and is not shown there")
        with cluster_client(resolved.cluster, home=home(), say=say) as client:
            place = Place(store, DaskExecutor(client))
            run_without_server(resolved, out, place=place, on_step=on_step, promote=promote, strict=strict)
        return
    token = ON_STEP.set(on_step)
    given_up = Event()
    try:
        with ThreadPoolExecutor(1) as beside, ExitStack() as stack:
            stack.callback(given_up.set)  # whoever interrupts this does not wait for a queue first
            # The cluster starts while the server does: half a minute less to wait for the first result.
            described = cluster_client(resolved.cluster, home=home(), say=say, given_up=given_up)
            starting = beside.submit(stack.enter_context, described)
            with running_server(home()) as server:
                say(f"watch this study: {server.ui_url}")
                client = starting.result()
                with watched(server, lambda: begin_again_without_server(server, environment)):
                    study(
                        resolved,
                        out=str(out.resolve()),
                        store=str(store.root.resolve()),
                        scheduler=client.scheduler.address,
                        promote=promote,
                        strict=strict,
                    )
    finally:
        ON_STEP.reset(token)
