"""The camera's noise, against what was measured on a real one."""

import numpy as np
import pytest
from hypothesis import given

from eelsflow.errors import InputError
from eelsflow.simulator.detector import (
    MAX_SPIKE_WIDTH,
    CountingParameters,
    Detector,
    DetectorParameters,
    point_spread,
)
from tests.strategies import examples, fractions

MEASURED_CORRELATION = (0.64, 0.31, 0.14, 0.07, 0.04)
QUIET = DetectorParameters(gain_pattern=0.0, n_dead_channels=(0, 0), spike_rate=0.0)


def flat_field(parameters: DetectorParameters, level: float, *, shape: tuple[int, int] = (300, 1024)) -> np.ndarray:
    rng = np.random.default_rng(5)
    detector = Detector.draw(parameters, n_channels=shape[1], rng=rng)
    return detector.record(np.full(shape, level, dtype=np.float32), rng=rng)[0].astype(np.float64)


def test_point_spread_gives_the_measured_autocorrelation() -> None:
    kernel = point_spread(MEASURED_CORRELATION)
    correlation = np.correlate(kernel, kernel, "full")[kernel.size - 1 :]
    np.testing.assert_allclose((correlation / correlation[0])[1:6], MEASURED_CORRELATION, atol=0.01)
    assert kernel.sum() == pytest.approx(1.0)
    assert (kernel >= 0).all()
    np.testing.assert_allclose(kernel, kernel[::-1])


@examples(30)
@given(decay=fractions(0.05, 0.7))
def test_point_spread_gives_any_decaying_autocorrelation(decay: float) -> None:
    wanted = tuple(decay**lag for lag in range(1, 13))
    kernel = point_spread(wanted)
    correlation = np.correlate(kernel, kernel, "full")[kernel.size - 1 :]
    np.testing.assert_allclose((correlation / correlation[0])[1:13], wanted, atol=0.03)  # lags above 12 are cut off


def test_an_impossible_autocorrelation_is_refused() -> None:
    with pytest.raises(InputError, match="belongs to no point spread"):
        point_spread((0.9, 0.0))


def test_counts_per_electron_are_about_nineteen() -> None:
    assert DetectorParameters().counts_per_electron == pytest.approx(19.0, abs=0.5)


def test_variance_over_mean_is_the_measured_one() -> None:
    parameters = QUIET.model_copy(update={"readout_noise": 0.0})
    counts = flat_field(parameters, 405.0)
    assert counts.mean() == pytest.approx(405.0, rel=0.005)  # the level is kept
    # 1 %: 300,000 correlated channels; rounding adds 1/12
    assert counts.var(axis=0).mean() / counts.mean() == pytest.approx(5.55, rel=0.015)


def test_noise_without_electrons_is_the_readout_noise_and_goes_negative() -> None:
    counts = flat_field(QUIET, 0.0)
    assert counts.std() == pytest.approx(6.4, rel=0.02)
    assert counts.min() < -15


def test_noise_is_correlated_over_channels_as_measured() -> None:
    counts = flat_field(QUIET.model_copy(update={"readout_noise": 0.0}), 405.0)
    noise = counts - counts.mean(axis=0)
    covariance = [np.mean(noise[:, : noise.shape[1] - lag] * noise[:, lag:]) for lag in range(9)]
    np.testing.assert_allclose(np.array(covariance[1:6]) / covariance[0], MEASURED_CORRELATION, atol=0.02)
    np.testing.assert_allclose(np.array(covariance[7:]) / covariance[0], 0.0, atol=0.02)


def test_noise_does_not_depend_on_the_readout_at_high_counts_but_on_the_level() -> None:
    variances = [flat_field(QUIET, level).var(axis=0).mean() for level in (50.0, 400.0, 3200.0)]
    expected = [6.4**2 + 5.55 * level for level in (50.0, 400.0, 3200.0)]
    np.testing.assert_allclose(variances, expected, rtol=0.02)


