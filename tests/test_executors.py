import operator
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from eelsflow.executors import DaskExecutor, LoopExecutor, ThreadExecutor


@pytest.fixture(scope="module")
def dask_executor():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield DaskExecutor(client)


@pytest.fixture(params=["loop", "threads", "dask"])
def executor(request):
    if request.param == "dask":
        return request.getfixturevalue("dask_executor")
    return LoopExecutor() if request.param == "loop" else ThreadExecutor(2)


def test_results_come_in_the_order_of_the_items(executor):
    assert executor.map(operator.neg, list(range(20)), label="negate") == [-n for n in range(20)]


def test_it_is_told_how_far_work_is(executor):
    told = []
    executor.report = lambda *progress: told.append(progress)
    try:
        executor.map(operator.neg, list(range(5)), label="negate")
    finally:
        executor.report = None
    assert told[-1] == ("negate", 5, 5)
    done = [number for _, number, _ in told]
    assert done == sorted(set(done))
    executor.map(operator.neg, [1], label="again")
    assert told[-1][0] == "negate"


def test_equal_items_are_computed_separately(executor):
    """A repeated label must not make a second call return the first one's results."""
    assert executor.map(operator.neg, [1], label="step") == [-1]
    assert executor.map(operator.neg, [2], label="step") == [-2]


def test_error_of_an_item_is_raised(executor):
    with pytest.raises(ZeroDivisionError):
        executor.map((1).__truediv__, [1, 0])


def test_workers_do_not_keep_what_was_fetched(dask_executor):
    """A future that something still refers to would keep its result on the workers for as long as the cluster lives."""
    assert len(dask_executor.map(np.zeros, [100_000] * 20)) == 20
    client = dask_executor.client
    for _ in range(100):
        if not sum(client.run(lambda dask_worker: len(dask_worker.data)).values()):
            break
        time.sleep(0.05)
    else:
        pytest.fail("results were kept")


def test_results_are_fetched_while_others_are_worked_on(dask_executor):
    """Results of a large image would fill the workers' memory."""
    kept = dask_executor.map(_results_here, [1.0] * 8)
    assert max(kept) <= 3


def _results_here(seconds):
    from distributed import get_worker

    time.sleep(seconds)
    return len(get_worker().data)


def test_no_items_give_no_results(executor):
    assert executor.map(operator.neg, []) == []


def test_threads_have_one_thread_each_for_products():
    """Two threads with two threads of BLAS each wait for one another most of the time."""

    def blas_threads(_: int) -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    before = blas_threads(0)
    assert ThreadExecutor(2).map(blas_threads, [0, 1]) == [{1}, {1}]
    assert blas_threads(0) == before
