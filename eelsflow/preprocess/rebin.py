"""Resample spectra onto another uniform energy axis, conserving counts or interpolating.

Both methods are linear in the counts, so each is one matrix per pair of axes, computed once and applied to all
spectra by one matrix product:

- ``conserve``: the cumulative counts, known at the channel boundaries of the detector, are interpolated linearly at
  the boundaries of the target channels and differenced. A target channel receives from every detector channel the
  fraction of its counts that the two overlap in, and the sum over the axis is kept exactly.
- ``linear``: the counts at the channel centres are interpolated linearly (`numpy.interp`), then multiplied by the
  ratio of the dispersions. This is what most analyses of such spectra do, the paper's included; it smooths noise
  between centres and does not conserve counts.

Both give counts per *target* channel, so products of either can be compared.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.energy import EnergyAxis, check_spectra
from eelsflow.errors import EdgeOutOfRangeError

RebinMethod = Literal["conserve", "linear"]

# A target channel that overhangs the detector by less than this fraction of a detector channel is inside it:
# boundaries computed in two ways differ by rounding.
_BOUNDARY_TOLERANCE = 1e-6


def rebin_conserving(energy_loss: ArrayLike, counts: ArrayLike, target: EnergyAxis) -> NDArray[np.floating]:
    """Resample spectra onto `target`, conserving counts.

    Parameters
    ----------
    energy_loss
        Channel centres of the counts, shape (channels,), eV, uniform.
    counts
        Counts per channel, shape (..., channels); not modified. Zeros and negative values are ordinary values.
    target
        The axis to resample onto; its channels may be narrower or wider than the detector's.

    Returns
    -------
    Counts per target channel, shape (..., target.size), NaN in channels that the detector does not cover wholly
    (see `covered_channels`); float64 for float64 or wide integer counts, else float32. A spectrum with a channel
    that is not finite within the range of the target becomes NaN altogether.

    Raises
    ------
    EdgeOutOfRangeError
        If no target channel is covered.
    InputError
        If the shapes do not agree or the axis is not uniform.

    Notes
    -----
    The counts of a detector channel are taken as spread evenly over its width: our choice, the only one that makes
    no assumption about the spectrum and keeps positive counts positive.

    >>> rebin_conserving([10.0, 11.0, 12.0], [4.0, 8.0, 2.0], EnergyAxis(9.75, 0.5, 6))
    array([2., 2., 4., 4., 1., 1.])
    """
    return _apply("conserve", energy_loss, counts, target)


def rebin_linear(energy_loss: ArrayLike, counts: ArrayLike, target: EnergyAxis) -> NDArray[np.floating]:
    """Resample spectra onto `target` by linear interpolation between channel centres.

    Takes, returns and raises what `rebin_conserving` does, but a target channel is covered where its *centre* lies
    between the first and the last centre of the detector.

    Notes
    -----
    The interpolated counts per detector channel are multiplied by ``target.dispersion / dispersion``, so that they
    are counts per target channel as in `rebin_conserving`: our choice, to make the two comparable.
    """
    return _apply("linear", energy_loss, counts, target)


def rebin_variance(
    energy_loss: ArrayLike,
    variance: ArrayLike,
    target: EnergyAxis,
    *,
    method: RebinMethod = "conserve",
    correlation: ArrayLike | None = None,
) -> NDArray[np.floating]:
    """Carry the variance of counts through the resampling.

    Parameters
    ----------
    energy_loss
        Channel centres, shape (channels,), eV, uniform.
    variance
        Variance of the counts of each detector channel, shape (..., channels); not modified.
    target
        The axis resampled onto.
    method
        How the counts were resampled.
    correlation
        Autocorrelation of the noise over detector channels at lags 0, 1, ..., shape (lags,), starting with 1; none
        means independent channels.

    Returns
    -------
    Variance of the counts of each target channel, shape (..., target.size), NaN where not covered.

    Raises
    ------
    EdgeOutOfRangeError, InputError
        As `rebin_conserving`.

    Notes
    -----
    With the matrix W of the resampling, ``var_t = sum_ij W_it W_jt rho_|i-j| sqrt(v_i v_j)``. Only this diagonal of
    the covariance is kept. Target channels that share a detector channel are correlated (wholly, where a narrow one
    lies inside it), so variances of *sums* of target channels do not add: sum first, or use the detector's channels.
    """
    axis, values = _check(energy_loss, variance)
    matrix, channels, covered = _matrix(method, axis, target)
    native = values[..., channels]
    with np.errstate(invalid="ignore"):
        result = native @ (matrix * matrix).astype(native.dtype)
        lags = np.asarray([1.0] if correlation is None else correlation, dtype=np.float64)
        deviation = np.sqrt(np.maximum(native, 0))
        for lag in range(1, min(lags.size, matrix.shape[0])):
            pairs = (2.0 * lags[lag] * matrix[:-lag] * matrix[lag:]).astype(native.dtype)
            if not pairs.any():
                break  # no target channel reaches over more detector channels than this
            result += (deviation[..., :-lag] * deviation[..., lag:]) @ pairs
    result[..., ~covered] = np.nan
    return result


def covered_channels(
    energy_loss: ArrayLike, target: EnergyAxis, *, method: RebinMethod = "conserve"
) -> NDArray[np.bool_]:
    """Tell which target channels the detector covers, shape (target.size,); the others are NaN after resampling."""
    source = EnergyAxis.from_values(energy_loss)
    if method == "conserve":
        boundaries = (target.boundaries - source.boundaries[0]) / source.dispersion
        low, high = boundaries[:-1], boundaries[1:]
        last = source.size
    else:
        low = high = (target.values - source.start) / source.dispersion
        last = source.size - 1
    covered: NDArray[np.bool_] = (low >= -_BOUNDARY_TOLERANCE) & (high <= last + _BOUNDARY_TOLERANCE)
    return covered


@lru_cache(maxsize=32)
def resampling(
    method: RebinMethod, source: EnergyAxis, target: EnergyAxis
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return the few detector channels that each target channel is made of.

    Parameters
    ----------
    method
        How counts are resampled.
    source, target
        The detector's axis and the one resampled onto.

    Returns
    -------
    first, weights, covered
        A target channel t is ``sum_j weights[j, t] * counts[first[t] + j]``, with shapes (target.size,),
        (terms, target.size) and (target.size,); meaningless where not `covered`. Read-only.

    Raises
    ------
    EdgeOutOfRangeError
        If no target channel is covered.
    """
    matrix, channels, covered = _matrix(method, source, target)
    used = matrix > 0
    begin = used.argmax(axis=0)
    terms = int(np.max(matrix.shape[0] - used[::-1].argmax(axis=0) - begin, where=used.any(axis=0), initial=1))
    first = np.clip(begin, 0, max(matrix.shape[0] - terms, 0))
    rows = first + np.arange(terms)[:, None]
    weights = np.take_along_axis(matrix, rows, axis=0)
    first = first + channels.start
    for array in (first, weights):
        array.setflags(write=False)
    return first, weights, covered


