"""Threads of BLAS, the library that numpy and scipy leave products of matrices to."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[Any]:
    """Keep products to one thread while a block runs: where they are many and small, a second one makes them slower."""
    limits: AbstractContextManager[Any] = _controller().limit(limits=1, user_api="blas")
    return limits


@functools.cache
def _controller() -> ThreadpoolController:
    import numpy.linalg  # noqa: F401 - so that both of their libraries are there to be found
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()  # looks through all libraries of the process, which takes milliseconds
