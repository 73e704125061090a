"""Two models compared on the same spectra, acquisition by acquisition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.robustness.compare import compare_models, holm
from tests.strategies import examples, seeds


def study(seed: int, *, n_groups=24, per_group=40, better=0.0, spread=0.1, n_seeds=3):
    """Models A and B, right with probabilities that an acquisition has in common; B is better by `better`."""
    random = np.random.default_rng(seed)
    ability = np.clip(0.7 + spread * random.normal(size=n_groups), 0.05, 0.95)
    correct, labels, clusters = {"A": [], "B": []}, [], []
    for _ in range(n_seeds):
        held = np.repeat(np.sort(random.permutation(n_groups)[: n_groups // 2]), per_group)
        draw = random.random(held.size)
        correct["A"].append(draw < ability[held])
        correct["B"].append(draw < np.clip(ability[held] + better, 0, 1))
        labels.append(np.array(["x", "y"])[held % 2])
        clusters.append(held.astype(str))
    return correct, labels, clusters


def test_a_difference_is_that_of_the_accuracies_and_has_the_better_one_first():
    correct, labels, clusters = study(0, better=0.1)
    (found,) = compare_models(correct, labels, clusters)
    accuracy = {name: np.mean([right.mean() for right in parts]) for name, parts in correct.items()}
    assert (found.first, found.second) == ("B", "A")
    assert found.difference == pytest.approx(accuracy["B"] - accuracy["A"], abs=1e-12)
    assert found.low <= found.difference <= found.high
    assert found.is_one
    assert 0 < found.p <= 2 / 4001
    assert found.p_holm == pytest.approx(found.p, abs=1e-9)
    assert compare_models(correct, labels, clusters) == [found]


def test_a_clear_difference_stays_one_among_two_hundred_comparisons():
    """The share of a few thousand draws alone could not be below .05 after correcting for so many."""
    correct, labels, clusters = study(0, better=0.1)
    random = np.random.default_rng(3)
    models = {"worse": correct["A"]}
    for number in range(19):
        models[f"better {number}"] = [right ^ (random.random(right.size) < 0.01) for right in correct["B"]]
    found = compare_models(models, labels, clusters)
    assert len(found) == 190
    with_worse = [one for one in found if one.second == "worse"]
    assert len(with_worse) == 19
    assert all(one.is_one for one in with_worse)
    assert sum(one.is_one for one in found) == 19


def test_the_tail_beyond_the_draws_goes_on_where_they_end():
    """A weaker difference has a larger p, on both sides of the outermost draw."""
    p = []
    for better in (0.0005, 0.002, 0.01, 0.04, 0.1):
        correct, labels, clusters = study(0, better=better)
        (found,) = compare_models(correct, labels, clusters)
        p.append(found.p)
    assert p == sorted(p, reverse=True)
    assert p[0] > 2 / 4001 > p[-1]


def test_equal_models_do_not_differ():
    correct, labels, clusters = study(1)
    (found,) = compare_models({"A": correct["A"], "B": correct["A"]}, labels, clusters)
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert not found.is_one


@pytest.mark.slow
def test_models_that_are_equally_good_rarely_seem_to_differ():
    """Independent errors, abilities in common: at the level of .05 about one in twenty studies may say otherwise."""
    wrong = 0
    for seed in range(200):
        random = np.random.default_rng(1000 + seed)
        correct, labels, clusters = study(seed, n_seeds=1)
        shift = 0.08 * random.normal(size=24)  # each model has acquisitions that it is better on
        correct["B"] = [random.random(right.size) < 0.7 + shift[cluster.astype(int)]
                        for right, cluster in zip(correct["A"], clusters, strict=True)]  # fmt: skip
        correct["A"] = [random.random(right.size) < 0.7 + shift[(cluster.astype(int) + 12) % 24]
                        for right, cluster in zip(correct["A"], clusters, strict=True)]  # fmt: skip
        (found,) = compare_models(correct, labels, clusters)
        wrong += found.is_one
    assert wrong / 200 < 0.13  # twelve clusters: a bootstrap is a little too sure


def test_many_models_are_corrected_for_and_one_has_nothing_to_be_compared_with():
    correct, labels, clusters = study(2, better=0.02)
    more = {f"model-{number}": correct["A" if number % 2 else "B"] for number in range(6)}
    found = compare_models(more, labels, clusters)
    assert len(found) == 15
    assert [one.difference for one in found] == sorted((one.difference for one in found), reverse=True)
    assert all(one.p_holm >= one.p for one in found)
    assert compare_models({"A": correct["A"]}, labels, clusters) == []
    assert compare_models(correct, labels, [np.full(cluster.size, "one") for cluster in clusters]) == []


@examples(50)
@given(st.lists(st.integers(1, 1000).map(lambda n: n / 1000), min_size=1, max_size=12), seeds(100))
def test_holm_is_the_textbooks(p, seed):
    found = holm(p)
    order = np.argsort(p)
    for rank, place in enumerate(order):
        expected = min(1.0, max((len(p) - earlier) * p[order[earlier]] for earlier in range(rank + 1)))
        assert found[place] == pytest.approx(expected)
    shuffled = np.random.default_rng(seed).permutation(len(p))
    np.testing.assert_allclose(sorted(holm([p[place] for place in shuffled])), sorted(found))
