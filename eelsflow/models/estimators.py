"""Any classifier of scikit-learn, or with its interface: searched, given a confidence, stored and used as any other.

A study names it by where it is imported from: ``sklearn:sklearn.ensemble.RandomForestClassifier``.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import DataSetError, UnreadableFileError
from eelsflow.models.archives import dump_skops
from eelsflow.models.imported import TRUST, import_named, trusted_packages
from eelsflow.search.grid import load_fold

PREFIX = "sklearn:"
_LEAST = 1e-6  # of a probability whose logarithm is taken


def find_class(base: str) -> type[Any]:
    """Return the class that a base names.

    Raises
    ------
    MissingDependencyError
        If its module cannot be imported.
    DataSetError
        If there is no such class in it, or it is no classifier.
    """
    found = import_named(base)
    if not inspect.isclass(found) or not all(hasattr(found, method) for method in ("fit", "predict", "get_params")):
        module, _, name = base.removeprefix(PREFIX).rpartition(".")
        raise DataSetError(
            f"{base}: {name} in {module} is no classifier of scikit-learn: it needs fit, predict and get_params"
        )
    return found


def build_estimator(base: str, params: Mapping[str, Any], *, seed: int) -> Any:
    """Build an untrained classifier; classes are balanced and the seed is set where it has such parameters.

    Raises
    ------
    DataSetError
        If it does not know a parameter.
    """
    found = find_class(base)
    try:
        estimator = found(**params)
    except TypeError as error:
        raise DataSetError(f"{base}: {error}; its parameters are {', '.join(sorted(found().get_params()))}") from error
    known = estimator.get_params()
    ours = {"random_state": seed, "class_weight": "balanced"}
    return estimator.set_params(**{name: value for name, value in ours.items() if name in known and name not in params})


@dataclass(frozen=True)
class Estimator:
    """A fitted classifier and the map from its scores to probabilities.

    Attributes
    ----------
    estimator
        Fitted on class numbers.
    calibration
        From its scores of spectra that it was not trained on to class numbers; see `eelsflow.models.svm`.
    """

    estimator: Any
    calibration: Any

    def predict_codes(self, X: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
        """Return class numbers, (n_spectra,)."""
        if len(X) == 0:
            return np.empty(0, np.intp)
        return np.asarray(self.estimator.predict(X), dtype=np.intp)

    def predict_proba(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return probabilities, (n_spectra, n_classes); each row sums to one."""
        if len(X) == 0:
            return np.empty((0, len(self.calibration.classes_)))
        return np.asarray(self.calibration.predict_proba(scores(self.estimator, X)), dtype=np.float64)

    def save(self, path: Path) -> None:
        """Write a .skops file."""
        dump_skops({"estimator": self.estimator, "calibration": self.calibration}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a .skops file.

        Raises
        ------
        UnreadableFileError
            If it holds types that are neither scikit-learn's nor of a package that the user trusts: they may run code.
        """
        import skops.io

        trusted = tuple(f"{name}." for name in trusted_packages())
        types = skops.io.get_untrusted_types(file=path)
        unknown = sorted(name for name in types if not name.startswith(("sklearn.", *trusted)))
        if unknown:
            raise UnreadableFileError(
                f"{path} holds {', '.join(unknown)}; loading it could run foreign code. If you trust where the model "
                f"comes from, name the packages in the environment: {TRUST}={unknown[0].partition('.')[0]}"
            )
        return cls(**skops.io.load(path, trusted=types))


def scores(estimator: Any, X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return what a confidence is fitted on, (n_spectra, n_scores): decision values, or log-probabilities."""
    if hasattr(estimator, "decision_function"):
        return np.asarray(estimator.decision_function(X), dtype=np.float64).reshape(len(X), -1)
    if hasattr(estimator, "predict_proba"):
        logs = np.log(np.clip(np.asarray(estimator.predict_proba(X), dtype=np.float64), _LEAST, None))
        return np.asarray(logs[:, 1:] - logs[:, :1])
    return np.asarray(np.asarray(estimator.predict(X))[:, None] == estimator.classes_[None, 1:], dtype=np.float64)


@dataclass(frozen=True)
class EstimatorJob:
    """One fit for one worker; small to send, because the arrays are files."""

    spectra: Path
    labels: Path  # class numbers
    judged: Path  # what the held-out rows are taken from
    fold: Path | None  # None: fitted on all rows
    base: str
    params: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class EstimatorFit:
    """What a job gave: the classifier, or the scores and the accuracy of the rows that its fold holds out."""

    estimator: Any
    values: NDArray[np.float64]
    accuracy: float
    seconds: float


def run_estimator_fit(job: EstimatorJob) -> EstimatorFit:
    """Fit the classifier that a job describes; runs on any worker."""
    spectra, labels = np.load(job.spectra, mmap_mode="r"), np.load(job.labels)
    estimator = build_estimator(job.base, job.params, seed=job.seed)
    train = np.arange(len(labels))
    held_out = np.empty(0, np.intp)
    if job.fold is not None:
        train, held_out = load_fold(job.fold)
    start = time.perf_counter()
    estimator.fit(np.asarray(spectra[train], dtype=np.float64), labels[train])
    seconds = time.perf_counter() - start
    if job.fold is None:
        return EstimatorFit(estimator, np.empty((0, 0)), np.nan, seconds)
    judged = np.load(job.judged, mmap_mode="r")
    # the rows held out of a search may be altered copies, which have no other form
    rows = np.asarray((judged if held_out.max() < len(judged) else spectra)[held_out], dtype=np.float64)
    accuracy = float(np.mean(estimator.predict(rows) == labels[held_out]))
    return EstimatorFit(None, scores(estimator, rows), accuracy, seconds)
