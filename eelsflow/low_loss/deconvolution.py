"""Take plural scattering out of a core loss by its low loss: Fourier-ratio deconvolution.

A core-loss electron has lost energy to plasmons too, before or after: the recorded edge J is the single-scattering edge
convolved with the low loss L. With Z the zero-loss peak, ``K = F^-1[Z J / L]`` (Egerton, EELS in the Electron
Microscope, section 4.3.2) is single scattering with the resolution it was recorded at, and as strong as the electrons
make it that lost nothing else: exp(-t/lambda) of the edge's own strength.

What is ours:

- ``Z / L = 1 / (1 + I / Z)`` with I the inelastic part alone. The losses are broad, so I / Z is nought at high
  frequencies, and ``Z* / (Z Z* + .03^2)`` is taken for 1 / Z, which falls to nought with Z: there nothing is divided,
  noise passes as it is, and the resolution stays. `elastic` says what I and Z are.
- A Gaussian of a given width instead of Z: multiply by Gaussian / Z, which amplifies noise where the Gaussian is
  narrower; frequencies at which Z is below a thousandth are cut.
- The transforms are four times as long as the core loss, so that nothing to speak of wraps around. Losses only move
  electrons up, so the end of the core loss needs no taper: nothing behind it reaches before it, but for the width of
  the peak. With a Gaussian the spectrum is continued by its last value, falling to zero over the width of the padding,
  so that no step rings.
- Plural scattering of what lies below the axis is unknown: the background is to be subtracted before, and the axis
  should begin before the edge.
- A low loss of another dispersion is resampled onto the core loss's, counts conserved; one that ends before the core
  loss's range is continued by a power law.

The noise is carried along. K is linear in J, with the impulse response h of the ratio: the variance is the convolution
of the core loss's variance with ``h (h * rho)``, rho the correlation of the noise over channels. The low loss's own
noise comes in by ``dK = -F^-1[K / (Z + I)] * dI``: its variance is convolved with that response squared. Neither counts
the noise of the zero-loss peak, which all electrons share. Neighbouring channels of K are correlated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import next_fast_len

from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError
from eelsflow.low_loss.elastic import ElasticPart
from eelsflow.low_loss.zero_loss import FWHM, flat_spectra
from eelsflow.preprocess.rebin import rebin_conserving, rebin_variance

_SOFT = 0.03  # of the zero loss's intensity: where its transform falls below, losses are not divided by it any more
_FLOOR = 1e-3  # where it falls below this, a Gaussian instead of it is cut
_TAIL_SHARE = 0.2  # of the losses' range that a low loss too short is continued from
_TAIL_EXPONENT = (1.0, 6.0)
_BLOCK = 256  # spectra transformed at once

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]


@dataclass(frozen=True)
class Deconvolved:
    """Core losses without plural scattering.

    Attributes
    ----------
    counts
        Single scattering, counts per channel of the core loss, shape (..., channels); NaN where the low loss shows no
        zero-loss peak.
    variance
        Their variance, counts squared, shape (..., channels); None where the core loss's was not given.
    noise_amplification
        Root of the sum of squares of the impulse response, averaged over the spectra: how much more (or less) a
        channel of independent noise fluctuates than before.
    """

    counts: Array
    variance: Array | None
    noise_amplification: float


def fourier_ratio(
    energy_loss: ArrayLike,
    counts: ArrayLike,
    elastic: ElasticPart,
    low_counts: ArrayLike,
    *,
    reconvolution: float | str = "zero_loss",
    core_variance: ArrayLike | None = None,
    low_variance: ArrayLike | None = None,
    correlation: ArrayLike | None = None,
) -> Deconvolved:
    """Remove plural scattering from background-subtracted core losses.

    Parameters
    ----------
    energy_loss
        Channel centres of the core loss, shape (channels,), eV.
    counts
        Core losses, background subtracted, shape (..., channels); finite, not modified.
    elastic
        The zero-loss peaks of the low losses (see `eelsflow.low_loss.elastic.separate_zero_loss`).
    low_counts
        The low losses that belong to it, shape (..., low channels): one for each spectrum, or a single one for all.
        Only their shape matters, not their intensity.
    reconvolution
        ``"zero_loss"``: the result has the resolution of the recording. A number: the full width at half maximum, eV,
        of the Gaussian that the result has as its zero-loss peak.
    core_variance
        Variance of the core losses, counts squared, shape broadcastable to that of `counts`.
    low_variance
        Variance of the low losses, shape broadcastable to that of `low_counts`; without it they count as noiseless.
    correlation
        Of the noise over core-loss channels at lags 0, 1, ..., starting with 1; none: independent.

    Raises
    ------
    InputError
        If shapes do not agree, values are not finite or the reconvolution is no width.
    """
    axis, spectra, pixels = flat_spectra(energy_loss, counts)
    width = _checked_width(reconvolution)
    if not np.isfinite(spectra).all():
        raise InputError("core-loss counts hold values that are not finite; a transform spreads them over the spectrum")
    low = np.asarray(low_counts, dtype=np.float64).reshape(-1, elastic.axis.size)
    if low.shape[0] != elastic.position.size or low.shape[0] not in (1, spectra.shape[0]):
        raise InputError(
            f"{spectra.shape[0]} core losses, {low.shape[0]} low losses and {elastic.position.size} zero-loss peaks; "
            "expected the same pixels, or one low loss for all"
        )
    missing = ~(np.isfinite(elastic.position) & np.isfinite(elastic.intensity))
    if missing.all():
        raise InputError("no low loss shows a zero-loss peak; there is nothing to deconvolve with")
    elastic = replace(
        elastic,
        position=np.where(missing, np.nanmedian(elastic.position), elastic.position),
        intensity=np.where(missing, 1.0, elastic.intensity),
    )
    kernels = _Kernels(axis, elastic, n_channels=axis.size)
    variance = None if core_variance is None else np.empty(spectra.shape)
    result = np.empty(spectra.shape)
    amplification = np.zeros(spectra.shape[0])
    core_square = None if core_variance is None else np.broadcast_to(core_variance, (*pixels, axis.size))
    if core_square is not None:
        core_square = core_square.reshape(spectra.shape)
    low_square = None
    if low_variance is not None:
        low_square = np.broadcast_to(low_variance, (*elastic.pixels, elastic.axis.size)).reshape(low.shape)
    for begin in range(0, spectra.shape[0], _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        of_low = slice(0, 1) if low.shape[0] == 1 else rows
        inelastic = kernels.inelastic(low[of_low], of_low)
        ratio, loss_ratio = kernels.ratio(inelastic, of_low, width)
        padded = _padded(spectra[rows].astype(np.float64), kernels, continued=width is not None)
        transform = np.fft.rfft(padded, axis=1) * ratio
        result[rows] = np.fft.irfft(transform, kernels.size, axis=1)[:, : axis.size]
        response = np.fft.irfft(ratio, kernels.size, axis=1)
        amplification[rows] = np.sqrt((response**2).sum(axis=1))
        if variance is not None and core_square is not None:
            variance[rows] = _carried(core_square[rows], response, correlation, kernels.size)
            if low_square is not None:
                inelastic_square = kernels.inelastic_variance(low_square[of_low], of_low)
                lever = np.fft.irfft(transform * loss_ratio, kernels.size, axis=1)
                # losses enter by their own channel alone: a convolution with the lever, squared
                spread = np.fft.rfft(lever**2, axis=1) * np.fft.rfft(inelastic_square, kernels.size, axis=1)
                variance[rows] += np.maximum(np.fft.irfft(spread, kernels.size, axis=1)[:, : axis.size], 0.0)
    if missing.size > 1 and missing.any():
        result[missing], amplification[missing] = np.nan, np.nan
        if variance is not None:
            variance[missing] = np.nan
    shape = (*pixels, axis.size)
    return Deconvolved(
        counts=result.reshape(shape),
        variance=None if variance is None else variance.reshape(shape),
        noise_amplification=float(np.nanmean(amplification)),
    )


def _checked_width(reconvolution: float | str) -> float | None:
    if reconvolution == "zero_loss":
        return None
    if isinstance(reconvolution, str) or not (np.isfinite(reconvolution) and reconvolution > 0):
        raise InputError(f"reconvolution is {reconvolution!r}; expected 'zero_loss' or a fwhm in eV above 0")
    return float(reconvolution)


class _Kernels:
    """Low losses on the channels of the core loss, by loss from 0, and the ratios of their transforms."""

    def __init__(self, axis: EnergyAxis, elastic: ElasticPart, *, n_channels: int) -> None:
        self.elastic, self.step = elastic, axis.dispersion
        self.same = abs(elastic.axis.dispersion / axis.dispersion - 1.0) * elastic.axis.size < 0.05
        self.n_losses = n_channels
        # Z / L holds every order of the losses: those that reach four times the range wrap around, which are few
        self.size = int(next_fast_len(4 * n_channels + 128, real=True))
        self.peak = self._peak_transform()

    def _peak_transform(self) -> Complex:
        """Return the transform of the peak about its own position, 1 at frequency 0, shape (frequencies,)."""
        frequency = np.fft.rfftfreq(self.size)
        elastic = self.elastic
        scale = elastic.axis.dispersion / self.step  # channels of the core loss per channel of the low loss
        if elastic.sigma > 0:
            gaussian = np.exp(-2.0 * (np.pi * elastic.sigma * scale * frequency) ** 2)
            return np.asarray(np.sinc(scale * frequency) * gaussian, dtype=np.complex128)
        x = scale * np.arange(-elastic.reach, elastic.reach + 1)
        transform = np.exp(-2j * np.pi * frequency[:, None] * x) @ elastic.shape
        # a coarser low loss shows nothing beyond its own highest frequency
        return np.asarray(np.where(scale * frequency <= 0.5, transform, 0.0))

    def inelastic(self, low: Array, rows: slice) -> Array:
        """Return the inelastic counts by loss, shape (n, n_losses), on channels of the core loss's width."""
        counts = low.copy()
        position = self.elastic.position[rows]
        channel = np.arange(low.shape[1], dtype=np.float64)
        part = self._elastic_counts(rows, channel)
        counts -= part
        counts[channel <= position[:, None] + self.elastic.window[1] + 0.5] = 0.0
        return self._by_loss(counts, position, continued=True)

    def inelastic_variance(self, variance: Array, rows: slice) -> Array:
        """Return the variance of the inelastic counts by loss, shape (n, n_losses)."""
        position = self.elastic.position[rows]
        channel = np.arange(variance.shape[1])
        values = np.where(channel <= position[:, None] + self.elastic.window[1] + 0.5, 0.0, variance)
        return self._by_loss(values, position, continued=False, squares=True)

    def _elastic_counts(self, rows: slice, channel: Array) -> Array:
        positions, intensities = self.elastic.position[rows], self.elastic.intensity[rows]
        return np.stack(
            [
                intensity * self.elastic.at(channel - position)
                for position, intensity in zip(positions, intensities, strict=True)
            ]
        )

    def _by_loss(self, values: Array, position: Array, *, continued: bool, squares: bool = False) -> Array:
        """Return values by loss: channel k holds the losses about k channels; parts of a channel are left as they are.

        `ratio` takes the part of a channel out by a phase.
        """
        elastic = self.elastic
        n, n_channels = values.shape
        result = np.zeros((n, self.n_losses))
        first = np.rint(position).astype(np.int64)
        if self.same:
            index = first[:, None] + np.arange(self.n_losses)
            inside = (index >= 0) & (index < n_channels)
            result = np.where(inside, np.take_along_axis(values, np.clip(index, 0, n_channels - 1), axis=1), 0.0)
            end = np.clip(n_channels - first, 0, self.n_losses)
        else:
            resample = rebin_variance if squares else rebin_conserving
            end = np.zeros(n, dtype=np.int64)
            for place in np.unique(first):
                same = first == place
                losses = EnergyAxis(-place * elastic.axis.dispersion, elastic.axis.dispersion, n_channels)
                target = EnergyAxis(0.0, self.step, self.n_losses)
                moved = resample(losses.values, values[same], target)
                covered = np.isfinite(moved[0])
                result[same] = np.where(covered, moved, 0.0)
                end[same] = int(covered.sum())
        return _continued(result, end) if continued else result

    def ratio(self, inelastic: Array, rows: slice, width: float | None) -> tuple[Complex, Complex]:
        """Return the ratio Z / L (or Gaussian / L) and what it changes by, relatively, per inelastic count.

        Both by frequency, shape (n, frequencies).
        """
        frequency = np.fft.rfftfreq(self.size)
        elastic = self.elastic
        place, intensity = elastic.position[rows], elastic.intensity[rows]
        scale = elastic.axis.dispersion / self.step
        part = scale * (place - np.rint(place))  # where loss 0 lies within its channel
        phase = np.exp(2j * np.pi * frequency * part[:, None])
        peak = self.peak
        losses = np.fft.rfft(inelastic, self.size, axis=1)
        power = np.abs(peak) ** 2
        # 1 / Z where Z stands out, falling to 0 where it does not
        division = phase * (peak.conj() * (1.0 + _SOFT**2) / (power + _SOFT**2)) / intensity[:, None]
        ratio: Complex = np.reciprocal(1.0 + losses * division)
        response = ratio * division
        if width is not None:
            sigma = width / FWHM / self.step
            gaussian = np.exp(-2.0 * (np.pi * sigma * frequency) ** 2)
            visible = np.abs(peak) > _FLOOR
            ratio = ratio * np.where(visible, gaussian / np.where(visible, peak, 1.0), 0.0)
        return ratio, response


