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
    assert (found.p, found.p_holm) == (pytest.approx(2 / 4001), pytest.approx(2 / 4001))
    assert compare_models(correct, labels, clusters) == [found]


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
