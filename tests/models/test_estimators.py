"""Models that a study brings along by their name."""

import shutil

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from eelsflow.errors import DataSetError, MissingDependencyError, UnreadableFileError
from eelsflow.executors import LoopExecutor
from eelsflow.models.classifier import load_classifier
from eelsflow.models.estimators import TRUST, Estimator, build_estimator, find_class, scores
from eelsflow.models.fitting import fit_model
from eelsflow.models.spec import NAMED, resolve_model

NAMES = np.array(["Mn2+", "Mn3+", "Mn4+"])


class Nearest(KNeighborsClassifier):
    """A classifier of somebody else."""


def fit(model, spectra, folds, scratch, **options):
    X, codes = spectra
    return fit_model(
        resolve_model(model), X, NAMES[codes], folds=folds, validation=folds[0], executor=LoopExecutor(),
        scratch=scratch, seed=3, epochs=4, batch_size=16, patience=4, peaks=np.array([[55, 65], [80, 90]]), **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", [*NAMED, "sklearn:sklearn.neighbors.KNeighborsClassifier",
                                  "sklearn:sklearn.svm.LinearSVC"])  # fmt: skip
def test_a_named_model_fits_saves_and_loads_to_the_same_predictions(name, spectra, test_spectra, folds, tmp_path):
    fitted = fit(name, spectra, folds, tmp_path / "scratch")
    classifier = fitted.classifier
    classifier.save(tmp_path / "model")
    loaded = load_classifier(tmp_path / "model")
    X, codes = test_spectra
    probability = classifier.predict_proba(X)
    np.testing.assert_array_equal(loaded.predict_proba(X), probability)
    np.testing.assert_array_equal(loaded.predict(X), classifier.predict(X))
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, rtol=1e-6)
    right = np.mean(classifier.predict(X) == NAMES[codes])
    assert right > (0.6 if name == "ratio" else 0.8)
    assert np.mean(NAMES[probability.argmax(axis=1)] == classifier.predict(X)) > 0.8


def test_a_grid_is_searched_as_scikit_learn_would(spectra, folds, tmp_path):
    model = {"base": "sklearn:sklearn.neighbors.KNeighborsClassifier", "grid": {"n_neighbors": [1, 5, 60],
             "weights": ["uniform", "distance"]}}  # fmt: skip
    spec = resolve_model(model)
    assert spec.name == "KNeighborsClassifier"
    fitted = fit(spec, spectra, folds, tmp_path, grid=spec.resolve_grid("paper"))
    X, codes = spectra
    for n_neighbors in (1, 5, 60):
        for weights in ("uniform", "distance"):
            machine = KNeighborsClassifier(n_neighbors, weights=weights)
            expected = [machine.fit(X[train], codes[train]).score(X[held], codes[held]) for train, held in folds]
            found = fitted.search["accuracy"].sel(n_neighbors=n_neighbors, weights=weights).values
            np.testing.assert_allclose(found, expected, atol=1e-9)
    best = fitted.search["accuracy"].mean("fold")
    assert float(best.sel(fitted.best_params)) == pytest.approx(float(best.max()))
    assert fitted.search_seconds > 0


def test_classes_are_balanced_and_the_seed_is_set_where_there_are_such_parameters():
    built = build_estimator("sklearn:sklearn.linear_model.LogisticRegression", {"C": 2.0}, seed=7)
    assert (built.class_weight, built.random_state, built.C) == ("balanced", 7, 2.0)
    own = build_estimator("sklearn:sklearn.linear_model.LogisticRegression", {"class_weight": None}, seed=7)
    assert own.class_weight is None
    assert build_estimator("sklearn:sklearn.neighbors.KNeighborsClassifier", {}, seed=7).n_neighbors == 5


def test_scores_are_what_a_classifier_has(spectra):
    X, codes = spectra
    regression, nearest = LogisticRegression().fit(X, codes), KNeighborsClassifier().fit(X, codes)
    assert scores(regression, X).shape == (len(X), 3)
    assert scores(nearest, X).shape == (len(X), 2)
    assert np.isfinite(scores(nearest, X)).all()


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        ("sklearn:nowhere.Thing", MissingDependencyError, "nowhere cannot be imported"),
        ("sklearn:sklearn.svm.Nothing", DataSetError, "Nothing in sklearn.svm is no classifier"),
        ("sklearn:numpy.zeros", DataSetError, "zeros in numpy is no classifier"),
        ("sklearn:Thing", DataSetError, "names nothing that could be imported"),
    ],
)
def test_what_is_no_classifier_is_refused(base, error, message):
    with pytest.raises(error, match=message):
        find_class(base)


def test_an_unknown_parameter_is_refused_with_those_there_are():
    with pytest.raises(DataSetError, match=r"its parameters are .*n_neighbors"):
        build_estimator("sklearn:sklearn.neighbors.KNeighborsClassifier", {"neighbours": 3}, seed=0)


def test_foreign_types_are_loaded_only_from_packages_that_are_trusted(spectra, folds, tmp_path, monkeypatch):
    base = f"sklearn:{Nearest.__module__}.{Nearest.__name__}"
    fitted = fit({"name": "mine", "base": base}, spectra, folds, tmp_path / "scratch")
    fitted.classifier.save(tmp_path / "model")
    with pytest.raises(UnreadableFileError, match=f"{TRUST}={Nearest.__module__.partition('.')[0]}"):
        Estimator.load(tmp_path / "model" / "model.skops")
    monkeypatch.setenv(TRUST, Nearest.__module__.partition(".")[0])
    assert isinstance(load_classifier(tmp_path / "model").model.estimator, Nearest)


def test_an_ensemble_averages_its_members_and_is_stored_with_them(spectra, test_spectra, folds, tmp_path):
    model = {"name": "both", "base": "ensemble", "members": ["mlls", "ratio", "fcnn-1"]}
    fitted = fit(model, spectra, folds, tmp_path / "scratch")
    X, _ = test_spectra
    members = fitted.classifier.model.members
    assert [member.base for member in members] == ["mlls", resolve_model("ratio").base, "fcnn-1"]
    expected = np.mean([member.predict_proba(X) for member in members], axis=0)
    np.testing.assert_allclose(fitted.classifier.predict_proba(X), expected)
    np.testing.assert_array_equal(fitted.classifier.predict(X), NAMES[expected.argmax(axis=1)])
    fitted.classifier.save(tmp_path / "model")
    loaded = load_classifier(tmp_path / "model")
    np.testing.assert_allclose(loaded.predict_proba(X), expected, atol=1e-6)
    shutil.rmtree(tmp_path / "model" / "members")
    with pytest.raises(UnreadableFileError, match="holds no usable classifier"):
        load_classifier(tmp_path / "model")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"base": "ensemble", "members": ["mlls"]}, "needs two members"),
        ({"base": "ensemble", "members": ["mlls", "nothing"]}, "no base is called 'nothing'"),
        ({"base": "ensemble", "members": ["mlls", "ensemble"]}, "cannot be a member of one"),
        ({"base": "ensemble", "members": ["mlls", "ratio"], "features": "unit"}, "no features of its own"),
        ({"base": "mlls", "members": ["mlls", "ratio"]}, "mlls has no members"),
        ({"base": "ensemble", "members": ["mlls", "ratio"], "params": {"C": 1}}, "has no parameter 'C'"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused(model, message):
    with pytest.raises(DataSetError, match=message):
        resolve_model({"name": "both", **model})
