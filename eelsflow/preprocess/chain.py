"""From a spectrum image to the prepared product: the order of a preset, once, for whole images and for blocks.

`prepare` takes an image in memory as one block; `eelsflow.preprocess.blocks.prepare_blocks` takes the blocks of a
store. Both call the functions of this module:

- `fit_acquisition` learns, step by step, what belongs to the whole acquisition (noise, components, vacuum mask,
  offset, prior of the exponents). It sees pixels only through visits to one block, whose answers are merged in the
  order of the blocks, so any executor gives the same numbers.
- `describe_product` says what belongs to the whole product; `transform.finish` makes a block's part of it.

What is learnt is small, and no array is larger than a block of the image, bar a few channel covariances for the
principal components. A step that needs an answer from all blocks costs a visit, that is a reading of the raw blocks.
What the block alone can find (its spikes, its scores) waits for the next visit that is made anyway; once there are
scores, they stand for the counts and nothing is read any more.
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

from eelsflow.digest import code_version
from eelsflow.edges import Edge
from eelsflow.energy import EnergyAxis, Window, format_window
from eelsflow.errors import EdgeOutOfRangeError, EelsflowError, InputError
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.io.zarr_store import Block, empty_variable
from eelsflow.preprocess import presets
from eelsflow.preprocess.background import ExponentMoments, ExponentPrior, exponent_moments, fit_power_law, pooled_prior
from eelsflow.preprocess.calibration import SLACK, Calibration, calibrate, unlikely_distances
from eelsflow.preprocess.companion import Companion, PluralScattering, settle_offset
from eelsflow.preprocess.drift import MUCH_DRIFT, describe_drift, drift_warning, edge_shift, ends_of, follows, in_steps
from eelsflow.preprocess.kernels import add_channels
from eelsflow.preprocess.lost import Losses, find_losses
from eelsflow.preprocess.offset import OffsetEstimate, estimate_offset
from eelsflow.preprocess.pca import Moments, Pca, PilotSums, fit_pca
from eelsflow.preprocess.presets import MAX_OFFSET, Preset
from eelsflow.preprocess.shapes import to_shapes
from eelsflow.preprocess.spatial import GATHERED, fit_guide, gather, spatial_step
from eelsflow.preprocess.spikes import find_dead_channels, find_spikes, reference_spectra
from eelsflow.preprocess.survey import judge_surveys, survey_part
from eelsflow.preprocess.transform import (
    BACKGROUNDS,
    ELECTRONS_PER,
    NOT_FITTED,
    Counts,
    Fitted,
    Part,
    finish,
    product_axis,
    repair,
    sum_spectra,
    transform,
    transform_slices,
    valid_channels,
)
from eelsflow.preprocess.vacuum import (
    VacuumMask,
    background_exponent,
    edge_signal,
    find_vacuum,
    signal_variance,
    signal_with_total,
)
from eelsflow.spectrum_image import check_spectrum_image, energy_axis

__all__ = [
    "NOT_FITTED",
    "Acquisition",
    "Fitted",
    "Part",
    "check_image",
    "describe_product",
    "finish",
    "fit_acquisition",
    "on_block",
    "prepare",
    "product_axis",
    "transform",
]

SCHEMA = "eelsflow-prepared/1"

_BLOCKS_TOGETHER = 4  # blocks whose channel covariances are added up where they are computed
_COVARIANCES_AT_ONCE = 4  # such sums that wait to be added up here
_N_BANDS = 64  # K-means compares whole spectra averaged to so many bands: less noise, and less to gather
_UNCERTAIN_OFFSET = 0.3  # eV; the peaks of the two oxides lie 0.6 eV apart
_SIGNIFICANT = 3.0  # standard errors
_MANY_SPIKES = 0.25  # of the pixels; measured are 4 %

_UNLIKELY = (
    "{said}: the dispersion of this file is not known to {percent:g} %, as the preset has it, and classes that are "
    "told by that distance are wrong: calibrate the axis again, or use a model whose preset expects a larger "
    "dispersion_error"
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Acquisition:
    """All that the product says about an acquisition as a whole."""

    fitted: Fitted
    preset: Preset
    parts: tuple[Part, ...]
    shape: tuple[int, int]
    vacuum: VacuumMask | None
    mean_spectrum: NDArray[np.float64]
    losses: Losses
    edge_offset: OffsetEstimate | None = None
    companion: Companion | None = None
    warnings: tuple[str, ...] = ()
    calibration: Calibration | None = None
    unlikely: tuple[str, ...] = ()


def prepare(image: xr.DataArray, *, edge: Edge, preset: Preset, companion: Companion | None = None) -> xr.Dataset:
    """Prepare a spectrum image that fits in memory.

    Parameters
    ----------
    image
        Raw counts by the schema of `eelsflow.spectrum_image`; not modified.
    edge
        The edge to prepare, or several that are judged together (`eelsflow.edges.join_edges`).
    preset
        Its acquisition steps are run.
    companion
        What the low loss of the same scan says, of the image's pixels.

    Returns
    -------
    xarray.Dataset
        The prepared product: ``intensity`` and ``variance`` (y, x, energy_loss), background-subtracted and not
        normalised, on the edge's wide window (NaN where the detector ended, see ``valid``); ``vacuum_mask``,
        ``lost``, ``background_status``, ``background_amplitude``, ``background_exponent``, ``spike_channels`` and
        ``electrons`` (y, x), the dose a channel of .1 eV by the estimated noise, mean over the fine
        structure: lost pixels (see `eelsflow.preprocess.lost`) are NaN and masked as vacuum is;
        ``mean_energy_loss``, ``mean_spectrum`` and ``mean_background`` (native_channel) of the specimen pixels; and
        what was found, in the attributes. With a spatial step also ``gathered`` and ``gathered_variance``
        (y, x, energy_loss), what neighbours lend taken in, and ``effective_spectra`` (y, x), of how many pixels each is
        the mean. With a companion its maps (y, x), and in the attribute ``low_loss``, as JSON, its facts.

    Raises
    ------
    EdgeOutOfRangeError
        If the axis cannot show the edge.
    InputError
        If more than a fifth of the pixels is lost, there is no specimen, or the edge cannot be found in the counts.
    SpectrumImageSchemaError
        If the image does not follow the schema.
    """
    check_image(image, edge=edge)
    n_y, n_x, _ = image.shape
    whole = Part(image.values, Block(slice(0, n_y), slice(0, n_x)), width=n_x)
    acquisition = fit_acquisition(
        energy_axis(image), [whole], (n_y, n_x), edge=edge, preset=preset, companion=companion
    )
    values = finish(acquisition.parts[0], acquisition.fitted)
    product = describe_product(acquisition, image)
    step = spatial_step(preset)
    if step is not None:
        shapes = to_shapes(values["intensity"], values["variance"], product_axis(acquisition.fitted), edge)
        guide = fit_guide(shapes, ~values["vacuum_mask"], step)
        gathered = gather(values["intensity"], values["variance"], guide)
        values |= dict(zip(GATHERED, gathered, strict=True))
        product.attrs["spatial_reach"] = guide.reach
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
    companion: Companion | None = None,
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
    companion
        What the low loss of the same scan says; None: there is none.

    Raises
    ------
    EdgeOutOfRangeError, InputError
        See `prepare`.
    """
    crew = _Crew(executor or LoopExecutor(), list(parts), shape)
    surveys = crew.map(survey_part, int(np.prod(shape)), label="survey counts")
    losses = find_losses([survey.traces for survey in surveys], crew)
    losses.require_few()
    crew.learn_lost(losses.mask)
    sample, noise, warnings = judge_surveys(surveys, losses.mask)
    if losses.sentence:
        warnings.append(losses.sentence)
    first, *others = edge.alone
    fitted = Fitted(axis, first, noise, dead_channels=np.zeros(axis.size, dtype=bool))
    priors: list[ExponentPrior | None] = [None] * len(others)
    calibration: Calibration | None = None
    vacuum: VacuumMask | None = None
    mean_spectrum: NDArray[np.float64] | None = None
    edge_offset: OffsetEstimate | None = None
    drift_said: str | None = None
    unlikely: list[str] = []
    warnings += companion.warnings if companion else ()

    for step in preset.acquisition_steps:
        match step:
            case presets.Spikes():
                if step.dead_channels:
                    fitted = replace(fitted, dead_channels=find_dead_channels(sample, noise))
                fitted = replace(fitted, reference=reference_spectra(_without_dead_channels(sample, fitted), noise))
                crew.postpone(functools.partial(_with_spikes, fitted=fitted, threshold=step.threshold))
            case presets.Pca():
                fitted = replace(fitted, pca=_fit_components(crew, fitted, step, sample))
            case presets.VacuumMask():
                vacuum = _find_vacuum(crew, fitted, step, sample)
                crew.learn_vacuum(vacuum.mask)
            case presets.Align():
                mean_spectrum = _mean_of_specimen(crew, fitted)
                offset = _estimate_offset(mean_spectrum, crew.n_specimen, fitted, step.max_offset)
                asked = _offsets_beside(mean_spectrum, crew.n_specimen, fitted, others, step.max_offset)
                known = step.dispersion_error
                calibration = of_edges = calibrate(first, offset, asked, dispersion_error=known)
                edge_offset = offset = of_edges.offset
                if companion is not None:
                    drift = _drift_of_specimen(companion, crew)
                    here = replace(companion.offset, value=companion.offset.value + drift)
                    offset, disagreement = settle_offset(offset, here)
                    warnings += [disagreement] if disagreement else []
                    if offset is not edge_offset:
                        calibration = calibrate(first, offset, asked, dispersion_error=known)
                        calibration = replace(calibration, distances=of_edges.distances)  # those of the edges alone
                fitted = replace(
                    fitted,
                    offset=calibration.offset,
                    dispersion=calibration.dispersion,
                    fixed_energy=first.reference_energy,
                )
                if companion is not None and not disagreement and preset.find(presets.Rebin):
                    fitted, drift_said = _follow_drift(crew, fitted, companion, edge_offset)
                    if fitted.offset is edge_offset:  # the zero loss is believed in nothing
                        calibration, fitted = of_edges, replace(fitted, dispersion=of_edges.dispersion)
                unlikely = unlikely_distances(first, others, calibration, dispersion_error=known)
                warnings += [_UNLIKELY.format(said=said, percent=100 * known) for said in unlikely]
            case presets.Background():
                if mean_spectrum is None:
                    mean_spectrum = _mean_of_specimen(crew, fitted)
                for one in (first, *others):
                    _require_falling(mean_spectrum, replace(fitted, edge=one), one.background_window)
                if step.shrink:
                    found = _priors(crew, [replace(fitted, edge=one) for one in (first, *others)], mean_spectrum)
                    fitted, priors = replace(fitted, prior=found[0]), [*found[1:]]
            case presets.Deconvolve():
                if companion is not None:
                    crew.learn_plural(companion.plural)
                else:
                    warnings.append("there is no low loss of this scan: plural scattering stays in its spectra")
            case presets.Rebin() | presets.Spatial():
                pass
        fitted = replace(fitted, steps=(*fitted.steps, step))
        if isinstance(step, presets.Pca):
            crew.postpone(functools.partial(_with_scores, fitted=fitted))

    beside = [replace(fitted, edge=one, prior=prior) for one, prior in zip(others, priors, strict=True)]
    fitted = replace(fitted, beside=tuple(beside))
    if companion is not None and drift_said is None and companion.facts["drift"] > MUCH_DRIFT:
        drift_said = drift_warning(companion.facts["drift"])
    warnings += [drift_said] if drift_said else []
    if mean_spectrum is None:
        mean_spectrum = _mean_of_specimen(crew, fitted)
    if crew.postponed:
        crew.visit(_nothing_more, label="find spikes")
    warnings += _warnings_about(fitted, crew)
    return Acquisition(
        fitted,
        preset,
        tuple(crew.parts),
        shape,
        vacuum,
        mean_spectrum,
        losses,
        edge_offset,
        companion,
        tuple(warnings),
        calibration,
        tuple(unlikely),
    )


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
        for one in fitted.of_edges:  # each from where it is fitted; the next edge's takes over there
            fit = fit_power_law(native.values, acquisition.mean_spectrum, one.edge.background_window, shrink=False)
            begin = native.channels(one.edge.background_window).start
            mean_background[begin:] = fit.evaluate(native.values[begin:])
    valid = np.concatenate([valid_channels(one, native) for one in fitted.of_edges])
    n_spike_pixels, n_spike_channels = _count_spikes(acquisition.parts)
    with_spatial = {}
    if spatial_step(acquisition.preset) is not None:
        with_spatial = {
            "gathered": empty_variable(spectra, (n_y, n_x, axis.size), np.float32, units="counts"),
            "gathered_variance": empty_variable(spectra, (n_y, n_x, axis.size), np.float32, units="counts^2"),
            "effective_spectra": empty_variable(pixels, (n_y, n_x), np.float32),
        }
    companion = acquisition.companion
    of_low_loss = (
        {}
        if companion is None
        else {
            name: (pixels, values, {"units": companion.units[name]} if name in companion.units else {})
            for name, values in companion.maps.items()
        }
    )
    used = {
        "deconvolved": acquisition.preset.find(presets.Deconvolve) is not None,
        "drift_followed": fitted.drift != (0.0, 0.0),
    }
    edge_offset = acquisition.edge_offset
    return xr.Dataset(
        {
            **with_spatial,
            **of_low_loss,
            "intensity": empty_variable(spectra, (n_y, n_x, axis.size), np.float32, units="counts"),
            "variance": empty_variable(spectra, (n_y, n_x, axis.size), np.float32, units="counts^2"),
            "valid": ("energy_loss", valid),
            "vacuum_mask": empty_variable(pixels, (n_y, n_x), np.bool_),
            "lost": empty_variable(pixels, (n_y, n_x), np.bool_),
            "background_status": empty_variable(pixels, (n_y, n_x), np.uint8),
            **{
                f"{name}{end}": empty_variable(pixels, (n_y, n_x), np.float32, **units)
                for end in ("", *(f"_{one.edge.name}" for one in fitted.beside))
                for name, units in zip(BACKGROUNDS, ({"units": "counts"}, {}), strict=True)
            },
            "spike_channels": empty_variable(pixels, (n_y, n_x), np.uint16),
            "electrons": empty_variable(pixels, (n_y, n_x), np.float32, units=f"per {ELECTRONS_PER:g} eV"),
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
            "edge": fitted.whole_edge.model_dump_json(),
            "preset": acquisition.preset.model_dump_json(),
            "energy_offset": fitted.offset.value if fitted.offset else 0.0,
            "energy_offset_error": fitted.offset.error if fitted.offset else None,
            "edge_offset": edge_offset.value if edge_offset else None,
            "edge_offset_error": edge_offset.error if edge_offset else None,
            **_describe_calibration(acquisition.calibration),
            "unlikely_distances": json.dumps(acquisition.unlikely),
            "low_loss": json.dumps({**companion.facts, **used}) if companion else None,
            "pixel_size": image.attrs["pixel_size"],
            "pixel_unit": image.attrs["pixel_unit"],
            "sha256": image.attrs.get("sha256", ""),
            "source": image.attrs.get("source", ""),
            "spatial_reach": 0.0,
            "pca_rank": fitted.pca.rank if fitted.pca else -1,
            "vacuum_separation": acquisition.vacuum.separation if acquisition.vacuum else None,
            "lost_pixels": acquisition.losses.numbers,
            "n_spike_pixels": n_spike_pixels,
            "n_spike_channels": n_spike_channels,
            "dead_channels": np.flatnonzero(fitted.dead_channels).tolist(),
            "noise_gain": float(fitted.noise.gain),
            "noise_readout_variance": float(fitted.noise.readout_variance),
            "warnings": json.dumps(acquisition.warnings),
            "code_version": code_version("preprocess", "energy", "edges", "spectrum_image"),
        },
    )


