"""The work on one acquisition of an inbox: prepare, classify, write; on a worker, and as often as a crash asks for it.

Every step ends with a rename, and what it writes follows from content, model and code: begun again anywhere, it gives
the same bytes.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import xarray as xr

from eelsflow.bucket import Bucket, is_url
from eelsflow.catalogue.inbox import open_inbox, refuse_unsafe
from eelsflow.catalogue.ledger import AGAIN, Catalogue
from eelsflow.catalogue.states import Acquisition, State
from eelsflow.dataset.aside import SetAside
from eelsflow.dataset.manifest import Acquisition as Recorded
from eelsflow.digest import code_version, digest_file
from eelsflow.edges import Edge
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EelsflowError, InputError, UnusableModelError
from eelsflow.executors import LoopExecutor
from eelsflow.io.formats import format_of
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import open_dataset
from eelsflow.maps import check_file
from eelsflow.maps.registry import (
    as_uncalibrated,
    as_unpromoted,
    find_model,
    has_unlikely_distance,
    is_champion,
    model_for_uncalibrated,
    models_alone,
    read_edge,
    registered_models,
)
from eelsflow.maps.write import map_product
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.blocks import HELD_BYTES
from eelsflow.processes import is_gone, name_process
from eelsflow.spectrum_image import energy_axis
from eelsflow.store import Store, make_directory, read_json, write_json
from eelsflow.study.journal import using_store
from eelsflow.study.plan import PrepareAcquisition
from eelsflow.study.stages import Place, prepare_acquisition


@dataclass(frozen=True)
class Order:
    """What a watcher wants done, the same for every file of an inbox.

    Attributes
    ----------
    inbox, out
        Where files come from, and the folder below which ``maps`` and ``quarantine`` are.
    model, edge
        As in `eelsflow.maps.classify_file`; the model is looked for anew for every file.
    store
        Root of the content-addressed store.
    bucket
        URL of a folder to which maps and quarantine are copied, and which the catalogue then names; None: they stay
        below `out`.
    """

    inbox: str
    out: Path
    store: Path
    model: str = "default"
    edge: str | None = None
    bucket: str | None = None

    @property
    def place(self) -> str:
        """Where a person finds the results."""
        return self.bucket or str(self.out)

    def folder_for(self, acquisition: Acquisition) -> Path:
        """Return where the maps of a file are."""
        return self.out / "maps" / acquisition.result_name


SUMMARY = "summary.json"
"""Written last: where it is, a map is whole."""

Advance = Callable[..., bool]
"""Records that the acquisition has come to a state; tells whether it is still this worker's."""


