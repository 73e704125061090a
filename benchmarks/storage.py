"""Codecs and chunks for spectrum cubes: bytes kept, and seconds to write and read them, block by block in two threads.

    python -m benchmarks.storage [--quick]

Counts are of a simulated acquisition (16 bit, with noise), intensities of the product prepared from it (32 bit). What
the stores of this project use (`eelsflow.io.zarr_store`) is measured beside what zarr would use by itself and others.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from benchmarks.data import MEASURED_SEED
from benchmarks.measure import REPETITIONS, THREADS, Row, print_rows
from eelsflow.edges import O_K
from eelsflow.executors import ThreadExecutor
from eelsflow.io.zarr_store import BLOCK_SHAPE, CHUNK_SHAPE, Block, blocks
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.presets import PRESETS
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters


@dataclass
class Layout:
    """A codec and the pixels (y, x) of a chunk of whole spectra, and what was measured of it."""

    codec: Any
    chunk: tuple[int, int] = CHUNK_SHAPE
    writing: list[float] = field(default_factory=list)
    reading: list[float] = field(default_factory=list)
    n_bytes: int = 0

    @property
    def seconds(self) -> list[float]:
        """Of writing and reading once, each repetition."""
        return [sum(pair) for pair in zip(self.writing, self.reading, strict=True)]


OURS, DEFAULT = "lz4 5, bitshuffle", "zstd (zarr's default)"


def layouts() -> dict[str, Layout]:
    """Return what is compared."""
    lz4 = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    return {
        OURS: Layout(lz4),
        DEFAULT: Layout(ZstdCodec(level=0)),
        "blosc zstd 1, bitshuffle": Layout(BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")),
        "lz4 5, byte shuffle": Layout(BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")),
        f"{OURS}, chunks of 8 x 8": Layout(lz4, (8, 8)),
        f"{OURS}, chunks of 16 x 16": Layout(lz4, (16, 16)),
    }


def cubes(n_pixels: int) -> dict[str, NDArray[Any]]:
    """Return counts and intensities of one acquisition of n_pixels squared."""
    update = {"shape": (n_pixels, n_pixels), "axis": AxisParameters(n_channels=2048)}
    image = simulate_acquisition(SIMULATED["paper"].model_copy(update=update), MEASURED_SEED).image
    product = prepare(image, edge=O_K, preset=PRESETS["recommended"])
    return {
        "counts, uint16": np.clip(image.values, 0, 65535).astype(np.uint16),
        "intensities, float32": product["intensity"].values.astype(np.float32),
    }


def measure(values: NDArray[Any], layout: Layout, path: Path) -> bool:
    """Write a cube and read it back; return whether it is the same."""
    group = zarr.create_group(path, zarr_format=3)
    array = group.create_array(
        "values",
        shape=values.shape,
        dtype=values.dtype,
        shards=(*BLOCK_SHAPE, values.shape[2]),
        chunks=(*layout.chunk, values.shape[2]),
        compressors=[layout.codec, Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    parts = blocks(*values.shape[:2])
    executor = ThreadExecutor(THREADS)

    def write(block: Block) -> None:
        array[block.y, block.x] = values[block.y, block.x]

    def read(block: Block) -> NDArray[Any]:
        return np.asarray(array[block.y, block.x])

    start = time.perf_counter()
    executor.map(write, parts)
    written = time.perf_counter()
    back = executor.map(read, parts)
    layout.reading.append(time.perf_counter() - written)
    layout.writing.append(written - start)
    layout.n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return all(
        np.array_equal(values[block.y, block.x], part, equal_nan=True) for block, part in zip(parts, back, strict=True)
    )


def rows(quick: bool) -> Iterator[Row]:
    """Yield a row for counts and one for intensities; quick: a small cube, once."""
    for name, values in cubes(64 if quick else 192).items():
        found, same = layouts(), True
        with tempfile.TemporaryDirectory(prefix="eelsflow-benchmark-") as scratch:
            for repetition in range(1 if quick else REPETITIONS):
                for number, layout in enumerate(found.values()):
                    same &= measure(values, layout, Path(scratch) / f"{repetition}-{number}.zarr")
        megabytes = values.nbytes / 1e6
        listed = "; ".join(
            f"{codec}: {layout.n_bytes / values.nbytes:.2f} of the size, writes "
            f"{megabytes / statistics.median(layout.writing):.0f} and reads "
            f"{megabytes / statistics.median(layout.reading):.0f} MB/s"
            for codec, layout in found.items()
        )
        ours, theirs = found[OURS].seconds, found[DEFAULT].seconds
        yield Row(
            work=f"storage: {name}, {' x '.join(map(str, values.shape))}, written and read once",
            peer=DEFAULT,
            ratio=statistics.median(theirs) / statistics.median(ours),
            target=1.0,
            ours=ours,
            theirs=theirs,
            gates={"what is read is what was written": same},
            note=listed,
        )


def main() -> None:
    """Print the rows."""
    print_rows(rows("--quick" in sys.argv))


if __name__ == "__main__":
    main()
