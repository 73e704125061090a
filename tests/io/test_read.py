import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import dask.array
import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.digest import digest_file
from eelsflow.errors import EelsflowError, InputError, UnreadableFileError
from eelsflow.io import counts as counts_module
from eelsflow.io import hdf5
from eelsflow.io.formats import is_readable_name
from eelsflow.io.read import read_low_loss, read_spectrum_image
from eelsflow.io.tables import read_spectra_table
from eelsflow.io.zarr_store import write_spectrum_image
from eelsflow.spectrum_image import build_spectrum_image, check_spectrum_image
from tests.io.cube_files import copy_to_zarr
from tests.strategies import examples, fractions

ENERGY = {"name": "Energy loss", "units": "eV", "scale": 0.5, "offset": 500.0}
X = {"name": "x", "units": "nm", "scale": 2.0, "offset": 0.0, "navigate": True}
Y = {"name": "y", "units": "nm", "scale": 2.0, "offset": 0.0, "navigate": True}


def make_counts(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).poisson(200, shape).astype("float32")


def make_signal(data: np.ndarray, *axes: dict[str, Any], signal_type: str = "EELS", title: str = "") -> dict[str, Any]:
    described = [
        {"_type": "UniformDataAxis", "navigate": False, "is_binned": False, **axis, "size": size, "index_in_array": i}
        for i, (axis, size) in enumerate(zip(axes, data.shape, strict=True))
    ]
    return {
        "data": data,
        "axes": described,
        "metadata": {"Signal": {"signal_type": signal_type}, "General": {"title": title}},
        "original_metadata": {"beam_energy": 200.0},
        "attributes": {"_lazy": False, "ragged": False},
        "learning_results": {},
        "package_info": {"package": "test", "package_version": "1"},
        "models": {},
        "tmp_parameters": {},
    }


def write(path: Path, signal: dict[str, Any]) -> Path:
    if path.suffix == ".zspy":
        with h5py.File(write(path.with_suffix(".hspy"), signal)) as file:
            copy_to_zarr(file, zarr.open_group(path, mode="w", zarr_format=2))
        return path
    plugin = {".hspy": "hspy", ".msa": "msa", ".emd": "emd"}[path.suffix]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the writer
        importlib.import_module(f"rsciio.{plugin}").file_writer(str(path), signal)
    return path


@pytest.fixture
def served(monkeypatch):
    """Let the reader of .hspy files return these signals, as only other formats would."""

    def serve(path: Path, *signals: dict[str, Any]) -> xr.DataArray:
        h5py.File(path, "w").close()
        module = importlib.import_module("rsciio.hspy")
        monkeypatch.setattr(module, "file_reader", lambda name, lazy=False: list(signals))
        return read_spectrum_image(path)

    return serve


@pytest.mark.parametrize("suffix", [".hspy", ".zspy", ".emd"])
def test_spectrum_image_becomes_the_schema(tmp_path, suffix):
    counts = make_counts(3, 4, 20)
    path = write(tmp_path / f"cube{suffix}", make_signal(counts, Y, X, ENERGY, title="core loss"))
    image = read_spectrum_image(path)
    check_spectrum_image(image)
    np.testing.assert_array_equal(image, counts)
    np.testing.assert_allclose(image["energy_loss"], 500 + 0.5 * np.arange(20), rtol=1e-12)
    assert (image.attrs["pixel_size"], image.attrs["pixel_unit"]) == (2.0, "nm")
    assert image.attrs["sha256"] == digest_file(path)
    assert image.attrs["source"] == path.name


def test_metadata_is_kept_as_json_and_names_the_signal(tmp_path):
    path = write(tmp_path / "cube.hspy", make_signal(make_counts(3, 20), X, ENERGY, title="core loss"))
    metadata = json.loads(read_spectrum_image(path).attrs["metadata"])
    assert metadata["signal"] == {"title": "core loss", "signal_type": "EELS", "index": 0, "of": 1}
    assert metadata["original_metadata"] == {"beam_energy": 200.0}


