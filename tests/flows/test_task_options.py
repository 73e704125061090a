"""`tasks.options` with real runs; here because this folder has the server."""

import threading
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task, unmapped
from prefect.client.schemas.objects import State
from prefect.task_runners import ThreadPoolTaskRunner

from eelsflow.errors import InputError
from eelsflow.executors import LoopExecutor
from eelsflow.store import Store
from flows.server import Server
from tasks.options import executor_at, is_worth_retrying, task_options

pytestmark = pytest.mark.server

calls: list[str] = []


@task(**task_options("compute {name}", tags=("test",)))
def compute(name: str, *, digest: str, store: Path) -> str:
    calls.append(name)
    return f"result of {digest}"


@flow(name="eelsflow-test-cache", task_runner=ThreadPoolTaskRunner(max_workers=3))
def compute_all(names: list[str], store: Path) -> tuple[list[str], list[State[Any]]]:
    futures = compute.map(names, digest=[f"digest-{name}" for name in names], store=unmapped(store))
    futures.wait()
    return futures.result(), [future.state for future in futures]


def test_results_are_found_by_digest_in_later_runs(prefect_server: Server, tmp_path: Path) -> None:
    calls.clear()
    store = tmp_path / "store"
    first, states = compute_all(["a", "b", "c"], store)
    assert first == ["result of digest-a", "result of digest-b", "result of digest-c"]
    assert {state.name for state in states} == {"Completed"}
    again, states = compute_all(["a", "b", "d"], store)
    assert again == ["result of digest-a", "result of digest-b", "result of digest-d"]
    assert [state.name for state in states] == ["Cached", "Cached", "Completed"]
    assert sorted(calls) == ["a", "b", "c", "d"]


def test_results_are_forgotten_when_the_store_is_pruned(prefect_server: Server, tmp_path: Path) -> None:
    calls.clear()
    store = Store(tmp_path / "store")
    store.compute("0123", lambda folder: None)
    compute_all(["p"], store.root)
    for entry in store.entries():
        store.discard(entry.name)
    compute_all(["p"], store.root)
    assert calls == ["p", "p"]


def test_results_are_kept_below_the_home_and_are_no_pickles(
    prefect_server: Server, server_home: Path, tmp_path: Path
) -> None:
    compute_all(["kept"], tmp_path / "store")
    files = list((server_home / "prefect" / "results").glob("compute-digest-kept-*"))
    assert len(files) == 1
    assert '"result of digest-kept"' in files[0].read_text().replace('\\"', '"')


@pytest.mark.parametrize(("error", "n_tries"), [(InputError("bad"), 1), (OSError("disk"), 2)])
def test_bad_input_is_not_tried_again_but_a_fault_is(prefect_server: Server, error: Exception, n_tries: int) -> None:
    tries: list[int] = []

    @task(**{**task_options("try", retries=1, cached=False), "retry_delay_seconds": 0})
    def fail() -> None:
        tries.append(threading.get_ident())
        raise error

    @flow(name="eelsflow-test-retries")
    def once() -> None:
        fail()

    with pytest.raises(type(error)):
        once()
    assert len(tries) == n_tries


def test_success_is_not_worth_a_retry() -> None:
    from prefect.states import Completed

    assert not is_worth_retrying(compute, None, Completed(data=1))  # type: ignore[arg-type]


def test_executor_of_no_address_is_a_loop() -> None:
    assert isinstance(executor_at(None), LoopExecutor)


def test_executor_at_an_address_uses_the_client_that_is_there(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = executor_at(client.scheduler.address)
        assert executor.client is client  # type: ignore[attr-defined]
        assert executor.map(str, [1, 2]) == ["1", "2"]
