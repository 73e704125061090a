"""A control that ought to be at chance: what acquisitions alone give under a random split of pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from eelsflow.dataset.splits import split_spectra
from eelsflow.errors import DataSetError

FEWEST_GROUPS = 4
"""Of a class, so that either label has two acquisitions and the labels can be drawn in more than one way."""


class Predictor(Protocol):
    """What is fitted and predicts, as in scikit-learn."""

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on vectors (n, features) and labels (n,)."""
        ...

    def predict(self, X: Any) -> Any:
        """Return labels (n,)."""
        ...


class Control(BaseModel):
    """Accuracy for two labels that mean nothing; it is above chance only because acquisitions are recognised."""

    model_config = ConfigDict(frozen=True)

    mean: float
    draws: tuple[float, ...]
    """One for each draw of the labels."""
    chance: float = 0.5


def quick_classifier() -> Predictor:
    """Return an RBF support vector machine with fixed parameters, quick and flexible."""
    from sklearn.svm import SVC

    machine: Predictor = SVC(C=100.0, gamma="scale", class_weight="balanced")
    return machine


def shuffled_label_control(
    vectors: NDArray[np.float32],
    group: NDArray[np.str_],
    label: NDArray[np.str_],
    *,
    make_predictor: Callable[[], Predictor] = quick_classifier,
    n_draws: int = 10,
    test_fraction: float = 0.35,
    max_spectra: int = 3000,
    seed: int = 0,
) -> Control:
    """Measure how well labels drawn for whole acquisitions are predicted under a random split of pixels.

    Parameters
    ----------
    vectors
        Shape (n, features), of all labelled spectra; not modified.
    group
        Shape (n,): the acquisition of each.
    label
        Shape (n,): the true class of each, from which the drawn labels are kept independent.
    make_predictor
        Called for each draw, for a fresh one.
    n_draws
        How many times labels are drawn.
    test_fraction
        Of the random split.
    max_spectra
        As many are drawn at most for a draw of the labels, to stay quick.
    seed
        Of the draws.

    Returns
    -------
    Control
        Near .5: the random split measures the classes. Near 1: acquisitions are recognised whatever they hold, and an
        accuracy under this split says nothing of the classes.

    Raises
    ------
    DataSetError
        If no class has two acquisitions: labels of whole acquisitions then cannot differ from the classes.

    Notes
    -----
    Half of a class's acquisitions get the one label, half the other (of an odd number one is left out), and as many of
    their spectra take part as the smaller half has: the labels are balanced within each class. Where a class has
    `FEWEST_GROUPS` acquisitions or more, the draw stays within the spectra of that class (the classes take turns), so
    that the true class cannot help; where none has, all classes take part, each halved, so that it cannot either.
    Acquisitions of several classes count to their commonest, and only their spectra of it take part.

    Examples
    --------
    Six acquisitions of one phase, each with an offset of its own:

    >>> rng = np.random.default_rng(0)
    >>> group = np.repeat(list("abcdef"), 50)
    >>> offset = np.repeat(rng.normal(0, 1, (6, 8)), 50, axis=0)
    >>> vectors = offset + 0.1 * rng.standard_normal((300, 8))
    >>> shuffled_label_control(vectors, group, np.full(300, "FeO"), n_draws=3).mean
    1.0
    """
    groups_of = _groups_of_classes(label, group)
    alone = [name for name, names in groups_of.items() if len(names) >= FEWEST_GROUPS]
    together = [name for name, names in groups_of.items() if len(names) >= 2]
    if not together:
        raise DataSetError(
            f"acquisitions per class: { {name: len(names) for name, names in groups_of.items()} }; labels cannot be "
            "drawn for whole acquisitions of a class unless it has two: record more, or do without this control"
        )
    draws = []
    for number in range(n_draws):
        rng = np.random.default_rng([seed, 0xC0, number])
        taking_part = [alone[number % len(alone)]] if alone else together
        chosen, drawn = _draw_labels(label, group, {name: groups_of[name] for name in taking_part}, rng)
        if chosen.size > max_spectra:
            fewer = rng.permutation(chosen.size)[:max_spectra]
            chosen, drawn = chosen[fewer], drawn[fewer]
        train, test = split_spectra(drawn, None, by="pixel", test_fraction=test_fraction, seed=number)
        predictor = make_predictor().fit(vectors[chosen[train]], drawn[train])
        draws.append(float(np.mean(np.asarray(predictor.predict(vectors[chosen[test]])) == drawn[test])))
    return Control(mean=float(np.mean(draws)), draws=tuple(draws))


def _groups_of_classes(label: NDArray[np.str_], group: NDArray[np.str_]) -> dict[str, list[str]]:
    """Return the groups in which each class is the commonest."""
    groups: dict[str, list[str]] = {}
    for name in np.unique(group):
        present, counts = np.unique(label[group == name], return_counts=True)
        groups.setdefault(str(present[counts.argmax()]), []).append(str(name))
    return groups


def _draw_labels(
    label: NDArray[np.str_], group: NDArray[np.str_], groups_of: dict[str, list[str]], rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.str_]]:
    """Return which spectra take part, and a label for each: "first" or "second", equally many in each class."""
    chosen, drawn = [], []
    for name, names in groups_of.items():
        half = len(names) // 2
        order = rng.permutation(names)[: 2 * half]
        members = [np.flatnonzero((label == name) & np.isin(group, part)) for part in (order[:half], order[half:])]
        n_each = min(part.size for part in members)
        chosen += [rng.permutation(part)[:n_each] for part in members]
        drawn += [np.repeat(["first", "second"], n_each)]
    return np.concatenate(chosen), np.concatenate(drawn)
