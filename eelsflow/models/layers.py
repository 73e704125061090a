"""A network that trains on one core: the layers of a Keras description, forward and backward, and Adam.

Keras' cost for networks this small is not arithmetic but the hundred operations of a step, each with its own overhead.
Here a step is some forty calls of compiled loops. What is computed is what Keras computes, to rounding, and a test
compares gradients and trainings; Keras keeps describing the network, storing it and predicting with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.models import kernels
from eelsflow.models.kernels import Array

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7  # of Adam, Keras' defaults
EVALUATED_ROWS = 256
"""Spectra evaluated at once: their values stay in the cache."""


class NoLoopsError(Exception):
    """A layer, a setting or an order of layers that the loops do not compute; Keras trains such a network."""


class Layer:
    """One layer: values forward, gradients backward.

    Values are (spectrum, feature) or, in convolutional networks, (channel, position, spectrum).

    Attributes
    ----------
    trained
        Name and shape of what is trained, as Keras names and orders it.
    running
        Name and array of what is not trained but stored.
    """

    def __init__(self) -> None:
        self.trained: dict[str, tuple[int, ...]] = {}
        self.running: dict[str, Array] = {}
        self.value: dict[str, Array] = {}
        self.gradient: dict[str, Array] = {}
        self._rooms: dict[str, Array] = {}

    def room(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return memory to write into, the same at every call.

        Memory that is given back and asked for again at every step costs more than the arithmetic where the allocator
        returns it to the system at once, as Dask has its workers do.
        """
        size = math.prod(shape)
        if name not in self._rooms or self._rooms[name].size < size:
            self._rooms[name] = np.empty(size, np.float32)
        return self._rooms[name][:size].reshape(shape)

    def initialize(self, random: np.random.Generator) -> None:
        """Write the initial values."""

    def forward(self, x: Array, random: np.random.Generator | None) -> Array:
        """Return the layer's output; with `random` while training, without it afterwards."""
        raise NotImplementedError

    def backward(self, above: Array, *, wanted: bool) -> Array:
        """Given the gradient of the output, write those of what is trained and return that of the input, if wanted."""
        raise NotImplementedError


class _Dense(Layer):
    """Every feature with every unit; with ReLU or without."""

    def __init__(self, n_features: int, n_units: int, *, relu: bool) -> None:
        super().__init__()
        self.trained = {"kernel": (n_features, n_units), "bias": (n_units,)}
        self._relu = relu

    def initialize(self, random: np.random.Generator) -> None:
        self.value["kernel"][:] = glorot_uniform(random, self.trained["kernel"])
        self.value["bias"][:] = 0

    def forward(self, x: Array, random: np.random.Generator | None) -> Array:
        self._x, self._out = x, self.room("out", (len(x), *self.trained["bias"]))
        kernels.dense(x, self.value["kernel"], self.value["bias"], self._relu, self._out)
        return self._out

    def backward(self, above: Array, *, wanted: bool) -> Array:
        d_x, d_kernel, d_bias = self.room("d_x", self._x.shape), self.gradient["kernel"], self.gradient["bias"]
        values = above, self._x, self._out, self.value["kernel"], self._relu
        kernels.dense_gradient(*values, d_kernel, d_bias, d_x, wanted)
        return d_x


