"""Detectors that count electrons: whole multiples of one electron, Poisson-distributed, without any read-out noise.

At one electron a channel the distribution is nothing like a Gaussian: of a mean of .5, a count of 4 is five standard
deviations up and yet found in every spectrum of a thousand channels. What asks how far a count strays therefore asks
how probable it is, by `counted_deviation`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.preprocess.kernels import (
    Single,
    _candidates,
    _combine,
    _local_deviations,
    _mark_events,
    _mixture,
    compiled,
)

LEAST_EXPECTED = 0.01
"""Electrons that a channel is expected to count at least where a count of it is judged: ours."""

_LAG = 5  # channels; beyond what neighbouring channels share of an electron
_POISSON = (0.75, 4 / 3)  # variance over mean, in electrons, of counted electrons; ours
_TERMS = 512  # that a ratio of variance to mean is the mean of
_BOUND = np.float32(25)  # of one of them: a Gaussian's reach it once in two million
_LEAST_SHARED = 0.02  # correlation of channels that is not taken for none
_LATTICE_SPECTRA = 64  # in which the unit is looked for
_WHOLE = 0.01  # of the unit: how far off a multiple may lie, for numbers that were rounded to single precision
_ROUNDED = 3.0  # counts of an electron from which its multiples can be told although they were rounded to whole counts
_HALF = np.float32(0.5)
_PULL = np.float32(4)  # deviations beyond which a value is pulled back, as in `kernels`
_ROUNDS = 4
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


def find_quantum(spectra: NDArray[Any]) -> float:
    """Return the counts that one electron makes where the detector counts electrons, and 0 where it does not.

    Parameters
    ----------
    spectra
        Raw counts, shape (n, channels), finite. Not modified.

    Notes
    -----
    A detector counts if (a) no count is negative, (b) every count is a whole multiple of the smallest distance of two
    different counts (zero among them), but for rounding to whole counts, and (c) the variance is that of so many
    electrons: channels 5 apart that add up to n electrons differ by n in the mean square. The ratio of the two,
    averaged over groups of 512 pairs or more, must have a median between 3/4 and 4/3 over the groups; lines are in few
    groups, and a spike hardly moves one. Integers of a camera pass (a) and (b) often, but not (c): each of its
    electrons makes many counts. Where counts are so many (a thousand and more) that the slope of the spectrum exceeds
    their noise, (c) fails too, and the general model is right: Poisson's tails are a Gaussian's there. The criterion
    and its constants are ours.

    Examples
    --------
    >>> electrons = np.random.default_rng(0).poisson(0.5, (20, 200))
    >>> find_quantum(electrons), find_quantum(7.5 * electrons), find_quantum(electrons + 0.1)
    (1.0, 7.5, 0.0)
    """
    if spectra.size == 0 or spectra.min() < 0:
        return 0.0
    few = spectra[:: max(len(spectra) // _LATTICE_SPECTRA, 1)].ravel()
    some = np.unique(np.append(few, spectra.dtype.type(0))).astype(np.float64)
    quantum = _spacing(some)
    if quantum <= 0 or not _are_multiples(some, quantum) or not _are_multiples(spectra, quantum):
        return 0.0
    low, high = _POISSON
    return quantum if low < _variance_to_mean(spectra, quantum, _LAG) < high else 0.0


def _spacing(different: NDArray[np.float64]) -> float:
    """Return the smallest distance of ascending counts, sharpened by its multiples; 0 without any."""
    # single precision leaves 6e-8 of a count between two equal multiples of a unit that is no power of two
    steps = np.diff(different)
    steps = steps[steps > 1e-6 * different[1:]]
    if steps.size == 0:
        return 0.0
    unit = float(steps.min())
    for furthest in (4, 16, 64, 256, 1024):  # the better the unit is known, the further its multiples can be told
        near = different[different < (furthest + 0.5) * unit]
        multiple = np.rint(near / unit)
        if multiple.any():
            unit = float(near @ multiple / (multiple @ multiple))
    return unit


def _are_multiples(spectra: NDArray[Any], quantum: float) -> bool:
    if quantum == 1.0:
        return bool(spectra.dtype.kind in "iu" or (spectra == np.rint(spectra)).all())
    electrons = spectra / quantum
    off = np.abs(electrons - np.rint(electrons))
    rounded = 0.5 / quantum if quantum > _ROUNDED and (spectra == np.rint(spectra)).all() else 0.0
    return bool((off <= _WHOLE + rounded + 1e-6 * electrons).all())


def shared_electrons(spectra: NDArray[Any], quantum: float, max_lag: int) -> NDArray[np.float64]:
    """Return the correlation of channels of counted electrons against their distance, shape (max_lag + 1,).

    Parameters
    ----------
    spectra
        Raw counts, shape (n, channels).
    quantum
        Counts of one electron.
    max_lag
        Largest distance, channels.

    Notes
    -----
    Electrons that two channels both count make their difference smaller: the variance over the mean falls from 1 to
    ``1 - correlation``. Correlations under .02, and beyond 4 channels, are taken for none (ours): there the slope of
    the spectrum shows, or nothing does.
    """
    correlation = np.zeros(max_lag + 1)
    correlation[0] = 1.0
    for lag in range(1, min(_LAG - 1, max_lag) + 1):
        shared = 1.0 - _variance_to_mean(spectra, quantum, lag)
        correlation[lag] = shared if shared > _LEAST_SHARED else 0.0
    return correlation


def _variance_to_mean(spectra: NDArray[Any], quantum: float, lag: int) -> float:
    """Return variance over mean of the differences of channels `lag` apart, electrons; NaN for too few of them.

    Two Poisson counts of the same mean that add up to n have the mean square difference n, whatever n is. So its ratio
    to n has the mean 1, one by one, and a spike counts no more than the bound that the ratio is given.
    """
    columns = (spectra.T * (1.0 / quantum)).astype(np.float32)
    both, difference = columns[lag:] + columns[:-lag], columns[lag:] - columns[:-lag]
    size = max(columns.shape[1], _TERMS)  # whole channels where there are many spectra, so that few groups hold a line
    n_groups = max(both.size // size, 1)
    size = min(size, both.size)
    if size < _TERMS // 2:
        return math.nan
    both, difference = (part.ravel()[: n_groups * size].reshape(n_groups, size) for part in (both, difference))
    some = both > _HALF
    ratio = np.minimum(np.square(difference) / np.maximum(both, _ONE), _BOUND) * some
    number = some.sum(axis=1)
    full = number >= max(0.5 * float(np.median(number)), 1.0)
    return float(np.median(ratio.sum(axis=1, dtype=np.float64)[full] / number[full])) if full.any() else math.nan


@compiled
def counted_deviation(count: float, expected: float) -> float:
    """Return by how many standard deviations a Gaussian would be off that is as improbable as a Poisson count.

    The signed root of the deviance with a continuity correction,
    ``sqrt(2 (x ln(x / m) - x + m))`` with x half a count nearer to the mean m (Pierce & Schafer, J. Am. Stat. Assoc.
    81, 977, 1986). Beyond two deviations it is short of the exact one by up to .2 for means from .5 up and by up to .35
    for means from .05 up, as far as eight deviations. Zero within half a count.

    Parameters
    ----------
    count, expected
        In electrons; `expected` positive. What lies below no electron counts as none.

    Examples
    --------
    >>> round(counted_deviation(4.0, 0.5), 2), counted_deviation(1.0, 0.8)
    (2.76, 0.0)
    """
    if count > expected + 0.5:
        x = count - 0.5
        return math.sqrt(max(2.0 * (x * math.log(x / expected) - x + expected), 0.0))
    if count < expected - 0.5:
        x = max(count + 0.5, 1e-30)  # denoised counts may be negative
        return -math.sqrt(max(2.0 * (x * math.log(x / expected) - x + expected), 0.0))
    return 0.0


@compiled
def mark_counted_spikes(
    counts: NDArray[Any],
    quantum: float,
    bridges: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Single],
    shapes: Single,
    solver: Single,
    typical: Single,
    misfit: Single,
    cut: float,
    floor: float,
    widths: tuple[int, int],
    mask: NDArray[np.bool_],
) -> int:
    """Mark the channels of narrow events in every spectrum of counted electrons, as `kernels.mark_spikes` does.

    Parameters
    ----------
    counts
        Shape (n, channels), of any type.
    quantum
        Counts of one electron.
    typical
        Share of a spectrum's electrons that each channel holds at least, shape (channels,): no fit of a few electrons
        is believed below it.
    bridges, shapes, solver, misfit, cut, floor, widths, mask
        As there.

    Returns
    -------
    int
        The first spectrum that is not finite, where it ends; -1 if all are.
    """
    n, channels = counts.shape
    local, widest = widths
    cut_ = np.float32(cut)
    near = np.float32(0.75) * cut_
    values, fit, z = np.empty(channels, np.float32), np.empty(channels, np.float32), np.empty(channels, np.float32)
    coefficients, moved = np.empty(shapes.shape[0], np.float32), np.empty(shapes.shape[0], np.float32)
    medians, deviations = np.empty(channels, np.float32), np.empty(channels, np.float32)
    signed, window = np.empty(channels, np.float32), np.empty(local, np.float32)
    for row in range(n):
        _electrons(counts[row], quantum, values)
        for i in range(bridges[0].size):
            share = bridges[3][i]
            low, high = values[bridges[1][i]], values[bridges[2][i]]
            values[bridges[0][i]] = (_ONE - share) * low + share * high
        _mixture(values, shapes, solver, coefficients, fit)
        if not np.isfinite(coefficients[0]):  # a sum over all channels
            return row
        _hold_up(values, typical, fit)
        if not _any_beyond(values, fit, misfit, near):  # most spectra hold no spike and are done with here
            continue
        _refit_counted(values, shapes, solver, typical, coefficients, moved, fit)
        if not _any_beyond(values, fit, misfit, near):
            continue
        for c in range(channels):
            z[c] = np.float32(counted_deviation(values[c], fit[c])) / misfit[c]
        begin, stop = _candidates(z, cut_, local, window)
        while begin < stop:
            _local_deviations(z, begin, stop, local, medians, deviations, window)
            if _mark_events(deviations, begin, stop, cut_, np.float32(floor), widest, signed, mask[row]):
                break
            begin, stop = 0, channels  # an event reaches further than was looked
    return -1


@compiled
def counted_deviations(
    counts: Single, quantum: float, shapes: Single, solver: Single, typical: Single, z: Single
) -> None:
    """Set `z`, shape (n, channels), to how far counts stray from their robust fit by the shapes."""
    channels = counts.shape[1]
    values, fit = np.empty(channels, np.float32), np.empty(channels, np.float32)
    coefficients, moved = np.empty(shapes.shape[0], np.float32), np.empty(shapes.shape[0], np.float32)
    for row in range(counts.shape[0]):
        _electrons(counts[row], quantum, values)
        _mixture(values, shapes, solver, coefficients, fit)
        _hold_up(values, typical, fit)
        _refit_counted(values, shapes, solver, typical, coefficients, moved, fit)
        for c in range(channels):
            z[row, c] = np.float32(counted_deviation(values[c], fit[c]))


@compiled
def deviations_from(electrons: Single, expected: Single, z: Single) -> None:
    """Set `z` to how far electrons stray from what is expected; all of shape (n, channels)."""
    for row in range(electrons.shape[0]):
        for c in range(electrons.shape[1]):
            z[row, c] = np.float32(counted_deviation(electrons[row, c], expected[row, c]))


@compiled
def _electrons(counts: NDArray[Any], quantum: float, values: Single) -> None:
    per_count = np.float32(1.0 / quantum)
    for c in range(values.size):
        values[c] = np.float32(counts[c]) * per_count


@compiled
def _hold_up(values: Single, typical: Single, fit: Single) -> None:
    """Hold a fit above the least that a spectrum of so many electrons should show."""
    total = _ZERO
    for c in range(values.size):
        total += values[c]
    for c in range(values.size):
        fit[c] = max(max(fit[c], total * typical[c]), np.float32(LEAST_EXPECTED))


@compiled
def _any_beyond(values: Single, fit: Single, misfit: Single, limit: np.float32) -> bool:
    """Tell whether any count strays by more than `limit` deviations times the misfit."""
    suspicious = _ZERO
    for c in range(values.size):
        # upwards a deviation is less than the difference over the Gaussian's sigma, downwards up to sqrt 2 times it
        bound = limit * misfit[c]
        difference = values[c] - fit[c]
        square = difference * difference * (_ONE if difference > _ZERO else _TWO)
        suspicious += _ONE if square > bound * bound * fit[c] else _ZERO
    if suspicious == _ZERO:
        return False
    for c in range(values.size):
        bound = limit * misfit[c]
        difference = values[c] - fit[c]
        square = difference * difference * (_ONE if difference > _ZERO else _TWO)
        if square > bound * bound * fit[c] and abs(counted_deviation(values[c], fit[c])) > bound:
            return True
    return False


@compiled
def _refit_counted(
    values: Single, shapes: Single, solver: Single, typical: Single, coefficients: Single, moved: Single, fit: Single
) -> None:
    """Fit a spectrum again with counts more than 4 deviations off the fit put nearer, four times.

    They are put 4 standard deviations off it, as in `kernels`.
    """
    for _ in range(_ROUNDS):
        moved[:] = coefficients
        for c in range(values.size):
            difference = values[c] - fit[c]
            if _TWO * difference * difference <= _PULL * _PULL * fit[c]:
                continue
            if abs(counted_deviation(values[c], fit[c])) > _PULL:
                reach = _PULL * np.sqrt(fit[c])
                change = (reach if difference > _ZERO else -reach) - difference
                for k in range(shapes.shape[0]):
                    moved[k] += solver[k, c] * change
        _combine(moved, shapes, fit)
        _hold_up(values, typical, fit)
