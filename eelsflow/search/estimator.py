"""The grid search with the interface of scikit-learn's GridSearchCV."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.svm import SVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_X_y, validate_data
from threadpoolctl import threadpool_limits

from eelsflow.errors import DataSetError
from eelsflow.executors import Executor, ThreadExecutor
from eelsflow.search.gram import Kernel, compute_products, keeps_spectra, save_products
from eelsflow.search.grid import best_cell, search_grid
from eelsflow.search.machine import build_machine
from eelsflow.search.path import MAX_STEPS, TOLERANCE, ClassWeight, approach, follow_path
from eelsflow.search.rows import SharedKernel, open_kernel


class SvmGridSearch(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Exact search of C, gamma and coef0 of a support vector machine by cross-validation.

    Finds what ``GridSearchCV(SVC(kernel, class_weight), grid, cv=cv)`` finds, to libsvm's tolerance, in a fraction of
    the time; see docs/search.md.

    Parameters
    ----------
    kernel
        ``rbf``, ``linear`` or ``sigmoid``.
    grid
        Parameter -> values, for each parameter of the kernel: ``C``, for rbf ``gamma``, for sigmoid also ``coef0``.
        Values are numbers: scikit-learn's ``"scale"`` is ``1 / (n_channels * X.var())``.
    cv
        Number of stratified folds, a splitter of scikit-learn, or pairs of (training rows, validation rows).
    class_weight
        ``balanced``, factors of C keyed by label, or None; as in scikit-learn, but balanced by default.
    n_jobs
        Threads; None and -1 are all cores that may be used.
    executor
        Runs the jobs in place of threads, for instance `eelsflow.executors.DaskExecutor`.
    scratch
        Directory that every worker sees, for what the jobs share; by default a temporary one.
    refit
        Whether the best machine is fitted on all spectra. Without it the search does not predict.

    Attributes
    ----------
    results_ : xarray.Dataset
        ``accuracy`` (0-1), ``fit_seconds`` and ``converged`` of `search_grid`, over the parameters and ``fold``.
    best_params_ : dict
        Of the highest mean accuracy; of equal ones the smallest C, then gamma.
    best_score_ : float
        That accuracy, 0-1.
    on_edge_ : list of str
        Parameters whose best value is the first or last of several: extend the grid there.
    best_estimator_ : sklearn.svm.SVC
        Fitted on all spectra at `best_params_`.
    classes_ : ndarray
        The labels, sorted.

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> y = np.repeat(["Fe3O4", "FeO"], 40)
    >>> X = random.normal(size=(80, 5)) + 2.0 * (y == "FeO")[:, np.newaxis]
    >>> search = SvmGridSearch("rbf", {"C": [1, 10], "gamma": [0.01, 0.1]}, cv=4, n_jobs=1).fit(X, y)
    >>> search.results_["accuracy"].sizes
    Frozen({'C': 2, 'gamma': 2, 'fold': 4})
    >>> search.predict([[0.0] * 5, [2.0] * 5]).tolist()
    ['Fe3O4', 'FeO']
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: Mapping[str, Sequence[float]],
        *,
        cv: Any = 5,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = "balanced",
        n_jobs: int | None = None,
        executor: Executor | None = None,
        scratch: Path | None = None,
        refit: bool = True,
    ) -> None:
        self.kernel = kernel
        self.grid = grid
        self.cv = cv
        self.class_weight = class_weight
        self.n_jobs = n_jobs
        self.executor = executor
        self.scratch = scratch
        self.refit = refit

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Search the grid on spectra, (n_spectra, n_channels), and their labels, (n_spectra,).

        Raises
        ------
        DataSetError
            If the grid does not fit the kernel, a value of it or a weight is not usable, or a fold cannot be trained or
            scored on.

        Warns
        -----
        ConvergenceWarning
            If fits with a kernel that is not positive semidefinite did not reach libsvm's tolerance.
        """
        spectra, labels = validate_data(self, X, y, dtype=[np.float64, np.float32])
        self.classes_, codes = np.unique(labels, return_inverse=True)
        codes = np.asarray(codes, dtype=np.int32)
        self._check_grid()
        weights = self._weights_by_code()
        folds = list(check_cv(self.cv, labels, classifier=True).split(spectra, labels))
        all_cores = len(os.sched_getaffinity(0))
        executor = self.executor or ThreadExecutor(self.n_jobs if self.n_jobs and self.n_jobs > 0 else all_cores)
        # One thread each: two that multiply matrices with two threads of their own wait for each other.
        with _directory(self.scratch) as name, nullcontext() if self.executor else threadpool_limits(1):
            scratch = Path(name)
            self.results_: xr.Dataset = search_grid(
                spectra, codes, kernel=self.kernel, grid=self.grid, folds=folds, executor=executor, scratch=scratch,
                class_weight=weights,
            )  # fmt: skip
            if n_open := int((~self.results_["converged"]).sum()):
                warnings.warn(
                    f"{n_open} of {self.results_['converged'].size} fits did not reach the tolerance of {TOLERANCE:g} "
                    f"in {MAX_STEPS:,} steps: their kernel is not positive semidefinite; `results_['converged']` says "
                    "which, and their accuracies are those of the machines as they were then",
                    ConvergenceWarning,
                    stacklevel=2,
                )
            best = best_cell(self.results_)
            self.best_params_, self.best_score_, self.on_edge_ = best.params, best.mean_accuracy, best.on_edge
            if self.refit:
                self.best_estimator_ = self._fit_best(spectra, codes, weights, scratch)
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the labels that the best machine decides for, (n_spectra,)."""
        return np.asarray(self._machine().predict(X))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the best machine's decision values: (n_spectra,) for two classes, else (n_spectra, n_pairs)."""
        return np.asarray(self._machine().decision_function(X), dtype=np.float64)

    def _machine(self) -> SVC:
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_

    def _check_grid(self) -> None:
        if self.kernel not in get_args(Kernel):
            raise DataSetError(f"the kernel is {self.kernel!r}; it may be {', '.join(get_args(Kernel))}")
        for name, values in self.grid.items():
            for value in values:
                wanted = "a finite number" if name == "coef0" else "a positive number"
                number = float(value) if isinstance(value, int | float | np.number) else np.nan
                if not np.isfinite(number) or (name != "coef0" and number <= 0):
                    raise DataSetError(f"the grid has {name} = {value!r}; it must be {wanted}")

    def _weights_by_code(self) -> ClassWeight:
        if self.class_weight is None or isinstance(self.class_weight, str):
            if self.class_weight not in (None, "balanced"):
                raise DataSetError(f"class_weight is {self.class_weight!r}; it may be 'balanced', a mapping, or None")
            return self.class_weight
        by_code: dict[int, float] = {}
        for label, weight in self.class_weight.items():
            code = np.flatnonzero(self.classes_ == label)
            if not code.size or not (np.isfinite(weight) and weight > 0):
                labels = ", ".join(repr(name) for name in self.classes_.tolist())
                raise DataSetError(
                    f"class_weight has {label!r}: {weight!r}; the labels are {labels} and a weight must be a positive "
                    "number"
                )
            by_code[int(code[0])] = float(weight)
        return by_code

    def _fit_best(
        self, spectra: NDArray[Any], codes: NDArray[np.integer[Any]], weights: ClassWeight, scratch: Path
    ) -> SVC:
        products = save_products(spectra, self.kernel, scratch)
        matrix = np.load(products.path, mmap_mode="r")
        rows = open_kernel(matrix, self.kernel, self.best_params_, from_spectra=products.from_spectra)
        machine = _fit_on(rows, spectra, codes, kernel=self.kernel, params=self.best_params_, weights=weights)
        machine.classes_ = self.classes_
        machine.class_weight = self.class_weight
        return machine


