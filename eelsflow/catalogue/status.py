"""How far every acquisition is, as a person or a program reads it; loads nothing that maps are made with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from eelsflow.catalogue.inbox import open_inbox
from eelsflow.catalogue.ledger import Catalogue


def describe_status(catalogue: Catalogue, inbox: str | None = None) -> list[dict[str, Any]]:
    """Return what became of every acquisition: path, sha256, state, reason, alias_of, map and more."""
    found = catalogue.select() if inbox is None else catalogue.below(open_inbox(inbox).root)
    return [one.summary() for one in found]


def format_status(rows: Sequence[dict[str, Any]]) -> str:
    """Return the status as a table: name, state, when it came to it, and why it is not mapped or where the map is."""
    if not rows:
        return "no acquisition was seen yet; `eelsflow watch INBOX` looks into a folder"
    table = [("acquisition", "state", "since", "map, or reason")]
    for row in rows:
        what = row["reason"] or row["map"] or ""
        if row["alias_of"]:
            what = f"the same content as {row['alias_of']}"
        since = datetime.fromtimestamp(row["changed"]).isoformat(sep=" ", timespec="seconds")
        table.append((row["path"].rpartition("/")[2], str(row["state"]), since, " ".join(what.split())))
    widths = [max(len(line[column]) for line in table) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, line[:3], widths), line[3]]) for line in table]
    counts = Counter(str(row["state"]) for row in rows)
    aliases = sum(row["alias_of"] is not None for row in rows)
    total = ", ".join(f"{number} {state}" for state, number in counts.items())
    return "\n".join([*lines, f"{len(rows)} acquisitions: {total}" + (f"; {aliases} by another name" * bool(aliases))])
