import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from eelsflow.robustness.perturb import add_gaussian_noise, add_poisson_noise, draw_shifts
from tests.strategies import counts


@pytest.fixture
def vectors():
    energy_loss = np.linspace(0, 30, 300)
    heights = np.random.default_rng(0).uniform(0.5, 1, (200, 1))
    return (heights * np.exp(-((energy_loss - 10) ** 2) / 20)).astype(np.float32)


def test_shifts_are_uniform_within_the_amplitude():
    shifts = draw_shifts(20000, amplitude=5, rng=np.random.default_rng(0))
    assert np.abs(shifts).max() <= 5
    assert shifts.std() == pytest.approx(5 / np.sqrt(3), rel=0.02)


def test_gaussian_noise_is_sigma_times_the_span(vectors):
    noisy = add_gaussian_noise(vectors, sigma=0.15, rng=np.random.default_rng(0))
    span = np.percentile(vectors, 99, axis=1) - np.percentile(vectors, 1, axis=1)
    measured = (noisy - vectors).std(axis=1) / span
    # 300 channels know a standard deviation to 4 %; the mean of 200 spectra to .3 %
    assert measured.mean() == pytest.approx(0.15, rel=0.02)


def test_draws_depend_on_the_seed_alone(vectors):
    first, again = (add_gaussian_noise(vectors, sigma=0.1, rng=np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, again)


def test_poisson_noise_keeps_the_mean_and_has_the_variance_of_its_counts(vectors):
    repeated = np.repeat(vectors[:1], 4000, axis=0)
    noisy = add_poisson_noise(repeated, peak_counts=100, rng=np.random.default_rng(0))
    peak = vectors[0].argmax()
    assert noisy[:, peak].mean() == pytest.approx(vectors[0, peak], rel=0.01)
    # 100 counts: relative deviation 10 %
    assert noisy[:, peak].std() / vectors[0, peak] == pytest.approx(0.1, rel=0.05)


@given(
    arrays.arrays(np.float32, (3, 8), elements=counts(-1e4, 1e5, width=32)),
    st.sampled_from([1000.0, 10.0]),
)
def test_poisson_noise_takes_spectra_of_any_sign_and_height(spectra, peak_counts):
    noisy = add_poisson_noise(spectra, peak_counts=peak_counts, rng=np.random.default_rng(0))
    assert np.isfinite(noisy).all()
    assert np.array_equal(noisy[spectra <= 0], spectra[spectra <= 0])  # nothing is expected there


def test_poisson_noise_keeps_the_mean_of_partly_negative_spectra(vectors):
    repeated = np.repeat(vectors[:1] - vectors[0].max() / 2, 4000, axis=0)
    noisy = add_poisson_noise(repeated, peak_counts=100, rng=np.random.default_rng(0))
    assert np.allclose(noisy.mean(axis=0), repeated[0], atol=0.01 * repeated[0].max())


def test_poisson_noise_holds_that_of_the_background_that_was_subtracted(vectors):
    repeated = np.repeat(vectors[:1], 4000, axis=0)
    noisy = add_poisson_noise(repeated, peak_counts=100, background=1.0, rng=np.random.default_rng(0))
    peak = vectors[0].argmax()
    height = vectors[0, peak]
    assert noisy[:, peak].mean() == pytest.approx(height, rel=0.01)
    # 100 counts above 100: a deviation of the root of 200; far from the peak of the root of 100
    assert noisy[:, peak].std() / height == pytest.approx(0.01 * np.sqrt(200), rel=0.05)
    assert noisy[:, -1].std() / height == pytest.approx(0.01 * np.sqrt(100), rel=0.05)
