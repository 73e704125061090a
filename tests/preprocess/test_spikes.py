"""Spikes and dead channels: the acceptance figures, white lines that must stay, and repairs."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from scipy.ndimage import convolve1d

from eelsflow.errors import InputError
from eelsflow.io.read import read_spectrum_image
from eelsflow.preprocess.noise import NoiseModel, estimate_noise
from eelsflow.preprocess.spikes import (
    find_dead_channels,
    find_spikes,
    interpolate_masked,
    reference_spectra,
)
from tests.strategies import counts, examples, factors

Image = tuple[np.ndarray, np.ndarray, NoiseModel]

GAIN, READOUT = 5.55, 6.4
POINT_SPREAD = np.array([0.04, 0.13, 0.22, 0.35, 0.18, 0.06, 0.02])
COUNTS_PER_ELECTRON = GAIN / float((POINT_SPREAD**2).sum())


def particle(shape: tuple[int, int] = (30, 30), channels: int = 512) -> np.ndarray:
    """Return expected counts: a particle with white lines two channels wide on a film without any."""
    channel = np.arange(channels)
    film = 65.0 * (1 + channel / 300.0) ** -3.0
    background = 350.0 * (1 + channel / 300.0) ** -3.0
    lines = sum(900.0 * np.exp(-0.5 * ((channel - at) / 0.9) ** 2) for at in (200, 205, 222, 227))
    broad = np.where(channel > 350, 200.0, 0.0) + 500.0 * np.exp(-0.5 * ((channel - 360) / 8.0) ** 2)
    y, x = np.mgrid[: shape[0], : shape[1]]
    radius = np.hypot(y / shape[0] - 0.5, x / shape[1] - 0.5)
    thickness = np.clip((0.38 - radius) / 0.1, 0, 1)[..., None]
    titanium = (x > shape[1] / 2)[..., None]  # the sharp lines belong to one half of the particle
    return film + thickness * (background + broad + titanium * lines)


def recorded(expected: np.ndarray, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    electrons = rng.poisson(expected / COUNTS_PER_ELECTRON) * COUNTS_PER_ELECTRON
    counts = convolve1d(electrons, POINT_SPREAD, axis=-1, mode="nearest")
    return (counts + rng.normal(0, READOUT, expected.shape)).astype(np.float32)


def add_spikes(
    counts: np.ndarray, expected: np.ndarray, n_spikes: int, seed: int = 1, signs: tuple[int, ...] = (1, 1, 1, -1)
) -> tuple[np.ndarray, list[tuple[int, int, slice]]]:
    """Return counts with events of 1 to 7 channels, 8.5 to 150 sigma high, and where they are."""
    rng = np.random.default_rng(seed)
    dirty, events = counts.copy(), []
    for _ in range(n_spikes):
        y, x = rng.integers(counts.shape[0]), rng.integers(counts.shape[1])
        width = int(rng.integers(1, 8))
        start = int(rng.integers(0, counts.shape[2] - width))
        where = slice(start, start + width)
        sigma = np.sqrt(READOUT**2 + GAIN * expected[y, x, where].max())
        height = sigma * np.exp(rng.uniform(np.log(8.5), np.log(150.0))) * rng.choice(signs)
        profile = np.exp(-0.5 * ((np.arange(width) - (width - 1) / 2) / max(width / 4, 0.3)) ** 2)
        dirty[y, x, where] += (height * profile / profile.max()).astype(np.float32)
        events.append((int(y), int(x), where))
    return dirty, events


@pytest.fixture(scope="module")
def image() -> Image:
    expected = particle()
    counts = recorded(expected)
    return expected, counts, estimate_noise(counts)


def test_spikes_are_found_and_clean_channels_left_alone(image: Image) -> None:
    expected, counts, _ = image
    dirty, events = add_spikes(counts, expected, 120)
    found = find_spikes(dirty, estimate_noise(dirty))
    truth = np.zeros(counts.shape, dtype=bool)
    for y, x, where in events:
        truth[y, x, where] = True
    recall = np.mean([found[event].any() for event in events])
    assert recall >= 0.95
    # one channel more than the event on either side is meant to be masked
    assert (found & ~truth).mean() < 1e-3
    assert (found.any(axis=2) & ~truth.any(axis=2)).mean() < 0.005


def test_every_channel_of_a_strong_spike_is_masked(image: Image) -> None:
    _, counts, noise = image
    dirty = counts.copy()
    dirty[3, 4, 100:107] += [400, 900, 2000, 5000, 2000, 900, 400]
    assert find_spikes(dirty, noise)[3, 4, 100:107].all()


def test_white_lines_two_channels_wide_are_no_spikes(image: Image) -> None:
    _, counts, noise = image
    found = find_spikes(counts, noise)
    assert found[..., 195:235].mean() < 1e-4
    assert found.mean() < 1e-4


def test_line_of_many_pixels_is_no_spike_when_the_model_misses_it() -> None:
    """A sharp peak that moves between pixels, as a zero-loss peak does, is a misfit of many pixels."""
    rng = np.random.default_rng(5)
    channel = np.arange(256)
    position = 60 + rng.normal(0, 0.3, 100)
    expected = 20 + 1e5 * np.exp(-0.5 * ((channel - position[:, None]) / 1.5) ** 2)
    counts = recorded(expected)
    assert find_spikes(counts, estimate_noise(counts)).mean() < 1e-3


def test_blocks_with_the_reference_of_the_image_agree_with_the_whole(image: Image) -> None:
    expected, counts, _ = image
    dirty, _ = add_spikes(counts, expected, 40)
    noise = estimate_noise(dirty)
    reference = reference_spectra(dirty, noise)
    whole = find_spikes(dirty, noise, reference=reference)
    blocks = [find_spikes(block, noise, reference=reference) for block in np.array_split(dirty, 5)]
    # the weights of the fit follow the block's mean spectrum: a channel at the margin of an event may differ
    assert (np.concatenate(blocks) != whole).sum() <= 0.01 * whole.sum()
    np.testing.assert_array_equal(np.concatenate(blocks).any(axis=2), whole.any(axis=2))


def test_hyperspy_finds_no_spike_that_ours_misses(image: Image) -> None:
    """HyperSpy's derivative finder marks positive spikes only, and needs its threshold by hand."""
    hs = pytest.importorskip("hyperspy.api")
    expected, counts, noise = image
    dirty, _ = add_spikes(counts, expected, 40, signs=(1,))
    dirty = dirty[:, :14]  # the half without sharp lines: the derivative takes those for spikes
    signal = hs.signals.Signal1D(dirty.copy())
    signal.spikes_removal_tool(interactive=False, threshold=600.0)
    theirs = np.argwhere((signal.data != dirty).any(axis=2))
    ours = find_spikes(dirty, noise).any(axis=2)
    assert len(theirs) > 0
    assert all(ours[y, x] for y, x in theirs)


