"""A map that one can click: one page with the map, and the spectrum behind every pixel beside it.

Everything is in the page, and what runs in it is named by its hash in the page's own policy. A page has a bounded size,
so what it holds of the spectra is as fine as there is room for; it says what was coarsened.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.energy import Axis, EnergyAxis, side_by_side, stretches
from eelsflow.preprocess.shapes import Shapes, band_edges
from eelsflow.report.clickable_figures import COLORS, Layer, draw_figures, palettes
from eelsflow.report.clickable_spectra import FINENESS, PER_OCTAVE, Fineness, PackedSpectra, Recording, Spectra
from eelsflow.report.packing import code_maps, pack
from eelsflow.report.page import template_environment
from eelsflow.unmixing.references import References

SMALL, SMALL_BYTES, LARGE_BYTES = 128 * 128, 9_900_000, 24_000_000
"""A page of up to so many pixels has at most so many bytes, one of more pixels so many (our choice)."""

MOST_STEPS = 1 << 31
"""That a map's range is divided into; what has more is kept more coarsely."""

_OF_DEVIATION = 0.002  # steps that counts and their deviation are kept in, in units of its median
_ROUNDED = 0.125  # steps that bands are kept in, in units of their noise; four times as much in a large page
_REST = 60_000  # bytes of template, figures and what is said, at most


