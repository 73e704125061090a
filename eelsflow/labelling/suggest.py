"""What to label next: the acquisitions, and the regions in them, where a label teaches a model most."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from eelsflow.dataset.aside import SetAside, attempt
from eelsflow.dataset.labels import PURE_FRACTION
from eelsflow.edges import Edge
from eelsflow.energy import axis_of
from eelsflow.io.zarr_store import blocks, open_dataset
from eelsflow.maps.mapping import check_file
from eelsflow.maps.pixels import PixelMap, map_pixels
from eelsflow.models.bundle import ModelBundle
from eelsflow.preparation import find_low_loss, prepare_image
from eelsflow.preprocess.presets import Preset
from eelsflow.unmixing.field import TELLING

N_REGIONS = 5
"""Regions proposed in an acquisition."""

REGION_RADIUS = 4
"""Of a region, pixels: about 50 pixels, as many as are drawn around in one go (our choice)."""

FEWEST_PIXELS = 6
"""Pixels below which a region is not worth drawing (our choice)."""

CERTAIN, ONE_CLASS = 0.2, 0.1
"""What a pixel without any doubt counts beside one that is all doubt, and what part counts of an acquisition of one
class alone (our choices, made on simulated fields)."""


class SuggestedRegion(BaseModel):
    """A region to label: connected and compact.

    `box` is (y, x) of its first pixel and (y, x) behind its last one; `doubt` the mean over its pixels, 0 to 1, of
    mixtures 0.
    """

    model_config = ConfigDict(frozen=True)

    box: tuple[int, int, int, int]
    pixels: int
    doubt: float
    members: Annotated[tuple[tuple[int, int], ...], Field(exclude=True)]
    """Its pixels, (y, x)."""


class Suggestion(BaseModel):
    """An acquisition to label, and where.

    `score` is what it is ranked by, see `judge_usefulness`; `shares` the share of its telling pixels that can be
    labelled as each class, by the map; `doubt` their mean doubt; `distance` of its mean spectrum from the training
    acquisitions, in units of the model's limit; `unknown` the share of pixels unlike all training spectra.
    """

    model_config = ConfigDict(frozen=True)

    acquisition: str
    score: float
    shares: dict[str, float]
    doubt: float
    distance: float
    unknown: float
    regions: tuple[SuggestedRegion, ...]


def edge_strength(product: xr.Dataset, edge: Edge) -> NDArray[np.float32]:
    """Return the counts in the window of the edge, background subtracted, of a prepared acquisition, shape (y, x)."""
    strength = np.full(product["vacuum_mask"].shape, np.nan, dtype=np.float32)
    window = axis_of(product["energy_loss"].values).channels(edge.elnes_window)
    for block in blocks(*strength.shape):
        strength[block.y, block.x] = product["intensity"][block.y, block.x, window].values.sum(axis=-1)
    return strength


def telling_pixels(strength: NDArray[np.float32], specimen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the specimen pixels that are thick enough to tell of the specimen and not of film or rim, shape (y, x).

    As for `eelsflow.unmixing.field`: those with a quarter of the counts of the thickest tenth.
    """
    known = specimen & np.isfinite(strength)
    if not known.any():
        return known
    return known & (np.nan_to_num(strength) >= TELLING * np.quantile(strength[known], 0.9))


