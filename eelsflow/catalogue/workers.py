"""Processes that acquisitions are worked on in; each can be killed without harm, and is known by what it worked on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

RECYCLE_AFTER = 200
"""Acquisitions after which a worker is replaced by a fresh one: what libraries keep does not add up (ours)."""

WATCH_SECONDS = 0.5
START_SECONDS = 60.0


class WorkerStartError(OSError):
    """No process can be started: something is wrong with the machine, and with no file."""


class WorkerDiedError(RuntimeError):
    """The process that worked on something is gone: killed, or out of memory."""


class Workers:
    """Several pools of one process each: of a shared pool nobody knows whose work killed it.

    Parameters
    ----------
    n_workers
        How many acquisitions are worked on at once.
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._pools: list[ProcessPoolExecutor | None] = [None] * n_workers
        self._busy: dict[int, Future[Any]] = {}

    @property
    def n_free(self) -> int:
        """How many more pieces of work can begin now."""
        return self.n_workers - len(self._busy)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Begin a piece of work; there must be a free worker.

        A worker that dies of it, or meanwhile, is replaced, and the future raises `WorkerDiedError`.

        Raises
        ------
        WorkerStartError
            If no process can be started to do it.
        """
        number = next(number for number in range(self.n_workers) if number not in self._busy)
        result: Future[Any] = Future()
        try:
            inner = self._pool(number).submit(function, *args)
        except BrokenProcessPool:  # it died while it had nothing to do
            self._drop(number)
            inner = self._pool(number).submit(function, *args)
        self._busy[number] = inner

        def hand_over(done: Future[Any]) -> None:
            error = done.exception() if not done.cancelled() else RuntimeError("cancelled")
            if isinstance(error, BrokenProcessPool):
                error = WorkerDiedError("the process that worked on it is gone: it was killed, or had no memory left")
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(done.result())

        inner.add_done_callback(hand_over)
        return result

    def collect(self) -> None:
        """Make the workers free whose work has ended; to be called by the thread that submits."""
        for number, inner in list(self._busy.items()):
            if inner.done():
                del self._busy[number]
                if isinstance(inner.exception(), BrokenProcessPool):
                    self._drop(number)

    def pids(self) -> list[int]:
        """Return the numbers of the processes."""
        return [pid for pool in self._pools if pool is not None for pid in (pool._processes or {})]

    def _pool(self, number: int) -> ProcessPoolExecutor:
        pool = self._pools[number]
        if pool is None:
            pool = self._pools[number] = ProcessPoolExecutor(
                1,
                # TensorFlow and BLAS hold threads and locks that a fork would copy in a broken state.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_set_up,
                initargs=(os.getpid(),),
                max_tasks_per_child=RECYCLE_AFTER,
            )
            try:
                pool.submit(os.getpid).result(START_SECONDS)
            except (BrokenProcessPool, TimeoutError) as error:
                self._drop(number)
                raise WorkerStartError("no process to work in can be started") from error
        return pool

    def _drop(self, number: int) -> None:
        pool, self._pools[number] = self._pools[number], None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End the processes; what they work on is left unfinished."""
        if not self._busy:
            for pool in self._pools:
                if pool is not None:
                    pool.shutdown(wait=True)
            self._pools = [None] * self.n_workers
            return
        pids = self.pids()
        for number in range(self.n_workers):
            self._drop(number)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)  # what it writes has its name only when it is whole
            except ProcessLookupError:
                continue
        self._busy.clear()


def _set_up(parent: int) -> None:
    """Prepare a worker: it leaves Ctrl-C to the watcher, and ends with it however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)
