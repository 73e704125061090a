"""Fractions on synthetic fields: shapes of two or three classes, drawn anew for each acquisition, with noise."""

import numpy as np
import pytest

from eelsflow.preprocess.shapes import Shapes
from eelsflow.unmixing.field import unmix
from eelsflow.unmixing.references import References
from eelsflow.unmixing.structure import largest_of, spatial_correlation

ENERGY = 525.5 + np.arange(30.0)
NOISE = 0.25  # of the counts of the window, spread over the bands: several times the contrast of a band
PEAKS = {"A": (0.45, 540.2), "B": (0.62, 539.2), "C": (0.15, 541.5)}


def class_shape(name: str, rng: np.random.Generator, spread: float = 1.0) -> np.ndarray:
    height, main = PEAKS[name]
    height, main = height + spread * rng.uniform(-0.06, 0.06), main + spread * rng.uniform(-0.4, 0.4)
    width = 2.4 + spread * rng.uniform(-0.3, 0.3)
    shape = height * np.exp(-0.5 * ((ENERGY - 530) / 1.3) ** 2) + np.exp(-0.5 * ((ENERGY - main) / width) ** 2)
    shape += (0.35 + spread * rng.uniform(-0.05, 0.05)) / (1 + np.exp(-(ENERGY - 536)))
    return shape / shape.sum()


def noisy(values: np.ndarray, rng: np.random.Generator, relative: float = 4e-4) -> Shapes:
    shape = values.shape[:-1]
    noise = np.sqrt(relative) * rng.standard_normal(values.shape) * np.sqrt(0.04)
    return Shapes(values + noise - noise.mean(axis=-1, keepdims=True), np.full(shape, relative), np.ones(shape), ENERGY)


def references(names: str = "AB", n: int = 40) -> References:
    rng = np.random.default_rng(1)
    parts, label, group = [], [], []
    for name in names:
        for number in range(n):
            parts.append(noisy(np.repeat(class_shape(name, rng)[None], 40, axis=0), rng))
            label += [name] * 40
            group += [f"{name}{number}"] * 40
    arrays = [np.concatenate([getattr(one, key) for one in parts]) for key in ("values", "relative_variance", "counts")]
    return References.fit(Shapes(*arrays, ENERGY), np.array(label), np.array(group))


@pytest.fixture(scope="module")
def known() -> References:
    return references()


def field(fraction: np.ndarray, seed: int, names: str = "AB") -> Shapes:
    """Mix one acquisition's shapes; `fraction` is (y, x) of the first class, or (y, x, classes)."""
    rng = np.random.default_rng(seed)
    if fraction.ndim == 2:
        fraction = np.stack([fraction, 1 - fraction], axis=-1)
    return noisy(fraction @ np.array([class_shape(name, rng) for name in names]), rng)


def judge(shapes: Shapes, known: References, specimen: np.ndarray | None = None):
    everywhere = np.ones(shapes.counts.shape, dtype=bool)
    return unmix(shapes, shapes, everywhere.astype(float), everywhere if specimen is None else specimen, known)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pure", ["A", "B"])
def test_a_pure_field_is_of_one_class(known, pure, seed):
    found = judge(field(np.full((16, 16), float(pure == "A")), seed), known)
    assert (found.probability[..., "AB".index(pure)] > 0.9).mean() > 0.97


