"""The content-addressed store: one directory for everything that was computed, found by its digest.

An entry is a directory. It is written under a temporary name and renamed when it is whole, so an entry that
exists is complete, a killed run leaves nothing that looks finished, and two writers of the same digest are harmless.

Machines that share no folder may share a bucket ($EELSFLOW_STORE): there an entry is one archive, which is there when
it is whole. It is sent before the entry has its name here, and fetched where it is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tarfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eelsflow.bucket import Bucket, is_url
from eelsflow.errors import InputError, OutputPathError
from eelsflow.processes import is_gone, is_here, name_process

UNCLAIMED_SECONDS = 14 * 86400.0
"""Work of another host is abandoned when nothing was written to it for so long: twice the week that is commonly the
longest a cluster lets a job run (ours)."""


SEND_AGAIN_SECONDS = (5.0, 15.0, 60.0)
"""Pauses before an entry is sent to a bucket again that could not be written to (ours)."""


def home() -> Path:
    """Return the folder that eelsflow keeps its store, server and registry in: $EELSFLOW_HOME or ~/.eelsflow."""
    return Path(os.environ.get("EELSFLOW_HOME") or Path.home() / ".eelsflow").expanduser().resolve()


def shared_bucket() -> str | None:
    """Return the URL of the bucket that machines share their stores by, $EELSFLOW_STORE; None where there is none.

    Raises
    ------
    InputError
        If it is no URL.
    """
    url = os.environ.get("EELSFLOW_STORE")
    if url and not is_url(url):
        raise InputError(
            f"EELSFLOW_STORE is {url!r}, expected the URL of a bucket such as s3://bucket/store; a folder that all "
            "machines see is named by EELSFLOW_HOME"
        )
    return url or None


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
    """Entries by digest below `root`; a bucket behind it, if machines share one, see `shared_bucket`.

    Parameters
    ----------
    root
        Created where it does not exist. On a cluster: a folder that every worker sees.
    """

    def __init__(self, root: Path) -> None:
        self.root = make_directory(Path(root))
        self._entries = make_directory(self.root / "entries")
        url = shared_bucket()
        self._bucket = Bucket(url) if url is not None else None

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
        """Return where the entry of this digest is, or would be; what only the bucket has is fetched."""
        path = self._entries / digest[:2] / digest
        if self._bucket is not None and not path.is_dir():
            self._fetch(self._bucket, digest, path)
        return path

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
            if self._bucket is not None:
                self._send(self._bucket, digest, temporary)
            _name(temporary, path)
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
        """Remove an entry, from the bucket too, so that it is computed again."""
        if self._bucket is not None:
            self._bucket.remove(_archive(digest))
        self.drop(digest)

    def drop(self, digest: str) -> None:
        """Remove an entry from here; what a bucket has of it stays there."""
        path = self._entries / digest[:2] / digest
        if path.is_dir():
            (self.root / "generation").unlink(missing_ok=True)
            shutil.rmtree(path)

    def entries(self) -> list[Path]:
        """Return the directories of all entries."""
        return sorted(self._entries.glob("*/*"))

    def _send(self, bucket: Bucket, digest: str, directory: Path) -> None:
        work = self.temporary()
        try:
            with tarfile.open(work / "entry.tar", "w") as archive:
                for path in sorted(directory.rglob("*")):
                    archive.add(path, path.relative_to(directory), recursive=False, filter=_anonymous)
            for pause in (*SEND_AGAIN_SECONDS, None):  # what was computed is worth a wait
                try:
                    bucket.put(work / "entry.tar", _archive(digest))
                    break
                except OutputPathError:
                    if pause is None:
                        raise
                    time.sleep(pause)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _fetch(self, bucket: Bucket, digest: str, path: Path) -> None:
        if not bucket.has(_archive(digest)):
            return
        work = self.temporary()
        try:
            if bucket.get(_archive(digest), work / "entry.tar"):
                (work / "entry").mkdir()
                try:
                    with tarfile.open(work / "entry.tar") as archive:
                        archive.extractall(work / "entry", filter="data")  # nothing that leads out of it
                except tarfile.TarError as error:
                    raise OutputPathError(
                        f"{bucket.at(_archive(digest))} is no entry of a store ({error}), and is not used; remove it "
                        "there, and find out who wrote it"
                    ) from error
                _name(work / "entry", path)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _archive(digest: str) -> str:
    return f"entries/{digest[:2]}/{digest}.tar"


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out of an archive who packed it and when: the same entry is the same bytes."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _name(temporary: Path, path: Path) -> None:
    """Give an entry that is whole its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.rename(path)
    except OSError:
        if not path.is_dir():  # another writer of the same content won the race
            raise


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
