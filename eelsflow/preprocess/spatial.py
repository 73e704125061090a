"""Strength from neighbours that look alike: the spatial step of the preset `recommended`.

A pixel alone is near its limit: at the dose of a real image even the true spectra and the true noise do not tell its
phase for sure. Its neighbours are mostly of its phase, so the spectrum of a pixel is averaged with theirs::

    gathered_i = sum_j w_ij counts_j / sum_j w_ij
    w_ij = exp(-distance_ij^2 / 2 reach^2) * exp(-|g_i - g_j|^2 / 2 tolerance^2)

Counts are averaged, not shapes, so thick and well lit pixels weigh more, as the inverse of the variance of their
shapes would have it. `g` is a *guide*: where a pixel lies along the few directions in which neighbours of this field
are alike, smoothed over the nearest ones, in units of its noise. Where the phase changes, the guide changes, and
little is lent across. A field in which nothing but noise varies has no such direction, and lends evenly. Vacuum lends
nothing.

The reach follows from the noise: so many pixels are averaged that the noise of a band is a fixed share of the counts in
it. At high dose a pixel is enough, and nothing is changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eelsflow.io.zarr_store import Block
from eelsflow.preprocess.kernels import gather_neighbors
from eelsflow.preprocess.presets import Preset, Spatial
from eelsflow.preprocess.shapes import Shapes, neighbor_pairs, shape_noise, whitening

MAX_REACH = 1.75
"""Pixels; the largest reach. At low dose a longer one costs small phases more than it gives the others, and a block
needs a halo of bounded width (our choice, see docs/decisions/0018-spatial-step.md)."""

LEAST_REACH = 0.5
"""Pixels; below it the nearest neighbour counts less than an eighth, and nothing is averaged at all."""

MAX_GUIDES = 3
"""Directions that guide; more hold noise."""

_PILOT_REACH = 1.0  # pixels over which the guide is smoothed
_SIGNIFICANT = 1.25  # times the largest eigenvalue that noise alone gives
_WIDTH = 2.5  # reaches to which neighbours are looked for


GATHERED = ("gathered", "gathered_variance", "effective_spectra")
"""What the step adds to the prepared product: spectra, their variance, and of how many pixels each is the mean."""


def spatial_step(preset: Preset) -> Spatial | None:
    """Return the spatial step of a preset, None without one or with one that leaves pixels alone."""
    step = preset.find(Spatial)
    return None if step is None or step.method == "none" else step


@dataclass(frozen=True)
class Guide:
    """Which neighbours lend a pixel how much: small maps of a whole field.

    Attributes
    ----------
    values
        Shape (y, x, directions), float32, in units of their noise.
    weight
        Shape (y, x), float32: 1 where a pixel lends and borrows, 0 for vacuum.
    reach
        Pixels; 0 lends nothing.
    tolerance
        Difference of the guide at which a neighbour counts .6, in units of the guide's noise.
    """

    values: NDArray[np.float32]
    weight: NDArray[np.float32]
    reach: float
    tolerance: float

    @property
    def halo(self) -> int:
        """Pixels about a block that may lend to it."""
        return math.ceil(_WIDTH * self.reach)

    def around(self, block: Block) -> Block:
        """Return a block with its halo, clipped to the image."""
        n_y, n_x = self.weight.shape
        return Block(
            slice(max(block.y.start - self.halo, 0), min(block.y.stop + self.halo, n_y)),
            slice(max(block.x.start - self.halo, 0), min(block.x.stop + self.halo, n_x)),
        )

    def crop(self, block: Block) -> Guide:
        """Return the guide of some pixels."""
        return Guide(self.values[block.y, block.x], self.weight[block.y, block.x], self.reach, self.tolerance)


def fit_guide(shapes: Shapes, specimen: NDArray[np.bool_], step: Spatial) -> Guide:
    """Learn from a whole field which neighbours look alike, and how far to look.

    Parameters
    ----------
    shapes
        Of single pixels, shape (y, x, bands).
    specimen
        Shape (y, x); all of it lends and borrows.
    step
        How.

    Notes
    -----
    Directions: eigenvectors of the covariance of touching neighbours, whose noise is independent, in coordinates in
    which the noise is white; those whose eigenvalue stands above what noise alone gives for so many pairs and bands.
    A line scan is an image of one row; for a single spectrum there is nothing to learn and nothing to lend.
    """
    known = specimen & shapes.known
    weight = specimen.astype(np.float32)
    n_bands = shapes.values.shape[-1]
    one, other = neighbor_pairs(known)
    if one.size <= n_bands:
        return Guide(np.zeros((*known.shape, 0), dtype=np.float32), weight, 0.0, math.inf)
    covariance = shape_noise(shapes, known, np.eye(n_bands))
    reach = _reach(shapes, known, covariance, step.noise)
    if step.method == "mean" or reach == 0:
        return Guide(np.zeros((*known.shape, 0), dtype=np.float32), weight, reach, math.inf)
    return Guide(_directions(shapes, known, covariance, (one, other)), weight, reach, step.tolerance)


def _reach(shapes: Shapes, known: NDArray[np.bool_], covariance: NDArray[np.float64], noise: float) -> float:
    """Return over how far to average so that the noise of a band is `noise` of the mean counts of a band."""
    n_bands = len(covariance)
    relative = float(np.median(shapes.relative_variance[known]))
    found = n_bands * math.sqrt(np.trace(covariance) / n_bands * relative)
    wanted = (found / noise) ** 2
    if wanted <= 1.0:
        return 0.0
    # a Gaussian mean of standard deviation s is one of 4 pi s^2 pixels
    return min(max(math.sqrt(wanted / (4.0 * math.pi)), LEAST_REACH), MAX_REACH)


def _directions(
    shapes: Shapes,
    known: NDArray[np.bool_],
    covariance: NDArray[np.float64],
    pairs: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> NDArray[np.float32]:
    """Return where pixels lie along the directions in which neighbours are alike, smoothed, in units of their noise."""
    n_bands = len(covariance)
    whiten = whitening(covariance)
    precision = 1.0 / shapes.relative_variance[known]
    whitened = shapes.values[known] @ whiten.T
    whitened -= precision @ whitened / precision.sum()
    coordinates = np.zeros((known.size, n_bands))
    coordinates[known.ravel()] = whitened * np.sqrt(precision)[:, None]
    product = coordinates[pairs[0]].T @ coordinates[pairs[1]]
    eigenvalues, vectors = np.linalg.eigh((product + product.T) / (2 * pairs[0].size))
    # A symmetric matrix whose entries have the variance 1 / 2n has no eigenvalue above 2 sqrt(bands / 2n).
    limit = _SIGNIFICANT * 2.0 * math.sqrt(n_bands / (2.0 * pairs[0].size))
    chosen = np.flatnonzero(eigenvalues > limit)[::-1][:MAX_GUIDES]
    values = np.zeros((*known.shape, chosen.size), dtype=np.float32)
    values[known] = (whitened @ vectors[:, chosen]).astype(np.float32)
    weight = np.zeros(known.shape, dtype=np.float32)
    weight[known] = precision
    plain = Guide(np.zeros((*known.shape, 0), dtype=np.float32), weight, _PILOT_REACH, math.inf)
    smooth, _, n_effective = gather(values, None, plain)
    # the noise of a value is the root of its relative variance; of a mean, less by the root of how many it is of
    scale = np.zeros(known.shape, dtype=np.float32)
    scale[known] = np.sqrt(precision * n_effective[known])
    return np.asarray(smooth * scale[..., None], dtype=np.float32)


def gather(
    values: NDArray[np.float32], variance: NDArray[np.float32] | None, guide: Guide, inside: Block | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Average pixels with their neighbours that look alike.

    Parameters
    ----------
    values
        Shape (y, x, channels), of the guide's pixels; not modified.
    variance
        Of `values`; None carries none along.
    guide
        Of the same pixels.
    inside
        Which of them are averaged, counted from the first; the others lend only. All by default.

    Returns
    -------
    means, variance
        Shape (rows, columns, channels) of the inside, 0 where the guide's weight is 0; the second is empty where no
        variance is given.
    n_effective
        Shape (rows, columns): of how many pixels of equal weight each is the mean; 0 where the weight is 0.
    """
    n_y, n_x, channels = values.shape
    rows = (0, n_y) if inside is None else (inside.y.start, inside.y.stop)
    columns = (0, n_x) if inside is None else (inside.x.start, inside.x.stop)
    shape = rows[1] - rows[0], columns[1] - columns[0]
    offsets = np.arange(-guide.halo, guide.halo + 1)
    nearness = np.ones((1, 1))
    if guide.halo:
        nearness = np.exp(-0.5 * (offsets[:, None] ** 2 + offsets**2) / guide.reach**2)
    means = np.empty((*shape, channels), dtype=np.float32)
    empty = np.empty((0, 0, 0), dtype=np.float32)
    n_effective = np.empty(shape, dtype=np.float32)
    mean_variance = empty if variance is None else np.empty_like(means)
    gather_neighbors(
        np.ascontiguousarray(values),
        np.ascontiguousarray(guide.values),
        np.ascontiguousarray(guide.weight),
        nearness.astype(np.float32),
        0.0 if math.isinf(guide.tolerance) else 0.5 / guide.tolerance**2,
        (*rows, *columns),
        means,
        empty if variance is None else np.ascontiguousarray(variance),
        mean_variance,
        n_effective,
    )
    return means, mean_variance, n_effective
