"""What is learnt of an acquisition, and what it makes of the spectra of one block.

A `Part` is a block of pixels and what is known of it alone, `Fitted` what was learnt from the whole acquisition.
`transform` applies the steps learnt so far to the spectra of a block, `finish` makes its part of the prepared product.
Both touch only the channels that are wanted: of 2048 the product needs a sixth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.edges import MARGIN, Edge, join_edges
from eelsflow.energy import Axis, EnergyAxis, Window, side_by_side
from eelsflow.errors import InputError
from eelsflow.io.zarr_store import Block, read_counts
from eelsflow.preprocess import presets
from eelsflow.preprocess.background import ExponentPrior, PowerLawFit, fit_power_law
from eelsflow.preprocess.companion import PluralScattering, single_scattering
from eelsflow.preprocess.kernels import add_spectra, bridge_hits, subtract_and_resample
from eelsflow.preprocess.noise import NoiseModel
from eelsflow.preprocess.offset import OffsetEstimate
from eelsflow.preprocess.pca import Pca
from eelsflow.preprocess.presets import Step
from eelsflow.preprocess.rebin import (
    covered_channels,
    rebin_conserving,
    rebin_linear,
    rebin_variance,
    resampling,
)
from eelsflow.preprocess.spikes import SpikeReference, neighbors_of

ELECTRONS_PER = 0.1
"""Width of the channels that electrons are given per, eV: that of the vectors, whatever the detector's."""

NOT_FITTED = 255
"""`background_status` without a background, and of lost pixels; otherwise see `background.PowerLawStatus`."""

_CROP_MARGIN = 12  # detector channels kept beyond the wide window, so that its ends are resampled like the rest
_ROWS_AT_ONCE = 256  # spectra; 2 MiB of single precision stay in the cache
_SMOOTH_CHANNELS = 9  # over which counts are averaged to estimate what a pixel's counts are expected to be

BACKGROUNDS = ("background_amplitude", "background_exponent")
"""Maps of the product that belong to one edge; of edges beside the first they have its name as well."""

