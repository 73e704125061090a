"""From judged pixels to the map of an acquisition: arrays with coordinates, and the summary of what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import eelsflow
from eelsflow.edges import Edge
from eelsflow.energy import axis_of
from eelsflow.io.zarr_store import Block, blocks
from eelsflow.low_loss.companion import describe_companion
from eelsflow.maps.drift import conditions_of, find_drift
from eelsflow.maps.judge import describe_unknown, judge_map
from eelsflow.maps.pixels import VACUUM, PixelMap, map_pixels
from eelsflow.maps.result import SCHEMA, Map
from eelsflow.maps.white_lines import fit_lines, fit_shared_lines, white_lines_of
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.calibration import usual_distance
from eelsflow.preprocess.presets import Align, Preset


def map_prepared(product: xr.Dataset, bundle: ModelBundle, *, recorded: xr.DataArray | None = None) -> Map:
    """Classify every specimen pixel of a prepared acquisition.

    Parameters
    ----------
    product
        As `eelsflow.preprocess.chain.prepare` returns it, in memory or opened from a store.
    bundle
        A model for the same edge.
    recorded
        The counts it was prepared from, for the page on which spectra are looked at.
    """
    found = map_pixels(product, bundle)
    warnings = [*judge_map(found, bundle, product), *json.loads(product.attrs["warnings"])]
    summary = _summary(found, product, bundle, warnings)
    said, lines = _white_lines(product, bundle, found)
    summary["white_lines"] = said
    dataset = _dataset(found, product, bundle, summary)
    valence = _valence(found, bundle)
    if valence is not None:
        dataset["valence"] = (("y", "x"), valence[0])
        dataset["valence_error"] = (("y", "x"), valence[1])
    for name, (values, unit) in lines.items():
        dataset[name] = (("y", "x"), values, {"units": unit})
    low_loss = summary["low_loss"]
    if low_loss is not None:
        for name in ("t_over_lambda", "t_over_lambda_error", "zero_loss_offset"):
            dataset[name] = product[name].load()
        if low_loss["mean_free_path"]:
            dataset["thickness"] = (("y", "x"), low_loss["mean_free_path"] * dataset["t_over_lambda"].values)
            dataset["thickness"].attrs["units"] = "nm"
    return Map(dataset, prepared=product, recorded=recorded, bundle=bundle, pixels=found)


def _summary(found: PixelMap, product: xr.Dataset, bundle: ModelBundle, warnings: list[str]) -> dict[str, Any]:
    attrs = product.attrs
    specimen = found.specimen
    confidence = found.confidence
    classes = {}
    for number, name in enumerate(found.classes):
        chosen = found.class_index == number
        fraction = found.fraction[..., number]
        known = np.isfinite(fraction)
        classes[name] = {
            "pixels": int(chosen.sum()),
            "mean_probability": float(confidence[chosen].mean()) if chosen.any() else None,
            "mean_fraction": float(fraction[known].mean()) if known.any() else None,
        }
    lost: dict[str, int] = attrs["lost_pixels"]
    pixel_size, unit = float(attrs["pixel_size"]), attrs["pixel_unit"]
    reach = float(attrs.get("spatial_reach", 0.0))
    conditions = conditions_of(product) | {"distance": _finite(found.mean_distance)}
    ranges = bundle.provenance.get("training") or {}
    if ranges and np.isfinite(bundle.references.mean_limit):
        ranges = ranges | {"distance": {"low": 0.0, "high": float(bundle.references.mean_limit)}}
    return {
        "source": attrs["source"],
        "sha256": attrs["sha256"],
        "pixels": int(specimen.size),
        "background_pixels": int(specimen.size - specimen.sum()) - sum(lost.values()),
        "lost_pixels": lost,
        "classes": classes,
        "edges": _describe_edges(bundle.edge, attrs),
        "energy_offset": {
            "value": _finite(attrs["energy_offset"]),
            "error": _finite(attrs["energy_offset_error"]),
        },
        "unknown": describe_unknown(found, bundle),
        "structure": {"standard_errors": found.correlation, "ends": found.ends},
        "spatial": {
            "reach_px": reach,
            "reach_nm": reach * pixel_size if unit == "nm" else None,
            "effective_spectra": float(np.median(found.effective_spectra[specimen])) if specimen.any() else None,
        },
        "low_loss": describe_companion(product, density=bundle.provenance.get("density")),
        "conditions": conditions,
        "training": ranges or None,
        "drift": find_drift(conditions, ranges),
        "pixel_size": pixel_size,
        "pixel_unit": unit,
        "model": {"name": bundle.name, "edge": bundle.edge.name, "preset": bundle.preset.name, **_origin(bundle)},
        "eelsflow": eelsflow.__version__,
        "warnings": warnings,
    }


def _describe_edges(edge: Edge, attrs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what edges that were judged together say of the axis; None of a single edge."""
    if not edge.beside:
        return None
    first, *others = edge.alone
    measured, align = json.loads(attrs["edge_distances"]), Preset.model_validate_json(attrs["preset"]).find(Align)
    return {
        "names": [one.name for one in edge.alone],
        "dispersion": {
            "factor": float(attrs["dispersion_correction"]),
            "error": _finite(attrs["dispersion_error"]),
            "known_to": align.dispersion_error if align else None,
        },
        "distances": [
            {
                "from": first.name,
                "to": one.name,
                "value": measured[one.name][0],
                "error": measured[one.name][1],
                "usual": usual_distance(first, one)[0],
                "usual_spread": usual_distance(first, one)[1],
            }
            for one in others
            if one.name in measured
        ],
    }


