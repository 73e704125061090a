import numpy as np
import pytest

from eelsflow.errors import InputError
from eelsflow.low_loss.elastic import separate_zero_loss
from eelsflow.low_loss.thickness import (
    absolute_thickness,
    effective_atomic_number,
    mean_free_path,
    measure_relative_thickness,
)
from eelsflow.low_loss.zero_loss import measure_zero_loss
from tests.low_loss.low_loss_spectra import drude, import_exspy, plural, with_tail

ENERGY = -20.0 + 0.25 * np.arange(2048)
SHORT = -20.0 + 0.1 * np.arange(1024)
THICKNESS = np.array([0.2, 0.4, 0.7, 1.0, 1.2])


def thickness_of(energy, counts, **noise):
    return measure_relative_thickness(energy, counts, measure_zero_loss(energy, counts, **noise), **noise)


@pytest.mark.parametrize("fwhm", [0.3, 0.8, 1.2])
@pytest.mark.parametrize("position", [0.0, 0.09, -3.6])
@pytest.mark.parametrize("energy", [ENERGY, SHORT], ids=["long", "short"])
def test_relative_thickness_is_within_three_percent(energy, fwhm, position):
    found = thickness_of(energy, plural(THICKNESS, energy, fwhm=fwhm, position=position))
    np.testing.assert_allclose(found.value, THICKNESS, rtol=0.02)


@pytest.mark.parametrize("plasmon", [(15.0, 4.0), (23.5, 15.0), (24.0, 10.0)])
def test_relative_thickness_is_right_whatever_the_plasmon(plasmon):
    counts = plural(THICKNESS, ENERGY, single=lambda loss: drude(loss, *plasmon))
    np.testing.assert_allclose(thickness_of(ENERGY, counts).value, THICKNESS, rtol=0.02)


def test_without_a_specimen_the_relative_thickness_is_zero():
    assert thickness_of(ENERGY, plural([0.0], ENERGY)).value == pytest.approx(0, abs=1e-3)


def test_the_tails_of_the_zero_loss_belong_to_it():
    peak = plural([0.0], ENERGY, fwhm=0.8)[0]
    tails = np.exp(-np.abs(ENERGY) / 1.2)
    counts = plural(THICKNESS, ENERGY, fwhm=0.8)
    # a tenth of every electron, whatever it lost, is spread over the detector's tails
    kernel = np.zeros(161)
    kernel[80] = 0.9
    kernel += 0.1 * tails[:161][::-1] * 0 + 0.1 * _spread(161)
    counts = np.stack([np.convolve(one, kernel, mode="same") for one in counts])
    np.testing.assert_allclose(thickness_of(ENERGY, counts).value, THICKNESS, rtol=0.03)
    assert peak.sum() == pytest.approx(1e6, rel=1e-6)


