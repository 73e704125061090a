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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
from sqlalchemy.pool import Pool

SHUTDOWN_SECONDS = 10  # for an orderly end, in which the server writes out the events it still holds
LOCK_SECONDS = 2  # to wait for another connection's writing; who gets no answer by then asks again


def _stop_when_unused(lock: BinaryIO) -> None:
    fcntl.flock(lock, fcntl.LOCK_EX)
    # The lock is kept from here on: a program that starts now waits until this server is gone, then starts its own.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SHUTDOWN_SECONDS)
    os._exit(1)


@event.listens_for(Pool, "checkout")
def _wait_shortly_for_locks(connection: Any, record: Any, proxy: Any) -> None:
    """Replace Prefect's minute of waiting for a lock of SQLite, in which nothing else can happen.

    While a thread waits in SQLite, it holds the mutex of its connection. If the garbage collector meets a left cursor
    of that connection then, it waits for the mutex and holds Python's global lock, so the thread that has written and
    would free the database cannot go on. The run that asked stood still for a minute, about one in five did.
    """
    if "timeout_is_set" not in record.info and "sqlite" in type(connection).__module__:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {1000 * LOCK_SECONDS}")
        cursor.close()
        record.info["timeout_is_set"] = True


@asynccontextmanager
async def _begin_as_writer(
    self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = False
) -> AsyncIterator[AsyncSessionTransaction]:
    """Begin Prefect's transactions as writers, which wait for each other.

    They read first and write then. SQLite refuses the writing at once, without waiting, if another connection has
    written meanwhile; the server answers 503, and the client sleeps two seconds before it asks again: six of the 25
    tasks of a short study did (Prefect 3.8.8). Reading outside of a transaction goes on beside a writer, also in
    sessions that are opened within one: these see no mode, and begin nothing.
    """
    token = SQLITE_BEGIN_MODE.set("IMMEDIATE")
    try:
        async with session.begin() as transaction:
            await session.connection()  # begins now
            SQLITE_BEGIN_MODE.set(None)
            yield transaction
    finally:
        SQLITE_BEGIN_MODE.reset(token)


AioSqliteConfiguration.begin_transaction = _begin_as_writer  # type: ignore[method-assign]


def main(in_use: Path) -> None:
    """Serve until the last holder of the shared lock on `in_use` is gone."""
    lock = in_use.open("rb")
    threading.Thread(target=_stop_when_unused, args=(lock,), daemon=True).start()
    sys.argv = ["prefect", "server", "start"]  # host, port and the rest are in the environment
    runpy.run_module("prefect", run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
