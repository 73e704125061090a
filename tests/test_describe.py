import json
import re
from pathlib import Path

import numpy as np
import pytest

from eelsflow.describe import KNOWN_ONSETS, describe, edges_in_range, format_description
from eelsflow.digest import digest_file
from eelsflow.edges import MN_L3, O_K, SHIPPED, Edge
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EdgeOutOfRangeError, InputError, UnreadableFileError
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import write_spectrum_image
from eelsflow.spectrum_image import build_spectrum_image

KEYS = {"shape", "energy_loss", "edges", "energy_offset", "spikes", "background_fraction"}
OFFSET = -4.0
SPIKES = [(2, 3, 150), (6, 1, 300), (6, 1, 75)]


def make_counts(n_y: int, n_x: int, axis: EnergyAxis, *, offset: float) -> np.ndarray:
    """Counts of an O K edge like that of iron oxides on a support film, with a quarter of the pixels bare."""
    rng = np.random.default_rng(3)
    energy = axis.values + offset
    edge = sum(
        height * np.exp(-0.5 * ((energy - center) / sigma) ** 2)
        for center, sigma, height in ((530.0, 1.2, 0.63), (539.0, 2.5, 0.8), (560.0, 4.5, 0.4))
    ) + 0.4 / (1 + np.exp(-(energy - 536.0)))
    thickness = np.ones((n_y, n_x, 1))
    thickness[:, : n_x // 4] = 0.0
    background = 400.0 * (energy / 490.0) ** -3.2
    counts = rng.poisson((0.15 + 0.85 * thickness) * background + 250.0 * thickness * edge)
    for y, x, channel in SPIKES:
        if y < n_y and channel < axis.size:
            counts[y, x, channel] += 3000
    return counts.astype("uint16")


@pytest.fixture(scope="module")
def acquisition(tmp_path_factory) -> Path:
    axis = EnergyAxis(470.0 - OFFSET, 0.5, 500)
    counts = make_counts(8, 12, axis, offset=OFFSET)
    image = build_spectrum_image(counts, axis.values, pixel_size=2.1, pixel_unit="nm")
    return write_spectrum_image(image, tmp_path_factory.mktemp("info") / "cube.zarr")


@pytest.fixture(scope="module")
def description(acquisition):
    return describe(acquisition)


def test_description_has_the_promised_keys_and_is_json(description, acquisition):
    assert set(description) >= KEYS
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    assert description["shape"] == [8, 12, 500]
    assert description["energy_loss"] == pytest.approx({"start": 474.0, "stop": 723.5, "dispersion": 0.5})
    assert description["sha256"] == digest_file(acquisition)
    assert (description["pixel_size"], description["pixel_unit"]) == (2.1, "nm")
    assert {"O_K", "Mn_L3"} <= set(description["edges"])


def test_description_finds_offset_spikes_and_bare_pixels(description):
    offset = description["energy_offset"]
    assert abs(offset["value"] - OFFSET) < max(0.1, 3 * offset["error"])
    assert offset["error"] < 0.3
    assert description["edge"] == "O_K"
    assert description["spikes"]["pixels"] == 2
    assert description["spikes"]["channels"] >= 3  # the neighbours of a spike are counted with it
    assert description["background_fraction"] == pytest.approx(0.25)
    assert description["noise"]["gain"] == pytest.approx(1.0, abs=0.2)  # Poisson counts


def test_description_says_how_many_pixels_are_lost(acquisition, description, tmp_path):
    image = read_spectrum_image(acquisition)
    counts = image.values.astype(np.float32)
    counts[0, 0, 9] = np.nan
    counts[7, 6:] = 0
    damaged = build_spectrum_image(counts, image["energy_loss"].values)
    found = describe(write_spectrum_image(damaged, tmp_path / "damaged.zarr"))
    assert description["lost_pixels"] == {"nan": 0, "empty": 0, "saturated": 0}
    assert found["lost_pixels"] == {"nan": 1, "empty": 6, "saturated": 0}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "7 of 96 pixels are lost" in " ".join(found["warnings"])
    assert re.search(r"^lost pixels +1 nan, 6 empty$", format_description(found), flags=re.MULTILINE)
    assert re.search(r"^lost pixels +none$", format_description(description), flags=re.MULTILINE)


def test_description_of_lazy_counts_is_the_same(acquisition, description, tmp_path):
    from eelsflow.io import counts, read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "LAZY_BYTES", 10)
        image = read.read_spectrum_image(acquisition).astype("float32")
        float_store = write_spectrum_image(image, tmp_path / "float.zarr")
        again = describe(float_store)
    same = set(description) - {"file", "sha256"}
    assert {key: again[key] for key in same} == {key: description[key] for key in same}


