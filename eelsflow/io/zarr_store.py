"""Spectrum images and prepared products on disk: sharded zarr v3 with whole spectra in every chunk.

A store is written under a temporary name beside its final one, sealed with the number and size of its files, and
renamed. So a store under its final name is whole, and one that lost or shortened a file since is recognised when
it is opened; a flipped bit is recognised when its chunk is read (crc32c). zarr itself would fill what is missing
with zeros.

Block writers (see `eelsflow.preprocess.blocks`) go four steps::

    store = create_store(template, path)                    # empty arrays under a temporary name
    for block in blocks(template.sizes["y"], template.sizes["x"]):
        write_block(store, block, {...})                    # any process, any order, repeats are harmless
    write_variables(store, {"vacuum_mask": mask})           # maps, whole
    finalise_store(store, path)                             # nothing missing? seal, rename

Notes
-----
Cubes, the variables with y, x and another dimension, are cut into shards of `BLOCK_SHAPE` pixels, one file each, and
inner chunks of `CHUNK_SHAPE` pixels; every other dimension, the energy first of all, is never cut. A block owns whole
shards, so no two writers meet. Maps, with y and x alone, are small and written whole: a few bytes of every block would
cost as many files, and milliseconds each. Chunks are compressed by blosc with lz4 and bitshuffle
(docs/decisions/0014-preprocessing-speed.md).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike, DTypeLike, NDArray
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import BloscCodec, Crc32cCodec

from eelsflow.errors import OutputPathError, UnreadableFileError
from eelsflow.io.cubes import Cube
from eelsflow.spectrum_image import check_spectrum_image
from eelsflow.store import make_directory

BLOCK_SHAPE = (64, 64)
"""Pixels (y, x) of a shard, which is what one block writer owns."""

CHUNK_SHAPE = (32, 32)
"""Pixels (y, x) of an inner chunk, the least that is read at once."""

_SEAL = "eelsflow_seal"
_SPECTRUM_IMAGE_SCHEMA = "eelsflow-spectrum-image/1"
_COMPRESSORS = (BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec())
_DESCRIPTION = "zarr.json"
_TEMPORARY = (".partial", ".__lock")  # names of zarr and of TensorStore end so, left by a writer that is killed
_MAP_CHUNK = 1024  # pixels along y and x
_MAX_CHUNK_BYTES = 1 << 28  # blosc takes less than 2 GiB at once
# Without this, zarr drops chunks of zeros, and a lost one looks like a chunk of zeros.
_CONFIG: Any = {"write_empty_chunks": True}


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of pixels: the half-open ranges ``y`` and ``x``."""

    y: slice
    x: slice

    def __str__(self) -> str:
        return f"y {self.y.start}-{self.y.stop}, x {self.x.start}-{self.x.stop}"


def blocks(n_y: int, n_x: int, *, block_shape: tuple[int, int] = BLOCK_SHAPE) -> list[Block]:
    """Return the blocks that cover an image of `n_y` x `n_x` pixels, each pixel exactly once.

    >>> [str(block) for block in blocks(70, 49)]
    ['y 0-64, x 0-49', 'y 64-70, x 0-49']
    """
    return [
        Block(slice(y, min(y + block_shape[0], n_y)), slice(x, min(x + block_shape[1], n_x)))
        for y in range(0, n_y, block_shape[0])
        for x in range(0, n_x, block_shape[1])
    ]


def write_spectrum_image(image: xr.DataArray, path: Path | str, *, block_shape: tuple[int, int] = BLOCK_SHAPE) -> Path:
    """Write a spectrum image as a zarr store, whole or not at all.

    Parameters
    ----------
    image
        By the schema of `eelsflow.spectrum_image`; dask-backed images are computed block by block. Not modified.
    path
        The store's name, usually ending in ``.zarr``; a store that is there is replaced.
    block_shape
        Pixels (y, x) of a shard.

    Raises
    ------
    SpectrumImageSchemaError
        If the image does not follow the schema.
    OutputPathError
        If the store cannot be written there.
    """
    check_spectrum_image(image)
    dataset = image.to_dataset(name="counts").assign_attrs(schema=_SPECTRUM_IMAGE_SCHEMA)
    return write_dataset(dataset, path, block_shape=block_shape)


