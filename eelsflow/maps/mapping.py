"""From a file to its maps."""

from __future__ import annotations

import contextlib
import shutil
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xarray as xr

from eelsflow.digest import digest_file
from eelsflow.edges import Edge, resolve_edge
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EelsflowError, InputError, OutputPathError
from eelsflow.executors import Executor
from eelsflow.io.acquisitions import as_spectrum_image, name_of
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import open_dataset
from eelsflow.maps.build import map_prepared
from eelsflow.maps.registry import (
    as_uncalibrated,
    as_unpromoted,
    find_model,
    has_unlikely_distance,
    load_found,
    model_for_uncalibrated,
    models_alone,
    read_edge,
    registered_models,
)
from eelsflow.maps.result import Map
from eelsflow.maps.write import write_map
from eelsflow.models.bundle import ModelBundle, read_description
from eelsflow.preparation import find_low_loss, prepare_image
from eelsflow.preprocess.features import require_window
from eelsflow.preprocess.presets import MAX_OFFSET
from eelsflow.spectrum_image import energy_axis
from eelsflow.store import make_directory, read_json, write_json

DEFAULT_EDGE = "O_K"


def check_file(path: Path, *, edge: Edge, lazy: bool | None = None) -> xr.DataArray:
    """Read an acquisition, `lazy` as `read_spectrum_image` does; its axis must show the edge, or nothing else is done.

    Raises
    ------
    EelsflowError
        If it cannot be read, or its axis does not hold the edge.
    """
    image = read_spectrum_image(path, lazy=lazy)
    _require_edge(path.name, energy_axis(image), edge)
    return image


def _require_edge(name: str, axis: EnergyAxis, edge: Edge) -> None:
    try:
        edge.require_within(axis, overhang=MAX_OFFSET)
    except EelsflowError as error:
        raise type(error)(f"{name}: {error}") from error


def classify(
    acquisition: Any,
    *,
    model: ModelBundle | Path | str = "default",
    edge: str | None = None,
    low_loss: Any = None,
    executor: Executor | None = None,
) -> Map:
    """Map the oxidation state in one acquisition.

    Parameters
    ----------
    acquisition
        A file, a spectrum image (xarray) or a HyperSpy signal; see `eelsflow.io.acquisitions.as_spectrum_image`.
    model
        A model that is loaded, or what `find_model` takes.
    edge
        Which edge must be in range; by default the model's, and for the model "default" any of a registered model's.
    low_loss
        The low loss of the same scan, as `acquisition`; by default what the acquisition's own file holds.
    executor
        Where blocks are prepared; a plain loop by default.

    Returns
    -------
    Map
        It draws and saves itself, and holds an xarray Dataset. Its spectra lie in a temporary folder that goes when
        the map does.

    Raises
    ------
    EelsflowError
        If the acquisition or the model cannot be used.
    """
    given = look_at(acquisition, model=model, edge=edge, low_loss=low_loss)
    scratch = TemporaryDirectory(prefix="eelsflow-")
    try:
        found = _map(given, Path(scratch.name), executor=executor)
    except BaseException:
        scratch.cleanup()
        raise
    weakref.finalize(found, scratch.cleanup)
    return found


@dataclass(frozen=True)
class Given:
    """An acquisition that shows the edge, with its low loss and the model that maps it."""

    name: str
    image: xr.DataArray
    low_loss: xr.DataArray | None
    bundle: ModelBundle
    alone: tuple[Path, ...] = ()
    """Models of each edge, where the model is of several."""
    uncalibrated: Path | None = None
    """Model for files whose dispersion is not known, where the model expects that it is."""


