"""Memory of preprocessing on a Dask cluster whose workers hold a quarter of the cube.

python -m benchmarks.scaling_preprocessing [--quick]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from benchmarks.data import MEASURED_SEED
from benchmarks.measure import Row
from eelsflow.edges import O_K
from eelsflow.energy import EnergyAxis
from eelsflow.executors import DaskExecutor
from eelsflow.io.zarr_store import blocks, create_store, empty_variable, finalise_store, write_block
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.presets import PRESETS
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.spectrum_image import build_spectrum_image

WORKERS = 2
MEMORY_LIMIT = 640 << 20
"""Bytes a worker may hold; its imports take half of it."""


def write_tiled(path: Path, tile: NDArray[np.uint16], axis: EnergyAxis, shape: tuple[int, int]) -> Path:
    """Write a raw store of any size, block by block: a tile of counts laid side by side."""
    one = build_spectrum_image(tile[:1, :1], axis.values, sha256="0" * 64, source="tiled")
    template = xr.Dataset(
        {"counts": empty_variable(("y", "x", "energy_loss"), (*shape, axis.size), tile.dtype, **one.variable.attrs)},
        coords={
            "y": np.arange(shape[0], dtype=one.coords["y"].dtype),
            "x": np.arange(shape[1], dtype=one.coords["x"].dtype),
            "energy_loss": one.coords["energy_loss"],
        },
        attrs={"schema": "eelsflow-spectrum-image/1"},
    )
    store = create_store(template, path)
    rows, columns = np.arange(shape[0]) % tile.shape[0], np.arange(shape[1]) % tile.shape[1]
    for block in blocks(*shape):
        write_block(store, block, {"counts": tile[np.ix_(rows[block.y], columns[block.x])]})
    return finalise_store(store, path)


def measure_memory(quick: bool) -> Row:
    """Prepare a cube as large as the workers' memory and one of four times that, on a fresh cluster each."""
    n_channels = 1024 if quick else 2048
    parameters = SIMULATED["paper"].model_copy(
        update={"shape": (32, 32) if quick else (64, 64), "axis": AxisParameters(n_channels=n_channels)}
    )
    image = simulate_acquisition(parameters, MEASURED_SEED).image
    tile = np.clip(image.values, 0, 65535).astype(np.uint16)
    axis = EnergyAxis.from_values(image["energy_loss"].values)
    one = 64 if quick else 64 * round(np.sqrt(WORKERS * MEMORY_LIMIT / (2 * n_channels)) / 64)
    peaks, seconds, alive = [], [], True
    with tempfile.TemporaryDirectory(prefix="eelsflow-benchmark-") as scratch:
        for side in (one, 2 * one):
            raw = write_tiled(Path(scratch) / f"raw-{side}.zarr", tile, axis, (side, side))
            peak, took, same = _prepare_on_cluster(raw, Path(scratch))
            peaks.append(peak)
            seconds.append(took)
            alive &= same
    megabytes = (2 * one) ** 2 * n_channels * 2 / 1e6
    note = (
        f"{WORKERS} workers of {MEMORY_LIMIT >> 20} MiB, cubes of {one}^2 and {2 * one}^2 pixels of {n_channels} "
        f"channels ({megabytes:.0f} MB); peaks {peaks[0] / 1e6:.0f} and {peaks[1] / 1e6:.0f} MB"
    )
    return Row(
        "preprocessing: peak memory of a worker, cube four times as large",
        "",
        peaks[1] / peaks[0],
        1.2,
        at_most=True,
        ours=seconds,
        gates={"no worker killed": alive, "peak under the limit": max(peaks) < MEMORY_LIMIT},
        note=note,
    )


def _prepare_on_cluster(raw: Path, home: Path) -> tuple[float, float, bool]:
    """Return the largest peak memory of a worker (bytes), the seconds, and whether the workers are those of before."""
    from flows.cluster import cluster_client

    with cluster_client("local", home=home, n_workers=WORKERS, memory_limit=f"{MEMORY_LIMIT}B") as client:
        client.wait_for_workers(WORKERS)
        before = set(client.run(_process).values())
        start = time.perf_counter()
        prepare_blocks(
            raw, raw.with_name("out.zarr"), edge=O_K, preset=PRESETS["recommended"], executor=DaskExecutor(client)
        )
        took = time.perf_counter() - start
        same = set(client.run(_process).values()) == before
        return max(client.run(_peak).values()), took, same


def _process() -> int:
    import os

    return os.getpid()


def _peak() -> float:
    """Return the peak memory of this process, bytes; getrusage would count what its parent held when it forked."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024.0 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    row = measure_memory("--quick" in sys.argv)
    print(f"{row.work}: {row.ratio:.2f} ({'met' if row.met else 'NOT MET'}; {row.gates}); {row.note}")