Task = Callable[[Part, NDArray[Any] | None], Part]
"""What finds something out about a block from its raw counts (None where it has scores)."""


class _Crew:
    """The blocks of an acquisition and what works on them: results come back in the order of the blocks."""

    def __init__(self, executor: Executor, parts: list[Part], shape: tuple[int, int]) -> None:
        self.executor = executor
        self.parts = parts
        self.shape = shape
        self.lost = np.zeros(shape, dtype=bool)
        self.postponed: list[Task] = []

    def map(self, function: Callable[..., Result], *args: Any, label: str) -> list[Result]:
        """Return ``function(part, *args)`` for every block."""
        return self.executor.map(functools.partial(on_block, function, args), self.parts, label=label)

    def postpone(self, task: Task) -> None:
        """Have something found out on the next visit to the blocks."""
        self.postponed.append(task)

    def visit(self, question: Callable[..., Result], *args: Any, label: str) -> list[Result]:
        """Read every block, do what is postponed, and return ``question(part, raw counts, *args)`` for each."""
        visits = self.map(_visit, self.postponed, question, args, label=label)
        self._learn([found for found, _ in visits])
        return [answer for _, answer in visits]

    def sum_moments(self, fitted: Fitted, pilot: Counts, *, n_sets: int, label: str) -> list[Moments]:
        """Return the moments of all pixels, or of each of two halves of them, and do what is postponed.

        Blocks are added up where they are worked on, and a few such sums at a time here: each is as many channel
        covariances large as there are sets.
        """
        groups = [self.parts[i : i + _BLOCKS_TOGETHER] for i in range(0, len(self.parts), _BLOCKS_TOGETHER)]
        total: list[PilotSums] | None = None
        found: list[_Found] = []
        for begin in range(0, len(groups), _COVARIANCES_AT_ONCE):
            add_up = functools.partial(_sum_moments_of, self.postponed, fitted, pilot, n_sets)
            for some, sets in self.executor.map(add_up, groups[begin : begin + _COVARIANCES_AT_ONCE], label=label):
                found += some
                if total is None:
                    total = sets
                else:
                    for mine, other in zip(total, sets, strict=True):
                        mine.add(other)
        self._learn(found)
        assert total is not None
        return [sums.moments() for sums in total]

    def _learn(self, found: Sequence[_Found]) -> None:
        """Keep what was postponed until a visit that has been made."""
        if self.postponed:
            pairs = zip(self.parts, found, strict=True)
            self.parts = [replace(part, spikes=spikes, scores=scores) for part, (spikes, scores) in pairs]
            self.postponed = []

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

    def learn_lost(self, mask: NDArray[np.bool_]) -> None:
        """Keep which pixels of each block are lost; `mask` has the shape (y, x) of the image."""
        self.lost = mask
        masks = [mask[part.block.y, part.block.x].ravel() for part in self.parts]
        self.parts = [
            replace(part, lost=lost) if lost.any() else part for part, lost in zip(self.parts, masks, strict=True)
        ]

    def learn_plural(self, plural: PluralScattering) -> None:
        """Keep what takes plural scattering out of each block."""
        self.parts = [replace(part, plural=plural.crop(part.block)) for part in self.parts]

    def learn_drift(self, drift: NDArray[np.float32] | None) -> None:
        """Keep what is to be added to the energies of each block's pixels; `drift` has the shape (y, x), eV."""
        of = [None if drift is None else drift[part.block.y, part.block.x].ravel() for part in self.parts]
        self.parts = [replace(part, drift=one) for part, one in zip(self.parts, of, strict=True)]

    def learn_vacuum(self, mask: NDArray[np.bool_]) -> None:
        """Keep which pixels of each block hold no specimen; `mask` has the shape (y, x) of the image."""
        self.parts = [replace(part, vacuum=mask[part.block.y, part.block.x].ravel()) for part in self.parts]


