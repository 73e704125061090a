"""Arrays on disk, blocks of cubes before all, read and written by TensorStore.

zarr-python takes every chunk through the event loop of one thread, so two threads that read together take longer than
one after the other. TensorStore reads and writes the same files beside the interpreter
(docs/decisions/0014-preprocessing-speed.md).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Cube:
    """An array of a zarr v3 store that has been created, whole shards of which are read or written at once.

    Parameters
    ----------
    path
        The array's folder.
    writable
        Whether blocks will be written; otherwise they can be read.

    Raises
    ------
    OSError
        If there is no such array, or it cannot be read or understood.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        import tensorstore

        spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
        if writable:
            # zarr files without a chunk read as zeros; a shard of zeros is written all the same, so that none is missed
            spec["store_data_equal_to_fill_value"] = True
        try:
            self._array: Any = tensorstore.open(
                spec, context=_context(), open=True, read=not writable, write=writable
            ).result()
        except ValueError as error:
            raise OSError(_first_sentence(error)) from error
        self.path = path
        self.dims: tuple[str, ...] = tuple(self._array.domain.labels)
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        shards: Any = self._array.chunk_layout.write_chunk.shape
        self.shards: tuple[int, ...] = tuple(shards or ())  # a single number has none
        self.dtype: np.dtype[Any] = np.dtype(self._array.dtype.numpy_dtype)

    def read(self, region: tuple[Any, ...]) -> NDArray[Any]:
        """Return the values of a region: a slice, a number or numbers along each dimension, or ``...`` for the whole.

        Raises
        ------
        OSError
            If they cannot be read, or are damaged.
        """
        try:
            return np.asarray(self._array.oindex[region].read().result())
        except ValueError as error:
            raise OSError(_first_sentence(error)) from error

    def write(self, region: tuple[Any, ...], values: NDArray[Any]) -> None:
        """Write the values of a region (slices, or ``...`` for the whole), each shard to a temporary file, renamed.

        Raises
        ------
        OSError
            If they cannot be written, for example because the disk is full.
        """
        try:
            self._array[region].write(values.astype(self.dtype, copy=False)).result()
        except ValueError as error:
            raise OSError(_first_sentence(error)) from error


@functools.cache
def _context() -> Any:
    import tensorstore

    # Nothing is kept in memory, and files are left to the operating system to bring to the disk: as zarr-python does.
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False})


def _first_sentence(error: Exception) -> str:
    """Return what TensorStore says without the specification that it appends."""
    return str(error).split(" [", maxsplit=1)[0]
