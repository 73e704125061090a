"""The two white lines of a transition metal, fitted in every pixel: their ratio and the position of L3, with errors.

These are what the field publishes beside a classification: the ratio of L3 to L2 follows the number of 3d electrons,
and L3 moves by more than an electronvolt from one oxidation state to the next.

The lines are two Gaussians, each on an arc tangent step half-filled at the line's centre (Tan et al., Ultramicroscopy
116, 24 (2012), compare such fits). Widths, the distance of the lines and the steps' width belong to the acquisition,
where the sum of all pixels tells them; a pixel has its own heights, step and position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from eelsflow.edges import Edge

STEP_WIDTH = 1.0
"""Of the arc tangent, eV (our choice; the ratio changes by less than its error between .5 and 2)."""

STEP_RATIO = 0.5
"""Of the step of L2 to that of L3: two 2p1/2 electrons for four 2p3/2."""

FARTHEST = 4.0
"""How far L3 may lie from where the acquisition's mean has it, eV (our choice)."""

_N_STEPS = 4  # of Gauss and Newton: a position is then within a hundredth of its standard error of where it settles
_ROWS = 1024  # spectra at once

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SharedLines:
    """What all pixels of an acquisition have in common.

    Attributes
    ----------
    position
        Of L3 in the mean spectrum, eV.
    widths
        Standard deviation of L3 and of L2, eV.
    distance
        From L3 to L2, eV.
    ratio
        Of the areas of L3 and L2 above their steps, in the mean spectrum.
    """

    position: float
    widths: tuple[float, float]
    distance: float
    ratio: float


@dataclass(frozen=True)
class PixelLines:
    """The fit of single spectra, shape (n,) each; NaN where there is none.

    Attributes
    ----------
    ratio, ratio_error
        Of the areas of L3 and L2 above their steps, and its standard error.
    position, position_error
        Of L3, eV, and its standard error.
    """

    ratio: Floats
    ratio_error: Floats
    position: Floats
    position_error: Floats


def white_lines_of(edge: Edge) -> Edge | None:
    """Return which of the edges judged together is described by two lines named L3 and L2; None without one."""
    return next((one for one in edge.alone if [feature.name for feature in one.features] == ["L3", "L2"]), None)


def fit_shared_lines(energies: Floats, mean: Floats, variance: Floats, edge: Edge) -> SharedLines | None:
    """Fit the lines of a mean spectrum.

    Parameters
    ----------
    energies
        Of the fine-structure window, shape (channels,), eV.
    mean, variance
        Background-subtracted, and the variance that channels are weighted by, shape (channels,); its scale is free.
    edge
        With the features L3 and L2, which say how wide and how far apart lines may be.

    Returns
    -------
    SharedLines or None
        None where the spectrum shows no two lines.
    """
    l3, l2 = edge.features
    top = float(mean.max())
    if not (np.isfinite(mean).all() and np.isfinite(variance).all() and top > 0):
        return None
    low, high = l2.position_range or (l2.position - 1.0, l2.position + 1.0)
    scale = np.sqrt(np.maximum(variance, 1e-3 * variance.max() + 1e-30)) / top

    def residual(p: Floats) -> Floats:
        lines = _lines(energies, np.array([p[3]]), (p[4], p[5]), p[6])
        return np.asarray((p[0] * lines[0][0] + p[1] * lines[1][0] + p[2] * lines[2][0] - mean / top) / scale)

    lower = [0.0, 0.0, 0.0, energies[0], 0.4 * l3.sigma, 0.4 * l2.sigma, low - 1.0]
    upper = [3.0, 3.0, 3.0, energies[-1], 2.0 * l3.sigma, 2.0 * l2.sigma, high + 1.0]
    first = [0.9, 0.35, 0.1, float(energies[np.argmax(mean)]), l3.sigma, l2.sigma, l2.position]
    found = least_squares(
        residual, np.clip(first, np.add(lower, 1e-6), np.subtract(upper, 1e-6)), bounds=(lower, upper)
    )
    h3, h2, _, position, w3, w2, distance = (float(one) for one in found.x)
    if h3 < 0.1 or h2 < 0.02 or not energies[0] + w3 < position < energies[-1] - distance:
        return None
    return SharedLines(position, (w3, w2), distance, h3 * w3 / (h2 * w2))


def fit_lines(energies: Floats, spectra: Floats, variance: Floats, shared: SharedLines) -> PixelLines:
    """Fit the lines of single spectra.

    Parameters
    ----------
    energies
        Of the fine-structure window, shape (channels,), eV.
    spectra, variance
        Background-subtracted, and their variance, shape (n, channels); not modified. NaN leaves a spectrum out.
    shared
        What they have in common.

    Notes
    -----
    Gauss-Newton, all spectra at once. Errors are those of weighted least squares, larger by the root of how many
    channels share their noise, which the residuals tell; widths and distance are taken as known.
    """
    result = np.full((4, len(spectra)), np.nan)
    usable = np.flatnonzero(np.isfinite(spectra).all(axis=1) & np.isfinite(variance).all(axis=1))
    for first in range(0, usable.size, _ROWS):
        some = usable[first : first + _ROWS]
        values = np.asarray(spectra[some], dtype=np.float64)
        result[:, some] = _fit_lines(energies, values, np.asarray(variance[some], dtype=np.float64), shared)
    return PixelLines(*result)


