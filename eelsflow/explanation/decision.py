"""What a model decides between two classes by: a sum over channels where it is one, else its log-odds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eelsflow.models.bundle import LEAST_WEIGHT, ModelBundle
from eelsflow.models.classifier import Classifier
from eelsflow.models.discriminant import Discriminant
from eelsflow.models.estimators import Estimator, scores
from eelsflow.models.svm import Svm, decision_values
from eelsflow.preprocess.presets import Normalize

LEAST_PROBABILITY = 1e-6
"""Of a class whose log-odds are taken: beyond them a probability says nothing but that the model is sure (ours)."""

LINEAR = 1e-7
"""By how much, relative to the largest, decision values may differ from a sum over channels that is called exact."""

_ROWS_AT_ONCE = 4096

Floats = NDArray[np.float64]
Score = Callable[[NDArray[np.floating[Any]]], Floats]


@dataclass(frozen=True)
class Reading:
    """Spectra as a model reads them.

    Attributes
    ----------
    vectors
        Shape (n, places, channels): at one place on the axis, or at each that is summed over.
    before
        Same shape: before principal components, see `FeatureTransform.before_components`.
    weight
        Of the places, shape (n, places).
    mean
        What the spectra before components are compared with, shape (n, channels).
    """

    vectors: NDArray[np.float32]
    before: NDArray[np.float32]
    weight: Floats
    mean: NDArray[np.float32]


def read_spectra(
    bundle: ModelBundle,
    wide: NDArray[np.float32],
    mean: NDArray[np.float32],
    places: tuple[NDArray[np.intp], Floats],
) -> Reading:
    """Return spectra as the model reads them, at places that were found before.

    Parameters
    ----------
    bundle
        The model.
    wide
        Prepared spectra, shape (n, wide channels).
    mean
        What they are compared with, scaled as vectors are, shape (channels,).
    places
        Where on the axis each is read, channels, and with which weight; shape (n, places) each.
    """
    transform = bundle.transform
    place, weight = places
    read = [
        transform.before_components(wide, shift_ev=-moved * transform.axis.dispersion if moved.any() else None)
        for moved in place.T
    ]
    vectors, before = (np.stack(one, axis=1) for one in zip(*read, strict=True))
    means = np.broadcast_to(mean, (len(wide), mean.size))
    normalize = bundle.preset.find(Normalize)
    if normalize is None or normalize.method == "none":  # vectors are as long as spectra have counts
        length = np.abs(vectors[:, 0]).sum(axis=1, keepdims=True) / np.abs(mean).sum()
        means = np.asarray(means * length, dtype=np.float32)
    return Reading(vectors, before, weight, means)


@dataclass(frozen=True)
class Decision:
    """What decides between two classes; positive for the first of them.

    Attributes
    ----------
    bundle
        The model.
    pair
        Numbers of the two classes.
    score
        From vectors, (n, channels), to the decision values; None where the log-odds are taken.
    weights
        Of the channels before principal components, shape (channels,), where the decision value is a sum over them;
        else None.
    unit
        Of the decision.
    """

    bundle: ModelBundle
    pair: tuple[int, int]
    score: Score | None
    weights: Floats | None
    unit: str

    @classmethod
    def of(cls, bundle: ModelBundle, pair: tuple[int, int]) -> Self:
        """Find out whether the decision of a model is a sum over the channels of a spectrum.

        Notes
        -----
        Asked, not looked up: a decision value whose differences between unit vectors and nothing explain those of
        training spectra is linear, whatever the machine is called. Features made of many channels (cosines, running
        sums, ratios, convolutions) are not a sum over channels; and a model that looks for its spectra on the axis
        sums probabilities over places, which is none either.
        """
        classifier = bundle.classifier
        score = _score_of(classifier, pair)
        if score is None or bundle.registration is not None or classifier.inputs is not None:
            return cls(bundle, pair, None, None, "log-odds")
        weights = _linear_weights(score, np.asarray(classifier.reference, dtype=np.float64))
        if weights is None:
            return cls(bundle, pair, None, None, "log-odds")
        components = bundle.transform.component_map
        unit = "log-odds" if isinstance(classifier.model, Discriminant) else "decision value"
        return cls(bundle, pair, score, weights if components is None else components @ weights, unit)

    @property
    def is_exact(self) -> bool:
        """Whether contributions are the terms of a sum."""
        return self.weights is not None

    def values(self, reading: Reading) -> Floats:
        """Return the decision of every spectrum, (n,)."""
        return self._values(reading.vectors, reading.weight)

    def at_mean(self, reading: Reading) -> Floats:
        """Return the decision of the mean, with the scale and at the places of every spectrum, (n,)."""
        return self._values(self._replaced(reading, slice(None)), reading.weight)

    def contributions(self, reading: Reading, starts: NDArray[np.intp]) -> Floats:
        """Return what each band adds to the decision, (n, bands).

        Parameters
        ----------
        reading
            Spectra.
        starts
            Channels of the vector that bands begin with, and the channel after the last, shape (bands + 1,).

        Notes
        -----
        What the decision loses where a band of the prepared spectrum is replaced by that of the mean, brought to the
        offset and scale that the spectrum was normalised by; principal components are taken of what has been replaced.
        Offset and scale are kept as the place on the axis is: found anew, a band would move all channels of the vector,
        and its contribution would be theirs as well. Where the decision is a sum over channels, these are its terms,
        and add up to `values` minus `at_mean`.
        """
        if self.weights is not None:
            terms = self.weights * (reading.before[:, 0].astype(np.float64) - reading.mean)
            return np.asarray(np.add.reduceat(terms, starts[:-1], axis=1))
        n, n_bands = len(reading.vectors), starts.size - 1
        without = np.empty((n_bands, n))
        at_once = max(_ROWS_AT_ONCE // max(n, 1), 1)  # a call of a network costs more than what it is called with
        for first in range(0, n_bands, at_once):
            numbers = range(first, min(first + at_once, n_bands))
            vectors = np.concatenate(
                [self._replaced(reading, slice(*starts[number : number + 2])) for number in numbers]
            )
            without[numbers] = self._values(vectors, np.tile(reading.weight, (len(numbers), 1))).reshape(-1, n)
        return np.asarray((self.values(reading) - without).T)

    def _replaced(self, reading: Reading, band: slice) -> NDArray[np.float32]:
        """Return the vectors of spectra in which a band is that of the mean, (n, places, channels)."""
        change = reading.mean[:, None, band] - reading.before[:, :, band]
        if self._components is not None:
            return np.asarray(reading.vectors + change @ self._components[band], dtype=np.float32)
        vectors = reading.vectors.copy()
        vectors[:, :, band] += change
        return vectors

    @cached_property
    def _components(self) -> Floats | None:
        return self.bundle.transform.component_map

    def _values(self, vectors: NDArray[np.float32], weight: Floats) -> Floats:
        if self.score is not None:
            return self.score(vectors[:, 0])
        asked = weight > LEAST_WEIGHT
        summed = np.zeros((len(vectors), len(self.bundle.classes)))
        probability = self.bundle.classifier.predict_proba(vectors[asked])
        np.add.at(summed, np.nonzero(asked)[0], probability * weight[asked][:, None])
        summed /= summed.sum(axis=1, keepdims=True)
        one, other = np.log(np.clip(summed[:, list(self.pair)], LEAST_PROBABILITY, None)).T
        return np.asarray(one - other)


def _score_of(classifier: Classifier, pair: tuple[int, int]) -> Score | None:
    """Return the decision value between two classes, positive for the first; None for a model that has none."""
    model = classifier.model
    machine: Any
    match model:
        case Svm():
            machine, values = model.machine, partial(decision_values, model.machine)
        case Discriminant():
            machine, values = model.model, model.model.decision_function
        case Estimator() if hasattr(model.estimator, "decision_function"):
            machine, values = model.estimator, partial(scores, model.estimator)
        case _:
            return None
    n_classes = len(classifier.classes_)
    n_pairs = n_classes * (n_classes - 1) // 2

    def score(seen: NDArray[np.floating[Any]]) -> Floats:
        found = np.asarray(values(np.asarray(seen, dtype=np.float64)), dtype=np.float64).reshape(len(seen), -1)
        one, other = pair
        if n_classes == 2:  # scikit-learn's values are positive for the second class
            return found[:, 0] if one == 1 else -found[:, 0]
        if hasattr(machine, "support_vectors_") and found.shape[1] == n_pairs:
            low, high = min(pair), max(pair)
            column = low * n_classes - low * (low + 1) // 2 + high - low - 1
            return found[:, column] if one == low else -found[:, column]
        return np.asarray(found[:, one] - found[:, other])

    return score


def _linear_weights(score: Score, seen: Floats) -> Floats | None:
    """Return the weights of channels, (channels,), if the decision values of some vectors (n, channels) are a sum."""
    at_nothing = score(np.zeros((1, seen.shape[1])))
    weights = score(np.eye(seen.shape[1])) - at_nothing
    found = score(seen)
    scale = float(np.abs(found).max())
    return weights if np.abs(seen @ weights + at_nothing - found).max() <= LINEAR * scale else None
