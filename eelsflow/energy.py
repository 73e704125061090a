"""The energy-loss axis: uniform, in eV, channel centres."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.errors import InputError

Window = tuple[float, float]
"""A half-open energy window ``(start, stop)`` in eV: channel centres with ``start <= E < stop``."""


def format_window(window: Window) -> str:
    """Return a window as messages show it, whatever type its bounds have.

    >>> format_window((np.float64(495.0), 522.00000001))
    '(495.0, 522.0) eV'
    """
    return f"({round(float(window[0]), 3)}, {round(float(window[1]), 3)}) eV"


@dataclass(frozen=True, slots=True)
class EnergyAxis:
    """A uniform energy-loss axis.

    Parameters
    ----------
    start
        Energy of the centre of the first channel, eV.
    dispersion
        Width of a channel, eV; positive.
    size
        Number of channels; at least 2.

    Raises
    ------
    InputError
        If the dispersion is not positive and finite, or there are fewer than 2 channels.
    """

    start: float
    dispersion: float
    size: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.start) and np.isfinite(self.dispersion) and self.dispersion > 0):
            raise InputError(
                f"energy axis starts at {self.start:g} eV with {self.dispersion:g} eV per channel; both must be finite "
                "and the dispersion positive: correct the calibration in the acquisition software"
            )
        if self.size < 2:
            raise InputError(f"energy axis has {self.size} channel(s); a spectrum needs at least 2")

    @classmethod
    def from_values(cls, values: ArrayLike) -> Self:
        """Build the axis from channel centres.

        Parameters
        ----------
        values
            Channel centres, shape (channels,), eV; strictly increasing and uniform to 1 % of a channel.

        Raises
        ------
        InputError
            If the values are not one-dimensional, increasing and uniform.
        """
        energy_loss = np.asarray(values, dtype=np.float64)
        if energy_loss.ndim != 1 or energy_loss.size < 2 or not np.isfinite(energy_loss).all():
            raise InputError(
                f"energy_loss has shape {energy_loss.shape} or values that are not finite; "
                "expected one finite energy in eV for each of at least 2 channels"
            )
        dispersion = (energy_loss[-1] - energy_loss[0]) / (energy_loss.size - 1)
        if dispersion <= 0:
            raise InputError(
                f"energy_loss goes from {energy_loss[0]:g} to {energy_loss[-1]:g} eV and is not increasing in equal "
                "steps; expected rising energies: turn the axis and the spectra round"
            )
        axis_deviation = np.abs(energy_loss - (energy_loss[0] + dispersion * np.arange(energy_loss.size))).max()
        if axis_deviation > 0.01 * dispersion:
            raise InputError(
                f"energy_loss from {energy_loss[0]:g} to {energy_loss[-1]:g} eV is not increasing in equal steps "
                f"(largest deviation {axis_deviation:.3g} eV); resample the spectra onto a uniform axis first"
            )
        return cls(float(energy_loss[0]), float(dispersion), int(energy_loss.size))

    @property
    def values(self) -> NDArray[np.float64]:
        """Channel centres, shape (size,), eV."""
        return self.start + self.dispersion * np.arange(self.size, dtype=np.float64)

    @property
    def boundaries(self) -> NDArray[np.float64]:
        """Channel boundaries, shape (size + 1,), eV."""
        return self.start + self.dispersion * (np.arange(self.size + 1, dtype=np.float64) - 0.5)

    @property
    def stop(self) -> float:
        """Energy of the centre of the last channel, eV."""
        return self.start + self.dispersion * (self.size - 1)

    def shifted(self, offset: float) -> EnergyAxis:
        """Return the axis moved by ``offset`` eV; the counts stay where they are."""
        return EnergyAxis(self.start + offset, self.dispersion, self.size)

    def stretched(self, factor: float, *, fixed: float) -> EnergyAxis:
        """Return the axis with channels `factor` times as wide, that moves nothing at the energy `fixed` (eV)."""
        return EnergyAxis(fixed + (self.start - fixed) * factor, self.dispersion * factor, self.size)

    def channels(self, window: Window) -> slice:
        """Return the channels whose centres lie in the half-open ``window`` (eV), clipped to the axis.

        A centre within 1e-6 of a channel of a window's bound counts as lying on it.
        """
        tolerance = 1e-6
        first, last = ((bound - self.start) / self.dispersion - tolerance for bound in window)
        begin = min(max(int(np.ceil(first)), 0), self.size)
        return slice(begin, min(max(int(np.ceil(last)), begin), self.size))

    def covers(self, window: Window, *, overhang: float = 0.0) -> bool:
        """Tell whether the axis spans ``window`` (eV), bar at most ``overhang`` eV on either side."""
        half = 0.5 * self.dispersion
        return window[0] >= self.start - half - overhang and window[1] <= self.stop + half + overhang

    def __str__(self) -> str:
        return f"{self.start:.1f}-{self.stop:.1f} eV in {self.size} channels of {self.dispersion:.4g} eV"


@dataclass(frozen=True, slots=True)
class JointAxis:
    """Several stretches of one energy-loss axis, side by side: those of edges that are judged together.

    Parameters
    ----------
    pieces
        Two or more, in order of energy, apart from each other, and of one dispersion.

    Raises
    ------
    InputError
        If they are not.
    """

    pieces: tuple[EnergyAxis, ...]

    def __post_init__(self) -> None:
        dispersion = self.pieces[0].dispersion
        gaps = [later.start - earlier.stop for earlier, later in itertools.pairwise(self.pieces)]
        if not gaps or min(gaps) < 1.5 * dispersion:
            raise InputError(
                f"an energy axis of several stretches ({'; '.join(map(str, self.pieces))}) needs two at the least that "
                "do not touch: study edges that lie further apart, or one of them alone"
            )
        if any(abs(piece.dispersion - dispersion) > 1e-3 * dispersion for piece in self.pieces):
            raise InputError(
                f"the stretches of an energy axis have channels of {[round(p.dispersion, 5) for p in self.pieces]} eV; "
                "they must be equally wide: resample the spectra (the step rebin)"
            )

    @property
    def values(self) -> NDArray[np.float64]:
        """Channel centres, shape (size,), eV."""
        return np.concatenate([piece.values for piece in self.pieces])

    @property
    def size(self) -> int:
        """Number of channels of all stretches."""
        return sum(piece.size for piece in self.pieces)

    @property
    def dispersion(self) -> float:
        """Width of a channel, eV."""
        return self.pieces[0].dispersion

    @property
    def start(self) -> float:
        """Energy of the centre of the first channel, eV."""
        return self.pieces[0].start

    @property
    def stop(self) -> float:
        """Energy of the centre of the last channel, eV."""
        return self.pieces[-1].stop

    def channels(self, window: Window) -> slice:
        """Return the channels whose centres lie in the half-open ``window`` (eV), clipped to the stretch it lies in."""
        found = [slice(0, 0)]
        for piece, where in stretches(self):
            inside = piece.channels(window)
            found.append(slice(where.start + inside.start, where.start + inside.stop))
        return max(found, key=lambda channels: channels.stop - channels.start)

    def covers(self, window: Window, *, overhang: float = 0.0) -> bool:
        """Tell whether one of the stretches spans ``window`` (eV), bar at most ``overhang`` eV on either side."""
        return any(piece.covers(window, overhang=overhang) for piece in self.pieces)

    def __str__(self) -> str:
        return " and ".join(str(piece) for piece in self.pieces)


Axis = EnergyAxis | JointAxis
"""Of spectra: uniform, or of several uniform stretches."""


def axis_of(energy_loss: ArrayLike) -> Axis:
    """Return the axis of channel centres, shape (channels,), eV, which may leave out what lies between edges.

    Raises
    ------
    InputError
        If they are neither uniform nor of uniform stretches.
    """
    values = np.asarray(energy_loss, dtype=np.float64)
    if values.ndim != 1 or values.size < 4 or not np.isfinite(values).all():
        return EnergyAxis.from_values(values)
    steps = np.diff(values)
    gaps = np.flatnonzero(steps > 1.5 * np.median(steps)) + 1
    pieces = np.split(values, gaps)
    if gaps.size == 0 or min(piece.size for piece in pieces) < 2:
        return EnergyAxis.from_values(values)
    return JointAxis(tuple(EnergyAxis.from_values(piece) for piece in pieces))


def side_by_side(pieces: Sequence[EnergyAxis]) -> Axis:
    """Return the axis of one or several stretches, in order of energy."""
    return JointAxis(tuple(pieces)) if len(pieces) > 1 else pieces[0]


def stretches(axis: Axis) -> list[tuple[EnergyAxis, slice]]:
    """Return the uniform stretches of an axis, and which of its channels they are."""
    pieces = axis.pieces if isinstance(axis, JointAxis) else (axis,)
    ends = np.cumsum([piece.size for piece in pieces]).tolist()
    return [(piece, slice(end - piece.size, end)) for piece, end in zip(pieces, ends, strict=True)]


def check_spectra(energy_loss: ArrayLike, counts: ArrayLike) -> tuple[EnergyAxis, NDArray[Any]]:
    """Return the axis and the counts as an array, shape (..., channels); they are not copied.

    Raises
    ------
    InputError
        If the axis is not uniform, or the last dimension of the counts is not that of the axis.
    """
    axis = EnergyAxis.from_values(energy_loss)
    values = np.asarray(counts)
    if values.ndim == 0 or values.shape[-1] != axis.size:
        raise InputError(
            f"counts have shape {values.shape} but energy_loss has {axis.size} channels; "
            "the last dimension of counts must be the energy loss"
        )
    return axis, values