class _Convolution(Layer):
    """Filters slid over the positions, without padding; with ReLU or without."""

    def __init__(self, n_channels: int, n_filters: int, n_taps: int, *, relu: bool, first: bool) -> None:
        super().__init__()
        self.trained = {"kernel": (n_taps, n_channels, n_filters), "bias": (n_filters,)}
        self._relu, self._first = relu, first

    def initialize(self, random: np.random.Generator) -> None:
        kernel = glorot_uniform(random, self.trained["kernel"])
        if self._first:
            # Spectra are not negative, so a filter whose weights add up to less than nothing gives zeros after the
            # ReLU and never learns, and with two filters a quarter of the networks would be dead from the start.
            kernel *= np.where(kernel.sum(axis=(0, 1)) < 0, -1, 1).astype(np.float32)
        self.value["kernel"][:] = kernel
        self.value["bias"][:] = 0

    def forward(self, x: Array, random: np.random.Generator | None) -> Array:
        n_taps, _, n_filters = self.trained["kernel"]
        self._x, self._out = x, self.room("out", (n_filters, x.shape[1] - n_taps + 1, x.shape[2]))
        kernels.convolution(x, self.value["kernel"], self.value["bias"], self._relu, self._out)
        return self._out

    def backward(self, above: Array, *, wanted: bool) -> Array:
        kernel, d_kernel, d_bias = self.value["kernel"], self.gradient["kernel"], self.gradient["bias"]
        kernels.convolution_gradient(above, self._x, self._out, kernel, self._relu, d_kernel, d_bias)
        d_x = self.room("d_x", self._x.shape)
        if wanted:
            n_filters, n_positions, n_spectra = above.shape
            padded = self.room("padded", (n_filters, n_positions + 2 * (len(kernel) - 1), n_spectra))
            kernels.convolution_input_gradient(above, kernel, padded, d_x)
        return d_x


class _Normalization(Layer):
    """Batch normalisation of features, or of channels over positions and spectra."""

    def __init__(self, size: int, *, momentum: float, epsilon: float, of_channels: bool) -> None:
        super().__init__()
        self.trained = {"gamma": (size,), "beta": (size,)}
        self.running = {"moving_mean": np.zeros(size, np.float32), "moving_variance": np.ones(size, np.float32)}
        self._gain, self._epsilon = np.float32(1 - momentum), np.float32(epsilon)
        self._moments, self._normalized, self._gradient = (
            (kernels.row_moments, kernels.normalized_rows, kernels.normalized_rows_gradient)
            if of_channels
            else (kernels.column_moments, kernels.normalized_columns, kernels.normalized_columns_gradient)
        )

    def initialize(self, random: np.random.Generator) -> None:
        self.value["gamma"][:] = 1
        self.value["beta"][:] = 0

    def forward(self, x: Array, random: np.random.Generator | None) -> Array:
        self._x = x.reshape(len(x), -1)
        mean, variance = self.running["moving_mean"], self.running["moving_variance"]
        if random is not None:
            running, (mean, variance) = (mean, variance), self._moments(self._x)
            for average, now in zip(running, (mean, variance), strict=True):
                average += self._gain * (now - average)
        self._mean, self._deviation = mean, np.sqrt(variance + self._epsilon)
        out = self.room("out", self._x.shape)
        self._normalized(self._x, mean, self._deviation, self.value["gamma"], self.value["beta"], out)
        return out.reshape(x.shape)

    def backward(self, above: Array, *, wanted: bool) -> Array:
        values = above.reshape(self._x.shape), self._x, self._mean, self._deviation, self.value["gamma"]
        d_x = self.room("d_x", self._x.shape)
        self._gradient(*values, self.gradient["gamma"], self.gradient["beta"], d_x)
        return d_x.reshape(above.shape)


