"""What protects the program from broken HDF5 files: their library crashes, hangs or fills the memory over some."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py

from eelsflow.errors import EelsflowError, UnreadableFileError
from eelsflow.io import hdf5_probe

PROBE_SECONDS = 30.0
"""How long the names and attributes of a file may take to read; usual are .3 s."""
_PROBE = Path(hdf5_probe.__file__)

_readable: dict[tuple[Path, int, int, int, int], None] = {}
"""Looks of files that were readable, the latest `_REMEMBERED`: preparing one reads it three times."""
_REMEMBERED = 64

_BELIEVED_BYTES = 1 << 26
_COMPRESSION = 1100
"""How many times larger than on disk counts may be: deflate reaches 1032."""


def require_readable_hdf5(path: Path) -> None:
    """Refuse a file whose damage makes the HDF5 library run for ever or crash: a process of its own looks first.

    A file that was readable is not looked at again by this process until it changes.

    Raises
    ------
    UnreadableFileError
        If the names, attributes, small arrays and chunk indices in the file cannot be read within `PROBE_SECONDS` and
        `eelsflow.io.hdf5_probe.MEMORY`.
    """
    status = path.stat()
    look = path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    if look in _readable:
        return
    _look_first(path)
    _readable[look] = None
    if len(_readable) > _REMEMBERED:
        del _readable[next(iter(_readable))]


def _look_first(path: Path) -> None:
    outcome = _PROBER.ask(path, PROBE_SECONDS)
    if outcome == hdf5_probe.LATE:
        problem = f"took more than {PROBE_SECONDS:g} s to read, where fractions of a second are usual"
    elif outcome == hdf5_probe.LEADS_OUT:
        raise UnreadableFileError(
            f"{path} says that a part of its data lies in another file, which is not opened: no microscope writes "
            "that, and whatever is there would be read; save it again, with all data in it"
        )
    elif outcome == hdf5_probe.TOO_MUCH_MEMORY:
        problem = "ask for more memory than there can be in them"
    elif isinstance(outcome, int) and outcome < 0:
        problem = f"made the HDF5 library crash (signal {-outcome})"
    else:  # what it raises is raised again, with more to say, when the file is read
        return
    raise UnreadableFileError(f"{path} is damaged: its names and attributes {problem}; copy it again")


class _Prober:
    """The program that looks first: one for this process, started when it is needed, which ends with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._program: subprocess.Popen[str] | None = None
        self._started_by = 0

    def ask(self, path: Path, seconds: float) -> int | str:
        """Return what became of looking at a file."""
        with self._lock:
            for _ in range(2):  # a program that is gone is started again
                program = self._running()
                assert program.stdin is not None
                assert program.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    program.stdin.write(json.dumps({"path": str(path.absolute()), "seconds": seconds}) + "\n")
                    program.stdin.flush()
                    if answer := program.stdout.readline():
                        outcome: int | str = json.loads(answer)
                        return outcome
                self._end()
        raise EelsflowError(f"the program that looks into {path} before it is read ends by itself")

    def _running(self) -> subprocess.Popen[str]:
        if self._program is None or self._started_by != os.getpid():  # in a fork, it is the parent's
            self._program = subprocess.Popen(
                [sys.executable, "-P", str(_PROBE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            self._started_by = os.getpid()
            atexit.register(self._end)
        return self._program

    def _end(self) -> None:
        program, self._program = self._program, None
        if program is not None and self._started_by == os.getpid():
            with contextlib.suppress(BrokenPipeError):
                program.communicate()  # it ends when nobody asks any more
            atexit.unregister(self._end)


_PROBER = _Prober()


def require_stored(path: Path, dataset: h5py.Dataset) -> None:
    """Refuse an array that is so much larger than its bytes on disk that most of it was never written.

    The HDF5 library would fill memory with zeros, as much as a damaged size says.
    """
    n_bytes, n_stored = int(dataset.nbytes), int(dataset.id.get_storage_size())
    if n_bytes > max(_BELIEVED_BYTES, _COMPRESSION * n_stored):
        raise UnreadableFileError(
            f"{path} is damaged or was never finished: its array {dataset.name} announces {n_bytes} bytes, and "
            f"{n_stored} are stored; copy it again"
        )


def require_all_stored(path: Path) -> None:
    """Refuse a file any array of which `require_stored` refuses; for readers that read them all."""

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            require_stored(path, item)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
