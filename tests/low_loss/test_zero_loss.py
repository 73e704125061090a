import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.errors import InputError
from eelsflow.low_loss.zero_loss import measure_zero_loss
from tests.low_loss.low_loss_spectra import drude, import_exspy, plural, recorded, recorded_gaussian, with_tail
from tests.strategies import examples

ENERGY = -20.0 + 0.25 * np.arange(400)


@pytest.mark.parametrize("fwhm", [0.3, 0.5, 0.8, 1.2])  # 1.2 to 4.8 channels
def test_position_is_right_to_a_hundredth_of_a_channel_wherever_the_peak_lies(fwhm):
    position = np.linspace(-1.3, 1.1, 97)
    found = measure_zero_loss(ENERGY, 1e6 * recorded_gaussian(ENERGY, position, fwhm))
    np.testing.assert_allclose(found.position, position, atol=0.01 * 0.25)


@given(shift=st.integers(-30, 30), scale=st.floats(1e3, 1e8))
@examples(25)
def test_position_moves_with_the_axis_and_ignores_the_intensity(shift, scale):
    counts = recorded_gaussian(ENERGY, [0.07], 0.9)
    moved = measure_zero_loss(ENERGY, scale * np.roll(counts, shift, axis=-1))
    assert moved.position[0] == pytest.approx(0.07 + 0.25 * shift, abs=1e-3)


@pytest.mark.parametrize("tail", [0.2, 0.5])
def test_position_of_an_asymmetric_peak_is_near_its_maximum_and_moves_with_it(tail):
    position = np.linspace(-0.6, 0.6, 49)
    counts = 1e6 * recorded(lambda x: with_tail(x, 0.7, tail), ENERGY, position)
    error = measure_zero_loss(ENERGY, counts).position - position
    assert np.ptp(error) < 0.02 * 0.25  # the same for every position: peak to peak two hundredths of a channel
    assert abs(error.mean()) < 0.15 * 0.7  # of the width; a centroid would be off by the tail's length


def test_position_hardly_notices_the_losses_above_the_peak():
    counts = plural([0.0, 0.3, 1.2], ENERGY, position=0.11)
    np.testing.assert_allclose(measure_zero_loss(ENERGY, counts).position, 0.11, atol=0.01 * 0.25)


def test_errors_tell_how_far_positions_scatter():
    rng = np.random.default_rng(3)
    counts = rng.poisson(2000 * recorded_gaussian(ENERGY, np.full(2000, 0.04), 0.8))
    found = measure_zero_loss(ENERGY, counts)
    pull = (found.position - 0.04) / found.error
    assert pull.mean() == pytest.approx(0, abs=0.08)
    assert pull.std() == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("fwhm", [0.4, 0.8, 1.5])
def test_resolution_is_the_width_at_half_maximum_as_recorded(fwhm):
    counts = 1e6 * recorded_gaussian(ENERGY, np.linspace(-0.2, 0.2, 21), fwhm)
    found = measure_zero_loss(ENERGY, counts)
    expected = np.hypot(fwhm, 2.3548 * 0.25 / np.sqrt(12))  # a channel adds the variance of its width
    if found.is_narrow:  # the width of the peak itself, the channel's taken out
        expected = fwhm
    np.testing.assert_allclose(found.fwhm, expected, rtol=0.02)
    assert found.resolution == pytest.approx(expected, rel=0.02)


def test_resolution_of_an_asymmetric_peak_is_its_width():
    fine = np.arange(-3, 5, 0.001)
    shape = with_tail(fine, 0.7, 0.3)
    above = fine[shape > shape.max() / 2]
    counts = 1e6 * recorded(lambda x: with_tail(x, 0.7, 0.3), ENERGY, np.linspace(-0.2, 0.2, 21))
    assert measure_zero_loss(ENERGY, counts).resolution == pytest.approx(np.ptp(above), rel=0.03)


