import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from eelsflow.errors import EdgeOutOfRangeError, InputError
from eelsflow.preprocess.background import (
    ExponentMoments,
    ExponentPrior,
    PowerLawStatus,
    exponent_moments,
    fit_power_law,
)
from tests.strategies import examples, exponents, factors

WINDOW = (495.0, 522.0)
ENERGY = 480.0 + 0.25 * np.arange(360)  # 480-570 eV
BEFORE = slice(60, 168)  # the window's channels
UNDER_EDGE = slice(180, 300)


@dataclass(frozen=True)
class StraightLineNoise:
    """Variance on a straight line, channels correlated as given: what a noise model is to the fit."""

    gain: float = 1.0
    readout_variance: float = 0.0
    correlation: NDArray[np.float64] = field(default_factory=lambda: np.array([1.0]))

    def variance(self, expected):
        return self.readout_variance + self.gain * np.maximum(expected, 0)


def power_law(amplitude, exponent, energy=ENERGY, pivot=508.0):
    amplitude, exponent = np.asarray(amplitude, float), np.asarray(exponent, float)
    return amplitude[..., None] * (energy / pivot) ** -exponent[..., None]


@pytest.mark.parametrize("shrink", [True, False])
@given(amplitude=factors(1e-3, 1e6), exponent=exponents(1.5, 6.0))
@examples(40)
def test_power_law_minus_its_fit_is_zero(shrink, amplitude, exponent):
    counts = power_law(amplitude, exponent)
    fit = fit_power_law(ENERGY, counts, WINDOW, shrink=shrink)
    # steps in r stop at 1e-8, times ln(570/508)
    np.testing.assert_allclose(fit.evaluate(ENERGY), counts, rtol=1e-8)
    assert fit.exponent == pytest.approx(exponent, abs=1e-7)


def test_fit_reports_the_amplitude_at_the_pivot_and_keeps_the_image_shape():
    counts = power_law(np.full((2, 3), 400.0), np.full((2, 3), 3.4))
    before = counts.copy()
    fit = fit_power_law(ENERGY, counts, WINDOW)
    assert fit.amplitude.shape == fit.exponent.shape == fit.status.shape == (2, 3)
    assert fit.covariance.shape == (2, 3, 2, 2)
    assert fit.status.dtype == np.uint8
    assert fit.pivot_energy == pytest.approx(np.sqrt(495 * 522))
    np.testing.assert_allclose(fit.evaluate([fit.pivot_energy])[..., 0], fit.amplitude)
    np.testing.assert_array_equal(counts, before)


@given(scale=factors(1e-2, 1e4))
@examples(20)
def test_fit_of_scaled_counts_is_the_scaled_fit_without_a_noise_model(scale):
    counts = np.random.default_rng(0).poisson(power_law(np.full(20, 100.0), np.full(20, 3.0))).astype(float)
    fit, scaled = (fit_power_law(ENERGY, factor * counts, WINDOW) for factor in (1.0, scale))
    np.testing.assert_allclose(scaled.amplitude, scale * fit.amplitude, rtol=1e-6)
    np.testing.assert_allclose(scaled.exponent, fit.exponent, rtol=1e-6)
    np.testing.assert_array_equal(scaled.status, fit.status)


def test_unshrunk_fit_agrees_with_scipy_curve_fit_at_the_same_weights():
    rng = np.random.default_rng(1)
    counts = rng.poisson(power_law(np.full(8, 500.0), np.linspace(2.5, 4.5, 8)))
    noise = StraightLineNoise()
    fit = fit_power_law(ENERGY, counts, WINDOW, noise=noise, shrink=False)
    for index, spectrum in enumerate(counts):
        expected = fit.evaluate(ENERGY[BEFORE])[index]  # the weights come from the fitted model
        parameters, covariance = curve_fit(
            lambda energy, a, r: a * (energy / fit.pivot_energy) ** -r,
            ENERGY[BEFORE],
            spectrum[BEFORE],
            p0=(400.0, 3.0),
            sigma=np.sqrt(noise.variance(expected)),
            absolute_sigma=True,
        )
        assert fit.amplitude[index] == pytest.approx(parameters[0], rel=1e-5)
        assert fit.exponent[index] == pytest.approx(parameters[1], abs=1e-4)
        np.testing.assert_allclose(
            fit.covariance[index], covariance, rtol=1e-2, atol=1e-3 * fit.covariance[index, 0, 0]
        )


