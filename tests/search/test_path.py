"""The solver against the conditions of an optimum, and against libsvm as far as its single precision reaches."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.svm import SVC

from eelsflow.search import solver
from eelsflow.search.gram import squared_distances
from eelsflow.search.machine import build_machine
from eelsflow.search.path import TOLERANCE, Fold, approach, class_weights, follow_path, vote
from eelsflow.search.rows import KernelRows, LinearKernel, SharedKernel
from tests.strategies import examples, exponents, seeds


def problem(seed: int, n: int, n_classes: int, *, n_copies: int = 0, rare: int = 0):
    random = np.random.default_rng(seed)
    codes = np.arange(n) % n_classes
    if rare:
        codes = np.where((codes == 1) & (np.arange(n) > 2 * rare), 0, codes)
    X = random.normal(size=(n, 4)) + 0.8 * codes[:, np.newaxis]
    X[n - n_copies :] = X[:n_copies]  # the same spectra again, some of them with another label
    order = random.permutation(n)
    return X[order], codes[order]


def folds_of(codes, n_folds=3) -> list[Fold]:
    number = np.empty(len(codes), int)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        number[rows] = np.arange(rows.size) % n_folds
    return [Fold(np.flatnonzero(number != k), np.flatnonzero(number == k)) for k in range(n_folds)]


def kernel_rows(X, kernel, gamma=1.0, coef0=0.0, **options) -> SharedKernel:
    centred = X - X.mean(axis=0)
    if kernel == "linear":
        return LinearKernel(centred)
    products = {"rbf": squared_distances(centred), "sigmoid": X @ X.T}[kernel]
    return KernelRows(products, kernel, {"gamma": gamma, "coef0": coef0}, **options)


def primal_gap(K, codes, solution, C) -> float:
    """Return primal less dual objective, for two balanced classes."""
    y = np.where(codes == 1, 1.0, -1.0)
    limit = C * class_weights(codes, 2, "balanced")[codes]
    hinge = np.maximum(0.0, 1.0 - y * solution.decision)
    quadratic = float(solution.b @ K @ solution.b)
    primal = 0.5 * quadratic + float(limit @ hinge)
    dual = float(y @ solution.b) - 0.5 * quadratic
    return primal - dual


@examples(25)
@given(
    seeds(10_000),
    st.sampled_from(["linear", "rbf"]),
    exponents(-5, 7),
    exponents(-2, 1.5),
    st.sampled_from([0, 6]),
    st.sampled_from([0, 3]),
)
def test_solutions_meet_the_conditions_of_an_optimum(seed, kernel, log_C, log_gamma, n_copies, rare):
    assume(kernel == "rbf" or log_C < 3)  # a linear machine at large C is tested on its own below
    X, codes = problem(seed, 45, 2, n_copies=n_copies, rare=rare)
    C, gamma = 10**log_C, 10**log_gamma
    rows = kernel_rows(X, kernel, gamma)
    (fits,) = follow_path(rows, codes, [C], folds_of(codes), before=approach(C))
    (solution,) = fits.whole
    assert fits.converged.all()
    assert solution.violation <= TOLERANCE
    assert abs(solution.b.sum()) <= 1e-9 * max(1.0, np.abs(solution.b).sum())
    limit = C * class_weights(codes, 2, "balanced")[codes]
    signed = solution.b * np.where(codes == 1, 1.0, -1.0)
    assert (signed >= 0).all()
    assert (signed <= limit * (1 + 1e-12)).all()
    K = np.empty((len(X), len(X)))
    for i in range(len(X)):
        K[i] = 0.0
        rows.add(K[i], np.array([i]), np.ones(1))
    np.testing.assert_allclose(solution.F, K @ solution.b, atol=1e-8 * max(1.0, np.abs(solution.b).sum()))
    # A violation of the conditions by so much costs each row at most that times its limit.
    assert -1e-9 <= primal_gap(K, codes, solution, C) / limit.sum() <= TOLERANCE


@pytest.mark.parametrize("n_classes", [2, 3, 4])
@pytest.mark.parametrize(("kernel", "gamma"), [("linear", 1.0), ("rbf", 0.3), ("rbf", 30.0)])
def test_held_out_decisions_are_those_of_scikit_learn(n_classes, kernel, gamma):
    X, codes = problem(3, 160, n_classes)
    folds = folds_of(codes)
    for fits in follow_path(kernel_rows(X, kernel, gamma), codes, [1.0, 10.0, 100.0], folds, tolerance=1e-6):
        for fold, values in zip(folds, fits.held_out, strict=True):
            machine = SVC(
                kernel=kernel, C=fits.C, gamma=gamma, class_weight="balanced", decision_function_shape="ovo", tol=1e-6
            ).fit(X[fold.train], codes[fold.train])
            expected = machine.decision_function(X[fold.held_out]).reshape(len(values), -1)
            np.testing.assert_allclose(values, expected, atol=2e-2)
            clear = (np.abs(expected) > 2e-2).all(axis=1)
            np.testing.assert_array_equal(vote(values, n_classes)[clear], machine.predict(X[fold.held_out])[clear])


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_built_machine_predicts_as_one_fitted_by_scikit_learn(n_classes, kernel):
    X, codes = problem(5, 200, n_classes)
    params = {"C": 20.0} | ({} if kernel == "linear" else {"gamma": 0.02})
    (fits,) = follow_path(kernel_rows(X, kernel, 0.02), codes, [20.0], folds_of(codes), tolerance=1e-6)
    machine = build_machine(X, codes, fits.whole, kernel=kernel, params=params)
    reference = SVC(kernel=kernel, class_weight="balanced", decision_function_shape="ovo", tol=1e-6, **params)
    reference.fit(X, codes)
    new = np.random.default_rng(9).normal(size=(500, 4)) + 1.0
    expected = reference.decision_function(new)
    np.testing.assert_allclose(machine.decision_function(new), expected, atol=2e-2)
    clear = (np.abs(expected) > 2e-2).reshape(500, -1).all(axis=1)
    np.testing.assert_array_equal(machine.predict(new)[clear], reference.predict(new)[clear])
    np.testing.assert_allclose(machine.class_weight_, reference.class_weight_)
    if kernel == "linear":
        np.testing.assert_allclose(machine.coef_, reference.coef_, atol=2e-2)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_built_sigmoid_machine_decides_as_its_solution_does(n_classes):
    X, codes = problem(5, 200, n_classes)
    rows = kernel_rows(X, "sigmoid", 0.02, 0.5)
    (fits,) = follow_path(rows, codes, [20.0], folds_of(codes))
    machine = build_machine(X, codes, fits.whole, kernel="sigmoid", params={"C": 20.0, "gamma": 0.02, "coef0": 0.5})
    expected = np.stack([solution.decision for solution in fits.whole], axis=1)
    np.testing.assert_allclose(machine.decision_function(X).reshape(len(X), -1), expected, atol=1e-9)
    np.testing.assert_array_equal(machine.predict(X), vote(expected, n_classes))


def test_a_linear_machine_at_large_c_reaches_a_lower_objective_than_libsvm():
    X, codes = problem(11, 300, 2)
    C = 1e5
    (fits,) = follow_path(kernel_rows(X, "linear"), codes, [C], folds_of(codes), before=approach(C))
    machine = build_machine(X, codes, fits.whole, kernel="linear", params={"C": C})
    libsvm = SVC(kernel="linear", C=C, class_weight="balanced", max_iter=200_000)
    with pytest.warns(UserWarning, match="terminated early"):
        libsvm.fit(X, codes)
    limit = C * class_weights(codes, 2, "balanced")[codes]
    y = np.where(codes == 1, 1.0, -1.0)

    def objective(fitted) -> float:
        hinge = np.maximum(0.0, 1.0 - y * fitted.decision_function(X))
        return 0.5 * float(fitted.coef_[0] @ fitted.coef_[0]) + float(limit @ hinge)

    assert fits.converged.all()
    assert objective(machine) <= objective(libsvm) * (1 + 1e-9)


def test_a_kernel_that_is_not_positive_definite_ends_and_says_whether_it_converged():
    X, codes = problem(2, 80, 2)
    rows = kernel_rows(3 * X, "sigmoid", 1.0, 1.0)
    for fits in follow_path(rows, codes, [1.0, 1e5], folds_of(codes), max_steps=3):
        assert np.isfinite(np.concatenate(fits.held_out)).all()
    assert not fits.converged.all()


@examples(25)
@given(seeds(10_000), exponents(-2, 5), exponents(-2, 1), st.sampled_from([-1.0, 0.0, 1.0]))
def test_sigmoid_machines_end_and_say_how_far_they_are_from_an_optimum(seed, log_C, log_gamma, coef0):
    X, codes = problem(seed, 40, 2)
    C, gamma = 10**log_C, 10**log_gamma
    rows = kernel_rows(X, "sigmoid", gamma, coef0)
    (fits,) = follow_path(rows, codes, [C], folds_of(codes), before=approach(C), max_steps=20_000)
    (solution,) = fits.whole
    b, limit = solution.b, C * class_weights(codes, 2, "balanced")
    error = np.where(codes == 1, 1.0, -1.0) - np.tanh(gamma * X @ X.T + coef0) @ b
    rises, falls = b < np.where(codes == 1, limit[1], 0.0), b > np.where(codes == 1, 0.0, -limit[0])
    violation = max(error[rises].max(initial=-np.inf) - error[falls].min(initial=np.inf), 0.0)
    assert solution.violation == pytest.approx(violation, abs=1e-8 * max(1.0, np.abs(b).sum()))
    assert abs(b.sum()) <= 1e-9 * max(1.0, np.abs(b).sum())
    assert np.isfinite(np.concatenate(fits.held_out)).all()


def test_rows_from_spectra_and_a_full_cache_give_the_same_machine():
    X, codes = problem(7, 120, 2)
    folds = folds_of(codes)
    (expected,) = follow_path(kernel_rows(X, "rbf", 0.5), codes, [50.0], folds)
    rows = KernelRows(X - X.mean(axis=0), "rbf", {"gamma": 0.5}, from_spectra=True, max_bytes=1)
    (found,) = follow_path(rows, codes, [50.0], folds)
    for one, other in zip(found.held_out, expected.held_out, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2)


def test_rows_are_computed_again_after_the_cache_was_emptied(monkeypatch):
    monkeypatch.setattr("eelsflow.search.rows.MOST_FREE", 10)
    monkeypatch.setattr("eelsflow.search.rows.VIOLATORS", 5)
    X, codes = problem(7, 120, 2)
    folds = folds_of(codes)
    rows = kernel_rows(X, "rbf", 0.5, max_bytes=1)
    (found,) = follow_path(rows, codes, [50.0], folds)
    monkeypatch.undo()
    (expected,) = follow_path(kernel_rows(X, "rbf", 0.5), codes, [50.0], folds)
    for one, other in zip(found.held_out, expected.held_out, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2)


@pytest.mark.parametrize("fit_together", [True, False])
def test_folds_solved_in_turns_are_those_solved_alone(monkeypatch, fit_together):
    X, codes = problem(4, 240, 2)
    folds = folds_of(codes, 5)
    if not fit_together:
        monkeypatch.setattr("eelsflow.search.rows.MOST_FREE", 20)
        monkeypatch.setattr("eelsflow.search.rows.VIOLATORS", 10)
    rows = kernel_rows(X, "rbf", 3.0)
    together, seen = rows.solve, []
    monkeypatch.setattr(rows, "solve", lambda *args, **kwargs: seen.append(len(args[3])) or together(*args, **kwargs))
    values = [0.1, 10.0, 1e3, 1e5]
    whole = np.unique(np.concatenate([fold.train for fold in folds]))
    found = list(follow_path(rows, codes, values, folds, tolerance=1e-8))
    # A fold alone is solved within the call for all, if these do not fit.
    assert (seen.count(1) > len(values)) == (not fit_together)
    for number, fold in enumerate(folds):
        alone = follow_path(kernel_rows(X, "rbf", 3.0), codes, values, [fold], whole=whole, tolerance=1e-8)
        for one, some in zip(alone, found, strict=True):
            assert one.converged.all()
            assert some.converged.all()
            np.testing.assert_allclose(some.held_out[number], one.held_out[0], atol=1e-5)


def test_problems_that_are_solved_already_or_none_at_all_take_no_step():
    X, codes = problem(4, 60, 2)
    rows, y = kernel_rows(X, "rbf", 1.0), np.where(codes == 1, 1.0, -1.0)
    none = np.zeros((0, 60))
    violation, n_steps, seconds = rows.solve(y, none, none, none, none, tolerance=1e-3, max_steps=10)
    assert violation.size == n_steps.size == seconds.size == 0
    lower, upper = np.minimum(y, 0.0)[np.newaxis], np.maximum(y, 0.0)[np.newaxis]
    b, F = np.zeros((2, 1, 60))
    rows.solve(y, lower, upper, b, F, tolerance=1e-3, max_steps=10_000)
    solved = b.copy()
    violation, n_steps, _ = rows.solve(y, lower, upper, b, F, tolerance=1e-3, max_steps=10_000)
    assert violation[0] <= 1e-3
    assert n_steps[0] == 0
    np.testing.assert_array_equal(b, solved)


def test_a_fold_that_takes_too_many_steps_leaves_the_others_as_they_are():
    X, codes = problem(4, 120, 2)
    rows, y = kernel_rows(X, "rbf", 1.0), np.where(codes == 1, 1.0, -1.0)
    small, large = (C * np.ones((1, 120)) for C in (1e-3, 1e4))
    lower, upper = (
        np.where(y < 0, -1.0, 0.0) * np.vstack([small, large]),
        np.where(y > 0, 1.0, 0.0) * np.vstack([small, large]),
    )
    b, F = np.zeros((2, 2, 120))
    violation, n_steps, _ = rows.solve(y, lower, upper, b, F, tolerance=1e-3, max_steps=100)
    assert violation[0] <= 1e-3 < violation[1]
    assert n_steps[0] <= 100 <= n_steps[1]
    assert np.abs(b.sum(axis=1)).max() < 1e-6


@pytest.mark.parametrize("n_rows", [0, 1, 4, 11])
@pytest.mark.parametrize("n", [3, solver.STRETCH, 2 * solver.STRETCH + 3])
def test_rows_are_added_to_every_problem(n_rows, n):
    random = np.random.default_rng(0)
    cache, slots = random.normal(size=(12, n)), random.permutation(12)[:n_rows]
    steps = random.normal(size=(3, n_rows)) * (random.random((3, n_rows)) < 0.5)
    F = random.normal(size=(3, n))
    expected = F + steps @ cache[slots]
    solver.add_rows(F, cache, slots, steps)
    np.testing.assert_allclose(F, expected, atol=1e-12)


@pytest.mark.parametrize("n_copies", [0, 350])
def test_a_large_block_is_solved_part_after_part(n_copies):
    X, codes = problem(2, 800, 2, n_copies=n_copies)
    rows = kernel_rows(X, "rbf", 5.0)
    for fits in follow_path(rows, codes, [1.0, 100.0, 1e4], folds_of(codes)):
        (solution,) = fits.whole
        assert np.count_nonzero(solution.b) > 256
        assert fits.converged.all()
        assert solution.violation <= TOLERANCE
        K = np.exp(-5.0 * squared_distances(X))
        np.testing.assert_allclose(solution.F, K @ solution.b, atol=1e-6 * fits.C)
        limit = fits.C * class_weights(codes, 2, "balanced")[codes]
        assert primal_gap(K, codes, solution, fits.C) <= TOLERANCE * limit.sum()


def test_pairs_move_among_rows_with_equal_errors():
    """Before anything has moved every error is 1 or -1; of a part of them both ends must be there."""
    random = np.random.default_rng(0)
    X = random.normal(size=(700, 4))
    y = np.where(np.arange(700) < 500, 1.0, -1.0)
    K = np.exp(-0.5 * squared_distances(X))
    low, high = np.where(y < 0, -1e3, 0.0), np.where(y > 0, 1e3, 0.0)
    error, b = y.copy(), np.zeros(700)
    steps, gap = solver.move_parts(K, error, b, low, high, 1e-3, 1_000_000)
    assert 0 < steps < 1_000_000
    assert gap <= 1e-3
    np.testing.assert_allclose(error, y - K @ b, atol=1e-9 * np.abs(b).sum())
    assert abs(b.sum()) < 1e-9 * np.abs(b).sum()
