"""Blocks give what the whole gives, wherever they run, and nothing half-written is left."""

import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from eelsflow.edges import O_K
from eelsflow.errors import EdgeOutOfRangeError, InputError, OutputPathError, UnreadableFileError
from eelsflow.executors import DaskExecutor, Executor, LoopExecutor, ThreadExecutor
from eelsflow.io.zarr_store import (
    Block,
    blocks,
    open_dataset,
    open_spectrum_image,
    read_counts,
    write_spectrum_image,
)
from eelsflow.low_loss.companion import companion_of
from eelsflow.preprocess import blocks as prepare_module
from eelsflow.preprocess import transform as transform_module
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.presets import PRESETS
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import LowLossRecording, simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.spectrum_image import build_spectrum_image

SHAPE = (26, 22)
BLOCK = (16, 16)  # cuts the image unevenly: 2 x 2 blocks, three of them smaller


@pytest.fixture(scope="module")
def image() -> xr.DataArray:
    parameters = SIMULATED["paper"].model_copy(
        update={"shape": SHAPE, "axis": AxisParameters(start=470.0, n_channels=480)}
    )
    return simulate_acquisition(parameters, 11).image


@pytest.fixture(scope="module")
def raw(image: xr.DataArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spectrum_image(image, tmp_path_factory.mktemp("raw") / "cubes.zarr")


@pytest.fixture(scope="module")
def looped(raw: Path) -> Path:
    """Prepare the image by blocks in a plain loop: the oracle."""
    out = raw.with_name("looped.zarr")
    prepare_blocks(raw, out, edge=O_K, preset=PRESETS["recommended"], block_shape=BLOCK)
    return out


@pytest.fixture(scope="module")
def dask_executor() -> Iterator[DaskExecutor]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield DaskExecutor(client)


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def assert_same_product(one: xr.Dataset, other: xr.Dataset) -> None:
    """Equal to rounding: sums run over blocks in another order, in float32 where the counts are."""
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        ours, theirs = one[name].values, other[name].values
        if ours.dtype.kind == "f":
            np.testing.assert_allclose(
                ours, theirs, rtol=2e-5, atol=1e-5 * max(np.nanmax(np.abs(ours)), 1), err_msg=str(name)
            )
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=str(name))
    assert set(one.attrs) == set(other.attrs)
    for name, value in one.attrs.items():
        expected = pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value
        assert other.attrs[name] == expected, name


@pytest.mark.parametrize("n_y", [1, 8, 26, 64])
@pytest.mark.parametrize("n_x", [1, 16, 22])
def test_blocks_cover_the_image_exactly_once(n_y: int, n_x: int) -> None:
    covered = np.zeros((n_y, n_x), dtype=int)
    for block in blocks(n_y, n_x, block_shape=BLOCK):
        covered[block.y, block.x] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_blocks_equal_the_whole(image: xr.DataArray, looped: Path, raw: Path, tmp_path: Path, preset: str) -> None:
    if preset == "recommended":
        product = open_dataset(looped)
    else:
        prepare_blocks(raw, tmp_path / "out.zarr", edge=O_K, preset=PRESETS[preset], block_shape=BLOCK)
        product = open_dataset(tmp_path / "out.zarr")
    assert_same_product(product, prepare(image, edge=O_K, preset=PRESETS[preset]))


class Weighing(LoopExecutor):
    """Knows how much is sent to a worker, and back, for the largest piece of each kind of work: bytes, pickled."""

    shares_memory = False

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        self.returned: dict[str, int] = {}

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], *, label: str = "") -> list[Any]:
        results = super().map(function, items, label=label)
        self.sent[label] = max(len(pickle.dumps((function, item))) for item in items)
        self.returned[label] = max(len(pickle.dumps(result)) for result in results)
        return results


@pytest.mark.parametrize("preset", ["recommended", "paper", "deconvolved"])
def test_what_a_worker_is_sent_does_not_grow_with_the_image(preset: str, tmp_path: Path) -> None:
    """Maps of the whole image went to every worker with every block, and filled their memory."""
    axis = AxisParameters(start=470.0, n_channels=480)
    parameters = SIMULATED["paper"].model_copy(update={"shape": (16, 16), "axis": axis})
    pair = simulate_acquisition(parameters, 11, low_loss=LowLossRecording())
    weighed = []
    for times in (3, 6):  # three: one of its blocks has neighbours on all sides
        raw, low = (
            write_spectrum_image(tiled(image, times), tmp_path / f"{name}-{times}.zarr")
            for name, image in (("raw", pair.image), ("low", pair.low_loss))
        )
        weighing = Weighing()
        shape = (16 * times, 16 * times)
        prepare_blocks(
            raw,
            tmp_path / "out.zarr",
            edge=O_K,
            preset=PRESETS[preset],
            companion=companion_of(open_spectrum_image(low), shape=shape, store=low),
            executor=weighing,
            block_shape=(16, 16),
        )
        weighed.append(weighing)
    few, many = weighed
    assert few.sent.keys() == many.sent.keys()
    for name in few.sent:
        assert many.sent[name] < 1.25 * few.sent[name], name
        assert many.returned[name] < 1.25 * few.returned[name] + 2000, name


def tiled(image: xr.DataArray, times: int) -> xr.DataArray:
    return build_spectrum_image(
        np.tile(image.values, (times, times, 1)), image["energy_loss"].values, sha256="0" * 64, source="tiled"
    )