def identify(acquisition: Acquisition, order: Order) -> str:
    """Return the digest of a file's content, refusing what must not be opened.

    Raises
    ------
    InputError
        If the file cannot be read, or is refused.
    """
    inbox = open_inbox(order.inbox)
    work = Store(order.store).temporary()
    try:
        path = inbox.fetch(acquisition.path, work)
        refuse_unsafe(path, inbox=order.inbox if path == Path(acquisition.path) else None)
        return digest_file(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def process(acquisition: Acquisition, order: Order, catalogue: str, owner: str) -> dict[str, Any] | None:
    """Prepare and classify one acquisition on a worker.

    Parameters
    ----------
    acquisition
        As it was taken; its content is known.
    order
        What is wanted.
    catalogue, owner
        The catalogue's address, and who has taken the acquisition.

    Returns
    -------
    dict or None
        What its map holds, see `describe`; None where the file changed, or is somebody else's meanwhile.

    Raises
    ------
    InputError
        If the file cannot be used.
    EelsflowError
        If something else cannot: the model, or where results go.
    """
    ledger = _catalogue(catalogue)

    def advance(state: State, **values: Any) -> bool:
        return ledger.advance(acquisition, state, owner=owner, **values)

    return work_through(acquisition, order, advance)


def work_through(acquisition: Acquisition, order: Order, advance: Advance) -> dict[str, Any] | None:
    """Do what `process` does, telling `advance` about the state in between."""
    assert acquisition.sha256 is not None
    if not is_url(order.inbox) and not Path(order.inbox).is_dir():  # the watcher sees it
        raise OSError(errno.ESTALE, f"the inbox is not seen on {socket.gethostname()}, which works on it", order.inbox)
    store = Store(order.store)
    with using_store(store.root):  # nothing is dropped meanwhile
        return _work_through(acquisition, order, advance, store)


def _work_through(acquisition: Acquisition, order: Order, advance: Advance, store: Store) -> dict[str, Any] | None:
    assert acquisition.sha256 is not None
    work = store.temporary()
    try:
        path = open_inbox(order.inbox).fetch(acquisition.path, work)
        directory, edge = choose_model(path, order)
        check_file(path, edge=edge, lazy=_head_alone(path))
        recorded = Recorded(given=acquisition.path, name=acquisition.name, path=path, sha256=acquisition.sha256)
        read, reasons = _ReadOnce(path), []
        # an edge that the axis shows may not be in the specimen; with the product that made another model stand in
        candidates: list[tuple[Path, xr.Dataset | None]] = [
            (one, None) for one in (directory, *models_alone(directory))
        ]
        while candidates:
            one, own = candidates.pop(0)
            bundle, model_digest = _load(one)
            step = PrepareAcquisition(acquisition=recorded, edge=bundle.edge, preset=bundle.acquisition_preset)
            is_new = not store.has(step.digest)
            if is_new and digest_file(path) != acquisition.sha256:
                return None  # it changes under our eyes, and is seen anew
            entry = prepare_acquisition(step, Place(store, LoopExecutor()), read=read)
            is_prepared = store.has(step.digest)  # also where it could be prepared, but lacks a part of the window
            if is_new and is_prepared and digest_file(path) != acquisition.sha256:  # it changed while it was read
                store.discard(step.digest)
                return None
            uncalibrated = model_for_uncalibrated(one)
            if uncalibrated is not None and is_prepared:
                product = open_dataset(store.path(step.digest) / "prepared.zarr")
                if has_unlikely_distance(product):
                    candidates.insert(0, (uncalibrated, product))
                    continue
            if not isinstance(entry, SetAside):
                break
            reasons.append(entry.reason)
        if isinstance(entry, SetAside):
            raise InputError(reasons[0])
        if acquisition.state is not State.PREPARED and not advance(State.PREPARED):
            return None
        made_by = {"digest": model_digest, "code": map_code(), "prepared": step.digest}
        if order.model == "default" and not is_champion(directory):
            bundle, made_by["unpromoted"] = as_unpromoted(bundle), "yes"
        if own is not None:
            bundle, made_by["uncalibrated"] = as_uncalibrated(bundle, own), "yes"
        folder = order.folder_for(acquisition)
        _remove_left(folder)
        if acquisition.facts.get(AGAIN) or not _is_made(folder, made_by):
            image = read()
            if image.attrs["sha256"] != acquisition.sha256:
                return None  # it changed since, and is seen anew
            _write(entry, bundle, folder, image, acquisition, made_by)
        where = str(folder) if order.bucket is None else _publish(folder, order.bucket)
        return {"map": where, "model": model_digest, "facts": describe(folder, entry)}
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _ReadOnce:
    """Reads a file at the first call, and keeps what it read for the next, unless that takes much memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._image: xr.DataArray | None = None

    def __call__(self) -> xr.DataArray:
        if self._image is not None:
            return self._image
        image = read_spectrum_image(self._path)
        if image.chunks is not None or image.nbytes <= HELD_BYTES:
            self._image = image
        return image


def choose_model(path: Path, order: Order) -> tuple[Path, Edge]:
    """Return the model that maps a file, and the edge that the file must show.

    Raises
    ------
    UnusableModelError
        If there is none, which is no fault of the file.
    EdgeOutOfRangeError, InputError
        If there are models, and the file shows the edge of none.
    """
    edges = {entry["edge"] for entry in registered_models()}
    if order.model != "default" or order.edge is not None or len(edges) < 2:
        directory = find_model(order.model, edge=order.edge)
        edge = _require_asked(directory, order)
        if not models_alone(directory):
            return directory, edge
        directory = find_model(order.model, edge=order.edge, axis=_axis_of(path))
    else:
        axis = _axis_of(path)
        try:
            directory = find_model(order.model, axis=axis)
        except UnusableModelError as error:
            raise InputError(f"{path.name}: {error}") from error
    return directory, read_edge(directory)


def _require_asked(directory: Path, order: Order) -> Edge:
    """Return the edge of a model, which must be the one that is asked for, if any is."""
    edge = read_edge(directory)
    if order.edge is not None and edge.name != order.edge:
        raise UnusableModelError(
            f"the model in {directory} is for the edge {edge.name}, and {order.edge} is asked for; name a model for "
            f"{order.edge}, or the edge {edge.name}"
        )
    return edge


def _axis_of(path: Path) -> EnergyAxis:
    return energy_axis(read_spectrum_image(path, lazy=_head_alone(path)))


def _head_alone(path: Path) -> bool | None:
    """Tell whether to read a file lazily: of HDF5 the head is enough to know its axis.

    Other readers' lazy ways refuse what they could read, or map the file into memory.
    """
    form = format_of(path)
    return True if form is not None and form.hdf5 else None


def map_code() -> str:
    """Return the version of what makes a map of a prepared acquisition and a model."""
    return code_version(
        "maps", "models", "unmixing", "report.acquisition", "report.class_spectra", "report.clickable",
        "report.clickable_figures", "report.clickable_spectra", "report.map_figure", "report.maps", "report.packing",
        "report.style", "report.templates",
    )  # fmt: skip


def _load(directory: Path) -> tuple[ModelBundle, str]:
    changed = max(Path(root, name).stat().st_mtime_ns for root, _, names in os.walk(directory) for name in names)
    return _load_once(directory, changed)


@lru_cache(maxsize=8)
def _load_once(directory: Path, changed: int) -> tuple[ModelBundle, str]:
    return ModelBundle.load(directory), digest_file(directory)


@lru_cache(maxsize=2)
def _catalogue(url: str) -> Catalogue:
    return Catalogue(url)


def _is_made(folder: Path, made_by: dict[str, str]) -> bool:
    """Tell whether the map is there already, by this model and code: a crash came before it was recorded."""
    try:
        return bool(read_json(folder / SUMMARY)["made_by"] == made_by)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(
    entry: Path,
    bundle: ModelBundle,
    folder: Path,
    image: xr.DataArray,
    acquisition: Acquisition,
    made_by: dict[str, str],
) -> None:
    """Write a map whole: under another name, then renamed, in the place of the one that was there."""
    make_directory(folder.parent)
    unfinished = _aside(folder)
    unfinished.mkdir()
    try:
        summary = map_product(entry / "prepared.zarr", bundle, unfinished, title=acquisition.name, recorded=image)
        write_json(unfinished / SUMMARY, summary | {"file_sha256": acquisition.sha256, "made_by": made_by})
        put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _aside(folder: Path) -> Path:
    """Return a hidden name beside a folder that tells whose it is."""
    return folder.with_name(f".{folder.name}.{name_process()}_{uuid.uuid4().hex[:8]}")


def _remove_left(folder: Path) -> None:
    """Remove what processes have left beside a folder that were killed while they wrote it."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        if is_gone(path.name.removeprefix(f".{folder.name}.")):
            shutil.rmtree(path, ignore_errors=True)


def _publish(folder: Path, url: str) -> str:
    """Copy a map into a bucket, unless the same one is there; return where it is."""
    bucket, name = Bucket(url), f"maps/{folder.name}"
    if bucket.read(f"{name}/{SUMMARY}") != (folder / SUMMARY).read_bytes():
        bucket.put_folder(folder, name, last=SUMMARY)
    return bucket.at(name)


def put_in_place(unfinished: Path, folder: Path) -> None:
    """Rename a folder that is whole to where another may be, of this or of another watcher."""
    for _ in range(20):
        if folder.exists():
            old = _aside(folder)
            try:
                folder.rename(old)
            except FileNotFoundError:
                continue
            shutil.rmtree(old, ignore_errors=True)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            continue
        return
    raise EelsflowError(f"{folder} is written by somebody else again and again; give each watcher a folder of its own")


def describe(folder: Path, entry: Path) -> dict[str, Any]:
    """Return the figures of a map that lists, pages and drift need."""
    summary, prepared = read_json(folder / SUMMARY), read_json(entry / "summary.json")
    return {
        "pixels": summary["pixels"],
        "background_pixels": summary["background_pixels"],
        "classes": {name: found["pixels"] for name, found in summary["classes"].items()},
        "unknown_pixels": summary["unknown"]["pixels"],
        "energy_offset": summary["energy_offset"],
        "spikes": prepared["spikes"],
        "conditions": summary["conditions"],
        "training": summary["training"],
        "drift": [one["sentence"] for one in summary["drift"]],
        "warnings": summary["warnings"],
        "model": summary["model"]["name"],
        "edge": summary["model"]["edge"],
        "prepared": entry.name,
    }
