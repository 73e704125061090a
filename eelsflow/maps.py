"""Maps of oxidation state: the class and its probability for every pixel of an acquisition."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import eelsflow
from eelsflow.digest import digest_file
from eelsflow.edges import Edge, resolve_edge
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EelsflowError, OutputPathError, UnusableModelError
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import blocks, open_dataset, write_dataset, write_spectrum_image
from eelsflow.models.bundle import ModelBundle, read_description
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.presets import MAX_OFFSET, Normalize
from eelsflow.preprocess.rebin import rebin_linear
from eelsflow.spectrum_image import energy_axis
from eelsflow.store import home, make_directory, read_json, write_json

VACUUM = -1
"""Class index of pixels without specimen."""

NOVEL_FRACTION = 0.1
"""A map carries a warning when more than this fraction of its spectra is unlike the training data (our choice)."""

DEFAULT_EDGE = "O_K"


def find_model(model: str, *, edge: str | None = None, axis: EnergyAxis | None = None) -> Path:
    """Return the directory of a model.

    Parameters
    ----------
    model
        A directory that holds a model, a study's results directory, a registered name, or "default": the champion
        for the edge, else the newest model registered for it.
    edge
        Name of the edge that "default" must fit.
    axis
        The energy axis that must show the edge of "default", where no edge is named.

    Raises
    ------
    UnusableModelError
        If there is no such model.
    """
    path = Path(model)
    for directory in (path, path / "model"):
        if (directory / "model.json").is_file():
            return directory
    registered = _registered()
    if model == "default":
        fitting = [entry for entry in registered if edge is None or entry["edge"] == edge]
        if edge is None and axis is not None:
            fitting = [entry for entry in fitting if _shows_edge_of(Path(entry["path"]), axis)]
        fitting.sort(key=lambda entry: (entry.get("champion", False), entry["registered"]))
        if fitting:
            return Path(fitting[-1]["path"])
        if registered and edge is None:
            edges = sorted({entry["edge"] for entry in registered})
            raise UnusableModelError(
                f"the registered models are for {', '.join(edges)}, and the energy axis {axis} shows none of these "
                "edges; run a study of an edge that it shows, or name the directory of a model"
            )
        raise UnusableModelError(
            f"no model for {edge or 'any edge'} is registered yet; run a study first (`eelsflow study`), or name the "
            "directory of a model"
        )
    for entry in reversed(registered):
        if entry["name"] == model:
            return Path(entry["path"])
    names = sorted({entry["name"] for entry in registered})
    raise UnusableModelError(
        f"no model is at {model} and none is registered under this name; registered are {names or 'none yet'}: name a "
        "study's results directory, a model directory, or 'default'"
    )


def _shows_edge_of(directory: Path, axis: EnergyAxis) -> bool:
    """Tell whether a file of this axis can be classified by the model; by a damaged one it cannot."""
    try:
        Edge.model_validate(read_description(directory)["edge"]).require_within(axis, overhang=MAX_OFFSET)
    except EelsflowError:
        return False
    return True


def _registry() -> Path:
    return home() / "models.json"


def _entries() -> list[dict[str, Any]]:
    path = _registry()
    entries: list[dict[str, Any]] = read_json(path) if path.exists() else []
    return entries


def _registered() -> list[dict[str, Any]]:
    return [entry for entry in _entries() if (Path(entry["path"]) / "model.json").is_file()]


def register_model(directory: Path, *, name: str, registered: str, champion: bool = False) -> None:
    """Make a model known by name, and to "default" for its edge.

    Parameters
    ----------
    directory
        The model's directory; it must stay where it is.
    name
        Under which `find_model` finds it; the newest of a name wins.
    registered
        Date and time, ISO 8601.
    champion
        Whether "default" prefers it to newer models of the same edge.
    """
    directory = directory.resolve()
    description = read_description(directory)
    edge = description["edge"]["name"]
    # of every entry, also those whose model is not to be seen now: its disk may be mounted tomorrow
    entries = [entry for entry in _entries() if entry["path"] != str(directory)]
    if champion:
        entries = [{**entry, "champion": entry["champion"] and entry["edge"] != edge} for entry in entries]
    entries.append({"name": name, "edge": edge, "path": str(directory), "registered": registered, "champion": champion})
    make_directory(home())
    write_json(_registry(), entries)


def check_model(model: str, *, edge: str) -> tuple[Path, Edge]:
    """Find and load a model before any file is judged by it: what is wrong with it is then no file's fault.

    Parameters
    ----------
    model
        What `find_model` takes.
    edge
        Name of the edge that the model must be for.

    Returns
    -------
    Path
        The model's directory.
    Edge
        Its edge, which the files must show.

    Raises
    ------
    UnusableModelError
        If there is no such model, or it is damaged or for another edge.
    MissingDependencyError
        If it is a network and TensorFlow is not installed.
    """
    directory = find_model(model, edge=edge)
    bundle = ModelBundle.load(directory)
    if bundle.edge.name != edge:
        raise UnusableModelError(
            f"the model in {directory} is for the edge {bundle.edge.name}, and {edge} is asked for; files that show "
            f"only one of the two would be refused without reason: name a model for {edge}, or the edge "
            f"{bundle.edge.name}"
        )
    return directory, bundle.edge


def check_file(path: Path, *, edge: Edge) -> xr.DataArray:
    """Read an acquisition and make sure that it can show the edge, before anything expensive is done.

    Raises
    ------
    EelsflowError
        If it cannot be read, or its axis does not hold the edge.
    """
    image = read_spectrum_image(path)
    _require_edge(path, energy_axis(image), edge)
    return image


def _require_edge(path: Path, axis: EnergyAxis, edge: Edge) -> None:
    try:
        edge.require_within(axis, overhang=MAX_OFFSET)
    except EelsflowError as error:
        raise type(error)(f"{path.name}: {error}") from error


def classify_file(
    path: Path, *, model: Path | str, out: Path, edge: str | None = None, executor: Executor | None = None
) -> dict[str, Any]:
    """Map the oxidation state in one acquisition.

    Parameters
    ----------
    path
        A readable acquisition.
    model
        What `find_model` takes.
    out
        A folder of the file's name is written into it: ``map.zarr``, ``class.tif``, ``probability.tif``, ``map.png``,
        ``summary.json``.
    edge
        Which edge must be in range; by default the model's, and for the model "default" any of a registered model's.
    executor
        Where blocks are prepared; a plain loop by default.

    Returns
    -------
    dict
        The summary.

    Raises
    ------
    EelsflowError
        If the file or the model cannot be used; nothing is written then.
    """
    path, executor = Path(path), executor or LoopExecutor()
    image = read_spectrum_image(path)
    axis = energy_axis(image)
    _require_edge(path, axis, _edge_to_check(str(model), edge, axis))
    bundle = ModelBundle.load(find_model(str(model), edge=edge, axis=axis))
    make_directory(out)
    sha256 = digest_file(path)
    target = _folder_for(path, sha256, out)
    temporary = out / f".{target.name}.{sha256[:12]}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        raw, prepared = temporary / "counts.zarr", temporary / "prepared.zarr"
        write_spectrum_image(image, raw)
        try:
            prepare_blocks(raw, prepared, edge=bundle.edge, preset=bundle.acquisition_preset, executor=executor)
        except EelsflowError as error:
            raise type(error)(f"{path.name}: {error}") from error
        summary = map_product(prepared, bundle, temporary, title=path.name) | {"file_sha256": sha256}
        write_json(temporary / "summary.json", summary)
        shutil.rmtree(raw)
        shutil.rmtree(prepared)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return summary


def _folder_for(path: Path, sha256: str, out: Path) -> Path:
    """Return the folder of a file's maps: its name, told apart by content from another file of the same name."""
    target = out / path.name.removesuffix(path.suffix)
    summary = target / "summary.json"
    if summary.is_file() and read_json(summary).get("file_sha256") != sha256:
        target = target.with_name(f"{target.name}-{sha256[:8]}")
    if target.exists() and not (target / "map.zarr").is_dir():
        raise OutputPathError(
            f"{target} exists and holds no map, so it is somebody else's and would be lost; name another --out"
        )
    return target


