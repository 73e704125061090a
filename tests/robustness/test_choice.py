import numpy as np
import pytest

from eelsflow.errors import InputError
from eelsflow.robustness.choice import chosen_score


def counts_of(accuracy, n_spectra=40, *, random):
    """Hits and sizes of candidates with an accuracy in each group, the first half of the groups of one class."""
    n_groups = accuracy.shape[1]
    of_class = np.eye(2)[(np.arange(n_groups) >= n_groups // 2).astype(int)]
    return random.binomial(n_spectra, accuracy)[:, :, None] * of_class, n_spectra * of_class


@pytest.mark.parametrize("balanced", [True, False])
def test_the_best_of_equal_candidates_is_optimistic_and_the_expected_score_is_not(balanced):
    """Twenty models that are equally good over all acquisitions, each lucky with some of the twelve at hand."""
    random = np.random.default_rng(0)
    apparent, expected = [], []
    for _ in range(100):
        score = chosen_score(*counts_of(random.beta(7.5, 2.5, (20, 12)), random=random), balanced=balanced)
        apparent.append(score.apparent)
        expected.append(score.expected)
    # standard errors of 100 studies: .003 and .004
    assert np.mean(apparent) > 0.75 + 0.05
    assert np.mean(expected) == pytest.approx(0.75, abs=0.015)


def test_a_model_that_is_better_everywhere_is_chosen_and_keeps_its_score():
    random = np.random.default_rng(1)
    accuracy = np.full((6, 12), 0.7)
    accuracy[4] = 0.9
    score = chosen_score(*counts_of(accuracy, 100, random=random))
    assert score.best == 4
    assert score.chosen[4] == 1
    assert score.expected == pytest.approx(score.apparent, abs=0.01)


def test_a_single_candidate_has_no_optimism():
    random = np.random.default_rng(2)
    score = chosen_score(*counts_of(random.beta(7.5, 2.5, (1, 12)), random=random))
    assert score.expected == pytest.approx(score.apparent, abs=0.005)  # noise of 2,000 draws


def test_groups_of_both_classes_count_for_both():
    hits = np.array([[[8, 1], [7, 2], [1, 9], [2, 8]]])
    sizes = np.array([[10, 2], [10, 2], [2, 10], [2, 10]])
    assert chosen_score(hits, sizes).apparent == pytest.approx((18 / 24 + 20 / 24) / 2)
    assert chosen_score(hits, sizes, balanced=False).apparent == pytest.approx(38 / 48)


def test_nothing_is_expected_where_no_group_of_a_class_can_be_left_out():
    score = chosen_score([[[5, 0], [7, 0], [0, 6]]], [[10, 0], [10, 0], [0, 10]])
    assert score.expected is None
    assert score.apparent == pytest.approx(0.6)


def test_counts_that_disagree_are_refused():
    with pytest.raises(InputError, match=r"shape \(2, 3\).*expected \(candidates, groups, classes\)"):
        chosen_score(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(InputError, match="no test spectra"):
        chosen_score(np.zeros((1, 2, 2)), [[1, 0], [1, 0]])
