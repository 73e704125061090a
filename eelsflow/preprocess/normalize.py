"""Normalise spectra so that the thickness of the specimen is not a feature.

Every method ignores a positive factor on the spectrum; `min_max` and `robust_percentile` ignore a constant added to
it as well.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.errors import InputError

NormalizeMethod = Literal["min_max", "area", "l2", "robust_percentile", "none"]

# Low and high percentile of `robust_percentile`; the noise score's sigma is in units of the same range.
PERCENTILES = (1.0, 99.0)


def normalize(
    spectra: ArrayLike,
    method: NormalizeMethod,
    *,
    degenerate: Literal["raise", "nan"] = "raise",
) -> NDArray[np.floating]:
    """Normalise each spectrum.

    Parameters
    ----------
    spectra
        Shape (..., channels); not modified.
    method
        - ``min_max``: ``(x - min) / (max - min)``, the paper's; a single noisy channel sets the scale.
        - ``robust_percentile``: ``(x - p1) / (p99 - p1)`` with the 1st and 99th percentile of the spectrum.
        - ``area``: ``x / mean(x)``, so that the area is one unit per channel.
        - ``l2``: ``x / ||x||``, unit Euclidean norm.
        - ``none``: a copy.
    degenerate
        What becomes of a spectrum that the method cannot normalise (constant, not finite, no positive area):
        ``raise``, or ``nan`` for NaN in all its channels, for pixels that are left blank in a map.

    Returns
    -------
    Same shape; float64 for float64 or wide integer spectra, else float32.

    Raises
    ------
    InputError
        If `degenerate` is "raise" and there is a spectrum that cannot be normalised, or the method is unknown.

    Notes
    -----
    The area is the mean, not the integral over eV, so that the scale does not depend on the window's width: our
    choice, as are the percentiles. `feature_scale` then brings every method to one scale.

    >>> normalize([2.0, 4.0, 3.0], "min_max")
    array([0. , 1. , 0.5])
    """
    values = np.asarray(spectra)
    values = values.astype(np.result_type(values.dtype, np.float32))
    if method == "none":
        return values
    with np.errstate(all="ignore"):  # degenerate spectra are found below, by name
        low: NDArray[np.floating] | float = 0.0
        if method == "min_max":
            low = values.min(axis=-1, keepdims=True)
            scale = values.max(axis=-1, keepdims=True) - low
        elif method == "robust_percentile":
            low, high = _percentiles(values)
            scale = high - low
        elif method == "area":
            scale = values.mean(axis=-1, keepdims=True, dtype=np.float64).astype(values.dtype)
        elif method == "l2":
            # relative to the largest value: squares of float32 counts neither overflow nor vanish
            largest = np.abs(values).max(axis=-1, keepdims=True)
            scale = largest * np.sqrt(np.square(values / largest).sum(axis=-1, keepdims=True))
        else:
            raise InputError(
                f"normalisation {method!r} is unknown; choose min_max, area, l2, robust_percentile or none"
            )
        magnitude = np.abs(values).max(axis=-1, keepdims=True)
        # A range of rounding errors is no range: a constant spectrum minus a fit of itself must not become noise of
        # height 1.
        usable = np.isfinite(magnitude) & (scale > 8 * np.finfo(values.dtype).eps * magnitude)
        if degenerate == "raise" and not usable.all():
            bad = np.flatnonzero(~usable)
            raise InputError(
                f"{bad.size} of {usable.size} spectra cannot be normalised by {method}, the first is number {bad[0]}: "
                f"{_reason(values, method, int(bad[0]))}; leave these pixels out (vacuum, dead or saturated pixels?) "
                "before normalising"
            )
        values -= low
        values /= scale
    values[~usable[..., 0]] = np.nan
    return values


def feature_scale(normalized: ArrayLike, min_max: ArrayLike) -> float:
    """Return the constant that brings normalised training spectra to the feature scale of min-max spectra.

    A grid of gamma means something only at a fixed scale of the features, so after any normalisation other than
    min-max the vectors are multiplied by one constant of the training set.

    Parameters
    ----------
    normalized
        The training spectra as normalised by the chosen method, shape (n_spectra, channels).
    min_max
        The same spectra normalised by ``min_max``, shape (n_spectra, channels).

    Returns
    -------
    Median Euclidean norm of `min_max` divided by that of `normalized`. Spectra that are NaN (see `normalize`) are
    left out.

    Raises
    ------
    InputError
        If there is no spectrum with a norm.
    """
    norms = [np.linalg.norm(np.asarray(spectra, dtype=np.float64), axis=-1) for spectra in (normalized, min_max)]
    norms = [norm[np.isfinite(norm) & (norm > 0)] for norm in norms]
    if min(norm.size for norm in norms) == 0:
        raise InputError(
            "no training spectrum has a finite norm above zero, so the feature scale is undefined; "
            "check that the training acquisitions hold specimen pixels"
        )
    return float(np.median(norms[1]) / np.median(norms[0]))


def _percentiles(values: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the two percentiles along the last axis, keeping it, with `numpy.percentile`'s linear rule.

    A partition at the four order statistics is three times faster than `numpy.percentile`, which also sorts the rest.
    """
    last = values.shape[-1] - 1
    positions = [percentile / 100 * last for percentile in PERCENTILES]
    orders = sorted({order for position in positions for order in (int(position), min(int(position) + 1, last))})
    ordered = np.partition(values, orders, axis=-1)
    result = []
    for position in positions:
        below = int(position)
        fraction = values.dtype.type(position - below)
        low = ordered[..., below, None]
        result.append(low + fraction * (ordered[..., min(below + 1, last), None] - low))
    return result[0], result[1]


def _reason(values: NDArray[np.floating], method: NormalizeMethod, index: int) -> str:
    spectrum = values.reshape(-1, values.shape[-1])[index]
    if not np.isfinite(spectrum).all():
        return f"{np.count_nonzero(~np.isfinite(spectrum))} of its channels are not finite"
    if method == "area" and spectrum.any():
        return f"its mean is {spectrum.mean():.3g}, not clearly above zero"
    return f"all its channels are {spectrum[0]:.3g}" if np.ptp(spectrum) == 0 else "its range is zero"
