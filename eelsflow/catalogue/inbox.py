"""What is in an inbox: a local folder, or one on S3 or another file system of fsspec. It is only ever read."""

from __future__ import annotations

import os
import stat
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import psutil

from eelsflow.bucket import is_url, open_file_system
from eelsflow.catalogue.ledger import Found
from eelsflow.digest import members
from eelsflow.errors import InputError, UnreadableFileError
from eelsflow.io.formats import format_of, is_readable_name

LOOK_AGAIN_SECONDS = 60.0
"""How often the files of a folder (a zarr store) that is done are looked through again: there may be thousands."""

MOST_UNPACKED_BYTES = 1 << 36
"""Of an archive, 64 GiB (ours)."""

MOST_RATIO, RATIO_FROM_BYTES = 150, 1 << 30
"""An archive that says it unpacks to more than this many times its size, and to more than 1 GiB, is no recording
(ours)."""


class Inbox(Protocol):
    """A folder that new acquisitions are put into."""

    root: str
    ended: set[str]

    def list(self) -> list[Found]:
        """Return the readable files as they look now."""
        ...

    def open_for_writing(self) -> set[str]:
        """Return what some process has open for writing, as far as can be seen from here."""
        ...

    def is_there(self, path: str) -> bool:
        """Tell whether something is at a path just now."""
        ...

    def fetch(self, path: str, directory: Path) -> Path:
        """Return where an acquisition can be read; an object is copied into a directory first."""
        ...


def open_inbox(place: str | Path) -> Inbox:
    """Return the inbox at a folder or a URL.

    Raises
    ------
    InputError
        If it is not a folder.
    MissingDependencyError
        If its file system needs a package that is not installed.
    """
    if is_url(place):
        return RemoteInbox(str(place))
    return LocalInbox(Path(str(place).removeprefix("file://")))


def look_at(path: Path) -> Found:
    """Return how a file or a store looks now: its version is number and last change of its parts, and who may read it.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    """
    status = path.stat()
    mode = status.st_mode & 0o777
    try:
        if stat.S_ISDIR(status.st_mode):
            stats = [member.stat() for member in path.rglob("*")]
        else:
            stats = [status, *(member.stat() for member in members(path) if member != path)]
    except PermissionError:  # the reading says so
        stats = []
    changed = max((one.st_mtime_ns for one in stats), default=0)
    size = sum(one.st_size for one in stats)
    return Found(str(path), size, f"{len(stats)}:{changed}:{mode:03o}", modified=changed / 1e9)


