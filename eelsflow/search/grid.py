"""Grid search with cross-validation: exact machines, found together rather than one after the other.

The work is cut into one job or two a kernel; a job follows all C on its kernel, see
`eelsflow.search.path`. Gradient descent, which has no kernel, is one job a half of the folds, done by scikit-learn.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eelsflow.errors import DataSetError
from eelsflow.executors import Executor
from eelsflow.search.gram import save_array, save_products

if TYPE_CHECKING:
    from eelsflow.search.path import ClassWeight

Learner = Literal["linear", "rbf", "sigmoid", "sgd"]
Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]
"""Rows to train on and rows to validate on, one pair a fold."""

AXES: dict[str, tuple[str, ...]] = {
    "linear": ("C",),
    "rbf": ("C", "gamma"),
    "sigmoid": ("C", "gamma", "coef0"),
    "sgd": ("alpha",),
}
"""The parameters of each learner. The first is looped over inside a job, which keeps the kernel of the others."""

MAX_PASSES = 10_000  # of gradient descent over the spectra; it stops by itself after some hundred at most

MOST_STEPS_BEYOND = 8
"""Values that are added to a grid whose optimum lies on its edge: four decades of most grids (ours)."""

FEW_KERNELS = 8
"""Up to so many kernels, each is two jobs of half of the folds.

