"""Which processes were started for a home folder: what checks and tests look for when everything has been stopped."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the processes that work in a home folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("EELSFLOW_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def describe(processes: list[psutil.Process]) -> list[str]:
    """Return the number and the command line of each process that is still there."""
    lines = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            lines.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
    return lines
