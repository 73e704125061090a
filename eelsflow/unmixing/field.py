"""Fractions of the classes in every pixel of one acquisition.

Multiple linear least squares on references is how the field maps phases. Two things make it wrong: an acquisition's
own shape is not that of the references, which biases all its fractions alike, and a pixel alone is noisy. Here the
references are a distribution, learnt from the training acquisitions, and the field itself tells where in it the
acquisition lies:

- A field without structure in space (`structure`) is of one composition. Its mean spectrum is compared with every
  composition, with the spread of the references; one phase alone is what most such fields are.
- A field with structure holds two compositions at the least. Expectation and maximisation finds the two classes' shapes
  in this acquisition that explain its pixels and are likely references. How the field's two ends lie in the scale of
  fractions is then weighed over all pairs of ends, because a field of 0 and .6 looks much like one of 0 and 1 with
  classes that are more alike.

The model of mixture and noise is the linear one of every unmixing; the hierarchy and its prior weights are ours.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp, ndtr

from eelsflow.preprocess.shapes import Shapes, shape_noise, whitening
from eelsflow.unmixing.references import References
from eelsflow.unmixing.structure import STRUCTURED, largest_of, spatial_correlation

PURE_PRIOR = 0.96
"""That a field without structure is of one class alone (our choice)."""
END_PRIORS = (0.05, 0.35, 0.6)
"""That none, one or both ends of a structured field are of one class alone (our choice)."""
ONE_PHASE = 0.5
"""That a field has structure for another reason than two phases: its thickness, or chance (our choice)."""
WITHIN = 0.03
"""Variance of shapes within an acquisition, relative to that between acquisitions: what thickness does to either (our
choice)."""
COMMON = 0.8
"""Share of an acquisition's deviation from the references that its classes have in common: thickness, resolution and
background bend all shapes alike (our choice, between 0 and 1)."""
N_FRACTIONS = 11
"""Fractions that are weighed against each other, 0 to 1."""
THRESHOLD_LIMITS = (1 / 3, 2 / 3)
"""A class needs a third of a pixel at the least to name it, and gets it with two thirds at the most (our choice)."""

TELLING = 0.25
"""Share of the counts of the thickest tenth of a field that a pixel needs to be learnt from (our choice)."""

_N_STEPS = 40  # of expectation and maximisation
_BETWEEN = np.array([3.0, 1.5, 3.0])  # pixels' worth of prior for how many lie at 0, between, at 1
_LEAST_SPREAD = 1e-3  # of a fraction; keeps a probability from being a step
_OUTER = 0.05  # share of the pixels beyond either end of a field


@dataclass(frozen=True)
class Weights:
    """What decides between the classes of one field, as sums over the bands of a shape.

    Attributes
    ----------
    of_bands
        Of each class, shape (classes, bands).
    offset
        Of each class, shape (classes,): a shape's value for a class is ``of_bands @ shape + offset``.
    unit
        Of the difference of two classes' values: ``log-odds`` of the one pure class against the other, or
        ``difference of fractions``, by least squares on the field's own two ends.

    Notes
    -----
    Exact for what the spectrum itself says. What follows is not linear: fractions are drawn to the field's ends and
    kept between 0 and 1, and a field without structure is decided by its mean spectrum.
    """

    of_bands: NDArray[np.float64]
    offset: NDArray[np.float64]
    unit: str


@dataclass(frozen=True)
class Unmixed:
    """Fractions of one field.

    Attributes
    ----------
    fraction
        Of each class, shape (y, x, classes), 0 to 1 with the sum 1; NaN where there is no shape.
    error
        Its standard error, same shape: of the pixel's noise and of what is not known of the acquisition's references.
    probability
        That a pixel is of the class, shape (y, x, classes).
    correlation
        How surely the field has structure, standard errors; see `structure.spatial_correlation`.
    ends
        Fractions of the first class at the field's two ends where two classes have structure, else None.
    noise
        Covariance of the field's noise for a relative variance of 1, shape (bands, bands).
    weights
        What decides between the classes, band by band; None where no pixel has a shape.
    """

    fraction: NDArray[np.float64]
    error: NDArray[np.float64]
    probability: NDArray[np.float64]
    correlation: float
    ends: tuple[float, float] | None
    noise: NDArray[np.float64]
    weights: Weights | None


def unmix(
    single: Shapes,
    gathered: Shapes,
    n_effective: NDArray[np.floating],
    specimen: NDArray[np.bool_],
    references: References,
) -> Unmixed:
    """Find the fractions of the classes in every specimen pixel.

    Parameters
    ----------
    single
        Of single pixels, shape (y, x, bands); their noise is independent from pixel to pixel.
    gathered
        The same with what their neighbours lend them, shape (y, x, bands); `single` again where nothing is lent.
    n_effective
        Of how many spectra a gathered one is the mean, shape (y, x).
    specimen
        Which pixels to judge, shape (y, x).
    references
        Of the classes, in the same bands.
    """
    known = specimen & gathered.known
    n_classes = len(references.classes)
    empty = np.full((*specimen.shape, n_classes), np.nan)
    telling = _telling(single, specimen & single.known)
    noise = shape_noise(single, telling, references.noise)
    if not known.any() or not telling.any():
        return Unmixed(empty, empty.copy(), empty.copy(), 0.0, None, noise, None)
    whiten = whitening(noise)
    prior = _Prior(references.mean @ whiten.T, whiten @ references.spread @ whiten.T)
    alone = _Field.of(single, telling, np.ones(specimen.shape), whiten)
    correlations = [
        spatial_correlation(_in_image(score, telling), single.relative_variance, telling)
        for score in _scores(alone, prior).T
    ]
    correlation = largest_of(np.array(correlations))
    ends = None
    if correlation < STRUCTURED:
        fraction, error, probability = _one_composition(alone, prior)
        weights = _log_odds_weights(prior, alone.mean()[1])
    else:
        field = _Field.of(gathered, known, n_effective, whiten)
        if n_classes == 2:
            learnt = _Field.of(gathered, known & telling, n_effective, whiten)
            fraction, error, probability, ends, weights = _two_ends(field, learnt, prior)
        else:
            fraction, error, probability = _least_squares(field, prior)
            weights = _log_odds_weights(prior, float(np.median(field.variance)))
    fraction, error, probability = (_in_maps(values, known) for values in (fraction, error, probability))
    weights = replace(weights, of_bands=weights.of_bands @ whiten)
    return Unmixed(fraction, error, probability, correlation, ends, noise, weights)


def _telling(shapes: Shapes, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the known pixels that tell of the field: thin ones hold film and whatever else lies at a rim."""
    if not known.any():
        return known
    return known & (shapes.counts >= TELLING * np.quantile(shapes.counts[known], 0.9))


