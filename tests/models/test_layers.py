import copy
import itertools
import json

import numpy as np
import pytest
from hypothesis import given

from eelsflow.models.backend import load_backend
from eelsflow.models.layers import NoLoopsError, Trainer, layers_of
from eelsflow.models.networks import describe_network
from eelsflow.models.spec import NETWORKS
from eelsflow.models.training import batch_bounds
from tests.strategies import fractions, seeds


def draw(n_spectra, n_channels, n_classes, seed=0):
    random = np.random.default_rng(seed)
    X = random.random((n_spectra, n_channels), dtype=np.float32)
    return X, random.integers(0, n_classes, n_spectra).astype(np.int32), random.uniform(0.5, 2, n_spectra).astype("f4")


def keras_twin(trainer, architecture):
    model = load_backend().keras.models.model_from_json(architecture)
    model.set_weights(trainer.weights())
    return model


def named_gradients(trainer):
    return [layer.gradient[name] for layer in trainer.layers for name in layer.trained]


# Sizes that no loop is made for: odd ones, ones below a block of the loops, and more than a block holds. Convolutions
# have few spectra: of a million values before a ReLU, one is so near to zero that rounding decides on which side.
@pytest.mark.parametrize(
    ("base", "n_channels", "n_classes", "n_spectra", "params"),
    [
        ("fcnn-1", 300, 2, 32, {}),
        ("fcnn-1", 7, 5, 3, {"units": 5}),
        ("fcnn-1", 33, 3, 131, {"units": 19}),
        ("cnn-1", 300, 2, 31, {}),
        ("cnn-1", 143, 3, 1, {}),
        ("cnn-2", 300, 4, 40, {}),
    ],
)
def test_gradients_and_running_averages_equal_those_of_keras(base, n_channels, n_classes, n_spectra, params):
    architecture = describe_network(base, n_channels, n_classes, {**params, "dropout": 0.0})
    trainer = Trainer(architecture, seed=3, learning_rate=1e-3)
    model, tf = keras_twin(trainer, architecture), load_backend().tf
    X, y, weight = draw(n_spectra, n_channels, n_classes)
    with tf.GradientTape() as tape:
        probabilities = tf.gather(model(X, training=True), y, batch_dims=1)
        loss = -tf.reduce_mean(weight * tf.math.log(probabilities))
    expected = tape.gradient(loss, model.trainable_variables)
    ours, n_correct = trainer.gradients(X, y, weight)
    assert ours / n_spectra == pytest.approx(float(loss), rel=1e-5)
    assert 0 <= n_correct <= n_spectra
    for variable, theirs, own in zip(model.trainable_variables, expected, named_gradients(trainer), strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-5, err_msg=variable.path)
    for theirs, own in zip(model.get_weights(), trainer.weights(), strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-5)
    theirs = model(X, training=False).numpy()
    entropy = -np.sum(weight * np.log(theirs[np.arange(n_spectra), y])) / n_spectra
    measured = trainer.evaluate(X, y, weight)
    assert measured[0] == pytest.approx(entropy, rel=1e-5)
    assert measured[1] == pytest.approx(np.mean(theirs.argmax(axis=1) == y), abs=1e-9)


@pytest.mark.parametrize("base", ["fcnn-1", "cnn-1"])
def test_steps_of_a_training_equal_those_of_keras(base):
    """The same batches, no dropout; the last batch is not full and is not dropped."""
    architecture = describe_network(base, 150, 3, {"dropout": 0.0})
    trainer = Trainer(architecture, seed=1, learning_rate=1e-3)
    model, keras = keras_twin(trainer, architecture), load_backend().keras
    model.compile(keras.optimizers.Adam(1e-3), "categorical_crossentropy")
    X, y, weight = draw(100, 150, 3)
    bounds = batch_bounds(100, 32)
    for _ in range(3):
        order = copy.deepcopy(trainer.random).permutation(100)
        theirs = 0.0
        for first, last in itertools.pairwise(bounds):
            rows = order[first:last]
            loss = model.train_on_batch(X[rows], np.eye(3)[y[rows]], sample_weight=weight[rows])
            model.reset_metrics()
            theirs += float(loss) * len(rows)
        ours, _ = trainer.run_epoch(X, y, weight, bounds)
        # Adam divides by the size of a gradient, so rounding of tiny gradients shows.
        assert ours == pytest.approx(theirs / 100, rel=2e-3)
    moved = [np.abs(a - b).max() for a, b in zip(trainer.weights(), model.get_weights(), strict=True)]
    assert max(moved) < 0.1 * 1e-3 * 12  # a tenth of the way that twelve steps can go


