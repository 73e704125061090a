"""Spikes (cosmic rays, hot readings) and dead channels: found against a model of the spectrum and of its noise.

A spike is narrow, belongs to one pixel, and stands above (or below) what that pixel should show there. What it
should show is read from the *other* spectra of the image, not from the energies beside it: a white line is as sharp
as a spike, but every pixel of its phase has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter1d

from eelsflow.errors import InputError
from eelsflow.preprocess.counting import LEAST_EXPECTED, counted_deviations, deviations_from, mark_counted_spikes
from eelsflow.preprocess.kernels import in_fours, mark_spikes, robust_fits
from eelsflow.preprocess.noise import (
    NoiseModel,
    leading_directions,
    plausible_range,
    poisson_scale,
    quantile_of_spectra,
    running_median,
    sample_indices,
)

MAX_EVENT_WIDTH = 7
"""Channels a spike may span at half its height; measured spikes are 1 to 7 channels wide."""

_DETECTION_MARGIN = 2.0  # sigma; a spike of `threshold` sigma is seen at threshold +- 1 sigma: noise adds to it
_FLOOR_SIGMA = 2.5  # an event reaches as far as its flanks stay above this
_REFERENCE_RANK = 8
_CLIP_SIGMA = 5.0  # values beyond are pulled back while the reference is made
_MIN_REFERENCE_SPECTRA = 4
_LOCAL_CHANNELS = 41  # over which a misfit of the model is told from a spike
_LEAST_SHARE = 0.25  # of the mean spectrum, scaled to a spectrum's electrons, that a fit of few electrons is held above
_CLEAR = 1.15  # of a direction's strength over that of one which holds noise alone
_SEEN = 64  # electrons a channel should have counted before their absence means that it is dead: 8 standard errors


@dataclass(frozen=True)
class SpikeReference:
    """What the spectra of one acquisition look like without spikes.

    Parameters
    ----------
    spectra
        Spectra whose mixtures describe every pixel, shape (k, channels), counts of any scale.
    misfit
        How much further than by noise the pixels scatter about these mixtures, shape (channels,), 1 or more: in some
        channels many pixels deviate, for instance where a sharp line moves.
    mean
        Mean spectrum, shape (channels,), counts: its noise is what the fits are weighted by.
    """

    spectra: NDArray[np.float32]
    misfit: NDArray[np.float32]
    mean: NDArray[np.float64]


def reference_spectra(counts: ArrayLike, noise: NoiseModel, *, rank: int = _REFERENCE_RANK) -> SpikeReference | None:
    """Learn what the spectra of an image look like without spikes.

    Parameters
    ----------
    counts
        Raw counts, shape (..., channels); at most 1024 spectra of them are used. Not modified.
    noise
        Noise model of these counts.
    rank
        Number of reference spectra at most; a quarter of the number of spectra where that is less.

    Returns
    -------
    SpikeReference or None
        None for fewer than 4 spectra, which cannot vouch for each other.

    Notes
    -----
    Leading singular vectors of the Poisson-scaled spectra. Values more than 5 sigma from the model are pulled back to
    5 sigma and the model is fitted again, three times: a spike does not recur, so it never makes a reference, while a
    line that a phase owns does and comes back. `misfit` is the 95th percentile of |z| in each channel over that of a
    Gaussian: where one pixel in twenty is off, it is not by spikes. The rank, the clip and the percentile are ours.
    """
    rows = _as_rows(counts)
    spectra: NDArray[np.float32] = rows[sample_indices(rows.shape[0])].astype(np.float32)
    n = spectra.shape[0]
    if n < _MIN_REFERENCE_SPECTRA:
        return None
    rank = max(1, min(rank, n // 4))
    mean = spectra.mean(axis=0, dtype=np.float64)
    scale = poisson_scale(mean).astype(np.float32)
    low, high = plausible_range(spectra, noise.reach(mean, _CLIP_SIGMA).astype(np.float32))
    for _ in range(3):
        directions = _shared_directions(np.clip(spectra, low, high) / scale, rank, noise)
        fit = ((np.clip(spectra, low, high) / scale) @ directions.T) @ directions * scale
        margin = noise.reach(fit, _CLIP_SIGMA)
        low, high = fit - margin, fit + margin
    directions = _shared_directions(np.clip(spectra, low, high) / scale, rank, noise)
    shapes = np.asarray(directions * scale, dtype=np.float32)
    deviations = _deviations(spectra, noise, shapes, mean)
    # the order statistic below: among few spectra, one spike in a channel must not count as its misfit
    nearly_all = int(0.95 * (n - 1))
    misfit = quantile_of_spectra(np.abs(deviations), nearly_all) / 1.96
    return SpikeReference(shapes, np.maximum(misfit, 1.0).astype(np.float32), mean)


def find_spikes(
    counts: ArrayLike,
    noise: NoiseModel,
    *,
    threshold: float = 8.0,
    reference: SpikeReference | None = None,
    dead_channels: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Find the channels hit by spikes, of either sign.

    Parameters
    ----------
    counts
        Raw counts, shape (..., channels), finite. Not modified.
    noise
        Noise model of the acquisition.
    threshold
        Height, in standard deviations of the noise, of the spikes to find.
    reference
        What `reference_spectra` returned for the whole image. Without it, it is made from `counts`: give it whenever
        `counts` is a block of an image, so that blocks agree with the whole.
    dead_channels
        Shape (channels,): channels to be seen as the line between their neighbours.

    Returns
    -------
    bool array, shape of `counts`
        True in every channel a spike touches.

    Raises
    ------
    InputError
        If the counts are not finite, or the reference has another number of channels.

    Notes
    -----
    1. Each spectrum is fitted by the reference spectra (weighted least squares); values over 4 sigma from the fit are
       pulled back and the fit repeated, so that a spike does not raise what it is compared with.
    2. ``z = (counts - fit) / sqrt(noise.variance(fit)) / misfit``. In spectra with a suspicious z its running median
       over 41 channels is subtracted and z is divided by its running spread (1.4826 x median absolute value), where
       that exceeds 1: where the model misfits, nothing is a spike.
    3. A channel is hit where |z| >= threshold - 2 (the observed height scatters by one sigma about the true one; for
       clean Gaussian channels 6 sigma is one in 5e8). Events wider than 7 channels at half their height are features
       of the specimen and are left alone; the others grow along the flank down to 2.5 sigma and by one more channel.

    Where the detector counts electrons, z is `counting.counted_deviation`, how improbable so many electrons are by
    Poisson's distribution; a fit is held above a quarter of what the mean spectrum, scaled to as many electrons, has.

    Up to three spectra have no reference. They are compared with the running median of 5 channels along energy, and
    the excess must also be half of that above the running median of 15: only events of one or two channels are told
    from white lines then. All constants are ours.
    """
    values = np.asarray(counts)
    rows = _as_rows(values)
    if reference is None:
        reference = reference_spectra(rows, noise)
    if reference is not None and reference.misfit.size != rows.shape[1]:
        raise InputError(
            f"the reference spectra have {reference.misfit.size} channels but the counts {rows.shape[1]}; "
            "make the reference from the same acquisition"
        )
    mask = np.zeros(rows.shape, dtype=bool)
    cut = max(threshold - _DETECTION_MARGIN, _FLOOR_SIGMA)
    dead = np.zeros(rows.shape[1], dtype=bool) if dead_channels is None else dead_channels
    if reference is not None:
        bridges, widths = _bridges(dead), (_LOCAL_CHANNELS, MAX_EVENT_WIDTH)
        shapes = in_fours(reference.spectra)
        solver = in_fours(_coefficients_of(reference.spectra, reference.mean, noise).T)
        misfit = reference.misfit
        if noise.quantum:
            typical, quantum = _least_shares(reference.mean), float(noise.quantum)
            not_finite = mark_counted_spikes(
                rows, quantum, bridges, shapes, solver, typical, misfit, cut, _FLOOR_SIGMA, widths, mask
            )
        else:
            gain, readout = float(noise.gain), float(noise.readout_variance)
            not_finite = mark_spikes(
                rows, bridges, shapes, solver, misfit, gain, readout, cut, _FLOOR_SIGMA, widths, mask
            )
        finite = not_finite < 0
    else:
        few = rows.astype(np.float32)
        bridge_channels(few, dead)
        finite = bool(np.isfinite(few).all())
        if finite:
            mask |= _events(_deviation_along_energy(few, noise), cut)
    if not finite:
        raise InputError(
            "counts hold values that are not finite (NaN or infinity); a spike cannot be told from them: "
            "mask or repair these channels first"
        )
    return mask.reshape(values.shape)


