"""Spectra as shapes: coarse in energy, freed of their scale, with the noise that is left.

A fine structure is wider than an electronvolt and its noise is not, so channels are summed to bands; the sum of a
window's counts is the thickness and the dose, so it is divided out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.edges import Edge
from eelsflow.energy import Axis

BAND_WIDTH = 1.0
"""eV; peaks of a fine structure are 2 eV wide and more, an energy offset is known to some hundredths (our choice)."""

SIGNIFICANT = 3.0
"""Standard errors that a spectrum's counts in the window must stand above zero, or it has no shape (our choice)."""


@dataclass(frozen=True)
class Shapes:
    """Spectra as shapes.

    Attributes
    ----------
    values
        Shape (..., bands): the share of the window's counts in each band, so that every row sums to 1 (of a table,
        whose spectra may lie about zero, the sizes do). NaN where a spectrum shows no signal, or has no data in a part
        of the window. Of several edges the shapes lie side by side, each by its own window's counts and each with the
        same part of the 1: how strong the edges are against each other depends on more than chemistry.
    relative_variance
        Shape (...): variance of the window's counts, channels taken as independent, over their square; infinite where
        there is no shape. The noise of a shape grows with it. Of several edges the mean.
    counts
        Of the window, or of all windows, shape (...): thickness times dose.
    energy_loss
        Centres of the bands, shape (bands,), eV.
    edge_counts
        Of each edge's window, shape (..., edges), where several are judged together; else None.
    """

    values: NDArray[np.float64]
    relative_variance: NDArray[np.float64]
    counts: NDArray[np.float64]
    energy_loss: NDArray[np.float64]
    edge_counts: NDArray[np.float64] | None = None

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which spectra have a shape, shape (...)."""
        return np.asarray(np.isfinite(self.relative_variance))

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.integer]) -> Shapes:
        """Return some of the spectra, as an index of the leading dimensions would."""
        return Shapes(
            self.values[chosen],
            self.relative_variance[chosen],
            self.counts[chosen],
            self.energy_loss,
            None if self.edge_counts is None else self.edge_counts[chosen],
        )

    @property
    def counts_by_edge(self) -> NDArray[np.float64]:
        """What a share of 1 stands for in the bands of each edge, counts, shape (..., edges)."""
        if self.edge_counts is None:
            return self.counts[..., None]
        return np.asarray(self.edge_counts * self.edge_counts.shape[-1])


def band_edges(axis: Axis, edge: Edge, *, width: float = BAND_WIDTH) -> NDArray[np.intp]:
    """Return the channels that bands of one edge's fine-structure window begin with, and the channel after the last.

    Parameters
    ----------
    axis
        Of the spectra.
    edge
        Its `elnes_window` is divided; those of edges beside it are left out.
    width
        Of a band, eV; a band holds one channel at the least.
    """
    window = axis.channels(edge.elnes_window)
    n_channels = window.stop - window.start
    n_bands = max(min(round(n_channels * axis.dispersion / width), n_channels), 1)
    return np.asarray(window.start + np.round(np.linspace(0, n_channels, n_bands + 1)), dtype=np.intp)


def band_limits(axis: Axis, edge: Edge, *, width: float = BAND_WIDTH) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first channel of every band and the channel after its last, shape (bands,) each, over all edges.

    Parameters
    ----------
    axis, edge, width
        As in `band_edges`, whose bands these are, edge by edge.
    """
    edges = [band_edges(axis, one, width=width) for one in edge.alone]
    return np.concatenate([one[:-1] for one in edges]), np.concatenate([one[1:] for one in edges])


def in_bands(
    values: NDArray[Any], starts: NDArray[np.intp], stops: NDArray[np.intp], *, dtype: type = np.float64
) -> NDArray[Any]:
    """Return sums over bands, shape (..., bands), of values (..., channels); see `band_limits`."""
    first, last = int(starts[0]), int(stops[-1])
    # what lies between two edges is summed as well, and left out
    cuts = np.union1d(starts, stops[:-1]) - first
    sums = np.add.reduceat(values[..., first:last], cuts, axis=-1, dtype=dtype)
    return np.asarray(sums if cuts.size == starts.size else sums[..., np.searchsorted(cuts, starts - first)])