def test_line_scan_has_one_row_and_a_spectrum_one_pixel(tmp_path):
    line, spectrum = make_counts(5, 20), make_counts(20)
    scan = read_spectrum_image(write(tmp_path / "line.hspy", make_signal(line, Y, ENERGY)))
    assert scan.shape == (1, 5, 20)
    np.testing.assert_array_equal(scan[0], line)
    single = read_spectrum_image(write(tmp_path / "one.msa", make_signal(spectrum, ENERGY)))
    assert single.shape == (1, 1, 20)
    np.testing.assert_allclose(single[0, 0], spectrum, rtol=1e-6)  # printed in decimals
    assert single.attrs["pixel_unit"] == "px"


@pytest.mark.parametrize(
    ("order", "axes"),
    [
        ((2, 0, 1), (ENERGY, Y, X)),
        ((2, 1, 0), (ENERGY, X, Y)),
        ((0, 2, 1), (Y, ENERGY, X)),
        ((1, 0, 2), (X, Y, ENERGY)),
        ((0, 1, 2), ({"name": "slow"}, {"name": "fast"}, ENERGY)),
    ],
)
def test_axes_are_found_by_name_and_unit_in_any_order(tmp_path, served, order, axes):
    counts = make_counts(3, 4, 20)
    calibrated = [{"units": "", "scale": 1.0, "offset": 0.0, **axis} for axis in axes]
    image = served(tmp_path / "a.hspy", make_signal(counts.transpose(order), *calibrated))
    np.testing.assert_array_equal(image, counts)
    assert image.values.flags.c_contiguous


def test_axes_are_taken_by_their_index_in_the_array(tmp_path, served):
    counts = make_counts(3, 4, 20)
    signal = make_signal(counts, Y, X, ENERGY)
    signal["axes"].reverse()
    np.testing.assert_array_equal(served(tmp_path / "a.hspy", signal), counts)


@pytest.mark.parametrize(
    ("axis", "start", "dispersion"),
    [
        ({"name": "", "units": "eV", "scale": 0.5, "offset": 500.0}, 500.0, 0.5),
        ({"name": "Energy loss", "units": "keV", "scale": 5e-4, "offset": 0.5}, 500.0, 0.5),
        ({"name": "Energy loss", "units": " eV ", "scale": 0.5, "offset": -30.0}, -30.0, 0.5),
        ({"name": "Electron energy loss", "units": "", "scale": 0.5, "offset": 500.0}, 500.0, 0.5),
    ],
)
def test_energy_is_converted_to_ev(tmp_path, served, axis, start, dispersion):
    image = served(tmp_path / "a.hspy", make_signal(make_counts(3, 20), X, axis))
    np.testing.assert_allclose(image["energy_loss"], start + dispersion * np.arange(20), rtol=1e-9)


def test_negative_dispersion_is_turned_round(tmp_path, served):
    counts = make_counts(3, 20)
    image = served(tmp_path / "a.hspy", make_signal(counts, X, {**ENERGY, "scale": -0.5, "offset": 509.5}))
    np.testing.assert_allclose(image["energy_loss"], 500 + 0.5 * np.arange(20))
    np.testing.assert_array_equal(image[0], counts[:, ::-1])


@pytest.mark.parametrize(
    ("unit", "scale", "size"),
    [
        *(("nm", 2.0, 2.0), ("µm", 2e-3, 2.0), ("μm", 2e-3, 2.0), ("um", -2e-3, 2.0)),
        *(("Å", 20.0, 2.0), ("\u212b", 20.0, 2.0), ("A", 20.0, 2.0), ("m", 2e-9, 2.0)),
        ("", 2.0, None),
        ("s", 2.0, None),
        ("nm", 0.0, None),
        ("nm", np.nan, None),
    ],
)
def test_pixel_size_is_nm_or_px(tmp_path, served, unit, scale, size):
    axes = [{**axis, "units": unit, "scale": scale} for axis in (Y, X)]
    image = served(tmp_path / "a.hspy", make_signal(make_counts(3, 4, 20), *axes, ENERGY))
    expected = (1.0, "px") if size is None else (pytest.approx(size), "nm")
    assert (image.attrs["pixel_size"], image.attrs["pixel_unit"]) == expected


