import numpy as np
import pytest

from eelsflow.dataset.labels import label_pixels
from eelsflow.errors import DataSetError, UnreadableFileError

VACUUM = np.array([[True, False], [False, False]])
CLASSES = ["FeO", "Fe3O4"]


def label(**options):
    return label_pixels(VACUUM, **{"label": "", "truth": None, "classes": CLASSES, "name": "cube", **options})


def test_label_names_every_specimen_pixel():
    assert label(label="FeO").tolist() == [["", "FeO"], ["FeO", "FeO"]]


def test_neither_label_nor_truth_leaves_pixels_unlabelled():
    assert set(label().ravel()) == {""}


def test_truth_gives_the_phase_of_at_least_80_percent_else_mixed(tmp_path):
    feo = np.array([[1.0, 0.8], [0.79, 0.2]])
    path = tmp_path / "truth.npz"
    np.savez(path, phase=np.array(CLASSES), phase_fraction=np.stack([feo, 1 - feo]))
    assert label(truth=path).tolist() == [["", "FeO"], ["mixed", "Fe3O4"]]


def test_truth_of_another_scan_is_refused(tmp_path):
    path = tmp_path / "truth.npz"
    np.savez(path, phase=np.array(CLASSES), phase_fraction=np.zeros((2, 3, 3)))
    with pytest.raises(DataSetError, match="same scan"):
        label(truth=path)


def test_unknown_class_is_refused():
    with pytest.raises(DataSetError, match="'Fe2O3', which is not one of the classes"):
        label(label="Fe2O3")


def test_truth_without_fractions_is_refused(tmp_path):
    path = tmp_path / "truth.npz"
    np.savez(path, phase=np.array(CLASSES))
    with pytest.raises(UnreadableFileError, match="phase_fraction"):
        label(truth=path)
