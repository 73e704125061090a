"""Prepare one acquisition: the core loss, and the low loss of the same scan where there is one."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xarray as xr

from eelsflow.edges import Edge, resolve_edge
from eelsflow.errors import EelsflowError
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.io.acquisitions import as_spectrum_image
from eelsflow.io.read import read_low_loss
from eelsflow.io.zarr_store import open_dataset, open_spectrum_image, write_spectrum_image
from eelsflow.low_loss.companion import companion_of, is_same_scan, require_same_scan
from eelsflow.preprocess.blocks import is_held, prepare_blocks
from eelsflow.preprocess.presets import Preset, resolve_preset

PREPARED = "prepared.zarr"
_RAW, _LOW = "counts.zarr", "low-loss.zarr"


def find_low_loss(acquisition: Any, image: xr.DataArray, *, given: Any = None) -> xr.DataArray | None:
    """Return the low loss of an acquisition: the one that is given, else what the acquisition's own file holds.

    Parameters
    ----------
    acquisition, image
        The acquisition as it was given, and its core loss.
    given
        The low loss: a file, a spectrum image or a HyperSpy signal.

    Raises
    ------
    EelsflowError
        If what is given cannot be read, or is of another scan. What the acquisition's own file holds is left alone
        where it is of other pixels.
    """
    if given is None:
        low = read_low_loss(acquisition) if isinstance(acquisition, str | Path) else None
        return low if low is not None and is_same_scan(low, image.shape[:2]) else None
    try:
        low = as_spectrum_image(given)
        require_same_scan(low, image.shape[:2])
    except EelsflowError as error:
        name = Path(given).name if isinstance(given, str | Path) else "the low loss"
        raise type(error)(f"{name}: {error}") from error
    return low


def prepare(
    acquisition: Any,
    *,
    edge: Edge | str = "O_K",
    preset: Preset | str = "recommended",
    low_loss: Any = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Prepare an acquisition: spikes, axis, background, specimen, and what neighbours lend; in the preset's order.

    Parameters
    ----------
    acquisition
        A file, a spectrum image (xarray) or a HyperSpy signal.
    edge
        A shipped edge by its name, or one of your own.
    preset
        Its acquisition steps are run; a shipped one by its name, or one of your own.
    low_loss
        The low loss of the same scan, as `acquisition`; by default what the acquisition's own file holds.
    executor
        Where blocks are prepared; a plain loop by default.

    Returns
    -------
    xarray.Dataset
        The product, in memory, see `eelsflow.preprocess.chain.prepare`.

    Raises
    ------
    EelsflowError
        If it cannot be read, does not show the edge or is bad input otherwise.
    """
    image = as_spectrum_image(acquisition)
    edge = resolve_edge(edge) if isinstance(edge, str) else edge
    steps = resolve_preset(preset) if isinstance(preset, str) else preset
    low = find_low_loss(acquisition, image, given=low_loss)
    with TemporaryDirectory(prefix="eelsflow-") as scratch:
        product = prepare_image(image, low, Path(scratch), edge=edge, preset=steps.for_acquisition, executor=executor)
        return open_dataset(product).load()


def prepare_image(
    image: xr.DataArray,
    low_loss: xr.DataArray | None,
    directory: Path,
    *,
    edge: Edge,
    preset: Preset,
    executor: Executor | None = None,
) -> Path:
    """Prepare what was read: from memory where it fits and the work is done in this process, else as workers would.

    Parameters
    ----------
    image, low_loss
        What was read.
    directory
        The product is written into it.
    edge, preset, executor
        As in `eelsflow.preprocess.blocks.prepare_blocks`.

    Returns
    -------
    Path
        The product.

    Raises
    ------
    EelsflowError
        See `prepare_counts`.
    """
    held = image if is_held(image, executor) else None
    write_counts(image if held is None else None, low_loss, directory)
    return prepare_counts(directory, edge=edge, preset=preset, executor=executor, held=held)


def write_counts(image: xr.DataArray | None, low_loss: xr.DataArray | None, directory: Path) -> None:
    """Write the counts of an acquisition where workers read them; `prepare_counts` takes them from there."""
    if image is not None:
        write_spectrum_image(image, directory / _RAW)
    if low_loss is not None:
        write_spectrum_image(low_loss, directory / _LOW)


def prepare_counts(
    directory: Path,
    *,
    edge: Edge,
    preset: Preset,
    executor: Executor | None = None,
    held: xr.DataArray | None = None,
) -> Path:
    """Prepare what `write_counts` wrote.

    Parameters
    ----------
    directory
        With the counts; the product is written beside them.
    edge, preset, executor
        As in `eelsflow.preprocess.blocks.prepare_blocks`.
    held
        The image, where it was not written but is in memory.

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
        n_y, n_x, _ = (open_spectrum_image(raw) if held is None else held).shape
        companion = companion_of(open_spectrum_image(low), shape=(n_y, n_x), store=low.absolute())
    prepare_blocks(
        raw if held is None else held,
        out,
        edge=edge,
        preset=preset,
        executor=executor or LoopExecutor(),
        companion=companion,
    )
    return out


def remove_counts(directory: Path) -> None:
    """Remove what `write_counts` wrote."""
    for name in (_RAW, _LOW):
        shutil.rmtree(directory / name, ignore_errors=True)
