"""What doses give: accuracy by recording pixels anew, the error of a fraction by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.dose.pilot import Pilot, expected_counts, predict_spectra, prepare_again
from eelsflow.dose.recording import record
from eelsflow.dose.shapes import ClassShapes
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.shapes import whitening
from eelsflow.preprocess.transform import Fitted, product_axis

Floats = NDArray[np.float64]

INTERVAL = (0.05, 0.95)
"""Quantiles of an interval: 90 % of acquisitions such as this one."""
_N_ACQUISITIONS = 256  # draws of what acquisitions differ by, in pairs of opposite sign
_N_PIXELS = 8  # spectra of each class in each of them
_AS_GOOD = 0.002  # of an accuracy, by which the draws cannot tell it from that without noise
_N_ERRORS = 64  # draws of the classes' shapes that an error of the fraction is given an interval by


@dataclass(frozen=True)
class Curve:
    """A figure against the dose, or against the number of averaged pixels.

    Attributes
    ----------
    factor
        Dose relative to the acquisition's, or how many of its pixels are averaged, ascending, shape (n,).
    value, low, high
        What is expected, and between what 90 % of acquisitions such as this one lie, shape (n,).
    limit
        What is expected without any noise.
    """

    factor: Floats
    value: Floats
    low: Floats
    high: Floats
    limit: float

    def answer(self, target: float) -> Answer:
        """Return where the curve reaches a target: an accuracy where it rises, an error where it falls."""
        from scipy.special import ndtri

        rises = self.value[-1] >= self.value[0]

        def crossing(values: Floats) -> float | None:
            both = np.append(values, target)
            both = ndtri(np.clip(both, 1e-6, 1.0 - 1e-6)) if rises else -np.log(both)
            return _crossing(self.factor, both[:-1], float(both[-1]))

        better, worse = (self.high, self.low) if rises else (self.low, self.high)
        return Answer(target, crossing(self.value), crossing(better), crossing(worse))


@dataclass(frozen=True)
class Answer:
    """What a target needs.

    Attributes
    ----------
    target
        Accuracy, or standard error of the fraction.
    factor
        Dose relative to the acquisition's, or pixels of it to average; None where no dose reaches the target.
    low, high
        Between what 90 % of acquisitions such as this one need; None: more than any dose.
    """

    target: float
    factor: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Draws:
    """Expected counts of pixels of each class in acquisitions that may be, at the acquisition's own dose."""

    expected: NDArray[np.float32]  # (classes, acquisitions, pixels, channels)
    fitted: Fitted
    bundle: ModelBundle
    seed: int

    @classmethod
    def of(cls, pilot: Pilot, shapes: ClassShapes, bundle: ModelBundle, rng: np.random.Generator) -> Draws:
        """Draw the classes' shapes, and put them into pixels of the acquisition."""
        n_classes, n_pairs = len(shapes.composition), _N_ACQUISITIONS // 2
        weights = np.cumsum([reading.weight for reading in shapes.readings])
        chosen = np.searchsorted(weights / weights[-1], (np.arange(n_pairs) + 0.5) / n_pairs)
        boundaries = pilot.fitted.corrected_axis.boundaries
        parts = []
        for number in np.unique(chosen):
            reading, n = shapes.readings[number], int((chosen == number).sum())
            base = expected_counts(pilot, reading.group)
            drawn = reading.draw(n, shapes.spread, shapes.noise, rng)
            expected = np.empty((n_classes, 2 * n, _N_PIXELS, boundaries.size - 1), dtype=np.float32)
            for k in range(n_classes):
                pool = np.flatnonzero(reading.group == reading.own[k] if reading.own[k] >= 0 else reading.group >= 0)
                pixels = rng.choice(pool, (2 * n, _N_PIXELS))
                change = drawn[:, k, None] - reading.measured[reading.group[pixels]]
                expected[k] = base[pixels]
                first, n_edges = 0, len(pilot.band_bounds)
                for place, bounds in enumerate(pilot.band_bounds):  # a shape's bands are shares of 1 over all edges
                    of_edge = n_edges * change[..., first : first + bounds.size - 1]
                    density = spread_bands(of_edge, bounds, boundaries)
                    expected[k] += pilot.edge_counts[pixels, place][..., None] * density
                    first += bounds.size - 1
            parts.append(expected)
        return cls(np.concatenate(parts, axis=1), pilot.fitted, bundle, int(rng.integers(2**31)))

    def accuracy(self, factor: float, readout: float) -> tuple[float, float]:
        """Return the share of pixels that are named rightly at a dose, and its variance between acquisitions."""
        n_classes, n_acquisitions, n_pixels, n_channels = self.expected.shape
        counts = self.expected.reshape(-1, n_channels)
        if np.isfinite(factor):
            counts = record(factor * counts, self.fitted.noise, np.random.default_rng(self.seed), readout=readout)
        group = np.tile(np.repeat([f"{number}" for number in range(n_acquisitions)], n_pixels), n_classes)
        intensity, _ = prepare_again(counts, self.fitted)
        predicted = predict_spectra(intensity, product_axis(self.fitted), self.bundle, group)
        names = np.asarray(self.bundle.classes)[:, None, None]
        right = predicted.reshape(n_classes, n_acquisitions, n_pixels) == names
        of_each = right.mean(axis=2)
        sampling = (of_each * (1.0 - of_each) / (n_pixels - 1)).sum(axis=0).mean() / n_classes**2
        mean = of_each.mean(axis=0)
        return float(mean.mean()), float(max(mean.var() - sampling, 0.0) + sampling / n_acquisitions)

    def curve(self, factor: Floats, readout: Floats, limit: tuple[float, float]) -> Curve:
        """Return the accuracy against the dose; doses beyond two that are as good as no noise get its accuracy."""
        found: list[tuple[float, float]] = []
        for dose, number in zip(factor, readout, strict=True):
            as_good = len(found) > 1 and min(found[-1][0], found[-2][0]) >= limit[0] - _AS_GOOD
            found.append(limit if as_good or (found and found[-1] is limit) else self.accuracy(dose, number))
        return _curve(factor, found, limit[0])


