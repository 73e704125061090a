import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.dataset.splits import inner_folds, split_spectra, validation_split
from eelsflow.errors import DataSetError
from tests.strategies import fractions, seeds


def acquisitions(groups_of_class: dict[str, int], pixels: int = 40):
    """Label and group of pure acquisitions."""
    label, group = [], []
    for name, n_groups in groups_of_class.items():
        for number in range(n_groups):
            label += [name] * pixels
            group += [f"{name}-{number}"] * pixels
    return np.array(label), np.array(group)


@given(seed=seeds(1000), fraction=fractions(0.1, 0.6), n_groups=st.integers(2, 6))
def test_split_by_group_keeps_groups_whole_and_classes_on_both_sides(seed, fraction, n_groups):
    label, group = acquisitions({"FeO": n_groups, "Fe3O4": 3})
    train, test = split_spectra(label, group, by="group", test_fraction=fraction, seed=seed)
    assert not set(group[train]) & set(group[test])
    assert set(label[train]) == set(label[test]) == {"FeO", "Fe3O4"}
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(label.size))


@given(seed=seeds(1000), fraction=fractions(0.1, 0.6))
def test_split_by_pixel_is_stratified(seed, fraction):
    label, _ = acquisitions({"FeO": 1, "Fe3O4": 3}, pixels=50)
    train, test = split_spectra(label, None, by="pixel", test_fraction=fraction, seed=seed)
    assert (label[test] == "FeO").sum() == round(fraction * 50)
    assert (label[test] == "Fe3O4").sum() == round(fraction * 150)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(label.size))


def test_split_is_the_same_for_the_same_seed_and_differs_between_seeds():
    label, group = acquisitions({"FeO": 5, "Fe3O4": 5})
    first, again, other = (
        split_spectra(label, group, by="group", test_fraction=0.35, seed=seed)[1] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_split_by_group_is_refused_when_a_class_has_one_group():
    label, group = acquisitions({"FeO": 1, "Fe3O4": 4})
    with pytest.raises(DataSetError, match=r"'FeO': 1.*at least 2 groups"):
        split_spectra(label, group, by="group", test_fraction=0.35, seed=0)


def test_split_is_refused_for_one_class():
    with pytest.raises(DataSetError, match="at least two classes"):
        split_spectra(np.array(["FeO"] * 10), None, by="pixel", test_fraction=0.35, seed=0)


def test_inner_folds_never_split_a_group():
    label, group = acquisitions({"FeO": 4, "Fe3O4": 3})
    folds, warnings = inner_folds(label, group, n_folds=10, seed=0)
    assert len(folds) == 3
    assert not warnings
    for train, validation in folds:
        assert not set(group[train]) & set(group[validation])


def test_inner_folds_warn_when_groups_are_too_few():
    label, group = acquisitions({"FeO": 1, "Fe3O4": 3})
    folds, warnings = inner_folds(label, group, n_folds=4, seed=0)
    assert len(folds) == 4
    assert "optimistic" in warnings[0]


def test_inner_folds_refuse_fewer_spectra_than_folds():
    label = np.array(["FeO"] * 3 + ["Fe3O4"] * 50)
    with pytest.raises(DataSetError, match="FeO has 3 training spectra, fewer than the 10 folds"):
        inner_folds(label, None, n_folds=10, seed=0)


def test_validation_split_holds_out_one_group_of_each_class():
    label, group = acquisitions({"FeO": 3, "Fe3O4": 3})
    (fit, validation), warnings = validation_split(label, group, seed=0)
    assert not warnings
    assert set(label[validation]) == {"FeO", "Fe3O4"}
    assert len(set(group[validation])) == 2
    assert not set(group[fit]) & set(group[validation])


def test_validation_split_takes_spectra_when_groups_are_too_few():
    label, group = acquisitions({"FeO": 1, "Fe3O4": 1})
    (_, validation), warnings = validation_split(label, group, seed=0)
    assert validation.size == 8
    assert "10%" in warnings[0]


@pytest.mark.parametrize(("counts", "fraction"), [((200, 4), 0.1), ((200, 2), 0.2), ((3, 3), 0.9)])
def test_split_by_pixel_keeps_rare_classes_on_both_sides(counts, fraction):
    label = np.repeat(["FeO", "Fe3O4"], counts)
    train, test = split_spectra(label, None, by="pixel", test_fraction=fraction, seed=0)
    assert set(label[train]) == set(label[test]) == {"FeO", "Fe3O4"}
