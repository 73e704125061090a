"""Every C and every fold on one kernel: each solution starts where another one ended."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from eelsflow.search.rows import SharedKernel

TOLERANCE = 1e-3
"""Largest violation of the optimality conditions that is left: libsvm's default."""

MAX_STEPS = 10_000_000
"""Most steps of one fit: where libsvm warns too; some seconds here.

Only kernels that are not positive semidefinite come near it: they may go in circles."""

LARGE_C = 100.0
"""From here on a machine on all rows that no smaller C led to starts where its kernel proposes."""

Vector = NDArray[np.float64]
"""Values of all rows, (n,)."""

Matrix = NDArray[np.float64]
"""Values of all rows for each of several problems, (n_problems, n)."""

ClassWeight = Literal["balanced"] | Mapping[int, float] | None
"""Factors of C: inverse to the frequency of the class, a factor for each class number (else 1), or 1 for all."""


@dataclass(frozen=True)
class Fold:
    """Rows to train on and rows to decide on."""

    train: NDArray[np.intp]
    held_out: NDArray[np.intp]


@dataclass(frozen=True)
class Solution:
    """A machine for one pair of classes.

    Attributes
    ----------
    b
        Weight alpha y of every row, (n,); zero where it is no support vector.
    F
        Decision values of every row without the bias, (n,).
    bias
        To be added to `F`.
    violation
        What is left of it.
    """

    b: Vector
    F: Vector
    bias: float
    violation: float
    n_steps: int

    @property
    def decision(self) -> Vector:
        """Positive for the first class of the pair, (n,)."""
        return self.F + self.bias


@dataclass(frozen=True)
class Fits:
    """What one C gave.

    Attributes
    ----------
    C
        As in scikit-learn's SVC.
    whole
        A solution a pair, on all rows that any fold trains on.
    held_out
        Decision values of the held-out rows of every fold, (n_held_out, n_pairs).
    converged
        Whether each fold met the tolerance, (n_folds,).
    seconds
        Of each fold, with its share of what is done for several, (n_folds,); 0 where a smaller C gave its machine.
    whole_seconds
        Of the machine on all rows, since the last C.
    """

    C: float
    whole: list[Solution]
    held_out: list[Vector]
    converged: NDArray[np.bool_]
    seconds: Vector
    whole_seconds: float


def approach(C: float) -> list[float]:
    """Return what to follow before a single C: powers of ten below it, of which each is a good start for the next.

    >>> approach(2000.0)
    [2.0, 20.0, 200.0]
    """
    return [C / 10.0**power for power in range(int(np.log10(max(C, 1.0))), 0, -1)]


def class_pairs(n_classes: int) -> list[tuple[int, int]]:
    """Return the pairs of classes in libsvm's order; the first is positive, but for two classes the second.

    >>> class_pairs(3)
    [(0, 1), (0, 2), (1, 2)]
    """
    return [(1, 0)] if n_classes == 2 else list(itertools.combinations(range(n_classes), 2))


def class_weights(codes: NDArray[np.integer], n_classes: int, class_weight: ClassWeight) -> Vector:
    """Return the factor of C of each class, (n_classes,).

    >>> class_weights(np.array([0, 0, 0, 1]), 2, "balanced").tolist()
    [0.6666666666666666, 2.0]
    >>> class_weights(np.array([0, 0, 0, 1]), 2, {1: 5.0}).tolist()
    [1.0, 5.0]
    """
    if class_weight is None:
        return np.ones(n_classes)
    if isinstance(class_weight, Mapping):
        return np.array([float(class_weight.get(code, 1.0)) for code in range(n_classes)])
    return len(codes) / (n_classes * np.bincount(codes, minlength=n_classes))


def vote(values: NDArray[np.floating], n_classes: int) -> NDArray[np.intp]:
    """Return the class numbers that decision values of all pairs decide for, (n,), as libsvm does.

    Parameters
    ----------
    values
        Shape (n, n_pairs), in the order of `class_pairs`.
    n_classes
        Two: the sign decides. More: the class that wins most pairs, of equals the first.
    """
    if n_classes == 2:
        return np.asarray(values[:, 0] > 0, dtype=np.intp)
    votes = np.zeros((len(values), n_classes), dtype=np.intp)
    for column, (one, other) in enumerate(class_pairs(n_classes)):
        votes[:, one] += values[:, column] > 0
        votes[:, other] += values[:, column] <= 0
    return np.asarray(votes.argmax(axis=1), dtype=np.intp)


