"""The pixels of a prepared acquisition, judged: class, probability, fractions, and whether a spectrum is unlike all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.energy import Axis, axis_of, stretches
from eelsflow.io.zarr_store import blocks
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.rebin import rebin_linear
from eelsflow.preprocess.shapes import Shapes, to_shapes
from eelsflow.unmixing.field import Unmixed, Weights, unmix
from eelsflow.unmixing.references import mean_shape
from eelsflow.unmixing.structure import STRUCTURED

VACUUM = -1
"""Class index of pixels without specimen, and of lost ones."""

_SAME = 1e-6  # of a channel: energies that are closer are those of one axis, written and read

Rows = NDArray[np.floating]


@dataclass(frozen=True)
class PixelMap:
    """What is known of every pixel of one acquisition.

    Attributes
    ----------
    classes
        Names, in the order of every array with classes.
    class_index
        Shape (y, x); -1 where there is no specimen, or where the pixel is lost.
    probability
        Of each class, shape (y, x, classes); NaN where there is no specimen.
    fraction, fraction_error
        Of each class, and its standard error, shape (y, x, classes); NaN without specimen or signal.
    unknown
        Where the spectrum is unlike all training spectra given its own noise, shape (y, x); False without specimen.
    distance
        How unlike, about 1 where usual (see `eelsflow.unmixing.references`), shape (y, x); NaN without specimen.
    effective_spectra
        Of how many spectra each pixel's is the mean, shape (y, x).
    relative_variance
        Of a single pixel's counts in the window, median over the specimen: what its noise is.
    mean_distance
        Of the acquisition's mean spectrum from the training acquisitions.
    correlation
        How surely the field has structure in space, standard errors.
    ends
        Fractions of the first class at the field's two ends, where two classes have structure; else None.
    class_shape, class_shape_error
        Mean spectrum of the pixels of each class, as the share of the window's counts in each band, and its standard
        error; shape (classes, bands), NaN where a class has no pixel. Of single spectra, neighbours left out.
    bands
        Centres of the bands, shape (bands,), eV.
    judged
        The spectra that distance and fractions follow from, shape (y, x, bands): neighbours are taken in where there is
        a spatial step.
    noise
        Covariance of the noise of a shape for a relative variance of 1, as this acquisition shows it, shape
        (bands, bands).
    weights
        What decides between the classes where a map follows from fractions, in the order of `classes`; None where it
        follows from each spectrum alone, or no pixel has a shape.
    """

    classes: list[str]
    class_index: NDArray[np.int16]
    probability: NDArray[np.float32]
    fraction: NDArray[np.float32]
    fraction_error: NDArray[np.float32]
    unknown: NDArray[np.bool_]
    distance: NDArray[np.float32]
    effective_spectra: NDArray[np.float32]
    relative_variance: float
    mean_distance: float
    correlation: float
    ends: tuple[float, float] | None
    class_shape: NDArray[np.float64]
    class_shape_error: NDArray[np.float64]
    bands: NDArray[np.float64]
    judged: Shapes
    noise: NDArray[np.float64]
    weights: Weights | None = None

    @property
    def specimen(self) -> NDArray[np.bool_]:
        """Which pixels hold specimen, shape (y, x)."""
        return np.asarray(self.class_index != VACUUM)

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Probability of the class given, shape (y, x); NaN where there is no specimen."""
        chosen = np.maximum(self.class_index, 0)[..., None].astype(np.intp)
        confidence = np.take_along_axis(self.probability, chosen, axis=-1)[..., 0]
        return np.where(self.specimen, confidence, np.float32(np.nan))


def map_pixels(product: xr.Dataset, bundle: ModelBundle) -> PixelMap:
    """Judge every specimen pixel of a prepared acquisition.

    Parameters
    ----------
    product
        As `eelsflow.preprocess.chain.prepare` returns it; its spectra are read block by block.
    bundle
        A model for the same edge.
    """
    specimen = ~product["vacuum_mask"].values
    shape = specimen.shape
    probability = np.full((*shape, len(bundle.classes)), np.nan, dtype=np.float32)
    class_index = np.full(shape, VACUUM, dtype=np.int16)
    is_gathered = "gathered" in product
    effective = product["effective_spectra"].values if is_gathered else np.ones(shape, dtype=np.float32)
    single, gathered = _Maps(shape), _Maps(shape)
    axis = bundle.transform.axis
    looked_for: list[tuple[NDArray[np.bool_], NDArray[np.float32]]] = []
    for block in blocks(*shape):
        chosen = specimen[block.y, block.x]
        if not chosen.any():
            continue

        def rows(name: str, block=block, chosen=chosen) -> NDArray[np.float32]:  # type: ignore[no-untyped-def]
            wide = product[name][block.y, block.x].values[chosen]
            return on_axis(wide, product["energy_loss"].values, axis)

        where = np.zeros(shape, dtype=bool)
        where[block.y, block.x] = chosen
        intensity, variance = rows("intensity"), rows("variance")
        single.put(where, to_shapes(intensity, variance, axis, bundle.edge))
        if is_gathered:
            intensity, variance = rows("gathered"), rows("gathered_variance")
            gathered.put(where, to_shapes(intensity, variance, axis, bundle.edge))
        if bundle.registration is not None and not bundle.maps_by_fraction:
            looked_for.append((where, intensity))
        elif not bundle.maps_by_fraction:
            predicted, confidence = bundle.predict(intensity)
            class_index[where] = _index_of(predicted, bundle.classes)
            probability[where] = confidence
    if looked_for:  # all of an acquisition at once: its spectra tell together where they lie
        intensity = np.concatenate([spectra for _, spectra in looked_for])
        predicted, confidence = bundle.predict(intensity, group=np.full(len(intensity), "this"))
        first = 0
        for where, spectra in looked_for:
            here = slice(first, first + len(spectra))
            class_index[where], probability[where] = _index_of(predicted[here], bundle.classes), confidence[here]
            first += len(spectra)
    alone = single.shapes()
    shapes = gathered.shapes() if is_gathered else alone
    unmixed = unmix(alone, shapes, effective, specimen, bundle.references)
    order = [bundle.references.classes.index(name) for name in bundle.classes]
    if bundle.maps_by_fraction:
        probability[...] = unmixed.probability[..., order]
        without = specimen & ~np.isfinite(probability[..., 0])  # no signal: as likely as not
        probability[without] = 1.0 / len(order)
        class_index[specimen] = probability[specimen].argmax(axis=-1)
    far = np.full(shape, np.nan, dtype=np.float32)
    far[specimen] = bundle.references.distance(shapes[specimen], unmixed.noise)
    mean_distance = _mean_distance(alone, specimen, bundle, unmixed)
    unknown = specimen & (far > bundle.references.pixel_limit)
    if unmixed.correlation < STRUCTURED and mean_distance > bundle.references.mean_limit:
        unknown = specimen  # one composition throughout, and its mean is unlike the training set
    class_shape, class_shape_error = _class_shapes(alone, class_index, len(bundle.classes))
    return PixelMap(
        classes=bundle.classes,
        class_index=class_index,
        probability=probability,
        fraction=unmixed.fraction[..., order].astype(np.float32),
        fraction_error=unmixed.error[..., order].astype(np.float32),
        unknown=unknown,
        distance=far,
        effective_spectra=effective,
        relative_variance=float(np.median(alone.relative_variance[specimen])),
        mean_distance=mean_distance,
        correlation=unmixed.correlation,
        ends=_ends_of(unmixed, order),
        class_shape=class_shape,
        class_shape_error=class_shape_error,
        bands=alone.energy_loss,
        judged=shapes,
        noise=unmixed.noise,
        weights=_weights_of(unmixed, order) if bundle.maps_by_fraction else None,
    )


