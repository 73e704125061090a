import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics.pairwise import euclidean_distances

from eelsflow.search.gram import independent_channels, save_array, save_products, squared_distances
from tests.strategies import counts

# Equal rows and rows of zeros are the cases where rounding bites.
matrices = arrays(np.float64, st.tuples(st.integers(2, 8), st.integers(1, 6)), elements=counts(-3, 3))


@given(matrices)
def test_distances_equal_those_of_scikit_learn(X):
    distances = squared_distances(X)
    np.testing.assert_allclose(distances, euclidean_distances(X, squared=True), atol=1e-12)
    assert (distances.diagonal() == 0).all()
    assert (distances == distances.T).all()


@pytest.mark.parametrize("kernel", ["rbf", "linear", "sigmoid"])
def test_products_are_written_once_and_can_be_mapped(kernel, tmp_path):
    X = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    centred = X.astype(float) - X.astype(float).mean(axis=0)
    products = save_products(X, kernel, tmp_path / "scratch")
    matrix = np.load(products.path, mmap_mode="r")
    assert isinstance(matrix, np.memmap)
    assert products.from_spectra == (kernel == "linear")
    expected = {
        "rbf": ((X[:, None].astype(float) - X) ** 2).sum(axis=2),
        "linear": centred @ centred.T,
        "sigmoid": X.astype(float) @ X.astype(float).T,
    }
    found = matrix @ matrix.T if kernel == "linear" else matrix
    np.testing.assert_allclose(found, expected[kernel], atol=1e-12)
    assert save_products(X, kernel, tmp_path / "scratch") == products
    assert save_products(X + 1, kernel, tmp_path / "scratch") != products
    assert not list((tmp_path / "scratch").glob(".*"))


def test_independent_channels_are_as_few_as_the_spectra_have():
    random = np.random.default_rng(0)
    X = random.normal(size=(50, 3)) @ random.normal(size=(3, 20))
    few = independent_channels(X)
    assert few.shape == (50, 3)
    np.testing.assert_allclose(few @ few.T, X @ X.T, atol=1e-11)
    sizes = (few**2).sum(axis=0)
    assert (np.diff(sizes) <= 0).all()
    assert independent_channels(np.zeros((4, 3))).shape[0] == 4


def test_past_the_limit_of_memory_the_spectra_are_written_instead_and_the_log_says_so(tmp_path, caplog):
    X = np.random.default_rng(0).random((5, 3))
    with caplog.at_level("INFO", logger="eelsflow"):
        products = save_products(X, "rbf", tmp_path, max_bytes=8 * 25 - 1)
    assert products.from_spectra
    assert "rows of the kernel are computed from the spectra" in caplog.text
    np.testing.assert_allclose(np.load(products.path), X - X.mean(axis=0))


def test_arrays_with_objects_are_not_written(tmp_path):
    with pytest.raises((ValueError, TypeError)):
        save_array(np.array([{}], dtype=object), tmp_path, name="objects")
    assert not list(tmp_path.glob("*.npy"))
