"""What the acquisition that is planned from shows: the counts that its pixels are expected to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.energy import Axis, EnergyAxis
from eelsflow.errors import InputError
from eelsflow.io.zarr_store import Block
from eelsflow.maps.pixels import on_axis
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess import presets
from eelsflow.preprocess.background import exponent_moments, pooled_prior
from eelsflow.preprocess.chain import Part, check_image, finish, fit_acquisition
from eelsflow.preprocess.noise import sample_indices
from eelsflow.preprocess.shapes import Shapes, band_edges, to_shapes
from eelsflow.preprocess.transform import BACKGROUNDS, Fitted, edge_axis, product_axis, repair
from eelsflow.spectrum_image import energy_axis
from eelsflow.unmixing.field import TELLING

Floats = NDArray[np.float64]

FEWEST_PIXELS = 32
"""Of a class, or of the specimen, from which expected counts are learnt; ours."""
_MOST_PIXELS = 4096  # of an image that its expected counts are learnt from


@dataclass(frozen=True)
class Pilot:
    """What the acquisition shows, of the pixels that the plan is for (`telling` of the image, in its order)."""

    fitted: Fitted  # on the detector channels that are recorded anew
    telling: NDArray[np.bool_]  # (y, x)
    counts: NDArray[np.float32]  # (pixels, channels), spikes and dead channels bridged
    basis: Floats  # (pixels, functions): what expected counts are linear in
    edge_counts: Floats  # (pixels, edges), of the detector channels in each window, most of their noise left out
    rest: Floats  # (pixels, edges), the part of them that does not follow from the counts before the first edge
    edge: Floats  # (edges, channels), what each edge adds, sum 1 in its window
    single: Shapes  # of the image, (y, x, bands)
    intensity: NDArray[np.float32]  # (y, x, channels of the product)
    band_bounds: tuple[Floats, ...]  # of each edge, (bands + 1,), eV
    readout_share: Floats  # (pixels,)
    electrons: float
    unlikely: tuple[str, ...]  # which edges lie as far apart as in no compound

    @classmethod
    def of(cls, image: xr.DataArray, bundle: ModelBundle) -> Pilot:
        """Prepare an acquisition as the model does, and learn what its pixels' counts are expected to be.

        Raises
        ------
        InputError
            If the preset needs the whole image, or too few pixels show an edge.
        """
        preset, edge = bundle.acquisition_preset, bundle.edge
        if preset.find(presets.Background) is None or _denoises(preset):
            raise InputError(
                f"the model {bundle.name} is of the preset {preset.name}, which "
                + ("denoises the whole image" if _denoises(preset) else "subtracts no background")
                + ": what it would make of another dose cannot be drawn pixel by pixel; name a model of `recommended`"
            )
        check_image(image, edge=edge)
        n_y, n_x, _ = image.shape
        whole = Part(image.values, Block(slice(0, n_y), slice(0, n_x)), width=n_x)
        acquisition = fit_acquisition(energy_axis(image), [whole], (n_y, n_x), edge=edge, preset=preset)
        part, fitted = acquisition.parts[0], acquisition.fitted
        product = finish(part, fitted)
        single = to_shapes(product["intensity"], product["variance"], product_axis(fitted), edge)
        specimen = ~product["vacuum_mask"]
        telling = specimen & single.known
        if telling.any():
            telling &= single.counts >= TELLING * np.quantile(single.counts[telling], 0.9)
        if telling.sum() < FEWEST_PIXELS:
            raise InputError(
                f"{int(telling.sum())} pixels show an edge above their noise, and {FEWEST_PIXELS} are needed to learn "
                "what counts are expected: record more pixels or electrons for a first look"
            )
        chosen = np.flatnonzero(telling)
        chosen = chosen[sample_indices(chosen.size, _MOST_PIXELS)]
        telling = np.isin(np.arange(telling.size), chosen).reshape(telling.shape)
        recorded = _recorded_channels(fitted)
        counts = repair(part.read(), fitted.dead_channels, part.spikes, recorded)[chosen]
        fitted = _on_channels(fitted, recorded)
        before = fitted.corrected_axis.channels(edge.background_window)
        below = counts[:, before].sum(axis=1, dtype=np.float64)
        level = below / below.mean()
        row = np.nonzero(telling)[0] / max(n_y - 1, 1) - 0.5
        basis = np.stack([np.ones_like(level), level, level**2, row * level], axis=1)
        found = []
        for one, (amplitude, exponent) in zip(fitted.of_edges, _backgrounds(product, fitted), strict=True):
            fit = amplitude.ravel()[chosen], exponent.ravel()[chosen]
            found.append(_OfEdge.learn(counts, one, *fit, basis=basis))
        scale = [1.0 / np.maximum(one.counts, 1e-3 * np.median(one.counts)) ** 2 for one in found]
        variance = np.mean([one.variance * share for one, share in zip(found, scale, strict=True)], axis=0)
        readout = np.mean([one.readout * share for one, share in zip(found, scale, strict=True)], axis=0)
        bounds = [
            edge_axis(one).boundaries[band_edges(edge_axis(one), alone)]
            for one, alone in zip(fitted.of_edges, edge.alone, strict=True)
        ]
        return cls(
            fitted, telling, counts, basis, np.stack([one.counts for one in found], axis=1),
            np.stack([one.rest for one in found], axis=1), _added_by_edges(found, fitted), single,
            product["intensity"], tuple(bounds), readout / np.maximum(variance, 1e-30),
            float(np.median(product["electrons"][telling])), acquisition.unlikely,
        )  # fmt: skip

    def relative_variance(self, factor: float, readout: float) -> Floats:
        """Return that of each pixel's window at a dose, with `readout` times the read-out's part, (pixels,)."""
        own = self.single.relative_variance[self.telling] / factor
        return np.asarray(own * (1.0 - self.readout_share + self.readout_share * readout))


def expected_counts(pilot: Pilot, group: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the expected counts of each pixel by those of its group, (pixels, channels).

    How a shape changes with level and row, beyond what is in proportion, counts as far as it stands above its noise
    (James and Stein, positive part): else pixels would seem to differ by the noise of what was learnt.
    """
    expected = np.zeros(pilot.counts.shape, dtype=np.float32)
    for number in range(group.max() + 1):
        members = group == number
        rest = pilot.rest[members] @ pilot.edge
        own = pilot.counts[members] - rest
        basis = np.linalg.qr(pilot.basis[members])[0]
        coefficients = basis.T @ own
        noise = float(pilot.fitted.noise.variance(own.mean(axis=0)).sum())
        coefficients[2:] *= np.maximum(1.0 - noise / (coefficients[2:] ** 2).sum(axis=1, keepdims=True), 0.0)
        expected[members] = basis @ coefficients + rest
    return expected


