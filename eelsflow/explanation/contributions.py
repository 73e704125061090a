"""The contribution of each energy band to the decision between two classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.energy import stretches
from eelsflow.errors import InputError
from eelsflow.explanation.decision import Decision, Floats, read_spectra
from eelsflow.explanation.result import Explanation
from eelsflow.io.zarr_store import blocks
from eelsflow.maps.judge import say_unlike
from eelsflow.maps.pixels import PixelMap, map_pixels, on_axis
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.noise import sample_indices
from eelsflow.preprocess.shapes import BAND_WIDTH, band_edges, to_shapes
from eelsflow.unmixing.field import Weights

MOST_SPECTRA = 64
"""Of a set that are explained, evenly spread over it: their mean and spread change little with more (ours)."""

NOISY_SPECTRA, DRAWS = 512, (8, 32)
"""How many spectra with noise drawn anew an error is taken from, and of one spectrum at the least and most (ours)."""

BETWEEN_ACQUISITIONS = 32
"""Spectra drawn from what acquisitions of a class differ by, where a model alone is explained (ours)."""

BY_ITS_MEAN = (
    "This field shows no structure, so its map decides all pixels alike, by their mean spectrum; what is shown here is "
    "what each spectrum says by itself."
)

_TEMPLATE_STEPS = 20

Pixels = Sequence[tuple[int, int]] | Sequence[int] | NDArray[np.bool_]


def explain(
    model: ModelBundle,
    spectra: xr.Dataset | NDArray[np.floating[Any]] | None = None,
    *,
    variance: NDArray[np.floating[Any]] | None = None,
    pixels: Pixels | None = None,
    classes: tuple[str, str] | None = None,
    width: float = BAND_WIDTH,
    models: Sequence[ModelBundle] = (),
    seed: int = 0,
) -> Explanation:
    """Return which energies decide between two classes.

    Parameters
    ----------
    model
        What decides.
    spectra
        What is decided: a prepared acquisition, as a map is made of it, or prepared wide spectra, shape (n,
        channels), on the model's axis. None explains the model alone, by the mean spectra of its classes in the
        training set and what acquisitions differ from them.
    variance
        Of `spectra` where these are an array, same shape; None: no error is given.
    pixels
        Of an acquisition pairs (y, x), of an array row numbers, each explained by itself; or a mask, shape (y, x) or
        (n,), whose spectra are explained together. None: those of each class, as the model decides, together.
    classes
        The two classes; positive contributions speak for the first. By default the model's first two.
    width
        Of a band, eV.
    models
        The same model trained with other seeds: contributions are the mean over all, and each is kept.
    seed
        Of the noise that is drawn.

    Raises
    ------
    InputError
        If a class is none of the model's, the width is not positive, a pixel lies outside, or has no specimen or no
        signal, or no spectrum is left; and for maps of `mlls`, whose bands are 1 eV wide, if the width is another.

    Notes
    -----
    Ours in all choices. Spectra are compared with the mean of the two classes' mean spectra in the training set, which
    a model keeps; of one that does not (of an earlier version) its references are taken, coarse in energy. See
    `Decision.contributions` for what a contribution is. Where the decision is a sum over channels (method ``exact``),
    contributions add up to its difference from that of the mean. It is a sum over the counts of the prepared spectrum,
    with the offset and scale of its own normalisation, through the principal components. By occlusion contributions do
    not add up: where either of two bands would do, neither is missed. The place of spectra on the axis is found once,
    from whole spectra. Maps of `mlls` follow from fractions of the field and are explained by the weights of these.

    Spectra of a class are those that the model decides for it, and to be decided for is to have such contributions,
    also where they are noise: compare them with their error. What noise taught a machine speaks for the class in the
    mean of its own training spectra too, and not in others.
    """
    bundles = [model, *models]
    pair = _pair_of(bundles, classes)
    if not (np.isfinite(width) and width > 0):
        raise InputError(f"the width of a band is {width:g} eV; it must be positive, such as 1")
    parts = [_explain_one(bundle, spectra, variance, pixels, pair, width, seed) for bundle in bundles]
    first = parts[0]
    if any(part.names != first.names for part in parts):
        kept = [name for name in first.names if all(name in part.names for part in parts)]
        parts = [part.only(kept) for part in parts]
        first = parts[0]
    return Explanation(_dataset(parts, bundles, pair, width))


@dataclass(frozen=True)
class _Sets:
    """Spectra that are explained, and the sets that they are of.

    Attributes
    ----------
    wide
        Shape (n, channels).
    variance
        Same shape; None where it is not known.
    names
        Of the sets.
    members
        Rows of `wide` in each.
    sizes
        Of how many spectra each set is; more than are explained.
    """

    wide: NDArray[np.float32]
    variance: NDArray[np.float32] | None
    names: list[str]
    members: list[NDArray[np.intp]]
    sizes: list[int]


@dataclass(frozen=True)
class _Part:
    """What one model gives, over sets and bands."""

    names: list[str]
    contribution: Floats
    spread: Floats
    error: Floats
    spectrum: Floats
    decision: Floats
    at_mean: Floats
    n_explained: list[int]
    sizes: list[int]
    limits: Floats
    method: str
    unit: str
    spread_over: str
    note: str = ""

    def only(self, names: Sequence[str]) -> _Part:
        """Return some of the sets."""
        if not names:
            raise InputError("the models agree on no class that any spectrum is of; explain them one by one")
        rows = [self.names.index(name) for name in names]
        arrays = ("contribution", "spread", "error", "spectrum", "decision", "at_mean")
        chosen: dict[str, Any] = {name: getattr(self, name)[rows] for name in arrays}
        chosen |= {name: [getattr(self, name)[row] for row in rows] for name in ("names", "n_explained", "sizes")}
        return replace(self, **chosen)


Contribute = Callable[[NDArray[np.float32]], Floats]


def _pair_of(bundles: Sequence[ModelBundle], classes: tuple[str, str] | None) -> tuple[str, str]:
    names = bundles[0].classes
    first, second = names[:2] if classes is None else classes
    for name in (first, second):
        if name not in names:
            raise InputError(
                f"{name!r} is no class of {bundles[0].name}, which tells {', '.join(names)}; name two of them"
            )
    if first == second:
        raise InputError(f"{first!r} is named twice; a decision is between two classes of {', '.join(names)}")
    for other in bundles[1:]:
        if sorted(other.classes) != sorted(names) or other.edge.name != bundles[0].edge.name:
            raise InputError(
                f"{other.name} tells {', '.join(other.classes)} at {other.edge.name}, and {bundles[0].name} tells "
                f"{', '.join(names)} at {bundles[0].edge.name}: give the same model trained with other seeds"
            )
    return first, second


def _explain_one(
    bundle: ModelBundle,
    spectra: xr.Dataset | NDArray[np.floating[Any]] | None,
    variance: NDArray[np.floating[Any]] | None,
    pixels: Pixels | None,
    pair: tuple[str, str],
    width: float,
    seed: int,
) -> _Part:
    numbers = bundle.classes.index(pair[0]), bundle.classes.index(pair[1])
    if spectra is None:
        return _of_model(bundle, numbers, width, seed)
    if isinstance(spectra, xr.Dataset):
        return _of_acquisition(bundle, spectra, pixels, numbers, width, seed)
    wide = np.asarray(spectra, dtype=np.float32)
    axis = bundle.transform.axis
    if wide.ndim != 2 or wide.shape[1] != axis.size or (variance is not None and np.shape(variance) != wide.shape):
        raise InputError(
            f"spectra have shape {wide.shape} and their variance {np.shape(variance) if variance is not None else None}"
            f"; the model takes (n, {axis.size}) on {axis}, and a variance of the same shape"
        )
    if pixels is None:
        predicted = bundle.predict(wide)[0]
        of_class = [(name, np.flatnonzero(predicted == name)) for name in pair]
    else:
        rows = np.asarray(pixels)
        if rows.dtype == bool and rows.shape == (len(wide),):
            of_class = [(f"{int(rows.sum())} spectra", np.flatnonzero(rows))]
        elif rows.ndim == 1 and rows.dtype.kind in "iu" and ((rows >= 0) & (rows < len(wide))).all():
            of_class = [(f"spectrum {row}", np.array([row])) for row in rows]
        else:
            raise InputError(f"there are {len(wide)} spectra: pixels are numbers from 0 to {len(wide) - 1}, or a mask")
    members = [(name, rows[sample_indices(rows.size, MOST_SPECTRA)], rows.size) for name, rows in of_class if rows.size]
    _require_some(members)
    chosen = np.concatenate([rows for _, rows, _ in members])
    noise = None if variance is None else np.asarray(variance, dtype=np.float32)[chosen]
    places = _places(bundle, wide[chosen], None)
    return _by_classifier(bundle, numbers, width, seed, _sets(wide[chosen], noise, members), places)


def _require_some(members: Sequence[Any]) -> None:
    if not members:
        raise InputError("no spectrum is of either class, so there is nothing to explain; name pixels or other classes")


def _sets(
    wide: NDArray[np.float32],
    variance: NDArray[np.float32] | None,
    members: Sequence[tuple[str, NDArray[np.intp], int]],
) -> _Sets:
    """Return sets whose spectra lie one after the other."""
    ends = np.cumsum([len(rows) for _, rows, _ in members])
    numbered = [np.arange(end - len(rows), end) for end, (_, rows, _) in zip(ends, members, strict=True)]
    return _Sets(wide, variance, [name for name, _, _ in members], numbered, [size for _, _, size in members])


def _places(
    bundle: ModelBundle, wide: NDArray[np.float32], group: NDArray[np.str_] | None
) -> tuple[NDArray[np.intp], Floats]:
    if bundle.registration is None:
        return np.zeros((len(wide), 1), dtype=np.intp), np.ones((len(wide), 1))
    return bundle.registration.locate(wide, group)


def _of_model(bundle: ModelBundle, pair: tuple[int, int], width: float, seed: int) -> _Part:
    """Explain the mean spectra of two classes, and what acquisitions of these differ by."""
    references = bundle.references
    rng = np.random.default_rng([seed, 1])
    values, directions = np.linalg.eigh(references.spread)
    drawn = rng.standard_normal((BETWEEN_ACQUISITIONS, len(values))) @ (directions * np.sqrt(np.maximum(values, 0.0))).T
    shapes = np.concatenate([mean + np.vstack([np.zeros(len(values)), drawn]) for mean in _references(bundle, pair)])
    decision, starts = Decision.of(bundle, pair), _starts(bundle, width)
    means = class_means(bundle)[list(pair)]
    n = 1 + BETWEEN_ACQUISITIONS
    # The spectra are at their place: nothing is looked for, and there is nothing beyond the window to look at.
    at_home = np.zeros((2 * n, 1), dtype=np.intp), np.ones((2 * n, 1))
    reading = read_spectra(bundle, _as_wide(bundle, shapes), means.mean(axis=0), at_home)
    # References are coarse in energy: what acquisitions differ by is theirs, the mean is the training spectra's own.
    moved = np.repeat(means - reading.before[[0, n], 0], n, axis=0)[:, None]
    components = bundle.transform.component_map
    reading = replace(
        reading,
        before=reading.before + moved,
        vectors=np.asarray(reading.vectors + (moved if components is None else moved @ components), dtype=np.float32),
    )
    first = [0, n]
    found = decision.contributions(reading, starts).reshape(2, n, -1)
    return _Part(
        names=[bundle.classes[number] for number in pair],
        contribution=found[:, 0],
        spread=found[:, 1:].std(axis=1, ddof=1),
        error=np.full(found[:, 0].shape, np.nan),
        spectrum=_share_by_ev(_on_channels(bundle, shapes[first]), starts, bundle),
        decision=decision.values(reading)[first],
        at_mean=decision.at_mean(reading)[first],
        n_explained=[1, 1],
        sizes=[1, 1],
        limits=_limits(bundle, width),
        method="exact" if decision.is_exact else "occlusion",
        unit=decision.unit,
        spread_over="acquisitions of a class",
    )


def _of_acquisition(
    bundle: ModelBundle, product: xr.Dataset, pixels: Pixels | None, pair: tuple[int, int], width: float, seed: int
) -> _Part:
    """Explain pixels of a prepared acquisition as its map decides them; what is wrong with the map is noted."""
    found = map_pixels(product, bundle)
    part = _of_map(found, bundle, product, pixels, pair, width, seed)
    unlike = say_unlike(
        bundle.references, mean_distance=found.mean_distance, unknown=int(found.unknown.sum()),
        pixels=int(found.specimen.sum()),
    )  # fmt: skip
    if unlike is None:
        return part
    return replace(
        part, note=f"Warning: {unlike}, and what decides between the classes says little of them. {part.note}"
    )


def _of_map(
    found: PixelMap,
    bundle: ModelBundle,
    product: xr.Dataset,
    pixels: Pixels | None,
    pair: tuple[int, int],
    width: float,
    seed: int,
) -> _Part:
    members = _members_of_map(found, pixels, bundle, pair)
    flat = np.concatenate([rows for _, rows, _ in members])
    axis = bundle.transform.axis

    def take(name: str, flat: NDArray[np.intp]) -> NDArray[np.float32]:
        return on_axis(_spectra_at(product[name], flat), product["energy_loss"].values, axis)

    if bundle.maps_by_fraction:
        if found.weights is None:
            raise InputError("no pixel of the acquisition shows a signal, so nothing was decided by its spectra")
        lent = "gathered" in product
        spectra = take("gathered" if lent else "intensity", flat)
        noise = take("gathered_variance" if lent else "variance", flat)
        return _by_fraction(bundle, found.weights, pair, width, seed, _sets(spectra, noise, members))
    if bundle.registration is None:
        places = _places(bundle, np.empty((flat.size, 0), dtype=np.float32), None)
    else:  # all of an acquisition tell together where each lies, as for its map
        inside = np.flatnonzero(found.specimen)
        place, weight = _places(bundle, take("intensity", inside), np.full(inside.size, "this"))
        rows = np.searchsorted(inside, flat)
        places = place[rows], weight[rows]
    sets = _sets(take("intensity", flat), take("variance", flat), members)
    return _by_classifier(bundle, pair, width, seed, sets, places)


def _spectra_at(cube: xr.DataArray, flat: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the spectra of some pixels of an image (y, x, channels), (n, channels); a block is read at a time."""
    n_y, n_x, n_channels = cube.shape
    y, x = np.unravel_index(flat, (n_y, n_x))
    spectra = np.empty((flat.size, n_channels), dtype=np.float32)
    for block in blocks(n_y, n_x):
        here = (y >= block.y.start) & (y < block.y.stop) & (x >= block.x.start) & (x < block.x.stop)
        if here.any():
            read = cube[block.y, block.x].values
            spectra[here] = read[y[here] - block.y.start, x[here] - block.x.start]
    return spectra


