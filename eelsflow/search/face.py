"""Problems with many free weights: which weights are at a bound follows from the solution of the rest, and back.

Noisy spectra leave thousands of weights between their bounds. Pairs and steps that stop at the first bound then need
millions of moves, whereas the primal-dual active set of Hintermueller, Ito & Kunisch (SIAM J. Optim. 13, 865, 2002)
needs some five solutions of a linear system: solve for the free weights, put those beyond a bound on it, free those at
a bound that pull away from it, again. It may go in circles, so it is given up where it does not settle; what it leaves
is feasible and better than what it began with, or as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, lapack, solve_triangular

from eelsflow.search import solver

if TYPE_CHECKING:
    from eelsflow.search.rows import KernelRows

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

LEAST_FREE = 512
"""Free weights from which on a problem is tried: with fewer, pairs are as quick."""

MOST_FREE = 8192
"""Free weights up to which one is: their kernel takes .5 GB, and a second one the same."""

MOST_TURNS = 25
"""Linear systems that one try may take; five to ten are usual."""

SETTLING = 3
"""Turns within which the number of weights on the wrong side must have fallen by a tenth; else it is given up."""

WIDEST = 1 / 3
"""Rows by which a face may differ from a factored one, as a share of it; from there on its own factor is cheaper."""

_STRETCH = 256  # rows of a triangular system that are solved at once


def settle(
    kernel: KernelRows,
    y: Vector,
    lower: Vector,
    upper: Vector,
    b: Vector,
    F: Vector,
    *,
    tolerance: float,
    factor: Factor | None,
) -> tuple[Factor | None, int]:
    """Solve one problem from feasible `b` with ``F = K b``, both changed in place, if that can be done.

    Parameters
    ----------
    kernel
        Its rows.
    y, lower, upper, b, F
        As in `eelsflow.search.rows.SharedKernel.solve`, of one problem, (n,).
    tolerance
        Largest violation.
    factor
        Of a face near that of the solution, if there is one.

    Returns
    -------
    factor, turns
        Of the last face, and the systems solved; None and 0 if it could not be done: `b` and `F` are as they were then.
    """
    trial, values = b.copy(), F.copy()
    free = (lower < trial) & (trial < upper)
    wrong: list[int] = []
    for turn in range(1, MOST_TURNS + 1):
        face = np.flatnonzero(free)
        if factor is None or factor.distance(free) > WIDEST:
            factor = None  # its memory is free before the next takes as much
            factor = Factor.of(kernel, face)
        found = None if factor is None else factor.solve(kernel, free, y[face] - values[face], -trial.sum())
        if found is None:
            return None, 0
        step, bias = found
        trial[face] += step
        kernel.add(values, face, step)
        error = y - values - bias
        over, under = free & (trial > upper), free & (trial < lower)
        slack = 0.25 * tolerance
        pulls = ~free & (((trial < upper) & (error > slack)) | ((trial > lower) & (error < -slack)))
        beyond = np.flatnonzero(over | under)
        wrong.append(beyond.size + int(np.count_nonzero(pulls)))
        if not beyond.size and _violation(error, trial, lower, upper) <= tolerance:
            values[:] = 0.0  # anew, so that what rounding left of weights that went far and came back is gone
            weighs = np.flatnonzero(trial)
            kernel.add(values, weighs, trial[weighs])
            if _violation(y - values, trial, lower, upper) <= tolerance:
                b[:], F[:] = trial, values
                return factor, turn
        if len(wrong) > SETTLING and wrong[-1] > 0.9 * wrong[-1 - SETTLING]:
            return None, 0
        bound = np.where(over[beyond], upper[beyond], lower[beyond])
        kernel.add(values, beyond, bound - trial[beyond])
        trial[beyond] = bound
        free = (free & ~over & ~under) | pulls
        if not LEAST_FREE // 8 <= np.count_nonzero(free) <= kernel.most_dense:
            return None, 0
    return None, 0


def _violation(error: Vector, b: Vector, lower: Vector, upper: Vector) -> float:
    """Return libsvm's measure of what is left; see `eelsflow.search.rows.SharedKernel.solve`."""
    return float(error[b < upper].max(initial=-np.inf) - error[b > lower].min(initial=np.inf))