def test_pixels_that_are_not_square_are_noted(tmp_path, served):
    image = served(tmp_path / "a.hspy", make_signal(make_counts(3, 4, 20), {**Y, "scale": 3.0}, X, ENERGY))
    assert image.attrs["pixel_size"] == 2.0
    assert "not square: 2 nm along x, 3 nm along y" in json.loads(image.attrs["metadata"])["notes"][0]


def test_of_several_signals_the_largest_energy_loss_one_is_read(tmp_path, served):
    eels = make_signal(make_counts(3, 4, 20), Y, X, ENERGY, title="EELS")
    photons = {"name": "Energy", "units": "keV", "scale": 0.01, "offset": 0.0}
    image = served(
        tmp_path / "a.hspy",
        make_signal(make_counts(9, 9, 50), Y, X, photons, signal_type="EDS_TEM"),
        make_signal(make_counts(30, 30), Y, X, signal_type="", title="HAADF"),
        make_signal(make_counts(20), ENERGY, title="sum"),
        eels,
        make_signal(make_counts(3, 4, 20), Y, X, {**ENERGY, "offset": -10.0}, title="low loss"),
    )  # fmt: skip
    np.testing.assert_array_equal(image, eels["data"])
    assert json.loads(image.attrs["metadata"])["signal"] == {
        "title": "EELS",
        "signal_type": "EELS",
        "index": 3,
        "of": 5,
    }


def test_stack_of_one_frame_is_an_image_and_a_series_is_refused(tmp_path, served):
    frame = {"name": "time", "units": "s", "scale": 1.0, "offset": 0.0}
    counts = make_counts(1, 3, 4, 20)
    np.testing.assert_array_equal(served(tmp_path / "a.hspy", make_signal(counts, frame, Y, X, ENERGY)), counts[0])
    with pytest.raises(InputError, match=r"3 navigation axes of the sizes \[2, 3, 4\]"):
        served(tmp_path / "a.hspy", make_signal(make_counts(2, 3, 4, 20), frame, Y, X, ENERGY))


@pytest.mark.parametrize(
    ("signals", "match"),
    [
        ([], "found nothing"),
        ([make_signal(make_counts(3, 4), Y, X, signal_type="")], r"no energy-loss spectra.*with axes y \(nm\), x"),
        ([make_signal(make_counts(3, 20), X, {**ENERGY, "units": "keV"}, signal_type="EDS_TEM")], "found EDS_TEM"),
        ([make_signal(make_counts(3, 20), X, {"name": "Energy", "units": "", "scale": 1, "offset": 0})], "calibrate"),
        ([make_signal(make_counts(3, 20), ENERGY, ENERGY)], "no energy-loss spectra"),
        ([make_signal(make_counts(0, 20), X, ENERGY)], "not a readable HyperSpy file"),
        ([make_signal(np.ones((3, 20), complex), X, ENERGY)], "expected real counts"),
        ([make_signal(np.full((3, 20), np.nan), X, ENERGY)], "60 counts that are NaN or infinite among 60"),
        ([make_signal(np.full((3, 20), np.inf), X, ENERGY)], "NaN or infinite"),
        ([make_signal(make_counts(3, 20), X, {**ENERGY, "scale": np.nan})], "not a readable HyperSpy|not finite"),
        ([make_signal(make_counts(3, 20), X, {**ENERGY, "scale": 0.0})], "not increasing"),
        ([make_signal(make_counts(3, 20), X, {**ENERGY, "axis": np.arange(20.0) ** 2})], "in equal steps"),
        ([make_signal(make_counts(3, 1), X, ENERGY)], "at least 2 channels"),
    ],
)  # fmt: skip
def test_file_without_usable_spectra_is_refused(tmp_path, served, signals, match):
    with pytest.raises(InputError, match=match) as error:
        served(tmp_path / "a.hspy", *signals)
    assert "a.hspy" in str(error.value)


