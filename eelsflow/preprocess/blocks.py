"""The prepared product of a raw store, block by block, wherever the executor runs them."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.edges import Edge
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.io.zarr_store import (
    BLOCK_SHAPE,
    blocks,
    create_store,
    finalise_store,
    open_spectrum_image,
    write_block,
    write_variable,
)
from eelsflow.preprocess.chain import check_image, describe_product, fit_acquisition, on_block
from eelsflow.preprocess.presets import Preset
from eelsflow.preprocess.transform import Fitted, Part, finish
from eelsflow.spectrum_image import energy_axis

HELD_BYTES = 256 << 20
"""Counts of an image that are read once and held, where the work is done in this process; larger ones are read anew for
each step that needs them. A constant: what is held does not grow with the image."""


def prepare_blocks(
    raw: Path,
    out: Path,
    *,
    edge: Edge,
    preset: Preset,
    executor: Executor | None = None,
    block_shape: tuple[int, int] = BLOCK_SHAPE,
) -> None:
    """Prepare a raw store and write the prepared product.

    Parameters
    ----------
    raw
        Spectrum image written by `eelsflow.io.zarr_store.write_spectrum_image`. On a cluster: where every worker
        sees it.
    out
        Where the product goes, a zarr store; one that is there is replaced. It appears when it is whole, so a run
        that is refused, fails or is killed leaves nothing that looks finished.
    edge, preset, executor
        As in `eelsflow.preprocess.chain.prepare`, whose result the product equals but for rounding.
    block_shape
        Pixels (y, x) worked on, held in memory and written at once; also the shards of the product.

    Raises
    ------
    EdgeOutOfRangeError, InputError, SpectrumImageSchemaError
        As `eelsflow.preprocess.chain.prepare`; the message names the acquisition, and the block where one is to blame.
    UnreadableFileError
        If the raw store cannot be read.
    OutputPathError
        If the product cannot be written.
    """
    executor = executor or LoopExecutor()
    raw, out = Path(raw).absolute(), Path(out).absolute()
    image = open_spectrum_image(raw)
    check_image(image, edge=edge)
    n_y, n_x, _ = image.shape
    parts = [Part(raw, block, width=n_x) for block in blocks(n_y, n_x, block_shape=block_shape)]
    if executor.shares_memory and image.nbytes <= HELD_BYTES:
        parts = executor.map(functools.partial(on_block, Part.hold, ()), parts, label="read counts")
    acquisition = fit_acquisition(energy_axis(image), parts, (n_y, n_x), edge=edge, preset=preset, executor=executor)
    store = create_store(describe_product(acquisition, image), out, block_shape=block_shape)
    try:
        write = functools.partial(_write_part, acquisition.fitted, store)
        maps = executor.map(write, acquisition.parts, label="write prepared")
        for name, first in maps[0].items():
            whole = np.empty((n_y, n_x), dtype=first.dtype)
            for part, values in zip(acquisition.parts, maps, strict=True):
                whole[part.block.y, part.block.x] = values[name]
            write_variable(store, name, whole)
        finalise_store(store, out)
    except BaseException:
        shutil.rmtree(store, ignore_errors=True)
        raise


def _write_part(fitted: Fitted, store: Path, part: Part) -> dict[str, NDArray[Any]]:
    """Prepare one block, write its cubes and return its maps; repeated after a worker was lost, it does the same."""
    values = finish(part, fitted)
    write_block(store, part.block, {name: value for name, value in values.items() if value.ndim > 2})
    return {name: value for name, value in values.items() if value.ndim == 2}
