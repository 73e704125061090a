"""Everything on one machine: it is served, and nothing of it is left, however it ends."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from deployments.processes import processes_of
from eelsflow.store import read_json
from flows.deploy import POOL
from flows.up import _Programs

pytestmark = [pytest.mark.server, pytest.mark.slow]


def status_of(page: str, login: str | None = None) -> int:
    """Ask for a page, which may be about to be served, with a name and a password or without."""
    headers = {} if login is None else {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(page, headers=headers)) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def workers_of(api: str) -> list[str]:
    """Return the names of the workers that a server has heard of."""
    request = urllib.request.Request(
        f"{api}/work_pools/{POOL}/workers/filter", data=b"{}", headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return [worker["name"] for worker in json.load(response)]


@pytest.mark.parametrize("how", ["Ctrl-C", "the server is killed"])
def test_all_of_it_is_served_and_nothing_is_left(how: str, fresh_home: Path, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (temporary / "runner_storage").touch()  # what a worker of Prefect wants to be a folder is another user's
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    if how == "Ctrl-C":
        environment |= {"PREFECT_API_AUTH_STRING": "lab:secret", "MLFLOW_TRACKING_PASSWORD": "secret-123456"}
    program = subprocess.Popen(
        [sys.executable, "-m", "eelsflow.cli", "up", "--inbox", str(tmp_path / "inbox")],
        env={**environment, "EELSFLOW_HOME": str(fresh_home), "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stderr is not None
    watchdog = threading.Timer(150, program.kill)
    watchdog.start()
    said = []
    for line in program.stderr:
        said.append(line)
        if "Ctrl-C" in line:
            break
    (catalogue,) = re.findall(r"catalogue is at (\S+)", "".join(said))
    with urllib.request.urlopen(catalogue) as response:
        assert "No acquisition was seen yet" in response.read().decode()
    assert len(processes_of(fresh_home)) >= 6  # itself, the server, MLflow, Prefect's worker, Dask's two

    if how == "Ctrl-C":
        (prefect,), (mlflow,) = (
            re.findall(r"API: (\S+)\)", "".join(said)),
            re.findall(r"MLflow is at (\S+),", "".join(said)),
        )
        for page, login in ((f"{prefect}/version", "lab:secret"), (mlflow, "admin:secret-123456")):
            assert status_of(page) == 401
            assert status_of(page, login) == 200

    else:
        (prefect,) = re.findall(r"API: (\S+)\)", "".join(said))
        while not workers_of(prefect):
            assert program.poll() is None
            time.sleep(0.5)

    began = time.monotonic()
    if how == "Ctrl-C":
        program.send_signal(signal.SIGINT)
    else:
        os.kill(read_json(fresh_home / "prefect" / "server.json")["pid"], signal.SIGKILL)
    rest, status = program.stderr.read(), program.wait()
    program.stderr.close()
    watchdog.cancel()
    assert time.monotonic() - began < 60
    if how == "Ctrl-C":
        assert status == 0
        assert "stopping all of it" in rest
    else:
        assert status == 1
        assert "is gone; everything is stopped" in rest
    assert not processes_of(fresh_home)


def test_a_part_that_ends_by_itself_is_named_and_what_it_started_goes_with_it(tmp_path: Path) -> None:
    programs, log = _Programs(), tmp_path / "log"
    with programs.running("a part", [sys.executable, "-c", "print('no port is free'); raise SystemExit(3)"], log):
        deadline = time.monotonic() + 30
        while (ended := programs.ended()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert ended == f"a part ended by itself with status 3; its log is {log}"
    assert "no port is free" in log.read_text()
    assert programs.ended() is None