def prepare_again(counts: NDArray[np.float32], fitted: Fitted) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return recorded spectra (n, channels) as prepared ones and their variance.

    The prior of the exponents is that of these spectra: how far it holds them together changes with the dose.
    """
    first, *others = [_with_prior_of(counts, one) for one in fitted.of_edges]
    fitted = replace(first, beside=tuple(others))
    part = Part(counts[:, None], Block(slice(0, len(counts)), slice(0, 1)), width=1)
    product = finish(part, fitted)
    return product["intensity"][:, 0], product["variance"][:, 0]


def predict_spectra(
    intensity: NDArray[np.float32], axis: Axis, bundle: ModelBundle, group: NDArray[np.str_] | None
) -> NDArray[np.str_]:
    """Return the class of each spectrum (n, channels); those of one group are of one acquisition."""
    return bundle.predict(on_axis(intensity, axis.values, bundle.transform.axis), group=group)[0]


@dataclass(frozen=True)
class _OfEdge:
    """What the acquisition shows of one edge."""

    counts: Floats  # (pixels,), of its window, most of their noise left out
    rest: Floats  # (pixels,)
    variance: Floats  # (pixels,), of a recorded pixel's counts in the window
    readout: float  # the read-out's part of it
    net: Floats  # (channels,), mean counts above the background
    background: Floats  # (channels,), mean

    @classmethod
    def learn(
        cls, counts: NDArray[np.float32], fitted: Fitted, amplitude: Floats, exponent: Floats, *, basis: Floats
    ) -> _OfEdge:
        """Learn it from recorded counts (pixels, channels) and the background's fit, (pixels,) each."""
        edge, corrected, noise = fitted.edge, fitted.corrected_axis, fitted.noise
        before, inside = corrected.channels(edge.background_window), corrected.channels(edge.elnes_window)
        pivot = np.sqrt(edge.background_window[0] * edge.background_window[1])
        fall = (corrected.values[inside] / pivot)[None] ** -exponent[:, None]
        background = amplitude * fall.sum(axis=1)
        total = counts[:, inside].sum(axis=1, dtype=np.float64)
        below = counts[:, before].sum(axis=1, dtype=np.float64)
        edge_counts = total - background
        by_level = basis @ np.linalg.lstsq(basis, edge_counts)[0]
        of_noise = noise.counts_per_electron * (total + background**2 / np.maximum(below, 1.0))
        rest = edge_counts - by_level
        rest *= max(1.0 - float(of_noise.mean() / max(rest.var(), 1e-30)), 0.0)
        mean_background = float(amplitude.mean()) * (corrected.values / pivot) ** -float(exponent.mean())
        readout = (inside.stop - inside.start) * noise.readout_variance
        return cls(
            by_level + rest, rest, noise.gain * np.maximum(total, 0.0) + readout, readout,
            counts.mean(axis=0, dtype=np.float64) - mean_background, mean_background,
        )  # fmt: skip