def _origin(bundle: ModelBundle) -> dict[str, Any]:
    """Return where a model comes from, without what is told of each of its training acquisitions."""
    return {
        name: value for name, value in bundle.provenance.items() if name not in ("training", "trained_on", "held_out")
    }


def _dataset(found: PixelMap, product: xr.Dataset, bundle: ModelBundle, summary: dict[str, Any]) -> xr.Dataset:
    references = bundle.references
    reference = references.mean[[references.classes.index(name) for name in found.classes]]
    spread = np.sqrt(np.maximum(np.diag(references.spread), 0.0))
    by_class, by_pixel = ("y", "x", "class"), ("y", "x")
    return xr.Dataset(
        {
            "class_index": (by_pixel, found.class_index, {"classes": found.classes, "vacuum": VACUUM}),
            "probability": (by_class, found.probability),
            "fraction": (by_class, found.fraction),
            "fraction_error": (by_class, found.fraction_error, {"sigma": 1}),
            "unknown": (by_pixel, found.unknown),
            "lost": (by_pixel, product["lost"].values),
            "distance": (by_pixel, found.distance),
            "effective_spectra": (by_pixel, found.effective_spectra),
            "class_spectrum": (("class", "band"), found.class_shape, {"units": "share of the window's counts"}),
            "class_spectrum_error": (("class", "band"), found.class_shape_error, {"sigma": 1}),
            "reference": (("class", "band"), reference, {"units": "share of the window's counts"}),
            "reference_spread": ("band", spread, {"sigma": 1}),
        },
        coords={
            "class": found.classes,
            "band": ("band", found.bands, {"units": "eV"}),
            "y": product.coords["y"],
            "x": product.coords["x"],
        },
        attrs={"schema": SCHEMA, "summary": json.dumps(summary)},
    )


def _white_lines(
    product: xr.Dataset, bundle: ModelBundle, found: PixelMap
) -> tuple[dict[str, Any] | None, dict[str, tuple[NDArray[np.float32], str]]]:
    """Return what is said of the white lines, and their maps with units; None and nothing where no edge shows them."""
    edge = white_lines_of(bundle.edge)
    if edge is None:
        return None, {}
    axis, specimen = axis_of(product["energy_loss"].values), found.specimen
    window = axis.channels(edge.elnes_window)
    energies = axis.values[window]
    names = ("gathered", "gathered_variance") if "gathered" in product else ("intensity", "variance")
    sums, n = np.zeros((2, energies.size)), 0

    def read() -> Iterator[tuple[Block, NDArray[np.bool_], list[NDArray[np.float64]]]]:
        for block in blocks(*specimen.shape):
            chosen = specimen[block.y, block.x]
            if chosen.any():
                here = [product[name][block.y, block.x, window].values[chosen].astype(np.float64) for name in names]
                yield block, chosen, here

    for _, _, here in read():
        usable = np.isfinite(here[0]).all(axis=1) & np.isfinite(here[1]).all(axis=1)
        sums += [one[usable].sum(axis=0) for one in here]
        n += int(usable.sum())
    shared = fit_shared_lines(energies, sums[0] / max(n, 1), sums[1] / max(n, 1), edge)
    if shared is None:
        return None, {}
    maps = np.full((4, *specimen.shape), np.nan, dtype=np.float32)
    for block, chosen, (spectra, variance) in read():
        lines = fit_lines(energies, spectra, variance, shared)
        for values, one in zip(
            maps, (lines.ratio, lines.ratio_error, lines.position, lines.position_error), strict=True
        ):
            values[block.y, block.x][chosen] = one
    said = {
        "edge": edge.name,
        "ratio": shared.ratio,
        "position": shared.position,
        "distance": shared.distance,
        "widths": list(shared.widths),
        "ratio_error": _median(maps[1]),
        "position_error": _median(maps[3]),
    }
    units = ("1", "1", "eV", "eV")
    names_of_maps = ("l3_l2_ratio", "l3_l2_ratio_error", "l3_position", "l3_position_error")
    return said, dict(zip(names_of_maps, zip(maps, units, strict=True), strict=True))


def _median(values: NDArray[np.float32]) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else None


def _valence(found: PixelMap, bundle: ModelBundle) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return mean valence and its standard error, shape (y, x), where the model knows that of every class."""
    known: dict[str, float] = bundle.provenance.get("valence") or {}
    if any(name not in known for name in found.classes):
        return None
    valence = np.array([known[name] for name in found.classes], dtype=np.float32)
    if len(valence) == 2:  # the fractions of two classes have the same error with opposite signs
        error = found.fraction_error[..., 0] * abs(float(valence[0] - valence[1]))
    else:  # taken as independent
        error = np.sqrt((found.fraction_error**2) @ (valence - valence.mean()) ** 2)
    return found.fraction @ valence, np.asarray(error, dtype=np.float32)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
