"""The noise of a detector, estimated from the spectra themselves.

Model
-----
An electron is spread over a few channels and then read out, so a channel's variance is a straight line in its
expected counts and neighbouring channels fluctuate together::

    var(E)        = readout_variance + gain * max(expected(E), 0)
    cov(E, E + k) = correlation[k] * sqrt(var(E) var(E + k))

`gain` is the slope of variance against mean *after* the point spread, not counts per electron: with a point
spread h (sum 1) and G counts per electron it is ``G * sum(h**2)``.

A detector that counts electrons is a case of its own: its counts are Poisson-distributed multiples of `quantum`, which
is the gain then, and nothing is read out (`eelsflow.preprocess.counting`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.blas import one_thread
from eelsflow.errors import InputError
from eelsflow.preprocess.counting import find_quantum, shared_electrons
from eelsflow.preprocess.kernels import lagged_products, running_medians

MAX_SAMPLE = 1024
"""Spectra that stand for an image where its noise and its shapes are learnt."""

_NOISE_SAMPLE = 512  # of them serve for the noise: 512 x 2048 channels fix the gain to better than 1 %
_ALONG = 15  # channels that tell what a channel should hold
_GOLDEN = (5**0.5 - 1) / 2
_PILOT_RANK = 8  # real images hold about 5 components; a few more cost a known share of the degrees of freedom
_MIN_SPECTRA = 16  # fewer than this say too little about each other: the residual is then taken along energy
_CLIP_SIGMA = 5.0  # beyond this a residual is a spike or a defect, not noise
_SMOOTH_HALF_WIDTH = 12  # channels on either side of the local cubic, for single spectra


@dataclass(frozen=True)
class NoiseModel:
    """Variance and channel correlation of the counts.

    Parameters
    ----------
    gain
        Slope of variance against expected counts, counts.
    readout_variance
        Variance at zero expected counts, counts squared.
    correlation
        Correlation coefficient of two channels against their distance, shape (lags,); ``correlation[0] == 1``.
    quantum
        Counts of one electron where the detector counts electrons, and their tails are Poisson's; 0 elsewhere.
    electron_share
        Share of the variance that is that of electrons, where the correlation was estimated; the rest is that of the
        read-out, which is not correlated.
    """

    gain: float
    readout_variance: float
    correlation: NDArray[np.float64]
    quantum: float = 0.0
    electron_share: float = 1.0

    @property
    def counts_per_electron(self) -> float:
        """Counts that one electron gives in all channels together.

        The gain is variance over mean of single channels, and a point spread that shares electrons among channels
        lowers it; sums of many channels have ``1 + 2 sum(correlation)`` times as much.
        """
        if self.quantum:
            return self.quantum
        shared = float(np.sum(self.correlation[1:])) / max(self.electron_share, 0.1)
        return self.gain * max(1.0 + 2.0 * shared, 1.0)

    def variance(self, expected: ArrayLike) -> NDArray[np.floating]:
        """Return the variance of counts whose expectation is `expected` (counts, any shape), counts squared.

        Single precision stays single; everything else becomes double. The result is positive wherever the
        model is: both terms zero only for noiseless data.
        """
        values = np.asarray(expected)
        if values.dtype != np.float32:
            values = values.astype(np.float64, copy=False)
        dtype = values.dtype.type
        return np.asarray(np.maximum(values, 0) * dtype(self.gain) + dtype(self.readout_variance))

    def reach(self, expected: ArrayLike, n_sigma: float) -> NDArray[np.floating]:
        """Return how far above `expected` counts that are as rare as `n_sigma` of a Gaussian lie, counts.

        ``n_sigma * sigma``, and for counted electrons the first term of Cornish & Fisher's expansion more,
        ``(n_sigma^2 - 1) / 6`` electrons, for the skewness of Poisson's distribution.
        """
        variance = np.maximum(self.variance(expected), np.finfo(np.float32).tiny * 1e6)  # noiseless data have a reach
        return np.asarray(n_sigma * np.sqrt(variance) + (n_sigma**2 - 1) / 6 * self.quantum)

    def covariance(self, expected: ArrayLike) -> NDArray[np.float64]:
        """Return the covariance of the channels of one spectrum, shape (channels, channels), counts squared.

        Parameters
        ----------
        expected
            Expected counts, shape (channels,).
        """
        sigma = np.sqrt(self.variance(np.asarray(expected, dtype=np.float64)))
        row = np.zeros(sigma.size)
        n_lags = min(self.correlation.size, sigma.size)
        row[:n_lags] = self.correlation[:n_lags]
        lag = np.abs(np.subtract.outer(np.arange(sigma.size), np.arange(sigma.size)))
        return np.asarray(row[lag] * np.multiply.outer(sigma, sigma))


def sample_indices(n_spectra: int, n_sample: int = MAX_SAMPLE) -> NDArray[np.int64]:
    """Return which spectra of an image represent it: at most `n_sample`, evenly spread, always the same.

    The indices count pixels of the whole image in row order, so blocks of any shape select the same spectra.

    Examples
    --------
    >>> sample_indices(12, 4)
    array([ 0,  4,  6, 11])
    """
    if n_spectra <= n_sample:
        return np.arange(n_spectra, dtype=np.int64)
    # One of each of so many equal parts, its place in the part by the golden section: at equal distances, a power of
    # two most often, all would lie in a few columns of the image.
    part = np.arange(n_sample + 1, dtype=np.int64)
    starts = part * n_spectra // n_sample
    places = np.modf(part[:-1] * _GOLDEN)[0]
    return np.asarray(starts[:-1] + (places * np.diff(starts)).astype(np.int64))


def estimate_noise(counts: ArrayLike, *, max_lag: int = 8) -> NoiseModel:
    """Estimate gain, read-out variance and channel correlation from raw spectra.

    Parameters
    ----------
    counts
        Raw counts, shape (..., channels), with 32 channels or more. At most 512 spectra, evenly spread, are used. Not
        modified.
    max_lag
        Largest channel distance whose correlation is estimated.

    Returns
    -------
    NoiseModel
        With ``correlation`` of shape (max_lag + 1,).

    Raises
    ------
    InputError
        If the counts are not finite, are too few channels, or do not fluctuate at all.

    Notes
    -----
    With 16 spectra or more the residual is what is left of the spectra, scaled by sqrt(mean), after their 8 leading
    singular components (fewer for few spectra): it knows nothing of the edges' shape. These components take noise
    along, about as much as as many components after them, which hold nothing else; so what those hold is counted once
    more. Spectra fewer than 16 are compared with a local cubic along energy (25 channels) instead; the autocovariance
    of that residual is the noise's convolved with the filter's own autocorrelation F, and is solved for it:
    ``a[k] = sum_j F[k - j] c[j]``.

    The squared residuals, clipped at 5 sigma so that spikes do not count, are averaged in classes of the expected
    counts; a straight line weighted by the inverse variance of each class gives read-out variance and gain, neither
    below zero. Channels that do not fluctuate (dead ones) are left out. The choices of rank, window, clip and
    classes are ours.

    Where the counts are those of single electrons (`counting.find_quantum` tells from the counts themselves), gain and
    read-out need no estimate: they are the quantum and nothing. The correlation is `counting.shared_electrons`.
    """
    spectra = np.asarray(counts)
    spectra = spectra.reshape(-1, spectra.shape[-1]) if spectra.ndim else spectra.reshape(1, 1)
    if spectra.shape[0] == 0 or spectra.shape[1] < 4 * max_lag or spectra.shape[1] < 32:
        raise InputError(
            f"{spectra.shape[0]} spectra of {spectra.shape[1]} channels are too few to estimate noise from; "
            f"expected at least one spectrum of {max(32, 4 * max_lag)} channels: read the whole energy axis"
        )
    spectra = spectra[sample_indices(spectra.shape[0], _NOISE_SAMPLE)]
    if not np.isfinite(spectra).all():
        raise InputError(
            "counts hold values that are not finite (NaN or infinity); noise cannot be estimated from them: "
            "mask or repair these channels first"
        )
    quantum = find_quantum(spectra)
    if quantum:
        return NoiseModel(quantum, 0.0, shared_electrons(spectra, quantum, max_lag), quantum)
    spectra = spectra.astype(np.float64)
    if spectra.shape[0] >= _MIN_SPECTRA:
        expected, residual, taken = _low_rank_residual(spectra)
        response = np.zeros(max_lag + 1)
        response[0] = 1.0
    else:
        expected, residual, response = _local_cubic_residual(spectra, max_lag)
        taken = np.zeros_like(residual)
    alive = _fluctuating_channels(residual)
    if not alive.any():
        raise InputError(
            "the counts do not fluctuate in any channel, so they carry no noise to estimate: they look smoothed, "
            "saturated or empty; use the raw counts of the acquisition"
        )
    return _fit_model(expected, residual, alive, taken=taken, response=response, max_lag=max_lag)


def running_median(values: NDArray[np.floating], width: int) -> NDArray[np.floating]:
    """Return the median over `width` channels (odd) along the last of two axes; the end values repeat."""
    rows = np.ascontiguousarray(values)
    medians = np.empty_like(rows)
    running_medians(rows, np.empty(width, dtype=rows.dtype), medians)
    return medians


def quantile_of_spectra(values: NDArray[np.floating], order: int | None = None) -> NDArray[np.floating]:
    """Return the median a channel of values of shape (n, channels), or the value of the order given (0: the least).

    Ten times as fast as along the first axis, which numpy walks value by value.
    """
    rows = np.ascontiguousarray(values.T)
    middle = rows.shape[1] // 2
    if order is not None:
        return np.asarray(np.partition(rows, order, axis=1)[:, order])
    if rows.shape[1] % 2:
        return np.asarray(np.partition(rows, middle, axis=1)[:, middle])
    ordered = np.partition(rows, middle, axis=1)
    pair = np.stack([ordered[:, :middle].max(axis=1), ordered[:, middle]])  # one selection is half of two
    return np.asarray(pair.mean(axis=0))


def plausible_range(
    spectra: NDArray[np.floating], margin: NDArray[np.floating], *, along: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return between which values a spectrum may lie that holds no spike; a start, before any model is fitted.

    Parameters
    ----------
    spectra
        Shape (n, channels).
    margin
        How far noise may reach, broadcastable to `spectra`.
    along
        Running median of 15 channels of the spectra, where it is known.

    Notes
    -----
    Two descriptions are at hand: the spectrum's total times the median shape of all spectra, and the running median of
    15 channels along energy. Where the shape of a pixel is its own, the energies beside explain it, and where a line
    is sharp, the other pixels do; a spike neither.
    """
    total = np.maximum(spectra.sum(axis=1, keepdims=True), 1e-30)
    typical = total * quantile_of_spectra(spectra / total)
    if along is None:
        along = running_median(spectra, _ALONG)
    return np.minimum(typical, along) - margin, np.maximum(typical, along) + margin