def test_drift_over_the_scan_is_found():
    drift = np.linspace(-0.3, 0.3, 12)[:, None] + np.linspace(0, 0.05, 9)
    counts = 1e5 * recorded_gaussian(ENERGY, drift, 0.8)
    found = measure_zero_loss(ENERGY, counts)
    assert found.position.shape == found.error.shape == found.fwhm.shape == (12, 9)
    np.testing.assert_allclose(found.position, drift, atol=0.003)


def test_a_thick_specimen_whose_plasmon_is_the_highest_peak_keeps_its_zero_loss():
    wide = -20.0 + 0.5 * np.arange(300)
    counts = plural([4.0], wide, fwhm=3.0, position=0.2, single=lambda loss: drude(loss, plasmon_width=4.0))
    assert counts[0].argmax() * 0.5 - 20 > 10
    assert measure_zero_loss(wide, counts).position[0] == pytest.approx(0.2, abs=0.05)


def test_pixels_without_a_peak_are_nan():
    counts = np.zeros((3, ENERGY.size))
    counts[1] = 1e5 * recorded_gaussian(ENERGY, 0.0, 0.8)
    found = measure_zero_loss(ENERGY, counts)
    assert np.isnan(found.position).tolist() == [True, False, True]


def test_input_is_not_modified():
    counts = 1e5 * recorded_gaussian(ENERGY, [0.0], 0.8)
    before = counts.copy()
    measure_zero_loss(ENERGY, counts)
    np.testing.assert_array_equal(counts, before)


@pytest.mark.parametrize(
    ("energy", "counts", "message"),
    [
        (450 + 0.25 * np.arange(400), 1e5 * (1 + np.arange(400.0)) ** -1, "no zero-loss peak"),
        (ENERGY, np.ones(400), "no zero-loss peak"),
        (ENERGY, np.zeros(399), "400 channels"),
        (ENERGY + 20, 1e5 * recorded_gaussian(ENERGY + 20, -0.1, 0.8), "no zero-loss peak"),
    ],
)
def test_an_axis_without_a_whole_zero_loss_peak_is_refused(energy, counts, message):
    with pytest.raises(InputError, match=message):
        measure_zero_loss(energy, counts)


@pytest.mark.parametrize(
    ("dispersion", "fwhm", "tail"), [(0.1, 0.6, 0), (0.25, 0.8, 0), (0.5, 1.0, 0), (0.25, 0.7, 0.3)]
)
def test_positions_are_no_worse_than_those_of_exspy(dispersion, fwhm, tail):
    exspy_signals = import_exspy("signals")

    energy = -20.0 + dispersion * np.arange(400)
    rng = np.random.default_rng(1)
    position = rng.uniform(-0.5, 0.5, 40)
    shape = recorded_gaussian(energy, position, fwhm)
    if tail:
        shape = recorded(lambda x: with_tail(x, fwhm, tail), energy, position)
    counts = rng.poisson(3e4 * shape).astype(float)
    signal = exspy_signals.EELSSpectrum(counts)
    signal.axes_manager[-1].scale, signal.axes_manager[-1].offset = dispersion, -20.0
    coarse = signal.estimate_zero_loss_peak_centre().data
    found = measure_zero_loss(energy, counts).position
    assert np.std(found - position) < 0.2 * np.std(coarse - position)
    assert abs(np.mean(found - position)) <= abs(np.mean(coarse - position)) + 0.15 * bool(tail)
    # aligned by either, the spectra's true positions must coincide; exspy rolls by whole and then parts of channels
    moved = exspy_signals.EELSSpectrum(counts.copy())
    moved.axes_manager[-1].scale, moved.axes_manager[-1].offset = dispersion, -20.0
    marker = exspy_signals.EELSSpectrum(recorded_gaussian(energy, position, 2 * fwhm) * 1e6)
    marker.axes_manager[-1].scale, marker.axes_manager[-1].offset = dispersion, -20.0
    moved.align_zero_loss_peak(also_align=[marker], print_stats=False, show_progressbar=False)
    axis = marker.axes_manager[-1].axis
    theirs = (marker.data * axis).sum(axis=-1) / marker.data.sum(axis=-1)
    assert np.std(found - position) <= np.std(theirs) + 1e-3 * dispersion