Counts = NDArray[np.float32]


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
    scores
        Coordinates of the spectra along the acquisition's components, shape (pixels, rank); None before `Pca`. They
        stand for the counts from there on.
    lost
        Shape (pixels,), True where nothing was recorded that counts (see `eelsflow.preprocess.lost`); None where no
        pixel of the block is lost.
    drift
        What is to be added to the energies of each pixel beside the offset, shape (pixels,), eV; None for nothing.
    plural
        Takes plural scattering out of its spectra; None without `Deconvolve`, and without a low loss.
    held
        Raw counts of the block, shape (pixels, channels), where they are kept between readings; None otherwise.
    """

    source: Path | NDArray[Any]
    block: Block
    width: int
    vacuum: NDArray[np.bool_] | None = None
    spikes: NDArray[np.int32] | None = None
    scores: NDArray[np.float32] | None = None
    lost: NDArray[np.bool_] | None = None
    drift: NDArray[np.float32] | None = None
    plural: PluralScattering | None = None
    held: NDArray[Any] | None = None

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
        specimen = ~self.vacuum if self.vacuum is not None else np.ones(np.prod(self.shape), dtype=bool)
        return specimen if self.lost is None else specimen & ~self.lost

    def read(self) -> NDArray[Any]:
        """Return the raw counts, shape (pixels, channels), in the type they are stored in; not to be modified.

        A lost pixel reads as zeros, which no loop stumbles over; what is learnt leaves it out.
        """
        if self.held is not None:
            counts = self.held
        elif isinstance(self.source, Path):
            counts = read_counts(self.source, self.block)
        else:
            counts = np.asarray(self.source[self.block.y, self.block.x])
        counts = counts.reshape(-1, counts.shape[-1])
        return counts if self.lost is None else np.where(self.lost[:, None], counts.dtype.type(0), counts)

    def hold(self) -> Part:
        """Return the block with its raw counts, for all later readings."""
        return replace(self, held=self.read())

    def read_if_needed(self) -> NDArray[Any] | None:
        """Return the raw counts, or None where the scores stand for them."""
        return self.read() if self.scores is None else None

    @property
    def spikes_per_pixel(self) -> NDArray[np.int64]:
        """How many channels of each pixel of the block were hit, shape (pixels,)."""
        n_pixels = int(np.prod(self.shape))
        if self.spikes is None:
            return np.zeros(n_pixels, dtype=np.int64)
        return np.bincount(self.spikes[:, 0], minlength=n_pixels)


@dataclass(frozen=True)
class Fitted:
    """What was learnt from a whole acquisition, up to the last of `steps`.

    Attributes
    ----------
    axis
        The nominal energy axis.
    edge
        The edge that is prepared; alone, without those that are judged together with it.
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
    drift
        The least and the most that `Part.drift` is, eV.
    dispersion
        True width of a channel over the nominal one; see `eelsflow.preprocess.calibration`.
    fixed_energy
        Where a wrong dispersion moves nothing, eV: the reference energy of the edge that the offset is of.
    beside
        The same acquisition, as it is prepared for each other edge that is judged together with this one.
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
    drift: tuple[float, float] = (0.0, 0.0)
    dispersion: float = 1.0
    fixed_energy: float = 0.0
    beside: tuple[Fitted, ...] = ()

    @property
    def corrected_axis(self) -> EnergyAxis:
        """The nominal axis plus the offset, and with the dispersion corrected where edges tell it."""
        axis = self.axis.shifted(self.offset.value) if self.offset else self.axis
        return axis if self.dispersion == 1.0 else axis.stretched(self.dispersion, fixed=self.fixed_energy)

    @property
    def of_edges(self) -> tuple[Fitted, ...]:
        """What was learnt for each of the edges that are judged together, in order of energy."""
        return (self, *self.beside)

    @property
    def whole_edge(self) -> Edge:
        """The edge with those that are judged together with it."""
        return join_edges([one.edge for one in self.of_edges])

    @property
    def crop(self) -> slice:
        """Detector channels of the wide window, wherever it drifts, and a few more."""
        start, stop = wide_window(self.edge)
        channels = self.corrected_axis.channels((start - self.drift[1], stop - self.drift[0]))
        return slice(max(channels.start - _CROP_MARGIN, 0), min(channels.stop + _CROP_MARGIN, self.axis.size))


@dataclass(frozen=True)
class Spectra:
    """Spectra of a block on their way through the steps.

    Attributes
    ----------
    counts
        Shape (n, channels); the background is still in them. As they are stored where no step has changed them.
    axis
        Of `counts`; corrected once aligned.
    first_channel
        Detector channel that `counts` begin with.
    background
        Fit of the background; None before `Background`.
    """

    counts: NDArray[Any]
    axis: EnergyAxis
    first_channel: int = 0
    background: PowerLawFit | None = None


