"""The prepared product of a raw store, block by block, wherever the executor runs them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.edges import Edge
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.io.zarr_store import (
    BLOCK_SHAPE,
    Block,
    blocks,
    create_store,
    finalise_store,
    open_spectrum_image,
    read_block,
    write_block,
    write_variables,
)
from eelsflow.preprocess.chain import check_image, describe_product, fit_acquisition, on_block
from eelsflow.preprocess.companion import Companion
from eelsflow.preprocess.presets import Preset
from eelsflow.preprocess.shapes import Shapes, to_shapes
from eelsflow.preprocess.spatial import Guide, fit_guide, gather, spatial_step
from eelsflow.preprocess.transform import Fitted, Part, finish, product_axis
from eelsflow.spectrum_image import energy_axis

HELD_BYTES = 256 << 20
"""Counts of an image that are read once and held, where the work is done in this process; larger ones are read anew for
each step that needs them. A constant: what is held does not grow with the image."""


def is_held(image: xr.DataArray, executor: Executor | None) -> bool:
    """Tell whether an image is prepared from memory, and not from a store that workers read."""
    return (executor is None or executor.shares_memory) and image.chunks is None and image.nbytes <= HELD_BYTES


def prepare_blocks(
    raw: Path | xr.DataArray,
    out: Path,
    *,
    edge: Edge,
    preset: Preset,
    executor: Executor | None = None,
    companion: Companion | None = None,
    block_shape: tuple[int, int] = BLOCK_SHAPE,
) -> None:
    """Prepare a raw store and write the prepared product.

    Parameters
    ----------
    raw
        Spectrum image written by `eelsflow.io.zarr_store.write_spectrum_image`. On a cluster: where every worker
        sees it. Or the image itself, where `is_held` says so.
    out
        Where the product goes, a zarr store; one that is there is replaced. It appears when it is whole, so a run
        that is refused, fails or is killed leaves nothing that looks finished.
    edge, preset, executor, companion
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
    out = Path(out).absolute()
    image = raw if isinstance(raw, xr.DataArray) else open_spectrum_image(raw)
    check_image(image, edge=edge)
    n_y, n_x, _ = image.shape
    source = image.values if isinstance(raw, xr.DataArray) else raw.absolute()
    parts = [Part(source, block, width=n_x) for block in blocks(n_y, n_x, block_shape=block_shape)]
    if isinstance(source, Path) and executor.shares_memory and image.nbytes <= HELD_BYTES:
        parts = executor.map(functools.partial(on_block, Part.hold, ()), parts, label="read counts")
    acquisition = fit_acquisition(
        energy_axis(image), parts, (n_y, n_x), edge=edge, preset=preset, executor=executor, companion=companion
    )
    store = create_store(describe_product(acquisition, image), out, block_shape=block_shape)
    try:
        write = functools.partial(_write_part, acquisition.fitted, store, spatial_step(preset) is not None)
        maps = executor.map(write, acquisition.parts, label="write prepared")
        whole = _assemble(acquisition.parts, maps, (n_y, n_x))
        attrs = {}
        step = spatial_step(preset)
        if step is not None:
            bands = Shapes(**{name: whole.pop(name) for name in _SHAPES}, energy_loss=np.empty(0))
            guide = fit_guide(bands, ~whole["vacuum_mask"], step)
            del bands
            lenders = [_Lenders.to(part.block, guide) for part in acquisition.parts]
            lent = executor.map(functools.partial(_write_gathered, store), lenders, label="gather neighbours")
            whole |= _assemble(acquisition.parts, [{"effective_spectra": one} for one in lent], (n_y, n_x))
            attrs["spatial_reach"] = guide.reach
        whole |= dict(companion.maps) if companion else {}
        write_variables(store, whole)
        finalise_store(store, out, attrs=attrs)
    except BaseException:
        shutil.rmtree(store, ignore_errors=True)
        raise


_SHAPES = ("values", "relative_variance", "counts")


def _write_part(fitted: Fitted, store: Path, with_shapes: bool, part: Part) -> dict[str, NDArray[Any]]:
    """Prepare one block, write its cubes and return its maps; repeated after a worker was lost, it does the same."""
    values = finish(part, fitted)
    write_block(store, part.block, {name: value for name, value in values.items() if value.ndim > 2})
    maps = {name: value for name, value in values.items() if value.ndim == 2}
    if with_shapes:
        shapes = to_shapes(values["intensity"], values["variance"], product_axis(fitted), fitted.whole_edge)
        maps |= {name: getattr(shapes, name) for name in _SHAPES}
    return maps


def _assemble(
    parts: Sequence[Part], maps: Sequence[dict[str, NDArray[Any]]], shape: tuple[int, int]
) -> dict[str, NDArray[Any]]:
    """Put the maps of blocks together to maps of the image."""
    whole = {name: np.empty((*shape, *first.shape[2:]), dtype=first.dtype) for name, first in maps[0].items()}
    for part, values in zip(parts, maps, strict=True):
        for name, value in values.items():
            whole[name][part.block.y, part.block.x] = value
    return whole


@dataclass(frozen=True)
class _Lenders:
    """A block, the pixels around it that lend to it, and their part of the guide: no worker needs the whole of it."""

    block: Block
    around: Block
    guide: Guide

    @classmethod
    def to(cls, block: Block, guide: Guide) -> _Lenders:
        around = guide.around(block)
        return cls(block, around, guide.crop(around))


def _write_gathered(store: Path, lenders: _Lenders) -> NDArray[np.float32]:
    """Average the spectra of one block with their neighbours', those of other blocks included, and write them."""
    block, around = lenders.block, lenders.around
    inside = Block(
        slice(block.y.start - around.y.start, block.y.stop - around.y.start),
        slice(block.x.start - around.x.start, block.x.stop - around.x.start),
    )
    intensity, variance = (read_block(store, name, around) for name in ("intensity", "variance"))
    gathered, gathered_variance, n_effective = gather(intensity, variance, lenders.guide, inside)
    write_block(store, block, {"gathered": gathered, "gathered_variance": gathered_variance})
    return n_effective