def write_clickable_map(
    path: Path,
    dataset: xr.Dataset,
    product: xr.Dataset,
    references: References,
    *,
    judged: Shapes,
    noise: NDArray[np.float64],
    axis: Axis,
    image: xr.DataArray | None = None,
    title: str,
    summary: Mapping[str, Any],
    stride: int = 1,
) -> None:
    """Write the page.

    Parameters
    ----------
    path
        Where to.
    dataset
        The map, as it is in ``map.zarr``.
    product
        The prepared acquisition.
    references
        Of the model.
    judged
        The spectra that the map follows from, in bands, shape (y, x, bands): neighbours are taken in where there is a
        spatial step.
    noise
        Covariance of the noise of a shape for a relative variance of 1, shape (bands, bands), as the acquisition shows
        it.
    axis
        Of the channels that bands are sums of.
    image
        What was recorded, by the schema; None draws the prepared spectra of single pixels with their background.
    title
        What the acquisition is called.
    summary
        Content of ``summary.json``.
    stride
        Every so many pixels along x and y one is in the page, at the least; more where they do not fit.

    Raises
    ------
    InputError
        If `image` has other pixels.

    Notes
    -----
    All is drawn in counts per channel of the detector, so that panels can be compared: prepared spectra are scaled by
    the width of their channels where these were resampled with their counts conserved. The mixture is the sum of the
    references' mean shapes, times the pixel's fractions, times its counts in the window. These are the means of the
    training acquisitions, and not what the fractions were found with, which is fitted to each acquisition
    (`eelsflow.unmixing.field`): the residual shows what the references alone leave unexplained.

    It is drawn in bands, where it can be judged; channels share their noise with their neighbours. The dark area is two
    standard deviations of the pixel's own noise: the relative variance of its counts times the covariance over bands
    that this acquisition shows between neighbours, which holds the detector's point spread, resampling and background.
    The light area adds what acquisitions of one class differ by (`References.spread`). A residual that leaves the first
    is of this acquisition; one that leaves the second too is like none of the training acquisitions.

    Of a rectangle the means over its specimen pixels are shown. Pixels share the neighbours that were taken in, so the
    noise of their mean is that of as many single spectra as are in it, and no more than that of one of them.
    """
    recording = Recording(product, image, stride)
    with np.errstate(invalid="ignore"):
        deviation = recording.thinned(judged.counts * np.sqrt(judged.relative_variance))
        relative = recording.thinned(np.where(judged.known, np.sqrt(judged.relative_variance), np.nan))
    step = _OF_DEVIATION * _median_of_positive(deviation)
    maps = _maps(dataset, product, recording) | {
        "relative_deviation": (relative, _OF_DEVIATION * _median_of_positive(relative)),
    }
    for number in range(judged.counts_by_edge.shape[-1]):
        maps[f"counts-{number}"] = (recording.thinned(judged.counts_by_edge[..., number]), step)
    layers = _layers(dataset, summary)
    widths = [np.diff(band_edges(axis, one)) for one in recording.edge.alone]  # of the bands, channels
    in_bands = _bands(recording, judged, deviation, noise, [one.size for one in widths])
    bands = in_bands.pack(_ROUNDED if deviation.size <= SMALL else 4 * _ROUNDED)
    packed, told = _pack_maps(maps)
    scripts = {"bokeh": _bokeh_script(), "own": _own_script()}
    taken = sum(map(len, (*scripts.values(), *bands.planes, *packed))) + 2 * deviation.size + _REST
    room = (SMALL_BYTES if deviation.size <= SMALL else LARGE_BYTES) - taken
    recorded, prepared, fineness = _as_fine_as_fits(recording.recorded(), recording.prepared(deviation), room)
    spectra = {"recorded": recorded, "prepared": prepared, "bands": bands}
    powers, powers_told = _pack_maps({name: (one.power.astype(np.float64), None) for name, one in spectra.items()})

    classes = [str(name) for name in dataset["class"].values]
    order = [references.classes.index(name) for name in classes]
    channel = recorded.axis.dispersion
    per_unit = channel / recording.native.dispersion / recording.channels_per_unit
    size, unit = float(summary["pixel_size"]) * recording.stride, str(summary["pixel_unit"])
    about = {
        "title": title,
        "classes": classes,
        "shape": deviation.shape,
        "stride": recording.stride,
        "unknown_above": summary["unknown"]["pixel_limit"],
        "pixel_size": size,
        "pixel_unit": unit,
        "per_octave": PER_OCTAVE,
        "maps": told,
        "powers": powers_told,
        "spectra": {
            name: {
                "stretches": [[piece.start, piece.size] for piece, _ in stretches(one.axis)],
                "dispersion": one.axis.dispersion,
                "size": one.axis.size,
                "exact": one.exact,
                "scale": per_unit / one.together if name == "prepared" else 1.0,
            }
            for name, one in spectra.items()
        },
        "edges": [one.name for one in recording.edge.alone],
        "background": {"pivots": recording.pivots, "scale": channel / recording.native.dispersion},
        "references": {
            "energies": references.energy_loss.tolist(),
            "shapes": references.mean[order].tolist(),
            "scales": (per_unit / np.concatenate(widths)).tolist(),
            "edges": np.repeat(np.arange(len(widths)), [one.size for one in widths]).tolist(),
            "noise": _deviations(noise).tolist(),
            "spread": _deviations(references.spread).tolist(),
        },
        "layers": [vars(layer) for layer in layers],
        "palettes": palettes(len(classes)),
    }
    page = template_environment().get_template("map.html.j2").render(
        title=title,
        summary=summary,
        layers=layers,
        colors=COLORS,
        class_colors=palettes(len(classes))["classes"],
        shape=deviation.shape,
        size=size,
        has_gathered="gathered" in product,
        edges=about["edges"],
        notes=_notes(recording, recorded, prepared, fineness, summary, has_image=image is not None),
        packed={"maps": packed, "powers": powers} | {name: one.planes for name, one in spectra.items()},
        about=_as_script(json.dumps(about, separators=(",", ":"), allow_nan=False)),
        figures=_as_script(draw_figures(len(classes), unit)),
        scripts=scripts,
        policy=" ".join(f"'sha256-{_digest(script)}'" for script in scripts.values()),
    )  # fmt: skip
    if len(page) > LARGE_BYTES and deviation.size > SMALL:
        write_clickable_map(
            path, dataset, product, references, judged=judged, noise=noise, axis=axis, image=image, title=title,
            summary=summary, stride=recording.stride + 1,
        )  # fmt: skip
        return
    path.write_text(page, encoding="utf-8")


def _as_fine_as_fits(
    recorded: Spectra, prepared: Spectra, room: float
) -> tuple[PackedSpectra, PackedSpectra, Fineness]:
    """Return the spectra packed so that they have at most so many bytes, or as coarse as can be."""
    for fineness in FINENESS:
        expected = recorded.expected_bytes(fineness.recorded, fineness.width)
        expected += prepared.expected_bytes(fineness.prepared, fineness.width)
        if expected > 1.1 * room and fineness is not FINENESS[-1]:
            continue
        both = recorded.pack(fineness.recorded, fineness.width), prepared.pack(fineness.prepared, fineness.width)
        if sum(len(plane) for one in both for plane in one.planes) <= room:
            break
    return *both, fineness


