"""Where the work of a stage runs, and that a worker may be lost after any of it."""

import pickle

import pytest

from eelsflow.dataset.manifest import read_manifest
from eelsflow.edges import resolve_edge
from eelsflow.executors import LoopExecutor
from eelsflow.io.zarr_store import open_dataset
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.simulator import PRESETS, simulate_directory
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.store import Store
from eelsflow.study import stages
from eelsflow.study.config import load_study
from eelsflow.study.plan import PrepareAcquisition
from eelsflow.study.run import run_study
from eelsflow.study.stages import Place


class LosingWorkers:
    """Does everything twice, as if every worker was lost when it had written all; items and results are pickled."""

    shares_memory = False

    def __init__(self):
        self.labels = []

    def map(self, function, items, *, label=""):
        self.labels.append(label)
        function = pickle.loads(pickle.dumps(function))
        results = []
        for item in items:
            function(pickle.loads(pickle.dumps(item)))
            results.append(pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(item))))))
        return results


def files_of(entry):
    return {path.relative_to(entry) for path in entry.rglob("*")}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        pytest.param((12, 12), {"prepare"}, id="one-block"),
        pytest.param((8, 66), {"survey counts", "write prepared"}, id="two-blocks"),
    ],
)
def test_image_of_one_block_is_prepared_by_one_worker_and_a_larger_one_by_all(tmp_path, shape, expected):
    preset = PRESETS["paper"].model_copy(update={"axis": AxisParameters(start=485.0, n_channels=400)})
    manifest = simulate_directory(tmp_path / "files", n_acquisitions=1, seed=3, shape=shape, preset=preset)
    (acquisition,) = read_manifest(manifest)
    steps = resolve_preset("paper").for_acquisition
    step = PrepareAcquisition(acquisition=acquisition, edge=resolve_edge("O_K"), preset=steps)
    loop = stages.prepare_acquisition(step, Place(Store(tmp_path / "store-1"), LoopExecutor()))
    executor = LosingWorkers()
    entry = stages.prepare_acquisition(step, Place(Store(tmp_path / "store-2"), executor))
    assert expected <= set(executor.labels)
    assert ("prepare" in executor.labels) == (expected == {"prepare"})
    assert open_dataset(entry / "prepared.zarr").equals(open_dataset(loop / "prepared.zarr"))
    assert files_of(entry) == files_of(loop)


@pytest.mark.slow
def test_features_of_more_spectra_than_a_worker_may_get_stay_where_the_study_runs(table_study, tmp_path, monkeypatch):
    monkeypatch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
    study = load_study(table_study(models=["svm-sgd"], split={"by": "pixel", "folds": 3, "seeds": 1}))
    labels = {}
    for most in (stages.MOST_BYTES, 0):
        monkeypatch.setattr(stages, "MOST_BYTES", most)
        executor = LosingWorkers()
        run_study(study, tmp_path / f"out-{most}", place=Place(Store(tmp_path / f"store-{most}"), executor))
        labels[most] = set(executor.labels)
    (usual, none) = labels.values()
    assert usual - none == {"fit features"}


@pytest.mark.slow
def test_study_is_the_same_when_every_worker_was_lost_once(table_study, tmp_path, monkeypatch):
    monkeypatch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
    models = ["svm-rbf", "svm-sgd", {"name": "net", "base": "fcnn-1", "params": {"epochs": 2, "batch_size": 16}}]
    study = load_study(table_study(models=models, split={"by": "group", "folds": 3, "seeds": 1}))
    loop_store, store = Store(tmp_path / "store-1"), Store(tmp_path / "store-2")
    loop = run_study(study, tmp_path / "loop", place=Place(loop_store, LoopExecutor()))
    executor = LosingWorkers()
    found = run_study(study, tmp_path / "out", place=Place(store, executor))
    assert {"fit features", "save", "assess", "examples", "describe"} <= set(executor.labels)
    names = ("model", "best_params", "accuracy", "translation", "noise")
    assert [[row[name] for name in names] for row in found["models"]] == [
        [row[name] for name in names] for row in loop["models"]
    ]
    assert files_of(store.root / "entries") == files_of(loop_store.root / "entries")
