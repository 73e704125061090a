"""The catalogue as pages: maps newest first, one acquisition, drift; plain HTML that asks nobody for anything."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from eelsflow.bucket import is_url
from eelsflow.catalogue.history import recorded_in
from eelsflow.catalogue.ledger import Catalogue
from eelsflow.catalogue.states import Acquisition, State
from eelsflow.errors import InputError
from eelsflow.report.page import template_environment

PER_PAGE = 60


def show_list(catalogue: Catalogue, query: Mapping[str, str]) -> str:
    """Return the page of all acquisitions, newest first, as a query narrows them down.

    Parameters
    ----------
    catalogue
        What is shown.
    query
        ``name`` (part of a path), ``state``, ``since`` and ``until`` (dates) and ``page``, all optional; what is not
        understood is said on the page.
    """
    problem, everything = None, catalogue.select()
    try:
        chosen = narrow(everything, query)
    except InputError as error:
        problem, chosen = str(error), []
    chosen = sorted(chosen, key=lambda one: (one.changed, one.id), reverse=True)
    n_pages = max(-(-len(chosen) // PER_PAGE), 1)
    number = query.get("page", "1")
    page = min(max(int(number) if number.isdecimal() else 1, 1), n_pages)
    return _render(
        "catalogue.html.j2",
        acquisitions=[_card(one) for one in chosen[(page - 1) * PER_PAGE : page * PER_PAGE]],
        n_chosen=len(chosen),
        counts=Counter(str(one.state) for one in everything),
        states=[str(state) for state in State],
        query={name: query.get(name, "") for name in ("name", "state", "since", "until")},
        problem=problem,
        page=page,
        n_pages=n_pages,
    )


def narrow(acquisitions: Sequence[Acquisition], query: Mapping[str, str]) -> list[Acquisition]:
    """Return the acquisitions that a query asks for, see `show_list`.

    Raises
    ------
    InputError
        If a date is none.
    """
    from eelsflow.catalogue.service import parse_date

    since = parse_date(query["since"]) if query.get("since") else float("-inf")
    until = parse_date(query["until"]) if query.get("until") else float("inf")
    if query.get("until") and "T" not in query["until"]:
        until += 86400.0  # the day itself is in
    return [
        one
        for one in acquisitions
        if query.get("name", "").lower() in one.path.lower()
        and query.get("state") in (None, "", str(one.state))
        and since <= one.changed < until
    ]


def show_one(catalogue: Catalogue, one: Acquisition) -> str:
    """Return the page of one acquisition: what became of it, and what to type to try it again."""
    history = [(_when(at), state, note or "") for at, state, note in catalogue.history(one.id)]
    return _render("catalogue-acquisition.html.j2", one=_card(one), path=one.path, history=history, facts=one.facts)


def show_drift(catalogue: Catalogue) -> str:
    """Return the page of the drift plots."""
    told = [one for one in catalogue.select() if one.facts.get("drift") and one.alias_of is None]
    return _render(
        "catalogue-drift.html.j2", told=[_card(one) for one in reversed(told)], has_maps=bool(recorded_in(catalogue))
    )


def _card(one: Acquisition) -> dict[str, Any]:
    facts = one.facts
    force = ["--force", "ingested"] if one.state is State.CLASSIFIED else []
    has_map = one.map is not None and (is_url(one.map) or (Path(one.map) / "map.png").is_file())
    return {
        "id": one.id,
        "name": one.name,
        "state": str(one.state),
        "when": _when(one.changed),
        "reason": one.reason,
        "alias_of": one.alias_of,
        "has_map": has_map,
        "map": one.map,
        "model": facts.get("model"),
        "classes": ", ".join(f"{name} {pixels:,}" for name, pixels in facts.get("classes", {}).items()),
        "warnings": [*facts.get("warnings", []), *(f"drift: {text}" for text in facts.get("drift", []))],
        "retry": shlex.join(["eelsflow", "backfill", one.path, *force]),
    }


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")


def _render(template: str, **context: Any) -> str:
    return template_environment().get_template(template).render(**context)
