"""Counts of a file: readable and finite, or refused now or when they are computed; of an image, in some pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.errors import UnreadableFileError
from eelsflow.io.damage import damage_reported

LAZY_BYTES = 1 << 29
"""Files larger than this stay on disk (dask-backed) where the format allows it; our choice."""


@dataclass(frozen=True, slots=True)
class _GuardedCounts:
    """Counts on disk of which a damaged part raises `UnreadableFileError`, whatever its reader or codec raises."""

    path: Path
    format_name: str
    counts: dask.array.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.counts.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(self.counts.dtype)
        return found

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        with damage_reported(self.path, self.format_name):
            return np.asarray(self.counts[key].compute(scheduler="synchronous"))


def guarded(path: Path, format_name: str, counts: dask.array.Array) -> dask.array.Array:
    """Return counts on disk, in the same chunks, whose damage is found and told when they are computed."""
    source = _GuardedCounts(path, format_name, counts)
    return dask.array.from_array(source, chunks=counts.chunks, name=f"guarded-{counts.name}", asarray=False)


def with_whole_pixels(path: Path, image: xr.DataArray) -> xr.DataArray:
    """Refuse an image of which every pixel holds NaN or infinite counts; a large one on disk is left to preparation.

    Pixels that do, beside others that do not, are lost (see `eelsflow.preprocess.lost`).
    """
    if image.dtype.kind == "f" and _is_at_hand(image) and not np.isfinite(image.values).all(axis=-1).any():
        _require_finite(image.values, source=str(path))
    return image


def with_finite_counts(path: Path, image: xr.DataArray) -> xr.DataArray:
    """Refuse NaN and infinite counts now, or when they are computed if the image is large and on disk."""
    if image.dtype.kind != "f":
        return image
    if _is_at_hand(image):
        _require_finite(image.values, source=str(path))
        return image
    lazy = image if image.chunks is not None else image.chunk({"y": 64, "x": 64, "energy_loss": -1})
    checked = lazy.data.map_blocks(_require_finite, source=str(path), dtype=lazy.dtype, meta=lazy.data._meta)
    return lazy.copy(data=checked)


def _is_at_hand(image: xr.DataArray) -> bool:
    return image.chunks is None and (image.variable._in_memory or image.nbytes <= LAZY_BYTES)


def _require_finite(counts: NDArray[Any], *, source: str) -> NDArray[Any]:
    n_bad = int(counts.size - np.isfinite(counts).sum())
    if n_bad:
        raise UnreadableFileError(
            f"{source} holds {n_bad} counts that are NaN or infinite among {counts.size}; a fit over them has no "
            "meaning: export the raw counts again, replace these values, or cut off channels that never hold a count"
        )
    return counts