@dataclass(frozen=True)
class _Prior:
    """References in coordinates in which the noise is white."""

    mean: NDArray[np.float64]  # (classes, bands)
    spread: NDArray[np.float64]  # (bands, bands)


@dataclass(frozen=True)
class _Field:
    """Spectra of known pixels in coordinates in which the noise is white."""

    values: NDArray[np.float64]  # (pixels, bands)
    variance: NDArray[np.float64]  # (pixels,)
    n_effective: NDArray[np.float64]  # (pixels,)

    @classmethod
    def of(
        cls,
        shapes: Shapes,
        chosen: NDArray[np.bool_],
        n_effective: NDArray[np.floating],
        whiten: NDArray[np.float64],
    ) -> _Field:
        """Take the chosen pixels, shape (y, x), of a field."""
        n = np.maximum(n_effective[chosen].astype(np.float64), 1.0)
        return cls(shapes.values[chosen] @ whiten.T, shapes.relative_variance[chosen], n)

    @property
    def weight(self) -> NDArray[np.float64]:
        """Of each pixel in a sum over the field: pixels that share their spectra count once together."""
        return np.asarray(1.0 / (self.variance * self.n_effective))

    def mean(self) -> tuple[NDArray[np.float64], float]:
        """Return the mean spectrum and the variance of its noise."""
        weight = self.weight
        return np.asarray(weight @ self.values / weight.sum()), float(1.0 / weight.sum())


