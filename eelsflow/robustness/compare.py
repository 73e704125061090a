"""Every two models of a study compared on the same spectra: the difference, its interval, and whether it is one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import stdtr

N_RESAMPLES = 4000
SIGNIFICANT = 0.05

_AT_ONCE = 500  # resamples: bounds memory where every spectrum is a cluster


class Comparison(BaseModel):
    """One model less another.

    Attributes
    ----------
    first, second
        Names.
    difference
        Accuracy of the first less that of the second, mean over seeds.
    low, high
        Its 95 % interval, by resampling clusters.
    p
        Two-sided, of no difference; by the same resampling, and where no draw crosses zero by Student's t of the
        difference over the draws' standard deviation.
    p_holm
        The same after Holm's correction for all comparisons that were made with it.
    """

    model_config = ConfigDict(frozen=True)

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def is_one(self) -> bool:
        """Whether the two differ at the level of .05, corrected."""
        return self.p_holm < SIGNIFICANT


def compare_models(
    correct: Mapping[str, Sequence[NDArray[np.bool_]]],
    labels: Sequence[NDArray[np.str_]],
    clusters: Sequence[NDArray[np.generic]],
    *,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every two models whose seeds were tested on the same spectra.

    Parameters
    ----------
    correct
        Model -> for each seed, whether each test spectrum was right, (n_test,).
    labels
        For each seed, the class of each test spectrum.
    clusters
        For each seed, what each test spectrum belongs to: its acquisition or, where single spectra were held out, its
        number in the data set. The same name is the same cluster in every seed.
    seed
        Of the resampling.

    Returns
    -------
    list of Comparison
        Largest difference first; none for a single model or a single cluster.

    Notes
    -----
    Cluster bootstrap (Cameron, Gelbach & Miller 2008): acquisitions are drawn with replacement, those of each majority
    class on their own, and every model is scored on the same draw; a cluster brings all its spectra of all seeds. Holm
    (1979) corrects for the number of pairs: of twenty models there are 190, for which the share of some thousand draws
    is too coarse, so that beyond the outermost draw the tail is that of t, with as many degrees of freedom as there are
    clusters less one of each class (ours).
    """
    models = list(correct)
    names = np.unique(np.concatenate([np.asarray(cluster) for cluster in clusters]))
    if len(models) < 2 or names.size < 2:
        return []
    of_cluster = [np.searchsorted(names, np.asarray(cluster)) for cluster in clusters]
    classes = np.unique(np.concatenate(labels))
    n_seen, n_right = np.zeros(names.size), np.zeros((len(models), names.size))
    n_of_class = np.zeros((classes.size, names.size))
    for number, (label, code) in enumerate(zip(labels, of_cluster, strict=True)):
        share = 1.0 / (label.size * len(labels))  # every seed counts the same
        n_seen += share * np.bincount(code, minlength=names.size)
        for row, model in enumerate(models):
            n_right[row] += share * np.bincount(code, weights=correct[model][number], minlength=names.size)
        for row, name in enumerate(classes):
            n_of_class[row] += np.bincount(code[label == name], minlength=names.size)
    accuracy = n_right.sum(axis=1) / n_seen.sum()
    stratum, rng = n_of_class.argmax(axis=0), np.random.default_rng(seed)
    parts = []
    for _ in range(0, N_RESAMPLES, _AT_ONCE):
        drawn = _draw(stratum, _AT_ONCE, rng)
        parts.append((drawn @ n_right.T) / (drawn @ n_seen)[:, None])
    resampled = np.concatenate(parts)
    freedom = max(names.size - np.unique(stratum).size, 1)
    found = []
    for one, other in itertools.combinations(range(len(models)), 2):
        if accuracy[one] < accuracy[other]:
            one, other = other, one
        differences = resampled[:, one] - resampled[:, other]
        low, high = np.percentile(differences, [2.5, 97.5])
        at_most = (np.count_nonzero(differences <= 0) + 1) / (N_RESAMPLES + 1)
        at_least = (np.count_nonzero(differences >= 0) + 1) / (N_RESAMPLES + 1)
        p = min(2.0 * min(at_most, at_least), 1.0)
        spread = float(differences.std(ddof=1))
        if not (differences <= 0).any() and spread > 0:
            p = min(p, 2.0 * float(stdtr(freedom, -differences.mean() / spread)))
        found.append((models[one], models[other], accuracy[one] - accuracy[other], low, high, p))
    corrected = holm([entry[-1] for entry in found])
    comparisons = []
    for (first, second, *values, p), p_holm in zip(found, corrected, strict=True):
        difference, low, high = map(float, values)
        comparisons.append(
            Comparison(first=first, second=second, difference=difference, low=low, high=high, p=p, p_holm=p_holm)
        )
    return sorted(comparisons, key=lambda one: -one.difference)


def _draw(stratum: NDArray[np.intp], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how often each cluster is drawn in each of n resamples, (n, n_clusters); as many of each stratum."""
    drawn = np.zeros((n, stratum.size))
    for name in np.unique(stratum):
        members = np.flatnonzero(stratum == name)
        drawn[:, members] = rng.multinomial(members.size, np.full(members.size, 1.0 / members.size), n)
    return drawn


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, by Holm's step-down rule.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    corrected, largest = np.empty(len(p)), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min((len(p) - rank) * p[place], 1.0))
        corrected[place] = largest
    return [round(float(value), 12) for value in corrected]
