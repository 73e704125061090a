import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eelsflow.energy import EnergyAxis
from eelsflow.errors import EdgeOutOfRangeError, InputError
from eelsflow.preprocess.rebin import covered_channels, rebin_conserving, rebin_linear, rebin_variance
from tests.strategies import counts, energies


def test_rebin_conserving_gives_each_target_the_overlapping_fraction():
    counts = rebin_conserving([10.0, 11.0, 12.0], [4.0, 8.0, 2.0], EnergyAxis(10.25, 0.75, 3))
    # targets 9.875-10.625, 10.625-11.375, 11.375-12.125 over channels with boundaries 9.5, 10.5, 11.5, 12.5
    np.testing.assert_allclose(counts, [0.625 * 4 + 0.125 * 8, 0.75 * 8, 0.125 * 8 + 0.625 * 2])


@given(
    counts=hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.just(40)), elements=counts(-1e4)),
    dispersion=energies(0.05, 0.9),
    start=energies(-3.0, 3.0),
)
def test_rebin_conserving_equals_interpolated_cumulative_counts(counts, dispersion, start):
    source = EnergyAxis(500.0, 0.25, 40)
    target = EnergyAxis(503.0 + start, dispersion, 12)
    try:
        rebinned = rebin_conserving(source.values, counts, target)
    except EdgeOutOfRangeError:
        assert not covered_channels(source.values, target).any()
        return
    covered = covered_channels(source.values, target)
    for spectrum, result in zip(counts, rebinned, strict=True):
        cumulative = np.concatenate([[0.0], np.cumsum(spectrum)])
        expected = np.diff(np.interp(target.boundaries, source.boundaries, cumulative))
        # the cumulative sum is larger than the difference of two of its values: rounding of 1e-12 of it
        np.testing.assert_allclose(result[covered], expected[covered], rtol=1e-9, atol=1e-12 * np.abs(spectrum).sum())
        assert np.isnan(result[~covered]).all()


@given(
    counts=hnp.arrays(np.float64, 40, elements=counts()),
    n_targets=st.integers(2, 200),
)
def test_rebin_conserving_keeps_the_sum_when_the_axes_share_their_ends(counts, n_targets):
    source = EnergyAxis(500.0, 0.25, 40)
    dispersion = 10.0 / n_targets
    target = EnergyAxis(499.875 + dispersion / 2, dispersion, n_targets)
    rebinned = rebin_conserving(source.values, counts, target)
    assert rebinned.sum() == pytest.approx(counts.sum(), rel=1e-9, abs=1e-9)
    assert (rebinned >= -1e-9 * counts.max(initial=0)).all()


@given(counts=hnp.arrays(np.float64, 30, elements=counts(-1e4)), shift=energies(-2.0, 2.0))
def test_rebin_linear_equals_numpy_interp(counts, shift):
    source = EnergyAxis(500.0, 0.25, 30)
    target = EnergyAxis(501.0 + shift, 0.1, 50)
    rebinned = rebin_linear(source.values, counts, target)
    covered = covered_channels(source.values, target, method="linear")
    expected = 0.4 * np.interp(target.values, source.values, counts)
    np.testing.assert_allclose(rebinned[covered], expected[covered], rtol=1e-9, atol=1e-8)
    assert np.isnan(rebinned[~covered]).all()


def test_rebin_onto_the_same_axis_is_the_identity():
    source = EnergyAxis(513.0, 0.1, 540)
    counts = np.random.default_rng(0).poisson(50, (4, 540)).astype(np.uint16)
    for rebin in (rebin_conserving, rebin_linear):
        rebinned = rebin(source.values, counts, source)
        assert rebinned.dtype == np.float32
        # overlaps of boundaries computed twice differ by 1e-13 eV / .1 eV
        np.testing.assert_allclose(rebinned, counts, rtol=1e-6)


def test_rebin_methods_agree_on_a_spectrum_that_is_linear_in_energy():
    source = EnergyAxis(500.0, 0.25, 400)
    target = EnergyAxis(513.0, 0.1, 540)
    counts = 100.0 - 0.5 * (source.values - 500.0)
    conserved = rebin_conserving(source.values, counts, target)
    # spreading a channel's counts evenly moves them by less than half a channel: half of .25 eV times the slope
    np.testing.assert_allclose(conserved, rebin_linear(source.values, counts, target), atol=0.4 * 0.125 * 0.5 + 1e-9)


def test_rebin_marks_channels_beyond_the_detector():
    source = EnergyAxis(520.0, 0.25, 100)  # 519.875-544.875 eV
    target = EnergyAxis(513.0, 0.1, 540)
    counts = rebin_conserving(source.values, np.ones((2, 3, 100)), target)
    assert counts.shape == (2, 3, 540)
    covered = covered_channels(source.values, target)
    np.testing.assert_array_equal(np.isfinite(counts), np.broadcast_to(covered, counts.shape))
    inside = (target.boundaries[:-1] > 519.874) & (target.boundaries[1:] < 544.876)
    np.testing.assert_array_equal(covered, inside)


def test_rebin_does_not_modify_the_counts_and_confines_nan_to_its_spectrum():
    source = EnergyAxis(510.0, 0.25, 240)
    counts = np.ones((2, 240))
    counts[1, 100] = np.nan
    before = counts.copy()
    rebinned = rebin_conserving(source.values, counts, EnergyAxis(513.0, 0.1, 540))
    np.testing.assert_array_equal(counts, before)
    assert np.isfinite(rebinned[0]).all()
    assert np.isnan(rebinned[1]).all()


@pytest.mark.parametrize("method", ["conserve", "linear"])
def test_rebin_variance_agrees_with_the_scatter_of_rebinned_correlated_noise(method):
    rng = np.random.default_rng(7)
    source, target = EnergyAxis(510.0, 0.25, 80), EnergyAxis(513.0, 0.1, 100)
    kernel = np.array([0.2, 0.6, 0.2])
    white = rng.normal(size=(40_000, 82))
    noise = sum(weight * white[:, lag : lag + 80] for lag, weight in enumerate(kernel))
    variance = np.full(80, float(kernel @ kernel))
    correlation = np.array([kernel @ kernel, kernel[:2] @ kernel[1:], kernel[0] * kernel[2]]) / (kernel @ kernel)
    rebin = {"conserve": rebin_conserving, "linear": rebin_linear}[method]
    predicted = rebin_variance(source.values, variance, target, method=method, correlation=correlation)
    # 5 standard errors of a variance from 40,000 draws
    np.testing.assert_allclose(rebin(source.values, noise, target).var(axis=0), predicted, rtol=5 * np.sqrt(2 / 40_000))


def test_rebin_variance_of_independent_channels_adds_squares_of_the_fractions():
    source, target = EnergyAxis(510.0, 1.0, 10), EnergyAxis(512.5, 1.0, 2)
    variance = rebin_variance(source.values, np.arange(10.0), target)
    np.testing.assert_allclose(variance, [0.25 * (2 + 3), 0.25 * (3 + 4)])


def test_rebin_refuses_an_axis_without_the_target():
    with pytest.raises(EdgeOutOfRangeError, match="shares no channel with the energy axis"):
        rebin_conserving(np.arange(435.0, 486.0), np.ones(51), EnergyAxis(513.0, 0.1, 540))


def test_rebin_refuses_counts_of_another_length():
    with pytest.raises(InputError, match="last dimension of counts"):
        rebin_linear(np.arange(10.0), np.ones((10, 3)), EnergyAxis(2.0, 0.5, 4))