def test_reader_that_warns_and_logs_is_quiet_and_its_warnings_are_kept(tmp_path, monkeypatch, caplog):
    def file_reader(name: str, lazy: bool = False) -> list[dict[str, Any]]:
        warnings.warn("the clock is wrong", UserWarning, stacklevel=1)
        importlib.import_module("logging").getLogger("rsciio.hspy").warning("noise")
        return [make_signal(make_counts(3, 20), X, ENERGY)]

    monkeypatch.setattr(importlib.import_module("rsciio.hspy"), "file_reader", file_reader)
    h5py.File(tmp_path / "a.hspy", "w").close()
    image = read_spectrum_image(tmp_path / "a.hspy")
    assert json.loads(image.attrs["metadata"])["notes"] == ["UserWarning: the clock is wrong"]
    assert caplog.records == []


def test_big_endian_counts_become_native(tmp_path, served):
    counts = make_counts(3, 20).astype(">u2")
    image = served(tmp_path / "a.hspy", make_signal(counts, X, ENERGY))
    assert image.dtype.isnative
    np.testing.assert_array_equal(image[0], counts)


@pytest.mark.parametrize("suffix", [".hspy", ".zspy"])
def test_lazy_counts_stay_on_disk_and_are_the_same(tmp_path, suffix):
    counts = make_counts(6, 4, 20)
    path = write(tmp_path / f"cube{suffix}", make_signal(counts, Y, X, ENERGY))
    before = digest_file(path)
    image = read_spectrum_image(path, lazy=True)
    assert isinstance(image.data, dask.array.Array)
    np.testing.assert_array_equal(image, counts)
    assert digest_file(path) == before


@pytest.mark.parametrize("lazy", [True, False])
def test_pixels_with_nan_beside_whole_ones_are_left_to_preparation(tmp_path, lazy):
    counts = make_counts(6, 4, 20)
    counts[5, 3, 19], counts[0, 1] = np.nan, -np.inf
    path = write(tmp_path / "cube.hspy", make_signal(counts, Y, X, ENERGY))
    image = read_spectrum_image(path, lazy=lazy)
    np.testing.assert_array_equal(image, counts)
    np.testing.assert_array_equal(read_spectrum_image(write_spectrum_image(image, tmp_path / "counts.zarr")), counts)


def test_zarr_store_of_this_project_is_read_with_the_digest_of_its_bytes(tmp_path):
    original = build_spectrum_image(make_counts(3, 4, 20), 500 + 0.5 * np.arange(20), source="cube.dm4", sha256="00")
    path = write_spectrum_image(original, tmp_path / "cube.zarr")
    image = read_spectrum_image(path)
    np.testing.assert_array_equal(image, original)
    assert image.attrs["sha256"] == digest_file(path)
    assert image.attrs["source"] == "cube.dm4"


def test_a_channel_that_is_nan_in_every_pixel_is_refused_or_left_to_preparation(tmp_path, monkeypatch):
    counts = make_counts(3, 4, 20)
    counts[..., 7] = np.nan
    path = write_spectrum_image(build_spectrum_image(counts, 500 + 0.5 * np.arange(20)), tmp_path / "cube.zarr")
    with pytest.raises(UnreadableFileError, match=r"12 counts that are NaN or infinite .* cut off channels"):
        read_spectrum_image(path)
    monkeypatch.setattr(counts_module, "LAZY_BYTES", 10)
    assert read_spectrum_image(path).shape == (3, 4, 20)


