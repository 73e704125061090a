"""What in the store nothing refers to: no study's results, no study that may go on, no map of the catalogue."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from eelsflow.catalogue.ledger import Catalogue
from eelsflow.errors import InputError
from eelsflow.store import Store
from eelsflow.study.journal import referred_to, store_alone

YOUNG_SECONDS = 86400.0
"""Entries younger than that are kept: a watcher may be about to refer to them (ours)."""

KINDS = {
    "prepared.zarr": "prepared acquisitions",
    "fit.json": "models",
    "correct.npz": "assessments",
    "scores.json": "scores of maps",
    "vectors.npy": "training sets",
}


@dataclass(frozen=True)
class Unused:
    """An entry of the store that nothing refers to: its address, its size in bytes, and what it is."""

    digest: str
    size: int
    kind: str


def find_unused(store: Store, catalogue: Catalogue) -> list[Unused]:
    """Return the entries that nothing refers to, the largest first."""
    entries = list(store.entries())  # before references are read: what comes later is not looked at
    kept = referred_to() | {one.facts["prepared"] for one in catalogue.select() if "prepared" in one.facts}
    oldest = time.time() - YOUNG_SECONDS
    found = []
    for path in entries:
        if path.name in kept or path.stat().st_mtime > oldest:
            continue
        files = [file for file in path.rglob("*") if file.is_file()]
        kind = next((text for name, text in KINDS.items() if (path / name).exists()), "others")
        found.append(Unused(path.name, sum(file.stat().st_size for file in files), kind))
    return sorted(found, key=lambda one: (-one.size, one.digest))


def say_unused(found: list[Unused]) -> str:
    """Say what would be dropped, and how much that is.

    >>> say_unused([Unused("a", 3_000_000, "models"), Unused("b", 1_000_000, "models")])
    '2 entries that nothing refers to, 4.0 MB: 2 models'
    """
    if not found:
        return "nothing is in the store that nothing refers to"
    counts = Counter(one.kind for one in found)
    kinds = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
    return f"{len(found)} entries that nothing refers to, {sum(one.size for one in found) / 1e6:,.1f} MB: {kinds}"


@contextmanager
def pruning(store: Store) -> Iterator[None]:
    """Keep studies from beginning while entries are dropped.

    Raises
    ------
    InputError
        If a study is running.
    """
    with store_alone(store.root) as alone:
        if not alone:
            raise InputError(
                f"a study is running on the store {store.root}, or a watcher is at work, and what they need cannot be "
                "told: nothing is dropped; try again when they have ended"
            )
        yield
