import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed
import psutil
import pytest

from eelsflow.errors import InputError, MissingDependencyError, WorkerLostError
from eelsflow.executors import DaskExecutor, LoopExecutor
from flows import cluster, jobs
from flows.cluster import cluster_client
from flows.server import Server, free_port

PROGRAM = """
import sys, time
from pathlib import Path
from flows.cluster import cluster_client
if __name__ == "__main__":
    with cluster_client(home=Path(sys.argv[1]), n_workers=1):
        print("ready", flush=True)
        time.sleep(600)
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with cluster_client(home=tmp_path_factory.mktemp("home"), n_workers=2) as client:
        yield client


def workers_of(client: Any) -> list[int]:
    return sorted(client.run(os.getpid).values())


def test_local_cluster_has_workers_of_one_thread_in_processes(client: Any) -> None:
    assert list(client.ncores().values()) == [1, 1]
    assert os.getpid() not in workers_of(client)
    assert set(client.run(os.getenv, "OMP_NUM_THREADS").values()) == {"1"}


def test_local_cluster_agrees_with_a_loop(client: Any) -> None:
    items = list(range(7))
    assert DaskExecutor(client).map(str, items, label="text") == LoopExecutor().map(str, items)


def test_workers_use_the_memory_of_small_arrays_again(client: Any) -> None:
    def pages_of_arrays() -> int:
        import resource

        import numpy as np

        np.ones(1 << 17)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(100):
            np.ones(1 << 17)  # 1 MiB: 256 pages, which would be mapped anew each time
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert max(client.run(pages_of_arrays).values()) < 100 * 256 / 4


def test_workers_use_the_memory_of_many_arrays_again(client: Any) -> None:
    """Heaps of a thread's own would be mapped anew in part."""

    def pages_of_arrays(_: int) -> int:
        import resource

        import numpy as np

        mebibyte = 1 << 17
        kept = np.ones(20 * mebibyte)
        faults = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            arrays = [np.ones(2 * mebibyte) for _ in range(25)]  # 50 MiB: 12,800 pages
            del arrays
            faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
        return sum(faults[1:]) if kept.all() else -1

    assert max(DaskExecutor(client).map(pages_of_arrays, [0, 1])) < 4 * 12_800 / 100


def test_local_cluster_finishes_when_a_worker_is_killed(client: Any) -> None:
    before = workers_of(client)
    futures = client.map(time.sleep, [2.0] * 4, pure=False)
    time.sleep(0.5)
    os.kill(before[0], signal.SIGKILL)
    client.gather(futures)
    client.wait_for_workers(2, timeout=60)
    assert before[0] not in workers_of(client)


_KEPT: list[Any] = []


def _keep(n_bytes: int) -> None:
    _KEPT.append(bytearray(b"x") * n_bytes)


def test_a_worker_whose_memory_is_nearly_full_goes_on(tmp_path: Path) -> None:
    """Dask would pause it, for ever."""
    with cluster_client(home=tmp_path, n_workers=1, memory_limit="600MiB") as client:
        (taken,) = client.run(_memory_of_this_process).values()
        DaskExecutor(client).map(_keep, [int(0.86 * (600 << 20)) - taken])
        time.sleep(1.5)  # it looks twice a second
        (taken,) = client.run(_memory_of_this_process).values()
        assert 0.82 < taken / (600 << 20) < 0.94
        assert DaskExecutor(client).map(str, [1, 2]) == ["1", "2"]


@pytest.mark.slow
def test_work_that_workers_die_of_is_one_clear_error(tmp_path: Path) -> None:
    with cluster_client(home=tmp_path, n_workers=1, memory_limit="400MiB") as client:
        with pytest.raises(WorkerLostError, match=r"^keep was given .* 400 MiB.*: give each worker"):
            DaskExecutor(client).map(_keep_and_wait, [500 << 20], label="keep")
        assert DaskExecutor(client).map(str, [1]) == ["1"]


def _keep_and_wait(n_bytes: int) -> None:
    _keep(n_bytes)
    time.sleep(30)


def _memory_of_this_process() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_scheduler_can_be_named_by_its_address(client: Any, tmp_path: Path) -> None:
    with cluster_client(client.scheduler.address, home=tmp_path) as second:
        assert second.submit(int, "7").result() == 7
    assert client.submit(int, "8").result() == 8


def test_an_address_without_a_scheduler_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    address = f"tcp://127.0.0.1:{free_port(0)}"
    with pytest.raises(InputError, match="no Dask scheduler answers"), cluster_client(address, home=tmp_path):
        pass


