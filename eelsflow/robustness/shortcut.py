"""What else could tell the classes apart: a classifier on what is not chemistry, and models among equal noise.

Classes that were recorded on different days, at other doses or thicknesses, can be told from that alone, and a score on
held-out spectra of the same recordings does not show it. So the conditions of each spectrum are kept beside it, and a
classifier of them alone is scored as the models are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from eelsflow.dataset.conditions import CONDITIONS, NOISE
from eelsflow.robustness.scores import Score, bootstrap_score

MARGIN = 0.05
"""Balanced accuracy above chance from which on labels are said to be told without chemistry."""

N_BINS = 10
"""Of noise, among which spectra of the classes are matched."""

_MOST_SPECTRA = 4000  # that the classifier is trained on


class Shortcut(BaseModel):
    """What a classifier of the conditions alone scored, one preset.

    Attributes
    ----------
    accuracy
        Balanced, on held-out acquisitions or, without groups, on random spectra.
    chance
        One over the number of classes.
    told
        Whether the labels can be told so: by more than `MARGIN`, and beyond the interval.
    by
        The conditions that told most, the first first.
    """

    model_config = ConfigDict(frozen=True)

    accuracy: Score
    chance: float
    told: bool
    by: tuple[str, ...]


def fit_on_conditions(
    conditions: NDArray[np.float32],
    label: NDArray[np.str_],
    train: NDArray[np.intp],
    test: NDArray[np.intp],
    *,
    seed: int,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which test spectra a classifier of conditions gets right, and how much each condition weighs in it.

    Parameters
    ----------
    conditions
        Shape (n, conditions); NaN where one is not known.
    label
        Shape (n,).
    train, test
        Rows.
    seed
        Of the classifier and of the choice of training spectra.

    Notes
    -----
    A random forest with balanced classes: it needs no scale, takes what is missing, and finds what depends on two
    conditions at once.
    """
    from sklearn.ensemble import RandomForestClassifier

    some = np.random.default_rng([seed, 0x5C]).permutation(train)[:_MOST_SPECTRA]
    forest = RandomForestClassifier(100, min_samples_leaf=5, class_weight="balanced", random_state=seed)
    known = np.isfinite(conditions[some]).any(axis=0)
    forest.fit(conditions[some][:, known], label[some])
    weight = np.zeros(conditions.shape[1])
    weight[known] = forest.feature_importances_
    return np.asarray(forest.predict(conditions[test][:, known]) == label[test]), weight


def judge_shortcut(
    correct: Sequence[NDArray[np.bool_]],
    labels: Sequence[NDArray[np.str_]],
    groups: Sequence[NDArray[np.str_] | None],
    weights: Sequence[NDArray[np.float64]],
) -> Shortcut:
    """Return whether the labels can be told without chemistry, from what `fit_on_conditions` gave for each seed."""
    accuracy = bootstrap_score(correct, labels, groups, balanced=True)
    assert accuracy is not None  # there is a seed
    chance = 1.0 / len(set(np.concatenate(labels).tolist()))
    above = accuracy.mean - chance > MARGIN and (accuracy.low is None or accuracy.low > chance)
    weight = np.mean(weights, axis=0)
    by = tuple(CONDITIONS[place] for place in np.argsort(-weight)[:3] if weight[place] > 1.0 / len(CONDITIONS))
    return Shortcut(accuracy=accuracy, chance=chance, told=bool(above), by=by)


def among_equal_noise(conditions: NDArray[np.float32], label: NDArray[np.str_], *, seed: int) -> NDArray[np.intp]:
    """Return rows of spectra of which every class has as many at each level of noise, ascending.

    Parameters
    ----------
    conditions, label
        Of test spectra, (n, conditions) and (n,).
    seed
        Of the choice.
    """
    noise = conditions[:, CONDITIONS.index(NOISE)]
    names = np.unique(label)
    # Bins that hold as many of all classes together as of any one, so that a rare class does not fall into one bin.
    edges = np.quantile(noise, np.linspace(0, 1, N_BINS + 1)[1:-1])
    of_bin = np.searchsorted(edges, noise)
    rng = np.random.default_rng([seed, 0xE0])
    chosen: list[NDArray[Any]] = []
    for number in range(N_BINS):
        members = [np.flatnonzero((of_bin == number) & (label == name)) for name in names]
        n_each = min(part.size for part in members)
        chosen += [rng.permutation(part)[:n_each] for part in members]
    return np.sort(np.concatenate(chosen))