def leading_directions(rows: NDArray[np.floating], rank: int, *, n_rounds: int = 6) -> NDArray[np.floating]:
    """Return the leading right singular vectors of a matrix, or eigenvectors of a symmetric one, as rows.

    Parameters
    ----------
    rows
        Shape (n, channels); not modified.
    rank
        Number of directions, at most min(n, channels).
    n_rounds
        Rounds of subspace iteration, each of which squares the singular values.

    Notes
    -----
    Subspace iteration with 10 columns to spare and a fixed start (Halko, Martinsson & Tropp 2011, algorithm 4.4): what
    stands clear of the noise has converged after a few rounds, and for the rest, which is noise, any direction is as
    good. Ten times as fast as the exact decomposition for 1024 spectra of 2048 channels; the same input gives the
    same result.
    """
    n, channels = rows.shape
    rank = min(rank, n, channels)
    start = np.random.default_rng(0).standard_normal((n, min(rank + 10, n, channels)), dtype=np.float64)
    with one_thread():  # products this small wait longer for a second thread than it saves
        start = start.astype(rows.dtype)
        if 2 * n <= channels and rows.dtype == np.float64:
            # the same rounds among the spectra, which are fewer; single precision would not bear the squares
            gram = rows @ rows.T
            for _ in range(n_rounds):
                start = np.linalg.qr(gram @ start)[0]
            basis = np.linalg.qr(rows.T @ start)[0]
        else:
            basis = np.linalg.qr(rows.T @ start)[0]
            for _ in range(n_rounds):
                basis = np.linalg.qr(rows.T @ (rows @ basis))[0]
        projected = rows @ basis
        values, mixing = np.linalg.eigh((projected.T @ projected).astype(np.float64))
        order = np.argsort(values)[::-1][:rank]
        return np.ascontiguousarray((basis @ mixing[:, order].astype(rows.dtype)).T)


