"""What commands say, show and wait for on a terminal, and the choices that several of them offer."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from eelsflow.edges import Edge


QUIET_SECONDS = 60.0
"""Between two lines about the progress, where there is no terminal."""


class SimulatorPreset(StrEnum):
    """What the simulator draws from."""

    paper = "paper"
    wide = "wide"


class SimulatorDetector(StrEnum):
    """What the simulator records with."""

    ccd = "ccd"
    counting = "counting"
    both = "both"


class RunnerName(StrEnum):
    """Where a study runs."""

    prefect = "prefect"
    loop = "loop"


def say(text: str) -> None:
    """Tell a person something, beside what the command prints."""
    typer.echo(text, err=True)


@contextmanager
def progress(what: str) -> Iterator[Callable[[str, int | None, int | None], None]]:
    """Show progress on a terminal; elsewhere say once a minute how far it is."""
    if not sys.stderr.isatty():
        yield _a_line_a_minute(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda title, number, total: progress.update(task, description=title, completed=number, total=total)


def one_thread_each() -> None:
    """Keep numerical libraries to one thread: parallelism is the cluster's, and sums then round alike everywhere.

    They read it when they are loaded, so this comes before anything that imports NumPy.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _a_line_a_minute(what: str) -> Callable[[str, int | None, int | None], None]:
    last = time.monotonic()

    def tell(title: str, number: int | None, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            far = f"{number} of {total}, " if number is not None and total is not None else ""
            say(f"{what}: {far}{title}")

    return tell


def edge_named(text: str) -> Edge:
    """Return a shipped edge by its name, or the one that a study file writes out.

    Raises
    ------
    StudyFileError
        If it is neither.
    """
    from eelsflow.edges import resolve_edge

    if not text.endswith((".yaml", ".yml")):
        return resolve_edge(text)
    from eelsflow.study.config import load_study

    return load_study(Path(text)).edge


@contextmanager
def until_stopped() -> Iterator[Any]:
    """Turn Ctrl-C and SIGTERM into an event, so that what is worked on is given back."""
    import signal
    from threading import Event

    stop = Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def log_lines(name: str) -> Iterator[None]:
    """Print what a part of the program says of its work."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
