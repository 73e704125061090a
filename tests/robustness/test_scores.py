import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from scipy.stats import t as student

from eelsflow.robustness.scores import area_under_curve, bootstrap_curve, bootstrap_score, breakdown_point


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
@pytest.mark.parametrize("balanced", [True, False])
def test_interval_where_groups_do_not_differ_is_that_of_their_spectra(n_seeds, balanced):
    """Four acquisitions that agree cannot be known better than their 100 spectra, however often these are tested."""
    label = np.repeat(["a", "a", "b", "b"], 25)
    group = np.repeat(["1", "2", "3", "4"], 25)
    for right, share in ((label == "a", 0.5), (np.ones(100, bool), 1.0)):
        score = bootstrap_score([right] * n_seeds, [label] * n_seeds, [group] * n_seeds, balanced=balanced)
        expected = binomtest(round(100 * share), 100).proportion_ci(method="wilson")
        assert (score.low, score.mean, score.high) == pytest.approx((expected.low, share, expected.high))


def test_a_group_is_one_observation_whatever_the_number_of_seeds_and_spectra():
    """Testing the same eight groups again and again says no more of other groups."""
    share = np.array([0.5, 0.6, 0.8, 0.9, 0.7, 0.75, 0.95, 0.4])
    widths = []
    for n_seeds, n_spectra in ((1, 100), (20, 100), (20, 1000)):
        right = (np.arange(n_spectra) < share[:, None] * n_spectra - 1e-9).ravel()
        group = np.repeat(np.arange(8).astype(str), n_spectra)
        label = np.repeat(["a", "b"], 4 * n_spectra)
        score = bootstrap_score([right] * n_seeds, [label] * n_seeds, [group] * n_seeds)
        widths.append(score.high - score.low)
        assert score.mean == pytest.approx(share.mean())
    assert widths == pytest.approx([widths[0]] * 3)
    # independent: the mean of two classes, four groups each, six degrees of freedom
    error = np.sqrt((share[:4].var(ddof=1) + share[4:].var(ddof=1)) / 4) / 2
    assert widths[0] == pytest.approx(2 * student.ppf(0.975, 6) * error, rel=0.12)  # Wilson's is a little narrower