def _in_maps(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return values of the known pixels, or one for all of them, as maps, shape (y, x, classes); NaN elsewhere."""
    maps = np.full((*known.shape, values.shape[-1]), np.nan)
    maps[known] = values
    return maps


def _in_image(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    image = np.zeros(known.shape)
    image[known] = values
    return image


def _scores(field: _Field, prior: _Prior) -> NDArray[np.float64]:
    """Return how far spectra lie along the way from one class to another, for each pair, shape (pixels, pairs).

    Fisher's discriminant with the spread of the references and the noise of a pixel: the direction is the training
    set's, so that no direction is sought in which this field happens to be correlated.
    """
    within = prior.spread + np.median(field.variance) * np.eye(prior.mean.shape[1])
    pairs = itertools.combinations(range(len(prior.mean)), 2)
    directions = [np.linalg.solve(within, prior.mean[one] - prior.mean[other]) for one, other in pairs]
    return np.asarray(field.values @ np.array(directions).T)


def _log_density(x: NDArray[np.float64], mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    """Return the logarithm of a normal density, up to a constant."""
    factor = np.linalg.cholesky(covariance)
    whitened = np.linalg.solve(factor, x - mean)
    return float(-0.5 * whitened @ whitened - np.log(np.diag(factor)).sum())


def _one_composition(
    field: _Field, prior: _Prior
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weigh every composition of a field without structure against its mean spectrum; shape (classes,) each.

    A mixture of two classes is allowed the spread of one, although independent deviations of the two would partly
    cancel in it: otherwise the middle would always be the more likely for being the narrower.
    """
    mean, variance = field.mean()
    n_classes, n_bands = prior.mean.shape
    noise = variance * np.eye(n_bands)
    compositions, logs = [], []
    steps = np.linspace(0.0, 1.0, 2 * N_FRACTIONS - 1)
    pairs = list(itertools.combinations(range(n_classes), 2))
    for number in range(n_classes):
        compositions.append(np.eye(n_classes)[number])
        logs.append(np.log(PURE_PRIOR / n_classes))
    for (one, other), step in itertools.product(pairs, steps[1:-1]):
        compositions.append(step * np.eye(n_classes)[one] + (1.0 - step) * np.eye(n_classes)[other])
        logs.append(np.log((1.0 - PURE_PRIOR) / len(pairs) / (steps.size - 2)))
    for number, composition in enumerate(compositions):
        logs[number] += _log_density(mean, composition @ prior.mean, prior.spread + noise)
    belief = np.exp(np.array(logs) - logsumexp(logs))
    table = np.array(compositions)
    fraction = belief @ table
    error = np.sqrt(np.maximum(belief @ table**2 - fraction**2, 0.0))
    largest = table == table.max(axis=1, keepdims=True)
    probability = belief @ (largest / largest.sum(axis=1, keepdims=True))
    return fraction, error, probability


def _log_odds_weights(prior: _Prior, variance: float) -> Weights:
    """Return the log-densities of the pure classes, but for what they have in common, for noise of this variance."""
    within = prior.spread + variance * np.eye(prior.mean.shape[1])
    of_bands = np.asarray(np.linalg.solve(within, prior.mean.T).T, dtype=np.float64)
    return Weights(of_bands, -0.5 * (of_bands * prior.mean).sum(axis=1), "log-odds")


def _two_ends(
    field: _Field, learnt: _Field, prior: _Prior
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], tuple[float, float], Weights]:
    """Find the fractions in a field of two classes that has structure; `learnt` are the pixels that tell of it."""
    line = _fit_line(learnt, prior)
    place, _, _ = _expect(*line.measure(learnt), line.between)
    low, high = np.quantile(place, [_OUTER, 1.0 - _OUTER])
    if high - low < 1e-6:
        low, high = 0.0, 1.0
    ends = np.array([[high, 1.0 - high], [low, 1.0 - low]])
    belief, pairs = _weigh_ends(ends @ line.measured, ends @ line.covariance @ ends.T, prior)
    place, spread, _ = _expect(*line.measure(field), line.between)
    scale = (pairs[:, 0] - pairs[:, 1]) / (high - low)
    found = np.clip(pairs[:, 1] + scale * (place[:, None] - low), 0.0, 1.0)
    first = found @ belief
    error = np.sqrt(np.maximum(found**2 @ belief - first**2, 0.0) + (scale**2 @ belief) * spread**2)
    top, bottom = belief @ pairs
    direction = line.shapes[0] - line.shapes[1]
    slope = (top - bottom) / (high - low) * direction / float(direction @ direction)
    start = bottom - (top - bottom) / (high - low) * low - float(slope @ line.shapes[1])
    weights = Weights(np.array([slope, -slope]), np.array([start, 1.0 - start]), "difference of fractions")
    threshold = float(np.clip((top + bottom) / 2, *THRESHOLD_LIMITS))
    probability = ndtr((found - threshold) / np.maximum(scale * spread[:, None], _LEAST_SPREAD)) @ belief
    return (
        np.stack([first, 1.0 - first], axis=1),
        np.stack([error, error], axis=1),
        np.stack([probability, 1.0 - probability], axis=1),
        (float(top), float(bottom)),
        weights,
    )


