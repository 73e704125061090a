"""A low loss and its core loss, whole images, against the truth of simulated pairs."""

import numpy as np
import pytest

from eelsflow.errors import InputError
from eelsflow.low_loss.pair import deconvolve, measure_low_loss
from eelsflow.low_loss.zero_loss import FWHM
from eelsflow.simulator import PRESETS, LowLossRecording, simulate_acquisition
from eelsflow.simulator.edges import LowLossParameters
from eelsflow.spectrum_image import build_spectrum_image
from tests.low_loss.low_loss_spectra import plural

# mean free paths that make a specimen of some 35 nm up to 1.2 of them thick
THICK = LowLossParameters(mean_free_path=(30.0, 125.0))
COUNTING = PRESETS["wide"].model_copy(update={"shape": (16, 16), "low_loss": THICK})
PAPER = PRESETS["paper"].model_copy(update={"shape": (16, 16), "low_loss": THICK})


@pytest.fixture(scope="module")
def pairs():
    return [
        simulate_acquisition(parameters, seed, low_loss=LowLossRecording())
        for parameters in (PAPER, COUNTING)
        for seed in range(4)
    ]


def test_offsets_are_within_two_hundredths_of_an_ev_of_the_truth(pairs):
    for pair in pairs:
        found = measure_low_loss(pair.low_loss)
        true = -pair.truth["zero_loss"]
        assert float(found["offset"].mean()) == pytest.approx(pair.truth.attrs["offset"], abs=0.02)
        assert np.abs(found["offset"].mean("x") - true).max() < 0.02
        assert found.attrs["offset"] == pytest.approx(pair.truth.attrs["offset"], abs=0.02)


def test_relative_thickness_is_within_three_percent_of_the_truth(pairs):
    checked = 0
    for pair in pairs:
        found, true = measure_low_loss(pair.low_loss), pair.truth["t_over_lambda"]
        within = (true > 0.2) & (true < 1.2)
        if within.sum() > 20:
            error = (found["t_over_lambda"] / true - 1).values[within.values]
            checked += 1
            assert abs(np.median(error)) < 0.03
            expected = (found["t_over_lambda_error"] / true).values[within.values]
            assert 1.4826 * np.median(np.abs(error - np.median(error))) < 1.5 * np.median(expected) + 0.003
    assert checked >= 4


def test_resolution_is_that_of_the_truth(pairs):
    for pair in pairs:
        found = measure_low_loss(pair.low_loss)
        step = float(np.diff(pair.low_loss["energy_loss"])[0])
        if not found.attrs["is_narrow"]:
            assert found.attrs["resolution"] == pytest.approx(pair.truth.attrs["resolution"], rel=0.05, abs=0.1 * step)
        assert found["resolution"].dims == ("y", "x")


def test_measurement_has_the_promised_maps(pairs):
    found = measure_low_loss(pairs[0].low_loss)
    assert set(found) == {
        *("offset", "offset_error", "resolution", "t_over_lambda", "t_over_lambda_error"),
        *("zero_loss_intensity", "total_intensity"),
    }
    assert found["offset"].attrs["units"] == "eV"
    assert found.sizes == {"y": 16, "x": 16}
    assert found.attrs["gain"] == pytest.approx(5.55, rel=0.15)


def test_a_dead_channel_in_the_peak_does_no_harm():
    energy = -20 + 0.25 * np.arange(1000)
    counts = np.random.default_rng(0).poisson(np.repeat(plural([0.5], energy, intensity=1e6), 25, axis=0))
    counts[:, 81] = 0
    found = measure_low_loss(build_spectrum_image(counts.reshape(5, 5, -1), energy))
    assert found.attrs["dead_channels"] == [81]
    assert float(found["offset"].mean()) == pytest.approx(0, abs=0.02)
    assert float(found["t_over_lambda"].median()) == pytest.approx(0.5, rel=0.03)


def test_empty_channels_of_a_faint_counted_spectrum_are_not_dead():
    energy = -20 + 0.25 * np.arange(1000)
    counts = np.random.default_rng(0).poisson(plural([0.5], energy, intensity=2e3))
    assert measure_low_loss(build_spectrum_image(counts[0], energy)).attrs["dead_channels"] == []


def test_a_single_spectrum_is_measured():
    energy = -20 + 0.25 * np.arange(1000)
    counts = np.random.default_rng(0).poisson(plural([0.5], energy, intensity=1e6))
    found = measure_low_loss(build_spectrum_image(counts[0], energy))
    assert found["t_over_lambda"].shape == (1, 1)
    assert float(found["t_over_lambda"][0, 0]) == pytest.approx(0.5, rel=0.03)


