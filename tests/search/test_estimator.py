"""The search as an estimator of scikit-learn, beside scikit-learn's own."""

import functools

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.svm import SVC

from eelsflow.errors import DataSetError
from eelsflow.executors import LoopExecutor
from eelsflow.search.estimator import SvmGridSearch, fit_machine
from eelsflow.search.path import follow_path

GRIDS = {
    "linear": {"C": [0.1, 10.0]},
    "rbf": {"C": [1, 10, 1000], "gamma": [0.01, 0.1, 1.0]},
    "sigmoid": {"C": [0.1, 1.0], "gamma": [0.001, 0.01], "coef0": [0.0, 0.1]},
}


def overlapping(n_classes: int, seed: int = 0):
    random = np.random.default_rng(seed)
    names = np.array(["Fe3O4", "FeO", "Fe2O3"])[:n_classes]
    y = random.permutation(np.repeat(names, [50, 80, 40][:n_classes]))
    center = np.searchsorted(np.sort(names), y)
    return random.normal(size=(len(y), 6)) + 1.2 * center[:, np.newaxis], y


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kernel", ["linear", "rbf", "sigmoid"])
def test_finds_what_scikit_learn_finds(kernel, n_classes):
    X, y = overlapping(n_classes)
    cv = StratifiedKFold(4, shuffle=True, random_state=1)
    search = SvmGridSearch(kernel, GRIDS[kernel], cv=cv).fit(X, y)
    # At scikit-learn's default tolerance a spectrum close to a boundary may be decided either way.
    machine = SVC(kernel=kernel, class_weight="balanced", tol=1e-6, decision_function_shape="ovo")
    reference = GridSearchCV(machine, GRIDS[kernel], cv=cv).fit(X, y)
    if kernel != "sigmoid":  # not convex: the two may end in different optima
        means = search.results_["accuracy"].mean("fold")
        for params, expected in zip(
            reference.cv_results_["params"], reference.cv_results_["mean_test_score"], strict=True
        ):
            assert float(means.sel(params)) == pytest.approx(expected, abs=1.01 / len(y)), params
    assert search.best_score_ == pytest.approx(reference.best_score_, abs=2.01 / len(y))
    assert search.classes_.tolist() == reference.classes_.tolist()
    same = machine.set_params(**search.best_params_).fit(X, y)
    new, _ = overlapping(n_classes, seed=9)
    np.testing.assert_allclose(search.decision_function(new), same.decision_function(new), atol=5e-3)
    assert np.mean(search.predict(new) == same.predict(new)) > 0.98
    assert search.score(X, y) == pytest.approx(same.score(X, y), abs=2.01 / len(y))


def test_weights_are_keyed_by_label():
    X, y = overlapping(3)
    weights = {"FeO": 0.2, "Fe2O3": 5.0}
    search = SvmGridSearch("rbf", {"C": [10.0], "gamma": [0.1]}, class_weight=weights).fit(X, y)
    machine = SVC(C=10.0, gamma=0.1, class_weight=weights, tol=1e-6, decision_function_shape="ovo")
    np.testing.assert_allclose(search.decision_function(X), machine.fit(X, y).decision_function(X), atol=5e-3)
    expected = cross_val_score(machine, X, y, cv=5)
    np.testing.assert_allclose(search.results_["accuracy"].values.ravel(), expected, atol=1.01 / 34)
    plain = SvmGridSearch("rbf", {"C": [10.0], "gamma": [0.1]}, class_weight=None).fit(X, y)
    assert np.abs(plain.decision_function(X) - search.decision_function(X)).max() > 0.1


def test_is_an_estimator_of_scikit_learn(tmp_path):
    X, y = overlapping(2)
    search = SvmGridSearch("rbf", {"C": [1.0], "gamma": [0.1]}, cv=3, executor=LoopExecutor(), scratch=tmp_path)
    copy = clone(search).set_params(cv=2, refit=False)
    assert copy.get_params()["grid"] == search.grid
    assert copy.fit(X, y).results_.sizes["fold"] == 2
    with pytest.raises(NotFittedError):
        copy.predict(X)
    assert list(tmp_path.glob("distances-*.npy")), "what the jobs share goes where it was told"
    assert cross_val_score(search, X, y, cv=3).min() > 0.7
    best = search.fit(X, y).best_estimator_
    assert best.get_params()["class_weight"] == "balanced"
    assert best.score(X, y) == search.score(X, y)
    with pytest.raises(ValueError, match="6 features"):
        search.predict(X[:, :4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"C": [1.0]}}, "needs values for each of C, gamma"),
        ({"grid": {"C": [0.0], "gamma": [1.0]}}, "C = 0.0; it must be a positive number"),
        ({"grid": {"C": [1.0], "gamma": ["scale"]}}, "gamma = 'scale'"),
        ({"class_weight": {"Mn": 2.0}}, "'Mn': 2.0; the labels are 'Fe3O4', 'FeO'"),
        ({"class_weight": {"FeO": -1.0}}, "a weight must be a positive number"),
        ({"class_weight": "equal"}, "may be 'balanced'"),
        ({"kernel": "poly"}, "'poly'; it may be linear, rbf, sigmoid"),
    ],
)
def test_refuses_what_it_cannot_search(options, message):
    X, y = overlapping(2)
    arguments = {"kernel": "rbf", "grid": {"C": [1.0], "gamma": [1.0]}, **options}
    with pytest.raises(DataSetError, match=message):
        SvmGridSearch(**arguments).fit(X, y)


def test_says_which_fits_did_not_converge(monkeypatch):
    impatient = functools.partial(follow_path, max_steps=3)
    monkeypatch.setattr("eelsflow.search.path.follow_path", impatient)
    monkeypatch.setattr("eelsflow.search.estimator.follow_path", impatient)
    X, y = overlapping(2)
    params = {"C": 1e5, "gamma": 1.0, "coef0": 1.0}
    grid = {name: [value] for name, value in params.items()}
    search = SvmGridSearch("sigmoid", grid, cv=3, executor=LoopExecutor(), refit=False)
    with pytest.warns(ConvergenceWarning, match="of 3 fits did not reach the tolerance"):
        search.fit(X, y)
    assert not search.results_["converged"].all()
    with pytest.warns(ConvergenceWarning, match="the machine did not reach the tolerance"):
        assert fit_machine(X, y, kernel="sigmoid", params=params).fit_status_ == 1


def test_refuses_one_class():
    X, _ = overlapping(2)
    with pytest.raises(DataSetError, match="two or more"):
        SvmGridSearch("linear", {"C": [1.0]}).fit(X, np.zeros(len(X)))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(("kernel", "params"), [("linear", {"C": 10.0}), ("rbf", {"C": 100.0, "gamma": 0.1})])
def test_a_single_machine_is_that_of_scikit_learn(kernel, params, n_classes):
    X, y = overlapping(n_classes)
    X_before = X.copy()
    found = fit_machine(X, y, kernel=kernel, params=params)
    expected = SVC(kernel=kernel, class_weight="balanced", tol=1e-6, decision_function_shape="ovo", **params).fit(X, y)
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))
    np.testing.assert_allclose(found.decision_function(X), expected.decision_function(X), atol=0.02)
    np.testing.assert_array_equal(X, X_before)


def test_a_single_machine_needs_two_classes_and_finite_spectra():
    X, y = overlapping(2)
    with pytest.raises(DataSetError, match="all of the class 'FeO'; a classifier needs two"):
        fit_machine(X[y == "FeO"], y[y == "FeO"], kernel="linear", params={"C": 1.0})
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fit_machine(X, y, kernel="linear", params={"C": 1.0})
