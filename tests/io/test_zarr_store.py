import json
import pickle
import shutil
from pathlib import Path

import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.errors import OutputPathError, SpectrumImageSchemaError, UnreadableFileError
from eelsflow.io import zarr_store
from eelsflow.io.zarr_store import (
    Block,
    blocks,
    create_store,
    empty_variable,
    finalise_store,
    open_dataset,
    open_spectrum_image,
    remove_unfinished,
    write_block,
    write_dataset,
    write_spectrum_image,
    write_variables,
)
from eelsflow.spectrum_image import build_spectrum_image
from tests.strategies import examples, fractions


def make_image(shape: tuple[int, ...] = (5, 7, 40), dtype: str = "uint16", seed: int = 0) -> xr.DataArray:
    counts = np.random.default_rng(seed).poisson(100, shape).astype(dtype)
    return build_spectrum_image(
        counts,
        500.0 + 0.25 * np.arange(shape[-1]),
        pixel_size=2.1,
        pixel_unit="nm",
        sha256="ab" * 32,
        source="cube.dm4",
        metadata={"beam_energy": 200},
    )


def shard_files(store: Path, name: str = "counts") -> list[Path]:
    return sorted(file for file in (store / name / "c").rglob("*") if file.is_file())


@examples(20)
@given(
    y=st.integers(1, 70),
    x=st.integers(1, 70),
    block=st.sampled_from([(64, 64), (32, 64), (16, 8), (33, 40)]),
    dtype=st.sampled_from(["uint16", "float32", "int32"]),
)
def test_spectrum_image_survives_the_store_unchanged(tmp_path_factory, y, x, block, dtype):
    path = tmp_path_factory.mktemp("store") / "counts.zarr"
    image = make_image((y, x, 6), dtype)
    assert write_spectrum_image(image, path, block_shape=block) == path
    xr.testing.assert_identical(open_spectrum_image(path), image)


def test_opened_image_is_lazy_and_slicing_reads_only_what_is_asked_for(tmp_path):
    image = make_image((70, 70, 16))
    write_spectrum_image(image, tmp_path / "counts.zarr", block_shape=(32, 32))
    opened = open_spectrum_image(tmp_path / "counts.zarr")
    damaged = shard_files(tmp_path / "counts.zarr")[-1]
    damaged.write_bytes(bytes(damaged.stat().st_size))  # a part that nobody asks for
    assert not opened.variable._in_memory
    xr.testing.assert_identical(opened[3:5, 10].load(), image[3:5, 10])
    np.testing.assert_array_equal(opened.isel(y=[0, 2], x=[1, 0]), image.isel(y=[0, 2], x=[1, 0]))
    picked = {"y": xr.DataArray([0, 2], dims="spectrum"), "x": xr.DataArray([1, 0], dims="spectrum")}
    np.testing.assert_array_equal(opened.isel(picked), image.isel(picked))
    with pytest.raises(UnreadableFileError, match="damaged zarr store"):
        opened.load()


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (-1, slice(None)),
        (slice(None, None, -1), slice(1, 100)),
        (slice(-3, None), [-1, 0, -7]),
        (slice(1, 5, 2), slice(4, 2)),
        (slice(100, 200), 0),
        ([3, 3], np.int64(-2)),
    ],
)
def test_pixels_are_chosen_as_numpy_does(tmp_path, rows, columns):
    image = make_image()
    opened = open_spectrum_image(write_spectrum_image(image, tmp_path / "counts.zarr"))
    chosen = opened.isel(y=rows, x=columns)
    assert not chosen.variable._in_memory
    np.testing.assert_array_equal(chosen.values, image.isel(y=rows, x=columns).values)


def test_opened_image_travels_to_a_worker(tmp_path):
    image = make_image()
    write_spectrum_image(image, tmp_path / "counts.zarr")
    opened = open_spectrum_image(tmp_path / "counts.zarr")
    xr.testing.assert_identical(pickle.loads(pickle.dumps(opened)), image)


