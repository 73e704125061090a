"""The networks that come with it, described for Keras, and a trained network as a plain value."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import DataSetError, UnreadableFileError
from eelsflow.models.archives import strip_keras
from eelsflow.models.backend import LOCK, load_backend
from eelsflow.models.imported import TRUST, trusted_packages
from eelsflow.models.open_networks import build_open_network, foreign_types
from eelsflow.models.spec import NETWORKS, with_defaults
from eelsflow.store import read_json, write_json

CNN_BLOCKS = ((2, 9), (2, 7), (4, 7), (4, 5), (8, 3))
"""(filters, kernel) of each block: variant A of the published convolutional network, the likely parent of CNN (1)."""

NORM_MOMENTUM = 0.9
"""Of the running averages of batch normalisation. Keras' .99 leaves them near their start after the some hundred steps
that a training part of a few hundred spectra gives in 60 epochs, and validation then sees another network."""

PREDICTION_ROWS = 4096
"""Spectra predicted at once: bounds memory, and large enough that more would not be quicker."""

CNN_MIN_CHANNELS = 140
"""Five unpadded convolutions, each followed by a halving, leave one value of 140 channels and none of fewer."""


FCN_BLOCKS = ((8, 9), (16, 7), (8, 5))
"""(filters, kernel) of each block of the fully convolutional network: a sixteenth of the original's, for one core."""

FCN_LOST_CHANNELS = sum(kernel - 1 for _, kernel in FCN_BLOCKS)

NORM_EPSILON = 1e-3
"""Keras' default, written out for the training, which reads the description without Keras."""


def describe_network(base: str, n_channels: int, n_classes: int, params: Mapping[str, float] | None = None) -> str:
    """Describe a network in the JSON that Keras builds it from; Keras and TensorFlow are not needed for it.

    Parameters
    ----------
    base
        ``fcnn-1``, ``cnn-1``, ``cnn-2`` or ``fcn-1``.
    n_channels
        Length of a spectrum.
    n_classes
        Two or more; the output is a softmax over them.
    params
        ``dropout``, and ``units`` of the dense network; see `eelsflow.models.spec.DEFAULTS`.

    Raises
    ------
    DataSetError
        If the spectra are too short for the five halvings of a convolutional network.

    Notes
    -----
    ``fcnn-1``: the dense network of Chatzidakis & Botton, Sci. Rep. 9, 2126 (2019), "slightly modified" in the paper
    without saying how. Ours: a batch normalisation before the first layer standardises each channel, the layers have 64
    units (as in an older version of their code, 32 later), and the softmax has the classes of the study.
    ``cnn-1``: their convolutional network, variant A, with one output for each class. ``cnn-2``: the same with dropout
    .5. ``fcn-1``: the fully convolutional network of Wang, Yan & Oates (IJCNN 2017), smaller and unpadded: no pooling
    but that over all positions at the end, so that what it finds may lie anywhere. Ours in all: the momentum of batch
    normalisation, `NORM_MOMENTUM`; and the
    initial weights of the first convolution, see `eelsflow.models.layers`.
    """
    settings = with_defaults(base, dict(params or {}))
    if base == "fcnn-1":
        layers = _dense_layers(n_classes, settings)
    elif base == "fcn-1" and n_channels > FCN_LOST_CHANNELS:
        layers = _fully_convolutional_layers(n_channels, n_classes, settings)
    elif base == "fcn-1":
        raise DataSetError(
            f"spectra have {n_channels} channels; fcn-1 needs more than {FCN_LOST_CHANNELS}, which its unpadded "
            "convolutions take: widen elnes_window or use fcnn-1"
        )
    elif n_channels >= CNN_MIN_CHANNELS:
        layers = _convolutional_layers(n_channels, n_classes, settings)
    else:
        raise DataSetError(
            f"spectra have {n_channels} channels; {base} needs {CNN_MIN_CHANNELS} or more, because its five unpadded "
            "convolutions with a halving after each would leave nothing: widen elnes_window or use fcnn-1"
        )
    spectrum = _layer("InputLayer", "spectrum", batch_shape=[None, n_channels], dtype="float32")
    config = {"name": base, "layers": [spectrum, *layers]}
    return json.dumps({"module": "keras", "class_name": "Sequential", "config": config, "registered_name": None})


