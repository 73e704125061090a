"""Networks of Keras that a study names by their function."""

import sys

import numpy as np
import pytest

from eelsflow.errors import DataSetError, MissingDependencyError, UnreadableFileError
from eelsflow.executors import LoopExecutor
from eelsflow.models import training
from eelsflow.models.classifier import load_classifier
from eelsflow.models.fitting import fit_model
from eelsflow.models.imported import TRUST, source_digest
from eelsflow.models.layers import Trainer, has_loops
from eelsflow.models.networks import Network
from eelsflow.models.open_networks import KerasTrainer, build_open_network, foreign_types
from eelsflow.models.spec import resolve_model
from eelsflow.models.training import train_network

HERE = f"keras:{__name__.rpartition('.')[0]}.some_networks".replace(":.", ":")
NAMES = np.array(["Mn2+", "Mn3+", "Mn4+"])


def fit(model, spectra, folds, scratch, **options):
    X, codes = spectra
    return fit_model(
        resolve_model(model), X, NAMES[codes], folds=folds, validation=folds[0], executor=LoopExecutor(),
        scratch=scratch, seed=3, **{"epochs": 30, "batch_size": 16, "patience": 30, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "loops"),
    [("dense", True), ("convolutional", True), ("residual", False), ("with_own_optimizer", True), ("squared", False)],
)
def test_the_loops_know_which_networks_are_theirs(name, loops):
    model = build_open_network(f"{HERE}.{name}", 80, 3, {})
    assert has_loops(model.to_json()) == loops


def test_an_optimizer_of_its_own_is_kept_and_then_keras_trains():
    model = build_open_network(f"{HERE}.with_own_optimizer", 80, 3, {})
    plan = training._Plan.make(f"{HERE}.with_own_optimizer", 80, 3, {}, seed=0)
    assert isinstance(plan.trainer, KerasTrainer)
    assert type(plan.trainer._model.optimizer).__name__ == "SGD"
    named = KerasTrainer(model, learning_rate=0.01, seed=0)
    assert type(named._model.optimizer).__name__ == "Adam"
    assert isinstance(training._Plan.make(f"{HERE}.dense", 80, 3, {}, seed=0).trainer, Trainer)


@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_the_loops_and_keras_train_to_the_same_network(name, spectra, monkeypatch):
    X, codes = spectra
    settings = {"base": f"{HERE}.{name}", "n_classes": 3, "epochs": 12, "batch_size": 32, "patience": 12, "seed": 5}
    data = X[::2], codes[::2], X[1::2], codes[1::2]
    quick = train_network(*data, **settings)
    monkeypatch.setattr(training, "has_loops", lambda architecture: False)
    slow = train_network(*data, **settings)
    assert isinstance(training._Plan.make(settings["base"], 80, 3, {}, seed=0).trainer, KerasTrainer)
    for measure in training.MEASURES:
        one_spectrum = 1.5 / len(X[1::2]) if measure.endswith("accuracy") else 0  # where rounding decides
        np.testing.assert_allclose(quick.history[measure], slow.history[measure], rtol=2e-3, atol=2e-3 + one_spectrum)
    np.testing.assert_allclose(quick.network.predict_proba(X), slow.network.predict_proba(X), atol=2e-3)


@pytest.mark.parametrize("name", ["dense", "residual", "squared"])
def test_it_is_fitted_stored_and_loaded_to_the_same_predictions(
    name, spectra, test_spectra, folds, tmp_path, monkeypatch
):
    monkeypatch.setenv(TRUST, HERE.partition(":")[2].partition(".")[0])
    fitted = fit({"base": f"{HERE}.{name}"}, spectra, folds, tmp_path / "scratch")
    X, codes = test_spectra
    probability = fitted.classifier.predict_proba(X)
    assert np.mean(fitted.classifier.predict(X) == NAMES[codes]) > 0.8
    fitted.classifier.save(tmp_path / "model")
    loaded = load_classifier(tmp_path / "model")
    np.testing.assert_allclose(loaded.predict_proba(X), probability, atol=1e-6)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, rtol=1e-6)
    assert fitted.history["temperature"] != 1.0


def test_two_fits_of_one_seed_are_equal(spectra, folds, tmp_path):
    one, two = (
        fit({"base": f"{HERE}.residual", "params": {"units": 4}}, spectra, folds, tmp_path / name, epochs=5)
        for name in ("one", "two")
    )
    np.testing.assert_array_equal(*(fitted.classifier.predict_proba(spectra[0]) for fitted in (one, two)))
    assert one.history == two.history


