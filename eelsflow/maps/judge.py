"""What is wrong with a map, in sentences: for its summary, its picture and the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from eelsflow.edges import JOINED
from eelsflow.maps.pixels import PixelMap
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.presets import Normalize, Pca
from eelsflow.unmixing.references import References
from eelsflow.unmixing.structure import SURELY_STRUCTURED

UNKNOWN_FRACTION = 0.1
"""A map carries a warning when more than this share of its specimen pixels is unlike the training data (our choice)."""

ONE_CLASS = 0.98
"""A map of one class in more than this share of its specimen pixels shows no second one (our choice)."""


def judge_map(found: PixelMap, bundle: ModelBundle, product: xr.Dataset) -> list[str]:
    """Return what a person should know before trusting a map, the gravest first.

    Parameters
    ----------
    found
        The map.
    bundle
        The model that made it.
    product
        The prepared acquisition; of it only the attributes and small variables are read.
    """
    sentences = (
        _unnormalised(bundle),
        _unlike(found, bundle),
        _missed_phase(found),
        _few_components(found, bundle, product),
        _seen_in_training(bundle, product),
        _unpromoted(bundle),
        _alone(bundle),
        say_uncalibrated(bundle),
        bundle.provenance.get("caution"),
    )
    return [sentence for sentence in sentences if sentence]


def _unnormalised(bundle: ModelBundle) -> str | None:
    normalize = bundle.preset.find(Normalize)
    if normalize is not None and normalize.method != "none":
        return None
    return (
        f"the model was trained with the preset {bundle.preset.name!r}, which does not normalise spectra, and the "
        "counts of an acquisition have a scale of their own: this map may follow from the scale alone, the same "
        "class in every pixel. Train the model with a step that normalises, such as preprocess: [normalize]"
    )


def _unlike(found: PixelMap, bundle: ModelBundle) -> str | None:
    said = say_unlike(
        bundle.references, mean_distance=found.mean_distance, unknown=int(found.unknown.sum()),
        pixels=int(found.specimen.sum()),
    )  # fmt: skip
    return f"{said}. This map may show phases that the model does not know: do not rely on it" if said else None


def say_unlike(references: References, *, mean_distance: float, unknown: int, pixels: int) -> str | None:
    """Say so where an acquisition as a whole, or many of its pixels, are unlike all that was learnt.

    Parameters
    ----------
    references
        Of the model.
    mean_distance
        Of the acquisition's mean shape, see `References.distance`; NaN where it is not known.
    unknown, pixels
        How many pixels are unlike the training, and how many there are.
    """
    limit, share = references.mean_limit, unknown / max(pixels, 1)
    far = mean_distance > limit
    if not far and share <= UNKNOWN_FRACTION:
        return None
    whole = f"their mean lies {mean_distance:.2f} from the training acquisitions, limit {limit:.2f}; " if far else ""
    return (
        f"the spectra are unlike the training data: {whole}{unknown:,} of {pixels:,} pixels ({share:.0%}) are unknown"
    )


def _missed_phase(found: PixelMap) -> str | None:
    """Say so where neighbours are alike in what tells the classes apart, and the map shows one class."""
    counts = np.bincount(found.class_index[found.specimen], minlength=1)
    if found.correlation < SURELY_STRUCTURED or counts.max(initial=0) < ONE_CLASS * counts.sum():
        return None
    return (
        f"neighbouring pixels are alike in what tells the classes apart ({found.correlation:.1f} standard errors, "
        f"limit {SURELY_STRUCTURED:g}), yet the map shows one class: a second phase may be missed. Look at the "
        "fractions"
    )


def _few_components(found: PixelMap, bundle: ModelBundle, product: xr.Dataset) -> str | None:
    """Say how small a phase the components of a whole image erase."""
    step = bundle.acquisition_preset.find(Pca)
    if step is None or step.scope != "acquisition":
        return None
    n_pixels = smallest_phase(bundle.references, found.relative_variance, found.class_index.size)
    return (
        f"the image was reduced to {int(product.attrs['pca_rank'])} components of its own before it was classified: a "
        f"phase in fewer than about {n_pixels:,} of its {found.class_index.size:,} pixels leaves no component, is "
        "replaced by the rest of the image and vanishes from the map, at full confidence"
    )


def _seen_in_training(bundle: ModelBundle, product: xr.Dataset) -> str | None:
    if product.attrs["sha256"] not in (bundle.provenance.get("trained_on") or ()):
        return None
    return "the model was trained on this very acquisition: the map shows what it was taught, and is no evidence"


def _unpromoted(bundle: ModelBundle) -> str | None:
    if not bundle.provenance.get("unpromoted"):
        return None
    return (
        f"no study has made its model the champion of {bundle.edge.name} (`eelsflow study --promote`): this map is by "
        f"the newest model that there is, {bundle.name}"
    )


def _alone(bundle: ModelBundle) -> str | None:
    whole = bundle.provenance.get("alone_of")
    if not whole:
        return None
    return (
        f"of the edges {whole.replace(JOINED, ' and ')}, which the model judges together, the file shows "
        f"{bundle.edge.name} alone: this map is by its model of that edge, which has less to go by"
    )


def say_uncalibrated(bundle: ModelBundle) -> str | None:
    """Say why a model for files whose dispersion is not known was taken, where it was taken for another."""
    said = bundle.provenance.get("uncalibrated")
    if not said:
        return None
    return (
        f"{said}: the dispersion of this file is not as well known as the model expects, so this is by its model "
        "for files whose dispersion is not known, to which the distance of edges says nothing: calibrate the axis"
    )


def smallest_phase(references: References, relative_variance: float, n_pixels: int) -> int:
    """Return in how many of an image's pixels a phase must be for principal components of the whole to show it.

    Parameters
    ----------
    references
        Of the classes.
    relative_variance
        Of a pixel's counts in the window.
    n_pixels
        Of the image.

    Notes
    -----
    A direction of variance ``s`` in units of the noise stands above the noise of n spectra in p bands where
    ``s > sqrt(p / n)`` (Baik, Ben Arous and Peche, Ann. Probab. 33, 1643 (2005)). A phase in N of n pixels has
    ``s = (N / n) |d|^2``, with d the difference of the two shapes in units of a pixel's noise. Noise is taken as
    independent and equal in all bands: N is an estimate from below.
    """
    n_bands = references.mean.shape[1]
    largest = max(float(((one - other) ** 2).sum()) for one in references.mean for other in references.mean)
    signal = largest / (relative_variance / n_bands) if relative_variance > 0 else np.inf
    least = np.sqrt(n_bands * n_pixels) / signal if signal > 0 else n_pixels
    return int(np.clip(np.ceil(least), 1, n_pixels))


def describe_unknown(found: PixelMap, bundle: ModelBundle) -> dict[str, Any]:
    """Return the figures behind the warning about unknown spectra, for the summary."""
    return {
        "pixels": int(found.unknown.sum()),
        "mean_distance": _finite(found.mean_distance),
        "mean_limit": _finite(bundle.references.mean_limit),
        "pixel_limit": _finite(bundle.references.pixel_limit),
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