def _edge_to_check(model: str, edge: str | None, axis: EnergyAxis) -> Edge:
    """Return the edge asked for, else the model's, else the shipped default: the file is checked before the model."""
    if edge is not None:
        return resolve_edge(edge)
    try:
        return Edge.model_validate(read_description(find_model(model, axis=axis))["edge"])
    except EelsflowError:
        if model == "default" and _registered():  # and the file shows no edge of theirs
            raise
        return resolve_edge(DEFAULT_EDGE)


def map_product(prepared: Path, bundle: ModelBundle, directory: Path, *, title: str) -> dict[str, Any]:
    """Classify every specimen pixel of a prepared acquisition and write the maps.

    Parameters
    ----------
    prepared
        The product (zarr).
    bundle
        A model for the same edge.
    directory
        Exists; ``map.zarr``, ``class.tif``, ``probability.tif``, ``map.png`` and ``summary.json`` are written into it.
    title
        Above the picture.
    """
    from eelsflow.report.map_figure import map_figure, save_map_tiff
    from eelsflow.report.style import render

    product = open_dataset(prepared)
    vacuum_mask = product["vacuum_mask"].values
    shape = vacuum_mask.shape
    class_index = np.full(shape, VACUUM, dtype=np.int16)
    probability = np.full((*shape, len(bundle.classes)), np.nan, dtype=np.float32)
    novelty = np.full(shape, np.nan, dtype=np.float32)
    energy_loss = product["energy_loss"].values
    total = np.zeros(bundle.transform.axis.size)
    for block in blocks(*shape):
        specimen = ~vacuum_mask[block.y, block.x]
        if not specimen.any():
            continue
        wide = _on_axis(product["intensity"][block.y, block.x].values[specimen], energy_loss, bundle.transform.axis)
        predicted, confidence = bundle.predict(wide)
        class_index[block.y, block.x][specimen] = _index_of(predicted, bundle.classes)
        probability[block.y, block.x][specimen] = confidence
        novelty[block.y, block.x][specimen] = bundle.transform.novelty(wide)
        total += wide.sum(axis=0, dtype=np.float64)

    specimen = ~vacuum_mask
    warnings: list[str] = json.loads(product.attrs["warnings"])
    novel = novelty[specimen] > bundle.transform.novelty_threshold
    # The noise of single pixels hides a foreign material; their mean shows it.
    mean_novelty = float(bundle.transform.novelty((total / specimen.sum())[None].astype(np.float32))[0])
    if mean_novelty > bundle.transform.mean_novelty_threshold or novel.mean() > NOVEL_FRACTION:
        warnings.insert(
            0,
            f"the spectra are unlike the training data: residual of their mean against the training subspace "
            f"{mean_novelty:.2f}, limit {bundle.transform.mean_novelty_threshold:.2f}; {novel.mean():.0%} of single "
            "spectra above theirs. This map may show phases that the model does not know: do not rely on it",
        )
    normalize = bundle.preset.find(Normalize)
    if normalize is None or normalize.method == "none":
        warnings.insert(
            0,
            f"the model was trained with the preset {bundle.preset.name!r}, which does not normalise spectra, and the "
            "counts of an acquisition have a scale of their own: this map may follow from the scale alone, the same "
            "class in every pixel. Train the model with a step that normalises, such as preprocess: [normalize]",
        )
    mean_probability = probability.max(axis=-1)
    classes = {}
    for number, name in enumerate(bundle.classes):
        chosen = class_index == number
        classes[name] = {
            "pixels": int(chosen.sum()),
            "mean_probability": float(mean_probability[chosen].mean()) if chosen.any() else None,
        }
    summary = {
        "source": product.attrs["source"],
        "sha256": product.attrs["sha256"],
        "pixels": int(vacuum_mask.size),
        "background_pixels": int(vacuum_mask.sum()),
        "classes": classes,
        "energy_offset": {
            "value": _finite(product.attrs["energy_offset"]),
            "error": _finite(product.attrs["energy_offset_error"]),
        },
        "novelty": {
            "mean_spectrum": mean_novelty,
            "limit": bundle.transform.mean_novelty_threshold,
            "pixel_fraction": float(novel.mean()),
        },
        "pixel_size": float(product.attrs["pixel_size"]),
        "pixel_unit": product.attrs["pixel_unit"],
        "model": {"name": bundle.name, "edge": bundle.edge.name, "preset": bundle.preset.name, **bundle.provenance},
        "eelsflow": eelsflow.__version__,
        "warnings": warnings,
    }
    pixel_unit, pixel_size = product.attrs["pixel_unit"], float(product.attrs["pixel_size"])
    write_dataset(
        _map_dataset(class_index, probability, novelty, bundle.classes, product, summary), directory / "map.zarr"
    )
    size_nm = pixel_size if pixel_unit == "nm" else None
    save_map_tiff(directory / "class.tif", class_index, size_nm)
    save_map_tiff(directory / "probability.tif", mean_probability, size_nm)
    figure = map_figure(
        bundle.classes,
        class_index,
        mean_probability,
        pixel_size=pixel_size,
        pixel_unit=pixel_unit,
        title=title,
        warnings=warnings,
    )
    (directory / "map.png").write_bytes(render(figure, "png"))
    write_json(directory / "summary.json", summary)
    return summary


