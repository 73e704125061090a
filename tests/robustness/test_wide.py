"""Perturbations of wide spectra; each against a reference that is written another way."""

import numpy as np
import pytest
from hypothesis import given
from scipy.signal import convolve

from eelsflow.edges import SHIPPED
from eelsflow.energy import EnergyAxis
from eelsflow.preprocess.features import FeatureTransform
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.robustness.curves import Curve, assess, further_curves
from eelsflow.robustness.wide import Residual, blur, broaden, lower_dose, scatter_again, stretch_axis
from tests.strategies import examples, fractions

AXIS = EnergyAxis(513.05, 0.1, 540)
ENERGY = AXIS.values
POINT_SPREAD = np.array([0.1, 0.2, 0.4, 0.2, 0.1])


def edge_spectra(n, *, seed=0, noise=0.1):
    """Two classes of edges of random thickness with noise that is correlated over channels."""
    random = np.random.default_rng(seed)
    thickness = random.uniform(50, 300, (n, 1))
    main = np.where(np.arange(n) % 2, 540.0, 538.5)[:, None]
    pre = random.uniform(0.4, 0.6, (n, 1))
    shape = pre * np.exp(-(((ENERGY - 530) / 1.7) ** 2)) + np.exp(-(((ENERGY - main) / 3.5) ** 2))
    white = random.standard_normal((n, ENERGY.size + 4))
    coloured = np.apply_along_axis(np.convolve, 1, white, POINT_SPREAD, mode="valid") / np.linalg.norm(POINT_SPREAD)
    label = np.where(np.arange(n) % 2, "Fe3O4", "FeO")
    variance = np.full((n, ENERGY.size), (noise * 100) ** 2, np.float32)
    return (thickness * shape + noise * 100 * coloured).astype(np.float32), variance, label


@pytest.fixture(scope="module")
def training():
    return edge_spectra(600, seed=1)


@pytest.fixture(scope="module")
def recommended(training):
    wide, variance, _ = training
    return FeatureTransform.fit(
        wide, ENERGY, edge=SHIPPED["O_K"], preset=resolve_preset("recommended"), variance=variance
    )


def autocorrelation(noise, n_lags=8):
    return np.array([(noise[:, lag:] * noise[:, : noise.shape[1] - lag]).mean() for lag in range(n_lags)])


def test_residual_times_one_is_the_spectrum_itself(training):
    wide, variance, _ = training
    assert np.allclose(Residual.fit(wide, variance=variance).scale(wide, 1), wide)


def test_residual_leaves_the_leading_components_of_wide_spectra_alone(training):
    wide = training[0]
    residual = Residual.fit(wide)
    before = wide.copy()
    louder = residual.scale(wide, 4)
    np.testing.assert_array_equal(wide, before)
    # components in single precision, of spectra of some hundred counts
    scores = [(spectra - residual.mean) @ residual.components.T for spectra in (louder, wide)]
    np.testing.assert_allclose(*scores, atol=0.05)
    # three times the noise more, but for an eighth of its variance, which the seven components beyond the signal took
    assert (louder - wide).std() == pytest.approx(3 * 10 * np.sqrt(7 / 8), rel=0.02)


def test_residual_changes_the_vectors_of_a_transform_with_components_of_its_own(training, recommended):
    """Vectors are projected on components: what is scaled after them, or with the same ones, disturbs nothing."""
    assert recommended.pca is not None
    residual = Residual.fit(training[0])
    test = edge_spectra(200, seed=2)[0]
    vectors = recommended.apply(test)
    span = np.ptp(np.percentile(vectors, [1, 99], axis=1), axis=0).mean()
    change = [(recommended.apply(residual.scale(test, factor)) - vectors).std() / span for factor in (2, 5)]
    assert change[0] > 0.003
    assert change[1] > 3 * change[0]


def test_leading_components_agree_with_scikit_learn(training):
    from sklearn.decomposition import PCA

    residual = Residual.fit(training[0], n_components=2)
    reference = PCA(2, svd_solver="full").fit(training[0].astype(float))
    np.testing.assert_allclose(residual.mean, reference.mean_, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(residual.components * reference.components_, axis=1)), 1, atol=1e-4)


def test_noise_is_drawn_as_correlated_over_channels_as_the_residual_is(training):
    noise = Residual.fit(training[0]).draw(2000, np.random.default_rng(0))
    expected = np.append(np.correlate(POINT_SPREAD, POINT_SPREAD, mode="full")[4:], np.zeros(3))
    # the leading components take smooth noise with them: an eighth of this noise's variance
    np.testing.assert_allclose(autocorrelation(noise), expected / expected[0], atol=0.08)