def test_a_grid_may_hold_words_and_the_best_is_taken(spectra, folds, tmp_path):
    model = resolve_model({"base": f"{HERE}.residual", "grid": {"activation": ["gelu", "tanh"], "units": [2, 16]}})
    fitted = fit(model, spectra, folds, tmp_path, grid=model.resolve_grid("paper"), epochs=6)
    accuracy = fitted.search["accuracy"]
    assert dict(accuracy.sizes) == {"activation": 2, "units": 2, "fold": 1}
    best = accuracy.sel({name: fitted.best_params[name] for name in ("activation", "units")}).item()
    assert best == accuracy.max().item()


def test_a_temperature_keeps_classes_and_divides_logits():
    model = build_open_network(f"{HERE}.dense", 20, 3, {})
    X = np.random.default_rng(0).random((50, 20), dtype=np.float32)
    plain, cooled = (Network(model.to_json(), model.get_weights(), None, t).predict_proba(X) for t in (1.0, 2.0))
    np.testing.assert_array_equal(plain.argmax(axis=1), cooled.argmax(axis=1))
    ratio = np.log(plain[:, 0] / plain[:, 1])
    np.testing.assert_allclose(np.log(cooled[:, 0] / cooled[:, 1]), ratio / 2, rtol=1e-5)


def test_layers_of_somebody_else_are_loaded_only_from_a_package_that_is_trusted(spectra, folds, tmp_path, monkeypatch):
    module = HERE.partition(":")[2]
    fitted = fit({"base": f"{HERE}.squared"}, spectra, folds, tmp_path / "scratch", epochs=2)
    fitted.classifier.save(tmp_path / "model")
    monkeypatch.delenv(TRUST, raising=False)
    with pytest.raises(UnreadableFileError, match=rf"somebody>Squared.*{TRUST}={module.partition('.')[0]}"):
        load_classifier(tmp_path / "model")
    (tmp_path / "model" / "network.json").unlink()
    monkeypatch.setenv(TRUST, module.partition(".")[0])
    with pytest.raises(UnreadableFileError, match="layers of its own"):
        load_classifier(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("logits", {}, "its last layer must be a softmax"),
        ("five_classes", {}, r"returns the shape \(5,\) for a spectrum; expected 3 classes"),
        ("no_model", {}, "returned list, expected a Keras model"),
        ("for_images", {}, r"cannot take spectra of shape \(n_spectra, 80\)"),
        ("unregistered", {}, "register_keras_serializable"),
        ("dense", {"widht": 3}, r"its arguments are \(n_channels, n_classes, units=16"),
        ("nothing", {}, "nothing is no function"),
    ],
)
def test_what_is_no_network_for_spectra_is_refused(name, params, message):
    with pytest.raises(DataSetError, match=message):
        build_open_network(f"{HERE}.{name}", 80, 3, params)


def test_a_module_that_is_missing_is_said():
    with pytest.raises(MissingDependencyError, match="PYTHONPATH"):
        build_open_network("keras:nowhere.network", 80, 3, {})


@pytest.mark.parametrize("params", [{"epochs": 0}, {"learning_rate": "quick"}, {"batch_size": 2.5}])
def test_parameters_of_the_training_are_checked(params):
    with pytest.raises(DataSetError, match=next(iter(params))):
        resolve_model({"base": f"{HERE}.dense", "params": params})


def test_the_address_of_a_model_follows_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for units in (3, 4):
        (tmp_path / "mine.py").write_text(f"UNITS = {units}\n")
        sys.modules.pop("mine", None)
        digests.append(source_digest("keras:mine.UNITS"))
    sys.modules.pop("mine", None)
    assert digests[0] != digests[1]


def test_the_address_of_a_model_follows_the_files_of_its_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("")
    (tmp_path / "theirs" / "outer.py").write_text("from theirs.inner import network\n")
    digests = []
    for units in (3, 4):
        (tmp_path / "theirs" / "inner.py").write_text(f"def network(n_channels, n_classes, units={units}): ...\n")
        for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
            del sys.modules[name]
        digests.append(source_digest("keras:theirs.outer.network"))
    assert digests[0] != digests[1]


def test_code_that_fails_is_said_and_not_raised(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken.py").write_text("def network(:\n")
    with pytest.raises(DataSetError, match=r"broken fails when it is imported .SyntaxError"):
        build_open_network("keras:broken.network", 80, 3, {})
    with pytest.raises(DataSetError, match="names nothing that could be imported"):
        build_open_network("keras:.relative.network", 80, 3, {})


def test_a_network_is_described_alike_whatever_was_built_before():
    one = build_open_network(f"{HERE}.residual", 80, 3, {}).to_json()
    build_open_network(f"{HERE}.dense", 80, 3, {})
    assert build_open_network(f"{HERE}.residual", 80, 3, {}).to_json() == one


def test_what_is_foreign_in_a_description_is_named():
    assert foreign_types(build_open_network(f"{HERE}.squared", 80, 3, {}).to_json()) == ["somebody>Squared"]
    assert foreign_types(build_open_network(f"{HERE}.residual", 80, 3, {}).to_json()) == []
