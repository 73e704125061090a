import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from eelsflow.robustness.scores import area_under_curve, bootstrap_score, breakdown_point


def label_of(n, *names):
    return np.resize(np.array(names or ("a", "b")), n)


def test_score_of_a_perfect_classifier_is_one_without_width():
    score = bootstrap_score([np.ones(50, bool)] * 3, [label_of(50)] * 3, [None] * 3)
    assert (score.mean, score.low, score.high) == (1, 1, 1)


def test_interval_agrees_with_the_binomial_for_independent_spectra():
    right = np.random.default_rng(0).random(2000) < 0.9
    score = bootstrap_score([right], [label_of(2000)], [None])
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / right.size)
    assert score.mean == pytest.approx(right.mean())
    assert score.high - score.low == pytest.approx(2 * half, rel=0.15)


def test_resampling_groups_gives_a_wider_interval_than_resampling_their_spectra():
    """Spectra of one acquisition are right or wrong together: 10 groups are worth 10 observations, not 1,000."""
    right = np.repeat(np.arange(10) < 7, 100)
    group = np.repeat(np.arange(10).astype(str), 100)
    label = np.repeat(label_of(10), 100)
    by_group, by_spectrum = (bootstrap_score([right], [label], [unit]) for unit in (group, None))
    assert by_group.high - by_group.low > 5 * (by_spectrum.high - by_spectrum.low)


def test_interval_over_seeds_that_are_all_right_or_all_wrong_is_that_of_drawing_seeds():
    """How many right ones are among ten draws of ten seeds, five of which are right, is binomial."""
    correct = [np.full(20, seed < 5) for seed in range(10)]
    score = bootstrap_score(correct, [label_of(20)] * 10, [None] * 10)
    assert (score.low, score.mean, score.high) == (binom.ppf(0.025, 10, 0.5) / 10, 0.5, binom.ppf(0.975, 10, 0.5) / 10)


def test_interval_of_many_seeds_draws_seeds_and_then_spectra():
    rng = np.random.default_rng(3)
    correct = [rng.random(500) < share for share in (0.6, 0.7, 0.8, 0.9)]
    score = bootstrap_score(correct, [label_of(500)] * 4, [None] * 4)
    shares = np.array([right.mean() for right in correct])
    expected = np.sqrt((shares.var() + (shares * (1 - shares)).mean() / 500) / 4)
    assert score.high - score.low == pytest.approx(2 * 1.96 * expected, rel=0.15)


def test_interval_is_none_where_every_resample_would_be_the_same():
    right = np.random.default_rng(0).random(100) < 0.6
    label = np.repeat(["a", "b"], 50)
    one, two = np.repeat(["1", "2"], 50), np.repeat(["1", "2", "3", "4"], 25)
    score = bootstrap_score([right], [label], [one])
    assert (score.mean, score.low, score.high) == (right.mean(), None, None)
    for correct, group in (([right], two), ([right, ~right], one), ([right], None)):
        n = len(correct)
        score = bootstrap_score(correct, [label] * n, [group] * n)
        assert score.low < score.high


def test_balanced_accuracy_counts_each_class_once_and_agrees_with_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(1)
    label = np.array(["a"] * 90 + ["b"] * 10)
    predicted = np.where(rng.random(100) < 0.8, label, "a")
    score = bootstrap_score([predicted == label], [label], [None], balanced=True)
    assert score.mean == pytest.approx(balanced_accuracy_score(label, predicted))


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_balanced_interval_of_a_constant_answer_has_no_width(n_seeds):
    """Whatever acquisitions are drawn, one class is right and the other wrong."""
    label = np.repeat(["a", "a", "b", "b"], 25)
    group = np.repeat(["1", "2", "3", "4"], 25)
    score = bootstrap_score([label == "a"] * n_seeds, [label] * n_seeds, [group] * n_seeds, balanced=True)
    assert (score.low, score.mean, score.high) == (0.5, 0.5, 0.5)


def test_groups_of_two_classes_count_with_all_their_spectra():
    label = np.array(["a", "a", "b", "b", "b", "a"])
    group = np.array(["1", "1", "1", "2", "2", "2"])
    right = np.array([True, True, False, True, True, False])
    score = bootstrap_score([right], [label], [group])
    assert score.mean == pytest.approx(4 / 6)
    assert score.low is None  # one group counts to each class, so there is nothing to draw


def test_nothing_to_score_is_none():
    assert bootstrap_score([], [], []) is None


@given(st.lists(st.booleans(), min_size=3, max_size=60), st.integers(1, 4))
def test_interval_holds_the_mean_and_stays_within_zero_and_one(right, n_seeds):
    score = bootstrap_score([np.array(right)] * n_seeds, [label_of(len(right))] * n_seeds, [None] * n_seeds)
    assert 0 <= score.low <= score.mean <= score.high <= 1 + 1e-12


def test_breakdown_is_the_smallest_magnitude_under_90_percent_of_clean():
    amplitudes = np.array([-4.0, -2, 0, 2, 4])
    accuracy = np.array([0.5, 0.95, 1.0, 0.8, 0.6])
    assert breakdown_point(amplitudes, accuracy, clean=1.0) == 2
    assert breakdown_point(amplitudes, np.ones(5), clean=1.0) is None


def test_breakdown_of_a_dose_is_the_highest_that_is_too_low():
    counts, accuracy = np.array([1000.0, 100, 10]), np.array([1.0, 0.8, 0.5])
    assert breakdown_point(counts, accuracy, clean=1.0, mild_end="high") == 100


def test_area_is_the_mean_over_the_range():
    assert area_under_curve(np.array([0.0, 1, 2]), np.array([1.0, 0.5, 0.0])) == pytest.approx(0.5)
