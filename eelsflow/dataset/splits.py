"""Splits: random pixels or whole groups, stratified, seeded.

A random pixel split puts neighbouring pixels of one scan in training and test and so measures memory as much as
skill; the split by group (acquisition) is the honest one. Both are offered because the paper used the first.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import DataSetError

Indices = NDArray[np.intp]
Split = tuple[Indices, Indices]
SplitBy = Literal["group", "pixel"]

_MAX_DRAWS = 1000


def split_spectra(
    label: NDArray[np.str_], group: NDArray[np.str_] | None, *, by: SplitBy, test_fraction: float, seed: int
) -> Split:
    """Split into training and test part.

    Parameters
    ----------
    label
        Shape (n,).
    group
        Shape (n,); needed for ``by="group"``.
    by
        "pixel": stratified over classes at random, as in the paper. "group": whole groups are held out, drawn for
        each majority class on its own, so that every class is on both sides.
    test_fraction
        Fraction held out: of the spectra, or of the groups of each class.
    seed
        The same seed gives the same split.

    Returns
    -------
    train, test
        Indices, sorted.

    Raises
    ------
    DataSetError
        If a class cannot be on both sides.
    """
    classes, counts = np.unique(label, return_counts=True)
    if classes.size < 2:
        raise DataSetError(f"only the class {classes.tolist()} has spectra; a classifier needs at least two classes")
    if by == "pixel":
        if counts.min() < 2:
            raise DataSetError(
                f"class {classes[counts.argmin()]} has {counts.min()} spectrum; it needs at least 2, one to train on "
                "and one to test with"
            )
        pixel_rng = np.random.default_rng([seed, 0x91E1])
        held_out_pixels = []
        for name, count in zip(classes, counts, strict=True):
            n_held = min(max(round(test_fraction * int(count)), 1), int(count) - 1)
            held_out_pixels.append(pixel_rng.permutation(np.flatnonzero(label == name))[:n_held])
        is_held = np.zeros(label.size, bool)
        is_held[np.concatenate(held_out_pixels)] = True
        return np.flatnonzero(~is_held), np.flatnonzero(is_held)

    if group is None:
        raise DataSetError("a split by group needs groups, and these spectra have none; split by pixel, or add them")
    strata = _majority_class_of_groups(label, group)
    rng = np.random.default_rng([seed, 0x5EED])
    for _ in range(_MAX_DRAWS):
        held_out: list[str] = []
        for names in strata.values():
            n_held = min(max(round(test_fraction * len(names)), 1), len(names) - 1) if len(names) > 1 else 0
            held_out += rng.choice(names, n_held, replace=False).tolist()
        is_test = np.isin(group, held_out)
        if set(label[is_test]) == set(label[~is_test]) == set(classes):
            return np.flatnonzero(~is_test), np.flatnonzero(is_test)
    groups_of = {str(name): len(set(group[label == name])) for name in classes}
    raise DataSetError(
        f"no split by group has every class in training and test; groups that hold each class: {groups_of}. "
        "Each class needs at least 2 groups: record another acquisition of it, or split by pixel"
    )


def _majority_class_of_groups(label: NDArray[np.str_], group: NDArray[np.str_]) -> dict[str, list[str]]:
    """Return the groups of each class that is the commonest in them."""
    strata: dict[str, list[str]] = {}
    for name in np.unique(group):
        present, counts = np.unique(label[group == name], return_counts=True)
        strata.setdefault(str(present[counts.argmax()]), []).append(str(name))
    return strata


def inner_folds(
    label: NDArray[np.str_], group: NDArray[np.str_] | None, *, n_folds: int, seed: int
) -> tuple[list[Split], list[str]]:
    """Make the folds of a grid search inside a training part.

    Parameters
    ----------
    label
        Shape (n,), of the training part.
    group
        Shape (n,), or None for stratified folds of single spectra. With groups the number of folds is at most the
        number of groups of the rarest class; under 2, folds of single spectra are made with a warning.
    n_folds, seed
        How many folds are wanted; the seed of the shuffle.

    Returns
    -------
    folds
        (training, validation) indices each; every class is in every training part.
    warnings
        What the reader of the results must know.

    Raises
    ------
    DataSetError
        If a class has fewer spectra than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    warnings: list[str] = []
    classes, counts = np.unique(label, return_counts=True)
    if group is not None:
        n_groups = min(len(np.unique(group[label == name])) for name in classes)
        n_group_folds = min(n_folds, n_groups)
        if n_group_folds >= 2:
            folds = list(
                StratifiedGroupKFold(n_group_folds, shuffle=True, random_state=seed).split(label, label, group)
            )
            if all(set(label[train]) == set(classes) for train, _ in folds):
                return folds, warnings
        warnings.append(
            f"the rarest class has {n_groups} training group(s), too few for folds by group: the search inside the "
            "training part used folds of single spectra, so its scores are optimistic (test groups stayed out)"
        )
    if counts.min() < n_folds:
        raise DataSetError(
            f"class {classes[counts.argmin()]} has {counts.min()} training spectra, fewer than the {n_folds} folds; "
            "use fewer folds or add spectra of this class"
        )
    return list(StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(label, label)), warnings


def validation_split(
    label: NDArray[np.str_], group: NDArray[np.str_] | None, *, seed: int, fraction: float = 0.1
) -> tuple[Split, list[str]]:
    """Hold out the part of a training set on which a network's best epoch is chosen.

    One group of each majority class where every class still keeps training spectra and is in the validation part
    (our choice: a single group of one pure phase would reward a network that always answers that phase); otherwise
    `fraction` of the spectra, stratified.

    Raises
    ------
    DataSetError
        If a class has fewer than 2 spectra.
    """
    warnings: list[str] = []
    classes = set(label.tolist())
    if group is not None:
        strata = _majority_class_of_groups(label, group)
        rng = np.random.default_rng([seed, 0xA11])
        for _ in range(20):
            held_out = [str(rng.choice(names)) for names in strata.values() if len(names) > 1]
            is_validation = np.isin(group, held_out)
            if set(label[is_validation]) == set(label[~is_validation]) == classes:
                return (np.flatnonzero(~is_validation), np.flatnonzero(is_validation)), warnings
        warnings.append(
            "too few training groups to hold one of each class out: the networks' best epoch was chosen on "
            f"{fraction:.0%} of the training spectra (test groups stayed out)"
        )
    return split_spectra(label, None, by="pixel", test_fraction=fraction, seed=seed), warnings
