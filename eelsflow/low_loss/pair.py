"""A low loss as a whole image, and the core loss of the same scan: measure the one, deconvolve the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.energy import EnergyAxis, Window
from eelsflow.errors import InputError
from eelsflow.low_loss.deconvolution import fourier_ratio
from eelsflow.low_loss.elastic import ElasticPart, separate_zero_loss
from eelsflow.low_loss.thickness import measure_relative_thickness
from eelsflow.low_loss.zero_loss import ZeroLoss, measure_zero_loss
from eelsflow.preprocess.background import fit_power_law
from eelsflow.preprocess.noise import NoiseModel, estimate_noise
from eelsflow.spectrum_image import check_spectrum_image, energy_axis

_ABOVE = 5.0  # widths of the peak and eV above it, where the noise is estimated: the peak moves, which is no noise
_FEWEST_CHANNELS = 64
_MOST_CHANNELS = 300  # further on counts have fallen by orders of magnitude, and one line no longer fits the noise
_DEAD = 0.1  # of the lower neighbour's mean: a channel below this is dead ...
_ENOUGH = 1000.0  # ... if its neighbours hold so many counts in all, 50 electrons of a camera: noise makes no such dip

Array = NDArray[np.float64]


def measure_low_loss(image: xr.DataArray, *, max_drift: float = 5.0) -> xr.Dataset:
    """Measure zero loss, resolution and thickness of every pixel of a low loss.

    Parameters
    ----------
    image
        A low loss by the schema of `eelsflow.spectrum_image`, recorded from below zero on, its dark level subtracted.
        It is read whole; not modified.
    max_drift
        How far a pixel's zero loss may lie from that of the summed spectrum, eV.

    Returns
    -------
    xr.Dataset
        Over (y, x): ``offset`` and ``offset_error``, eV to *add* to the nominal axis so that the zero loss reads 0;
        ``resolution``, full width at half maximum of the zero loss as recorded, eV; ``t_over_lambda`` and
        ``t_over_lambda_error``; ``zero_loss_intensity`` and ``total_intensity``, counts, losses beyond the axis
        included in the latter. NaN where a pixel shows no zero loss. Attributes: ``offset``, the mean, eV;
        ``resolution`` of the mean peak, eV; ``is_narrow`` where the peak is narrower than two channels; ``gain`` and
        ``readout_variance`` of the noise; ``dead_channels``, which were interpolated; ``sha256`` and ``source``.

    Raises
    ------
    InputError
        If no zero-loss peak shows.
    SpectrumImageSchemaError
        If the image does not follow the schema.

    Notes
    -----
    The offset at the zero loss is that of the core loss if the spectrum was moved between the two by a known voltage,
    and only as well as that voltage is known.
    """
    return describe_low_loss(locate_zero_loss(image, max_drift=max_drift), image)


def describe_low_loss(measured: MeasuredLowLoss, image: xr.DataArray) -> xr.Dataset:
    """Return what `measure_low_loss` does of a low loss whose zero-loss peaks are known."""
    zero_loss, noise = measured.zero_loss, measured.noise
    thickness = measure_relative_thickness(
        measured.axis.values,
        measured.counts,
        zero_loss,
        elastic=measured.elastic,
        count_variance=_sum_variance(noise),
        readout_variance=noise.readout_variance,
    )
    maps = {
        "offset": (-zero_loss.position, "eV"),
        "offset_error": (zero_loss.error, "eV"),
        "resolution": (zero_loss.fwhm, "eV"),
        "t_over_lambda": (thickness.value, ""),
        "t_over_lambda_error": (thickness.error, ""),
        "zero_loss_intensity": (thickness.zero_loss, "counts"),
        "total_intensity": (thickness.total, "counts"),
    }
    return xr.Dataset(
        {name: (("y", "x"), values, {"units": unit} if unit else {}) for name, (values, unit) in maps.items()},
        coords={dim: image.coords[dim] for dim in ("y", "x")},
        attrs={
            "offset": float(-np.nanmean(zero_loss.position)),
            "resolution": zero_loss.resolution,
            "is_narrow": zero_loss.is_narrow,
            "gain": noise.gain,
            "readout_variance": noise.readout_variance,
            "dead_channels": measured.dead_channels,
            "sha256": image.attrs.get("sha256", ""),
            "source": image.attrs.get("source", ""),
        },
    )


def deconvolve(
    core: xr.DataArray,
    low: xr.DataArray,
    *,
    pre_edge_window: Window | None = None,
    reconvolution: float | str = "zero_loss",
    noise: NoiseModel | None = None,
) -> xr.Dataset:
    """Remove plural scattering from a core loss by the low loss of the same scan.

    Parameters
    ----------
    core
        The core loss by the schema; not modified.
    low
        The low loss: of the same pixels, or a single one for all.
    pre_edge_window
        Where the power law of the background is fitted, eV on the axis of `core`. None: `core` has none any more.
    reconvolution
        As given to `eelsflow.low_loss.deconvolution.fourier_ratio`.
    noise
        Of the core loss's counts; None: estimated from them. Give it where `core` is no recording any more.

    Returns
    -------
    xr.Dataset
        ``counts`` and ``variance`` (y, x, energy_loss): single scattering and its variance, per channel of the core
        loss, from the beginning of the window on (what a power law leaves before it is no edge). Attribute
        ``noise_amplification``.

    Raises
    ------
    InputError
        If the pixels are not the same, or no zero-loss peak shows.
    EdgeOutOfRangeError
        If the axis does not show the window.

    Notes
    -----
    The variance holds the counts of the core loss, the background's parameters (added as they are, which is an upper
    bound: deconvolution would lower them by the share of single scattering) and the counts of the low loss.
    """
    check_spectrum_image(core)
    if low.shape[:2] not in (core.shape[:2], (1, 1)):
        raise InputError(
            f"the core loss has {core.shape[0]} x {core.shape[1]} pixels and the low loss {low.shape[0]} x "
            f"{low.shape[1]}; expected the same scan, or one spectrum for all"
        )
    measured = locate_zero_loss(low, max_drift=5.0)
    energy_loss = core.coords["energy_loss"].values
    counts = np.asarray(core.values, dtype=np.float64)
    noise = estimate_noise(counts) if noise is None else noise
    variance = np.asarray(noise.variance(counts), dtype=np.float64)
    extra: Array | float = 0.0
    first = 0
    if pre_edge_window is not None:
        fit = fit_power_law(energy_loss, core.values, pre_edge_window, noise=noise)
        first = EnergyAxis.from_values(energy_loss).channels(pre_edge_window).start
        kept = energy_loss[first:]
        counts = counts[..., first:] - fit.evaluate(kept)
        variance = variance[..., first:]
        extra = fit.variance(kept)
    result = fourier_ratio(
        energy_loss[first:],
        counts,
        measured.elastic,
        measured.counts,
        reconvolution=reconvolution,
        core_variance=variance,
        low_variance=measured.noise.variance(measured.counts),
        correlation=noise.correlation,
    )
    assert result.variance is not None
    dims = ("y", "x", "energy_loss")
    return xr.Dataset(
        {
            "counts": (dims, result.counts, {"units": "counts"}),
            "variance": (dims, result.variance + extra, {"units": "counts^2"}),
        },
        coords={
            "y": core.coords["y"],
            "x": core.coords["x"],
            "energy_loss": ("energy_loss", energy_loss[first:], {"units": "eV"}),
        },
        attrs={"noise_amplification": result.noise_amplification, "sha256": core.attrs.get("sha256", "")},
    )


@dataclass(frozen=True)
class MeasuredLowLoss:
    """A low loss with its dead channels mended, its noise and its zero-loss peaks.

    Attributes
    ----------
    axis
        Nominal.
    counts
        Shape (y, x, channels).
    noise
        Of the counts.
    zero_loss, elastic
        Place and width of each pixel's peak; its shape and intensity.
    dead_channels
        Which were interpolated.
    """

    axis: EnergyAxis
    counts: NDArray[np.floating]
    noise: NoiseModel
    zero_loss: ZeroLoss
    elastic: ElasticPart
    dead_channels: list[int]


def locate_zero_loss(image: xr.DataArray, *, max_drift: float = 5.0) -> MeasuredLowLoss:
    """Find the zero-loss peak of every pixel; takes and raises what `measure_low_loss` does."""
    check_spectrum_image(image)
    axis = energy_axis(image)
    counts = without_gaps(np.asarray(image.values))
    dead = _dead_channels(counts)
    counts = mended(counts, dead)
    zero_loss = measure_zero_loss(axis.values, counts, max_drift=max_drift)
    noise = _noise_above(axis, counts, zero_loss)
    error = zero_loss.error * np.sqrt(_sum_variance(noise))
    if noise.readout_variance > 0:
        zero_loss = measure_zero_loss(
            axis.values,
            counts,
            count_variance=_sum_variance(noise),
            readout_variance=noise.readout_variance,
            max_drift=max_drift,
        )
    else:
        zero_loss = ZeroLoss(zero_loss.position, error, zero_loss.fwhm, zero_loss.resolution, zero_loss.is_narrow)
    elastic = separate_zero_loss(axis.values, counts, zero_loss)
    return MeasuredLowLoss(axis, counts, noise, zero_loss, elastic, dead)


def _sum_variance(noise: NoiseModel) -> float:
    """Return the variance of a sum over many channels per count: correlated channels average out more slowly."""
    return noise.gain * max(1.0 + 2.0 * float(np.sum(noise.correlation[1:])), 1e-3)


def _noise_above(axis: EnergyAxis, counts: NDArray[np.floating], zero_loss: ZeroLoss) -> NoiseModel:
    """Return the noise of the losses; where they cannot tell it, that of counted electrons."""
    begin = float(np.nanmax(zero_loss.position)) + _ABOVE + _ABOVE * zero_loss.resolution
    channels = axis.channels((begin, begin + _MOST_CHANNELS * axis.dispersion))
    if channels.stop - channels.start >= _FEWEST_CHANNELS:
        try:
            return estimate_noise(counts[..., channels])
        except InputError:  # nothing fluctuates there: a vacuum, or a simulation without noise
            pass
    return NoiseModel(1.0, 0.0, np.ones(1))


def without_gaps(counts: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return counts with spectra that hold NaN or infinity set to zero: they show no zero-loss peak."""
    if counts.dtype.kind != "f":
        return counts
    return np.where(np.isfinite(counts).all(axis=-1, keepdims=True), counts, counts.dtype.type(0))


