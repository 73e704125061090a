"""Find the zero-loss peak of every pixel, to a hundredth of a channel.

The position is that of the maximum of the spectrum after smoothing it with a Gaussian as wide as the peak itself: the
matched filter. It is the root c of ``sum_k (E_k - c) g(E_k - c) N_k``, found by Newton's method for all pixels at once.
For a symmetric peak it is the centre, wherever the peak lies between channels: the error of sampling falls as
exp(-2 pi^2 s^2), with s the standard deviation of peak times Gaussian in channels. For an asymmetric one it lies
between the maximum and the centroid, near the former, by an amount that depends on the shape alone, so that all pixels
have the same. The tail and the first losses hardly count. Its variance is 1.5 times the least possible for a Gaussian
peak in Poisson noise, the price of not looking at the flanks.

A peak narrower than two channels is sampled too coarsely for that. It is fitted by a Gaussian integrated over the
channels, of one width for the whole acquisition (the width and the place within a channel can then be told apart).
Where a camera has given such a peak tails, no Gaussian fits, and a wider filter is used; if the beam's own width was
below nine tenths of a channel, the camera has recorded its place no better than to a twentieth of one.

All of these are our choices. That there is no physical marker in an asymmetric peak is not: its maximum is what is
called zero loss (Egerton, EELS in the Electron Microscope, section 2.3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from eelsflow.energy import EnergyAxis, check_spectra
from eelsflow.errors import InputError

FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
"""Full width at half maximum of a Gaussian, in standard deviations."""

MAX_OFFSET = 50.0
"""How far from 0 on the nominal axis the peak may lie, eV: beyond is a core loss; our choice."""

_PROMINENT = 0.2  # of the highest: the first such peak is the zero loss, also before a higher plasmon
_NARROW = 2.0  # channels of width below which a peak is fitted
_COARSE_SIGMA = 1.5  # channels, of the filter for a narrow peak with tails: the wider, the less the sampling matters
_TAIL = 0.005  # of a narrow peak's counts may lie left of a Gaussian; more is the spread of a camera
_BLOCK = 4096  # spectra worked on at once
_FIT_SAMPLE = 256  # spectra that the width of a narrow peak is fitted on
_MIN_SIGNIFICANCE = 5.0  # standard errors that the counts in a peak must have

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ZeroLoss:
    """Zero-loss peaks of many pixels.

    Attributes
    ----------
    position
        On the nominal axis, eV, shape (...); NaN where a pixel shows no peak. The offset to *add* to the axis is
        minus this.
    error
        Standard error of the position from counting statistics, eV, shape (...).
    fwhm
        Full width at half maximum as recorded, eV, shape (...).
    resolution
        Full width at half maximum of the mean peak, pixels aligned, eV.
    is_narrow
        Whether the peak is narrower than two channels: the widths are then those of the fitted Gaussian, without the
        channel's.
    """

    position: Array
    error: Array
    fwhm: Array
    resolution: float
    is_narrow: bool


def measure_zero_loss(
    energy_loss: ArrayLike,
    counts: ArrayLike,
    *,
    count_variance: float = 1.0,
    readout_variance: float = 0.0,
    max_drift: float = 5.0,
) -> ZeroLoss:
    """Find the zero-loss peak of every spectrum.

    Parameters
    ----------
    energy_loss
        Channel centres, shape (channels,), eV, uniform, nominal.
    counts
        Shape (..., channels), any number type, not modified.
    count_variance
        Variance of a sum of counts over many channels per count: the gain times 1 + 2 (sum of the correlations over
        channels); 1 for counted electrons.
    readout_variance
        Variance of a channel without counts.
    max_drift
        How far a pixel's peak may lie from that of the summed spectrum, eV.

    Raises
    ------
    InputError
        If the shapes do not agree, or the summed spectrum shows no zero-loss peak with both its flanks.

    Examples
    --------
    >>> energy_loss = -5.0 + 0.25 * np.arange(60)
    >>> peak = 1e5 * np.exp(-0.5 * ((energy_loss - 0.31) / 0.4) ** 2)
    >>> round(float(measure_zero_loss(energy_loss, peak).position), 3)
    0.31
    """
    axis, spectra, shape = flat_spectra(energy_loss, counts)
    summed = spectra.sum(axis=0, dtype=np.float64)
    middle = _locate(axis, summed)
    reach = max(int(np.ceil(max_drift / axis.dispersion)), 2)
    peaks = _highest_near(spectra, middle, reach)
    width = _mean_width(spectra, peaks)
    n = spectra.shape[0]
    position, error, fwhm = np.empty(n), np.empty(n), np.empty(n)
    sigma, narrow = width / FWHM, False
    if width < _NARROW:
        fitted = _fit_width(spectra, peaks, readout_variance)
        # a Gaussian of a camera's tails comes out wider than the peak
        narrow = fitted * FWHM < width and _left_tail(spectra, peaks, fitted) < _TAIL
        sigma = fitted if narrow else _COARSE_SIGMA
    for begin in range(0, n, _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        if narrow:
            found = _fit_gaussians(*_around(spectra[rows], peaks[rows], _fit_reach(sigma)), sigma, readout_variance)
        else:
            window = _around(spectra[rows], peaks[rows], int(np.ceil(4.0 * sigma)) + 2)
            found = _match(*window, sigma, count_variance, readout_variance)
        position[rows], error[rows], fwhm[rows] = found
    if narrow:
        error *= np.sqrt(count_variance)
        resolution = sigma * FWHM
    else:
        resolution = _half_width(align(spectra, position, reach=int(np.ceil(3.0 * width)) + 2).mean(axis=0), width)
        # the matched filter measures a width about the top: calibrated by the mean peak, whatever its shape
        fwhm *= resolution / np.nanmedian(fwhm)
    position = np.where(np.abs(position - middle) <= reach, position, np.nan)
    error, fwhm = (np.where(np.isfinite(position), values, np.nan) for values in (error, fwhm))
    step = axis.dispersion
    return ZeroLoss(
        position=(axis.start + step * position).reshape(shape),
        error=(step * error).reshape(shape),
        fwhm=(step * fwhm).reshape(shape),
        resolution=float(step * resolution),
        is_narrow=bool(narrow),
    )


def flat_spectra(energy_loss: ArrayLike, counts: ArrayLike) -> tuple[EnergyAxis, NDArray[np.floating], tuple[int, ...]]:
    """Return the axis, the counts as (spectra, channels) and the shape of the pixels; refuse what does not agree."""
    axis, values = check_spectra(energy_loss, counts)
    floats = values.astype(np.result_type(values.dtype, np.float32), copy=False)
    return axis, floats.reshape(-1, axis.size), values.shape[:-1]


def align(spectra: NDArray[np.floating], position: Array, *, reach: int) -> Array:
    """Return the channels about each peak, moved by parts of a channel so that every peak lies on the middle one.

    Parameters
    ----------
    spectra
        Shape (n, channels); not modified.
    position
        Of the peaks, shape (n,), channels; spectra whose position is NaN are left out.
    reach
        Channels to either side. Beyond the axis the counts are 0.

    Returns
    -------
    Shape (m, 2 reach + 1).

    Notes
    -----
    Moved by a phase in Fourier space, which is exact for what the channels resolve, on a window with margins whose
    ends are brought to zero by a straight line. Sums over the window are kept but for what crosses its ends.
    """
    seen = np.isfinite(position)
    spectra, position = spectra[seen], position[seen]
    margin = 16
    whole = np.rint(position).astype(np.int64)
    window, _ = _around(spectra, whole, reach + margin)
    n_channels = window.shape[1]
    ramp = np.linspace(0.0, 1.0, n_channels)
    ends = window[:, :1] + (window[:, -1:] - window[:, :1]) * ramp
    size = 2 * n_channels
    transform = np.fft.rfft(window - ends, size)
    phase = np.exp(2j * np.pi * np.fft.rfftfreq(size) * (position - whole)[:, None])
    moved = np.fft.irfft(transform * phase, size)[:, :n_channels] + ends
    return np.asarray(moved[:, margin : n_channels - margin])


def _locate(axis: EnergyAxis, summed: Array) -> int:
    """Return the channel of the first prominent peak of the summed spectrum, if it can be a zero loss."""
    smooth = np.convolve(summed, np.ones(3) / 3.0, mode="same")
    inner = np.arange(1, axis.size - 1)
    is_peak = (smooth[inner] >= smooth[inner - 1]) & (smooth[inner] > smooth[inner + 1])
    candidates = inner[is_peak & (smooth[inner] >= _PROMINENT * smooth.max()) & (smooth[inner] > 0)]
    for peak in candidates[:1]:
        half = 0.5 * smooth[peak]
        has_flanks = smooth[:peak].min(initial=np.inf) < half and smooth[peak:].min() < half
        if has_flanks and abs(axis.start + axis.dispersion * peak) <= MAX_OFFSET:
            nearby = slice(max(peak - 1, 0), peak + 2)
            return int(peak - 1 + np.argmax(summed[nearby]))
    raise InputError(
        f"the spectra show no zero-loss peak: their axis spans {axis}, and no peak with both flanks is the first to "
        f"rise within {MAX_OFFSET:g} eV of zero; give the low loss, recorded from below zero on"
    )


def _highest_near(spectra: NDArray[np.floating], middle: int, reach: int) -> NDArray[np.int64]:
    """Return each spectrum's highest channel, after a mean over three, within `reach` of `middle`."""
    first = max(middle - reach, 1)
    last = min(middle + reach, spectra.shape[1] - 2)
    near = spectra[:, first - 1 : last + 2]
    smooth = near[:, :-2] + near[:, 1:-1] + near[:, 2:]
    # the middle one of three nearly equal sums of a narrow peak is the highest channel
    peak = smooth.argmax(axis=1) + 1
    nearby = peak[:, None] + np.array([-1, 0, 1])
    peak += np.take_along_axis(near, nearby, axis=1).argmax(axis=1) - 1
    return np.asarray(peak + first - 1, dtype=np.int64)