def follow_path(
    rows: SharedKernel,
    codes: NDArray[np.integer],
    values: Sequence[float],
    folds: Sequence[Fold],
    *,
    before: Sequence[float] = (),
    whole: NDArray[np.intp] | None = None,
    class_weight: ClassWeight = "balanced",
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
) -> Iterator[Fits]:
    """Fit every fold for one C after the other, ascending.

    Parameters
    ----------
    rows
        The kernel of all rows.
    codes
        Class numbers 0..n_classes-1, (n,).
    values
        Of C, ascending.
    folds
        See `Fold`.
    before
        Smaller values that the machine of all rows is led through first, as long as that is quick.
    whole
        Rows of the machine that `Fits.whole` holds and folds start from; by default all that any fold trains on.
    class_weight
        ``balanced`` weighs by the frequencies among the training rows of the fold, as scikit-learn does.
    tolerance
        Largest violation.
    max_steps
        Of one fit.

    Notes
    -----
    The machine of all rows is followed along C: its weights grow in proportion as long as some are at their bound. A
    fold starts from it without the rows it holds out, so that few weights have to move.
    """
    n_classes = int(codes.max()) + 1
    pairs = class_pairs(n_classes)
    if whole is None:
        whole = np.unique(np.concatenate([fold.train for fold in folds]))
    problems = [_Problem(rows, codes, pair, whole, n_classes, class_weight) for pair in pairs]
    start = time.perf_counter()
    for problem in problems:
        problem.lead(before, tolerance, max_steps)
    whole_seconds = time.perf_counter() - start
    for C in values:
        held_out = [np.empty((len(fold.held_out), len(pairs))) for fold in folds]
        converged = np.ones(len(folds), dtype=bool)
        seconds = np.zeros(len(folds))
        for column, problem in enumerate(problems):
            start = time.perf_counter()
            problem.advance(C, tolerance, max_steps)
            whole_seconds += time.perf_counter() - start
            for number, (solution, took) in enumerate(problem.leave_out(folds, tolerance, max_steps)):
                held_out[number][:, column] = solution.decision[folds[number].held_out]
                converged[number] &= solution.violation <= tolerance
                seconds[number] += took
            problem.rest()
        yield Fits(C, [problem.solution for problem in problems], held_out, converged, seconds, whole_seconds)
        whole_seconds = 0.0


