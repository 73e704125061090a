"""Vacuum mask: the acceptance figure against thickness, both methods, and images without one of the two classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.errors import InputError
from eelsflow.preprocess.vacuum import background_exponent, edge_signal, find_vacuum
from tests.strategies import examples, factors

ENERGY = 470.0 + 0.5 * np.arange(240)
PRE_EDGE, EDGE = (485.0, 520.0), (530.0, 560.0)


def thickness(shape: tuple[int, int] = (48, 48)) -> np.ndarray:
    """Return a tilted cube: flat on top, sloping rims, maximum 1."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    y, x = (y - shape[0] / 2) / shape[0], (x - shape[1] / 2) / shape[1]
    distance = np.maximum(np.abs(0.9 * y + 0.3 * x), np.abs(0.9 * x - 0.3 * y))
    cube = np.clip((0.33 - distance) / 0.07, 0, 1) * (1 - 0.4 * np.abs(x))
    return cube / cube.max()


def counts_of(thick: np.ndarray, *, dose: float = 1.0, seed: int = 0) -> np.ndarray:
    """Return counts of a particle on a film: their backgrounds fall with different exponents."""
    film = 65.0 * (ENERGY / 490) ** -3.7
    edge = np.where(ENERGY > 526, 180.0 * (ENERGY / 526) ** -3, 0.0)
    particle = 340.0 * (ENERGY / 490) ** -3.3 + edge + 120.0 * np.exp(-0.5 * ((ENERGY - 539) / 2.5) ** 2)
    expected = dose * (film + thick[..., None] * particle)
    rng = np.random.default_rng(seed)
    return 5.55 * rng.poisson(expected / 5.55) + rng.normal(0, 6.4, expected.shape)


def intersection_over_union(mask: np.ndarray, thick: np.ndarray) -> float:
    """Return the IoU with thickness under 25 %, leaving out pixels of 10 to 50 %."""
    judged = (thick < 0.10) | (thick > 0.50)
    truth = thick < 0.25
    return float((mask & truth & judged).sum() / ((mask | truth) & judged).sum())


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    return edge_signal(counts_of(thickness()), ENERGY, pre_edge_window=PRE_EDGE, edge_window=EDGE)