def transform(
    raw: NDArray[Any] | None,
    fitted: Fitted,
    *,
    spikes: NDArray[np.int32] | None = None,
    scores: NDArray[np.float32] | None = None,
    channels: slice | None = None,
) -> Spectra:
    """Apply the steps learnt so far to raw spectra, in their order.

    Parameters
    ----------
    raw
        Shape (n, channels); not modified. None where there are scores.
    fitted
        What was learnt.
    spikes
        Where these spectra were hit, as in `Part`; None looks for no spikes.
    scores
        Of these spectra, as in `Part`; None computes them.
    channels
        Detector channels that are wanted, all by default; after `Background` it is always those of the product.
    """
    steps, pca = fitted.steps, fitted.pca
    if pca is not None:
        before = next(i for i, step in enumerate(steps) if isinstance(step, presets.Pca))
        if scores is None:
            earlier = transform(raw, replace(fitted, steps=steps[:before], pca=None), spikes=spikes)
            scores = np.asarray(pca.scores(earlier.counts), dtype=np.float32)
        steps = steps[before + 1 :]
    kinds = [type(step) for step in steps]
    repairs = presets.Spikes in kinds
    if presets.Background in kinds:
        repairs = presets.Spikes in kinds[: kinds.index(presets.Background)]
        channels = _channels_to_fit(fitted)
    everything = slice(0, fitted.axis.size)
    channels = channels or everything
    if pca is None:
        assert raw is not None
        counts = raw
    else:
        assert scores is not None
        # a spike is bridged from wherever its neighbours are
        counts = pca.reconstruct(scores, everything if repairs else channels)
    if counts.shape[1] == fitted.axis.size:
        counts = repair(counts, fitted.dead_channels, spikes, channels) if repairs else counts[:, channels]
    spectra = Spectra(counts, _part_of(fitted.corrected_axis, channels), channels.start)
    for step in steps:
        match step:
            case presets.Background(shrink=shrink):
                background = fit_power_law(
                    spectra.axis.values,
                    spectra.counts,
                    fitted.edge.background_window,
                    noise=fitted.noise,
                    shrink=shrink,
                    prior=fitted.prior,
                )
                spectra = cropped(replace(spectra, background=background), fitted)
            case presets.Spikes() if spectra.background is not None:
                crop = slice(spectra.first_channel, spectra.first_channel + spectra.axis.size)
                hits = None if spikes is None else _within(spikes, crop)
                repaired = repair(spectra.counts, fitted.dead_channels[crop], hits, slice(0, spectra.axis.size))
                spectra = replace(spectra, counts=repaired)
            case _:
                pass  # marks pixels and changes none, or is the last step: see `finish`
    return spectra


def transform_slices(part: Part, raw: NDArray[Any] | None, fitted: Fitted) -> Iterator[tuple[slice, Spectra]]:
    """Yield what `transform` makes of a block, some rows at a time, with these rows.

    Whole spectra of a block in single precision are 32 MiB: too large for the cache, and memory of that size comes
    from the operating system, page by page, each time.
    """
    n = int(np.prod(part.shape))
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, n))
        spikes = None if part.spikes is None else _in_rows(part.spikes, rows)
        scores = None if part.scores is None else part.scores[rows]
        yield rows, transform(None if raw is None else raw[rows], fitted, spikes=spikes, scores=scores)


def repair(counts: NDArray[Any], dead: NDArray[np.bool_], spikes: NDArray[np.int32] | None, channels: slice) -> Counts:
    """Return counts with dead channels and spikes replaced by lines between their neighbours.

    Dead channels are the same in all spectra and spikes hit few of them, so only those see a mask of their own.

    Parameters
    ----------
    counts
        Shape (n, channels); not modified.
    dead
        Shape (channels,).
    spikes
        Spectrum and channel of each value hit, shape (m, 2), or None.
    channels
        Which channels are returned; neighbours are looked for among all.
    """
    repaired = counts[:, channels].astype(np.float32)
    for channel, low, high, share in neighbors_of(dead):
        if channels.start <= channel < channels.stop:
            ends = counts[:, [low, high]].astype(np.float32)
            repaired[:, channel - channels.start] = (1 - share) * ends[:, 0] + share * ends[:, 1]
    if spikes is not None and len(spikes):
        hits = spikes[np.argsort(spikes[:, 0], kind="stable")]
        n_lost = bridge_hits(counts, dead, hits, channels.start, repaired)
        if n_lost:
            raise InputError(
                f"{n_lost} spectra have no clean channel left to interpolate from; leave these pixels out, or raise "
                "the spike threshold"
            )
    return repaired