def test_single_spectrum_shows_narrow_spikes_and_keeps_its_white_lines() -> None:
    channel = np.arange(512)
    expected = 500.0 * (1 + channel / 300.0) ** -3.0 + 3000.0 * np.exp(-0.5 * ((channel - 300) / 2.5) ** 2)
    counts = recorded(expected[None])
    counts[0, 100] += 3000
    found = find_spikes(counts, NoiseModel(GAIN, READOUT**2, np.ones(1)))
    assert found[0, 100]
    assert not found[0, 280:320].any()


def test_find_spikes_takes_uint16_and_keeps_the_shape(image: Image) -> None:
    _, counts, noise = image
    raw = np.clip(counts, 0, None).astype(np.uint16)
    raw[2, 3, 50] += 5000
    found = find_spikes(raw, noise)
    assert found.shape == raw.shape
    assert found[2, 3, 50]


def test_find_spikes_refuses_nan_and_a_foreign_reference(image: Image) -> None:
    _, counts, noise = image
    reference = reference_spectra(counts, noise)
    with pytest.raises(InputError, match="not finite"):
        find_spikes(np.full((4, 512), np.nan), noise, reference=reference)
    with pytest.raises(InputError, match="512 channels but the counts 100"):
        find_spikes(counts[..., :100], noise, reference=reference)


