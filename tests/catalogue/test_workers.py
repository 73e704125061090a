import os
import signal
import time

import psutil
import pytest

from eelsflow.catalogue import workers
from eelsflow.catalogue.workers import WorkerDiedError, Workers, WorkerStartError


@pytest.fixture
def pool():
    pool = Workers(2)
    yield pool
    pool.close()


def wait_for(pool, future):
    future.exception(timeout=60)
    pool.collect()
    return future


def test_work_is_done_in_processes_of_their_own(pool):
    futures = [pool.submit(os.getpid) for _ in range(2)]
    assert pool.n_free == 0
    pids = {wait_for(pool, future).result() for future in futures}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert pool.n_free == 2
    assert set(pool.pids()) == pids


def test_a_worker_that_is_killed_harms_its_own_work_alone_and_is_replaced(pool):
    slow = pool.submit(time.sleep, 30)
    other = pool.submit(pow, 2, 10)
    while len(pool.pids()) < 2:
        time.sleep(0.01)
    os.kill(pool.pids()[0], signal.SIGKILL)
    assert isinstance(wait_for(pool, slow).exception(), WorkerDiedError)
    assert wait_for(pool, other).result() == 1024
    assert wait_for(pool, pool.submit(pow, 3, 2)).result() == 9


def test_a_worker_that_died_while_it_was_idle_is_replaced(pool):
    wait_for(pool, pool.submit(pow, 2, 2))
    os.kill(pool.pids()[0], signal.SIGKILL)
    time.sleep(0.2)
    assert wait_for(pool, pool.submit(pow, 2, 3)).result() == 8


def test_where_no_process_can_be_started_it_is_no_file_s_fault(monkeypatch):
    monkeypatch.setattr(workers, "_set_up", os._exit)  # the first thing that a worker does is to end
    pool = Workers(1)
    with pytest.raises(WorkerStartError, match="no process to work in can be started"):
        pool.submit(pow, 2, 2)
    assert pool.n_free == 1
    pool.close()


def test_workers_end_with_what_started_them(tmp_path):
    import subprocess
    import sys

    code = (
        "import os, time; from eelsflow.catalogue.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    pool = Workers(1); pool.submit(os.getpid).result(); print(pool.pids()[0], flush=True); time.sleep(60)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(code)
    program = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = int(program.stdout.readline())
    program.kill()
    program.communicate()
    for _ in range(100):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker outlives the program")
