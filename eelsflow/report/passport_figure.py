"""The figure of a passport: acquisition by acquisition, and every curve, with what is said of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eelsflow.report.passport import STANDS
from eelsflow.report.style import GREY, PAGE_WIDTH, class_colors, figure_style, format_number, new_figure, plain
from eelsflow.robustness.scores import BREAKDOWN_FRACTION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
MOST_NAMED = 30
"""Acquisitions whose names fit beside their dots."""

_LINE = 125  # letters of a line of text
_LINE_HEIGHT = 0.155  # inches


@figure_style()
def draw_passport(
    passport: Mapping[str, Any],
    curves: Mapping[str, Mapping[str, Any]],
    *,
    classes: Sequence[str],
    style: Mapping[str, str],
) -> Figure:
    """Draw a model's passport.

    Parameters
    ----------
    passport
        ``title``, ``worth``, ``stand``, ``trained_on`` (sentences), ``groups`` (rows with name, label, accuracy, low
        and high) and ``row`` of the results.
    curves
        Perturbation -> ``amplitude``, ``mean``, ``low`` and ``high``, each of shape (n,).
    classes
        All of the study, in the order of their colours.
    style
        Line properties of the model.
    """
    said = [passport["worth"], passport["stand"], f"Trained on {passport['trained_on']}"]
    lines = [line for text in said for line in textwrap.wrap(text, _LINE)]
    n_rows = -(-len(curves) // 2)
    head = 0.35 + _LINE_HEIGHT * len(lines)
    figure = new_figure(PAGE_WIDTH, head + max(1.55 * n_rows, 3.0))
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - head / figure.get_figheight()))
    top = figure.get_figheight()
    figure.text(0.01, 1 - 0.2 / top, plain(f"Robustness passport: {passport['title']}"), size=11, weight="bold")
    for number, line in enumerate(lines):
        figure.text(0.01, 1 - (0.42 + _LINE_HEIGHT * number) / top, plain(line), size=8)
    groups = passport["groups"]
    columns = 3 if groups else 2
    grid = figure.add_gridspec(n_rows, columns, width_ratios=(1.15, 1, 1) if groups else (1, 1))
    if groups:
        _draw_groups(figure.add_subplot(grid[:, 0]), groups, passport["row"]["accuracy"], classes)
    clean = passport["row"]["accuracy"]["mean"]
    for number, (name, curve) in enumerate(curves.items()):
        axes = figure.add_subplot(grid[number // 2, number % 2 + columns - 2])
        _draw_curve(axes, name, curve, clean=clean, style=style)
    return figure


def _draw_groups(
    axes: Axes, groups: Sequence[Mapping[str, Any]], score: Mapping[str, Any], classes: Sequence[str]
) -> None:
    colors = class_colors(len(classes))
    for kind, color, marker in [*zip(classes, colors, MARKERS * len(classes), strict=False), ("", GREY, "x")]:
        rows = [(place, group) for place, group in enumerate(groups) if group["label"] == kind]
        if not rows:
            continue
        place = [-number for number, _ in rows]
        accuracy, low, high = (np.array([group[name] for _, group in rows]) for name in ("accuracy", "low", "high"))
        axes.errorbar(
            accuracy, place, xerr=np.clip([accuracy - low, high - accuracy], 0, None), fmt=marker, color=color,
            markersize=3, linewidth=0.7, label=plain(kind or "several classes"),
        )  # fmt: skip
    axes.axvline(score["mean"], color="black", linewidth=0.8)
    if score["low"] is not None:
        axes.axvspan(score["low"], score["high"], color="black", alpha=0.12, linewidth=0)
    if len(groups) <= MOST_NAMED:
        axes.set_yticks(
            [-number for number in range(len(groups))], [plain(group["name"]) for group in groups], size=5.5
        )
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(groups)} acquisitions, the best first")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-len(groups) + 0.3, 0.7)
    axes.set_xlabel("Accuracy, spectra as they are")
    axes.set_title("By acquisition")
    axes.legend(loc="upper left", handletextpad=0.3)


def _draw_curve(axes: Axes, name: str, curve: Mapping[str, Any], *, clean: float, style: Mapping[str, str]) -> None:
    stand = STANDS[name]
    x = curve["amplitude"] * stand.scale
    axes.axhspan(BREAKDOWN_FRACTION * clean, 1.05, color="#E3EEF7", linewidth=0, zorder=0)
    axes.axhline(clean, color=GREY, linewidth=0.7, linestyle=(0, (1, 2)))
    axes.fill_between(x, curve["low"], curve["high"], color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(x, curve["mean"], color=style["color"], marker=style["marker"], markersize=2.5)
    if x.min() > 0 and x.max() / x.min() >= 20:
        axes.set_xscale("log")
        shown = x[:: max(1, -(-len(x) // 6))]
        axes.set_xticks(shown, [format_number(value) for value in shown.tolist()])
        axes.set_xticks([], minor=True)
    axes.set_ylim(min(0.4, float(np.min(curve["low"])) - 0.03), 1.02)
    axes.set_title(plain(stand.title), size=7.5)
    axes.set_ylabel("Accuracy", size=7)
    axes.tick_params(labelsize=6.5)
