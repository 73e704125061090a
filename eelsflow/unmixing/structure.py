"""One phase or two? What pixels have in common with those around them, beyond what chance gives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d
from scipy.special import log_ndtr, ndtri

REACH = 2.0
"""Pixels about one that it is compared with (standard deviation of a Gaussian). Longer finds fainter phases and takes
more of what changes slowly in a field of one phase, its thickness above all, for structure (our choice)."""

STRUCTURED = 2.0
"""Standard errors above which a field is looked at for a second composition. By chance a field of one phase exceeds it
once in 44; what is found then is still weighed against one phase (our choice)."""

SURELY_STRUCTURED = 3.3
"""Standard errors above which structure is no chance: once in 2000 fields (our choice)."""


def spatial_correlation(
    score: NDArray[np.float64], variance: NDArray[np.float64], known: NDArray[np.bool_], *, reach: float = REACH
) -> float:
    """Return how surely pixels are like those around them, in standard errors: Moran's I against independence.

    Parameters
    ----------
    score
        Of single pixels, shape (y, x).
    variance
        Of the score, up to a common factor, shape (y, x): pixels of little dose say less.
    known
        Pixels that count, shape (y, x).
    reach
        Standard deviation of the Gaussian weights of the neighbours, pixels.

    Returns
    -------
    z
        About 0 without structure; 0 where no two known pixels are near each other.

    Notes
    -----
    P. A. P. Moran, Biometrika 37, 17 (1950): the sum over pairs of the product of their deviations, each in units of
    its noise, weighted by their nearness, over the root of the sum of the squared terms, which is its standard error
    where pixels are independent.
    """
    if not known.any():
        return 0.0
    weight = np.where(known, 1.0 / np.where(known, variance, 1.0), 0.0)
    mean = (weight * np.where(known, score, 0.0)).sum() / weight.sum()
    deviation = np.where(known, (score - mean) * np.sqrt(weight), 0.0)
    offsets = np.arange(-int(np.ceil(3 * reach)), int(np.ceil(3 * reach)) + 1)
    kernel = np.exp(-0.5 * (offsets / reach) ** 2)

    def around(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = convolve1d(values, weights, axis=0, mode="constant")
        return np.asarray(convolve1d(rows, weights, axis=1, mode="constant") - values)  # a pixel is not its neighbour

    product = float((deviation * around(deviation, kernel)).sum())
    squared = float((deviation**2 * around(deviation**2, kernel**2)).sum())
    # every pair is in either sum twice
    return product / np.sqrt(2.0 * squared) if squared > 0 else 0.0


def largest_of(correlations: NDArray[np.float64]) -> float:
    """Return the largest of several correlations, shape (n,), as one that is as rare by chance, in standard errors.

    The largest of three exceeds a limit about three times as often as each of them, so it counts for less (Sidak,
    J. Am. Stat. Assoc. 62, 626 (1967)); of one it is that one.
    """
    highest = float(np.max(correlations))
    if correlations.size == 1:
        return highest
    by_chance = -np.expm1(correlations.size * log_ndtr(highest))  # that any of them is higher
    # far out the tail is below what floating point tells from 1, and the correction is of the order of log(n) / z
    return highest if by_chance < 1e-14 else float(-ndtri(by_chance))