def _layer(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    config = {"name": name, **settings}
    return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}


def _norm(name: str) -> dict[str, Any]:
    return _layer("BatchNormalization", name, momentum=NORM_MOMENTUM, epsilon=NORM_EPSILON)


def _dense_layers(n_classes: int, settings: Mapping[str, float]) -> list[dict[str, Any]]:
    layers = [_norm("norm_input")]
    for block in (1, 2):
        layers += [
            _layer("Dropout", f"dropout_{block}", rate=settings["dropout"]),
            _layer("Dense", f"dense_{block}", units=settings["units"], activation="relu"),
            _norm(f"norm_{block}"),
        ]
    return [*layers, _layer("Dense", "classes", units=n_classes, activation="softmax")]


def _convolutional_layers(n_channels: int, n_classes: int, settings: Mapping[str, float]) -> list[dict[str, Any]]:
    layers = [_layer("Reshape", "channel", target_shape=[n_channels, 1])]
    for block, (filters, kernel) in enumerate(CNN_BLOCKS, start=1):
        layers += [
            _layer("Conv1D", f"conv_{block}", filters=filters, kernel_size=[kernel], activation="relu"),
            _layer("AveragePooling1D", f"pool_{block}", pool_size=[2]),
            _norm(f"norm_{block}"),
        ]
    return [*layers, *_pooled_head(n_classes, settings)]