def sum_spectra(part: Part, raw: NDArray[Any] | None, fitted: Fitted) -> NDArray[np.float64]:
    """Return the sum of the specimen's spectra of one block after the steps learnt so far, shape (channels,).

    What the steps do is linear, bar the repair of spikes, so the sum is taken first and the steps after it.
    """
    total = np.zeros(fitted.axis.size)
    kinds = [type(step) for step in fitted.steps]
    if fitted.pca is not None and part.scores is not None and presets.Spikes not in kinds[kinds.index(presets.Pca) :]:
        scores = part.scores[part.specimen].sum(axis=0, dtype=np.float64)
        n_specimen = np.count_nonzero(part.specimen)
        return np.asarray(n_specimen * fitted.pca.mean + scores @ (fitted.pca.components * fitted.pca.scale))
    if raw is None or presets.Pca in kinds or presets.Background in kinds:
        spectra = transform(raw, fitted, spikes=part.spikes, scores=part.scores)
        return np.asarray(spectra.counts[part.specimen].sum(axis=0, dtype=np.float64))
    if presets.Spikes not in kinds:
        add_spectra(raw, part.specimen, total)
        return total
    hit = part.spikes_per_pixel > 0
    add_spectra(raw, part.specimen & ~hit, total)
    for channel, low, high, share in neighbors_of(fitted.dead_channels):
        total[channel] = (1 - share) * total[low] + share * total[high]
    touched = np.flatnonzero(hit & part.specimen)
    if touched.size and part.spikes is not None:
        spikes = part.spikes[np.isin(part.spikes[:, 0], touched)].copy()
        spikes[:, 0] = np.searchsorted(touched, spikes[:, 0])
        total += transform(raw[touched], fitted, spikes=spikes).counts.sum(axis=0, dtype=np.float64)
    return total


def finish(part: Part, fitted: Fitted) -> dict[str, NDArray[Any]]:
    """Return a block's share of the prepared product: every variable with the dimensions y and x.

    Parameters
    ----------
    part
        The block.
    fitted
        What was learnt, with all steps. Spectra of several edges lie side by side, and their backgrounds are told
        edge by edge; whatever else belongs to an edge (electrons) is the first one's.
    """
    raw = part.read_if_needed()
    values = _finish_edge(part, raw, fitted)
    others = [_finish_edge(part, raw, other) for other in fitted.beside]
    for name in ("intensity", "variance") if others else ():
        values[name] = np.concatenate([values[name], *(other[name] for other in others)], axis=-1)
    for one, other in zip(fitted.beside, others, strict=True):
        for name in BACKGROUNDS:
            values[f"{name}_{one.edge.name}"] = other[name]
    return values


def _finish_edge(part: Part, raw: NDArray[Any] | None, fitted: Fitted) -> dict[str, NDArray[Any]]:
    spectra = cropped(transform(raw, fitted, spikes=part.spikes, scores=part.scores, channels=fitted.crop), fitted)
    n = len(spectra.counts)
    status = np.full(n, NOT_FITTED, dtype=np.uint8)
    background = np.zeros((n, 5))
    log_energy = np.zeros(spectra.axis.size)
    amplitude = exponent = np.full(n, np.nan)
    fit = spectra.background
    if fit is not None:
        log_energy = np.log(spectra.axis.values / fit.pivot_energy)
        status, amplitude, exponent = fit.status, fit.amplitude, fit.exponent
        background[:, 0], background[:, 1] = amplitude, exponent
        background[:, 2:] = fit.covariance[:, [0, 0, 1], [0, 1, 1]]
    intensity, variance = _net_of_background(part, spectra, background, log_energy, fitted)
    electrons = _electrons(spectra, fitted)
    lost = np.zeros(n, dtype=bool) if part.lost is None else part.lost
    if part.lost is not None:
        intensity[lost] = variance[lost] = np.nan
        electrons[lost] = np.nan
        status = np.where(lost, NOT_FITTED, status)
        amplitude, exponent = (np.where(lost, np.nan, values) for values in (amplitude, exponent))
    n_y, n_x = part.shape
    return {
        "lost": lost.reshape(n_y, n_x),
        "intensity": intensity.reshape(n_y, n_x, -1),
        "variance": variance.reshape(n_y, n_x, -1),
        "vacuum_mask": ~part.specimen.reshape(n_y, n_x),
        "background_status": status.astype(np.uint8).reshape(n_y, n_x),
        "background_amplitude": amplitude.astype(np.float32).reshape(n_y, n_x),
        "background_exponent": exponent.astype(np.float32).reshape(n_y, n_x),
        "spike_channels": part.spikes_per_pixel.astype(np.uint16).reshape(n_y, n_x),
        "electrons": electrons.reshape(n_y, n_x),
    }