class _Dropout(Layer):
    """While training, a share of the values is set to zero and the others are scaled up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._kept = 1 - rate

    def forward(self, x: Array, random: np.random.Generator | None) -> Array:
        if random is None or self._kept == 1:
            return x
        self._drawn, out = self.room("drawn", x.shape), self.room("out", x.shape)
        random.random(dtype=np.float32, out=self._drawn)
        kernels.dropout(x, self._drawn, self._kept, out)
        return out

    def backward(self, above: Array, *, wanted: bool) -> Array:
        if self._kept == 1:
            return above
        d_x = self.room("d_x", above.shape)
        kernels.dropout(above, self._drawn, self._kept, d_x)
        return d_x


class _AveragePooling(Layer):
    """Means of neighbouring positions."""

    def forward(self, x: Array, random: np.random.Generator | None) -> Array:
        self._shape, out = x.shape, self.room("out", (x.shape[0], x.shape[1] // 2, x.shape[2]))
        kernels.pooling(x, out)
        return out

    def backward(self, above: Array, *, wanted: bool) -> Array:
        d_x = self.room("d_x", self._shape)
        kernels.pooling_gradient(above, d_x)
        return d_x


class _GlobalAverage(Layer):
    """Means over the positions: (channel, position, spectrum) becomes (spectrum, channel)."""

    def forward(self, x: Array, random: np.random.Generator | None) -> Array:
        self._shape, out = x.shape, self.room("out", (x.shape[2], x.shape[0]))
        kernels.average(x, out)
        return out

    def backward(self, above: Array, *, wanted: bool) -> Array:
        d_x = self.room("d_x", self._shape)
        kernels.average_gradient(above, d_x)
        return d_x


class _OneChannel(Layer):
    """(spectrum, position) becomes (channel, position, spectrum); nothing below it is trained."""

    def forward(self, x: Array, random: np.random.Generator | None) -> Array:
        out = self.room("out", (1, *x.T.shape))
        out[0] = x.T
        return out


def glorot_uniform(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw the weights of a layer as Keras does by default (Glorot & Bengio, AISTATS 2010)."""
    taps = math.prod(shape[:-2])
    limit = math.sqrt(6 / (taps * (shape[-2] + shape[-1])))
    return random.uniform(-limit, limit, shape).astype(np.float32)


_ANYTHING = object()
_SETTINGS: dict[str, dict[str, Any]] = {
    "InputLayer": {"batch_shape": _ANYTHING, "sparse": (False,), "ragged": (False,), "optional": (False,)},
    "Reshape": {"target_shape": _ANYTHING},
    "Dense": {"units": _ANYTHING, "activation": ("relu", "linear", "softmax"), "use_bias": (True,)},
    "Conv1D": {
        "filters": _ANYTHING,
        "kernel_size": _ANYTHING,
        "activation": ("relu", "linear"),
        "use_bias": (True,),
        "strides": (1,),
        "padding": ("valid",),
        "data_format": ("channels_last",),
        "dilation_rate": (1,),
        "groups": (1,),
    },
    "BatchNormalization": {
        "momentum": _ANYTHING,
        "epsilon": _ANYTHING,
        "axis": (-1,),
        "center": (True,),
        "scale": (True,),
        "synchronized": (False,),
        "renorm": (False,),
        "renorm_momentum": _ANYTHING,
        "renorm_clipping": (None,),
    },
    "Dropout": {"rate": _ANYTHING, "noise_shape": (None,)},
    "AveragePooling1D": {
        "pool_size": (2,),
        "strides": (2, None),
        "padding": ("valid",),
        "data_format": ("channels_last",),
    },
    "GlobalAveragePooling1D": {"data_format": ("channels_last",), "keepdims": (False,)},
    "Softmax": {"axis": (-1,)},
}
"""Kind of layer -> setting -> values that the loops compute."""

_OF_EVERY_LAYER: dict[str, Any] = {"name": _ANYTHING, "seed": _ANYTHING, "trainable": (True,), "dtype": ("float32",)}


def _check_settings(kind: str, config: dict[str, Any]) -> None:
    """Raise NoLoopsError if the loops do not compute a layer with these settings."""
    if kind not in _SETTINGS:
        raise NoLoopsError(f"no training for layers of the kind {kind}")
    known = {**_OF_EVERY_LAYER, **_SETTINGS[kind]}
    for name, value in config.items():
        if name.endswith("_initializer"):
            continue
        neutral = (None,) if name.endswith(("_regularizer", "_constraint", "_config")) else ()
        allowed = known.get(name, neutral)
        if isinstance(value, dict) and name == "dtype":
            value = value["config"].get("name")
        single = value[0] if isinstance(value, list) and len(value) == 1 else value
        if allowed is not _ANYTHING and not any(single is one or single == one for one in allowed):
            raise NoLoopsError(f"no training for {kind} with {name} {value!r}")


