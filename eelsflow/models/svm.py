"""Support vector machines with a confidence: the machine decides, a sigmoid of its decision values says how surely."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import UnreadableFileError
from eelsflow.models.archives import dump_skops
from eelsflow.models.spec import with_defaults
from eelsflow.search.gram import Products
from eelsflow.search.grid import MAX_PASSES, load_fold
from eelsflow.search.path import TOLERANCE, vote

_SPECTRA_AT_ONCE = 4096  # bounds the kernel matrix of a prediction
MAX_LIBSVM_STEPS = 2_000_000  # of a sigmoid machine, whose kernel is not positive semidefinite: libsvm may never end

INDEPENDENT = 4
"""Independent spectra that the averages over neighbours of one acquisition count as where a confidence is fitted.

What an acquisition has of its own (edge, thickness, background) moves all of them alike. Our choice, on maps of
held-out simulated acquisitions (docs/decisions/0011-confidence.md)."""

TRUSTED_TYPES: tuple[str, ...] = ()
"""Types beyond skops' own list of harmless ones that a saved machine may hold."""


def build_svm(base: str, params: Mapping[str, float] | None = None, *, seed: int = 0) -> Any:
    """Build an untrained machine.

    Parameters
    ----------
    base
        ``svm-linear``, ``svm-rbf``, ``svm-sigmoid`` (libsvm) or ``svm-sgd`` (hinge loss by gradient descent).
    params
        ``C``, ``gamma``, ``coef0``, ``alpha``; see `eelsflow.models.spec.DEFAULTS`.
    seed
        Of the order in which gradient descent takes the spectra.

    Returns
    -------
    sklearn.svm.SVC or sklearn.linear_model.SGDClassifier
        With balanced class weights, as in the published code of the authors.
    """
    from sklearn.linear_model import SGDClassifier
    from sklearn.svm import SVC

    settings = with_defaults(base, dict(params or {}))
    if base == "svm-sgd":
        return SGDClassifier(class_weight="balanced", random_state=seed, max_iter=MAX_PASSES, **settings)
    # "ovo": the decision values of all pairs of classes, which is what the confidence is fitted on.
    kernel = base.removeprefix("svm-")
    return SVC(
        kernel=kernel,
        class_weight="balanced",
        decision_function_shape="ovo",
        max_iter=MAX_LIBSVM_STEPS if kernel == "sigmoid" else -1,
        **settings,
    )