def fit_machine(
    X: ArrayLike, y: ArrayLike, *, kernel: Kernel, params: Mapping[str, float], class_weight: ClassWeight = "balanced"
) -> SVC:
    """Fit one machine in this process, without files.

    Parameters
    ----------
    X
        Spectra, (n_spectra, n_channels), finite. Not modified.
    y
        Their labels, (n_spectra,), of two classes or more.
    kernel, params
        As in scikit-learn's SVC: ``C``, and ``gamma`` and ``coef0`` as far as the kernel has them.
    class_weight
        ``balanced``, a factor of C for each number of a class among the sorted labels, or None.

    Returns
    -------
    sklearn.svm.SVC
        Fitted to libsvm's tolerance.

    Warns
    -----
    ConvergenceWarning
        If a kernel that is not positive semidefinite did not let it get there.

    Examples
    --------
    >>> X = np.array([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [2.0, 1.0]])
    >>> fit_machine(X, ["FeO", "FeO", "Fe3O4", "Fe3O4"], kernel="linear", params={"C": 10.0}).predict([[1.9, 0.5]])
    array(['Fe3O4'], dtype='<U5')
    """
    spectra, labels = check_X_y(X, y, dtype=[np.float64, np.float32])
    check_classification_targets(labels)
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataSetError(f"the spectra are all of the class {str(classes[0])!r}; a classifier needs two or more")
    from_spectra = keeps_spectra(len(spectra), kernel)
    products = compute_products(spectra, kernel, from_spectra=from_spectra)
    rows = open_kernel(products, kernel, params, from_spectra=from_spectra)
    machine = _fit_on(rows, spectra, codes, kernel=kernel, params=params, weights=class_weight)
    machine.classes_ = classes
    return machine


def _fit_on(
    rows: SharedKernel,
    spectra: NDArray[Any],
    codes: NDArray[np.integer[Any]],
    *,
    kernel: Kernel,
    params: Mapping[str, float],
    weights: ClassWeight,
) -> SVC:
    C, everything = params["C"], np.arange(len(codes))
    (fits,) = follow_path(rows, codes, [C], [], before=approach(C), whole=everything, class_weight=weights)
    machine = build_machine(spectra, codes, fits.whole, kernel=kernel, params=params, class_weight=weights)
    if machine.fit_status_:
        warnings.warn(
            f"the machine did not reach the tolerance of {TOLERANCE:g} in {MAX_STEPS:,} steps: its kernel is not "
            "positive semidefinite; take it as it is, or another gamma and coef0",
            ConvergenceWarning,
            stacklevel=3,
        )
    return machine


def _directory(scratch: Path | None) -> Any:
    return tempfile.TemporaryDirectory() if scratch is None else nullcontext(scratch)