def test_counts_that_must_be_finite_are_refused_when_they_are_computed(tmp_path):
    from eelsflow.io.counts import with_finite_counts

    counts = make_counts(6, 4, 20)
    counts[5, 3, 19] = np.nan
    path = write(tmp_path / "cube.hspy", make_signal(counts, Y, X, ENERGY))
    with pytest.raises(UnreadableFileError, match="1 counts that are NaN or infinite"):
        with_finite_counts(path, read_spectrum_image(path))
    image = with_finite_counts(path, read_spectrum_image(path, lazy=True))
    with pytest.raises(UnreadableFileError, match="NaN or infinite"):
        write_spectrum_image(image, tmp_path / "counts.zarr")
    assert not (tmp_path / "counts.zarr").exists()


@examples(30)
@given(
    separator=st.sampled_from([",", ", ", "\t", " ", "   ", ";"]),
    header=st.lists(st.sampled_from(["# La2NiO4", "% 12,3", "// eV", "eV,counts", "", "eV Counts"]), max_size=4),
    ending=st.sampled_from(["\n", "\r\n"]),
    reverse=st.booleans(),
    bom=st.booleans(),
)  # fmt: skip
def test_two_columns_are_read_whatever_separates_them(tmp_path_factory, separator, header, ending, reverse, bom):
    path = tmp_path_factory.mktemp("text") / "spectrum.txt"
    rows = [(424 + 0.25 * i, 1000.5 - i) for i in range(12)]
    lines = [*header, *(f"{energy:g}{separator}{counts:g}" for energy, counts in (rows[::-1] if reverse else rows))]
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + ending.join(lines).encode())
    image = read_spectrum_image(path)
    assert image.shape == (1, 1, 12)
    np.testing.assert_allclose(image["energy_loss"], [energy for energy, _ in rows])
    np.testing.assert_allclose(image[0, 0], [counts for _, counts in rows], rtol=1e-3)  # printed in 6 digits


def test_energies_rounded_to_the_printed_digits_are_uniform_again(tmp_path):
    energies = 450 + 0.025 * 40 / 39 * np.arange(200)
    (tmp_path / "a.csv").write_text("".join(f"{energy:.2f},5\n" for energy in energies))
    image = read_spectrum_image(tmp_path / "a.csv")
    np.testing.assert_allclose(image["energy_loss"], energies, atol=0.005)
    assert np.ptp(np.diff(image["energy_loss"])) < 1e-9


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"# only a header\n", "holds 0 rows"),
        (b"424 1\n", "holds 1 rows"),
        (b"424 1\n425 2\n426 3 4\n", "line 3 is '426 3 4'; expected two numbers"),
        (b"424 1\n425 2\nthe end\n", "line 3 is 'the end'"),
        (b"424,250\t1,500\n424,500\t2,500\n", "may be a decimal mark or one for thousands"),
        (b"424 1\n425 nan\n426 3\n", "NaN or infinite"),
        (b"424 1\nnan 2\n426 3\n", "not finite"),
        (b"424 1\n425 2\n430 3\n431 3\n", "nothing lies between 425 and 430 eV"),
        (b"424 1\n425 2\n\0\0\0", "is not text"),
        (bytes(range(1, 256)) * 9, "holds 0 rows"),
    ],
)
def test_text_that_is_no_spectrum_is_refused(tmp_path, content, match):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=match):
        read_spectrum_image(tmp_path / "a.txt")


def test_msa_cut_short_is_refused_though_every_line_is_a_number(tmp_path):
    path = write(tmp_path / "a.msa", make_signal(make_counts(20), ENERGY))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-4]))
    with pytest.raises(UnreadableFileError, match="announces 20 channels and holds 17"):
        read_spectrum_image(path)
    path.write_text("".join(lines[:-1])[:-3])
    with pytest.raises(UnreadableFileError, match="ends in the middle of a line"):
        read_spectrum_image(path)


def test_zspy_that_lost_a_chunk_is_refused_rather_than_read_as_zeros(tmp_path):
    path = write(tmp_path / "a.zspy", make_signal(make_counts(6, 4, 20), Y, X, ENERGY))
    next(path.rglob("data/2.0.0")).unlink()
    with pytest.raises(UnreadableFileError, match="2 of 3 chunks"):
        read_spectrum_image(path)


