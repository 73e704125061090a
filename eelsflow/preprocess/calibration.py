"""One offset and one dispersion for an acquisition, from all edges that it shows.

An edge asks for an offset where it lies. Two edges, a known distance apart, ask for a dispersion as well: where both
offsets differ, either the channels are not as wide as the file says, or the two edges are not as far apart as usual,
which is chemistry (an oxidation state moves a metal's L3 by more than an electronvolt). One difference cannot tell the
two apart; how far either usually goes divides it between them. What is left to chemistry stays in the spectra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eelsflow.edges import Edge
from eelsflow.preprocess.offset import OffsetEstimate
from eelsflow.preprocess.presets import DISPERSION_ERROR

_SCALES = ((0.95, 1.0), (0.05, 3.0))
"""How often the error of a dispersion is of which standard deviation, over the one that is said (our choice): now and
then a file carries the dispersion of another setting."""

SLACK = 4.0
"""How much further than the first edge another may seem off, eV: by its chemistry and the dispersion."""

DISTANCES: Mapping[tuple[str, str], tuple[float, float]] = {
    ("O_K", "Fe_L3"): (177.2, 0.6),
    ("O_K", "Mn_L3"): (112.0, 0.9),
}
"""From the reference feature of one edge to that of another, and the standard deviation of that over compounds, eV.

