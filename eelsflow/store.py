"""The content-addressed store: one directory for everything that was computed, found by its digest.

An entry is a directory. It is written under a temporary name and renamed when it is whole, so an entry that
exists is complete, a killed run leaves nothing that looks finished, and two writers of the same digest are harmless.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eelsflow.errors import OutputPathError
from eelsflow.processes import is_gone, is_here, name_process

UNCLAIMED_SECONDS = 14 * 86400.0
"""Work of another host is abandoned when nothing was written to it for so long: twice the week that is commonly the
longest a cluster lets a job run (ours)."""


def home() -> Path:
    """Return the folder that eelsflow keeps its store, server and registry in: $EELSFLOW_HOME or ~/.eelsflow."""
    return Path(os.environ.get("EELSFLOW_HOME") or Path.home() / ".eelsflow").expanduser().resolve()


def make_directory(path: Path) -> Path:
    """Create a directory for output.

    Raises
    ------
    OutputPathError
        If it cannot be created or written to, for example because it lies below a regular file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputPathError(
            f"cannot write to {path}: {error.strerror or error}; name a directory that can be created and written to"
        ) from error
    return path


def empty_directory(path: Path) -> Path:
    """Make a directory of ours empty: work that is begun again after a worker was lost meets nothing half written."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


class Store:
    """Entries by digest below `root`.

    Parameters
    ----------
    root
        Created where it does not exist. On a cluster: a folder that every worker sees.
    """

    def __init__(self, root: Path) -> None:
        self.root = make_directory(Path(root))
        self._entries = make_directory(self.root / "entries")

    @property
    def generation(self) -> str:
        """An identity that changes when entries are removed, so that caches elsewhere cannot outlive them."""
        path = self.root / "generation"
        if not path.exists():
            temporary = self.root / f".{uuid.uuid4().hex}"
            temporary.write_text(uuid.uuid4().hex)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
        return path.read_text()

    def path(self, digest: str) -> Path:
        """Return where the entry of this digest is, or would be."""
        return self._entries / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Tell whether the entry is there, and therefore complete."""
        return self.path(digest).is_dir()

    def compute(self, digest: str, write: Callable[[Path], None]) -> Path:
        """Return the entry's directory, calling ``write(directory)`` for its content if it is not there yet.

        If `write` raises, nothing stays behind.
        """
        path = self.path(digest)
        if path.is_dir():
            return path
        temporary = self.temporary()
        try:
            write(temporary)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.rename(path)
            except OSError:
                if not path.is_dir():  # another writer of the same content won the race
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return path

    def temporary(self) -> Path:
        """Create a directory for work in progress, on the same file system as the entries."""
        path = self.root / "temporary" / f"{name_process()}_{uuid.uuid4().hex}"
        path.mkdir(parents=True)
        return path

    def remove_abandoned(self) -> int:
        """Remove the work in progress that nobody goes on with; return how many were removed.

        What processes of this host left that are gone, at once. Which processes of another host are alive cannot be
        seen from here, and a store may be shared: their work is removed only when nothing was written to it for
        `UNCLAIMED_SECONDS`. Hosts that share a store need names of their own.
        """
        abandoned = [path for path in (self.root / "temporary").glob("*") if _is_abandoned(path)]
        for path in abandoned:
            shutil.rmtree(path, ignore_errors=True)
        return len(abandoned)

    def discard(self, digest: str) -> None:
        """Remove an entry, so that it is computed again."""
        if self.has(digest):
            (self.root / "generation").unlink(missing_ok=True)
            shutil.rmtree(self.path(digest))

    def entries(self) -> list[Path]:
        """Return the directories of all entries."""
        return sorted(self._entries.glob("*/*"))


def _is_abandoned(work: Path) -> bool:
    return is_gone(work.name) if is_here(work.name) else _is_older(work, UNCLAIMED_SECONDS)


def _is_older(work: Path, seconds: float) -> bool:
    """Tell whether nothing in a directory was written for so long."""
    oldest = time.time() - seconds
    try:
        return all(path.stat().st_mtime < oldest for path in (work, *work.rglob("*")))
    except FileNotFoundError:  # it changes under our eyes
        return False


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all: under a temporary name, then renamed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    temporary.replace(path)