def has_loops(architecture: str) -> bool:
    """Return whether the loops compute a network that Keras describes, to rounding as Keras would."""
    try:
        return any(layer.trained for layer in layers_of(architecture))
    except NoLoopsError:
        return False


def layers_of(architecture: str) -> list[Layer]:
    """Return the layers of a sequential network that Keras describes; the softmax at its end is part of the loss.

    Raises
    ------
    NoLoopsError
        If there are no loops for a layer, a setting, or the order of the layers.
    """
    description = json.loads(architecture)
    if description["class_name"] != "Sequential":
        raise NoLoopsError(f"no training for a {description['class_name']} network")
    layers: list[Layer] = []
    size, convolutional, finished = 0, False, False  # size: of the features or channels so far
    for place, described in enumerate(description["config"]["layers"]):
        kind, config = described["class_name"], described["config"]
        if described.get("registered_name"):
            raise NoLoopsError(f"no training for the layer {described['registered_name']}")
        _check_settings(kind, config)
        if finished:
            raise NoLoopsError("no training for layers behind a softmax")
        if kind in ("Conv1D", "AveragePooling1D", "GlobalAveragePooling1D") and not convolutional:
            raise NoLoopsError(f"no training for {kind} before the spectrum is reshaped to one channel")
        if kind in ("Dense", "Softmax") and convolutional:
            raise NoLoopsError(f"no training for {kind} with positions")
        match kind:
            case "InputLayer":
                size = config["batch_shape"][-1]
                if place > 0 or len(config["batch_shape"]) != 2:
                    raise NoLoopsError("no training for spectra of another shape than (n_channels,)")
            case "Reshape":
                if place != 1 or list(config["target_shape"]) not in ([size, 1], [-1, 1]):
                    raise NoLoopsError("no training for a Reshape but that of the spectrum to one channel")
                size, convolutional = 1, True
                layers.append(_OneChannel())
            case "Dense":
                layers.append(_Dense(size, config["units"], relu=config["activation"] == "relu"))
                size, finished = config["units"], config["activation"] == "softmax"
            case "Conv1D":
                relu, first = config["activation"] == "relu", not any(layer.trained for layer in layers)
                layers.append(_Convolution(size, config["filters"], config["kernel_size"][0], relu=relu, first=first))
                size = config["filters"]
            case "BatchNormalization":
                options = {"momentum": config["momentum"], "epsilon": config["epsilon"]}
                layers.append(_Normalization(size, **options, of_channels=convolutional))
            case "Dropout":
                layers.append(_Dropout(config["rate"]))
            case "AveragePooling1D":
                layers.append(_AveragePooling())
            case "GlobalAveragePooling1D":
                layers.append(_GlobalAverage())
                convolutional = False
            case "Softmax":
                finished = True
    if not finished:
        raise NoLoopsError("no training for a network without a softmax at its end")
    return layers


