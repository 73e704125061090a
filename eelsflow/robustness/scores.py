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
    """A mean with its 95 % interval; None for both ends where nothing can be resampled."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float | None
    high: float | None


def bootstrap_score(
    correct: Sequence[NDArray[np.bool_]],
    labels: Sequence[NDArray[np.str_]],
    groups: Sequence[NDArray[np.str_] | None],
    *,
    balanced: bool = False,
) -> Score | None:
    """Return the accuracy over paired seeds with an interval by bootstrap over seeds and groups.

    Parameters
    ----------
    correct
        For each seed, shape (n_test,): whether each test spectrum was right.
    labels
        For each seed, shape (n_test,): its class.
    groups
        For each seed, shape (n_test,): its group, or None to resample spectra.
    balanced
        Whether every class counts the same: the mean of the recalls.

    Returns
    -------
    Score or None
        None where there is nothing to compute from; without an interval where one seed has one group (or spectrum) of
        each class, because every resample is then the same and its width of zero would claim certainty.

    Notes
    -----
    Two-stage resampling: seeds with replacement, then groups (or spectra) within each drawn seed, class by class as
    the splits are drawn (a group counts to the class that is commonest in it). Spectra of one acquisition are not
    independent, so resampling spectra where groups are known would give too narrow an interval.
    """
    if not correct:
        return None
    n_seeds = len(correct)
    rng = np.random.default_rng(20190513)
    chosen = rng.integers(0, n_seeds, (n_seeds, N_RESAMPLES))
    resampled = np.empty(chosen.shape)
    means = []
    varies = n_seeds > 1
    for seed, (right, label, group) in enumerate(zip(correct, labels, groups, strict=True)):
        classes, code = np.unique(label, return_inverse=True)
        means.append(_accuracy(*_count(right, code, classes.size), balanced=balanced))
        unit = None if group is None else np.unique(group, return_inverse=True)[1]
        varies |= _units_of_a_class(code, classes.size, unit) > 1
        places = chosen == seed  # a seed that is drawn twice is resampled twice, independently
        draws = int(places.sum())
        drawn = (
            _resample_spectra(right, code, classes.size, draws, rng)
            if unit is None
            else _resample_groups(right, code, classes.size, unit, draws, rng)
        )
        resampled[places] = _accuracy(*drawn, balanced=balanced)
    mean = float(np.mean(means))
    if not varies:
        return Score(mean=mean, low=None, high=None)
    low, high = np.percentile(resampled.mean(axis=0), [2.5, 97.5])
    return Score(mean=mean, low=float(min(low, mean)), high=float(max(high, mean)))


def _units_of_a_class(code: NDArray[np.intp], n_classes: int, group: NDArray[np.intp] | None) -> int:
    """Return how many groups, or spectra, can be drawn from the class that has most of them."""
    if group is None:
        return int(np.bincount(code).max())
    return int(np.bincount(_majority(_sizes(code, n_classes, group))).max())


def _sizes(code: NDArray[np.intp], n_classes: int, group: NDArray[np.intp]) -> Counts:
    """Return the number of spectra of each class in each group, (groups, classes)."""
    n_groups = int(group.max()) + 1
    sizes = np.bincount(group * n_classes + code, minlength=n_groups * n_classes)
    return sizes.reshape(n_groups, n_classes).astype(np.float64)


def _majority(sizes: Counts) -> NDArray[np.intp]:
    """Return the class that each group counts to."""
    return np.asarray(sizes.argmax(axis=1))


Counts = NDArray[np.float64]
"""Numbers of spectra for each class, shape (..., classes)."""


def _count(right: NDArray[np.bool_], code: NDArray[np.intp], n_classes: int) -> tuple[Counts, Counts]:
    """Return how many spectra of each class were right, and how many there are."""
    hits = np.bincount(code, weights=right, minlength=n_classes)
    return hits.astype(np.float64), np.bincount(code, minlength=n_classes).astype(np.float64)


def _accuracy(hits: Counts, sizes: Counts, *, balanced: bool) -> NDArray[np.float64]:
    if not balanced:
        return np.asarray(hits.sum(axis=-1) / sizes.sum(axis=-1))
    recall = np.divide(hits, sizes, out=np.full(hits.shape, np.nan), where=sizes > 0)
    return np.asarray(np.nanmean(recall, axis=-1))


def _resample_spectra(
    right: NDArray[np.bool_], code: NDArray[np.intp], n_classes: int, n_draws: int, rng: np.random.Generator
) -> tuple[Counts, Counts]:
    """Draw spectra with replacement within each class: their number of hits is binomial."""
    hits, sizes = _count(right, code, n_classes)
    drawn = rng.binomial(sizes.astype(np.int64), hits / sizes, (n_draws, n_classes))
    return drawn.astype(np.float64), np.broadcast_to(sizes, drawn.shape)


def _resample_groups(
    right: NDArray[np.bool_],
    code: NDArray[np.intp],
    n_classes: int,
    group: NDArray[np.intp],
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[Counts, Counts]:
    """Draw whole groups with replacement within each majority class."""
    n_groups = int(group.max()) + 1
    sizes = _sizes(code, n_classes, group)
    hits = np.bincount(group * n_classes + code, weights=right, minlength=sizes.size).reshape(sizes.shape)
    times = np.zeros((n_draws, n_groups))
    majority = _majority(sizes)
    for stratum in np.unique(majority):
        members = np.flatnonzero(majority == stratum)
        times[:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), n_draws)
    return times @ hits, times @ sizes


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