@pytest.mark.parametrize("name", ["a.png", "a", "a.txt.gz", "a.dm5"])
def test_unknown_extension_is_refused_with_the_known_ones(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UnreadableFileError, match=r"which no reader takes; expected one of \.dm3"):
        read_spectrum_image(tmp_path / name)
    assert not is_readable_name(tmp_path / name)


@pytest.mark.parametrize("name", ["a.dm3", "a.DM4", "a.emd", "a.hspy", "a.zspy", "a.msa", "a.txt", "a.zarr"])
def test_missing_empty_and_random_files_are_refused(tmp_path, name):
    path = tmp_path / name
    assert is_readable_name(path)
    with pytest.raises(UnreadableFileError, match="does not exist"):
        read_spectrum_image(path)
    path.write_bytes(b"")
    with pytest.raises(UnreadableFileError, match="is empty"):
        read_spectrum_image(path)
    path.write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(UnreadableFileError, match=r"a\."):
        read_spectrum_image(path)
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"x")
    with pytest.raises(UnreadableFileError, match=r"a\."):
        read_spectrum_image(path)


def test_hdf5_that_is_no_emd_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.emd", "w") as file:
        file["something"] = np.arange(3)
    with pytest.raises(UnreadableFileError, match="EMD"):
        read_spectrum_image(tmp_path / "a.emd")


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("intact")
    cube = make_signal(make_counts(3, 4, 20), Y, X, ENERGY)
    files = {suffix: write(directory / f"a{suffix}", cube) for suffix in (".hspy", ".emd")}
    files[".msa"] = write(directory / "a.msa", make_signal(make_counts(20), ENERGY))
    return {suffix: path.read_bytes() for suffix, path in files.items()}


@examples(40)
@given(suffix=st.sampled_from([".hspy", ".emd", ".msa"]), kept=fractions(0.0, 0.99))
def test_truncated_file_is_refused(tmp_path_factory, intact, suffix, kept):
    path = tmp_path_factory.mktemp("cut") / f"a{suffix}"
    # An msa file is whole before its closing keyword.
    whole = intact[suffix].partition(b"#ENDOFDATA")[0].rstrip()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UnreadableFileError):
        read_spectrum_image(path)


def read_or_refuse(path: Path) -> None:
    try:
        check_spectrum_image(read_spectrum_image(path))
    except EelsflowError as error:
        message = str(error)
    else:
        return
    assert path.name in message
    assert "\n" not in message


def test_hdf5_file_that_takes_for_ever_is_refused(tmp_path, intact, monkeypatch):
    (tmp_path / "a.hspy").write_bytes(intact[".hspy"])
    monkeypatch.setattr("eelsflow.io.hdf5.PROBE_SECONDS", 0.0)
    with pytest.raises(UnreadableFileError, match=r"a\.hspy is damaged: its names and attributes took more than 0 s"):
        read_spectrum_image(tmp_path / "a.hspy")


@pytest.fixture
def look_with(tmp_path, monkeypatch):
    """Let another program look first."""
    prober = hdf5._Prober()
    monkeypatch.setattr(hdf5, "_PROBER", prober)
    monkeypatch.setattr(hdf5, "_PROBE", tmp_path / "probe.py")
    yield (tmp_path / "probe.py").write_text
    prober._end()


def test_hdf5_file_that_crashes_the_library_is_refused(tmp_path, intact, look_with):
    (tmp_path / "a.hspy").write_bytes(intact[".hspy"])
    look_with(
        "import os\nfrom eelsflow.io import hdf5_probe\nhdf5_probe.probe = lambda path: os.abort()\nhdf5_probe.main()"
    )
    for _ in range(2):  # it is the process of the file that ends, not the program
        with pytest.raises(UnreadableFileError, match=r"made the HDF5 library crash \(signal 6\)"):
            read_spectrum_image(tmp_path / "a.hspy")


