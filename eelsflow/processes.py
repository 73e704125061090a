"""Who works on something: the name of a process, from which others can tell whether it is still there."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path


def name_process() -> str:
    """Return the name of this process: its host, the container in it, and its number."""
    return f"{_place()}_{os.getpid()}"


def is_here(name: str) -> bool:
    """Tell whether a process of this name would be seen from here; those of other hosts are not."""
    place, _, number = name.partition("_")
    return place == _place() and number.partition("_")[0].isdigit()


def is_gone(name: str) -> bool:
    """Tell whether a process has ended for certain; of other hosts nothing is certain.

    What follows another underscore in its name does not count.
    """
    return is_here(name) and not _is_running(int(name.partition("_")[2].partition("_")[0]))


def _place() -> str:
    """Name what the process ids of this process are valid in: the host, and the container in it."""
    host = re.sub(r"[^A-Za-z0-9.-]+", "-", socket.gethostname())
    with contextlib.suppress(OSError):  # Linux alone has it
        host += f".{Path('/proc/self/ns/pid').stat().st_ino}"
    return host


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