def look_at(
    acquisition: Any, *, model: ModelBundle | Path | str, edge: str | None = None, low_loss: Any = None
) -> Given:
    """Refuse what cannot be mapped before anything expensive is done: the acquisition first, then the model."""
    image = as_spectrum_image(acquisition)
    name, axis = name_of(acquisition, image), energy_axis(image)
    loaded = model if isinstance(model, ModelBundle) else None
    if loaded is not None:
        shown = loaded.edge if edge is None else resolve_edge(edge)
    else:
        shown = _edge_to_check(str(model), edge, axis)
    _require_edge(name, axis, shown)
    low = find_low_loss(acquisition, image, given=low_loss)
    if loaded is not None:
        return Given(name, image, low, loaded)
    directory = find_model(str(model), edge=edge, axis=axis)
    bundle = load_found(str(model), directory)
    return Given(name, image, low, bundle, tuple(models_alone(directory)), model_for_uncalibrated(directory))


def prepare_given(given: Given, scratch: Path, *, executor: Executor | None = None) -> Path:
    """Prepare an acquisition for its model in an empty folder, and return where the product lies.

    Raises
    ------
    EelsflowError
        If it cannot be prepared; names the acquisition.
    """
    bundle = given.bundle
    try:
        return prepare_image(
            given.image,
            given.low_loss,
            scratch,
            edge=bundle.edge,
            preset=bundle.acquisition_preset,
            executor=executor,
        )
    except EelsflowError as error:
        raise type(error)(f"{given.name}: {error}") from error


def prepare_suitably(given: Given, scratch: Path, *, executor: Executor | None = None) -> tuple[Given, xr.Dataset]:
    """Prepare an acquisition, once more for the model of uncalibrated files where its edges show that it is one.

    Returns
    -------
    Given
        With the model that suits it.
    xarray.Dataset
        The product for that.

    Raises
    ------
    EelsflowError
        If it cannot be prepared; names the acquisition.
    """
    product = open_dataset(prepare_given(given, scratch, executor=executor))
    if given.uncalibrated is not None and has_unlikely_distance(product):
        bundle = as_uncalibrated(_stand_in(given.uncalibrated, given.bundle), product)
        given = replace(given, bundle=bundle, uncalibrated=None)
        product = open_dataset(prepare_given(given, scratch, executor=executor))
    return given, product


def _map(given: Given, scratch: Path, *, executor: Executor | None) -> Map:
    try:
        suited, product = prepare_suitably(given, scratch, executor=executor)
        if given.alone:
            require_window(product, given.bundle.edge)
    except InputError:  # an edge that the axis shows may not be in the specimen
        for directory in given.alone:
            single = replace(given, bundle=_stand_in(directory, given.bundle), alone=(), uncalibrated=None)
            with contextlib.suppress(InputError):
                return _map(single, scratch, executor=executor)
        raise
    return map_prepared(product, suited.bundle, recorded=given.image)


def _stand_in(directory: Path, bundle: ModelBundle) -> ModelBundle:
    found = ModelBundle.load(directory)
    return as_unpromoted(found) if bundle.provenance.get("unpromoted") else found


def classify_file(
    path: Path,
    *,
    model: Path | str,
    out: Path,
    edge: str | None = None,
    low_loss: Path | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Map one file, as `classify` does, and save the map.

    Parameters
    ----------
    path
        A readable acquisition.
    model, edge, low_loss, executor
        As in `classify`.
    out
        A folder of the file's name is written into it; see `Map.save`.

    Returns
    -------
    dict
        The summary.

    Raises
    ------
    EelsflowError
        If the file or the model cannot be used; nothing is written then.
    """
    path = Path(path)
    given = look_at(path, model=model, edge=edge, low_loss=low_loss)
    make_directory(out)
    sha256 = digest_file(path)
    target = _folder_for(path, sha256, out)
    temporary = out / f".{target.name}.{sha256[:12]}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        scratch, unfinished = temporary / "spectra", temporary / "map"
        scratch.mkdir()
        unfinished.mkdir()
        found = _map(given, scratch, executor=executor)
        write_map(found, unfinished, title=path.name)
        summary = found.summary | {"file_sha256": sha256}
        write_json(unfinished / "summary.json", summary)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
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
