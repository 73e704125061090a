"""Random convolution features: how much of a spectrum lies above a threshold after a short kernel has passed over it.

MiniRocket of Dempster, Schmidt & Webb (KDD 2021). Written here and not taken from a library: those that hold it pin
versions of numba and NumPy that the rest cannot use.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

LENGTH, N_HIGH = 9, 3
"""Weights of a kernel: three of nine are 2, the others -1, so that a constant gives zero."""

KERNELS = np.array(list(combinations(range(LENGTH), N_HIGH)), dtype=np.int64)
"""Places of the high weights, (84, 3)."""

MOST_DILATIONS = 32
_GOLDEN = (np.sqrt(5.0) + 1.0) / 2.0


@dataclass(frozen=True)
class Convolutions:
    """Kernels, dilations and thresholds.

    Attributes
    ----------
    dilation
        Channels between the weights of a kernel, (n_dilations,).
    n_thresholds
        Of every kernel at each dilation, (n_dilations,).
    threshold
        In the order of the features: dilation after dilation, kernel after kernel, (n_features,).
    """

    dilation: NDArray[np.int64]
    n_thresholds: NDArray[np.int64]
    threshold: NDArray[np.float32]

    @classmethod
    def fit(cls, X: NDArray[np.floating[Any]], *, n_features: int, seed: int) -> Convolutions:
        """Choose dilations for the length of the spectra, and thresholds from some of them.

        Parameters
        ----------
        X
            Training spectra, (n, n_channels), at least nine channels.
        n_features
            About how many; at least one for each of the 84 kernels.
        seed
            Of the spectra that thresholds are read from.
        """
        dilation, n_thresholds = _dilations(X.shape[1], max(n_features // len(KERNELS), 1))
        order = np.arange(1, int(n_thresholds.sum()) * len(KERNELS) + 1)
        quantile = (order * _GOLDEN) % 1.0  # evenly spread however many are taken
        chosen = np.random.default_rng([seed, 0xC0]).integers(len(X), size=len(dilation) * len(KERNELS))
        threshold = _read_thresholds(
            np.ascontiguousarray(X[chosen], dtype=np.float32), dilation, n_thresholds, KERNELS, quantile
        )
        return cls(dilation, n_thresholds, threshold)

    def apply(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return the share of channels above each threshold, (n, n_features), 0 to 1."""
        spectra = np.ascontiguousarray(X, dtype=np.float32)
        return np.asarray(_transform(spectra, self.dilation, self.n_thresholds, KERNELS, self.threshold))


def _dilations(n_channels: int, n_thresholds: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return dilations, spread evenly in their logarithm up to the length of a spectrum, and thresholds at each."""
    n_most = min(n_thresholds, MOST_DILATIONS)
    largest = np.log2(max((n_channels - 1) / (LENGTH - 1), 1.0))
    wanted = np.logspace(0, largest, n_most, base=2).astype(np.int64)
    dilation, counts = np.unique(wanted, return_counts=True)
    shared = (counts * (n_thresholds / n_most)).astype(np.int64)
    for number in range(int(n_thresholds - shared.sum())):
        shared[number % shared.size] += 1
    return dilation, shared


_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath=True)


@_compiled
def _shifted_sums(x, dilation, base, high):
    """Set `base` to minus the sum of the nine shifted spectra, and `high` to three times each; zeros lie outside."""
    n = x.size
    base[:] = 0.0
    for weight in range(LENGTH):
        lag = (weight - LENGTH // 2) * dilation
        for j in range(n):
            value = x[j + lag] if 0 <= j + lag < n else np.float32(0.0)
            base[j] -= value
            high[weight, j] = np.float32(3.0) * value


@_compiled
def _convolve(base, high, places, out):
    one, two, three = high[places[0]], high[places[1]], high[places[2]]
    for j in range(base.size):
        out[j] = base[j] + one[j] + two[j] + three[j]


@_compiled
def _read_thresholds(chosen, dilation, n_thresholds, kernels, quantile):
    n = chosen.shape[1]
    base, high, out = np.empty(n, np.float32), np.empty((LENGTH, n), np.float32), np.empty(n, np.float32)
    threshold = np.empty(quantile.size, np.float32)
    place = 0
    for d in range(dilation.size):
        for k in range(len(kernels)):
            _shifted_sums(chosen[d * len(kernels) + k], dilation[d], base, high)
            _convolve(base, high, kernels[k], out)
            order = np.sort(out)
            for _ in range(n_thresholds[d]):
                position = quantile[place] * (n - 1)
                below = min(int(position), n - 2)
                threshold[place] = order[below] + (position - below) * (order[below + 1] - order[below])
                place += 1
    return threshold


@_compiled
def _transform(X, dilation, n_thresholds, kernels, threshold):
    n = X.shape[1]
    base, high, out = np.empty(n, np.float32), np.empty((LENGTH, n), np.float32), np.empty(n, np.float32)
    features = np.empty((len(X), threshold.size), np.float32)
    for i in range(len(X)):
        place = 0
        for d in range(dilation.size):
            margin = (LENGTH // 2) * dilation[d]
            _shifted_sums(X[i], dilation[d], base, high)
            for k in range(len(kernels)):
                _convolve(base, high, kernels[k], out)
                # Every other kernel counts only where all its weights lie on the spectrum.
                first, last = (0, n) if (d + k) % 2 == 0 else (margin, n - margin)
                for _ in range(n_thresholds[d]):
                    count = 0
                    for j in range(first, last):
                        count += out[j] > threshold[place]
                    features[i, place] = count / (last - first)
                    place += 1
    return features
