"""Simulated acquisitions whose classes were recorded alike are at chance; classes of unequal dose are caught."""

import numpy as np
import pytest

from eelsflow.dataset.conditions import conditions_of_pixels
from eelsflow.edges import resolve_edge
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.robustness.shortcut import fit_on_conditions, judge_shortcut
from eelsflow.simulator import plan_directory, simulate_acquisition

N_ACQUISITIONS = 32


def recorded(dose_of):
    """Return conditions, label and group of pixels of pure fields; `dose_of` maps a label to its range of doses."""
    edge, preset = resolve_edge("O_K"), resolve_preset("recommended").for_acquisition
    conditions, labels, groups = [], [], []
    plans = plan_directory(n_acquisitions=N_ACQUISITIONS, seed=6402, shape=(12, 12), preset="wide", detector="ccd",
                           scenes=("FeO", "Fe3O4"))  # fmt: skip
    for plan in plans:
        levels = plan.parameters.levels.model_copy(update={"dose": dose_of[plan.label]})
        acquisition = simulate_acquisition(plan.parameters.model_copy(update={"levels": levels}), seed=plan.seed)
        product = prepare(acquisition.image, edge=edge, preset=preset)
        chosen = ~product["vacuum_mask"].values
        conditions.append(conditions_of_pixels(product, chosen))
        labels.append(np.full(chosen.sum(), plan.label))
        groups.append(np.full(chosen.sum(), plan.name))
    return np.concatenate(conditions), np.concatenate(labels), np.concatenate(groups)


def judge(conditions, label, group):
    names = np.unique(group)
    correct, labels, groups, weights = [], [], [], []
    for seed in range(6):
        held = np.isin(group, np.random.default_rng(seed).permutation(names)[: names.size // 3])
        train, test = np.flatnonzero(~held), np.flatnonzero(held)
        right, weight = fit_on_conditions(conditions, label, train, test, seed=seed)
        correct.append(right)
        labels.append(label[test])
        groups.append(group[test])
        weights.append(weight)
    return judge_shortcut(correct, labels, groups, weights)


@pytest.mark.slow
def test_a_simulator_with_unequal_dose_is_caught_and_one_with_equal_dose_is_not():
    equal = judge(*recorded({"FeO": (0.3, 3.0), "Fe3O4": (0.3, 3.0)}))
    assert not equal.told
    unequal = judge(*recorded({"FeO": (0.3, 0.6), "Fe3O4": (1.5, 3.0)}))
    assert unequal.told
    assert unequal.accuracy.mean > 0.8
    assert unequal.accuracy.mean > equal.accuracy.mean + 0.2
