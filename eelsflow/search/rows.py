"""The kernel of a search: what of its matrix is needed, shared by all problems solved on it."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.search import face, solver
from eelsflow.search.face import LEAST_FREE, Factor, settle
from eelsflow.search.interior import approach_inside

MAX_ROW_BYTES = 1 << 30
"""Memory for rows of one kernel. Beyond it they are computed again; a row of 10,000 spectra takes 80 kB and 50 us."""

MOST_FREE = 6000
"""Free variables that are worked on at once: their kernel and its factor take up to .9 GB, if ever so many are free.

Fewer would do in turn what is done at once here, and for narrow kernels take ten times as long."""

VIOLATORS = 64
"""Variables at each end of the violation that join a working set."""

SAME_FACE = 0.05
"""Share of a factored face by which another may differ to be solved with the same factor to begin with."""

STALE = 1.25
"""Rows that a working set may keep from those before, as a multiple of the rows wanted."""

PATIENCE = 4
"""Steps a row: classes that overlap little take a fraction of one, others a hundred."""

ROWS_AT_ONCE = 64
"""Rows computed in one go: 5 MB for 10,000 spectra, which stay in the processor's cache."""


def open_kernel(
    products: NDArray[np.float64], kernel: str, params: Mapping[str, float], *, from_spectra: bool
) -> SharedKernel:
    """Return what solves problems on a kernel, from what `eelsflow.search.gram.save_products` wrote."""
    if kernel == "linear" and from_spectra:
        return LinearKernel(products)
    return KernelRows(products, kernel, params, from_spectra=from_spectra)


