"""Where work runs: in a plain loop, in threads, or on a Dask cluster. No numerics here.

Every stage that can be split takes an `Executor` and calls `map` with a function of an installed module and a list
of items. Results come back in the order of the items, so a sum over them is the same sum whatever ran it.
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from threadpoolctl import threadpool_limits

from eelsflow.errors import InputError, WorkerLostError

if TYPE_CHECKING:
    from distributed import Client, KilledWorker

Item = TypeVar("Item")
Result = TypeVar("Result")


SAME_VERSIONS = ("eelsflow", "numpy", "scikit-learn", "xarray", "zarr")
"""Packages whose versions client, scheduler and workers must share: what they exchange is pickled by these."""

Report = Callable[[str, int, int], None]
"""Is told how far work is: its label, items done, items in all."""


class Executor(Protocol):
    """Something that applies a function to every item and returns the results in order.

    Attributes
    ----------
    shares_memory
        Whether it works in this process, so that items may hold large arrays.
    report
        Told after every item how far a `map` is, in the thread that called it; None: nobody is.
    """

    shares_memory: bool
    report: Report | None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], *, label: str = "") -> list[Result]:
        """Return ``[function(item) for item in items]``; `label` is what a person sees the work called."""
        ...


class LoopExecutor:
    """A plain loop: the oracle that the others must agree with."""

    shares_memory = True
    report: Report | None = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], *, label: str = "") -> list[Result]:
        """Apply the function to one item after the other."""
        return _counted(map(function, items), self.report, label, len(items))


class ThreadExecutor:
    """Threads of this process; for work that releases the interpreter lock.

    Parameters
    ----------
    n_threads
        How many items are worked on at once.

    Notes
    -----
    Meanwhile a BLAS product has one thread: threads of its own beside ours would wait for each other.
    """

    shares_memory = True
    report: Report | None = None

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], *, label: str = "") -> list[Result]:
        """Apply the function in threads."""
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(self.n_threads) as pool:
            return _counted(pool.map(function, items), self.report, label, len(items))


def _counted(results: Iterator[Result], report: Report | None, label: str, total: int) -> list[Result]:
    """Collect results, and tell how many there are."""
    found = []
    for result in results:
        found.append(result)
        if report is not None:
            report(label, len(found), total)
    return found


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Let this process use memory again that it has freed, as any process does but a worker of Dask.

    Dask starts its workers with ``MALLOC_TRIM_THRESHOLD_=65536``, so that they give memory back at once. By that glibc
    also maps every array beyond 128 KiB anew, and the kernel clears it page by page: a study of many small trainings
    and scores took nearly half as much processor time again. The sizes here are the largest that glibc chooses by
    itself. Where the C library is another one nothing happens.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, 32 << 20)
        set_option(M_TRIM_THRESHOLD, 64 << 20)


def never_pause(dask_worker: Any) -> None:
    """Let a worker of Dask go on however much of its memory is taken; beyond 95 % its nanny starts it anew.

    Dask pauses a worker at 80 %, until it has given memory back. These keep what they have freed (`keep_freed_memory`)
    and hold no results to speak of, so none would ever go on: a study on workers that are too small stood still.
    """
    from distributed import Status

    dask_worker.memory_manager.memory_pause_fraction = False
    if dask_worker.status == Status.paused:
        dask_worker.status = Status.running


class DaskExecutor:
    """Workers of a Dask cluster, driven as a client.

    Parameters
    ----------
    client
        A connected client; one is shared by all threads of a flow.
    resources
        Worker resources an item needs, such as ``{"GPU": 1}``.
    cancelled
        When set, work under way is cancelled and no more is begun: `map` raises `CancelledError`. A flow that is
        interrupted would otherwise wait for its threads, and they for their workers.
    """

    shares_memory = False
    report: Report | None = None
    POLL_SECONDS = 0.5

    def __init__(
        self, client: Client, *, resources: dict[str, float] | None = None, cancelled: Event | None = None
    ) -> None:
        self.client = client
        self.resources = resources
        self.cancelled = cancelled or Event()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], *, label: str = "") -> list[Result]:
        """Apply the function on the workers; the work is cancelled if this call is interrupted or one item fails.

        Results are fetched while others are worked on, so that workers hold few of them.

        Raises
        ------
        WorkerLostError
            If an item has killed as many workers as the cluster allows.
        CancelledError
            If `cancelled` is set.
        """
        from distributed import KilledWorker, wait

        options: dict[str, Any] = {"pure": False, "key": label or None, "resources": self.resources}
        pending = dict(enumerate(self.client.map(function, list(items), **options)))
        results: dict[int, Result] = {}
        try:
            while pending and not self.cancelled.is_set():
                with contextlib.suppress(TimeoutError):
                    wait(list(pending.values()), timeout=self.POLL_SECONDS)
                done = [number for number, future in pending.items() if future.done()]
                results |= zip(done, self.client.gather([pending[number] for number in done]), strict=True)
                for number in done:
                    pending.pop(number).release()  # a traceback may hold it longer
                if done and self.report is not None:
                    self.report(label, len(results), len(items))
            if not pending:
                return [results[number] for number in range(len(results))]
        except BaseException as error:
            self.client.cancel(list(pending.values()), force=True)
            if isinstance(error, KilledWorker):
                raise WorkerLostError(self._why_lost(error, label)) from error
            raise
        self.client.cancel(list(pending.values()), force=True)
        raise CancelledError(f"{label or 'work'} on the cluster was cancelled")

    @staticmethod
    def _why_lost(error: KilledWorker, label: str) -> str:
        limit = error.last_worker.memory_limit
        each = f", of which each has {limit / 2**20:.0f} MiB" if limit else ""
        return (
            f"{label or 'a piece of work'} was given to one worker after the other and each died of it, most likely "
            f"for want of memory{each}: give each worker more, such as 2 GiB (fewer workers on the same machine "
            "have more each), and run the same command again"
        )


def check_versions(client: Client) -> None:
    """Refuse a cluster whose packages differ: pickles between them could fail late, or give other numbers.

    Raises
    ------
    InputError
        If client, scheduler and workers do not run the same versions of `SAME_VERSIONS`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            client.get_versions(check=True, packages=SAME_VERSIONS)
        except ValueError as error:
            raise InputError(f"client, scheduler and workers must run the same versions: {error}") from error
    for warning in caught:
        if "Mismatched versions" in str(warning.message):
            raise InputError(
                f"client, scheduler and workers must run the same versions: {warning.message}\n"
                "Install the lock file of this release on all of them."
            )