def simulate_study(random, *, mean, n_acquisitions, n_seeds, n_spectra=30, concentration=10.0):
    """Return what `bootstrap_score` takes, of acquisitions of two classes with an accuracy of their own each."""
    accuracy = random.beta(mean * concentration, (1 - mean) * concentration, n_acquisitions)
    names = np.array([f"{number:02d}" for number in range(n_acquisitions)])
    classes = np.where(np.arange(n_acquisitions) < n_acquisitions // 2, "a", "b")
    n_tested = max(1, round(0.35 * (n_acquisitions // 2)))
    correct, labels, groups = [], [], []
    for _ in range(n_seeds):
        tested = np.sort(
            [random.permutation(np.flatnonzero(classes == name))[:n_tested] for name in ("a", "b")], axis=None
        )
        correct.append(random.random((tested.size, n_spectra)).ravel() < np.repeat(accuracy[tested], n_spectra))
        labels.append(np.repeat(classes[tested], n_spectra))
        groups.append(np.repeat(names[tested], n_spectra))
    return correct, labels, groups


@pytest.mark.parametrize("mean", [0.75, 0.95])
def test_interval_of_groups_covers_the_mean_over_all_acquisitions_in_95_percent_of_studies(mean):
    """Simulated studies, the nominal .95 interval: it covers in .923 to .965 of 600 studies each.

    Acquisitions differ: a beta distribution with a standard deviation of .13 about .75, of .07 about .95. With six
    acquisitions one seed tests one of each class and has no interval.
    """
    random = np.random.default_rng(2)
    coverage = {}
    for n_acquisitions, n_seeds in ((6, 3), (6, 10), (12, 1), (12, 3), (12, 10), (24, 1), (24, 3), (24, 10)):
        found = [
            bootstrap_score(*simulate_study(random, mean=mean, n_acquisitions=n_acquisitions, n_seeds=n_seeds))
            for _ in range(600)
        ]
        coverage[n_acquisitions, n_seeds] = np.mean([score.low <= mean <= score.high for score in found])
    # a coverage from 600 studies is known to .01
    assert min(coverage.values()) > 0.91, coverage
    assert 0.93 < np.mean(list(coverage.values())) < 0.97, coverage
    assert max(coverage.values()) < 0.98, coverage


def test_interval_of_groups_covers_where_classes_and_seeds_differ():
    """One class is easy in every acquisition, the other is not; and each seed's training is better or worse."""
    random = np.random.default_rng(4)
    hits = []
    for _ in range(400):
        correct, labels, groups = simulate_study(random, mean=0.75, n_acquisitions=12, n_seeds=10)
        luck = 0.1 * random.random(10)
        for seed, label in enumerate(labels):
            correct[seed] = np.where(label == "a", random.random(label.size) < 0.98, correct[seed])
            correct[seed] &= random.random(label.size) >= luck[seed]
        score = bootstrap_score(correct, labels, groups)
        hits.append(score.low <= 0.95 * (0.98 + 0.75) / 2 <= score.high)
    assert 0.91 < np.mean(hits) < 0.985


def test_groups_of_two_classes_count_with_all_their_spectra():
    label = np.array(["a", "a", "b", "b", "b", "a"])
    group = np.array(["1", "1", "1", "2", "2", "2"])
    right = np.array([True, True, False, True, True, False])
    score = bootstrap_score([right], [label], [group])
    assert score.mean == pytest.approx(4 / 6)
    assert score.low is None  # one group counts to each class, so there is nothing to draw


def test_a_class_with_one_group_is_taken_to_differ_as_the_others_do():
    label = np.repeat(["a", "a", "a", "b"], 50)
    group = np.repeat(["1", "2", "3", "4"], 50)
    right = np.concatenate([np.arange(50) < n for n in (20, 30, 40, 30)])
    score = bootstrap_score([right], [label], [group])
    assert score.low < 0.4  # t of 2 degrees of freedom times an error of .1
    assert score.high > 0.8


def test_groups_named_alike_in_two_seeds_are_the_same_in_any_order():
    random = np.random.default_rng(0)
    study = simulate_study(random, mean=0.75, n_acquisitions=12, n_seeds=3)
    order = [random.permutation(right.size) for right in study[0]]
    shuffled = [[array[places] for array, places in zip(arrays, order, strict=True)] for arrays in study]
    first, second = bootstrap_score(*study), bootstrap_score(*shuffled)
    assert (first.low, first.mean, first.high) == pytest.approx((second.low, second.mean, second.high))


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


def test_the_interval_of_a_curve_is_over_acquisitions():
    random = np.random.default_rng(0)
    ability = np.clip(0.75 + 0.12 * random.normal(size=30), 0, 1)
    hits, groups = [], []
    for _ in range(4):
        tested = np.sort(random.permutation(30)[:12])
        group = np.repeat(tested, 50)
        right = random.random((2, group.size)) < np.stack([ability[group], 0.5 * np.ones(group.size)])
        hits.append(np.stack([np.bincount(np.searchsorted(tested, group), weights=row) for row in right]))
        groups.append(np.array([f"field-{number:02d}" for number in group]))
    low, high = bootstrap_curve(hits, groups)
    mean = np.mean([found.sum(axis=1) / group.size for found, group in zip(hits, groups, strict=True)], axis=0)
    assert (low < mean).all()
    assert (mean < high).all()
    assert high[0] - low[0] > 1.5 * (high[1] - low[1])  # acquisitions differ at the first amplitude alone
    assert 0.05 < high[0] - low[0] < 0.2
    one = bootstrap_curve([found[:, :1] for found in hits[:1]], [groups[0][:50]])
    np.testing.assert_allclose(*one)  # a single acquisition says nothing of others