class _Problem:
    """One pair of classes on one kernel, and its solution for the last C."""

    def __init__(
        self,
        rows: SharedKernel,
        codes: NDArray[np.integer],
        pair: tuple[int, int],
        everything: NDArray[np.intp],
        n_classes: int,
        class_weight: ClassWeight,
    ) -> None:
        self.rows, self.codes, self.pair = rows, codes, pair
        self.n_classes, self.class_weight = n_classes, class_weight
        self.y = np.where(codes == pair[0], 1.0, np.where(codes == pair[1], -1.0, 0.0))
        self.everything = everything
        self.C = 0.0
        self.lower, self.upper = self.bounds(everything, self.C)
        n = len(codes)
        self.solution = Solution(np.zeros(n), np.zeros(n), 0.0, np.inf, 0)
        self._F_positive: Vector | None = None
        self._settled: dict[int, Solution] = {}

    def bounds(self, train: NDArray[np.intp], C: float) -> tuple[Vector, Vector]:
        """Return what each weight may not go below and above, (n,)."""
        weights = class_weights(self.codes[train], self.n_classes, self.class_weight)
        lower, upper = np.zeros(len(self.y)), np.zeros(len(self.y))
        upper[train] = np.where(self.y[train] > 0, C * weights[self.pair[0]], 0.0)
        lower[train] = np.where(self.y[train] < 0, -C * weights[self.pair[1]], 0.0)
        return lower, upper

    def lead(self, values: Sequence[float], tolerance: float, max_steps: int) -> None:
        """Solve on all rows for one C after the other; give up where the kernel has a better start than that."""
        for C in values:
            self.advance(C, tolerance, min(max_steps, self.rows.patience))
            if self.solution.violation > tolerance and self.rows.patience < max_steps:
                self.C, self.solution = 0.0, Solution(np.zeros(len(self.y)), np.zeros(len(self.y)), 0.0, np.inf, 0)
                return

    def advance(self, C: float, tolerance: float, max_steps: int) -> None:
        """Solve on all rows for a larger C."""
        lower, upper = self.bounds(self.everything, C)
        b, F = self.solution.b.copy(), self.solution.F.copy()
        if self.C > 0:
            at_lower, at_upper = b == self.lower, b == self.upper
            at_bound = (at_lower | at_upper) & (b != 0)
            if at_bound.any():
                b *= C / self.C
                F *= C / self.C
                b[at_bound & at_upper], b[at_bound & at_lower] = upper[at_bound & at_upper], lower[at_bound & at_lower]
        elif C >= LARGE_C:
            b = self.rows.start(self.y, lower, upper)
            weighs = np.flatnonzero(b)
            self.rows.add(F, weighs, b[weighs])
            self._balance(b, F, lower, upper)
        self.C, self.lower, self.upper = C, lower, upper
        (self.solution,), _ = self._solve(
            lower[np.newaxis], upper[np.newaxis], b[np.newaxis], F[np.newaxis], tolerance, max_steps
        )

    def positive_part(self) -> Vector:
        """Return what the positive weights add to the decision values: folds weigh the two classes differently."""
        if self._F_positive is None:
            positive = np.flatnonzero(self.solution.b > 0)
            self._F_positive = np.zeros(len(self.y))
            self.rows.add(self._F_positive, positive, self.solution.b[positive])
        return self._F_positive

    def leave_out(self, folds: Sequence[Fold], tolerance: float, max_steps: int) -> list[tuple[Solution, float]]:
        """Solve on each fold's training rows, from the solution on all rows; return solutions and their seconds."""
        numbers = [number for number in range(len(folds)) if number not in self._settled]
        seconds = np.zeros(len(folds))
        lower, upper, b, F = np.zeros((4, len(numbers), len(self.y)))
        for place, number in enumerate(numbers):
            start = time.perf_counter()
            lower[place], upper[place] = self.bounds(folds[number].train, self.C)
            b[place], F[place] = self._without(lower[place], upper[place])
            seconds[number] = time.perf_counter() - start
        solutions, took = self._solve(lower, upper, b, F, tolerance, max_steps)
        seconds[numbers] += took
        found = {**self._settled, **dict(zip(numbers, solutions, strict=True))}
        for place, number in enumerate(numbers):
            solution = solutions[place]
            at_bound = (solution.b != 0) & ((solution.b == lower[place]) | (solution.b == upper[place]))
            if solution.violation <= tolerance and not at_bound.any():
                # No bound is felt, so no larger C changes it. A copy, which does not keep all folds in memory.
                self._settled[number] = replace(solution, b=solution.b.copy(), F=solution.F.copy())
        return [(found[number], float(seconds[number])) for number in range(len(folds))]

    def _without(self, lower: Vector, upper: Vector) -> tuple[Vector, Vector]:
        """Return feasible weights and decision values of a fold with these bounds, from the solution on all rows."""
        whole = self.solution
        # The weights of the classes differ a little from fold to fold, and the bounds with them.
        growth_up = _ratio(upper.max(), self.upper.max())
        growth_down = _ratio(lower.min(), self.lower.min())
        b = np.where(whole.b > 0, growth_up * whole.b, growth_down * whole.b)
        at_upper, at_lower = (whole.b == self.upper) & (whole.b > 0), (whole.b == self.lower) & (whole.b < 0)
        positive = self.positive_part()
        F = growth_up * positive + growth_down * (whole.F - positive)
        outside = np.flatnonzero((b != 0) & (lower == upper))
        self.rows.add(F, outside, -b[outside])
        b[outside] = 0.0
        b = np.where(at_upper, upper, np.where(at_lower, lower, b))
        self._balance(b, F, lower, upper)
        return b, F

    def rest(self) -> None:
        """Forget what only the folds of the last C needed."""
        self._F_positive = None

    def _balance(self, b: Vector, F: Vector, lower: Vector, upper: Vector) -> None:
        """Bring the sum of the weights back to zero by moving those that want to move most, in place."""
        excess = float(b.sum())
        error = self.y - F
        if excess > 0:
            movable = np.flatnonzero(b > lower)
            order = movable[np.argsort(error[movable], kind="stable")]
            room, bound = b[order] - lower[order], lower
        else:
            movable = np.flatnonzero(b < upper)
            order = movable[np.argsort(-error[movable], kind="stable")]
            room, bound = upper[order] - b[order], upper
        moved = np.diff(np.minimum(np.cumsum(room), abs(excess)), prepend=0.0)
        last = int(np.searchsorted(np.cumsum(room), abs(excess))) + 1
        order, moved, room = order[:last], moved[:last], room[:last]
        steps = -np.sign(excess) * moved
        b[order] = np.where(moved >= room, bound[order], b[order] + steps)
        self.rows.add(F, order, steps)

    def _solve(
        self, lower: Matrix, upper: Matrix, b: Matrix, F: Matrix, tolerance: float, max_steps: int
    ) -> tuple[list[Solution], Vector]:
        """Solve problems that differ in their bounds; return their solutions and the seconds of each."""
        found = self.rows.solve(self.y, lower, upper, b, F, tolerance=tolerance, max_steps=max_steps)
        solutions = [
            Solution(b[p], F[p], self._bias(b[p], F[p], lower[p], upper[p]), float(violation), int(n_steps))
            for p, (violation, n_steps) in enumerate(zip(*found[:2], strict=True))
        ]
        return solutions, found[2]

    def _bias(self, b: Vector, F: Vector, lower: Vector, upper: Vector) -> float:
        """Return the mean error of the free rows or, if there are none, the middle of what is as good; as libsvm does.

        Without a free row every bias between two values is optimal. It happens at small C, where all weights reach
        their bounds; libsvm then often takes a weight that rounding left a hair from its bound for a free one.
        """
        rises, falls = b < upper, b > lower
        error = self.y - F
        if (rises & falls).any():
            return float(error[rises & falls].mean())
        ends = [error[rises].max()] if rises.any() else []
        ends += [error[falls].min()] if falls.any() else []
        return float(np.mean(ends))


def _ratio(value: float, reference: float) -> float:
    return float(value / reference) if reference else 1.0
