import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest
from prefect import flow, get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.events import Event
from prefect.states import Running
from prefect.task_runners import ThreadPoolTaskRunner

from deployments.processes import processes_of
from eelsflow.errors import InputError
from flows.server import (
    ZOMBIE_AFTER,
    ZOMBIE_AUTOMATION,
    Server,
    ServerError,
    configure_automations,
    free_port,
    running_server,
)

pytestmark = pytest.mark.server

# Tells where the server is, then does what it is told; `env` names the home, so its processes can be found again.
PROGRAM = """
import json, signal, sys, time
from pathlib import Path
from flows.server import running_server
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
with running_server(Path(sys.argv[1]), preferred_port=0) as server:
    print(json.dumps([server.api_url, server.started]), flush=True)
    if sys.argv[2] == "wait":
        time.sleep(600)
"""


def start_program(home: Path, action: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(home), action],
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"EELSFLOW_HOME": str(home)},
    )


def test_server_records_mapped_tasks_and_their_logs_from_threads(prefect_server: Server) -> None:
    @task
    def square(x: int) -> int:
        get_run_logger().info("squaring %s", x)
        return x * x

    @flow(name="eelsflow-test", task_runner=ThreadPoolTaskRunner(max_workers=4))
    def squares() -> list[int]:
        return square.map(range(8)).result()

    state = squares(return_state=True)
    assert state.result() == [0, 1, 4, 9, 16, 25, 36, 49]
    run_id = state.state_details.flow_run_id
    this_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        assert str(client.api_url).startswith(prefect_server.api_url)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            states = Counter(run.state_type for run in client.read_task_runs(flow_run_filter=this_run))
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))
            messages = {entry.message for entry in logs}
            if states == {StateType.COMPLETED: 8} and "squaring 7" in messages:
                break
            time.sleep(0.2)
    assert states == {StateType.COMPLETED: 8}
    assert {f"squaring {x}" for x in range(8)} <= messages


def test_server_is_private_and_never_ephemeral(prefect_server: Server) -> None:
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    assert settings.api.url == prefect_server.api_url
    assert not settings.server.ephemeral.enabled
    assert not settings.server.analytics_enabled
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert prefect_server.api_url.startswith("http://127.0.0.1:")


def test_server_that_is_configured_is_used(prefect_server: Server, tmp_path: Path) -> None:
    # inside the session's server, PREFECT_API_URL names it
    with running_server(tmp_path) as server:
        assert server == Server(prefect_server.api_url, prefect_server.ui_url, started=False)
    assert not (tmp_path / "prefect" / "server.log").exists()
    assert os.environ["PREFECT_API_URL"] == prefect_server.api_url


def test_server_that_is_configured_but_absent_is_an_error(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port(0)}/api")
    with pytest.raises(InputError, match="where no server answers"), running_server(tmp_path):
        pass


def test_server_of_the_same_home_is_shared_and_outlives_one_user(prefect_server: Server, server_home: Path) -> None:
    program = start_program(server_home, "leave")
    answer, _ = program.communicate(timeout=120)
    assert json.loads(answer) == [prefect_server.api_url, False]
    with get_client(sync_client=True) as client:
        assert client.api_healthcheck() is None


