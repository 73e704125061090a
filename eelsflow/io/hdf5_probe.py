"""Look into HDF5 files, each in a process of its own that may crash or hang over it: ``python hdf5_probe.py``.

It imports nothing of eelsflow, so that it starts in a tenth of a second; then a file costs a fork, a hundredth. A line
that it reads is JSON, ``{"path", "seconds"}``; a line that it writes is an outcome: 0, all could be read; 3, it asked
for more memory than `MEMORY`; 4, a part of it lies in another file; 1, something could not be read, which whoever reads
it next will say better; a negative number, the signal that ended it; "late", it took more than so many seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from typing import Any

import h5py

MEMORY = 4 << 30
"""Address space: names, attributes and small arrays need a hundredth of it."""
CPU_SECONDS = 60
TOO_MUCH_MEMORY, LEADS_OUT, LATE = 3, 4, "late"
SMALL_BYTES = 1 << 20
"""Arrays of at most as many bytes are read whole; of larger ones the index of their chunks is."""


class LeadsOutError(Exception):
    """What is read is in another file."""


def look(item: Any) -> None:
    """Read the attributes of a group or dataset, and what a dataset holds or where its chunks are."""
    for key in item.attrs:
        item.attrs[key]
    if isinstance(item, h5py.Group):
        links = (item.get(name, getlink=True) for name in item)
        if any(isinstance(link, h5py.ExternalLink) for link in links):
            raise LeadsOutError
    if not isinstance(item, h5py.Dataset):
        return
    if item.is_virtual or item.external:
        raise LeadsOutError
    if item.chunks is not None:
        item.id.get_num_chunks()
        if hasattr(item.id, "chunk_iter"):
            item.id.chunk_iter(lambda _: None)
    if item.nbytes <= SMALL_BYTES:
        item[()]


def probe(path: str) -> int:
    """Look at everything in a file; return the outcome."""
    with contextlib.suppress(ImportError, ValueError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        # Whoever waits may be killed first; nothing would end a process that hangs then.
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    failures: list[Exception] = []

    def visit(_: str, item: Any) -> None:
        try:
            look(item)
        except Exception as error:  # of any kind; the next item may be the one that crashes
            failures.append(error)

    try:
        with h5py.File(path, "r") as file:
            visit("", file)
            file.visititems(visit)
    except Exception as error:  # the same
        failures.append(error)
    if any(isinstance(error, LeadsOutError) for error in failures):
        return LEADS_OUT
    if any(isinstance(error, MemoryError) or "allocat" in str(error) for error in failures):
        return TOO_MUCH_MEMORY
    return int(bool(failures))


def probe_apart(path: str, seconds: float) -> int | str:
    """Look at a file in a process of its own; this one has a single thread, so that it can be forked."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = probe(path)
        finally:
            os._exit(status)
    deadline, pause = time.monotonic() + seconds, 0.0005
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return LATE
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def main() -> None:
    """Answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(f"{json.dumps(probe_apart(asked['path'], asked['seconds']))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