def test_any_zarr_reader_sees_shards_of_whole_spectra(tmp_path):
    write_spectrum_image(make_image((70, 70, 16)), tmp_path / "counts.zarr")
    with xr.open_zarr(tmp_path / "counts.zarr", consolidated=False) as dataset:
        counts = dataset["counts"]
        assert counts.dims == ("y", "x", "energy_loss")
        assert counts.encoding["shards"] == (64, 64, 16)
        assert counts.encoding["chunks"] == (32, 32, 16)


def test_dask_backed_image_is_written_block_by_block(tmp_path):
    image = make_image((70, 5, 8))
    write_spectrum_image(image.chunk({"y": 13}), tmp_path / "counts.zarr", block_shape=(16, 16))
    xr.testing.assert_identical(open_spectrum_image(tmp_path / "counts.zarr"), image)


def test_image_of_zeros_has_all_its_files(tmp_path):
    image = make_image().copy(data=np.zeros((5, 7, 40), "uint16"))
    write_spectrum_image(image, tmp_path / "counts.zarr")
    assert len(shard_files(tmp_path / "counts.zarr")) == 1
    xr.testing.assert_identical(open_spectrum_image(tmp_path / "counts.zarr"), image)


def test_same_image_gives_the_same_bytes(tmp_path):
    first = write_spectrum_image(make_image((40, 40, 16)), tmp_path / "a.zarr")
    second = write_spectrum_image(make_image((40, 40, 16)), tmp_path / "b.zarr")
    names = sorted(str(file.relative_to(first)) for file in first.rglob("*") if file.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_dataset_keeps_types_strings_and_attributes(tmp_path):
    dataset = xr.Dataset(
        {
            "intensity": (("y", "x", "energy_loss"), np.full((3, 2, 4), np.nan, "float32"), {"units": "counts"}),
            "phase_fraction": (("phase", "y", "x"), np.arange(12.0).reshape(2, 3, 2)),
            "vacuum_mask": (("y", "x"), np.eye(3, 2, dtype=bool)),
            "valid": (("energy_loss",), np.array([True, True, False, True])),
            "mean_spectrum": (("native_channel",), np.arange(9.0)),
            "offset": ((), np.float64(7.2)),
            "nothing": (("none",), np.zeros(0)),
        },
        coords={"energy_loss": 513.0 + 0.1 * np.arange(4), "phase": ["FeO", "Fe3O4"]},
        attrs={"rank": -1, "edge": {"name": "O_K"}, "warnings": []},
    )
    path = write_dataset(dataset, tmp_path / "prepared.zarr", attrs={"gain": np.float32(2.5), "dead": np.array([3])})
    opened = open_dataset(path)
    xr.testing.assert_identical(opened, dataset.assign_attrs(gain=2.5, dead=[3]))
    assert opened["vacuum_mask"].dtype == bool
    assert opened["phase"].dtype.kind == "U"


def test_long_tables_are_cut_along_spectra_only(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_store, "_MAX_CHUNK_BYTES", 1000)
    table = xr.Dataset({"spectra": (("spectrum", "energy_loss"), np.arange(800.0).reshape(40, 20))})
    path = write_dataset(table, tmp_path / "table.zarr")
    xr.testing.assert_identical(open_dataset(path), table)
    assert len(shard_files(path, "spectra")) == 7  # 6 rows of 160 bytes fit in 1000


def test_block_writers_fill_a_template_in_any_order_and_repeats_are_harmless(tmp_path):
    path = tmp_path / "prepared.zarr"
    image = make_image((40, 20, 8), "float32")
    template = xr.Dataset(
        {
            "intensity": empty_variable(image.dims, image.shape, "float32", units="counts"),
            "status": empty_variable(("y", "x"), (40, 20), "uint8"),
            "mean": empty_variable(("energy_loss",), (8,), "float64"),
        }
    )
    store = create_store(template, path, block_shape=(16, 16))
    assert not path.exists()
    for block in [*reversed(blocks(40, 20, block_shape=(16, 16))), Block(slice(16, 32), slice(0, 16))]:
        values = image[block.y, block.x].values
        write_block(store, block, {"intensity": values})
    write_variables(store, {"status": np.arange(800).reshape(40, 20) % 7, "mean": image.mean(("y", "x")).values})
    for left_by_a_killed_writer in ("0.__lock", "0.5c0e.partial"):
        (store / "intensity" / "c" / "0" / "0" / left_by_a_killed_writer).touch()
    finalise_store(store, path, attrs={"schema": "eelsflow-prepared/1"})
    assert not [file for file in path.rglob("*") if file.suffix in (".__lock", ".partial")]
    opened = open_dataset(path)
    np.testing.assert_array_equal(opened["intensity"], image)
    np.testing.assert_array_equal(opened["status"], np.arange(800).reshape(40, 20) % 7)
    np.testing.assert_allclose(opened["mean"], image.mean(("y", "x")), rtol=1e-6)  # float32 sums
    assert opened.attrs == {"schema": "eelsflow-prepared/1"}
    assert list(tmp_path.iterdir()) == [path]


def test_unfinished_store_is_not_finalised_and_cannot_be_opened(tmp_path):
    path = tmp_path / "prepared.zarr"
    template = xr.Dataset(
        {
            "counts": empty_variable(("y", "x", "energy_loss"), (40, 20, 8), "uint8"),
            "status": empty_variable(("y", "x"), (40, 20), "uint8"),
        }
    )
    store = create_store(template, path, block_shape=(16, 16))
    write_variables(store, {"status": np.zeros((40, 20))})
    write_block(store, Block(slice(0, 16), slice(0, 16)), {"counts": np.zeros((16, 16, 8))})
    with pytest.raises(ValueError, match="1 of 6 shards of counts were written"):
        finalise_store(store, path)
    assert not path.exists()
    with pytest.raises(UnreadableFileError, match="never finished"):
        open_dataset(store)
    remove_unfinished(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("block", "shape", "match"),
    [
        (Block(slice(8, 24), slice(0, 16)), (16, 16, 8), "cuts shards of counts along y"),
        (Block(slice(0, 16), slice(0, 16)), (16, 15, 8), "has shape"),
    ],
)
def test_write_block_refuses_what_does_not_own_whole_shards(tmp_path, block, shape, match):
    template = xr.Dataset({"counts": empty_variable(("y", "x", "energy_loss"), (40, 20, 8), "uint8")})
    store = create_store(template, tmp_path / "prepared.zarr", block_shape=(16, 16))
    with pytest.raises(ValueError, match=match):
        write_block(store, block, {"counts": np.zeros(shape)})


def test_map_that_was_not_written_is_missed(tmp_path):
    template = xr.Dataset({"status": empty_variable(("y", "x"), (40, 20), "uint8")})
    store = create_store(template, tmp_path / "prepared.zarr")
    with pytest.raises(ValueError, match="0 of 1 shards of status were written"):
        finalise_store(store, tmp_path / "prepared.zarr")


@examples(50)
@given(y=st.integers(1, 200), x=st.integers(1, 200), block=st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_blocks_cover_every_pixel_exactly_once(y, x, block):
    covered = np.zeros((y, x), int)
    for part in blocks(y, x, block_shape=block):
        covered[part.y, part.x] += 1
    assert (covered == 1).all()


def test_failed_write_leaves_nothing_and_keeps_the_old_store(tmp_path):
    path = tmp_path / "counts.zarr"
    image = make_image()
    write_spectrum_image(image, path)

    def fail(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("the detector is on fire")

    lazy = dask.array.zeros(image.shape, dtype="uint16").map_blocks(fail, dtype="uint16", meta=np.zeros((0, 0, 0)))
    with pytest.raises(RuntimeError, match="on fire"):
        write_spectrum_image(image.copy(data=lazy), path)
    xr.testing.assert_identical(open_spectrum_image(path), image)
    assert list(tmp_path.iterdir()) == [path]


def test_writing_again_replaces_the_store(tmp_path):
    path = tmp_path / "counts.zarr"
    write_spectrum_image(make_image((40, 40, 8)), path)
    image = make_image((3, 3, 8), seed=1)
    write_spectrum_image(image, path)
    xr.testing.assert_identical(open_spectrum_image(path), image)
    assert list(tmp_path.iterdir()) == [path]


def test_write_refuses_a_path_below_a_file_and_one_that_is_something_else(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(OutputPathError, match="cannot write to"):
        write_spectrum_image(make_image(), tmp_path / "file" / "counts.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").write_text("text")
    with pytest.raises(OutputPathError, match="is not a zarr store"):
        write_spectrum_image(make_image(), tmp_path / "folder")
    assert (tmp_path / "folder" / "precious.txt").read_text() == "text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_write_refuses_an_image_that_breaks_the_schema(tmp_path):
    with pytest.raises(SpectrumImageSchemaError, match="transpose"):
        write_spectrum_image(make_image().transpose("energy_loss", "y", "x"), tmp_path / "counts.zarr")


def test_write_refuses_what_a_store_cannot_hold(tmp_path):
    with pytest.raises(TypeError, match="numbers, booleans and strings"):
        write_dataset(xr.Dataset({"when": ("t", np.zeros(2, "datetime64[ns]"))}), tmp_path / "a.zarr")
    with pytest.raises(TypeError, match="attribute 'who' cannot be stored"):
        write_dataset(xr.Dataset({"a": ("t", np.zeros(2))}), tmp_path / "a.zarr", attrs={"who": object()})
    assert list(tmp_path.iterdir()) == []


def damage_missing_shard(store: Path) -> None:
    shard_files(store)[0].unlink()


def damage_short_shard(store: Path) -> None:
    shard = shard_files(store)[0]
    shard.write_bytes(shard.read_bytes()[:-20])


def damage_missing_array(store: Path) -> None:
    shutil.rmtree(store / "counts")


def damage_root_metadata(store: Path) -> None:
    (store / "zarr.json").write_text((store / "zarr.json").read_text()[:-10])


def damage_no_metadata(store: Path) -> None:
    (store / "zarr.json").unlink()


def damage_no_seal(store: Path) -> None:
    root = json.loads((store / "zarr.json").read_text())
    del root["attributes"]["eelsflow_seal"]
    (store / "zarr.json").write_text(json.dumps(root))


def damage_everything(store: Path) -> None:
    shutil.rmtree(store)


@pytest.mark.parametrize(
    "damage",
    [
        damage_missing_shard,
        damage_short_shard,
        damage_missing_array,
        damage_root_metadata,
        damage_no_metadata,
        damage_no_seal,
        damage_everything,
    ],
)
def test_damaged_store_is_refused_when_opened(tmp_path, damage):
    path = write_spectrum_image(make_image((40, 40, 8)), tmp_path / "counts.zarr", block_shape=(32, 32))
    damage(path)
    with pytest.raises(UnreadableFileError, match=r"counts\.zarr"):
        open_spectrum_image(path)


@examples(25)
@given(position=fractions(exclude_high=True), bit=st.integers(0, 7))
def test_flipped_bit_in_a_shard_never_gives_other_counts(tmp_path_factory, position, bit):
    image = make_image((4, 4, 16))
    path = write_spectrum_image(image, tmp_path_factory.mktemp("store") / "counts.zarr")
    shard = shard_files(path)[0]
    content = bytearray(shard.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    shard.write_bytes(bytes(content))
    with pytest.raises(UnreadableFileError, match="damaged zarr store"):
        open_spectrum_image(path).load()


def test_open_spectrum_image_refuses_another_kind_of_store(tmp_path):
    path = write_dataset(xr.Dataset({"a": ("t", np.zeros(2))}), tmp_path / "a.zarr", attrs={"schema": "other/1"})
    with pytest.raises(UnreadableFileError, match="kind 'other/1', not a spectrum image"):
        open_spectrum_image(path)