def _members_of_map(
    found: PixelMap, pixels: Pixels | None, bundle: ModelBundle, pair: tuple[int, int]
) -> list[tuple[str, NDArray[np.intp], int]]:
    """Return name, flat indices and size of each set of pixels."""
    usable = found.specimen
    if bundle.maps_by_fraction:
        usable = usable & np.isfinite(found.fraction[..., 0])
    shape = usable.shape
    sets: list[tuple[str, NDArray[np.intp]]] = []
    if pixels is None:
        sets = [(bundle.classes[number], np.flatnonzero(usable & (found.class_index == number))) for number in pair]
    elif np.asarray(pixels).dtype == bool:
        mask = np.asarray(pixels)
        if mask.shape != shape:
            raise InputError(f"the mask has shape {mask.shape} and the acquisition {shape} pixels (y, x)")
        rows = np.flatnonzero(usable & mask)
        sets = [(f"{rows.size} pixels", rows)]
    else:
        for y, x in np.asarray(pixels, dtype=np.intp).reshape(-1, 2):
            if not (0 <= y < shape[0] and 0 <= x < shape[1]):
                raise InputError(
                    f"pixel x {x}, y {y} lies outside the acquisition of {shape[1]} x {shape[0]} pixels; x counts from "
                    f"0 to {shape[1] - 1}, y from 0 to {shape[0] - 1}"
                )
            if not usable[y, x]:
                raise InputError(f"pixel x {x}, y {y} is vacuum, lost or without signal: no class was decided there")
            sets.append((f"pixel x {x}, y {y}", np.array([y * shape[1] + x])))
    members = [(name, rows[sample_indices(rows.size, MOST_SPECTRA)], rows.size) for name, rows in sets if rows.size]
    _require_some(members)
    return members