@dataclass(frozen=True)
class _Line:
    """The line in the space of shapes that a field's pixels lie along: 1 at the first class's end, 0 at the other.

    Attributes
    ----------
    shapes
        At 1 and at 0, with the references as prior, shape (2, bands).
    between
        How many pixels lie at 0, between, and at 1; the sum is 1.
    measured
        At 1 and at 0, as the pixels alone have them, shape (2, bands): the references judge these next.
    covariance
        Of the noise of the two measured, the same in every band, shape (2, 2).
    """

    shapes: NDArray[np.float64]
    between: NDArray[np.float64]
    measured: NDArray[np.float64]
    covariance: NDArray[np.float64]

    def measure(self, field: _Field) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where on the line pixels lie by their own spectra, and the standard deviation of that."""
        direction = self.shapes[0] - self.shapes[1]
        length = float(direction @ direction)
        return (field.values - self.shapes[1]) @ direction / length, np.sqrt(field.variance / length)


def _fit_line(field: _Field, prior: _Prior) -> _Line:
    """Find the line by expectation and maximisation.

    Notes
    -----
    Expectation: the place of a pixel given the line, under a prior that lets it be at either end or anywhere between,
    with weights that are learnt too. Maximisation: the line given the places, with the references as its prior. The
    first step measures places along the discriminant of the references, with their spread.
    """
    n_bands = prior.mean.shape[1]
    identity = np.eye(n_bands)
    precision = np.linalg.inv(prior.spread)
    pull = prior.mean @ precision
    weight = field.weight
    between = np.array([0.4, 0.2, 0.4])
    direction = prior.mean[0] - prior.mean[1]
    projected = np.linalg.solve(prior.spread + np.median(field.variance) * identity, direction)
    length = float(direction @ projected)
    place = (field.values - prior.mean[1]) @ projected / length
    deviation = np.sqrt(1.0 / length + field.variance * (projected @ projected) / length**2)
    for _ in range(_N_STEPS):
        place, spread, share = _expect(place, deviation, between)
        counts = share @ (1.0 / field.n_effective)
        between = (counts + _BETWEEN) / (counts.sum() + _BETWEEN.sum())
        mixed = (weight * (place * (1.0 - place) - spread**2)).sum()
        moments = np.array(
            [
                [(weight * (place**2 + spread**2)).sum(), mixed],
                [mixed, (weight * ((1.0 - place) ** 2 + spread**2)).sum()],
            ]
        )
        sums = np.stack([(weight * place) @ field.values, (weight * (1.0 - place)) @ field.values])
        information = np.kron(moments, identity) + np.kron(np.eye(2), precision)
        shapes = np.linalg.solve(information, (pull + sums).ravel()).reshape(2, n_bands)
        line = _Line(shapes, between, sums, moments)
        place, deviation = line.measure(field)
    covariance = np.linalg.inv(moments)
    return _Line(shapes, between, covariance @ sums, covariance)


def _expect(
    place: NDArray[np.float64], deviation: NDArray[np.float64], between: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of places that lie at 0, at 1 or anywhere between, and the shares of each.

    Parameters
    ----------
    place, deviation
        What was measured, and its standard deviation, shape (pixels,).
    between
        Prior weights of 0, between, 1.
    """
    low, high = -place / deviation, (1.0 - place) / deviation
    log_inside = _log_between(low, high)
    density_low, density_high = (np.exp(-0.5 * end**2 - log_inside) / np.sqrt(2 * np.pi) for end in (low, high))
    inside_mean = np.clip(place + deviation * (density_low - density_high), 0.0, 1.0)
    reduced = 1.0 + low * density_low - high * density_high - (density_low - density_high) ** 2
    inside_variance = deviation**2 * np.clip(reduced, 0.0, 1.0)
    logs = np.stack(
        [
            np.log(between[0]) - 0.5 * low**2 - np.log(deviation * np.sqrt(2 * np.pi)),
            np.log(between[1]) + log_inside,
            np.log(between[2]) - 0.5 * high**2 - np.log(deviation * np.sqrt(2 * np.pi)),
        ]
    )
    share = np.exp(logs - logsumexp(logs, axis=0))
    mean = share[2] + share[1] * inside_mean
    second = share[2] + share[1] * (inside_variance + inside_mean**2)
    return mean, np.sqrt(np.maximum(second - mean**2, 1e-6)), share


