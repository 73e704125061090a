"""Move a ready table onto a physical energy axis by reference spectra of the same classes.

Tables of spectra are often placed where their authors liked. A map needs the table where an aligned acquisition lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.dataset.spectra import read_table
from eelsflow.errors import DataSetError, UnreadableFileError
from eelsflow.io.damage import damage_reported
from eelsflow.io.tables import read_separate_ranges

Array = NDArray[np.float64]

_REACH, _STEP = 3.0, 0.05  # eV about the shift that brings the maxima together, and how finely it is searched


def register_table(table: Path, references: Path, out: Path, *, same: Mapping[str, str]) -> dict[str, float]:
    """Shift the axis of a table so that its classes lie where those of references do.

    Parameters
    ----------
    table
        Ready table of labelled spectra (npz), see `eelsflow.dataset.spectra.read_table`; not modified.
    references
        npz with spectra that have an energy range each (`eelsflow.io.tables.read_separate_ranges`) and ``label``.
    out
        The table on its new axis, as npz.
    same
        For classes of the table, the label of the references that stand for it.

    Returns
    -------
    dict
        For each class of `same` the shift, eV, that fits it alone. The table is moved by their median. Where they
        differ, as they do by an eV between laboratories, so much is the new axis worth.

    Raises
    ------
    UnreadableFileError
        If a file cannot be read.
    DataSetError
        If a class has no spectra or no reference.

    Notes
    -----
    A class is the mean of its spectra. For each reference the shift is taken at which reference = a x mean + b leaves
    the least squares; the class's is the median over its references. The method is ours.
    """
    spectra = read_table(table)
    separate = read_separate_ranges(references)
    if separate is None:
        raise UnreadableFileError(
            f"{references} holds no spectra with an energy range each; expected X (n, channels) and energy_min_max "
            "(n, 2), eV, with label (n,)"
        )
    with damage_reported(references, "npz"), np.load(references, allow_pickle=False) as archive:
        reference_label = archive["label"].astype(np.str_)
    shifts = {}
    for name, reference_name in same.items():
        members, chosen = spectra.label == name, np.flatnonzero(reference_label == reference_name)
        if not members.any() or not chosen.size:
            raise DataSetError(
                f"{table} has {np.count_nonzero(members)} spectra of {name!r} and {references} {chosen.size} of "
                f"{reference_name!r}; both are needed to place this class: correct the names"
            )
        mean = spectra.intensity[members].mean(axis=0, dtype=np.float64)
        fits = [_best_shift(spectra.energy_loss, mean, separate[0][row], separate[1][row]) for row in chosen]
        shifts[name] = float(np.median(fits))
    arrays: dict[str, Any] = {
        "spectra": spectra.intensity,
        "energy_loss": spectra.energy_loss + float(np.median(list(shifts.values()))),
        "label": spectra.label,
    }
    if spectra.group is not None:
        arrays["group"] = spectra.group
    np.savez(out, **arrays)
    return shifts


def _best_shift(energy_loss: Array, spectrum: Array, reference: Array, window: Array) -> float:
    """Return how far a spectrum has to be moved, eV, to be most like a reference that spans `window`."""
    energies = np.linspace(float(window[0]), float(window[1]), reference.size)
    start = float(energies[np.argmax(reference)] - energy_loss[np.argmax(spectrum)])
    trials = start + np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
    misfits = []
    for trial in trials:
        overlap = (energies >= energy_loss[0] + trial) & (energies <= energy_loss[-1] + trial)
        target = reference[overlap] - reference[overlap].mean()
        moved = np.interp(energies[overlap], energy_loss + trial, spectrum)
        moved -= moved.mean()
        left = target - moved * float(moved @ target) / float(moved @ moved)
        # relative, since the overlap differs from trial to trial
        misfits.append(float(left @ left) / float(target @ target))
    return float(trials[np.argmin(misfits)])