def _apply(method: RebinMethod, energy_loss: ArrayLike, counts: ArrayLike, target: EnergyAxis) -> NDArray[np.floating]:
    axis, values = _check(energy_loss, counts)
    matrix, channels, covered = _matrix(method, axis, target)
    native = values[..., channels]
    with np.errstate(invalid="ignore"):  # NaN in, NaN out; numpy warns of it on some processors only
        result = native @ matrix.astype(native.dtype, copy=False)
    result[..., ~covered] = np.nan
    return result


def _check(energy_loss: ArrayLike, counts: ArrayLike) -> tuple[EnergyAxis, NDArray[np.floating]]:
    axis, values = check_spectra(energy_loss, counts)
    # float32 holds 8- and 16-bit counts exactly
    return axis, values.astype(np.result_type(values.dtype, np.float32), copy=False)


@lru_cache(maxsize=32)
def _matrix(
    method: RebinMethod, source: EnergyAxis, target: EnergyAxis
) -> tuple[NDArray[np.float64], slice, NDArray[np.bool_]]:
    """Return the matrix (channels used, target.size), the detector channels it uses and the covered targets."""
    covered = covered_channels(source.values, target, method=method)
    if not covered.any():
        raise EdgeOutOfRangeError(
            f"the target axis {target} shares no channel with the energy axis {source}; "
            "choose an edge that the axis covers, or check the energy offset"
        )
    ratio = target.dispersion / source.dispersion
    if method == "conserve":
        low = (target.boundaries[:-1] - source.boundaries[0]) / source.dispersion
        first = max(int(np.floor(low[covered][0])), 0)
        last = min(int(np.ceil(low[covered][-1] + ratio)) + 1, source.size)
        channel = np.arange(first, last, dtype=np.float64)[:, None]
        matrix = np.maximum(np.minimum(low + ratio, channel + 1) - np.maximum(low, channel), 0.0)
    else:
        position = (target.values - source.start) / source.dispersion
        first = max(int(np.floor(position[covered][0])), 0)
        last = min(int(np.ceil(position[covered][-1])) + 1, source.size)
        channel = np.arange(first, last, dtype=np.float64)[:, None]
        matrix = np.maximum(1.0 - np.abs(np.clip(position, 0, source.size - 1) - channel), 0.0) * ratio
    matrix.setflags(write=False)
    covered.setflags(write=False)
    return matrix, slice(first, last), covered