O K to Fe L3: 177.5 eV measured on iron-oxide nanocubes, 176.2 for Fe2+ to 178.0 for Fe3+. O K to Mn L3: the pre-peak of
manganese oxides near 529.5 eV, L3 at 640.5 (Mn2+) to 643 (Mn4+)."""

_SIGNIFICANT = 3.0  # standard deviations
_USUAL_ERROR = 0.05  # eV, of the offset that an edge asks for

UNKNOWN_DISTANCE = 1.0
"""Standard deviation of the distance of other edges about that of their reference energies, eV (our choice)."""


@dataclass(frozen=True)
class Calibration:
    """The energy axis of an acquisition, as its edges have it.

    Attributes
    ----------
    offset
        To add to the nominal axis at the reference energy of the first edge, eV; its alternatives are those that the
        other edges leave.
    dispersion
        True width of a channel over the nominal one.
    dispersion_error
        Standard error of `dispersion`.
    distances
        From the first edge's reference feature to that of each other edge: as it lies on the axis with `offset` alone,
        and its standard error, eV.
    """

    offset: OffsetEstimate
    dispersion: float
    dispersion_error: float
    distances: Mapping[str, tuple[float, float]]


def usual_distance(first: Edge, other: Edge) -> tuple[float, float]:
    """Return how far apart the reference features of two edges are, and the spread of that over compounds, eV."""
    known = DISTANCES.get((first.name, other.name))
    if known is not None:
        return known
    turned = DISTANCES.get((other.name, first.name))
    if turned is not None:
        return -turned[0], turned[1]
    return other.reference_energy - first.reference_energy, UNKNOWN_DISTANCE


def calibrate(
    first: Edge,
    offset: OffsetEstimate,
    others: Sequence[tuple[Edge, OffsetEstimate]],
    *,
    dispersion_error: float = DISPERSION_ERROR,
) -> Calibration:
    """Find one offset and one dispersion that suit all edges.

    Parameters
    ----------
    first
        The edge whose reference energy stays where it is.
    offset
        That it asks for.
    others
        Other edges of the same spectrum, each with the offset that it asks for by itself. Without any, the dispersion
        is the nominal one.
    dispersion_error
        How well the nominal dispersion is known before: its relative standard deviation.

    Notes
    -----
    An edge at the usual distance D from the first asks for ``o + s D`` to within its own error and the spread of D,
    normally distributed, with o the offset and s by how much nearer edges lie on the axis, relatively, about 0 with
    `dispersion_error`, now and then three times that: a mean over the two, each weighed by its evidence. Where the
    first edge has alternatives, each is weighed with how well the others suit it. Method and numbers are ours.
    """
    asked = []  # what each other edge asks of o + s D, and the variance of that
    for edge, there in others:
        usual, spread = usual_distance(first, edge)
        moved = there.value - (edge.reference_energy - first.reference_energy - usual)
        asked.append((usual, moved, there.error**2 + spread**2))
    if not asked:
        return Calibration(offset, 1.0, dispersion_error, {})
    value, rest = _most_likely(offset, asked, dispersion_error)
    distances = {
        edge.name: (usual + value - moved, float(np.hypot(offset.error, there.error)))
        for (edge, there), (usual, moved, _) in zip(others, asked, strict=True)
    }
    solved = [_solve(value, offset.error, asked, scale * dispersion_error) for _, scale in _SCALES]
    weights = np.log([share for share, _ in _SCALES]) + np.array([evidence for _, _, evidence in solved])
    weights = np.exp(weights - weights.max())
    weights /= weights.sum()
    found = np.sum([weight * mean for weight, (mean, _, _) in zip(weights, solved, strict=True)], axis=0)
    second = [
        weight * (covariance + np.outer(mean - found, mean - found))
        for weight, (mean, covariance, _) in zip(weights, solved, strict=True)
    ]
    error = np.sqrt(np.diag(np.sum(second, axis=0)))
    settled = OffsetEstimate(float(found[0]), float(error[0]), rest, offset.contrast)
    factor = 1.0 / (1.0 - float(found[1]))  # edges lie nearer on an axis whose channels are wider than it says
    return Calibration(settled, factor, float(error[1]) * factor**2, distances)


def dispersion_left(edge: Edge, error: float, *, dispersion_error: float = DISPERSION_ERROR) -> float:
    """Return what alignment leaves of a wrong dispersion.

    Parameters
    ----------
    edge
        One edge, of which nothing is corrected, or several that are judged together.
    error
        Relative: a feature d eV from the first edge's reference feature appears ``(1 + error) d`` from it.
    dispersion_error
        How well the nominal dispersion is said to be known; see `calibrate`.
    """
    first, *others = edge.alone
    asked = []
    for other in others:
        usual, _ = usual_distance(first, other)
        value = other.reference_energy - first.reference_energy - (1.0 + error) * usual
        asked.append((other, OffsetEstimate(value, _USUAL_ERROR)))
    found = calibrate(first, OffsetEstimate(0.0, _USUAL_ERROR), asked, dispersion_error=dispersion_error)
    return (1.0 + error) * found.dispersion - 1.0


def unlikely_distances(
    first: Edge, others: Sequence[Edge], calibration: Calibration, *, dispersion_error: float
) -> list[str]:
    """Say which edges lie so far from their usual distance that no compound explains it, and no expected dispersion.

    `dispersion_error` is that which `calibrate` was given.
    """
    said = []
    for other in others:
        usual, spread = usual_distance(first, other)
        measured, error = calibration.distances[other.name]
        expected = np.sqrt(spread**2 + error**2 + (dispersion_error * usual) ** 2)
        if abs(measured - usual) > _SIGNIFICANT * expected:
            said.append(
                f"{first.name} and {other.name} lie {abs(measured):.2f} +- {error:.2f} eV apart on the file's axis, "
                f"and compounds have {abs(usual):.1f} +- {spread:.1f} eV"
            )
    return said


def _solve(
    value: float, error: float, asked: Sequence[tuple[float, float, float]], dispersion_error: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the mean (offset, how much nearer edges lie), its covariance and the evidence, up to a constant."""
    design = np.array([[1.0, 0.0], *([1.0, usual] for usual, _, _ in asked)])
    observed = np.array([value, *(moved for _, moved, _ in asked)])
    variance = np.array([error**2, *(one for _, _, one in asked)])
    precision = np.diag([0.0, dispersion_error**-2]) + (design.T / variance) @ design
    covariance = np.linalg.inv(precision)
    mean = covariance @ (design.T @ (observed / variance))
    residual = observed - design @ mean
    misfit = float((residual**2 / variance).sum() + (mean[1] / dispersion_error) ** 2)
    evidence = -0.5 * (misfit + np.linalg.slogdet(precision)[1]) - np.log(dispersion_error)
    return mean, covariance, float(evidence)


def _most_likely(
    offset: OffsetEstimate, asked: Sequence[tuple[float, float, float]], dispersion_error: float
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """Return the offset of the first edge that suits the others best, and the rest with what they weigh against it."""
    candidates = [(offset.value, 1.0), *offset.alternatives]
    weights = []
    for value, probability in candidates:
        misfit = sum(
            (moved - value) ** 2 / (variance + offset.error**2 + (usual * dispersion_error) ** 2)
            for usual, moved, variance in asked
        )
        weights.append(np.log(max(probability, 1e-12)) - 0.5 * misfit)
    best = int(np.argmax(weights))
    rest = [
        (candidates[number][0], float(np.exp(weights[number] - weights[best])))
        for number in np.argsort(weights)[::-1]
        if number != best
    ]
    return candidates[best][0], tuple(rest)
