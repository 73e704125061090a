import fcntl
import socket
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from eelsflow.models.spec import resolve_model
from eelsflow.store import Store
from eelsflow.study import gpu
from eelsflow.study.gpu import turn_at_gpu, visible_gpus
from eelsflow.study.plan import FitModel

HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("holds", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def two_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path))
    monkeypatch.setattr(gpu, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(gpu, "POLL_SECONDS", 0.02)


@pytest.fixture
def lock_file(tmp_path):
    return tmp_path / f"gpu-{socket.gethostname()}-1.lock"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def step(name: str) -> FitModel:
    step = FitModel.model_construct(model=resolve_model(name))
    vars(step)["digest"] = "ab12"  # computed from the rest, which is left out
    return step


@pytest.fixture
def other_study(lock_file):
    """A process that holds one of the GPUs."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock_file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def is_free(lock_file) -> bool:
    with lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_training_waits_for_another_study_and_goes_on_when_that_is_killed(other_study, lock_file, store, caplog):
    begun = threading.Event()

    def train():
        with turn_at_gpu(step("keras:some.network"), store):
            begun.set()
            return is_free(lock_file)

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        assert not begun.wait(0.5)
        other_study.kill()
        assert training.result(timeout=10) is False
    assert caplog.messages == ["another study uses GPU 1 of this machine; training goes on after it"]
    assert is_free(lock_file)


def test_threads_of_a_study_share_its_turn(lock_file, store):
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(turn_at_gpu(step("keras:some.network"), store))
        second.enter_context(turn_at_gpu(step("keras:some.network"), store))
        first.close()
        assert not is_free(lock_file)
        second.close()
        assert is_free(lock_file)


def test_what_needs_no_gpu_does_not_wait(other_study, store):
    with turn_at_gpu(step("svm-rbf"), store), turn_at_gpu(step("cnn-1"), store):
        pass
    with turn_at_gpu(SimpleNamespace(digest="ab12"), store):
        pass
    store.compute("ab12", lambda directory: None)
    with turn_at_gpu(step("keras:some.network"), store):
        pass


def test_an_interrupted_study_does_not_wait(other_study, store):
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledError), turn_at_gpu(step("keras:some.network"), store, cancelled=cancelled):
        pass


@pytest.mark.parametrize(
    ("named", "expected"), [(None, ["0", "1"]), ("1", ["1"]), ("1, 0", ["0", "1"]), ("", []), ("-1", [])]
)
def test_gpus_are_those_that_cuda_may_use(named, expected, tmp_path, monkeypatch):
    monkeypatch.undo()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpu, "Path", lambda folder: tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == expected
