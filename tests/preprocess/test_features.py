"""From prepared spectra to vectors: what they do not depend on, how shifts enter, and that they survive a file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from eelsflow.edges import MN_L3, O_K
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EdgeOutOfRangeError, InputError, UnreadableFileError
from eelsflow.preprocess.features import FeatureTransform
from eelsflow.preprocess.presets import PRESETS, Preset, resolve_preset
from tests.strategies import energies, examples, factors

AXIS = EnergyAxis(513.0, 0.1, 540)
ENERGY = AXIS.values
METHODS = ["min_max", "area", "l2", "robust_percentile", "none"]


def peak(position: float, sigma: float) -> NDArray[np.float64]:
    return np.exp(-0.5 * ((ENERGY - position) / sigma) ** 2)


def spectra(n: int = 60, *, noise: float = 0.02, seed: int = 0, main: float = 539.4) -> NDArray[np.float32]:
    """Two phases in turn, of any thickness, on the wide window."""
    rng = np.random.default_rng(seed)
    phase = np.arange(n) % 2
    pre, third = np.where(phase, 0.63, 0.45)[:, None], np.where(phase, 0.7, 0.66)[:, None]
    step = 0.35 / (1 + np.exp(-(ENERGY - 531) / 0.8))
    clean = pre * peak(530, 1.2) + 0.8 * peak(main, 2.5) + third * peak(560, 4.5) + step
    thickness = rng.uniform(50, 150, (n, 1))
    return (thickness * (clean + noise * rng.standard_normal(clean.shape))).astype(np.float32)


def with_method(method: str) -> Preset:
    return resolve_preset({"name": method, "steps": [{"step": "normalize", "method": method}]})


def fitted(method: str = "min_max", wide: NDArray[np.float32] | None = None) -> FeatureTransform:
    return FeatureTransform.fit(spectra() if wide is None else wide, ENERGY, edge=O_K, preset=with_method(method))


RECOMMENDED = FeatureTransform.fit(
    spectra(), ENERGY, edge=O_K, preset=PRESETS["recommended"], variance=np.full((60, 540), 4.0, np.float32)
)


def test_vectors_are_the_fine_structure_window() -> None:
    transform = fitted()
    vectors = transform.apply(spectra())
    assert vectors.shape == (60, 300)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(transform.energy_loss[[0, -1]], [525.0, 554.9])
    assert vectors.min() == 0
    assert vectors.max() == 1


@pytest.mark.parametrize("method", METHODS[:-1])
@given(scale=factors(0.01, 100))
@examples(20)
def test_vectors_ignore_the_thickness(method: str, scale: float) -> None:
    transform, wide = fitted(method), spectra(8, seed=1)
    # rounding of float32 counts and of their sums
    np.testing.assert_allclose(transform.apply(np.float32(scale) * wide), transform.apply(wide), rtol=1e-4, atol=1e-4)


@given(scale=factors(0.01, 100))
@examples(20)
def test_vectors_of_components_ignore_the_scale_of_the_counts(scale: float) -> None:
    """Components of counts, not of shapes, made the class follow from the dose."""
    wide = spectra(8, seed=1)
    np.testing.assert_allclose(
        RECOMMENDED.apply(np.float32(scale) * wide), RECOMMENDED.apply(wide), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_normalisation_has_the_scale_of_min_max(method: str) -> None:
    """A grid of gamma means something only at a fixed scale of the features."""
    wide = spectra()
    expected = np.median(np.linalg.norm(fitted("min_max").apply(wide), axis=1))
    transform = fitted(method)
    if method in ("min_max", "none"):
        assert transform.scale == 1
    else:
        assert np.median(np.linalg.norm(transform.apply(wide), axis=1)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("transform", [fitted(), RECOMMENDED], ids=["min_max", "recommended"])
def test_a_shift_of_zero_is_the_identity(transform: FeatureTransform) -> None:
    wide = spectra(7, seed=2)
    np.testing.assert_array_equal(transform.apply(wide, 0.0), transform.apply(wide))
    np.testing.assert_array_equal(transform.apply(wide, np.zeros(7)), transform.apply(wide))
    assert not transform.padded


@given(shift=energies(-10, 10))
@examples(30)
def test_a_positive_shift_moves_features_to_higher_energy(shift: float) -> None:
    wide = np.float32(100) * (peak(540, 1.5)[None] + 1e-3).astype(np.float32)
    transform = fitted("none")
    moved = transform.apply(wide, shift)[0].astype(float)
    centre = (moved * transform.energy_loss).sum() / moved.sum()
    base = transform.apply(wide)[0].astype(float)
    # the small pedestal pulls both centres to the middle of the window alike
    expected = (base * transform.energy_loss).sum() / base.sum() + shift * (1 - 0.1 * 30 * 10 / base.sum())
    assert centre == pytest.approx(expected, abs=0.05)
    assert transform.energy_loss[moved.argmax()] == pytest.approx(540 + shift, abs=0.11)
    assert not transform.padded


def test_a_whole_channel_shift_brings_true_data_in_at_the_edges() -> None:
    wide = spectra(5, seed=3)
    transform = fitted("none")
    first = AXIS.channels(O_K.elnes_window).start
    for channels, shift in ((10, 1.0), (-35, -3.5), (100, 10.0)):
        moved = transform.apply(wide, shift)
        expected = wide[:, first - channels : first - channels + 300]
        # 3.5 / 0.1 is not 35 to the last bit
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-3)
        assert not transform.padded


def test_each_spectrum_takes_its_own_shift() -> None:
    wide, shifts = spectra(4, seed=4), np.array([0.0, 1.03, -4.2, 7.77])
    transform = fitted("robust_percentile")
    together = transform.apply(wide, shifts)
    alone = [transform.apply(wide[i : i + 1], shift)[0] for i, shift in enumerate(shifts)]
    np.testing.assert_array_equal(together, alone)


def test_the_last_value_is_held_where_nothing_wider_was_recorded() -> None:
    wide = spectra(3, seed=5)
    wide[1, ENERGY > 556.05] = np.nan
    transform = fitted("none")
    assert np.isfinite(transform.apply(wide)).all()
    assert not transform.padded
    moved = transform.apply(wide, np.array([-4.0, -4.0, 0.0]))
    assert transform.padded
    assert np.isfinite(moved).all()
    np.testing.assert_array_equal(moved[1, -20:], np.repeat(moved[1, -1], 20))
    transform.apply(wide, 4.0)  # the other way there is data for all
    assert not transform.padded


def test_a_detector_that_ends_inside_the_window_is_refused() -> None:
    wide = spectra(20)
    wide[3:5, ENERGY > 550.05] = np.nan
    with pytest.raises(InputError, match=r"2 of 20 spectra have no data at 550\.1-554\.9 eV"):
        fitted(wide=wide)
    with pytest.raises(InputError, match=r"2 of 20 spectra have no data"):
        fitted().apply(wide)


def test_spectra_of_another_axis_are_refused() -> None:
    with pytest.raises(InputError, match="fitted on"):
        fitted().apply(np.zeros((2, 539), np.float32))
    with pytest.raises(EdgeOutOfRangeError, match="Mn_L3"):
        FeatureTransform.fit(spectra(), ENERGY, edge=MN_L3, preset=PRESETS["none"])
    with pytest.raises(InputError, match="no training spectra"):
        fitted(wide=spectra()[:0])


def test_spectra_that_cannot_be_normalised_are_refused() -> None:
    wide = spectra()
    wide[7] = 3.0
    with pytest.raises(InputError, match="1 of 60 spectra cannot be normalised"):
        fitted("min_max", wide)


def test_a_table_may_end_an_ev_inside_the_window() -> None:
    energy = 634.5 + 0.1 * np.arange(290)
    table = np.random.default_rng(0).random((30, 290)).astype(np.float32)
    transform = FeatureTransform.fit(table, energy, edge=MN_L3, preset=PRESETS["none"])
    np.testing.assert_array_equal(transform.apply(table), table)
    with pytest.raises(EdgeOutOfRangeError):
        FeatureTransform.fit(table, energy + 1, edge=MN_L3, preset=PRESETS["none"])


def test_components_of_the_training_set_remove_noise() -> None:
    noisy, clean = spectra(200, noise=0.1, seed=6), spectra(200, noise=0.0, seed=6)
    steps = resolve_preset(["pca", {"step": "normalize", "method": "area"}])
    transform = FeatureTransform.fit(noisy, ENERGY, edge=O_K, preset=steps, variance=np.full(540, 100.0, np.float32))
    plain = FeatureTransform.fit(noisy, ENERGY, edge=O_K, preset=with_method("area"))
    assert transform.pca is not None
    # the two phases: one direction about the mean, as the thickness is divided out; a classifier is given five
    assert ", 1 lead up to the last that reproduces" in transform.pca.rank_method
    assert transform.pca.rank == 5
    truth = plain.apply(clean)
    error = np.abs(transform.apply(noisy) - truth).mean()
    assert error < 0.35 * np.abs(plain.apply(noisy) - truth).mean()


def test_components_are_weighted_by_the_variance() -> None:
    """A noisy band of channels does not make components of its own."""
    rng = np.random.default_rng(8)
    wide = spectra(300, noise=0.0)
    deviation = np.where((ENERGY > 545) & (ENERGY < 549), 40.0, 1.0)
    wide += (deviation * rng.standard_normal(wide.shape)).astype(np.float32)
    steps = resolve_preset([{"step": "pca", "rank": 2}])
    residuals = []
    for variance in (np.square(deviation).astype(np.float32), None):
        transform = FeatureTransform.fit(wide, ENERGY, edge=O_K, preset=steps, variance=variance)
        elsewhere = np.abs(transform.energy_loss - 535) < 8
        clean = spectra(300, noise=0.0)[:, AXIS.channels(O_K.elnes_window)]
        residuals.append(np.abs(transform.apply(wide) - clean)[:, elsewhere].mean())
    assert residuals[0] < residuals[1]


@pytest.mark.parametrize("transform", [fitted("area"), RECOMMENDED], ids=["area", "recommended"])
def test_saved_and_loaded_transforms_agree(transform: FeatureTransform, tmp_path: Path) -> None:
    transform.save(tmp_path)
    loaded = FeatureTransform.load(tmp_path)
    wide = spectra(9, seed=11)
    np.testing.assert_array_equal(loaded.apply(wide, 1.23), transform.apply(wide, 1.23))
    assert (loaded.edge, loaded.preset, loaded.axis) == (transform.edge, transform.preset, transform.axis)


@pytest.mark.parametrize("name", ["features.json", "features.npz"])
def test_a_damaged_transform_is_refused(name: str, tmp_path: Path) -> None:
    RECOMMENDED.save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for damaged in (None, whole[: len(whole) // 2]):
        (tmp_path / name).unlink() if damaged is None else (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UnreadableFileError, match="no usable feature transform"):
            FeatureTransform.load(tmp_path)


def test_what_is_no_fault_of_the_file_is_not_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 may raise this where threads read numpy's headers at once; a task is tried again then."""
    RECOMMENDED.save(tmp_path)

    def disturbed(*_: object, **__: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr("eelsflow.preprocess.features.np.load", disturbed)
    with pytest.raises(SystemError):
        FeatureTransform.load(tmp_path)
