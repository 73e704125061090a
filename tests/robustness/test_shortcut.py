"""Labels that can be told without chemistry are found; those that cannot are not."""

import numpy as np
import pytest
import xarray as xr

from eelsflow.dataset.conditions import CONDITIONS, NOISE, conditions_of_pixels, conditions_of_spectra
from eelsflow.robustness.shortcut import among_equal_noise, fit_on_conditions, judge_shortcut

ENERGY = 513.0 + 0.1 * np.arange(540)
WINDOW = (525.0, 555.0)


def spectra(n: int, *, noise, seed: int = 0, exposure=1.0):
    """Edges whose class is the height of the pre-peak, with white noise."""
    random = np.random.default_rng(seed)
    code = np.arange(n) % 2
    pre = np.exp(-0.5 * ((ENERGY - 530) / 1.3) ** 2)
    main = np.exp(-0.5 * ((ENERGY - 539.4) / 2.5) ** 2) + 0.4 / (1 + np.exp(-(ENERGY - 538)))
    clean = (0.4 + 0.3 * code)[:, None] * pre + main
    level = np.broadcast_to(noise, (2,))[code][:, None]
    counts = np.broadcast_to(exposure, (2,))[code][:, None] * 300.0
    return counts * (clean + level * random.normal(size=clean.shape)), np.array(["A", "B"])[code]


def judge(conditions, label, group=None, *, n_seeds=4):
    correct, labels, groups, weights = [], [], [], []
    for seed in range(n_seeds):
        order = np.random.default_rng(seed).permutation(len(label))
        if group is not None:
            names = np.random.default_rng(seed).permutation(np.unique(group))
            held = np.isin(group, names[: len(names) // 3])
            order = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)])
            n_train = int((~held).sum())
        else:
            n_train = 2 * len(label) // 3
        right, weight = fit_on_conditions(conditions, label, order[:n_train], order[n_train:], seed=seed)
        correct.append(right)
        labels.append(label[order[n_train:]])
        groups.append(None if group is None else group[order[n_train:]])
        weights.append(weight)
    return judge_shortcut(correct, labels, groups, weights)


def test_chemistry_alone_does_not_show_in_the_conditions():
    level = np.exp(np.random.default_rng(1).uniform(-0.7, 0.7, (2, 900)))  # dose and thickness vary, as they do
    wide, label = spectra(900, noise=0.1)
    smooth, _ = spectra(900, noise=0.0)
    wide = level[1][:, None] * (smooth + level[0][:, None] * (wide - smooth))
    found = judge(conditions_of_spectra(wide, ENERGY, WINDOW), label)
    assert not found.told
    assert abs(found.accuracy.mean - 0.5) < 0.06


def test_classes_of_unequal_noise_are_caught_and_it_says_by_what():
    wide, label = spectra(900, noise=(0.12, 0.16))
    found = judge(conditions_of_spectra(wide, ENERGY, WINDOW), label)
    assert found.told
    assert found.accuracy.mean > 0.9
    assert found.by[0].startswith("noise")


def test_acquisitions_with_a_noise_of_their_own_are_at_chance_where_they_are_held_out():
    random = np.random.default_rng(5)
    group = np.repeat(np.arange(40), 20)
    level = random.uniform(0.1, 0.3, 40)[group]
    label = np.array(["A", "B"])[group % 2]
    wide = 300 * (1.0 + level[:, None] * random.normal(size=(800, ENERGY.size)))
    conditions = conditions_of_spectra(wide, ENERGY, WINDOW)
    assert judge(conditions, label).accuracy.mean > 0.6  # random spectra: the acquisition is recognised by its noise
    assert not judge(conditions, label, group.astype(str)).told


def test_among_equal_noise_every_class_has_as_many_at_every_level():
    random = np.random.default_rng(0)
    label = np.array(["A", "B"])[(random.random(2000) < 0.3).astype(int)]
    conditions = np.full((2000, len(CONDITIONS)), np.nan, np.float32)
    noise = np.where(label == "A", random.normal(1.0, 0.2, 2000), random.normal(1.3, 0.2, 2000))
    conditions[:, CONDITIONS.index(NOISE)] = noise
    chosen = among_equal_noise(conditions, label, seed=3)
    assert (np.diff(chosen) > 0).all()
    assert (label[chosen] == "A").mean() == 0.5
    of_class = [noise[chosen][label[chosen] == name] for name in "AB"]
    assert abs(of_class[0].mean() - of_class[1].mean()) < 0.03
    assert abs(np.mean(noise[label == "A"]) - np.mean(noise[label == "B"])) > 0.25
    np.testing.assert_array_equal(chosen, among_equal_noise(conditions, label, seed=3))


def test_conditions_of_pixels_are_those_of_the_scan():
    wide, _ = spectra(12, noise=0.1)
    product = xr.Dataset(
        {
            "intensity": (("y", "x", "energy_loss"), wide.reshape(3, 4, -1)),
            "background_amplitude": (("y", "x"), np.full((3, 4), 50.0)),
            "background_exponent": (("y", "x"), np.full((3, 4), 3.1)),
        },
        coords={"energy_loss": ENERGY},
        attrs={"energy_offset": 2.5},
    )
    chosen = np.zeros((3, 4), bool)
    chosen[2, 3] = chosen[0, 0] = True
    found = dict(zip(CONDITIONS, conditions_of_pixels(product, chosen).T, strict=True))
    np.testing.assert_allclose(found["row of the scan"], [0.0, 1.0])
    np.testing.assert_allclose(found["column of the scan"], [0.0, 1.0])
    np.testing.assert_allclose(found["background"], np.log(50.0), rtol=1e-6)
    np.testing.assert_allclose(found["background exponent"], 3.1, rtol=1e-6)
    np.testing.assert_allclose(found["energy offset"], 2.5)
    assert np.isnan(found["thickness (t/lambda)"]).all()
    assert found[NOISE] == pytest.approx(conditions_of_spectra(wide[[0, 11]], ENERGY, None)[:, 0])


@pytest.mark.parametrize("n_channels", [2, 5, 30])
def test_short_and_empty_spectra_have_finite_or_unknown_conditions(n_channels):
    found = conditions_of_spectra(np.zeros((3, n_channels)), np.arange(n_channels) * 0.1, None)
    assert found.shape == (3, len(CONDITIONS))
    assert not np.isinf(found).any()
