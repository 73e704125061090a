import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eelsflow.errors import DataSetError, MissingDependencyError
from eelsflow.models.backend import load_backend
from eelsflow.models.layers import Trainer
from eelsflow.models.networks import Network, describe_network
from eelsflow.models.spec import NETWORKS
from eelsflow.models.training import batch_bounds, fit_temperature, train_network

SHORT = {"n_classes": 3, "epochs": 3, "batch_size": 32, "patience": 3, "seed": 7}


def split(spectra):
    X, y = spectra
    return X[::2], y[::2], X[1::2], y[1::2]


def weights_equal(one: Network, other: Network) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.weights, other.weights, strict=True))


@given(st.integers(1, 2000), st.integers(1, 600))
def test_batches_cover_an_epoch_once_and_are_nearly_equal(n_spectra, batch_size):
    bounds = batch_bounds(n_spectra, batch_size)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, n_spectra)
    assert sizes.max() <= batch_size
    assert sizes.max() - sizes.min() <= 1
    assert len(sizes) == -(-n_spectra // batch_size)


def test_training_learns_and_takes_the_best_epoch_of_the_validation_part(spectra, test_spectra):
    result = train_network(*split(spectra), base="fcnn-1", **{**SHORT, "epochs": 40, "patience": 40, "batch_size": 8})
    history = result.history
    best = history["best_epoch"] - 1
    assert history["validation_accuracy"][best] == max(history["validation_accuracy"])
    equal = [
        loss
        for accuracy, loss in zip(history["validation_accuracy"], history["validation_loss"], strict=True)
        if accuracy == history["validation_accuracy"][best]
    ]
    assert history["validation_loss"][best] == min(equal)
    assert history["epochs"] == list(range(1, 41))
    assert result.best == (history["validation_accuracy"][best], history["validation_loss"][best])
    # The weights are those of that epoch, not of the last one.
    X_validation, y_validation = split(spectra)[2:]
    accuracy = np.mean(result.network.predict_proba(X_validation).argmax(axis=1) == y_validation)
    assert accuracy == pytest.approx(history["validation_accuracy"][best], abs=1e-6)
    X, y = test_spectra
    assert np.mean(result.network.predict_proba(X).argmax(axis=1) == y) > 0.85


@pytest.mark.parametrize("base", NETWORKS)
def test_a_seed_gives_the_same_network_whatever_was_trained_before(base, spectra):
    first = train_network(*split(spectra), base=base, **SHORT)
    other = train_network(*split(spectra), base=base, **{**SHORT, "seed": 8, "batch_size": 5})
    again = train_network(*split(spectra), base=base, **SHORT)
    assert first.history == again.history
    assert weights_equal(first.network, again.network)
    assert not weights_equal(first.network, other.network)


@pytest.mark.slow  # another process imports everything
def test_training_needs_no_tensorflow_in_memory(tmp_path):
    """It would cost every worker seconds and most of a gigabyte."""
    script = """
import sys
import numpy as np
from eelsflow.models.training import train_network
X, y = np.random.default_rng(0).random((8, 150), dtype=np.float32), np.arange(8) % 2
train_network(X, y, X, y, base="cnn-1", n_classes=2, epochs=1, batch_size=4, patience=1, seed=0)
print(sorted(sys.modules.keys() & {"keras", "tensorflow"}))
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_training_stops_after_patience_epochs_without_a_better_one(spectra):
    history = train_network(*split(spectra), base="fcnn-1", **{**SHORT, "epochs": 200, "patience": 4}).history
    assert len(history["epochs"]) < 200
    assert len(history["epochs"]) == history["best_epoch"] + 4


@pytest.mark.parametrize("base", ["fcnn-1", "cnn-1"])
def test_a_training_without_dropout_equals_keras_fit(base, spectra):
    """One batch an epoch: the order of the spectra then changes nothing but rounding."""
    X, y, X_validation, y_validation = split(spectra)
    run = {**SHORT, "params": {"dropout": 0.0}, "batch_size": len(y)}
    architecture = describe_network(base, X.shape[1], 3, run["params"])
    keras = load_backend().keras
    model = keras.models.model_from_json(architecture)
    model.set_weights(Trainer(architecture, seed=SHORT["seed"], learning_rate=1e-3).weights())
    model.compile(keras.optimizers.Adam(1e-3), "categorical_crossentropy", metrics=["accuracy"])
    reference = model.fit(
        X,
        np.eye(3)[y],
        batch_size=len(y),
        epochs=3,
        verbose=0,
        shuffle=False,
        class_weight=dict(enumerate(len(y) / (3 * np.bincount(y)))),
        validation_data=(X_validation, np.eye(3)[y_validation]),
    )
    ours = train_network(X, y, X_validation, y_validation, base=base, **run).history
    # Adam divides by the size of a gradient, so single-precision rounding shows in the fourth digit.
    np.testing.assert_allclose(ours["train_loss"], reference.history["loss"], rtol=1e-3)
    np.testing.assert_allclose(ours["train_accuracy"], reference.history["accuracy"], atol=0.02)
    np.testing.assert_allclose(ours["validation_accuracy"], reference.history["val_accuracy"], atol=0.02)


def test_a_training_that_diverges_at_once_says_what_to_do(spectra):
    X, y, X_validation, y_validation = split(spectra)
    with pytest.raises(DataSetError, match="diverged in its first epoch; lower its learning_rate"):
        train_network(np.full_like(X, np.nan), y, X_validation, y_validation, base="fcnn-1", **SHORT)


def test_missing_tensorflow_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"install eelsflow\[cpu\]"):
        load_backend.__wrapped__()


def test_a_training_without_tensorflow_is_refused(monkeypatch, spectra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"install eelsflow\[cpu\]"):
        train_network(*split(spectra), base="fcnn-1", **SHORT)


@pytest.mark.slow  # another process imports TensorFlow
def test_the_backend_is_loaded_without_a_log():
    script = "from eelsflow.models.backend import load_backend; load_backend()"
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert run.stderr == ""


@pytest.mark.slow  # another process imports TensorFlow
def test_a_tensorflow_that_was_used_before_is_taken_as_it_is():
    script = """
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(2)
tf.constant(1)
from eelsflow.models.backend import load_backend
assert load_backend().tf is tf
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)


