"""What was not chemistry when a spectrum was recorded: noise, counts, background, thickness, place, offset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.edges import Edge

if TYPE_CHECKING:
    import xarray as xr

NOISE = "noise"
CONDITIONS = (
    NOISE,
    "noise, correlation of neighbours",
    "noise, correlation two channels apart",
    "noise, correlation four channels apart",
    "noise before the edge",
    "counts",
    "background",
    "background exponent",
    "thickness (t/lambda)",
    "row of the scan",
    "column of the scan",
    "energy offset",
)
"""Columns of a table of conditions; one that is not known is NaN."""

_SMOOTHING = 11
"""Channels of the smoothing whose remainder is taken for noise: narrower than any fine structure."""


def conditions_of_spectra(
    intensity: NDArray[np.floating[Any]], energy_loss: NDArray[np.float64], window: tuple[float, float] | None
) -> NDArray[np.float32]:
    """Return what spectra themselves tell of how they were recorded, (n, conditions).

    Parameters
    ----------
    intensity
        Shape (n, channels); NaN where nothing was recorded. Not modified.
    energy_loss
        Shape (channels,), eV.
    window
        The fine structure, eV; None for a ready table, whose spectra are taken whole: they are normalised as they came,
        so their sum says nothing of counts, and their noise is in their own unit.

    Notes
    -----
    Noise is what a cubic through eleven channels leaves over: at .1 eV a channel the fine structure of an edge passes
    through it. Its unit in an acquisition is the mean of the upper half of the window, where the classes differ least.
    A little chemistry is left in that and in the counts, which shows where classes were recorded with less than a few
    per cent of difference in noise and thickness.
    """
    from scipy.signal import savgol_filter

    spectra = np.asarray(intensity, dtype=np.float64)
    inside = np.ones(energy_loss.size, bool)
    if window is not None:
        inside = (energy_loss >= window[0]) & (energy_loss < window[1])
    found = np.full((len(spectra), len(CONDITIONS)), np.nan)
    part = spectra[:, inside]
    size = min(_SMOOTHING, part.shape[1] - (part.shape[1] + 1) % 2)
    if size > 3:
        scale = np.ones(len(part))
        if window is not None:
            upper = part[:, part.shape[1] // 2 :].mean(axis=1)
            scale = np.maximum(np.abs(upper), 0.1 * part.std(axis=1))
            scale = np.where(scale > 0, scale, 1.0)
        rest = part - savgol_filter(part, size, 3, axis=1)
        power = np.maximum((rest**2).mean(axis=1), 1e-300)
        found[:, 0] = np.sqrt(power) / scale
        for column, lag in ((1, 1), (2, 2), (3, 4)):
            found[:, column] = (rest[:, lag:] * rest[:, :-lag]).mean(axis=1) / power
        before = energy_loss < window[0] if window is not None else np.zeros(energy_loss.size, bool)
        before &= np.isfinite(spectra).all(axis=0)
        if before.sum() > size:
            outside = spectra[:, before]
            left = outside - savgol_filter(outside, size, 3, axis=1)
            found[:, 4] = left.std(axis=1) / scale
    if window is not None:
        found[:, 5] = np.log(np.maximum(part.sum(axis=1), 1e-12))
    return found.astype(np.float32)


def conditions_of_pixels(product: xr.Dataset, chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the conditions of some pixels of a prepared acquisition, (n, conditions).

    Parameters
    ----------
    product
        As `eelsflow.preprocess.chain.prepare` returns it.
    chosen
        Which pixels, (y, x).
    """
    edge = product.attrs.get("edge")
    window = None if edge is None else Edge.model_validate_json(edge).elnes_window
    found = conditions_of_spectra(product["intensity"].values[chosen], product["energy_loss"].values, window)
    for column, name in ((6, "background_amplitude"), (7, "background_exponent"), (8, "t_over_lambda")):
        if name in product:
            values = product[name].values[chosen].astype(np.float64)
            found[:, column] = np.log(np.maximum(values, 1e-30)) if column == 6 else values
    n_y, n_x = chosen.shape
    y, x = np.nonzero(chosen)
    found[:, 9], found[:, 10] = y / max(n_y - 1, 1), x / max(n_x - 1, 1)
    offset = product.attrs.get("energy_offset")
    if isinstance(offset, int | float):
        found[:, 11] = offset
    return found