def test_a_lower_dose_has_the_variance_of_a_recording_at_that_dose():
    """Against a recording: binomially thinned counts of edge and background, scaled back."""
    random = np.random.default_rng(3)
    background = 300 * (ENERGY / 530) ** -3.0
    expected = background + 200 * np.exp(-(((ENERGY - 540) / 3) ** 2))
    counts = random.poisson(expected, (4000, ENERGY.size))
    white = Residual.fit((counts - background).astype(np.float32))
    for dose in (0.5, 0.1):
        thinned = random.binomial(counts, dose) / dose - background
        added = lower_dose(
            (counts - background).astype(np.float32),
            np.broadcast_to(expected.astype(np.float32), counts.shape),
            dose=dose,
            residual=white,
            rng=random,
        )
        # a standard deviation of 4,000 draws is known to 1.1 %; over 540 channels to .05 %
        assert added.std(axis=0).mean() == pytest.approx(thinned.std(axis=0).mean(), rel=0.01)
        np.testing.assert_allclose(added.std(axis=0), np.sqrt(expected / dose), rtol=0.06)
        each = np.full(len(counts), dose)
        again = lower_dose(
            np.zeros(counts.shape, np.float32), np.ones(counts.shape), dose=np.where(each > 0.2, 1, each),
            residual=white, rng=random,
        )  # fmt: skip
        assert (again.std() == 0) == (dose > 0.2)
        np.testing.assert_allclose(added.mean(axis=0), thinned.mean(axis=0), atol=6 * np.sqrt(600 / dose / 4000))


def test_a_broadened_edge_is_blurred_and_its_noise_is_not(training):
    residual, random = Residual.fit(training[0]), np.random.default_rng(1)
    peak = 300 * np.exp(-0.5 * ((ENERGY - 540) / 1.5) ** 2)[None].repeat(3000, axis=0)
    noise = 10 * residual.draw(3000, random)
    variance = np.full(peak.shape, 100.0, np.float32)
    options = {"fwhm_ev": 2.0, "residual": residual, "rng": random}
    found = broaden((peak + noise).astype(np.float32), AXIS, variance=variance, **options)
    width = np.hypot(1.5, 2.0 / 2.3548)
    expected = 300 * 1.5 / width * np.exp(-0.5 * ((ENERGY - 540) / width) ** 2)
    np.testing.assert_allclose(found.mean(axis=0), expected, atol=1.0)
    middle = slice(60, 480)
    assert (found - expected)[:, middle].std() == pytest.approx(10, rel=0.03)
    np.testing.assert_allclose(
        autocorrelation((found - expected)[:, middle]), autocorrelation(noise[:, middle]), atol=1.5
    )
    blurred = broaden((peak + noise).astype(np.float32), AXIS, variance=None, **options)
    assert (blurred - expected)[:, middle].std() < 6


def test_each_spectrum_is_folded_with_a_gaussian_of_its_own(training):
    from scipy.ndimage import gaussian_filter1d

    wide = training[0][:4].copy()
    wide[1, :40] = np.nan
    width = np.array([0.0, 0.7, 1.5, 2.0])
    found = blur(wide, AXIS, fwhm_ev=width)
    np.testing.assert_allclose(found[0], wide[0], atol=1e-3)
    for row in (1, 2, 3):
        held = np.where(np.isfinite(wide[row]), wide[row], wide[row][np.isfinite(wide[row])][0]).astype(float)
        expected = gaussian_filter1d(held, width[row] / 2.35482 / 0.1, mode="reflect", truncate=8)
        recorded = np.isfinite(wide[row])
        np.testing.assert_allclose(found[row, recorded][60:], expected[recorded][60:], atol=0.05)
        np.testing.assert_array_equal(np.isfinite(found[row]), recorded)


def test_broadening_by_nothing_changes_nothing_and_what_was_not_recorded_stays_so(training):
    wide, variance, _ = (array[:5] for array in training)
    residual, random = Residual.fit(training[0]), np.random.default_rng(1)
    assert broaden(wide, AXIS, fwhm_ev=0.0, variance=variance, residual=residual, rng=random) is wide
    gap = wide.copy()
    gap[:, :30] = gap[:, 500:] = np.nan
    found = broaden(gap, AXIS, fwhm_ev=1.0, variance=None, residual=residual, rng=random)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(gap))
    np.testing.assert_allclose(found[:, 60:470], broaden(
        wide, AXIS, fwhm_ev=1.0, variance=None, residual=residual, rng=random)[:, 60:470], atol=1e-2)  # fmt: skip


def test_a_whole_dose_adds_nothing_and_a_higher_one_is_refused(training):
    wide, variance, _ = training
    residual, random = Residual.fit(wide), np.random.default_rng(0)
    np.testing.assert_array_equal(lower_dose(wide, variance, dose=1, residual=residual, rng=random), wide)
    with pytest.raises(ValueError, match="noise can only be added"):
        lower_dose(wide, variance, dose=2, residual=residual, rng=random)


def test_denoised_spectra_have_no_noise_to_read_a_correlation_from(training):
    wide, variance, _ = training
    mean = wide[:2].repeat(20, axis=0)
    assert (Residual.fit(mean, variance=variance[:40]).colour == 1).all()