class LocalInbox:
    """A folder of this machine, or one that it has mounted.

    Attributes
    ----------
    root
        Absolute.
    ended
        Paths of which nothing is expected; the watcher says which.
    """

    def __init__(self, folder: Path) -> None:
        folder = folder.expanduser().absolute()
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; expected the folder that new acquisitions are written to")
        self.root = str(folder)
        self.ended: set[str] = set()
        self._looked: dict[str, tuple[Found, float]] = {}

    def list(self) -> list[Found]:
        """Return the readable files as they look now; a link that leads out of the inbox is refused."""
        return list(self._below(Path(self.root)))

    def _below(self, folder: Path) -> Iterator[Found]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:  # it went away meanwhile
            return
        except OSError as error:
            reason = f"cannot be listed: {error.strerror or error}; nothing in it is seen until it can be"
            yield Found(str(folder), 0, "", refused=reason)
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                yield from self._entry(entry)
            except OSError as error:
                if os.path.lexists(entry.path):  # else it went away meanwhile
                    yield _refused(entry.path, f"cannot be looked at: {error.strerror or error}")

    def _entry(self, entry: os.DirEntry[str]) -> Iterator[Found]:
        readable = is_readable_name(entry.name)
        if readable and not _is_text(entry.path):
            yield _refused(entry.path, "has a name that is no UTF-8 text; give it another")
        elif entry.is_symlink():
            if readable or entry.is_dir():
                yield from self._link(Path(entry.path), readable=readable)
        elif readable and not (entry.is_dir() or entry.is_file()):
            yield _refused(entry.path, "is neither a file nor a folder, and is not opened")
        elif readable:
            yield from self._look(Path(entry.path))
        elif entry.is_dir() and _is_text(entry.path):
            yield from self._below(Path(entry.path))

    def _link(self, path: Path, *, readable: bool) -> Iterator[Found]:
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(os.path.realpath(self.root)):
            reason = (
                f"is a link that leads out of the inbox, to {target}; put the file itself, or a copy, into the inbox"
            )
            yield Found(str(path), 0, str(target), refused=reason)
        elif not target.exists():
            yield Found(str(path), 0, str(target), refused=f"is a link to {target}, where nothing is")
        elif readable:
            yield from self._look(path)

    def _look(self, path: Path) -> Iterator[Found]:
        name = str(path)
        if name in self.ended and name in self._looked and path.is_dir():
            found, when = self._looked[name]
            if time.monotonic() - when < LOOK_AGAIN_SECONDS:
                yield found
                return
        try:
            found = look_at(path)
        except FileNotFoundError:
            if os.path.lexists(path):  # else it went away meanwhile
                yield _refused(name, "holds a link to where nothing is")
            return
        if path.is_dir():
            self._looked[name] = (found, time.monotonic())
        yield found

    def open_for_writing(self) -> set[str]:
        """Return what some process of this user has open for writing; other users' and machines' are not seen."""
        found = set()
        for process in psutil.process_iter():
            try:
                found |= {file.path for file in process.open_files() if getattr(file, "mode", "r") != "r"}
            except (psutil.Error, OSError):
                continue
        return found

    def is_there(self, path: str) -> bool:
        """Tell whether something is at a path just now, a link to nowhere included."""
        return os.path.lexists(path)

    def fetch(self, path: str, directory: Path) -> Path:
        """Return the path itself."""
        return Path(path)


def _refused(path: str, reason: str) -> Found:
    """Return a path that is not to be opened; letters that are no text are written out."""
    return Found(path.encode(errors="surrogateescape").decode(errors="backslashreplace"), 0, reason, refused=reason)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


class RemoteInbox:
    """A folder of a file system that fsspec knows, such as ``s3://bucket/inbox``; objects appear whole there."""

    def __init__(self, url: str) -> None:
        self.root = url.rstrip("/")
        self.ended: set[str] = set()
        self._scheme = url.partition("://")[0]
        self._files = open_file_system(url)

    def list(self) -> list[Found]:
        """Return the readable objects as they are now; folders with readable names (zarr stores) count as one."""
        self._files.invalidate_cache()
        parts: dict[str, list[dict[str, Any]]] = {}
        refused = []
        base = len(self._files._strip_protocol(self.root)) + 1
        for name, detail in sorted(self._files.find(self.root, detail=True).items()):
            if {"", ".", ".."} & set(name[base:].split("/")):
                if is_readable_name(name.rpartition("/")[2]):
                    reason = "has a name that no file of a folder can have; give it another"
                    refused.append(Found(f"{self._scheme}://{name}", 0, reason, refused=reason))
                continue
            acquisition = self._acquisition_of(name)
            if acquisition is not None:
                parts.setdefault(acquisition, []).append(detail)
        return refused + [
            Found(
                f"{self._scheme}://{name}",
                sum(one["size"] or 0 for one in details),
                _tag(details),
                modified=max(map(_modified, details)),
            )
            for name, details in parts.items()
        ]

    def _acquisition_of(self, name: str) -> str | None:
        """Return the path of the acquisition that an object belongs to: the outermost readable name, or None."""
        base = self._files._strip_protocol(self.root)
        below = PurePosixPath(name).relative_to(PurePosixPath(base)).parts
        for number, part in enumerate(below, start=1):
            if part.startswith("."):
                return None
            found = format_of(part)
            is_last = number == len(below)
            if is_readable_name(part) and found is not None and (is_last or found.is_folder):
                return str(PurePosixPath(base, *below[:number]))
        return None

    def open_for_writing(self) -> set[str]:
        """Return nothing: an object is there when it is whole."""
        return set()

    def is_there(self, path: str) -> bool:
        """Tell whether an object, or the whole inbox, is there."""
        self._files.invalidate_cache()
        return path == self.root or bool(self._files.exists(path))

    def fetch(self, path: str, directory: Path) -> Path:
        """Copy an acquisition, with what belongs to it, into a directory."""
        target = directory / PurePosixPath(path).name
        try:
            if self._files.isdir(path):
                base = len(self._files._strip_protocol(path)) + 1
                for name in self._files.find(path):  # one by one: `get` takes brackets in a name for a pattern
                    (target / name[base:]).parent.mkdir(parents=True, exist_ok=True)
                    self._files.get_file(name, str(target / name[base:]))
            else:
                self._files.get_file(path, str(target))
                if target.suffix.lower() == ".rpl":  # the counts that it describes are beside it
                    for suffix in (".raw", ".RAW"):
                        counts = path[: -len(target.suffix)] + suffix
                        if self._files.exists(counts):
                            self._files.get_file(counts, str(target.with_suffix(suffix)))
                            break
        except FileNotFoundError as error:
            raise UnreadableFileError(f"{path} is not there any more") from error
        return target