@pytest.mark.parametrize("level", [0.3, 3.0, 100.0])
@pytest.mark.parametrize("shrink", [True, False])
def test_background_is_unbiased_before_the_edge_down_to_fractions_of_a_count(level, shrink):
    n = 3000
    rng = np.random.default_rng(2)
    truth = power_law(level * rng.uniform(0.5, 1.5, n), rng.normal(3.4, 0.15, n))
    counts = rng.poisson(truth)
    residual = counts - fit_power_law(ENERGY, counts, WINDOW, shrink=shrink).evaluate(ENERGY)
    standard_error = np.sqrt(level / (n * 108))
    assert abs(residual[:, BEFORE].mean()) < 4 * standard_error


@pytest.mark.parametrize("level", [0.3, 3.0, 100.0])
def test_shrunk_background_is_unbiased_under_the_edge_and_far_less_noisy(level):
    n = 3000
    rng = np.random.default_rng(3)
    truth = power_law(level * rng.uniform(0.5, 1.5, n), rng.normal(3.4, 0.15, n))
    counts = rng.poisson(truth)
    errors = {
        shrink: (fit_power_law(ENERGY, counts, WINDOW, shrink=shrink).evaluate(ENERGY) - truth)[:, UNDER_EDGE]
        for shrink in (True, False)
    }
    # The prior's mean itself comes from these counts: its error moves all pixels alike, 2 % at .3 counts.
    assert abs(errors[True].mean()) < 0.02 * level
    assert errors[True].std() < 0.5 * errors[False].std()


def test_background_variance_is_that_of_repeated_fits():
    rng = np.random.default_rng(4)
    kernel = np.array([0.25, 0.5, 0.25])
    truth = power_law(400.0, 3.4)
    electrons = rng.poisson(truth / 20, (1500, 360)) * 20.0
    counts = sum(weight * np.roll(electrons, lag - 1, axis=1) for lag, weight in enumerate(kernel))
    square = kernel @ kernel
    noise = StraightLineNoise(gain=20 * square, correlation=np.array([square, 0.25, 0.0625]) / square)
    inside = slice(40, 320)  # away from the seam of np.roll
    fit = fit_power_law(ENERGY[inside], counts[:, inside], WINDOW, noise=noise, shrink=False)
    background = fit.evaluate(ENERGY[UNDER_EDGE])
    predicted = fit.variance(ENERGY[UNDER_EDGE]).mean(axis=0)
    # The extrapolation is nonlinear in r, which is uncertain by 1 here; 15 % covers that and 1500 draws.
    np.testing.assert_allclose(background.var(axis=0), predicted, rtol=0.15)


def test_shrinking_recovers_the_spread_of_exponents():
    rng = np.random.default_rng(5)
    counts = rng.poisson(power_law(np.full(4000, 2000.0), rng.normal(3.2, 0.4, 4000)))
    prior = exponent_moments(ENERGY, counts, WINDOW, noise=StraightLineNoise()).prior()
    assert prior.mean == pytest.approx(3.2, abs=0.04)
    assert np.sqrt(prior.variance) == pytest.approx(0.4, abs=0.04)