def test_single_spectrum_has_no_background_fraction(tmp_path):
    axis = EnergyAxis(480.0, 0.25, 500)
    counts = make_counts(1, 16, axis, offset=0.0)[0, 8:].sum(axis=0)
    path = tmp_path / "one.csv"
    path.write_text("".join(f"{energy},{count}\n" for energy, count in zip(axis.values, counts, strict=True)))
    description = describe(path)
    assert description["background_fraction"] is None
    assert abs(description["energy_offset"]["value"]) < max(0.2, 3 * description["energy_offset"]["error"])
    assert "single spectrum" in format_description(description)


def test_file_without_the_edge_is_refused_when_the_edge_is_named_and_described_otherwise(tmp_path):
    counts = np.random.default_rng(0).poisson(200.0, (3, 4, 500))
    path = write_spectrum_image(build_spectrum_image(counts, 600 + 0.25 * np.arange(500)), tmp_path / "a.zarr")
    with pytest.raises(
        EdgeOutOfRangeError, match=r"ELNES window \(525.0, 555.0\) eV for O_K lies outside .* 600.0-724.8"
    ):
        describe(path, O_K)
    description = describe(path)
    assert description["energy_offset"] is None
    assert description["background_fraction"] is None
    assert description["spikes"] == {"channels": 0, "pixels": 0}
    assert any(warning.startswith("Mn_L3: ") for warning in description["warnings"])
    assert "cannot be estimated" in format_description(description)


def test_edge_named_but_not_shown_gives_null_and_says_why(acquisition):
    description = describe(acquisition, MN_L3)
    assert description["energy_offset"] is None
    assert any("Mn_L3" in warning for warning in description["warnings"])


def test_edge_whose_background_window_is_cut_off_is_described_with_a_warning(tmp_path):
    axis = EnergyAxis(515.0, 0.5, 200)
    counts = make_counts(1, 16, EnergyAxis(515.0, 0.5, 200), offset=0.0)[0, -1]
    path = write_spectrum_image(build_spectrum_image(counts, axis.values), tmp_path / "a.zarr")
    assert any("background window" in warning for warning in describe(path, O_K)["warnings"])


def test_edge_of_ones_own_is_listed(acquisition):
    edge = Edge(name="X_M1", reference_energy=700.0, elnes_window=(690.0, 720.0), pre_edge_window=(650.0, 685.0))
    assert describe(acquisition, edge)["edge_onsets"]["X_M1"] == 700.0


def two_edges(dispersion: float) -> tuple[np.ndarray, np.ndarray]:
    """Nominal energies in channels of 0.5 eV, and counts of O K and Mn L3 recorded with another dispersion."""
    nominal = 480.0 + 0.5 * np.arange(420)
    true = 480.0 + dispersion * np.arange(420)
    oxygen = make_counts(1, 4, EnergyAxis(480.0, dispersion, 420), offset=0.0)[0, 3:].sum(axis=0)
    lines = ((642.0, 1.9, 1.0), (653.0, 2.1, 0.45))
    manganese = sum(height * np.exp(-0.5 * ((true - place) / sigma) ** 2) for place, sigma, height in lines)
    return nominal, 400 * oxygen + np.random.default_rng(1).poisson(2e5 * manganese)


def test_edges_that_ask_for_different_offsets_are_reported_with_the_dispersion_that_explains_them(tmp_path):
    nominal, counts = two_edges(dispersion=0.53)
    path = write_spectrum_image(build_spectrum_image(counts, nominal), tmp_path / "a.zarr")
    description = describe(path)
    assert set(description["offsets"]) == {"O_K", "Mn_L3"}
    assert description["offsets"]["O_K"] == description["energy_offset"]
    [warning] = [warning for warning in description["warnings"] if "apart on this axis" in warning]
    assert float(warning.split("where ")[1].split(" would be")[0]) == pytest.approx(0.53, abs=0.003)
    assert "(edges: [O_K, Mn_L3]) corrects that" in warning
    assert "; " in next(line for line in format_description(description).splitlines() if "energy offset" in line)