def test_different_versions_are_an_error(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_versions(self: Any, **options: Any) -> None:
        warnings.warn("Mismatched versions found\n\n| numpy | 2.4.0 | 2.3.0 |", stacklevel=1)

    monkeypatch.setattr(distributed.Client, "get_versions", get_versions)
    with (
        pytest.raises(InputError, match=r"(?s)same versions.*numpy"),
        cluster_client(client.scheduler.address, home=tmp_path),
    ):
        pass


@pytest.mark.parametrize("config", [{}, {"lsf": {}}, {"slurm": {}, "kubernetes": {}}])
def test_an_unknown_kind_of_cluster_is_an_error(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 'local'"), cluster_client(config, home=tmp_path):
        pass


def test_a_queue_without_its_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with (
        pytest.raises(MissingDependencyError, match="pip install dask-jobqueue"),
        cluster_client({"slurm": {"n_workers": 2}}, home=tmp_path),
    ):
        pass


@pytest.fixture
def queue_options(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the class that stands for SLURM's was given; its workers are threads."""
    seen: dict[str, Any] = {}

    class Queue(distributed.LocalCluster):
        job_cls = distributed.deploy.spec.ProcessInterface

        def __init__(self, **options: Any) -> None:
            if "bogus" in options:
                raise ValueError("Got unexpected keyword argument 'bogus'")
            seen.update(options)
            super().__init__(n_workers=0, processes=False, dashboard_address="127.0.0.1:0")

    module = type(sys)("dask_jobqueue")
    module.SLURMCluster = Queue  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
    return seen


def test_a_queue_gets_its_options_and_is_scaled(tmp_path: Path, queue_options: dict[str, Any]) -> None:
    """What of SLURM can be tested without it; see test_slurm.py for the rest."""
    with cluster_client({"slurm": {"queue": "short", "n_workers": 2}}, home=tmp_path) as client:
        assert client.submit(int, "7").result() == 7
        assert len(client.ncores()) == 2
    assert queue_options["queue"] == "short"
    assert "n_workers" not in queue_options
    assert queue_options["log_directory"] == str(tmp_path / "slurm")


@pytest.mark.parametrize(
    ("written", "host", "worker_hosts"),
    [
        ({}, "127.0.0.1", 1),
        ({"scheduler_options": {"port": 9000}}, "127.0.0.1", 1),
        ({"interface": "ib0"}, None, 0),
        ({"scheduler_options": {"host": "10.0.0.1"}}, "10.0.0.1", 0),
    ],
)
def test_a_queued_cluster_listens_on_this_machine_alone_unless_an_interface_is_named(
    written: dict[str, Any], host: str | None, worker_hosts: int, tmp_path: Path, queue_options: dict[str, Any]
) -> None:
    with cluster_client({"slurm": written}, home=tmp_path):
        pass
    scheduler = queue_options["scheduler_options"]
    assert scheduler.get("host") == host
    assert scheduler["dashboard_address"] == "127.0.0.1:0"
    assert scheduler.get("port") == written.get("scheduler_options", {}).get("port")
    assert queue_options["worker_extra_args"].count("--host") == worker_hosts
    assert queue_options.get("interface") == written.get("interface")


def test_an_option_that_the_queue_does_not_know_is_an_error(tmp_path: Path, queue_options: dict[str, Any]) -> None:
    with (
        pytest.raises(InputError, match=r"cluster: \{slurm: \.\.\.\}.*does not start.*'bogus'"),
        cluster_client({"slurm": {"bogus": 1}}, home=tmp_path),
    ):
        pass


class Waiting:
    """A cluster without workers, and a queue that has said these things of its one job."""

    def __init__(self, *queue: dict[str, str] | None, refused: str | None = None) -> None:
        self.scheduler_info: dict[str, Any] = {"workers": {}}
        self.scheduler_address = "tcp://127.0.0.1:9000"
        self.workers = {"one": SimpleNamespace(job_id="12", refused=refused)}
        self.said: list[str] = []
        self._queue = list(queue)

    def wait(self, monkeypatch: pytest.MonkeyPatch, given_up: threading.Event | None = None) -> list[str]:
        monkeypatch.setattr(jobs, "POLL_SECONDS", 0.001)
        monkeypatch.setattr(jobs, "LOOK_SECONDS", 0.002)
        monkeypatch.setattr(jobs, "_queue", self._answer)
        jobs.wait_for_a_worker(
            self, say=self.said.append, given_up=given_up or threading.Event(), output="/home/eelsflow/slurm"
        )
        return self.said

    def _answer(self) -> dict[str, str] | None:
        if len(self._queue) == 1:
            self.scheduler_info["workers"] = {"tcp://127.0.0.1:9001": {"name": "one"}}
        return self._queue.pop(0) if self._queue else {}


def test_what_is_waited_for_is_said_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    pending, busy = {"12": "pending (Priority)", "9": "running"}, {"12": "pending (Resources)"}
    assert Waiting(pending, pending, busy, None, {"12": "running"}).wait(monkeypatch) == [
        "waiting for the first worker; jobs: 1 pending (Priority)",
        "waiting for the first worker; jobs: 1 pending (Resources)",
        "waiting for the first worker",
    ]


def test_a_wait_ends_where_no_worker_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"the only job of a worker ended.*in /home/eelsflow/slurm.*`interface:`"):
        Waiting({"12": "running"}, {"13": "running"}, {}).wait(monkeypatch)
    with pytest.raises(InputError, match="takes no job of a worker: no such partition"):
        Waiting({}, {}, refused="no such partition").wait(monkeypatch)
    monkeypatch.setattr(jobs, "UNKNOWN_SECONDS", 0.05)
    with pytest.raises(InputError, match="what became of its job is not known"):
        Waiting(*[None] * 1000).wait(monkeypatch)
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(CancelledError):
        Waiting({}, {}).wait(monkeypatch, given_up)


@pytest.mark.slow
def test_workers_end_when_their_program_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    program = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    family = psutil.Process(program.pid).children(recursive=True)
    assert family
    program.kill()
    program.wait()
    program.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.server
def test_logs_of_workers_reach_the_flow_run(prefect_server: Server, client: Any, tmp_path: Path) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    @flow(name="eelsflow-test-logs")
    def work() -> None:
        with cluster_client(client.scheduler.address, home=tmp_path) as second:
            logger = logging.getLogger("eelsflow.worker")
            second.submit(logger.info, "seen on a worker").result()
            time.sleep(1)  # forwarded records come behind the result

    state = work(return_state=True)
    state.result()
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as api:
        while not (found := [log for log in api.read_logs(wanted) if "seen on a worker" in log.message]):
            assert time.monotonic() < deadline
            time.sleep(0.3)
    assert "eelsflow.worker on tcp://" in found[0].message
