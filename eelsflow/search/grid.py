"""Grid search with cross-validation, equal to scikit-learn's GridSearchCV cell by cell.

The work is cut into (gamma, coef0, fold): each derives its kernel from the shared Gram matrix and fits every C on it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eelsflow.errors import DataSetError
from eelsflow.executors import Executor
from eelsflow.search.gram import derive_kernel, save_array, save_gram

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

MAX_JOBS = 96  # a scheduler spends milliseconds on a job; more of them than this buy no balance


SIGMOID_ITERATIONS = 200_000
"""Most steps of libsvm with a sigmoid kernel, which is not positive semidefinite: it may go in circles for minutes."""


def most_iterations(learner: str) -> int:
    """Return libsvm's limit of steps for a kernel; -1 is none, because on the other kernels it always ends."""
    return SIGMOID_ITERATIONS if learner == "sigmoid" else -1


@contextlib.contextmanager
def quiet_convergence() -> Iterator[None]:
    """Let a fit stop at its limit of steps without a warning: its validation accuracy says what it is worth."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


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
    """Cells for one worker; small to send, because the arrays are files."""

    learner: Learner
    matrix: Path  # the Gram matrix, or the spectra for "sgd"
    labels: Path
    folds: tuple[Path, ...]
    values: tuple[float, ...]  # of the parameter looped over inside
    cells: tuple[tuple[int, tuple[float, ...]], ...]  # (fold, values of the other parameters)
    class_weight: str | None
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
    class_weight: str | None = "balanced",
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
        Runs at most `MAX_JOBS` jobs.
    scratch
        Directory for the Gram matrix (8 n_spectra^2 bytes); every worker must see it. Searches over the same
        spectra share the file.
    class_weight
        As in scikit-learn. The default weighs classes by their inverse frequency in the fold's training rows.
    seed
        Of the order in which gradient descent takes the spectra; the kernels draw nothing at random.

    Returns
    -------
    xarray.Dataset
        ``accuracy`` (0-1) and ``fit_seconds``, over the parameters and ``fold``. Values ascend.

    Raises
    ------
    DataSetError
        If the grid does not fit the kernel, or a fold cannot be trained or scored on.

    Notes
    -----
    The folds share one Gram matrix, so whatever was fitted to make `X` has seen the validation rows: a slight optimism
    inside the search, none in the test score.
    """
    axes = AXES[kernel]
    if set(grid) != set(axes) or not all(len(values) for values in grid.values()):
        raise DataSetError(f"the grid of {kernel} names {sorted(grid)}; it needs values for each of {', '.join(axes)}")
    labels = np.unique(np.asarray(y), return_inverse=True)[1].astype(np.int32)
    spectra = np.asarray(X)
    check_folds(folds, labels)
    values = {name: tuple(sorted({float(value) for value in grid[name]})) for name in axes}
    outer = itertools.product(*(values[name] for name in axes[1:]))
    cells = [(fold, others) for others in outer for fold in range(len(folds))]
    # Striding mixes slow and quick cells in one job: the cost depends on gamma, which runs slowest.
    n_jobs = math.ceil(len(cells) / math.ceil(len(cells) / MAX_JOBS))
    shared: dict[str, Any] = {
        "learner": kernel,
        "matrix": save_array(spectra, scratch, name="spectra") if kernel == "sgd" else save_gram(spectra, scratch),
        "labels": save_array(labels, scratch, name="labels"),
        "folds": tuple(
            save_array(np.concatenate(([len(train)], train, validation)), scratch, name="fold")
            for train, validation in folds
        ),
        "values": values[axes[0]],
        "class_weight": class_weight,
        "seed": seed,
    }
    jobs = [_Job(cells=tuple(cells[first::n_jobs]), **shared) for first in range(n_jobs)]
    results = executor.map(_run_job, jobs, label=f"search-{kernel}")

    table = np.empty((len(cells), len(values[axes[0]]), 2))
    for first, result in enumerate(results):
        table[first::n_jobs] = result
    # (other parameters..., fold, first parameter, what) -> (first parameter, other parameters..., fold)
    shape = tuple(len(values[name]) for name in axes[1:])
    table = np.moveaxis(table.reshape(*shape, len(folds), len(values[axes[0]]), 2), -2, 0)
    dims = (*axes, "fold")
    return xr.Dataset(
        {"accuracy": (dims, table[..., 0]), "fit_seconds": (dims, table[..., 1], {"units": "s"})},
        coords={**{name: list(values[name]) for name in axes}, "fold": np.arange(len(folds))},
        attrs={"kernel": kernel, "class_weight": str(class_weight), "n_spectra": len(labels)},
    )


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
    """Return accuracy and seconds, (n_cells, n_values, 2)."""
    matrix = np.load(job.matrix, mmap_mode="r")
    labels = np.load(job.labels)
    return np.array([_score_cell(job, matrix, labels, fold, others) for fold, others in job.cells])


def _score_cell(
    job: _Job, matrix: NDArray[Any], labels: NDArray[np.int32], fold: int, others: tuple[float, ...]
) -> list[tuple[float, float]]:
    from sklearn.linear_model import SGDClassifier
    from sklearn.svm import SVC

    stored = np.load(job.folds[fold])
    train, validation = stored[1 : 1 + stored[0]], stored[1 + stored[0] :]
    if job.learner == "sgd":
        fit_on, score_on = (np.asarray(matrix[rows], dtype=np.float64) for rows in (train, validation))
    else:
        params = dict(zip(AXES[job.learner][1:], others, strict=True))
        fit_on = derive_kernel(matrix, train, train, kernel=job.learner, **params)
        score_on = derive_kernel(matrix, validation, train, kernel=job.learner, **params)
    scores = []
    for value in job.values:
        if job.learner == "sgd":
            machine = SGDClassifier(
                alpha=value, class_weight=job.class_weight, random_state=job.seed, max_iter=MAX_PASSES
            )
        else:
            machine = SVC(
                kernel="precomputed", C=value, class_weight=job.class_weight, max_iter=most_iterations(job.learner)
            )
        start = time.perf_counter()
        with quiet_convergence():
            machine.fit(fit_on, labels[train])
        seconds = time.perf_counter() - start
        scores.append((float(np.mean(machine.predict(score_on) == labels[validation])), seconds))
    return scores


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
