"""The one factory for the Dask cluster: local, at an address, on SLURM or on Kubernetes.

Prefect tasks run in threads of the flow process and drive this cluster as its one client. Nothing here runs on a
worker except installed distributions and the standard library, so a worker needs just the wheel of eelsflow.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eelsflow.dask_tls import check_protocol, no_answer, tls_settings, with_tls
from eelsflow.errors import InputError, MissingDependencyError
from eelsflow.executors import check_versions, keep_freed_memory, never_pause
from eelsflow.store import make_directory
from flows import jobs

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 30

_QUEUES: dict[str, tuple[str, str, str]] = {  # cluster type: module, class, what to install
    "slurm": ("dask_jobqueue", "SLURMCluster", "dask-jobqueue"),
    "kubernetes": ("dask_kubernetes.operator", "KubeCluster", "dask-kubernetes"),
}


@contextlib.contextmanager
def cluster_client(
    config: str | Mapping[str, Any] = "local",
    *,
    home: Path,
    n_workers: int | None = None,
    memory_limit: str = "auto",
    resources: Mapping[str, float] | None = None,
    say: Callable[[str], None] = lambda text: None,
    given_up: threading.Event | None = None,
) -> Iterator[Client]:
    """Provide a client of a Dask cluster for the time of a ``with`` block.

    Log records of the logger ``eelsflow`` on the workers reach the Prefect run in whose flow this is called.

    Parameters
    ----------
    config
        ``"local"``; the address of a scheduler, such as ``"tcp://host:8786"``; or ``{"slurm": {...}}`` or
        ``{"kubernetes": {...}}`` with the keywords of dask-jobqueue's ``SLURMCluster`` or dask-kubernetes'
        ``KubeCluster``, and ``n_workers``. With ``EELSFLOW_DASK_TLS`` all speak TLS (`eelsflow.dask_tls`).
    home
        The home folder of eelsflow; a local cluster spills to its folder ``dask``.
    n_workers, memory_limit, resources
        Of a local cluster: worker processes (default: one a core), memory of each (default: an equal share), and
        resources of each, such as ``{"GPU": 1}``.
    say
        Tells the user what is waited for: a queue may take hours until the first worker starts.
    given_up
        Ends that wait when it is set.

    Raises
    ------
    MissingDependencyError
        If the kind of cluster needs a package that is not installed.
    InputError
        If the description is not understood, no scheduler answers at the address, the queue takes no job, all jobs
        ended before a worker was there, or the versions there differ.
    """
    import dask
    from distributed import Client

    with contextlib.ExitStack() as stack:
        # Blocks are sent with what is known of them: spikes, scores, guides. Dask advises against it from 10 MB on.
        stack.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "10GB"}))
        stack.enter_context(dask.config.set(tls_settings()))
        check_protocol(config)
        scheduler: Any
        if config == "local":
            scheduler = stack.enter_context(_local_cluster(home, n_workers, memory_limit, resources))
        elif isinstance(config, str):
            scheduler = config
        else:
            scheduler = stack.enter_context(_queued_cluster(config, home, say, given_up or threading.Event()))
        try:
            # closed, not entered: a client that is entered must be left in the thread that entered it
            client = Client(scheduler, timeout=CONNECT_SECONDS, name="eelsflow")
            stack.callback(client.close)
        except (OSError, ValueError) as error:
            raise InputError(no_answer(scheduler, error)) from error
        if config == "local":
            # Ctrl-C reaches the whole group of processes; the client stops the workers, they need not say anything.
            client.register_worker_callbacks(functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN))
            # What fails on a worker is raised here; on their error stream, the terminal, it would be said twice.
            for name, level in {"": logging.CRITICAL, ".memory": logging.WARNING}.items():
                logger = logging.getLogger(f"distributed.worker{name}")
                client.register_worker_callbacks(functools.partial(logging.Logger.setLevel, logger, level))
        if isinstance(config, str):
            try:
                client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            except TimeoutError as error:
                raise InputError(
                    f"the Dask scheduler at {client.scheduler.address} has no worker after {CONNECT_SECONDS} s; "
                    "expected one at least, because they do the work: start `dask worker` with the address, and see "
                    "what it prints if it does not stay"
                ) from error
        check_versions(client)
        client.register_worker_callbacks(keep_freed_memory)
        if not isinstance(config, str) or config == "local":  # others may use a cluster that was there before
            client.register_worker_callbacks(never_pause)
        stack.enter_context(_worker_logs(client))
        try:
            yield client
        finally:
            # Closing makes distributed warn of connections that end, which is what closing is.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            stack.callback(logging.getLogger("distributed").setLevel, logging.WARNING)


@contextlib.contextmanager
def _local_cluster(
    home: Path, n_workers: int | None, memory_limit: str, resources: Mapping[str, float] | None
) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    settings = {
        # TensorFlow and BLAS hold threads and locks that a fork would copy in a broken state.
        "distributed.worker.multiprocessing-method": "spawn",
        # A task is given up after its fourth worker died: one that eats the memory must not kill workers for ever.
        "distributed.scheduler.allowed-failures": 3,
        # Where workers spend their time: looked at every .01 s, it takes a worker 1.5 % of its time.
        "distributed.worker.profile.interval": "200ms",
        "distributed.worker.profile.cycle": "5s",
        # Whether the event loops of all answer within 3 s: asked every .02 s by default, it takes 4 % of a core.
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.tick.limit": "4s",  # from one time to the next
        # By default every .1 and .5 s: another percent of a core.
        "distributed.worker.memory.monitor-interval": "500ms",
        "distributed.admin.system-monitor.interval": "2s",
        # Work is done in a thread, to which glibc gives heaps of its own, and takes them away when they are empty.
        "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
        # TensorFlow would give all of a GPU's memory to the first worker that asks.
        "distributed.nanny.pre-spawn-environ.TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            # The cores this process may use, which a container or a queue may have limited.
            n_workers=n_workers or len(os.sched_getaffinity(0)),
            threads_per_worker=1,
            processes=True,
            memory_limit=memory_limit,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=str(make_directory(home / "dask")),
            resources=dict(resources or {}),
        ) as cluster,
    ):
        yield cluster


def load_queue(config: str | Mapping[str, Any]) -> tuple[str, Any]:
    """Return kind and class of a cluster that a queue starts; nothing to load for others.

    To be called in the main thread first: dask-jobqueue takes Ctrl-C for itself when it is imported, which no other
    thread may do. It is given back.
    """
    if isinstance(config, str):
        return config, None
    kind = next(iter(config), "")
    if len(config) != 1 or kind not in _QUEUES:
        raise InputError(
            f"cluster is {dict(config)!r}; expected 'local', the address of a scheduler, "
            "{slurm: {...}} or {kubernetes: {...}}"
        )
    module, name, distribution = _QUEUES[kind]
    before = signal.getsignal(signal.SIGINT)
    try:
        return kind, getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise MissingDependencyError(
            f"`cluster: {{{kind}: ...}}` needs {distribution}, which is not installed: pip install {distribution}"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _queued_cluster(
    config: Mapping[str, Any], home: Path, say: Callable[[str], None], given_up: threading.Event
) -> Iterator[Any]:
    kind, factory = load_queue(config)
    options = dict(config[kind] or {})
    n_workers = options.pop("n_workers", 1)
    if kind == "slurm":
        options = jobs.with_defaults(with_tls(options), factory, home)
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(factory(**options))
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"the cluster that `cluster: {{{kind}: ...}}` describes does not start: {error}"
            ) from error
        cluster.scale(n_workers)
        jobs.wait_for_a_worker(cluster, say=say, given_up=given_up, output=options.get("log_directory"))
        if kind == "slurm":
            stack.enter_context(jobs.asked_for_again(cluster, n_workers, say=say))
        yield cluster


@contextlib.contextmanager
def _worker_logs(client: Client) -> Iterator[None]:
    """Hand log records of ``eelsflow`` on the workers, and in threads of this process, to the Prefect run around."""
    logger = logging.getLogger("eelsflow")
    handler = _RunHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Of the standard library throughout, because this is pickled by name and runs on workers without `flows`.
    client.register_worker_callbacks(functools.partial(logging.Logger.setLevel, logger, logging.INFO))
    client.forward_logging("eelsflow", level=logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _RunHandler(logging.Handler):
    """Log to the Prefect run of the calling thread, else to the run in which this handler was made.

    Records of workers arrive in a thread of the client that belongs to no run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._flow_logger = self._run_logger()

    def emit(self, record: logging.LogRecord) -> None:
        target = self._run_logger() or self._flow_logger
        if target is not None:
            worker = getattr(record, "worker", None)  # set by distributed on forwarded records
            origin = f"{record.name} on {worker}" if worker else record.name
            target.log(record.levelno, "%s: %s", origin, record.getMessage())

    @staticmethod
    def _run_logger() -> logging.LoggerAdapter[logging.Logger] | None:
        from prefect.exceptions import MissingContextError
        from prefect.logging import get_run_logger

        try:
            return get_run_logger()
        except MissingContextError:
            return None