def test_what_is_no_information_is_not_kept_off_the_error_stream():
    script = """
import os
from eelsflow.models.backend import without_information
with without_information():
    os.write(2, b"I0000 00:00:17 port.cc:153] this processor\\n")
    os.write(2, b"E0000 00:00:17 something broke\\nplain text")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stderr == "E0000 00:00:17 something broke\nplain text"


@pytest.mark.slow  # starts a worker process
def test_a_training_on_a_dask_worker_gives_the_same_numbers(spectra, tmp_path):
    from distributed import Client, LocalCluster

    from eelsflow.executors import DaskExecutor, LoopExecutor
    from eelsflow.models.training import TrainingJob, run_training
    from eelsflow.search.gram import save_array

    X, y = spectra
    rows = np.concatenate(([len(y) - 40], np.random.default_rng(0).permutation(len(y))))
    params = {"epochs": 3, "batch_size": 16, "patience": 3}
    jobs = [
        TrainingJob(
            spectra=save_array(X, tmp_path, name="spectra"),
            labels=save_array(y, tmp_path, name="labels"),
            rows=save_array(rows, tmp_path, name="fold"),
            base=base,
            n_classes=3,
            params=params,
            seed=5,
        )
        for base in ("fcnn-1", "cnn-2")
    ]
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        remote = DaskExecutor(client).map(run_training, jobs, label="train")
    for here, there in zip(LoopExecutor().map(run_training, jobs), remote, strict=True):
        assert here.history == there.history
        assert weights_equal(here.network, there.network)


def test_a_temperature_calibrates_what_the_network_is_given_and_changes_no_class(spectra):
    X, y, X_validation, y_validation = split(spectra)
    plain = train_network(X, y, X_validation, y_validation, base="fcnn-1", **SHORT)
    calibration = X_validation, y_validation, np.ones(len(y_validation))
    fitted = train_network(X, y, X_validation, y_validation, base="fcnn-1", **SHORT, calibration=calibration)
    before, after = (one.network.predict_proba(X_validation) for one in (plain, fitted))
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
    powers = before ** (1 / fitted.history["temperature"])
    np.testing.assert_allclose(after, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    assert fitted.history["temperature"] != pytest.approx(1, abs=0.02)


def test_the_temperature_is_found_and_few_right_answers_do_not_drive_it_to_zero():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (5000, 3))
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    assert fit_temperature(3 * logits, y, np.ones(5000)) == pytest.approx(3, rel=0.1)
    right = 5 * np.eye(3)[y]
    assert 0.5 < fit_temperature(right, y, np.full(5000, 4 / 5000)) <= 1.05
