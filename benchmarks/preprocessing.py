"""Preparing spectrum images beside HyperSpy: outputs first, then seconds; throughput, memory and scaling.

    python -m benchmarks.preprocessing [--quick]

HyperSpy does each step in memory or lazily; the faster of the two counts. Its steps take minutes on a cube of
256 x 256 x 2048, so it is given a quarter of that cube and its seconds are multiplied by four: they grow in
proportion to the pixels (the note has both sizes).
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.data import MEASURED_SEED
from benchmarks.measure import REPETITIONS, THREADS, Row, print_rows, ratio, take_turns
from benchmarks.scaling_preprocessing import measure_memory, write_tiled
from eelsflow.edges import O_K
from eelsflow.energy import EnergyAxis
from eelsflow.executors import ThreadExecutor
from eelsflow.io.zarr_store import blocks
from eelsflow.preprocess.background import fit_power_law
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.chain import fit_acquisition
from eelsflow.preprocess.kernels import add_spectra
from eelsflow.preprocess.noise import estimate_noise, sample_indices
from eelsflow.preprocess.offset import estimate_offset
from eelsflow.preprocess.pca import PilotSums, fit_pca
from eelsflow.preprocess.presets import PRESETS, resolve_preset
from eelsflow.preprocess.rebin import rebin_conserving
from eelsflow.preprocess.spikes import find_spikes, reference_spectra
from eelsflow.preprocess.transform import Part, finish
from eelsflow.preprocess.vacuum import find_vacuum
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters

RANK = 5
COARSER = 2  # HyperSpy rebins by whole factors
STEPS = [
    "spikes",
    {"step": "pca", "scope": "acquisition", "rank": RANK},
    {"step": "vacuum_mask", "method": "kmeans"},
    "align",
    {"step": "background", "shrink": False},
    "rebin",
]  # what HyperSpy has a step for


@dataclass(frozen=True)
class Cube:
    """Counts (y, x, channels) of a simulated acquisition, laid side by side, and which values spikes hit."""

    counts: NDArray[np.uint16]
    axis: EnergyAxis
    spikes: NDArray[np.bool_]

    @property
    def megabytes(self) -> float:
        return self.counts.nbytes / 1e6


def simulate(n_pixels: int, n_channels: int, *, tiles: int = 1) -> Cube:
    """Simulate a field of n_pixels squared, and repeat it along both axes."""
    parameters = SIMULATED["paper"].model_copy(
        update={"shape": (n_pixels, n_pixels), "axis": AxisParameters(n_channels=n_channels)}
    )
    acquisition = simulate_acquisition(parameters, MEASURED_SEED)
    counts = np.clip(acquisition.image.values, 0, 65535).astype(np.uint16)
    axis = EnergyAxis.from_values(acquisition.image["energy_loss"].values)
    mask = acquisition.truth["spike_mask"].values
    return Cube(np.tile(counts, (tiles, tiles, 1)), axis, np.tile(mask, (tiles, tiles, 1)))


# --- ours, a step at a time, in threads over the blocks -------------------------------------------------------------


def _map(function: Callable[[NDArray[Any]], Any], cube: Cube) -> list[Any]:
    n_y, n_x, _ = cube.counts.shape
    parts = [Part(cube.counts, block, width=n_x) for block in blocks(n_y, n_x)]
    return ThreadExecutor(THREADS).map(lambda part: function(part.read()), parts)


def _assemble(values: list[Any], cube: Cube) -> NDArray[Any]:
    n_y, n_x, _ = cube.counts.shape
    image = np.empty((n_y, n_x, *values[0].shape[1:]), values[0].dtype)
    for block, value in zip(blocks(n_y, n_x), values, strict=True):
        shape = block.y.stop - block.y.start, block.x.stop - block.x.start
        image[block.y, block.x] = value.reshape(*shape, *value.shape[1:])
    return image


def our_spikes(cube: Cube) -> list[NDArray[np.bool_]]:
    rows = cube.counts.reshape(-1, cube.axis.size)
    sample = rows[sample_indices(len(rows))].astype(np.float32)
    noise = estimate_noise(sample)
    reference = reference_spectra(sample, noise)
    return _map(lambda counts: find_spikes(counts, noise, reference=reference), cube)


def our_components(cube: Cube) -> tuple[Any, list[NDArray[np.float32]]]:
    """Principal components of the plain spectra about their mean (no scaling: HyperSpy scales otherwise), denoised."""
    rows = cube.counts.reshape(-1, cube.axis.size)
    pilot = rows[sample_indices(len(rows))].mean(axis=0).astype(np.float32)

    def add(counts: NDArray[Any]) -> PilotSums:
        sums = PilotSums(pilot)
        sums.add_spectra(counts, np.ones(len(counts), dtype=bool))
        return sums

    total, *others = _map(add, cube)
    for other in others:
        total.add(other)
    pca = fit_pca(total.moments(), rank=RANK, scaling=None)
    return pca, _map(pca.denoise, cube)


def our_labels(cube: Cube) -> NDArray[np.bool_]:
    def bands(counts: NDArray[Any]) -> NDArray[np.float32]:
        width = cube.axis.size // 64
        return counts[:, : 64 * width].reshape(len(counts), 64, width).mean(axis=2).astype(np.float32)

    features = _assemble(_map(bands, cube), cube)
    return find_vacuum(features.mean(axis=2), method="kmeans", features=features).mask


def our_offset(cube: Cube) -> float:
    def add(counts: NDArray[Any]) -> NDArray[np.float64]:
        total = np.zeros(counts.shape[1])
        add_spectra(counts, np.ones(len(counts), dtype=bool), total)
        return total

    total = np.sum(_map(add, cube), axis=0)
    return estimate_offset(cube.axis.values, total, O_K).value  # moving the axis moves no counts


def our_background(cube: Cube) -> list[NDArray[np.float32]]:
    used = cube.axis.channels((O_K.pre_edge_window[0], 567.0))
    energy = cube.axis.values[used]

    def subtract(counts: NDArray[Any]) -> NDArray[np.float32]:
        part = counts[:, used].astype(np.float32)
        fit = fit_power_law(energy, part, O_K.pre_edge_window, shrink=False)
        return part - fit.evaluate(energy).astype(np.float32)

    return _map(subtract, cube)


def our_rebinned(cube: Cube) -> list[NDArray[np.float32]]:
    used, target = _rebin_range(cube.axis)
    return _map(lambda counts: rebin_conserving(cube.axis.values[used], counts[:, used], target), cube)


def our_chain(cube: Cube) -> None:
    n_y, n_x, _ = cube.counts.shape
    parts = [Part(cube.counts, block, width=n_x) for block in blocks(n_y, n_x)]
    executor = ThreadExecutor(THREADS)
    preset = resolve_preset(STEPS)
    found = fit_acquisition(cube.axis, parts, (n_y, n_x), edge=O_K, preset=preset, executor=executor)
    executor.map(functools.partial(finish, fitted=found.fitted), found.parts)


def _rebin_range(axis: EnergyAxis) -> tuple[slice, EnergyAxis]:
    used = axis.channels((513.0, 567.0))
    size = (used.stop - used.start) // COARSER
    used = slice(used.start, used.start + size * COARSER)
    middle = axis.values[used.start] + 0.5 * (COARSER - 1) * axis.dispersion
    return used, EnergyAxis(float(middle), axis.dispersion * COARSER, size)


# --- HyperSpy -------------------------------------------------------------------------------------------------------


def _signal(cube: Cube, *, lazy: bool, dtype: str = "float32") -> Any:
    from exspy.signals import EELSSpectrum

    signal = EELSSpectrum(cube.counts.astype(dtype))
    axis = signal.axes_manager.signal_axes[0]
    axis.scale, axis.offset, axis.units = cube.axis.dispersion, cube.axis.start, "eV"
    return signal.as_lazy() if lazy else signal


def _their_steps(lazy: bool) -> dict[str, Callable[[Cube], Any]]:
    def computed(signal: Any) -> NDArray[Any]:
        if lazy:
            signal.compute(show_progressbar=False)
        return np.asarray(signal.data)

    def spikes(cube: Cube) -> NDArray[Any]:
        signal = _signal(cube, lazy=lazy)
        signal.spikes_removal_tool(interactive=False, threshold=_their_threshold(cube))
        return computed(signal)

    def components(cube: Cube) -> NDArray[Any]:
        signal = _signal(cube, lazy=lazy)
        mean = cube.counts.mean(axis=(0, 1)).astype(np.float32)
        signal.data = signal.data - mean  # its own centring fails along the navigation axes
        signal.decomposition(algorithm="SVD", output_dimension=RANK, print_info=False)
        model = signal.get_decomposition_model(RANK)
        return mean + (np.asarray(model.data.compute()) if lazy else model.data)

    def labels(cube: Cube) -> NDArray[Any]:
        signal = _signal(cube, lazy=lazy)
        signal.cluster_analysis(
            cluster_source="signal", n_clusters=2, preprocessing="norm", algorithm="kmeans", random_state=0, n_init=1
        )
        return np.asarray(signal.get_cluster_labels().data)

    def offset(cube: Cube) -> NDArray[Any]:
        signal = _signal(cube, lazy=lazy)
        shifts = signal.estimate_shift1D(start=520.0, end=560.0, show_progressbar=False)
        shifts = np.asarray(shifts.compute() if hasattr(shifts, "compute") else shifts)
        signal.shift1D(shifts, crop=False, show_progressbar=False)
        computed(signal)
        return shifts

    def background(cube: Cube) -> NDArray[Any]:
        signal = _signal(cube, lazy=lazy).isig[O_K.pre_edge_window[0] : 567.0]
        return computed(
            signal.remove_background(
                signal_range=O_K.pre_edge_window, background_type="Power law", fast=True, show_progressbar=False
            )
        )

    def rebinned(cube: Cube) -> NDArray[Any]:
        used, _ = _rebin_range(cube.axis)
        return computed(_signal(cube, lazy=lazy).isig[used.start : used.stop].rebin(scale=(1, 1, COARSER)))

    return {
        "spikes": spikes, "PCA": components, "K-means": labels, "alignment": offset, "background": background,
        "crop and rebin": rebinned,
    }  # fmt: skip


_OURS: dict[str, Callable[[Cube], Any]] = {
    "spikes": our_spikes, "PCA": our_components, "K-means": our_labels, "alignment": our_offset,
    "background": our_background, "crop and rebin": our_rebinned,
}  # fmt: skip


def _their_threshold(cube: Cube) -> float:
    """Counts per eV that no clean derivative reaches: 5 sigma of the noise where there are most counts."""
    sigma = float(np.sqrt(6 * np.percentile(cube.counts[::4, ::4], 99.9)))
    return 5 * sigma * np.sqrt(2) / (2 * cube.axis.dispersion)


# --- what both say ---------------------------------------------------------------------------------------------------


def _gates(step: str, cube: Cube, ours: Any, theirs: NDArray[Any]) -> tuple[dict[str, bool], str]:
    """Compare the outputs of one step on the same cube."""
    match step:
        case "spikes":
            mine = _assemble(ours, cube).any(axis=-1)
            other = (theirs != cube.counts).any(axis=-1)
            truth = cube.spikes.any(axis=-1)
            both = mine & other & truth
            note = (
                f"pixels with spikes: {truth.sum()} simulated, found {np.sum(mine & truth)} by ours and "
                f"{np.sum(other & truth)} by HyperSpy, false {np.sum(mine & ~truth)} and {np.sum(other & ~truth)}"
            )
            return {
                "ours finds nearly all true spikes that HyperSpy finds": bool(
                    both.sum() >= 0.98 * (other & truth).sum()
                ),
                "ours finds as many": bool((mine & truth).sum() >= (other & truth).sum()),
                "ours finds 90 % of what was simulated": bool((mine & truth).sum() >= 0.9 * truth.sum()),
            }, note
        case "PCA":
            mine = _assemble(ours[1], cube)
            exact = _exact_components(cube)
            spread = np.sqrt(np.mean(np.square(exact - exact.mean(axis=(0, 1)))))
            off, theirs_off = (float(np.sqrt(np.mean(np.square(one - exact))) / spread) for one in (mine, theirs))
            note = (
                "no scaling on either side: HyperSpy scales pixels too, which weighs the thin ones most; denoised "
                f"spectra differ from scikit-learn's exact ones by {off:.1e} of their spread, HyperSpy's by "
                f"{theirs_off:.1e}"
            )
            return {"denoised spectra are the exact ones to 0.1 % of their spread": off < 1e-3}, note
        case "K-means":
            same = float(np.mean(ours == theirs[0].astype(bool)))
            return {"labels agree in 99 % of the pixels": max(same, 1 - same) >= 0.99}, "ours on 64 bands"
        case "alignment":
            found, expected = _shifts(cube)
            note = (
                f"ours finds one offset from the sum, HyperSpy a shift a pixel; of two sums {expected:.2f} eV apart "
                f"ours says {found[0]:.2f}, HyperSpy {found[1]:.2f} eV"
            )
            return {"a known shift is found to 0.1 eV": abs(found[0] - expected) < 0.1}, note
        case "background":
            mine = _assemble(ours, cube).mean(axis=(0, 1))
            other = theirs.mean(axis=(0, 1))
            height = float(mine.max())
            note = (
                f"mean net spectra differ by {np.abs(mine - other).max() / height:.2%} of the edge: another estimator"
            )
            return {"mean net spectra agree to 5 % of the edge": bool(np.abs(mine - other).max() < 0.05 * height)}, note
        case _:
            mine = _assemble(ours, cube)
            return {"counts agree to rounding": bool(np.allclose(mine, theirs, rtol=1e-5, atol=1e-2))}, ""


def _exact_components(cube: Cube) -> NDArray[np.float32]:
    """Return the spectra that scikit-learn's exact decomposition of the covariance leaves, in double precision."""
    from sklearn.decomposition import PCA

    rows = cube.counts.reshape(-1, cube.axis.size).astype(np.float64)
    pca = PCA(RANK, svd_solver="covariance_eigh")
    return pca.inverse_transform(pca.fit_transform(rows)).reshape(cube.counts.shape).astype(np.float32)