def _bands(
    recording: Recording,
    judged: Shapes,
    deviation: NDArray[np.float64],
    noise: NDArray[np.float64],
    n_of_edge: Sequence[int],
) -> Spectra:
    """Return the counts of every pixel in the bands that it was judged by, so many of each edge."""
    counts = recording.thinned(judged.values * np.repeat(judged.counts_by_edge, n_of_edge, axis=-1))
    of_band = np.where(np.isfinite(deviation), deviation, 0.0) * math.sqrt(np.diag(noise).mean())
    # of the bands the page takes the energies from the references, which need not be in equal steps
    ends = np.cumsum(n_of_edge)
    axis = side_by_side(
        [EnergyAxis(float(judged.energy_loss[end - n]), 1.0, n) for end, n in zip(ends, n_of_edge, strict=True)]
    )

    def read(rows: slice) -> NDArray[np.float64]:
        return counts[rows].reshape(-1, axis.size)

    def deviation_of(values: NDArray[np.float64], rows: slice, together: int) -> NDArray[np.float64]:
        return of_band[rows].ravel()

    return Spectra(axis, read, deviation_of, 1.0, len(counts), deviation.size)


def _maps(
    dataset: xr.Dataset, product: xr.Dataset, recording: Recording
) -> dict[str, tuple[NDArray[np.float64], float | None]]:
    """Return what a page tells of every pixel: its values, shape (y, x), and the steps they are kept in.

    Steps that are None are a 65 000th of the range.
    """
    specimen = dataset["class_index"].values >= 0
    values: dict[str, tuple[NDArray[Any], float | None]] = {"class": (dataset["class_index"].values, 1.0)}
    for name, step in (("probability", 1e-3), ("fraction", 1e-3), ("fraction_error", 1e-3)):
        for number in range(dataset.sizes["class"]):
            values[f"{name}-{number}"] = (dataset[name].values[..., number], step)
    for name, step in (
        ("unknown", 1.0), ("distance", 0.01), ("effective_spectra", 0.1), ("t_over_lambda", 1e-3),
        ("t_over_lambda_error", 1e-3), ("thickness", 0.1), ("zero_loss_offset", 1e-3), ("valence", 1e-3),
        ("l3_l2_ratio", 1e-3), ("l3_l2_ratio_error", 1e-3), ("l3_position", 1e-3), ("l3_position_error", 1e-3),
    ):  # fmt: skip
        if name in dataset:
            values[name] = (dataset[name].values, step)
    values["electrons"] = (product["electrons"].values, None)
    masked = {name: (np.where(specimen, map_, np.nan), step) for name, (map_, step) in values.items()}
    masked["lost"] = (dataset["lost"].values, 1.0)
    for number, pair in enumerate(recording.backgrounds):
        masked |= {
            f"{name}-{number}": (values, None) for name, values in zip(("amplitude", "exponent"), pair, strict=True)
        }
    return {name: (recording.thinned(np.asarray(map_, float)), step) for name, (map_, step) in masked.items()}