_Found = tuple[NDArray[np.int32] | None, NDArray[np.float32] | None]
"""Spikes and scores of a block."""


def _visit(
    part: Part, postponed: Sequence[Task], question: Callable[..., Result], args: tuple[Any, ...]
) -> tuple[_Found, Result]:
    """Read a block, do what was postponed, and answer a question about it."""
    raw = part.read_if_needed()
    for task in postponed:
        part = task(part, raw)
    found = (part.spikes, part.scores) if postponed else (None, None)
    return found, question(part, raw, *args)


def _sum_moments_of(
    postponed: Sequence[Task], fitted: Fitted, pilot: Counts, n_sets: int, parts: Sequence[Part]
) -> tuple[list[_Found], list[PilotSums]]:
    """Return the sums of some blocks, for the moments of all pixels or of either half of them."""
    sets = [PilotSums(pilot) for _ in range(n_sets)]
    visits = [on_block(_visit, (postponed, _add_to_sets, (sets, fitted)), part) for part in parts]
    for sums in sets:
        sums.settle()
    return [found for found, _ in visits], sets


def on_block(function: Callable[..., Result], args: tuple[Any, ...], part: Part) -> Result:
    """Apply a function to one block; its error says which acquisition and which block."""
    try:
        return function(part, *args)
    except EelsflowError as error:
        if not isinstance(part.source, Path):
            raise
        raise type(error)(f"{part.source.name}, block {part.block}: {error}") from error