def _shifts(cube: Cube) -> tuple[tuple[float, float], float]:
    """Return the shift between two sums of the cube as ours and HyperSpy find it, and the true one, eV."""
    channels = round(2.0 / cube.axis.dispersion)
    total = cube.counts.sum(axis=(0, 1), dtype=np.float64)
    pair = np.stack([total[channels:-channels], total[2 * channels :]])
    axis = EnergyAxis(cube.axis.start, cube.axis.dispersion, pair.shape[1])
    first, second = (estimate_offset(axis.values, one, O_K).value for one in pair)
    from exspy.signals import EELSSpectrum

    signal = EELSSpectrum(pair)
    signal_axis = signal.axes_manager.signal_axes[0]
    signal_axis.scale, signal_axis.offset = axis.dispersion, axis.start
    theirs = float(np.ptp(np.asarray(signal.estimate_shift1D(start=520.0, end=560.0, show_progressbar=False))))
    return (second - first, theirs), channels * axis.dispersion


# --- rows -----------------------------------------------------------------------------------------------------------


def _against_hyperspy(quick: bool) -> Iterator[Row]:
    small = simulate(24, 1024) if quick else simulate(64, 2048, tiles=2)
    large = small if quick else simulate(64, 2048, tiles=4)
    factor = large.counts.size / small.counts.size
    for step in _OURS.values():  # compiled kernels are loaded
        step(small)
    our_chain(small)
    shares = {"in memory": _their_steps(False), "lazy": _their_steps(True)}
    total: list[float] = []
    all_gates: dict[str, bool] = {}
    for name, ours in _OURS.items():
        best: tuple[list[float], list[float], Any, str] | None = None
        failed = []
        for way, steps in shares.items():
            try:
                mine, theirs, _, result = take_turns(
                    functools.partial(ours, large),
                    functools.partial(steps[name], small),
                    repetitions=1 if quick else REPETITIONS,
                )
            except Exception as error:  # what HyperSpy cannot do lazily it says in a dozen ways
                failed.append(f"{way}: {type(error).__name__}")
                continue
            theirs = [factor * seconds for seconds in theirs]
            if best is None or statistics.median(theirs) < statistics.median(best[1]):
                best = (mine, theirs, result, way)
        if best is None:
            yield Row(f"preprocessing: {name}", "HyperSpy", 0.0, 1.0, gates={"HyperSpy ran": False}, note=str(failed))
            continue
        gates, note = _gates(name, small, ours(small), best[2])
        total.append(statistics.median(best[1]))
        all_gates |= {f"{name}: {gate}": holds for gate, holds in gates.items()}
        note = "; ".join(
            [f"HyperSpy {best[3]}", *([f"not {', '.join(failed)}"] if failed else []), *([note] * bool(note))]
        )
        yield Row(
            f"preprocessing: {name}", "HyperSpy", ratio(best[0], best[1]), 1.0, False, best[0], best[1], gates, note
        )
    mine = [_seconds(functools.partial(our_chain, large)) for _ in range(1 if quick else REPETITIONS)]
    note = (
        f"ours on {large.counts.shape} in one chain ({large.megabytes / statistics.median(mine):.0f} MB/s); HyperSpy's "
        f"seconds are the sum of its steps on {small.counts.shape} times {factor:g}"
    )
    yield Row("preprocessing: all steps", "HyperSpy", ratio(mine, [sum(total)]), 25.0, False, mine, [sum(total)],
              all_gates, note)  # fmt: skip


