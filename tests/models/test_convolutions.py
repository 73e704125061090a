"""Random convolution features against the definition, written as plain loops."""

import numpy as np
import pytest

from eelsflow.models.convolutions import KERNELS, LENGTH, Convolutions


def plain(x, dilation, places, threshold, *, padded):
    """Return the share of channels at which a kernel gives more than a threshold."""
    weight = np.full(LENGTH, -1.0)
    weight[places] = 2.0
    reach = (LENGTH // 2) * dilation
    padding = np.pad(x, reach)
    out = [sum(weight[w] * padding[j + w * dilation] for w in range(LENGTH)) for j in range(x.size)]
    return float(np.mean(np.array(out if padded else out[reach : x.size - reach]) > threshold))


def test_features_are_those_of_the_definition():
    X = np.random.default_rng(0).normal(size=(6, 70)).cumsum(axis=1).astype(np.float32)
    made = Convolutions.fit(X, n_features=3 * len(KERNELS), seed=1)
    found = made.apply(X)
    assert found.shape == (6, made.threshold.size) == (6, 3 * len(KERNELS))
    place, differing = 0, 0
    for d, (dilation, n_thresholds) in enumerate(zip(made.dilation, made.n_thresholds, strict=True)):
        for k, places in enumerate(KERNELS):
            for _ in range(n_thresholds):
                expected = plain(X[2], dilation, places, made.threshold[place], padded=(d + k) % 2 == 0)
                differing += abs(found[2, place] - expected) > 1e-6  # a value on the threshold may round either way
                place += 1
    assert differing <= 0.02 * place


def test_a_constant_added_changes_nothing_inside_and_a_seed_gives_the_same():
    X = np.random.default_rng(0).normal(size=(20, 120)).astype(np.float32)
    one, other = (Convolutions.fit(X, n_features=400, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.threshold, other.threshold)
    assert (Convolutions.fit(X, n_features=400, seed=4).threshold != one.threshold).any()
    unpadded = np.zeros(one.threshold.size, bool)
    place = 0
    for d, n_thresholds in enumerate(one.n_thresholds):
        for k in range(len(KERNELS)):
            unpadded[place : place + n_thresholds] = (d + k) % 2 == 1
            place += n_thresholds
    moved = np.abs(one.apply(X + 3.0) - one.apply(X))[:, unpadded]
    assert moved.mean() < 1e-3  # the weights add up to nothing; rounding moves values on a threshold


@pytest.mark.parametrize("n_channels", [9, 40, 300])
def test_kernels_fit_on_the_spectra(n_channels):
    X = np.random.default_rng(0).normal(size=(5, n_channels)).astype(np.float32)
    made = Convolutions.fit(X, n_features=1000, seed=0)
    assert (LENGTH - 1) * made.dilation.max() <= max(n_channels - 1, LENGTH - 1)
    features = made.apply(X)
    assert np.isfinite(features).all()
    assert features.min() >= 0
    assert features.max() <= 1
    assert len(KERNELS) == 84
    assert len({tuple(places) for places in KERNELS.tolist()}) == 84