def _pack_maps(
    maps: Mapping[str, tuple[NDArray[np.float64], float | None]],
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Return packed maps, and by name the number, the step and the lowest value of each."""
    values = np.array([map_.ravel() for map_, _ in maps.values()])
    values[~np.isfinite(values)] = np.nan
    steps = np.array([_step(map_, step) for map_, (_, step) in zip(values, maps.values(), strict=True)])
    codes, lowest = code_maps(values, steps)
    told = {
        name: {"number": number, "step": float(steps[number]), "lowest": float(lowest[number])}
        for number, name in enumerate(maps)
    }
    return pack([codes]), told


def _step(values: NDArray[np.float64], step: float | None) -> float:
    known = values[np.isfinite(values)]
    span = float(np.ptp(known)) if known.size else 0.0
    if step is not None:
        return max(step, span / MOST_STEPS)
    return span / 65_000 if span > 0 else 1.0


def _layers(dataset: xr.Dataset, summary: Mapping[str, Any]) -> list[Layer]:
    """Return what the map can show, in the order of the list."""
    classes = [str(name) for name in dataset["class"].values]
    n = len(classes)
    specimen = dataset["class_index"].values >= 0

    def ends(name: str) -> tuple[float, float] | None:
        if name not in dataset:
            return None
        values = dataset[name].values[specimen]
        values = values[np.isfinite(values)]
        return (float(values.min()), float(values.max())) if values.size else None

    def middle(name: str) -> tuple[float, float] | None:
        """Return what all but the noisiest pixels lie between."""
        values = dataset[name].values[specimen] if name in dataset else np.empty(0)
        values = values[np.isfinite(values)]
        return tuple(np.percentile(values, [2, 98]).tolist()) if values.size else None

    def highest(name: str) -> float:
        found = ends(name)
        return found[1] if found else 1.0

    layers = [
        Layer("class", "Class", "", -0.5, n - 0.5, "classes", hatched=True),
        Layer("confidence", "Confidence", "probability of the class", 1 / max(n, 2), 1.0, "cividis"),
    ]
    for number, name in enumerate(classes[:1] if n == 2 else classes):
        layers.append(Layer(f"fraction-{number}", f"Fraction of {name}", f"fraction of {name}", 0.0, 1.0))
    limit = summary["unknown"]["pixel_limit"]
    unlike = "distance from training" + (f" (unknown above {limit:.2f})" if limit else "")
    layers.append(Layer("distance", "Unknown", unlike, 0.0, max(highest("distance"), limit or 0.0), hatched=True))
    if ends("t_over_lambda"):
        layers.append(Layer("t_over_lambda", "Thickness (t/λ)", "t/λ", 0.0, highest("t_over_lambda")))
    if ends("thickness"):
        layers.append(Layer("thickness", "Thickness (nm)", "thickness (nm)", 0.0, highest("thickness")))
    if offset := ends("zero_loss_offset"):
        layers.append(Layer("zero_loss_offset", "Energy offset", "offset of the zero loss (eV)", *offset))
    if valence := ends("valence"):
        layers.append(Layer("valence", "Valence", "mean valence", *valence))
    for name, title, label in (
        ("l3_l2_ratio", "L3/L2 ratio", "ratio of the white lines' areas"),
        ("l3_position", "L3 position", "energy of L3 (eV)"),
    ):
        if most := middle(name):
            layers.append(Layer(name, title, label, *most))
    layers.append(
        Layer(
            "effective_spectra",
            "Effective spectra",
            "spectra that a pixel's is the mean of",
            0.0,
            highest("effective_spectra"),
        )
    )
    return layers


def _notes(
    recording: Recording,
    recorded: PackedSpectra,
    prepared: PackedSpectra,
    fineness: Fineness,
    summary: Mapping[str, Any],
    *,
    has_image: bool,
) -> list[str]:
    """Return what is to be known of the numbers in the page."""
    notes = []
    if recording.stride > 1:
        nth = {2: "second", 3: "third"}.get(recording.stride, f"{recording.stride}th")
        notes.append(f"Of this image every {nth} pixel along x and y is in the page.")
    if not has_image:
        notes.append(
            "What is called recorded is the prepared spectrum of the single pixel with its background: spikes and dead "
            "channels were taken out of it."
        )
    step = fineness.recorded or FINENESS[0].prepared
    kept = "counts are exact" if recorded.exact else f"values are rounded to steps of {step:g} of their noise"
    notes.append(f"Recorded {kept}; prepared values are rounded to steps of {fineness.prepared:g} of theirs.")
    if recorded.together > 1 or prepared.together > 1:
        notes.append(
            f"Channels are added up: {recorded.together} as recorded, {prepared.together} as prepared, to "
            f"{recorded.axis.dispersion:.3g} and {prepared.axis.dispersion:.3g} eV."
        )
    low_loss = summary["low_loss"] or {}
    if low_loss.get("deconvolved"):
        notes.append("Plural scattering was taken out of the prepared spectra, and is in the recorded ones.")
    if low_loss.get("drift_followed"):
        notes.append(
            f"Prepared spectra follow the drift of the energy axis, {low_loss['drift']:.2f} eV over the scan; recorded "
            "ones are drawn on the axis of the whole scan."
        )
    return notes


def _deviations(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.maximum(np.diag(covariance), 0.0)))


def _median_of_positive(values: NDArray[np.float64]) -> float:
    some = values[np.isfinite(values) & (values > 0)]
    return float(np.median(some)) if some.size else 1.0


def _as_script(content: str) -> str:
    """Return JSON for an element of its own, which no text in it can end."""
    return content.replace("<", "\\u003c")


@lru_cache(maxsize=1)
def _bokeh_script() -> str:
    """Return BokehJS: figures alone, without widgets, tables and WebGL."""
    from bokeh.resources import Resources

    (script,) = (one for one in Resources(mode="inline", components=["bokeh"]).js_raw if len(one) > 10_000)
    return str(script)


@lru_cache(maxsize=1)
def _own_script() -> str:
    return (resources.files("eelsflow.report") / "templates" / "map.js").read_text(encoding="utf-8")


@lru_cache(maxsize=4)
def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
