"""Labelled spectra: the wide prepared intensity of every labelled pixel, or a ready table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from eelsflow.dataset.conditions import conditions_of_pixels, conditions_of_spectra
from eelsflow.dataset.labels import MIXED, UNLABELLED
from eelsflow.energy import EnergyAxis
from eelsflow.errors import DataSetError, InputError, UnreadableFileError
from eelsflow.io.damage import PICKLED, is_about_pickles
from eelsflow.io.zarr_store import open_dataset


@dataclass(frozen=True)
class LabelledSpectra:
    """Spectra with a class each.

    Attributes
    ----------
    intensity
        Shape (n, channels): background-subtracted and not normalised, on the wide window; or a table as it came.
    variance
        Shape (n, channels), of `intensity`; None for a table.
    energy_loss
        Shape (channels,), eV.
    label
        Shape (n,), text.
    group
        Shape (n,), text: what must not be split between training and test (an acquisition); None if unknown.
    gathered
        Shape (n, channels): of the same pixels, the averages over neighbours that a map is judged by; None for a table
        and for presets without a spatial step.
    conditions
        Shape (n, conditions): what was not chemistry, see `eelsflow.dataset.conditions`.
    electrons
        Shape (n,): how many electrons a channel of .1 eV got, see `eelsflow.preprocess`; None for a table.
    """

    intensity: NDArray[np.float32]
    variance: NDArray[np.float32] | None
    energy_loss: NDArray[np.float64]
    label: NDArray[np.str_]
    group: NDArray[np.str_] | None
    gathered: NDArray[np.float32] | None = None
    conditions: NDArray[np.float32] | None = None
    electrons: NDArray[np.float32] | None = None

    def save(self, directory: Path) -> None:
        """Write one ``.npy`` an array, so that every reader maps the same pages."""
        for name in self.__dataclass_fields__:
            array = getattr(self, name)
            if array is not None:
                np.save(directory / f"{name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Open what `save` wrote; the arrays are memory-mapped."""

        def read(name: str) -> NDArray[np.generic] | None:
            path = directory / f"{name}.npy"
            return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None

        return cls(**{name: read(name) for name in cls.__dataclass_fields__})  # type: ignore[arg-type]


def check_classes(label: NDArray[np.str_], classes: Sequence[str]) -> None:
    """Refuse labels that cannot be classified.

    Raises
    ------
    DataSetError
        If fewer than two classes have spectra, or a class of the study has none.
    """
    counts = {name: int((label == name).sum()) for name in classes}
    missing = [name for name, count in counts.items() if count == 0]
    if missing or len(counts) < 2:
        raise DataSetError(
            f"spectra per class: {counts}; a classifier needs at least two classes with spectra of each: "
            "add labelled acquisitions of the missing class or take it out of the study"
        )


def read_table(path: Path, classes: Sequence[str] = ()) -> LabelledSpectra:
    """Read a ready table of labelled spectra.

    Parameters
    ----------
    path
        npz with ``spectra`` (n, channels), ``energy_loss`` (channels,) in eV, ``label`` (n,), optional ``group`` (n,).
    classes
        Classes to keep; empty keeps all, and then every spectrum must have one.

    Raises
    ------
    UnreadableFileError
        If the file cannot be read, or an array is missing.
    DataSetError
        If shapes disagree, spectra are not finite or show nothing, labels are of no class, or a class has no spectra.
    InputError
        If the energies are not uniform.
    """
    try:
        # opened here, because numpy leaves the file open when it turns out not to be a table
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            table = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        if is_about_pickles(error):
            raise UnreadableFileError(f"{path} {PICKLED}") from error
        raise UnreadableFileError(f"{path} is not a readable npz table: {error}") from error
    except Exception as error:  # zipfile.BadZipFile and zlib.error share no base class
        raise UnreadableFileError(f"{path} is damaged: {error}") from error
    absent = [name for name in ("spectra", "energy_loss", "label") if name not in table]
    if absent:
        raise UnreadableFileError(
            f"{path} lacks {absent}; expected the arrays spectra (n, channels), energy_loss (channels,) and label (n,)"
        )
    spectra, energy_loss, label = table["spectra"], table["energy_loss"], table["label"].astype(np.str_)
    if spectra.dtype.kind not in "uif" or label.ndim != 1 or table.get("group", label).shape != label.shape:
        raise DataSetError(
            f"{path}: spectra are of type {spectra.dtype}, label has shape {label.shape}, group has shape "
            f"{table['group'].shape if 'group' in table else None}; expected numbers, and one label and group each"
        )
    if spectra.ndim != 2 or spectra.shape != (label.size, energy_loss.size):
        raise DataSetError(
            f"{path}: spectra have shape {spectra.shape} for {label.size} labels and {energy_loss.size} energies; "
            "expected (labels, energies)"
        )
    try:
        EnergyAxis.from_values(energy_loss)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        intensity = np.ascontiguousarray(spectra, dtype=np.float32)
    not_finite = int((~np.isfinite(intensity).all(axis=1)).sum())
    if not_finite:
        raise DataSetError(
            f"{path}: {not_finite} of {len(spectra)} spectra hold NaN or infinite values; remove or repair them first"
        )
    keep = np.isin(label, classes) if classes else np.ones(label.size, bool)
    try:
        check_classes(label, list(classes) or sorted(set(label.tolist()) - {MIXED, UNLABELLED}))
    except DataSetError as error:
        raise DataSetError(f"{path}: {error}") from error
    _check_every_spectrum(path, intensity, label, keep)
    return LabelledSpectra(
        intensity=intensity[keep],
        variance=None,
        energy_loss=energy_loss.astype(np.float64),
        label=label[keep],
        group=table["group"].astype(np.str_)[keep] if "group" in table else None,
        conditions=conditions_of_spectra(intensity[keep], energy_loss.astype(np.float64), None),
    )