# --- what one block tells about the acquisition -------------------------------------------------------------------


def _with_spikes(part: Part, raw: NDArray[Any] | None, fitted: Fitted, threshold: float) -> Part:
    """Return the block with (pixel, detector channel) of every value hit by a spike, shape (n, 2)."""
    spectra = transform(raw, fitted, scores=part.scores)
    first = spectra.first_channel
    mask = find_spikes(
        spectra.counts,
        fitted.noise,
        threshold=threshold,
        reference=fitted.reference,
        dead_channels=fitted.dead_channels[first : first + spectra.axis.size],
    )
    pixel, channel = np.divmod(np.flatnonzero(mask), mask.shape[1])  # few are hit: several times as fast as nonzero
    return replace(part, spikes=np.stack([pixel, channel + first], axis=1).astype(np.int32))


def _with_scores(part: Part, raw: NDArray[Any] | None, fitted: Fitted) -> Part:
    """Return the block with the scores of its spectra; the last step learnt is the components'."""
    assert fitted.pca is not None
    earlier = replace(fitted, steps=fitted.steps[:-1], pca=None)
    scores = np.empty((int(np.prod(part.shape)), fitted.pca.rank), dtype=np.float32)
    for rows, spectra in transform_slices(part, raw, earlier):
        scores[rows] = fitted.pca.scores(spectra.counts)
    return replace(part, scores=scores)