def _around(spectra: NDArray[np.floating], peaks: NDArray[np.int64], reach: int) -> tuple[Array, NDArray[np.int64]]:
    """Return the counts of the channels about each peak, (n, 2 reach + 1), 0 beyond the axis, and the peaks."""
    channels = peaks[:, None] + np.arange(-reach, reach + 1)
    inside = (channels >= 0) & (channels < spectra.shape[1])
    counts = np.take_along_axis(spectra, np.clip(channels, 0, spectra.shape[1] - 1), axis=1).astype(np.float64)
    return np.where(inside, counts, 0.0), peaks


def _mean_width(spectra: NDArray[np.floating], peaks: NDArray[np.int64]) -> float:
    """Return the width at half maximum, channels, of the spectra summed with their highest channels aligned."""
    for reach in (8, 32, 128):
        total = np.zeros(2 * reach + 1)
        for begin in range(0, len(peaks), _BLOCK):
            total += _around(spectra[begin : begin + _BLOCK], peaks[begin : begin + _BLOCK], reach)[0].sum(axis=0)
        width = _crossings(total, reach, 1)
        if width < reach:
            break
    return width


def _crossings(profile: Array, middle: int, fine: int) -> float:
    """Return the distance of the two points about `middle` where a profile falls to half of its maximum there."""
    half = 0.5 * profile[middle]
    below = profile < half
    right = middle + int(below[middle:].argmax()) if below[middle:].any() else profile.size - 1
    left = middle - int(below[middle::-1].argmax()) if below[: middle + 1].any() else 0

    def between(outer: int, inner: int) -> float:
        rise = profile[inner] - profile[outer]
        return outer + (inner - outer) * (half - profile[outer]) / rise if rise > 0 else float(outer)

    return float(between(right, right - 1) - between(left, left + 1)) / fine


