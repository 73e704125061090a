"""What models make of spectra of other laboratories: a table a test, and what an axis that is wrong would cost."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eelsflow.report import figures
from eelsflow.report.gallery import Gallery
from eelsflow.report.results import mean_of, unique


def show_outside(
    results: Mapping[str, Any], styles: Mapping[str, Mapping[str, str]], gallery: Gallery
) -> dict[str, Any] | None:
    """Return the tests with their rows, the best first, and the model chosen without them; None without tests."""
    if not results["outside"]:
        return None
    tests = []
    for number, name in enumerate(unique(results["outside"], "test")):
        rows = [row for row in results["outside"] if row["test"] == name]
        rows.sort(key=lambda row: (-row["right"], row["model"]))
        tests.append(
            {
                "name": name,
                "rows": rows,
                "classes": sorted({kind for row in rows for kind in row["by_class"]}),
                "apart": sorted({kind for row in rows for kind in row["apart"]}),
                "several_presets": len({row["preprocess"] for row in rows}) > 1,
                "about": _say_place(rows[0]),
                "picture": _draw(name, number, rows, styles, gallery),
            }
        )
    return {"tests": tests, "choice": choose_outside(results)}


def choose_outside(results: Mapping[str, Any]) -> str | None:
    """Return the model that stands shifts best on the study's own test spectra: a choice that needs no other label."""
    judged = {row["model"] for row in results["outside"]}
    candidates = [
        row for row in results["models"] if row["model"] in judged and mean_of(row["translation"]) is not None
    ]
    candidates = [row for row in candidates if row["split"] == "group"] or candidates
    if not candidates:
        return None
    name: str = max(candidates, key=lambda row: mean_of(row["translation"]) or 0.0)["model"]
    return name


def _say_place(row: Mapping[str, Any]) -> str:
    low, high = row["moved_ev"]
    moved = (
        "On the axis as recorded"
        if low == high == 0
        else f"All moved by {low:+.2f} eV"
        if low == high
        else f"Each moved by its own amount, {low:+.2f} to {high:+.2f} eV"
    ).replace("-", "\N{MINUS SIGN}")
    held = f" Where a spectrum ends inside the window (by up to {row['held_ev']:.1f} eV) its last value is held."
    return f"{moved}; {row['of']} spectra of one class each.{held if row['held_ev'] > 0 else ''}"


def _draw(
    name: str,
    number: int,
    rows: Sequence[Mapping[str, Any]],
    styles: Mapping[str, Mapping[str, str]],
    gallery: Gallery,
) -> Any:
    if not rows[0]["curve"]:
        return None
    amplitudes = np.array([point["shift_ev"] for point in rows[0]["curve"]])
    curves: dict[str, figures.Curve] = {}
    for row in rows:
        share = np.array([point["right"] for point in row["curve"]]) / row["of"]
        curves.setdefault(row["model"], figures.Curve(share, share, share))
    counts = [of for _, of in rows[0]["by_class"].values()]
    held = max(point["held_ev"] for point in rows[0]["curve"])
    caption = f"{name}: what it would cost if they lay elsewhere on the axis. "
    caption += (
        f"Held ends make up to {held:.1f} eV of the window."
        if held > 0.05
        else "True data enter at the ends of the window."
    )
    return gallery.add(
        f"outside-{number + 1}",
        figures.robustness_curves(
            [(name, amplitudes, curves)],
            label="Moved further (eV)",
            chance=max(counts) / sum(counts),
            styles=styles,
        ),
        alt=f"Share of {name} that is right against a further shift",
        caption=caption,
    )


def write_outside(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``outside.csv``, a line for each test and model; nothing without tests."""
    if not rows:
        return
    with (directory / "outside.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["test", "model", "preprocess", "right", "of", "share", "share_low", "share_high", "by_class"])
        for row in rows:
            by_class = "; ".join(f"{name} {right} of {of}" for name, (right, of) in row["by_class"].items())
            share = [f"{row['accuracy'][end]:.4f}" for end in ("mean", "low", "high")]
            writer.writerow([row["test"], row["model"], row["preprocess"], row["right"], row["of"], *share, by_class])