def test_spikes_come_at_the_measured_rate_width_and_height() -> None:
    parameters = DetectorParameters(gain_pattern=0.0, n_dead_channels=(0, 0))
    rng = np.random.default_rng(11)
    detector = Detector.draw(parameters, n_channels=2048, rng=rng)
    n_pixels, n_reached, n_hit, highest = 6000, 0, 0, 0
    widths: list[int] = []
    for _ in range(12):
        counts, mask = detector.record(np.zeros((n_pixels // 12, 2048), dtype=np.float32), rng=rng)
        n_reached += int(mask.sum())
        n_hit += int(mask.any(axis=1).sum())
        highest = max(highest, int(counts.max()))
        padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
        starts, stops = (np.argwhere(np.diff(padded, axis=1) == sign)[:, 1] for sign in (1, -1))
        widths += list(stops - starts)
        assert (counts[mask] > 60).all()  # 0.3 of the least height, less read-out noise
        assert counts[~mask].max() < 45
    # about 220 events: 7 % (1 sigma), 20 % allowed
    assert n_reached / (n_pixels * 2048) == pytest.approx(19 / 658920, rel=0.25)
    assert n_hit / n_pixels == pytest.approx(0.037, rel=0.2)
    assert min(widths) == 1
    assert 3 <= max(widths) <= MAX_SPIKE_WIDTH + 1  # two that touch count as one
    assert 3000 < highest < 5060


def test_dead_channels_show_read_out_noise_alone_and_are_listed() -> None:
    parameters = DetectorParameters(n_dead_channels=(3, 3))
    rng = np.random.default_rng(2)
    detector = Detector.draw(parameters, n_channels=256, rng=rng)
    counts, mask = detector.record(np.full((200, 256), 400.0, dtype=np.float32), rng=rng)
    assert detector.dead_channels.sum() == 3
    assert abs(counts[:, detector.dead_channels].mean()) < 2
    assert counts[:, ~detector.dead_channels].mean(axis=0).min() > 350
    assert not mask[:, detector.dead_channels].any()


def test_gain_pattern_is_below_half_a_percent_and_the_same_for_every_spectrum() -> None:
    detector = Detector.draw(DetectorParameters(n_dead_channels=(0, 0)), n_channels=2048, rng=np.random.default_rng(3))
    assert 0.001 < detector.response.std() < 0.003
    assert np.abs(detector.response - 1.0).max() <= 0.005 + 1e-6


def test_record_leaves_its_input_alone() -> None:
    expected = np.full((3, 64), 100.0, dtype=np.float32)
    rng = np.random.default_rng(0)
    counts, mask = Detector.draw(DetectorParameters(), n_channels=64, rng=rng).record(expected, rng=rng)
    assert (expected == 100.0).all()
    assert counts.dtype == np.int32
    assert counts.shape == mask.shape == expected.shape


COUNTING = CountingParameters(gain_pattern=0.0, n_dead_channels=(0, 0))


@pytest.mark.parametrize("level", [0.3, 5.0, 60.0])
def test_counted_electrons_vary_as_much_as_there_are_and_independently(level: float) -> None:
    rng = np.random.default_rng(6)
    detector = Detector.draw(COUNTING, n_channels=1024, rng=rng)
    counts, mask = detector.record(np.full((400, 1024), level, dtype=np.float32), rng=rng)
    assert counts.dtype == np.int32
    assert counts.min() >= 0
    assert not mask.any()
    # 400,000 independent channels: .2 % (1 sigma) of the mean at .3, .35 % of the variance
    assert counts.mean() == pytest.approx(level, rel=0.01)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.015)
    noise = counts - counts.mean()
    assert np.mean(noise[:, 1:] * noise[:, :-1]) / noise.var() == pytest.approx(0.0, abs=0.01)
    assert np.mean(counts == 0) == pytest.approx(np.exp(-level), abs=0.005)


def test_counting_detector_has_dead_channels_and_efficiencies_but_whole_counts() -> None:
    rng = np.random.default_rng(8)
    detector = Detector.draw(CountingParameters(gain_pattern=0.05, n_dead_channels=(2, 2)), n_channels=64, rng=rng)
    counts = detector.record(np.full((20000, 64), 50.0, dtype=np.float32), rng=rng)[0]
    assert not counts[:, detector.dead_channels].any()
    np.testing.assert_allclose(counts.mean(axis=0), 50.0 * detector.response, atol=5 * np.sqrt(50.0 / 20000))


@pytest.mark.parametrize("parameters", [QUIET, DetectorParameters(spike_rate=0.0), CountingParameters()])
def test_mean_counts_and_noise_are_those_of_many_records(parameters: DetectorParameters | CountingParameters) -> None:
    """On a slope, with dead channels and the gain pattern, near the ends too."""
    rng = np.random.default_rng(9)
    detector = Detector.draw(parameters, n_channels=96, rng=rng)
    n_records = 6000
    line = np.linspace(200.0, 600.0, 96).astype(np.float32)
    counts = detector.record(np.broadcast_to(line, (n_records, 96)), rng=rng)[0]
    mean, noise = detector.mean_counts(line[None])[0], detector.noise
    variance = noise.variance_to_mean * mean + noise.readout_variance
    deviation = (counts.mean(axis=0) - mean)[~detector.dead_channels] / np.sqrt(
        variance[~detector.dead_channels] / n_records
    )
    assert np.abs(deviation).max() < 4.5
    # the reflecting ends double some electrons, so they are left out; 2 %: 6000 records of 80 correlated channels
    inner = np.flatnonzero(~detector.dead_channels)
    inner = inner[(inner > 12) & (inner < 83)]
    assert (counts.var(axis=0)[inner] / variance[inner]).mean() == pytest.approx(1.0, abs=0.02)
    assert noise.point_spread.sum() == pytest.approx(1.0)