def pixel_doubt(found: PixelMap, strength: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much a model doubts what each pixel is, 0 to 1, shape (y, x).

    Parameters
    ----------
    found
        The model's map.
    strength
        Of the edge, shape (y, x), see `edge_strength`.

    Notes
    -----
    The entropy of the probabilities of the classes, in units of its largest value; 1 where the spectrum is unlike all
    that the model was trained on. NaN where a label is of no use: without specimen, where it is too thin
    (`telling_pixels`), and in mixtures, that is where no fraction reaches `eelsflow.dataset.labels.PURE_FRACTION` even
    one standard error higher: a study trains on pixels of one class alone.
    """
    probability = np.clip(found.probability.astype(np.float64), 1e-12, 1.0)
    entropy = -(probability * np.log(probability)).sum(axis=-1) / np.log(len(found.classes))
    highest = np.max(found.fraction + np.nan_to_num(found.fraction_error), axis=-1)  # NaN without signal
    pure = found.unknown | ~(highest < PURE_FRACTION)
    doubt = np.where(found.unknown, 1.0, entropy)
    return np.where(telling_pixels(strength, found.specimen) & pure, doubt, np.nan).astype(np.float32)


def suggest_regions(
    doubt: NDArray[np.float32], telling: NDArray[np.bool_], *, n: int = N_REGIONS
) -> list[SuggestedRegion]:
    """Return regions to label in an acquisition, by falling doubt.

    Parameters
    ----------
    doubt
        Of `pixel_doubt`, shape (y, x).
    telling
        Of `telling_pixels`, shape (y, x).
    n
        How many at most.

    Notes
    -----
    Ours: discs, so that they are compact, each where the sum of the doubt in it is largest, less what does not tell,
    what is in another region already, and what is not connected to its middle. Mixtures in a disc add no doubt.
    """
    y, x = np.ogrid[-REGION_RADIUS : REGION_RADIUS + 1, -REGION_RADIUS : REGION_RADIUS + 1]
    disc = y**2 + x**2 <= REGION_RADIUS**2
    worth = np.nan_to_num(doubt)
    free = telling.copy()
    middles = free & (worth > 0)
    regions: list[SuggestedRegion] = []
    while len(regions) < n and middles.any():
        total = ndimage.convolve(np.where(free, worth, 0.0), disc.astype(np.float64), mode="constant")
        row, column = divmod(int(np.argmax(np.where(middles, total, -1.0))), doubt.shape[1])
        top, left = max(row - REGION_RADIUS, 0), max(column - REGION_RADIUS, 0)
        here = np.s_[top : row + REGION_RADIUS + 1, left : column + REGION_RADIUS + 1]
        near = disc[top - row + REGION_RADIUS :, left - column + REGION_RADIUS :]
        held = free[here] & near[: free[here].shape[0], : free[here].shape[1]]
        parts, _ = ndimage.label(held)
        held = parts == parts[row - top, column - left]
        middles[here] &= ~held
        if held.sum() < FEWEST_PIXELS:
            continue
        free[here] &= ~held
        members = np.argwhere(held) + np.array([top, left])
        (y0, x0), (y1, x1) = members.min(axis=0), members.max(axis=0) + 1
        regions.append(
            SuggestedRegion(
                box=(int(y0), int(x0), int(y1), int(x1)),
                pixels=len(members),
                doubt=float(worth[here][held].mean()),
                members=tuple((int(row), int(column)) for row, column in members),
            )
        )
    return sorted(regions, key=lambda one: -one.doubt)


def prepare_file(path: Path, folder: Path, *, edge: Edge, preset: Preset, low_loss: Path | None = None) -> Path:
    """Prepare an acquisition in a folder; return the product.

    Raises
    ------
    EelsflowError
        If it cannot be read, shows no edge, or cannot be prepared.
    """
    image = check_file(path, edge=edge)
    low = find_low_loss(path, image, given=low_loss)
    return prepare_image(image, low, folder, edge=edge, preset=preset)


def judge_usefulness(
    found: PixelMap, strength: NDArray[np.float32], model: ModelBundle, *, acquisition: str
) -> Suggestion:
    """Return how much the labels of an acquisition would teach the model that made its map, and where they would.

    Parameters
    ----------
    found, strength
        Its map, and the strength of its edge (`edge_strength`).
    model
        That made the map.
    acquisition
        What it is called.

    Notes
    -----
    Ours. Each pixel that can be labelled (`pixel_doubt`) counts `CERTAIN` plus its doubt. The score is twice the sum of
    the class that comes second, plus `ONE_CLASS` times the whole, over the number of telling pixels, and times 1 to 2
    by the acquisition's distance (2 from the model's limit on). The second class counts most because acquisitions
    differ by more than their classes: labels of two classes in one recording tell what the classes differ by, and those
    of two recordings, each of one class, what the recordings differ by as well.
    """
    doubt = pixel_doubt(found, strength)
    telling = telling_pixels(strength, found.specimen)
    n_telling = max(int(telling.sum()), 1)
    asked = np.isfinite(doubt)
    members = [asked & (found.class_index == number) for number in range(len(found.classes))]
    worth = sorted((float((CERTAIN + doubt[of_class]).sum()) / n_telling for of_class in members), reverse=True)
    second = worth[1] if len(worth) > 1 else 0.0
    distance = found.mean_distance / model.references.mean_limit
    return Suggestion(
        acquisition=acquisition,
        score=(2.0 * second + ONE_CLASS * sum(worth)) * (1.0 + min(distance, 1.0)),
        shares={name: float(of.sum()) / n_telling for name, of in zip(found.classes, members, strict=True)},
        doubt=float(doubt[asked].mean()) if asked.any() else 0.0,
        distance=distance,
        unknown=float(found.unknown[telling].sum()) / n_telling,
        regions=tuple(suggest_regions(doubt, telling)),
    )


def suggest(
    acquisitions: Sequence[tuple[str, Path, Path | None]],
    model: ModelBundle,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Suggestion], list[SetAside]]:
    """Rank acquisitions by how much their labels would teach a model.

    Parameters
    ----------
    acquisitions
        What each is called, its file, and the file of its low loss or None.
    model
        That is to learn.
    progress
        Called with (name, done, all).

    Returns
    -------
    ranked
        The most useful first.
    aside
        Acquisitions that cannot be used, with the reason.
    """
    ranked: list[Suggestion] = []
    aside: list[SetAside] = []
    for number, (name, path, low_loss) in enumerate(acquisitions):
        if progress is not None:
            progress(name, number, len(acquisitions))

        def judge(name: str = name, path: Path = path, low_loss: Path | None = low_loss) -> Suggestion:
            with tempfile.TemporaryDirectory(prefix="eelsflow-label-") as folder:
                preset = model.acquisition_preset
                prepared = prepare_file(path, Path(folder), edge=model.edge, preset=preset, low_loss=low_loss)
                strength = edge_strength(open_dataset(prepared), model.edge)
                return judge_usefulness(map_pixels(open_dataset(prepared), model), strength, model, acquisition=name)

        result = attempt(name, judge)
        if isinstance(result, SetAside):
            aside.append(result)
        else:
            ranked.append(result)
    return sorted(ranked, key=lambda one: -one.score), aside