def find_dead_channels(counts: ArrayLike, noise: NoiseModel, *, n_spectra: int | None = None) -> NDArray[np.bool_]:
    """Find detector channels that do not respond: stuck low, or at one value whatever the beam does.

    Parameters
    ----------
    counts
        Raw counts, shape (..., channels), or the mean spectrum alone, shape (channels,). Not modified.
    noise
        Noise model of the acquisition.
    n_spectra
        How many spectra a mean spectrum is the mean of; default 1. Not for spectra.

    Returns
    -------
    bool array, shape (channels,)

    Notes
    -----
    Stuck low: the mean is under half of the lower of the two medians of 4 channels on either side, by more than 8
    standard errors. Constant (needs 16 spectra or more): the variance over the spectra is under a tenth of what the
    noise model expects from the neighbours' mean, and of what they show. A run of at most 2 dead channels is seen.
    Where electrons are counted, 64 of them or more should have been.
    All constants are ours.
    """
    spectra = _as_rows(counts)
    n = spectra.shape[0]
    mean = spectra.mean(axis=0, dtype=np.float64)
    left, right = _medians_beside(mean)
    expected = np.minimum(left, right)
    error = np.sqrt(_positive(noise.variance(np.maximum(expected, mean))) / (n_spectra if n == 1 and n_spectra else n))
    dead = (mean < 0.5 * expected) & (expected - mean > 8 * error)
    if n >= 16:
        variance = spectra.var(axis=0, dtype=np.float64)
        beside = np.minimum(*_medians_beside(variance))
        dead |= variance < 0.1 * np.minimum(beside, noise.variance(expected))
    if noise.quantum:
        n_means = n_spectra if n == 1 and n_spectra else n
        dead &= expected * n_means > _SEEN * noise.quantum
    return np.asarray(dead)


