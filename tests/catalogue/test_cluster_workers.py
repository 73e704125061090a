import os
import time

import pytest

from deployments.services import DaskCluster
from eelsflow.catalogue.cluster_workers import ClusterWorkers
from eelsflow.catalogue.service import open_pool
from eelsflow.catalogue.workers import WorkerDiedError, WorkerStartError
from eelsflow.errors import InputError

pytestmark = pytest.mark.slow


def wait_for(pool, future):
    deadline = time.monotonic() + 60
    while not future.done():
        assert time.monotonic() < deadline
        pool.collect()
        time.sleep(0.02)
    return future


def submit(pool, *work):
    """Submit as the watcher does, which tries again where nobody is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return pool.submit(*work)
        except WorkerStartError:
            pool.collect()
            time.sleep(0.2)
    raise AssertionError("nobody is there")


def test_where_no_scheduler_answers_it_is_said_and_no_file_s_fault(monkeypatch):
    monkeypatch.setattr("eelsflow.catalogue.cluster_workers.CONNECT_SECONDS", 0.2)
    pool = ClusterWorkers("tcp://127.0.0.1:9")
    assert pool.n_free == 1
    with pytest.raises(WorkerStartError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        pool.submit(pow, 2, 2)
    pool.close()


def test_one_cannot_ask_for_workers_here_and_on_a_cluster():
    with pytest.raises(InputError, match="name one of the two"):
        open_pool(workers=2, cluster="tcp://127.0.0.1:9")


def test_work_goes_on_whatever_part_of_the_cluster_is_killed():
    with DaskCluster(1) as cluster:
        pool = ClusterWorkers(cluster.address)
        worker = wait_for(pool, submit(pool, os.getpid)).result()
        assert worker == cluster.processes["dask worker 0"].pid
        with pytest.raises(ZeroDivisionError):
            wait_for(pool, pool.submit(divmod, 1, 0)).result()
        slow = pool.submit(time.sleep, 30)
        assert pool.n_free == 0
        cluster.kill("scheduler")
        assert isinstance(wait_for(pool, slow).exception(), ConnectionError)
        assert wait_for(pool, submit(pool, pow, 2, 10)).result() == 1024
        assert pool.n_free == 1

        killer = submit(pool, os._exit, 1)
        assert isinstance(wait_for(pool, killer).exception(), WorkerDiedError)
        assert wait_for(pool, submit(pool, pow, 3, 2)).result() == 9
        pool.close()
