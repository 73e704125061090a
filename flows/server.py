"""A local Prefect server on SQLite, shared by the programs of one home folder, that leaves nothing running behind.

Two locks in ``HOME/prefect`` carry the life cycle. ``start.lock`` (exclusive, held for moments) makes starting and
stopping a decision of one program at a time. ``in-use.lock`` is held shared by every program that uses the server:
whoever can have it exclusively knows that nobody else is there. The server waits for it too
(`flows.server_process`), so it ends by itself when its users were killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from eelsflow.errors import InputError, MissingDependencyError
from eelsflow.store import make_directory, read_json, write_json

PREFERRED_PORT = 4200  # Prefect's own; another free one is taken if something listens there
HEARTBEAT_SECONDS = 30  # the least that Prefect allows
# Three heartbeats missed: one may be late on a busy machine.
ZOMBIE_AFTER = timedelta(seconds=3 * HEARTBEAT_SECONDS + 5)
ZOMBIE_AUTOMATION = "eelsflow: mark flow runs without a heartbeat as crashed"
# A worker starts a process in seconds, and a pod in some minutes.
ABANDONED_AFTER = timedelta(minutes=10)
ABANDONED_AUTOMATION = "eelsflow: mark flow runs that never began as crashed"
ABANDONED = "The worker was gone before it had started this run."
LEASES_ON_DISK = "prefect.server.concurrency.lease_storage.filesystem"
STOP_SECONDS = 12
LEAVE_SECONDS = 10  # a server that is there takes two at most
RECORD_SECONDS = 5


class ServerError(RuntimeError):
    """The local Prefect server did not start; the message holds the end of its log."""


@dataclass(frozen=True)
class Server:
    """Where the server of this program is.

    Attributes
    ----------
    api_url, ui_url
        Addresses of the API and of the user interface.
    started
        True where this program started it, False where it was there before.
    """

    api_url: str
    ui_url: str
    started: bool


@contextlib.contextmanager
def running_server(home: Path, *, preferred_port: int = PREFERRED_PORT, start_seconds: float = 300) -> Iterator[Server]:
    """Provide a Prefect server for the time of a ``with`` block, and make this process use it.

    A server that is configured (``PREFECT_API_URL``, or the active Prefect profile) is used as it is. Else the server
    that another program of the same home folder started is shared; else one is started on 127.0.0.1. It is stopped
    when its last user leaves, by whatever way: the end of the block, Ctrl-C, SIGTERM or ``kill -9``.

    Inside the block the environment and Prefect's settings name the server, so flows called there, their threads and
    the processes they start report to it. Enter it in the main thread and not inside a flow.

    Parameters
    ----------
    home
        The home folder of eelsflow; database, log and cached results lie in its folder ``prefect``.
    preferred_port
        Taken if it is free.
    start_seconds
        How long to wait for a server that is starting; on a busy machine a new database takes a minute.

    Raises
    ------
    MissingDependencyError
        If Prefect is not installed.
    InputError
        If a server is configured but does not answer.
    ServerError
        If the server does not start; with the end of its log.
    """
    folder = make_directory(Path(home) / "prefect")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_private_settings(folder)))
        try:
            import prefect.settings
        except ImportError as error:
            raise MissingDependencyError(
                "the server needs Prefect, which is not installed: "
                "pip install 'eelsflow[orchestration]', or use --runner loop"
            ) from error
        stack.enter_context(_sigterm_as_exit())
        configured = prefect.settings.get_current_settings().api.url
        if configured is not None:
            if not _answers(configured):
                raise InputError(
                    f"PREFECT_API_URL (or the Prefect profile) names {configured}, where no server answers; "
                    "start that server, or unset it and a local one is started"
                )
            ui_url = prefect.settings.get_current_settings().ui_url or configured.removesuffix("/api")
            server = Server(configured, ui_url, started=False)
        else:
            server = stack.enter_context(_local_server(folder, preferred_port, start_seconds))
        stack.enter_context(_environment({"PREFECT_API_URL": server.api_url}))
        configure_automations()
        entered = datetime.now(UTC)
        try:
            yield server
        finally:
            if _answers(server.api_url):
                within(LEAVE_SECONDS, _send_what_is_queued)
                if configured is None:
                    within(LEAVE_SECONDS, lambda: _wait_until_recorded(entered))


def _private_settings(folder: Path) -> dict[str, str]:
    """Return the environment that keeps Prefect private, local and watchful; what the user has set wins."""
    defaults = {
        "PREFECT_HOME": str(folder),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Prefect's emergency server for clients without one takes long to start and outlives a SIGTERM.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(folder / "results"),
        # A log line from a thread outside any run is nothing to warn about.
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    if "PREFECT_PROFILE" in os.environ or (Path.home() / ".prefect" / "profiles.toml").exists():
        del defaults["PREFECT_HOME"]  # a profile of the user may name a server: leave Prefect where it finds it
    return {name: value for name, value in defaults.items() if name not in os.environ}


@contextlib.contextmanager
def _environment(updates: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the time of a block; processes started in it inherit them."""
    before = {name: os.environ.get(name) for name in updates}
    os.environ.update(updates)
    try:
        _refresh_settings()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _refresh_settings()