def _nothing_more(part: Part, raw: NDArray[Any] | None) -> None:
    """Ask nothing; what is postponed is done all the same."""


def _add_to_sets(part: Part, raw: NDArray[Any] | None, sets: Sequence[PilotSums], fitted: Fitted) -> None:
    y, x = np.divmod(part.pixels, part.width)
    number = (y + x) % len(sets)
    if part.lost is not None:
        number[part.lost] = len(sets)  # of none
    for rows, spectra in transform_slices(part, raw, fitted):
        for which, sums in enumerate(sets):
            sums.add_spectra(spectra.counts, number[rows] == which)


def _signal_of(
    part: Part,
    raw: NDArray[Any] | None,
    fitted: Fitted,
    windows: tuple[Window, Window],
    exponent: float,
    in_bands: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None, NDArray[np.float64] | None]:
    """Return the edge's counts above the background, the spectrum in bands and all counts of every pixel.

    The bands if they are asked for, all counts if they are those of single electrons; None otherwise.
    """
    before, edge = (fitted.corrected_axis.channels(window) for window in windows)
    channels = slice(min(before.start, edge.start), max(before.stop, edge.stop))
    spectra = transform(raw, fitted, spikes=part.spikes, scores=part.scores, channels=channels)
    signal = edge_signal(
        spectra.counts,
        spectra.axis.values,
        pre_edge_window=windows[0],
        edge_window=windows[1],
        exponent=exponent,
    )
    bands = _bands_of(part, raw, fitted) if in_bands else None
    return signal, bands, _totals_of(part, raw, fitted) if _few_electrons_tell(fitted) and not in_bands else None


