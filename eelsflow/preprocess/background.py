"""Fit and subtract the power-law background before an edge, for all pixels at once.

Model: ``b(E) = A (E / E0)^-r`` with the pivot ``E0`` at the geometric centre of the pre-edge window, so that the
amplitude ``A`` (counts in the channel at E0) and the exponent ``r`` are almost uncorrelated.

The fit is weighted least squares on the *counts*, never on their logarithm: the logarithm of noisy counts is biased
low and does not exist for zero and negative counts. Given r the amplitude is a closed form; r takes Gauss-Newton
steps, a handful of which reach rounding because over a pre-edge window the model is nearly linear in r. The weights
come from the fitted model, not from the data, so that a low count does not weigh more than a high one.

A single pixel hardly determines its exponent: over a 27 eV window before O K the error of r is about 60 times the
relative error of A. Its extrapolation under the edge is noise unless r is held together by the acquisition: with
`shrink`, r has the prior N(mean, tau^2) of the acquisition's pixels (empirical Bayes), tau^2 by the method of moments
of DerSimonian & Laird (Control. Clin. Trials 7, 177, 1986). The sums behind it can be merged, so an image in blocks
gives the same prior as the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.energy import Window, check_spectra, format_window
from eelsflow.errors import EdgeOutOfRangeError, InputError
from eelsflow.preprocess.kernels import fit_power_laws

_SIGNIFICANCE = 3.0  # an amplitude below this many standard errors is not a signal
_PRIOR_SIGNIFICANCE = 10.0  # amplitudes above it let r be fitted without a prior and without noticeable bias
_EXPONENT_BOUNDS = (-10.0, 20.0)  # physical values are 2 to 6; an unshrunk fit of noise goes anywhere
_MIN_CHANNELS = 6
_MIN_COVERAGE = 1 / 3  # of the window's width: the error of r grows as width^-1.5, five-fold at a third
_N_STEPS = 12  # at most; 4 or 5 do but for noise that runs to a bound
_CONVERGED = 1e-8  # step in r at which the fit has converged: far below any error of r
_BLOCK = 4096  # spectra worked on at once, so that temporaries stay in the cache


class PowerLawStatus(IntEnum):
    """How the background of a pixel was found."""

    OK = 0
    """The pixel's own counts determine both parameters."""
    SHRUNK = 1
    """The exponent comes mostly from the other pixels of the acquisition."""
    NO_SIGNAL = 2
    """No background above noise (amplitude below 3 standard errors). The fit is kept, small and possibly negative:
    subtracting it is unbiased. The exponent is the acquisition's."""
    AT_BOUND = 3
    """The exponent ran to a bound: the counts do not fall like a power law; do not trust the extrapolation."""
    INVALID = 4
    """Counts in the window are not finite; the parameters are NaN and so is everything subtracted with them."""


class Noise(Protocol):
    """What the fit needs of a noise model (see `eelsflow.preprocess.noise.NoiseModel`)."""

    @property
    def gain(self) -> float:
        """Slope of the variance against expected counts, counts."""
        ...

    @property
    def readout_variance(self) -> float:
        """Variance at zero expected counts, counts squared."""
        ...

    @property
    def correlation(self) -> NDArray[np.floating[Any]]:
        """Autocorrelation of the noise over channels at lags 0, 1, ..., shape (lags,)."""
        ...


@dataclass(frozen=True)
class ExponentPrior:
    """What an acquisition says about the exponent of its pixels: r ~ N(mean, variance).

    The default is for acquisitions in which no pixel shows a background: the range 2.5-4.5 of textbooks.
    """

    mean: float = 3.5
    variance: float = 0.25