class Factor:
    """The Cholesky factor of the kernel among some rows, which solves for faces that differ from them in a few.

    Parameters
    ----------
    n
        Rows of the whole kernel.
    rows
        Those factored, ascending.
    lower
        The factor, (n_rows, n_rows).

    Notes
    -----
    A row of the face that is not among those factored borders the system; one that is factored but not of the face is a
    condition, that its weight stays. Either is one more column ``L^-1 c`` and the rest follows from their products: the
    Schur complement. Columns are kept for the next face.
    """

    def __init__(self, n: int, rows: Rows, lower: Matrix) -> None:
        self.n, self.rows, self.lower = n, rows, lower
        self._factored = np.zeros(n, np.bool_)
        self._factored[rows] = True
        self._place = np.full(n, -1)
        self._place[rows] = np.arange(rows.size)
        self._columns = np.empty((rows.size, 0))
        self._column_of = np.full(n, -1)
        self._products = np.empty((0, 0))

    @classmethod
    def of(cls, kernel: KernelRows, rows: Rows) -> Factor | None:
        """Factor the kernel among rows; None where it is not positive definite, or the rows are too many."""
        if not 2 <= rows.size <= kernel.most_dense:
            return None
        block = kernel.block(rows, rows)
        block[np.diag_indices_from(block)] += solver.RIDGE * np.trace(block)
        # the transpose of a C array is a Fortran one: factored in place, as upper there and lower here
        factor, status = lapack.dpotrf(block.T, lower=0, clean=0, overwrite_a=1)
        return None if status else cls(kernel.n, rows, factor.T)

    def fork(self) -> Factor:
        """Return one with the same factor and no columns."""
        return Factor(self.n, self.rows, self.lower)

    def distance(self, free: Mask) -> float:
        """Return by how many rows a face differs from those factored, as a share; those known as columns are free."""
        return float(np.count_nonzero((free != self._factored) & (self._column_of < 0))) / self.rows.size

    def solve(self, kernel: KernelRows, free: Mask, error: Vector, total: float) -> tuple[Vector, float] | None:
        """Return the step of the free weights that makes their errors equal, and that error.

        Parameters
        ----------
        kernel
            Whose rows these are.
        free
            Which rows are of the face, (n,).
        error
            Of the rows of the face, (n_face,).
        total
            What the steps add up to.

        Returns
        -------
        step, bias
            Shape (n_face,), and one number; None where rounding has spoilt the system.
        """
        face = np.flatnonzero(free)
        removed, added = np.flatnonzero(self._factored & ~free), np.flatnonzero(free & ~self._factored)
        self._extend(kernel, np.concatenate([removed, added]))
        first, last = self._column_of[removed], self._column_of[added]
        rhs = np.zeros((self.n, 2))
        rhs[face, 0], rhs[face, 1] = error, 1.0
        t = solve_triangular(self.lower, rhs[self.rows], lower=True, check_finite=False)
        solution = np.zeros((self.n, 2))
        both = np.concatenate([first, last])
        onto = self._columns[:, both].T @ t
        of_removed, of_added = onto[: removed.size], rhs[added] - onto[removed.size :]
        mixed = self._products[np.ix_(first, last)]
        try:
            pinned = _Inverse(self._products[np.ix_(first, first)])
            schur = kernel.block(added, added) - self._products[np.ix_(last, last)] + mixed.T @ pinned(mixed)
            schur[np.diag_indices_from(schur)] += solver.RIDGE * np.trace(schur)
            solution[added] = _Inverse(schur)(of_added + mixed.T @ pinned(of_removed))
        except LinAlgError:
            return None
        weight = np.concatenate([pinned(of_removed - mixed @ solution[added]), solution[added]])
        t -= self._columns[:, both] @ weight
        solution[self.rows] = solve_triangular(self.lower, t, lower=True, trans=1, check_finite=False)
        solution[removed] = 0.0
        to_error, to_one = solution[face].T
        bias = (to_error.sum() - total) / to_one.sum()
        step = to_error - bias * to_one
        return (step, float(bias)) if np.isfinite(step).all() else None

    def _extend(self, kernel: KernelRows, rows: Rows) -> None:
        """Add the columns of rows that have none: a unit vector of a factored one, its kernel with these of another."""
        new = rows[self._column_of[rows] < 0]
        if not new.size:
            return
        factored = self._factored[new]
        right = np.zeros((self.rows.size, new.size))
        right[self._place[new[factored]], np.flatnonzero(factored)] = 1.0
        if not factored.all():
            right[:, ~factored] = kernel.block(new[~factored], self.rows).T
        columns = solve_lower(self.lower, right)
        n = self._columns.shape[1]
        products = np.empty((n + new.size, n + new.size))
        products[:n, :n] = self._products
        products[:n, n:] = self._columns.T @ columns
        products[n:, :n] = products[:n, n:].T
        products[n:, n:] = columns.T @ columns
        self._column_of[new] = np.arange(n, n + new.size)
        self._columns, self._products = np.hstack([self._columns, columns]), products


class _Inverse:
    """What solves with a positive definite matrix, which may be empty."""

    def __init__(self, matrix: Matrix) -> None:
        self._factor = cho_factor(matrix, check_finite=False) if matrix.size else None

    def __call__(self, right: Matrix) -> Matrix:
        return right if self._factor is None else np.asarray(cho_solve(self._factor, right, check_finite=False))


def solve_lower(lower: Matrix, right: Matrix) -> Matrix:
    """Solve ``lower @ out = right`` in place, mostly by products of matrices, beside which other threads may run."""
    for first in range(0, len(lower), _STRETCH):
        rows = slice(first, first + _STRETCH)
        right[rows] -= lower[rows, :first] @ right[:first]
        right[rows] = solve_triangular(lower[rows, rows], right[rows], lower=True, check_finite=False)
    return right
