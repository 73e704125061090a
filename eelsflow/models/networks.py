"""The three networks of the study, as Keras models, and a trained network as a plain value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import DataSetError
from eelsflow.models.backend import LOCK, load_backend
from eelsflow.models.spec import with_defaults

CNN_BLOCKS = ((2, 9), (2, 7), (4, 7), (4, 5), (8, 3))
"""(filters, kernel) of each block: variant A of the published convolutional network, the likely parent of CNN (1)."""

NORM_MOMENTUM = 0.9
"""Of the running averages of batch normalisation. Keras' .99 leaves them near their start after the some hundred steps
that a training part of a few hundred spectra gives in 60 epochs, and validation then sees another network."""

CNN_MIN_CHANNELS = 140
"""Five unpadded convolutions, each followed by a halving, leave one value of 140 channels and none of fewer."""


def build_network(base: str, n_channels: int, n_classes: int, params: Mapping[str, float] | None = None) -> Any:
    """Build an untrained network.

    Parameters
    ----------
    base
        ``fcnn-1``, ``cnn-1`` or ``cnn-2``.
    n_channels
        Length of a spectrum.
    n_classes
        Two or more; the output is a softmax over them.
    params
        ``dropout``, and ``units`` of the dense network; see `eelsflow.models.spec.DEFAULTS`.

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

    Notes
    -----
    ``fcnn-1``: the dense network of Chatzidakis & Botton, Sci. Rep. 9, 2126 (2019), "slightly modified" in the paper
    without saying how. Ours: a batch normalisation before the first layer standardises each channel, the layers have 64
    units (as in an older version of their code, 32 later), and the softmax has the classes of the study.
    ``cnn-1``: their convolutional network, variant A, with one output for each class. ``cnn-2``: the same with dropout
    .5. Ours in all three: the momentum of batch normalisation, `NORM_MOMENTUM`; and see `CompiledNetwork.reset` for the
    initial weights.
    """
    keras = load_backend().keras
    layers = keras.layers
    settings = with_defaults(base, dict(params or {}))
    stack = [keras.Input((n_channels,), name="spectrum")]
    if base == "fcnn-1":
        stack.append(layers.BatchNormalization(momentum=NORM_MOMENTUM, name="norm_input"))
        for block in (1, 2):
            stack += [
                layers.Dropout(settings["dropout"], name=f"dropout_{block}"),
                layers.Dense(settings["units"], activation="relu", name=f"dense_{block}"),
                layers.BatchNormalization(momentum=NORM_MOMENTUM, name=f"norm_{block}"),
            ]
        stack.append(layers.Dense(n_classes, activation="softmax", name="classes"))
        return keras.Sequential(stack, name=base)
    if n_channels < CNN_MIN_CHANNELS:
        raise DataSetError(
            f"spectra have {n_channels} channels; {base} needs {CNN_MIN_CHANNELS} or more, because its five unpadded "
            "convolutions with a halving after each would leave nothing: widen elnes_window or use fcnn-1"
        )
    stack.append(layers.Reshape((n_channels, 1), name="channel"))
    for block, (filters, kernel) in enumerate(CNN_BLOCKS, start=1):
        stack += [
            layers.Conv1D(filters, kernel, activation="relu", name=f"conv_{block}"),
            layers.AveragePooling1D(2, name=f"pool_{block}"),
            layers.BatchNormalization(momentum=NORM_MOMENTUM, name=f"norm_{block}"),
        ]
    stack += [
        layers.Dropout(settings["dropout"], name="dropout"),
        layers.Conv1D(n_classes, 1, name="conv_classes"),
        layers.GlobalAveragePooling1D(name="average"),
        layers.Softmax(name="classes"),
    ]
    return keras.Sequential(stack, name=base)


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
    """

    architecture: str
    weights: list[NDArray[np.float32]]

    def to_keras(self) -> Any:
        """Return a Keras model of its own, with these weights."""
        model = load_backend().keras.models.model_from_json(self.architecture)
        model.set_weights(self.weights)
        return model

    def predict_proba(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return (n_spectra, n_classes) probabilities; each row sums to one."""
        from eelsflow.models.training import compiled  # it trains what this module describes

        with LOCK:
            runtime = compiled(self.architecture)
            runtime.model.set_weights(self.weights)
            return runtime.predict(np.asarray(X, dtype=np.float32))

    def save(self, path: Path) -> None:
        """Write a .keras file."""
        with LOCK:
            self.to_keras().save(path)

    @classmethod
    def load(cls, path: Path) -> Network:
        """Read a .keras file; code inside it is refused."""
        with LOCK:
            model = load_backend().keras.models.load_model(path, compile=False, safe_mode=True)
            return cls(model.to_json(), model.get_weights())