@pytest.mark.parametrize("base", NETWORKS)
def test_weights_are_those_of_the_keras_model_in_its_order(base):
    architecture = describe_network(base, 150, 3)
    model = load_backend().keras.models.model_from_json(architecture)
    ours = Trainer(architecture, seed=0, learning_rate=1e-3).weights()
    assert [array.shape for array in ours] == [array.shape for array in model.get_weights()]
    for array, variable in zip(ours, model.weights, strict=True):
        if variable.name == "kernel":
            # Both are uniform between the same limits; the largest of n values is within some 5/n of the limit.
            limit = np.sqrt(6 / (np.prod(array.shape[:-2]) * sum(array.shape[-2:])))
            assert limit * (1 - 10 / array.size) < np.abs(array).max() <= limit
        else:
            np.testing.assert_array_equal(array, variable.numpy())


def test_no_convolutional_network_is_dead_from_the_start():
    """A filter of negative sum gives zeros for every spectrum that is not negative, and its ReLU no gradient."""
    architecture = describe_network("cnn-1", 150, 3)
    for seed in range(20):
        kernel = Trainer(architecture, seed=seed, learning_rate=1e-3).weights()[0]
        assert (kernel.sum(axis=(0, 1)) >= 0).all()


def sequential(*layers):
    described = [{"class_name": kind, "config": config} for kind, config in layers]
    return layers_of(json.dumps({"class_name": "Sequential", "config": {"layers": described}}))


@given(fractions(0, 0.99), seeds())
def test_dropout_keeps_its_share_and_the_mean_and_has_the_same_gradient(rate, seed):
    (layer,) = sequential(("Dropout", {"rate": rate}), ("Softmax", {}))
    ones = np.ones((100, 1000), np.float32)
    out = layer.forward(ones, np.random.default_rng(seed))
    kept = out > 0
    assert abs(kept.mean() - (1 - rate)) < 6 * np.sqrt(0.25 / ones.size)  # six standard deviations
    np.testing.assert_allclose(out[kept], 1 / (1 - rate), rtol=2e-3)  # a share of .01 is met to 1/1000
    np.testing.assert_array_equal(layer.backward(2 * ones, wanted=True), 2 * out)
    assert layer.forward(ones, None) is ones


def test_a_layer_that_training_does_not_know_is_named():
    with pytest.raises(NoLoopsError, match="no training for layers of the kind LSTM"):
        sequential(("LSTM", {}))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([("Dense", {"units": 2, "activation": "gelu"})], "Dense with activation 'gelu'"),
        ([("Dense", {"units": 2, "activation": "softmax", "use_bias": False})], "use_bias False"),
        ([("Dense", {"units": 2, "activation": "softmax", "kernel_regularizer": {"l2": 1}})], "kernel_regularizer"),
        ([("Dense", {"units": 2, "activation": "softmax", "trainable": False})], "trainable False"),
        ([("Dense", {"units": 2, "activation": "linear"})], "without a softmax"),
        ([("Dense", {"units": 2, "activation": "softmax"}), ("Dropout", {"rate": 0.1})], "behind a softmax"),
        ([("Conv1D", {"filters": 2, "kernel_size": [3], "activation": "relu"})], "before the spectrum is reshaped"),
        ([("Dropout", {"rate": 0.1}), ("Reshape", {"target_shape": [80, 1]})], "a Reshape but that"),
        ([("Reshape", {"target_shape": [80, 1]}), ("Softmax", {})], "Softmax with positions"),
        ([("BatchNormalization", {"momentum": 0.9, "epsilon": 0.001, "axis": 2}), ("Softmax", {})], "axis 2"),
    ],
)
def test_what_the_loops_would_compute_otherwise_is_left_to_keras(layers, message):
    with pytest.raises(NoLoopsError, match=message):
        sequential(("InputLayer", {"batch_shape": [None, 80]}), *layers)
