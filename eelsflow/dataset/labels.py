"""The class of every pixel: from the acquisition's label, or from per-pixel phase fractions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import DataSetError, UnreadableFileError
from eelsflow.io.damage import PICKLED, is_about_pickles

MIXED = "mixed"
UNLABELLED = ""
PURE_FRACTION = 0.8
"""A pixel's class is the phase with at least this fraction of the projected oxide (our choice)."""


def read_phase_fraction(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Read per-pixel phase fractions from zarr or npz.

    Parameters
    ----------
    path
        A zarr store or npz file with ``phase_fraction`` (phase, y, x) and the phase names as ``phase``.

    Returns
    -------
    phases
        Names of the phases.
    fraction
        Shape (phase, y, x), 0 to 1.

    Raises
    ------
    UnreadableFileError
        If the file cannot be read or lacks these arrays.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                phases = [str(name) for name in arrays["phase"]]
                fraction = np.asarray(arrays["phase_fraction"], dtype=np.float32)
        else:
            import xarray as xr

            with xr.open_zarr(path, consolidated=False) as truth:
                phases = [str(name) for name in truth["phase"].values]
                fraction = truth["phase_fraction"].values.astype(np.float32)
    except Exception as error:  # zipfile.BadZipFile, zlib.error and zarr's errors share no base class
        if is_about_pickles(error):
            raise UnreadableFileError(f"{path} {PICKLED}") from error
        raise UnreadableFileError(
            f"{path} holds no per-pixel truth ({error}); expected zarr or npz with phase_fraction (phase, y, x) "
            "and phase"
        ) from error
    if fraction.ndim != 3 or fraction.shape[0] != len(phases):
        raise UnreadableFileError(
            f"phase_fraction in {path} has shape {fraction.shape} for {len(phases)} phases; expected (phase, y, x)"
        )
    return phases, fraction


def read_truth(path: Path, shape: tuple[int, ...], *, name: str) -> tuple[list[str], NDArray[np.float32]]:
    """Read the per-pixel phase fractions of an acquisition; see `read_phase_fraction`.

    Parameters
    ----------
    path
        Where they are.
    shape
        Pixels (y, x) of the acquisition.
    name
        The acquisition's name, for messages.

    Raises
    ------
    UnreadableFileError
        If the file cannot be read or lacks the arrays.
    DataSetError
        If the truth has another shape than the acquisition.
    """
    phases, fraction = read_phase_fraction(path)
    if fraction.shape[1:] != shape:
        raise DataSetError(
            f"the truth of {name} has {fraction.shape[1:]} pixels but the acquisition {shape}; "
            "they must show the same scan"
        )
    return phases, fraction


def require_label(label: str, classes: Sequence[str], *, name: str) -> None:
    """Refuse the label of an acquisition that is not a class of the study.

    Raises
    ------
    DataSetError
        Naming the acquisition.
    """
    if label not in classes:
        raise DataSetError(
            f"acquisition {name} is labelled {label!r}, which is not one of the classes {list(classes)}; "
            "correct the manifest or add the class to the study"
        )


def require_phases(phases: Sequence[str], fraction: NDArray[np.float32], classes: Sequence[str], *, name: str) -> None:
    """Refuse the truth of an acquisition that holds a phase which is not a class of the study.

    Raises
    ------
    DataSetError
        Naming the acquisition.
    """
    unknown = [phase for phase, part in zip(phases, fraction, strict=True) if phase not in classes and (part > 0).any()]
    if unknown:
        raise DataSetError(
            f"the truth of {name} names the phases {unknown}, which are not classes of the study {list(classes)}; "
            "add them or leave the acquisition unlabelled"
        )


def label_pixels(
    vacuum_mask: NDArray[np.bool_], *, label: str, truth: Path | None, classes: Sequence[str], name: str
) -> NDArray[Any]:
    """Give every pixel of an acquisition its class.

    Parameters
    ----------
    vacuum_mask
        Shape (y, x); True where there is no specimen.
    label
        The class of every specimen pixel; empty to use `truth`.
    truth
        Per-pixel phase fractions, or None: then the acquisition is unlabelled.
    classes
        The classes of the study.
    name
        The acquisition's name, for messages.

    Returns
    -------
    labels
        Shape (y, x), text: a class, "mixed" where no phase reaches 80 %, "" for vacuum and unlabelled pixels.

    Raises
    ------
    DataSetError
        If the label is not a class of the study, or the truth has another shape than the image.
    """
    labels = np.full(vacuum_mask.shape, UNLABELLED, dtype=f"<U{max(map(len, [*classes, MIXED]))}")
    if label:
        require_label(label, classes, name=name)
        labels[~vacuum_mask] = label
        return labels
    if truth is None:
        return labels
    phases, fraction = read_truth(truth, vacuum_mask.shape, name=name)
    require_phases(phases, fraction, classes, name=name)
    labels[~vacuum_mask] = MIXED
    for index, phase in enumerate(phases):
        labels[~vacuum_mask & (fraction[index] >= PURE_FRACTION)] = phase
    return labels


def class_fractions(
    shape: tuple[int, int], *, label: str, truth: Path | None, classes: Sequence[str], name: str
) -> NDArray[np.float32] | None:
    """Return the fraction of each class in every pixel of an acquisition, shape (y, x, classes); None if unlabelled.

    Parameters
    ----------
    shape
        Pixels (y, x) of the acquisition.
    label, truth, classes, name
        As in `label_pixels`.

    Raises
    ------
    DataSetError
        As `label_pixels`.
    """
    fractions = np.zeros((*shape, len(classes)), dtype=np.float32)
    if label:
        require_label(label, classes, name=name)
        fractions[..., list(classes).index(label)] = 1.0
        return fractions
    if truth is None:
        return None
    phases, found = read_truth(truth, shape, name=name)
    require_phases(phases, found, classes, name=name)
    for phase, fraction in zip(phases, found, strict=True):
        if phase in classes:
            fractions[..., list(classes).index(phase)] = fraction
    return fractions
