"""What a person asks of the service: watch an inbox, do some of it again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from threading import Event, Thread
from typing import Any

from eelsflow.bucket import is_url
from eelsflow.catalogue.cluster_workers import ClusterWorkers
from eelsflow.catalogue.inbox import look_at, open_inbox
from eelsflow.catalogue.ledger import Catalogue
from eelsflow.catalogue.process import Order
from eelsflow.catalogue.states import ENDED, Acquisition, State
from eelsflow.catalogue.watch import Pool, Watcher, say_end
from eelsflow.catalogue.workers import Workers
from eelsflow.digest import digest_of
from eelsflow.errors import InputError
from eelsflow.notify import Notices
from eelsflow.store import Store, home, read_json
from eelsflow.study.champion import follow_champions

LOGGER = logging.getLogger("eelsflow.watch")

MINUTE_SECONDS = 60.0
"""How often MLflow's registry is asked who is champion, and people are told what wants a look (ours)."""

BEGIN_SECONDS = 10.0

INTERVAL_SECONDS = 5.0
"""Between two looks into an inbox, and therefore before a file is taken (ours)."""


class Stage(StrEnum):
    """What is done again: everything, preparation and map, or the map alone."""

    INGESTED = "ingested"
    PREPARED = "prepared"
    CLASSIFIED = "classified"


_FROM = {Stage.INGESTED: State.STABLE, Stage.PREPARED: State.INGESTED, Stage.CLASSIFIED: State.PREPARED}


def make_order(inbox: str, *, out: str | Path | None = None, model: str = "default", edge: str | None = None) -> Order:
    """Return what is done with the files of an inbox.

    Results go below `out`, by default eelsflow's home; where `out` is the URL of a bucket, they are copied there.
    """
    bucket = str(out).rstrip("/") if out is not None and is_url(out) else None
    folder = home()
    if out is not None and bucket is None:
        folder = Path(str(out).removeprefix("file://")).expanduser().absolute()
    return Order(
        inbox=open_inbox(inbox).root, out=folder, store=home() / "store", model=model, edge=edge, bucket=bucket
    )


def open_pool(*, workers: int | None = None, cluster: str | None = None) -> Pool:
    """Return where acquisitions are worked on: processes of this machine, by default one a core, or a Dask cluster.

    Raises
    ------
    InputError
        If both are asked for.
    """
    if cluster is None:
        return Workers(workers or len(os.sched_getaffinity(0)))
    if workers is not None:
        raise InputError(
            f"{workers} workers of this machine and the cluster at {cluster} are asked for; a cluster has as many as "
            "were started there, so name one of the two"
        )
    return ClusterWorkers(cluster)


def watch(
    order: Order,
    *,
    pool: Pool,
    interval: float = INTERVAL_SECONDS,
    once: bool = False,
    since: float = 0.0,
    stop: Event | None = None,
    catalogue: Catalogue | None = None,
    on_end: Callable[[Acquisition], None] | None = None,
) -> list[Acquisition]:
    """Watch an inbox until `stop` is set, or until everything in it has come to an end.

    Parameters
    ----------
    order
        Of `make_order`.
    pool
        Where acquisitions are worked on, such as `Workers`; closed at the end.
    interval
        Between two looks, s; a file is taken when it looks the same at two of them.
    once, since, on_end
        As in `Watcher` and its `run`.
    stop, catalogue
        By default none, and the one of `catalogue_url`.

    Returns
    -------
    list of Acquisition
        Those that wait, at the end, for what is not theirs: a model, or space to write to.
    """
    catalogue = catalogue or Catalogue()
    Store(order.store).remove_abandoned()
    import_ledger(order.out, catalogue)
    notices = Notices()

    def ended(one: Acquisition) -> None:
        if one.alias_of is None and (one.state is State.QUARANTINED or one.facts.get("drift")):
            notices.add("; ".join([say_end(one), *(f"drift: {text}" for text in one.facts.get("drift", []))]))
        if on_end is not None:
            on_end(one)

    watcher = Watcher(catalogue, order, pool, settle_seconds=interval, since=since, on_end=ended)
    follow = _Follower(order)
    with _every_minute(notices.flush, follow):
        begin(follow)
        try:
            return watcher.run(interval=interval, stop=stop or Event(), once=once)
        finally:
            notices.flush(now=True)