@dataclass(frozen=True)
class ExponentMoments:
    """Sums over pixels from which the prior follows; add those of blocks with ``+``, in a fixed order."""

    n: int = 0
    weight: float = 0.0
    weight_square: float = 0.0
    first: float = 0.0
    second: float = 0.0

    def __add__(self, other: ExponentMoments) -> ExponentMoments:
        return ExponentMoments(
            self.n + other.n,
            self.weight + other.weight,
            self.weight_square + other.weight_square,
            self.first + other.first,
            self.second + other.second,
        )

    def prior(self) -> ExponentPrior:
        """Return the prior: inverse-variance mean, and the spread beyond sampling errors (DerSimonian-Laird)."""
        if self.n == 0:
            return ExponentPrior()
        mean = self.first / self.weight
        excess = self.second - self.first * mean - (self.n - 1)
        freedom = self.weight - self.weight_square / self.weight
        variance = excess / freedom if self.n > 1 else 0.0
        # At least .01^2: pixels are never exactly alike, and a variance of zero would leave no way back.
        return ExponentPrior(mean, max(variance, 1e-4))


@dataclass(frozen=True)
class PowerLawFit:
    """Power laws of many pixels.

    Attributes
    ----------
    amplitude
        Counts per detector channel at `pivot_energy`, shape (...).
    exponent
        r, shape (...), dimensionless, positive for a falling background.
    status
        `PowerLawStatus` of each pixel, shape (...), uint8.
    covariance
        Of (amplitude, exponent), shape (..., 2, 2).
    pivot_energy
        E0, eV: the geometric centre of the window.
    prior
        The prior of the exponent that was used; None without shrinking.
    """

    amplitude: NDArray[np.float64]
    exponent: NDArray[np.float64]
    status: NDArray[np.uint8]
    covariance: NDArray[np.float64] = field(repr=False)
    pivot_energy: float
    prior: ExponentPrior | None

    def evaluate(self, energy_loss: ArrayLike) -> NDArray[np.float64]:
        """Return the background, counts per detector channel, shape (..., channels).

        Parameters
        ----------
        energy_loss
            Channel centres, shape (channels,), eV, positive; on the axis that was fitted.
        """
        log_energy = self._log_energy(energy_loss)
        background: NDArray[np.float64] = np.exp(-self.exponent[..., None] * log_energy)
        background *= self.amplitude[..., None]
        return background

    def variance(self, energy_loss: ArrayLike) -> NDArray[np.float64]:
        """Return the variance of the background, shape (..., channels), from the covariance of the parameters.

        ``var b = f^2 (var A - 2 A l cov(A, r) + A^2 l^2 var r)`` with ``l = ln(E/E0)`` and ``f = (E/E0)^-r``. The
        errors of neighbouring channels are wholly correlated. In the pre-edge window itself they are also correlated
        with the counts, which were used for the fit; beyond it the two variances add.
        """
        log_energy = self._log_energy(energy_loss)
        shape = np.exp(-self.exponent[..., None] * log_energy)
        slope = -self.amplitude[..., None] * log_energy
        covariance = self.covariance[..., None]
        amplitude_variance, cross, exponent_variance = (covariance[..., i, j, :] for i, j in ((0, 0), (0, 1), (1, 1)))
        result: NDArray[np.float64] = (
            shape * shape * (amplitude_variance + slope * (2 * cross + slope * exponent_variance))
        )
        return result

    def _log_energy(self, energy_loss: ArrayLike) -> NDArray[np.float64]:
        result: NDArray[np.float64] = np.log(np.asarray(energy_loss, dtype=np.float64) / self.pivot_energy)
        return result


