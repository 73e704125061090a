"""Faces of many free weights: against plain linear algebra, libsvm, and the steps that they replace."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.svm import SVC

from eelsflow.search import face
from eelsflow.search.face import Factor, settle, solve_lower
from eelsflow.search.gram import squared_distances
from eelsflow.search.path import Fold, class_weights, follow_path
from eelsflow.search.rows import KernelRows
from tests.strategies import examples, exponents, seeds


def noisy(seed: int, n: int = 260, n_channels: int = 30):
    random = np.random.default_rng(seed)
    codes = np.arange(n) % 2
    return random.normal(size=(n, n_channels)) + 0.1 * codes[:, np.newaxis], codes


def open_rows(X, gamma: float, *, many_free: int = 32) -> KernelRows:
    rows = KernelRows(squared_distances(X - X.mean(axis=0)), "rbf", {"gamma": gamma})
    rows.many_free = many_free
    return rows


def start(codes, C: float):
    limit = C * class_weights(codes, 2, "balanced")[codes]
    y = np.where(codes == 1, 1.0, -1.0)
    return y, np.where(y < 0, -limit, 0.0), np.where(y > 0, limit, 0.0)


@examples(30)
@given(seeds(1000), st.integers(0, 40), st.integers(0, 40), st.integers(0, 9))
def test_a_face_near_a_factored_one_is_solved_as_if_it_were_factored(seed, n_removed, n_added, n_back):
    X, _ = noisy(seed, n=120)
    rows, random = open_rows(X, 0.02), np.random.default_rng(seed)
    K = np.exp(-0.02 * squared_distances(X))
    order = random.permutation(120)
    factor = Factor.of(rows, np.sort(order[:70]))
    free = np.zeros(120, bool)
    free[order[n_removed : 70 + n_added]] = True
    for _ in range(2):  # the second time some rows are back, whose columns stay known
        members = np.flatnonzero(free)
        error, total = random.normal(size=members.size), random.normal()
        step, bias = factor.solve(rows, free, error, total)
        system = np.block([[K[np.ix_(members, members)], np.ones((members.size, 1))], [np.ones(members.size), 0.0]])
        expected = np.linalg.solve(system, np.append(error, total))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(step, expected[:-1], atol=1e-7 * scale)
        assert bias == pytest.approx(expected[-1], abs=1e-7 * scale)
        free[order[:n_back]] = True
        free[order[100 : 100 + n_back]] = True


def test_a_factor_knows_how_far_a_face_is():
    X, _ = noisy(0, n=100)
    rows = open_rows(X, 0.02)
    factor = Factor.of(rows, np.arange(50))
    free = np.arange(100) < 55
    free[:5] = False
    assert factor.distance(free) == 10 / 50
    factor.solve(rows, free, np.ones(50), 0.0)
    assert factor.distance(free) == 0.0
    assert factor.fork().distance(free) == 10 / 50


@pytest.mark.parametrize("n", [1, 255, 256, 700])
def test_a_triangular_system_is_solved_stretch_after_stretch(n):
    random = np.random.default_rng(0)
    lower = np.tril(random.normal(size=(n, n)) / np.sqrt(n)) + 2 * np.eye(n)
    right = random.normal(size=(n, 3))
    found = solve_lower(lower, right.copy())
    np.testing.assert_allclose(lower @ found, right, atol=1e-9)


@examples(20)
@given(seeds(1000), exponents(0, 4), exponents(-2.5, 1))
def test_ends_at_the_optimum(seed, log_C, log_gamma):
    X, codes = noisy(seed)
    folds = [Fold(np.flatnonzero(np.arange(260) % 4 != k), np.flatnonzero(np.arange(260) % 4 == k)) for k in range(4)]
    values = [10.0 ** (log_C - 1), 10.0**log_C]
    by_face = list(follow_path(open_rows(X, 10.0**log_gamma), codes, values, folds, tolerance=1e-7))
    by_pairs = list(follow_path(open_rows(X, 10.0**log_gamma, many_free=10_000), codes, values, folds, tolerance=1e-7))
    for found, expected in zip(by_face, by_pairs, strict=True):
        assert found.converged.all()
        assert found.whole[0].violation <= 1e-7
        np.testing.assert_allclose(found.whole[0].decision, expected.whole[0].decision, atol=1e-4)
        for one, other in zip(found.held_out, expected.held_out, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0])
def test_decides_as_libsvm_and_takes_few_steps(gamma):
    X, codes = noisy(5, n=1200)
    folds = [Fold(np.arange(300, 1200), np.arange(300))]
    rows = open_rows(X, gamma, many_free=64)
    fits = list(follow_path(rows, codes, [1.0, 100.0, 1e4], folds))
    assert fits[-1].whole[0].n_steps < 60  # pairs take thousands
    for found in fits:
        machine = SVC(C=found.C, gamma=gamma, class_weight="balanced", tol=1e-6).fit(X[300:], codes[300:])
        np.testing.assert_allclose(found.held_out[0][:, 0], machine.decision_function(X[:300]), atol=5e-3)


def test_what_does_not_settle_is_left_as_it_was(monkeypatch):
    X, codes = noisy(2)
    rows = open_rows(X, 0.02)
    y, lower, upper = start(codes, 100.0)
    b, F = np.where(y > 0, 1.0, -1.0), np.zeros(260)
    rows.add(F, np.arange(260), b)
    before = b.copy(), F.copy()
    monkeypatch.setattr(face, "MOST_TURNS", 1)
    assert settle(rows, y, lower, upper, b, F, tolerance=1e-9, factor=None) == (None, 0)
    np.testing.assert_array_equal(before, (b, F))
    monkeypatch.undo()
    factor, turns = settle(rows, y, lower, upper, b, F, tolerance=1e-9, factor=None)
    assert factor is not None
    assert 1 < turns <= face.MOST_TURNS
    assert abs(b.sum()) < 1e-9 * np.abs(b).sum()
    assert ((lower <= b) & (b <= upper)).all()
    np.testing.assert_allclose(F, np.exp(-0.02 * squared_distances(X)) @ b, atol=1e-9 * np.abs(b).sum())


def test_a_kernel_that_is_not_positive_definite_is_left_to_pairs():
    random = np.random.default_rng(0)
    X = random.normal(size=(200, 5))
    rows = KernelRows(X @ X.T, "sigmoid", {"gamma": 2.0, "coef0": -1.0})
    rows.many_free = 16
    assert Factor.of(rows, np.arange(200)) is None
    y, lower, upper = start(np.arange(200) % 2, 100.0)
    b, F = 0.5 * (lower + upper)[np.newaxis], np.zeros((1, 200))
    rows.add(F, np.arange(200), b)
    bounds = lower[np.newaxis], upper[np.newaxis]
    violation, n_steps, _ = rows.solve(y, *bounds, b, F, tolerance=1e-3, max_steps=20_000)
    assert rows.many_free == 400  # tried once, and not again
    assert n_steps[0] > face.MOST_TURNS
    assert np.isfinite(violation).all()
    assert ((lower <= b) & (b <= upper)).all()


def test_a_face_of_more_rows_than_may_be_dense_is_not_factored():
    X, _ = noisy(0, n=100)
    rows = open_rows(X, 0.02)
    rows.most_dense = 60
    assert Factor.of(rows, np.arange(61)) is None
    assert Factor.of(rows, np.arange(60)) is not None


def test_a_kernel_that_is_done_with_gives_its_memory_back_at_once():
    X, codes = noisy(1)
    rows = open_rows(X, 1.0)
    list(follow_path(rows, codes, [1.0, 100.0], [Fold(np.arange(60, 260), np.arange(60))]))
    assert rows._factor is not None
    is_alive = weakref.ref(rows)
    gc.disable()
    try:
        del rows
        assert is_alive() is None
    finally:
        gc.enable()
