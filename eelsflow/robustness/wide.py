"""Perturbations of wide spectra, before the transform: noise of the instrument, dose, dispersion, plural scattering.

Wide spectra are background-subtracted and not normalised, NaN where the detector ended. What is done to them passes
through the transform as a recording would: through its principal components and its normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.energy import Axis, EnergyAxis, stretches

Wide = NDArray[np.float32]

N_LEADING = 10
"""Components that are left alone where the residual is scaled: the tenth is beyond what stands above the noise."""

MAX_TRAINING = 4096
"""Training spectra that the leading components and the colour of the noise are read from; more say nothing new."""

_BLOCK = 4096  # spectra that noise is drawn for at once


@dataclass(frozen=True)
class Residual:
    """What the leading components of training spectra leave over: the noise of the instrument.

    Attributes
    ----------
    channels
        Shape (channels,): where all training spectra were recorded.
    mean
        Shape (recorded channels,).
    components
        Orthonormal, shape (components, recorded channels).
    colour
        Amplitude of the noise against frequency, shape (channels // 2 + 1,), its mean square over all frequencies 1.
        The leading components take some smooth noise with them, so it is a little whiter than the detector's.
    """

    channels: NDArray[np.bool_]
    mean: Wide
    components: Wide
    colour: NDArray[np.float64]

    @classmethod
    def fit(
        cls, training: Wide, *, variance: NDArray[np.float32] | None = None, n_components: int = N_LEADING
    ) -> Residual:
        """Fit on wide training spectra.

        Parameters
        ----------
        training
            Shape (n, channels); not modified. `MAX_TRAINING` of them are enough.
        variance
            Of `training`, if known. Where the residual has less than a tenth of it, the spectra were denoised, the
            residual is not the detector's, and the noise is taken as white.
        n_components
            How many lead.
        """
        channels = np.asarray(np.isfinite(training).all(axis=0))
        spectra = training[:, channels].astype(np.float64)
        mean = spectra.mean(axis=0)
        centred = spectra - mean
        n_kept = min(n_components, *centred.shape)
        _, basis = np.linalg.eigh(centred.T @ centred)
        components = np.ascontiguousarray(basis[:, ::-1][:, :n_kept].T)
        noise = centred - (centred @ components.T) @ components
        colour = np.ones(training.shape[1] // 2 + 1)
        known = variance is None or np.square(noise).mean() > 0.1 * float(np.nanmean(variance[:, channels]))
        if known and noise.any():
            colour = _colour(noise, training.shape[1])
        return cls(channels, mean.astype(np.float32), components.astype(np.float32), colour)

    def scale(self, wide: Wide, factor: float) -> Wide:
        """Return spectra with what the leading components leave over multiplied by `factor`.

        Parameters
        ----------
        wide
            Shape (n, channels); not modified. A spectrum is left alone in channels that it or the training lacks.
        factor
            1 leaves the spectra as they are.

        Notes
        -----
        The components are those of the wide spectra and not of the vectors: vectors that were projected on components
        have no residual to scale, whereas the residual of a wide spectrum has a part along the transform's own
        components, which are fitted on the fine-structure window. Spectra of an image that was denoised as a whole (the
        preset `paper`) have next to none: for them this curve says nothing.
        """
        lacking = ~np.isfinite(wide[:, self.channels])
        centred = np.where(lacking, 0, wide[:, self.channels] - self.mean)
        residual = centred - (centred @ self.components.T) @ self.components
        louder = wide.copy()
        louder[:, self.channels] += np.where(lacking, 0, np.float32(factor - 1) * residual)
        return louder

    def draw(self, n_spectra: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw noise of unit variance, correlated over channels as the residual is; shape (n_spectra, channels)."""
        white = rng.standard_normal((n_spectra, self.channels.size))
        return np.asarray(np.fft.irfft(np.fft.rfft(white, axis=1) * self.colour, n=self.channels.size, axis=1))


def _colour(noise: NDArray[np.float64], n_channels: int) -> NDArray[np.float64]:
    """Return the amplitude spectrum of noise on `n_channels`, read from its autocorrelation on the recorded ones."""
    spread = noise.std(axis=0)
    scaled = noise / np.where(spread > 0, spread, 1.0)
    size = 2 * noise.shape[1]  # zeros behind it, so that the ends do not meet
    power = np.square(np.abs(np.fft.rfft(scaled, n=size, axis=1))).mean(axis=0)
    correlation = np.fft.irfft(power, n=size)[: noise.shape[1]] / (noise.shape[1] - np.arange(noise.shape[1]))
    # a detector's point spread, resampled, reaches 15 channels; the taper must leave it standing
    n_lags = min(64, n_channels // 4, noise.shape[1])
    around = np.zeros(n_channels)
    around[:n_lags] = correlation[:n_lags] * (1.0 - np.arange(n_lags) / n_lags)  # a taper, so that no power is negative
    around[1:] += around[1:][::-1]
    colour = np.sqrt(np.maximum(np.fft.rfft(around).real, 0.0))
    full = np.square(np.concatenate([colour, colour[1 : (n_channels + 1) // 2]])).mean()
    return np.asarray(colour / np.sqrt(full)) if full > 0 else np.ones_like(colour)


def lower_dose(
    wide: Wide,
    variance: NDArray[np.float32],
    *,
    dose: float | NDArray[np.floating[Any]],
    residual: Residual,
    rng: np.random.Generator,
) -> Wide:
    """Return spectra as a lower dose would have recorded them.

    Parameters
    ----------
    wide
        Shape (n, channels); not modified.
    variance
        Of `wide`, shape (n, channels): that of the counts before the background was subtracted.
    dose
        Relative to the recording, above 0 and at most 1; one of all spectra, or one of each, (n,).
    residual
        Of the training spectra: how the noise is correlated over channels.
    rng
        Source of the draws.

    Notes
    -----
    Counts at dose d have d times the variance V of the recorded ones; scaled back by 1 / d they have V / d. Recorded
    spectra bring V, so Gaussian noise of variance ``V (1 / d - 1)`` is added. V is that of background and edge
    together, so the background's noise is in it. It includes the read-out's, which does not fall with the dose: at
    small doses the true noise is a little larger. Spectra that were denoised (the preset `paper`) get noise that is not
    denoised again.
    """
    share = np.broadcast_to(np.asarray(dose, dtype=np.float64), len(wide))[:, None]
    if not np.all((share > 0) & (share <= 1)):
        raise ValueError(f"the dose is {dose} times the recording's; noise can only be added, so choose above 0, to 1")
    noisy = np.empty(wide.shape, dtype=np.float32)
    for begin in range(0, len(wide), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        deviation = np.sqrt(np.maximum(variance[rows], 0) * (1.0 / share[rows] - 1.0))
        noisy[rows] = wide[rows] + deviation * residual.draw(len(deviation), rng)
    return noisy


def broaden(
    wide: Wide,
    axis: Axis,
    *,
    fwhm_ev: float,
    variance: NDArray[np.float32] | None,
    residual: Residual,
    rng: np.random.Generator,
) -> Wide:
    """Return spectra as a coarser energy resolution would have recorded them.

    Parameters
    ----------
    wide
        Shape (n, channels), on `axis`; not modified. NaN stays NaN.
    fwhm_ev
        Full width at half maximum of the Gaussian that the resolution grows by in squares, eV; 0 changes nothing.
    variance
        Of `wide`; None: not known, and then the noise is blurred with the signal, and the spectra are smoother for it.
    residual
        Of the training spectra: how the noise is correlated over channels.
    rng
        Source of the draws.

    Notes
    -----
    A resolution blurs the electrons' energies before they are counted, not the noise of the counts. So what the blur
    takes from the noise is drawn anew: noise of the recorded variance with the share ``1 - G^2`` of each frequency,
    where the Gaussian passes G.
    """
    if fwhm_ev == 0:
        return wide
    blurred = blur(wide, axis, fwhm_ev=np.full(len(wide), fwhm_ev))
    if variance is None:
        return blurred
    passed = _passed(np.full(1, fwhm_ev), axis, wide.shape[1])
    for begin in range(0, len(wide), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        noise = np.fft.rfft(residual.draw(len(blurred[rows]), rng), axis=1) * np.sqrt(1.0 - passed**2)
        deviation = np.sqrt(np.maximum(variance[rows], 0))
        blurred[rows] += deviation * np.fft.irfft(noise, n=wide.shape[1], axis=1)
    return blurred


def _by_stretch(wide: Wide, axis: Axis, change: Callable[[Wide, EnergyAxis], Wide]) -> Wide:
    """Return spectra changed stretch by stretch of their axis: nothing passes from one edge to the other."""
    changed = [change(wide[:, where], piece) for piece, where in stretches(axis)]
    return np.concatenate(changed, axis=1) if len(changed) > 1 else changed[0]


def blur(wide: Wide, axis: Axis, *, fwhm_ev: NDArray[np.float64]) -> Wide:
    """Return spectra folded with Gaussians, signal and noise alike; NaN stays NaN.

    Parameters
    ----------
    wide
        Shape (n, channels), on `axis`; not modified.
    fwhm_ev
        Full width at half maximum for each spectrum, (n,), eV.
    """
    return _by_stretch(wide, axis, partial(_blur, fwhm_ev=fwhm_ev))


def _blur(wide: Wide, axis: EnergyAxis, fwhm_ev: NDArray[np.float64]) -> Wide:
    filled, _, _ = _hold_edges(wide)
    size = 2 * wide.shape[1]
    blurred = np.empty(wide.shape, dtype=np.float32)
    for begin in range(0, len(wide), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        # mirrored at its end, so that neither end meets the other
        image = np.fft.rfft(np.concatenate([filled[rows], filled[rows, ::-1]], axis=1), axis=1)
        image *= _passed(fwhm_ev[rows], axis, size)
        blurred[rows] = np.fft.irfft(image, n=size, axis=1)[:, : wide.shape[1]]
    return np.where(np.isfinite(wide), blurred, np.float32(np.nan))


def _passed(fwhm_ev: NDArray[np.float64], axis: Axis, size: int) -> NDArray[np.float64]:
    """Return what Gaussians pass of each frequency of so many channels, (n, size // 2 + 1)."""
    sigma = fwhm_ev[:, None] / (2.0 * np.sqrt(2.0 * np.log(2.0))) / axis.dispersion
    return np.asarray(np.exp(-2.0 * np.square(np.pi * sigma * np.fft.rfftfreq(size))))


def stretch_axis(wide: Wide, axis: Axis, *, reference_energy: float, error: float) -> tuple[Wide, NDArray[np.bool_]]:
    """Return spectra as recorded with a wrong dispersion, right at the edge's reference energy.

    Parameters
    ----------
    wide
        Shape (n, channels), on `axis`; not modified.
    reference_energy
        Where the axis stays right, eV.
    error
        Relative error of the dispersion: a feature d eV above the reference appears ``(1 + error) d`` above it.

    Returns
    -------
    stretched
        Same shape, by linear interpolation; beyond what was recorded the last value is held.
    recorded
        Same shape: where the value was recorded and not held.
    """
    found = [_stretch(wide[:, where], piece, reference_energy, error) for piece, where in stretches(axis)]
    stretched, recorded = zip(*found, strict=True)
    return np.concatenate(stretched, axis=1), np.concatenate(recorded, axis=1)


def _stretch(wide: Wide, axis: EnergyAxis, reference_energy: float, error: float) -> tuple[Wide, NDArray[np.bool_]]:
    filled, first, last = _hold_edges(wide)
    origin = (reference_energy - axis.start) / axis.dispersion
    channel = np.arange(axis.size)
    position = origin + (channel - origin) / (1.0 + error)
    inside = np.clip(position, 0, axis.size - 1)
    below = np.minimum(inside.astype(np.intp), axis.size - 2)
    fraction = (inside - below).astype(np.float32)
    stretched = filled[:, below] + fraction * (filled[:, below + 1] - filled[:, below])
    # a thousandth of a channel is rounding, not missing data
    recorded = (position >= first - 1e-3) & (position <= last + 1e-3)
    return np.asarray(stretched, dtype=np.float32), recorded


def _hold_edges(wide: Wide) -> tuple[Wide, NDArray[np.intp], NDArray[np.intp]]:
    """Return spectra with their first and last recorded value held where NaN, and which channels these are (n, 1)."""
    recorded = np.isfinite(wide)
    first = recorded.argmax(axis=1)[:, None]
    last = wide.shape[1] - 1 - recorded[:, ::-1].argmax(axis=1)[:, None]
    if recorded.all():
        return wide, first, last
    return np.take_along_axis(wide, np.clip(np.arange(wide.shape[1]), first, last), axis=1), first, last


def scatter_again(wide: Wide, axis: Axis, *, relative_thickness: float) -> Wide:
    """Return spectra as if the specimen were thicker: the edge scattered once more by the plasmons.

    Parameters
    ----------
    wide
        Shape (n, channels), on `axis`; not modified. NaN stays NaN.
    relative_thickness
        Thickness over inelastic mean free path that is added, t/lambda; 0 changes nothing.

    Notes
    -----
    A Poisson series of plasmon losses (Egerton, EELS in the Electron Microscope, section 3.4): with P the distribution
    of one loss, a plasmon of 23.5 eV and 15 eV width in Drude's form (assumed for iron oxides), the spectrum is
    convolved with ``sum_k exp(-t) t^k / k! P^k``. Losses only move intensity to higher energy, and nothing is lost
    below the window's start, where a background-subtracted edge is zero; so the window holds all that can enter it.
    The subtracted background and the noise of the thicker specimen are left out: shape alone is tested.
    """
    return _by_stretch(wide, axis, partial(_scatter_again, relative_thickness=relative_thickness))


def _scatter_again(wide: Wide, axis: EnergyAxis, relative_thickness: float) -> Wide:
    recorded = np.isfinite(wide)
    mixed = np.where(recorded, wide, 0) @ _plural_scattering(axis.dispersion, axis.size, relative_thickness)
    return np.where(recorded, mixed, np.float32(np.nan))


@lru_cache(maxsize=16)
def _plural_scattering(dispersion: float, n_channels: int, relative_thickness: float) -> NDArray[np.float32]:
    """Return the matrix that spectra are multiplied by from the right, shape (channels, channels)."""
    from eelsflow.simulator.edges import NOMINAL_LOW_LOSS  # takes long, and few need it

    plasmon = NOMINAL_LOW_LOSS.single_plasmon(step=dispersion)
    plasmon = np.pad(plasmon, (0, max(n_channels - plasmon.size, 0)))[:n_channels]
    order = np.zeros(n_channels)
    order[0] = np.exp(-relative_thickness)
    kernel, k = order.copy(), 0
    while order.sum() > 1e-9:
        k += 1
        order = np.convolve(order, plasmon)[:n_channels] * relative_thickness / k
        kernel += order
    lag = np.arange(n_channels)[None, :] - np.arange(n_channels)[:, None]
    matrix = np.where(lag >= 0, kernel[np.maximum(lag, 0)], 0).astype(np.float32)
    matrix.setflags(write=False)  # it is cached: nobody may change it
    return matrix