@examples(30)
@given(error=fractions(-0.05, 0.05))
def test_stretched_axis_equals_interpolation_row_by_row(error):
    wide = edge_spectra(3)[0]
    wide[1, :20] = wide[1, 500:] = np.nan
    stretched, recorded = stretch_axis(wide, AXIS, reference_energy=530.0, error=error)
    wanted = 530 + (ENERGY - 530) / (1 + error)
    for spectrum, result, reached in zip(wide, stretched, recorded, strict=True):
        known = np.isfinite(spectrum)
        np.testing.assert_allclose(result, np.interp(wanted, ENERGY[known], spectrum[known]), rtol=1e-4, atol=1e-2)
        inside = (wanted >= ENERGY[known][0] - 1e-6) & (wanted <= ENERGY[known][-1] + 1e-6)
        assert np.count_nonzero(reached != inside) <= 2


def test_stretched_axis_moves_a_feature_away_from_the_reference_energy():
    peak = np.exp(-(((ENERGY - 550) / 1.5) ** 2))[None].astype(np.float32)
    for error in (-0.02, 0.02):
        stretched, _ = stretch_axis(peak, AXIS, reference_energy=530.0, error=error)
        assert ENERGY[stretched[0].argmax()] == pytest.approx(550 + 20 * error, abs=0.051)


def test_scattering_again_equals_the_series_of_convolutions():
    wide = edge_spectra(4, noise=0)[0]
    wide[1, 500:] = np.nan
    scattered = scatter_again(wide, AXIS, relative_thickness=0.8)
    loss = 0.1 * np.arange(1740)
    plasmon = loss / ((loss**2 - 23.5**2) ** 2 + (15 * loss) ** 2)
    plasmon /= plasmon.sum()
    for spectrum, result in zip(wide, scattered, strict=True):
        recorded = np.isfinite(spectrum)
        once, expected, weight = np.nan_to_num(spectrum).astype(float), np.zeros(ENERGY.size), np.exp(-0.8)
        for order in range(1, 15):
            expected += weight * once
            once, weight = convolve(once, plasmon)[: ENERGY.size], weight * 0.8 / order
        np.testing.assert_allclose(result[recorded], expected[recorded], rtol=1e-4, atol=1e-3)
        assert np.isnan(result[~recorded]).all()


def test_scattering_again_adds_up_and_nothing_changes_without_thickness():
    wide = edge_spectra(4)[0]
    np.testing.assert_allclose(scatter_again(wide, AXIS, relative_thickness=0.0), wide, rtol=1e-6)
    twice = scatter_again(scatter_again(wide, AXIS, relative_thickness=0.3), AXIS, relative_thickness=0.4)
    np.testing.assert_allclose(twice, scatter_again(wide, AXIS, relative_thickness=0.7), rtol=1e-4, atol=0.01)


@pytest.mark.parametrize("has_variance", [True, False])
def test_every_curve_is_assessed_and_its_mild_end_is_the_clean_accuracy(training, recommended, has_variance):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    wide, _, label = training
    test, test_variance, test_label = edge_spectra(200, seed=2, noise=0.5)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(recommended.apply(wide), label)
    curves = further_curves(has_variance=has_variance)
    found = assess(
        lambda wide, disturbance: model.predict(disturbance.vectors(recommended, wide)),
        recommended,
        test=test,
        test_label=test_label,
        training=wide,
        curves=curves,
        seed=0,
        test_variance=test_variance if has_variance else None,
        test_electrons=np.full(200, 25.0) if has_variance else None,
    )
    clean = found.correct["accuracy"].mean()
    assert clean > 0.8
    for curve in curves:
        accuracy = found.curves[curve.perturbation]
        assert len(accuracy) == len(curve.amplitudes)
        mildest = np.argmin(np.abs(curve.amplitudes)) if curve.mild_end == "low" else np.argmax(curve.amplitudes)
        assert accuracy[mildest] == pytest.approx(clean, abs=0.05)
        assert accuracy[mildest] == clean or curve.perturbation == "poisson_peak_counts"
    assert found.curves["dose" if has_variance else "poisson_peak_counts"][-1] < clean


def test_a_dose_without_variance_and_an_unknown_curve_are_refused(training, recommended):
    wide, _, label = training
    for name, match in (("dose", "needs the variance"), ("heat", "no perturbation is called 'heat'")):
        with pytest.raises(ValueError, match=match):
            assess(
                lambda wide, _: np.full(len(wide), "FeO"),
                recommended,
                test=wide[:10],
                test_label=label[:10],
                training=wide,
                curves=[Curve(perturbation=name, unit="", amplitudes=(0.5,))],
                seed=0,
            )


def test_a_dose_is_in_electrons_and_spectra_with_fewer_are_left_alone(training, recommended):
    wide, variance, label = training
    altered = []

    def predict(given, disturbance):
        altered.append(np.flatnonzero((given != wide[:100]).any(axis=1)))
        return np.full(len(given), "FeO")

    electrons = np.repeat([4.0, 40.0, np.nan], [30, 60, 10])
    assess(
        predict,
        recommended,
        test=wide[:100],
        test_label=label[:100],
        training=wide,
        curves=[Curve(perturbation="dose", unit="", amplitudes=(50.0, 10.0, 1.0))],
        seed=0,
        test_variance=variance[:100],
        test_electrons=electrons,
    )
    assert [rows.size for rows in altered[-3:]] == [0, 60, 90]
