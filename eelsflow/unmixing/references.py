"""What a training set says of its classes: their shapes, and how far acquisitions differ in them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import DataSetError
from eelsflow.preprocess.shapes import Shapes, whitening

N_COMPOSITIONS = 11
"""Of every two classes that a spectrum is compared with."""

MEAN_FACTOR, MEAN_PERCENTILE = 1.5, 95.0
"""An acquisition is unlike the training set where its mean lies this much further than so many percent of the training
acquisitions do when they are left out of the fit (our choice)."""

PIXEL_QUANTILE = 0.99
"""Of what noise may add to the distance of a pixel (our choice)."""

SMOOTH_ERROR, SMOOTH_LENGTH = 0.07, 4.0
"""Relative standard deviation, and length in eV, of a smooth factor by which an acquisition may differ from the classes
beyond what the training set shows. No training set has seen every instrument: without it a detail that all training
acquisitions share counts as certain (our choice)."""

SINGLE_SPREAD = 0.1
"""Relative spread of a band between acquisitions, where there are too few to see it (our choice)."""


@dataclass(frozen=True)
class References:
    """The classes as the training set has them, in bands.

    Attributes
    ----------
    classes
        Names, in the order of the arrays.
    mean
        Mean over the acquisitions, shape (classes, bands).
    spread
        Covariance between acquisitions of one class, shape (bands, bands): what an acquisition's own shape may be. The
        same for all classes: a spread for each would favour the class that spreads more or less.
    noise
        Covariance of the noise for a relative variance of 1, shape (bands, bands).
    energy_loss
        Centres of the bands, shape (bands,), eV.
    n_acquisitions
        Of each class, shape (classes,).
    mean_limit, pixel_limit
        Distances (see `distance`) above which the mean of an acquisition, and a single spectrum, are unlike all of the
        training set.
    """

    classes: list[str]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    noise: NDArray[np.float64]
    energy_loss: NDArray[np.float64]
    n_acquisitions: NDArray[np.int64]
    mean_limit: float = np.inf
    pixel_limit: float = np.inf

    @classmethod
    def fit(cls, shapes: Shapes, label: NDArray[np.str_], group: NDArray[np.str_] | None) -> Self:
        """Learn from labelled spectra.

        Parameters
        ----------
        shapes
            Of single spectra, shape (n, bands).
        label
            Shape (n,).
        group
            The acquisition of each, shape (n,); None takes every spectrum for an acquisition of its own, so that the
            spread holds the noise.

        Raises
        ------
        DataSetError
            If a class has no spectrum that shows a signal.

        Notes
        -----
        Spread: the covariance of the acquisitions' mean shapes within their classes, drawn to a diagonal as Ledoit and
        Wolf (2004) have it, larger by 1 + 1/n because a mean is known from n acquisitions only, and a smooth error
        (`SMOOTH_ERROR`). Noise: the
        covariance of single spectra about the mean of their acquisition and class, each in units of its relative
        variance.
        """
        classes = sorted(set(label.tolist()))
        means: list[Shapes] = []
        residuals: list[NDArray[np.float64]] = []
        for name in classes:
            of_class = shapes[(label == name) & shapes.known]
            if of_class.counts.size == 0:
                raise DataSetError(
                    f"no training spectrum of {name} shows a signal in the window of the edge, so there is nothing to "
                    "compare others with: look at the prepared acquisitions of that class"
                )
            if group is None:
                means.append(of_class)
                continue
            of_group = group[(label == name) & shapes.known]
            found, rest = _acquisition_means(of_class, of_group)
            means.append(found)
            residuals += rest
        # A spread of single spectra holds their noise, and is wider than that of acquisitions already.
        smooth_error = 0.0 if group is None else SMOOTH_ERROR
        fitted = cls._of_means(classes, means, residuals, smooth_error)
        distances = _left_out(fitted, means, smooth_error)
        mean_limit = MEAN_FACTOR * float(np.percentile(distances, MEAN_PERCENTILE))
        n_bands = fitted.mean.shape[1]
        from scipy.stats import chi2

        pixel_limit = mean_limit + float(chi2.ppf(PIXEL_QUANTILE, n_bands)) / n_bands - 1.0
        return replace(fitted, mean_limit=mean_limit, pixel_limit=pixel_limit)

    @classmethod
    def _of_means(
        cls, classes: list[str], means: Sequence[Shapes], residuals: Sequence[NDArray[np.float64]], smooth_error: float
    ) -> Self:
        mean = np.array([one.values.mean(axis=0) for one in means])
        energy_loss = means[0].energy_loss
        spread = _spread([one.values for one in means], mean)
        spread += _smooth_error(mean.mean(axis=0), energy_loss, smooth_error)
        noise = spread
        if residuals:
            rows = np.concatenate(residuals)
            noise = rows.T @ rows / len(rows)
        n = np.array([len(one.values) for one in means])
        return cls(classes, mean, spread, noise, energy_loss, n)

    def distance(self, shapes: Shapes, noise: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return how unlike all compositions of the classes spectra are, shape (n,).

        Parameters
        ----------
        shapes
            Shape (n, bands); infinitely far where there is no shape.
        noise
            Covariance of the spectra's noise for a relative variance of 1, shape (bands, bands); that of the training
            set by default.

        Notes
        -----
        The squared Mahalanobis distance from the nearest composition of two classes, divided by the number of bands.
        Deviations count in units of what acquisitions differ by and of the spectrum's own noise, so neither a low dose
        nor a counting detector makes a spectrum strange, and a high dose does not either.
        """
        known = shapes.known
        result = np.full(known.shape, np.inf)
        if not known.any():
            return result
        whiten = whitening(self.noise if noise is None else noise)
        eigenvalues, vectors = np.linalg.eigh(whiten @ self.spread @ whiten.T)
        scale = np.maximum(eigenvalues, 0.0) + shapes.relative_variance[known][:, None]
        coordinates = shapes.values[known] @ whiten.T @ vectors
        centres = compositions(len(self.classes)) @ self.mean @ whiten.T @ vectors
        best = np.min([((coordinates - centre) ** 2 / scale).sum(axis=1) for centre in centres], axis=0)
        result[known] = best / len(eigenvalues)
        return result

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return all of it as arrays by name."""
        return {
            "classes": np.array(self.classes),
            "mean": self.mean,
            "spread": self.spread,
            "noise": self.noise,
            "energy_loss": self.energy_loss,
            "n_acquisitions": self.n_acquisitions,
            "limits": np.array([self.mean_limit, self.pixel_limit]),
        }

    def save(self, path: Path) -> None:
        """Write an npz file."""
        np.savez(path, allow_pickle=False, **self.to_arrays())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; numpy's own errors where it is damaged."""
        # opened here because numpy forgets to close a damaged archive that it opened itself
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        mean_limit, pixel_limit = (float(limit) for limit in values.pop("limits"))
        values["classes"] = [str(name) for name in values["classes"]]
        return cls(**values, mean_limit=mean_limit, pixel_limit=pixel_limit)


