"""What protects the program from broken files: any fault of a reader becomes one error that names the file."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import rsciio  # noqa: F401  its import sets the level of its logger, which `quiet` would otherwise not outlast

from eelsflow.errors import InputError, MissingDependencyError, UnreadableFileError

# Warnings and log records of readers are caught while a file is read; both are process-wide switches.
_reading = threading.RLock()
_LOGGERS = ("rsciio", "tifffile")

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
