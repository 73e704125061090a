"""Any network of Keras that a study names by its function, ``keras:package.function``: built, and trained by Keras."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import DataSetError
from eelsflow.models.backend import LOCK, load_backend
from eelsflow.models.imported import import_named
from eelsflow.models.spec import TRAINING_PARAMETERS

LEARNING_RATE = 1e-3
"""Of Adam, where neither the study nor an optimizer of the network's own says otherwise; Keras' default."""

EVALUATED_ROWS = 4096
_LEAST = 1e-30  # of a probability whose logarithm is taken
_SUM_TOLERANCE = 1e-3

FloatArray = NDArray[np.float32]


def find_function(base: str) -> Any:
    """Return the function that a base names.

    Raises
    ------
    MissingDependencyError
        If its module cannot be imported.
    DataSetError
        If there is no such function in it.
    """
    found = import_named(base)
    if not callable(found):
        name = base.rpartition(".")[2]
        raise DataSetError(
            f"{base}: {name} is no function; it must be one that takes n_channels, n_classes and the parameters of the "
            "study, and returns a Keras model"
        )
    return found


def build_open_network(base: str, n_channels: int, n_classes: int, params: Mapping[str, Any], *, seed: int = 0) -> Any:
    """Build an untrained network: call the function, and check what it returns.

    Parameters
    ----------
    base
        ``keras:package.function``.
    n_channels, n_classes
        What the function is given: length of a spectrum, and number of classes.
    params
        Further arguments of the function; `TRAINING_PARAMETERS` among them are left out.
    seed
        Of the initial weights.

    Returns
    -------
    keras.Model
        Takes (n_spectra, n_channels), returns (n_spectra, n_classes) probabilities.

    Raises
    ------
    MissingDependencyError
        If TensorFlow or the function's module is missing.
    DataSetError
        If the function does not know a parameter, or returns no model of that form, or one that cannot be stored.
    """
    keras = load_backend().keras
    function = find_function(base)
    arguments = {name: value for name, value in params.items() if name not in TRAINING_PARAMETERS}
    try:
        inspect.signature(function).bind(n_channels=n_channels, n_classes=n_classes, **arguments)
    except TypeError as error:
        raise DataSetError(
            f"{base}: {error}; its arguments are {inspect.signature(function)}, and it is given n_channels, n_classes "
            "and the parameters of the study"
        ) from error
    with LOCK:
        keras.utils.clear_session(
            free_memory=False
        )  # layers are named by their order in the network, not in the process
        keras.utils.set_random_seed(seed)
        model = function(n_channels=n_channels, n_classes=n_classes, **arguments)
        if not isinstance(model, keras.Model):
            raise DataSetError(f"{base} returned {type(model).__name__}, expected a Keras model")
        if not model.built:
            model.build((None, n_channels))
        _check_form(base, model, n_channels, n_classes)
        try:
            again = keras.models.model_from_json(model.to_json())
            again.set_weights(model.get_weights())
        except (TypeError, ValueError, NotImplementedError) as error:
            raise DataSetError(
                f"{base} cannot be stored: Keras does not build it again from its description "
                f"({' '.join(str(error).split())[:300]}); classes of your own need get_config and the decorator "
                "keras.saving.register_keras_serializable"
            ) from error
    return model


def _check_form(base: str, model: Any, n_channels: int, n_classes: int) -> None:
    some = np.random.default_rng(0).random((2, n_channels), dtype=np.float32)
    try:
        found = np.asarray(model(some, training=False))
    except Exception as error:  # whatever the layers of somebody else raise
        raise DataSetError(
            f"{base} cannot take spectra of shape (n_spectra, {n_channels}): {' '.join(str(error).split())[:300]}"
        ) from error
    if found.shape != (2, n_classes):
        raise DataSetError(f"{base} returns the shape {found.shape[1:]} for a spectrum; expected {n_classes} classes")
    if not (np.all(found >= 0) and np.allclose(found.sum(axis=1), 1, atol=_SUM_TOLERANCE)):
        raise DataSetError(f"{base} returns no probabilities; its last layer must be a softmax over the classes")


def foreign_types(architecture: str) -> list[str]:
    """Return the types of a description that are not Keras' own, as they are registered.

    >>> foreign_types('{"module": "keras.layers", "class_name": "Dense", "registered_name": null}')
    []
    """
    found: set[str] = set()

    def look(part: Any) -> None:
        if isinstance(part, dict):
            module = str(part.get("module") or "")
            if part.get("registered_name") and module.partition(".")[0] not in ("keras", "builtins"):
                found.add(str(part["registered_name"]))
            for value in part.values():
                look(value)
        elif isinstance(part, list):
            for value in part:
                look(value)

    look(json.loads(architecture))
    return sorted(found)


class KerasTrainer:
    """A network in training by Keras itself, on a GPU where TensorFlow sees one.

    Has the methods of `eelsflow.models.layers.Trainer`, and takes the spectra in the same random order.

    Parameters
    ----------
    model
        A network from `build_open_network`. An optimizer that it was compiled with is kept where no learning rate is
        given; the loss is ours, the cross-entropy of balanced classes.
    learning_rate
        Adam's; None: the network's own optimizer, or `LEARNING_RATE`.
    seed
        Of the order of the spectra. Dropout follows the seed that the network was built with.
    """

    def __init__(self, model: Any, *, learning_rate: float | None, seed: int) -> None:
        keras = load_backend().keras
        own = getattr(model, "optimizer", None) if learning_rate is None else None
        model.compile(
            optimizer=own or keras.optimizers.Adam(learning_rate or LEARNING_RATE),
            loss="sparse_categorical_crossentropy",
            metrics=["sparse_categorical_accuracy"],
        )
        self._model = model
        self.random = np.random.default_rng(seed)

    def weights(self) -> list[FloatArray]:
        """Return copies of the weights in Keras' order."""
        return [np.array(array) for array in self._model.get_weights()]

    def run_epoch(
        self, X: FloatArray, y: NDArray[np.int32], weight: FloatArray, bounds: NDArray[np.int32]
    ) -> tuple[float, float]:
        """Train on every spectrum once, in random order, and return mean loss and accuracy as it went."""
        order = self.random.permutation(len(y))
        parts = [order[first:last] for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
        return self._mean(self._model.train_on_batch, X, y, weight, parts)

    def evaluate(self, X: FloatArray, y: NDArray[np.int32], weight: FloatArray) -> tuple[float, float]:
        """Return mean loss and accuracy without dropout."""
        parts = np.split(np.arange(len(y)), range(EVALUATED_ROWS, len(y), EVALUATED_ROWS))
        return self._mean(self._model.test_on_batch, X, y, weight, parts)

    def _mean(
        self,
        run: Callable[..., dict[str, Any]],
        X: FloatArray,
        y: NDArray[np.int32],
        weight: FloatArray,
        parts: Sequence[NDArray[np.intp]],
    ) -> tuple[float, float]:
        """Return loss and accuracy of parts of the spectra, each of which Keras averages by itself."""
        total = np.zeros(2)
        for rows in parts:
            self._model.reset_metrics()
            measured = run(X[rows], y[rows], sample_weight=weight[rows], return_dict=True)
            total += len(rows) * np.array([measured["loss"], measured["sparse_categorical_accuracy"]], dtype=np.float64)
        loss, accuracy = total / len(y)
        return float(loss), float(accuracy)

    def logits(self, X: FloatArray) -> FloatArray:
        """Return logarithms of the probabilities, (n_spectra, n_classes): of those their softmax is the same."""
        parts = [
            np.asarray(self._model.predict_on_batch(X[first : first + EVALUATED_ROWS]))
            for first in range(0, len(X), EVALUATED_ROWS)
        ]
        logits: FloatArray = np.log(np.clip(np.concatenate(parts), _LEAST, None))
        return logits