def _half_width(profile: Array, width: float) -> float:
    """Return the width at half maximum of an aligned, well sampled peak, channels, between channels by Fourier."""
    fine = 16
    size = profile.size
    ramp = np.linspace(profile[0], profile[-1], size)
    padded = np.zeros(2 * size * fine // 2 + 1, dtype=complex)
    transform = np.fft.rfft(profile - ramp, 2 * size)
    padded[: transform.size] = transform
    dense = fine * np.fft.irfft(padded, 2 * size * fine)[: (size - 1) * fine + 1]
    dense += np.interp(np.arange(dense.size) / fine, np.arange(size), ramp)
    centre = (size // 2) * fine
    near = int(np.ceil(0.5 * width * fine))
    top = centre - near + int(dense[centre - near : centre + near + 1].argmax())
    return _crossings(dense, top, fine)


def _match(
    counts: Array, peaks: NDArray[np.int64], sigma: float, count_variance: float, readout_variance: float
) -> tuple[Array, Array, Array]:
    """Return position, its error and the width (channels) of peaks by the matched filter.

    Parameters
    ----------
    counts
        Of the channels about the peaks, shape (n, 2 reach + 1).
    peaks
        The middle channels.
    sigma
        Standard deviation of the filter, channels.
    """
    reach = counts.shape[1] // 2
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    center = np.zeros(len(counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        for _ in range(12):  # quadratic convergence from within half a width
            distance = x - center[:, None]
            weight = np.exp(-0.5 * (distance / sigma) ** 2)
            first = np.einsum("ij,ij,ij->i", distance, weight, counts)
            slope = np.einsum("ij,ij,ij->i", (distance / sigma) ** 2 - 1.0, weight, counts)
            step = np.where(slope < 0, -first / slope, 0.5 * np.sign(first))
            center += np.clip(step, -0.5, 0.5)
        distance = x - center[:, None]
        weight = np.exp(-0.5 * (distance / sigma) ** 2)
        slope = np.einsum("ij,ij,ij->i", (distance / sigma) ** 2 - 1.0, weight, counts)
        variance = count_variance * np.maximum(counts, 0.0) + readout_variance
        lever = (distance * weight) ** 2
        error = np.sqrt(np.einsum("ij,ij->i", lever, variance)) / -slope
        area = np.einsum("ij,ij->i", weight, counts)
        noise = np.sqrt(np.einsum("ij,ij->i", weight**2, variance))
        spread = np.einsum("ij,ij,ij->i", distance**2, weight, counts) / area
        # peak times filter has the variance spread = s^2 sigma^2 / (s^2 + sigma^2)
        width = FWHM * np.sqrt(np.maximum(spread / np.maximum(1.0 - spread / sigma**2, 0.05), 0.0))
    bad = ~((slope < 0) & (area > _MIN_SIGNIFICANCE * noise) & (np.abs(center) <= reach))
    for values in (center, error, width):
        values[bad] = np.nan
    return center + peaks, error, width


def _fit_reach(sigma: float) -> int:
    return int(np.ceil(4.0 * sigma)) + 2


def _integrated(x: Array, center: Array, sigma: float) -> tuple[Array, Array]:
    """Return the share of a Gaussian in each channel, (n, channels), and its derivative with respect to the centre."""
    edges = np.append(x - 0.5, x[-1] + 0.5) - center[:, None]
    density = np.exp(-0.5 * (edges / sigma) ** 2) / (sigma * np.sqrt(2.0 * np.pi))
    return np.diff(ndtr(edges / sigma), axis=1), -np.diff(density, axis=1)


def _fit_gaussians(
    counts: Array, peaks: NDArray[np.int64], sigma: float, readout_variance: float
) -> tuple[Array, Array, Array]:
    """Return position, its error for Poisson noise and the width (channels) of Gaussians integrated over channels."""
    center, amplitude, curvature, _ = _gauss_newton(counts, sigma, readout_variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = 1.0 / np.sqrt(curvature)
        bad = ~((amplitude > _MIN_SIGNIFICANCE**2) & np.isfinite(error) & (np.abs(center) <= counts.shape[1] // 2))
    center = np.where(bad, np.nan, center)
    return center + peaks, np.where(bad, np.nan, error), np.where(bad, np.nan, FWHM * sigma)


def _gauss_newton(counts: Array, sigma: float, readout_variance: float) -> tuple[Array, Array, Array, Array]:
    """Return centre, amplitude, inverse variance of the centre and weighted misfit of each spectrum."""
    reach = counts.shape[1] // 2
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    # the losses above the peak are no part of it
    use = (x <= max(2.0 * sigma, 1.0) + 0.5).astype(np.float64)
    center = np.zeros(len(counts))
    for _ in range(15):
        share, slope = _integrated(x, center, sigma)
        amplitude = (use * counts).sum(axis=1) / np.maximum((use * share).sum(axis=1), 1e-12)
        model = np.maximum(amplitude, 0.0)[:, None] * share
        # a hundredth of the peak's counts: channels that the model calls empty must not rule the fit
        weight = use / (model + readout_variance + 1e-2 * np.maximum(amplitude, 1.0)[:, None] * share.max())
        gradient = np.maximum(amplitude, 0.0)[:, None] * slope
        # the amplitude is fitted along: what it explains of the gradient is taken out
        shared = (weight * gradient * share).sum(axis=1) / np.maximum((weight * share**2).sum(axis=1), 1e-300)
        gradient = gradient - shared[:, None] * share
        curvature = (weight * gradient**2).sum(axis=1)
        step = (weight * gradient * (counts - model)).sum(axis=1) / np.maximum(curvature, 1e-300)
        center += np.clip(step, -0.3, 0.3)
    share, _ = _integrated(x, center, sigma)
    amplitude = (use * counts).sum(axis=1) / np.maximum((use * share).sum(axis=1), 1e-12)
    model = amplitude[:, None] * share
    misfit = (weight * (counts - model) ** 2).sum(axis=1)
    return center, amplitude, curvature, misfit


def _left_tail(spectra: NDArray[np.floating], peaks: NDArray[np.int64], sigma: float) -> float:
    """Return the share of a narrow peak's counts that lie to the left of where a Gaussian ends."""
    end = int(np.ceil(3.5 * sigma + 1.0))
    total = np.zeros(2 * (end + 6) + 1)
    for begin in range(0, len(peaks), _BLOCK):
        total += _around(spectra[begin : begin + _BLOCK], peaks[begin : begin + _BLOCK], end + 6)[0].sum(axis=0)
    return float(total[:6].sum() / total[6 : 2 * end + 7].sum())


def _fit_width(spectra: NDArray[np.floating], peaks: NDArray[np.int64], readout_variance: float) -> float:
    """Return the standard deviation (channels) of the Gaussian that fits all narrow peaks best."""
    some = np.unique(np.linspace(0, len(peaks) - 1, _FIT_SAMPLE).astype(np.int64))
    counts, _ = _around(spectra[some], peaks[some], _fit_reach(1.0))

    def misfit(log_sigma: float) -> float:
        return float(_gauss_newton(counts, float(np.exp(log_sigma)), readout_variance)[3].sum())

    best = minimize_scalar(misfit, bounds=(np.log(0.1), np.log(1.2)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(best.x))