def _by_classifier(
    bundle: ModelBundle,
    pair: tuple[int, int],
    width: float,
    seed: int,
    sets: _Sets,
    places: tuple[NDArray[np.intp], Floats],
) -> _Part:
    decision, starts = Decision.of(bundle, pair), _starts(bundle, width)
    mean = class_means(bundle)[list(pair)].mean(axis=0)

    def contribute(wide: NDArray[np.float32]) -> Floats:
        return decision.contributions(read_spectra(bundle, wide, mean, places), starts)

    reading = read_spectra(bundle, sets.wide, mean, places)
    found = decision.contributions(reading, starts)
    values = np.stack([decision.values(reading), decision.at_mean(reading)])
    error = _noise_error(contribute, sets, seed)
    return _part(
        bundle, width, sets, found, values, error, "exact" if decision.is_exact else "occlusion", decision.unit
    )


def _by_fraction(
    bundle: ModelBundle, weights: Weights, pair: tuple[int, int], width: float, seed: int, sets: _Sets
) -> _Part:
    if width != BAND_WIDTH:
        raise InputError(
            f"a map of {bundle.name} follows from fractions, which are found in bands of {BAND_WIDTH:g} eV, and "
            f"{width:g} eV are asked for; leave the width as it is"
        )
    axis, edge = bundle.transform.axis, bundle.edge
    mean = np.mean(_references(bundle, pair), axis=0)
    of_bands = weights.of_bands[pair[0]] - weights.of_bands[pair[1]]
    offset = float(weights.offset[pair[0]] - weights.offset[pair[1]])

    def contribute(wide: NDArray[np.float32]) -> Floats:
        shapes = to_shapes(wide, np.zeros_like(wide), axis, edge).values  # their sum is 1, as in the map
        return np.asarray(of_bands * (shapes - mean))

    found = contribute(sets.wide)
    at_mean = float(of_bands @ mean) + offset
    values = np.stack([found.sum(axis=1) + at_mean, np.full(len(found), at_mean)])
    error = _noise_error(contribute, sets, seed)
    part = _part(bundle, width, sets, found, values, error, "exact", weights.unit)
    return replace(part, note=BY_ITS_MEAN) if weights.unit == "log-odds" else part