def _refresh_settings() -> None:
    """Make Prefect read the environment again; without effect while it is not imported yet.

    This replaces the settings of the whole process. `prefect.settings.temporary_settings` would set a context
    variable only, which threads that send logs, events and heartbeats do not all inherit: those would find no API.
    """
    if context := sys.modules.get("prefect.context"):
        context.refresh_global_settings_context()


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Turn SIGTERM into `SystemExit`, so that what must be stopped is stopped."""

    def leave(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # signals belong to the main thread; a handler of the caller's is left alone
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _local_server(folder: Path, preferred_port: int, start_seconds: float) -> Iterator[Server]:
    in_use = folder / "in-use.lock"
    in_use.touch()
    with in_use.open("rb") as use, (folder / "start.lock").open("w") as start:
        fcntl.flock(start, fcntl.LOCK_EX)
        alone = _try_lock(use, fcntl.LOCK_EX)
        # If not alone, there are other users; or a server that is about to end, which holds the lock until it is gone.
        fcntl.flock(use, fcntl.LOCK_SH)
        process, server = None, None if alone else _shared_server(folder)
        if server is None:
            process, server = _start(folder, in_use, preferred_port, start_seconds)
        fcntl.flock(start, fcntl.LOCK_UN)
        try:
            yield server
        finally:
            fcntl.flock(start, fcntl.LOCK_EX)
            # Exclusive: nobody else uses it. Not even shared: the server noticed first and is ending.
            if _try_lock(use, fcntl.LOCK_EX) or not _try_lock(use, fcntl.LOCK_SH):
                _stop(folder, process)


def _try_lock(stream: IO[Any], kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _shared_server(folder: Path) -> Server | None:
    try:
        found = read_json(folder / "server.json")
    except (OSError, ValueError):
        return None
    return Server(found["api_url"], found["ui_url"], started=False) if _answers(found["api_url"]) else None


def _start(
    folder: Path, in_use: Path, preferred_port: int, start_seconds: float
) -> tuple[subprocess.Popen[bytes], Server]:
    """Start the server and wait until it answers; a second try if somebody took the port meanwhile."""
    deadline = time.monotonic() + start_seconds
    for port in (free_port(preferred_port), free_port(0)):
        process = _spawn(folder, in_use, port)
        try:
            ready = _wait_until_ready(process, port, deadline)
        except BaseException:
            _end_process(process.pid)
            raise
        if ready:
            url = f"http://127.0.0.1:{port}"
            write_json(folder / "server.json", {"pid": process.pid, "api_url": f"{url}/api", "ui_url": url})
            return process, Server(f"{url}/api", url, started=True)
        failure = _failure(folder, process, start_seconds)
        _end_process(process.pid)
        if "already in use" not in failure:
            break
    raise ServerError(failure)


def _spawn(folder: Path, in_use: Path, port: int) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        # Beside the database: the installed package may be read-only.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
    }
    # On disk: what a run holds of a deployment's limit is else forgotten with a server that is killed, and nobody runs
    # any more (seen with Prefect 3.8.8).
    environment.setdefault("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", LEASES_ON_DISK)
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):  # what its clients say is what it asks for
        environment.setdefault("PREFECT_SERVER_API_AUTH_STRING", login)
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(
            # -P: the folder of the script must not come first on the path, its modules have common names.
            [sys.executable, "-P", str(Path(__file__).with_name("server_process.py")), str(in_use)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Out of the terminal's group: Ctrl-C ends the flow first, which then reports its end to the server.
            start_new_session=True,
        )


def free_port(preferred: int) -> int:
    """Return a port of this machine that nothing listens on: the preferred one, if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last server's port lingers for a minute
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            return free_port(0)
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, deadline: float) -> bool:
    while process.poll() is None and time.monotonic() < deadline:
        # Whose port it is matters: two servers may have been given the same one, and only one of them gets it.
        if _answers(f"http://127.0.0.1:{port}/api") and port in _listening_ports(process.pid):
            return True
        time.sleep(0.1)
    return False


