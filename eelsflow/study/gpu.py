"""A GPU is one study's at a time: whoever trains on it holds a lock on a file of eelsflow's home.

Networks that eelsflow trains itself run on processors; those that Keras trains use a GPU where there is one. The system
frees the lock of a process that ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event

from eelsflow.models.spec import ModelSpec, resolve_model
from eelsflow.store import Store, home, make_directory
from eelsflow.study.plan import FitModel, Step

POLL_SECONDS = 0.5

_logger = logging.getLogger("eelsflow.study")
_turn = threading.Lock()
_held = contextlib.ExitStack()
_users = 0


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that programs of this environment may use, by the names that CUDA is given.

    TensorFlow is not asked: that takes seconds, and some of the GPU's memory.
    """
    there = sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not there or named is None:
        return there
    return sorted({name.strip() for name in named.split(",")} - {"", "-1"})


def uses_gpu(model: ModelSpec) -> bool:
    """Tell whether Keras trains the model, or a member of it.

    >>> [uses_gpu(resolve_model(name)) for name in ("cnn-1", "keras:mynetworks.wide")]
    [False, True]
    """
    return any(part.base.startswith("keras:") for part in (model, *map(resolve_model, model.members)))


@contextlib.contextmanager
def turn_at_gpu(step: Step, store: Store, *, cancelled: Event | None = None) -> Iterator[None]:
    """Do a step in a ``with`` block; if it trains on a GPU, after other studies of this machine and home have left it.

    Threads of one process share a turn. Nobody waits where no GPU is visible.

    Raises
    ------
    CancelledError
        If `cancelled` is set while it waits.
    """
    global _users
    trains = isinstance(step, FitModel) and uses_gpu(step.model) and not store.has(step.digest)
    gpus = visible_gpus() if trains else []
    if not gpus:
        yield
        return
    with _turn:  # one thread waits for the others
        if not _users:
            _wait_for(gpus, cancelled)
        _users += 1
    try:
        yield
    finally:
        with _turn:
            _users -= 1
            if not _users:
                _held.close()


def _wait_for(gpus: list[str], cancelled: Event | None) -> None:
    """Lock every GPU, in the order that everybody takes them."""
    folder = make_directory(home())
    with contextlib.ExitStack() as stack:
        for gpu in gpus:
            # A home may be shared by machines.
            lock = stack.enter_context((folder / f"gpu-{socket.gethostname()}-{gpu}.lock").open("w"))
            told = False
            while not _try_lock(lock.fileno()):
                if not told:
                    _logger.warning("another study uses GPU %s of this machine; training goes on after it", gpu)
                    told = True
                if (cancelled or Event()).wait(POLL_SECONDS):
                    raise CancelledError("training was cancelled while it waited for the GPU")
        _held.push(stack.pop_all())


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
