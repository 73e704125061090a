"""A shift and noise, as they are done to test spectra: to vectors, and to the wide spectra that they are cut from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from eelsflow.preprocess.features import FeatureTransform, shift_spectra

Vectors = NDArray[np.float32]


def spectrum_span(vectors: Vectors) -> Vectors:
    """Return the span p99 - p1 of every spectrum, shape (n, 1): the unit of the Gaussian noise amplitude."""
    low, high = np.percentile(vectors, [1, 99], axis=1)
    return np.asarray((high - low)[:, None], dtype=np.float32)


@dataclass(frozen=True)
class Disturbance:
    """What is done to spectra; nothing by default.

    Attributes
    ----------
    shift_ev
        By how much features move to higher energy, (n,) or one value, eV.
    noise
        Added to every channel of the wide spectra, (n, n_wide), in units of the span p99 - p1 of the vector that the
        undisturbed spectrum gives: a model that cuts its vector elsewhere meets the noise that lies there.
    """

    shift_ev: NDArray[np.float64] | float = 0.0
    noise: NDArray[np.float32] | None = None

    @classmethod
    def of_noise(cls, transform: FeatureTransform, n: int, *, sigma: float, rng: np.random.Generator) -> Self:
        """Draw white Gaussian noise: that of the fine-structure window first, then that of the margins."""
        noise = np.empty((n, transform.axis.size), dtype=np.float32)
        noise[:, transform.channels] = rng.standard_normal((n, transform.n_channels), dtype=np.float32)
        outside = np.ones(transform.axis.size, bool)
        outside[transform.channels] = False
        noise[:, outside] = rng.standard_normal((n, int(outside.sum())), dtype=np.float32)
        return cls(noise=np.float32(sigma) * noise)

    @classmethod
    def between(cls, transform: FeatureTransform, vectors: Vectors, noisy: Vectors) -> Self:
        """Return the noise that makes some vectors of others; none lies outside the fine-structure window."""
        noise = np.zeros((len(vectors), transform.axis.size), dtype=np.float32)
        span = spectrum_span(vectors)
        noise[:, transform.channels] = (noisy - vectors) / np.where(span > 0, span, 1.0)
        return cls(noise=noise)

    def of(self, rows: NDArray[np.intp]) -> Disturbance:
        """Return that of some of the spectra."""
        shift = self.shift_ev if np.ndim(self.shift_ev) == 0 else np.asarray(self.shift_ev)[rows]
        return replace(self, shift_ev=shift, noise=None if self.noise is None else self.noise[rows])

    def vectors(
        self, transform: FeatureTransform, wide: NDArray[np.float32], *, place: NDArray[np.intp] | None = None
    ) -> Vectors:
        """Return the disturbed vectors of wide spectra, (n, n_channels).

        Parameters
        ----------
        transform
            From wide spectra to vectors.
        wide
            Shape (n, n_wide); not modified.
        place
            By how many channels each is read further up the axis, (n,); None: not at all.
        """
        moved = 0 if place is None else place
        shift = np.asarray(self.shift_ev - np.asarray(moved) * transform.axis.dispersion)
        vectors = transform.apply(wide, shift_ev=shift if shift.any() else None)
        if self.noise is None:
            return vectors
        start = np.broadcast_to(np.asarray(moved), (len(wide),))[:, None]
        channel = np.clip(start + transform.index, *transform.reach)
        span = spectrum_span(transform.apply(wide))
        return np.asarray(vectors + span * np.take_along_axis(self.noise, channel, axis=1), dtype=np.float32)

    def spectra(self, transform: FeatureTransform, wide: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the disturbed wide spectra, (n, n_wide), with their first and last recorded value held beyond them."""
        shifted = shift_spectra(wide, transform.axis, self.shift_ev)
        if self.noise is None:
            return shifted
        vectors, cropped = transform.apply(wide), np.asarray(wide[:, transform.channels])
        # Counts for a unit of the vector: the slope of the one against the other, on which noise that a projection has
        # taken out of the vector has no part.
        centred = vectors - vectors.mean(axis=1, keepdims=True)
        slope = (cropped * centred).sum(axis=1) / np.maximum((centred**2).sum(axis=1), 1e-30)
        return np.asarray(shifted + (slope[:, None] * spectrum_span(vectors)) * self.noise, dtype=np.float32)