def test_loop_threads_and_dask_agree(raw: Path, looped: Path, tmp_path: Path, dask_executor: DaskExecutor) -> None:
    executors: dict[str, Executor] = {"threads": ThreadExecutor(3), "dask": dask_executor}
    for name, executor in executors.items():
        prepare_blocks(
            raw, tmp_path / name, edge=O_K, preset=PRESETS["recommended"], executor=executor, block_shape=BLOCK
        )
        xr.testing.assert_identical(open_dataset(looped).load(), open_dataset(tmp_path / name).load())


@pytest.mark.parametrize(("held", "n_readings"), [(True, 1), (False, 5)])
def test_small_images_are_read_once(
    raw: Path, looped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool, n_readings: int
) -> None:
    """What is held is bounded; larger images are read once for each step that needs the counts, and give the same."""
    readings: list[Block] = []

    def counted(path: Path, block: Block) -> np.ndarray:
        readings.append(block)
        return read_counts(path, block)

    image = open_spectrum_image(raw)
    monkeypatch.setattr(prepare_module, "HELD_BYTES", image.nbytes if held else image.nbytes - 1)
    monkeypatch.setattr(transform_module, "read_counts", counted)
    out = tmp_path / "out.zarr"
    prepare_blocks(raw, out, edge=O_K, preset=PRESETS["recommended"], executor=ThreadExecutor(2), block_shape=BLOCK)
    xr.testing.assert_identical(open_dataset(looped).load(), open_dataset(out).load())
    assert len(readings) == n_readings * len(blocks(*image.shape[:2], block_shape=BLOCK))


class RepeatingExecutor(LoopExecutor):
    """Writes every block twice, as a cluster does that lost a worker after its work was done; weighs what it sends."""

    shares_memory = False

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def map(self, function: Callable[..., Any], items: Sequence[Any], *, label: str = "") -> list[Any]:
        self.sizes += [len(pickle.dumps((function, item))) for item in items]
        if label.startswith("write"):
            super().map(function, items, label=label)
        return super().map(function, items, label=label)


def test_repeated_writes_are_harmless_and_little_is_sent(raw: Path, looped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    shutil.copytree(looped, out)
    executor = RepeatingExecutor()
    prepare_blocks(raw, out, edge=O_K, preset=PRESETS["recommended"], executor=executor, block_shape=BLOCK)
    xr.testing.assert_identical(open_dataset(looped).load(), open_dataset(out).load())
    assert names_in(tmp_path) == ["out.zarr"]
    # noise, references and the like of 480 channels, about 20 rows of them in float64
    assert max(executor.sizes) < 100_000


class FailingExecutor(LoopExecutor):
    """Fails at the last block of the last pass."""

    def map(self, function: Callable[..., Any], items: Sequence[Any], *, label: str = "") -> list[Any]:
        if label.startswith("write"):
            super().map(function, items[:-1], label=label)
            raise RuntimeError("the cluster is gone")
        return super().map(function, items, label=label)


def test_a_run_that_fails_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the cluster is gone"):
        prepare_blocks(
            raw,
            tmp_path / "out.zarr",
            edge=O_K,
            preset=PRESETS["recommended"],
            executor=FailingExecutor(),
            block_shape=BLOCK,
        )
    assert names_in(tmp_path) == []


def test_an_error_in_a_block_names_acquisition_and_block(raw: Path, tmp_path: Path) -> None:
    class CuttingExecutor(LoopExecutor):
        shares_memory = False  # as a cluster, which reads anew for each step

        def map(self, function: Callable[..., Any], items: Sequence[Any], *, label: str = "") -> list[Any]:
            if label == "sum specimen":
                shutil.rmtree(raw_copy / "counts" / "c")
            return super().map(function, items, label=label)

    raw_copy = tmp_path / "copy.zarr"
    shutil.copytree(raw, raw_copy)
    with pytest.raises(UnreadableFileError, match=r"copy.zarr, block y 0-16, x 0-16: .*damaged"):
        prepare_blocks(
            raw_copy,
            tmp_path / "out.zarr",
            edge=O_K,
            preset=PRESETS["recommended"],
            executor=CuttingExecutor(),
            block_shape=BLOCK,
        )
    assert not (tmp_path / "out.zarr").exists()


def test_refused_images_leave_nothing(image: xr.DataArray, tmp_path: Path) -> None:
    counts = image.values.astype(np.float32)
    counts[20:, 0:20, 5] = np.nan
    broken = build_spectrum_image(counts, image["energy_loss"].values)
    elsewhere = build_spectrum_image(image.values, image["energy_loss"].values + 300)
    for bad, error, message in (
        (broken, InputError, "120 of 572 pixels are lost: 120 with NaN or infinite counts .the first y=20, x=0"),
        (elsewhere, EdgeOutOfRangeError, "cannot show the O_K edge"),
    ):
        raw = write_spectrum_image(bad, tmp_path / "raw.zarr")
        with pytest.raises(error, match=message):
            prepare_blocks(raw, tmp_path / "out.zarr", edge=O_K, preset=PRESETS["recommended"], block_shape=BLOCK)
        assert names_in(tmp_path) == ["raw.zarr"]


def test_an_output_path_below_a_file_is_refused(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputPathError, match="cannot write"):
        prepare_blocks(raw, tmp_path / "file" / "out.zarr", edge=O_K, preset=PRESETS["none"])
