"""What the acquisition that is planned from shows: the counts that its pixels are expected to have."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError
from eelsflow.io.zarr_store import Block
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess import presets
from eelsflow.preprocess.background import exponent_moments, pooled_prior
from eelsflow.preprocess.chain import Part, check_image, finish, fit_acquisition
from eelsflow.preprocess.noise import sample_indices
from eelsflow.preprocess.rebin import rebin_linear
from eelsflow.preprocess.shapes import Shapes, band_edges, to_shapes
from eelsflow.preprocess.transform import Fitted, edge_axis, repair
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
    edge_counts: Floats  # (pixels,), of the detector channels in the window, most of their noise left out
    rest: Floats  # (pixels,), the part of them that does not follow from the counts before the edge
    edge: Floats  # (channels,), what the edge adds, sum 1 in the window
    single: Shapes  # of the image, (y, x, bands)
    intensity: NDArray[np.float32]  # (y, x, channels of the product)
    band_bounds: Floats  # (bands + 1,), eV
    readout_share: Floats  # (pixels,)
    electrons: float

    @classmethod
    def of(cls, image: xr.DataArray, bundle: ModelBundle) -> Pilot:
        """Prepare an acquisition as the model does, and learn what its pixels' counts are expected to be.

        Raises
        ------
        InputError
            If the preset needs the whole image, or too few pixels show an edge.
        """
        preset, edge = bundle.acquisition_preset, bundle.edge
        if edge.beside:
            raise InputError(
                f"the model {bundle.name} judges {edge.name} together, and a dose is planned for one edge: name a "
                "model of one of them"
            )
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
        product, axis = finish(part, fitted), edge_axis(fitted)
        single = to_shapes(product["intensity"], product["variance"], axis, edge)
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
        begin = fitted.axis.values[recorded.start]
        fitted = replace(
            fitted,
            axis=EnergyAxis(float(begin), fitted.axis.dispersion, recorded.stop - recorded.start),
            dead_channels=np.zeros(recorded.stop - recorded.start, dtype=bool),
        )
        corrected = fitted.corrected_axis
        before, inside = corrected.channels(edge.background_window), corrected.channels(edge.elnes_window)
        pivot = np.sqrt(edge.background_window[0] * edge.background_window[1])
        fall = (corrected.values[inside] / pivot)[None] ** -product["background_exponent"].ravel()[chosen, None]
        background = product["background_amplitude"].ravel()[chosen] * fall.sum(axis=1)
        total = counts[:, inside].sum(axis=1, dtype=np.float64)
        below = counts[:, before].sum(axis=1, dtype=np.float64)
        level = below / below.mean()
        row = np.nonzero(telling)[0] / max(n_y - 1, 1) - 0.5
        basis = np.stack([np.ones_like(level), level, level**2, row * level], axis=1)
        edge_counts = total - background
        by_level = basis @ np.linalg.lstsq(basis, edge_counts)[0]
        noise = fitted.noise.counts_per_electron * (total + background**2 / np.maximum(below, 1.0))
        rest = edge_counts - by_level
        rest *= max(1.0 - float(noise.mean() / max(rest.var(), 1e-30)), 0.0)
        values = corrected.values
        amplitude, exponent = (product[f"background_{name}"].ravel()[chosen] for name in ("amplitude", "exponent"))
        mean_background = float(amplitude.mean()) * (values / pivot) ** -float(exponent.mean())
        net = np.where(values < edge.background_window[1], 0.0, counts.mean(axis=0, dtype=np.float64) - mean_background)
        net /= net[inside].sum()
        readout = (inside.stop - inside.start) * fitted.noise.readout_variance
        variance = fitted.noise.gain * np.maximum(total, 0.0) + readout
        edges = edge_axis(fitted).boundaries[band_edges(axis, edge)]
        return cls(
            fitted, telling, counts, basis, by_level + rest, rest, net, single, product["intensity"], edges,
            readout / np.maximum(variance, 1e-30), float(np.median(product["electrons"][telling])),
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
        rest = pilot.rest[members, None] * pilot.edge
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
    if fitted.prior is not None:
        energies, window, noise = fitted.corrected_axis.values, fitted.edge.background_window, fitted.noise
        prior = exponent_moments(energies, counts, window, noise=noise).prior()
        if noise.quantum:
            prior = pooled_prior(energies, counts.sum(axis=0, dtype=np.float64) / noise.quantum, window, prior)
        fitted = replace(fitted, prior=prior)
    part = Part(counts[:, None], Block(slice(0, len(counts)), slice(0, 1)), width=1)
    product = finish(part, fitted)
    return product["intensity"][:, 0], product["variance"][:, 0]


def predict_spectra(
    intensity: NDArray[np.float32], axis: EnergyAxis, bundle: ModelBundle, group: NDArray[np.str_] | None
) -> NDArray[np.str_]:
    """Return the class of each spectrum (n, channels); those of one group are of one acquisition."""
    if axis.values.shape != bundle.transform.axis.values.shape or axis != bundle.transform.axis:
        intensity = np.asarray(rebin_linear(axis.values, intensity, bundle.transform.axis), dtype=np.float32)
    return bundle.predict(intensity, group=group)[0]


def _denoises(preset: presets.Preset) -> bool:
    return any(isinstance(step, presets.Pca) for step in preset.acquisition_steps)


def _recorded_channels(fitted: Fitted) -> slice:
    """Return the detector channels that the product depends on."""
    before = fitted.corrected_axis.channels(fitted.edge.background_window)
    return slice(min(before.start, fitted.crop.start), max(before.stop, fitted.crop.stop))
