"""Thickness from the low loss: t/lambda by the log-ratio, and the mean free path that makes nanometres of it.

``t/lambda = ln(I_t / I_0)`` with the counts of the whole spectrum and those of the zero-loss peak, tails included
(Egerton, EELS in the Electron Microscope, section 5.1; Malis, Cheng and Egerton, J. Electron Microsc. Tech. 8, 193,
1988). An axis ends before the losses do, and a thick specimen scatters more beyond it: on an axis of 80 eV the bare
log-ratio of an oxide is 3 % low at t/lambda .2 and 8 % at 1.2. So the summed spectra of five classes of thickness are
taken apart into their single scattering S, of which the part on the axis depends on nothing beyond: with i the
inelastic counts per zero-loss count, ``1 + i = exp(S)`` as power series in the channels gives
``n S_n = n i_n - sum_k k S_k i_(n-k)``. S is continued by the power law of its last fifth. The counts that a specimen
of any thickness leaves on the axis follow, ``exp(x S)`` summed, and t/lambda is read off that relation. It assumes one
shape of single scattering in the scan, for this small correction alone. Our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.errors import InputError
from eelsflow.low_loss.elastic import ElasticPart, separate_zero_loss
from eelsflow.low_loss.zero_loss import ZeroLoss, flat_spectra

_END_SHARE = 0.2  # of the losses' range that the tail beyond the axis is learnt from
_BLOCK = 4096  # spectra summed at once
_CLASSES = 5  # of thickness, whose sums are taken apart each on its own
_ORDERS = 25  # of scattering; at t/lambda 6 the next has a probability of 1e-8
_THICKEST = 6.0  # t/lambda up to which the losses beyond the axis are followed
_THINNEST = 0.03  # t/lambda of a summed spectrum that shows too little to learn from
_TAIL_EXPONENT = (2.0, 6.0)  # a Drude tail falls as E^-3; 2 is the slowest believed, so that the sum is finite
_BEAM_ENERGY = (10.0, 1500.0)  # keV
_ANGLE = (0.1, 200.0)  # mrad
_EFFECTIVE_ANGLE = 20.0  # mrad, the limit of the collected angles in the model of Iakoubovskii

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RelativeThickness:
    """t/lambda of many pixels.

    Attributes
    ----------
    value
        t/lambda, shape (...); NaN where there is no zero-loss peak.
    error
        Its standard error from counting statistics, shape (...). What the model of the peak's tail may be wrong by is
        not in it.
    zero_loss, total
        Counts in the zero-loss peak and in the whole spectrum, losses beyond the axis included, shape (...).
    beyond
        Share of the total that lies beyond the axis, shape (...).
    """

    value: Array
    error: Array
    zero_loss: Array
    total: Array
    beyond: Array


def measure_relative_thickness(
    energy_loss: ArrayLike,
    counts: ArrayLike,
    zero_loss: ZeroLoss,
    *,
    elastic: ElasticPart | None = None,
    extrapolate: bool = True,
    count_variance: float = 1.0,
    readout_variance: float = 0.0,
) -> RelativeThickness:
    """Return t/lambda of every spectrum by the log-ratio.

    Parameters
    ----------
    energy_loss
        Channel centres, shape (channels,), eV, nominal.
    counts
        Shape (..., channels), dark level subtracted; not modified.
    zero_loss
        Of these counts.
    elastic
        The zero-loss peaks, where they are separated already.
    extrapolate
        Whether the losses beyond the axis are added.
    count_variance, readout_variance
        As given to `eelsflow.low_loss.zero_loss.measure_zero_loss`.

    Notes
    -----
    With W the counts in the peak's window and R the others, ``T = ln((W + R) s / W)`` and, W and R being independent,
    ``var T = var W (1/W - 1/(W+R))^2 + var R / (W+R)^2``.
    """
    axis, spectra, pixels = flat_spectra(energy_loss, counts)
    parts = separate_zero_loss(energy_loss, counts, zero_loss) if elastic is None else elastic
    position = parts.position
    first = np.clip(np.rint(np.nan_to_num(position)) - parts.reach, 0, axis.size - 1).astype(np.int64)
    channel = np.arange(axis.size)
    recorded = np.empty(len(spectra))
    for begin in range(0, len(spectra), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        recorded[rows] = spectra[rows].sum(axis=1, dtype=np.float64, where=channel >= first[rows, None])
    peak, window = parts.intensity, parts.window_counts
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.log(recorded / peak)
        value = _complete(spectra, parts, ratio) if extrapolate else ratio
        total = peak * np.exp(value)
        n_window = parts.window[1] - parts.window[0] + 1
        variance_window = count_variance * window + n_window * readout_variance
        rest = np.maximum(recorded - window, 0.0)
        variance_rest = count_variance * rest + (axis.size - first - n_window) * readout_variance
        error = np.sqrt(variance_window * (1.0 / window - 1.0 / recorded) ** 2 + variance_rest / recorded**2)
        error *= np.where(np.abs(ratio) > _THINNEST, value / ratio, 1.0)
        results = (value, error, peak, total, 1.0 - recorded / total)
    good = np.isfinite(value)
    value, error, peak, total, share = (np.where(good, one, np.nan).reshape(pixels) for one in results)
    return RelativeThickness(value, error, peak, total, share)


def _complete(spectra: NDArray[np.floating], parts: ElasticPart, ratio: Array) -> Array:
    """Return t/lambda of each spectrum from the logarithm of its counts on the axis per zero-loss count, (n,)."""
    seen = np.isfinite(ratio)
    if not seen.any():
        return ratio
    classes = np.array_split(np.flatnonzero(seen)[np.argsort(ratio[seen], kind="stable")], _CLASSES)
    single: Array = np.sum([_single_scattering(spectra, parts, rows) for rows in classes if rows.size], axis=0)
    tail = _tail(single)
    thickness = float(single.sum() + tail)
    if not (single.sum() > _THINNEST and tail < 0.2 * thickness):
        return ratio  # no specimen, or an axis that shows no end of the losses
    size = 2 * single.size
    transform, order = np.fft.rfft(single, size), np.zeros(size)
    order[0] = 1.0
    scale = np.linspace(0.0, _THICKEST / thickness, 400)
    on_axis, factor = np.ones_like(scale), np.ones_like(scale)
    for n in range(1, _ORDERS + 1):
        order[single.size :] = 0.0
        order = np.fft.irfft(np.fft.rfft(order) * transform, size)
        factor = factor * scale / n
        on_axis = on_axis + factor * order[: single.size].sum()
    table = np.log(on_axis)
    rising = int(np.argmax(np.diff(table) <= 0)) if (np.diff(table) <= 0).any() else table.size
    value = np.interp(ratio, table[:rising], scale[:rising] * thickness)
    # noise takes what shows no losses below zero, and nothing is known of what is thicker than the table
    return np.asarray(np.where(ratio < 0, ratio, np.where(ratio > table[rising - 1], np.nan, value)))


def _single_scattering(spectra: NDArray[np.floating], parts: ElasticPart, rows: NDArray[np.int64]) -> Array:
    """Return single scattering per zero-loss count of some spectra summed, by channel of loss from 0, shape (losses,).

    They are taken as one specimen of one thickness: the error in the shape is of second order in their spread.
    """
    zero = int(np.rint(np.nanmean(parts.position)))
    summed = spectra[rows].sum(axis=0, dtype=np.float64)[zero:] / parts.intensity[rows].sum()
    losses = np.arange(summed.size)
    peak = np.zeros(summed.size)
    n_peak = min(parts.reach + 1, summed.size)
    peak[:n_peak] = parts.shape[parts.reach : parts.reach + n_peak]
    inelastic = summed - peak
    inelastic[losses <= parts.window[1]] = 0.0
    single = np.zeros(summed.size)
    weighted = losses * inelastic
    for n in range(2, summed.size):
        weighted[n] -= weighted[1:n] @ inelastic[n - 1 : 0 : -1]
    single[1:] = weighted[1:] / losses[1:]
    return np.asarray(single)


def _tail(single: Array) -> float:
    """Return what a single scattering holds beyond its last channel."""
    n_channels = single.size
    begin = int(np.ceil((1.0 - _END_SHARE) * n_channels))
    middle = (begin + n_channels) // 2
    near, far = single[begin:middle].sum(), single[middle:].sum()
    if middle - begin < 4 or min(near, far) <= 0:  # nothing left above the noise
        return 0.0
    losses = np.log(np.arange(1, n_channels + 1))
    distance = losses[middle:].mean() - losses[begin:middle].mean()
    exponent = float(np.clip(np.log(near / (middle - begin) * (n_channels - middle) / far) / distance, *_TAIL_EXPONENT))
    end, start = n_channels - 0.5, begin - 0.5
    # integrals of E^-r: from the end of the axis to infinity, over the window before it
    ratio = end ** (1.0 - exponent) / (start ** (1.0 - exponent) - end ** (1.0 - exponent))
    return float(ratio * (near + far))


def mean_free_path(
    *,
    beam_energy: float,
    collection_angle: float,
    convergence_angle: float = 0.0,
    density: float | None = None,
    atomic_number: float | None = None,
) -> float:
    """Return the inelastic mean free path that belongs to a measured t/lambda, nm.

    Parameters
    ----------
    beam_energy
        keV.
    collection_angle, convergence_angle
        Semi-angles, mrad.
    density
        g/cm^3: the mean free path by Iakoubovskii et al.
    atomic_number
        (Effective) atomic number: the mean free path by Malis et al. One of the two is given.

    Raises
    ------
    InputError
        If a value cannot be meant in its unit, neither or both of density and atomic number are given, or the
        convergence exceeds the collection angle for Malis' formula, which knows no convergence.

    Notes
    -----
    Iakoubovskii, Mitsuishi, Nakayama and Furuya, Microsc. Res. Tech. 71, 626 (2008), equation 9, with
    ``F = (1 + E0/1022) / (1 + E0/511)^2``, ``theta_E = 5.5 rho^0.3 / (F E0)`` and ``theta_C`` = 20 mrad:
    ``1/lambda = 11 rho^0.3 / (200 F E0) ln((a^2 + b^2 + 2 theta_E^2 + |a^2 - b^2|) theta_C^2 /
    ((a^2 + b^2 + 2 theta_C^2 + |a^2 - b^2|) theta_E^2))``, good to about 10 % (their table 1).
    Malis, Cheng and Egerton, J. Electron Microsc. Tech. 8, 193 (1988): ``lambda = 106 F (E0/Em) / ln(2 b E0/Em)``,
    ``Em = 7.6 Z^0.36``, good to about 20 %; too short by 15 % at large angles (Potapov, Ultramicroscopy 147, 21, 2014).

    >>> round(mean_free_path(beam_energy=200, density=5.17, convergence_angle=10, collection_angle=20))
    130
    """
    _require("beam_energy", beam_energy, _BEAM_ENERGY, "keV")
    _require("collection_angle", collection_angle, _ANGLE, "mrad")
    _require("convergence_angle", convergence_angle, (0.0, _ANGLE[1]), "mrad")
    if (density is None) == (atomic_number is None):
        raise InputError(
            "the mean free path follows from the density (g/cm^3) or from the atomic number; give one of the two"
        )
    relativistic = (1.0 + beam_energy / 1022.0) / (1.0 + beam_energy / 511.0) ** 2
    if density is not None:
        _require("density", density, (0.1, 25.0), "g/cm^3")
        characteristic = 5.5 * density**0.3 / (relativistic * beam_energy)
        squares = 2.0 * max(convergence_angle, collection_angle) ** 2  # a^2 + b^2 + |a^2 - b^2|
        limit = _EFFECTIVE_ANGLE
        argument = (squares + 2.0 * characteristic**2) / (squares + 2.0 * limit**2) * (limit / characteristic) ** 2
        return float(200.0 * relativistic * beam_energy / (11.0 * density**0.3 * np.log(argument)))
    assert atomic_number is not None
    _require("atomic_number", atomic_number, (1.0, 100.0), "protons")
    if convergence_angle > collection_angle:
        raise InputError(
            f"the convergence angle, {convergence_angle:g} mrad, exceeds the collection angle, {collection_angle:g} "
            "mrad: the formula by atomic number knows no convergence; give the density"
        )
    mean_energy = 7.6 * atomic_number**0.36
    ratio = beam_energy / mean_energy
    return float(106.0 * relativistic * ratio / np.log(2.0 * collection_angle * ratio))


def absolute_thickness(
    relative_thickness: ArrayLike,
    *,
    beam_energy: float,
    collection_angle: float,
    convergence_angle: float = 0.0,
    density: float | None = None,
    atomic_number: float | None = None,
) -> Array:
    """Return the thickness in nm, or its error from that of t/lambda, shape as given.

    Parameters are those of `mean_free_path`, whose own error (10-20 %) is common to all pixels.

    >>> absolute_thickness([0.5], beam_energy=200, collection_angle=20, density=5.17).round(1)
    array([65.1])
    """
    path = mean_free_path(
        beam_energy=beam_energy,
        collection_angle=collection_angle,
        convergence_angle=convergence_angle,
        density=density,
        atomic_number=atomic_number,
    )
    return np.asarray(relative_thickness, dtype=np.float64) * path


def effective_atomic_number(atoms: Mapping[int, float]) -> float:
    """Return the effective atomic number of a compound for Malis' formula.

    Parameters
    ----------
    atoms
        Atomic number -> number (or share) of atoms.

    Notes
    -----
    ``sum(f Z^1.3) / sum(f Z^0.3)`` (Egerton, section 5.1.1): the mean weighted by the cross section, about Z^0.3.

    >>> round(effective_atomic_number({26: 3, 8: 4}), 1)
    17.3
    """
    if not atoms or min(atoms.values()) < 0 or sum(atoms.values()) <= 0 or min(atoms) < 1:
        raise InputError(f"atoms {dict(atoms)} are no compound; give numbers of atoms by atomic number")
    number, share = np.array(list(atoms), dtype=np.float64), np.array(list(atoms.values()))
    return float((share * number**1.3).sum() / (share * number**0.3).sum())


def _require(name: str, value: float, bounds: tuple[float, float], unit: str) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise InputError(f"{name} is {value:g}; expected {bounds[0]:g} to {bounds[1]:g} {unit}: check the unit")
