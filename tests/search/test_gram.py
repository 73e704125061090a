import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics.pairwise import linear_kernel, rbf_kernel, sigmoid_kernel

from eelsflow.search.gram import derive_kernel, save_array, save_gram

# At least one feature away from 0 is not needed: equal rows and zero rows are the cases where rounding bites.
matrices = arrays(np.float64, st.tuples(st.integers(2, 8), st.integers(1, 6)), elements=st.floats(-3, 3))


@settings(deadline=None)
@given(matrices, st.floats(1e-6, 10), st.floats(-1, 1))
def test_kernels_equal_those_of_scikit_learn(X, gamma, coef0):
    rows, columns = np.arange(len(X))[::-1], np.arange(len(X) - 1)
    gram = X @ X.T
    for kernel, expected in {
        "linear": linear_kernel(X[rows], X[columns]),
        "rbf": rbf_kernel(X[rows], X[columns], gamma=gamma),
        "sigmoid": sigmoid_kernel(X[rows], X[columns], gamma=gamma, coef0=coef0),
    }.items():
        block = derive_kernel(gram, rows, columns, kernel=kernel, gamma=gamma, coef0=coef0)
        # Squared distances up to 200 carry an error of some 1e-13, which gamma multiplies by up to 10.
        np.testing.assert_allclose(block, expected, atol=1e-11)


def test_gram_is_written_once_and_can_be_mapped(tmp_path):
    X = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    path = save_gram(X, tmp_path / "scratch")
    gram = np.load(path, mmap_mode="r")
    assert isinstance(gram, np.memmap)
    assert gram.dtype == np.float64
    np.testing.assert_allclose(gram, X.astype(float) @ X.astype(float).T)
    assert save_gram(X, tmp_path / "scratch") == path
    assert save_gram(X + 1, tmp_path / "scratch") != path
    assert not list((tmp_path / "scratch").glob(".*"))


def test_deriving_a_kernel_leaves_the_gram_matrix_as_it_is():
    gram = np.eye(3)
    derive_kernel(gram, np.arange(3), np.arange(3), kernel="rbf", gamma=1.0)
    np.testing.assert_array_equal(gram, np.eye(3))


def test_arrays_with_objects_are_not_written(tmp_path):
    with pytest.raises((ValueError, TypeError)):
        save_array(np.array([{}], dtype=object), tmp_path, name="objects")
    assert not list(tmp_path.glob("*.npy"))
