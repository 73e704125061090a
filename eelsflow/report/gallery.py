"""The figures of a page: collected first, then drawn all at once and put where they belong."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from eelsflow.executors import Executor
from eelsflow.report.style import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MAX_INLINE_SVG = 300_000
"""Bytes of a drawing past which its PNG is put into the page instead, if that is smaller."""

FIGURES_AT_ONCE = 16
"""Sent to workers together: a figure is some hundred kilobytes, and a cluster asks for messages below 10 MB."""

PIXELS_PER_INCH = 120
"""Size of a figure on the page: its 8-point text is as tall as the text around it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as the page shows it: where its bytes are, what it shows in words, and a page that shows more."""

    name: str
    uri: str
    alt: str
    caption: str
    width: int
    link: str = ""


@dataclass
class Gallery:
    """Collects figures for the page, then draws them all: finding layouts and drawing is most of a report's time."""

    directory: Path
    figures: dict[str, Figure] = field(default_factory=dict)

    def add(self, name: str, figure: Figure, *, alt: str, caption: str, link: str = "") -> Picture:
        """Take a figure in and return the picture that stands for it; a name that is taken gets a number."""
        slug = unique = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "figure"
        number = 1
        while unique in self.figures:
            number += 1
            unique = f"{slug}-{number}"
        self.figures[unique] = figure
        return Picture(unique, _placeholder(unique), alt, caption, round(figure.get_figwidth() * PIXELS_PER_INCH), link)

    def draw(self, pages: Sequence[str], executor: Executor) -> list[str]:
        """Write every figure to its files and return the pages with the figures in them."""
        figures = list(self.figures.values())
        drawn: list[tuple[bytes, bytes]] = []
        drawn_pages = list(pages)
        for begin in range(0, len(figures), FIGURES_AT_ONCE):
            drawn += executor.map(_draw, figures[begin : begin + FIGURES_AT_ONCE], label="draw")
        for name, (svg, png) in zip(self.figures, drawn, strict=True):
            for suffix, content in (("svg", svg), ("png", png)):
                (self.directory / f"{name}.{suffix}").write_bytes(content)
            kind, content = ("png", png) if len(svg) > max(MAX_INLINE_SVG, len(png)) else ("svg+xml", svg)
            uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
            drawn_pages = [page.replace(_placeholder(name), uri) for page in drawn_pages]
        return drawn_pages


def _placeholder(name: str) -> str:
    return f"figure:{name}:not-drawn"


def _draw(figure: Figure) -> tuple[bytes, bytes]:
    return render(figure, "svg"), render(figure, "png")