@dataclass(frozen=True)
class Svm:
    """A trained machine and the map from its decision values to probabilities.

    Attributes
    ----------
    machine
        Fitted on class numbers.
    calibration
        Logistic regression from decision values to class numbers.

    Notes
    -----
    The class is the machine's own decision (for more than two classes the vote of the pairs), because that is what the
    grid search scored. The probability is fitted separately and may favour another class close to a boundary; the
    probability of the decided class is then below that of the other one, and says that the decision is not sure.
    """

    machine: Any
    calibration: Any

    def predict_codes(self, X: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
        """Return class numbers, (n_spectra,)."""
        if len(X) == 0:
            return np.empty(0, np.intp)
        return decide(self.machine, decision_values(self.machine, X))

    def predict_proba(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return probabilities, (n_spectra, n_classes); each row sums to one."""
        if len(X) == 0:
            return np.empty((0, len(self.machine.classes_)))
        return np.asarray(self.calibration.predict_proba(decision_values(self.machine, X)), dtype=np.float64)

    def save(self, path: Path) -> None:
        """Write a .skops file."""
        dump_skops({"machine": self.machine, "calibration": self.calibration}, path)

    @classmethod
    def load(cls, path: Path) -> Svm:
        """Read a .skops file.

        Raises
        ------
        UnreadableFileError
            If it holds a type that a support vector machine has no use for: it may run code of its own.
        """
        import skops.io

        unknown = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED_TYPES))
        if unknown:
            raise UnreadableFileError(
                f"{path} holds {', '.join(unknown)}, which no model saved by eelsflow contains; loading it could run "
                "foreign code: use a model from a source you trust"
            )
        return cls(**skops.io.load(path, trusted=list(TRUSTED_TYPES)))


def decision_values(machine: Any, X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return decision values, (n_spectra, n_values): one for two classes, else one a pair (libsvm) or a class (SGD).

    Notes
    -----
    Equal to the machine's ``decision_function`` to rounding, but the kernel of all spectra and support vectors is one
    matrix product, where libsvm takes the pairs one after the other: a robustness curve asks for dozens of predictions.
    """
    spectra = np.asarray(X, dtype=np.float64)
    if not hasattr(machine, "support_vectors_"):
        return np.asarray(machine.decision_function(spectra), dtype=np.float64).reshape(len(X), -1)
    coefficients = _pair_coefficients(machine)
    blocks = range(0, len(spectra), _SPECTRA_AT_ONCE)
    values = [_kernel(machine, spectra[first : first + _SPECTRA_AT_ONCE]) @ coefficients for first in blocks]
    return np.asarray(np.concatenate(values) + machine.intercept_, dtype=np.float64)


def decide(machine: Any, values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the class numbers that a machine decides for, (n_spectra,), from its decision values."""
    n_classes = len(machine.classes_)
    if n_classes > 2 and not hasattr(machine, "support_vectors_"):
        return np.asarray(machine.classes_[values.argmax(axis=1)], dtype=np.intp)
    return np.asarray(machine.classes_[vote(values, n_classes)], dtype=np.intp)


def _kernel(machine: Any, spectra: NDArray[np.float64]) -> NDArray[np.float64]:
    vectors = machine.support_vectors_
    products = spectra @ vectors.T
    if machine.kernel == "linear":
        return np.asarray(products)
    if machine.kernel == "sigmoid":
        return np.asarray(np.tanh(machine._gamma * products + machine.coef0))
    squared = (spectra**2).sum(axis=1)[:, None] + (vectors**2).sum(axis=1) - 2 * products
    return np.asarray(np.exp(-machine._gamma * np.maximum(squared, 0)))


def _pair_coefficients(machine: Any) -> NDArray[np.float64]:
    """Return the weight of every support vector in every pair of classes, (n_support_vectors, n_pairs).

    libsvm keeps n_classes - 1 rows: a vector of class i has its weight against class j in row j - 1 if i < j, else j.
    """
    n_classes, dual = len(machine.classes_), machine.dual_coef_
    if n_classes == 2:
        return np.asarray(dual.T)
    start = np.concatenate([[0], np.cumsum(machine.n_support_)])
    pairs = list(itertools.combinations(range(n_classes), 2))
    coefficients = np.zeros((dual.shape[1], len(pairs)))
    for column, (one, other) in enumerate(pairs):
        of_one, of_other = slice(*start[one : one + 2]), slice(*start[other : other + 2])
        coefficients[of_one, column] = dual[other - 1, of_one]
        coefficients[of_other, column] = dual[one, of_other]
    return coefficients


def independent_weights(group: NDArray[np.str_]) -> NDArray[np.float64]:
    """Return by how much each spectrum counts, (n_spectra,), where those of one acquisition are nearly alike.

    >>> independent_weights(np.array(["a"] * 8 + ["b"])).tolist()
    [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0]
    """
    _, of_group, counts = np.unique(group, return_inverse=True, return_counts=True)
    return np.minimum(INDEPENDENT / counts, 1.0)[of_group]


def fit_calibration(
    values: NDArray[np.float64], codes: NDArray[np.integer[Any]], weight: NDArray[np.float64] | None = None
) -> Any:
    """Fit the sigmoid that turns decision values into probabilities.

    Parameters
    ----------
    values
        Decision values of spectra that the machine was not trained on, (n_spectra, n_values).
    codes
        Their class numbers.
    weight
        As how many independent spectra each counts, (n_spectra,); one if None.

    Returns
    -------
    sklearn.pipeline.Pipeline
        With `predict_proba`.

    Notes
    -----
    For two classes this is Platt's sigmoid (1999). For more it is its multinomial form on the decision values of all
    pairs: scikit-learn's CalibratedClassifierCV would fit a sigmoid to each one-against-rest value of an SVC, which is
    a vote count with a small remainder, not a distance. Ours: a weak ridge (in units of the spread of the values) in
    place of Platt's smoothed targets, so that separable classes give finite slopes; and balanced class weights as in
    the training of all models, so that the probability is that of a specimen in which the classes are equally
    frequent: how often a class was measured for training says nothing about the next specimen.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Values are scaled but not centred: 0 is where the machine changes its mind.
    weights = np.ones(len(codes)) if weight is None else weight
    of_class = np.bincount(codes, weights=weights)
    balanced = weights * (weights.sum() / (len(of_class) * of_class))[codes]
    pipeline = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(max_iter=1000))
    return pipeline.fit(
        values, codes, standardscaler__sample_weight=weights, logisticregression__sample_weight=balanced
    )


@dataclass(frozen=True)
class FitJob:
    """The machine on all rows and on some folds for one worker; small to send, because the arrays are files."""

    spectra: Path
    labels: Path  # class numbers
    judged: Path  # what the held-out rows are taken from
    products: Products | None  # of the kernel; None for gradient descent
    folds: tuple[Path, ...]
    base: str
    params: dict[str, float]
    seed: int
    return_machine: bool


@dataclass(frozen=True)
class Fit:
    """What a job gave.

    Attributes
    ----------
    machine
        Fitted on all rows; None if it was not asked for.
    values
        Decision values of the rows that each fold holds out.
    seconds
        Of the fit on all rows.
    converged
        Whether every fit met the tolerance.
    """

    machine: Any
    values: list[NDArray[np.float64]]
    seconds: float
    converged: bool


def run_fit(job: FitJob) -> Fit:
    """Fit the machines that a job describes; runs on any worker."""
    labels = np.load(job.labels)
    spectra = np.load(job.spectra, mmap_mode="r")
    judged = np.load(job.judged, mmap_mode="r")
    folds = [load_fold(path) for path in job.folds]
    if job.products is None:
        return _descend(job, np.asarray(spectra, dtype=np.float64), labels, folds, judged)
    from eelsflow.search.machine import build_machine
    from eelsflow.search.path import Fold, approach, follow_path
    from eelsflow.search.rows import open_kernel

    kernel, C = job.base.removeprefix("svm-"), job.params["C"]
    products = np.load(job.products.path, mmap_mode="r")
    rows = open_kernel(products, kernel, job.params, from_spectra=job.products.from_spectra)
    same = job.judged == job.spectra
    (fits,) = follow_path(
        rows,
        labels,
        [C],
        [Fold(*fold) for fold in folds] if same else [],
        before=approach(C),
        whole=np.arange(len(labels)),
    )
    machine = None
    if job.return_machine:
        machine = build_machine(spectra, labels, fits.whole, kernel=kernel, params=job.params)
    values, solutions = fits.held_out, list(fits.whole)
    for train, held_out in [] if same else folds:  # other spectra have no row in the kernel: each fold needs a machine
        (of_fold,) = follow_path(rows, labels, [C], [], before=approach(C), whole=train)
        alone = build_machine(spectra, labels, of_fold.whole, kernel=kernel, params=job.params)
        values.append(decision_values(alone, judged[held_out]))
        solutions += of_fold.whole
    met = all(solution.violation <= TOLERANCE for solution in solutions)
    return Fit(machine, values, fits.whole_seconds, met and bool(fits.converged.all()))


def _descend(
    job: FitJob,
    spectra: NDArray[np.float64],
    labels: NDArray[np.intp],
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    judged: NDArray[np.floating[Any]],
) -> Fit:
    machine, seconds = None, 0.0
    if job.return_machine:
        start = time.perf_counter()
        machine = build_svm(job.base, job.params, seed=job.seed).fit(spectra, labels)
        seconds = time.perf_counter() - start
    values = []
    for train, held_out in folds:
        of_fold = build_svm(job.base, job.params, seed=job.seed).fit(spectra[train], labels[train])
        values.append(decision_values(of_fold, judged[held_out]))
    return Fit(machine, values, seconds, converged=True)
