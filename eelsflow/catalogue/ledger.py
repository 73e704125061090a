"""The catalogue: a row for every file of the inboxes, and who works on it.

Every change of a row is one conditional statement, so that of two watchers only one gets a file, and one whose lease
ran out meanwhile can no longer say anything about it.
"""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from eelsflow.catalogue.states import ENDED, WAITING, Acquisition, State
from eelsflow.catalogue.tables import ACQUISITIONS, EVENTS, SETTINGS, connect, writing
from eelsflow.processes import is_gone, name_process
from eelsflow.store import home, make_directory

LEASE_SECONDS = 60.0
"""How long a watcher that says nothing keeps what it works on, where its process cannot be seen (ours)."""

AGAIN = "again"
"""Among the facts of an acquisition whose map is to be made again, though it is there."""

_FRESH: dict[str, Any] = {
    "sha256": None, "reason": None, "alias_of": None, "map": None, "model": None, "attempts": 0, "losses": 0,
    "not_before": 0.0, "owner": None, "lease_until": 0.0, "facts": {},
}  # fmt: skip
_COLUMNS = [ACQUISITIONS.c[name] for name in Acquisition.__dataclass_fields__]


def catalogue_url() -> str:
    """Return where the catalogue is: $EELSFLOW_CATALOGUE, else SQLite in eelsflow's home."""
    return os.environ.get("EELSFLOW_CATALOGUE") or f"sqlite:///{home() / 'catalogue.db'}"


@dataclass(frozen=True)
class Found:
    """A file in an inbox, as it looks now; see `Acquisition`.

    `refused` says why it may not even be opened; `modified` is when it was changed last, s since 1970.
    """

    path: str
    size: int
    version: str
    refused: str | None = None
    modified: float = 0.0