@examples(8)
@given(factors(0.2, 5.0))
def test_spikes_do_not_depend_on_the_unit_of_the_counts(image: Image, factor: float) -> None:
    _, counts, noise = image
    dirty = counts[:8].copy()
    dirty[2, 3, 50] += 3000
    scaled = NoiseModel(noise.gain * factor, noise.readout_variance * factor**2, noise.correlation)
    # float32 rounding may move a channel across the growth threshold, not the events
    first, second = find_spikes(dirty, noise), find_spikes(dirty * np.float32(factor), scaled)
    assert (first != second).sum() <= 2


def test_dead_channels_are_found_stuck_at_zero_or_at_a_value(image: Image) -> None:
    _, counts, noise = image
    dirty = counts.copy()
    dirty[..., 77] = 0
    dirty[..., 78] = 0
    dirty[..., 400] = 250
    dead = find_dead_channels(dirty, noise)
    np.testing.assert_array_equal(np.flatnonzero(dead), [77, 78, 400])
    mean_only = find_dead_channels(dirty.mean(axis=(0, 1)), noise, n_spectra=900)
    np.testing.assert_array_equal(np.flatnonzero(mean_only), [77, 78])


def test_no_channel_is_dead_in_a_healthy_image(image: Image) -> None:
    _, counts, noise = image
    assert not find_dead_channels(counts, noise).any()


@given(
    hnp.arrays(np.float64, (4, 12), elements=counts(-1e6, 1e6)),
    hnp.arrays(bool, (4, 12)),
)
def test_interpolation_agrees_with_numpy_row_by_row(counts: np.ndarray, mask: np.ndarray) -> None:
    mask[:, 5] = False
    before = counts.copy()
    channel = np.arange(12)
    loop = np.stack(
        [np.where(m, np.interp(channel, channel[~m], row[~m]), row) for row, m in zip(counts, mask, strict=True)]
    )
    np.testing.assert_allclose(interpolate_masked(counts, mask), loop, rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(counts, before)


def test_interpolation_takes_one_mask_for_all_spectra_and_holds_the_ends() -> None:
    counts = np.array([[[9, 1, 5, 3, 9], [9, 2, 9, 4, 9]]], dtype=np.uint16)
    repaired = interpolate_masked(counts, np.array([True, False, True, False, True]))
    assert repaired.dtype == np.float32
    np.testing.assert_array_equal(repaired, [[[1, 1, 2, 3, 3], [2, 2, 3, 4, 4]]])


def test_interpolation_repairs_a_transposed_array() -> None:
    counts = np.array([[1.0, 1.0], [900.0, 2.0], [3.0, 3.0]]).T
    repaired = interpolate_masked(counts, counts > 100)
    np.testing.assert_array_equal(repaired, [[1, 2, 3], [1, 2, 3]])


def test_interpolation_refuses_a_spectrum_without_a_clean_channel() -> None:
    with pytest.raises(InputError, match="no clean channel"):
        interpolate_masked(np.ones((2, 3)), np.ones(3, dtype=bool))


@pytest.mark.real
def test_real_oxide_image_holds_a_few_spikes_and_keeps_its_white_lines(real_data: Path) -> None:
    """Four events, each three times its neighbours in one pixel alone (looked at); Ti L and La M stay."""
    image = read_spectrum_image(real_data / "oxide_spectrum_image.dm3")
    found = find_spikes(image.values, estimate_noise(image.values))
    pixels = [tuple(int(i) for i in pixel) for pixel in np.argwhere(found.any(axis=2))]
    assert pixels == [(1, 0), (5, 5), (38, 5), (39, 5)]
    energies = image.energy_loss.values[found.any(axis=(0, 1))]
    assert energies.min() > 750
    assert energies.max() < 800


@pytest.mark.real
@pytest.mark.parametrize("name", ["mn_oxide_core_loss.msa", "la2nio4_core_loss.txt", "lsmo_linescan.hspy"])
def test_real_white_lines_are_no_spikes(real_data: Path, name: str) -> None:
    counts = read_spectrum_image(real_data / name).values
    assert not find_spikes(counts, estimate_noise(counts)).any()
