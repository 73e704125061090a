"""Arithmetic of preprocessing, compiled: what numpy would take a dozen passes over a block for, a spectrum at a time.

A spectrum stays in the cache next to the processor, and nothing larger than a spectrum is allocated. One thread and
no interpreter lock, so that blocks run side by side in threads. The methods, their sources and their constants are
described where they are used: `spikes`, `background`, `chain`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Single = NDArray[np.float32]
Double = NDArray[np.float64]

_TINY = np.float32(np.finfo(np.float32).tiny * 1e6)  # keeps noiseless variances off zero
_ZERO, _ONE, _FOUR = np.float32(0), np.float32(1), np.float32(4)  # plain floats would make everything double
_PULLED = 4  # rounds in which values far off the fit are pulled back
_WANDER = np.float32(2.5)  # a local median beyond this needs half of its channels beyond it
_REACH = 32  # channels about a suspicious one that are looked at first
_COUNTED = 64  # channels counted at once


def compiled(function: Function) -> Function:
    """Compile a function when it is first called, and keep the result on disk.

    Sums may be taken in another order, which is what makes them quick; a value that is not finite stays so.
    """
    decorate = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})
    return cast("Function", decorate(function))


# --- spikes ---------------------------------------------------------------------------------------------------------


@compiled
def mark_spikes(
    counts: NDArray[Any],
    bridges: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Single],
    shapes: Single,
    solver: Single,
    misfit: Single,
    gain: float,
    readout_variance: float,
    cut: float,
    floor: float,
    widths: tuple[int, int],
    mask: NDArray[np.bool_],
) -> int:
    """Mark the channels of narrow events in every spectrum (see `spikes.find_spikes`).

    Parameters
    ----------
    counts
        Shape (n, channels), of any type.
    bridges
        Dead channels, the channels that each is seen as a line between, and the share of the upper one.
    shapes, solver
        Reference spectra, and what turns a spectrum into their coefficients; shape (k, channels) each, k a multiple
        of 4 (see `in_fours`).
    misfit
        Shape (channels,).
    gain, readout_variance
        Of the noise.
    cut, floor
        Least height of an event and how far down its flanks reach, standard deviations.
    widths
        Channels of the local median (odd); most channels over half the height.
    mask
        Shape (n, channels), set to True where an event is; all else is left as it is.

    Returns
    -------
    int
        The first spectrum that is not finite, where it ends; -1 if all are.
    """
    n, channels = counts.shape
    local, widest = widths
    gain_, readout, cut_ = np.float32(gain), np.float32(readout_variance), np.float32(cut)
    near = np.float32(0.75) * cut_
    fit, z = np.empty(channels, np.float32), np.empty(channels, np.float32)
    coefficients, moved = np.empty(shapes.shape[0], np.float32), np.empty(shapes.shape[0], np.float32)
    medians, deviations = np.empty(channels, np.float32), np.empty(channels, np.float32)
    signed, window = np.empty(channels, np.float32), np.empty(local, np.float32)
    values = np.empty(channels, np.float32)
    for row in range(n):
        for c in range(channels):
            values[c] = np.float32(counts[row, c])
        for i in range(bridges[0].size):
            share = bridges[3][i]
            low, high = np.float32(counts[row, bridges[1][i]]), np.float32(counts[row, bridges[2][i]])
            values[bridges[0][i]] = (np.float32(1) - share) * low + share * high
        _mixture(values, shapes, solver, coefficients, fit)
        if not np.isfinite(coefficients[0]):  # a sum over all channels
            return row
        suspicious = _ZERO  # counted in the type of what is compared: no value has to be widened
        for c in range(channels):  # most spectra hold no spike and are done with here
            variance = max(max(fit[c], _ZERO) * gain_ + readout, _TINY)
            limit = near * misfit[c]
            difference = values[c] - fit[c]
            suspicious += _ONE if difference * difference > limit * limit * variance else _ZERO
        if suspicious == 0:
            continue
        _refit(values, shapes, solver, gain_, readout, coefficients, moved, fit)
        suspicious = _ZERO
        for c in range(channels):
            sigma = np.sqrt(max(max(fit[c], _ZERO) * gain_ + readout, _TINY))
            z[c] = (values[c] - fit[c]) / (sigma * misfit[c])
            suspicious += _ONE if abs(z[c]) > near else _ZERO
        if suspicious == 0:
            continue
        begin, stop = _candidates(z, cut_, local, window)
        while begin < stop:
            _local_deviations(z, begin, stop, local, medians, deviations, window)
            if _mark_events(deviations, begin, stop, cut_, np.float32(floor), widest, signed, mask[row]):
                break
            begin, stop = 0, channels  # an event reaches further than was looked
    return -1


@compiled
def _mixture(values: Single, shapes: Single, solver: Single, coefficients: Single, fit: Single) -> None:
    """Fit a spectrum by the shapes, four at a time: the spectrum and the fit are read a quarter as often."""
    for k in range(0, shapes.shape[0], 4):
        first = second = third = fourth = _ZERO
        for c in range(values.size):
            value = values[c]
            first += solver[k, c] * value
            second += solver[k + 1, c] * value
            third += solver[k + 2, c] * value
            fourth += solver[k + 3, c] * value
        coefficients[k], coefficients[k + 1], coefficients[k + 2], coefficients[k + 3] = first, second, third, fourth
    _combine(coefficients, shapes, fit)


@compiled
def _combine(coefficients: Single, shapes: Single, fit: Single) -> None:
    """Set `fit` to the shapes times their coefficients."""
    for k in range(0, shapes.shape[0], 4):
        first, second, third, fourth = coefficients[k], coefficients[k + 1], coefficients[k + 2], coefficients[k + 3]
        for c in range(fit.size):
            two = first * shapes[k, c] + second * shapes[k + 1, c]
            total = two + (third * shapes[k + 2, c] + fourth * shapes[k + 3, c])
            fit[c] = total if k == 0 else fit[c] + total


@compiled
def _refit(
    values: Single,
    shapes: Single,
    solver: Single,
    gain: np.float32,
    readout: np.float32,
    coefficients: Single,
    moved: Single,
    fit: Single,
) -> None:
    """Fit a spectrum again with values more than 4 standard deviations off the fit put there, four times.

    Few values are, so what they change is added to the coefficients of the spectrum as it is; `moved` is as long.
    """
    for _ in range(_PULLED):
        moved[:] = coefficients
        for begin in range(0, values.size, _COUNTED):
            stop, off = min(begin + _COUNTED, values.size), _ZERO
            some, fitted = values[begin:stop], fit[begin:stop]  # counted from 0, or it would not be vectorised
            for c in range(some.size):
                difference = some[c] - fitted[c]
                variance = max(max(fitted[c], _ZERO) * gain + readout, _TINY)
                off += _ONE if difference * difference > _FOUR * _FOUR * variance else _ZERO
            if off == 0:
                continue
            for c in range(begin, stop):
                difference = values[c] - fit[c]
                variance = max(max(fit[c], _ZERO) * gain + readout, _TINY)
                if difference * difference > _FOUR * _FOUR * variance:
                    change = (_FOUR * np.sqrt(variance) if difference > 0 else -_FOUR * np.sqrt(variance)) - difference
                    for k in range(shapes.shape[0]):
                        moved[k] += solver[k, c] * change
        _combine(moved, shapes, fit)


def in_fours(shapes: Single) -> Single:
    """Return shapes, (k, channels), with as many zeros below as make k a multiple of four."""
    return np.ascontiguousarray(np.pad(shapes, ((0, -len(shapes) % 4), (0, 0))))


@compiled
def _candidates(z: Single, cut: np.float32, local: int, window: Single) -> tuple[int, int]:
    """Return the channels between which events may lie, with a margin; an empty range where there are none.

    An event exceeds `cut` about the local median. Where that is small, z itself is large there; it is large only
    where half of the channels about are.
    """
    channels, half = z.size, local // 2
    least = cut - _WANDER
    first, last = channels, -1
    length = max(_COUNTED, local)  # a window lies in two such parts at most
    before = half * (abs(z[0]) >= _WANDER)  # the end values repeat
    for begin in range(0, channels, length):
        stop = min(begin + length, channels)
        wandering = large = _ZERO
        some = z[begin:stop]  # counted from 0, or it would not be vectorised
        for c in range(some.size):
            wandering += _ONE if abs(some[c]) >= _WANDER else _ZERO
            large += _ONE if abs(some[c]) >= least else _ZERO
        wandering += half * (stop == channels) * (abs(z[channels - 1]) >= _WANDER)
        if 2 * (before + wandering) > local and _wanders(z, local):
            return 0, channels
        before = wandering
        if large == 0:
            continue
        for c in range(begin, stop):
            if abs(z[c]) >= least and _may_exceed(z, c, cut, local):
                _fill_window(z, c, window)
                if abs(z[c] - window[half]) >= cut:
                    first, last = min(first, c), c
    if last < 0:
        return 0, 0
    return max(first - _REACH, 0), min(last + _REACH + 1, channels)


@compiled
def _may_exceed(z: Single, c: int, cut: np.float32, local: int) -> bool:
    """Tell whether z may exceed `cut` about the local median: more than half of those about a channel have to help."""
    half = local // 2
    if c < half or c >= z.size - half:
        return True
    about, needed, helping = z[c - half : c + half + 1], cut - abs(z[c]), _ZERO
    for i in range(about.size):
        helping += _ONE if abs(about[i]) >= needed else _ZERO
    return bool(2 * helping > local)


@compiled
def _wanders(z: Single, local: int) -> bool:
    """Tell whether a local median may be large: more than half of the channels about one are."""
    channels, half = z.size, local // 2
    wandering = 0
    for c in range(-half, half + 1):
        wandering += abs(z[min(max(c, 0), channels - 1)]) >= _WANDER
    for c in range(channels):
        if 2 * wandering > local:
            return True
        wandering -= abs(z[max(c - half, 0)]) >= _WANDER
        wandering += abs(z[min(c + half + 1, channels - 1)]) >= _WANDER
    return False


@compiled
def _local_deviations(
    z: Single, begin: int, stop: int, local: int, medians: Single, deviations: Single, window: Single
) -> None:
    """Set `deviations` between two channels: z about its local median, over its local spread where that exceeds 1."""
    channels, half = z.size, local // 2
    low, high = max(begin - half, 0), min(stop + half, channels)
    for c in range(low, high):
        medians[c] = _next_median(z, c, window, c == low)
    for c in range(low, high):
        medians[c] = z[c] - medians[c]
    spread = np.abs(medians[low:high])  # the window of a channel leaves it at the ends of the axis only
    for c in range(begin, stop):
        middle = _next_median(spread, c - low, window, c == begin)
        deviations[c] = medians[c] / max(np.float32(1.4826) * middle, np.float32(1))


@compiled
def _fill_window(values: NDArray[Any], centre: int, window: NDArray[Any]) -> None:
    """Fill the window with the values about a channel in ascending order; the end values repeat."""
    half = window.size // 2
    for i in range(window.size):
        value = values[min(max(centre - half + i, 0), values.size - 1)]
        j = i
        while j > 0 and window[j - 1] > value:
            window[j] = window[j - 1]
            j -= 1
        window[j] = value


@compiled
def _next_median(values: NDArray[Any], centre: int, window: NDArray[Any], first: bool) -> Any:
    """Return the median about a channel; the window holds what was about the channel before, unless it is the first."""
    half, last = window.size // 2, values.size - 1
    if first:
        _fill_window(values, centre, window)
        return window[half]
    old, new = values[min(max(centre - half - 1, 0), last)], values[min(centre + half, last)]
    leaves = enters = 0
    for i in range(window.size):  # counted, not searched: there is nothing to mispredict
        leaves += window[i] < old
        enters += window[i] < new
    if enters > leaves:
        enters -= 1
        for i in range(leaves, enters):
            window[i] = window[i + 1]
    else:
        for i in range(leaves, enters, -1):
            window[i] = window[i - 1]
    window[enters] = new
    return window[half]


@compiled
def _mark_events(
    deviations: Single,
    begin: int,
    stop: int,
    cut: np.float32,
    floor: np.float32,
    widest: int,
    signed: Single,
    mask: NDArray[np.bool_],
) -> bool:
    """Mark narrow events between two channels; return whether all of them lie inside, not across a boundary."""
    channels = mask.size
    for sign in (np.float32(1), np.float32(-1)):
        for c in range(begin, stop):
            signed[c] = sign * deviations[c]
        c = begin
        while c < stop:
            if signed[c] < floor:
                c += 1
                continue
            low, peak = c, c
            while c < stop and signed[c] >= floor:
                if signed[c] > signed[peak]:
                    peak = c
                c += 1
            height = signed[peak]
            if height < cut:
                continue
            if (low == begin and begin > 0) or (c == stop and stop < channels):
                return False
            # contiguous channels about the peak over half of it: its full width at half maximum
            left, right = peak, peak
            while left > low and signed[left - 1] >= np.float32(0.5) * height:
                left -= 1
            while right < c - 1 and signed[right + 1] >= np.float32(0.5) * height:
                right += 1
            if right - left + 1 <= widest:
                mask[max(low - 1, 0) : min(c + 1, channels)] = True
    return True


@compiled
def bridge_hits(
    counts: NDArray[Any], dead: NDArray[np.bool_], hits: NDArray[np.int32], first_channel: int, out: Single
) -> int:
    """Replace the channels of spectra that were hit by spikes, and dead ones, by lines between their neighbours.

    Parameters
    ----------
    counts
        Shape (n, channels), where neighbours are looked for.
    dead
        Shape (channels,).
    hits
        Spectrum and channel of each value hit, spectra in ascending order, shape (m, 2).
    first_channel
        Of the counts, that `out` begins with.
    out
        Shape (n, channels of `out`), where lines are put.

    Returns
    -------
    int
        Number of spectra that have no channel left to hold a line.
    """
    channels = counts.shape[1]
    begin = n_lost = 0
    masked = dead.copy()
    while begin < hits.shape[0]:
        row, stop = hits[begin, 0], begin
        while stop < hits.shape[0] and hits[stop, 0] == row:
            masked[hits[stop, 1]] = True
            stop += 1
        c = 0
        while c < channels:
            if not masked[c]:
                c += 1
                continue
            left = c - 1
            while c < channels and masked[c]:
                c += 1
            right = c
            if left < 0 and right == channels:
                n_lost += 1
                break
            low = float(counts[row, left if left >= 0 else right])
            high = float(counts[row, right if right < channels else left])
            for channel in range(max(left + 1, first_channel), min(right, first_channel + out.shape[1])):
                out[row, channel - first_channel] = low + (channel - left) / (right - left) * (high - low)
        for i in range(begin, stop):
            masked[hits[i, 1]] = dead[hits[i, 1]]
        begin = stop
    return n_lost


@compiled
def running_medians(values: NDArray[Any], window: NDArray[Any], out: NDArray[Any]) -> None:
    """Set `out` to the medians about every channel of spectra, shape (n, channels); the end values repeat.

    `window` has the type of the values and as many (an odd number of) places as the medians are taken over.
    """
    for row in range(values.shape[0]):
        for c in range(values.shape[1]):
            out[row, c] = _next_median(values[row], c, window, c == 0)


@compiled
def robust_fits(
    counts: Single, shapes: Single, solver: Single, gain: float, readout_variance: float, fit: Single
) -> None:
    """Fit spectra, shape (n, channels), by reference spectra as in `mark_spikes`, values far off pulled back."""
    gain_, readout = np.float32(gain), np.float32(readout_variance)
    coefficients, moved = np.empty(shapes.shape[0], np.float32), np.empty(shapes.shape[0], np.float32)
    for row in range(counts.shape[0]):
        _mixture(counts[row], shapes, solver, coefficients, fit[row])
        _refit(counts[row], shapes, solver, gain_, readout, coefficients, moved, fit[row])


@compiled
def lagged_products(values: Double, sums: Double) -> None:
    """Set ``sums[k]`` to the sum of the products of values, shape (n, channels), that lie k channels apart."""
    n, channels = values.shape
    sums[:] = 0.0
    for row in range(n):
        for k in range(sums.size):
            total = 0.0
            for c in range(channels - k):
                total += values[row, c] * values[row, c + k]
            sums[k] += total


# --- background -----------------------------------------------------------------------------------------------------


@compiled
def fit_power_laws(
    counts: Double,
    log_energy: Double,
    scale: Double,
    gain: float,
    readout_variance: float,
    floor_power: int,
    prior: tuple[float, float],
    start: float,
    held: float,
    bounds: tuple[float, float],
    steps: tuple[int, float],
    out: Double,
) -> None:
    """Fit ``A exp(-r l)`` to every spectrum by Gauss-Newton steps in r with A eliminated (variable projection).

    With ``f = exp(-r l)``, ``A = sum(w y f) / sum(w f^2)`` and the residual ``e = y - A f``, the step is
    ``dr = (-A sum(w e f l) + p (r0 - r)) / (A^2 (sum(w f^2 l^2) - sum(w f^2 l)^2 / sum(w f^2)) + p)``
    with the prior's precision ``p``. The weights ``w = 1 / (scale variance)`` follow the fit of the step before.

    Parameters
    ----------
    counts
        Shape (n, channels).
    log_energy
        l, shape (channels,).
    scale
        Factor of the variance of each spectrum, shape (n,).
    gain, readout_variance
        Of the variance, which is at least .001 rms of the counts to the power of `floor_power`.
    prior
        (r0, p).
    start, held
        Exponent of the first step; exponent that the amplitude is also wanted for.
    bounds
        Of the exponent.
    steps
        Most steps, and the step in r that is small enough to stop.
    out
        Shape (n, 7): A, r, sum(w f^2), sum(w f^2 l), sum(w f^2 l^2), sum(w e^2), and A at the exponent `held`.
    """
    n, channels = counts.shape
    weight, shape = np.empty(channels), np.empty(channels)
    reach = np.abs(log_energy).max()
    most, small = steps
    for row in range(n):
        y = counts[row]
        total = square = 0.0
        for c in range(channels):
            total += y[c]
            square += y[c] * y[c]
        floor = (1e-3 * math.sqrt(square / channels) + 1e-30) ** floor_power
        r, amplitude = start, 0.0
        expected = max(total / channels, 0.0)
        for step in range(most):
            for c in range(channels):
                level = expected if step == 0 else amplitude * shape[c]
                weight[c] = 1.0 / (max(max(level, 0.0) * gain + readout_variance, floor) * scale[row])
            _power_law(r, log_energy, reach, shape)
            u = s = t = wy = wyl = 0.0
            for c in range(channels):
                weighted = weight[c] * shape[c]
                product = weighted * shape[c] * log_energy[c]
                u += weighted * shape[c]
                s += product
                t += product * log_energy[c]
                wy += weighted * y[c]
                wyl += weighted * y[c] * log_energy[c]
            amplitude = wy / u
            change = prior[1] * (prior[0] - r) - amplitude * (wyl - amplitude * s)
            change /= amplitude * amplitude * (t - s * s / u) + prior[1]
            moved = r if math.isnan(change) else min(max(r + change, bounds[0]), bounds[1])
            converged = abs(moved - r) < small
            r = moved
            if converged:
                break
        _power_law(r, log_energy, reach, shape)
        u = s = t = wy = 0.0
        for c in range(channels):
            weighted = weight[c] * shape[c]
            product = weighted * shape[c] * log_energy[c]
            u += weighted * shape[c]
            s += product
            t += product * log_energy[c]
            wy += weighted * y[c]
        amplitude = wy / u
        misfit = 0.0
        for c in range(channels):
            residual = y[c] - amplitude * shape[c]
            misfit += weight[c] * residual * residual
        _power_law(held, log_energy, reach, shape)
        u_held = wy_held = 0.0
        for c in range(channels):
            weighted = weight[c] * shape[c]
            u_held += weighted * shape[c]
            wy_held += weighted * y[c]
        for i, value in enumerate((amplitude, r, u, s, t, misfit, wy_held / u_held)):
            out[row, i] = value


@compiled
def _power_law(r: float, log_energy: Double, reach: float, shape: Double) -> None:
    """Set ``exp(-r l)``; `reach` is the largest magnitude of l."""
    if abs(r) * reach > 4.0:
        for c in range(log_energy.size):
            shape[c] = math.exp(-r * log_energy[c])
        return
    for c in range(log_energy.size):
        # exp(x / 64)^64 by a series, which the compiler can vectorise; what is left out is 1e-13
        y = -r * log_energy[c] * 0.015625
        series = y * (1 / 120 + y * (1 / 720 + y * (1 / 5040)))
        series = 1.0 + y * (1.0 + y * (0.5 + y * (1 / 6 + y * (1 / 24 + series))))
        for _ in range(6):
            series *= series
        shape[c] = series


# --- the prepared product -------------------------------------------------------------------------------------------


@compiled
def subtract_and_resample(
    counts: Single,
    background: Double,
    log_energy: Double,
    gain: float,
    readout_variance: float,
    n_smooth: int,
    first: NDArray[np.int64],
    weights: Double,
    correlation: Double,
    intensity: Single,
    variance: Single,
    quantum: float = 0.0,
) -> None:
    """Subtract the power law from every spectrum and resample what is left, with its variance.

    Parameters
    ----------
    counts
        Shape (n, channels).
    background
        Amplitude, exponent, and their variances and covariance (A A, A r, r r), shape (n, 5).
    log_energy
        Logarithm of energy over the background's pivot, shape (channels,).
    gain, readout_variance
        Of the noise; the variance of a channel is that of its counts averaged over `n_smooth` (odd) channels.
    first, weights
        A target channel t is ``sum_j weights[j, t] * net[first[t] + j]``; shapes (targets,) and (terms, targets).
    correlation
        Of the noise over channels at lags 0, 1, ..., shape (terms,).
    intensity, variance
        Results, shape (n, targets).
    quantum
        Counts of one electron where electrons are counted: one of them is added to the average, and to its channels as
        many as hold one on the spectrum's average, so that where few are expected and none came the variance is small
        and not zero. 0 adds nothing.
    """
    n, channels = counts.shape
    terms, targets = weights.shape
    net, error, noise, sigma = np.empty(channels), np.empty(channels), np.empty(channels), np.empty(channels)
    shape, half = np.empty(channels), n_smooth // 2
    reach = np.abs(log_energy).max()
    value, spread, deviation = np.empty(targets), np.empty(targets), np.empty(targets)
    for row in range(n):
        amplitude, exponent, aa, ar, rr = background[row]
        total = 0.0
        for c in range(-half, half + 1):
            total += counts[row, min(max(c, 0), channels - 1)]
        for c in range(channels):
            noise[c] = total
            total += float(counts[row, min(c + half + 1, channels - 1)]) - float(counts[row, max(c - half, 0)])
        _power_law(exponent, log_energy, reach, shape)
        width = float(n_smooth)
        if quantum > 0.0:
            total = 0.0
            for c in range(channels):
                total += counts[row, c]
            width += quantum * channels / max(total, 0.5 * quantum)
        for c in range(channels):
            noise[c] = max((noise[c] + quantum) / width, 0.0) * gain + readout_variance
            sigma[c] = math.sqrt(noise[c])
            net[c] = counts[row, c] - amplitude * shape[c]
            slope = -amplitude * log_energy[c]
            error[c] = shape[c] * math.sqrt(max(aa + slope * (2 * ar + slope * rr), 0.0))
        value[:] = 0.0
        spread[:] = 0.0
        deviation[:] = 0.0
        for j in range(terms):
            for t in range(targets):
                c = first[t] + j
                value[t] += weights[j, t] * net[c]
                deviation[t] += weights[j, t] * error[c]
                spread[t] += weights[j, t] * weights[j, t] * noise[c]
            for i in range(j):
                doubled = 2.0 * correlation[j - i]
                for t in range(targets):
                    c = first[t]
                    spread[t] += doubled * weights[i, t] * weights[j, t] * sigma[c + i] * sigma[c + j]
        for t in range(targets):
            # the error of the background is one error for all channels: deviations add, not variances
            intensity[row, t] = value[t]
            variance[row, t] = spread[t] + deviation[t] * deviation[t]


# --- sums -----------------------------------------------------------------------------------------------------------


@compiled
def add_spectra(counts: NDArray[Any], rows: NDArray[np.bool_], total: Double) -> None:
    """Add the chosen spectra of shape (n, channels) to `total`, shape (channels,)."""
    for row in range(counts.shape[0]):
        if rows[row]:
            for c in range(counts.shape[1]):
                total[c] += counts[row, c]


@compiled
def add_channels(counts: NDArray[Any], totals: Double) -> None:
    """Set `totals`, shape (n,), to the sums over the channels of counts of shape (n, channels)."""
    for row in range(counts.shape[0]):
        total = 0.0
        for c in range(counts.shape[1]):
            total += counts[row, c]
        totals[row] = total


@compiled
def highest_counts(counts: NDArray[Any], rows: NDArray[np.bool_]) -> tuple[float, int, float, int]:
    """Return the two highest values of the chosen spectra of shape (n, channels), and how many counts have each.

    Minus infinity, and none, for a value that there is not.
    """
    first, second = -math.inf, -math.inf
    n_first, n_second = 0, 0
    for row in range(counts.shape[0]):
        if not rows[row]:
            continue
        for c in range(counts.shape[1]):
            value = counts[row, c]
            if value < second:  # nearly every one
                continue
            if value == first:
                n_first += 1
            elif value > first:
                second, n_second = first, n_first
                first, n_first = float(value), 1
            elif value == second:
                n_second += 1
            else:
                second, n_second = float(value), 1
    return first, n_first, second, n_second


# --- principal components -------------------------------------------------------------------------------------------


@compiled
def subtract_pilot(counts: NDArray[Any], rows: NDArray[np.int64], pilot: Single, out: Single, total: Double) -> None:
    """Set `out`, shape (rows, channels), to some rows of the counts minus the pilot, and add their sum to `total`."""
    for i in range(rows.size):
        for c in range(pilot.size):
            out[i, c] = np.float32(counts[rows[i], c]) - pilot[c]
        for c in range(pilot.size):
            total[c] += out[i, c]


@compiled
def add_triangle(product: Single, total: Double) -> None:
    """Add the upper triangle of a square matrix to that of another."""
    for i in range(total.shape[0]):
        for j in range(i, total.shape[1]):
            total[i, j] += product[i, j]


@compiled
def scatter_about_mean(second: Double, n: float, rest: Double, scatter: Double) -> None:
    """Set `scatter` to the symmetric matrix whose upper triangle is that of `second` less ``n * rest * rest``."""
    for i in range(second.shape[0]):
        for j in range(i, second.shape[1]):
            scatter[i, j] = second[i, j] - n * rest[i] * rest[j]
    side = 64  # tiles, so that columns are read while their cache lines are there
    for top in range(0, second.shape[0], side):
        for left in range(0, top + side, side):
            for i in range(top, min(top + side, second.shape[0])):
                for j in range(left, min(left + side, i)):
                    scatter[i, j] = scatter[j, i]


# --- neighbours -----------------------------------------------------------------------------------------------------


@compiled
def gather_neighbors(
    values: NDArray[np.float32],
    guide: NDArray[np.float32],
    weight: NDArray[np.float32],
    nearness: NDArray[np.float32],
    steepness: float,
    inside: tuple[int, int, int, int],
    means: NDArray[np.float32],
    variance: NDArray[np.float32],
    mean_variance: NDArray[np.float32],
    n_effective: NDArray[np.float32],
) -> None:
    """Average every pixel with those about it that look alike (see `spatial`).

    Parameters
    ----------
    values
        Shape (y, x, channels).
    guide
        Shape (y, x, directions): what must be alike.
    weight
        Of a pixel in every mean, shape (y, x); 0 takes no part and gets nothing.
    nearness
        Weight by distance, shape (2 reach + 1, 2 reach + 1).
    steepness
        Weights fall as ``exp(-steepness * |difference of guides|^2)``.
    inside
        First row, last row + 1, first column, last column + 1 of the pixels that are averaged; the others lend only.
    means
        Shape (rows, columns, channels) of the inside, overwritten.
    variance, mean_variance
        Of `values` and of `means`, same shapes; of shape (0, 0, 0) where no variance is carried along.
    n_effective
        Shape (rows, columns), overwritten: of how many pixels of equal weight each mean is one.
    """
    n_y, n_x, channels = values.shape
    directions = guide.shape[2]
    reach_y, reach_x = nearness.shape[0] // 2, nearness.shape[1] // 2
    with_variance = variance.shape[2] > 0
    slope = np.float32(steepness)
    for y in range(inside[0], inside[1]):
        for x in range(inside[2], inside[3]):
            row, column = y - inside[0], x - inside[2]
            total, squares = _ZERO, _ZERO
            for c in range(channels):
                means[row, column, c] = _ZERO
            if with_variance:
                for c in range(channels):
                    mean_variance[row, column, c] = _ZERO
            n_effective[row, column] = _ZERO
            if weight[y, x] == _ZERO:
                continue
            for j in range(max(y - reach_y, 0), min(y + reach_y + 1, n_y)):
                for i in range(max(x - reach_x, 0), min(x + reach_x + 1, n_x)):
                    share = weight[j, i] * nearness[j - y + reach_y, i - x + reach_x]
                    if share == _ZERO:
                        continue
                    squared = _ZERO
                    for d in range(directions):
                        difference = guide[j, i, d] - guide[y, x, d]
                        squared += difference * difference
                    share *= np.float32(math.exp(-slope * squared))
                    total += share
                    squares += share * share
                    for c in range(channels):
                        means[row, column, c] += share * values[j, i, c]
                    if with_variance:
                        square = share * share
                        for c in range(channels):
                            mean_variance[row, column, c] += square * variance[j, i, c]
            for c in range(channels):
                means[row, column, c] /= total
            if with_variance:
                for c in range(channels):
                    mean_variance[row, column, c] /= total * total
            n_effective[row, column] = total * total / squares