def _electrons(spectra: Spectra, fitted: Fitted) -> NDArray[np.float32]:
    """Return how many electrons a channel of `ELECTRONS_PER` got, background and edge, mean over the fine structure."""
    inside = spectra.axis.channels(fitted.edge.elnes_window)
    per_electron = fitted.noise.counts_per_electron
    if inside.stop <= inside.start or per_electron <= 0:
        return np.full(len(spectra.counts), np.nan, dtype=np.float32)
    counts = spectra.counts[:, inside].mean(axis=1, dtype=np.float64)
    return np.asarray(counts / per_electron * (ELECTRONS_PER / spectra.axis.dispersion), dtype=np.float32)


def _net_of_background(
    part: Part,
    spectra: Spectra,
    background: NDArray[np.float64],
    log_energy: NDArray[np.float64],
    fitted: Fitted,
) -> tuple[Counts, Counts]:
    """Return what is left of a block's spectra without the background, on the product's axis, and its variance."""
    scattered_once = None
    if part.plural is not None and spectra.background is not None:
        scattered_once = single_scattering(
            part.plural,
            spectra.counts,
            spectra.axis,
            spectra.background,
            fitted.noise,
            n_smooth=_SMOOTH_CHANNELS,
        )

    def on_product_axis(rows: Rows, axis: EnergyAxis) -> tuple[Counts, Counts]:
        if scattered_once is not None:
            net, spread = scattered_once
            return _resample(net[rows], spread[rows], axis, fitted)
        return _subtract_and_resample(spectra.counts[rows], background[rows], log_energy, axis, fitted)

    valid = valid_channels(fitted, spectra.axis)
    if part.drift is None:
        intensity, variance = on_product_axis(slice(None), spectra.axis)
    else:
        intensity, variance = (np.empty((len(spectra.counts), valid.size), dtype=np.float32) for _ in range(2))
        for drift in np.unique(part.drift):
            rows = np.flatnonzero(part.drift == drift)
            intensity[rows], variance[rows] = on_product_axis(rows, spectra.axis.shifted(float(drift)))
    intensity[:, ~valid] = variance[:, ~valid] = np.nan
    return intensity, variance


Rows = slice | NDArray[np.intp]


def _resample(
    net: NDArray[np.float64], spread: NDArray[np.float64], axis: EnergyAxis, fitted: Fitted
) -> tuple[Counts, Counts]:
    """Put spectra and their variance, shape (n, axis.size), on the product's axis."""
    target, step = edge_axis(fitted), rebin_step(fitted)
    if step is None:
        kept = axis.channels(wide_window(fitted.edge))
        return net[:, kept].astype(np.float32), spread[:, kept].astype(np.float32)
    resample = rebin_conserving if step.method == "conserve" else rebin_linear
    variance = rebin_variance(axis.values, spread, target, method=step.method, correlation=fitted.noise.correlation)
    return resample(axis.values, net, target).astype(np.float32), variance.astype(np.float32)