@pytest.mark.parametrize("noise", [None, StraightLineNoise(1.0, 4.0)])
def test_moments_of_blocks_give_the_fit_of_the_whole(noise):
    rng = np.random.default_rng(6)
    counts = rng.poisson(power_law(rng.uniform(0, 300, 5000), np.full(5000, 3.4))).astype(np.uint16)
    whole = fit_power_law(ENERGY, counts, WINDOW, noise=noise)
    blocks = np.array_split(counts, 7)
    moments = sum((exponent_moments(ENERGY, block, WINDOW, noise=noise) for block in blocks), ExponentMoments())
    prior = moments.prior()
    assert prior.mean == pytest.approx(whole.prior.mean, rel=1e-9)
    assert prior.variance == pytest.approx(whole.prior.variance, rel=1e-6)
    fits = [fit_power_law(ENERGY, block, WINDOW, noise=noise, prior=whole.prior) for block in blocks]
    np.testing.assert_allclose(np.concatenate([fit.exponent for fit in fits]), whole.exponent, rtol=1e-7)
    np.testing.assert_array_equal(np.concatenate([fit.status for fit in fits]), whole.status)


def test_status_tells_how_each_background_was_found():
    rng = np.random.default_rng(7)
    bright = rng.poisson(power_law(np.full(500, 1e6), rng.normal(3.4, 0.3, 500))).astype(float)
    dim = rng.poisson(power_law([20.0], [3.4])).astype(float)
    empty = rng.normal(0, 3, (1, 360))
    broken = np.full((1, 360), 100.0)
    broken[0, 100] = np.nan
    counts = np.concatenate([bright, dim, empty, broken])
    fit = fit_power_law(ENERGY, counts, WINDOW, noise=StraightLineNoise(1.0, 9.0))
    status = fit.status
    assert (status[:500] == PowerLawStatus.OK).all()
    assert list(status[500:]) == [PowerLawStatus.SHRUNK, PowerLawStatus.NO_SIGNAL, PowerLawStatus.INVALID]
    assert fit.exponent[500] == pytest.approx(fit.prior.mean, abs=0.3)
    assert abs(fit.amplitude[501]) < 3.0
    assert np.isnan([fit.amplitude[502], fit.exponent[502]]).all()
    assert np.isnan(fit.evaluate(ENERGY)[502]).all()


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("value", [0.0, -5.0])
def test_zero_and_negative_counts_are_no_signal_and_never_a_silent_zero(value, shrink):
    fit = fit_power_law(ENERGY, np.full((3, 360), value), WINDOW, shrink=shrink)
    assert (fit.status == PowerLawStatus.NO_SIGNAL).all()
    # what is subtracted is what was there: the background is as negative as the counts, not clipped
    np.testing.assert_allclose(fit.evaluate(ENERGY[BEFORE]).mean(), value, atol=0.05)
    assert np.isfinite(fit.variance(ENERGY)).all()


def test_counts_that_rise_steeply_run_to_the_bound_and_say_so():
    rising = np.exp((ENERGY - 508.0) / 10.0) * 1000
    fit = fit_power_law(ENERGY, rising, WINDOW, shrink=False)
    assert fit.status == PowerLawStatus.AT_BOUND


def test_fit_uses_the_part_of_the_window_on_the_axis_with_larger_errors():
    counts = np.random.default_rng(8).poisson(power_law(np.full(200, 1000.0), np.full(200, 3.4)))
    noise = StraightLineNoise()
    whole, part = (
        fit_power_law(ENERGY[begin:], counts[:, begin:], WINDOW, noise=noise, shrink=False) for begin in (0, 120)
    )
    # the axis begins at 510: 12 of 27 eV remain, and the error grows as width^-1.5
    ratio = np.sqrt(part.covariance[:, 1, 1].mean() / whole.covariance[:, 1, 1].mean())
    assert ratio == pytest.approx((27 / 12) ** 1.5, rel=0.1)


def test_fit_refuses_an_axis_without_the_window():
    with pytest.raises(EdgeOutOfRangeError, match=r"pre-edge window \(495.0, 522.0\) eV has 0 channels"):
        fit_power_law(600.0 + ENERGY - 480.0, np.ones(360), WINDOW)
    with pytest.raises(EdgeOutOfRangeError, match="third of the window"):
        fit_power_law(ENERGY[140:], np.ones(220), WINDOW)


def test_fit_refuses_counts_of_another_length():
    with pytest.raises(InputError, match="last dimension of counts"):
        fit_power_law(ENERGY, np.ones((360, 2)), WINDOW)