def compositions(n_classes: int) -> NDArray[np.float64]:
    """Return every class alone, and steps between every two, shape (compositions, classes)."""
    alone = np.eye(n_classes)
    steps = np.linspace(0.0, 1.0, N_COMPOSITIONS)[1:-1]
    between = [
        step * alone[one] + (1.0 - step) * alone[other]
        for one, other in itertools.combinations(range(n_classes), 2)
        for step in steps
    ]
    return np.array([*alone, *between])


def mean_shape(shapes: Shapes) -> Shapes:
    """Return the mean of spectra that all have a shape, weighted by the inverse of their variance, shape (1, bands)."""
    weight = 1.0 / shapes.relative_variance
    values = (weight @ shapes.values / weight.sum())[None]
    return Shapes(values, np.array([1.0 / weight.sum()]), shapes.counts.mean(keepdims=True), shapes.energy_loss)


def _acquisition_means(shapes: Shapes, group: NDArray[np.str_]) -> tuple[Shapes, list[NDArray[np.float64]]]:
    """Return the mean shape of every acquisition, and what its spectra deviate by in units of their noise."""
    means, residuals = [], []
    for one in sorted(set(group.tolist())):
        members = shapes[group == one]
        means.append(mean_shape(members))
        n = members.counts.size
        if n > 1:
            scale = np.sqrt(n / (n - 1) / members.relative_variance)[:, None]
            residuals.append((members.values - means[-1].values) * scale)
    together = Shapes(
        np.concatenate([one.values for one in means]),
        np.concatenate([one.relative_variance for one in means]),
        np.concatenate([one.counts for one in means]),
        shapes.energy_loss,
    )
    return together, residuals


def _left_out(
    fitted: References, means: Sequence[Shapes], smooth_error: float, *, n_parts: int = 5
) -> NDArray[np.float64]:
    """Return the distances of acquisitions from references that were fitted without them."""
    distances = []
    for part in range(n_parts):
        held = [np.arange(len(one.values)) % n_parts == part for one in means]
        if any(mask.all() for mask in held) or not any(mask.any() for mask in held):
            continue
        rest = [one[~mask] for one, mask in zip(means, held, strict=True)]
        without = References._of_means(fitted.classes, rest, [], smooth_error)
        for one, mask in zip(means, held, strict=True):
            distances.append(without.distance(one[mask], fitted.noise))
    # of one acquisition a class nothing can be left out: their spread is assumed, and they lie at 0 of it
    return np.concatenate(distances) if distances else np.ones(1)


def _smooth_error(
    shape: NDArray[np.float64], energy_loss: NDArray[np.float64], deviation: float
) -> NDArray[np.float64]:
    """Return the covariance of a shape under a smooth random factor of this deviation, shape (bands, bands)."""
    distance = np.subtract.outer(energy_loss, energy_loss) / SMOOTH_LENGTH
    return np.asarray(deviation**2 * np.outer(shape, shape) * np.exp(-0.5 * distance**2))


def _spread(means: list[NDArray[np.float64]], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance between acquisitions of one class, shape (bands, bands)."""
    from sklearn.covariance import ledoit_wolf

    freedom = sum(len(of_class) - 1 for of_class in means)
    if freedom == 0:
        least = 1e-3 / mean.shape[1]
        return np.diag((SINGLE_SPREAD * np.maximum(np.abs(mean).mean(axis=0), least)) ** 2)
    rows = np.concatenate(
        [of_class - centre for of_class, centre in zip(means, mean, strict=True) if len(of_class) > 1]
    )
    scale = np.sqrt((rows**2).sum(axis=0) / freedom)
    scale[scale == 0] = 1.0
    correlation = ledoit_wolf(rows / scale, assume_centered=True)[0]
    n_per_class = np.mean([len(of_class) for of_class in means])
    return np.asarray(correlation * np.outer(scale, scale) * (len(rows) / freedom) * (1.0 + 1.0 / n_per_class))