def _on_axis(wide: NDArray[np.float32], energy_loss: NDArray[np.float64], axis: EnergyAxis) -> NDArray[np.float32]:
    """Resample prepared spectra onto the axis a model was trained on, where that is another (ready tables)."""
    if np.array_equal(energy_loss, axis.values):
        return wide
    return np.asarray(rebin_linear(energy_loss, wide, axis), dtype=np.float32)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _index_of(predicted: NDArray[np.str_], classes: Sequence[str]) -> NDArray[np.int16]:
    order = np.argsort(classes)
    return np.asarray(order[np.searchsorted(np.asarray(classes)[order], predicted)], dtype=np.int16)


def _map_dataset(
    class_index: NDArray[np.int16],
    probability: NDArray[np.float32],
    novelty: NDArray[np.float32],
    classes: Sequence[str],
    product: xr.Dataset,
    summary: dict[str, Any],
) -> xr.Dataset:
    return xr.Dataset(
        {
            "class_index": (("y", "x"), class_index, {"classes": list(classes), "vacuum": VACUUM}),
            "probability": (("y", "x", "class"), probability),
            "novelty": (("y", "x"), novelty),
        },
        coords={"class": list(classes), "y": product.coords["y"], "x": product.coords["x"]},
        attrs={"schema": "eelsflow-map/1", "summary": json.dumps(summary)},
    )
