"""What the beam loses: the measured shapes, and the physics of plural scattering."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given

from eelsflow.simulator.acquisition import PRESETS
from eelsflow.simulator.edges import (
    FINE_STEP,
    NOMINAL_LOW_LOSS,
    REFERENCE_ENERGY,
    LowLoss,
    broaden,
    calibrate_edges,
    detected,
    fine_energies,
    poisson_weights,
    scatter,
)
from tests.strategies import energies, examples, fractions

GRID = fine_energies(480.0, 900.0)
THICKNESS = 35.0 / NOMINAL_LOW_LOSS.mean_free_path


def seen(phase: str) -> np.ndarray:
    parameters = getattr(PRESETS["paper"], phase)
    spectrum = calibrate_edges(parameters.nominal, GRID, relative_thickness=THICKNESS)
    return detected(spectrum, NOMINAL_LOW_LOSS, THICKNESS)


def height(spectrum: np.ndarray, above_pre_peak: float) -> float:
    return float(np.interp(REFERENCE_ENERGY + above_pre_peak, GRID, spectrum))


@pytest.mark.parametrize("phase", ["feo", "fe3o4"])
def test_detected_edge_has_the_heights_of_its_parameters(phase: str) -> None:
    shape, spectrum = getattr(PRESETS["paper"], phase).nominal, seen(phase)
    main = height(spectrum, shape.main_position)
    wanted = {
        0.0: shape.pre_peak_height,
        3.3: shape.valley_height,
        shape.main_position - 2.0: shape.shoulder_height,
        shape.main_position + 11.0: shape.minimum_height,
        shape.third_position: shape.third_height,
        43.0: shape.fourth_height,
    }
    for position, expected in wanted.items():
        # seven heights by non-negative parts, then a move by hundredths of an eV: not exact
        assert height(spectrum, position) / main == pytest.approx(expected, abs=0.03), position


@pytest.mark.parametrize("phase", ["feo", "fe3o4"])
def test_detected_pre_peak_lies_at_the_reference_energy(phase: str) -> None:
    spectrum = seen(phase)
    near = np.abs(GRID - REFERENCE_ENERGY) < 1.5
    assert GRID[near][spectrum[near].argmax()] == pytest.approx(REFERENCE_ENERGY, abs=FINE_STEP)


def test_iron_lines_have_the_measured_distance_ratio_and_strength() -> None:
    shape, spectrum = PRESETS["paper"].fe3o4.nominal, seen("fe3o4")
    before = (GRID > 650.0) & (GRID < 695.0)
    exponent, amplitude = np.polyfit(np.log(GRID[before]), np.log(spectrum[before]), 1)
    lines = spectrum - np.exp(amplitude) * GRID**exponent
    l3, l2 = ((window, lines[window].argmax()) for window in ((GRID > 700) & (GRID < 713), (GRID > 716) & (GRID < 726)))
    positions = [GRID[window][index] - REFERENCE_ENERGY for window, index in (l3, l2)]
    heights = [lines[window][index] for window, index in (l3, l2)]
    assert positions[0] == pytest.approx(177.5, abs=0.25)
    assert positions[1] - positions[0] == pytest.approx(13.0, abs=0.3)
    assert heights[0] / heights[1] == pytest.approx(2.77, rel=0.08)  # the tail of O K is not a pure power law
    assert heights[0] / height(spectrum, shape.main_position) == pytest.approx(2.4, rel=0.05)


def test_iron_lines_are_stronger_where_there_is_more_iron_per_oxygen() -> None:
    shape = PRESETS["paper"].fe3o4.nominal
    rich = dataclasses.replace(shape, iron_density=shape.iron_density * 4.0 / 3.0)
    heights = [
        detected(calibrate_edges(s, GRID, relative_thickness=THICKNESS), NOMINAL_LOW_LOSS, THICKNESS)
        for s in (shape, rich)
    ]
    iron = heights[1] - heights[0]
    assert height(iron, shape.l3_position) / height(heights[0], shape.main_position) == pytest.approx(
        2.4 / 3.0, rel=0.02
    )
    np.testing.assert_allclose(iron[GRID < 690.0], 0.0, atol=1e-3)  # the oxygen edge stays as it is


def test_plasmon_peaks_at_its_energy_with_its_width() -> None:
    plasmon = NOMINAL_LOW_LOSS.single_plasmon(step=0.01)
    energy = 0.01 * np.arange(plasmon.size)
    assert plasmon.sum() == pytest.approx(1.0)
    above = energy[plasmon > 0.5 * plasmon.max()]
    # a Drude peak this wide lies a little below the plasmon energy
    assert energy[plasmon.argmax()] == pytest.approx(NOMINAL_LOW_LOSS.plasmon_energy, abs=2.5)
    assert above[-1] - above[0] == pytest.approx(NOMINAL_LOW_LOSS.plasmon_width, rel=0.15)


def spike(energy: np.ndarray) -> np.ndarray:
    spectrum = np.zeros(energy.size)
    spectrum[100] = 1.0
    return spectrum


def test_single_scattering_is_what_is_left_of_a_thin_specimen() -> None:
    spectrum = spike(GRID)
    thin = detected(spectrum, NOMINAL_LOW_LOSS, 1e-9)
    np.testing.assert_allclose(thin, broaden(spectrum, NOMINAL_LOW_LOSS.zero_loss_width), atol=1e-9)


@examples(20)
@given(t=fractions(0.0, 0.5), energy=energies(22.0, 25.0), width=energies(10.0, 20.0))
def test_plural_scattering_keeps_the_intensity_and_adds_t_mean_losses(t: float, energy: float, width: float) -> None:
    low_loss = LowLoss(energy, width, 0.5, 123.0)
    grid = fine_energies(500.0, 2500.0)  # wide enough for every tail
    orders = scatter(spike(grid), low_loss)
    np.testing.assert_allclose(orders.sum(axis=-1), 1.0, rtol=1e-9)
    seen_by_beam = np.tensordot(poisson_weights(np.asarray(t)), orders, axes=1)
    plasmon = low_loss.single_plasmon()
    mean_plasmon = FINE_STEP * (plasmon @ np.arange(plasmon.size))
    assert seen_by_beam.sum() == pytest.approx(1.0, abs=1e-4)  # the sixth scattering is left out
    assert seen_by_beam @ (grid - grid[100]) == pytest.approx(t * mean_plasmon, rel=1e-3, abs=1e-6)


@given(width=energies(0.0, 3.0))
@examples(20)
def test_broadening_keeps_the_sum_and_gives_the_width(width: float) -> None:
    spectrum = np.zeros(401)
    spectrum[200] = 1.0
    broad = broaden(spectrum, width)
    assert broad.sum() == pytest.approx(1.0)
    if width > 0.5:  # narrower than that, the grid shows
        sigma = FINE_STEP * np.sqrt(broad @ (np.arange(401) - 200.0) ** 2)
        assert 2.3548 * sigma == pytest.approx(width, rel=0.01)


def test_every_drawn_shape_lies_within_its_ranges() -> None:
    rng = np.random.default_rng(0)
    for phase in (PRESETS["paper"].feo, PRESETS["paper"].fe3o4):
        shape = phase.draw(rng)
        low, high = phase.pre_peak_height
        assert low <= shape.pre_peak_height <= high
        low, high = phase.main_position
        assert low <= shape.main_position <= high


def test_phases_stay_within_the_ranges_assumed_for_them() -> None:
    feo, fe3o4 = PRESETS["paper"].feo, PRESETS["paper"].fe3o4
    inside = [
        (feo.pre_peak_height, (0.35, 0.50)),
        (feo.main_position, (9.6, 10.8)),
        (feo.third_position, (27.0, 30.0)),
        (fe3o4.pre_peak_height, (0.55, 0.70)),
        (fe3o4.main_position, (8.8, 9.6)),
    ]
    for phase in (feo, fe3o4):
        inside += [(phase.pre_peak_sigma, (1.0, 1.4)), (phase.main_sigma, (2.0, 3.0)), (phase.third_sigma, (4.0, 5.0))]
    for (low, high), (lowest, highest) in inside:
        assert lowest <= low <= high <= highest
