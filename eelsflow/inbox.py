"""What is new in a folder of acquisitions, and what became of each: the ledger of scheduled processing.

The ledger is a folder of small JSON files below the output directory, one for each path and content. The user's
data are read and never moved, renamed or deleted.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from eelsflow.digest import digest_file, digest_of, members
from eelsflow.errors import InputError
from eelsflow.io.formats import is_readable_name
from eelsflow.store import make_directory, read_json, write_json

State = Literal["done", "quarantined", "failed"]

SETTLE_SECONDS = 10.0  # longer than a microscope's pause between two writes to one file; ours


@dataclass(frozen=True)
class Entry:
    """What is known of one file of an inbox.

    Attributes
    ----------
    path, sha256
        Where the file is, and the identity of its content.
    size, modified_ns
        In bytes, and in ns since 1970; while they are the same the content is not read again.
    state
        "done"; "quarantined": it cannot be used as it is, and is tried again when its content changes; "failed": a
        fault that was not the file's, tried again in the next run; None: not tried yet.
    reason
        Why it is quarantined or failed.
    alias_of
        The path under which the same content had been processed before.
    map
        The directory of the result.
    """

    path: str
    sha256: str
    size: int
    modified_ns: int
    state: State | None = None
    reason: str | None = None
    alias_of: str | None = None
    map: str | None = None

    @property
    def name(self) -> str:
        """The name of the file without its folder."""
        return Path(self.path).name

    @property
    def result_name(self) -> str:
        """The name of what is written for the file: two files of one name but different content do not meet."""
        return f"{Path(self.path).stem}-{self.sha256[:8]}"


class Ledger:
    """The entries of an output directory.

    Parameters
    ----------
    out
        Created where it does not exist; entries lie in its folder ``ledger``, reasons in ``quarantine``.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._folder = make_directory(out / "ledger")

    def entries(self) -> list[Entry]:
        """Return the last entry of each path, in the order of the paths."""
        last = {}
        for file in sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
            entry = Entry(**read_json(file))
            last[entry.path] = entry
        return [last[path] for path in sorted(last)]

    def record(self, entry: Entry) -> None:
        """Write an entry, replacing the one of the same path and content; a reason goes to ``quarantine`` too."""
        write_json(self._folder / f"{digest_of(entry.path, entry.sha256)[:32]}.json", asdict(entry))
        note = self.out / "quarantine" / f"{entry.result_name}.txt"
        if entry.state == "quarantined":
            make_directory(note.parent)
            note.write_text(f"{entry.path}\nsha256 {entry.sha256}\n\n{entry.reason}\n")
        else:
            note.unlink(missing_ok=True)

    def folder_for(self, entry: Entry) -> Path:
        """Return where the maps of a file go."""
        return self.out / "maps" / entry.result_name


def find_new(inbox: Path, ledger: Ledger, *, settle_seconds: float = SETTLE_SECONDS) -> list[Entry]:
    """Return the readable files of a folder that have to be processed, without a state yet.

    Content that is done already under another path is recorded as an alias of it and not returned; so are files that
    are still being written (changed less than `settle_seconds` ago), which are left for the next time.

    Parameters
    ----------
    inbox
        Searched with its subfolders; names that begin with a dot are passed over.
    ledger
        What happened before; aliases are recorded in it.
    settle_seconds
        How long a file must have been unchanged, in s.

    Raises
    ------
    InputError
        If `inbox` is not a folder.
    """
    if not inbox.is_dir():
        raise InputError(f"{inbox} is not a folder; expected the folder that new acquisitions are written to")
    known = {entry.path: entry for entry in ledger.entries()}
    done = {
        entry.sha256: entry
        for entry in known.values()
        if entry.state == "done" and entry.alias_of is None and Path(entry.map or "").is_dir()
    }
    new: dict[str, Entry] = {}
    for path in sorted(_readable(inbox)):
        size, modified_ns = _extent(path)
        if time.time() - modified_ns / 1e9 < settle_seconds:
            continue
        before = known.get(str(path))
        unchanged = before is not None and (before.size, before.modified_ns) == (size, modified_ns)
        if before is not None and unchanged and (before.state == "quarantined" or before.sha256 in done):
            continue
        entry = Entry(str(path), digest_file(path), size, modified_ns)
        if _extent(path) != (size, modified_ns):
            continue
        if (original := done.get(entry.sha256)) is not None:
            alias_of = None if original.path == entry.path else original.path
            ledger.record(replace(entry, state="done", alias_of=alias_of, map=original.map))
        else:
            new.setdefault(entry.sha256, entry)  # a second copy becomes an alias the next time
    return list(new.values())


def judge(entry: Entry, error: BaseException) -> Entry:
    """Return the entry of a file that was not processed: quarantined where its content is to blame, else failed.

    A model that is damaged meanwhile, a full disk or a fault of the program say nothing about the file: it is tried
    again in the next run.
    """
    if isinstance(error, InputError):
        return replace(entry, state="quarantined", reason=str(error))
    return replace(entry, state="failed", reason=f"{type(error).__name__}: {error}")


def summarize(entries: list[Entry]) -> list[dict[str, Any]]:
    """Return entries as a person reads them: path, sha256, state, reason, alias_of and map."""
    keys = ("path", "sha256", "state", "reason", "alias_of", "map")
    return [{key: value for key, value in asdict(entry).items() if key in keys} for entry in entries]


def _readable(folder: Path) -> list[Path]:
    """Return the readable files below a folder; a zarr store is one of them, and what is in it is not."""
    found = []
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if is_readable_name(path):
            found.append(path)
        elif path.is_dir():
            found.extend(_readable(path))
    return found


def _extent(path: Path) -> tuple[int, int]:
    """Return size in bytes and time of the last change in ns, of all files that belong to one."""
    stats = [member.stat() for member in (path.rglob("*") if path.is_dir() else members(path))]
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)
