"""One offset and one dispersion from several edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.edges import FE_L3, MN_L3, O_K, Edge, join_edges
from eelsflow.io.read import read_spectrum_image
from eelsflow.preprocess.calibration import (
    DISTANCES,
    calibrate,
    dispersion_left,
    unlikely_distances,
    usual_distance,
)
from eelsflow.preprocess.offset import OffsetEstimate, estimate_offset
from eelsflow.preprocess.presets import DISPERSION_ERROR
from tests.strategies import examples

USUAL, SPREAD = DISTANCES["O_K", "Fe_L3"]


def asked(offset: float, relative: float, *, distance: float = USUAL, error: float = 0.03) -> OffsetEstimate:
    """Return the offset that Fe L3 asks for on an axis off by so much, `distance` eV above the pre-peak."""
    nominal = O_K.reference_energy - offset + distance / (1.0 + relative)
    return OffsetEstimate(FE_L3.reference_energy - nominal, error)


@examples(40)
@given(offset=st.floats(-8, 8), relative=st.floats(-0.01, 0.01))
def test_offset_and_dispersion_are_found_where_the_distance_is_as_usual(offset, relative):
    found = calibrate(O_K, OffsetEstimate(offset, 0.03), [(FE_L3, asked(offset, relative))])
    assert found.offset.value == pytest.approx(offset, abs=0.03)
    assert found.dispersion == pytest.approx(1.0 + relative, abs=6e-4)
    assert abs(found.dispersion - 1.0 - relative) < found.dispersion_error


@examples(40)
@given(chemistry=st.floats(-1, 1))
def test_what_chemistry_may_explain_is_divided_as_the_two_usually_go(chemistry):
    found = calibrate(
        O_K, OffsetEstimate(0.0, 0.01), [(FE_L3, asked(0.0, 0.0, distance=USUAL + chemistry, error=0.01))]
    )
    of_dispersion = (DISPERSION_ERROR * USUAL) ** 2
    share = of_dispersion / (of_dispersion + SPREAD**2)
    assert (found.dispersion - 1.0) * USUAL == pytest.approx(-share * chemistry, abs=0.02)
    measured, error = found.distances["Fe_L3"]
    assert measured == pytest.approx(USUAL + chemistry, abs=1e-9)
    assert error == pytest.approx(np.hypot(0.01, 0.01))


def test_a_file_with_the_dispersion_of_another_setting_is_put_right():
    found = calibrate(O_K, OffsetEstimate(1.0, 0.05), [(FE_L3, asked(1.0, 0.06))])
    assert found.dispersion == pytest.approx(1.06, abs=0.004)


@examples(40)
@given(deviation=st.floats(-1.5, 1.5))
def test_a_dispersion_that_is_known_leaves_to_chemistry_what_the_edges_deviate_by(deviation):
    there = asked(0.0, 0.0, distance=USUAL + deviation)
    found = calibrate(O_K, OffsetEstimate(0.0, 0.03), [(FE_L3, there)], dispersion_error=5e-4)
    assert abs(found.dispersion - 1.0) * USUAL < 0.04 + 0.03 * abs(deviation)  # .02 of it, and hardly more by the tail
    assert found.dispersion_error < 7e-4
    assert found.distances["Fe_L3"][0] == pytest.approx(USUAL + deviation, abs=1e-9)


@examples(40)
@given(error=st.floats(-0.02, 0.02), known=st.sampled_from([0.02, 0.004, 5e-4]))
def test_what_is_left_of_a_wrong_dispersion_is_what_calibrating_its_axis_leaves(error, known):
    found = calibrate(
        O_K,
        OffsetEstimate(0.0, 0.05),
        [(FE_L3, asked(0.0, 1.0 / (1.0 + error) - 1.0, error=0.05))],
        dispersion_error=known,
    )
    left = dispersion_left(join_edges([O_K, FE_L3]), error, dispersion_error=known)
    assert left == pytest.approx((1.0 + error) * found.dispersion - 1.0, abs=1e-9)
    assert abs(left) <= abs(error) + 1e-9
    assert dispersion_left(O_K, error, dispersion_error=known) == pytest.approx(error)


@pytest.mark.parametrize(
    ("known", "wrong", "told"),
    [(5e-4, 0.008, False), (5e-4, 0.012, True), (2e-3, 0.01, False), (2e-3, 0.015, True), (0.01, 0.025, False),
     (0.01, 0.04, True), (0.02, 0.015, False), (0.02, 0.05, False)],
)  # fmt: skip
def test_a_wrong_dispersion_that_was_said_to_be_known_is_told(known, wrong, told):
    found = calibrate(O_K, OffsetEstimate(1.0, 0.03), [(FE_L3, asked(1.0, wrong))], dispersion_error=known)
    said = unlikely_distances(O_K, [FE_L3], found, dispersion_error=known)
    assert len(said) == told
    if told:
        assert f"{USUAL / (1 + wrong):.2f} +- 0.04 eV apart on the file's axis" in said[0]


def test_the_distance_is_that_on_the_axis_whose_offset_is_chosen():
    taken_for_the_first = OffsetEstimate(0.0, 0.3, ((9.4, 1e-3),))
    found = calibrate(O_K, taken_for_the_first, [(FE_L3, asked(9.4, 0.0))], dispersion_error=5e-4)
    assert found.offset.value == pytest.approx(9.4, abs=0.05)
    assert found.distances["Fe_L3"][0] == pytest.approx(USUAL, abs=1e-6)
    assert not unlikely_distances(O_K, [FE_L3], found, dispersion_error=5e-4)


def test_a_single_edge_leaves_the_dispersion_as_it_is():
    offset = OffsetEstimate(2.0, 0.1, ((5.0, 0.2),))
    found = calibrate(O_K, offset, [])
    assert found.offset is offset
    assert found.dispersion == 1.0
    assert found.distances == {}


def test_the_other_edge_decides_between_offsets_that_are_as_likely():
    """Nine eV apart, as where the main peak of O K is taken for its pre-peak: L3 knows which it is."""
    ambiguous = OffsetEstimate(9.0, 0.1, ((0.0, 0.8),))
    found = calibrate(O_K, ambiguous, [(FE_L3, asked(0.0, 0.0))])
    assert found.offset.value == pytest.approx(0.0, abs=0.1)
    assert found.offset.alternatives[0][0] == 9.0
    assert found.offset.alternatives[0][1] < 0.1


def test_an_edge_that_is_poorly_known_is_placed_by_the_other():
    found = calibrate(O_K, OffsetEstimate(1.5, 20.0), [(FE_L3, asked(0.0, 0.0))])
    assert abs(found.offset.value) < 0.1
    assert 1.0 < found.offset.error < 6.0


def test_distances_are_known_both_ways_and_else_those_of_the_reference_energies():
    assert usual_distance(FE_L3, O_K) == (-USUAL, SPREAD)
    other = Edge(name="Co_L3", reference_energy=780.0, elnes_window=(770.0, 800.0))
    assert usual_distance(O_K, other) == (250.0, 1.0)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "offset", "dispersion"),
    [
        # its O K lies at 529 +- 1 eV and its L3 at 634.5 eV, 7.5 eV below that of Mn3+/4+: channels of .53 eV, not .5
        ("lsmo_linescan.hspy", 1.0, 0.53),
        # both edges lie 7 eV high (L3 at 648.7 eV); their distance is that of manganese oxides
        ("mn_oxide_core_loss.msa", -7.0, 0.2),
    ],
)
def test_real_files_of_two_edges(real_data, name, offset, dispersion):
    image = read_spectrum_image(real_data / name)
    energies = image["energy_loss"].values
    mean = image.values.reshape(-1, energies.size).mean(axis=0)
    of_oxygen, of_manganese = (estimate_offset(energies, mean, edge, max_offset=13.0) for edge in (O_K, MN_L3))
    found = calibrate(O_K, of_oxygen, [(MN_L3, of_manganese)])
    nominal = energies[1] - energies[0]
    assert abs(found.offset.value - offset) < 2.0 * found.offset.error
    assert abs(nominal * found.dispersion - dispersion) < 2.0 * nominal * found.dispersion_error
    assert found.dispersion_error < 0.03
    corrected = 530.0 + (energies + found.offset.value - 530.0) * found.dispersion
    l3 = np.interp(MN_L3.reference_energy - of_manganese.value, energies, corrected)
    assert 640.0 < l3 < 644.0  # Mn2+ to Mn4+
