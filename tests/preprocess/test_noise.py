"""Noise model: known answers, an independent reference, and what must not disturb the estimate."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.ndimage import convolve1d

from eelsflow.errors import InputError
from eelsflow.preprocess.noise import (
    NoiseModel,
    estimate_noise,
    leading_directions,
    poisson_scale,
    sample_indices,
)
from tests import strategies

POINT_SPREAD = np.array([0.08, 0.22, 0.40, 0.22, 0.08])
COUNTS_PER_ELECTRON = 19.0
GAIN = COUNTS_PER_ELECTRON * float((POINT_SPREAD**2).sum())
READOUT = 6.4


def expected_counts(n: int = 600, channels: int = 512) -> np.ndarray:
    """Return a rank-3 image with a sharp white line, from 15 to about 900 counts."""
    channel = np.arange(channels)
    background = 400.0 * (1 + channel / 200.0) ** -3.0
    edge = np.where(channel > 200, 150.0, 0.0) + 400.0 * np.exp(-0.5 * ((channel - 300) / 3.0) ** 2)
    other = 100.0 * np.exp(-0.5 * ((channel - 230) / 8.0) ** 2)
    thickness = np.linspace(0.0, 1.0, n)[:, None]
    return 0.3 * background + thickness * (background + edge) + thickness * (1 - thickness) * other


def recorded(expected: np.ndarray, seed: int = 0, readout: float = READOUT) -> np.ndarray:
    """Return counts with the point spread, gain and read-out noise above."""
    rng = np.random.default_rng(seed)
    electrons = rng.poisson(expected / COUNTS_PER_ELECTRON) * COUNTS_PER_ELECTRON
    return convolve1d(electrons, POINT_SPREAD, axis=-1, mode="nearest") + rng.normal(0, readout, expected.shape)


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    return recorded(expected_counts())


def test_noise_of_a_known_detector_is_recovered(counts: np.ndarray) -> None:
    noise = estimate_noise(counts)
    assert noise.gain == pytest.approx(GAIN, rel=0.03)
    assert np.sqrt(noise.readout_variance) == pytest.approx(READOUT, rel=0.15)


def test_counts_of_an_electron_are_recovered_whatever_the_point_spread_shares(counts: np.ndarray) -> None:
    assert estimate_noise(counts).counts_per_electron == pytest.approx(COUNTS_PER_ELECTRON, rel=0.1)
    counted = np.random.default_rng(0).poisson(expected_counts() / COUNTS_PER_ELECTRON)
    assert estimate_noise(counted).counts_per_electron == 1.0


def test_readout_noise_does_not_lower_the_counts_of_an_electron() -> None:
    """It is not correlated, so it dilutes the correlation that they are read from: by a third here."""
    noise = estimate_noise(recorded(expected_counts(), readout=25.0))
    assert noise.electron_share < 0.75
    assert noise.counts_per_electron == pytest.approx(COUNTS_PER_ELECTRON, rel=0.1)


def test_correlation_agrees_with_residuals_from_the_true_expectation(counts: np.ndarray) -> None:
    """Independent reference: a plain loop over lags of residuals that know the truth."""
    truth = convolve1d(expected_counts(), POINT_SPREAD, axis=-1, mode="nearest")
    z = (counts - truth) / np.sqrt(READOUT**2 + GAIN * truth)
    reference = [np.mean(z[:, : z.shape[1] - lag] * z[:, lag:]) / np.mean(z * z) for lag in range(9)]
    # sampling: 300,000 values; the noise that the low-rank fit took along is made up for to about 1 %
    np.testing.assert_allclose(estimate_noise(counts).correlation, reference, atol=0.03)


def test_estimate_ignores_spikes_and_dead_channels(counts: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    dirty = counts.copy()
    dirty[rng.integers(0, 600, 60), rng.integers(0, 512, 60)] += 3000
    dirty[:, [100, 401]] = 0
    clean, disturbed = estimate_noise(counts), estimate_noise(dirty)
    assert disturbed.gain == pytest.approx(clean.gain, rel=0.05)
    assert disturbed.readout_variance == pytest.approx(clean.readout_variance, rel=0.3)


def test_estimate_from_one_spectrum_is_of_the_right_size() -> None:
    """One smooth spectrum: nothing but its own neighbours to compare with."""
    smooth = 3000.0 * (1 + np.arange(2048) / 500.0) ** -3.0
    noise = estimate_noise(recorded(smooth[None], seed=2))
    assert noise.gain == pytest.approx(GAIN, rel=0.25)
    assert noise.correlation[1] == pytest.approx(0.62, abs=0.12)


def test_estimate_is_the_same_for_an_image_and_its_list_of_spectra(counts: np.ndarray) -> None:
    flat, image = estimate_noise(counts), estimate_noise(counts.reshape(20, 30, -1))
    assert flat.gain == image.gain
    np.testing.assert_array_equal(flat.correlation, image.correlation)


def test_estimate_does_not_modify_its_input() -> None:
    counts = recorded(expected_counts(40, 128)).astype(np.float32)
    before = counts.copy()
    estimate_noise(counts)
    np.testing.assert_array_equal(counts, before)


def test_estimate_refuses_counts_that_do_not_fluctuate() -> None:
    with pytest.raises(InputError, match="do not fluctuate"):
        estimate_noise(np.zeros((20, 64)))


def test_estimate_refuses_nan_and_too_few_channels() -> None:
    with pytest.raises(InputError, match="not finite"):
        estimate_noise(np.full((20, 64), np.nan))
    with pytest.raises(InputError, match="too few"):
        estimate_noise(np.ones((20, 8)))


def test_variance_is_the_line_and_never_below_the_read_out() -> None:
    noise = NoiseModel(gain=2.0, readout_variance=9.0, correlation=np.array([1.0, 0.5]))
    np.testing.assert_array_equal(noise.variance([-5.0, 0.0, 10.0]), [9.0, 9.0, 29.0])
    assert noise.variance(np.ones(3, np.float32)).dtype == np.float32


def test_covariance_holds_the_variance_and_the_correlation() -> None:
    noise = NoiseModel(gain=1.0, readout_variance=0.0, correlation=np.array([1.0, 0.5]))
    np.testing.assert_allclose(noise.covariance([4.0, 9.0, 16.0]), [[4, 3, 0], [3, 9, 6], [0, 6, 16]])


@given(st.integers(1, 10_000), st.integers(1, 2000))
def test_sample_is_sorted_distinct_and_inside(n_spectra: int, n_sample: int) -> None:
    indices = sample_indices(n_spectra, n_sample)
    assert indices.size == min(n_spectra, n_sample)
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < n_spectra


def test_sample_of_an_image_whose_width_is_a_power_of_two_holds_every_column() -> None:
    y, x = np.divmod(sample_indices(256 * 256), 256)
    assert np.unique(x).size == 256
    assert np.unique(y).size == 256


def test_leading_directions_equal_the_singular_vectors_when_signal_is_clear() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(80, 3)) * [30, 20, 10] @ np.linalg.qr(rng.normal(size=(60, 3)))[0].T
    rows += 0.1 * rng.normal(size=rows.shape)
    exact = np.linalg.svd(rows, full_matrices=False)[2][:3]
    ours = leading_directions(rows, 3)
    # signs are free; gaps of 1.5 and more converge to rounding in 6 rounds
    np.testing.assert_allclose(np.abs(np.sum(exact * ours, axis=1)), 1.0, atol=1e-9)
    np.testing.assert_allclose(ours @ ours.T, np.eye(3), atol=1e-12)


@given(st.lists(strategies.counts(-1e6, 1e6), min_size=1, max_size=30))
@example([0.0, 5e-324])
def test_poisson_scale_is_positive_and_finite(means: list[float]) -> None:
    scale = poisson_scale(np.array(means))
    assert np.isfinite(scale).all()
    assert (scale > 0).all()


def test_leading_directions_are_the_same_among_few_spectra_as_among_many() -> None:
    """Few spectra in double precision take their rounds among themselves."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((50, 4)) @ (rng.standard_normal((4, 300)) * 30) + rng.standard_normal((50, 300))
    few, directions = leading_directions(rows, 4), np.linalg.svd(rows)[2][:4]
    np.testing.assert_allclose(np.abs(np.sum(few * directions, axis=1)), 1.0, rtol=1e-9)
    padded = np.concatenate([rows, np.zeros((250, 300))])  # rows of zeros change no direction
    np.testing.assert_allclose(np.abs(np.sum(few * leading_directions(padded, 4), axis=1)), 1.0, rtol=1e-9)