def interpolate_masked(counts: ArrayLike, mask: ArrayLike) -> NDArray[np.floating]:
    """Replace masked channels by a straight line between their nearest clean neighbours along energy.

    Parameters
    ----------
    counts
        Shape (..., channels). Not modified.
    mask
        True where a value is to be replaced; shape of `counts`, or (channels,) for all spectra.

    Returns
    -------
    array, shape of `counts`
        float32, or float64 where `counts` is. At the ends of the axis the nearest clean value is held.

    Raises
    ------
    InputError
        If a spectrum has no clean channel left.

    Examples
    --------
    >>> interpolate_masked([1.0, 2.0, 900.0, 4.0], [False, False, True, False])
    array([1., 2., 3., 4.])
    """
    values = np.asarray(counts)
    dtype = np.float64 if values.dtype == np.float64 else np.float32
    repaired: NDArray[np.floating] = values.astype(dtype, order="C", copy=True)
    rows = repaired.reshape(-1, repaired.shape[-1])
    hit = np.broadcast_to(np.asarray(mask, dtype=bool), values.shape).reshape(rows.shape)
    touched = np.flatnonzero(hit.any(axis=1))
    if touched.size == 0:
        return repaired
    hit = hit[touched]
    if hit.all(axis=1).any():
        raise InputError(
            f"{int(hit.all(axis=1).sum())} spectra have no clean channel left to interpolate from; "
            "leave these pixels out, or raise the spike threshold"
        )
    channels = np.arange(rows.shape[1])
    before = np.maximum.accumulate(np.where(hit, -1, channels), axis=1)
    after = np.minimum.accumulate(np.where(hit, rows.shape[1], channels)[:, ::-1], axis=1)[:, ::-1]
    row, column = np.nonzero(hit)
    left, right = before[row, column], after[row, column]
    left, right = np.where(left < 0, right, left), np.where(right == rows.shape[1], left, right)
    low = rows[touched[row], left].astype(np.float64)
    high = rows[touched[row], right].astype(np.float64)
    share = (column - left) / np.maximum(right - left, 1)
    rows[touched[row], column] = low + share * (high - low)
    return repaired