def _log_between(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(Phi(high) - Phi(low)), also far out in either tail."""
    flip = low + high > 0
    a, b = np.where(flip, -high, low), np.where(flip, -low, high)  # now b is the larger, on the left or about 0
    log_b, log_a = log_ndtr(b), log_ndtr(a)
    return np.asarray(log_b + np.log1p(-np.exp(np.minimum(log_a - log_b, -1e-12))))


def _weigh_ends(
    shapes: NDArray[np.float64], noise: NDArray[np.float64], prior: _Prior
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weigh pairs of fractions of the first class that a field's two ends may have.

    Parameters
    ----------
    shapes
        Of the two ends, the first class's first, shape (2, bands).
    noise
        Covariance of the two, the same in every band, shape (2, 2).
    prior
        References.

    Returns
    -------
    belief
        Shape (pairs,), the sum is 1.
    pairs
        Fraction at the first class's end and at the other, shape (pairs, 2).
    """
    grid = np.linspace(0.0, 1.0, N_FRACTIONS)
    pairs = np.array([(top, bottom) for top in grid for bottom in grid if top > bottom] + [(0.0, 0.0), (1.0, 1.0)])
    one_phase = pairs[:, 0] == pairs[:, 1]
    n_pure = np.where(one_phase, len(END_PRIORS), (pairs[:, 0] == 1.0).astype(int) + (pairs[:, 1] == 0.0))
    prior_of_kind = np.array([*((1.0 - ONE_PHASE) * np.array(END_PRIORS)), ONE_PHASE])
    logs = np.log(prior_of_kind[n_pure] / np.bincount(n_pure)[n_pure])
    found = shapes.ravel()
    own = np.kron(noise, np.eye(shapes.shape[1])) + WITHIN * np.kron(np.eye(2), prior.spread)
    for number, (top, bottom) in enumerate(pairs):
        share = np.array([[top, 1.0 - top], [bottom, 1.0 - bottom]])  # (ends, classes)
        alike = COMMON + (1.0 - COMMON) * share @ share.T
        logs[number] += _log_density(found, (share @ prior.mean).ravel(), np.kron(alike, prior.spread) + own)
    return np.exp(logs - logsumexp(logs)), pairs


def _least_squares(
    field: _Field, prior: _Prior
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Fit non-negative fractions with the sum 1 to every pixel, weighted by its noise and the references' spread.

    Exact: the best of all sets of classes whose unconstrained fractions are positive. For more than two classes, whose
    references are not adapted to the acquisition.
    """
    n_classes, n_bands = prior.mean.shape
    covariance = prior.spread + np.median(field.variance) * np.eye(n_bands)
    metric = np.linalg.inv(covariance)
    best = np.full(len(field.values), np.inf)
    fraction = np.zeros((len(field.values), n_classes))
    variance = np.zeros((len(field.values), n_classes))
    for size in range(1, n_classes + 1):
        for chosen in itertools.combinations(range(n_classes), size):
            base = prior.mean[chosen[-1]]
            directions = prior.mean[list(chosen[:-1])] - base  # (size - 1, bands)
            rest = field.values - base
            inverse = np.linalg.inv(directions @ metric @ directions.T)
            part = rest @ metric @ directions.T @ inverse
            part = np.concatenate([part, 1.0 - part.sum(axis=1, keepdims=True)], axis=1)
            residual = rest - part[:, :-1] @ directions
            cost = np.einsum("ij,jk,ik->i", residual, metric, residual)
            better = (part >= 0).all(axis=1) & (cost < best)
            best[better] = cost[better]
            fraction[better] = 0.0
            fraction[np.ix_(better, chosen)] = part[better]
    whole = prior.mean[:-1] - prior.mean[-1]
    inverse = np.linalg.inv(whole @ metric @ whole.T)
    errors = np.sqrt(np.append(np.diag(inverse), inverse.sum()))
    variance[:] = errors**2
    logs = np.stack(
        [-0.5 * np.einsum("ij,jk,ik->i", d := field.values - mean, metric, d) for mean in prior.mean], axis=1
    )
    probability = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    return fraction, np.sqrt(variance), probability
