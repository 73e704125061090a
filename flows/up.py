"""Everything on one machine: Prefect's server and pages, MLflow's, the catalogue's, and a worker with the schedules."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from eelsflow.artifacts import artifact_root, tracking_uri
from eelsflow.bucket import is_url
from eelsflow.catalogue.inbox import open_inbox
from eelsflow.catalogue.ledger import Catalogue
from eelsflow.catalogue.serve import serving
from eelsflow.dask_tls import command_options
from eelsflow.store import home, make_directory
from flows.deploy import POOL, deploy_to_server, end_abandoned_submissions
from flows.server import ServerError, free_port, running_server
from flows.server_watch import end, watched
from flows.tell import configure_crash_automation

MLFLOW_PORT, DASK_PORT, DASK_PAGES_PORT = 5000, 8786, 8787  # their own; other ones where these are taken
CHECK_SECONDS = 2.0
STOP_SECONDS = 15
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def serve_everything(*, inbox: str | None, out: str | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, and leave nothing running.

    Parameters
    ----------
    inbox
        A folder whose new acquisitions are mapped on a schedule; None: nothing is.
    out
        Where maps go; eelsflow's home by default.
    say
        Is told where everything is.

    Raises
    ------
    ServerError
        If a part of it ends by itself; everything is stopped then.
    """
    where = home()
    if out is None or not is_url(out):  # scheduled runs are started in folders of their own
        out = str((where if out is None else Path(out.removeprefix("file://"))).expanduser().absolute())
    with contextlib.ExitStack() as stack:
        catalogue, programs = Catalogue(), _Programs()
        server = stack.enter_context(running_server(where))
        configure_crash_automation()
        say(f"Prefect is at {server.ui_url} (API: {server.api_url})")
        say(f"the catalogue is at {stack.enter_context(serving(catalogue))}")
        if not tracking_uri().startswith("http"):
            say(f"MLflow is at {stack.enter_context(_mlflow(where, programs))}, in some seconds")
        if inbox is not None:
            address, dashboard = stack.enter_context(_dask(where, programs))
            say(f"Dask works at {address}, its pages are at {dashboard}")
            if server.started:  # then no worker of another program asks it for runs
                end_abandoned_submissions()
            stack.enter_context(_schedules(where, open_inbox(inbox).root, out, address, programs))
            say(f"{inbox} is looked into on a schedule; maps go to {out}/maps")
        lost = "everything is stopped; start it again (systemd does)"
        stack.enter_context(watched(server, lambda: end(server, lost, say=say)))
        say("Ctrl-C stops all of it")
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda *_: stop.set())
            stack.callback(signal.signal, number, before)
        while not stop.wait(CHECK_SECONDS):
            if ended := programs.ended():
                raise ServerError(f"{ended}; {lost}")
        say("stopping all of it: some seconds")


@contextlib.contextmanager
def _mlflow(where: Path, programs: _Programs) -> Iterator[str]:
    folder = where / "mlflow"
    make_directory(folder / "artifacts")
    port = free_port(MLFLOW_PORT)
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Not among the options, which everybody on the machine sees: there may be a password in it.
    environment = {"MLFLOW_BACKEND_STORE_URI": tracking_uri(), "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifact_root() or ""}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven processes that wait for work of language models
    if password := os.environ.get("MLFLOW_TRACKING_PASSWORD"):
        options += ["--app-name", "basic-auth"]
        environment |= _mlflow_login(folder, os.environ.get("MLFLOW_TRACKING_USERNAME", "admin"), password)
    command = [sys.executable, "-m", "mlflow", "server", *options]
    with programs.running("MLflow", command, folder / "server.log", environment):
        yield f"http://127.0.0.1:{port}"


def _mlflow_login(folder: Path, user: str, password: str) -> dict[str, str]:
    """Return the environment in which MLflow's server asks for a name and a password."""
    configuration, key = folder / "login.ini", folder / "session.key"
    configuration.write_text(
        f"[mlflow]\ndatabase_uri = sqlite:///{folder / 'login.db'}\nadmin_username = {user}\n"
        "default_permission = READ\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    if not key.exists():
        unfinished = folder / f".{key.name}"
        unfinished.touch(mode=0o600)
        unfinished.write_text(secrets.token_hex())
        unfinished.replace(key)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(),
    }


@contextlib.contextmanager
def _dask(where: Path, programs: _Programs) -> Iterator[tuple[str, str]]:
    """Run a scheduler and a worker a core, which stay warm from one scheduled run to the next."""
    folder = make_directory(where / "dask")
    port, pages = free_port(DASK_PORT), free_port(DASK_PAGES_PORT)
    tls = command_options()
    address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{port}"
    program = [sys.executable, "-m"]
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    scheduler += ["--dashboard-address", f"127.0.0.1:{pages}", *tls]
    worker = [
        "distributed.cli.dask_worker",
        address,
        "--nworkers",
        str(len(os.sched_getaffinity(0))),
        "--nthreads",
        "1",
    ]
    worker += ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--local-directory", str(folder), *tls]
    settings = {"DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "spawn", "MALLOC_ARENA_MAX": "1"}
    with (
        programs.running("Dask's scheduler", [*program, *scheduler], folder / "scheduler.log"),
        programs.running("Dask's worker", [*program, *worker], folder / "worker.log", settings),
    ):
        yield address, f"http://127.0.0.1:{pages}/status"


@contextlib.contextmanager
def _schedules(where: Path, inbox: str, out: str, cluster: str, programs: _Programs) -> Iterator[None]:
    """Deploy what is scheduled, and run a worker for it."""
    log = make_directory(where / "prefect") / "worker.log"
    environment = {"EELSFLOW_INBOX": inbox, "EELSFLOW_OUT": out, "EELSFLOW_HOME": str(where)}
    environment["EELSFLOW_CLUSTER"] = cluster
    deploy_to_server(["inbox"], environment)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", POOL, "--type", "process"]
    # The worker has a folder of a fixed name in the temporary one, which is another user's on a shared machine.
    with (
        tempfile.TemporaryDirectory(prefix="eelsflow-worker-") as own,
        programs.running("Prefect's worker", command, log, environment | {"TMPDIR": own}),
    ):
        yield


class _Programs:
    """Programs that run for the time of a block and end with all that they have started; also if this one is killed."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}

    @contextlib.contextmanager
    def running(
        self, name: str, command: list[str], log: Path, environment: dict[str, str] | None = None
    ) -> Iterator[None]:
        """Run a program."""
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C is this program's, which then ends the others in order
                preexec_fn=_end_with_parent,
            )
        self._running[name] = process, log
        try:
            yield
        finally:
            del self._running[name]
            family = []
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            process.terminate()
            _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
            for member in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            with contextlib.suppress(ProcessLookupError):  # what it had started, where it was killed itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def ended(self) -> str | None:
        """Say which program has ended by itself; None while all run."""
        for name, (process, log) in self._running.items():
            if process.poll() is not None:
                return f"{name} ended by itself with status {process.returncode}; its log is {log}"
        return None


def _end_with_parent() -> None:
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
