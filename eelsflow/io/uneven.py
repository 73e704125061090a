"""Spectra whose energies are printed with few digits, or not in equal steps: onto a uniform axis, with a remark."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError

logger = logging.getLogger(__name__)

LARGEST_GAP = 4.0
"""Steps larger than this many median steps are a hole in the spectrum, not its sampling; our choice."""

FEWEST_CHANNELS = 10
"""A resampled spectrum of fewer channels shows no fine structure; our choice."""


def without_rounding(energy_loss: NDArray[np.float64], resolution: float) -> NDArray[np.float64]:
    """Return the uniform axis that was printed with `resolution` eV, or the values if there is none."""
    channels = np.arange(energy_loss.size)
    if not np.isfinite(energy_loss).all():
        return energy_loss
    slope, intercept = np.polyfit(channels, energy_loss, 1)
    uniform: NDArray[np.float64] = intercept + slope * channels
    # Twice the rounding error, for the fit is pulled by it too; below a quarter of a channel, or rows are missing.
    is_rounding = np.abs(uniform - energy_loss).max() <= min(resolution, 0.25 * abs(slope))
    return uniform if is_rounding else energy_loss


def is_uniform(energy_loss: NDArray[np.float64]) -> bool:
    """Tell whether energies (channels,) in eV follow `EnergyAxis`: rising in equal steps."""
    try:
        EnergyAxis.from_values(energy_loss)
    except InputError:
        return False
    return True


def to_uniform_axis(
    energy_loss: ArrayLike, counts: ArrayLike, *, source: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Average one spectrum into channels as wide as the largest step between its energies.

    Parameters
    ----------
    energy_loss
        Strictly rising energies, shape (points,), eV.
    counts
        Shape (points,).
    source
        Named in errors and in the log.

    Returns
    -------
    energy_loss, counts
        Channel centres in eV and mean counts, shape (channels,).
    note
        What was done, in a sentence.

    Raises
    ------
    InputError
        If energies repeat or fall, a step is larger than `LARGEST_GAP` median steps, or fewer than `FEWEST_CHANNELS`
        are left.

    Notes
    -----
    Each new channel holds the exact mean over its width of the straight lines between the points. The new step is
    never finer than the spectrum's own sampling anywhere, so that nothing is invented between its points; where it
    was sampled more densely, detail is lost. No value lies outside the range of the given ones, and the area is kept.
    All of this is our choice.
    """
    x, y = np.asarray(energy_loss, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if x.size < 2 or not np.isfinite(x).all():
        raise InputError(f"{source} has energies that are not finite; expected one energy in eV for each count")
    steps = np.diff(x)
    if steps.min() <= 0:
        worst = int(np.flatnonzero(steps <= 0)[0])
        raise InputError(
            f"{source} has energies that go up and down or repeat: {x[worst]:g} eV is followed by {x[worst + 1]:g} eV; "
            "expected one spectrum by rising energy: sort the rows and keep one for each energy"
        )
    step, median = float(steps.max()), float(np.median(steps))
    if step > LARGEST_GAP * median:
        worst = int(steps.argmax())
        raise InputError(
            f"{source} is not increasing in equal steps: nothing lies between {x[worst]:g} and {x[worst + 1]:g} eV, "
            f"where half of the steps are below {median:.3g} eV; rows are missing: save the spectrum again, or the "
            "part on one side of the hole"
        )
    n_channels = int(np.floor((x[-1] - x[0]) / step * (1 + 1e-12)))
    if n_channels < FEWEST_CHANNELS:
        raise InputError(
            f"{source} is not increasing in equal steps, and steps of {step:.3g} eV, its largest, leave {n_channels} "
            f"channels from {x[0]:g} to {x[-1]:g} eV; expected at least {FEWEST_CHANNELS}: save more of the spectrum"
        )
    bounds = x[0] + step * np.arange(n_channels + 1)
    means = np.diff(_integral(x, y, bounds)) / step
    note = (
        f"the energies are not in equal steps ({steps.min():.3g} to {step:.3g} eV): the spectrum was averaged into "
        f"{n_channels} channels of {step:.4g} eV, its largest step; its noise is no longer that of counts"
    )
    logger.info("%s: %s", source, note)
    return bounds[:-1] + step / 2, means, note


def _integral(x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the integral from x[0] to each `at` of the straight lines between the points."""
    area = np.concatenate([[0.0], np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2)])
    left = np.clip(np.searchsorted(x, at, side="right") - 1, 0, x.size - 2)
    into = np.minimum(at, x[-1]) - x[left]
    slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
    result: NDArray[np.float64] = area[left] + into * (y[left] + slope * into / 2)
    return result
