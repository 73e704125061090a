"""The interior point against the exact solver, which it only gives a start."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.search import path
from eelsflow.search.gram import independent_channels
from eelsflow.search.interior import approach_inside
from eelsflow.search.path import TOLERANCE, Fold, approach, class_weights, follow_path
from eelsflow.search.rows import LinearKernel
from tests.strategies import exponents, seeds


def problem(seed: int, n: int, distance: float, *, n_copies: int = 0):
    random = np.random.default_rng(seed)
    codes = random.permutation((np.arange(n) % 3 == 0).astype(np.int32))
    X = random.normal(size=(n, 8)) + distance * codes[:, np.newaxis]
    X[n - n_copies :] = X[:n_copies]
    return independent_channels(X - X.mean(axis=0)), codes


def objective(X, y, b) -> float:
    weight = X.T @ b
    return 0.5 * float(weight @ weight) - float(y @ b)


def bounds(codes, C):
    limit = C * class_weights(codes, 2, "balanced")[codes]
    y = np.where(codes == 1, 1.0, -1.0)
    return y, np.where(y < 0, -limit, 0.0), np.where(y > 0, limit, 0.0)


def solve(X, codes, C):
    everything = np.arange(len(codes))
    rows = LinearKernel(X)
    (fits,) = follow_path(rows, codes, [C], [Fold(everything, everything[:0])], whole=everything)
    return fits.whole[0]


@given(seeds(10_000), exponents(2, 7), st.sampled_from([0.2, 1.0, 8.0]), st.sampled_from([0, 10]))
def test_ends_at_the_optimum(seed, log_C, distance, n_copies):
    X, codes = problem(seed, 60, distance, n_copies=n_copies)
    C = 10.0**log_C
    y, lower, upper = bounds(codes, C)
    b = approach_inside(X, y, lower, upper)
    assert (b >= lower).all()
    assert (b <= upper).all()
    assert abs(b.sum()) <= 1e-3 * C
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path, "LARGE_C", np.inf)
        exact = solve(X, codes, C)
    assert exact.violation <= TOLERANCE
    # The tolerance of the exact one leaves at most the violation times the sum of the bounds.
    reached, optimum = objective(X, y, b), objective(X, y, exact.b)
    assert reached <= optimum + 1e-4 * abs(optimum) + TOLERANCE * (upper - lower).sum()


@pytest.mark.parametrize("distance", [0.2, 8.0])
def test_machine_that_starts_from_it_is_the_same(distance, monkeypatch):
    X, codes = problem(3, 200, distance)
    from_inside = solve(X, codes, 1e5)
    monkeypatch.setattr(path, "LARGE_C", np.inf)
    along_the_face = solve(X, codes, 1e5)
    assert from_inside.violation <= TOLERANCE
    np.testing.assert_allclose(from_inside.decision, along_the_face.decision, atol=3 * TOLERANCE)
    if distance < 1:
        assert from_inside.n_steps < along_the_face.n_steps / 3, "most of the way is behind it"


def test_a_machine_that_is_hard_to_lead_to_is_begun_inside(monkeypatch):
    X, codes = problem(3, 200, 0.2)
    everything = np.arange(200)
    led = []
    for patience in (1_000_000, 1):
        rows = LinearKernel(X)
        monkeypatch.setattr(rows, "patience", patience)
        starts = []
        monkeypatch.setattr(
            rows, "start", lambda *args, rows=rows, starts=starts: starts.append(1) or LinearKernel.start(rows, *args)
        )
        (fits,) = follow_path(rows, codes, [1e4], [Fold(everything, everything[:0])], before=approach(1e4))
        assert fits.whole[0].violation <= TOLERANCE
        led.append((fits.whole[0].decision, len(starts)))
    (along, no_start), (inside, one_start) = led
    assert (no_start, one_start) == (0, 1)
    np.testing.assert_allclose(along, inside, atol=3 * TOLERANCE)


def test_rows_left_out_get_no_weight():
    X, codes = problem(1, 60, 1.0)
    y, lower, upper = bounds(codes, 1e4)
    lower[::5] = upper[::5] = 0.0
    b = approach_inside(X, y, lower, upper)
    assert (b[::5] == 0).all()
    assert np.count_nonzero(b) > 2


def test_equal_spectra_give_some_feasible_start():
    codes = np.arange(10) % 2
    y, lower, upper = bounds(codes, 1e4)
    X = np.zeros((10, 1))
    b = approach_inside(X, y, lower, upper)
    assert ((b >= lower) & (b <= upper)).all()
    assert solve(X, codes, 1e4).violation <= TOLERANCE