def fraction_curve(factor: Floats, pilot: Pilot, shapes: ClassShapes, *, readout: Any) -> Curve:
    """Return the standard error of fractions by the covariance of least squares; see `DosePlan`."""
    whiten = whitening(shapes.noise)
    rng = np.random.default_rng(0)
    pixels = np.linspace(0, 1, 65)[:-1] + 1 / 128
    steps = np.append(factor, np.inf)
    relative = np.array([np.quantile(pilot.relative_variance(f, readout(f)), pixels) for f in steps])  # inf: none
    squares = np.zeros((1 + _N_ERRORS, steps.size))
    for reading in shapes.readings:
        drawn = np.concatenate([reading.mean[None], reading.draw(_N_ERRORS // 2, shapes.spread, shapes.noise, rng)])
        open_part = np.diag(reading.left).mean() * shapes.spread + shapes.within
        eigenvalues, vectors = np.linalg.eigh(whiten @ open_part @ whiten.T)
        left = np.maximum(eigenvalues, 0.0) + np.mean(reading.gain**2 @ reading.measured_variance)
        coordinates = drawn @ whiten.T @ vectors
        directions = coordinates[:, :-1] - coordinates[:, -1:]
        for number, values in enumerate(relative):
            weighted = directions[0] / (values[:, None, None] + left)  # (pixels, contrasts, bands)
            inverse = np.linalg.inv(weighted @ directions[0].T)
            # what these weights make of the contrasts that another acquisition of the same classes has
            slope = np.linalg.inv(inverse.mean(axis=0) @ weighted.mean(axis=0) @ directions.transpose(0, 2, 1))
            slope = slope @ np.linalg.inv(slope[0])
            covariance = slope @ inverse.mean(axis=0) @ slope.transpose(0, 2, 1)
            of_all = np.trace(covariance, axis1=-2, axis2=-1) + covariance.sum(axis=(-2, -1))
            squares[:, number] += reading.weight * of_all / len(reading.mean)
    errors = np.sqrt(squares / sum(reading.weight for reading in shapes.readings))
    value, others = errors[0], np.quantile(errors[1:], INTERVAL, axis=0)
    low, high = np.minimum(others[0], value), np.maximum(others[1], value)
    return Curve(factor, value[:-1], low[:-1], high[:-1], float(value[-1]))


def spread_bands(change: Floats, bounds: Floats, boundaries: Floats) -> Floats:
    """Return what bands (..., bands) hold as channels (..., channels), smooth, with the same sum in every band.

    Parameters
    ----------
    change
        Of each band; nothing lies beyond them.
    bounds
        Of the bands, (bands + 1,), eV.
    boundaries
        Of the channels, (channels + 1,), eV.
    """
    from scipy.interpolate import CubicSpline

    total = np.concatenate([np.zeros((*change.shape[:-1], 1)), np.cumsum(change, axis=-1)], axis=-1)
    spline = CubicSpline(bounds, total, axis=-1)
    return np.asarray(np.diff(spline(np.clip(boundaries, bounds[0], bounds[-1])), axis=-1))


def _curve(factor: Floats, found: Sequence[tuple[float, float]], limit: float) -> Curve:
    """Return accuracies as a curve that does not fall, with the interval of a beta distribution."""
    from scipy.stats import beta
    from sklearn.isotonic import isotonic_regression

    mean = np.clip([value for value, _ in found], 1e-4, 1.0 - 1e-4)
    variance = np.clip([value for _, value in found], 1e-8, 0.99 * mean * (1.0 - mean))
    # between acquisitions, as a share of the most it could be: noisy dose by dose, and smooth over them
    share = np.pad(variance / (mean * (1.0 - mean)), 2, mode="edge")
    size = 1.0 / np.convolve(share, np.full(5, 0.2), mode="valid") - 1.0
    curves = [mean, *(beta.ppf(q, mean * size, (1.0 - mean) * size) for q in INTERVAL)]
    value, low, high = (np.asarray(isotonic_regression(curve)) for curve in curves)
    return Curve(factor, value, np.minimum(low, value), np.maximum(high, value), limit)


def _crossing(factor: Floats, values: Floats, target: float) -> float | None:
    """Return where rising values reach a target; the first factor where they do from the start, None if they do not."""
    from scipy.interpolate import PchipInterpolator

    reached = np.flatnonzero(values >= target)
    if not reached.size:
        return None
    fine = np.linspace(np.log(factor[0]), np.log(factor[-1]), 4001)
    return float(np.exp(fine[np.argmax(PchipInterpolator(np.log(factor), values)(fine) >= target - 1e-9)]))