def _tag(details: list[dict[str, Any]]) -> str:
    """Return what changes when an object does."""
    from eelsflow.digest import digest_of

    tags = [
        str(one.get("ETag") or one.get("LastModified") or one.get("mtime") or one.get("created")) for one in details
    ]
    return digest_of([len(details), *tags])[:32]


def _modified(detail: dict[str, Any]) -> float:
    when = detail.get("LastModified") or detail.get("mtime") or detail.get("created") or 0.0
    return float(when.timestamp() if hasattr(when, "timestamp") else when)


def refuse_unsafe(path: Path, *, inbox: str | None = None) -> None:
    """Refuse what must not be opened: links out of a folder, and archives that lead out of theirs or are bombs.

    Parameters
    ----------
    path
        The file or folder.
    inbox
        The folder that links may lead into; the acquisition itself where None.

    Raises
    ------
    UnreadableFileError
        If it is refused.
    """
    root = Path(os.path.realpath(inbox or path))
    for member in [*members(path), *(path.rglob("*") if path.is_dir() else ())]:
        target = Path(os.path.realpath(member))
        if not target.is_relative_to(root) and not (inbox is None and target == Path(os.path.realpath(path))):
            raise UnreadableFileError(
                f"{path} holds {member.relative_to(path) if member != path else 'nothing but'}, a link to {target} "
                "outside of the inbox: it is not followed; put the file itself there"
            )
        if member != path and member.is_symlink() and member.is_dir():
            raise UnreadableFileError(
                f"{path} holds {member.relative_to(path)}, a link to a folder, whose files would not count to its "
                "content: put the folder itself there"
            )
        if not (member.is_dir() or member.is_file()):
            raise UnreadableFileError(f"{path} holds {member.name}, which is neither a file nor a folder")
    if path.is_file() and zipfile.is_zipfile(path):
        _refuse_unsafe_archive(path)


def _refuse_unsafe_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UnreadableFileError(f"{path} is a damaged archive: {error}") from error
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or (name.parts and name.parts[0].endswith(":")):
            raise UnreadableFileError(
                f"{path} is an archive whose member {entry.filename!r} leads out of it; no program that records "
                "spectra writes that, and it is not unpacked"
            )
    unpacked, packed = sum(entry.file_size for entry in entries), max(path.stat().st_size, 1)
    if unpacked > MOST_UNPACKED_BYTES or (unpacked > RATIO_FROM_BYTES and unpacked > MOST_RATIO * packed):
        raise UnreadableFileError(
            f"{path} is an archive of {packed:,} bytes that unpacks to {unpacked:,}, {unpacked / packed:,.0f} times as "
            f"many; spectra pack {MOST_RATIO} times at most, so it is not unpacked"
        )
