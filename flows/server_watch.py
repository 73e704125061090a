"""What happens when the Prefect server goes away in the middle of a run: nobody waits for it.

Prefect asks a server that is gone again and again, for minutes at every call, and the threads that wait cannot be
called back. So the process is replaced: the same command begins again in its place, without Prefect. All that was
computed is in the content-addressed store, so it goes on where it was, as a killed study does.
"""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import psutil

from flows.server import Server, ask, within

WITHOUT_SERVER = "EELSFLOW_WITHOUT_SERVER"
"""Set in the environment of a command that goes on without the server, which it names."""

CHECK_SECONDS = 2.0
REFUSED_SECONDS = 8.0  # nobody listens: the server is gone, unless it is being started again (ours)
SILENT_SECONDS = 60.0  # it takes the call and does not answer: a busy machine, or a server that hangs (ours)


@contextlib.contextmanager
def watched(
    server: Server,
    on_lost: Callable[[], None],
    *,
    check_seconds: float = CHECK_SECONDS,
    refused_seconds: float = REFUSED_SECONDS,
    silent_seconds: float = SILENT_SECONDS,
) -> Iterator[None]:
    """Call `on_lost` once, in a thread, when the server is gone; until then, for the time of a ``with`` block.

    Parameters
    ----------
    server
        Where it is.
    on_lost
        Should not return into what waits for the server: `begin_again_without_server`, or `end`.
    check_seconds, refused_seconds, silent_seconds
        How often it is asked, and after which time without an answer it is gone: where nobody listens, and where
        somebody does; s.
    """
    left = threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not left.wait(check_seconds):
            found = ask(server.api_url)
            if found == "answers":
                last = time.monotonic()
            elif time.monotonic() - last > (refused_seconds if found == "refused" else silent_seconds):
                if not left.is_set():
                    _leave(on_lost)
                return

    threading.Thread(target=watch, name="server-watch", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _leave(on_lost: Callable[[], None]) -> None:
    """Never go on waiting, whatever goes wrong here."""
    try:
        on_lost()
    except BaseException:
        os._exit(1)


def begin_again_without_server(server: Server, environment: Mapping[str, str]) -> None:
    """Replace this process by the same command, which goes on without the server; does not return.

    Parameters
    ----------
    server
        The one that is gone.
    environment
        Of the command, as it was before a server was looked for.
    """
    with contextlib.suppress(OSError, ValueError):  # nobody may be reading any more
        _show_cursor()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    _end_children()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environment, WITHOUT_SERVER: server.ui_url})


def end(server: Server, what: str, *, say: Callable[[str], None]) -> None:
    """End this process with one line; does not return."""
    with contextlib.suppress(OSError, ValueError):
        say(f"fault: the Prefect server at {server.ui_url} is gone; {what}")
        sys.stdout.flush()
    _end_children()
    os._exit(1)


def _end_children() -> None:
    """End the processes that this one has started: asked first, then killed; returns when they are gone."""
    children = psutil.Process().children(recursive=True)
    trackers = [child for child in children if _is_tracker(child)]
    children = [child for child in children if child not in trackers]
    for end_it in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                end_it(child)
        _, children = psutil.wait_procs(children, timeout=3)
    # Semaphores have names, which are taken away here; Python's own process for it would warn of every one.
    within(3, lambda: multiprocessing.util._run_finalizers(0))
    for tracker in trackers:
        with contextlib.suppress(psutil.NoSuchProcess):
            tracker.kill()


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _show_cursor() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # the progress bar had hidden it