def _few_electrons_tell(fitted: Fitted) -> bool:
    """Tell whether the counts are still those of single electrons, whose noise is known pixel by pixel."""
    return fitted.noise.quantum > 0 and fitted.pca is None


def _totals_of(part: Part, raw: NDArray[Any] | None, fitted: Fitted) -> NDArray[np.float64]:
    totals = np.empty(int(np.prod(part.shape)))
    for rows, spectra in transform_slices(part, raw, fitted):
        add_channels(spectra.counts, totals[rows])
    return totals


def _bands_of(part: Part, raw: NDArray[Any] | None, fitted: Fitted) -> NDArray[np.float32]:
    """Return the spectra averaged to bands, shape (pixels, bands)."""
    pca = fitted.pca
    if pca is not None and part.scores is not None and isinstance(fitted.steps[-1], presets.Pca):
        # an average of spectra is the spectrum of averages
        bands = part.scores @ _in_bands(pca.components * pca.scale) + _in_bands(pca.mean[None])
    else:
        bands = _in_bands(transform(raw, fitted, spikes=part.spikes, scores=part.scores).counts)
    return np.asarray(bands, dtype=np.float32)


def _in_bands(spectra: NDArray[Any]) -> NDArray[np.float32]:
    width = max(1, spectra.shape[1] // _N_BANDS)
    n_bands = spectra.shape[1] // width
    bands = spectra[:, : n_bands * width].reshape(len(spectra), n_bands, width)
    return np.asarray(bands.mean(axis=2, dtype=np.float64), dtype=np.float32)


def _exponents_of(part: Part, raw: NDArray[Any] | None, of_edges: Sequence[Fitted]) -> list[ExponentMoments]:
    moments = []
    for fitted in of_edges:
        window = fitted.edge.background_window
        channels = fitted.corrected_axis.channels(window)
        spectra = transform(raw, fitted, spikes=part.spikes, scores=part.scores, channels=channels)
        moments.append(exponent_moments(spectra.axis.values, spectra.counts[part.specimen], window, noise=fitted.noise))
    return moments


# --- what the blocks tell together --------------------------------------------------------------------------------


def _fit_components(crew: _Crew, fitted: Fitted, step: presets.Pca, sample: Counts) -> Pca:
    pilot = transform(sample, fitted).counts.mean(axis=0, dtype=np.float64).astype(np.float32)
    # what one half of the pixels says about the other tells the rank
    moments = crew.sum_moments(fitted, pilot, n_sets=2 if step.rank == "auto" else 1, label="channel covariance")
    return fit_pca((moments[0], moments[1]) if step.rank == "auto" else moments[0], rank=step.rank)


def _find_vacuum(crew: _Crew, fitted: Fitted, step: presets.VacuumMask, sample: Counts) -> VacuumMask:
    """Tell specimen from vacuum by the edge's signal, wherever the axis may put the edge."""
    windows = _signal_windows(fitted)
    mean = transform(sample, fitted, spikes=_spikes_in(sample, fitted)).counts.mean(axis=0, dtype=np.float64)
    _require_falling(mean, fitted, windows[0])
    energies = fitted.corrected_axis.values
    exponent = background_exponent(mean, energies, windows[0])
    if _few_electrons_tell(fitted):
        # what the halves of a window say of few electrons may be anything
        electrons = mean * (len(sample) / fitted.noise.quantum)
        exponent = pooled_prior(energies, electrons, windows[0], ExponentPrior()).mean
    in_bands = step.method == "kmeans"
    answers = crew.visit(_signal_of, fitted, windows, exponent, in_bands, label="edge signal")
    signal = crew.assemble([signal for signal, *_ in answers])
    if not in_bands:
        if not _few_electrons_tell(fitted):
            return find_vacuum(signal, method="threshold", lost=crew.lost)
        total = crew.assemble([total for *_, total in answers if total is not None])
        noise = signal_variance(mean, energies, *windows, exponent=exponent) * fitted.noise.quantum
        kept = ~crew.lost
        signal[kept], error = signal_with_total(signal[kept], total[kept], quantum=fitted.noise.quantum, noise=noise)
        return find_vacuum(signal, method="threshold", signal_error=error, lost=crew.lost)
    features = crew.assemble([bands for _, bands, _ in answers if bands is not None])
    return find_vacuum(signal, method="kmeans", features=features, lost=crew.lost)


def _spikes_in(sample: Counts, fitted: Fitted) -> NDArray[np.int32] | None:
    """Return where spikes hit the sample of counted electrons, shape (n, 2).

    Elsewhere None: a mean over a thousand spectra bears a spike, but not where it is half an electron a channel.
    """
    step = next((step for step in fitted.steps if isinstance(step, presets.Spikes)), None)
    if step is None or not _few_electrons_tell(fitted):
        return None
    mask = find_spikes(
        sample,
        fitted.noise,
        threshold=step.threshold,
        reference=fitted.reference,
        dead_channels=fitted.dead_channels,
    )
    return np.argwhere(mask).astype(np.int32)


def _signal_windows(fitted: Fitted) -> tuple[Window, Window]:
    """Return windows that lie before the edge and in it, whatever the offset of an axis that is not aligned yet.

    For a nominal axis that may be wrong by 9 eV either way the first ends 9 eV earlier and the second begins 9 eV
    later, so that neither ever holds what it should not; both keep their width and are clipped to the axis.
    """
    axis, edge = fitted.corrected_axis, fitted.edge
    reach = 0.0 if fitted.offset else MAX_OFFSET
    lowest, highest = float(axis.boundaries[0]), float(axis.boundaries[-1])
    before = (max(edge.background_window[0] - reach, lowest), edge.background_window[1] - reach)
    inside = (edge.elnes_window[0] + reach, min(edge.elnes_window[1] + reach, highest))
    for what, window, whole in (
        ("pre-edge", before, edge.background_window),
        ("ELNES", inside, edge.elnes_window),
    ):
        if not window[0] < window[1]:
            raise EdgeOutOfRangeError(
                f"nothing is left of the {what} window {format_window(whole)} of {edge.name} on the energy axis, which "
                f"spans {axis.start:.1f}-{axis.stop:.1f} eV{f' and may be wrong by {reach:g} eV' if reach else ''}; "
                "vacuum cannot be told from specimen: record more of the spectrum, or choose a preset without a vacuum "
                "mask"
            )
    return before, inside


def _mean_of_specimen(crew: _Crew, fitted: Fitted) -> NDArray[np.float64]:
    """Return the mean spectrum of the specimen pixels, as far as they are known, counts, shape (channels,)."""
    sums = crew.visit(sum_spectra, fitted, label="sum specimen")
    return np.asarray(np.sum(sums, axis=0) / crew.n_specimen)


def _drift_of_specimen(companion: Companion, crew: _Crew) -> float:
    """Return what the specimen's energies want beside the offset of the whole scan, on average, eV."""
    if companion.drift is None:
        return 0.0
    specimen = crew.assemble([part.specimen for part in crew.parts])
    return float(companion.drift[specimen].mean()) if specimen.any() else 0.0


def _follow_drift(
    crew: _Crew, fitted: Fitted, companion: Companion, edge_offset: OffsetEstimate
) -> tuple[Fitted, str | None]:
    """Have every row resampled by its own zero loss, unless the edge drifts otherwise; say so where it is much.

    A zero loss that drifts otherwise is not believed in anything: the offset is the edge's then.
    """
    specimen = crew.assemble([part.specimen for part in crew.parts])
    if companion.drift is None or not specimen.any():
        return fitted, None
    drift = in_steps(companion.drift)
    if not drift.any():
        return fitted, None
    crew.learn_drift(drift)
    ends = ends_of(drift, specimen)
    zero_loss, shift = 0.0, (0.0, np.inf)
    if ends[1] > ends[0]:
        found = crew.visit(_sum_ends, fitted, ends, label="sum both ends")
        n, total, spectra = (np.sum([one[which] for one in found], axis=0) for which in range(3))
        means = spectra / n[:, None]
        zero_loss = float(total[1] / n[1] - total[0] / n[0])
        shift = edge_shift(
            fitted.corrected_axis,
            means[::-1],  # what wants more lies lower
            fitted.noise.variance(means[::-1]) / n[::-1, None],
            background_window=fitted.edge.background_window,
            elnes_window=fitted.edge.elnes_window,
        )
    followed = follows(zero_loss, shift)
    much = companion.facts["drift"] > MUCH_DRIFT or not followed
    said = describe_drift(companion.facts["drift"], zero_loss, shift, followed=followed) if much else None
    if not followed:
        crew.learn_drift(None)
        return replace(fitted, offset=edge_offset), said
    return replace(fitted, offset=companion.offset, drift=(float(drift.min()), float(drift.max()))), said


def _sum_ends(
    part: Part, raw: NDArray[Any] | None, fitted: Fitted, ends: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Add up the specimen pixels of a block whose drift is in the lower third, and in the upper third.

    Returns how many they are, shape (2,), the sum of their drifts, shape (2,), eV, and of their spectra, shape
    (2, channels).
    """
    assert part.drift is not None
    both = [part.specimen & (part.drift <= ends[0]), part.specimen & (part.drift >= ends[1])]
    return (
        np.array([np.count_nonzero(end) for end in both]),
        np.array([part.drift[end].sum(dtype=np.float64) for end in both]),
        np.array([sum_spectra(replace(part, vacuum=~end), raw, fitted) for end in both]),
    )


def _estimate_offset(
    mean_spectrum: NDArray[np.float64], n_specimen: int, fitted: Fitted, max_offset: float
) -> OffsetEstimate:
    return estimate_offset(
        fitted.axis.values,
        mean_spectrum,
        fitted.edge,
        variance=fitted.noise.variance(mean_spectrum) / n_specimen,
        max_offset=max_offset,
    )


def _offsets_beside(
    mean_spectrum: NDArray[np.float64], n_specimen: int, fitted: Fitted, others: Sequence[Edge], max_offset: float
) -> list[tuple[Edge, OffsetEstimate]]:
    """Return the offset that each other edge asks for, which the dispersion and chemistry move further."""
    return [
        (one, _estimate_offset(mean_spectrum, n_specimen, replace(fitted, edge=one), max_offset + SLACK))
        for one in others
    ]


def _describe_calibration(calibration: Calibration | None) -> dict[str, Any]:
    """Return what the edges together say of the axis, as attributes of the product; nothing of a single edge."""
    if calibration is None or not calibration.distances:
        return {"dispersion_correction": 1.0, "dispersion_error": None, "edge_distances": json.dumps({})}
    return {
        "dispersion_correction": calibration.dispersion,
        "dispersion_error": calibration.dispersion_error,
        "edge_distances": json.dumps({name: list(one) for name, one in calibration.distances.items()}),
    }


def _priors(crew: _Crew, of_edges: Sequence[Fitted], mean_spectrum: NDArray[np.float64]) -> list[ExponentPrior]:
    """Return the prior of the exponents before each of the edges."""
    moments = crew.visit(_exponents_of, of_edges, label="background exponents")
    total = mean_spectrum * crew.n_specimen
    return [
        _prior_of(functools.reduce(ExponentMoments.__add__, of_edge).prior(), total, fitted)
        for fitted, of_edge in zip(of_edges, zip(*moments, strict=True), strict=True)
    ]


def _prior_of(prior: ExponentPrior, total: NDArray[np.float64], fitted: Fitted) -> ExponentPrior:
    """Return the prior of the exponents; of counted electrons it follows from the specimen's summed spectrum."""
    if not fitted.noise.quantum:
        return prior
    return pooled_prior(
        fitted.corrected_axis.values, total / fitted.noise.quantum, fitted.edge.background_window, prior
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
    axis, offset = fitted.corrected_axis, fitted.offset
    if offset is None:
        warnings.append("the energy axis was taken as it is: the preset does not align")
    elif offset.error > _UNCERTAIN_OFFSET:
        warnings.append(
            f"the energy offset {offset.value:+.2f} eV is uncertain by {offset.error:.2f} eV: look at the mean spectrum"
        )
    warnings += [
        f"the corrected axis spans {axis.start:.1f}-{axis.stop:.1f} eV, so the ELNES window "
        f"{format_window(one.edge.elnes_window)} is not all there"
        for one in fitted.of_edges
        if not axis.covers(one.edge.elnes_window)
    ]
    edge = fitted.edge
    if axis.start > edge.background_window[0] + axis.dispersion:
        warnings.append(
            f"the corrected axis starts at {axis.start:.1f} eV, inside the pre-edge window "
            f"{format_window(edge.background_window)}: the background rests on what is left of it"
        )
    n_spike_pixels, _ = _count_spikes(crew.parts)
    n_pixels = int(np.prod(crew.shape))
    if n_spike_pixels > _MANY_SPIKES * n_pixels:
        warnings.append(f"{n_spike_pixels} of {n_pixels} pixels hold spikes, more than any detector should show")
    return warnings


def _without_dead_channels(sample: Counts, fitted: Fitted) -> Counts:
    """Return what the steps learnt so far make of the sample, dead channels bridged."""
    spectra = transform(sample, fitted)
    first, size = spectra.first_channel, spectra.axis.size
    return repair(spectra.counts, fitted.dead_channels[first : first + size], None, slice(0, size))


def _count_spikes(parts: Sequence[Part]) -> tuple[int, int]:
    """Return the number of pixels, and of channels in them, hit by spikes."""
    per_pixel = [part.spikes_per_pixel for part in parts]
    return sum(int(np.count_nonzero(n)) for n in per_pixel), sum(int(n.sum()) for n in per_pixel)