def _check_every_spectrum(
    path: Path, intensity: NDArray[np.float32], label: NDArray[np.str_], keep: NDArray[np.bool_]
) -> None:
    """Refuse, among the spectra to keep, those of no class and those that show nothing."""
    classless = np.flatnonzero(keep & np.isin(label, [MIXED, UNLABELLED]))
    if classless.size:
        raise DataSetError(
            f"{path}: {classless.size} of {label.size} spectra are labelled {MIXED!r} or {UNLABELLED!r}, the first is "
            f"number {classless[0]}; these stand for spectra of no single class, which are never trained on: remove "
            "them, or name the classes to keep in the study file (`classes: [...]`)"
        )
    highest = intensity.max(axis=1)
    empty = np.flatnonzero(keep & ((highest <= 0) | (highest == intensity.min(axis=1))))
    if empty.size:
        raise DataSetError(
            f"{path}: {empty.size} of {label.size} spectra show no signal (constant, or nowhere above zero), the first "
            f"is number {empty[0]}, labelled {str(label[empty[0]])!r}; they would be learned as if they were of their "
            "class: remove these rows (vacuum, dead pixels, a wrong sign?)"
        )


def gather_spectra(
    prepared: Sequence[Path], labels: Sequence[NDArray[np.str_]], groups: Sequence[str], classes: Sequence[str]
) -> LabelledSpectra:
    """Collect the labelled pixels of prepared acquisitions.

    Parameters
    ----------
    prepared
        Prepared products (zarr), one an acquisition.
    labels
        For each, the class of its pixels, shape (y, x); "" and "mixed" are left out.
    groups
        For each, its group.
    classes
        The classes of the study.

    Raises
    ------
    DataSetError
        If a class has no spectra.
    """
    intensity, variance, label, group, gathered, conditions, electrons = [], [], [], [], [], [], []
    energy_loss: NDArray[np.float64] | None = None
    for path, pixel_label, name in zip(prepared, labels, groups, strict=True):
        chosen = (pixel_label != UNLABELLED) & (pixel_label != MIXED)
        if not chosen.any():
            continue
        product = open_dataset(path)
        energy_loss = product["energy_loss"].values
        intensity.append(product["intensity"].values[chosen])
        variance.append(product["variance"].values[chosen])
        if "gathered" in product:
            gathered.append(product["gathered"].values[chosen])
        conditions.append(conditions_of_pixels(product, chosen))
        electrons.append(product["electrons"].values[chosen])
        label.append(pixel_label[chosen])
        group.append(np.full(int(chosen.sum()), name))
    found = np.concatenate(label) if label else np.array([], dtype=np.str_)
    check_classes(found, classes)
    assert energy_loss is not None  # check_classes refused an empty collection
    return LabelledSpectra(
        intensity=np.concatenate(intensity),
        variance=np.concatenate(variance),
        energy_loss=energy_loss,
        label=found,
        group=np.concatenate(group),
        gathered=np.concatenate(gathered) if gathered else None,
        conditions=np.concatenate(conditions),
        electrons=np.concatenate(electrons),
    )


def choose_spectra(spectra: LabelledSpectra, n_spectra: int | None) -> LabelledSpectra:
    """Return a random choice of so many spectra, in their order and always the same; all of them where None.

    Raises
    ------
    DataSetError
        If there are fewer, or a class has none among those chosen.
    """
    if n_spectra is None:
        return spectra
    n_all = spectra.label.size
    if n_all < n_spectra:
        raise DataSetError(
            f"{n_spectra} labelled spectra were asked for (split.spectra) and there are {n_all}; add acquisitions or "
            "ask for fewer"
        )
    chosen = np.sort(np.random.default_rng(n_all).permutation(n_all)[:n_spectra])
    check_classes(spectra.label[chosen], sorted(set(spectra.label.tolist())))
    arrays = {name: getattr(spectra, name) for name in spectra.__dataclass_fields__ if name != "energy_loss"}
    return replace(spectra, **{name: array[chosen] for name, array in arrays.items() if array is not None})