def test_edges_that_agree_are_reported_without_a_warning(tmp_path):
    nominal, counts = two_edges(dispersion=0.5)
    path = write_spectrum_image(build_spectrum_image(counts, nominal), tmp_path / "a.zarr")
    description = describe(path)
    assert set(description["offsets"]) == {"O_K", "Mn_L3"}
    assert not [warning for warning in description["warnings"] if "apart on this axis" in warning]


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (np.random.default_rng(0).integers(-1990, -1334, (4, 5, 500)), "add up to zero or less"),
        (np.zeros((4, 5, 500)), "add up to zero or less"),
        (np.random.default_rng(0).poisson(50.0, (4, 5, 500)) - 1.0, None),
    ],
    ids=["negative", "zero", "vacuum"],
)
def test_image_without_signal_says_why_once_for_each_edge_and_nothing_false(tmp_path, counts, reason):
    path = write_spectrum_image(build_spectrum_image(counts, 480 + 0.5 * np.arange(500)), tmp_path / "a.zarr")
    description = describe(path)
    assert description["energy_offset"] is None
    assert description["offsets"] == {}
    warnings = description["warnings"]
    assert len({warning.split(":")[0] for warning in warnings}) == len(warnings)
    assert not any("dark reference" in warning for warning in warnings)
    if reason:
        assert len(warnings) == 1
        assert reason in warnings[0]


def test_low_loss_reports_no_spikes(tmp_path):
    energy = -20 + 0.25 * np.arange(600)
    counts = np.random.default_rng(0).poisson(20 + 1e5 * np.exp(-0.5 * energy**2), (4, 4, 600))
    path = write_spectrum_image(build_spectrum_image(counts, energy), tmp_path / "low.zarr")
    description = describe(path)
    assert description["spikes"] is None
    assert any("zero-loss peak" in warning for warning in description["warnings"])


def test_table_of_spectra_is_described(tmp_path):
    spectra = np.random.default_rng(0).poisson(100.0, (40, 100)).astype(float)
    np.savez(tmp_path / "a.npz", spectra=spectra, energy_loss=700 + 0.1 * np.arange(100))
    description = describe(tmp_path / "a.npz")
    assert description["shape"] == [1, 40, 100]
    assert description["counts"]["mean"] == pytest.approx(spectra.mean())


def test_unreadable_file_is_refused(tmp_path):
    (tmp_path / "a.dm4").write_bytes(b"nonsense")
    with pytest.raises(UnreadableFileError, match=r"a\.dm4"):
        describe(tmp_path / "a.dm4")


def test_edges_in_range_need_axis_on_both_sides():
    assert "O_K" in edges_in_range(EnergyAxis(525.0, 0.1, 301))
    assert "O_K" not in edges_in_range(EnergyAxis(525.2, 0.1, 400))
    assert "Ti_L3" not in edges_in_range(EnergyAxis(453.0, 0.1, 400))
    assert "Ti_L3" not in edges_in_range(EnergyAxis(440.0, 0.1, 300))
    assert list(edges_in_range(EnergyAxis(0.0, 1.0, 3000)).values()) == sorted(KNOWN_ONSETS.values())


def test_shipped_edges_lie_at_their_known_onsets():
    for name, edge in SHIPPED.items():
        assert edge.elnes_window[0] < KNOWN_ONSETS[name] < edge.elnes_window[1]
        assert abs(edge.reference_energy - KNOWN_ONSETS[name]) <= 3.0


def test_text_names_what_was_found(description):
    text = format_description(description)
    assert "8 x 12 pixels, 500 channels (spectrum image)" in text
    assert "474.00 to 723.50 eV, 0.5 eV per channel" in text
    assert "O_K 532" in text
    assert "25.0 %" in text
    assert max(len(line.split("  ")[0]) for line in text.splitlines()) <= 20


# Offsets as read off plots of the mean spectra (reference energy less nominal position), with how well that can be
# read: pre-peaks at 528.9 (LSMO), 537.3-538 (the other manganese oxide, a shoulder), 530 (the tiny image, in channels
# of 1 eV) and 528-531 eV (the oxide image, noisy and of another shape); L3 at 634.5, 648.6 and 644.2 eV.
REAL_FILES = {
    "la2nio4_core_loss.txt": ({"O_K", "La_M5", "Ni_L3"}, {}),
    "lsmo_linescan.hspy": ({"O_K", "Mn_L3"}, {"O_K": (1.1, 0.3), "Mn_L3": (7.5, 0.15)}),
    "mn_oxide_core_loss.msa": ({"O_K", "Mn_L3"}, {"O_K": (-7.6, 0.6), "Mn_L3": (-6.6, 0.15)}),
    "oxide_spectrum_image.dm3": ({"Ti_L3", "O_K", "La_M5"}, {"O_K": (0.5, 3.0)}),
    "tiny_spectrum_image.dm4": ({"O_K"}, {"O_K": (0.0, 0.7)}),
    "tio2_linescan_core_loss.dm3": ({"Ti_L3", "O_K"}, {}),
    "tio2_linescan_low_loss.dm3": (set(), {}),
    "tio2_no_oxygen_edge.dm4": ({"Ti_L3"}, {}),
    "yag_oxygen_k.msa": ({"O_K"}, {}),
    "mn_white_lines_labelled.npz": (set(), {}),
    "mn2_white_lines.npz": ({"Mn_L3"}, {"Mn_L3": (-2.2, 0.8)}),
}