def _listening_ports(pid: int) -> set[int]:
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return set()
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def current_server() -> Server:
    """Return the server that flows of this process report to."""
    import prefect.settings

    settings = prefect.settings.get_current_settings()
    return Server(settings.api.url or "", settings.ui_url or "", started=False)


def ask(api_url: str) -> Literal["answers", "refused", "silent"]:
    """Tell whether a server answers at an address; "refused": nobody listens there."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=5) as response:
            return "answers" if response.status == 200 else "silent"
    except urllib.error.HTTPError as error:
        return "answers" if error.code in (401, 403) else "silent"  # there, but it wants the credentials Prefect has
    except urllib.error.URLError as error:
        return "refused" if isinstance(error.reason, ConnectionRefusedError) else "silent"
    except OSError:
        return "silent"


def within(seconds: float, work: Callable[[], None]) -> None:
    """Do something that must not keep the program: if the server goes away now, Prefect asks it for minutes."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)


def _answers(api_url: str) -> bool:
    return ask(api_url) == "answers"


def _failure(folder: Path, process: subprocess.Popen[bytes], seconds: float) -> str:
    log = folder / "server.log"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
    ended = process.poll()
    what = f"did not answer within {seconds:.0f} s" if ended is None else f"ended with status {ended} while starting"
    return f"the local Prefect server {what}; the end of its log ({log}):\n{tail}"


def _stop(folder: Path, process: subprocess.Popen[bytes] | None) -> None:
    """Stop the server, ours or one that a program now gone had started."""
    record = folder / "server.json"
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        pid = process.pid if process is not None else read_json(record)["pid"]
        # The number may be another program's by now.
        if "server_process.py" in " ".join(psutil.Process(pid).cmdline()):
            _end_process(pid)
    if process is not None:
        process.wait(STOP_SECONDS)
    record.unlink(missing_ok=True)


def _end_process(pid: int) -> None:
    """End a process and its descendants: asked first, then killed; returns when they are gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for member in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _send_what_is_queued() -> None:
    """Send the events and log lines still in queues: states of task runs travel as events, and would be lost."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=STOP_SECONDS)


def _wait_until_recorded(since: datetime) -> None:
    """Wait until the server has recorded the ends of the task runs of the flows that ended since then.

    A server takes in events faster than it records them, and what it has not recorded is lost when it stops
    (seen with Prefect 3.8.8: 4 of 20 mapped tasks were left "Running" for ever).
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    ended = filters.FlowRunFilter(
        start_time=filters.FlowRunFilterStartTime(after_=since),
        state=filters.FlowRunFilterState(
            type=filters.FlowRunFilterStateType(any_=[StateType.COMPLETED, StateType.FAILED])
        ),
    )
    deadline = time.monotonic() + RECORD_SECONDS
    n_before = -1
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # never in the way of leaving
        while time.monotonic() < deadline:
            states = [run.state_type for run in client.read_task_runs(flow_run_filter=ended)]
            if len(states) == n_before and not {StateType.PENDING, StateType.RUNNING} & set(states):
                return
            n_before = len(states)
            time.sleep(0.2)


def configure_automations() -> None:
    """Let the server mark flow runs as crashed whose process is gone; done once however often it is called.

    A killed process cannot report its end, so without this its run would be "Running" for ever, and one whose worker
    was killed while it started the process "Pending"; both keep their places. Only flows of eelsflow are watched (their
    names begin so): on a shared server, others may send heartbeats more seldom.
    """
    from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType

    def silence(name: str, after: str, expect: set[str], within: timedelta, message: str) -> AutomationCore:
        return AutomationCore(
            name=name,
            description="A process that was killed cannot report its end.",
            trigger=EventTrigger(
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related={"prefect.resource.role": "flow", "prefect.resource.name": "eelsflow-*"},
                for_each={"prefect.resource.id"},
                after={after},
                expect=expect,
                posture=Posture.Proactive,
                threshold=1,
                within=within,
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
        )

    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Paused")}
    heartbeat, pending, running = (f"prefect.flow-run.{name}" for name in ("heartbeat", "Pending", "Running"))
    gone = "No heartbeat: the process that ran this flow is gone."
    wanted = [
        silence(ZOMBIE_AUTOMATION, heartbeat, {heartbeat, *ends}, ZOMBIE_AFTER, gone),
        silence(ABANDONED_AUTOMATION, pending, {running, *ends}, ABANDONED_AFTER, ABANDONED),
    ]
    with get_client(sync_client=True) as client:
        for automation in wanted:
            found = client.read_automations_by_name(automation.name)
            same = [one for one in found if AutomationCore.model_validate(one.model_dump(exclude={"id"})) == automation]
            for existing in found:
                if existing not in same[:1]:
                    client.delete_automation(existing.id)
            if not same:
                client.create_automation(automation)
