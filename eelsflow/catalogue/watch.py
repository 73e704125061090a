"""The service: looks into an inbox again and again, and takes every acquisition in it to its map, once."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

import sqlalchemy as sa

from eelsflow.bucket import Bucket
from eelsflow.catalogue.inbox import LOOK_AGAIN_SECONDS, Inbox, open_inbox
from eelsflow.catalogue.ledger import AGAIN, LEASE_SECONDS, Catalogue
from eelsflow.catalogue.process import Order, identify, process
from eelsflow.catalogue.states import ENDED, WAITING, Acquisition, State
from eelsflow.catalogue.workers import WorkerDiedError
from eelsflow.errors import EelsflowError, InputError, MissingDependencyError, OutputPathError, UnusableModelError
from eelsflow.store import make_directory

LOGGER = logging.getLogger("eelsflow.watch")

MOST_ATTEMPTS, MOST_LOSSES = 5, 6
"""Faults, and workers lost, after which an acquisition is put aside (ours): a killer must not kill for ever."""

RETRY_SECONDS = 1.0
"""Before the first repeat of work that failed; twice as long before each further one (ours)."""

WAIT_SECONDS = 5.0
"""Before work is tried again that the file has no part in: no model, no space left (ours)."""

ASK_SECONDS = 2.0
"""How often the catalogue is asked for work where nothing has changed in the inbox: what others have left, or what is
to be tried again (ours)."""

MOST_TROUBLES = 3
"""In a row, after which a single pass over an inbox gives up (ours)."""

TROUBLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN, errno.ETIMEDOUT,
)  # fmt: skip
"""Errors of the system that say nothing of a file."""

REMOTE = ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec")
"""Packages whose errors are the network's."""

LEAST_FREE_BYTES = 16 << 20
"""With less space left than that, no reading or writing that fails is the file's fault (ours)."""