def _throughput(quick: bool) -> Iterator[Row]:
    tile = simulate(32, 1024) if quick else simulate(64, 2048)
    sizes = (32, 64) if quick else (64, 128, 256, 512)
    with tempfile.TemporaryDirectory(prefix="eelsflow-benchmark-") as scratch:
        seconds: dict[int, float] = {}
        for size in sizes:
            raw = write_tiled(Path(scratch) / f"raw-{size}.zarr", tile.counts, tile.axis, (size, size))
            if size == sizes[0]:
                for preset in ("recommended", "paper"):
                    _prepare(raw, preset)
            repeated = size != sizes[-1] and not quick
            times = [_seconds(functools.partial(_prepare, raw, "recommended")) for _ in range(3 if repeated else 1)]
            seconds[size] = statistics.median(times)
            if size == sizes[-2]:
                megabytes = size * size * tile.axis.size * 2 / 1e6
                yield Row("preprocessing, recommended: MB/s, zarr to zarr", "", megabytes / seconds[size], 100.0,
                          ours=times, note=_shape_note(size, tile))  # fmt: skip
                times = [_seconds(functools.partial(_prepare, raw, "paper")) for _ in range(3 if repeated else 1)]
                yield Row("preprocessing, paper: MB/s, zarr to zarr", "", megabytes / statistics.median(times), 100.0,
                          ours=times, note=f"{_shape_note(size, tile)}; with PCA")  # fmt: skip
            shutil.rmtree(raw)
        exponent = float(np.polyfit(np.log([n * n for n in seconds]), np.log(list(seconds.values())), 1)[0])
        note = ", ".join(f"{n}^2 pixels {s:.2f} s" for n, s in seconds.items())
        yield Row("preprocessing: exponent of the time in the number of pixels", "", exponent, 1.1, at_most=True,
                  ours=list(seconds.values()), note=note)  # fmt: skip


def _shape_note(size: int, tile: Cube) -> str:
    return f"{size} x {size} x {tile.axis.size} uint16, {THREADS} threads"


def _prepare(raw: Path, preset: str) -> None:
    with threadpool_limits(1):
        prepare_blocks(
            raw, raw.with_name("out.zarr"), edge=O_K, preset=PRESETS[preset], executor=ThreadExecutor(THREADS)
        )


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rows(quick: bool, only: str = "") -> Iterator[Row]:
    """Measure and compare; quick: small cubes, the same gates. One of "hyperspy", "throughput" and "memory" alone."""
    with threadpool_limits(THREADS), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        if only in ("", "hyperspy"):
            yield from _against_hyperspy(quick)
        if only in ("", "throughput"):
            yield from _throughput(quick)
    if only in ("", "memory"):
        yield measure_memory(quick)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep HyperSpy's progress bars and reports out of the table, and Dask to as many threads as all others."""
    import dask

    with (
        dask.config.set(scheduler="threads", num_workers=THREADS),
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def main() -> None:
    """Print the rows."""
    print_rows(rows("--quick" in sys.argv))


if __name__ == "__main__":
    main()
