"""A linear machine by an interior point: its time does not grow with C.

Steps along the face, as `eelsflow.search.solver` takes them, meet many bounds one after the other when C is large and
the classes overlap. The interior point goes past all of them at once: some thirty solutions of a system that has as
many unknowns as the spectra have independent channels, however many spectra there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Vector = NDArray[np.float64]

MOST_STEPS = 100
STEP_SHARE = 0.995
"""Of the way to the nearest bound; the rest keeps every variable inside."""

LEAST_SHARE = 1e-12
"""Directions of the spectra with less than this share of the largest one's variance are left out."""

AT_BOUND = 1e-6
"""Share of the room between its bounds below which a weight is taken to be at the bound."""


def approach_inside(X: NDArray[Any], y: Vector, lower: Vector, upper: Vector, *, precision: float = 1e-7) -> Vector:
    """Return weights close to the optimum of the dual problem of a linear machine.

        minimise  |X' b|^2 / 2 - y' b    subject to    sum b = 0,   lower <= b <= upper

    Parameters
    ----------
    X
        Spectra by `eelsflow.search.gram.independent_channels`, (n, rank): uncorrelated channels, the largest first.
    y, lower, upper
        As in `eelsflow.search.solver`, (n,); rows whose bounds are equal take no part.
    precision
        Largest gap between the primal and the dual objective, in units of the primal one.

    Returns
    -------
    ndarray
        Weights within their bounds, (n,); those within `AT_BOUND` of a bound are on it, so their sum is not quite zero.
        Where rounding ends the steps early they are as close as was reached: a start for a solver that finishes.

    Notes
    -----
    Primal-dual steps with Mehrotra's corrector (1992), on the box-constrained dual of Fine & Scheinberg (JMLR 2, 2001).
    ``X X' + D`` with a diagonal D is inverted through the (rank, rank) matrix ``I + X' D^-1 X``.
    """
    rows = np.flatnonzero(lower < upper)
    scale = float((upper - lower).max())  # in units of which weights are at most one
    size = np.einsum("ij,ij->j", X, X)
    V, c = np.ascontiguousarray(X[rows][:, size > LEAST_SHARE * size[0]]), y[rows] / scale
    low, high = lower[rows] / scale, upper[rows] / scale
    b = 0.1 * (low + high)  # one of the two is zero
    error = c - V @ (V.T @ b)
    bias = float(np.median(error))
    # The multipliers of the two bounds differ by the error that is left; both start above zero.
    spare = float(np.abs(error - bias).mean())
    z, w = np.maximum(bias - error, 0.0) + spare, np.maximum(error - bias, 0.0) + spare
    for _ in range(MOST_STEPS):
        below, above = b - low, high - b  # the room left
        product = V.T @ b
        residual = c - V @ product - bias + z - w
        gap = float(z @ below + w @ above)
        objective = float(c @ b) - 0.5 * float(product @ product) + gap  # the primal one
        if gap <= precision * abs(objective):
            break
        try:
            system = _System(V, z / below + w / above)
        except LinAlgError:
            break  # rounding: what was reached is a good start all the same

        def direction(
            target: float, second_z: Vector | float, second_w: Vector | float, solve: _System = system
        ) -> tuple[Vector, float, Vector, Vector]:
            """Aim for products of room and multiplier of `target`; the second order is what the last aim left."""
            aim_z, aim_w = (target - second_z) / below - z, (target - second_w) / above - w
            step, change = solve.step(residual + aim_z - aim_w, -float(b.sum()))
            return step, change, aim_z - z * step / below, aim_w + w * step / above

        step, _, step_z, step_w = direction(0.0, 0.0, 0.0)
        reach = _reach(below, above, z, w, step, step_z, step_w)
        after = float((z + reach * step_z) @ (below + reach * step) + (w + reach * step_w) @ (above - reach * step))
        target = (after / gap) ** 3 * gap / (2 * len(rows))
        step, change, step_z, step_w = direction(target, step_z * step, -step_w * step)
        reach = STEP_SHARE * _reach(below, above, z, w, step, step_z, step_w)
        if not np.isfinite(reach) or reach < 1e-8:
            break
        b, bias, z, w = b + reach * step, bias + reach * change, z + reach * step_z, w + reach * step_w
    width = AT_BOUND * (high - low)
    result = np.zeros(len(y))
    result[rows] = np.where(b - low < width, lower[rows], np.where(high - b < width, upper[rows], scale * b))
    return result


class _System:
    """The matrix ``V V' + D``, ready to be solved for."""

    def __init__(self, V: NDArray[np.float64], diagonal: Vector) -> None:
        self.V, self.inverse = V, 1.0 / diagonal
        weighted = V * np.sqrt(self.inverse)[:, np.newaxis]
        small = weighted.T @ weighted
        small[np.diag_indices_from(small)] += 1.0
        self.factor = cho_factor(small, check_finite=False)
        self.of_ones = self.solve(np.ones(len(V)))

    def solve(self, right: Vector) -> Vector:
        plain = self.inverse * right
        return plain - self.inverse * (self.V @ cho_solve(self.factor, self.V.T @ plain, check_finite=False))

    def step(self, right: Vector, total: float) -> tuple[Vector, float]:
        """Return the step whose sum is `total`, and the change of the bias that goes with it."""
        plain = self.solve(right)
        change = (float(plain.sum()) - total) / float(self.of_ones.sum())
        return plain - change * self.of_ones, change


def _reach(
    below: Vector, above: Vector, z: Vector, w: Vector, step: Vector, step_z: Vector, step_w: Vector
) -> float:
    """Return how much of a step can be taken before something becomes negative, at most one."""
    shrinking = max(
        float((-step / below).max()), float((step / above).max()), float((-step_z / z).max()), float((-step_w / w).max())
    )
    return 1.0 if shrinking <= 1.0 else 1.0 / shrinking