def bridge_channels(counts: NDArray[np.float32], channels: NDArray[np.bool_]) -> None:
    """Replace channels, the same in all spectra, by the line between their neighbours, in place.

    Parameters
    ----------
    counts
        Shape (..., channels); modified.
    channels
        Shape (channels,), True where counts are to be replaced; where all are, nothing is done.
    """
    for channel, low, high, share in neighbors_of(channels):
        counts[..., channel] = (1 - share) * counts[..., low] + share * counts[..., high]


def neighbors_of(masked: NDArray[np.bool_]) -> list[tuple[int, int, int, np.float32]]:
    """Return for each masked channel the nearest channels that are not, and the share of the upper one.

    >>> [(channel, low, high) for channel, low, high, _ in neighbors_of(np.array([True, False, True, False]))]
    [(0, 1, 1), (2, 1, 3)]
    """
    clean = np.flatnonzero(~masked)
    found = []
    for channel in np.flatnonzero(masked) if clean.size else ():
        after = int(np.searchsorted(clean, channel))
        low, high = int(clean[max(after - 1, 0)]), int(clean[min(after, clean.size - 1)])
        found.append((int(channel), low, high, np.float32((channel - low) / (high - low) if high > low else 0.0)))
    return found


def _bridges(
    dead: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return `neighbors_of` dead channels as arrays."""
    channels, low, high, share = np.array(neighbors_of(dead), dtype=np.float64).reshape(-1, 4).T
    return channels.astype(np.int64), low.astype(np.int64), high.astype(np.int64), share.astype(np.float32)


def _medians_beside(spectrum: NDArray[np.float64], reach: int = 4) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, for every channel, the medians of the `reach` channels to its left and to its right."""
    padded = np.pad(spectrum, reach, mode="reflect" if spectrum.size > reach else "edge")
    medians = np.median(np.lib.stride_tricks.sliding_window_view(padded, reach), axis=-1)
    return medians[: spectrum.size], medians[reach + 1 :]


def _as_rows(counts: ArrayLike) -> NDArray[Any]:
    """Return the counts as (spectra, channels), without a copy."""
    values = np.asarray(counts)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise InputError(f"counts have the shape {values.shape}; expected spectra (..., channels) with channels")
    return values.reshape(-1, values.shape[-1])


def _positive(variance: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the variance, kept off zero for noiseless data."""
    return np.asarray(np.maximum(variance, np.finfo(np.float32).tiny * 1e6))


def _coefficients_of(shapes: NDArray[np.float32], mean: NDArray[np.float64], noise: NoiseModel) -> NDArray[np.float32]:
    """Return the matrix (channels, k) that turns spectra into the coefficients of their weighted least-squares fit."""
    basis = shapes.astype(np.float64)
    # counted electrons leave no variance in a channel that counted none, which would outweigh all others
    level = poisson_scale(mean) ** 2 if noise.quantum else mean
    weighted = basis / _positive(noise.variance(level))
    return (np.linalg.pinv(weighted @ basis.T, rcond=1e-10, hermitian=True) @ weighted).T.astype(np.float32)


def _deviations(
    spectra: NDArray[np.float32], noise: NoiseModel, shapes: NDArray[np.float32], mean: NDArray[np.float64]
) -> NDArray[np.floating]:
    """Return how far spectra stray from their fit by the shapes, values far off pulled back, standard deviations."""
    solver = in_fours(_coefficients_of(shapes, mean, noise).T)
    fit = np.empty_like(spectra)
    if noise.quantum:
        counted_deviations(spectra, float(noise.quantum), in_fours(shapes), solver, _least_shares(mean), fit)
        return fit
    robust_fits(spectra, in_fours(shapes), solver, float(noise.gain), float(noise.readout_variance), fit)
    return np.asarray((spectra - fit) / np.sqrt(_positive(noise.variance(fit))))


def _shared_directions(rows: NDArray[np.float32], rank: int, noise: NoiseModel) -> NDArray[np.floating]:
    """Return the directions that make references, at most `rank`.

    Of few electrons a spectrum shows one or two. What fills the others is noise, and a spike, even pulled back, is
    among the strongest of it: it would vouch for itself. So of counted electrons only those stay that stand clear of
    the direction that is as far down again.
    """
    if not noise.quantum:
        return leading_directions(rows, rank)
    directions = leading_directions(rows, 2 * rank)
    strength = np.linalg.norm(rows @ directions.T, axis=0)
    return directions[: max(1, int(np.count_nonzero(strength[:rank] > _CLEAR * strength[-1])))]


def _least_shares(mean: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the share of a spectrum's electrons that each channel holds at least."""
    return np.asarray(_LEAST_SHARE * mean / max(float(mean.sum()), 1e-30), dtype=np.float32)


def _deviation_along_energy(block: NDArray[np.float32], noise: NoiseModel) -> NDArray[np.floating]:
    """Return z against the energies beside, zero where the excess is not that of one or two channels."""
    if noise.quantum:
        return _counted_deviation_along_energy(block, noise.quantum)
    near = running_median(block, 5)
    wide = running_median(block, 2 * MAX_EVENT_WIDTH + 1)
    excess = block - near
    sharp = np.abs(excess) >= 0.5 * np.abs(block - wide)
    z = np.where(sharp, excess, 0.0) / np.sqrt(_positive(noise.variance(np.minimum(near, wide) * 0.5 + 0.5 * near)))
    spread = 1.4826 * running_median(np.abs(excess) / np.sqrt(_positive(noise.variance(near))), _LOCAL_CHANNELS)
    return np.asarray(z / np.maximum(spread, 1.0))


def _counted_deviation_along_energy(block: NDArray[np.float32], quantum: float) -> NDArray[np.floating]:
    """Return how far electrons stray from the mean of those beside, or from their median where a line is.

    The median of few electrons is zero, so their mean is taken, of values cut off where the widest median makes them
    improbable.
    """
    electrons = (block / np.float32(quantum)).astype(np.float32)
    wide = running_median(electrons, _LOCAL_CHANNELS)
    most = wide + _CLIP_SIGMA * np.sqrt(wide + 1) + (_CLIP_SIGMA**2 - 1) / 6
    beside = uniform_filter1d(np.minimum(electrons, most), 2 * MAX_EVENT_WIDTH + 1, axis=-1, mode="nearest")
    expected = np.maximum(np.maximum(beside, running_median(electrons, 5)), LEAST_EXPECTED).astype(np.float32)
    z = np.empty_like(electrons)
    deviations_from(electrons, expected, z)
    return z


def _events(z: NDArray[np.floating], cut: float) -> NDArray[np.bool_]:
    """Return the channels of narrow events: a peak of at least `cut`, its flanks, and one channel more."""
    mask = np.zeros(z.shape, dtype=bool)
    channels = z.shape[1]
    for row in np.flatnonzero((np.abs(z) >= cut).any(axis=1)):
        for sign in (1.0, -1.0):
            signed = sign * z[row]
            above = signed >= _FLOOR_SIGMA
            boundaries = np.flatnonzero(np.diff(np.concatenate(([False], above, [False])).astype(np.int8)))
            for begin, end in zip(boundaries[::2], boundaries[1::2], strict=True):
                run = signed[begin:end]
                height = float(run.max())
                if height < cut:
                    continue
                # contiguous channels about the peak over half of it: its full width at half maximum
                peak = int(run.argmax())
                under = np.flatnonzero(run < 0.5 * height)
                lower = under[under < peak].max(initial=-1)
                upper = under[under > peak].min(initial=run.size)
                if upper - lower - 1 <= MAX_EVENT_WIDTH:
                    mask[row, max(begin - 1, 0) : min(end + 1, channels)] = True
    return mask
