"""What a model decides between two classes by: a sum over channels where it is one, else its log-odds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eelsflow.models.bundle import LEAST_WEIGHT, ModelBundle
from eelsflow.models.classifier import Classifier
from eelsflow.models.discriminant import Discriminant
from eelsflow.models.estimators import Estimator, scores
from eelsflow.models.svm import Svm, decision_values
from eelsflow.preprocess.features import FeatureTransform
from eelsflow.preprocess.shapes import to_shapes

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
    weight
        Of the places, shape (n, places).
    mean
        Shape (n, channels): the vectors of the mean spectrum, with the counts that each spectrum has in the window.
    """

    vectors: NDArray[np.float32]
    weight: Floats
    mean: NDArray[np.float32]


def read_spectra(
    bundle: ModelBundle,
    wide: NDArray[np.float32],
    mean: Floats,
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
        The spectrum that they are compared with, as the share of the window's counts in each of its channels.
    places
        Where on the axis each is read, channels, and with which weight; shape (n, places) each.
    """
    transform = bundle.transform
    place, weight = places
    with _keeping(transform):
        vectors = np.stack(
            [
                transform.apply(wide, shift_ev=-moved * transform.axis.dispersion if moved.any() else None)
                for moved in place.T
            ],
            axis=1,
        )
        counts = np.abs(to_shapes(wide, None, transform.axis, bundle.edge).counts)
        scaled = np.full(wide.shape, np.nan, dtype=np.float32)
        scaled[:, transform.channels] = mean * np.where(counts > 0, counts, 1.0)[:, None]
        return Reading(vectors, weight, transform.apply(scaled))


@contextmanager
def _keeping(transform: FeatureTransform) -> Iterator[None]:
    """Leave what the transform says of its latest spectra as it was: an explanation is no use of the model."""
    padded = transform.padded
    yield
    transform.padded = padded


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
        From what the machine sees, (n, channels), to the decision values; None where the log-odds are taken.
    weights
        Of the channels, shape (channels,), where the decision value is a sum over them; else None.
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
        """Find out whether the decision of a model is a sum over the channels of what it sees.

        Notes
        -----
        Asked, not looked up: a decision value whose differences between unit vectors and nothing explain those of
        training spectra is linear, whatever the machine is called. Inputs that are spectra still (their length set to
        one) keep their channels; features made of many channels (running sums, ratios, convolutions) do not. A model
        that looks for its spectra on the axis sums probabilities over places, which is not linear.
        """
        classifier = bundle.classifier
        score = _score_of(classifier, pair)
        if score is not None and bundle.registration is None:
            inputs = classifier.inputs
            if inputs is None or inputs.kind == "unit":
                seen = classifier.reference if inputs is None else inputs.apply(classifier.reference)
                weights = _linear_weights(score, np.asarray(seen, dtype=np.float64))
                if weights is not None:
                    unit = "log-odds" if isinstance(classifier.model, Discriminant) else "decision value"
                    return cls(bundle, pair, score, weights, unit)
        return cls(bundle, pair, None, None, "log-odds")

    @property
    def is_exact(self) -> bool:
        """Whether contributions are the terms of a sum."""
        return self.weights is not None

    def values(self, reading: Reading) -> Floats:
        """Return the decision of every spectrum, (n,)."""
        if self.score is not None:
            return self.score(self._seen(reading.vectors[:, 0]))
        return self._log_odds(reading.vectors, reading.weight)

    def of_mean(self, reading: Reading) -> Floats:
        """Return the decision of the mean spectrum at the counts of every spectrum, (n,)."""
        alone = Reading(reading.mean[:, None], np.ones((len(reading.mean), 1)), reading.mean)
        return self.values(alone)

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
        Exact: the sum over the band's channels of weight times (spectrum - mean); over all bands it is the decision
        of the spectrum minus that of the mean. Else by occlusion: what the decision loses where the band is replaced
        by that of the mean. Both replace a band of the *vector*, after normalisation and principal components. A
        linear machine has the same contributions either way, so that models may be compared; and a band replaced
        before would, by the new range or area of the spectrum, move every channel of the vector, so that its
        contribution would be that of other bands as well.
        """
        if self.weights is not None:
            terms = self.weights * (self._seen(reading.vectors[:, 0]) - self._seen(reading.mean))
            return np.asarray(np.add.reduceat(terms, starts[:-1], axis=1))
        n, n_bands = len(reading.vectors), starts.size - 1
        without = np.empty((n_bands, n))
        at_once = max(_ROWS_AT_ONCE // max(n, 1), 1)  # a call of a network costs more than what it is called with
        for first in range(0, n_bands, at_once):
            numbers = range(first, min(first + at_once, n_bands))
            vectors = np.repeat(reading.vectors[None], len(numbers), axis=0)
            for copy, number in zip(vectors, numbers, strict=True):
                band = slice(starts[number], starts[number + 1])
                copy[:, :, band] = reading.mean[:, None, band]
            weight = np.tile(reading.weight, (len(numbers), 1))
            without[numbers] = self._log_odds(vectors.reshape(-1, *vectors.shape[2:]), weight).reshape(-1, n)
        return np.asarray((self.values(reading) - without).T)

    def _seen(self, vectors: NDArray[np.float32]) -> Floats:
        inputs = self.bundle.classifier.inputs
        return np.asarray(vectors if inputs is None else inputs.apply(vectors), dtype=np.float64)

    def _log_odds(self, vectors: NDArray[np.float32], weight: Floats) -> Floats:
        asked = weight > LEAST_WEIGHT
        summed = np.zeros((len(vectors), len(self.bundle.classes)))
        rows = np.nonzero(asked)[0]
        probability = self.bundle.classifier.predict_proba(vectors[asked])
        np.add.at(summed, rows, probability * weight[asked][:, None])
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
