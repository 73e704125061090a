"""Means and 95 % intervals over seeds and groups, the breakdown point and the area under a curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

N_RESAMPLES = 1000
BREAKDOWN_FRACTION = 0.9


class Score(BaseModel):
    """A mean with its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float


def bootstrap_score(
    correct: Sequence[NDArray[np.bool_]],
    units: Sequence[NDArray[np.str_] | None],
    *,
    weight: Sequence[NDArray[np.float64]] | None = None,
) -> Score | None:
    """Return the accuracy over paired seeds with an interval by bootstrap over seeds and groups.

    Parameters
    ----------
    correct
        For each seed, shape (n_test,): whether each test spectrum was right.
    units
        For each seed, shape (n_test,): the group of each spectrum, or None to resample spectra.
    weight
        For each seed, shape (n_test,): weight of each spectrum; 1 / (size of its class) gives balanced accuracy.

    Returns
    -------
    Score or None
        None where there is nothing to compute from, or not a single resample can be drawn.

    Notes
    -----
    Two-stage resampling: seeds with replacement, then groups (or spectra) within each drawn seed. Spectra of one
    acquisition are not independent, so resampling spectra where groups are known would give too narrow an interval.
    """
    if not correct:
        return None
    totals, weights = [], []
    for number, right in enumerate(correct):
        value = np.ones(right.size) if weight is None else weight[number]
        unit = units[number]
        code = np.arange(right.size) if unit is None else np.unique(unit, return_inverse=True)[1]
        totals.append(np.bincount(code, weights=value * right).astype(np.float64))
        weights.append(np.bincount(code, weights=value).astype(np.float64))
    mean = float(np.mean([total.sum() / size.sum() for total, size in zip(totals, weights, strict=True)]))

    rng = np.random.default_rng(20190513)
    # One resampled accuracy a seed and resample; then the mean over a resample of the seeds.
    per_seed = np.stack([_resample(t, w, rng) for t, w in zip(totals, weights, strict=True)])
    n_seeds = len(correct)
    drawn = rng.integers(0, n_seeds, (N_RESAMPLES, n_seeds))
    resampled = per_seed[drawn, np.arange(N_RESAMPLES)[:, None]].mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Score(mean=mean, low=float(min(low, mean)), high=float(max(high, mean)))


def _resample(
    totals: NDArray[np.float64], weights: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return N_RESAMPLES accuracies over units drawn with replacement."""
    n_units = totals.size
    if np.all(weights == weights[0]):  # equal units that are right or wrong: a multinomial of few distinct values
        values, counts = np.unique(totals, return_counts=True)
        drawn = rng.multinomial(n_units, counts / n_units, N_RESAMPLES)
        return np.asarray(drawn @ values / (n_units * weights[0]))
    picks = rng.integers(0, n_units, (N_RESAMPLES, n_units))
    return np.asarray(totals[picks].sum(axis=1) / weights[picks].sum(axis=1))


def class_weights(label: NDArray[np.str_]) -> NDArray[np.float64]:
    """Return 1 / (size of the spectrum's class), shape (n,): the weights of balanced accuracy."""
    _, code, counts = np.unique(label, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts[code])


def breakdown_point(
    amplitudes: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    *,
    clean: float,
    mild_end: Literal["low", "high"] = "low",
) -> float | None:
    """Return the mildest perturbation at which accuracy falls under 90 % of the clean one.

    Parameters
    ----------
    amplitudes
        Shape (n,); signed amplitudes count by their magnitude.
    accuracy
        Shape (n,).
    clean
        Accuracy without perturbation.
    mild_end
        Which magnitudes disturb least: "low" for shifts and noise, "high" for a dose in counts.

    Returns
    -------
    float or None
        None if it never falls under within the amplitudes tried.
    """
    broken = np.abs(amplitudes)[accuracy < BREAKDOWN_FRACTION * clean]
    if not broken.size:
        return None
    return float(broken.min() if mild_end == "low" else broken.max())


def area_under_curve(amplitudes: NDArray[np.float64], accuracy: NDArray[np.float64]) -> float:
    """Return the mean accuracy over the range of amplitudes (trapezoidal area divided by the range)."""
    order = np.argsort(amplitudes)
    return float(np.trapezoid(accuracy[order], amplitudes[order]) / np.ptp(amplitudes))