class Trainer:
    """The weights of one network in training.

    Parameters
    ----------
    architecture
        Keras' description of a sequential network, JSON.
    seed
        Of the initial weights, of the order of the spectra and of dropout, drawn in this order.
    learning_rate
        Adam's.

    Attributes
    ----------
    layers
        From the spectra to the logits of the classes.
    random
        What everything is drawn from.
    """

    def __init__(self, architecture: str, *, seed: int, learning_rate: float) -> None:
        self.layers = layers_of(architecture)
        sizes = [math.prod(shape) for layer in self.layers for shape in layer.trained.values()]
        # One vector each, of which the layers hold views: a step of Adam is one loop.
        self._values, self._gradients, self._first, self._second = np.zeros((4, sum(sizes)), np.float32)
        start = 0
        for layer in self.layers:
            for name, shape in layer.trained.items():
                part = slice(start, start := start + math.prod(shape))
                layer.value[name] = self._values[part].reshape(shape)
                layer.gradient[name] = self._gradients[part].reshape(shape)
        self.random = np.random.default_rng(seed)
        self._learning_rate, self._n_steps = learning_rate, 0
        for layer in self.layers:
            layer.initialize(self.random)

    def start_with(self, weights: Sequence[Array], *, seed: int) -> None:
        """Take initial weights in Keras' order instead of those drawn; the seed is of all that is drawn from now on."""
        self.random = np.random.default_rng(seed)
        held = [array for layer in self.layers for array in (*layer.value.values(), *layer.running.values())]
        for array, given in zip(held, weights, strict=True):
            array[...] = given

    def weights(self) -> list[Array]:
        """Return copies of the weights in Keras' order."""
        return [array.copy() for layer in self.layers for array in (*layer.value.values(), *layer.running.values())]

    def run_epoch(
        self, X: Array, y: NDArray[np.int32], weight: Array, bounds: NDArray[np.int32]
    ) -> tuple[float, float]:
        """Train on every spectrum once, in random order, and return mean loss and accuracy as it went."""
        order, loss, n_correct = self.random.permutation(len(y)), 0.0, 0
        room = np.empty((int(np.diff(bounds).max()), X.shape[1]), np.float32)
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            rows = order[first:last]
            batch = np.take(X, rows, axis=0, out=room[: len(rows)], mode="clip")  # any other mode makes a copy first
            batch_loss, batch_correct = self.gradients(batch, y[rows], weight[rows])
            self._step()
            loss += batch_loss
            n_correct += batch_correct
        return loss / len(y), n_correct / len(y)

    def evaluate(self, X: Array, y: NDArray[np.int32], weight: Array) -> tuple[float, float]:
        """Return mean loss and accuracy without dropout."""
        loss, n_correct = 0.0, 0
        for first in range(0, len(y), EVALUATED_ROWS):
            part = slice(first, first + EVALUATED_ROWS)
            part_loss, part_correct, _ = self._forward(X[part], y[part], weight[part], None)
            loss += part_loss
            n_correct += part_correct
        return loss / len(y), n_correct / len(y)

    def logits(self, X: Array) -> Array:
        """Return the logits of the classes without dropout, (n_spectra, n_classes)."""
        parts = [self._pass(X[first : first + EVALUATED_ROWS], None) for first in range(0, len(X), EVALUATED_ROWS)]
        return np.concatenate([part.copy() for part in parts])

    def gradients(self, X: Array, y: NDArray[np.int32], weight: Array) -> tuple[float, int]:
        """Write the gradients of the mean loss of a batch; return the sum of its losses and its right answers."""
        loss, n_correct, gradient = self._forward(X, y, weight, self.random)
        lowest = next(i for i, layer in enumerate(self.layers) if layer.trained)
        for i in range(len(self.layers) - 1, lowest - 1, -1):
            gradient = self.layers[i].backward(gradient, wanted=i > lowest)
        return loss, n_correct

    def _forward(
        self, X: Array, y: NDArray[np.int32], weight: Array, random: np.random.Generator | None
    ) -> tuple[float, int, Array]:
        loss, n_correct, gradient = kernels.cross_entropy(self._pass(X, random), y, weight)
        return loss, n_correct, gradient

    def _pass(self, X: Array, random: np.random.Generator | None) -> Array:
        values = X
        for layer in self.layers:
            values = layer.forward(values, random)
        return values

    def _step(self) -> None:
        self._n_steps += 1
        rate = self._learning_rate * math.sqrt(1 - BETA_2**self._n_steps) / (1 - BETA_1**self._n_steps)
        vectors = self._values, self._gradients, self._first, self._second
        kernels.adam_step(*vectors, rate, BETA_1, BETA_2, EPSILON)


@lru_cache(maxsize=64)
def compile_training(architecture: str) -> None:
    """Compile or load what trainings of an architecture need, so that none is charged for being the first."""
    (n_channels,) = json.loads(architecture)["config"]["layers"][0]["config"]["batch_shape"][1:]
    trainer = Trainer(architecture, seed=0, learning_rate=0.0)
    some = np.zeros((2, n_channels), np.float32), np.zeros(2, np.int32), np.ones(2, np.float32)
    trainer.run_epoch(*some, np.array([0, 2], np.int32))
    trainer.evaluate(*some)