def _continued(losses: Array, end: NDArray[np.int64]) -> Array:
    """Continue losses beyond the channel that their axis ends with by the power law of all of them."""
    n_losses = losses.shape[1]
    last = int(end.min(initial=n_losses))
    if last >= n_losses or last < 40:
        return losses
    begin = int((1.0 - _TAIL_SHARE) * last)
    middle = (begin + last) // 2
    near, far = losses[:, begin:middle].mean(), losses[:, middle:last].mean()
    if min(near, far) <= 0:
        return losses
    k = np.arange(1, n_losses + 1, dtype=np.float64)
    distance = np.log(k[middle:last]).mean() - np.log(k[begin:middle]).mean()
    exponent = float(np.clip(np.log(near / far) / distance, *_TAIL_EXPONENT))
    window = (k[begin:last] ** -exponent).sum()
    level = losses[:, begin:last].sum(axis=1) / window
    result = losses.copy()
    result[:, last:] = np.maximum(level, 0.0)[:, None] * k[last:] ** -exponent
    return result


def _padded(spectra: Array, kernels: _Kernels, *, continued: bool) -> Array:
    n_channels = spectra.shape[1]
    padded = np.zeros((spectra.shape[0], kernels.size))
    padded[:, :n_channels] = spectra
    if continued:
        room = kernels.size - n_channels
        fall = 0.5 * (1.0 + np.cos(np.pi * (np.arange(room) + 1.0) / (room + 1.0)))
        padded[:, n_channels:] = spectra[:, -8:].mean(axis=1, keepdims=True) * fall
    return padded


def _carried(variance: Array, response: Array, correlation: ArrayLike | None, size: int) -> Array:
    """Return the variance after convolution with a response, (n, channels)."""
    lever = response**2
    if correlation is not None:
        rho = np.asarray(correlation, dtype=np.float64)
        neighbours = rho[0] * response
        for lag in range(1, rho.size):
            neighbours = neighbours + rho[lag] * (np.roll(response, lag, axis=1) + np.roll(response, -lag, axis=1))
        lever = response * neighbours
    spread = np.fft.rfft(lever, axis=1) * np.fft.rfft(variance, size, axis=1)
    return np.asarray(np.maximum(np.fft.irfft(spread, size, axis=1)[:, : variance.shape[1]], 0.0))
