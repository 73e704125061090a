"""TensorFlow and Keras: loaded on first use, quiet, and with one thread so that a seed gives the same numbers."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from eelsflow.errors import MissingDependencyError

LOCK = threading.RLock()
"""Held by whatever uses a compiled network: these are shared in a process, and one training is one thread's work."""


class Backend(NamedTuple):
    """The two modules."""

    tf: Any
    keras: Any


def check_installed() -> None:
    """Look whether TensorFlow is there, without importing it.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise MissingDependencyError(
            "TensorFlow is not installed, and the networks (fcnn-1, cnn-1, cnn-2) need it: install eelsflow[cpu] or "
            "eelsflow[gpu], or leave these models out of the study"
        )


_INFORMATION = re.compile(rb"^(I\d{4} |WARNING: All log messages before absl::InitializeLog)")


@contextlib.contextmanager
def without_information() -> Iterator[None]:
    """Keep lines of information that compiled code writes off the error stream; all other lines follow in the end.

    On processors with certain instructions TensorFlow 2.21 says which it uses before it reads the level of its log.
    To be removed when ``TF_CPP_MIN_LOG_LEVEL=3 python -c "import tensorflow"`` prints nothing there.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written:
        kept = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            for line in written:
                if not _INFORMATION.match(line):
                    os.write(2, line)


@lru_cache(maxsize=1)
def load_backend() -> Backend:
    """Import TensorFlow and Keras with one thread, deterministic operations and without log lines.

    Takes seconds and some .8 GB the first time. How many threads add up a sum changes its last bits: with one thread, a
    plain loop and a Dask worker agree, unless other code of the process has used TensorFlow before.

    Raises
    ------
    MissingDependencyError
        If TensorFlow is not installed, or Keras was imported on another backend before.
    """
    check_installed()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import; faults still raise
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with without_information():
        import keras
        import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        raise MissingDependencyError(
            f"Keras runs on {keras.backend.backend()!r} in this process, and the networks here need TensorFlow: set "
            "KERAS_BACKEND=tensorflow before anything imports Keras"
        )
    with contextlib.suppress(RuntimeError):  # TensorFlow was already used in this process
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    with without_information():
        tf.constant(0)  # starts the runtime, which has as much to tell
    tf.config.experimental.enable_op_determinism()
    return Backend(tf, keras)
