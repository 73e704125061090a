import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from eelsflow.errors import DataSetError
from eelsflow.robustness.control import quick_classifier, shuffled_label_control

PREDICTORS = [quick_classifier, LinearDiscriminantAnalysis]


def spectra(*, offset, n_groups=12, n_classes=1, n=60, n_channels=40, seed=0):
    """Spectra whose groups differ by a smooth offset of their own, and whose classes differ plainly."""
    random = np.random.default_rng(seed)
    number = np.repeat(np.arange(n_groups), n)
    code = np.arange(n_groups) % n_classes
    channel = np.arange(n_channels)
    own = random.normal(0, 1, (n_groups, 16)) @ np.cos(np.outer(np.arange(16), channel) * np.pi / n_channels)
    shape = np.exp(-(((channel - 15) / 4) ** 2))
    vectors = shape * (1 + 2 * code[number])[:, None] + offset * own[number]
    vectors = vectors + 0.2 * random.standard_normal(vectors.shape)
    return vectors.astype(np.float32), number.astype(str), np.array(["FeO", "Fe3O4"])[code[number]]


@pytest.mark.parametrize("make_predictor", PREDICTORS)
@pytest.mark.parametrize("n_classes", [1, 2])
def test_acquisitions_that_differ_are_recognised_whatever_their_labels(make_predictor, n_classes):
    vectors, group, label = spectra(offset=0.3, n_classes=n_classes, n_groups=8)
    control = shuffled_label_control(vectors, group, label, make_predictor=make_predictor, n_draws=6)
    assert control.mean > 0.9
    assert len(control.draws) == 6


@pytest.mark.parametrize("make_predictor", PREDICTORS)
@pytest.mark.parametrize("n_classes", [1, 2])
@pytest.mark.parametrize("n_groups", [6, 12])
def test_control_is_at_chance_where_acquisitions_are_alike_though_classes_are_not(make_predictor, n_classes, n_groups):
    """Six acquisitions of two classes are three of each, too few to stay within one class; one of them is small."""
    vectors, group, label = spectra(offset=0.0, n_classes=n_classes, n_groups=n_groups, n=100)
    kept = (group != "0") | (np.arange(group.size) % 4 == 0)
    vectors, group, label = vectors[kept], group[kept], label[kept]
    control = shuffled_label_control(vectors, group, label, make_predictor=make_predictor, n_draws=8)
    # 8 draws of 100 to 400 test spectra: a standard error of .02 at most
    assert control.mean == pytest.approx(0.5, abs=0.06)


def test_the_same_seed_gives_the_same_control_and_inputs_stay_as_they_are():
    vectors, group, label = spectra(offset=0.1)
    before = vectors.copy()
    first, again = (shuffled_label_control(vectors, group, label, n_draws=2, max_spectra=200) for _ in range(2))
    assert first == again
    np.testing.assert_array_equal(vectors, before)


def test_one_acquisition_of_each_class_cannot_be_told_from_its_class():
    vectors, group, label = spectra(offset=0.1, n_groups=2, n_classes=2)
    with pytest.raises(DataSetError, match=r"\{'FeO': 1, 'Fe3O4': 1\}.*unless it has two"):
        shuffled_label_control(vectors, group, label)
