"""A server that goes away in the middle of a run: the run goes on, or ends, and never waits."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from eelsflow.executors import LoopExecutor
from eelsflow.store import Store, read_json
from eelsflow.study.config import load_study
from eelsflow.study.run import run_study
from eelsflow.study.stages import Place
from flows.server import Server, ask
from flows.server_watch import watched

pytestmark = pytest.mark.server

NAMES = ("model", "preprocess", "split", "best_params", "accuracy", "translation", "noise")


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def http_server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_server_that_stops_is_noticed_once_and_one_that_answers_is_not(http_server):
    url = f"http://127.0.0.1:{http_server.server_port}"
    lost = []
    with watched(
        Server(f"{url}/api", url, started=False), lambda: lost.append(1), check_seconds=0.02, refused_seconds=0.2
    ):
        time.sleep(0.5)
        assert ask(f"{url}/api") == "answers"
        assert not lost
        http_server.shutdown()
        http_server.server_close()
        time.sleep(0.1)
        assert not lost  # it may be starting again
        time.sleep(0.6)
    assert lost == [1]


def test_nothing_is_lost_after_the_block(http_server):
    url = f"http://127.0.0.1:{http_server.server_port}"
    lost = []
    with watched(
        Server(f"{url}/api", url, started=False), lambda: lost.append(1), check_seconds=0.02, refused_seconds=0.0
    ):
        pass
    http_server.shutdown()
    http_server.server_close()
    time.sleep(0.2)
    assert not lost


def server_process(home: Path) -> psutil.Process:
    """Return the server of a home folder, waiting until it has said where it is."""
    while not (home / "prefect" / "server.json").exists():
        time.sleep(0.05)
    return psutil.Process(read_json(home / "prefect" / "server.json")["pid"])


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in the middle", "after the results"])
def test_a_study_whose_server_is_killed_ends_with_the_results_of_the_loop(
    moment, fresh_home, table_study, tmp_path, monkeypatch
):
    study_file = table_study(models=["svm-linear", "svm-rbf"], split={"by": "group", "folds": 3, "seeds": 2})
    out, store = tmp_path / "out", fresh_home / "store"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "eelsflow.cli", "study", str(study_file), "--out", str(out), "--runner", "prefect"],
        env={**environment, "EELSFLOW_HOME": str(fresh_home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    server = server_process(fresh_home)
    is_time = {
        "in the middle": lambda: len(list((store / "entries").glob("*/*"))) > 4,
        "after the results": (out / "results.json").exists,
    }[moment]
    while not is_time():
        assert process.poll() is None, "the study ended before its server could be killed"
        time.sleep(0.02)
    server.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=150)
    assert process.returncode == 0, said
    if moment == "in the middle":
        assert "is gone; the study goes on without it" in said

    monkeypatch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "loop-home"))
    place = Place(Store(tmp_path / "loop-store"), LoopExecutor())
    expected = run_study(load_study(study_file), tmp_path / "loop", place=place)
    found = read_json(out / "results.json")
    assert [{name: row[name] for name in NAMES} for row in found["models"]] == [
        {name: row[name] for name in NAMES} for row in expected["models"]
    ]
    left = [
        one
        for one in psutil.process_iter(["environ"])
        if (one.info["environ"] or {}).get("EELSFLOW_HOME") == str(fresh_home)
    ]
    assert not left