@pytest.mark.real
@pytest.mark.parametrize("name", REAL_FILES)
def test_real_file_is_described(real_data, name):
    edges, offsets = REAL_FILES[name]
    description = describe(real_data / name)
    json.dumps(description, allow_nan=False)
    assert edges <= set(description["edges"])
    assert ("O_K" in description["edges"]) == ("O_K" in edges)
    assert set(description["offsets"]) == set(offsets)
    for edge, (expected, tolerance) in offsets.items():
        found = description["offsets"][edge]
        assert found["value"] == pytest.approx(expected, abs=tolerance)
        assert abs(found["value"] - expected) < 2.5 * found["error"] + 0.1
    warnings = description["warnings"]
    about_edges = [warning.split(":")[0] for warning in warnings if warning.startswith(tuple(SHIPPED))]
    assert len(set(about_edges)) == len(about_edges)
    assert len(set(warnings)) == len(warnings)
    assert any("apart on this axis" in warning for warning in warnings) == (name == "lsmo_linescan.hspy")
    assert format_description(description)


@pytest.mark.real
def test_titanium_edge_below_the_oxygen_edge_is_named_as_what_is_wrong(real_data):
    warnings = describe(real_data / "tio2_linescan_core_loss.dm3")["warnings"]
    assert any(warning.startswith("O_K: the mean counts rise") for warning in warnings)
    assert not any("only vacuum" in warning or "no O_K edge stands" in warning for warning in warnings)


@pytest.mark.real
def test_file_without_the_oxygen_edge_is_refused(real_data):
    with pytest.raises(EdgeOutOfRangeError, match=r"spans 435\.0-486\.2 eV; this file cannot show the O_K edge"):
        describe(real_data / "tio2_no_oxygen_edge.dm4", O_K)


@pytest.mark.real
def test_spikes_of_the_oxide_image_are_found(real_data):
    assert describe(real_data / "oxide_spectrum_image.dm3")["spikes"]["pixels"] in range(1, 12)


def test_table_of_spectra_on_separate_ranges_is_described_without_an_axis(tmp_path):
    path = tmp_path / "references.npz"
    ranges = np.array([[631.0, 660.0], [635.0, 664.0], [632.0, 662.0]])
    np.savez(path, X=np.ones((3, 50)), energy_min_max=ranges, label=np.array(["a", "b", "c"]))

    description = describe(path)

    assert description["shape"] == [1, 3, 50]
    assert description["energy_loss"] is None
    assert "631.0-664.0 eV" in description["warnings"][0]
    assert "no common axis" in format_description(description)
    with pytest.raises(EdgeOutOfRangeError, match="without a common axis"):
        describe(path, edge=O_K)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    from eelsflow.simulator import PRESETS, LowLossRecording, simulate_acquisition

    directory = tmp_path_factory.mktemp("pair")
    acquisition = simulate_acquisition(
        PRESETS["paper"].model_copy(update={"shape": (12, 12)}), 7, low_loss=LowLossRecording()
    )
    write_spectrum_image(acquisition.image, directory / "core.zarr")
    write_spectrum_image(acquisition.low_loss, directory / "low.zarr")
    return directory, acquisition.truth


def test_low_loss_beside_a_core_loss_is_described(pair):
    directory, truth = pair
    description = describe(directory / "core.zarr", low_loss=directory / "low.zarr")
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    found = description["low_loss"]
    assert found["file"] == str(directory / "low.zarr")
    assert found["offset"]["value"] == pytest.approx(truth.attrs["offset"], abs=0.02)
    assert found["zero_loss"]["mean"] == pytest.approx(-truth.attrs["offset"], abs=0.02)
    assert 0 < found["zero_loss"]["spread"] < 0.2
    assert found["resolution"] == pytest.approx(truth.attrs["resolution"], rel=0.1)
    thickness = found["t_over_lambda"]
    assert thickness["low"] <= thickness["median"] <= thickness["high"]
    assert thickness["high"] == pytest.approx(float(truth["t_over_lambda"].max()), abs=0.03)
    text = format_description(description)
    for line in ("zero loss", "resolution", "t/lambda"):
        assert line in text


