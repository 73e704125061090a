"""The drift of a scan along the energy axis, as the zero loss has it, checked against the edge.

A zero loss says to a hundredth of a channel where a spectrum lies, so every row is resampled by its own. That holds if
core loss and low loss were recorded together. Whether they were, the edge knows: it is compared between the pixels at
either end of the drift. All of this is ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from eelsflow.energy import EnergyAxis, Window
from eelsflow.preprocess.background import fit_power_law

MUCH_DRIFT = 0.5
"""eV that the zero loss may wander over a scan before a warning tells what was made of it (ours): the edges of the two
oxides lie .6 eV apart."""

DRIFT_STEP = 0.05
"""eV in which a drift is followed (ours): many pixels share the weights by which they are resampled."""

CHEMISTRY = 0.6
"""eV by which an edge may move between two parts of a scan because they hold different oxides."""

_SURE = 3.0  # standard errors
_LARGEST = 5.0  # eV either way that an edge is looked for
_STEP = 0.05  # eV
_SMOOTH = 0.7  # eV; the edge is broader, its noise is not

Array = NDArray[np.float64]


def in_steps(drift: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return a drift in steps of `DRIFT_STEP`."""
    return (np.round(np.asarray(drift) / DRIFT_STEP) * DRIFT_STEP).astype(np.float32)


def ends_of(drift: NDArray[np.floating], specimen: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the drifts, eV, up to and from which a specimen pixel belongs to the lower and the upper third of all."""
    low, high = float(drift[specimen].min()), float(drift[specimen].max())
    return low + (high - low) / 3, high - (high - low) / 3


def edge_shift(
    axis: EnergyAxis, spectra: Array, variance: Array, *, background_window: Window, elnes_window: Window
) -> tuple[float, float]:
    """Return how far the edge of the second spectrum lies above that of the first, eV, with the noise's standard error.

    Parameters
    ----------
    axis
        Of both.
    spectra
        Counts, shape (2, axis.size).
    variance
        Their variance, same shape.
    background_window, elnes_window
        Of the edge, eV.

    Notes
    -----
    Backgrounds are subtracted, both are smoothed and divided by their counts in the window; the shift is the one with
    the least weighted sum of squared differences (steps of .05 eV, parabola through the least), its error from the
    curvature of that sum (smoothing takes as much noise from a channel as it makes channels alike). An infinite error
    where nothing tells, as where one shows no edge. What enters the window at an end as the edge moves bears on the
    division: the shift is too small by some 2 %.
    """
    width = _SMOOTH / axis.dispersion
    window = (max(elnes_window[0], axis.start), min(elnes_window[1], axis.stop))
    inside = axis.channels(window)
    energies = axis.values[inside]
    shapes, noise = [], np.zeros(energies.size)
    for spectrum, of in zip(spectra, variance, strict=True):
        fit = fit_power_law(axis.values, spectrum, background_window, shrink=False)
        net = spectrum[inside] - fit.evaluate(energies)
        if not net.sum() > 0:
            return 0.0, np.inf
        shapes.append(gaussian_filter1d(net / net.sum(), width))
        noise += of[inside] / net.sum() ** 2
    kept = (energies > window[0] + _LARGEST) & (energies < window[1] - _LARGEST)
    shifts = np.arange(-_LARGEST, _LARGEST + _STEP / 2, _STEP)
    if np.count_nonzero(kept) < 3:
        return 0.0, np.inf
    weight = 1.0 / np.maximum(noise[kept], 1e-300)
    costs = np.array(
        [(weight * (np.interp(energies[kept] + s, energies, shapes[1]) - shapes[0][kept]) ** 2).sum() for s in shifts]
    )
    least = int(costs.argmin())
    if least in (0, shifts.size - 1):
        return float(shifts[least]), np.inf
    before, at, after = costs[least - 1 : least + 2]
    curvature = (before - 2 * at + after) / _STEP**2
    if curvature <= 0:
        return float(shifts[least]), np.inf
    beyond = 0.5 * (before - after) / (before - 2 * at + after) * _STEP
    return float(shifts[least] + beyond), float(np.sqrt(2.0 / curvature))


def follows(zero_loss: float, edge: tuple[float, float]) -> bool:
    """Tell whether an edge drifts as the zero loss does, as far as it can tell.

    Parameters
    ----------
    zero_loss
        How far the zero loss lies higher in one part of the scan than in the other, eV.
    edge
        The same of the edge, and its standard error.
    """
    found, error = edge
    return bool(abs(found - zero_loss) <= max(CHEMISTRY + _SURE * error, abs(found)))


def describe_drift(drift: float, zero_loss: float, edge: tuple[float, float], *, followed: bool) -> str:
    """Say how far a scan drifts, eV, what the edge says of it (as in `follows`), and what was made of it."""
    found, error = edge
    says = f"the edge by {found:.2f} +- {error:.2f} eV" if np.isfinite(error) else "the edge does not tell"
    done = (
        "every row is put on the energy axis by its own zero loss"
        if followed
        else "the drift is not followed, and the edge's own offset serves all spectra. Check that they were recorded "
        "together, and not one after the other"
    )
    return (
        f"the zero loss wandered by {drift:.2f} eV over the scan ({zero_loss:.2f} eV between its ends, {says}): {done}"
    )


def drift_warning(drift: float) -> str:
    """Say that a scan drifts by this much, eV, and that nothing follows it."""
    return (
        f"the zero loss wandered by {drift:.2f} eV over the scan, more than {MUCH_DRIFT:g} eV: its spectra lie that "
        "much apart in energy, and one offset serves them all"
    )