def _spread(size):
    values = np.exp(-np.abs(np.arange(size) - size // 2) / 3.0)
    return values / values.sum()


@pytest.mark.parametrize("tail", [0.2, 0.4])
def test_an_asymmetric_zero_loss_is_counted_whole(tail):
    counts = plural(THICKNESS, ENERGY, fwhm=0.3)
    shape = with_tail(0.25 * np.arange(-20, 41), 0.5, tail)
    counts = np.stack([np.convolve(one, shape / shape.sum())[20 : 20 + ENERGY.size] for one in counts])
    np.testing.assert_allclose(thickness_of(ENERGY, counts).value, THICKNESS, rtol=0.03)


def test_errors_tell_how_far_relative_thickness_scatters():
    rng = np.random.default_rng(2)
    counts = rng.poisson(np.repeat(plural([0.5], ENERGY, intensity=2e4), 1500, axis=0))
    found = thickness_of(ENERGY, counts)
    pull = (found.value - np.median(found.value)) / found.error
    assert pull.std() == pytest.approx(1, abs=0.1)
    assert np.median(found.value) == pytest.approx(0.5, rel=0.02)


def test_intensities_are_those_of_beam_and_zero_loss():
    counts = plural([0.5], ENERGY, intensity=1e5)
    found = thickness_of(ENERGY, counts)
    assert found.total[0] == pytest.approx(1e5, rel=0.01)
    assert found.zero_loss[0] == pytest.approx(1e5 * np.exp(-0.5), rel=0.01)


def test_parts_add_up_to_the_spectrum():
    counts = plural(THICKNESS, ENERGY, position=0.1)
    parts = separate_zero_loss(ENERGY, counts, measure_zero_loss(ENERGY, counts))
    elastic, inelastic = parts.elastic_counts(), parts.inelastic_counts(counts)
    above = parts.channels_above(3.0)
    np.testing.assert_allclose((elastic + inelastic)[:, above], counts[:, above], rtol=1e-6, atol=1e-3)
    assert np.abs((elastic + inelastic - counts).sum(axis=1)).max() < 2e-3 * 1e6


def test_pixels_without_a_zero_loss_are_nan():
    counts = plural([0.4, 0.4], ENERGY)
    counts[1] = 0
    assert np.isnan(thickness_of(ENERGY, counts).value).tolist() == [False, True]


def test_mean_free_path_of_iron_oxide_at_200_kv_is_that_of_the_literature():
    # 122-125 nm at large collection angles
    found = mean_free_path(beam_energy=200, density=5.17, convergence_angle=0, collection_angle=100)
    assert 115 < found < 130


@pytest.mark.parametrize("beam_energy", [80.0, 200.0, 300.0])
@pytest.mark.parametrize("angles", [(10.0, 20.0), (25.0, 10.0), (0.5, 5.0)])
def test_mean_free_path_from_density_is_that_of_exspy(beam_energy, angles):
    eels = import_exspy("utils.eels")

    convergence, collection = angles
    theirs = eels.iMFP_Iakoubovskii(5.2, beam_energy) * eels.iMFP_angular_correction(
        5.2, beam_energy, convergence, collection
    )
    ours = mean_free_path(
        beam_energy=beam_energy, density=5.2, convergence_angle=convergence, collection_angle=collection
    )
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_mean_free_path_from_the_atomic_number_is_that_of_malis():
    # aluminium at 100 kV and 8.3 mrad; F, E_m and lambda by hand
    f = (1 + 100 / 1022) / (1 + 100 / 511) ** 2
    mean_energy = 7.6 * 13**0.36
    expected = 106 * f * (100 / mean_energy) / np.log(2 * 8.3 * 100 / mean_energy)
    assert mean_free_path(beam_energy=100, atomic_number=13, collection_angle=8.3) == pytest.approx(expected)
    assert 95 < expected < 110


def test_effective_atomic_number_of_an_element_is_its_own():
    assert effective_atomic_number({13: 1.0}) == pytest.approx(13)
    assert 8 < effective_atomic_number({26: 3, 8: 4}) < 26


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beam_energy": 200_000, "density": 5, "collection_angle": 20}, "keV"),
        ({"beam_energy": 200, "collection_angle": 20}, "density"),
        ({"beam_energy": 200, "density": 5, "atomic_number": 20, "collection_angle": 20}, "density"),
        ({"beam_energy": 200, "density": 5, "collection_angle": 0.02}, "mrad"),
        ({"beam_energy": 200, "density": -5, "collection_angle": 20}, "density"),
        ({"beam_energy": 200, "atomic_number": 20, "collection_angle": 5, "convergence_angle": 10}, "density"),
    ],
)
def test_what_makes_no_mean_free_path_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        mean_free_path(**given)


def test_relative_thickness_is_nearer_to_the_truth_than_exspy():
    exspy_signals = import_exspy("signals")

    rng = np.random.default_rng(4)
    counts = rng.poisson(plural(np.repeat(THICKNESS, 4), ENERGY, fwhm=1.0)).astype(float)
    signal = exspy_signals.EELSSpectrum(counts)
    signal.axes_manager[-1].scale, signal.axes_manager[-1].offset = 0.25, -20.0
    theirs = signal.estimate_thickness(threshold=signal.estimate_elastic_scattering_threshold(window=10.0)).data
    simple = signal.estimate_thickness(threshold=3.0).data
    ours = thickness_of(ENERGY, counts).value
    truth = np.repeat(THICKNESS, 4)

    def error(values):
        return np.nanmean(np.abs(np.asarray(values).ravel() / truth - 1))

    assert error(ours) < 0.02
    assert error(ours) <= min(error(theirs), error(simple))


def test_thickness_in_nanometres_is_that_of_exspy():
    exspy_signals = import_exspy("signals")

    counts = plural(THICKNESS, ENERGY)
    signal = exspy_signals.EELSSpectrum(counts)
    signal.axes_manager[-1].scale, signal.axes_manager[-1].offset = 0.25, -20.0
    signal.set_microscope_parameters(beam_energy=200, convergence_angle=10, collection_angle=20)
    theirs = np.ravel(signal.estimate_thickness(threshold=3.0, density=5.2).data)
    found = thickness_of(ENERGY, counts)
    microscope = {"beam_energy": 200, "convergence_angle": 10, "collection_angle": 20, "density": 5.2}
    # theirs cuts the tail of the zero loss and the losses beyond the axis
    np.testing.assert_allclose(absolute_thickness(found.value, **microscope), theirs, rtol=0.03)
    truth = absolute_thickness(THICKNESS, **microscope)
    np.testing.assert_allclose(absolute_thickness(found.value, **microscope), truth, rtol=0.02)
