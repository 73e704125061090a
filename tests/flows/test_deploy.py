"""What a server of one's own is set up with, as a worker meets it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Crashed, Pending, Running

from eelsflow.errors import InputError
from flows.deploy import POOL, QUEUE, deploy, end_abandoned_submissions
from flows.server import ABANDONED_AUTOMATION, ZOMBIE_AUTOMATION, Server, _refresh_settings

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def client(prefect_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EELSFLOW_HOME", str(data))
        for name in ("INBOX", "OUT", "STUDY", "RESULTS"):
            patch.setenv(f"EELSFLOW_{name}", str(data / name.lower()))
        deploy([])
        deploy(["nightly", "sweep"])  # again: nothing is in its way
        with get_client(sync_client=True) as client:
            yield client


@pytest.fixture
def given(client: SyncPrefectClient):
    """Return what a worker that asks now is given to run."""

    def ask() -> list[FlowRun]:
        return [one.flow_run for one in client.get_scheduled_flow_runs_for_work_pool(POOL)]

    return ask


def ask_for(client: SyncPrefectClient, name: str) -> FlowRun:
    return client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id)


@pytest.mark.parametrize("end", [Completed(), Crashed()], ids=["ends", "is killed"])
def test_a_second_study_waits_until_the_first(client: SyncPrefectClient, given, end) -> None:
    nightly, sweep = (ask_for(client, f"eelsflow-study-file/{name}") for name in ("nightly", "sweep"))
    inbox = ask_for(client, "eelsflow-inbox/inbox")
    offered = {run.id for run in given()} & {nightly.id, sweep.id, inbox.id}
    assert inbox.id in offered
    (first,) = offered - {inbox.id}
    second = ({nightly.id, sweep.id} - {first}).pop()
    for state in (Pending(), Running()):
        client.set_flow_run_state(first, state)
        assert {run.id for run in given()} & {nightly.id, sweep.id, inbox.id} == {inbox.id}
    client.set_flow_run_state(first, end)
    assert {run.id for run in given()} & {nightly.id, sweep.id, inbox.id} == {second, inbox.id}
    for run in (second, inbox.id):
        client.set_flow_run_state(run, Completed(), force=True)


@pytest.mark.parametrize("name", [ZOMBIE_AUTOMATION, ABANDONED_AUTOMATION])
def test_a_run_whose_process_or_worker_was_killed_is_called_over(client: SyncPrefectClient, name: str) -> None:
    assert len(client.read_automations_by_name(name)) == 1


def test_a_run_whose_worker_was_killed_while_it_started_it_gives_its_place_back(client: SyncPrefectClient) -> None:
    abandoned = ask_for(client, "eelsflow-inbox/inbox")
    client.set_flow_run_state(abandoned.id, Pending())
    dropped = ask_for(client, "eelsflow-inbox/inbox")
    assert client.set_flow_run_state(dropped.id, Pending()).state.is_cancelled()  # there is one place
    end_abandoned_submissions()
    assert client.read_flow_run(abandoned.id).state.is_crashed()
    following = ask_for(client, "eelsflow-inbox/inbox")
    assert client.set_flow_run_state(following.id, Pending()).state.is_pending()
    client.set_flow_run_state(following.id, Completed(), force=True)


def test_what_a_run_holds_of_a_limit_is_on_disk_and_outlives_the_server(
    prefect_server: Server, client: SyncPrefectClient
) -> None:
    run = ask_for(client, "eelsflow-inbox/inbox")
    lease = client.set_flow_run_state(run.id, Pending()).state.state_details.deployment_concurrency_lease_id
    home = Path(os.environ["PREFECT_HOME"])
    assert (home / "concurrency_leases" / f"{lease}.json").is_file()
    client.set_flow_run_state(run.id, Completed(), force=True)


def test_the_queue_has_its_limit_back_after_somebody_took_it_away(client: SyncPrefectClient) -> None:
    queue = client.read_work_queue_by_name(QUEUE, work_pool_name=POOL)
    client.update_work_queue(queue.id, concurrency_limit=None)
    deploy(["sweep"])
    assert client.read_work_queue_by_name(QUEUE, work_pool_name=POOL).concurrency_limit == 1


def test_an_unknown_name_is_said(client: SyncPrefectClient) -> None:
    with pytest.raises(InputError, match="no-such"):
        deploy(["no-such"])


def test_without_a_server_it_says_so(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PREFECT_HOME", str(tmp_path))
    environment.delenv("PREFECT_API_URL", raising=False)
    _refresh_settings()
    with pytest.raises(InputError, match="PREFECT_API_URL"):
        deploy([])


def test_it_is_a_command(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PREFECT_HOME", str(tmp_path))
    environment.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    command = [sys.executable, "-m", "flows.deploy", "sweep"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 1
    assert "no server answers" in done.stderr
    assert "Traceback" not in done.stderr