class Pool(Protocol):
    """Where acquisitions are worked on."""

    @property
    def n_workers(self) -> int:
        """How many acquisitions are worked on at once."""
        ...

    @property
    def n_free(self) -> int:
        """How many more pieces of work can begin now."""
        ...

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Begin a piece of work."""
        ...

    def collect(self) -> None:
        """Make the workers free whose work has ended."""
        ...

    def close(self) -> None:
        """Give everything up."""
        ...


@dataclass
class Watcher:
    """A watcher of one inbox.

    Parameters
    ----------
    catalogue
        Where everything is recorded.
    order
        What is done with new files, and where results go.
    pool
        Where it is done.
    settle_seconds
        A file is taken when it looks the same twice, so long apart, s.
    since
        Files that were changed last before that are passed over, s since 1970.
    on_end
        Told of every acquisition that came to an end, by what it is then.
    """

    catalogue: Catalogue
    order: Order
    pool: Pool
    settle_seconds: float
    since: float = 0.0
    on_end: Callable[[Acquisition], None] | None = None
    _inbox: Inbox = field(init=False)
    _working: dict[int, tuple[Acquisition, Future[Any]]] = field(default_factory=dict, init=False)
    _looks: dict[str, tuple[int, str]] = field(default_factory=dict, init=False)
    _compared: float = field(default_factory=time.monotonic, init=False)
    _has_changed: bool = field(default=True, init=False)
    _ask_at: float = field(default=0.0, init=False)
    _told: str | None = field(default=None, init=False)
    _held: set[int] = field(default_factory=set, init=False)
    _has_ended: Event = field(default_factory=Event, init=False)

    def __post_init__(self) -> None:
        self._inbox = open_inbox(self.order.inbox)
        self.order = replace(self.order, inbox=self._inbox.root)
        make_directory(self.order.out)

    # ------------------------------------------------------------------ the loop

    def run(self, *, interval: float, stop: Event, once: bool = False) -> list[Acquisition]:
        """Watch until `stop` is set; or, once, until everything that is stable has come to an end.

        Parameters
        ----------
        interval
            Between two looks, s.
        stop
            Ends it; what is worked on is given back.
        once
            Look, wait `settle_seconds`, look again, and end when there is nothing left to do. What stands in the way
            of files and is not theirs, no model or no space, is not waited for.

        Returns
        -------
        list of Acquisition
            Those that wait for such a thing, each with its reason.
        """
        look_at, looks, first_look, troubles = 0.0, 0, 0.0, 0
        left = Event()
        Thread(target=self._keep, args=(left,), name="leases", daemon=True).start()
        try:
            while not stop.is_set():
                try:
                    if time.monotonic() >= look_at:
                        self.look()
                        looks, first_look = looks + 1, first_look or time.monotonic()
                        look_at = time.monotonic() + min(interval, self.settle_seconds if once else interval)
                    busy = self.work()
                    self._told, troubles = None, 0
                except Exception as error:  # whatever it is, the next file must not wait for it for ever
                    self._tell_trouble(error)
                    troubles += 1
                    if once and troubles >= MOST_TROUBLES:
                        raise
                    stop.wait(WAIT_SECONDS)
                    continue
                settled = looks > 1 and time.monotonic() - first_look > 2 * self.settle_seconds + 0.1
                if once and settled and not busy and all(one.id in self._held for one in self._open()):
                    break
                if busy:
                    self._has_ended.wait(0.1)
                    self._has_ended.clear()
                else:
                    stop.wait(min(max(look_at - time.monotonic(), 0.02), 0.5 if once else interval))
        finally:
            left.set()
            self.leave()
        return [one for one in self._open() if one.id in self._held]

    def _keep(self, left: Event) -> None:
        """Keep what this watcher has taken: hashing or fetching one large file may take longer than a lease."""
        while not left.wait(LEASE_SECONDS / 4):
            with contextlib.suppress(OSError, sa.exc.SQLAlchemyError):
                self.catalogue.renew()

    def look(self) -> None:
        """Take in what is in the inbox now; cheap where nothing changed."""
        if time.monotonic() - self._compared > LOOK_AGAIN_SECONDS:  # another watcher may have forgotten a file
            self._looks.clear()
            self._compared = time.monotonic()
        found = [one for one in self._inbox.list() if one.modified >= self.since or one.refused is not None]
        paths = {one.path for one in found}
        changed = [one for one in found if self._looks.get(one.path) != (one.size, one.version)]
        if changed:
            opened = self._inbox.open_for_writing()
            self.catalogue.observe(
                changed,
                settle_seconds=self.settle_seconds,
                is_open=lambda path: path in opened or any(one.startswith(path + "/") for one in opened),
            )
            self._has_changed = True
            self._remember(changed)
            for one in changed:
                if one.refused is not None and (refused := self.catalogue.find(one.path)) is not None:
                    is_new = not self._note(refused).exists()
                    self._write_note(refused, one.refused)
                    if is_new:
                        self._tell(replace(refused, state=State.QUARANTINED, reason=one.refused))
        gone = set(self._looks) - paths
        for path in gone:
            del self._looks[path]
            self._inbox.ended.discard(path)
        if not self.since and (changed or gone or time.monotonic() >= self._ask_at):
            self._forget_gone(paths)

    def _remember(self, changed: list[Any]) -> None:
        """Pass over, the next time, what has left the state "seen": the catalogue has nothing to learn of it."""
        states = self.catalogue.states_of([one.path for one in changed])
        for one in changed:
            if states.get(one.path) is not State.SEEN:
                self._looks[one.path] = (one.size, one.version)
            if states.get(one.path) in ENDED:
                self._inbox.ended.add(one.path)

    def _forget_gone(self, paths: set[str]) -> None:
        for one in self.catalogue.below(self.order.inbox, State.SEEN, State.STABLE):
            if one.path not in paths and one.owner is None and not self._inbox.is_there(one.path):
                self.catalogue.forget(one)

    def work(self) -> bool:
        """Go on with what there is to do; return whether anything is being worked on."""
        now = time.monotonic()
        if not self._working and not self._has_changed and now < self._ask_at:
            return False
        self._ask_at, self._has_changed = now + ASK_SECONDS, False
        self._collect()
        for _ in range(16):  # so that workers do not wait for one large file after the other to be read
            if not self._take((State.STABLE,), 1, self._ingest):
                break
            self._has_changed = True
            self._collect()
            if self.pool.n_free:
                break
        room = self.pool.n_free
        if room:
            self._has_changed |= self._take((State.INGESTED, State.PREPARED), room, self._begin) > 0
        return bool(self._working)

    def _take(self, states: tuple[State, ...], most: int, do: Callable[[Acquisition], None]) -> int:
        """Take acquisitions and do something with each; return how many. What stands in the way gives back the rest."""
        taken = self.catalogue.claim(self.order.inbox, states=states, most=most)
        for number, one in enumerate(taken):
            try:
                do(one)
            except BaseException:
                with contextlib.suppress(OSError, sa.exc.OperationalError):
                    for left in taken[number:]:
                        self.catalogue.release(left.id)
                raise
        return len(taken)

    def leave(self) -> None:
        """Give back what is being worked on."""
        self.pool.close()
        with contextlib.suppress(OSError, sa.exc.OperationalError):
            for one, _ in self._working.values():
                self.catalogue.release(one.id)
        self._working.clear()

    def _open(self) -> list[Acquisition]:
        return self.catalogue.below(self.order.inbox, *WAITING)

    # ------------------------------------------------------------------ one acquisition

    def _ingest(self, one: Acquisition) -> None:
        """Learn what a stable file holds: in their order, so that of two of one content the first is the original."""
        try:
            sha256 = identify(one, self.order)
        except Exception as error:  # the files behind it must not wait for it
            self._fail(one, error)
            return
        if self.catalogue.advance(one, State.INGESTED, sha256=sha256):
            self.catalogue.release(one.id)

    def _begin(self, one: Acquisition) -> None:
        original = self.catalogue.original_of(one)
        if original is not None:
            if original.state is State.CLASSIFIED:
                self._end(
                    one, State.CLASSIFIED, alias_of=original.path, map=original.map, model=original.model,
                    facts=original.facts, note=f"the same content as {original.path}",
                )  # fmt: skip
                return
            is_ours = original.path.startswith(self.order.inbox.rstrip("/") + "/")
            if is_ours or original.owner is not None:
                # It is its turn when the first of this content has come to an end.
                self.catalogue.postpone(one, RETRY_SECONDS, reason=original.reason)
                if original.id in self._held:
                    self._held.add(one.id)
                return
        future = self.pool.submit(process, one, self.order, self.catalogue.url, self.catalogue.owner)
        self._working[one.id] = (one, future)
        future.add_done_callback(lambda _: self._has_ended.set())

    def _collect(self) -> None:
        self.pool.collect()
        for one, future in list(self._working.values()):
            if future.done():
                self._settle(one, future)
                del self._working[one.id]

    def _settle(self, one: Acquisition, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            outcome = future.result()
            if outcome is None:  # the file changed, and is seen anew
                self.catalogue.release(one.id)
            else:
                self._end(one, State.CLASSIFIED, **outcome)
        else:
            self._fail(one, error)

    def _fail(self, one: Acquisition, error: BaseException) -> None:
        """Decide what becomes of an acquisition that could not be worked on."""
        if isinstance(error, WorkerDiedError):
            self._lost(one, error)
        elif self._is_trouble(error):
            self._tell_trouble(error)
            if self.catalogue.postpone(one, WAIT_SECONDS, reason=str(error)):
                self._held.add(one.id)
        elif isinstance(error, InputError):
            self._refuse(one, error)
        elif one.attempts + 1 >= MOST_ATTEMPTS:
            self._quarantine(
                one, f"a fault of the program, {MOST_ATTEMPTS} times: {_say(error)}", attempts=MOST_ATTEMPTS
            )
        else:
            LOGGER.warning("%s: %s; it is tried again", one.name, _say(error))
            wait = RETRY_SECONDS * 2.0**one.attempts
            self.catalogue.postpone(one, wait, reason=_say(error), attempts=one.attempts + 1)

    def _lost(self, one: Acquisition, error: BaseException) -> None:
        if one.losses + 1 >= MOST_LOSSES:
            self._quarantine(
                one,
                f"each of {MOST_LOSSES} processes that worked on it is gone, most likely for want of memory; a machine "
                "with more memory may map it",
                losses=MOST_LOSSES,
            )
        else:
            LOGGER.warning("%s: %s; it is tried again", one.name, error)
            wait = RETRY_SECONDS * (2.0**one.losses - 1.0)
            self.catalogue.postpone(one, wait, reason=str(error), losses=one.losses + 1)

    def _is_trouble(self, error: BaseException) -> bool:
        """Tell whether something else than the file is to blame: the model, or where results are written."""
        if isinstance(error, UnusableModelError | MissingDependencyError | OutputPathError | sa.exc.OperationalError):
            return True
        if isinstance(error, ConnectionError | TimeoutError | PermissionError) or type(error).__module__.startswith(
            REMOTE
        ):
            return True
        if isinstance(error, OSError) and error.errno in TROUBLE:
            return True
        places = (self.order.out, self.order.store)
        return any(shutil.disk_usage(place).free < LEAST_FREE_BYTES for place in places if place.exists())

    def _tell_trouble(self, error: BaseException) -> None:
        """Say once what everything waits for."""
        text = _say(error)
        if text != self._told:
            LOGGER.warning("%s; files wait, and are tried again every %.0f s", text, WAIT_SECONDS)
            self._told = text

    def _refuse(self, one: Acquisition, error: InputError) -> None:
        """Put a file aside for what is wrong with it; not where it, or the whole inbox, is not to be had just now."""
        if not self._inbox.is_there(self._inbox.root):
            raise OSError(f"the inbox {self._inbox.root} is not there")
        if not self._inbox.is_there(one.path):  # it went away, and is forgotten at the next look
            self.catalogue.release(one.id)
            return
        cause = error.__cause__
        if isinstance(cause, OSError) and (cause.errno in TROUBLE or isinstance(cause, ConnectionError | TimeoutError)):
            raise cause
        self._quarantine(one, str(error))

    def _quarantine(self, one: Acquisition, reason: str, **values: Any) -> None:
        self._write_note(one, reason)
        self._end(one, State.QUARANTINED, reason=reason, **values)

    def _write_note(self, one: Acquisition, reason: str) -> None:
        note = self._note(one)
        make_directory(note.parent)
        unfinished = note.with_name(f".{note.name}")
        unfinished.write_text(f"{one.path}\nsha256 {one.sha256 or 'not known'}\n\n{reason}\n")
        unfinished.replace(note)
        if self.order.bucket is not None:
            Bucket(self.order.bucket).put(note, f"quarantine/{note.name}")

    def _remove_note(self, one: Acquisition) -> None:
        note = self._note(one)
        was_put_aside = any(state == State.QUARANTINED for _, state, _ in self.catalogue.history(one.id))
        if self.order.bucket is not None and was_put_aside:  # by this or by another machine
            Bucket(self.order.bucket).remove(f"quarantine/{note.name}")
        note.unlink(missing_ok=True)

    def _note(self, one: Acquisition) -> Path:
        return self.order.out / "quarantine" / f"{one.result_name}.txt"

    def _end(self, one: Acquisition, state: State, **values: Any) -> None:
        if state is State.CLASSIFIED:
            self._remove_note(one)  # before it is recorded: what fails here is tried again
        if not self.catalogue.advance(one, state, **values):
            return
        ended = self.catalogue.find(one.path) or one
        if AGAIN in one.facts:
            self.catalogue.follow(ended)
        self._tell(ended)

    def _tell(self, ended: Acquisition) -> None:
        LOGGER.info(say_end(ended))
        if self.on_end is not None:
            self.on_end(ended)


def say_end(one: Acquisition) -> str:
    """Say what came of an acquisition, in a line.

    >>> say_end(Acquisition(1, "/in/a.dm3", 1, "", State.QUARANTINED, reason="it is empty"))
    'a.dm3: quarantined: it is empty'
    """
    if one.state is State.QUARANTINED:
        return f"{one.name}: quarantined: {one.reason}"
    if one.alias_of is not None:
        return f"{one.name}: the same content as {one.alias_of}, mapped there"
    facts = one.facts
    classes = ", ".join(f"{name} {pixels:,}" for name, pixels in facts["classes"].items())
    offset = facts["energy_offset"]["value"]
    shift = "" if offset is None else f", offset {offset:+.1f} eV"
    spikes = facts["spikes"]["pixels"]
    return f"{one.name}: mapped {facts['pixels']:,} pixels ({classes}){shift}, {spikes} with spikes"


def _say(error: BaseException) -> str:
    return str(error) if isinstance(error, EelsflowError) else f"{type(error).__name__}: {error}"