def _dead_channels(counts: NDArray[np.generic]) -> list[int]:
    """Return the dead channels: their mean is below a tenth of either neighbour's, and no peak has such a dip."""
    mean = counts.reshape(-1, counts.shape[-1]).mean(axis=0, dtype=np.float64)
    lower = np.minimum(mean[:-2], mean[2:])
    enough = lower > _ENOUGH / (counts.size // counts.shape[-1])
    return [int(channel) for channel in 1 + np.flatnonzero((mean[1:-1] < _DEAD * lower) & enough)]


def mended(counts: NDArray[np.generic], dead: Sequence[int]) -> NDArray[np.floating]:
    """Return counts with dead channels interpolated, shape (..., channels).

    One alone takes the cubic through the logarithms of two neighbours on either side, exact for a Gaussian; where
    counts are not positive, and at the ends, the mean of its neighbours.
    """
    values = counts.astype(np.result_type(counts.dtype, np.float32))
    for channel in dead:
        near = 0.5 * (values[..., channel - 1] + values[..., channel + 1])
        if 2 <= channel < values.shape[-1] - 2:
            four = [values[..., channel + d] for d in (-2, -1, 1, 2)]
            positive = np.all([one > 0 for one in four], axis=0)
            logs = [np.log(np.where(positive, one, 1.0)) for one in four]
            cubic = np.exp((-logs[0] + 4.0 * logs[1] + 4.0 * logs[2] - logs[3]) / 6.0)
            near = np.where(positive, cubic, near)
        values[..., channel] = near
    return values
