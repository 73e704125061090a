"""What protects the program from broken files: any fault of a reader becomes one error that names the file."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import rsciio  # noqa: F401  its import sets the level of its logger, which `quiet` would otherwise not outlast

from eelsflow.errors import InputError, MissingDependencyError, UnreadableFileError

# Warnings and log records of readers are caught while a file is read; both are process-wide switches.
_reading = threading.RLock()
_LOGGERS = ("rsciio", "tifffile")

PROBE_SECONDS = 30.0
"""How long the names and attributes of an HDF5 file may take to read; usual are .3 s."""
_PROBE = """
import sys, h5py
def look(name, item):
    for key in item.attrs:
        item.attrs[key]
with h5py.File(sys.argv[1], "r") as file:
    look("", file)
    file.visititems(look)
"""

PICKLED = (
    "holds pickled Python objects, which are never loaded because they can run any program; expected plain arrays of "
    "numbers: save it again without objects"
)
"""What messages say instead of numpy's advice to load them after all."""


def is_about_pickles(error: BaseException) -> bool:
    """Tell whether a reader refused pickled objects."""
    return "pickle" in str(error)


@contextlib.contextmanager
def damage_reported(path: Path, format_name: str) -> Iterator[None]:
    """Turn whatever a reader raises on broken bytes into `UnreadableFileError`; our own errors pass."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except MissingDependencyError:
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableFileError(f"{path} is not a readable {format_name} file: {reason}") from error
    except Exception as error:  # struct.error, KeyError, IndexError, MemoryError, zlib.error, ...: any of them
        if is_about_pickles(error):
            raise UnreadableFileError(f"{path} {PICKLED}") from error
        detail = " ".join(str(error).split())[:200]
        raise UnreadableFileError(
            f"{path} is not a readable {format_name} file: it is truncated, damaged or of a variant that the reader "
            f"does not know ({type(error).__name__}: {detail}); copy it again or export it anew"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Collect a reader's warnings instead of showing them; its log records are dropped."""
    messages: list[str] = []
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    with _reading, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield messages
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            messages.extend(sorted({f"{one.category.__name__}: {one.message}" for one in caught}))


def require_readable_hdf5(path: Path) -> None:
    """Refuse a file whose damage makes the HDF5 library run for ever or crash: a process of its own looks first.

    Raises
    ------
    UnreadableFileError
        If the names, shapes and attributes in the file cannot be read within `PROBE_SECONDS`.
    """
    problem = f"took more than {PROBE_SECONDS:g} s to read, where fractions of a second are usual"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE, str(path)], capture_output=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pass
    else:
        if done.returncode >= 0:  # what it raises is raised again, with more to say, when the file is read
            return
        problem = f"made the HDF5 library crash (signal {-done.returncode})"
    raise UnreadableFileError(f"{path} is damaged: its names and attributes {problem}; copy it again")