class SharedKernel(ABC):
    """A kernel of n rows.

    Parameters
    ----------
    n
        Number of rows.
    patience
        Steps after which a machine that is only to lead to another is given up for what `start` proposes.
    """

    def __init__(self, n: int, *, patience: int = sys.maxsize) -> None:
        self.n = n
        self.patience = patience
        self.most_rows = min(n, MOST_FREE + 2 * VIOLATORS)
        self.many_free = sys.maxsize

    @abstractmethod
    def working_set(self, wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return rows that hold those wanted, at most `most_rows`, and the kernel among them in its first columns."""

    @abstractmethod
    def add(self, F: NDArray[np.float64], rows: NDArray[np.integer[Any]], steps: NDArray[np.float64]) -> None:
        """Add ``steps @ K[rows]`` to `F`: (n_problems, n), from steps (n_problems, n_rows), or one problem's (n,)."""

    def start(
        self, y: NDArray[np.float64], lower: NDArray[np.float64], upper: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return weights, (n,), from which to begin a problem with large bounds: near its optimum, if that is cheap."""
        return np.zeros(self.n)

    def settle(
        self,
        y: NDArray[np.float64],
        lower: NDArray[np.float64],
        upper: NDArray[np.float64],
        b: NDArray[np.float64],
        F: NDArray[np.float64],
        *,
        tolerance: float,
        problems: Sequence[int],
    ) -> NDArray[np.int64]:
        """Solve some problems of `solve`, which have many free weights; return the steps of each, 0 if in vain."""
        return np.zeros(len(problems), np.int64)

    def solve(
        self,
        y: NDArray[np.float64],
        lower: NDArray[np.float64],
        upper: NDArray[np.float64],
        b: NDArray[np.float64],
        F: NDArray[np.float64],
        *,
        tolerance: float,
        max_steps: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """Solve dual problems that differ in their bounds, from feasible `b` with ``F = b @ K``, changed in place.

        Parameters
        ----------
        y
            What all have in common, (n,).
        lower, upper, b, F
            Of each problem, (n_problems, n).
        tolerance
            Largest violation.
        max_steps
            Of each problem.

        Returns
        -------
        violation, n_steps, seconds
            Of each problem, (n_problems,). The violation is libsvm's measure of what is left: the largest error y - F
            of a row that may rise less the smallest of one that may fall. Steps are pairs and Newton steps. Seconds are
            a problem's own and its share of what is done for several.

        Notes
        -----
        Problems take turns on one working set, which holds what any of them wants. What their steps change elsewhere is
        added up for all at once: mostly the same rows move, and reading them is what takes the time. Where the rows
        they want are too many for one working set, they are solved one after the other.
        """
        n_problems = len(b)
        violation, n_steps = np.zeros(n_problems), np.zeros(n_problems, np.int64)
        seconds, steps = np.zeros(n_problems), np.zeros((n_problems, self.n))
        done = np.zeros(n_problems, np.bool_)
        while True:
            start = time.perf_counter()
            wanted, many = {}, []
            for p in range(n_problems):
                error = y - F[p]
                rises, falls = b[p] < upper[p], b[p] > lower[p]
                highest = error[rises].max() if rises.any() else -np.inf
                lowest = error[falls].min() if falls.any() else np.inf
                violation[p] = max(highest - lowest, 0.0)
                if violation[p] > tolerance and n_steps[p] < max_steps:
                    wanted[p] = _choose(error, rises, falls, highest, lowest)
                    if not done[p] and np.count_nonzero(rises & falls) >= self.many_free:
                        many.append(p)
            if many:
                turns = self.settle(y, lower, upper, b, F, tolerance=tolerance, problems=many)
                n_steps[many] += turns
                done[many] = turns > 0
                seconds[many] += (time.perf_counter() - start) / len(many)
                continue
            if not wanted:
                seconds += (time.perf_counter() - start) / max(n_problems, 1)
                return violation, n_steps, seconds
            together = np.unique(np.concatenate(list(wanted.values())))
            if together.size > self.most_rows:
                for p in wanted:
                    alone = slice(p, p + 1)
                    found = self.solve(
                        y, lower[alone], upper[alone], b[alone], F[alone],
                        tolerance=tolerance, max_steps=max_steps - int(n_steps[p]),
                    )  # fmt: skip
                    violation[alone] = found[0]
                    n_steps[alone] += found[1]
                    seconds[alone] += found[2]
                return violation, n_steps, seconds
            rows, block = self.working_set(together)
            for p in wanted:
                begun = time.perf_counter()
                moved = b[p, rows]
                n_steps[p] += solver.solve_block(
                    block,
                    y[rows] - F[p, rows],
                    moved,
                    lower[p, rows],
                    upper[p, rows],
                    max(0.5 * tolerance, 0.002 * violation[p]),
                    max_steps - n_steps[p],
                )
                steps[p, rows] = moved - b[p, rows]
                b[p, rows] = moved
                took = time.perf_counter() - begun
                seconds[p] += took
                start += took
            changed = np.flatnonzero(steps.any(axis=0))
            self.add(F, changed, steps[:, changed])
            steps[:, changed] = 0.0
            seconds[list(wanted)] += (time.perf_counter() - start) / len(wanted)


class LinearKernel(SharedKernel):
    """Products of spectra, which are quicker computed than looked up.

    Parameters
    ----------
    spectra
        (n, n_channels). Memory-mapped is fine; not modified.
    """

    def __init__(self, spectra: NDArray[np.float64]) -> None:
        self.spectra = np.ascontiguousarray(spectra, dtype=np.float64)
        n = len(self.spectra)
        super().__init__(n, patience=PATIENCE * n)

    def working_set(self, wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the rows wanted and the kernel among them, (n_rows, n_rows)."""
        some = self.spectra[wanted]
        return wanted, some @ some.T

    def add(self, F: NDArray[np.float64], rows: NDArray[np.integer[Any]], steps: NDArray[np.float64]) -> None:
        """Add ``steps @ K[rows]`` to `F`, of one problem or several."""
        if rows.size:
            F += steps @ self.spectra[rows] @ self.spectra.T

    def start(
        self, y: NDArray[np.float64], lower: NDArray[np.float64], upper: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return weights from an interior point, (n,)."""
        return approach_inside(self.spectra, y, lower, upper)


class KernelRows(SharedKernel):
    """A kernel with its rows as far as they were needed.

    Parameters
    ----------
    products
        Squared distances for ``rbf``, else scalar products, (n, n); or the spectra themselves, (n, n_channels), from
        which blocks of rows are then computed. Memory-mapped is fine; not modified.
    kernel, params
        As in scikit-learn's SVC: ``gamma`` and ``coef0``, as far as the kernel has them.
    from_spectra
        Whether `products` are spectra.
    max_bytes
        Memory for rows.
    """

    def __init__(
        self,
        products: NDArray[np.float64],
        kernel: str,
        params: Mapping[str, float],
        *,
        from_spectra: bool = False,
        max_bytes: int = MAX_ROW_BYTES,
    ) -> None:
        products = np.ascontiguousarray(products, dtype=np.float64)
        n = len(products)
        super().__init__(n)
        capacity = min(n, max(self.most_rows, max_bytes // (8 * n)))
        squares = np.einsum("ij,ij->i", products, products) if from_spectra else np.empty(0)
        self.kernel = kernel
        self._gamma, self._coef0 = params.get("gamma", 1.0), params.get("coef0", 0.0)
        self._products, self._squares = products, squares
        self._cache = np.empty((capacity, n))
        self._slot = np.full(n, -1, np.int64)
        self._n_cached = 0
        self._block = np.empty((self.most_rows, self.most_rows))
        self.many_free, self.most_dense = LEAST_FREE, min(capacity, face.MOST_FREE)
        self._factor: Factor | None = None
        self._members = np.empty(0, np.int64)
        self._is_member, self._is_wanted = np.zeros(n, np.bool_), np.zeros(n, np.bool_)

    def block(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the kernel of some rows with others, (n_rows, n_columns)."""
        out = np.empty((rows.size, columns.size))
        solver.gather_block(out, self._cache, self.fill(rows), columns)
        return out

    def settle(
        self,
        y: NDArray[np.float64],
        lower: NDArray[np.float64],
        upper: NDArray[np.float64],
        b: NDArray[np.float64],
        F: NDArray[np.float64],
        *,
        tolerance: float,
        problems: Sequence[int],
    ) -> NDArray[np.int64]:
        """Solve some problems of `solve`, which have many free weights; return the steps of each, 0 if in vain.

        The factor of a face that most of them share is the start of each, and kept for the next C. Where a problem does
        not settle, none is tried again on this kernel before it has twice as many free weights.
        """
        free = (lower < b) & (b < upper)
        shared = 2 * np.count_nonzero(free[problems], axis=0) >= len(problems)
        if self._factor is None or self._factor.distance(shared) > SAME_FACE:
            self._factor = None  # its memory is free before the next takes as much
            self._factor = Factor.of(self, np.flatnonzero(shared))
        turns = np.zeros(len(problems), np.int64)
        for number, p in enumerate(problems):
            n_free = int(np.count_nonzero(free[p]))
            if n_free < self.many_free:
                continue
            factor = None if self._factor is None else self._factor.fork()
            last, turns[number] = settle(self, y, lower[p], upper[p], b[p], F[p], tolerance=tolerance, factor=factor)
            if last is None:
                self.many_free = 2 * n_free
            elif len(problems) == 1:
                self._factor = last.fork()
        return turns

    def working_set(self, wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return rows that hold those wanted, and the kernel among them in the first columns.

        The kernel is kept: the rows of one working set are mostly those of the last, for the next C as well.
        """
        new = wanted[~self._is_member[wanted]]
        if self._members.size + new.size > min(self.most_rows, int(STALE * wanted.size) + VIOLATORS):
            self._is_wanted[wanted] = True
            kept = np.flatnonzero(self._is_wanted[self._members])
            self._is_wanted[wanted] = False
            solver.shrink_block(self._block, kept)
            self._is_member[self._members] = False
            self._members = self._members[kept]
            self._is_member[self._members] = True
        if new.size:
            slots, first = self.fill(new), self._members.size
            self._members = np.concatenate([self._members, new])
            self._is_member[new] = True
            solver.border_block(self._block, self._cache, slots, self._members, first)
        return self._members, self._block

    def fill(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Compute the rows that are missing and return where in the cache all of them are, (n_wanted,).

        A full cache is emptied first; at most as many rows as it holds may be wanted.
        """
        missing = wanted[self._slot[wanted] < 0]
        if self._n_cached + missing.size > len(self._cache):
            self._slot[:] = -1
            self._n_cached, missing = 0, wanted
        for first in range(0, missing.size, ROWS_AT_ONCE):
            rows = missing[first : first + ROWS_AT_ONCE]
            place = slice(self._n_cached, self._n_cached + rows.size)
            self._compute(rows, self._cache[place])
            self._slot[rows] = np.arange(place.start, place.stop)
            self._n_cached = place.stop
        return self._slot[wanted]

    def _compute(self, rows: NDArray[np.int64], out: NDArray[np.float64]) -> None:
        if self._squares.size:
            np.matmul(self._products[rows], self._products.T, out=out)
            if self.kernel == "rbf":
                out *= -2.0
                out += self._squares
                out += self._squares[rows, np.newaxis]
                np.maximum(out, 0.0, out=out)
        else:
            np.take(self._products, rows, axis=0, out=out)
        if self.kernel == "rbf":
            out *= -self._gamma
            np.exp(out, out=out)
        elif self.kernel == "sigmoid":
            out *= self._gamma
            out += self._coef0
            np.tanh(out, out=out)

    def add(self, F: NDArray[np.float64], rows: NDArray[np.integer[Any]], steps: NDArray[np.float64]) -> None:
        """Add ``steps @ K[rows]`` to `F`, of one problem or several."""
        moved = np.flatnonzero(np.atleast_2d(steps).any(axis=0))
        wanted, steps = np.asarray(rows[moved], dtype=np.int64), np.atleast_2d(steps)[:, moved]
        for first in range(0, wanted.size, MOST_FREE):
            part = slice(first, first + MOST_FREE)
            solver.add_rows(
                np.atleast_2d(F), self._cache, self.fill(wanted[part]), np.ascontiguousarray(steps[:, part])
            )


def _choose(
    error: NDArray[np.float64], rises: NDArray[np.bool_], falls: NDArray[np.bool_], highest: float, lowest: float
) -> NDArray[np.int64]:
    """Return the rows to work on, ascending: the free ones and, of the rest, those that violate most."""
    free = np.flatnonzero(rises & falls)
    if free.size > MOST_FREE:
        # The middle of the free face is as good as solved; the ends are not.
        distance = np.abs(error[free] - 0.5 * (highest + lowest))
        free = free[np.argpartition(-distance, MOST_FREE)[:MOST_FREE]]
    up = np.flatnonzero(rises & ~falls & (error > lowest))
    down = np.flatnonzero(falls & ~rises & (error < highest))
    if up.size > VIOLATORS:
        up = up[np.argpartition(-error[up], VIOLATORS)[:VIOLATORS]]
    if down.size > VIOLATORS:
        down = down[np.argpartition(error[down], VIOLATORS)[:VIOLATORS]]
    return np.sort(np.concatenate([free, up, down]))
