"""Detectors that count electrons: told from cameras by their counts, and judged by Poisson's tails."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import convolve1d
from scipy.stats import norm, poisson

from eelsflow.preprocess.counting import counted_deviation, find_quantum
from eelsflow.preprocess.noise import NoiseModel, estimate_noise
from eelsflow.preprocess.spikes import find_dead_channels, find_spikes, reference_spectra
from tests.strategies import examples

LEVELS = (0.5, 1.0, 2.0, 5.0, 20.0)
GAINS = (1.0, 7.3)
COUNTED = NoiseModel(gain=1.0, readout_variance=0.0, correlation=np.ones(1), quantum=1.0)


def expected_electrons(level: float, shape: tuple[int, int] = (20, 20), channels: int = 512) -> np.ndarray:
    """Return expected electrons: film and a particle with an edge, `level` electrons a channel at the middle of it."""
    channel = np.arange(channels)
    background = (1 + channel / 500.0) ** -3.0
    edge = np.where(channel > 250, 0.5, 0.0) + 0.8 * np.exp(-0.5 * ((channel - 300) / 6.0) ** 2)
    y, x = np.mgrid[: shape[0], : shape[1]]
    thickness = np.clip((0.45 - np.hypot(y / shape[0] - 0.5, x / shape[1] - 0.5)) / 0.2, 0, 1)[..., None]
    return level * (0.2 * background + thickness * (background + edge))


def counted(level: float, gain: float = 1.0, seed: int = 0) -> np.ndarray:
    electrons = np.random.default_rng(seed).poisson(expected_electrons(level))
    return electrons.astype(np.int32) if gain == 1.0 else (electrons * np.float32(gain)).astype(np.float32)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gain", GAINS)
def test_noise_of_counted_electrons_is_their_quantum_and_nothing_read_out(level: float, gain: float) -> None:
    noise = estimate_noise(counted(level, gain))
    assert noise.quantum == pytest.approx(gain, rel=1e-4)
    assert noise.gain == noise.quantum
    assert noise.readout_variance == 0
    assert np.abs(noise.correlation[1:]).max() < 0.05


@pytest.mark.parametrize("level", LEVELS)
def test_camera_is_not_taken_for_a_counting_detector(level: float) -> None:
    """Whole counts, none negative, but each electron makes many of them, in several channels."""
    electrons = np.random.default_rng(1).poisson(expected_electrons(level))
    counts = np.rint(convolve1d(19.0 * electrons, [0.1, 0.2, 0.4, 0.2, 0.1], axis=-1)).astype(np.uint16)
    assert find_quantum(counts.reshape(-1, counts.shape[-1])) == 0
    assert estimate_noise(counts).quantum == 0


def test_counts_with_read_out_are_not_single_electrons() -> None:
    rng = np.random.default_rng(2)
    counts = counted(2.0).reshape(-1, 512)
    assert find_quantum(np.rint(10 * counts + rng.normal(0, 3, counts.shape)).astype(np.int32)) == 0
    assert find_quantum((counts + rng.normal(0, 0.3, counts.shape) + 5).astype(np.float32)) == 0


@pytest.mark.parametrize("level", [0.5, 5.0])
def test_multiples_of_a_gain_are_found_although_they_were_rounded(level: float) -> None:
    counts = np.rint(7.3 * counted(level)).astype(np.uint16)
    assert find_quantum(counts.reshape(-1, 512)) == pytest.approx(7.3, rel=0.01)
    assert find_spikes(counts, estimate_noise(counts)).any(axis=2).mean() <= 0.005


def test_spikes_do_not_hide_that_electrons_are_counted() -> None:
    counts = counted(1.0).reshape(-1, 512)
    counts[np.arange(0, 400, 10), np.arange(0, 400, 10)] += 3000
    assert find_quantum(counts) == 1.0


@examples(100)
@given(st.floats(0.5, 50.0), st.floats(2.0, 7.5))
def test_deviation_of_a_count_is_that_of_poissons_tail(mean: float, sigma: float) -> None:
    count = int(poisson.isf(norm.sf(sigma), mean)) + 1
    exact = norm.isf(poisson.sf(count - 1, mean))
    # never more than the exact one, so no tail is called rarer than it is
    assert exact - 0.2 < counted_deviation(float(count), mean) < exact


def test_deviation_downwards_is_that_of_poissons_tail() -> None:
    for count in (0, 5, 20):
        assert counted_deviation(float(count), 50.0) == pytest.approx(norm.ppf(poisson.cdf(count, 50.0)), abs=0.1)


def test_reach_is_further_for_few_counted_electrons() -> None:
    assert COUNTED.reach(0.5, 5.0) == pytest.approx(5 * 0.5**0.5 + 4)
    assert NoiseModel(1.0, 0.0, np.ones(1)).reach(0.5, 5.0) == pytest.approx(5 * 0.5**0.5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gain", GAINS)
def test_counted_electrons_are_no_spikes(level: float, gain: float) -> None:
    counts = counted(level, gain)
    assert find_spikes(counts, estimate_noise(counts)).any(axis=2).mean() <= 0.005


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gain", GAINS)
def test_spikes_among_counted_electrons_are_found(level: float, gain: float) -> None:
    """Events of 1 to 3 channels in a tenth of the pixels, from 8 standard deviations (and 25 electrons) up."""
    electrons, rng = counted(level), np.random.default_rng(3)
    expected = expected_electrons(level)
    hit = []
    for pixel in rng.choice(400, 40, replace=False):
        y, x, start = *divmod(int(pixel), 20), int(rng.integers(5, 500))
        least = 25 + 8 * expected[y, x, start : start + 3].max() ** 0.5
        profile = rng.uniform(0.4, 1.0, rng.integers(1, 4))
        profile *= np.exp(rng.uniform(np.log(least), np.log(3000))) / profile.max()
        electrons[y, x, start : start + profile.size] += np.rint(profile).astype(np.int32)
        hit.append((y, x, start + int(profile.argmax())))
    counts = electrons if gain == 1.0 else (electrons * np.float32(gain)).astype(np.float32)
    found = find_spikes(counts, estimate_noise(counts))
    assert np.mean([found[place] for place in hit]) >= 0.97
    clean = np.ones((20, 20), dtype=bool)
    clean[tuple(np.array(hit).T[:2])] = False
    assert found.any(axis=2)[clean].mean() <= 0.005


def test_spike_does_not_vouch_for_itself_among_few_electrons() -> None:
    """Of few electrons most reference spectra would be noise, and a spike the strongest of it."""
    counts = counted(0.5)
    counts[3, 4, 300:303] += [30, 25, 31]
    reference = reference_spectra(counts, estimate_noise(counts))
    assert reference is not None
    assert len(reference.spectra) < 4
    assert find_spikes(counts, estimate_noise(counts), reference=reference)[3, 4, 300:303].all()


@pytest.mark.parametrize("level", LEVELS)
def test_single_spectrum_of_counted_electrons_shows_its_spike_alone(level: float) -> None:
    counts = np.random.default_rng(4).poisson(level, (1, 600))
    counts[0, 200] += 100
    assert np.flatnonzero(find_spikes(counts, COUNTED)[0]).tolist() == [199, 200, 201]


def test_whole_is_found_as_in_blocks_of_counted_electrons() -> None:
    counts = counted(1.0).reshape(-1, 512)
    counts[::7, 123] += 60
    noise = estimate_noise(counts)
    reference = reference_spectra(counts, noise)
    blocks = [find_spikes(block, noise, reference=reference) for block in np.array_split(counts, 5)]
    assert np.array_equal(np.concatenate(blocks), find_spikes(counts, noise, reference=reference))


def test_channel_that_hardly_any_electron_reaches_is_not_dead() -> None:
    counts = np.random.default_rng(5).poisson(0.004, (512, 400))
    assert not find_dead_channels(counts, COUNTED).any()
    counts = np.random.default_rng(5).poisson(0.5, (512, 400))
    counts[:, 77] = 0
    assert np.flatnonzero(find_dead_channels(counts, COUNTED)).tolist() == [77]
