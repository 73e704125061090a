"""Maps on disk: zarr, TIFF, a picture and a summary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import eelsflow
from eelsflow.io.zarr_store import open_dataset, write_dataset
from eelsflow.low_loss.companion import describe_companion
from eelsflow.maps.drift import conditions_of, find_drift, tell_conditions
from eelsflow.maps.judge import describe_unknown, judge_map
from eelsflow.maps.pixels import VACUUM, PixelMap, map_pixels
from eelsflow.models.bundle import ModelBundle
from eelsflow.store import write_json


def map_product(prepared: Path, bundle: ModelBundle, directory: Path, *, title: str) -> dict[str, Any]:
    """Classify every specimen pixel of a prepared acquisition and write the maps.

    Parameters
    ----------
    prepared
        The product (zarr).
    bundle
        A model for the same edge.
    directory
        Exists; ``map.zarr``, ``class.tif``, ``probability.tif``, ``fraction-CLASS.tif``, ``unknown.tif``, ``map.png``,
        ``spectra.png``, ``summary.json`` and the page ``index.html`` are written into it, and ``valence.tif`` where the
        model knows the classes' valences, ``t_over_lambda.tif`` where a low loss was recorded and ``thickness.tif``
        (nm) where density, beam energy and angles are known too.
    title
        Above the picture.

    Returns
    -------
    dict
        The summary.
    """
    found = map_pixels(prepared, bundle)
    return write_map(found, open_dataset(prepared), bundle, directory, title=title)


def write_map(
    found: PixelMap, product: xr.Dataset, bundle: ModelBundle, directory: Path, *, title: str
) -> dict[str, Any]:
    """Write a map; see `map_product`."""
    from eelsflow.report.acquisition import write_acquisition_page
    from eelsflow.report.class_spectra import class_spectra_figure
    from eelsflow.report.map_figure import map_figure, save_map_tiff
    from eelsflow.report.style import render

    warnings = [*judge_map(found, bundle, product), *json.loads(product.attrs["warnings"])]
    summary = _summary(found, product, bundle, warnings)
    dataset = _map_dataset(found, product, summary)
    valence = _valence(found, bundle)
    if valence is not None:
        dataset["valence"] = (("y", "x"), valence[0])
        dataset["valence_error"] = (("y", "x"), valence[1])
    low_loss = summary["low_loss"]
    if low_loss is not None:
        for name in ("t_over_lambda", "t_over_lambda_error", "zero_loss_offset"):
            dataset[name] = product[name].load()
        if low_loss["mean_free_path"]:
            dataset["thickness"] = (("y", "x"), low_loss["mean_free_path"] * dataset["t_over_lambda"].values)
            dataset["thickness"].attrs["units"] = "nm"
    write_dataset(dataset, directory / "map.zarr")
    references = _references_of(bundle)

    size_nm = summary["pixel_size"] if summary["pixel_unit"] == "nm" else None
    images: dict[str, NDArray[Any]] = {
        "class": found.class_index,
        "probability": found.confidence,
        "unknown": found.unknown,
        **{f"fraction-{_as_file_name(name)}": found.fraction[..., k] for k, name in enumerate(found.classes)},
    }
    if valence is not None:
        images["valence"] = valence[0]
    images |= {name: dataset[name].values for name in ("t_over_lambda", "thickness") if name in dataset}
    for name, image in images.items():
        save_map_tiff(directory / f"{name}.tif", image, size_nm)
    figure = map_figure(
        found.classes,
        found.class_index,
        found.confidence,
        lost=product["lost"].values,
        pixel_size=summary["pixel_size"],
        pixel_unit=summary["pixel_unit"],
        fraction=found.fraction,
        unknown=found.unknown,
        t_over_lambda=dataset["t_over_lambda"].values if "t_over_lambda" in dataset else None,
        reach=summary["spatial"]["reach_px"],
        title=title,
        warnings=warnings,
    )
    (directory / "map.png").write_bytes(render(figure, "png"))
    spectra = class_spectra_figure(
        found.classes,
        found.bands,
        found.class_shape,
        found.class_shape_error,
        references=references,
        pixels=[summary["classes"][name]["pixels"] for name in found.classes],
    )
    (directory / "spectra.png").write_bytes(render(spectra, "png"))
    write_json(directory / "summary.json", summary)
    write_acquisition_page(directory, summary, title=title, conditions=tell_conditions(summary))
    return summary


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


def _references_of(bundle: ModelBundle) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the bands of the model's references, their means in the order of its classes, and their spread."""
    references = bundle.references
    order = [references.classes.index(name) for name in bundle.classes]
    return references.energy_loss, references.mean[order], np.sqrt(np.maximum(np.diag(references.spread), 0.0))


def _origin(bundle: ModelBundle) -> dict[str, Any]:
    """Return where a model comes from, without what is told of each of its training acquisitions."""
    return {
        name: value for name, value in bundle.provenance.items() if name not in ("training", "trained_on", "held_out")
    }


def _map_dataset(found: PixelMap, product: xr.Dataset, summary: dict[str, Any]) -> xr.Dataset:
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
        },
        coords={
            "class": found.classes,
            "band": ("band", found.bands, {"units": "eV"}),
            "y": product.coords["y"],
            "x": product.coords["x"],
        },
        attrs={"schema": "eelsflow-map/2", "summary": json.dumps(summary)},
    )


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


def _as_file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
