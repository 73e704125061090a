"""Which results in the store each study refers to: kept in eelsflow's home, so that the rest can be dropped."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eelsflow.digest import digest_of
from eelsflow.store import home, make_directory, read_json, write_json

RESUMABLE_SECONDS = 30 * 86400.0
"""For so long what a study without results has computed is kept: it may be run again and goes on from there (ours)."""


def _folder() -> Path:
    return home() / "studies"


class Journal:
    """What one study refers to; its results directory is its name.

    Parameters
    ----------
    out
        The results directory.
    """

    def __init__(self, out: Path) -> None:
        self._out = str(out.resolve())
        self._path = make_directory(_folder()) / f"{digest_of(self._out)[:24]}.json"
        self._entries: dict[str, None] = {}

    def note(self, digests: Iterable[str]) -> None:
        """Write down, before it is computed or used, what the study refers to now."""
        before = len(self._entries)
        self._entries |= dict.fromkeys(digests)
        if len(self._entries) > before:
            write_json(self._path, {"out": self._out, "noted": time.time(), "entries": list(self._entries)})


def referred_to() -> set[str]:
    """Return what studies refer to whose results are where they were, or which may still be gone on with."""
    kept: set[str] = set()
    for path in sorted(_folder().glob("*.json")):
        noted: dict[str, Any] = read_json(path)
        has_results = (Path(noted["out"]) / "results.json").is_file()
        if has_results or time.time() - noted["noted"] < RESUMABLE_SECONDS:
            kept |= set(noted["entries"])
    return kept


@contextlib.contextmanager
def using_store(root: Path) -> Iterator[None]:
    """Say, for the time of a ``with`` block, that a study uses a store: nothing is dropped from it meanwhile."""
    with (root / "in-use.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def store_alone(root: Path) -> Iterator[bool]:
    """Provide whether no study uses a store; while it is so, none begins."""
    with (root / "in-use.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
