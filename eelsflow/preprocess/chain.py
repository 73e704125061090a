"""From a spectrum image to the prepared product: the order of a preset, once, for whole images and for blocks.

`prepare` takes an image in memory as one block; `eelsflow.preprocess.blocks.prepare_blocks` takes the blocks of a
store. Both call the functions of this module, which come in pairs:

- `fit_acquisition` learns, step by step, what belongs to the whole acquisition (noise, components, vacuum mask,
  offset, prior of the exponents). It sees pixels only through functions of one block whose results are merged in the
  order of the blocks, so any executor gives the same numbers.
- `transform` applies the steps learnt so far to the spectra of one block, `finish` makes its part of the product.

What is learnt is small. No array is larger than a block of the image, bar two channel covariances for the principal
components. The price is that the raw blocks are read once a fitted step.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from eelsflow.digest import code_version
from eelsflow.edges import Edge
from eelsflow.energy import EnergyAxis, Window
from eelsflow.errors import EelsflowError, InputError
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.io.zarr_store import Block, empty_variable, open_spectrum_image
from eelsflow.preprocess import presets
from eelsflow.preprocess.background import ExponentMoments, ExponentPrior, PowerLawFit, exponent_moments, fit_power_law
from eelsflow.preprocess.noise import NoiseModel, estimate_noise, sample_indices
from eelsflow.preprocess.offset import OffsetEstimate, estimate_offset
from eelsflow.preprocess.pca import Pca, SplitMoments, fit_pca, merge_split, split_moments
from eelsflow.preprocess.presets import MAX_OFFSET, WIDE_MARGIN, Preset, Step
from eelsflow.preprocess.rebin import covered_channels, rebin_conserving, rebin_linear, rebin_variance
from eelsflow.preprocess.spikes import (
    SpikeReference,
    find_dead_channels,
    find_spikes,
    interpolate_masked,
    reference_spectra,
)
from eelsflow.preprocess.vacuum import VacuumMask, background_exponent, edge_signal, find_vacuum
from eelsflow.spectrum_image import check_spectrum_image, energy_axis

SCHEMA = "eelsflow-prepared/1"
NOT_FITTED = 255
"""`background_status` where the preset subtracts no background; otherwise see `background.PowerLawStatus`."""

_CROP_MARGIN = 12  # detector channels kept beyond the wide window, so that its ends are resampled like the rest
_SMOOTH_CHANNELS = 9  # over which counts are averaged to estimate what a pixel's counts are expected to be
_COVARIANCES_AT_ONCE = 8  # blocks whose channel covariance waits to be merged
_N_BANDS = 64  # K-means compares whole spectra averaged to so many bands: less noise, and less to gather
_UNCERTAIN_OFFSET = 0.3  # eV; the peaks of the two oxides lie 0.6 eV apart
_SIGNIFICANT = 3.0  # standard errors
_MANY_SPIKES = 0.25  # of the pixels; measured are 4 %
_MANY_NEGATIVE = 1e-3  # of the counts

Counts = NDArray[np.float32]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """A block of pixels, and what is known of it alone; small enough to be sent to a worker.

    Attributes
    ----------
    source
        The raw store, or the counts of the whole image, shape (y, x, channels).
    block
        Which pixels.
    width
        Pixels of the whole image along x, by which they are counted.
    vacuum
        Shape (pixels,), True without specimen; None before `VacuumMask`.
    spikes
        Shape (n, 2): pixel of the block and detector channel of every value hit by a spike; None before `Spikes`.
    """

    source: Path | NDArray[Any]
    block: Block
    width: int
    vacuum: NDArray[np.bool_] | None = None
    spikes: NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels (y, x) of the block."""
        return self.block.y.stop - self.block.y.start, self.block.x.stop - self.block.x.start

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Number of each pixel in the whole image, counted by rows, shape (pixels,)."""
        y, x = np.mgrid[self.block.y, self.block.x]
        return np.asarray(y * self.width + x, dtype=np.int64).ravel()

    @property
    def specimen(self) -> NDArray[np.bool_]:
        """Shape (pixels,): which pixels hold specimen, as far as is known."""
        return ~self.vacuum if self.vacuum is not None else np.ones(np.prod(self.shape), dtype=bool)

    def read(self) -> NDArray[Any]:
        """Return the raw counts, shape (pixels, channels), in the type they are stored in."""
        if isinstance(self.source, Path):
            counts = open_spectrum_image(self.source)[self.block.y, self.block.x].values
        else:
            counts = self.source[self.block.y, self.block.x]
        return np.asarray(counts.reshape(-1, counts.shape[-1]))


@dataclass(frozen=True)
class Fitted:
    """What was learnt from a whole acquisition, up to the last of `steps`.

    Attributes
    ----------
    axis
        The nominal energy axis.
    edge
        The edge that is prepared.
    steps
        The steps that `transform` applies, in order.
    noise
        Of the raw counts.
    dead_channels
        Shape (channels,).
    reference
        What spikes are told from; None before `Spikes`, and for fewer than 4 spectra.
    pca
        Of the acquisition; None without that step.
    offset
        None without `Align`.
    prior
        Of the background's exponents; None without shrinking.
    """

    axis: EnergyAxis
    edge: Edge
    noise: NoiseModel
    dead_channels: NDArray[np.bool_]
    steps: tuple[Step, ...] = ()
    reference: SpikeReference | None = None
    pca: Pca | None = None
    offset: OffsetEstimate | None = None
    prior: ExponentPrior | None = None

    @property
    def corrected_axis(self) -> EnergyAxis:
        """The nominal axis plus the offset."""
        return self.axis.shifted(self.offset.value) if self.offset else self.axis

    @property
    def crop(self) -> slice:
        """Detector channels of the wide window and a few more."""
        channels = self.corrected_axis.channels(wide_window(self.edge))
        return slice(max(channels.start - _CROP_MARGIN, 0), min(channels.stop + _CROP_MARGIN, self.axis.size))


@dataclass(frozen=True)
class Acquisition:
    """All that the product says about an acquisition as a whole."""

    fitted: Fitted
    preset: Preset
    parts: tuple[Part, ...]
    shape: tuple[int, int]
    vacuum: VacuumMask | None
    mean_spectrum: NDArray[np.float64]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spectra:
    """Spectra of a block on their way through the steps.

    Attributes
    ----------
    counts
        Shape (n, channels); the background is still in them.
    axis
        Of `counts`; corrected once aligned.
    first_channel
        Detector channel that `counts` begin with.
    background
        Fit of the background; None before `Background`.
    """

    counts: Counts
    axis: EnergyAxis
    first_channel: int = 0
    background: PowerLawFit | None = None


def prepare(image: xr.DataArray, *, edge: Edge, preset: Preset) -> xr.Dataset:
    """Prepare a spectrum image that fits in memory.

    Parameters
    ----------
    image
        Raw counts by the schema of `eelsflow.spectrum_image`; not modified.
    edge
        The edge to prepare.
    preset
        Its acquisition steps are run.

    Returns
    -------
    xarray.Dataset
        The prepared product: ``intensity`` and ``variance`` (y, x, energy_loss), background-subtracted and not
        normalised, on the edge's wide window (NaN where the detector ended, see ``valid``); ``vacuum_mask``,
        ``background_status``, ``background_amplitude``, ``background_exponent`` and ``spike_channels`` (y, x);
        ``mean_energy_loss``, ``mean_spectrum`` and ``mean_background`` (native_channel) of the specimen pixels; and
        what was found, in the attributes.

    Raises
    ------
    EdgeOutOfRangeError
        If the axis cannot show the edge.
    InputError
        If counts are not finite, there is no specimen, or the edge cannot be found in them.
    SpectrumImageSchemaError
        If the image does not follow the schema.
    """
    check_image(image, edge=edge)
    n_y, n_x, _ = image.shape
    whole = Part(image.values, Block(slice(0, n_y), slice(0, n_x)), width=n_x)
    acquisition = fit_acquisition(energy_axis(image), [whole], (n_y, n_x), edge=edge, preset=preset)
    values = finish(acquisition.parts[0], acquisition.fitted)
    product = describe_product(acquisition, image)
    return product.assign({name: (product[name].dims, value) for name, value in values.items()})


def check_image(image: xr.DataArray, *, edge: Edge) -> None:
    """Refuse an image that breaks the schema or cannot show the edge, before any pixel is read.

    Raises
    ------
    SpectrumImageSchemaError, EdgeOutOfRangeError
        See `prepare`.
    """
    check_spectrum_image(image)
    if image.dtype.kind not in "iuf":
        raise InputError(f"counts have the type {image.dtype}; expected real numbers: take the modulus, or recount")
    edge.require_within(energy_axis(image), overhang=MAX_OFFSET)


def fit_acquisition(
    axis: EnergyAxis,
    parts: Sequence[Part],
    shape: tuple[int, int],
    *,
    edge: Edge,
    preset: Preset,
    executor: Executor | None = None,
) -> Acquisition:
    """Learn from a whole acquisition what each step of a preset needs, in the order of the steps.

    Parameters
    ----------
    axis
        The nominal energy axis.
    parts
        Blocks that cover the image, each pixel once.
    shape
        Pixels (y, x) of the image.
    edge, preset
        What is prepared, and how.
    executor
        Where the blocks are worked on; a plain loop by default.

    Raises
    ------
    EdgeOutOfRangeError, InputError
        See `prepare`.
    """
    crew = _Crew(executor or LoopExecutor(), list(parts), shape)
    sample, noise, warnings = _survey_acquisition(crew)
    fitted = Fitted(axis, edge, noise, dead_channels=np.zeros(axis.size, dtype=bool))
    vacuum: VacuumMask | None = None
    mean_spectrum: NDArray[np.float64] | None = None

    for step in preset.acquisition_steps:
        match step:
            case presets.Spikes():
                if step.dead_channels:
                    fitted = replace(fitted, dead_channels=find_dead_channels(sample, noise))
                spectra = transform(sample, fitted)
                fitted = replace(fitted, reference=reference_spectra(_repaired(spectra, fitted), noise))
                crew.learn_spikes(crew.map(_spikes_of, fitted, step.threshold, label="find spikes"))
            case presets.Pca():
                fitted = replace(fitted, pca=_fit_components(crew, fitted, step))
            case presets.VacuumMask():
                vacuum = _find_vacuum(crew, fitted, step, sample)
                crew.learn_vacuum(vacuum.mask)
            case presets.Align():
                mean_spectrum = _mean_of_specimen(crew, fitted)
                fitted = replace(fitted, offset=_estimate_offset(mean_spectrum, crew.n_specimen, fitted, step))
            case presets.Background():
                if mean_spectrum is None:
                    mean_spectrum = _mean_of_specimen(crew, fitted)
                _require_falling(mean_spectrum, fitted, edge.pre_edge_window)
                if step.shrink:
                    moments = crew.map(_exponents_of, fitted, label="background exponents")
                    fitted = replace(fitted, prior=functools.reduce(ExponentMoments.__add__, moments).prior())
            case presets.Rebin():
                pass
        fitted = replace(fitted, steps=(*fitted.steps, step))

    if mean_spectrum is None:
        mean_spectrum = _mean_of_specimen(crew, fitted)
    warnings += _warnings_about(fitted, crew)
    return Acquisition(fitted, preset, tuple(crew.parts), shape, vacuum, mean_spectrum, tuple(warnings))


def transform(raw: NDArray[Any], fitted: Fitted, *, spikes: NDArray[np.int32] | None = None) -> Spectra:
    """Apply the steps learnt so far to raw spectra, in their order.

    Parameters
    ----------
    raw
        Shape (n, channels); not modified.
    fitted
        What was learnt.
    spikes
        Where these spectra were hit, as in `Part`; None looks for no spikes.
    """
    spectra = Spectra(np.asarray(raw, dtype=np.float32), fitted.axis)
    for step in fitted.steps:
        match step:
            case presets.Spikes():
                spectra = replace(spectra, counts=_repaired(spectra, fitted, spikes))
            case presets.Pca():
                assert fitted.pca is not None
                spectra = replace(spectra, counts=np.asarray(fitted.pca.denoise(spectra.counts), dtype=np.float32))
            case presets.Align():
                spectra = replace(spectra, axis=fitted.corrected_axis)
            case presets.Background(shrink=shrink):
                background = fit_power_law(
                    spectra.axis.values,
                    spectra.counts,
                    fitted.edge.pre_edge_window,
                    noise=fitted.noise,
                    shrink=shrink,
                    prior=fitted.prior,
                )
                spectra = _cropped(replace(spectra, background=background), fitted)
            case presets.VacuumMask() | presets.Rebin():
                pass  # the one marks pixels and changes none, the other is the last step: see `finish`
    return spectra


def finish(part: Part, fitted: Fitted) -> dict[str, NDArray[Any]]:
    """Return a block's share of the prepared product: every variable with the dimensions y and x.

    Parameters
    ----------
    part
        The block.
    fitted
        What was learnt, with all steps.
    """
    spectra = _cropped(transform(part.read(), fitted, spikes=part.spikes), fitted)
    n = len(spectra.counts)
    energy_loss = spectra.axis.values
    # What a channel's counts should be is read from its neighbours: its own noise would weigh low counts too much.
    variance = fitted.noise.variance(uniform_filter1d(spectra.counts, _SMOOTH_CHANNELS, axis=1, mode="nearest"))
    net: NDArray[np.floating[Any]] = spectra.counts
    deviation = None
    status = np.full(n, NOT_FITTED, dtype=np.uint8)
    amplitude = exponent = np.full(n, np.nan)
    if spectra.background is not None:
        net = spectra.counts - spectra.background.evaluate(energy_loss)
        deviation = np.sqrt(np.maximum(spectra.background.variance(energy_loss), 0.0))
        status, amplitude, exponent = (getattr(spectra.background, key) for key in ("status", "amplitude", "exponent"))
    step = _rebin_step(fitted)
    if step is not None:
        target = product_axis(fitted)
        resample = rebin_conserving if step.method == "conserve" else rebin_linear
        net = resample(energy_loss, net, target)
        variance = rebin_variance(
            energy_loss, variance, target, method=step.method, correlation=fitted.noise.correlation
        )
        # The error of the background is one error for all channels: deviations add, not variances.
        deviation = None if deviation is None else resample(energy_loss, deviation, target)
    else:
        kept = spectra.axis.channels(wide_window(fitted.edge))
        net, variance = net[:, kept], variance[:, kept]
        deviation = None if deviation is None else deviation[:, kept]
    if deviation is not None:
        variance = variance + np.square(deviation)
    n_y, n_x = part.shape
    return {
        "intensity": np.asarray(net, dtype=np.float32).reshape(n_y, n_x, -1),
        "variance": np.asarray(variance, dtype=np.float32).reshape(n_y, n_x, -1),
        "vacuum_mask": ~part.specimen.reshape(n_y, n_x),
        "background_status": status.astype(np.uint8).reshape(n_y, n_x),
        "background_amplitude": amplitude.astype(np.float32).reshape(n_y, n_x),
        "background_exponent": exponent.astype(np.float32).reshape(n_y, n_x),
        "spike_channels": _spikes_per_pixel(part).astype(np.uint16).reshape(n_y, n_x),
    }


def describe_product(acquisition: Acquisition, image: xr.DataArray) -> xr.Dataset:
    """Return the prepared product with all that belongs to the whole acquisition; the rest is still to be filled.

    Parameters
    ----------
    acquisition
        What was learnt.
    image
        The raw image: its pixel coordinates and attributes are kept, its counts are not read.
    """
    fitted = acquisition.fitted
    axis, native = product_axis(fitted), fitted.corrected_axis
    n_y, n_x = acquisition.shape
    pixels, spectra = ("y", "x"), ("y", "x", "energy_loss")
    mean_background = np.full(native.size, np.nan)
    if any(isinstance(step, presets.Background) for step in fitted.steps):
        fit = fit_power_law(native.values, acquisition.mean_spectrum, fitted.edge.pre_edge_window, shrink=False)
        begin = native.channels(fitted.edge.pre_edge_window).start
        mean_background[begin:] = fit.evaluate(native.values[begin:])
    step = _rebin_step(fitted)
    valid = covered_channels(native.values, axis, method=step.method) if step else np.ones(axis.size, dtype=bool)
    n_spike_pixels, n_spike_channels = _count_spikes(acquisition.parts)
    return xr.Dataset(
        {
            "intensity": empty_variable(spectra, (n_y, n_x, axis.size), np.float32, units="counts"),
            "variance": empty_variable(spectra, (n_y, n_x, axis.size), np.float32, units="counts^2"),
            "valid": ("energy_loss", valid),
            "vacuum_mask": empty_variable(pixels, (n_y, n_x), np.bool_),
            "background_status": empty_variable(pixels, (n_y, n_x), np.uint8),
            "background_amplitude": empty_variable(pixels, (n_y, n_x), np.float32, units="counts"),
            "background_exponent": empty_variable(pixels, (n_y, n_x), np.float32),
            "spike_channels": empty_variable(pixels, (n_y, n_x), np.uint16),
            "mean_energy_loss": ("native_channel", native.values, {"units": "eV"}),
            "mean_spectrum": ("native_channel", acquisition.mean_spectrum, {"units": "counts"}),
            "mean_background": ("native_channel", mean_background, {"units": "counts"}),
        },
        coords={
            "y": image.coords["y"],
            "x": image.coords["x"],
            "energy_loss": ("energy_loss", axis.values, {"units": "eV"}),
        },
        attrs={
            "schema": SCHEMA,
            "edge": fitted.edge.model_dump_json(),
            "preset": acquisition.preset.model_dump_json(),
            "energy_offset": fitted.offset.value if fitted.offset else 0.0,
            "energy_offset_error": fitted.offset.error if fitted.offset else None,
            "pixel_size": image.attrs["pixel_size"],
            "pixel_unit": image.attrs["pixel_unit"],
            "sha256": image.attrs.get("sha256", ""),
            "source": image.attrs.get("source", ""),
            "pca_rank": fitted.pca.rank if fitted.pca else -1,
            "vacuum_separation": acquisition.vacuum.separation if acquisition.vacuum else None,
            "n_spike_pixels": n_spike_pixels,
            "n_spike_channels": n_spike_channels,
            "dead_channels": np.flatnonzero(fitted.dead_channels).tolist(),
            "noise_gain": float(fitted.noise.gain),
            "noise_readout_variance": float(fitted.noise.readout_variance),
            "warnings": json.dumps(acquisition.warnings),
            "code_version": code_version("preprocess", "energy", "edges", "spectrum_image"),
        },
    )


def wide_window(edge: Edge) -> Window:
    """Return the window that the product covers, eV: the fine structure and 12 eV on either side."""
    return edge.elnes_window[0] - WIDE_MARGIN, edge.elnes_window[1] + WIDE_MARGIN


def product_axis(fitted: Fitted) -> EnergyAxis:
    """Return the energy axis of the product: the common grid, or the detector's channels where nothing is rebinned."""
    start, stop = wide_window(fitted.edge)
    step = _rebin_step(fitted)
    if step is not None:
        return EnergyAxis(start, step.dispersion, round((stop - start) / step.dispersion))
    axis = fitted.corrected_axis
    kept = axis.channels((start, stop))
    return EnergyAxis(float(axis.values[kept.start]), axis.dispersion, kept.stop - kept.start)


