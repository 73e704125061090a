"""How far the study's most robust model goes beyond the best plain one, and beyond the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from eelsflow.models.spec import STANDARD
from eelsflow.report.results import mean_of, unique

if TYPE_CHECKING:
    import xarray as xr

WITHIN_EV = 8.0
NOISE_SIGMA = 0.15

PAPERS = tuple(base for base in STANDARD if base != "mlls")
"""Bases of the paper's models."""


def go_beyond(results: Mapping[str, Any], dataset: xr.Dataset | None) -> list[dict[str, Any]]:
    """Return three models of each preset and split: what stands shifts best, the best plain one, the paper's best.

    A plain model is trained on spectra as they are and takes the axis as it is. None where a study has no other.
    """
    if dataset is None or "shift_ev" not in dataset["perturbation"].values:
        return []
    rows: list[dict[str, Any]] = []
    for preset in unique(results["models"], "preprocess"):
        for split in unique(results["models"], "split"):
            members = [
                row for row in results["models"]
                if (row["preprocess"], row["split"]) == (preset, split) and mean_of(row["accuracy"]) is not None
            ]  # fmt: skip
            plain = [row for row in members if row["augment"] is None and row["align"] is None]
            papers = [row for row in plain if row["base"] in PAPERS and row["features"] is None]
            if not plain or not papers or len(plain) == len(members):
                continue
            best = max(plain, key=_accuracy)
            robust = max(members, key=lambda row: _area(dataset, row))
            for role, row in (
                ("stands shifts best", robust),
                ("best plain", best),
                ("the paper's best", max(papers, key=_accuracy)),
            ):
                rows.append({"role": role, **_measure(dataset, row, best)})
    return rows


def _accuracy(row: Mapping[str, Any]) -> float:
    return mean_of(row["accuracy"]) or 0.0


def _curve(dataset: xr.Dataset, row: Mapping[str, Any], perturbation: str) -> tuple[Any, Any]:
    """Return amplitudes and mean accuracy over seeds, without those that were not tried."""
    if perturbation not in dataset["perturbation"].values:
        return np.empty(0), np.empty(0)
    where = {"model": row["model"], "preprocess": row["preprocess"], "split": row["split"]}
    part = dataset.sel(perturbation=perturbation, **where)
    values = part["accuracy"].transpose("amplitude", "seed").values
    tried = np.isfinite(part["amplitude_value"].values) & np.isfinite(values).any(axis=1)
    return part["amplitude_value"].values[tried], np.nanmean(values[tried], axis=1)


def _area(dataset: xr.Dataset, row: Mapping[str, Any]) -> float:
    amplitudes, mean = _curve(dataset, row, "shift_ev")
    return float(mean[np.abs(amplitudes) <= WITHIN_EV].mean()) if amplitudes.size else 0.0


def _measure(dataset: xr.Dataset, row: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, Any]:
    clean = _accuracy(row)
    amplitudes, mean = _curve(dataset, row, "shift_ev")
    inside = np.abs(amplitudes) <= WITHIN_EV
    shifted = float(mean[inside].min()) if inside.any() else None
    sigma, noise = _curve(dataset, row, "noise_sigma")
    at = np.flatnonzero(np.isclose(sigma, NOISE_SIGMA))
    noisy = float(noise[at[0]]) if at.size else mean_of(row["noise"])
    return {
        **{name: row[name] for name in ("model", "preprocess", "split", "accuracy")},
        "loss": _accuracy(best) - clean,
        "shifted": shifted,
        "shifted_share": shifted / clean if shifted is not None and clean else None,
        "noisy": noisy,
        "noisy_share": noisy / clean if noisy is not None and clean else None,
    }
