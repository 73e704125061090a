"""Curves of accuracy against perturbations, with the areas below them and where they break down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.report.gallery import Gallery
from eelsflow.report.results import by_preset_and_split, chance_of, mean_of
from eelsflow.report.style import format_number
from eelsflow.report.wording import counted
from eelsflow.robustness.scores import BREAKDOWN_FRACTION, area_under_curve

if TYPE_CHECKING:
    import xarray as xr


# Perturbations whose largest amplitude is the mildest (a dose), so that curves are read from the clean end.
_MILDEST_IS_LARGEST = ("poisson", "dose", "counts", "electrons")

_PERTURBATIONS = {
    "shift_ev": "Energy shift",
    "noise_sigma": "Gaussian noise, sigma",
    "dispersion_error": "Error of the dispersion",
    "poisson_peak_counts": "Poisson noise",
    "pca_residual": "Residual noise beyond the tenth component",
    "dose": "Dose",
    "t_over_lambda": "Thickness over mean free path",
    "broadening": "Broadening",
}


def show_robustness(
    dataset: xr.Dataset | None, results: Mapping[str, Any], styles: Mapping[str, Any], gallery: Gallery
) -> dict[str, Any] | None:
    """Return the curves of each perturbation and the table of areas and breakdown points, or None without any."""
    from eelsflow.report import figures

    if dataset is None or "accuracy" not in dataset or not np.isfinite(dataset["accuracy"].values).any():
        return None
    clean = {
        (row["model"], row.get("preprocess"), row.get("split")): mean_of(row.get("accuracy"))
        for row in results["models"]
    }
    chance = chance_of(results)
    n_seeds = dataset.sizes.get("seed", 1)
    shown: list[dict[str, Any]] = []
    table: dict[tuple[str, str, str], dict[str, Any]] = {}
    for perturbation in dataset["perturbation"].values.tolist():
        part = dataset.sel(perturbation=perturbation)
        amplitudes = np.asarray(part["amplitude_value"].values, dtype=float)
        order = np.argsort(amplitudes)[: int(np.isfinite(amplitudes).sum())]
        amplitudes = amplitudes[order]
        unit = str(part["unit"].values) if "unit" in part.coords or "unit" in part else ""
        panels = []
        intervals, over_acquisitions = _intervals(part), False
        for preset, split, accuracy in by_preset_and_split(part["accuracy"].isel(amplitude=order)):
            curves = {}
            for model in accuracy["model"].values.tolist():
                values = accuracy.sel(model=model).transpose("seed", "amplitude").values
                values = values[np.isfinite(values).all(axis=1)]
                if not values.size:
                    continue
                curve = average_curve(perturbation, amplitudes, values, clean.get((model, preset, split)))
                found = intervals.get((preset, split, model))
                if found is not None:
                    curve = replace(curve, low=found[0][order], high=found[1][order])
                    over_acquisitions = True
                curves[model] = curve
                key = (preset, split, model)
                table.setdefault(key, {})[perturbation] = {
                    "area": area_under_curve(amplitudes, curve.mean) if amplitudes.size > 1 else None,
                    "breakdown": [_signed(value, amplitudes) for value in curve.breakdown],
                }
            if curves:
                panels.append((", ".join(filter(None, (preset, split))), amplitudes, curves))
        if not panels:
            continue
        title = _PERTURBATIONS.get(perturbation, str(perturbation).replace("_", " ").capitalize())
        shown.append(
            {
                "name": perturbation,
                "title": title,
                "unit": unit,
                "picture": gallery.add(
                    f"robustness-{perturbation}",
                    figures.robustness_curves(
                        panels, label=f"{title} ({unit})" if unit else title, chance=chance, styles=styles
                    ),
                    alt=f"Accuracy of {counted(len(panels[0][2]), 'model')} against {title.lower()}",
                    caption=f"{title}, {counted(n_seeds, 'seed')}. Line: mean over seeds; band: "
                    + ("95 % interval over acquisitions where these were held out, else " if over_acquisitions else "")
                    + "the seeds' central 95 %. "
                    "A ring marks the first amplitude below 90 % of the accuracy on clean spectra.",
                ),
            }
        )
    rows = [{"preset": key[0], "split": key[1], "model": key[2], "cells": cells} for key, cells in table.items()]
    return {"shown": shown, "rows": rows} if shown else None


def _intervals(part: xr.Dataset) -> dict[tuple[str, str, str], NDArray[Any]]:
    """Return low and high ends, (2, n_amplitudes), of each preset, split and model that has them."""
    if "low" not in part:
        return {}
    found: dict[tuple[str, str, str], list[NDArray[Any]]] = {}
    for name in ("low", "high"):
        for preset, split, values in by_preset_and_split(part[name]):
            for model in values["model"].values.tolist():
                ends = values.sel(model=model).values
                if np.isfinite(ends).any():
                    found.setdefault((preset, split, model), []).append(ends)
    return {key: np.array(ends) for key, ends in found.items() if len(ends) == 2}


def _signed(value: float, amplitudes: NDArray[Any]) -> str:
    text = format_number(abs(value))
    if amplitudes.min() >= 0:
        return text
    return f"+{text}" if value > 0 else f"\N{MINUS SIGN}{text}"


def average_curve(perturbation: str, amplitudes: NDArray[Any], values: NDArray[Any], clean: float | None) -> Any:
    """Return the mean over seeds, its band, and the breakdown points. `values` has shape (seeds, amplitudes)."""
    from eelsflow.report.figures import Curve

    mean = values.mean(axis=0)
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    if amplitudes.min() <= 0 <= amplitudes.max():
        mildest = int(np.argmin(np.abs(amplitudes)))
    else:
        largest = any(word in perturbation for word in _MILDEST_IS_LARGEST)
        mildest = len(amplitudes) - 1 if largest else 0
    reference = float(mean[mildest]) if clean is None or amplitudes[mildest] == 0 else clean
    sides = (range(mildest, -1, -1), range(mildest, len(amplitudes)))
    first = (next((i for i in side if mean[i] < BREAKDOWN_FRACTION * reference), None) for side in sides)
    return Curve(mean, low, high, tuple(dict.fromkeys(float(amplitudes[i]) for i in first if i is not None)))