class _Crew:
    """The blocks of an acquisition and what works on them: results come back in the order of the blocks."""

    def __init__(self, executor: Executor, parts: list[Part], shape: tuple[int, int]) -> None:
        self.executor = executor
        self.parts = parts
        self.shape = shape

    def map(self, function: Callable[..., Result], *args: Any, label: str) -> list[Result]:
        """Return ``function(part, *args)`` for every block."""
        return self.executor.map(functools.partial(_on_block, function, args), self.parts, label=label)

    def fold_moments(self, function: Callable[..., SplitMoments], *args: Any, label: str) -> SplitMoments:
        """Merge ``function(part, *args)`` of all blocks, a few at a time: each is two channel covariances large."""
        merged: list[SplitMoments] = []
        for begin in range(0, len(self.parts), _COVARIANCES_AT_ONCE):
            parts = self.parts[begin : begin + _COVARIANCES_AT_ONCE]
            found = self.executor.map(functools.partial(_on_block, function, args), parts, label=label)
            merged = [merge_split([*merged, *found])]
        return merged[0]

    def assemble(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Put values of the blocks' pixels, shape (pixels, ...) each, together to an image, shape (y, x, ...)."""
        image = np.empty((*self.shape, *values[0].shape[1:]), dtype=values[0].dtype)
        for part, value in zip(self.parts, values, strict=True):
            image[part.block.y, part.block.x] = value.reshape(*part.shape, *value.shape[1:])
        return image

    @property
    def n_specimen(self) -> int:
        """Pixels that hold specimen, as far as is known."""
        return sum(int(part.specimen.sum()) for part in self.parts)

    def learn_spikes(self, spikes: list[NDArray[np.int32]]) -> None:
        """Keep where each block was hit."""
        self.parts = [replace(part, spikes=hits) for part, hits in zip(self.parts, spikes, strict=True)]

    def learn_vacuum(self, mask: NDArray[np.bool_]) -> None:
        """Keep which pixels of each block hold no specimen; `mask` has the shape (y, x) of the image."""
        self.parts = [replace(part, vacuum=mask[part.block.y, part.block.x].ravel()) for part in self.parts]


def _on_block(function: Callable[..., Result], args: tuple[Any, ...], part: Part) -> Result:
    """Apply a function to one block; its error says which acquisition and which block."""
    try:
        return function(part, *args)
    except EelsflowError as error:
        if not isinstance(part.source, Path):
            raise
        raise type(error)(f"{part.source.name}, block {part.block}: {error}") from error


# --- survey: are these counts, and what is their noise? -----------------------------------------------------------


@dataclass(frozen=True)
class _Survey:
    """What one look at raw counts tells."""

    n_not_finite: int
    first_not_finite: tuple[int, int] | None
    n_counts: int
    total: float
    lowest: NDArray[np.float64]
    lowest_pixel: tuple[float, int]
    sampled: NDArray[np.int64]
    sample: NDArray[Any]


def _survey(part: Part, n_pixels: int) -> _Survey:
    counts = part.read()
    finite = np.isfinite(counts)
    broken = np.flatnonzero(~finite.all(axis=1))
    negative = counts[counts < 0].astype(np.float64)
    most = int(_MANY_NEGATIVE * counts.size) + 1
    means = counts.mean(axis=1, dtype=np.float64)
    pixels = part.pixels
    chosen = np.isin(pixels, sample_indices(n_pixels))
    return _Survey(
        n_not_finite=int(counts.size - np.count_nonzero(finite)),
        first_not_finite=divmod(int(pixels[broken[0]]), part.width) if broken.size else None,
        n_counts=counts.size,
        total=float(counts.sum(dtype=np.float64)),
        lowest=np.partition(negative, most)[:most] if negative.size > most else negative,
        lowest_pixel=(float(means.min()), int(pixels[means.argmin()])),
        sampled=pixels[chosen],
        sample=counts[chosen],
    )


def _survey_acquisition(crew: _Crew) -> tuple[Counts, NoiseModel, list[str]]:
    """Return spectra that represent the image, shape (n, channels), their noise and warnings; refuse non-counts."""
    n_pixels = int(np.prod(crew.shape))
    surveys = crew.map(_survey, n_pixels, label="survey counts")
    n_not_finite = sum(survey.n_not_finite for survey in surveys)
    if n_not_finite:
        y, x = next(survey.first_not_finite for survey in surveys if survey.first_not_finite)
        raise InputError(
            f"{n_not_finite} counts are NaN or infinite, the first in the pixel y={y}, x={x}; every step needs the "
            "counts as they were recorded: repair or cut away these pixels and read the file again"
        )
    if sum(survey.total for survey in surveys) <= 0:
        raise InputError(
            "the counts of the image add up to zero or less: nothing was recorded, or a background was subtracted "
            "already; prepare the raw counts"
        )
    sampled = np.concatenate([survey.sampled for survey in surveys])
    sample = np.concatenate([survey.sample for survey in surveys])[np.argsort(sampled)].astype(np.float32)
    noise = estimate_noise(sample)
    return sample, noise, _judge_negative(surveys, noise, float(sample.mean()), crew.parts[0].width)


def _judge_negative(surveys: Sequence[_Survey], noise: NoiseModel, mean: float, width: int) -> list[str]:
    """Return warnings about negative counts; refuse more of them than a read-out can make.

    Values somewhat below zero are what a subtracted dark reference leaves; only those that read-out noise does not
    explain count here.
    """
    limit = 8 * float(np.sqrt(noise.variance(0.01 * mean)))
    lowest = np.concatenate([survey.lowest for survey in surveys])
    n_deep, n_counts = int(np.count_nonzero(lowest < -limit)), sum(survey.n_counts for survey in surveys)
    lowest_mean, pixel = min(survey.lowest_pixel for survey in surveys)
    y, x = divmod(pixel, width)
    found = (
        f"{n_deep} counts lie below {-limit:.3g}, deeper than the read-out noise of this image explains, the lowest at "
        f"{lowest.min(initial=0.0):.4g}"
    )
    if n_deep > _MANY_NEGATIVE * n_counts or lowest_mean < -limit:
        raise InputError(
            f"{found}; the pixel y={y}, x={x} has {lowest_mean:.3g} counts a channel on average: these are no counts, "
            "and a power law through them means nothing; prepare the raw counts, or repair or cut away such pixels"
        )
    return [f"{found}; they are treated as spikes are, where the preset has that step"] if n_deep else []


# --- what one block tells about the acquisition -------------------------------------------------------------------


def _spikes_of(part: Part, fitted: Fitted, threshold: float) -> NDArray[np.int32]:
    """Return (pixel, detector channel) of every value hit by a spike, shape (n, 2)."""
    spectra = transform(part.read(), fitted)
    alive = _repaired(spectra, fitted)
    mask = find_spikes(alive, fitted.noise, threshold=threshold, reference=fitted.reference)
    pixel, channel = np.nonzero(mask)
    return np.stack([pixel, channel + spectra.first_channel], axis=1).astype(np.int32)


def _moments_of(part: Part, fitted: Fitted) -> SplitMoments:
    spectra = transform(part.read(), fitted, spikes=part.spikes)
    y, x = np.divmod(part.pixels, part.width)
    return split_moments(spectra.counts, (y + x) % 2 == 1)


def _signal_of(part: Part, fitted: Fitted, windows: tuple[Window, Window], exponent: float) -> NDArray[np.float64]:
    """Return the counts of the edge above its background, shape (pixels,)."""
    spectra = transform(part.read(), fitted, spikes=part.spikes)
    return edge_signal(
        spectra.counts,
        spectra.axis.values,
        pre_edge_window=windows[0],
        edge_window=windows[1],
        exponent=exponent,
    )


def _bands_of(part: Part, fitted: Fitted) -> NDArray[np.float32]:
    """Return the spectra averaged to bands, shape (pixels, bands)."""
    counts = transform(part.read(), fitted, spikes=part.spikes).counts
    width = max(1, counts.shape[1] // _N_BANDS)
    n_bands = counts.shape[1] // width
    bands = counts[:, : n_bands * width].reshape(len(counts), n_bands, width)
    return np.asarray(bands.mean(axis=2), dtype=np.float32)


def _sum_of(part: Part, fitted: Fitted) -> NDArray[np.float64]:
    """Return the summed spectrum of the specimen pixels, shape (channels,)."""
    spectra = transform(part.read(), fitted, spikes=part.spikes)
    return np.asarray(spectra.counts[part.specimen].sum(axis=0, dtype=np.float64))


def _exponents_of(part: Part, fitted: Fitted) -> ExponentMoments:
    spectra = transform(part.read(), fitted, spikes=part.spikes)
    return exponent_moments(
        spectra.axis.values, spectra.counts[part.specimen], fitted.edge.pre_edge_window, noise=fitted.noise
    )


# --- what the blocks tell together --------------------------------------------------------------------------------


def _fit_components(crew: _Crew, fitted: Fitted, step: presets.Pca) -> Pca:
    return fit_pca(crew.fold_moments(_moments_of, fitted, label="channel covariance"), rank=step.rank)


def _find_vacuum(crew: _Crew, fitted: Fitted, step: presets.VacuumMask, sample: Counts) -> VacuumMask:
    """Tell specimen from vacuum by the edge's signal, wherever the axis may put the edge."""
    windows = _signal_windows(fitted)
    mean = transform(sample, fitted).counts.mean(axis=0, dtype=np.float64)
    _require_falling(mean, fitted, windows[0])
    exponent = background_exponent(mean, fitted.corrected_axis.values, windows[0])
    signal = crew.assemble(crew.map(_signal_of, fitted, windows, exponent, label="edge signal"))
    if step.method == "threshold":
        return find_vacuum(signal, method="threshold")
    features = crew.assemble(crew.map(_bands_of, fitted, label="spectra in bands"))
    return find_vacuum(signal, method="kmeans", features=features)


def _signal_windows(fitted: Fitted) -> tuple[Window, Window]:
    """Return windows that lie before the edge and in it, whatever the offset of an axis that is not aligned yet.

    For a nominal axis that may be wrong by 9 eV either way the first ends 9 eV earlier and the second begins 9 eV
    later, so that neither ever holds what it should not; both keep their width and are clipped to the axis.
    """
    axis, edge = fitted.corrected_axis, fitted.edge
    reach = 0.0 if fitted.offset else MAX_OFFSET
    lowest, highest = axis.boundaries[0], axis.boundaries[-1]
    before = (max(edge.pre_edge_window[0] - reach, lowest), edge.pre_edge_window[1] - reach)
    inside = (edge.elnes_window[0] + reach, min(edge.elnes_window[1] + reach, highest))
    return before, inside


def _mean_of_specimen(crew: _Crew, fitted: Fitted) -> NDArray[np.float64]:
    """Return the mean spectrum of the specimen pixels, as far as they are known, counts, shape (channels,)."""
    sums = crew.map(_sum_of, fitted, label="sum specimen")
    return np.asarray(np.sum(sums, axis=0) / crew.n_specimen)


def _estimate_offset(
    mean_spectrum: NDArray[np.float64], n_specimen: int, fitted: Fitted, step: presets.Align
) -> OffsetEstimate:
    return estimate_offset(
        fitted.axis.values,
        mean_spectrum,
        fitted.edge,
        variance=fitted.noise.variance(mean_spectrum) / n_specimen,
        max_offset=step.max_offset,
    )


def _require_falling(mean_spectrum: NDArray[np.float64], fitted: Fitted, window: Window) -> None:
    """Refuse a background that rises: whatever power law is put through it, the difference is not the edge."""
    fit = fit_power_law(fitted.corrected_axis.values, mean_spectrum, window, shrink=False)
    exponent, error = float(fit.exponent), float(np.sqrt(fit.covariance[1, 1]))
    if exponent + _SIGNIFICANT * error < 0:
        raise InputError(
            f"the mean counts rise at {window[0]:g}-{window[1]:g} eV, before the {fitted.edge.name} edge, where they "
            f"should fall: the power law has the exponent {exponent:.2f} +- {error:.2f}, probably because another edge "
            "lies just below; choose a pre_edge_window in which the counts fall, or another edge"
        )


def _warnings_about(fitted: Fitted, crew: _Crew) -> list[str]:
    """Return what a person should know before trusting the product."""
    warnings = []
    axis, edge, offset = fitted.corrected_axis, fitted.edge, fitted.offset
    if offset is None:
        warnings.append("the energy axis was taken as it is: the preset does not align")
    elif offset.error > _UNCERTAIN_OFFSET:
        warnings.append(
            f"the energy offset {offset.value:+.2f} eV is uncertain by {offset.error:.2f} eV: look at the mean spectrum"
        )
    if not axis.covers(edge.elnes_window):
        warnings.append(
            f"the corrected axis spans {axis.start:.1f}-{axis.stop:.1f} eV, so the ELNES window {edge.elnes_window} eV "
            "is not all there"
        )
    if axis.start > edge.pre_edge_window[0] + axis.dispersion:
        warnings.append(
            f"the corrected axis starts at {axis.start:.1f} eV, inside the pre-edge window {edge.pre_edge_window} eV: "
            "the background rests on what is left of it"
        )
    n_spike_pixels, _ = _count_spikes(crew.parts)
    n_pixels = int(np.prod(crew.shape))
    if n_spike_pixels > _MANY_SPIKES * n_pixels:
        warnings.append(f"{n_spike_pixels} of {n_pixels} pixels hold spikes, more than any detector should show")
    return warnings


# --- small parts --------------------------------------------------------------------------------------------------


def _cropped(spectra: Spectra, fitted: Fitted) -> Spectra:
    """Return the spectra on the detector channels of the wide window and a few more."""
    crop = fitted.crop
    if spectra.first_channel == crop.start and spectra.counts.shape[1] == crop.stop - crop.start:
        return spectra
    axis = EnergyAxis(float(spectra.axis.values[crop.start]), spectra.axis.dispersion, crop.stop - crop.start)
    return replace(spectra, counts=spectra.counts[:, crop], axis=axis, first_channel=crop.start)


def _repaired(spectra: Spectra, fitted: Fitted, spikes: NDArray[np.int32] | None = None) -> Counts:
    """Return the counts with dead channels and spikes replaced by lines between their neighbours, shape (n, channels).

    Dead channels are the same in all spectra and spikes hit few of them, so only those see a mask of their own.
    """
    n_channels = spectra.counts.shape[1]
    dead = fitted.dead_channels[spectra.first_channel : spectra.first_channel + n_channels]
    counts = spectra.counts.copy()
    alive = np.flatnonzero(~dead)
    for channel in np.flatnonzero(dead) if alive.size else ():
        after = int(np.searchsorted(alive, channel))
        low, high = int(alive[max(after - 1, 0)]), int(alive[min(after, alive.size - 1)])
        share = np.float32((channel - low) / (high - low) if high > low else 0.0)
        counts[:, channel] = (1 - share) * counts[:, low] + share * counts[:, high]
    if spikes is not None and len(spikes):
        column = spikes[:, 1] - spectra.first_channel
        inside = (column >= 0) & (column < n_channels)
        rows, row = np.unique(spikes[inside, 0], return_inverse=True)
        mask = np.repeat(dead[None], rows.size, axis=0)
        mask[row, column[inside]] = True
        counts[rows] = interpolate_masked(spectra.counts[rows], mask)
    return counts


def _spikes_per_pixel(part: Part) -> NDArray[np.int64]:
    """Return how many channels of each pixel of the block were hit, shape (pixels,)."""
    n_pixels = int(np.prod(part.shape))
    if part.spikes is None:
        return np.zeros(n_pixels, dtype=np.int64)
    return np.bincount(part.spikes[:, 0], minlength=n_pixels)


def _count_spikes(parts: Sequence[Part]) -> tuple[int, int]:
    """Return the number of pixels, and of channels in them, hit by spikes."""
    per_pixel = [_spikes_per_pixel(part) for part in parts]
    return sum(int(np.count_nonzero(n)) for n in per_pixel), sum(int(n.sum()) for n in per_pixel)


def _rebin_step(fitted: Fitted) -> presets.Rebin | None:
    return next((step for step in fitted.steps if isinstance(step, presets.Rebin)), None)