def fit_power_law(
    energy_loss: ArrayLike,
    counts: ArrayLike,
    window: Window,
    *,
    noise: Noise | None = None,
    shrink: bool = True,
    prior: ExponentPrior | None = None,
) -> PowerLawFit:
    """Fit the power-law background of every spectrum.

    Parameters
    ----------
    energy_loss
        Channel centres, shape (channels,), eV, uniform; corrected for the energy offset.
    counts
        Shape (..., channels), any number type; not modified. Negative and zero counts are ordinary values.
    window
        Pre-edge window, eV. It may overhang the axis by up to two thirds of its width; then the part on the axis is
        used and the errors grow accordingly.
    noise
        Variance of counts and its correlation over channels. None: variance proportional to the fitted counts, with
        the factor from the scatter of each spectrum about its fit, and independent channels.
    shrink
        Whether the exponents are held together by a prior.
    prior
        The acquisition's prior, for one block of it (from `exponent_moments` of all its blocks); None: from `counts`.

    Returns
    -------
    Parameters, their covariance and a status for each spectrum. No background is ever silently zero: see
    `PowerLawStatus`.

    Raises
    ------
    EdgeOutOfRangeError
        If the axis covers less than a third of the window, or fewer than 6 channels of it.
    InputError
        If the shapes do not agree.
    """
    data = _Window.of(energy_loss, counts, window)
    if shrink and prior is None:
        prior = exponent_moments(energy_loss, counts, window, noise=noise).prior()
    used = prior if shrink else None
    # Without shrinking a spectrum without signal still needs an exponent; nothing better is known than the default.
    fallback = (prior or ExponentPrior()).mean
    n = data.counts.shape[0]
    amplitude, exponent = np.empty(n), np.empty(n)
    status, covariance = np.empty(n, dtype=np.uint8), np.empty((n, 2, 2))
    for begin in range(0, n, _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        amplitude[rows], exponent[rows], status[rows], covariance[rows] = _fit_block(
            data.counts[rows].astype(np.float64), data.log_energy, noise, used, fallback
        )
    shape = data.shape
    return PowerLawFit(
        amplitude=amplitude.reshape(shape),
        exponent=exponent.reshape(shape),
        status=status.reshape(shape),
        covariance=covariance.reshape(*shape, 2, 2),
        pivot_energy=data.pivot_energy,
        prior=used,
    )


def exponent_moments(
    energy_loss: ArrayLike, counts: ArrayLike, window: Window, *, noise: Noise | None = None
) -> ExponentMoments:
    """Return what these spectra say about the acquisition's exponents; sums of blocks make its prior.

    Parameters are those of `fit_power_law`. Only spectra whose background stands 10 standard errors above zero
    count, so that neither vacuum nor the bias of a nonlinear fit at low counts enters.

    Raises
    ------
    EdgeOutOfRangeError, InputError
        As `fit_power_law`.
    """
    data = _Window.of(energy_loss, counts, window)
    moments = ExponentMoments()
    for begin in range(0, data.counts.shape[0], _BLOCK):
        block = data.counts[begin : begin + _BLOCK].astype(np.float64)
        amplitude, exponent, status, covariance = _fit_block(block, data.log_energy, noise, None, 0.0)
        deviation = np.sqrt(covariance[:, 0, 0])
        use = (status == PowerLawStatus.OK) & (amplitude > _PRIOR_SIGNIFICANCE * deviation)
        # A noiseless spectrum has no error; 1e-6 keeps its weight finite.
        weight = 1.0 / np.maximum(covariance[use, 1, 1], 1e-12)
        r = exponent[use]
        moments += ExponentMoments(
            n=int(np.count_nonzero(use)),
            weight=float(weight.sum()),
            weight_square=float(weight @ weight),
            first=float(weight @ r),
            second=float(weight @ (r * r)),
        )
    return moments


def pooled_prior(energy_loss: ArrayLike, spectrum: ArrayLike, window: Window, prior: ExponentPrior) -> ExponentPrior:
    """Return the prior of an acquisition of few electrons a pixel, whose exponent the pixels only know together.

    Parameters
    ----------
    energy_loss
        Channel centres, shape (channels,), eV.
    spectrum
        Electrons of all pixels with specimen, summed, shape (channels,).
    window
        Pre-edge window, eV.
    prior
        What single pixels say, from `ExponentMoments.prior`: how far they spread is taken from it.

    Returns
    -------
    ExponentPrior
        Around the exponent of the sum. A sum that does not know it to .5 either leaves the default.

    Raises
    ------
    EdgeOutOfRangeError, InputError
        As `fit_power_law`.

    Notes
    -----
    Weighted by the fitted counts themselves, least squares are the score equations of Poisson's likelihood, so the fit
    of the sum is the maximum-likelihood estimate, and that of few counts is not biased as one weighted by the counts.
    Pixels whose fit stands ten standard errors above zero are chosen by their noise where the others do not, and the
    mean of their exponents may lie anywhere; so their spread is not taken for more than the default's either. The
    choices are ours.
    """
    usual = ExponentPrior()
    data = _Window.of(energy_loss, spectrum, window)
    _, exponent, status, covariance = _fit_block(
        data.counts.astype(np.float64), data.log_energy, _Counted(), None, usual.mean
    )
    error = float(covariance[0, 1, 1])
    if status[0] != PowerLawStatus.OK or not error < usual.variance:
        return usual
    return ExponentPrior(float(exponent[0]), min(prior.variance, usual.variance) + error)


@dataclass(frozen=True)
class _Counted:
    """Noise of single electrons."""

    gain: float = 1.0
    readout_variance: float = 0.0
    correlation: NDArray[np.float64] = field(default_factory=lambda: np.ones(1))


@dataclass(frozen=True)
class _Window:
    """The counts inside the pre-edge window, spectra flattened to one dimension."""

    counts: NDArray[Any]  # (n, channels in the window)
    log_energy: NDArray[np.float64]  # ln(E / E0), (channels in the window,)
    shape: tuple[int, ...]
    pivot_energy: float

    @classmethod
    def of(cls, energy_loss: ArrayLike, counts: ArrayLike, window: Window) -> _Window:
        axis, values = check_spectra(energy_loss, counts)
        channels = axis.channels(window)
        n_channels = channels.stop - channels.start
        if n_channels < _MIN_CHANNELS or n_channels * axis.dispersion < _MIN_COVERAGE * (window[1] - window[0]):
            raise EdgeOutOfRangeError(
                f"pre-edge window {format_window(window)} has {n_channels} channels on the energy axis, which "
                f"spans {axis}; the background needs at least {_MIN_CHANNELS} channels and a third of the window: "
                "record more of the spectrum before the edge, or choose a narrower pre_edge_window"
            )
        if window[0] <= 0:
            raise InputError(
                f"pre-edge window {format_window(window)} starts at or below zero; a power law needs positive energies"
            )
        pivot_energy = float(np.sqrt(window[0] * window[1]))
        return cls(
            counts=values[..., channels].reshape(-1, n_channels),
            log_energy=np.log(axis.values[channels] / pivot_energy),
            shape=values.shape[:-1],
            pivot_energy=pivot_energy,
        )


def _fit_block(
    counts: NDArray[np.float64],
    log_energy: NDArray[np.float64],
    noise: Noise | None,
    prior: ExponentPrior | None,
    fallback: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8], NDArray[np.float64]]:
    """Fit (n, channels) counts; return amplitude, exponent, status, covariance."""
    finite = np.asarray(np.isfinite(counts).all(axis=1))
    y = counts if finite.all() else np.where(finite[:, None], counts, 0.0)
    inflation = 1.0
    scale = np.ones(y.shape[0])
    if noise is not None:
        # Correlated noise averages out more slowly: a sum over many channels has (1 + 2 sum rho) times the variance
        # of independent ones.
        inflation = max(1.0 + 2.0 * float(np.sum(noise.correlation[1:])), 1e-3)
    elif prior is not None:
        # The scatter about an unshrunk fit says how much the counts weigh against the prior.
        scale = _gauss_newton(y, log_energy, scale, None, None, prior.mean, fallback).scatter(y.shape[1])
    start = prior.mean if prior else ExponentPrior().mean
    fit = _gauss_newton(y, log_energy, scale * inflation, noise, prior, start, fallback)
    if noise is None and prior is None:
        scale = fit.scatter(y.shape[1])
    covariance = fit.covariance(
        scale if noise is None and prior is None else np.ones_like(scale), 1.0 / prior.variance if prior else 0.0
    )
    if noise is not None and noise.readout_variance == 0:
        # None counted where one might have been: the posterior of a Poisson mean by Jeffreys' prior has half a count.
        np.maximum(covariance[:, 0, 0], 0.5 * (noise.gain / y.shape[1]) ** 2, out=covariance[:, 0, 0])
    amplitude, exponent = fit.amplitude, fit.exponent
    status = np.full(exponent.size, PowerLawStatus.OK, dtype=np.uint8)
    if prior is not None:
        shrunk = covariance[:, 1, 1] > 0.5 * prior.variance
        status[shrunk] = PowerLawStatus.SHRUNK
    low, high = _EXPONENT_BOUNDS
    status[(exponent <= low) | (exponent >= high)] = PowerLawStatus.AT_BOUND
    silent = amplitude <= _SIGNIFICANCE * np.sqrt(covariance[:, 0, 0])
    if prior is None and silent.any():
        # r is undetermined: hold it where it does no harm and solve for the amplitude alone.
        amplitude, exponent = np.where(silent, fit.held_amplitude, amplitude), np.where(silent, fallback, exponent)
        covariance[silent, 0, 1] = covariance[silent, 1, 0] = 0.0
        covariance[silent, 1, 1] = ExponentPrior().variance
    status[silent] = PowerLawStatus.NO_SIGNAL
    status[~finite] = PowerLawStatus.INVALID
    amplitude = np.where(finite, amplitude, np.nan)
    exponent = np.where(finite, exponent, np.nan)
    covariance[~finite] = np.nan
    return amplitude, exponent, status, covariance


