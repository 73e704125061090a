"""A map against the truth of every pixel.

Accuracy on labelled pixels of pure fields says nothing of a field of two phases, where components of a whole image, or
an average over neighbours, may erase the smaller one. So maps are scored whole: fields of one class and of several
apart, every class of a field counting the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.maps.pixels import PixelMap

MAJORITY = 0.55
"""Fraction from which a pixel counts to a class: nearer to one half the truth itself is a matter of taste (ours)."""

FEWEST_PIXELS = 4
"""Pixels of a class below which a field does not show it."""

CALIBRATION_BINS = 10
"""Of the confidence, from chance to 1."""

Z95 = 1.96


def score_map(found: PixelMap, truth: NDArray[np.floating]) -> dict[str, Any] | None:
    """Compare a map with the fractions of the classes.

    Parameters
    ----------
    found
        The map.
    truth
        Fraction of each class, shape (y, x, classes), in the order of the map's classes; NaN or 0 throughout where
        there is none of them.

    Returns
    -------
    dict or None
        ``kind`` "pure" or "mixed"; ``recall`` of each class present (None for others) and ``n`` pixels of each;
        ``balanced_accuracy``, the mean of the recalls; ``one_class``, whether a map of a mixed field shows one class
        only; ``boundary_accuracy`` of the pixels that touch another class, None without any; ``fraction_rmse`` and
        ``fraction_coverage`` (share within 1.96 standard errors); ``calibration``, for each bin of the confidence the
        number of pixels, the sum of their confidence and how many were right; ``unknown``, the share of unknown
        pixels. None where the truth shows no class in enough pixels that the map takes for specimen.
    """
    fractions: NDArray[np.float64] = np.nan_to_num(np.asarray(truth, dtype=np.float64))
    seen = found.specimen & (fractions.sum(axis=-1) > 0.5)
    major = np.where(fractions.max(axis=-1) >= MAJORITY, fractions.argmax(axis=-1), -1)
    counted = seen & (major >= 0)
    n_classes = len(found.classes)
    n = np.bincount(major[counted], minlength=n_classes)
    present = n >= FEWEST_PIXELS
    if not present.any():
        return None
    right = found.class_index == major
    hits = np.bincount(major[counted & right], minlength=n_classes)
    recall = [float(hits[k] / n[k]) if present[k] else None for k in range(n_classes)]
    mixed = int(present.sum()) > 1
    shown = np.unique(found.class_index[counted])
    at_boundary = counted & _touches_another(major, counted)
    return {
        "kind": "mixed" if mixed else "pure",
        "recall": recall,
        "n": n.tolist(),
        "balanced_accuracy": float(np.mean([value for value in recall if value is not None])),
        "one_class": bool(mixed and shown.size == 1),
        "boundary_accuracy": float(right[at_boundary].mean()) if at_boundary.any() else None,
        "calibration": _calibration(found.confidence[counted], right[counted], n_classes),
        "unknown": float(found.unknown[seen].mean()),
        **_fractions(found, fractions, seen),
    }


def _touches_another(major: NDArray[np.integer], counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which pixels have a neighbour along a row or column that counts to another class, shape (y, x)."""
    touches = np.zeros(major.shape, dtype=bool)
    for first, second in ((np.s_[:-1, :], np.s_[1:, :]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = counted[first] & counted[second] & (major[first] != major[second])
        touches[first] |= differ
        touches[second] |= differ
    return touches


def _calibration(confidence: NDArray[np.floating], right: NDArray[np.bool_], n_classes: int) -> list[list[float]]:
    edges = np.linspace(1.0 / n_classes, 1.0, CALIBRATION_BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, CALIBRATION_BINS - 1)
    sums = [np.bincount(bins, weights=values, minlength=CALIBRATION_BINS) for values in (confidence, right)]
    return np.stack([np.bincount(bins, minlength=CALIBRATION_BINS), *sums], axis=1).tolist()  # type: ignore[no-any-return]


def _fractions(found: PixelMap, truth: NDArray[np.float64], seen: NDArray[np.bool_]) -> dict[str, float | None]:
    known = seen & np.isfinite(found.fraction).all(axis=-1)
    if not known.any():
        return {"fraction_rmse": None, "fraction_coverage": None}
    error = found.fraction[known] - truth[known]
    return {
        "fraction_rmse": float(np.sqrt((error**2).mean())),
        "fraction_coverage": float((np.abs(error) <= Z95 * found.fraction_error[known]).mean()),
    }


def calibration_error(bins: NDArray[np.float64]) -> float | None:
    """Return the expected calibration error of summed bins, shape (bins, 3): pixels, confidence, right."""
    total = bins[:, 0].sum()
    if total == 0:
        return None
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / total)
