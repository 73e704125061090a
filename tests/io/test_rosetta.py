import json
import shutil
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from eelsflow.digest import digest_file
from eelsflow.errors import InputError, MissingDependencyError, UnreadableFileError
from eelsflow.io.read import read_spectrum_image
from eelsflow.report.map_figure import save_map_tiff
from eelsflow.spectrum_image import check_spectrum_image
from tests.io.cube_files import COUNTS, CUBES, write_nion_hdf5, write_panta_rhei, write_ripple, write_ser
from tests.io.dm_files import write_dm


@pytest.mark.parametrize("name", CUBES)
def test_file_of_each_format_gives_the_same_image(cubes, name):
    image = read_spectrum_image(cubes / name)
    check_spectrum_image(image)
    np.testing.assert_array_equal(image, COUNTS)
    np.testing.assert_allclose(image["energy_loss"], 500 + 0.5 * np.arange(20), rtol=1e-9)
    assert (image.attrs["pixel_size"], image.attrs["pixel_unit"]) == (pytest.approx(2.0), "nm")
    assert image.attrs["sha256"] == digest_file(cubes / name)


@pytest.mark.parametrize("name", ["cube.dm3", "cube.dm4", "cube.hspy", "cube.zspy", "velox.emd", "cube.rpl"])
def test_lazy_counts_are_the_same(cubes, name):
    image = read_spectrum_image(cubes / name, lazy=True)
    assert image.chunks is not None
    np.testing.assert_array_equal(image, COUNTS)


def test_digest_of_a_ripple_file_covers_its_counts(tmp_path):
    path = write_ripple(tmp_path / "a.rpl")
    before = digest_file(path)
    raw = bytearray(path.with_suffix(".raw").read_bytes())
    raw[5] ^= 1
    path.with_suffix(".raw").write_bytes(raw)
    assert digest_file(path) != before


def test_ripple_file_without_its_counts_or_with_others_is_refused(tmp_path):
    path = write_ripple(tmp_path / "a.rpl")
    raw = path.with_suffix(".raw")
    raw.write_bytes(raw.read_bytes()[:-4])
    with pytest.raises(UnreadableFileError, match=r"announces 960 bytes of counts and a\.raw holds 956"):
        read_spectrum_image(path)
    raw.unlink()
    with pytest.raises(UnreadableFileError, match=r"a\.raw, which is missing: copy both"):
        read_spectrum_image(path)


def test_big_endian_dm_file_is_refused_rather_than_misread(tmp_path):
    path = write_dm(tmp_path / "a.dm3", COUNTS, start=500.0, step=0.5, pixel_nm=2.0, little_endian=False)
    with pytest.raises(UnreadableFileError, match="its numbers are big-endian"):
        read_spectrum_image(path)


def test_array_that_was_never_written_is_refused_before_memory_is_filled_with_zeros(tmp_path):
    path = write_nion_hdf5(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        properties = file["data"].attrs["properties"]
        del file["data"]
        file.create_dataset("data", (1 << 20, 1 << 20, 20), "f4", chunks=(64, 64, 20)).attrs["properties"] = properties
    with pytest.raises(UnreadableFileError, match="array /data announces 87960930222080 bytes, and 0 are stored"):
        read_spectrum_image(path)


def test_damaged_chunk_of_lazy_counts_is_told_when_they_are_computed(cubes, tmp_path):
    path = Path(shutil.copytree(cubes / "cube.zspy", tmp_path / "a.zspy"))
    chunk = next(path.rglob("data/0.0.0"))
    chunk.write_bytes(chunk.read_bytes()[:16] + bytes(chunk.stat().st_size - 16))
    image = read_spectrum_image(path, lazy=True)
    with pytest.raises(UnreadableFileError, match=r"a\.zspy is not a readable HyperSpy zarr file") as error:
        image.compute()
    assert "\n" not in str(error.value)


def test_spectrum_longer_than_its_ser_file_is_refused(tmp_path):
    path = write_ser(tmp_path / "a.ser")
    content = path.read_bytes()
    length = content.index(struct.pack("<HI", 7, 20)) + 2
    path.write_bytes(content[:length] + struct.pack("<I", 1 << 29) + content[length + 4 :])
    with pytest.raises(UnreadableFileError, match="is truncated: it announces 12 spectra"):
        read_spectrum_image(path)


def test_ser_file_of_images_is_refused(tmp_path):
    with pytest.raises(UnreadableFileError, match="holds images, no spectra"):
        read_spectrum_image(write_ser(tmp_path / "a.ser", images=True))


def test_pickled_metadata_of_panta_rhei_are_not_loaded(tmp_path):
    with pytest.raises(UnreadableFileError, match="pickled Python objects, which are never loaded") as error:
        read_spectrum_image(write_panta_rhei(tmp_path / "a.prz", pickled=True))
    assert "allow" not in str(error.value)


@pytest.mark.parametrize("shape", [(8, 9), (5, 8, 9), (8, 9, 3)])
def test_tiff_that_is_a_picture_is_refused_in_one_line(tmp_path, shape):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros(shape, "uint8"), photometric="rgb" if shape[-1] == 3 else "minisblack"
    )
    with pytest.raises(InputError, match=r"a\.tif is a picture, or a stack of pictures") as error:
        read_spectrum_image(tmp_path / "a.tif")
    assert "\n" not in str(error.value)


def test_tiff_of_a_map_of_ours_is_refused(tmp_path):
    save_map_tiff(tmp_path / "map.tif", np.zeros((5, 6), "float32"), 2.0)
    with pytest.raises(UnreadableFileError, match="is a picture"):
        read_spectrum_image(tmp_path / "map.tif")


def test_name_that_its_reader_would_not_know_says_so(tmp_path):
    path = write_panta_rhei(tmp_path / "a.PRZ")
    with pytest.raises(UnreadableFileError, match=r"'\.PRZ'; its reader knows '\.prz' only: rename it"):
        read_spectrum_image(path)
    assert read_spectrum_image(write_ripple(tmp_path / "a.RPL")).shape == (3, 4, 20)


def test_title_is_kept(cubes):
    assert json.loads(read_spectrum_image(cubes / "cube.ndata").attrs["metadata"])["signal"]["title"] == "core loss"


def test_reader_that_needs_a_package_says_which(cubes, monkeypatch):
    monkeypatch.setitem(sys.modules, "rsciio.tia", None)
    with pytest.raises(MissingDependencyError, match=r"reading scan_1\.ser needs rsciio\.tia"):
        read_spectrum_image(cubes / "scan_1.ser")
