"""Prepare one acquisition: the core loss, and the low loss of the same scan where there is one."""

from __future__ import annotations

import shutil
from pathlib import Path

import xarray as xr

from eelsflow.edges import Edge
from eelsflow.errors import EelsflowError
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.io.read import read_low_loss, read_spectrum_image
from eelsflow.io.zarr_store import open_spectrum_image, write_spectrum_image
from eelsflow.low_loss.companion import companion_of, is_same_scan, require_same_scan
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.presets import Preset

PREPARED = "prepared.zarr"
_RAW, _LOW = "counts.zarr", "low-loss.zarr"


def find_low_loss(path: Path, image: xr.DataArray, *, given: Path | None = None) -> xr.DataArray | None:
    """Return the low loss of an acquisition: the file that is named, else what the acquisition's own file holds.

    Parameters
    ----------
    path, image
        The acquisition, and its core loss as it was read.
    given
        The file of the low loss.

    Raises
    ------
    EelsflowError
        If the file that is named cannot be read, or is of another scan. What the acquisition's own file holds is left
        alone where it is of other pixels.
    """
    if given is None:
        low = read_low_loss(path)
        return low if low is not None and is_same_scan(low, image.shape[:2]) else None
    try:
        low = read_spectrum_image(given)
        require_same_scan(low, image.shape[:2])
    except EelsflowError as error:
        raise type(error)(f"{given.name}: {error}") from error
    return low


def write_counts(image: xr.DataArray, low_loss: xr.DataArray | None, directory: Path) -> None:
    """Write the counts of an acquisition where workers read them; `prepare_counts` takes them from there."""
    write_spectrum_image(image, directory / _RAW)
    if low_loss is not None:
        write_spectrum_image(low_loss, directory / _LOW)


def prepare_counts(directory: Path, *, edge: Edge, preset: Preset, executor: Executor | None = None) -> Path:
    """Prepare what `write_counts` wrote.

    Parameters
    ----------
    directory
        With the counts; the product is written beside them.
    edge, preset, executor
        As in `eelsflow.preprocess.blocks.prepare_blocks`.

    Returns
    -------
    Path
        The product.

    Raises
    ------
    EelsflowError
        See `eelsflow.preprocess.blocks.prepare_blocks`; also where the low loss shows no zero-loss peak.
    """
    raw, low, out = directory / _RAW, directory / _LOW, directory / PREPARED
    companion = None
    if low.exists():
        n_y, n_x, _ = open_spectrum_image(raw).shape
        companion = companion_of(open_spectrum_image(low), shape=(n_y, n_x), store=low.absolute())
    prepare_blocks(raw, out, edge=edge, preset=preset, executor=executor or LoopExecutor(), companion=companion)
    return out


def remove_counts(directory: Path) -> None:
    """Remove what `write_counts` wrote."""
    for name in (_RAW, _LOW):
        shutil.rmtree(directory / name, ignore_errors=True)