def _added_by_edges(found: Sequence[_OfEdge], fitted: Fitted) -> Floats:
    """Return what each edge adds to the counts, (edges, channels), sum 1 in its window.

    From the end of the window that the next edge's background is fitted in, what an edge adds is that background.
    """
    values, added = fitted.corrected_axis.values, []
    for number, (one, of_edge) in enumerate(zip(fitted.of_edges, found, strict=True)):
        net = np.where(values < one.edge.background_window[1], 0.0, of_edge.net)
        if number + 1 < len(found):
            beyond = values >= fitted.of_edges[number + 1].edge.background_window[1]
            net = np.where(beyond, found[number + 1].background - of_edge.background, net)
        added.append(net / net[fitted.corrected_axis.channels(one.edge.elnes_window)].sum())
    return np.array(added)


def _backgrounds(product: Mapping[str, NDArray[Any]], fitted: Fitted) -> list[tuple[Floats, Floats]]:
    """Return amplitude and exponent of the background before each edge, (y, x) each."""
    ends = ["", *(f"_{one.edge.name}" for one in fitted.beside)]
    return [(product[f"{BACKGROUNDS[0]}{end}"], product[f"{BACKGROUNDS[1]}{end}"]) for end in ends]


def _with_prior_of(counts: NDArray[np.float32], fitted: Fitted) -> Fitted:
    """Return what was learnt for an edge, with the prior of the exponents that these spectra have."""
    if fitted.prior is None:
        return fitted
    energies, window, noise = fitted.corrected_axis.values, fitted.edge.background_window, fitted.noise
    prior = exponent_moments(energies, counts, window, noise=noise).prior()
    if noise.quantum:
        prior = pooled_prior(energies, counts.sum(axis=0, dtype=np.float64) / noise.quantum, window, prior)
    return replace(fitted, prior=prior)


def _on_channels(fitted: Fitted, recorded: slice) -> Fitted:
    """Return what was learnt, on some of the detector's channels and without dead ones."""
    n_channels = recorded.stop - recorded.start
    axis = EnergyAxis(float(fitted.axis.values[recorded.start]), fitted.axis.dispersion, n_channels)
    first, *others = [
        replace(one, axis=axis, dead_channels=np.zeros(n_channels, dtype=bool)) for one in fitted.of_edges
    ]
    return replace(first, beside=tuple(others))


def _denoises(preset: presets.Preset) -> bool:
    return any(isinstance(step, presets.Pca) for step in preset.acquisition_steps)


def _recorded_channels(fitted: Fitted) -> slice:
    """Return the detector channels that the product depends on, and those between edges."""
    before = fitted.corrected_axis.channels(fitted.edge.background_window)
    last = fitted.of_edges[-1]
    end = last.corrected_axis.channels(last.edge.background_window).stop
    return slice(min(before.start, fitted.crop.start), max(before.stop, end, last.crop.stop))
