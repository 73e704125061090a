"""Under what conditions an acquisition was recorded, and whether those that a model was trained on were so too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

QUANTITIES: dict[str, tuple[str, str, float, float]] = {
    # name: what it is called, its unit, and how far beyond the range is still inside: absolute, and relative (ours)
    "energy_offset": ("energy offset", "eV", 0.5, 0.0),
    "dispersion": ("dispersion", "eV per channel", 0.0, 0.01),
    "resolution": ("resolution", "eV", 0.1, 0.1),
    "noise_gain": ("counts per electron", "", 0.0, 0.25),
    "dose": ("dose", "electrons per channel of 0.1 eV", 0.0, 0.5),
    "distance": ("distance from the training spectra", "", 0.0, 0.0),
}
"""What is watched, in the order in which it is told."""


def conditions_of(product: xr.Dataset) -> dict[str, float | None]:
    """Return what is known of the recording of a prepared acquisition.

    Returns
    -------
    dict
        ``energy_offset`` (eV), ``dispersion`` (eV per channel), ``resolution`` (full width of the zero loss, eV, where
        there is a low loss), ``noise_gain`` (counts per electron, as estimated) and ``dose`` (electrons per channel of
        0.1 eV, median over the specimen); None for what is not known.
    """
    attrs = product.attrs
    low_loss = json.loads(attrs["low_loss"]) if attrs.get("low_loss") else {}
    specimen = ~product["vacuum_mask"].values & ~product["lost"].values
    electrons = product["electrons"].values[specimen] if "electrons" in product else np.empty(0)
    electrons = electrons[np.isfinite(electrons)]
    return {
        "energy_offset": _finite(attrs["energy_offset"]),
        "dispersion": _finite(np.diff(product["mean_energy_loss"].values).mean()),
        "resolution": _finite(low_loss.get("resolution")),
        "noise_gain": _finite(attrs.get("noise_gain")),
        "dose": _finite(np.median(electrons)) if electrons.size else None,
    }


def ranges_of(conditions: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """Return lowest and highest value of each condition over training acquisitions; of those that are known."""
    ranges = {}
    for name in QUANTITIES:
        values = [value for one in conditions if (value := one.get(name)) is not None]
        if values:
            ranges[name] = {"low": min(values), "high": max(values)}
    return ranges


def find_drift(
    conditions: Mapping[str, float | None], ranges: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Return in what an acquisition lies outside of what a model was trained on.

    Parameters
    ----------
    conditions
        Of `conditions_of`, and ``distance`` of the mean spectrum.
    ranges
        Of `ranges_of`; a quantity without a range is not judged.

    Returns
    -------
    list of dict
        ``quantity``, ``value``, ``low``, ``high`` (the range, with what is allowed beyond it) and ``sentence``.
    """
    found = []
    for name, (title, unit, absolute, relative) in QUANTITIES.items():
        value = conditions.get(name)
        if value is None or name not in ranges:
            continue
        lowest, highest = ranges[name]["low"], ranges[name]["high"]
        low, high = lowest - absolute - relative * abs(lowest), highest + absolute + relative * abs(highest)
        if not low <= value <= high:
            sentence = f"{title} {value:.3g}{f' {unit}' if unit else ''}, training {lowest:.3g} to {highest:.3g}"
            found.append({"quantity": name, "value": value, "low": low, "high": high, "sentence": sentence})
    return found


def tell_conditions(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the conditions of a map's summary as a person reads them, beside those of the training acquisitions."""
    outside = {one["quantity"] for one in summary["drift"]}
    rows = []
    for name, (title, unit, _, _) in QUANTITIES.items():
        value, training = summary["conditions"].get(name), (summary["training"] or {}).get(name)
        rows.append(
            {
                "title": title + (f" ({unit})" if unit else ""),
                "value": None if value is None else f"{value:.3g}",
                "training": None if training is None else f"{training['low']:.3g} to {training['high']:.3g}",
                "outside": name in outside,
            }
        )
    return rows


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
