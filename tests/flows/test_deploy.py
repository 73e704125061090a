"""What a server of one's own is set up with, as a worker meets it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Crashed, Pending, Running

from eelsflow.errors import InputError
from flows.deploy import POOL, QUEUE, deploy
from flows.server import ZOMBIE_AUTOMATION, Server, _refresh_settings

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


def test_a_run_whose_process_was_killed_is_called_over(client: SyncPrefectClient) -> None:
    assert len(client.read_automations_by_name(ZOMBIE_AUTOMATION)) == 1


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