Two jobs are balanced better by two workers, but each finds the machine on all rows for itself. More kernels are one
job each: the largest gamma of a grid takes a third of the time, so a single search keeps three workers busy. How it is
cut does not depend on the workers, so that its numbers do not either.
"""


@dataclass(frozen=True)
class BestCell:
    """The cell of a grid with the highest accuracy averaged over folds.

    Attributes
    ----------
    params
        Parameter -> value.
    mean_accuracy
        0-1, the mean over the folds.
    on_edge
        Parameters whose best value is the first or last of several: the optimum may lie outside the grid.
    """

    params: dict[str, float]
    mean_accuracy: float
    on_edge: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    """One kernel and some of the folds for one worker; small to send, because the arrays are files."""

    learner: Learner
    matrix: Path  # the products of the kernels, or the spectra for "sgd"
    from_spectra: bool
    labels: Path
    folds: tuple[Path, ...]
    values: tuple[float, ...]  # of the parameter looped over inside
    others: tuple[float, ...]  # values of the other parameters
    class_weight: ClassWeight
    seed: int


def search_grid(
    X: ArrayLike,
    y: ArrayLike,
    *,
    kernel: Learner,
    grid: Mapping[str, Sequence[float]],
    folds: Folds,
    executor: Executor,
    scratch: Path,
    class_weight: ClassWeight = "balanced",
    seed: int = 0,
) -> xr.Dataset:
    """Score every cell of a grid on every fold.

    Parameters
    ----------
    X
        Training spectra, (n_spectra, n_channels). Not modified.
    y
        Their classes, (n_spectra,).
    kernel
        Of the support vector machine; ``sgd`` is the linear machine fitted by stochastic gradient descent.
    grid
        Parameter -> values, for each of `AXES[kernel]`.
    folds
        Rows to train on and rows to validate on. Rows may be left out; a row may be validated in several folds.
    executor
        Runs one job or two a kernel.
    scratch
        Directory for the products that all kernels share (8 n_spectra^2 bytes, at most
        `eelsflow.search.gram.MAX_PRODUCT_BYTES`); every worker must see it. Searches over the same spectra share it.
    class_weight
        As in scikit-learn; a mapping is keyed by the number of the class among the sorted classes. The default weighs
        classes by their inverse frequency in the fold's training rows.
    seed
        Of the order in which gradient descent takes the spectra; the kernels draw nothing at random.

    Returns
    -------
    xarray.Dataset
        ``accuracy`` (0-1), ``fit_seconds`` (0 where a smaller C has given the machine of this one already) and
        ``converged`` (whether the fit met libsvm's tolerance; only kernels that are not positive semidefinite may fail
        to), over the parameters and ``fold``. Values ascend. The attribute ``rows_from`` says whether rows of kernels
        came from the products of all spectra or, past the limit of memory, from the spectra.

    Raises
    ------
    DataSetError
        If the grid does not fit the kernel, or a fold cannot be trained or scored on.

    Notes
    -----
    The folds share one kernel matrix, so whatever was fitted to make `X` has seen the validation rows: a slight
    optimism inside the search, none in the test score.
    """
    axes = AXES[kernel]
    if set(grid) != set(axes) or not all(len(values) for values in grid.values()):
        raise DataSetError(f"the grid of {kernel} names {sorted(grid)}; it needs values for each of {', '.join(axes)}")
    labels = np.unique(np.asarray(y), return_inverse=True)[1].astype(np.int32)
    spectra = np.asarray(X)
    check_folds(folds, labels)
    values = {name: tuple(sorted({float(value) for value in grid[name]})) for name in axes}
    kernels = list(itertools.product(*(values[name] for name in axes[1:])))
    if kernel == "sgd":
        matrix, from_spectra = save_array(spectra, scratch, name="spectra"), True
    else:
        products = save_products(spectra, kernel, scratch)
        matrix, from_spectra = products.path, products.from_spectra
    files = save_folds(folds, scratch)
    n_folds = len(folds)
    n_groups = min(2, n_folds) if len(kernels) <= FEW_KERNELS else 1
    # Kernels of a large gamma take longest: they go first, so that no worker is left alone with one at the end.
    order = [
        (number, slice(first, None, n_groups)) for number in reversed(range(len(kernels))) for first in range(n_groups)
    ]
    jobs = [
        _Job(
            learner=kernel,
            matrix=matrix,
            from_spectra=from_spectra,
            labels=save_array(labels, scratch, name="labels"),
            folds=tuple(files[group]),
            values=values[axes[0]],
            others=kernels[number],
            class_weight=class_weight,
            seed=seed,
        )
        for number, group in order
    ]
    results = executor.map(_run_job, jobs, label=f"search-{kernel}")

    n_values = len(values[axes[0]])
    table = np.empty((len(kernels), n_folds, n_values, 3))
    for (number, group), result in zip(order, results, strict=True):
        table[number, group] = result
    # (other parameters..., fold, first parameter, what) -> (first parameter, other parameters..., fold)
    shape = tuple(len(values[name]) for name in axes[1:])
    table = np.moveaxis(table.reshape(*shape, n_folds, n_values, 3), -2, 0)
    dims = (*axes, "fold")
    return xr.Dataset(
        {
            "accuracy": (dims, table[..., 0]),
            "fit_seconds": (dims, table[..., 1], {"units": "s"}),
            "converged": (dims, table[..., 2].astype(bool)),
        },
        coords={**{name: list(values[name]) for name in axes}, "fold": np.arange(n_folds)},
        attrs={
            "kernel": kernel,
            "class_weight": str(class_weight),
            "n_spectra": len(labels),
            "rows_from": "spectra" if from_spectra else "products of all spectra",
        },
    )


def search_beyond(X: ArrayLike, y: ArrayLike, *, grid: Mapping[str, Sequence[float]], **options: Any) -> xr.Dataset:
    """Score a grid, and go on beyond it as long as the best cell is the last of a parameter.

    Parameters
    ----------
    X, y, grid, options
        As for `search_grid`.

    Returns
    -------
    xarray.Dataset
        As `search_grid` returns it, over more values. Each step adds the next value of one parameter, for all values of
        the others, at most `MOST_STEPS_BEYOND` times.
    """
    scores = search_grid(X, y, grid=grid, **options)
    for _ in range(MOST_STEPS_BEYOND):
        best = best_cell(scores)
        steps = ((name, _next_value(scores[name].values, best.params[name])) for name in best.on_edge)
        found = next(((name, value) for name, value in steps if value is not None), None)
        if found is None:
            break
        name, value = found
        stripe = {str(axis): scores[axis].values.tolist() for axis in scores["accuracy"].dims if axis != "fold"}
        more = search_grid(X, y, grid={**stripe, name: [value]}, **options)
        scores = xr.concat([scores, more], dim=name, combine_attrs="override").sortby(name)
    return scores


def _next_value(values: NDArray[np.float64], best: float) -> float | None:
    """Return what follows the best value, the first or the last of several, in equal ratios; None without a ratio.

    >>> _next_value(np.array([1.0, 10.0, 100.0]), 100.0)
    1000.0
    >>> _next_value(np.array([1.0, 10.0, 100.0]), 1.0)
    0.1
    """
    first, second = (values[-1], values[-2]) if best == values[-1] else (values[0], values[1])
    if first <= 0 or second <= 0:
        return None
    return float(f"{first * first / second:.12g}")


def save_folds(folds: Folds, scratch: Path) -> list[Path]:
    """Write each fold as one array: the number of its training rows, these, and the rows it holds out."""
    return [
        save_array(np.concatenate(([len(train)], train, held_out)), scratch, name="fold") for train, held_out in folds
    ]


def load_fold(path: Path) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Read the training rows and the rows held out, as `save_folds` wrote them."""
    stored = np.load(path)
    return stored[1 : 1 + stored[0]], stored[1 + stored[0] :]


