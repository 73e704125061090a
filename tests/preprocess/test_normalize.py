import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from eelsflow.errors import InputError
from eelsflow.preprocess.normalize import feature_scale, normalize
from tests.strategies import counts, factors

METHODS = ["min_max", "area", "l2", "robust_percentile"]

spectra = hnp.arrays(np.float64, (3, 60), elements=counts(1.0, 1000.0)).filter(
    lambda x: (np.percentile(x, 99, axis=-1) - np.percentile(x, 1, axis=-1) > 1).all()
)


@pytest.mark.parametrize("method", METHODS)
@given(spectra=spectra, thickness=factors(1e-3, 1e3))
def test_normalize_ignores_a_thickness_scale(method, spectra, thickness):
    np.testing.assert_allclose(normalize(thickness * spectra, method), normalize(spectra, method), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["min_max", "robust_percentile"])
@given(spectra=spectra, level=counts(-1e3, 1e3))
def test_normalize_by_a_range_ignores_a_constant_level(method, spectra, level):
    # cancellation: a level of 1000 on a range of 1 costs three digits
    np.testing.assert_allclose(normalize(spectra + level, method), normalize(spectra, method), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@given(spectra=spectra)
def test_normalize_is_idempotent(method, spectra):
    once = normalize(spectra, method)
    np.testing.assert_allclose(normalize(once, method), once, rtol=1e-9, atol=1e-12)


@given(spectra=spectra)
def test_normalize_has_the_value_that_its_name_says(spectra):
    min_max = normalize(spectra, "min_max")
    np.testing.assert_array_equal(min_max.min(axis=-1), 0)
    np.testing.assert_array_equal(min_max.max(axis=-1), 1)
    np.testing.assert_allclose(normalize(spectra, "area").mean(axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(normalize(spectra, "l2"), axis=-1), 1, rtol=1e-12)
    low, high = np.percentile(spectra, [1, 99], axis=-1)[..., None]
    expected = (spectra - low) / (high - low)
    np.testing.assert_allclose(normalize(spectra, "robust_percentile"), expected, rtol=1e-9, atol=1e-12)


def test_normalize_none_is_a_copy_and_no_method_modifies_its_input():
    counts = np.arange(12, dtype=np.float32).reshape(2, 6)
    before = counts.copy()
    for method in ("none", "min_max", "area", "l2", "robust_percentile"):
        result = normalize(counts, method)
        assert result.dtype == np.float32
        assert not np.shares_memory(result, counts)
    np.testing.assert_array_equal(counts, before)
    np.testing.assert_array_equal(normalize(counts, "none"), counts)


def test_normalize_min_max_lets_one_noisy_channel_set_the_scale_and_percentiles_do_not():
    spectrum = np.tile(np.linspace(0, 1, 300), 1)
    spiked = spectrum.copy()
    spiked[10] = 5.0
    np.testing.assert_allclose(normalize(spiked, "min_max")[-1], 0.2)
    assert normalize(spiked, "robust_percentile")[-1] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_normalize_names_the_spectrum_that_cannot_be_normalised(method):
    counts = np.random.default_rng(0).uniform(1, 2, (4, 50))
    counts[2] = 0.0
    with pytest.raises(InputError, match=r"1 of 4 spectra cannot be normalised by .* number 2"):
        normalize(counts, method)
    counts[2] = 1.0
    counts[1, 7] = np.nan
    with pytest.raises(InputError, match="number 1: 1 of its channels are not finite"):
        normalize(counts, method)


@pytest.mark.parametrize("method", METHODS)
def test_normalize_blanks_degenerate_spectra_on_request(method):
    counts = np.random.default_rng(0).uniform(1, 2, (2, 3, 50)).astype(np.float32)
    counts[1, 2] = 0.0
    counts[0, 1, 4] = np.inf
    result = normalize(counts, method, degenerate="nan")
    blank = np.zeros((2, 3), dtype=bool)
    blank[1, 2] = blank[0, 1] = True
    np.testing.assert_array_equal(np.isnan(result), np.broadcast_to(blank[..., None], result.shape))


def test_normalize_by_area_refuses_a_spectrum_of_noise_about_zero():
    noise = np.random.default_rng(3).normal(size=300)
    noise -= noise.mean() + 0.01
    with pytest.raises(InputError, match="not clearly above zero"):
        normalize(noise, "area")


def test_normalize_refuses_a_constant_spectrum_but_for_its_rounding():
    rounding = np.float32(1000) + np.array([0, 6e-5, 0, 6e-5] * 20, dtype=np.float32)
    with pytest.raises(InputError, match="cannot be normalised by min_max"):
        normalize(rounding, "min_max")


def test_normalize_refuses_an_unknown_method():
    with pytest.raises(InputError, match="choose min_max, area, l2"):
        normalize(np.arange(5.0), "standard")


@pytest.mark.parametrize("method", METHODS)
def test_feature_scale_brings_the_median_norm_to_that_of_min_max_spectra(method):
    counts = np.random.default_rng(1).gamma(2.0, 100.0, (50, 300))
    normalized, min_max = normalize(counts, method), normalize(counts, "min_max")
    scale = feature_scale(normalized, min_max)
    norms = [np.median(np.linalg.norm(x, axis=1)) for x in (scale * normalized, min_max)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    assert method != "min_max" or scale == 1.0


def test_feature_scale_leaves_out_blank_spectra_and_refuses_when_none_is_left():
    counts = np.random.default_rng(1).gamma(2.0, 100.0, (5, 30))
    normalized, min_max = normalize(counts, "l2"), normalize(counts, "min_max")
    expected = feature_scale(normalized[:4], min_max[:4])
    normalized[4] = min_max[4] = np.nan
    assert feature_scale(normalized, min_max) == expected
    with pytest.raises(InputError, match="feature scale is undefined"):
        feature_scale(normalized[4:], min_max[4:])
