"""Principal components: blocks = whole = SVD, scaling that is no no-op, and a rank that noise does not raise."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import convolve1d

from eelsflow.errors import InputError
from eelsflow.io.read import read_spectrum_image
from eelsflow.preprocess.pca import Pca, add_products, fit_pca, merge, merge_split, moments_of, split_moments
from tests.strategies import examples, seeds

POINT_SPREAD = np.array([0.04, 0.13, 0.22, 0.35, 0.18, 0.06, 0.02])


def correlated_noise(n: int, channels: int, seed: int = 0) -> np.ndarray:
    """Return unit noise whose neighbouring channels correlate by .6, .3, .1."""
    rng = np.random.default_rng(seed)
    spread = POINT_SPREAD / np.sqrt((POINT_SPREAD**2).sum())
    return convolve1d(rng.standard_normal((n, channels)), spread, axis=1, mode="wrap")


def signal_of_rank(rank: int, n: int, channels: int, seed: int = 1, weakest: float = 15.0) -> np.ndarray:
    """Return smooth components whose scores fall off to `weakest` standard deviations of the noise."""
    rng = np.random.default_rng(seed)
    channel = np.arange(channels)
    centers = np.linspace(0.1, 0.9, rank) * channels
    shapes = np.linalg.qr(np.exp(-0.5 * ((channel - centers[:, None]) / (0.04 * channels)) ** 2).T)[0].T
    return (rng.standard_normal((n, rank)) * np.geomspace(4 * weakest, weakest, rank)) @ shapes


@pytest.fixture(scope="module")
def spectra() -> np.ndarray:
    mean = 2000.0 * (1 + np.arange(120) / 40.0) ** -2.0
    return mean + np.sqrt(mean) * (correlated_noise(500, 120) + signal_of_rank(3, 500, 120))


def test_components_equal_the_svd_of_the_scaled_spectra(spectra: np.ndarray) -> None:
    scale = np.sqrt(spectra.mean(axis=0))
    _, singular, directions = np.linalg.svd((spectra - spectra.mean(axis=0)) / scale, full_matrices=False)
    pca = fit_pca(moments_of(spectra), rank=4)
    np.testing.assert_allclose(pca.scale, scale, rtol=1e-12)
    np.testing.assert_allclose(pca.eigenvalues[:4], singular[:4] ** 2 / (len(spectra) - 1), rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(pca.components * directions[:4], axis=1)), 1.0, rtol=1e-9)


def test_unscaled_components_and_scores_equal_scikit_learn(spectra: np.ndarray) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    reference = decomposition.PCA(3, svd_solver="full").fit(spectra)
    pca = fit_pca(moments_of(spectra), rank=3, scaling=None)
    signs = np.sign(np.sum(pca.components * reference.components_, axis=1))
    np.testing.assert_allclose(pca.components * signs[:, None], reference.components_, atol=1e-8)
    np.testing.assert_allclose(pca.scores(spectra) * signs, reference.transform(spectra), atol=1e-5)
    np.testing.assert_allclose(
        pca.denoise(spectra), reference.inverse_transform(reference.transform(spectra)), rtol=1e-8
    )


def test_scaling_is_no_no_op_block_by_block(spectra: np.ndarray) -> None:
    """HyperSpy's lazy decomposition drops it without a word."""
    blocks = [split_moments(block) for block in np.array_split(spectra, 7)]
    scaled, plain = fit_pca(merge_split(blocks), rank=3), fit_pca(merge_split(blocks), rank=3, scaling=None)
    whole = fit_pca(moments_of(spectra), rank=3)
    np.testing.assert_allclose(scaled.components, whole.components, atol=1e-9)
    assert np.abs(scaled.components - plain.components).max() > 0.01


def test_denoised_spectra_span_what_hyperspy_finds(spectra: np.ndarray) -> None:
    """HyperSpy scales the pixels as well, which matters little where all are alike, and does not take out the mean."""
    hs = pytest.importorskip("hyperspy.api")
    spectra = spectra - spectra.min() + 1.0  # HyperSpy raises on negative counts
    signal = hs.signals.Signal1D(spectra.reshape(20, 25, -1))
    signal.decomposition(normalize_poissonian_noise=True, output_dimension=4, print_info=False)
    factors = np.asarray(signal.learning_results.factors)[:, :4]
    theirs = np.linalg.qr(factors / np.sqrt(spectra.mean(axis=0))[:, None])[0]
    ours = fit_pca(moments_of(spectra), rank=3).components
    # cosines of the principal angles between the two subspaces
    assert np.linalg.svd(ours @ theirs)[1].min() > 0.97


