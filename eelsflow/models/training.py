"""Training of a network: an epoch is one compiled function, and the best epoch is chosen on a validation part."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import DataSetError
from eelsflow.models.backend import LOCK, load_backend
from eelsflow.models.networks import Network, build_network
from eelsflow.models.spec import with_defaults

MEASURES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
PREDICTION_ROWS = 4096
"""Spectra predicted at once: bounds memory, and large enough that more would not be quicker."""


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
        ran, with dropout, as Keras reports them.
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
    params: dict[str, float]  # with epochs, batch_size and patience
    seed: int


def run_training(job: TrainingJob) -> Training:
    """Train the network that a job describes; runs on any worker."""
    spectra, labels, stored = np.load(job.spectra, mmap_mode="r"), np.load(job.labels), np.load(job.rows)
    train, validation = stored[1 : 1 + stored[0]], stored[1 + stored[0] :]
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
    )


def train_network(
    X: NDArray[np.floating[Any]],
    y: NDArray[np.integer[Any]],
    X_validation: NDArray[np.floating[Any]],
    y_validation: NDArray[np.integer[Any]],
    *,
    base: str,
    n_classes: int,
    params: Mapping[str, float] | None = None,
    epochs: int,
    batch_size: int,
    patience: int,
    seed: int,
) -> Training:
    """Train a network with Adam on the class-balanced cross-entropy.

    Parameters
    ----------
    X, X_validation
        Spectra, (n_spectra, n_channels). Not modified.
    y, y_validation
        Class numbers 0..n_classes-1, (n_spectra,).
    base, params
        As for `build_network`; ``learning_rate`` is Adam's.
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
    loss) on a validation part of the training spectra, where their code takes it on the test fold.
    """
    settings = with_defaults(base, dict(params or {}))
    backend = load_backend()
    weight = len(y) / (n_classes * np.maximum(np.bincount(y, minlength=n_classes), 1)).astype(np.float32)
    random = np.random.default_rng(seed)
    bounds = batch_bounds(len(y), batch_size)
    history: dict[str, Any] = {name: [] for name in ("epochs", *MEASURES)}
    notes = list(backend.warnings)
    with LOCK:
        architecture = _architecture(base, X.shape[1], n_classes, settings["dropout"], settings.get("units"))
        runtime = compiled(architecture)
        runtime.warm_up()
        start = time.perf_counter()
        runtime.reset(seed, settings["learning_rate"])
        train = runtime.tensors(X, y, weight[y])
        validation = runtime.tensors(X_validation, y_validation, weight[y_validation])
        best: tuple[float, float] = (-1.0, 0.0)
        weights: list[NDArray[np.float32]] = []
        for epoch in range(1, epochs + 1):
            order = random.permutation(len(y)).astype(np.int32)
            values = (*runtime.run_epoch(*train, order, bounds), *runtime.evaluate(*validation))
            measured = dict(zip(MEASURES, map(float, values), strict=True))
            if not all(map(math.isfinite, measured.values())):
                if not weights:
                    raise DataSetError(f"training of {base} diverged in its first epoch; lower its learning_rate")
                notes.append(f"training diverged after {epoch - 1} epochs and was stopped there; lower learning_rate")
                break
            history["epochs"].append(epoch)
            for name, value in measured.items():
                history[name].append(value)
            score = (history["validation_accuracy"][-1], -history["validation_loss"][-1])
            if score > best or not weights:
                best, weights, history["best_epoch"] = score, runtime.model.get_weights(), epoch
            elif epoch - history["best_epoch"] >= patience:
                break
        seconds = time.perf_counter() - start
    return Training(Network(architecture, weights), history, seconds, notes)


def batch_bounds(n_spectra: int, batch_size: int) -> NDArray[np.int32]:
    """Cut an epoch into as few batches of at most `batch_size` as can be, as equal in size as can be.

    >>> batch_bounds(10, 4).tolist()
    [0, 3, 6, 10]
    """
    n_batches = math.ceil(n_spectra / batch_size)
    return (np.arange(n_batches + 1) * n_spectra // n_batches).astype(np.int32)


@lru_cache(maxsize=64)
def _architecture(base: str, n_channels: int, n_classes: int, dropout: float, units: int | None) -> str:
    params = {"dropout": dropout} | ({} if units is None else {"units": units})
    return str(build_network(base, n_channels, n_classes, params).to_json())


@lru_cache(maxsize=16)
def compiled(architecture: str) -> CompiledNetwork:
    """Return the network of an architecture that this process trains and predicts with; call it under `LOCK`.

    Tracing costs seconds, so one compiled network serves all trainings and predictions of an architecture.
    """
    return CompiledNetwork(architecture)


class CompiledNetwork:
    """A Keras model with its optimizer and three compiled functions."""

    def __init__(self, architecture: str) -> None:
        backend = load_backend()
        self._tf, self._keras = backend.tf, backend.keras
        self.model = self._keras.models.model_from_json(architecture)
        self._optimizer = self._keras.optimizers.Adam()
        self._optimizer.build(self.model.trainable_variables)
        self._warm = False
        tf = self._tf
        spectra = tf.TensorSpec((None, self.model.input_shape[1]), tf.float32)
        labels, weights = tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None,), tf.float32)
        indices = tf.TensorSpec((None,), tf.int32)
        # Any number of spectra and any batch size run the same trace.
        self.run_epoch = tf.function(self._run_epoch, input_signature=(spectra, labels, weights, indices, indices))
        self.evaluate = tf.function(self._evaluate, input_signature=(spectra, labels, weights))
        self._predict = tf.function(lambda X: self.model(X, training=False), input_signature=(spectra,))

    def warm_up(self) -> None:
        """Trace and optimize the training functions, so that no training is charged for being the first."""
        if not self._warm:
            some = self.tensors(np.zeros((2, self.model.input_shape[1])), np.zeros(2), np.ones(2))
            self.run_epoch(*some, np.arange(2, dtype=np.int32), batch_bounds(2, 2))
            self.evaluate(*some)
            self._warm = True

    def tensors(self, X: NDArray[Any], y: NDArray[Any], weight: NDArray[Any]) -> tuple[Any, Any, Any]:
        """Hand the arrays to TensorFlow once, in the types that the compiled functions take."""
        tf = self._tf
        return tf.constant(X, tf.float32), tf.constant(y, tf.int32), tf.constant(weight, tf.float32)

    def reset(self, seed: int, learning_rate: float) -> None:
        """Forget every training: initial weights and dropout from the seed, the optimizer as new.

        Weights are drawn as Keras draws them (Glorot uniform), but for the first convolution: spectra are not negative,
        so a filter whose weights add up to less than nothing gives zeros after the ReLU and never learns, and with two
        filters in the first block a quarter of the networks would be dead from the start. Such a filter changes sign.
        """
        seeds = iter(np.random.SeedSequence(seed).generate_state(2 * len(self.model.layers) + 2) >> 1)
        glorot = self._keras.initializers.GlorotUniform
        for layer in self.model.layers:
            for variable in layer.weights:
                match variable.name:
                    case "kernel":
                        kernel = np.array(glorot(seed=int(next(seeds)))(variable.shape))
                        if layer.name == "conv_1":
                            kernel *= np.where(kernel.sum(axis=(0, 1)) < 0, -1, 1)
                        variable.assign(kernel)
                    case "gamma" | "moving_variance":
                        variable.assign(np.ones(variable.shape, np.float32))
                    case "bias" | "beta" | "moving_mean":
                        variable.assign(np.zeros(variable.shape, np.float32))
                    case other:
                        raise AssertionError(f"no initial value for {other} of {layer.name}")
            if hasattr(layer, "seed_generator"):
                layer.seed_generator.state.assign(np.array([int(next(seeds)), 0], np.uint32))
        for variable in self._optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        self._optimizer.learning_rate.assign(learning_rate)

    def predict(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return probabilities, (n_spectra, n_classes)."""
        parts = [
            self._predict(self._tf.constant(X[first : first + PREDICTION_ROWS])).numpy()
            for first in range(0, len(X), PREDICTION_ROWS)
        ]
        if not parts:
            return np.empty((0, self.model.output_shape[1]))
        probabilities = np.concatenate(parts).astype(np.float64)
        normalized: NDArray[np.float64] = probabilities / probabilities.sum(axis=1, keepdims=True)
        return normalized

    def _run_epoch(self, X: Any, y: Any, weight: Any, order: Any, bounds: Any) -> tuple[Any, Any]:
        tf, variables = self._tf, self.model.trainable_variables
        total_loss, n_correct = tf.constant(0.0), tf.constant(0.0)
        for batch in tf.range(tf.shape(bounds)[0] - 1):
            rows = order[bounds[batch] : bounds[batch + 1]]
            labels = tf.gather(y, rows)
            with tf.GradientTape() as tape:
                probabilities = self.model(tf.gather(X, rows), training=True)
                losses = tf.gather(weight, rows) * self._cross_entropy(labels, probabilities)
                loss = tf.reduce_mean(losses)
            self._optimizer.apply(tape.gradient(loss, variables), variables)
            total_loss += tf.reduce_sum(losses)
            n_correct += self._count_correct(labels, probabilities)
        n_spectra = tf.cast(tf.shape(order)[0], tf.float32)
        return total_loss / n_spectra, n_correct / n_spectra

    def _evaluate(self, X: Any, y: Any, weight: Any) -> tuple[Any, Any]:
        tf = self._tf
        probabilities = self.model(X, training=False)
        n_spectra = tf.cast(tf.shape(y)[0], tf.float32)
        loss = tf.reduce_sum(weight * self._cross_entropy(y, probabilities)) / n_spectra
        return loss, self._count_correct(y, probabilities) / n_spectra

    def _cross_entropy(self, labels: Any, probabilities: Any) -> Any:
        tf = self._tf
        # The bounds are those of Keras' categorical cross-entropy.
        return -tf.math.log(tf.clip_by_value(tf.gather(probabilities, labels, batch_dims=1), 1e-7, 1 - 1e-7))

    def _count_correct(self, labels: Any, probabilities: Any) -> Any:
        tf = self._tf
        return tf.reduce_sum(tf.cast(tf.argmax(probabilities, axis=1, output_type=tf.int32) == labels, tf.float32))
