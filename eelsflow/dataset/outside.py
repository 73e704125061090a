"""Spectra of other laboratories, each on an energy range of its own, put where a table of labelled spectra lies.

They are for tests: nothing here looks at their labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from eelsflow.energy import EnergyAxis
from eelsflow.errors import DataSetError
from eelsflow.io.damage import damage_reported
from eelsflow.io.tables import read_separate_ranges, read_spectra_table
from eelsflow.robustness.amplitudes import AmplitudeRange

Array = NDArray[np.float64]

_SMOOTHING_EV = 0.3
"""Standard deviation of the Gaussian under which a maximum is looked for, so that noise is not one."""

_REACH, _STEP = 6.0, 0.05  # eV about the shift that brings the maxima together, and how finely it is searched


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    spectra: Path
    array: str | None = None
    """Which of several tables in the file; the largest where None."""
    label: str | None = None
    """The class of all its spectra, where the file has no labels."""


class Like(_Source):
    """Spectra of one class, on the axis of those to be placed: one constant puts both where the table's class lies."""

    label: str


class Outside(_Source):
    """Spectra of other laboratories: every model judges them, none is trained on them."""

    name: Annotated[str, Field(min_length=1)]
    labels: dict[str, str] = {}
    """Label in the file -> class of the study; spectra of other labels are judged and reported apart."""
    place: Literal["recorded", "maximum"] | Like = "recorded"
    """On the axis: as recorded; each moved so that its maximum lies where the table's do; or all by one constant."""
    further_ev: AmplitudeRange | None = None
    """Shifts beyond that, eV: what an axis that is wrong by so much would cost."""

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if bool(self.labels) == (self.label is not None):
            raise ValueError("give either labels, from those in the file to classes, or the label of all its spectra")
        return self


@dataclass(frozen=True)
class Recorded:
    """Spectra on an axis each.

    Attributes
    ----------
    spectra, energies
        Shape (n, channels); eV, ascending.
    label
        As the file has it, (n,).
    """

    spectra: Array
    energies: Array
    label: NDArray[np.str_]


def read_recorded(source: _Source) -> Recorded:
    """Read spectra that are each on an axis of its own, or all on one.

    Raises
    ------
    UnreadableFileError
        If the file is damaged, or holds no spectra.
    DataSetError
        If it has no array or no labels of that kind.
    """
    path = source.spectra
    with damage_reported(path, "npz"), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    separate = read_separate_ranges(path) if source.array is None else None
    if separate is not None:
        spectra, ranges = (np.asarray(part, dtype=np.float64) for part in separate)
        energies = np.linspace(ranges[:, 0], ranges[:, 1], spectra.shape[1], axis=1)
    else:
        image = read_spectra_table(path, array=source.array)
        spectra = np.asarray(image.values[0], dtype=np.float64)
        energies = np.broadcast_to(image["energy_loss"].values, spectra.shape)
    if not np.isfinite(spectra).all():
        raise DataSetError(f"{path} holds values that are not finite; repair or leave out these spectra first")
    if source.label is not None:
        return Recorded(spectra, energies, np.full(len(spectra), source.label))
    label = arrays.get("label")
    if label is None or label.shape != (len(spectra),):
        raise DataSetError(
            f"{path} has no label for each of its {len(spectra)} spectra (array label, (n,)); name the one class of "
            "all of them as `label`"
        )
    return Recorded(spectra, energies, label.astype(np.str_))


def check_outside(outside: Outside) -> None:
    """Read a test's files, so that what is wrong with them is said before anything is computed.

    Raises
    ------
    UnreadableFileError, DataSetError
        As `read_recorded`; and if none of its labels is in the file.
    """
    recorded = read_recorded(outside)
    if isinstance(outside.place, Like):
        read_recorded(outside.place)
    if outside.labels and not np.isin(recorded.label, list(outside.labels)).any():
        raise DataSetError(
            f"outside, {outside.name}: none of the labels {', '.join(outside.labels)} is in {outside.spectra}, which "
            f"has {', '.join(sorted(set(recorded.label.tolist())))}; correct the names"
        )


