"""The compiled passes give what numpy gives, a whole block at a time."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import median_filter, uniform_filter1d

from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError
from eelsflow.preprocess import kernels, spikes
from eelsflow.preprocess.background import fit_power_law
from eelsflow.preprocess.noise import NoiseModel, quantile_of_spectra, running_median
from eelsflow.preprocess.pca import PilotSums, moments_of
from eelsflow.preprocess.rebin import RebinMethod, rebin_conserving, rebin_linear, rebin_variance, resampling
from eelsflow.preprocess.transform import repair

NOISE = NoiseModel(gain=5.0, readout_variance=20.0, correlation=np.array([1.0, 0.4, 0.1]))
ENERGY = EnergyAxis(490.0, 0.25, 340)


def spectra(n: int = 60, seed: int = 0) -> NDArray[np.float32]:
    """Return counts with a falling background, an edge, noise, and a spike of some width in every third spectrum."""
    rng = np.random.default_rng(seed)
    thickness = rng.uniform(0.1, 1.0, (n, 1))
    expected = thickness * 400 * (ENERGY.values / 500) ** -3.2 + (ENERGY.values > 530) * rng.uniform(0, 200, (n, 1))
    counts = 5 * rng.poisson(expected / 5) + rng.normal(0, 4.5, expected.shape)
    for row in range(0, n, 3):
        begin = rng.integers(0, ENERGY.size - 12)
        counts[row, begin : begin + rng.integers(1, 12)] += rng.uniform(100, 3000)
    return counts.astype(np.float32)


def test_spikes_are_those_of_whole_array_operations() -> None:
    counts = spectra()
    reference = spikes.reference_spectra(counts, NOISE)
    assert reference is not None
    solver = spikes._coefficients_of(reference.spectra, reference.mean, NOISE)
    fit = (counts @ solver) @ reference.spectra
    sigma = np.sqrt(NOISE.variance(fit))
    suspicious = (np.abs(counts - fit) > 4.5 * sigma * reference.misfit).any(axis=1)
    for _ in range(4):
        fit = (fit + np.clip(counts - fit, -4 * sigma, 4 * sigma)) @ solver @ reference.spectra
        sigma = np.sqrt(NOISE.variance(fit))
    z = (counts - fit) / (sigma * reference.misfit)
    z = z - running_median(z, 41)
    z /= np.maximum(1.4826 * running_median(np.abs(z), 41), 1.0)
    expected = spikes._events(z, 6.0) & suspicious[:, None]
    found = spikes.find_spikes(counts, NOISE, reference=reference)
    assert expected.any(axis=1).sum() > 5
    np.testing.assert_array_equal(found, expected)


def test_spikes_ignore_dead_channels_and_the_type_of_the_counts() -> None:
    counts = np.clip(spectra(), 0, None).astype(np.uint16)
    dead = np.zeros(ENERGY.size, dtype=bool)
    dead[[0, 100, 101, 339]] = True
    bridged = counts.astype(np.float32)
    spikes.bridge_channels(bridged, dead)
    np.testing.assert_allclose(bridged, spikes.interpolate_masked(counts, dead), rtol=1e-6)
    reference = spikes.reference_spectra(bridged, NOISE)
    counts[:, dead] = 0
    found = spikes.find_spikes(counts, NOISE, reference=reference, dead_channels=dead)
    np.testing.assert_array_equal(found, spikes.find_spikes(bridged, NOISE, reference=reference))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_hits_are_bridged_as_masked_channels_are(dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(5)
    counts, dead = rng.integers(0, 5000, (20, 90)).astype(dtype), np.zeros(90, dtype=bool)
    dead[[0, 30, 89]] = True
    mask = rng.random(counts.shape) < 0.2
    mask[::3] = False
    hits = np.argwhere(mask).astype(np.int32)
    expected = spikes.interpolate_masked(counts, mask | (dead & mask.any(axis=1)[:, None]))
    for channels in (slice(0, 90), slice(25, 60)):
        found = counts[:, channels].astype(np.float32)
        assert kernels.bridge_hits(counts, dead, hits, channels.start, found) == 0
        np.testing.assert_allclose(found, expected[:, channels], rtol=1e-6)


def test_spectra_without_a_clean_channel_are_counted_and_refused() -> None:
    counts, dead = np.ones((3, 4), dtype=np.float32), np.array([True, True, False, False])
    hits = np.array([[0, 2], [2, 2], [2, 3]], dtype=np.int32)
    assert kernels.bridge_hits(counts, dead, hits, 0, counts.copy()) == 1
    with pytest.raises(InputError, match="1 spectra have no clean channel left"):
        repair(counts, dead, hits, slice(0, 4))


@pytest.mark.parametrize(("width", "dtype"), [(15, np.float64), (41, np.float32)])
def test_running_median_is_that_of_scipy(width: int, dtype: type[np.floating]) -> None:
    values = np.random.default_rng(1).standard_normal((3, 100)).astype(dtype)
    values[1, 20:60] = 2.0  # equal values
    np.testing.assert_array_equal(running_median(values, width), median_filter(values, (1, width), mode="nearest"))


@pytest.mark.parametrize("n", [7, 8])
def test_median_of_spectra_is_that_of_numpy(n: int) -> None:
    values = np.random.default_rng(2).standard_normal((n, 30))
    np.testing.assert_array_equal(quantile_of_spectra(values), np.median(values, axis=0))
    np.testing.assert_array_equal(quantile_of_spectra(values, 2), np.sort(values, axis=0)[2])


def test_lagged_products_are_those_of_a_loop() -> None:
    values, sums = np.random.default_rng(3).standard_normal((5, 40)), np.empty(4)
    kernels.lagged_products(values, sums)
    np.testing.assert_allclose(sums, [(values[:, : 40 - k] * values[:, k:]).sum() for k in range(4)], rtol=1e-12)


@pytest.mark.parametrize("method", ["conserve", "linear"])
@pytest.mark.parametrize("dispersion", [0.1, 0.6])
def test_the_product_is_that_of_one_step_after_the_other(method: RebinMethod, dispersion: float) -> None:
    counts = spectra(30)
    fit = fit_power_law(ENERGY.values, counts, (495.0, 522.0), noise=NOISE, shrink=False)
    target = EnergyAxis(513.0, dispersion, 80)
    net = counts - fit.evaluate(ENERGY.values)
    resample = rebin_conserving if method == "conserve" else rebin_linear
    noise = NOISE.variance(uniform_filter1d(counts.astype(np.float64), 9, axis=1, mode="nearest"))
    deviation = np.sqrt(np.maximum(fit.variance(ENERGY.values), 0))
    variance = rebin_variance(ENERGY.values, noise, target, method=method, correlation=NOISE.correlation)
    variance += resample(ENERGY.values, deviation, target) ** 2

    first, weights, covered = resampling(method, ENERGY, target)
    assert covered.all()
    intensity, found = (np.empty((30, target.size), np.float32) for _ in range(2))
    correlation = np.zeros(len(weights))
    correlation[: NOISE.correlation.size] = NOISE.correlation[: len(weights)]
    parameters = np.column_stack(
        [fit.amplitude, fit.exponent, *(fit.covariance[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1)))]
    )
    kernels.subtract_and_resample(
        counts, parameters, np.log(ENERGY.values / fit.pivot_energy), NOISE.gain, NOISE.readout_variance, 9, first,
        weights, correlation, intensity, found,
    )  # fmt: skip
    np.testing.assert_allclose(intensity, resample(ENERGY.values, net, target), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found, variance, rtol=1e-5)


@pytest.mark.parametrize("exponent", [-9.5, 0.0, 3.4, 19.5])
def test_the_exponential_is_exact_for_every_exponent_allowed(exponent: float) -> None:
    for reach in (0.03, 0.3, 1.0):
        log_energy = np.linspace(-reach, reach, 50)
        shape = np.empty(50)
        kernels._power_law(exponent, log_energy, reach, shape)
        np.testing.assert_allclose(shape, np.exp(-exponent * log_energy), rtol=1e-11)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_sums_about_a_pilot_are_the_moments(dtype: type[np.generic]) -> None:
    counts = np.clip(spectra(90), 0, None).astype(dtype)
    chosen = np.arange(90) % 2 == 1
    pilot = counts[:20].mean(axis=0).astype(np.float32)
    first, second = PilotSums(pilot), PilotSums(pilot)
    first.add_spectra(counts[:50], chosen[:50])
    second.add_spectra(counts[50:], chosen[50:])
    first.add(second)
    expected, found = moments_of(counts[chosen].astype(np.float64)), first.moments()
    assert found.n == expected.n
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(found.scatter, expected.scatter, atol=2e-6 * np.abs(expected.scatter).max())
    assert PilotSums(pilot).moments().n == 0


def test_sums_about_a_pilot_are_the_same_however_many_spectra_come_at_once() -> None:
    """Sums of some thousand spectra are single precision, those of more are not."""
    counts = np.tile(np.clip(spectra(90), 0, None), (100, 1))
    pilot = counts[:90].mean(axis=0)
    whole, parts = PilotSums(pilot), PilotSums(pilot)
    whole.add_spectra(counts, np.ones(len(counts), dtype=bool))
    for part in np.array_split(counts, 7):
        parts.add_spectra(part, np.ones(len(part), dtype=bool))
    first, second = whole.moments(), parts.moments()
    np.testing.assert_allclose(second.scatter, first.scatter, atol=1e-6 * np.abs(first.scatter).max())
    np.testing.assert_array_equal(first.scatter, first.scatter.T)


def test_sums_about_a_pilot_refuse_nan() -> None:
    counts = spectra(4)
    counts[2, 7] = np.nan
    with pytest.raises(InputError, match="not finite"):
        PilotSums(counts[0]).add_spectra(counts, np.ones(4, dtype=bool))


def test_sums_over_spectra_and_channels_are_those_of_numpy() -> None:
    counts = np.arange(60, dtype=np.uint16).reshape(5, 12)
    rows = np.array([True, False, True, True, False])
    total, totals = np.ones(12), np.empty(5)
    kernels.add_spectra(counts, rows, total)
    kernels.add_channels(counts, totals)
    np.testing.assert_array_equal(total, 1 + counts[rows].sum(axis=0))
    np.testing.assert_array_equal(totals, counts.sum(axis=1))