def _noise_error(contribute: Contribute, sets: _Sets, seed: int) -> Floats | None:
    """Return the standard deviation of contributions by the noise of each spectrum, (n, bands).

    Noise of the spectrum's own variance is added to it, which has the noise it was recorded with already: the spread
    over draws is that of one draw.
    """
    if sets.variance is None:
        return None
    rng = np.random.default_rng([seed, 2])
    deviation = np.sqrt(np.maximum(sets.variance, 0.0))
    n_draws = int(np.clip(NOISY_SPECTRA // len(sets.wide), *DRAWS))
    drawn = [
        contribute(sets.wide + np.asarray(deviation * rng.standard_normal(sets.wide.shape), dtype=np.float32))
        for _ in range(n_draws)
    ]
    return np.asarray(np.std(drawn, axis=0, ddof=1))


def _part(
    bundle: ModelBundle,
    width: float,
    sets: _Sets,
    found: Floats,
    values: Floats,
    error: Floats | None,
    method: str,
    unit: str,
) -> _Part:
    """Take means and spread over the sets."""
    starts = _starts(bundle, width)
    empty = np.full((len(sets.names), starts.size - 1), np.nan)
    contribution, spread, errors, spectrum = empty.copy(), empty.copy(), empty.copy(), empty.copy()
    decision = np.empty((2, len(sets.names)))
    shares = _share_by_ev(sets.wide[:, bundle.transform.channels], starts, bundle)
    for row, members in enumerate(sets.members):
        contribution[row] = found[members].mean(axis=0)
        spectrum[row] = shares[members].mean(axis=0)
        decision[:, row] = values[:, members].mean(axis=1)
        if members.size > 1:
            spread[row] = found[members].std(axis=0, ddof=1)
        if error is not None:
            errors[row] = np.sqrt((error[members] ** 2).mean(axis=0))
    return _Part(
        names=sets.names,
        contribution=contribution,
        spread=spread,
        error=errors,
        spectrum=spectrum,
        decision=decision[0],
        at_mean=decision[1],
        n_explained=[members.size for members in sets.members],
        sizes=sets.sizes,
        limits=_limits(bundle, width),
        method=method,
        unit=unit,
        spread_over="spectra",
    )


def _starts(bundle: ModelBundle, width: float) -> NDArray[np.intp]:
    """Return the channels of a vector that bands begin with, and that after the last; edge after edge."""
    found, last = [np.zeros(1, dtype=np.intp)], 0
    for edge in bundle.edge.alone:
        cuts = band_edges(bundle.transform.axis, edge, width=width)
        found.append(cuts[1:] - cuts[0] + last)
        last = int(found[-1][-1])
    return np.concatenate(found)


def _limits(bundle: ModelBundle, width: float) -> Floats:
    """Return where bands begin and end, shape (2, bands), eV."""
    limits = []
    for edge, (piece, where) in zip(bundle.edge.alone, stretches(bundle.transform.axis), strict=True):
        at = piece.boundaries[band_edges(bundle.transform.axis, edge, width=width) - where.start]
        limits.append(np.stack([at[:-1], at[1:]]))
    return np.concatenate(limits, axis=1)


def _share_by_ev(spectra: NDArray[np.floating[Any]], starts: NDArray[np.intp], bundle: ModelBundle) -> Floats:
    """Return the share of all bands' counts that lies in each, % per eV, (n, bands)."""
    bands = np.add.reduceat(spectra, starts[:-1], axis=1, dtype=np.float64)
    total = np.abs(bands).sum(axis=1, keepdims=True)
    share = bands / np.where(total > 0, total, 1.0)
    return np.asarray(100.0 * share / (np.diff(starts) * bundle.transform.axis.dispersion))


def class_means(bundle: ModelBundle) -> NDArray[np.float32]:
    """Return the classes' mean spectra, scaled as vectors are, (classes, channels); of references if none are kept."""
    if bundle.means is not None:
        return bundle.means
    shapes = np.array(_references(bundle, range(len(bundle.classes))))
    return bundle.transform.before_components(_as_wide(bundle, shapes))[1]


def _references(bundle: ModelBundle, numbers: Sequence[int]) -> list[Floats]:
    """Return the mean shapes of classes, (bands,) each."""
    references = bundle.references
    return [references.mean[references.classes.index(bundle.classes[number])] for number in numbers]


def _as_wide(bundle: ModelBundle, shapes: Floats) -> NDArray[np.float32]:
    """Return shapes (n, bands) as wide spectra, (n, wide channels), with nothing beyond the window."""
    wide = np.full((len(shapes), bundle.transform.axis.size), np.nan, dtype=np.float32)
    wide[:, bundle.transform.channels] = _on_channels(bundle, shapes)
    return wide


def _on_channels(bundle: ModelBundle, shapes: Floats) -> Floats:
    """Return shapes, (n, bands), on the channels of the window, (n, channels): shares of the window's counts.

    Straight lines between the centres of the bands, through heights that leave every band its share.
    """
    cuts = _starts(bundle, BAND_WIDTH)
    starts, size = cuts[:-1], np.diff(cuts)
    energy, centres = bundle.transform.energy_loss, bundle.references.energy_loss

    def interpolate(heights: Floats) -> Floats:
        return np.array([np.interp(energy, centres, one) for one in heights])

    wanted = shapes / size
    heights = wanted.copy()
    for _ in range(_TEMPLATE_STEPS):
        heights += wanted - np.add.reduceat(interpolate(heights), starts, axis=1) / size
    return interpolate(heights)


def _dataset(parts: Sequence[_Part], bundles: Sequence[ModelBundle], pair: tuple[str, str], width: float) -> xr.Dataset:
    import xarray as xr

    first, bundle = parts[0], bundles[0]
    shapes = _on_channels(bundle, np.array(_references(bundle, range(len(bundle.classes)))))
    by_model = np.stack([part.contribution for part in parts])
    both = ("of", "band")
    unit = {"units": first.unit}

    def mean_of(name: str) -> Floats:
        return np.asarray(np.mean([getattr(part, name) for part in parts], axis=0))

    def mean_square_of(name: str) -> Floats:
        return np.asarray(np.sqrt(np.mean([getattr(part, name) ** 2 for part in parts], axis=0)))

    dataset = xr.Dataset(
        {
            "contribution": (both, by_model.mean(axis=0), unit),
            "spread": (both, mean_square_of("spread"), unit),
            "error": (both, mean_square_of("error"), unit),
            "spectrum": (both, mean_of("spectrum"), {"units": "% of the window's counts per eV"}),
            "decision": ("of", mean_of("decision"), unit),
            "decision_at_mean": ("of", mean_of("at_mean"), unit),
            "n_spectra": ("of", first.n_explained),
            "n_in_set": ("of", first.sizes),
            "class_spectrum": (
                ("class", "energy_loss"),
                100.0 * shapes / bundle.transform.axis.dispersion,
                {"units": "% of the window's counts per eV"},
            ),
        },
        coords={
            "of": first.names,
            "band": ("band", first.limits.mean(axis=0), {"units": "eV"}),
            "band_low": ("band", first.limits[0], {"units": "eV"}),
            "band_high": ("band", first.limits[1], {"units": "eV"}),
            "class": bundle.classes,
            "energy_loss": ("energy_loss", bundle.transform.energy_loss, {"units": "eV"}),
        },
        attrs={
            "method": first.method,
            "classes": list(pair),
            "unit": first.unit,
            "model": bundle.name,
            "edge": bundle.edge.name,
            "width": float(width),
            "compared_with": f"the mean of the mean spectra of {pair[0]} and {pair[1]} in the training set",
            "spread_over": first.spread_over,
            "note": first.note,
        },
    )
    if len(parts) > 1:
        dataset["by_model"] = (("model", *both), by_model, unit)
    return dataset