@dataclass(frozen=True)
class _Sums:
    """Fits at their last step, with the sums that their errors follow from; shape (n,) each.

    With the weights w, ``f = exp(-r l)`` and ``l = ln(E / E0)``.
    """

    amplitude: NDArray[np.float64]
    exponent: NDArray[np.float64]
    u: NDArray[np.float64]  # sum(w f^2)
    s: NDArray[np.float64]  # sum(w f^2 l)
    t: NDArray[np.float64]  # sum(w f^2 l^2)
    chi_square: NDArray[np.float64]
    held_amplitude: NDArray[np.float64]  # with the exponent held at a given value

    def scatter(self, n_channels: int) -> NDArray[np.float64]:
        """Return the reduced chi-square of each spectrum, shape (n,)."""
        # A noiseless spectrum scatters by rounding alone.
        reduced: NDArray[np.float64] = np.maximum(self.chi_square / (n_channels - 2), 1e-20)
        return reduced

    def covariance(self, scale: NDArray[np.float64], prior_precision: float) -> NDArray[np.float64]:
        """Return the inverse of the normal matrix times `scale`, shape (n, 2, 2)."""
        a, u, s = self.amplitude, self.u, self.s
        d = a * a * self.t + prior_precision
        with np.errstate(divide="ignore", invalid="ignore"):
            determinant = u * d - (a * s) ** 2
            result = np.empty((a.size, 2, 2))
            result[:, 0, 0] = d / determinant
            result[:, 1, 1] = u / determinant
            result[:, 0, 1] = result[:, 1, 0] = a * s / determinant
            result *= scale[:, None, None]
        # Amplitude zero and no prior: r is wholly undetermined.
        undetermined = ~np.isfinite(result).all(axis=(1, 2))
        result[undetermined] = 0.0
        result[undetermined, 0, 0] = scale[undetermined] / u[undetermined]
        result[undetermined, 1, 1] = np.inf
        return result


def _gauss_newton(
    y: NDArray[np.float64],
    log_energy: NDArray[np.float64],
    scale: NDArray[np.float64],
    noise: Noise | None,
    prior: ExponentPrior | None,
    start: float,
    held: float,
) -> _Sums:
    """Take Gauss-Newton steps in r with the amplitude eliminated; see `kernels.fit_power_laws`."""
    out = np.empty((y.shape[0], 7))
    fit_power_laws(
        np.ascontiguousarray(y),
        log_energy,
        scale,
        1.0 if noise is None else float(noise.gain),
        0.0 if noise is None else float(noise.readout_variance),
        1 if noise is None else 2,  # the floor is one of counts or of their variance
        (prior.mean, 1.0 / prior.variance) if prior else (0.0, 0.0),
        start,
        held,
        _EXPONENT_BOUNDS,
        (_N_STEPS, _CONVERGED),
        out,
    )
    return _Sums(*out.T)