def test_without_a_low_loss_none_is_described(pair):
    directory, _ = pair
    description = describe(directory / "core.zarr")
    assert description["low_loss"] is None
    assert "t/lambda" not in format_description(description)


def test_a_low_loss_on_its_own_is_described(pair):
    directory, truth = pair
    description = describe(directory / "low.zarr")
    assert description["low_loss"]["offset"]["value"] == pytest.approx(truth.attrs["offset"], abs=0.02)


def test_a_core_loss_given_as_low_loss_is_refused(pair):
    directory, _ = pair
    with pytest.raises(InputError, match="no zero-loss peak"):
        describe(directory / "low.zarr", low_loss=directory / "core.zarr")


def test_low_loss_of_another_scan_is_warned_of(pair, tmp_path):
    from eelsflow.io.zarr_store import open_spectrum_image

    directory, _ = pair
    write_spectrum_image(open_spectrum_image(directory / "low.zarr")[:6].load(), tmp_path / "part.zarr")
    description = describe(directory / "core.zarr", low_loss=tmp_path / "part.zarr")
    assert any("6 x 12" in warning for warning in description["warnings"])


@pytest.mark.real
def test_titanium_dioxide_pair_is_described(real_data):
    description = describe(real_data / "tio2_linescan_core_loss.dm3", low_loss=real_data / "tio2_linescan_low_loss.dm3")
    found = description["low_loss"]
    # aligned on the highest channel by its authors: within half a channel of .3 eV
    assert abs(found["zero_loss"]["mean"]) < 0.15
    assert found["zero_loss"]["spread"] < 0.2
    assert found["resolution"] == pytest.approx(1.5, abs=0.1)
    assert found["t_over_lambda"]["median"] == pytest.approx(0.92, abs=0.03)


def test_low_loss_that_the_same_file_holds_is_described(pair, tmp_path):
    import h5py
    from rsciio.hspy import file_writer

    from eelsflow.io.read import read_spectrum_image

    directory, truth = pair
    for name in ("core", "low"):
        image = read_spectrum_image(directory / f"{name}.zarr")
        energy = image["energy_loss"].values
        calibrations = (("y", "nm", 2.1, 0.0), ("x", "nm", 2.1, 0.0), ("E", "eV", energy[1] - energy[0], energy[0]))
        axes = [
            {
                "_type": "UniformDataAxis",
                **{"name": axis, "units": unit, "scale": float(scale), "offset": float(offset), "size": size},
                **{"navigate": axis != "E", "is_binned": False, "index_in_array": index},
            }
            for index, ((axis, unit, scale, offset), size) in enumerate(zip(calibrations, image.shape, strict=True))
        ]
        signal = {
            "data": image.values,
            "axes": axes,
            "metadata": {"General": {"title": name}, "Signal": {"signal_type": "EELS"}},
            "original_metadata": {},
            "attributes": {"_lazy": False, "ragged": False},
            "learning_results": {},
            "package_info": {"package": "test", "package_version": "1"},
            "models": {},
            "tmp_parameters": {},
        }
        file_writer(str(tmp_path / f"{name}.hspy"), signal)
    with h5py.File(tmp_path / "core.hspy", "a") as core, h5py.File(tmp_path / "low.hspy") as low:
        core.copy(low["Experiments/low"], core["Experiments"], name="low")
    description = describe(tmp_path / "core.hspy")
    assert description["signal"] == "core"
    assert description["low_loss"]["file"] == str(tmp_path / "core.hspy")
    assert description["low_loss"]["offset"]["value"] == pytest.approx(truth.attrs["offset"], abs=0.02)


def test_window_that_the_axis_leaves_nothing_of_is_not_shown_reversed(tmp_path):
    energy_loss = 700 + 8.0 * np.arange(38)
    counts = np.random.default_rng(0).poisson(500, (6, 6, energy_loss.size)).astype("float32")
    write_spectrum_image(build_spectrum_image(counts, energy_loss), tmp_path / "a.zarr")
    warnings = " ".join(describe(tmp_path / "a.zarr")["warnings"])
    assert "nothing is left of the pre-edge window (660.0, 698.0) eV of Fe_L3" in warnings
    assert "np.float" not in warnings