def test_no_file_is_read_that_nothing_has_looked_into(tmp_path, intact, look_with):
    (tmp_path / "a.hspy").write_bytes(intact[".hspy"])
    look_with("raise SystemExit(1)")
    with pytest.raises(EelsflowError, match="ends by itself"):
        read_spectrum_image(tmp_path / "a.hspy")


@examples(60)
@given(
    suffix=st.sampled_from([".hspy", ".emd", ".msa"]),
    damage=st.lists(st.tuples(fractions(0, 0.999), st.binary(min_size=1, max_size=8)), min_size=1, max_size=5),
)  # fmt: skip
def test_damaged_bytes_give_an_image_or_one_clear_error(tmp_path_factory, intact, suffix, damage):
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    content = bytearray(intact[suffix])
    for position, replacement in damage:
        start = int(position * len(content))
        content[start : start + len(replacement)] = replacement
    path.write_bytes(content)
    read_or_refuse(path)


def test_table_of_spectra_is_one_line_of_pixels(tmp_path):
    spectra = make_counts(7, 20)
    np.savez(tmp_path / "a.npz", other=make_counts(9, 20), spectra=spectra, energy_loss=500 + 0.5 * np.arange(20))
    image = read_spectra_table(tmp_path / "a.npz")
    assert image.shape == (1, 7, 20)
    np.testing.assert_array_equal(image[0], spectra)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"X": np.zeros((3, 20)), "energy_min_max": np.zeros((3, 2))}, "the same axis for all"),
        ({}, "holds nothing"),
        ({"spectra": np.array([{}]), "energy_loss": np.arange(2.0)}, "pickled Python objects, which are never loaded"),
        ({"spectra": np.full((3, 4), np.nan), "energy_loss": np.arange(4.0)}, "NaN or infinite"),
        ({"spectra": np.ones((3, 4)), "energy_loss": np.arange(4.0) ** 3}, "not increasing in equal steps"),
    ],
)
def test_table_without_a_common_axis_is_refused(tmp_path, arrays, match):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=match):
        read_spectra_table(tmp_path / "a.npz")


# --- real files -------------------------------------------------------------------------------------------------

REAL = {
    "la2nio4_core_loss.txt": ((1, 1, 2043), 424.0, 934.5, (1.0, "px")),
    "lsmo_linescan.hspy": ((1, 40, 586), 428.5, 721.0, (3.219, "nm")),
    "mn_oxide_core_loss.msa": ((1, 1, 2048), 360.0, 769.4, (1.0, "px")),
    "oxide_spectrum_image.dm3": ((49, 6, 1024), 350.0, 861.5, (1.0, "px")),
    "tiny_spectrum_image.dm4": ((2, 2, 2048), 300.0, 2347.0, (1.992, "nm")),
    "tio2_linescan_core_loss.dm3": ((1, 100, 1024), 381.9, 688.8, (1.0, "px")),
    "tio2_linescan_low_loss.dm3": ((1, 100, 1024), -35.1, 271.8, (1.0, "px")),
    "tio2_no_oxygen_edge.dm4": ((6, 10, 2048), 435.0, 486.175, (3.058, "nm")),
    "yag_oxygen_k.msa": ((1, 1, 1340), 510.0, 643.9, (1.0, "px")),
}


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_file_has_the_known_shape_and_axis(real_data, name):
    shape, start, stop, pixel = REAL[name]
    image = read_spectrum_image(real_data / name)
    assert image.shape == shape
    np.testing.assert_allclose(image["energy_loss"][[0, -1]], (start, stop), atol=0.01)
    assert (image.attrs["pixel_size"], image.attrs["pixel_unit"]) == (pytest.approx(pixel[0], abs=1e-3), pixel[1])
    assert float(image.mean()) > 0