def to_shapes(intensity: NDArray[np.floating], variance: NDArray[np.floating] | None, axis: Axis, edge: Edge) -> Shapes:
    """Return prepared spectra as shapes.

    Parameters
    ----------
    intensity
        Background-subtracted, shape (..., channels); not modified.
    variance
        Of `intensity`, same shape; None for spectra of which it is not known, which are then all taken as equally
        noisy.
    axis
        Of the channels.
    edge
        Whose fine-structure window is taken, and those of edges beside it.
    """
    of_edges = [_to_shapes(intensity, variance, axis, one) for one in edge.alone]
    if len(of_edges) == 1:
        return of_edges[0]
    known = np.all([shapes.known for shapes in of_edges], axis=0)
    values = np.concatenate([shapes.values / len(of_edges) for shapes in of_edges], axis=-1)
    return Shapes(
        np.where(known[..., None], values, np.nan),
        np.where(known, np.mean([shapes.relative_variance for shapes in of_edges], axis=0), np.inf),
        np.sum([shapes.counts for shapes in of_edges], axis=0),
        np.concatenate([shapes.energy_loss for shapes in of_edges]),
        np.stack([shapes.counts for shapes in of_edges], axis=-1),
    )


def _to_shapes(
    intensity: NDArray[np.floating], variance: NDArray[np.floating] | None, axis: Axis, edge: Edge
) -> Shapes:
    starts = band_edges(axis, edge)
    window = slice(starts[0], starts[-1])
    bands = np.add.reduceat(intensity[..., window], starts[:-1] - starts[0], axis=-1, dtype=np.float64)
    counts = bands.sum(axis=-1)
    if variance is None:  # a table, which may have been normalised to lie about zero
        counts = np.abs(bands).sum(axis=-1)
        noise = np.zeros(counts.shape)
    else:
        noise = np.asarray(variance[..., window].sum(axis=-1, dtype=np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        known = np.isfinite(counts) & np.isfinite(noise) & (counts > 0) & (counts > SIGNIFICANT * np.sqrt(noise))
        values = np.where(known[..., None], bands / counts[..., None], np.nan)
        relative = np.where(known, 1.0 if variance is None else noise / counts**2, np.inf)
    centres = np.add.reduceat(axis.values[window], starts[:-1] - starts[0]) / np.diff(starts)
    return Shapes(values, relative, counts, centres)


def neighbor_pairs(known: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the flat indices of pixels that touch along a row or a column, both of which are known.

    Parameters
    ----------
    known
        Shape (y, x).
    """
    number = np.arange(known.size).reshape(known.shape)
    one, other = [], []
    for first, second in ((np.s_[:-1, :], np.s_[1:, :]), (np.s_[:, :-1], np.s_[:, 1:])):
        both = known[first] & known[second]
        one.append(number[first][both])
        other.append(number[second][both])
    return np.concatenate(one), np.concatenate(other)


def shape_noise(shapes: Shapes, known: NDArray[np.bool_], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate the covariance of a field's noise over the bands, for a relative variance of 1.

    Parameters
    ----------
    shapes
        Of single pixels, shape (y, x, bands).
    known
        Pixels to learn from, shape (y, x).
    prior
        What the noise of the training acquisitions was, shape (bands, bands). Its scale does not count where there are
        neighbours to learn from; without any it is returned as it is.

    Returns
    -------
    covariance
        Shape (bands, bands); times a spectrum's relative variance it is the covariance of its shape.

    Notes
    -----
    Ours: what neighbours differ by is noise, bar the few pairs across a boundary. So the point spread of the detector,
    the resampling and the error of the background are all in it. With few pairs the prior's shape is drawn in, with
    the weight of twice as many pairs as there are bands.
    """
    known = known & shapes.known
    one, other = neighbor_pairs(known)
    if one.size == 0:
        return prior
    values = shapes.values.reshape(-1, prior.shape[0])
    relative = shapes.relative_variance.ravel()
    difference = (values[one] - values[other]) / np.sqrt(relative[one] + relative[other])[:, None]
    found = difference.T @ difference / one.size
    weight = one.size / (one.size + 2.0 * prior.shape[0])
    return np.asarray(weight * found + (1.0 - weight) * prior * (np.trace(found) / np.trace(prior)))


def whitening(covariance: NDArray[np.float64], *, floor: float = 1e-3) -> NDArray[np.float64]:
    """Return the matrix (bands, bands) under which noise of this covariance is white.

    `floor` bounds the smallest eigenvalue against the largest: shapes sum to 1, so one direction has no noise at all.
    """
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors / np.sqrt(np.maximum(values, floor * values[-1]))).T)