def maxima(spectra: NDArray[np.floating[Any]], energies: Array) -> Array:
    """Return where each spectrum is highest, eV, (n,): a parabola through the top of what a Gaussian of .3 eV smooths.

    Parameters
    ----------
    spectra
        Shape (n, channels); not modified.
    energies
        Shape (channels,) or (n, channels), in equal steps.
    """
    from scipy.ndimage import gaussian_filter1d

    places = np.empty(len(spectra))
    for row, (spectrum, energy) in enumerate(zip(spectra, np.broadcast_to(energies, np.shape(spectra)), strict=True)):
        step = float(energy[1] - energy[0])
        smooth = gaussian_filter1d(np.asarray(spectrum, dtype=np.float64), _SMOOTHING_EV / step, mode="nearest")
        top = int(np.clip(smooth.argmax(), 1, smooth.size - 2))
        below, height, above = smooth[top - 1 : top + 2]
        bend = below - 2 * height + above
        places[row] = energy[top] + (np.clip(0.5 * (below - above) / bend, -1, 1) * step if bend < 0 else 0.0)
    return places


def constant_between(recorded: Recorded, energy_loss: Array, mean: Array) -> float:
    """Return by how much spectra have to be moved, eV, so that their mean is most like a mean of the table.

    Parameters
    ----------
    recorded
        Spectra of one class.
    energy_loss, mean
        Of the table: its axis and the mean of its spectra of that class, (channels,).

    Notes
    -----
    At each of the shifts about that which brings the maxima together, 0.05 eV apart, the table's mean is compared with
    a x mean + b of the spectra, by least squares over what both cover. Ours.
    """
    axis = recorded.energies[0]
    theirs = np.mean([np.interp(axis, e, s) for s, e in zip(recorded.spectra, recorded.energies, strict=True)], axis=0)
    start = float(maxima(mean[None], energy_loss)[0] - maxima(theirs[None], axis)[0])
    trials = start + np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
    misfits = []
    for trial in trials:
        overlap = (energy_loss >= axis[0] + trial) & (energy_loss <= axis[-1] + trial)
        target = mean[overlap] - mean[overlap].mean()
        moved = np.interp(energy_loss[overlap], axis + trial, theirs)
        moved = moved - moved.mean()
        misfits.append(np.inf)
        power, likeness = float(moved @ moved), float(moved @ target)
        if overlap.sum() > energy_loss.size // 2 and power > 0 and likeness > 0:
            left = target - moved * likeness / power
            misfits[-1] = float(left @ left) / float(target @ target)  # relative: the overlap differs
    if not np.isfinite(misfits).any():
        raise DataSetError(
            "spectra cannot be placed by those of the same class: nowhere are the two alike over half of the table's "
            "axis; look at both files"
        )
    return float(trials[int(np.argmin(misfits))])


def place(
    outside: Outside,
    recorded: Recorded,
    *,
    energy_loss: Array,
    table: NDArray[np.floating[Any]],
    label: NDArray[np.str_],
) -> Array:
    """Return by how much each spectrum is moved, eV, (n,), without its label.

    Parameters
    ----------
    outside, recorded
        Which spectra, and how they are placed.
    energy_loss, table, label
        The labelled spectra that models are trained on: axis (channels,), spectra (m, channels) and classes (m,).

    Raises
    ------
    DataSetError
        If spectra are to be placed by a class that the table lacks.
    """
    n = len(recorded.spectra)
    if outside.place == "recorded":
        return np.zeros(n)
    if outside.place == "maximum":
        return np.asarray(np.median(maxima(table, energy_loss)) - maxima(recorded.spectra, recorded.energies))
    like = outside.place
    assert isinstance(like, Like)
    members = label == like.label
    if not members.any():
        raise DataSetError(
            f"{outside.name}: spectra are to be placed by those of {like.label!r} in {like.spectra}, and the table has "
            f"none of that class, only {sorted(set(label.tolist()))}"
        )
    mean = np.asarray(table[members], dtype=np.float64).mean(axis=0)
    return np.full(n, constant_between(read_recorded(like), energy_loss, mean))


def on_axis(recorded: Recorded, shift_ev: Array, axis: EnergyAxis) -> tuple[NDArray[np.float32], float]:
    """Return spectra moved and resampled, (n, channels), and the widest part of the axis that one did not cover, eV.

    There its first or last value is held.
    """
    values = axis.values
    moved = recorded.energies + np.asarray(shift_ev)[:, None]
    found = np.array([np.interp(values, e, s) for e, s in zip(moved, recorded.spectra, strict=True)], dtype=np.float32)
    held = np.clip(moved[:, 0] - values[0], 0, None) + np.clip(values[-1] - moved[:, -1], 0, None)
    return found, float(held.max(initial=0.0))
