"""From a file to its maps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import xarray as xr

from eelsflow.digest import digest_file
from eelsflow.edges import Edge, resolve_edge
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EelsflowError, OutputPathError
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.io.read import read_spectrum_image
from eelsflow.maps.registry import find_model, read_edge, registered_models
from eelsflow.maps.write import map_product
from eelsflow.models.bundle import ModelBundle, read_description
from eelsflow.preparation import find_low_loss, prepare_counts, remove_counts, write_counts
from eelsflow.preprocess.presets import MAX_OFFSET
from eelsflow.spectrum_image import energy_axis
from eelsflow.store import make_directory, read_json, write_json

DEFAULT_EDGE = "O_K"


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
    path: Path,
    *,
    model: Path | str,
    out: Path,
    edge: str | None = None,
    low_loss: Path | None = None,
    executor: Executor | None = None,
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
    low_loss
        The file of the low loss of the same scan; by default what the acquisition's own file holds.
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
    low = find_low_loss(path, image, given=low_loss)
    bundle = ModelBundle.load(find_model(str(model), edge=edge, axis=axis))
    make_directory(out)
    sha256 = digest_file(path)
    target = _folder_for(path, sha256, out)
    temporary = out / f".{target.name}.{sha256[:12]}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write_counts(image, low, temporary)
        try:
            prepared = prepare_counts(temporary, edge=bundle.edge, preset=bundle.acquisition_preset, executor=executor)
        except EelsflowError as error:
            raise type(error)(f"{path.name}: {error}") from error
        summary = map_product(prepared, bundle, temporary, title=path.name) | {"file_sha256": sha256}
        write_json(temporary / "summary.json", summary)
        remove_counts(temporary)
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
        directory = find_model(model, axis=axis)
        read_description(directory)
    except EelsflowError:
        if model == "default" and registered_models():  # and the file shows no edge of theirs
            raise
        return resolve_edge(DEFAULT_EDGE)
    return read_edge(directory)
