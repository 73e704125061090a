"""A linear machine by an interior point: its time does not grow with C.

Steps along the face, as `eelsflow.search.solver` takes them, meet many bounds one after the other when C is large and
the classes overlap. The interior point goes past all of them at once: some tens of solutions of a system that has as
many unknowns as the spectra have independent channels, however many spectra there are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Vector = NDArray[np.float64]

MOST_STEPS = 100
STEP_SHARE = 0.995
"""Of the way to the nearest bound; the rest keeps every variable inside."""

LEAST_REACH = 1e-8
"""A step of which less can be taken leads nowhere: rounding has spoilt its direction."""

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
        Spectra by `eelsflow.search.gram.independent_channels`, (n, rank): uncorrelated channels.
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
    V = np.ascontiguousarray(X[rows][:, size > LEAST_SHARE * size.max()])
    point = _Point(V, y[rows] / scale, lower[rows] / scale, upper[rows] / scale)
    for _ in range(MOST_STEPS):
        gap = point.gap()
        if gap <= precision * abs(point.dual() + gap):
            break
        try:
            system = _System(V, point.z / point.below + point.w / point.above)
        except LinAlgError:
            break  # rounding: what was reached is a good start all the same
        straight = point.direction(system, 0.0)
        after = point.gap(straight, point.reach(straight))
        target = (after / gap) ** 3 * gap / (2 * len(rows))
        step = point.direction(system, target, straight)
        reach = STEP_SHARE * point.reach(step)
        if not np.isfinite(reach) or reach < LEAST_REACH:
            break
        point = point.moved(step, reach)
    width = AT_BOUND * (point.high - point.low)
    result = np.zeros(len(y))
    result[rows] = np.where(
        point.below < width, lower[rows], np.where(point.above < width, upper[rows], scale * point.b)
    )
    return result


class _Step(NamedTuple):
    b: Vector
    bias: float
    z: Vector
    w: Vector


class _Point:
    """Weights strictly inside their bounds, the bias, and a positive multiplier of either bound of each weight.

    At the optimum ``V V' b - c + bias - z + w = 0`` and ``sum b = 0``, and every multiplier times the room that is left
    at its bound vanishes.
    """

    def __init__(self, V: NDArray[np.float64], c: Vector, low: Vector, high: Vector, at: _Step | None = None) -> None:
        self.V, self.c, self.low, self.high = V, c, low, high
        if at is None:
            b = 0.1 * (low + high)  # one of the two is zero
            error = c - V @ (V.T @ b)
            bias = float(np.median(error))
            # The multipliers of the two bounds differ by the error that is left; both start above zero.
            spare = float(np.abs(error - bias).mean())
            at = _Step(b, bias, np.maximum(bias - error, 0.0) + spare, np.maximum(error - bias, 0.0) + spare)
        self.b, self.bias, self.z, self.w = at
        self.below, self.above = self.b - low, high - self.b  # the room left
        self.product = V.T @ self.b
        self.residual = c - V @ self.product - self.bias + self.z - self.w

    def gap(self, step: _Step | None = None, reach: float = 0.0) -> float:
        """Return the primal less the dual objective, if all equations hold; here or after a share of a step."""
        if step is None:
            return float(self.z @ self.below + self.w @ self.above)
        below, above = self.below + reach * step.b, self.above - reach * step.b
        return float((self.z + reach * step.z) @ below + (self.w + reach * step.w) @ above)

    def dual(self) -> float:
        """Return the dual objective."""
        return float(self.c @ self.b) - 0.5 * float(self.product @ self.product)

    def direction(self, system: _System, target: float, last: _Step | None = None) -> _Step:
        """Aim for products of room and multiplier of `target`, less the second order of the last aim's step."""
        second_z, second_w = (last.z * last.b, -last.w * last.b) if last else (0.0, 0.0)
        aim_z, aim_w = (target - second_z) / self.below - self.z, (target - second_w) / self.above - self.w
        step, change = system.step(self.residual + aim_z - aim_w, -float(self.b.sum()))
        return _Step(step, change, aim_z - self.z * step / self.below, aim_w + self.w * step / self.above)

    def reach(self, step: _Step) -> float:
        """Return how much of a step can be taken before something becomes negative, at most one."""
        ratios = (-step.b / self.below, step.b / self.above, -step.z / self.z, -step.w / self.w)
        return 1.0 / max(1.0, *(float(ratio.max()) for ratio in ratios))

    def moved(self, step: _Step, reach: float) -> _Point:
        """Return the point after a share of a step."""
        to = _Step(
            self.b + reach * step.b,
            self.bias + reach * step.bias,
            self.z + reach * step.z,
            self.w + reach * step.w,
        )
        return _Point(self.V, self.c, self.low, self.high, to)


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
