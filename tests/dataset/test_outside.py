"""Spectra of other laboratories, put on a table's axis without their labels."""

import numpy as np
import pytest
from pydantic import ValidationError

from eelsflow.dataset.outside import (
    Like,
    Outside,
    check_outside,
    constant_between,
    maxima,
    on_axis,
    place,
    read_recorded,
)
from eelsflow.energy import EnergyAxis
from eelsflow.errors import DataSetError, UnreadableFileError

AXIS = EnergyAxis(632.0, 0.1, 299)
TABLE_LABEL = np.repeat(["Mn2+", "Mn4+"], 20)


def white_lines(energy_loss, maximum):
    return np.exp(-(((energy_loss - maximum) / 2) ** 2)) + 0.5 * np.exp(-(((energy_loss - maximum - 11) / 2) ** 2))


@pytest.fixture
def table():
    """L3 at 641.8 (Mn2+) and 643.0 eV (Mn4+), with noise."""
    random = np.random.default_rng(0)
    places = np.repeat([641.8, 643.0], 20)
    spectra = np.array([white_lines(AXIS.values, where) for where in places])
    return spectra + 0.02 * random.standard_normal(spectra.shape)


@pytest.fixture
def files(tmp_path):
    """Another laboratory's axis is 1.2 eV lower; its own spectra have ranges, scales and baselines of their own."""
    ranges = np.array([[633.0, 661.0], [634.0, 664.0], [632.0, 659.0]])
    spectra = [
        0.1 + 3 * white_lines(np.linspace(*window, 300), where)
        for window, where in zip(ranges, (640.6, 640.6, 641.8), strict=True)
    ]
    np.savez(tmp_path / "references.npz", X=spectra, energy_min_max=ranges, label=["Mn2", "mixed", "Mn4"])
    energy = 615 + 0.1 * np.arange(700)
    wide = np.array([white_lines(energy, 640.6), 2 * white_lines(energy, 640.6)])
    np.savez(tmp_path / "wide.npz", few=wide[:1], many=wide, energy_eV=energy)
    return tmp_path


def test_spectra_are_read_with_their_own_ranges_or_the_common_axis(files):
    own = read_recorded(Outside(name="a", spectra=files / "references.npz", labels={"Mn2": "Mn2+"}))
    np.testing.assert_allclose(own.energies[:, [0, -1]], [[633, 661], [634, 664], [632, 659]])
    assert own.label.tolist() == ["Mn2", "mixed", "Mn4"]
    common = read_recorded(Like(spectra=files / "wide.npz", array="few", label="Mn2+"))
    assert common.spectra.shape == (1, 700)
    assert read_recorded(Like(spectra=files / "wide.npz", label="Mn2+")).spectra.shape == (2, 700)
    assert common.label.tolist() == ["Mn2+"]
    with pytest.raises(DataSetError, match="has no label for each of its 2 spectra"):
        read_recorded(Outside(name="a", spectra=files / "wide.npz", labels={"x": "Mn2+"}))
    with pytest.raises(UnreadableFileError, match="expected arrays none"):
        read_recorded(Like(spectra=files / "wide.npz", array="none", label="Mn2+"))


def test_maxima_lie_between_channels():
    for where in (641.83, 640.0, 645.27):
        coarse = np.arange(630.0, 660.0, 0.25)
        assert maxima(white_lines(coarse, where)[None], coarse)[0] == pytest.approx(where, abs=0.02)


def test_one_constant_is_found_from_spectra_of_one_class_and_moves_all_alike(files, table):
    like = Like(spectra=files / "wide.npz", array="many", label="Mn2+")
    outside = Outside(name="a", spectra=files / "references.npz", labels={"Mn2": "Mn2+", "Mn4": "Mn4+"}, place=like)
    recorded = read_recorded(outside)
    moved = place(outside, recorded, energy_loss=AXIS.values, table=table, label=TABLE_LABEL)
    np.testing.assert_allclose(moved, [1.2] * 3, atol=0.06)
    with pytest.raises(DataSetError, match="the table has none of that class, only"):
        place(outside, recorded, energy_loss=AXIS.values, table=table, label=np.full(40, "Mn3+"))


def test_the_constant_does_not_follow_a_scale_or_a_baseline(files, table):
    recorded = read_recorded(Like(spectra=files / "wide.npz", array="many", label="Mn2+"))
    mean = table[TABLE_LABEL == "Mn2+"].mean(axis=0)
    one, other = (constant_between(recorded, AXIS.values, given) for given in (mean, 7 * mean + 3))
    assert one == pytest.approx(other, abs=1e-9)


def test_each_is_moved_to_where_the_tables_maxima_lie_whatever_its_label(files, table):
    outside = Outside(name="a", spectra=files / "references.npz", labels={"Mn2": "Mn2+"}, place="maximum")
    moved = place(outside, read_recorded(outside), energy_loss=AXIS.values, table=table, label=TABLE_LABEL)
    np.testing.assert_allclose(moved, [642.4 - 640.6] * 2 + [642.4 - 641.8], atol=0.15)  # the median of both classes
    recorded = outside.model_copy(update={"place": "recorded"})
    assert not place(recorded, read_recorded(recorded), energy_loss=AXIS.values, table=table, label=TABLE_LABEL).any()


def test_moved_spectra_hold_their_ends_and_true_data_enter_where_there_are_some(files):
    own = read_recorded(Outside(name="a", spectra=files / "references.npz", labels={"Mn2": "Mn2+"}))
    found, held = on_axis(own, np.array([1.0, 0.0, -2.0]), AXIS)
    assert held == pytest.approx(661.8 - 657.0)  # the third ends there; the first begins 2 eV late, the second as well
    np.testing.assert_allclose(found[2][AXIS.values > 657.05], own.spectra[2][-1], rtol=1e-6)
    wide = read_recorded(Like(spectra=files / "wide.npz", array="few", label="Mn2+"))
    moved, held = on_axis(wide, np.array([10.0]), AXIS)
    assert held == 0
    np.testing.assert_allclose(moved[0], white_lines(AXIS.values, 650.6), atol=2e-3)


def test_a_test_names_its_classes_in_one_way(files):
    for given in ({}, {"labels": {"a": "b"}, "label": "b"}):
        with pytest.raises(ValidationError, match="give either labels"):
            Outside(name="a", spectra=files / "wide.npz", **given)


def test_a_test_without_known_labels_or_files_is_refused_at_once(files):
    known = Outside(name="a", spectra=files / "references.npz", labels={"Mn2": "Mn2+"})
    check_outside(known)
    with pytest.raises(DataSetError, match=r"none of the labels Mn_2 is in .* which has Mn2, Mn4, mixed"):
        check_outside(known.model_copy(update={"labels": {"Mn_2": "Mn2+"}}))
    with pytest.raises(UnreadableFileError):
        check_outside(known.model_copy(update={"spectra": files / "absent.npz"}))
    absent = Like(spectra=files / "absent.npz", label="Mn2+")
    with pytest.raises(UnreadableFileError):
        check_outside(known.model_copy(update={"place": absent}))


def test_spectra_that_are_like_nothing_cannot_be_placed(files, table):
    np.savez(files / "flat.npz", spectra=np.ones((2, 299)), energy_loss=AXIS.values)
    flat = read_recorded(Like(spectra=files / "flat.npz", label="Mn2+"))
    with pytest.raises(DataSetError, match="nowhere are the two alike"):
        constant_between(flat, AXIS.values, table[0])
