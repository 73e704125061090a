"""Perturbations of test spectra. The draws depend on the seed alone, so all models meet the same ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eelsflow.models.disturbance import Vectors, spectrum_span


def draw_shifts(n_spectra: int, *, amplitude: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw one energy shift for each spectrum, uniform in ``[-amplitude, amplitude]`` eV.

    Shifts are applied by `eelsflow.preprocess.features.FeatureTransform.apply`: after background subtraction,
    before normalisation, on the wide window, so that true data enters at the edges. Positive moves features to
    higher energy.
    """
    return rng.uniform(-amplitude, amplitude, n_spectra)


def add_gaussian_noise(vectors: Vectors, *, sigma: float, rng: np.random.Generator) -> Vectors:
    """Add white Gaussian noise of ``sigma`` times the span of each spectrum; not renormalised.

    Parameters
    ----------
    vectors
        Normalised spectra, shape (n, channels); not modified.
    sigma
        Standard deviation in units of p99 - p1 of the spectrum.
    rng
        Source of the draws.

    Notes
    -----
    The paper shows noisy spectra (its Fig. 5) without saying how strong the noise is; the unit and the amplitudes
    .15 and .10 are ours.
    """
    noise = rng.standard_normal(vectors.shape, dtype=np.float32)
    return np.asarray(vectors + np.float32(sigma) * spectrum_span(vectors) * noise, dtype=np.float32)


def add_poisson_noise(
    vectors: Vectors, *, peak_counts: float, background: float = 0.0, rng: np.random.Generator
) -> Vectors:
    """Redraw each spectrum from a Poisson distribution whose highest channel expects ``peak_counts``.

    Parameters
    ----------
    vectors
        Normalised spectra, shape (n, channels); not modified. Negative values expect nothing and are kept as an
        offset, so that a spectrum's mean does not change; a spectrum without a positive value stays as it is.
    peak_counts
        Expected counts in the highest channel, above the background.
    background
        Counts of a background that was subtracted, the same in all channels, in units of `peak_counts`: its noise
        stays.
    rng
        Source of the draws.
    """
    expected = np.maximum(vectors, 0, dtype=np.float64)
    peak = expected.max(axis=1, keepdims=True)
    counts = peak_counts * np.divide(expected, peak, out=np.zeros_like(expected), where=peak > 0)
    hidden = background * peak_counts
    noisy = (rng.poisson(counts + hidden) - hidden) * (peak / peak_counts)
    return np.asarray(noisy + np.minimum(vectors, 0), dtype=np.float32)
