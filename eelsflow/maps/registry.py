"""Which model: by directory, by registered name, or the default one for an edge."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from eelsflow.edges import Edge
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EelsflowError, StudyFileError, UnusableModelError
from eelsflow.models.bundle import ModelBundle, read_description
from eelsflow.preprocess.presets import MAX_OFFSET
from eelsflow.store import home, make_directory, read_json, write_json

ALONE = "alone"
"""Folder in that of a model of several edges: a model of each of them, by its name."""

UNCALIBRATED = "uncalibrated"
"""Folder in that of a model which expects a dispersion that is known: the same model for files where it is not."""


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
        The energy axis that must show the edge of "default", where no edge is named. Where it does not show all edges
        of a model that judges several, the directory is that of its model of an edge that it shows.

    Raises
    ------
    UnusableModelError
        If there is no such model.
    """
    found = _find_model(model, edge, axis)
    if axis is None or _shows_edge_of(found, axis):
        return found
    return next((one for one in models_alone(found) if _shows_edge_of(one, axis)), found)


def models_alone(directory: Path) -> list[Path]:
    """Return the directories of the models of each edge that lie beside a model of several, in order of energy."""
    beside = _own(directory) if directory.resolve().name == UNCALIBRATED else directory
    found = [path.parent for path in beside.glob(f"{ALONE}/*/model.json")]
    return sorted(found, key=lambda path: read_edge(path).elnes_window)


def model_for_uncalibrated(directory: Path) -> Path | None:
    """Return the directory of the model for files whose dispersion is not known, beside one that expects that it is."""
    found = directory / UNCALIBRATED
    return found if (found / "model.json").is_file() else None


def _own(directory: Path) -> Path:
    """Return the directory of the study's own model, of one that may stand in for it."""
    directory = directory.resolve()
    parent = directory.parent
    own = parent.parent if parent.name == ALONE else parent if directory.name == UNCALIBRATED else directory
    return own if (own / "model.json").is_file() else directory


def _find_model(model: str, edge: str | None, axis: EnergyAxis | None) -> Path:
    path = Path(model)
    for directory in (path, path / "model"):
        if (directory / "model.json").is_file():
            return directory
    registered = registered_models()
    if model == "default":
        fitting = [entry for entry in registered if edge is None or entry["edge"] == edge]
        if edge is None and axis is not None:
            whole = [entry for entry in fitting if _shows_edge_of(Path(entry["path"]), axis)]
            # a model of one edge beside that of several was never compared with one that is for this edge
            fitting = whole or [entry for entry in fitting if _shows_any_edge_of(Path(entry["path"]), axis)]
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


def load_found(model: str, directory: Path) -> ModelBundle:
    """Load the model that `find_model` found, and note where it is "default" only because no study has promoted any.

    Raises
    ------
    UnusableModelError, MissingDependencyError
        As `ModelBundle.load`.
    """
    bundle = ModelBundle.load(directory)
    return bundle if model != "default" or is_champion(directory) else as_unpromoted(bundle)


def as_unpromoted(bundle: ModelBundle) -> ModelBundle:
    """Return a model whose maps say that it was taken for want of a champion."""
    return replace(bundle, provenance=bundle.provenance | {"unpromoted": True})


def has_unlikely_distance(product: xr.Dataset) -> bool:
    """Tell whether edges of a prepared acquisition lie further off than compounds and the preset let expect."""
    return bool(json.loads(product.attrs["unlikely_distances"]))


def as_uncalibrated(bundle: ModelBundle, product: xr.Dataset) -> ModelBundle:
    """Return a model for files whose dispersion is not known, whose maps say why it was taken.

    `product` is the acquisition as it was prepared for the model that expects a known dispersion.
    """
    said = "; ".join(json.loads(product.attrs["unlikely_distances"]))
    return replace(bundle, provenance=bundle.provenance | {"uncalibrated": said})


def is_champion(directory: Path) -> bool:
    """Tell whether a model is the champion of its edge, or stands in for such a model."""
    resolved = str(_own(directory))
    return any(entry["path"] == resolved and entry.get("champion", False) for entry in registered_models())


def champion_of(edge: str) -> Path | None:
    """Return the directory of the champion of an edge, None where there is none."""
    found = [entry for entry in registered_models() if entry["edge"] == edge and entry.get("champion", False)]
    return Path(found[-1]["path"]) if found else None


def read_edge(directory: Path) -> Edge:
    """Read which edge an acquisition must show to be mapped by a model.

    Raises
    ------
    UnusableModelError
        If the model is damaged, or its edge does not say where the background of an acquisition is to be fitted.
    """
    edge = Edge.model_validate(read_description(directory)["edge"])
    try:
        _ = edge.background_window
    except StudyFileError as error:
        raise UnusableModelError(
            f"the model in {directory} is of a table of ready spectra and cannot map acquisitions: {error}, and train "
            "it again"
        ) from error
    return edge


def _shows_edge_of(directory: Path, axis: EnergyAxis) -> bool:
    """Tell whether a file of this axis can be classified by the model; by a damaged one it cannot."""
    try:
        read_edge(directory).require_within(axis, overhang=MAX_OFFSET)
    except EelsflowError:
        return False
    return True


def _shows_any_edge_of(directory: Path, axis: EnergyAxis) -> bool:
    return any(_shows_edge_of(one, axis) for one in (directory, *models_alone(directory)))


def _registry() -> Path:
    return home() / "models.json"


def _entries() -> list[dict[str, Any]]:
    path = _registry()
    entries: list[dict[str, Any]] = read_json(path) if path.exists() else []
    return entries


def registered_models() -> list[dict[str, Any]]:
    """Return what is known of the registered models that are where they were, the newest last."""
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
    make_directory(home())
    with Path(f"{_registry()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two studies may end at once
        _add(directory, name, edge, registered, champion)


def _add(directory: Path, name: str, edge: str, registered: str, champion: bool) -> None:
    # of every entry, also those whose model is not to be seen now: its disk may be mounted tomorrow
    entries = [entry for entry in _entries() if entry["path"] != str(directory)]
    if champion:
        entries = [{**entry, "champion": entry["champion"] and entry["edge"] != edge} for entry in entries]
    entries.append({"name": name, "edge": edge, "path": str(directory), "registered": registered, "champion": champion})
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
        If there is no such model, or it is damaged, for another edge or for tables alone.
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
    return directory, read_edge(directory)
