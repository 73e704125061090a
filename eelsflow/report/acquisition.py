"""The page of one acquisition: its map, what its classes look like, and what is known of the recording."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eelsflow.report.page import template_environment

PAGE = "index.html"


def write_acquisition_page(
    directory: Path, summary: Mapping[str, Any], *, title: str, conditions: Sequence[Mapping[str, Any]]
) -> Path:
    """Write the page of a map beside its pictures, with these inside it: it needs no network and no other file.

    Parameters
    ----------
    directory
        With ``map.png`` and ``spectra.png``.
    summary
        Content of ``summary.json``.
    title
        What the acquisition is called.
    conditions
        Of the recording: ``title``, ``value``, ``training`` (the range) as text, and ``outside``.
    """
    page = template_environment().get_template("acquisition.html.j2").render(
        title=title,
        summary=summary,
        conditions=conditions,
        pictures={name: _inline(directory / f"{name}.png") for name in ("map", "spectra")},
        model=json.dumps(summary["model"], indent=1),
        clickable=(directory / "map.html").is_file(),
    )  # fmt: skip
    path = directory / PAGE
    path.write_text(page, encoding="utf-8")
    return path


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
