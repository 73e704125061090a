import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedKFold
from sklearn.svm import SVC

from eelsflow.errors import DataSetError
from eelsflow.executors import DaskExecutor, LoopExecutor, ThreadExecutor
from eelsflow.search.grid import MOST_STEPS_BEYOND, best_cell, check_folds, search_beyond, search_grid


@pytest.fixture(scope="module")
def spectra() -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Three overlapping, unequally frequent classes of noisy peaks."""
    random = np.random.default_rng(3)
    label = np.repeat(["a", "b", "c"], [60, 40, 25])
    center = {"a": 20.0, "b": 23.0, "c": 26.0}
    position = np.array([center[name] for name in label]) + random.normal(0, 1.5, len(label))
    peaks = np.exp(-0.5 * ((np.arange(50) - position[:, np.newaxis]) / 5) ** 2)
    return (peaks + random.normal(0, 0.1, peaks.shape)).astype(np.float32), label


@pytest.fixture(scope="module")
def folds(spectra):
    return list(StratifiedKFold(4, shuffle=True, random_state=0).split(*spectra))


GRIDS = {
    "linear": {"C": [0.1, 1.0, 100.0]},
    "rbf": {"C": [0.1, 10.0, 1000.0], "gamma": [1e-3, 0.1, 10.0]},
    "sigmoid": {"C": [0.1, 10.0], "gamma": [1e-4, 0.01, 1.0], "coef0": [0.0, 1.0]},
    "sgd": {"alpha": [1e-5, 1e-4, 1e-2]},
}


def is_determined(machine: SVC, X: NDArray[np.floating], codes: NDArray[np.str_]) -> bool:
    """Whether the bias is: every pair of classes has a free support vector."""
    fitted = clone(machine).fit(X.astype(np.float64), codes)
    limit = np.repeat(machine.C * fitted.class_weight_, fitted.n_support_)
    share = np.abs(fitted.dual_coef_) / limit
    return bool(((share > 1e-6) & (share < 1 - 1e-6)).any(axis=1).all())


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_search_equals_scikit_learn_on_every_cell_and_fold(kernel, spectra, folds, tmp_path):
    X, y = spectra
    ours = search_grid(X, y, kernel=kernel, grid=GRIDS[kernel], folds=folds, executor=LoopExecutor(), scratch=tmp_path)
    assert ours["converged"].all()
    assert float(ours["fit_seconds"].min()) >= 0
    assert (ours["fit_seconds"].isel(C=0) > 0).all()
    compared = 0
    for params in ParameterGrid(GRIDS[kernel]):
        for number, (train, held_out) in enumerate(folds):
            machine = SVC(kernel=kernel, class_weight="balanced", tol=1e-6, decision_function_shape="ovo", **params)
            if not is_determined(machine, X[train], y[train]):
                continue
            compared += 1
            machine.fit(X[train].astype(np.float64), y[train])
            values = machine.decision_function(X[held_out].astype(np.float64))
            # Both may be off by their tolerance, so a spectrum that close to a boundary may be decided either way.
            undecided = np.count_nonzero((np.abs(values) < 5e-3).any(axis=1)) / len(held_out)
            found = float(ours["accuracy"].sel(params).isel(fold=number))
            expected = machine.score(X[held_out].astype(np.float64), y[held_out])
            assert abs(found - expected) <= undecided + 1e-12, (params, number)
    assert compared >= 6


def test_a_search_of_many_kernels_is_one_job_each(spectra, folds, tmp_path, monkeypatch):
    X, y = spectra
    run = {"kernel": "rbf", "grid": GRIDS["rbf"], "folds": folds, "executor": LoopExecutor(), "scratch": tmp_path}
    halves = search_grid(X, y, **run)
    monkeypatch.setattr("eelsflow.search.grid.FEW_KERNELS", 0)
    whole = search_grid(X, y, **run)
    assert whole["converged"].all()
    # Each is within the tolerance of one optimum, so a spectrum at the boundary may be decided either way.
    assert float(abs(whole["accuracy"] - halves["accuracy"]).max()) <= 2 / min(len(held_out) for _, held_out in folds)


def test_gradient_descent_is_scikit_learns(spectra, folds, tmp_path):
    X, y = spectra
    run = {"grid": GRIDS["sgd"], "folds": folds, "executor": LoopExecutor(), "scratch": tmp_path, "seed": 5}
    ours = search_grid(X, y, kernel="sgd", **run)
    machine = SGDClassifier(class_weight="balanced", random_state=5)
    reference = GridSearchCV(machine, GRIDS["sgd"], cv=folds, refit=False).fit(X.astype(np.float64), y)
    for row, params in enumerate(reference.cv_results_["params"]):
        expected = [reference.cv_results_[f"split{fold}_test_score"][row] for fold in range(len(folds))]
        np.testing.assert_array_equal(ours["accuracy"].sel(params).values, expected, err_msg=str(params))


def test_search_is_the_same_in_threads_and_reuses_the_distances(spectra, folds, tmp_path):
    X, y = spectra
    run = {"kernel": "rbf", "grid": GRIDS["rbf"], "folds": folds, "scratch": tmp_path}
    loop = search_grid(X, y, executor=LoopExecutor(), **run)
    (distances,) = tmp_path.glob("distances-*.npy")
    written = distances.stat().st_mtime_ns
    threads = search_grid(X, y, executor=ThreadExecutor(3), **run)
    xr.testing.assert_identical(loop["accuracy"], threads["accuracy"])
    assert distances.stat().st_mtime_ns == written


def test_search_is_the_same_on_a_dask_cluster(spectra, folds, tmp_path):
    from distributed import Client, LocalCluster

    X, y = spectra
    run = {"kernel": "sigmoid", "grid": GRIDS["sigmoid"], "folds": folds, "scratch": tmp_path}
    loop = search_grid(X, y, executor=LoopExecutor(), **run)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        remote = search_grid(X, y, executor=DaskExecutor(client), **run)
    xr.testing.assert_identical(loop["accuracy"], remote["accuracy"])


def test_search_sorts_the_values_of_a_grid(spectra, folds, tmp_path):
    X, y = spectra
    scores = search_grid(
        X, y, kernel="linear", grid={"C": [10, 0.1]}, folds=folds, executor=LoopExecutor(), scratch=tmp_path
    )
    assert scores["C"].values.tolist() == [0.1, 10.0]


def test_search_refuses_a_grid_of_other_parameters(spectra, folds, tmp_path):
    X, y = spectra
    with pytest.raises(DataSetError, match=r"grid of rbf names \['C'\]; it needs values for each of C, gamma"):
        search_grid(X, y, kernel="rbf", grid={"C": [1]}, folds=folds, executor=LoopExecutor(), scratch=tmp_path)


@pytest.mark.parametrize(
    ("folds", "labels", "message"),
    [
        ([], [0, 1], "there are no folds"),
        ([([0, 1], [2])], [0, 0, 0], "all of 1 class"),
        ([([0, 1], [])], [0, 1], "fold 0 has no spectra to validate on"),
        ([([0, 1], [1])], [0, 1], "validates on spectra that it trains on"),
        ([([0, 1], [2]), ([0, 2], [1])], [0, 1, 0], "fold 1 trains on 1 of 2 classes"),
    ],
)
def test_folds_that_cannot_be_scored_are_refused(folds, labels, message):
    arrays = [(np.array(train, int), np.array(validation, int)) for train, validation in folds]
    with pytest.raises(DataSetError, match=message):
        check_folds(arrays, np.array(labels))


def scores_of(mean: NDArray[np.float64]) -> xr.Dataset:
    C, gamma = (np.arange(1.0, size + 1) for size in mean.shape)
    accuracy = np.repeat(mean[..., np.newaxis], 3, axis=-1)
    return xr.Dataset({"accuracy": (("C", "gamma", "fold"), accuracy)}, coords={"C": C, "gamma": gamma})


def test_best_cell_takes_the_smallest_of_equal_cells_and_names_the_edges():
    best = best_cell(scores_of(np.array([[0.5, 0.9, 0.2], [0.1, 0.9, 0.3]])))
    assert best.params == {"C": 1.0, "gamma": 2.0}
    assert best.mean_accuracy == 0.9
    assert best.on_edge == ["C"]


def test_best_cell_is_not_on_an_edge_when_an_equal_cell_lies_inside():
    assert best_cell(scores_of(np.array([[0.9, 0.9, 0.1]] * 3))).on_edge == []


def test_best_cell_of_a_single_value_is_on_no_edge():
    assert best_cell(scores_of(np.array([[0.9]]))).on_edge == []


@given(st.lists(st.lists(st.sampled_from([0.2, 0.5, 0.9]), min_size=4, max_size=4), min_size=1, max_size=5))
def test_best_cell_has_the_highest_mean_and_no_smaller_equal(mean):
    table = np.array(mean)
    best = best_cell(scores_of(table))
    row, column = int(best.params["C"]) - 1, int(best.params["gamma"]) - 1
    assert table[row, column] == table.max() == pytest.approx(best.mean_accuracy)
    assert (table[:row] < table.max()).all()
    assert (table[row, :column] < table.max()).all()


def test_a_search_goes_on_beyond_its_grid_as_long_as_the_best_is_the_last(spectra, folds, tmp_path):
    X, y = spectra
    options = {"kernel": "rbf", "folds": folds, "executor": LoopExecutor(), "scratch": tmp_path}
    grid = {"C": [1e-6, 1e-5, 1e-4], "gamma": [1e-9, 1e-8]}
    beyond = search_beyond(X, y, grid=grid, **options)
    added = [set(beyond[name].values.tolist()) - set(grid[name]) for name in grid]
    assert sum(map(len, added)) > 0
    assert sum(map(len, added)) <= MOST_STEPS_BEYOND
    whole = {name: beyond[name].values.tolist() for name in grid}
    assert all(np.all(np.diff(values) > 0) for values in whole.values())
    expected = search_grid(X, y, grid=whole, **options)
    np.testing.assert_array_equal(beyond["accuracy"], expected["accuracy"])
    assert best_cell(beyond).mean_accuracy >= best_cell(search_grid(X, y, grid=grid, **options)).mean_accuracy


def test_a_search_whose_best_lies_inside_is_not_extended(spectra, folds, tmp_path):
    X, y = spectra
    options = {"kernel": "rbf", "folds": folds, "executor": LoopExecutor(), "scratch": tmp_path}
    grid = {"C": [1e-9, 10.0, 1e9], "gamma": [1e-12, 0.1, 1e6]}
    assert best_cell(search_grid(X, y, grid=grid, **options)).on_edge == []
    assert search_beyond(X, y, grid=grid, **options)["accuracy"].shape[:2] == (3, 3)