def _lines(
    energies: Floats, position: Floats, widths: tuple[float, float], distance: float
) -> tuple[Floats, Floats, Floats]:
    """Return L3, L2 and both steps together, each of unit height, shape (positions, energies)."""
    x = energies - position[:, None]
    l3, l2 = (np.exp(-0.5 * (one / width) ** 2) for one, width in zip((x, x - distance), widths, strict=True))
    rise = [0.5 + np.arctan(np.pi * one / STEP_WIDTH) / np.pi for one in (x, x - distance)]
    return l3, l2, (rise[0] + STEP_RATIO * rise[1]) / (1.0 + STEP_RATIO)


def _with_slopes(
    energies: Floats, position: Floats, widths: tuple[float, float], distance: float
) -> tuple[Floats, Floats]:
    """Return what `_lines` does, and the slope of each with the position, per eV: (3, positions, energies) both."""
    x = energies - position[:, None]
    lines, slopes = np.empty((3, *x.shape)), np.empty((3, *x.shape))
    lines[2], slopes[2] = 0.5, 0.0
    for number, (one, width, share) in enumerate(
        ((x, widths[0], 1.0), (x - distance, widths[1], STEP_RATIO))  # L3, L2
    ):
        np.exp(-0.5 * (one / width) ** 2, out=lines[number])
        np.multiply(lines[number], one / width**2, out=slopes[number])
        steep = one * (np.pi / STEP_WIDTH)
        lines[2] += np.arctan(steep) * (share / np.pi / (1.0 + STEP_RATIO))
        slopes[2] -= share / STEP_WIDTH / (1.0 + STEP_RATIO) / (1.0 + steep**2)
    return lines, slopes


def _fit_lines(energies: Floats, values: Floats, variance: Floats, shared: SharedLines) -> Floats:
    """Return ratio, its error, position and its error of each spectrum, shape (4, n)."""
    weight = 1.0 / np.maximum(variance, 0.1 * variance.mean(axis=1, keepdims=True) + 1e-30)
    position = np.full(len(values), shared.position)

    lines, slopes = _with_slopes(energies, position, shared.widths, shared.distance)
    heights = _linear(lines.transpose(1, 2, 0), values, weight)[0]
    for number in range(_N_STEPS):
        if number:
            lines, slopes = _with_slopes(energies, position, shared.widths, shared.distance)
        slope = np.einsum("nk,knc->nc", heights, slopes)
        design = np.stack([*lines, slope], axis=2)
        found, covariance = _linear(design, values, weight)
        heights = found[:, :3]
        position = position + np.clip(found[:, 3], -1.0, 1.0)
        position = np.clip(position, shared.position - FARTHEST, shared.position + FARTHEST)
    residual = (values - np.einsum("nck,nk->nc", design, found)) * np.sqrt(weight)
    covariance = covariance * _channels_alike(residual)
    (h3, h2), (w3, w2) = found[:, :2].T, shared.widths
    lost = (h3 <= 0) | (np.abs(position - shared.position) >= FARTHEST)
    no_ratio = lost | (h2 <= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = h3 * w3 / (h2 * w2)
        relative = covariance[:, 0, 0] / h3**2 + covariance[:, 1, 1] / h2**2 - 2 * covariance[:, 0, 1] / (h3 * h2)
    return np.stack(
        [
            np.where(no_ratio, np.nan, ratio),
            np.where(no_ratio, np.nan, np.abs(ratio) * np.sqrt(np.maximum(relative, 0.0))),
            np.where(lost, np.nan, position),
            np.where(lost, np.nan, np.sqrt(np.maximum(covariance[:, 3, 3], 0.0))),
        ]
    )


def _channels_alike(residual: Floats) -> float:
    """Return how many channels carry the information of one: ``1 + 2 sum rho`` up to the first lag without any."""
    power = float((residual**2).sum())
    total = 1.0
    for lag in range(1, residual.shape[1] // 4):
        correlation = float((residual[:, lag:] * residual[:, :-lag]).sum()) / power if power > 0 else 0.0
        if correlation < 0.02:
            break
        total += 2.0 * correlation
    return total


def _linear(design: Floats, values: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Return weighted least squares of each spectrum, (n, columns), and its covariance, (n, columns, columns)."""
    weighted = (design * weight[..., None]).transpose(0, 2, 1)
    normal = weighted @ design
    normal *= 1.0 + 1e-10 * np.eye(design.shape[2])  # whatever the scale of a column
    covariance = np.asarray(np.linalg.inv(normal), dtype=np.float64)
    return (covariance @ (weighted @ values[..., None]))[..., 0], covariance