def _pooled_head(n_classes: int, settings: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the layers behind the last block: one value a class and position, their mean over positions, softmax."""
    return [
        _layer("Dropout", "dropout", rate=settings["dropout"]),
        _layer("Conv1D", "conv_classes", filters=n_classes, kernel_size=[1], activation="linear"),
        _layer("GlobalAveragePooling1D", "average"),
        _layer("Softmax", "classes"),
    ]


def _fully_convolutional_layers(n_channels: int, n_classes: int, settings: Mapping[str, float]) -> list[dict[str, Any]]:
    layers = [_layer("Reshape", "channel", target_shape=[n_channels, 1])]
    for block, (filters, kernel) in enumerate(FCN_BLOCKS, start=1):
        layers += [
            _layer("Conv1D", f"conv_{block}", filters=filters, kernel_size=[kernel], activation="relu"),
            _norm(f"norm_{block}"),
        ]
    return [*layers, *_pooled_head(n_classes, settings)]


def build_network(base: str, n_channels: int, n_classes: int, params: Mapping[str, float] | None = None) -> Any:
    """Build an untrained network from its description.

    Parameters
    ----------
    base, n_channels, n_classes, params
        As for `describe_network`, or as for `eelsflow.models.open_networks.build_open_network`.

    Returns
    -------
    keras.Model
        Takes (n_spectra, n_channels), returns (n_spectra, n_classes) probabilities.

    Raises
    ------
    DataSetError
        If the spectra are too short for the five halvings of a convolutional network.
    MissingDependencyError
        If TensorFlow is not installed.
    """
    if base not in NETWORKS:
        return build_open_network(base, n_channels, n_classes, params or {})
    keras = load_backend().keras
    return keras.models.model_from_json(describe_network(base, n_channels, n_classes, params))


def architecture_table(model: Any) -> list[dict[str, Any]]:
    """Describe a network layer by layer, for a figure or a table.

    Returns
    -------
    list of dict
        ``type``, ``detail`` (what distinguishes this layer), ``output_shape`` (without the batch) and ``parameters``
        (how many, trained or not).
    """
    rows = []
    for layer in model.layers:
        kind, config = type(layer).__name__, layer.get_config()
        activation = config.get("activation")
        suffix = "" if activation in (None, "linear") else f", {activation}"
        match kind:
            case "Dense":
                detail = f"{config['units']} units{suffix}"
            case "Conv1D":
                detail = f"{config['filters']} filters of {config['kernel_size'][0]}{suffix}"
            case "AveragePooling1D":
                detail = f"over {config['pool_size'][0]}"
            case "Dropout":
                detail = f"{config['rate']:g}"
            case _:
                detail = ""
        rows.append(
            {
                "type": kind,
                "detail": detail,
                "output_shape": [int(size) for size in layer.output.shape[1:]],
                "parameters": int(layer.count_params()),
            }
        )
    return rows


@dataclass(frozen=True)
class Network:
    """A trained network as a value: it can be sent between processes and costs nothing until it is used.

    Attributes
    ----------
    architecture
        Keras' own description, JSON.
    weights
        In Keras' order.
    module
        What has to be imported before Keras can build it, because it has layers of somebody else.
    temperature
        What logits are divided by before the softmax; a network from here has it in its weights.
    """

    architecture: str
    weights: list[NDArray[np.float32]]
    module: str | None = None
    temperature: float = 1.0

    def to_keras(self) -> Any:
        """Return a Keras model of its own, with these weights."""
        model = _build(self.architecture, self.module)
        model.set_weights(self.weights)
        return model

    def predict_proba(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return (n_spectra, n_classes) probabilities; each row sums to one."""
        with LOCK:
            predictor = _predictor(self.architecture, self.module)
            predictor.model.set_weights(self.weights)
            probability = predictor.predict(np.asarray(X, dtype=np.float32))
        if self.temperature != 1.0:
            probability = probability ** (1 / self.temperature)
            probability /= probability.sum(axis=1, keepdims=True)
        return probability

    def save(self, path: Path) -> None:
        """Write a .keras file, and beside it what such a file cannot hold."""
        with LOCK:
            self.to_keras().save(path)
        strip_keras(path)
        if self.module is not None or self.temperature != 1.0:
            write_json(_beside(path), {"module": self.module, "temperature": self.temperature})

    @classmethod
    def load(cls, path: Path) -> Network:
        """Read a .keras file; code inside it is refused.

        Raises
        ------
        UnreadableFileError
            If it has layers of a package that the user does not trust: they are code that would be run.
        """
        more = read_json(_beside(path)) if _beside(path).exists() else {}
        module = more.get("module")
        with zipfile.ZipFile(path) as archive:
            foreign = foreign_types(archive.read("config.json").decode())
        if foreign:
            package = str(module).partition(".")[0]
            if module is None or package not in trusted_packages():
                raise UnreadableFileError(
                    f"{path} has layers of its own, {', '.join(foreign)}; loading them runs foreign code. If you trust "
                    f"where the model comes from, name the package in the environment: {TRUST}={package}"
                )
            importlib.import_module(module)
        with LOCK:
            model = load_backend().keras.models.load_model(path, compile=False, safe_mode=True)
            return cls(model.to_json(), model.get_weights(), module if foreign else None, more.get("temperature", 1.0))


def _beside(path: Path) -> Path:
    return path.with_name("network.json")


def _build(architecture: str, module: str | None) -> Any:
    if module is not None:
        importlib.import_module(module)  # registers its layers
    return load_backend().keras.models.model_from_json(architecture)


@lru_cache(maxsize=16)
def _predictor(architecture: str, module: str | None) -> _Predictor:
    # Tracing costs seconds, so one serves all networks of an architecture; it is used under the lock.
    return _Predictor(_build(architecture, module))


class _Predictor:
    """A Keras model and its compiled prediction, which takes any number of spectra."""

    def __init__(self, model: Any) -> None:
        self._tf = tf = load_backend().tf
        self.model = model
        spectra = tf.TensorSpec((None, self.model.input_shape[1]), tf.float32)
        self._predict = tf.function(lambda X: self.model(X, training=False), input_signature=(spectra,))

    def predict(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        parts = [
            self._predict(self._tf.constant(X[first : first + PREDICTION_ROWS])).numpy()
            for first in range(0, len(X), PREDICTION_ROWS)
        ]
        if not parts:
            return np.empty((0, self.model.output_shape[1]))
        probabilities = np.concatenate(parts).astype(np.float64)
        normalized: NDArray[np.float64] = probabilities / probabilities.sum(axis=1, keepdims=True)
        return normalized