def test_prior_without_any_background_is_the_textbook_range():
    assert ExponentMoments().prior() == ExponentPrior(3.5, 0.25)


@pytest.fixture(scope="module")
def hyperspy_remainder():
    """HyperSpy's remainder after its own power-law fit."""
    with warnings.catch_warnings():  # HyperSpy and its dependencies warn on import and of missing accelerators
        warnings.simplefilter("ignore")
        exspy_signals = pytest.importorskip("exspy.signals")

        def remainder(counts, *, fast):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                signal = exspy_signals.EELSSpectrum(np.asarray(counts, dtype=float))
                signal.axes_manager[-1].offset, signal.axes_manager[-1].scale = ENERGY[0], ENERGY[1] - ENERGY[0]
                signal.axes_manager[-1].units = "eV"
                result = signal.remove_background(
                    signal_range=WINDOW,
                    background_type="Power law",
                    fast=fast,
                    plot_remainder=False,
                    show_progressbar=False,
                )
                return result.data

    return remainder


def test_fit_agrees_with_exspy_least_squares_where_counts_are_high(hyperspy_remainder):
    rng = np.random.default_rng(9)
    truth = power_law(rng.uniform(2e5, 4e5, 4), rng.uniform(2.8, 3.8, 4))
    counts = rng.poisson(truth)
    ours = counts - fit_power_law(ENERGY, counts, WINDOW, shrink=False).evaluate(ENERGY)
    theirs = hyperspy_remainder(counts, fast=False)
    # Theirs is unweighted and includes the channel at the window's end: both differ from ours by a fraction of the
    # statistical error of the extrapolation, about 5e-3 of the background at the end of the axis here.
    np.testing.assert_allclose(ours, theirs, atol=2e-3 * counts.max())


def test_fit_differs_from_exspy_on_purpose_where_an_area_is_negative(hyperspy_remainder):
    # The two-area method takes the logarithm of a ratio of areas: one negative area, an everyday event in vacuum,
    # and the remainder is the spectrum itself or NaN, without a word. Ours stays an unbiased fit with a status.
    counts = np.random.default_rng(10).normal(0, 3, (4, 360))
    counts[:, BEFORE.start : BEFORE.start + 54] -= 10
    counts[:, BEFORE.start + 54 : BEFORE.stop] += 2
    theirs = hyperspy_remainder(counts, fast=True)
    assert (np.isnan(theirs).any(axis=1) | np.isclose(theirs, counts).all(axis=1)).all()
    fit = fit_power_law(ENERGY, counts, WINDOW, noise=StraightLineNoise(1.0, 9.0))
    assert (fit.status == PowerLawStatus.NO_SIGNAL).all()
    ours = counts - fit.evaluate(ENERGY)
    # The weighted, not the plain mean vanishes, and no power law follows a step of 12 counts: a standard error of
    # each half, 3 / sqrt(54), is what remains.
    np.testing.assert_allclose(ours[:, BEFORE].mean(axis=1), 0, atol=3 / np.sqrt(54))


@pytest.mark.real
def test_real_line_scan_has_a_flat_remainder_before_its_edge(real_data):
    from rsciio.hspy import file_reader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signal = file_reader(str(real_data / "lsmo_linescan.hspy"))[0]
    axis = signal["axes"][-1]
    energy = axis["offset"] + axis["scale"] * np.arange(axis["size"])
    counts = np.asarray(signal["data"], dtype=float)
    window = (490.0, 523.0)
    fit = fit_power_law(energy, counts, window)
    assert np.isin(fit.status, [PowerLawStatus.OK, PowerLawStatus.SHRUNK]).all()
    assert ((fit.exponent > 1) & (fit.exponent < 6)).all()
    before = (energy >= window[0]) & (energy < window[1])
    remainder = counts - fit.evaluate(energy)
    oxygen = remainder[:, (energy > 525) & (energy < 545)].mean(axis=1)
    assert (oxygen > 0).all()
    assert np.abs(remainder[:, before]).mean() < 0.05 * oxygen.mean()
