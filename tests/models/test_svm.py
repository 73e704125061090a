import numpy as np
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from eelsflow.errors import UnreadableFileError
from eelsflow.executors import LoopExecutor
from eelsflow.models.fitting import fit_model
from eelsflow.models.spec import resolve_model
from eelsflow.models.svm import Svm, build_svm, decide, decision_values, fit_calibration

MACHINES = ("svm-linear", "svm-rbf", "svm-sigmoid", "svm-sgd")


def fit(base, X, y, folds, scratch, **params):
    return fit_model(
        resolve_model({"base": base, "params": params}),
        X,
        y.astype(str),
        folds=folds,
        validation=folds[0],
        seed=0,
        executor=LoopExecutor(),
        scratch=scratch,
        epochs=1,
        batch_size=1,
        patience=1,
    ).classifier


@pytest.mark.parametrize("base", MACHINES)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_machines_classify_and_give_probabilities(base, n_classes, spectra, test_spectra, folds, tmp_path):
    rows = spectra[1] < n_classes
    renumbered = np.cumsum(rows) - 1
    X, y = spectra[0][rows], spectra[1][rows]
    inner = [(renumbered[train[rows[train]]], renumbered[held[rows[held]]]) for train, held in folds]
    classifier = fit(base, X, y, inner, tmp_path)
    X_test, y_test = (values[test_spectra[1] < n_classes] for values in test_spectra)
    probability = classifier.predict_proba(X_test)
    assert probability.shape == (len(X_test), n_classes)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert np.mean(classifier.predict(X_test) == y_test.astype(str)) > 0.85


def test_the_class_is_the_decision_of_scikit_learns_machine(spectra, test_spectra, folds, tmp_path):
    X, y = spectra
    classifier = fit("svm-rbf", X, y, folds, tmp_path, C=10, gamma=0.05)
    reference = SVC(C=10, gamma=0.05, class_weight="balanced").fit(X.astype(np.float64), y.astype(str))
    np.testing.assert_array_equal(classifier.predict(test_spectra[0]), reference.predict(test_spectra[0]))


def test_probabilities_are_no_worse_than_scikit_learns_calibration(spectra, test_spectra, folds, tmp_path):
    """Same machine, same folds; .02 nats is the spread between random folds."""
    X, y = spectra
    classifier = fit("svm-rbf", X, y, folds, tmp_path, C=10, gamma=0.05)
    machine = build_svm("svm-rbf", {"C": 10, "gamma": 0.05}).set_params(decision_function_shape="ovr")
    reference = CalibratedClassifierCV(machine, ensemble=False, method="sigmoid", cv=folds).fit(X, y)
    X_test, y_test = test_spectra
    ours = log_loss(y_test, classifier.predict_proba(X_test))
    assert ours <= log_loss(y_test, reference.predict_proba(X_test)) + 0.02


def test_confidence_is_a_rising_sigmoid_of_the_decision_value_for_two_classes():
    random = np.random.default_rng(0)
    codes = random.integers(0, 2, 400)
    values = (2 * codes - 1 + random.normal(0, 1, 400))[:, np.newaxis]
    grid = np.linspace(-4, 4, 41)[:, np.newaxis]
    probability = fit_calibration(values, codes).predict_proba(grid)[:, 1]
    assert (np.diff(probability) > 0).all()
    # Two unit normals at -1 and +1: the log odds are 2 d.
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-2 * grid[:, 0])), atol=0.05)


def test_confidence_does_not_depend_on_how_often_a_class_was_measured():
    random = np.random.default_rng(1)
    codes = np.repeat([0, 1], [2000, 100])
    values = (2 * codes - 1 + random.normal(0, 1, len(codes)))[:, np.newaxis]
    assert fit_calibration(values, codes).predict_proba([[0.0]])[0, 1] == pytest.approx(0.5, abs=0.07)


def test_decision_values_are_one_for_two_classes_and_one_a_pair_for_more(spectra):
    X, y = spectra
    four = np.where((y == 2) & (np.arange(len(y)) % 2 == 0), 3, y)
    for codes, n_values in ((np.minimum(y, 1), 1), (y, 3), (four, 6)):
        assert decision_values(build_svm("svm-linear").fit(X, codes), X).shape == (len(X), n_values)


def test_no_spectra_give_no_predictions(spectra, folds, tmp_path):
    classifier = fit("svm-linear", *spectra, folds, tmp_path)
    empty = np.empty((0, spectra[0].shape[1]))
    assert classifier.predict(empty).shape == (0,)
    assert classifier.predict_proba(empty).shape == (0, 3)


def test_a_file_with_foreign_types_is_refused(tmp_path):
    foreign = {"machine": DummyClassifier(), "calibration": FunctionTransformer(fit_calibration)}
    skops.io.dump(foreign, tmp_path / "model.skops")
    with pytest.raises(UnreadableFileError, match=r"holds .*fit_calibration.*foreign code"):
        Svm.load(tmp_path / "model.skops")


@pytest.mark.parametrize("n_classes", [2, 3, 4])
@pytest.mark.parametrize(
    ("base", "params"),
    [("svm-linear", {"C": 1}), ("svm-rbf", {"C": 10, "gamma": 0.1}), ("svm-sigmoid", {"gamma": 0.01}), ("svm-sgd", {})],
)
def test_decisions_by_one_matrix_product_are_those_of_scikit_learn(base, params, n_classes):
    rng = np.random.default_rng(n_classes)
    codes = rng.integers(0, n_classes, 300)
    X = rng.standard_normal((300, 12)) + codes[:, None] * 0.7
    machine = build_svm(base, params).fit(X[:200], codes[:200])
    values = decision_values(machine, X)
    assert np.allclose(values.squeeze(), machine.decision_function(X), rtol=1e-9, atol=1e-9)
    assert np.array_equal(decide(machine, values), machine.predict(X))
