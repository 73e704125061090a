"""Set up a Prefect server of your own for eelsflow: ``python -m flows.deploy nightly sweep``, as often as you like.

Deploys what ``deployments/prefect.yaml`` describes, all of it or what is named, and creates what that needs and cannot
say: the work pool, the queue of studies that gives out one at a time, and the rule that a run whose process was killed
is over. Without the rule such a run would keep its place in the queue for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from eelsflow.errors import InputError
from eelsflow.store import home
from flows.server import ABANDONED, current_server, running_server
from flows.tell import configure_crash_automation

DEPLOYMENTS = Path(__file__).parents[1] / "deployments" / "prefect.yaml"
POOL, QUEUE = "eelsflow", "studies"


def deploy(names: list[str]) -> None:
    """Deploy to the server that is configured.

    Parameters
    ----------
    names
        Of deployments; empty: all.

    Raises
    ------
    InputError
        If no server is configured, or Prefect refuses something; with what it says.
    """
    if not current_server().api_url:
        raise InputError("set PREFECT_API_URL to the address of a server; `eelsflow up` needs none of this")
    with running_server(home()):  # asks whether it answers, and creates the rule
        configure_crash_automation()
        deploy_to_server(names)


def deploy_to_server(names: list[str], environment: dict[str, str] | None = None) -> None:
    """Deploy to the server of this process.

    Parameters
    ----------
    names
        As of `deploy`.
    environment
        What `DEPLOYMENTS` is filled in with, beside the environment of this process.
    """
    environment = {**os.environ, **(environment or {})}
    _run_prefect("work-pool", "create", POOL, "--type", "process", "--overwrite", environment=environment)
    _create_queue()
    chosen = [word for name in names for word in ("--name", name)] or ["--all"]
    _run_prefect("deploy", "--prefect-file", str(DEPLOYMENTS), *chosen, environment=environment)


def end_abandoned_submissions() -> None:
    """Call runs over that a worker was about to start when it was killed; to be asked before the next worker starts.

    No process sends heartbeats for such a run, so it would keep its place for ever.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    pending = filters.FlowRunFilter(
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=[StateType.PENDING]))
    )
    pool = filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[POOL]))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=pending, work_pool_filter=pool):
            over = Crashed(message=ABANDONED)
            client.set_flow_run_state(run.id, over)


def _create_queue() -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            queue = client.read_work_queue_by_name(QUEUE, work_pool_name=POOL)
        except ObjectNotFound:
            queue = client.create_work_queue(QUEUE, work_pool_name=POOL)
        client.update_work_queue(queue.id, concurrency_limit=1)


def _run_prefect(*arguments: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"prefect {' '.join(arguments)}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    try:
        deploy(sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))
