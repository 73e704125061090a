"""What a model scores that was chosen for its score: less than the best row of a table says."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from eelsflow.errors import InputError

N_RESAMPLES = 2000


class ChosenScore(BaseModel):
    """The score of the best of several candidates, as it stands and as it must be expected of new acquisitions."""

    model_config = ConfigDict(frozen=True)

    best: int
    """Which candidate has the highest score; the first of equals."""
    apparent: float
    """Its score, on the acquisitions that it was chosen by: optimistic."""
    expected: float | None
    """The score to expect of a model chosen so; None where a class has one group, so that none can be left out."""
    chosen: tuple[float, ...]
    """For each candidate, in which part of the resamples it is the best: how sure the choice is."""


def chosen_score(hits: ArrayLike, sizes: ArrayLike, *, balanced: bool = True, seed: int = 0) -> ChosenScore:
    """Estimate the score of a model that is chosen among candidates by that score.

    Parameters
    ----------
    hits
        Shape (candidates, groups, classes): how many test spectra of each class in each group were right. Counts of
        several seeds are added up first: the same group tested twice is one observation.
    sizes
        Shape (groups, classes): how many there were, the same for all candidates.
    balanced
        Whether candidates are compared by the mean of the recalls, as a study chooses its final model, or by accuracy.
    seed
        Of the draws.

    Raises
    ------
    InputError
        If the shapes do not agree, there is no candidate, or a class has no spectra.

    Notes
    -----
    Bootstrap bias correction (Tsamardinos, Greasidou & Borboudakis, Machine Learning 107 (2018) 1895): groups are drawn
    with replacement, within the class that is commonest in each; the candidate that is best on them is scored on the
    groups that were not drawn, and these scores are averaged. Drawing whole groups instead of single predictions is
    ours: spectra of one acquisition are not independent. As a resample holds two thirds of the groups, the choice is
    poorer than with all of them, and the estimate errs on the low side where candidates differ.

    Examples
    --------
    Fifty candidates that guess between two classes, eight acquisitions of twenty spectra each:

    >>> guesses = np.random.default_rng(0).binomial(20, 0.5, (50, 8))
    >>> of_class = np.eye(2)[[0, 0, 0, 0, 1, 1, 1, 1]]
    >>> score = chosen_score(guesses[:, :, None] * of_class, 20 * of_class)
    >>> f"{score.apparent:.2f} {score.expected:.2f}"
    '0.61 0.51'
    """
    right, total = np.asarray(hits, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    if right.ndim != 3 or right.shape[1:] != total.shape or len(right) == 0:
        raise InputError(
            f"hits have shape {right.shape} and sizes {total.shape}; expected (candidates, groups, classes) and "
            "(groups, classes), with at least one candidate"
        )
    if (total.sum(axis=0) == 0).any() or (total.sum(axis=1) == 0).any():
        raise InputError("a class or a group has no test spectra, so nothing can be scored on it; leave it out")
    whole = _score(right.sum(axis=1), total.sum(axis=0), balanced=balanced)
    best = int(whole.argmax())

    times = _draw_groups(total.argmax(axis=1), np.random.default_rng(seed))  # (resamples, groups)
    left = (times == 0).astype(np.float64)
    drawn = _score(np.einsum("bg,mgk->bmk", times, right), (times @ total)[:, None, :], balanced=balanced)
    left_sizes = left @ total
    usable = (left_sizes > 0).all(axis=1) & np.isfinite(drawn).all(axis=1)
    picked = drawn.argmax(axis=1)
    left_hits = np.einsum("bg,bgk->bk", left, right[picked])
    scores = _score(left_hits[usable], left_sizes[usable], balanced=balanced)
    return ChosenScore(
        best=best,
        apparent=float(whole[best]),
        expected=float(scores.mean()) if scores.size else None,
        chosen=tuple((np.bincount(picked, minlength=len(right)) / N_RESAMPLES).tolist()),
    )


def _draw_groups(stratum: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how many times each group is drawn, shape (resamples, groups), each class as often as it has groups."""
    times = np.zeros((N_RESAMPLES, stratum.size))
    for name in np.unique(stratum):
        members = np.flatnonzero(stratum == name)
        times[:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), N_RESAMPLES)
    return times


def _score(hits: NDArray[np.float64], sizes: NDArray[np.float64], *, balanced: bool) -> NDArray[np.float64]:
    """Return the scores of counts (..., classes); NaN where there is nothing to score."""
    if not balanced:
        hits, sizes = hits.sum(axis=-1, keepdims=True), sizes.sum(axis=-1, keepdims=True)
    recall = np.divide(hits, sizes, out=np.full(hits.shape, np.nan), where=np.broadcast_to(sizes > 0, hits.shape))
    return np.asarray(recall.mean(axis=-1))