@pytest.mark.slow
def test_server_that_cannot_start_is_an_error_with_its_log(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.delenv("PREFECT_API_URL", raising=False)
    environment.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{tmp_path}/absent/prefect.db")
    with (
        pytest.raises(ServerError, match=r"(?s)ended with status .* while starting.*unable to open database file"),
        running_server(tmp_path / "home", preferred_port=0),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_server_leaves_no_process_when_its_program_is_ended(fresh_home: Path, how: signal.Signals) -> None:
    program = start_program(fresh_home, "wait")
    assert program.stdout is not None
    _, started = json.loads(program.stdout.readline())
    assert started
    assert len(processes_of(fresh_home)) == 2
    program.send_signal(how)
    program.wait(60)
    program.stdout.close()
    if how is signal.SIGKILL:  # else the program itself has waited
        psutil.wait_procs(processes_of(fresh_home), timeout=30)
    assert processes_of(fresh_home) == []


@pytest.mark.slow
def test_server_is_stopped_by_its_last_user_when_the_one_that_started_it_was_killed(fresh_home: Path) -> None:
    first, second = start_program(fresh_home, "wait"), None
    try:
        assert first.stdout is not None
        api_url, _ = json.loads(first.stdout.readline())
        second = start_program(fresh_home, "wait")
        assert second.stdout is not None
        assert json.loads(second.stdout.readline()) == [api_url, False]
        first.kill()
        first.wait()
        time.sleep(1)
        assert len(processes_of(fresh_home)) == 2
    finally:
        for program in (first, second):
            if program is not None and program.stdout is not None:
                program.send_signal(signal.SIGINT)
                program.wait(60)
                program.stdout.close()
    assert processes_of(fresh_home) == []


def test_transactions_of_the_server_begin_as_writers(tmp_path: Path) -> None:
    """One that reads first would be refused to write, at once and not after waiting, once another has written."""
    code = f"""
import asyncio, sqlite3
import sqlalchemy
import flows.server_process
from prefect.server.database.configurations import AioSqliteConfiguration

async def main(path):
    configuration = AioSqliteConfiguration(f"sqlite+aiosqlite:///{{path}}")
    engine = await configuration.engine()
    async with await configuration.session(engine) as session, configuration.begin_transaction(session):
        try:
            sqlite3.connect(path, timeout=0).execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            print(error)
        async with await configuration.session(engine) as within:  # reads, and does not wait for the one around it
            print((await within.execute(sqlalchemy.text("SELECT 7"))).scalar())
    sqlite3.connect(path, timeout=0).execute("BEGIN IMMEDIATE")

asyncio.run(main({str(tmp_path / "prefect.db")!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout == "database is locked\n7\n"


def test_work_queue_is_paused_and_resumed(prefect_server: Server) -> None:
    """The server reads the pool in a session of its own while the transaction that changes the queue goes on."""
    name = f"pool-{time.monotonic_ns()}"
    with httpx.Client(base_url=prefect_server.api_url) as client:
        client.post("/work_pools/", json={"name": name, "type": "process"}).raise_for_status()
        queue = f"/work_pools/{name}/queues/default"
        for paused in (True, False):
            client.patch(queue, json={"is_paused": paused}).raise_for_status()
            assert client.get(queue).json()["is_paused"] is paused


def test_port_that_is_taken_is_not_chosen() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port


def test_zombie_automation_is_made_once(prefect_server: Server) -> None:
    configure_automations()
    configure_automations()
    with get_client(sync_client=True) as client:
        assert len(client.read_automations_by_name(ZOMBIE_AUTOMATION)) == 1


@pytest.mark.slow
def test_zombie_automation_marks_a_flow_run_whose_heartbeats_stopped(prefect_server: Server) -> None:
    @flow(name="eelsflow-killed")
    def killed() -> None: ...

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(killed, state=Running())
        heartbeat = Event(
            event="prefect.flow-run.heartbeat",
            resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"},
            related=[
                {
                    "prefect.resource.id": f"prefect.flow.{run.flow_id}",
                    "prefect.resource.role": "flow",
                    "prefect.resource.name": "eelsflow-killed",
                }
            ],
            occurred=datetime.now(UTC) - ZOMBIE_AFTER + timedelta(seconds=3),
        )
        # The server judges by the time of the events it sees: one of now must come behind the old one.
        today = Event(event="eelsflow.test", resource={"prefect.resource.id": "eelsflow.test"})
        for event in (heartbeat, today):
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
        # The server looks again when its own time is up, ZOMBIE_AFTER at most, or soon after the automation changed.
        (automation,) = client.read_automations_by_name(ZOMBIE_AUTOMATION)
        deadline = time.monotonic() + 1.5 * ZOMBIE_AFTER.total_seconds()
        while (state := client.read_flow_run(run.id).state) and state.type is StateType.RUNNING:
            assert time.monotonic() < deadline
            client.request("PATCH", f"/automations/{automation.id}", json={"enabled": True})
            time.sleep(3)
    assert state is not None
    assert state.type is StateType.CRASHED
    assert "No heartbeat" in str(state.message)
