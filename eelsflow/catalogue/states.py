"""How far an acquisition of an inbox is, and all that is known of it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any


class State(StrEnum):
    """How far an acquisition is; each state but the last two leads to the one below it."""

    SEEN = "seen"
    """In an inbox; perhaps still being written."""
    STABLE = "stable"
    """Looked the same twice, and nobody writes to it."""
    INGESTED = "ingested"
    """Its content is known by its digest."""
    PREPARED = "prepared"
    """Read, checked and prepared; the product lies in the store."""
    CLASSIFIED = "classified"
    """Mapped."""
    QUARANTINED = "quarantined"
    """Cannot be used as it is; tried again when its content changes, or when it is asked for."""


WAITING = (State.STABLE, State.INGESTED, State.PREPARED)
"""States in which there is work to do."""

ENDED = (State.CLASSIFIED, State.QUARANTINED)


@dataclass(frozen=True)
class Acquisition:
    """A file of an inbox, as the catalogue knows it.

    Attributes
    ----------
    id
        In the order in which files were first seen.
    path
        Absolute, or the URL of an object.
    size, version
        In bytes; and what changes when the content may have: the time of the last change in ns, or an entity tag.
    state
        How far it is.
    sha256
        Identity of its content; None until it is ingested.
    reason
        Why it is quarantined; else the last fault, after which it is tried again.
    alias_of
        The path under which the same content was seen before; the map is that one's.
    map
        Folder of the map.
    model
        Digest of the model that made the map.
    attempts, losses
        How often work on it has failed by a fault that was not the file's, and how often it took a worker with it.
    not_before
        When it is tried again, s since 1970.
    owner
        The watcher that works on it.
    first_seen, changed
        When it was first seen, and when its state changed last; s since 1970.
    facts
        What its map holds, small: for lists, pages and drift.
    """

    id: int
    path: str
    size: int
    version: str
    state: State
    sha256: str | None = None
    reason: str | None = None
    alias_of: str | None = None
    map: str | None = None
    model: str | None = None
    attempts: int = 0
    losses: int = 0
    not_before: float = 0.0
    owner: str | None = None
    first_seen: float = 0.0
    changed: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return PurePosixPath(self.path).name

    @property
    def result_name(self) -> str:
        """The name of what is written for it: no two contents share one, and nothing in it leads to another folder.

        >>> Acquisition(1, "/in/a b.dm3", 1, "", State.SEEN, sha256="0123456789").result_name
        'a-b-01234567'
        """
        identity = self.sha256 or f"{self.id:08d}"
        stem = re.sub(r"[^A-Za-z0-9._+-]+", "-", PurePosixPath(self.path).stem).strip(".-")[:80]
        return f"{stem or 'acquisition'}-{identity[:8]}"

    def summary(self) -> dict[str, Any]:
        """Return what others rely on: path, sha256, state, reason, alias_of and map, and when its state changed."""
        shown = ("path", "sha256", "state", "reason", "alias_of", "map", "model", "first_seen", "changed", "attempts")
        return {name: value for name, value in asdict(self).items() if name in shown}
