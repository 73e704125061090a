import numpy as np
import pytest
from hypothesis import given

from eelsflow.edges import O_K
from eelsflow.energy import EnergyAxis
from eelsflow.preprocess.shapes import Shapes, neighbor_pairs, shape_noise, to_shapes, whitening
from tests.strategies import examples, factors

AXIS = EnergyAxis(513.05, 0.1, 540)


def spectrum(main: float = 540.0) -> np.ndarray:
    return 100 * np.exp(-0.5 * ((AXIS.values - main) / 3) ** 2) + 40 * np.exp(-0.5 * ((AXIS.values - 530) / 1.2) ** 2)


def test_shapes_are_the_shares_of_bands_of_one_electronvolt():
    counts = spectrum()[None]
    shapes = to_shapes(counts, np.ones_like(counts), AXIS, O_K)
    assert shapes.values.shape == (1, 30)
    assert shapes.values.sum() == pytest.approx(1)
    inside = (AXIS.values >= 525) & (AXIS.values < 555)
    assert shapes.counts[0] == pytest.approx(counts[0, inside].sum())
    assert shapes.values[0, 5] == pytest.approx(
        counts[0, (AXIS.values >= 530) & (AXIS.values < 531)].sum() / shapes.counts
    )
    assert shapes.relative_variance[0] == pytest.approx(inside.sum() / shapes.counts[0] ** 2)


@given(factor=factors(0.01, 100))
@examples(20)
def test_shapes_ignore_the_scale_of_the_counts(factor):
    counts = spectrum()[None]
    one = to_shapes(counts, np.ones_like(counts), AXIS, O_K)
    other = to_shapes(factor * counts, factor**2 * np.ones_like(counts), AXIS, O_K)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9)
    np.testing.assert_allclose(one.relative_variance, other.relative_variance, rtol=1e-9)


def test_a_spectrum_without_signal_or_data_has_no_shape():
    counts = np.stack([spectrum(), np.zeros(540), -spectrum(), spectrum(), np.full(540, 0.01)])
    counts[3, 200] = np.nan
    shapes = to_shapes(counts, np.ones_like(counts), AXIS, O_K)
    assert shapes.known.tolist() == [True, False, False, False, False]
    assert np.isnan(shapes.values[1:]).all()
    assert np.isinf(shapes.relative_variance[1:]).all()


def test_neighbor_pairs_are_those_of_a_plain_loop():
    known = np.random.default_rng(1).random((5, 7)) < 0.6
    expected = set()
    for y in range(5):
        for x in range(7):
            for j, i in ((y + 1, x), (y, x + 1)):
                if j < 5 and i < 7 and known[y, x] and known[j, i]:
                    expected.add((y * 7 + x, j * 7 + i))
    assert set(zip(*(pairs.tolist() for pairs in neighbor_pairs(known)), strict=True)) == expected


def field_of_noise(shape: tuple[int, int], seed: int) -> tuple[Shapes, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = np.eye(6) + 0.5 * np.eye(6, k=1)
    relative = rng.uniform(0.5, 2.0, shape)
    noise = rng.standard_normal((*shape, 6)) @ mixing.T * np.sqrt(relative)[..., None]
    return Shapes(1 / 6 + noise, relative, np.ones(shape), np.arange(6.0)), mixing @ mixing.T


def test_noise_of_a_field_is_found_from_its_neighbours():
    shapes, covariance = field_of_noise((60, 60), seed=2)
    found = shape_noise(shapes, np.ones((60, 60), dtype=bool), np.eye(6))
    # 7,080 pairs: an element of the covariance is known to sqrt(2 / 7080) = 1.7 % of the variances, pairs overlap
    np.testing.assert_allclose(found, covariance, atol=0.08 * covariance.max())
    whiten = whitening(covariance)
    np.testing.assert_allclose(whiten @ covariance @ whiten.T, np.eye(6), atol=1e-9)


def test_noise_of_a_single_pixel_is_that_of_the_training_set():
    shapes, _ = field_of_noise((1, 1), seed=3)
    prior = np.diag(np.arange(1.0, 7.0))
    np.testing.assert_array_equal(shape_noise(shapes, np.ones((1, 1), dtype=bool), prior), prior)