@pytest.mark.real
def test_energy_first_dm3_keeps_its_spectra_together(real_data):
    """Ti L3,2 near 459 eV stands out of the background in every column of the specimen, so the axes are not mixed."""
    image = read_spectrum_image(real_data / "oxide_spectrum_image.dm3").sum("x")
    peak = image.sel(energy_loss=slice(455, 466)).mean("energy_loss")
    before = image.sel(energy_loss=slice(440, 450)).mean("energy_loss")
    assert float((peak > before).mean()) > 0.9


@pytest.mark.real
def test_lazy_dm_file_equals_the_one_read_whole(real_data):
    path = real_data / "oxide_spectrum_image.dm3"
    lazy = read_spectrum_image(path, lazy=True)
    assert lazy.chunks is not None
    np.testing.assert_array_equal(lazy, read_spectrum_image(path, lazy=False))


@pytest.mark.real
@examples(25)
@given(
    name=st.sampled_from(["tio2_linescan_core_loss.dm3", "tiny_spectrum_image.dm4", "lsmo_linescan.hspy"]),
    kept=fractions(0.0, 0.999),
)
def test_truncated_real_file_is_refused(real_data, tmp_path_factory, name, kept):
    content = (real_data / name).read_bytes()
    path = tmp_path_factory.mktemp("cut") / name
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnreadableFileError, match=name):
        read_spectrum_image(path)


@pytest.mark.real
@examples(40)
@given(
    name=st.sampled_from(["tio2_linescan_core_loss.dm3", "tiny_spectrum_image.dm4", "lsmo_linescan.hspy"]),
    start=fractions(exclude_high=True),
    noise=st.binary(min_size=400, max_size=500),
)
def test_real_file_with_random_bytes_gives_an_image_or_one_clear_error(real_data, tmp_path_factory, name, start, noise):
    content = bytearray((real_data / name).read_bytes())
    first = int(start * len(content))
    content[first : first + len(noise)] = noise[: len(content) - first]
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(content)
    read_or_refuse(path)


LOW = {"name": "Energy loss", "units": "eV", "scale": 0.5, "offset": -4.0}


def test_the_low_loss_of_a_dual_acquisition_is_read_beside_the_core_loss(tmp_path, served):
    core, low = make_counts(3, 4, 20), make_counts(3, 4, 20) + 7
    path = tmp_path / "dual.hspy"
    signals = [
        make_signal(low[:1, :1], Y, X, LOW, title="one pixel"),
        make_signal(low, Y, X, LOW, title="low loss"),
        make_signal(core, Y, X, ENERGY, title="core loss"),
    ]
    image = served(path, *signals)
    np.testing.assert_array_equal(image, core)
    found = read_low_loss(path)
    np.testing.assert_array_equal(found, low)
    assert json.loads(found.attrs["metadata"])["signal"]["title"] == "low loss"
    assert found["energy_loss"][0] == -4


def test_one_lost_pixel_of_a_low_loss_does_not_refuse_the_others(tmp_path, served):
    low = make_counts(3, 4, 20).astype(np.float32)
    low[1, 2, 5] = np.nan
    path = tmp_path / "dual.hspy"
    served(
        path,
        make_signal(low, Y, X, LOW, title="low loss"),
        make_signal(make_counts(3, 4, 20), Y, X, ENERGY, title="core loss"),
    )
    np.testing.assert_array_equal(read_low_loss(path), low)


def test_a_file_without_a_second_signal_that_holds_zero_has_no_low_loss(tmp_path, served):
    path = tmp_path / "a.hspy"
    served(path, make_signal(make_counts(3, 4, 20), Y, X, ENERGY))
    assert read_low_loss(path) is None
    served(path, make_signal(make_counts(3, 4, 20), Y, X, ENERGY), make_signal(make_counts(3, 4, 10), Y, X, ENERGY))
    assert read_low_loss(path) is None
    served(path, make_signal(make_counts(3, 4, 20), Y, X, LOW))
    assert read_low_loss(path) is None


def test_text_and_zarr_hold_one_signal_alone(tmp_path):
    (tmp_path / "a.txt").write_text("1 2\n2 3\n3 4\n")
    assert read_low_loss(tmp_path / "a.txt") is None
