import numpy as np
import pytest

from eelsflow.maps.pixels import VACUUM, PixelMap
from eelsflow.maps.score import calibration_error, score_map

CLASSES = ["FeO", "Fe3O4"]


def pixel_map(class_index: np.ndarray, confidence: float = 0.9, error: float = 0.1) -> PixelMap:
    index = np.asarray(class_index, dtype=np.int16)
    probability = np.full((*index.shape, 2), 1 - confidence, dtype=np.float32)
    for number in range(2):
        probability[index == number, number] = confidence
    fraction = np.stack([index == 0, index == 1], axis=-1).astype(np.float32)
    return PixelMap(
        classes=CLASSES,
        class_index=index,
        probability=probability,
        fraction=fraction,
        fraction_error=np.full_like(fraction, error),
        unknown=np.zeros(index.shape, dtype=bool),
        distance=np.ones(index.shape, dtype=np.float32),
        effective_spectra=np.ones(index.shape, dtype=np.float32),
        relative_variance=1e-4,
        mean_distance=1.0,
        correlation=0.0,
        ends=None,
        class_shape=np.full((2, 3), 1 / 3),
        class_shape_error=np.zeros((2, 3)),
        bands=np.arange(3.0),
        judged=None,
        noise=np.eye(3),
    )


def halves() -> np.ndarray:
    truth = np.zeros((10, 10, 2))
    truth[:, :5, 0] = 1.0
    truth[:, 5:, 1] = 1.0
    return truth


def test_a_right_map_scores_one_and_a_wrong_one_nothing():
    truth = halves()
    right = score_map(pixel_map(truth.argmax(axis=-1)), truth)
    assert (right["kind"], right["balanced_accuracy"], right["boundary_accuracy"]) == ("mixed", 1.0, 1.0)
    assert (right["fraction_rmse"], right["fraction_coverage"], right["one_class"]) == (0.0, 1.0, False)
    wrong = score_map(pixel_map(1 - truth.argmax(axis=-1)), truth)
    assert (wrong["balanced_accuracy"], wrong["fraction_rmse"], wrong["fraction_coverage"]) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_one_class_everywhere_scores_a_half_whatever_the_share_of_the_class(share):
    truth = np.zeros((10, 10, 2))
    truth[: int(10 * share), :, 0] = 1.0
    truth[int(10 * share) :, :, 1] = 1.0
    score = score_map(pixel_map(np.ones((10, 10))), truth)
    assert (score["balanced_accuracy"], score["one_class"]) == (0.5, True)


def test_only_pixels_clear_in_truth_and_seen_in_the_map_count():
    truth = halves()
    truth[0] = 0.5  # neither
    truth[1] = 0.0  # no oxide
    index = truth.argmax(axis=-1)
    index[2] = VACUUM
    index[:2] = 1
    score = score_map(pixel_map(index), truth)
    assert score["n"] == [35, 35]
    assert score["balanced_accuracy"] == 1.0


def test_boundary_pixels_are_those_that_touch_the_other_class():
    truth = halves()
    index = truth.argmax(axis=-1)
    index[:, 5] = 0  # the column beyond the boundary is wrong
    score = score_map(pixel_map(index), truth)
    assert score["boundary_accuracy"] == 0.5
    assert score["balanced_accuracy"] == pytest.approx((1 + 0.8) / 2)


def test_a_pure_field_has_no_boundary_and_a_field_of_neither_no_score():
    truth = np.zeros((6, 6, 2))
    truth[..., 1] = 1.0
    score = score_map(pixel_map(np.ones((6, 6))), truth)
    assert (score["kind"], score["boundary_accuracy"], score["recall"]) == ("pure", None, [None, 1.0])
    assert score_map(pixel_map(np.ones((6, 6))), np.full((6, 6, 2), np.nan)) is None


def test_calibration_is_the_gap_between_confidence_and_accuracy():
    truth = halves()
    index = truth.argmax(axis=-1)
    index[:2] = 1 - index[:2]  # 80 % right at a confidence of .9
    bins = np.array(score_map(pixel_map(index), truth)["calibration"])
    assert bins[:, 0].sum() == 100
    assert calibration_error(bins) == pytest.approx(0.1, abs=1e-6)
    assert calibration_error(np.zeros((10, 3))) is None
