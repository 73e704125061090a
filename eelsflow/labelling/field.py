"""What a person looks at while she labels: maps of one acquisition, and the mean spectra of what she drew."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eelsflow.edges import Edge
from eelsflow.energy import axis_of, stretches
from eelsflow.io.zarr_store import blocks, open_dataset
from eelsflow.labelling.suggest import (
    SuggestedRegion,
    edge_strength,
    pixel_doubt,
    prepare_file,
    suggest_regions,
    telling_pixels,
)
from eelsflow.maps.pixels import PixelMap, map_pixels
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.pca import fit_pca, moments_of
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.preprocess.shapes import band_edges, to_shapes

N_COMPONENTS = 3
"""Principal components shown, as red, green and blue together."""

SPECTRUM_BAND = 0.5
"""Width of a channel of the spectra shown, eV: half a band of the fine structure, so that a peak keeps its form."""

_CLIPPED = (2.0, 98.0)  # percentiles of a component that colours span


@dataclass(frozen=True)
class Field:
    """A prepared acquisition, as far as it is shown.

    Attributes
    ----------
    name
        Of the acquisition.
    specimen
        Shape (y, x); False in vacuum and where a pixel is lost.
    strength
        Counts of the edge in its window, background subtracted, shape (y, x).
    components
        Scores of the leading principal components of the specimen's shapes, 0 to 1 between the 2nd and the 98th
        percentile, shape (y, x, 3); NaN where the specimen is too thin to tell (`telling_pixels`).
    energy_loss
        Of the spectra, shape (channels,), eV.
    spectra
        Intensity, background subtracted, shape (y, x, channels).
    n_window
        Channels that `strength` is the sum of.
    mapped
        By the model; None without one.
    doubt
        Of the model, 0 to 1, shape (y, x), see `eelsflow.labelling.suggest.pixel_doubt`; None without one.
    suggested
        Regions to label next, the most useful first.
    """

    name: str
    specimen: NDArray[np.bool_]
    strength: NDArray[np.float32]
    components: NDArray[np.float32]
    energy_loss: NDArray[np.float64]
    spectra: NDArray[np.float32]
    n_window: int
    mapped: PixelMap | None = None
    doubt: NDArray[np.float32] | None = None
    suggested: tuple[SuggestedRegion, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels (y, x)."""
        n_y, n_x = self.specimen.shape
        return n_y, n_x


@dataclass(frozen=True)
class MeanSpectrum:
    """The mean of some pixels' spectra in units of their mean in the window, its standard error, and of how many."""

    mean: NDArray[np.float64]
    error: NDArray[np.float64]
    pixels: int


def open_field(path: Path, *, edge: Edge, model: ModelBundle | None = None, low_loss: Path | None = None) -> Field:
    """Prepare an acquisition and look at it.

    Parameters
    ----------
    path
        A readable acquisition.
    edge
        Which edge; that of the model where there is one.
    model
        What maps it.
    low_loss
        The file of the low loss of the same scan; by default what the acquisition's own file holds.

    Raises
    ------
    EelsflowError
        If it cannot be read or prepared.
    """
    preset = model.acquisition_preset if model is not None else resolve_preset("recommended").for_acquisition
    with tempfile.TemporaryDirectory(prefix="eelsflow-label-") as folder:
        prepared = prepare_file(path, Path(folder), edge=edge, preset=preset, low_loss=low_loss)
        field = _look(path.name, prepared, edge)
        if model is None:
            return field
        found = map_pixels(open_dataset(prepared), model)
    doubt = pixel_doubt(found, field.strength)
    regions = suggest_regions(doubt, telling_pixels(field.strength, field.specimen))
    return replace(field, mapped=found, doubt=doubt, suggested=tuple(regions))


def mean_spectrum(field: Field, pixels: NDArray[np.bool_]) -> MeanSpectrum:
    """Return the mean spectrum of some pixels, shape (y, x), of an acquisition; NaN where there is none.

    Notes
    -----
    The sum of the spectra over the sum of their counts in the window, so that bright pixels count more, as they should;
    its error is that of a ratio, from how the spectra differ, and NaN for a single pixel. Vacuum and lost pixels are
    left out.
    """
    chosen = pixels & field.specimen & np.isfinite(field.strength)
    spectra, strength = field.spectra[chosen].astype(np.float64), field.strength[chosen].astype(np.float64)
    n, total = len(strength), strength.sum()
    if n == 0 or total <= 0:
        nothing = np.full(field.energy_loss.size, np.nan)
        return MeanSpectrum(nothing, nothing, n)
    mean = spectra.sum(axis=0) / total
    error = np.full(mean.shape, np.nan)
    if n > 1:
        error = np.sqrt(((spectra - strength[:, None] * mean) ** 2).sum(axis=0) * n / (n - 1)) / total
    return MeanSpectrum(mean * field.n_window, error * field.n_window, n)


def _look(name: str, prepared: Path, edge: Edge) -> Field:
    """Read what is shown of a prepared acquisition, a block at a time."""
    product = open_dataset(prepared)
    specimen = ~product["vacuum_mask"].values
    axis = axis_of(product["energy_loss"].values)
    starts, window = band_edges(axis, edge, width=SPECTRUM_BAND), axis.channels(edge.elnes_window)
    step = int(np.median(np.diff(starts)))
    first = window.start % step
    lowest = stretches(axis)[0][0]  # of several edges the lowest is looked at
    n_bands = (lowest.size - first) // step
    wide = slice(first, first + n_bands * step)
    energy_loss = axis.values[wide].reshape(n_bands, step).mean(axis=1)
    spectra = np.full((*specimen.shape, n_bands), np.nan, dtype=np.float32)
    strength = edge_strength(product, edge)
    lent = "gathered" if "gathered" in product else "intensity"
    lent_variance = "gathered_variance" if "gathered" in product else "variance"
    shapes: NDArray[np.float64] | None = None
    for block in blocks(*specimen.shape):
        here = np.s_[block.y, block.x]
        intensity = product["intensity"][here].values
        spectra[here] = intensity[..., wide].reshape(*intensity.shape[:2], n_bands, step).mean(axis=-1)
        found = to_shapes(product[lent][here].values, product[lent_variance][here].values, axis, edge)
        if shapes is None:
            shapes = np.full((*specimen.shape, found.values.shape[-1]), np.nan)
        shapes[here] = found.values
    assert shapes is not None  # an image has a block
    shapes[~telling_pixels(strength, specimen)] = np.nan
    return Field(
        name=name,
        specimen=specimen,
        strength=strength,
        components=_components(shapes),
        energy_loss=energy_loss,
        spectra=spectra,
        n_window=window.stop - window.start,
    )


def _components(shapes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the scores of the leading components of shapes (y, x, bands), between 0 and 1."""
    components = np.full((*shapes.shape[:2], N_COMPONENTS), np.nan, dtype=np.float32)
    known = np.isfinite(shapes).all(axis=-1)
    rank = min(N_COMPONENTS, int(known.sum()) - 1, shapes.shape[-1])
    if rank < 1:
        return components
    scores = fit_pca(moments_of(shapes[known]), rank=rank).scores(shapes[known])
    low, high = np.percentile(scores, _CLIPPED, axis=0)
    components[known, :rank] = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    return components
