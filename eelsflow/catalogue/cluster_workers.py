"""Workers of a Dask cluster that acquisitions are worked on by; any part of it may go away and come back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from eelsflow.catalogue.workers import WorkerDiedError, WorkerStartError
from eelsflow.dask_tls import check_protocol, tls_settings
from eelsflow.errors import InputError
from eelsflow.executors import check_versions

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 5.0
"""How long a scheduler is asked for an answer (ours); the watcher asks again."""


class ClusterWorkers:
    """The workers of a Dask cluster, as many as it has just now; each must see inbox, home and results.

    Parameters
    ----------
    address
        Of the scheduler, such as ``tcp://host:8786``, or ``tls://`` with EELSFLOW_DASK_TLS (`eelsflow.dask_tls`).

    Raises
    ------
    InputError
        If TLS is asked for and the address has none, or its certificates cannot be used.
    """

    def __init__(self, address: str) -> None:
        import dask

        dask.config.set(tls_settings())
        check_protocol(address)
        self._address = address
        self._client: Client | None = None
        self._checked: set[str] = set()
        self._busy: dict[Future[Any], Any] = {}  # of ours, and of Dask

    @property
    def n_workers(self) -> int:
        """How many acquisitions are worked on at once."""
        return max(self._n_threads(), 1)

    @property
    def n_free(self) -> int:
        """How many more pieces of work can begin now; one where nobody answers, so that it is tried and said."""
        return max(self.n_workers - len(self._busy), 0)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Begin a piece of work.

        A worker that dies of it as often as the cluster lets it makes the future raise `WorkerDiedError`; a scheduler
        that goes away, `ConnectionError`.

        Raises
        ------
        WorkerStartError
            If no scheduler answers, or it has no worker.
        """
        client = self._connect()
        if not self._n_threads():
            raise WorkerStartError(f"the Dask cluster at {self._address} has no worker; start some there")
        self._check(client)
        result: Future[Any] = Future()
        theirs = client.submit(function, *args, pure=False)
        self._busy[result] = theirs
        return result

    def _check(self, client: Client) -> None:
        """Refuse workers of other versions: what they make of a file would be no fault of the file."""
        workers = set(client.scheduler_info(n_workers=-1)["workers"])
        if workers - self._checked:
            try:
                check_versions(client)
            except InputError as error:
                raise WorkerStartError(str(error)) from error
            self._checked = workers

    def collect(self) -> None:
        """Hand over what has ended; of a scheduler that is gone, everything has."""
        is_lost = self._client is not None and self._client.status != "running"
        for result, theirs in list(self._busy.items()):
            if is_lost or theirs.status in ("cancelled", "lost"):
                result.set_exception(ConnectionError(f"the Dask scheduler at {self._address} went away"))
            elif theirs.status == "finished":
                result.set_result(theirs.result())
            elif theirs.status == "error":
                result.set_exception(_own(theirs.exception()))
            else:
                continue
            del self._busy[result]
        if is_lost:
            self._leave()

    def close(self) -> None:
        """Give everything up; the cluster stays."""
        for theirs in self._busy.values():
            with contextlib.suppress(Exception):
                theirs.cancel()
        self._busy.clear()
        self._leave()

    def _n_threads(self) -> int:
        if self._client is None or self._client.status != "running":
            return 0
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return sum(worker["nthreads"] for worker in workers)

    def _connect(self) -> Client:
        from distributed import Client

        if self._client is None:
            # What is said of connections that end is said by the watcher, once.
            for name in ("distributed", "distributed.client"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            try:
                self._client = Client(self._address, timeout=CONNECT_SECONDS, name="eelsflow-watch")
            except (OSError, ValueError, TimeoutError) as error:
                raise WorkerStartError(
                    f"no Dask scheduler answers at {self._address} ({error}); start one with `dask scheduler`"
                ) from error
        return self._client

    def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.close(timeout=2)


def _own(error: BaseException) -> BaseException:
    """Tell the end of a worker from a fault of the work."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return WorkerDiedError(f"the Dask workers that worked on it are gone: {error.last_worker.address}")
    return error
