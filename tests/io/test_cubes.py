"""Blocks by TensorStore: the same values as by zarr, and errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from eelsflow.io.cubes import Cube


def make_array(folder: Path) -> Path:
    zarr.create_array(
        folder,
        shape=(6, 5, 3),
        shards=(4, 4, 3),
        chunks=(2, 2, 3),
        dtype="uint16",
        fill_value=0,
        dimension_names=("y", "x", "energy_loss"),
    )
    return folder


def test_what_is_written_is_what_zarr_reads(tmp_path: Path) -> None:
    path = make_array(tmp_path / "counts")
    values = np.random.default_rng(1).integers(0, 9, (4, 4, 3)).astype(float)
    values[:2] = 0
    cube = Cube(path, writable=True)
    cube.write((slice(0, 4), slice(0, 4), slice(0, 3)), values)
    cube.write((slice(4, 6), slice(0, 4), slice(0, 3)), np.zeros((2, 4, 3)))
    assert (cube.dims, cube.shape, cube.shards) == (("y", "x", "energy_loss"), (6, 5, 3), (4, 4, 3))
    written = zarr.open_array(path, mode="r")[:]
    np.testing.assert_array_equal(written[:4, :4], values)
    files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    assert sorted(files) == ["c/0/0/0", "c/1/0/0", "zarr.json"]  # zeros are written, and no temporary file stays


def test_what_zarr_writes_is_what_is_read(tmp_path: Path) -> None:
    path = make_array(tmp_path / "counts")
    values = np.random.default_rng(2).integers(0, 60000, (6, 5, 3)).astype("uint16")
    zarr.open_array(path, mode="r+")[:] = values
    found = Cube(path).read((slice(1, 6), slice(0, 5)))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, values[1:])


def test_missing_array_and_unwritable_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nothing/zarr\.json.* does not exist"):
        Cube(tmp_path / "nothing")
    path = make_array(tmp_path / "counts")
    cube = Cube(path, writable=True)
    (path / "c").write_text("in the way")
    with pytest.raises(OSError, match="c/0/0/0"):
        cube.write((slice(0, 4), slice(0, 4), slice(0, 3)), np.zeros((4, 4, 3)))
