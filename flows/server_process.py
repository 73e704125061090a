"""The Prefect server's own process: run by path from `flows.server`, with nothing but Prefect imported.

The server lives as long as anybody uses it. Every program that uses it holds a shared lock on one file; this process
waits in a thread for the exclusive lock, and the system grants that only when the last user is gone, however it went
(``kill -9`` included). A lock needs no list of process numbers that could go stale, and is freed by the kernel.
"""

import fcntl
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

SHUTDOWN_SECONDS = 10  # for an orderly end, in which the server writes out the events it still holds


def _stop_when_unused(lock: BinaryIO) -> None:
    fcntl.flock(lock, fcntl.LOCK_EX)
    # The lock is kept from here on: a program that starts now waits until this server is gone, then starts its own.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SHUTDOWN_SECONDS)
    os._exit(1)


def main(in_use: Path) -> None:
    """Serve until the last holder of the shared lock on `in_use` is gone."""
    lock = in_use.open("rb")
    threading.Thread(target=_stop_when_unused, args=(lock,), daemon=True).start()
    sys.argv = ["prefect", "server", "start"]  # host, port and the rest are in the environment
    runpy.run_module("prefect", run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
