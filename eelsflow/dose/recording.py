"""Counts as a detector records them, from those that are expected."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eelsflow.preprocess.noise import NoiseModel

Floats = NDArray[np.float64]


def record(
    expected: NDArray[np.floating], noise: NoiseModel, rng: np.random.Generator, *, readout: float = 1.0
) -> NDArray[np.float32]:
    """Record expected counts with the noise of a detector.

    Parameters
    ----------
    expected
        Shape (n, channels), counts, spread over the channels already; negative ones count as none.
    noise
        As estimated from an acquisition.
    rng
        Source of the draws.
    readout
        How many read-outs are in a spectrum.

    Returns
    -------
    counts
        Shape (n, channels).

    Notes
    -----
    Electrons are Poisson-distributed; what they deviate by is spread over the channels by the symmetric kernel whose
    autocorrelation is the noise's, so that variance and correlation are those of the model. The read-out is white.
    """
    from scipy.ndimage import convolve1d

    per_electron, mean = noise.counts_per_electron, np.maximum(expected, 0.0)
    deviation = np.zeros(mean.shape, dtype=np.float32)
    if per_electron > 0:
        electrons = mean / per_electron
        deviation = (rng.poisson(electrons) - electrons).astype(np.float32)
        deviation *= np.float32(np.sqrt(noise.gain * per_electron))
        kernel = spread_kernel(noise)
        if kernel.size > 1:
            deviation = np.asarray(convolve1d(deviation, kernel.astype(np.float32), axis=-1, mode="reflect"))
    counts = mean.astype(np.float32) + deviation
    if noise.readout_variance > 0:
        counts += np.float32(np.sqrt(noise.readout_variance * readout)) * rng.standard_normal(counts.shape, np.float32)
    return np.asarray(counts, dtype=np.float32)


def spread_kernel(noise: NoiseModel) -> Floats:
    """Return the symmetric kernel whose autocorrelation is that of the electrons' noise, sum of squares 1."""
    lags = noise.correlation[1:] / max(noise.electron_share, 0.1)
    if not lags.any():
        return np.ones(1)
    size = 512
    row = np.zeros(size)
    row[0] = 1.0
    row[1 : lags.size + 1] = row[size - lags.size :][::-1] = lags
    response = np.fft.irfft(np.sqrt(np.clip(np.fft.rfft(row).real, 0.0, None)), size)
    reach = 2 * lags.size
    kernel = np.concatenate([response[size - reach :], response[: reach + 1]])
    return np.asarray(kernel / np.sqrt((kernel**2).sum()))
