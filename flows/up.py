"""Everything on one machine: Prefect's server and pages, MLflow's, the catalogue's, and a worker with the schedules."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from eelsflow.artifacts import artifact_root, tracking_uri
from eelsflow.bucket import is_url
from eelsflow.catalogue.inbox import open_inbox
from eelsflow.catalogue.ledger import Catalogue
from eelsflow.catalogue.serve import serving
from eelsflow.store import home, make_directory
from flows.server import free_port, running_server
from flows.server_watch import end, watched
from flows.tell import configure_crash_automation

MLFLOW_PORT = 5000  # MLflow's own
POOL = "eelsflow"
STOP_SECONDS = 15
DEPLOYMENTS = Path(__file__).parents[1] / "deployments" / "prefect.yaml"
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
    """
    where = home()
    if out is None or not is_url(out):  # scheduled runs are started in folders of their own
        out = str((where if out is None else Path(out)).expanduser().absolute())
    with contextlib.ExitStack() as stack:
        catalogue = Catalogue()
        server = stack.enter_context(running_server(where))
        configure_crash_automation()
        say(f"Prefect is at {server.ui_url} (API: {server.api_url})")
        say(f"the catalogue is at {stack.enter_context(serving(catalogue))}")
        if not tracking_uri().startswith("http"):
            say(f"MLflow is at {stack.enter_context(_mlflow(where))}, in some seconds")
        if inbox is not None:
            stack.enter_context(_schedules(where, open_inbox(inbox).root, out))
            say(f"{inbox} is looked into on a schedule; maps go to {out}/maps")
        lost = "everything is stopped; start it again (systemd does)"
        stack.enter_context(watched(server, lambda: end(server, lost, say=say)))
        say("Ctrl-C stops all of it")
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda *_: stop.set())
            stack.callback(signal.signal, number, before)
        stop.wait()


@contextlib.contextmanager
def _mlflow(where: Path) -> Iterator[str]:
    root = artifact_root() or ""
    if root.startswith("file://"):
        make_directory(where / "mlflow" / "artifacts")
    port = free_port(MLFLOW_PORT)
    options = ["--backend-store-uri", tracking_uri(), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += ["--default-artifact-root", root]
    with _child([sys.executable, "-m", "mlflow", "server", *options], where / "mlflow" / "server.log"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _schedules(where: Path, inbox: str, out: str) -> Iterator[None]:
    """Deploy what is scheduled, and run a worker for it."""
    log = make_directory(where / "prefect") / "worker.log"
    environment = {"EELSFLOW_INBOX": inbox, "EELSFLOW_OUT": out, "EELSFLOW_HOME": str(where)}
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    for arguments in (
        ["work-pool", "create", POOL, "--type", "process", "--overwrite"],
        ["deploy", "--prefect-file", str(DEPLOYMENTS), "--name", "inbox"],
    ):
        with log.open("ab") as stream:
            subprocess.run(
                [*prefect, *arguments], check=True, stdout=stream, stderr=stream, env={**os.environ, **environment}
            )
    with _child([*prefect, "worker", "start", "--pool", POOL, "--type", "process"], log, environment):
        yield


@contextlib.contextmanager
def _child(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """Run a program for the time of a block, and end it with all that it has started; also if this one is killed."""
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
    try:
        yield
    finally:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for member in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def _end_with_parent() -> None:
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