def test_a_core_loss_is_refused_as_a_low_loss(pairs):
    with pytest.raises(InputError, match="no zero-loss peak"):
        measure_low_loss(pairs[0].image)


def test_deconvolution_recovers_single_scattering_in_simulated_pairs():
    """The mean edge of a field behind one thickness, against the simulator's edge scattered by nothing."""
    from eelsflow.simulator.acquisition import _Drawn

    # many electrons, no film: what is left is what deconvolution does wrong
    levels = PRESETS["clean"].levels.model_copy(update={"dose": (300.0, 300.0), "support_level": 0.0})
    clean = PRESETS["clean"].model_copy(
        update={"shape": (10, 10), "levels": levels, "low_loss": LowLossParameters(mean_free_path=(35.0, 36.0))}
    )
    pair = simulate_acquisition(clean, 2, low_loss=LowLossRecording())
    thick = pair.truth["t_over_lambda"].values > 0.3
    assert thick.sum() > 8
    found = deconvolve(pair.image, pair.low_loss, pre_edge_window=(490.0, 522.0))
    # the same acquisition with hardly any plural scattering: only its edges, behind exp(-t/lambda), are compared
    drawn = _Drawn.draw(clean, 2)
    truth = _edges_alone(drawn, single=True)
    seen = _edges_alone(drawn, single=False)
    energy = found["energy_loss"].values
    window = (energy > 526) & (energy < 580)
    at = np.isin(np.round(pair.image["energy_loss"].values, 4), np.round(energy, 4))
    ours = found["counts"].values[thick].mean(axis=0)[window]
    single, plural_ = (values[thick][:, at].mean(axis=0)[window] for values in (truth, seen))

    def error(values):
        scale = values @ single / (values @ values)
        return np.sqrt(((scale * values - single) ** 2).mean() / (single**2).mean())

    assert error(plural_) > 0.08
    assert error(ours) < 0.3 * error(plural_)


def _edges_alone(drawn, *, single):
    from eelsflow.simulator.acquisition import _sample, _weights

    energy, basis = drawn._basis()
    weights = _weights(drawn.specimen, drawn.low_loss, drawn.parameters.levels.reference_thickness)
    weights[-2:] = 0.0  # background and film
    if single:
        orders = np.arange(weights.shape[0] - 2) % 6
        weights[:-2][orders > 0] = 0.0
    rows = [
        weights[:, row].T @ _sample(energy, basis, drawn.axis_error.true_energies(drawn.axis.values, row))
        for row in range(weights.shape[1])
    ]
    return drawn.detector.mean_counts(np.stack(rows).reshape(-1, drawn.axis.size).astype(np.float32)).reshape(
        *np.stack(rows).shape
    )


def test_deconvolution_carries_the_noise_of_both():
    rng = np.random.default_rng(1)
    energy, core_energy = -20 + 0.25 * np.arange(800), 480 + 0.25 * np.arange(500)
    low = rng.poisson(np.repeat(plural([0.6], energy, intensity=5e5), 256, axis=0)).reshape(16, 16, -1)
    edge = 500.0 / (1 + np.exp(-(core_energy - 530)))
    core = rng.poisson(np.broadcast_to(2000 * (core_energy / 500) ** -3 + edge, (16, 16, 500)))
    found = deconvolve(
        build_spectrum_image(core, core_energy), build_spectrum_image(low, energy), pre_edge_window=(485.0, 525.0)
    )
    chosen = slice(220, 320)
    scatter = found["counts"].values[..., chosen].reshape(256, -1).var(axis=0).mean()
    assert scatter == pytest.approx(float(found["variance"][..., chosen].mean()), rel=0.15)
    assert found["energy_loss"][0] == pytest.approx(485.0)
    assert found.attrs["noise_amplification"] == pytest.approx(1, abs=0.05)


def test_images_of_other_pixels_are_refused(pairs):
    with pytest.raises(InputError, match="pixels"):
        deconvolve(pairs[0].image, pairs[0].low_loss[:4], pre_edge_window=(495.0, 522.0))


def test_resolution_per_pixel_is_about_that_of_the_scan():
    energy = -20 + 0.1 * np.arange(1000)
    counts = np.random.default_rng(0).poisson(np.repeat(plural([0.4], energy, intensity=1e6), 30, axis=0))
    found = measure_low_loss(build_spectrum_image(counts.reshape(5, 6, -1), energy))
    np.testing.assert_allclose(found["resolution"], found.attrs["resolution"], rtol=0.03)
    assert found.attrs["resolution"] == pytest.approx(np.hypot(0.8, 0.1 * FWHM / np.sqrt(12)), rel=0.02)