def open_spectrum_image(path: Path | str) -> xr.DataArray:
    """Open a spectrum image that `write_spectrum_image` wrote; slicing it and asking for values reads the blocks.

    Raises
    ------
    UnreadableFileError
        If there is no such store, or it is damaged; for a flipped bit, when the values are read.
    """
    dataset = open_dataset(path)
    if dataset.attrs.get("schema") != _SPECTRUM_IMAGE_SCHEMA:
        raise UnreadableFileError(
            f"{path} is a store of the kind {dataset.attrs.get('schema')!r}, not a spectrum image "
            f"({_SPECTRUM_IMAGE_SCHEMA!r}): name the acquisition itself"
        )
    image = dataset["counts"]
    check_spectrum_image(image)
    return image


def read_counts(path: Path | str, block: Block) -> NDArray[Any]:
    """Return the counts of one block of a spectrum image, shape (y, x, channels), in the type they are stored in.

    For a store that `open_spectrum_image` found whole; see `read_block`.
    """
    return read_block(path, "counts", block)


def read_block(path: Path | str, name: str, block: Block) -> NDArray[Any]:
    """Return some pixels of a cube of a store, shape (y, x, channels), in the type they are stored in.

    Of a store's seal nothing is checked but that the files which the block needs are there.

    Raises
    ------
    UnreadableFileError
        If they are not there, or damaged.
    """
    path = Path(path)
    with _readable(path):
        cube = Cube(path / name)
        rows, columns = (
            range(part.start // size, -(-part.stop // size))
            for part, size in zip((block.y, block.x), cube.shards[:2], strict=True)
        )
        for file in (path / name / "c" / str(y) / str(x) / "0" for y in rows for x in columns):
            if not file.is_file():  # it would read as zeros
                raise UnreadableFileError(f"{path} is damaged: {file.relative_to(path)} is missing; copy it again")
        return cube.read((block.y, block.x))


def write_dataset(
    dataset: xr.Dataset,
    path: Path | str,
    *,
    block_shape: tuple[int, int] = BLOCK_SHAPE,
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a dataset as a zarr store, whole or not at all.

    Parameters
    ----------
    dataset
        Numbers, booleans or strings; dask-backed variables are computed block by block. Not modified.
    path
        The store's name; a store that is there is replaced.
    block_shape
        Pixels (y, x) of a shard.
    attrs
        Added to the dataset's own attributes; values must be JSON values or numpy scalars and arrays.

    Raises
    ------
    OutputPathError
        If the store cannot be written there.
    """
    store = create_store(dataset, path, block_shape=block_shape)
    try:
        cubes = [str(name) for name, variable in dataset.variables.items() if _is_cube(variable.dims)]
        if cubes:
            for block in blocks(dataset.sizes["y"], dataset.sizes["x"], block_shape=block_shape):
                part = dataset[cubes].isel(y=block.y, x=block.x)
                write_block(store, block, {name: part[name].values for name in cubes})
        maps = {str(name): variable.values for name, variable in dataset.variables.items() if _is_map(variable.dims)}
        write_variables(store, maps)
        return finalise_store(store, path, attrs=attrs)
    except BaseException:
        shutil.rmtree(store, ignore_errors=True)
        raise


def open_dataset(path: Path | str) -> xr.Dataset:
    """Open a store of this project; variables with y and x are read when their values are asked for.

    Raises
    ------
    UnreadableFileError
        If there is no such store, it was never finished, or files of it are missing or cut short.
    """
    path = Path(path)
    with _readable(path):
        attrs = _read_description(path, "group")["attributes"]
        _check_seal(path, attrs.pop(_SEAL, None))
        named = attrs.pop("coordinates", [])
        coordinate_names = set(named) if isinstance(named, list) else set()
        variables = {folder.name: _open_variable(path, folder.name) for folder in sorted(_members(path))}
    coordinates = {name: variables.pop(name) for name in list(variables) if name in coordinate_names}
    return xr.Dataset(variables, coords=coordinates, attrs=attrs)


def empty_variable(dims: tuple[str, ...], shape: tuple[int, ...], dtype: DTypeLike, **attrs: Any) -> xr.Variable:
    """Return a placeholder for a template: dimensions, shape and type without memory behind them.

    >>> empty_variable(("y", "x"), (4096, 4096), "float32").shape
    (4096, 4096)
    """
    return xr.Variable(dims, np.broadcast_to(np.zeros((), dtype), shape), attrs)


def create_store(template: xr.Dataset, path: Path | str, *, block_shape: tuple[int, int] = BLOCK_SHAPE) -> Path:
    """Create the arrays of a store under a temporary name, the ones with y and x still empty.

    Parameters
    ----------
    template
        Variables with the dimensions y and x give shape and type only (see `empty_variable`): cubes are to be written
        by `write_block`, maps by `write_variables`. All others are written now. Attributes are kept.
    path
        Where `finalise_store` will put the store.
    block_shape
        Pixels (y, x) of a shard.

    Returns
    -------
    Path
        The temporary store, beside `path`.

    Raises
    ------
    OutputPathError
        If nothing can be written there.
    """
    path = Path(path)
    make_directory(path.parent)
    store = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")
    try:
        with _writable(store):
            store.mkdir()
            coordinates = sorted(str(name) for name in template.coords)
            attributes = _json_values({**template.attrs, "coordinates": coordinates})
            _write_description(store, {"attributes": attributes, "zarr_format": 3, "node_type": "group"})
            for name, variable in template.variables.items():
                _create_array(store / str(name), variable, block_shape)
    except BaseException:
        shutil.rmtree(store, ignore_errors=True)
        raise
    return store


def write_block(store: Path, block: Block, values: Mapping[str, ArrayLike]) -> None:
    """Write one block of cubes into a store from `create_store`.

    Each shard is written to a temporary file and renamed, so a repeated write is harmless.

    Parameters
    ----------
    store
        What `create_store` returned.
    block
        One of `blocks` for the image's size and the store's block shape.
    values
        For each variable the values of the block, in the variable's dimensions.

    Raises
    ------
    ValueError
        If the block does not own whole shards (two writers of one file would undo each other's work), or the
        values do not have the block's shape.
    OutputPathError
        If the block cannot be written, for example because the disk is full.
    """
    with _writable(store):
        for name, value in values.items():
            cube = Cube(store / name, writable=True)
            pixels = {"y": block.y, "x": block.x}
            region = tuple(pixels.get(dim, slice(0, size)) for dim, size in zip(cube.dims, cube.shape, strict=True))
            shape = tuple(part.stop - part.start for part in region)
            data = np.asarray(value)
            if data.shape != shape:
                raise ValueError(f"{name} has shape {data.shape} in block {block}; expected {shape} for {cube.dims}")
            for dim, part, size, shard in zip(cube.dims, region, cube.shape, cube.shards, strict=True):
                if part.start % shard or (part.stop % shard and part.stop != size):
                    raise ValueError(
                        f"block {block} cuts shards of {name} along {dim} ({part.start}-{part.stop} of {size}, shards "
                        f"of {shard}); two writers would undo each other's work: use blocks() with the store's shape"
                    )
            cube.write(region, data)


def write_variables(store: Path, variables: Mapping[str, ArrayLike]) -> None:
    """Write whole variables into a store from `create_store`: maps, or small ones that are known last.

    Raises
    ------
    ValueError
        If the values of one do not have its shape.
    OutputPathError
        If one cannot be written.
    """
    with _writable(store):
        for name, values in variables.items():
            array, data = Cube(store / name, writable=True), np.asarray(values)
            if data.shape != array.shape:
                raise ValueError(f"{name} has shape {data.shape}; the store expects {array.shape}")
            array.write((...,), data)


def finalise_store(store: Path, path: Path | str, *, attrs: Mapping[str, Any] | None = None) -> Path:
    """Check that every block was written, seal the store and give it its final name.

    Parameters
    ----------
    store
        What `create_store` returned; it is gone afterwards.
    path
        The final name; a store that is there is replaced.
    attrs
        Added to the store's attributes; JSON values or numpy scalars and arrays.

    Raises
    ------
    ValueError
        If blocks are missing; the store stays under its temporary name.
    OutputPathError
        If the seal cannot be written or the name is taken by something that is not a store.
    """
    path = Path(path)
    with _writable(store):
        n_files, n_bytes = 0, 0
        for folder in _members(store):
            sizes = {}
            for file in _files(folder):
                if file.name.endswith(_TEMPORARY):
                    file.unlink()
                else:
                    sizes[file] = file.stat().st_size
            array = _read_description(folder, "array")
            parts = array["chunk_grid"]["configuration"]["chunk_shape"]
            n_expected = math.prod(
                math.ceil(size / max(part, 1)) for size, part in zip(array["shape"], parts, strict=True)
            )
            n_found = len(sizes) - 1
            if n_found != n_expected:
                raise ValueError(
                    f"{n_found} of {n_expected} shards of {folder.name} were written to {store}; write them all"
                )
            n_files, n_bytes = n_files + len(sizes), n_bytes + sum(sizes.values())
        root = _read_description(store, "group")
        root["attributes"] |= {**_json_values(attrs or {}), _SEAL: {"n_files": n_files, "n_bytes": n_bytes}}
        _write_description(store, root)
        _replace(store, path)
    return path


def remove_unfinished(path: Path | str) -> None:
    """Remove what writers that were killed left behind for this store name; only while nobody is writing it."""
    path = Path(path)
    for pattern in (f".{path.name}.*.unfinished", f".{path.name}.*.replaced"):
        for leftover in path.parent.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


class _CheckedArray(BackendArray):
    """An array of a store whose damaged chunks raise `UnreadableFileError` when they are read."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path = path
        self.name = name
        self.shape = shape
        self.dtype = dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        places = tuple(_within(place, size) for place, size in zip(key, self.shape, strict=True))
        with _readable(self.path):
            return Cube(self.path / self.name).read(places)


def _within(place: Any, size: int) -> Any:
    """Return an index along a dimension without negative numbers, and a slice that ends where the dimension does."""
    if isinstance(place, slice):
        start, stop, step = place.indices(size)
        return slice(start, max(start, stop), step)
    return np.where(np.less(place, 0), np.add(place, size), place) if np.ndim(place) else int(place) % size


def _open_variable(path: Path, name: str) -> xr.Variable:
    description = _read_description(path / name, "array")
    dims, attrs = _dimension_names(name, description), description["attributes"]
    if description["data_type"] == "string":  # which TensorStore does not read, nor do numpy and xarray like it
        text: zarr.Array[Any] = zarr.open_array(path / name, mode="r")
        return xr.Variable(dims, np.array(np.asarray(text[...]).tolist(), dtype=str).reshape(text.shape), attrs)
    if _has_pixels(dims):
        array = _CheckedArray(path, name, tuple(description["shape"]), np.dtype(description["data_type"]))
        return xr.Variable(dims, indexing.LazilyIndexedArray(array), attrs)
    return xr.Variable(dims, Cube(path / name).read((...,)), attrs)


_descriptions: dict[tuple[object, ...], dict[str, Any]] = {}  # of arrays, as zarr writes them; they take long to make
_MOST_DESCRIPTIONS = 512


def _create_array(path: Path, variable: xr.Variable, block_shape: tuple[int, int]) -> None:
    """Create an array, and write its values unless it has pixels."""
    name, attributes = path.name, _json_values(variable.attrs)
    dims = tuple(str(dim) for dim in variable.dims)
    is_text = variable.dtype.kind in "UTO"
    if not is_text and variable.dtype.kind not in "biufc":
        raise TypeError(f"{name} has the type {variable.dtype}; stores hold numbers, booleans and strings")
    if is_text and _has_pixels(dims):
        raise TypeError(f"{name} holds strings for every pixel; store codes and put their meaning into attributes")
    chunks, shards = _cuts(variable, dims, block_shape)
    key = (variable.shape, "text" if is_text else variable.dtype.str, chunks, shards, dims)
    description = _descriptions.get(key)
    if description is None:
        if len(_descriptions) >= _MOST_DESCRIPTIONS:
            _descriptions.clear()
        array: zarr.Array[Any] = zarr.create_array(
            zarr.storage.MemoryStore(),
            shape=variable.shape,
            dtype=str if is_text else variable.dtype,
            chunks=chunks,
            shards=shards,
            compressors=_COMPRESSORS,
            fill_value="" if is_text else np.zeros((), variable.dtype)[()],
            dimension_names=dims,
        )
        description = _descriptions[key] = dict(array.metadata.to_dict())
    path.mkdir()
    _write_description(path, {**description, "attributes": attributes})
    if is_text:
        text: zarr.Array[Any] = zarr.open_array(path, mode="r+", config=_CONFIG)
        text[...] = np.asarray(variable.values).astype(object)
    elif not _has_pixels(dims):
        Cube(path, writable=True).write((...,), np.asarray(variable.values))


def _cuts(
    variable: xr.Variable, dims: tuple[str, ...], block_shape: tuple[int, int]
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the shape of a variable's chunks, and of the shards that hold them, where there are any."""
    if _is_map(dims):
        return tuple(min(max(size, 1), _MAP_CHUNK) for size in variable.shape), None
    if _is_cube(dims):
        pixels = {"y": (block_shape[0], CHUNK_SHAPE[0]), "x": (block_shape[1], CHUNK_SHAPE[1])}
        sizes = dict(zip(dims, variable.shape, strict=True))
        cuts = [_cut(size, *pixels[dim]) if dim in pixels else (max(size, 1),) * 2 for dim, size in sizes.items()]
        return tuple(chunk for _, chunk in cuts), tuple(shard for shard, _ in cuts)
    chunks = tuple(max(size, 1) for size in variable.shape)
    if chunks and variable.dtype.kind in "biufc":  # long tables of spectra: rows are cut, spectra are not
        n_rows = _MAX_CHUNK_BYTES // max(math.prod(chunks[1:]) * variable.dtype.itemsize, 1)
        chunks = (min(chunks[0], max(n_rows, 1)), *chunks[1:])
    return chunks, None


def _read_description(folder: Path, kind: str) -> dict[str, Any]:
    """Read the description of an ``"array"`` or a ``"group"`` of zarr v3."""
    description: dict[str, Any] = json.loads((folder / _DESCRIPTION).read_bytes())
    if description["zarr_format"] != 3 or description["node_type"] != kind:
        raise ValueError(f"{folder / _DESCRIPTION} does not describe a zarr v3 {kind}")
    return {"attributes": {}, **description}


def _write_description(folder: Path, description: Mapping[str, Any]) -> None:
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2))


def _cut(size: int, shard: int, chunk: int) -> tuple[int, int]:
    """Return (shard, inner chunk) along y or x: clipped to the image, shards a whole number of chunks."""
    if size <= chunk or shard % chunk:
        chunk = shard = min(shard, max(size, 1))
    return shard, chunk


def _has_pixels(dims: tuple[Any, ...]) -> bool:
    return "y" in dims and "x" in dims


def _is_map(dims: tuple[Any, ...]) -> bool:
    return _has_pixels(dims) and len(dims) == 2


def _is_cube(dims: tuple[Any, ...]) -> bool:
    return _has_pixels(dims) and len(dims) > 2


def _dimension_names(name: str, description: Mapping[str, Any]) -> tuple[str, ...]:
    names, n_dimensions = description.get("dimension_names") or (), len(description["shape"])
    if len(names) != n_dimensions:
        raise ValueError(f"array {name} does not name its {n_dimensions} dimensions")
    return tuple(str(name) for name in names)


def _json_values(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return attributes as plain JSON values; refuse what JSON cannot hold, naming it."""

    def plain(value: Any) -> Any:
        match value:
            case np.generic():
                return value.item()
            case np.ndarray():
                return value.tolist()
            case Mapping():
                return {str(key): plain(item) for key, item in value.items()}
            case list() | tuple():
                return [plain(item) for item in value]
            case _:
                return value

    result = {str(key): plain(value) for key, value in attrs.items()}
    for key, value in result.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise TypeError(f"attribute {key!r} cannot be stored: {error}; attributes are JSON values") from error
    return result


def _census(store: Path) -> dict[str, int]:
    """Count the files of a store and their bytes, bar the root's own metadata, which holds the seal."""
    sizes = [file.stat().st_size for member in _members(store) for file in _files(member)]
    return {"n_files": len(sizes), "n_bytes": sum(sizes)}


def _members(store: Path) -> list[Path]:
    """Return the folders of a store's variables."""
    with os.scandir(store) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir()]


def _files(folder: Path) -> Iterator[Path]:
    """Return the files below a folder."""
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


def _check_seal(path: Path, seal: Any) -> None:
    if not isinstance(seal, dict):
        raise UnreadableFileError(
            f"{path} is a zarr store without eelsflow's seal: it was written by something else or never finished; "
            "write it again with eelsflow.io.zarr_store"
        )
    found = _census(path)
    if found != seal:
        raise UnreadableFileError(
            f"{path} is damaged: it holds {found['n_files']} files of {found['n_bytes']} bytes, but "
            f"{seal.get('n_files')} files of {seal.get('n_bytes')} bytes were written; what is missing would read as "
            "zeros: copy or write the store again"
        )


def _replace(store: Path, path: Path) -> None:
    if path.exists() and not (path / _DESCRIPTION).is_file():
        raise OutputPathError(f"{path} exists and is not a zarr store; it is left alone: name another path")
    if path.exists():
        replaced = path.with_name(f".{path.name}.{uuid.uuid4().hex}.replaced")
        path.rename(replaced)
        store.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        store.rename(path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever zarr and its codecs raise on missing or damaged files into `UnreadableFileError`."""
    try:
        yield
    except UnreadableFileError:
        raise
    except FileNotFoundError as error:
        raise UnreadableFileError(f"{path} holds no zarr store: there is no zarr.json in it") from error
    except Exception as error:  # zarr, blosc, crc32c and the JSON parser raise a dozen classes
        raise UnreadableFileError(f"{path} is a damaged zarr store ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def _writable(store: Path) -> Iterator[None]:
    try:
        yield
    except OutputPathError:
        raise
    except OSError as error:
        raise OutputPathError(f"cannot write {store}: {os.strerror(error.errno) if error.errno else error}") from error