@pytest.mark.parametrize("dose", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_threshold_mask_agrees_with_the_true_thickness(dose: float, seed: int) -> None:
    thick = thickness()
    counts = counts_of(thick, dose=dose, seed=seed)
    found = find_vacuum(edge_signal(counts, ENERGY, pre_edge_window=PRE_EDGE, edge_window=EDGE))
    assert intersection_over_union(found.mask, thick) >= 0.98
    assert found.separation > 3.5


@pytest.mark.parametrize("normalize", [True, False])
def test_kmeans_mask_agrees_with_the_true_thickness(signal: np.ndarray, normalize: bool) -> None:
    thick = thickness()
    bands = counts_of(thick).reshape(48, 48, 60, 4).mean(axis=-1)
    found = find_vacuum(signal, method="kmeans", features=bands, normalize=normalize)
    assert intersection_over_union(found.mask, thick) >= 0.98


def test_two_means_equal_scikit_learn(signal: np.ndarray) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    spectra = counts_of(thickness()).reshape(48, 48, 60, 4).mean(axis=-1)
    rows = spectra.reshape(-1, 60)
    normalized = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    labels = cluster.KMeans(2, n_init=10, random_state=0).fit(normalized).labels_.reshape(48, 48)
    vacuum_label = labels[np.unravel_index(signal.argmin(), signal.shape)]
    found = find_vacuum(signal, method="kmeans", features=spectra)
    np.testing.assert_array_equal(found.mask, labels == vacuum_label)


def test_mask_is_the_same_every_time(signal: np.ndarray) -> None:
    for method in ("threshold", "kmeans"):
        first, second = find_vacuum(signal, method=method), find_vacuum(signal, method=method)
        np.testing.assert_array_equal(first.mask, second.mask)
        assert first.separation == second.separation


@examples(20)
@given(factors(1e-3, 1e3), st.sampled_from(["threshold", "kmeans"]))
def test_mask_ignores_the_unit_of_the_signal(signal: np.ndarray, factor: float, method: str) -> None:
    np.testing.assert_array_equal(
        find_vacuum(signal * factor, method=method).mask, find_vacuum(signal, method=method).mask
    )


@pytest.mark.parametrize("method", ["threshold", "kmeans"])
def test_nothing_is_vacuum_in_an_image_of_specimen_only(method: str) -> None:
    thick = 0.7 + 0.3 * np.linspace(0, 1, 400).reshape(20, 20)
    counts = counts_of(thick)
    signal = edge_signal(counts, ENERGY, pre_edge_window=PRE_EDGE, edge_window=EDGE)
    found = find_vacuum(signal, method=method, features=counts if method == "kmeans" else None)
    assert not found.mask.any()
    assert found.fraction == 0.0
    assert "no pixel is vacuum" in found.method
    assert found.separation == np.inf


@pytest.mark.parametrize("method", ["threshold", "kmeans"])
@pytest.mark.parametrize("seed", range(5))
def test_image_of_vacuum_only_is_refused(method: str, seed: int) -> None:
    counts = counts_of(np.zeros((20, 20)), seed=seed)
    signal = edge_signal(counts, ENERGY, pre_edge_window=PRE_EDGE, edge_window=EDGE)
    with pytest.raises(InputError, match="no specimen"):
        find_vacuum(signal, method=method)


def test_small_particle_in_a_large_field_is_found() -> None:
    thick = np.zeros((50, 50))
    thick[10:14, 20:24] = 1.0
    signal = edge_signal(counts_of(thick), ENERGY, pre_edge_window=PRE_EDGE, edge_window=EDGE)
    np.testing.assert_array_equal(find_vacuum(signal).mask, thick == 0)


def test_line_scan_and_single_pixel_are_masked_too() -> None:
    thick = np.concatenate([np.zeros(20), np.ones(20)])[None]
    signal = edge_signal(counts_of(thick), ENERGY, pre_edge_window=PRE_EDGE, edge_window=EDGE)
    np.testing.assert_array_equal(find_vacuum(signal).mask, thick == 0)
    assert not find_vacuum(signal[:, -1:]).mask.any()


def test_given_error_replaces_the_estimated_one(signal: np.ndarray) -> None:
    with pytest.raises(InputError, match="no specimen"):
        find_vacuum(signal, signal_error=signal.max())


def test_edge_signal_of_a_pure_power_law_is_zero() -> None:
    background = 400.0 * (ENERGY / 490) ** -3.2
    ours = edge_signal(background, ENERGY, pre_edge_window=PRE_EDGE, edge_window=EDGE)
    # the two-area exponent takes the halves' geometric mean energies for their centres: 1e-4 of the background
    assert abs(float(ours)) < 1e-3 * background.sum()
    assert background_exponent(background, ENERGY, PRE_EDGE) == pytest.approx(3.2, abs=2e-3)


def test_edge_signal_of_blocks_equals_the_whole_with_one_exponent() -> None:
    counts = counts_of(thickness((16, 16)))
    windows = {"pre_edge_window": PRE_EDGE, "edge_window": EDGE}
    exponent = background_exponent(counts.mean(axis=(0, 1)), ENERGY, PRE_EDGE)
    whole = edge_signal(counts, ENERGY, **windows)
    blocks = [edge_signal(block, ENERGY, exponent=exponent, **windows) for block in np.array_split(counts, 3)]
    np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=1e-12)


def test_exponent_without_counts_is_the_typical_one() -> None:
    assert background_exponent(np.zeros(240), ENERGY, PRE_EDGE) == 3.0


def test_signal_with_nan_or_a_window_off_the_axis_is_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        find_vacuum(np.full((3, 3), np.nan))
    with pytest.raises(InputError, match="one number a pixel"):
        find_vacuum(np.ones(3))
    with pytest.raises(InputError, match="pre-edge window"):
        edge_signal(np.ones(240), ENERGY, pre_edge_window=(100, 120), edge_window=EDGE)
    with pytest.raises(InputError, match="same pixels"):
        find_vacuum(thickness(), method="kmeans", features=np.ones((2, 2, 5)), signal_error=0.01)