def poisson_scale(mean: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return sqrt(mean) a channel, held above a tenth of its typical value: empty and negative channels stay finite.

    The floor is 1 % of the median positive mean (ours); without a positive channel the scale is 1.
    """
    means = np.asarray(mean, dtype=np.float64)
    positive = means[means > 0]
    if positive.size == 0:
        return np.ones_like(means)
    smallest = np.finfo(np.float64).tiny  # a hundredth of a subnormal number would be zero
    return np.sqrt(np.maximum(means, max(0.01 * float(np.median(positive)), smallest)))


def _low_rank_residual(
    spectra: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the expected counts, the residual, and what stands for the noise that the low-rank fit took along."""
    rank = max(1, min(_PILOT_RANK, spectra.shape[0] // 8))
    scale = poisson_scale(spectra.mean(axis=0))
    scaled = spectra / scale
    along = running_median(scaled, _ALONG)
    spread = _robust_sigma(scaled - along)
    clipped = np.clip(scaled, *plausible_range(scaled, _CLIP_SIGMA * spread, along=along))
    for _ in range(3):
        directions = leading_directions(clipped, 2 * rank)
        fit = (clipped @ directions[:rank].T) @ directions[:rank]
        spread = _robust_sigma(scaled - fit)
        clipped = fit + np.clip(scaled - fit, -_CLIP_SIGMA * spread, _CLIP_SIGMA * spread)
    taken = (clipped @ directions[rank:].T) @ directions[rank:]
    return fit * scale, (scaled - fit) * scale, taken * scale


def _local_cubic_residual(
    spectra: NDArray[np.float64], max_lag: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the local cubic, the residual from it and the autocorrelation of the filter that made it."""
    from scipy.signal import savgol_coeffs, savgol_filter

    window = 2 * min(_SMOOTH_HALF_WIDTH, (spectra.shape[1] - 1) // 2) + 1
    expected = savgol_filter(spectra, window, 3, axis=-1)
    taps = -savgol_coeffs(window, 3)
    taps[window // 2] += 1.0
    response = np.correlate(taps, taps, mode="full")[window - 1 :]
    padded = np.zeros(2 * max_lag + 1)
    padded[: min(response.size, padded.size)] = response[: padded.size]
    return expected, spectra - expected, padded


def _fluctuating_channels(residual: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell the channels whose residual varies; a dead channel repeats its value in every spectrum."""
    if residual.shape[0] < _MIN_SPECTRA:
        return np.asarray(np.abs(residual).max(axis=0) > 0)
    spread = quantile_of_spectra(np.abs(residual).astype(np.float32))
    return np.asarray(spread > 0.1 * np.median(spread))


def _robust_sigma(residual: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1.4826 x median absolute residual a channel (over all, where a channel has too few spectra).

    Single precision is selected from four times as fast, and what is clipped by it asks for no more digits.
    """
    if residual.shape[0] < _MIN_SPECTRA:
        return np.full(residual.shape[1], 1.4826 * float(np.median(np.abs(residual))))
    return np.asarray(1.4826 * quantile_of_spectra(np.abs(residual).astype(np.float32)).astype(np.float64))


def _fit_model(
    expected: NDArray[np.float64],
    residual: NDArray[np.float64],
    alive: NDArray[np.bool_],
    *,
    taken: NDArray[np.float64],
    response: NDArray[np.float64],
    max_lag: int,
) -> NoiseModel:
    """Fit variance against expected counts, then the correlation, leaving out what is no noise."""
    variance = np.broadcast_to(_robust_sigma(residual) ** 2, residual.shape)
    usable = np.broadcast_to(alive, residual.shape)
    gain = readout = 0.0
    square = residual**2
    order = np.argsort(expected, axis=None)
    ascending, squares = expected.ravel()[order], (square + taken**2).ravel()[order]
    for _ in range(4):  # the clip follows the model: settled after two or three rounds
        keep = usable & (square <= _CLIP_SIGMA**2 * variance)
        kept = keep.ravel()[order]
        gain, readout = _variance_line(ascending[kept], squares[kept])
        variance = np.maximum(readout + gain * np.maximum(expected, 0), 1e-12 * max(gain, readout, 1e-300))
    covariance: NDArray[np.floating] = np.zeros(max_lag + 1)
    sums = np.empty(max_lag + 1)
    weight = keep / np.sqrt(variance)
    for part in (residual, taken):
        lagged_products(part * weight, sums)
        covariance += sums
    lagged_products(keep.astype(np.float64), sums)
    covariance /= np.maximum(sums, 1.0)
    lags = np.arange(max_lag + 1)
    if response.size > max_lag + 1:
        # a[k] = F[k] c[0] + sum_{j>0} (F[|k-j|] + F[k+j]) c[j], lags up to max_lag on either side
        mixing = response[np.abs(np.subtract.outer(lags, lags))]
        mixing[:, 1:] += response[np.add.outer(lags, lags[1:])]
        covariance = np.linalg.solve(mixing, covariance)
    level = float(covariance[0])
    correlation: NDArray[np.floating] = (
        np.clip(covariance / level, -1.0, 1.0) if level > 0 else (lags == 0).astype(np.float64)
    )
    correlation[0] = 1.0
    of_electrons = gain * np.maximum(expected, 0) / variance
    factor = level if response.size > max_lag + 1 and level > 0 else 1.0
    return NoiseModel(
        gain=float(gain * factor),
        readout_variance=float(readout * factor),
        correlation=np.asarray(correlation, dtype=np.float64),
        electron_share=float(of_electrons[keep].mean()) if keep.any() else 1.0,
    )


def _variance_line(expected: NDArray[np.float64], squares: NDArray[np.float64]) -> tuple[float, float]:
    """Return slope and intercept, neither negative, of squared residuals against expected counts in ascending order."""
    if expected.size == 0:
        return 0.0, 0.0
    n_classes = int(np.clip(expected.size // 500, 1, 60))
    place = np.linspace(0, expected.size - 1, n_classes + 1)
    below = np.minimum(place.astype(np.int64), expected.size - 2) if expected.size > 1 else np.zeros(place.size, int)
    above = np.minimum(below + 1, expected.size - 1)
    edges = np.unique(expected[below] + (place - below) * (expected[above] - expected[below]))
    begin = np.searchsorted(expected, edges[:-1]) if edges.size > 1 else np.zeros(1, dtype=np.int64)
    number = np.diff(begin, append=expected.size).astype(np.float64)
    filled = number > 0  # interpolated between values, an edge may have none above it
    begin, number = begin[filled], number[filled]
    level = np.add.reduceat(np.maximum(expected, 0), begin) / number
    variance = np.add.reduceat(squares, begin) / number
    good = np.isfinite(variance) & (variance > 0)
    if not good.any():
        return 0.0, 0.0
    level, variance, number = level[good], variance[good], number[good]
    gain, readout = 0.0, float(np.average(variance, weights=number))
    fitted: NDArray[np.float64] = np.full_like(variance, readout)
    for _ in range(5):  # the variance of a variance is 2 var^2 / n: reweight by the line itself
        weight = number / np.maximum(fitted, 1e-3 * fitted.max()) ** 2
        mean_level, mean_variance = np.average(level, weights=weight), np.average(variance, weights=weight)
        spread = float((weight * (level - mean_level) ** 2).sum())
        slope = (
            float((weight * (level - mean_level) * (variance - mean_variance)).sum()) / spread if spread > 0 else 0.0
        )
        gain, readout = slope, float(mean_variance - slope * mean_level)
        if gain < 0 or spread == 0:
            # a flat spectrum cannot tell the two apart: counting noise if there are counts, read-out otherwise
            gain, readout = 0.0, float(mean_variance)
        elif readout < 0:
            gain, readout = float((weight * level * variance).sum() / (weight * level**2).sum()), 0.0
        fitted = readout + gain * level
    return gain, readout
