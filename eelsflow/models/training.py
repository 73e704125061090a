"""Training of a network: Adam on the class-balanced cross-entropy; the best epoch is chosen on a validation part."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import DataSetError
from eelsflow.models.backend import LOCK, check_installed
from eelsflow.models.layers import Trainer, compile_training, has_loops
from eelsflow.models.networks import Network, describe_network
from eelsflow.models.open_networks import LEARNING_RATE, KerasTrainer, build_open_network, foreign_types
from eelsflow.models.spec import NETWORKS, with_defaults

MEASURES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")


@dataclass(frozen=True)
class Training:
    """What one training gave.

    Attributes
    ----------
    network
        With the weights of the best epoch.
    history
        ``epochs``, ``train_loss``, ``train_accuracy``, ``validation_loss``, ``validation_accuracy`` (lists, one value
        an epoch) and ``best_epoch`` (counted from 1). Training values are means over the batches of the epoch as it
        ran, with dropout, as Keras reports them. ``temperature``, if one was fitted: the losses are without it.
    seconds
        Of the training itself, without importing and compiling.
    warnings
        Sentences for the report.
    """

    network: Network
    history: dict[str, Any]
    seconds: float
    warnings: list[str] = field(default_factory=list)

    @property
    def best(self) -> tuple[float, float]:
        """Validation accuracy and loss of the best epoch."""
        index = self.history["best_epoch"] - 1
        return self.history["validation_accuracy"][index], self.history["validation_loss"][index]


@dataclass(frozen=True)
class TrainingJob:
    """One training for one worker; small to send, because the arrays are files."""

    spectra: Path
    labels: Path  # class numbers
    rows: Path  # the number of training rows, the training rows, the validation rows
    base: str
    n_classes: int
    params: dict[str, Any]  # with epochs, batch_size and patience
    seed: int
    judged: Path | None = None  # what the temperature is fitted on, of the first rows; None: none is fitted
    weight: Path | None = None  # of each of these


def run_training(job: TrainingJob) -> Training:
    """Train the network that a job describes; runs on any worker."""
    spectra, labels, stored = np.load(job.spectra, mmap_mode="r"), np.load(job.labels), np.load(job.rows)
    train, validation = stored[1 : 1 + stored[0]], stored[1 + stored[0] :]
    calibration = None
    if job.judged is not None and job.weight is not None:
        judged, weight = np.load(job.judged, mmap_mode="r"), np.load(job.weight)
        held_out = validation[validation < len(judged)]
        calibration = judged[held_out], labels[held_out], weight[held_out]
    return train_network(
        spectra[train],
        labels[train],
        spectra[validation],
        labels[validation],
        base=job.base,
        n_classes=job.n_classes,
        params=job.params,
        epochs=int(job.params["epochs"]),
        batch_size=int(job.params["batch_size"]),
        patience=int(job.params["patience"]),
        seed=job.seed,
        calibration=calibration,
    )


def train_network(
    X: NDArray[np.floating[Any]],
    y: NDArray[np.integer[Any]],
    X_validation: NDArray[np.floating[Any]],
    y_validation: NDArray[np.integer[Any]],
    *,
    base: str,
    n_classes: int,
    params: Mapping[str, Any] | None = None,
    epochs: int,
    batch_size: int,
    patience: int,
    seed: int,
    calibration: tuple[NDArray[np.floating[Any]], NDArray[np.integer[Any]], NDArray[np.float64]] | None = None,
) -> Training:
    """Train a network with Adam on the class-balanced cross-entropy.

    Parameters
    ----------
    X, X_validation
        Spectra, (n_spectra, n_channels). Not modified.
    y, y_validation
        Class numbers 0..n_classes-1, (n_spectra,).
    base, params
        As for `describe_network`, or ``keras:package.function`` and what it takes; ``learning_rate`` is Adam's.
    n_classes
        Two or more.
    epochs
        At most so many passes over the training spectra.
    batch_size
        Spectra a step, at most: an epoch is cut into batches that differ by one spectrum at most. Every spectrum is
        used in every epoch, and no tiny last batch spoils the batch normalisation.
    patience
        Stop after so many epochs without a better one.
    seed
        Of the initial weights, of dropout and of the order of the spectra.
    calibration
        Spectra (n, n_channels) held out of the training, in the form in which the network will be given them, their
        class numbers, and as how many independent spectra each counts: its temperature is fitted on them.

    Raises
    ------
    DataSetError
        If the spectra are too short for the network, or the training diverges at once.
    MissingDependencyError
        If TensorFlow is not installed.

    Notes
    -----
    Adam, its learning rate and the loss are those of the published code of Chatzidakis & Botton. Ours: balanced class
    weights n / (n_classes n_c), as for the SVMs; the best epoch (highest validation accuracy, then lowest validation
    loss) on a validation part of the training spectra, where their code takes it on the test fold. A temperature is
    divided into the last layer with weights, from which the softmax is linear: classes are the same, and a saved
    network needs no more than its weights. A network of a study's own keeps it beside them. Such a network begins with
    the weights that Keras gives it, and is trained by Keras, unless the compiled loops know every layer.
    """
    check_installed()  # loops need no TensorFlow, but what they train is of no use without it
    settings = with_defaults(base, dict(params or {}))
    plan = _Plan.make(base, X.shape[1], n_classes, settings, seed=seed)
    weight = (len(y) / (n_classes * np.maximum(np.bincount(y, minlength=n_classes), 1))).astype(np.float32)
    train, validation = _prepared(X, y, weight), _prepared(X_validation, y_validation, weight)
    with contextlib.nullcontext() if plan.is_compiled else LOCK:
        return _train(plan, train, validation, epochs, batch_size, patience, calibration)


@dataclass(frozen=True)
class _Plan:
    """What is trained, and by what: the compiled loops where they know every layer, else Keras."""

    base: str
    architecture: str
    module: str | None
    trainer: Trainer | KerasTrainer

    @classmethod
    def make(cls, base: str, n_channels: int, n_classes: int, settings: Mapping[str, Any], *, seed: int) -> Self:
        if base in NETWORKS:
            architecture = describe_network(base, n_channels, n_classes, settings)
            trainer = Trainer(architecture, seed=seed, learning_rate=settings["learning_rate"])
            compile_training(architecture)
            return cls(base, architecture, None, trainer)
        with LOCK:
            model = build_open_network(base, n_channels, n_classes, settings, seed=seed)
            architecture = model.to_json()
            module = base.partition(":")[2].rpartition(".")[0] if foreign_types(architecture) else None
            rate = settings.get("learning_rate")
            if (rate is None and getattr(model, "optimizer", None) is not None) or not has_loops(architecture):
                return cls(base, architecture, module, KerasTrainer(model, learning_rate=rate, seed=seed))
            trainer = Trainer(architecture, seed=seed, learning_rate=rate or LEARNING_RATE)
            trainer.start_with(model.get_weights(), seed=seed)
        compile_training(architecture)
        return cls(base, architecture, module, trainer)

    @property
    def is_compiled(self) -> bool:
        return isinstance(self.trainer, Trainer)


def _train(
    plan: _Plan,
    train: tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]],
    validation: tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]],
    epochs: int,
    batch_size: int,
    patience: int,
    calibration: tuple[NDArray[np.floating[Any]], NDArray[np.integer[Any]], NDArray[np.float64]] | None,
) -> Training:
    """Run epochs until no better one comes; see `train_network`."""
    trainer = plan.trainer
    start = time.perf_counter()
    bounds = batch_bounds(len(train[1]), batch_size)
    history: dict[str, Any] = {name: [] for name in ("epochs", *MEASURES)}
    notes: list[str] = []
    best: tuple[float, float] = (-1.0, 0.0)
    weights: list[NDArray[np.float32]] = []
    logits = np.empty((0, 0), np.float32)
    for epoch in range(1, epochs + 1):
        values = (*trainer.run_epoch(*train, bounds), *trainer.evaluate(*validation))
        measured = dict(zip(MEASURES, values, strict=True))
        if not all(map(math.isfinite, values)):
            if not weights:
                raise DataSetError(f"training of {plan.base} diverged in its first epoch; lower its learning_rate")
            notes.append(f"training diverged after {epoch - 1} epochs and was stopped there; lower learning_rate")
            break
        history["epochs"].append(epoch)
        for name, value in measured.items():
            history[name].append(value)
        score = (history["validation_accuracy"][-1], -history["validation_loss"][-1])
        if score > best or not weights:
            best, weights, history["best_epoch"] = score, trainer.weights(), epoch
            if calibration is not None:
                logits = trainer.logits(np.ascontiguousarray(calibration[0], np.float32))
        elif epoch - history["best_epoch"] >= patience:
            break
    seconds = time.perf_counter() - start
    if calibration is not None:
        history["temperature"] = temperature = fit_temperature(logits, *calibration[1:])
        if plan.base not in NETWORKS:
            return Training(Network(plan.architecture, weights, plan.module, temperature), history, seconds, notes)
        weights[-2:] = [array / np.float32(temperature) for array in weights[-2:]]  # kernel and bias of the last layer
    return Training(Network(plan.architecture, weights, plan.module), history, seconds, notes)


def fit_temperature(
    logits: NDArray[np.floating[Any]], y: NDArray[np.integer[Any]], weight: NDArray[np.float64]
) -> float:
    """Return what to divide logits by, so that their softmax is calibrated (Guo et al. 2017).

    Parameters
    ----------
    logits
        Of spectra that were not trained on, (n_spectra, n_classes).
    y
        Their class numbers, (n_spectra,).
    weight
        As how many independent spectra each counts, (n_spectra,).

    Notes
    -----
    Ours: classes are balanced, as in the training; and the logarithm of the temperature has a normal prior of width
    log 2, because a few acquisitions that are all classified right would otherwise drive it to zero.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    of_class = np.bincount(y, weights=weight)
    balanced = weight * (weight.sum() / (np.count_nonzero(of_class) * of_class[y]))
    values, rows = np.asarray(logits, dtype=np.float64), np.arange(len(y))

    def cost(log_temperature: float) -> float:
        loss = -log_softmax(values / np.exp(log_temperature), axis=1)[rows, y]
        return float(balanced @ loss + 0.5 * (log_temperature / np.log(2.0)) ** 2)

    return float(np.exp(minimize_scalar(cost, bounds=(-3.0, 3.0), method="bounded").x))


def _prepared(
    X: NDArray[Any], y: NDArray[Any], class_weight: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """Return spectra, class numbers and weights in the types that the training takes."""
    return np.ascontiguousarray(X, np.float32), y.astype(np.int32), class_weight[y]


def batch_bounds(n_spectra: int, batch_size: int) -> NDArray[np.int32]:
    """Cut an epoch into as few batches of at most `batch_size` as can be, as equal in size as can be.

    >>> batch_bounds(10, 4).tolist()
    [0, 3, 6, 10]
    """
    n_batches = math.ceil(n_spectra / batch_size)
    return (np.arange(n_batches + 1) * n_spectra // n_batches).astype(np.int32)