class Catalogue:
    """Rows of acquisitions in a database.

    Parameters
    ----------
    url
        As SQLAlchemy takes it; by default `catalogue_url`.
    clock
        Returns the time, s since 1970.

    Raises
    ------
    InputError
        If the address cannot be used.
    """

    def __init__(self, url: str | None = None, *, clock: Callable[[], float] = time.time) -> None:
        if url is None and "EELSFLOW_CATALOGUE" not in os.environ:
            make_directory(home())
        self.url = url or catalogue_url()
        self._engine = connect(self.url)
        weakref.finalize(self, self._engine.dispose)  # a database server counts the connections that are left open
        self._clock = clock
        self.owner = f"{name_process()}_{uuid.uuid4().hex[:12]}"

    # ------------------------------------------------------------------ reading

    def select(self, *where: sa.ColumnElement[bool]) -> list[Acquisition]:
        """Return acquisitions in the order in which they were first seen."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(*_COLUMNS).where(*where).order_by(ACQUISITIONS.c.id))
            return [_acquisition(row) for row in rows]

    def find(self, path: str) -> Acquisition | None:
        """Return the acquisition of a path."""
        found = self.select(ACQUISITIONS.c.path == path)
        return found[0] if found else None

    def get(self, number: int) -> Acquisition | None:
        """Return the acquisition of a number."""
        found = self.select(ACQUISITIONS.c.id == number)
        return found[0] if found else None

    def below(self, inbox: str, *states: State) -> list[Acquisition]:
        """Return the acquisitions of an inbox, in the states that are named or in any."""
        return self.select(_is_below(inbox), *([ACQUISITIONS.c.state.in_(states)] if states else []))

    def states_of(self, paths: Sequence[str]) -> dict[str, State]:
        """Return the states of the acquisitions of some paths."""
        with self._engine.connect() as connection:
            return {row.path: State(row.state) for row in _rows_of(connection, paths)}

    def history(self, acquisition: int) -> list[tuple[float, str, str | None]]:
        """Return what happened to an acquisition: when (s since 1970), the state it came to, and a note."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(EVENTS.c.at, EVENTS.c.state, EVENTS.c.note)
                .where(EVENTS.c.acquisition == acquisition)
                .order_by(EVENTS.c.id)
            )
            return [(at, state, note) for at, state, note in rows]

    def setting(self, name: str) -> str | None:
        """Return a setting that is kept with the catalogue."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == name)).scalar()

    def set(self, name: str, value: str) -> None:
        """Keep a setting."""
        with writing(self._engine) as connection:
            if (
                _insert(connection, sa.insert(SETTINGS).values(name=name, value=value).returning(SETTINGS.c.name))
                is None
            ):
                connection.execute(sa.update(SETTINGS).where(SETTINGS.c.name == name).values(value=value))

    # ------------------------------------------------------------------ what is in an inbox

    def observe(self, found: Iterable[Found], *, settle_seconds: float, is_open: Callable[[str], bool]) -> None:
        """Take in what an inbox holds at this moment.

        A path that is new, or looks unlike the last time, is "seen". One that looks as it did at least
        `settle_seconds` ago, and that no process has open for writing, is "stable".

        Parameters
        ----------
        found
            The files; only what differs from the catalogue needs to be among them.
        settle_seconds
            Between the two looks, s.
        is_open
            Tells whether some process has a path open for writing.
        """
        now = self._clock()
        found = list(found)
        if not found:
            return
        with writing(self._engine) as connection:
            known = {row.path: row for row in _rows_of(connection, [one.path for one in found])}
            for one in found:
                row = known.get(one.path)
                if row is None:
                    values = {**_FRESH, "path": one.path, "first_seen": now}
                    self._see(connection, None, one, values, now)
                elif (row.size, row.version) != (one.size, one.version):
                    # Whoever works on what it held finds that it changed; the lease is gone with the old content.
                    self._see(connection, row, one, dict(_FRESH), now)
                elif row.state == State.SEEN and now - row.unchanged_since >= settle_seconds and not is_open(one.path):
                    self._change(connection, row.id, {"state": State.STABLE}, now, *_as_it_was(row))

    def _see(self, connection: sa.Connection, row: Any, one: Found, values: dict[str, Any], now: float) -> None:
        state = State.SEEN if one.refused is None else State.QUARANTINED
        values |= {
            "size": one.size, "version": one.version, "unchanged_since": now, "state": state, "changed": now,
            "reason": one.refused,
        }  # fmt: skip
        if row is None:
            number = _insert(connection, sa.insert(ACQUISITIONS).values(values).returning(ACQUISITIONS.c.id))
        else:
            here = ACQUISITIONS.c.id == row.id, *_as_it_was(row)
            query = sa.update(ACQUISITIONS).where(*here).values(values).returning(ACQUISITIONS.c.id)
            number = connection.execute(query).scalar_one_or_none()
        if number is not None:  # else another watcher has seen it meanwhile
            connection.execute(sa.insert(EVENTS).values(acquisition=number, at=now, state=state, note=one.refused))

    def take_over(self, one: Found, state: State, **values: Any) -> None:
        """Record a file that has come to an end by another account than this catalogue's."""
        now = self._clock()
        row = {**_FRESH, "path": one.path, "size": one.size, "version": one.version, "unchanged_since": now}
        row |= {"first_seen": now, "changed": now, "state": state, **values}
        with writing(self._engine) as connection:
            number = _insert(connection, sa.insert(ACQUISITIONS).values(row).returning(ACQUISITIONS.c.id))
            if number is None:  # another watcher has taken it over meanwhile
                return
            note = "taken over from the ledger of an older release"
            connection.execute(sa.insert(EVENTS).values(acquisition=number, at=now, state=state, note=note))

    def forget(self, acquisition: Acquisition) -> None:
        """Forget a file that went away before anything came of it, unless it has changed or somebody took it."""
        here = ACQUISITIONS.c.id == acquisition.id, ACQUISITIONS.c.owner.is_(None), *_as_it_was(acquisition)
        with writing(self._engine) as connection:
            if connection.execute(sa.select(ACQUISITIONS.c.id).where(*here).with_for_update()).first() is not None:
                connection.execute(sa.delete(EVENTS).where(EVENTS.c.acquisition == acquisition.id))
                connection.execute(sa.delete(ACQUISITIONS).where(ACQUISITIONS.c.id == acquisition.id))

    # ------------------------------------------------------------------ working

    def claim(self, inbox: str, *, states: Sequence[State] = WAITING, most: int = 1_000_000) -> list[Acquisition]:
        """Take acquisitions that there is work on, and that nobody works on; they are this process's until released."""
        now = self._clock()
        columns = [ACQUISITIONS.c[name] for name in ("id", "owner", "lease_until")]  # there may be thousands
        where = _is_below(inbox), ACQUISITIONS.c.state.in_(states), ACQUISITIONS.c.not_before <= now
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(*columns).where(*where).order_by(ACQUISITIONS.c.id)).all()
        free = {row.id: row.owner for row in rows if self._is_free(row.owner, row.lease_until, now)}
        wanted = dict(list(free.items())[:most])
        chosen = self.select(ACQUISITIONS.c.id.in_(wanted)) if wanted else []
        # whose owner or state has changed since is somebody else's
        same = [one for one in chosen if one.owner == wanted[one.id] and one.state in states]
        return [one for one in same if self._take(one, now)]

    def _is_free(self, owner: str | None, lease_until: float, now: float) -> bool:
        return owner is None or (owner != self.owner and (is_gone(owner) or lease_until < now))

    def _take(self, one: Acquisition, now: float) -> bool:
        as_it_was = [
            ACQUISITIONS.c.id == one.id,
            ACQUISITIONS.c.state == one.state,
            ACQUISITIONS.c.version == one.version,
            ACQUISITIONS.c.owner.is_(None) if one.owner is None else ACQUISITIONS.c.owner == one.owner,
        ]
        with writing(self._engine) as connection:
            done = connection.execute(
                sa.update(ACQUISITIONS).where(*as_it_was).values(owner=self.owner, lease_until=now + LEASE_SECONDS)
            )
            return bool(done.rowcount == 1)

    def renew(self) -> None:
        """Say that this process still works on what it has taken."""
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(ACQUISITIONS)
                .where(ACQUISITIONS.c.owner == self.owner)
                .values(lease_until=self._clock() + LEASE_SECONDS)
            )

    def release(self, acquisition: int) -> None:
        """Give back an acquisition as it is."""
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(ACQUISITIONS)
                .where(ACQUISITIONS.c.id == acquisition, ACQUISITIONS.c.owner == self.owner)
                .values(owner=None, lease_until=0.0)
            )

    def advance(
        self, one: Acquisition, state: State, *, owner: str | None = None, note: str | None = None, **values: Any
    ) -> bool:
        """Record what came of an acquisition; it is released where that is an end.

        Parameters
        ----------
        one
            The acquisition, as it was taken.
        state
            The state that it comes to.
        owner
            Who has taken it; by default this process.
        note
            For its history.
        **values
            Columns that change.

        Returns
        -------
        bool
            Whether it was recorded: not where it was somebody else's meanwhile, or its content changed.
        """
        now = self._clock()
        reason = values.get("reason")
        # No database but SQLite takes a NUL in a text, and a reason may quote a damaged file.
        values |= {"state": state, "reason": reason and reason.replace("\0", "")}
        if state in ENDED:
            values |= {"owner": None, "lease_until": 0.0}
        with writing(self._engine) as connection:
            mine = ACQUISITIONS.c.owner == (owner or self.owner), ACQUISITIONS.c.version == one.version
            return self._change(connection, one.id, values, now, *mine, note=note)

    def postpone(self, one: Acquisition, seconds: float, *, reason: str | None, **values: Any) -> bool:
        """Give an acquisition back after a fault that was not its own, to be tried again after some time."""
        now = self._clock()
        values |= {"reason": reason, "not_before": now + seconds, "owner": None, "lease_until": 0.0}
        with writing(self._engine) as connection:
            done = connection.execute(
                sa.update(ACQUISITIONS)
                .where(
                    ACQUISITIONS.c.id == one.id,
                    ACQUISITIONS.c.owner == self.owner,
                    ACQUISITIONS.c.version == one.version,
                )
                .values(**values)
            )
            return bool(done.rowcount == 1)

    def follow(self, original: Acquisition) -> None:
        """Let copies of an acquisition, which has a new map, have that one too."""
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(ACQUISITIONS)
                .where(ACQUISITIONS.c.alias_of == original.path, ACQUISITIONS.c.sha256 == original.sha256)
                .values(map=original.map, model=original.model, facts=original.facts)
            )

    def send_back(self, acquisition: Acquisition, state: State, *, note: str) -> None:
        """Let an acquisition be worked on again from a state on, whatever came of it before."""
        values: dict[str, Any] = {"state": state, "reason": None, "attempts": 0, "losses": 0, "not_before": 0.0}
        values |= {"owner": None, "lease_until": 0.0, "facts": {**acquisition.facts, AGAIN: True}}
        if state is State.STABLE:
            values |= {"sha256": None, "alias_of": None, "map": None, "model": None, "facts": {AGAIN: True}}
        with writing(self._engine) as connection:
            self._change(connection, acquisition.id, values, self._clock(), note=note)

    def _change(
        self,
        connection: sa.Connection,
        acquisition: int,
        values: dict[str, Any],
        now: float,
        *where: sa.ColumnElement[bool],
        note: str | None = None,
    ) -> bool:
        done = connection.execute(
            sa.update(ACQUISITIONS).where(ACQUISITIONS.c.id == acquisition, *where).values(**values, changed=now)
        )
        if done.rowcount != 1:
            return False
        note = (note or values.get("reason") or "").replace("\0", "") or None
        connection.execute(sa.insert(EVENTS).values(acquisition=acquisition, at=now, state=values["state"], note=note))
        return True

    def original_of(self, acquisition: Acquisition) -> Acquisition | None:
        """Return the acquisition of the same content that was there before, or that others work on; else None."""
        if acquisition.sha256 is None:
            return None
        same = self.select(ACQUISITIONS.c.sha256 == acquisition.sha256, ACQUISITIONS.c.alias_of.is_(None))
        others = [one for one in same if one.id != acquisition.id]
        ended = [one for one in others if one.state is State.CLASSIFIED]
        earlier = [one for one in others if one.id < acquisition.id and one.state is not State.QUARANTINED]
        elsewhere = [one for one in others if one.owner not in (None, self.owner) and not is_gone(one.owner or "")]
        return next(iter(ended or earlier or elsewhere), None)


def _insert(connection: sa.Connection, query: Any) -> Any:
    """Insert a row and return what the query returns of it; None where another has inserted the same one."""
    try:
        with connection.begin_nested():
            return connection.execute(query).scalar_one()
    except sa.exc.IntegrityError:
        return None


def _is_below(inbox: str) -> sa.ColumnElement[bool]:
    prefix = inbox.rstrip("/") + "/"
    return sa.func.substr(ACQUISITIONS.c.path, 1, len(prefix)) == prefix


def _as_it_was(row: Any) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    """Return the condition that a row is in the state, and its file of the version, that it was read with."""
    return ACQUISITIONS.c.state == row.state, ACQUISITIONS.c.version == row.version


def _rows_of(connection: sa.Connection, paths: Sequence[str]) -> list[Any]:
    rows: list[Any] = []
    for first in range(0, len(paths), 500):  # a statement takes so many values everywhere
        some = paths[first : first + 500]
        rows += connection.execute(sa.select(ACQUISITIONS).where(ACQUISITIONS.c.path.in_(some))).all()
    return rows


def _acquisition(row: Any) -> Acquisition:
    values = {name: getattr(row, name) for name in Acquisition.__dataclass_fields__}
    return Acquisition(**{**values, "state": State(values["state"])})