class _Follower:
    """Lets files be mapped by the champion that MLflow's registry names, whenever it is called."""

    def __init__(self, order: Order) -> None:
        self._is_wanted = order.model == "default"
        self._told: str | None = None

    def __call__(self) -> None:
        if not self._is_wanted:
            return
        try:
            for change in follow_champions():
                LOGGER.info("%s", change)
            self._told = None
        except Exception as error:  # a server that is away must not keep the model that is here from its work
            text = str(error).partition("\n")[0]
            if text != self._told:
                LOGGER.warning("MLflow's registry does not say who is champion (%s); the one known is used", text)
                self._told = text


def begin(work: Callable[[], None]) -> None:
    """Do something that should be done soon, but must not be waited for long: a server may not answer."""
    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(BEGIN_SECONDS)


@contextlib.contextmanager
def _every_minute(*work: Callable[[], None]) -> Iterator[None]:
    """Do some things in a thread once a minute, for the time of a ``with`` block."""
    left = Event()

    def keep_on() -> None:
        while not left.wait(MINUTE_SECONDS):
            for do in work:
                try:
                    do()
                except Exception:  # the next minute, and the other things, must not end with it
                    LOGGER.exception("what is done every minute failed")

    Thread(target=keep_on, name="every-minute", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def send_back(order: Order, catalogue: Catalogue, *, since: float, force: Stage | None, path: str | None) -> int:
    """Let acquisitions be worked on again; return how many.

    Parameters
    ----------
    order
        With the inbox.
    catalogue
        The catalogue.
    since
        Those changed last before that stay as they are, s since 1970.
    force
        From where those that are mapped are done again; None: only quarantined ones are tried again.
    path
        One file alone; the whole inbox where None.
    """
    wanted = {one.path for one in open_inbox(order.inbox).list() if one.modified >= since and one.refused is None}
    again = [
        one
        for one in catalogue.below(order.inbox, *ENDED)
        if one.path in wanted and path in (None, one.path) and (force or one.state is State.QUARANTINED)
        if one.alias_of is None  # others follow the file that they are a copy of
    ]
    store = Store(order.store)
    for one in again:
        if force in (Stage.PREPARED, Stage.INGESTED) and "prepared" in one.facts:
            store.discard(one.facts["prepared"])
        state = State.STABLE if one.state is State.QUARANTINED or force is None else _FROM[force]
        catalogue.send_back(one, state, note=f"again from {force or 'the beginning'}, because it was asked for")
    return len(again)


def parse_date(text: str) -> float:
    """Return the time that a date (and time of day) of ISO 8601 names, of this machine's zone; s since 1970.

    Raises
    ------
    InputError
        If it is not understood.
    """
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise InputError(f"{text!r} is no date; write it as 2026-11-29 or 2026-11-29T14:30") from error


def import_ledger(out: Path, catalogue: Catalogue) -> int:
    """Take over what an older release has written down in ``OUT/ledger``, once; return how many entries."""
    folder, mark = out / "ledger", f"ledger {digest_of(str(out))[:24]}"
    if not folder.is_dir() or catalogue.setting(mark) is not None:
        return 0
    last: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
        entry = read_json(file)
        last[entry["path"]] = entry
    taken = 0
    for path, entry in sorted(last.items()):
        state = {"done": State.CLASSIFIED, "quarantined": State.QUARANTINED}.get(entry["state"])
        if state is None or catalogue.find(path) is not None:
            continue  # what had failed by a fault is seen anew
        try:
            now = look_at(Path(path))
        except FileNotFoundError:
            continue
        same = (now.size, now.version.split(":")[1]) == (entry["size"], str(entry["modified_ns"]))
        if same and (state is State.QUARANTINED or Path(entry["map"] or "").is_dir()):
            kept = {name: entry[name] for name in ("sha256", "reason", "alias_of", "map")}
            catalogue.take_over(now, state, **kept)
            taken += 1
    catalogue.set(mark, json.dumps(taken))
    return taken
