"""A scheduler and workers on machines of their own, with TLS between all of them, and a cable that is pulled."""

import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eelsflow.dask_tls import SWITCH
from eelsflow.errors import InputError
from eelsflow.executors import LoopExecutor
from eelsflow.store import Store, read_json
from eelsflow.study.config import load_study
from eelsflow.study.run import run_study as run_loop
from eelsflow.study.stages import Place
from flows.cluster import cluster_client
from flows.server import Server
from flows.study import run_study
from flows.study import study as study_flow
from tests.flows.network import Network, why_not

pytestmark = [pytest.mark.server, pytest.mark.slow]

WORKERS = ("worker-a", "worker-b")
FLAGS = {"ca-file": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
NOTICED_SECONDS = 60
"""Dask's own settings: TCP gives up after 30 s. It is the kernel that counts, so a busy machine does not matter."""


@pytest.fixture(scope="module")
def network(certificates: Path, server_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A scheduler and workers that speak TLS, started by Dask's own commands."""
    directory = tmp_path_factory.mktemp("network")
    if reason := why_not(directory):
        pytest.skip(reason)
    with Network(directory) as network:
        start(network, "scheduler", certificates, "scheduler", dashboard="127.0.0.1:8787")
        for name in WORKERS:
            start_worker(network, name, certificates)
        for name in WORKERS:
            network.wait_for(name, "Registered to", seconds=120)
        yield network


def start(network: Network, name: str, certificates: Path, *command: str, dashboard: str) -> None:
    if name not in network.machines:
        network.add(name)
    tls = [f"--tls-{flag}={certificates / file}" for flag, file in FLAGS.items()]
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    environment |= {"OMP_NUM_THREADS": "1", "DASK_TEMPORARY_DIRECTORY": str(network.directory / "dask")}
    dask = [sys.executable, "-m", "dask", *command, *tls, "--dashboard-address", dashboard]
    network.start(name, dask, environment)


def start_worker(network: Network, name: str, certificates: Path) -> None:
    one = ("worker", address_in(network), "--name", name, "--nthreads", "1")
    start(network, name, certificates, *one, dashboard="127.0.0.1:0")


def address_in(network: Network) -> str:
    return f"tls://{network.address('scheduler')}:8786"


@pytest.fixture
def address(network: Network, certificates: Path, server_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the scheduler, for a client that has certificates."""
    monkeypatch.setenv(SWITCH, str(certificates))
    monkeypatch.setenv("EELSFLOW_HOME", str(server_home))
    return address_in(network)


@pytest.fixture
def study_file(address: str, table_study: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
    split = {"by": "group", "folds": 3, "seeds": 2}
    return table_study(models=["svm-linear", "svm-rbf", "svm-sgd"], split=split, cluster=address)


@pytest.fixture(scope="module")
def once() -> dict[str, Any]:
    """What the loop has found: the same for every test of this module."""
    return {}


@pytest.fixture
def loop_results(study_file: Path, once: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    if not once:
        place = Place(Store(tmp_path / "loop-store"), LoopExecutor())
        once.update(run_loop(load_study(study_file), tmp_path / "loop", place=place))
    return once


def numbers(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all that is known of the models but times."""
    return [{name: row[name] for name in row if "seconds" not in name} for row in results["models"]]


def test_only_those_with_a_certificate_get_in(
    network: Network, address: str, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    context.check_hostname = False
    found = []
    for name in ("scheduler", *WORKERS):
        for line in network.run(name, "ss", "-Hltn").splitlines():
            host, _, port = line.split()[3].rpartition(":")
            if not host.startswith("127."):
                found.append(name)
                with (
                    socket.create_connection((network.address(name), int(port)), timeout=10) as open_,
                    pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
                    context.wrap_socket(open_) as encrypted,
                ):
                    encrypted.recv(1)
    assert set(found) == {"scheduler", *WORKERS}

    monkeypatch.delenv(SWITCH)
    with pytest.raises(InputError, match=f"{SWITCH} is not set"), cluster_client(address, home=tmp_path):
        pass
    monkeypatch.setenv(SWITCH, str(certificates / "others"))
    with pytest.raises(InputError, match="of the same authority"), cluster_client(address, home=tmp_path):
        pass


def test_a_study_gives_the_numbers_of_the_loop(
    prefect_server: Server, network: Network, study_file: Path, loop_results: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    study = load_study(study_file)
    run_study(study, out, store=Store(tmp_path / "store"), on_step=None, promote=False, strict=False, say=print)
    assert numbers(read_json(out / "results.json")) == numbers(loop_results)


def test_a_study_gives_the_numbers_of_the_loop_though_a_worker_is_cut_off(
    prefect_server: Server,
    network: Network,
    address: str,
    study_file: Path,
    loop_results: dict[str, Any],
    certificates: Path,
    server_home: Path,
    tmp_path: Path,
) -> None:
    lost = WORKERS[0]
    store = Store(tmp_path / "store")
    found: dict[str, Any] = {}
    with cluster_client(address, home=server_home) as client:
        workers = {about["id"]: one for one, about in client.scheduler_info()["workers"].items()}

        def pull() -> None:
            # In the middle: data set and features are there, models are being fitted.
            while len(list(store.root.glob("entries/*/*"))) < 8 or not client.processing()[workers[lost]]:
                time.sleep(0.02)
            network.cut(lost)
            began = time.monotonic()
            time.sleep(5)
            found["waited for"] = client.processing()[workers[lost]]
            while workers[lost] in client.processing():
                time.sleep(0.1)
            found["noticed"] = time.monotonic() - began

        puller = threading.Thread(target=pull, daemon=True)
        puller.start()
        study_flow(load_study(study_file), str(tmp_path / "out"), str(store.root), scheduler=address)
        puller.join(timeout=1)
        assert found["waited for"]
        assert found["noticed"] < NOTICED_SECONDS
        assert list(client.processing()) == [workers[WORKERS[1]]]
        network.processes[lost].wait(timeout=NOTICED_SECONDS)  # it ends by itself
        network.mend(lost)
        start_worker(network, lost, certificates)  # as what keeps it running would
        client.wait_for_workers(2, timeout=120)
    assert numbers(read_json(tmp_path / "out" / "results.json")) == numbers(loop_results)