class _Maps:
    """Shapes of a whole field, filled in block by block."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._shapes: Shapes | None = None

    def put(self, where: NDArray[np.bool_], shapes: Shapes) -> None:
        if self._shapes is None:
            values = np.full((*self._shape, shapes.values.shape[-1]), np.nan)
            noise, counts = np.full(self._shape, np.inf), np.zeros(self._shape)
            of_edges = None
            if shapes.edge_counts is not None:
                of_edges = np.zeros((*self._shape, shapes.edge_counts.shape[-1]))
            self._shapes = Shapes(values, noise, counts, shapes.energy_loss, of_edges)
        self._shapes.values[where] = shapes.values
        self._shapes.counts[where] = shapes.counts
        self._shapes.relative_variance[where] = shapes.relative_variance
        if self._shapes.edge_counts is not None and shapes.edge_counts is not None:
            self._shapes.edge_counts[where] = shapes.edge_counts

    def shapes(self) -> Shapes:
        assert self._shapes is not None  # an image without specimen is refused when it is prepared
        return self._shapes


def _class_shapes(
    alone: Shapes, class_index: NDArray[np.int16], n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean shape of the pixels of each class, and its standard error, shape (classes, bands)."""
    mean = np.full((n_classes, alone.energy_loss.size), np.nan)
    error = np.full_like(mean, np.nan)
    for number in range(n_classes):
        members = (class_index == number) & alone.known
        n = int(members.sum())
        if not n:
            continue
        chosen = alone[members]
        mean[number] = mean_shape(chosen).values[0]
        if n > 1:
            weight = 1.0 / chosen.relative_variance / (1.0 / chosen.relative_variance).sum()
            residual = chosen.values - mean[number]
            error[number] = np.sqrt((weight[:, None] ** 2 * residual**2).sum(axis=0) * n / (n - 1))
    return mean, error


def _mean_distance(alone: Shapes, specimen: NDArray[np.bool_], bundle: ModelBundle, unmixed: Unmixed) -> float:
    """Return how far the mean of an acquisition's spectra lies from the training acquisitions."""
    known = specimen & alone.known
    if not known.any():
        return float("inf")
    return float(bundle.references.distance(mean_shape(alone[known]), unmixed.noise)[0])


def _ends_of(unmixed: Unmixed, order: Sequence[int]) -> tuple[float, float] | None:
    if unmixed.ends is None or order[0] == 0:
        return unmixed.ends
    return 1.0 - unmixed.ends[0], 1.0 - unmixed.ends[1]


def _weights_of(unmixed: Unmixed, order: Sequence[int]) -> Weights | None:
    if unmixed.weights is None:
        return None
    return replace(unmixed.weights, of_bands=unmixed.weights.of_bands[order], offset=unmixed.weights.offset[order])


def on_axis(wide: NDArray[np.float32], energy_loss: NDArray[np.float64], axis: Axis) -> NDArray[np.float32]:
    """Resample prepared spectra onto the axis a model was trained on, where that is another (ready tables)."""
    same = energy_loss.shape == (axis.size,) and np.abs(energy_loss - axis.values).max() < _SAME * axis.dispersion
    if same:
        return wide
    pairs = zip(stretches(axis_of(energy_loss)), stretches(axis), strict=True)
    resampled = [rebin_linear(here.values, wide[:, where], there) for (here, where), (there, _) in pairs]
    return np.concatenate(resampled, axis=1, dtype=np.float32)


def _index_of(predicted: NDArray[np.str_], classes: Sequence[str]) -> NDArray[np.int16]:
    order = np.argsort(classes)
    return np.asarray(order[np.searchsorted(np.asarray(classes)[order], predicted)], dtype=np.int16)
