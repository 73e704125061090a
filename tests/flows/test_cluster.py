import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import psutil
import pytest

from eelsflow.errors import InputError, MissingDependencyError, WorkerLostError
from eelsflow.executors import DaskExecutor, LoopExecutor
from flows import cluster
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


def test_a_queue_gets_its_options_and_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of SLURM can be tested without it: its class gets what the study file says, and its workers are used."""
    seen: dict[str, Any] = {}

    class Queue(distributed.LocalCluster):
        def __init__(self, **options: Any) -> None:
            seen.update(options)
            super().__init__(n_workers=0, processes=False, dashboard_address="127.0.0.1:0")

    module = type(sys)("dask_jobqueue")
    module.SLURMCluster = Queue  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
    with cluster_client({"slurm": {"queue": "short", "n_workers": 2}}, home=tmp_path) as client:
        assert client.submit(int, "7").result() == 7
        assert len(client.ncores()) == 2
    assert seen == {"queue": "short"}


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