@examples(25)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), seeds(100))
def test_merged_blocks_equal_the_whole(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = [rng.normal(1000, 3, (size, 12)) for size in sizes]
    merged = moments_of(blocks[0], variance=2.0)
    for block in blocks[1:]:
        merged = merge(merged, moments_of(block, variance=2.0))
    whole = moments_of(np.concatenate(blocks), variance=2.0)
    assert merged.n == whole.n
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(merged.variance_sum, whole.variance_sum, rtol=1e-12)


def test_single_precision_moments_agree_with_double() -> None:
    """A level 300 times the noise: without a pilot mean float32 would lose the small components."""
    spectra = 3000 + 10 * correlated_noise(5000, 60)
    single, double = moments_of(spectra.astype(np.float32)), moments_of(spectra)
    # 1e-7 of a value's rounding of 3000 is .0002, of a deviation of 10: 2e-5
    np.testing.assert_allclose(single.scatter, double.scatter, rtol=2e-5, atol=2e-5 * double.scatter.max())


@pytest.mark.parametrize(("n", "channels"), [(200, 300), (2000, 300), (8000, 128)])
@pytest.mark.parametrize("seed", [0, 1])
def test_pure_correlated_noise_has_no_component_above_it(n: int, channels: int, seed: int) -> None:
    """Marchenko-Pastur's threshold for white noise, (1 + sqrt(c / n))^2, passes dozens here."""
    noise = correlated_noise(n, channels, seed) * np.linspace(1, 4, channels)
    pca = fit_pca(split_moments(noise), scaling=None)
    assert pca.rank == 1
    assert "none stands above the noise" in pca.rank_method
    white = noise / np.linspace(1, 4, channels)
    assert (np.linalg.eigvalsh(np.cov(white.T)) > (1 + np.sqrt(channels / n)) ** 2).sum() > 5


@pytest.mark.parametrize("rank", [1, 2, 3, 5, 8])
def test_rank_of_a_signal_in_correlated_noise_is_found(rank: int) -> None:
    spectra = correlated_noise(1500, 400) + signal_of_rank(rank, 1500, 400)
    pca = fit_pca(split_moments(spectra), scaling=None)
    assert pca.rank == rank
    assert pca.reproducibility[:rank].min() > 0.8


def test_rank_of_interpolated_spectra_is_not_raised_by_their_correlation() -> None:
    """Channels of 0.25 eV resampled to 0.1 eV: the noise of a dozen neighbours is one noise."""
    spectra = correlated_noise(1500, 220) + signal_of_rank(4, 1500, 220)
    position = np.arange(0, 219, 0.4)
    below = position.astype(int)
    share = position - below
    fine = spectra[:, below] * (1 - share) + spectra[:, below + 1] * share
    assert fit_pca(split_moments(fine), scaling=None).rank == 4


def test_denoising_leaves_the_noise_of_the_kept_components_alone() -> None:
    truth = signal_of_rank(3, 1500, 400)
    noise = correlated_noise(1500, 400)
    pca = fit_pca(split_moments(truth + noise), scaling=None)
    left = pca.denoise(truth + noise) - truth
    # 3 directions of 400, each with at most the correlated noise's highest power, 3.5
    assert left.var() < 3 * 3.5 / 400 + 0.02
    np.testing.assert_allclose(pca.residual(truth + noise), truth + noise - pca.denoise(truth + noise))


def test_halves_of_a_checkerboard_do_not_depend_on_the_blocks() -> None:
    image = correlated_noise(96, 20).reshape(8, 12, 20)
    y, x = np.mgrid[:8, :12]
    half = (y + x) % 2 == 1
    whole = split_moments(image, half)
    blocks = merge_split([split_moments(image[:, :5], half[:, :5]), split_moments(image[:, 5:], half[:, 5:])])
    for ours, theirs in zip(blocks, whole, strict=True):
        assert ours.n == theirs.n == 48
        np.testing.assert_allclose(ours.scatter, theirs.scatter, atol=1e-10)


def test_variance_scaling_divides_by_the_noise() -> None:
    sigma = np.linspace(1, 5, 50)
    spectra = correlated_noise(300, 50) * sigma
    pca = fit_pca(moments_of(spectra, variance=sigma**2), rank=2, scaling="variance")
    np.testing.assert_allclose(pca.scale, sigma, rtol=1e-12)
    with pytest.raises(InputError, match="moments carry none"):
        fit_pca(moments_of(spectra), rank=2, scaling="variance")


def test_negative_and_empty_channels_are_scaled_without_nan(spectra: np.ndarray) -> None:
    odd = spectra.copy()
    odd[:, 3] = 0
    odd[:, 4] -= 5000
    pca = fit_pca(split_moments(odd))
    assert np.isfinite(pca.components).all()
    assert np.isfinite(pca.denoise(odd)).all()


def test_components_are_signed_by_their_largest_entry_and_reproducible(spectra: np.ndarray) -> None:
    first, second = fit_pca(split_moments(spectra)), fit_pca(split_moments(spectra))
    np.testing.assert_array_equal(first.components, second.components)
    assert (first.components[np.arange(first.rank), np.abs(first.components).argmax(axis=1)] > 0).all()


def test_arrays_bring_the_components_back(spectra: np.ndarray, tmp_path: Path) -> None:
    pca = fit_pca(split_moments(spectra))
    np.savez(tmp_path / "pca.npz", **pca.to_arrays())
    with np.load(tmp_path / "pca.npz", allow_pickle=False) as arrays:
        loaded = Pca.from_arrays(arrays)
    np.testing.assert_array_equal(loaded.denoise(spectra), pca.denoise(spectra))
    assert (loaded.rank, loaded.rank_method) == (pca.rank, pca.rank_method)


def test_single_precision_stays_single(spectra: np.ndarray) -> None:
    pca = fit_pca(moments_of(spectra), rank=3)
    assert pca.denoise(spectra.astype(np.float32)).dtype == np.float32
    assert pca.denoise(spectra.reshape(20, 25, -1)).shape == (20, 25, 120)


def test_fit_refuses_what_it_cannot_answer(spectra: np.ndarray) -> None:
    with pytest.raises(InputError, match="split_moments"):
        fit_pca(moments_of(spectra))
    with pytest.raises(InputError, match="at most 4"):
        fit_pca(moments_of(spectra[:5]), rank=9)
    with pytest.raises(InputError, match="each half needs 4"):
        fit_pca(split_moments(spectra[:5]))
    with pytest.raises(InputError, match="2 spectra or more"):
        fit_pca(moments_of(spectra[:1]), rank=1)
    with pytest.raises(InputError, match="not finite"):
        moments_of(np.full((3, 4), np.nan))
    with pytest.raises(InputError, match="cannot be merged"):
        merge(moments_of(spectra), moments_of(spectra[:, :5]))
    with pytest.raises(InputError, match="fitted to 120 channels"):
        fit_pca(moments_of(spectra), rank=2).scores(spectra[:, :5])
    with pytest.raises(InputError, match="no block"):
        merge_split([])


@pytest.mark.real
@pytest.mark.parametrize(("name", "rank"), [("oxide_spectrum_image.dm3", 5), ("lsmo_linescan.hspy", 3)])
def test_rank_of_real_images_is_small(real_data: Path, name: str, rank: int) -> None:
    """Not a known answer: what was found and looked at; the next component has under 20 % of the noise."""
    counts = read_spectrum_image(real_data / name).values
    assert fit_pca(split_moments(counts)).rank == rank


def test_leading_components_of_many_channels_are_those_of_the_whole_decomposition() -> None:
    """Beyond 16 channels for each component looked at they are found by iteration."""
    spectra = correlated_noise(900, 600) + signal_of_rank(3, 900, 600)
    pca = fit_pca(moments_of(spectra), rank=3, scaling=None)
    values, vectors = np.linalg.eigh(np.cov(spectra.T))
    np.testing.assert_allclose(pca.eigenvalues, values[::-1][: pca.eigenvalues.size], rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(pca.components * vectors[:, ::-1][:, :3].T, axis=1)), 1.0, rtol=1e-9)


def test_products_are_added_to_the_upper_triangle():
    random = np.random.default_rng(0)
    rows, more = random.normal(size=(2, 30, 12)).astype(np.float32)
    total = np.full((12, 12), np.nan, dtype=np.float32)
    add_products(rows, total, keep=False)
    add_products(more, total, keep=True)
    expected = np.triu(rows.T @ rows + more.T @ more)
    np.testing.assert_allclose(np.triu(total), expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(total[np.tril_indices(12, -1)]).all()