@pytest.mark.parametrize("seed", range(4))
def test_two_halves_are_two_classes_with_their_fractions(known, seed):
    truth = np.zeros((16, 16))
    truth[:, :8] = 1.0
    found = judge(field(truth, seed), known)
    assert ((found.probability[..., 0] > 0.5) == (truth > 0.5)).mean() > 0.9
    error = found.fraction[..., 0] - truth
    assert np.sqrt((error**2).mean()) < 0.25  # of single pixels, whose own noise is .2 to .3
    assert (np.abs(error) < 1.96 * found.error[..., 0]).mean() > 0.75
    np.testing.assert_allclose(found.fraction.sum(axis=-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_core_of_less_than_all_is_told_from_its_shell(known, seed):
    y, x = np.mgrid[:16, :16] - 7.5
    truth = np.where(np.hypot(y, x) < 4.5, 0.7, 0.0)
    found = judge(field(truth, seed), known)
    core = truth > 0
    assert (found.probability[core, 0] > 0.5).mean() > 0.85
    assert (found.probability[~core, 0] < 0.5).mean() > 0.85
    assert abs(found.fraction[core, 0].mean() - 0.7) < 0.25
    assert found.fraction[~core, 0].mean() < 0.35


def test_names_of_the_classes_do_not_matter(known):
    truth = np.zeros((12, 12))
    truth[:6] = 1.0
    shapes = field(truth, 3)
    swapped = References(
        known.classes[::-1], known.mean[::-1], known.spread, known.noise, ENERGY, known.n_acquisitions[::-1]
    )
    one, other = judge(shapes, known), judge(shapes, swapped)
    np.testing.assert_allclose(one.fraction[..., 0], other.fraction[..., 1], atol=1e-6)
    np.testing.assert_allclose(one.error[..., 0], other.error[..., 1], atol=1e-6)


def test_three_classes_side_by_side_are_found():
    truth = np.zeros((12, 18, 3))
    for number in range(3):
        truth[:, 6 * number : 6 * number + 6, number] = 1.0
    found = judge(field(truth, 5, "ABC"), references("ABC"))
    assert (found.probability.argmax(axis=-1) == truth.argmax(axis=-1)).mean() > 0.8
    np.testing.assert_allclose(found.fraction.sum(axis=-1), 1.0, atol=1e-6)
    assert (found.fraction >= -1e-9).all()


def values_of(found, shapes: Shapes) -> np.ndarray:
    return shapes.values @ found.weights.of_bands.T + found.weights.offset


def test_weights_give_the_fractions_of_least_squares_and_the_order_of_those_found(known):
    truth = np.zeros((16, 16))
    truth[:, :8] = 1.0
    shapes = field(truth, 2)
    found = judge(shapes, known)
    assert found.ends is not None
    assert found.weights.unit == "difference of fractions"
    values = values_of(found, shapes)
    np.testing.assert_allclose(values.sum(axis=-1), 1.0, atol=1e-9)
    # fractions are drawn to the ends of the field, pixels of one noise alike: they keep the order
    assert (np.diff(found.fraction[..., 0].ravel()[values[..., 0].ravel().argsort()]) > -1e-9).all()
    for half, end in ((truth == 1.0, 0), (truth == 0.0, 1)):  # and least squares has the ends in the mean
        assert values[half][:, 0].mean() == pytest.approx(found.ends[end], abs=0.1)


@pytest.mark.parametrize("names", ["AB", "ABC"])
def test_weights_without_two_ends_give_the_log_odds_of_pure_classes(names):
    known = references(names, n=12)
    fraction = np.zeros((12, 12, len(names)))
    fraction[..., 0] = 1.0
    if names == "ABC":
        fraction[:4] = np.eye(3)[1]
        fraction[8:] = np.eye(3)[2]
    shapes = field(fraction, 1, names)
    found = judge(shapes, known)
    assert (found.ends, found.weights.unit) == (None, "log-odds")
    values = values_of(found, shapes)
    if names == "AB":  # decided by the mean of the field
        assert (values.mean(axis=(0, 1)).argmax(), found.fraction.mean(axis=(0, 1)).argmax()) == (0, 0)
    else:
        log_odds = np.log(found.probability[..., 0] / found.probability[..., 2])
        np.testing.assert_allclose(values[..., 0] - values[..., 2], log_odds, rtol=1e-6, atol=1e-6)


def test_pixels_without_a_shape_or_specimen_have_no_fraction(known):
    shapes = field(np.ones((8, 8)), 1)
    shapes.relative_variance[2, 3] = np.inf
    shapes.values[2, 3] = np.nan
    specimen = np.ones((8, 8), dtype=bool)
    specimen[0] = False
    found = judge(shapes, known, specimen)
    assert np.isnan(found.fraction[2, 3]).all()
    assert np.isnan(found.fraction[0]).all()
    assert np.isfinite(found.fraction[1]).all()


@pytest.mark.parametrize("specimen", [True, False])
def test_a_single_pixel_is_judged_and_an_empty_field_is_not(known, specimen):
    found = judge(field(np.ones((1, 1)), 1), known, np.full((1, 1), specimen))
    assert np.isfinite(found.fraction).all() == specimen
    assert found.correlation == 0


def test_references_hold_the_classes_and_the_spread_between_acquisitions(known, tmp_path):
    rng = np.random.default_rng(9)
    many = np.array([class_shape("A", rng) for _ in range(2000)])
    assert known.classes == ["A", "B"]
    np.testing.assert_allclose(known.mean[0], many.mean(axis=0), atol=4 * many.std(axis=0).max() / np.sqrt(40))
    # what acquisitions differ by is in the spread, and an allowance beyond it
    assert (np.diag(known.spread) > 0.4 * many.var(axis=0)).all()
    known.save(tmp_path / "references.npz")
    loaded = References.load(tmp_path / "references.npz")
    np.testing.assert_array_equal(loaded.spread, known.spread)
    assert (loaded.classes, loaded.mean_limit, loaded.pixel_limit) == (
        known.classes,
        known.mean_limit,
        known.pixel_limit,
    )


def test_only_what_is_unlike_all_of_the_training_set_is_far(known):
    rng = np.random.default_rng(11)
    own = np.array([class_shape(name, rng) for name in "AB" * 30])
    mixed = 0.5 * own[::2] + 0.5 * own[1::2]
    other = np.array([class_shape("C", rng) for _ in range(30)])
    far = known.distance(noisy(np.concatenate([own, mixed]), rng, relative=1e-6))
    assert (far > known.mean_limit).mean() < 0.05
    assert (known.distance(noisy(other, rng, relative=1e-6)) > known.mean_limit).all()
    # neither few nor many counts make a spectrum strange
    for relative in (1e-6, 4e-4, 1e-2):
        assert (known.distance(noisy(own, rng, relative=relative), known.noise) > known.pixel_limit).mean() < 0.06


def test_spatial_correlation_of_noise_is_standard_normal_and_of_halves_large():
    rng = np.random.default_rng(12)
    everywhere = np.ones((20, 20), dtype=bool)
    found = [spatial_correlation(rng.standard_normal((20, 20)), np.ones((20, 20)), everywhere) for _ in range(300)]
    # 300 draws: the mean is known to .06, the standard deviation to 4 %; a field's own mean lowers the first a little
    assert abs(np.mean(found)) < 0.3
    assert np.std(found) == pytest.approx(1.0, abs=0.2)
    halves = rng.standard_normal((20, 20))
    halves[:, :10] += 1.0
    assert spatial_correlation(halves, np.ones((20, 20)), everywhere) > 6


@pytest.mark.parametrize("n", [1, 3, 6])
def test_the_largest_of_several_correlations_is_as_rare_by_chance_as_one(n):
    drawn = np.random.default_rng(0).standard_normal((20_000, n))
    found = np.array([largest_of(row) for row in drawn])
    assert (found > 2.0).mean() == pytest.approx(0.0228, abs=0.004)


def test_the_largest_of_several_correlations_stays_large_far_out():
    values = [largest_of(np.array([0.0, 0.0, z])) for z in (3.0, 5.0, 7.0, 9.0, 40.0)]
    assert np.all(np.diff(values) > 0)
    assert values[-1] == 40.0