def check_folds(folds: Folds, labels: NDArray[np.integer]) -> None:
    """Refuse folds that a classifier cannot be trained or scored on.

    Raises
    ------
    DataSetError
        If there is no fold, or one validates on nothing, on its own training rows, or trains on too few classes.
    """
    n_classes = len(np.unique(labels))
    if n_classes < 2:
        raise DataSetError(f"the training spectra are all of {n_classes} class; a classifier needs two or more")
    if not folds:
        raise DataSetError("there are no folds; the search and the confidence of an SVM need at least one")
    for number, (train, validation) in enumerate(folds):
        if len(validation) == 0:
            raise DataSetError(f"fold {number} has no spectra to validate on; use fewer folds")
        if np.intersect1d(train, validation).size:
            raise DataSetError(f"fold {number} validates on spectra that it trains on; its accuracy would mean nothing")
        if len(np.unique(labels[train])) < n_classes:
            raise DataSetError(
                f"fold {number} trains on {len(np.unique(labels[train]))} of {n_classes} classes; every class must be "
                "in the training rows of every fold: use fewer folds or more groups of the rare class"
            )


def _run_job(job: _Job) -> NDArray[np.float64]:
    """Return accuracy, seconds and whether the fit converged, (n_folds, n_values, 3)."""
    matrix, labels = np.load(job.matrix, mmap_mode="r"), np.load(job.labels)
    folds = [load_fold(path) for path in job.folds]
    if job.learner == "sgd":
        return np.array([[_descend(job, matrix, labels, *fold, alpha) for alpha in job.values] for fold in folds])
    from eelsflow.search.path import Fold, follow_path, vote
    from eelsflow.search.rows import open_kernel

    params = dict(zip(AXES[job.learner][1:], job.others, strict=True))
    rows = open_kernel(matrix, job.learner, params, from_spectra=job.from_spectra)
    table = np.empty((len(folds), len(job.values), 3))
    parts = [Fold(train, held_out) for train, held_out in folds]
    fits_of = follow_path(rows, labels, job.values, parts, class_weight=job.class_weight)
    n_classes = int(labels.max()) + 1
    for column, fits in enumerate(fits_of):
        for row, (_, held_out) in enumerate(folds):
            decided = vote(fits.held_out[row], n_classes)
            table[row, column] = np.mean(decided == labels[held_out]), fits.seconds[row], fits.converged[row]
    return table


def _descend(
    job: _Job,
    spectra: NDArray[Any],
    labels: NDArray[np.int32],
    train: NDArray[np.intp],
    held_out: NDArray[np.intp],
    alpha: float,
) -> tuple[float, float, bool]:
    from sklearn.linear_model import SGDClassifier

    machine = SGDClassifier(alpha=alpha, class_weight=job.class_weight, random_state=job.seed, max_iter=MAX_PASSES)
    start = time.perf_counter()
    machine.fit(np.asarray(spectra[train], dtype=np.float64), labels[train])
    seconds = time.perf_counter() - start
    decided = machine.predict(np.asarray(spectra[held_out], dtype=np.float64))
    return float(np.mean(decided == labels[held_out])), seconds, machine.n_iter_ < MAX_PASSES


def best_cell(scores: xr.Dataset) -> BestCell:
    """Find the cell with the highest mean accuracy.

    Equal cells: the smallest of the first parameter (C), then of the second (gamma), and so on: the simplest machine.
    A parameter counts as on the edge only if every one of the equal cells is on the edge of it.

    >>> import xarray as xr
    >>> accuracy = ("C", "fold"), [[0.8, 0.8], [0.9, 0.9], [0.9, 0.9]]
    >>> best_cell(xr.Dataset({"accuracy": accuracy}, coords={"C": [1.0, 10.0, 100.0]}))
    BestCell(params={'C': 10.0}, mean_accuracy=0.9, on_edge=[])
    """
    mean = scores["accuracy"].mean("fold")
    values = np.round(mean.values, 12)  # the mean of equal accuracies may differ by its last bit
    equal = np.argwhere(values == values.max())
    chosen = equal[0]  # row-major order of ascending axes: the smallest C first
    names = [str(name) for name in mean.dims]
    on_edge = [
        name
        for axis, name in enumerate(names)
        if mean.sizes[name] > 1 and np.isin(equal[:, axis], (0, mean.sizes[name] - 1)).all()
    ]
    params = {name: float(mean[name].values[index]) for name, index in zip(names, chosen, strict=True)}
    return BestCell(params, float(values[tuple(chosen)]), on_edge)