def _subtract_and_resample(
    counts: NDArray[Any],
    background: NDArray[np.float64],
    log_energy: NDArray[np.float64],
    axis: EnergyAxis,
    fitted: Fitted,
) -> tuple[Counts, Counts]:
    """Subtract backgrounds (see `kernels.subtract_and_resample`) and put what is left on the product's axis."""
    step = rebin_step(fitted)
    if step is not None:
        first, weights, _ = resampling(step.method, axis, edge_axis(fitted))
    else:
        kept = axis.channels(wide_window(fitted.edge))
        first = np.arange(kept.start, kept.stop)
        weights = np.ones((1, first.size))
    correlation = np.zeros(len(weights))
    correlation[: fitted.noise.correlation.size] = fitted.noise.correlation[: len(weights)]
    intensity, variance = (np.empty((len(counts), first.size), dtype=np.float32) for _ in range(2))
    # What a channel's counts should be is read from its neighbours: its own noise would weigh low counts too much.
    subtract_and_resample(
        np.ascontiguousarray(counts, dtype=np.float32),
        background,
        log_energy,
        float(fitted.noise.gain),
        float(fitted.noise.readout_variance),
        _SMOOTH_CHANNELS,
        first,
        weights,
        correlation,
        intensity,
        variance,
        float(fitted.noise.quantum),
    )
    return intensity, variance


def valid_channels(fitted: Fitted, axis: EnergyAxis) -> NDArray[np.bool_]:
    """Tell which channels of one edge's product a detector of this axis covers in every pixel, shape (channels,)."""
    step, target = rebin_step(fitted), edge_axis(fitted)
    if step is None:
        return np.ones(target.size, dtype=bool)
    low, high = (covered_channels(axis.values + drift, target, method=step.method) for drift in fitted.drift)
    return low & high


def wide_window(edge: Edge) -> Window:
    """Return the window that the product covers, eV: the fine structure and 12 eV on either side."""
    return edge.elnes_window[0] - MARGIN, edge.elnes_window[1] + MARGIN


def product_axis(fitted: Fitted) -> Axis:
    """Return the energy axis of the product; of several edges, their axes side by side."""
    return side_by_side([edge_axis(one) for one in fitted.of_edges])


def edge_axis(fitted: Fitted) -> EnergyAxis:
    """Return the axis of one edge's product: the common grid, or the detector's channels where nothing is rebinned."""
    start, stop = wide_window(fitted.edge)
    step = rebin_step(fitted)
    if step is not None:
        return EnergyAxis(start, step.dispersion, round((stop - start) / step.dispersion))
    axis = fitted.corrected_axis
    return _part_of(axis, axis.channels((start, stop)))


def rebin_step(fitted: Fitted) -> presets.Rebin | None:
    """Return the step that resamples, if there is one."""
    return next((step for step in fitted.steps if isinstance(step, presets.Rebin)), None)


def cropped(spectra: Spectra, fitted: Fitted) -> Spectra:
    """Return the spectra on the detector channels of the wide window and a few more."""
    first = spectra.first_channel
    kept = slice(fitted.crop.start - first, fitted.crop.stop - first)
    if kept == slice(0, spectra.axis.size):
        return spectra
    return replace(
        spectra, counts=spectra.counts[:, kept], axis=_part_of(spectra.axis, kept), first_channel=fitted.crop.start
    )


def _channels_to_fit(fitted: Fitted) -> slice:
    """Return the channels from the window before the edge to the end of the product."""
    before = fitted.corrected_axis.channels(fitted.edge.background_window)
    return slice(min(before.start, fitted.crop.start), max(before.stop, fitted.crop.stop))


def _part_of(axis: EnergyAxis, channels: slice) -> EnergyAxis:
    """Return the axis of some of the channels."""
    if channels == slice(0, axis.size):
        return axis
    return EnergyAxis(float(axis.values[channels.start]), axis.dispersion, channels.stop - channels.start)


def _in_rows(spikes: NDArray[np.int32], rows: slice) -> NDArray[np.int32]:
    """Return the spikes in some of the spectra, counted from the first of them."""
    inside = (spikes[:, 0] >= rows.start) & (spikes[:, 0] < rows.stop)
    return np.asarray(spikes[inside] - np.array([rows.start, 0]), dtype=np.int32)


def _within(spikes: NDArray[np.int32], channels: slice) -> NDArray[np.int32]:
    """Return the spikes in some of the channels, counted from the first of them."""
    inside = (spikes[:, 1] >= channels.start) & (spikes[:, 1] < channels.stop)
    return np.asarray(spikes[inside] - np.array([0, channels.start]), dtype=np.int32)
