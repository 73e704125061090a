"""The orchestrated study against the plain loop, and what survives `kill -9`."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from eelsflow.artifacts import open_client
from eelsflow.errors import InputError
from eelsflow.executors import LoopExecutor
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import write_spectrum_image
from eelsflow.spectrum_image import build_spectrum_image
from eelsflow.store import Store, read_json
from eelsflow.study.config import load_study
from eelsflow.study.run import run_study
from eelsflow.study.stages import Place
from flows.cluster import cluster_client
from flows.server import Server
from flows.study import study as study_flow

pytestmark = [pytest.mark.server, pytest.mark.slow]

NAMES = ("model", "preprocess", "split", "best_params", "accuracy", "translation", "noise")


def scores(results):
    return [{name: row[name] for name in NAMES} for row in results["models"]]


def entries(store: Path) -> dict[str, int]:
    """Return when each finished result was written, ns."""
    return {entry.name: entry.stat().st_mtime_ns for entry in (store / "entries").glob("*/*")}


@pytest.fixture
def study_file(table_study):
    models = ["svm-linear", "svm-rbf", {"name": "fcnn-1", "base": "fcnn-1", "params": {"epochs": 3, "batch_size": 16}}]
    return table_study(models=models, split={"by": "group", "folds": 3, "seeds": 2})


@pytest.fixture
def loop_results(study_file, tmp_path, monkeypatch):
    monkeypatch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "loop-home"))
    place = Place(Store(tmp_path / "loop-store"), LoopExecutor())
    return run_study(load_study(study_file), tmp_path / "loop", place=place)


def test_flow_gives_the_numbers_of_the_loop_though_a_worker_is_killed(
    prefect_server: Server, server_home, study_file, loop_results, tmp_path
):
    store = tmp_path / "store"
    with cluster_client("local", home=server_home, n_workers=2) as client:
        pids = list(client.run(os.getpid).values())

        def kill_one() -> None:
            while len(entries(store)) < 8:  # in the middle: data set and features are there, models are being fitted
                time.sleep(0.02)
            os.kill(pids[0], signal.SIGKILL)

        Store(store)
        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        study_flow(
            load_study(study_file), out=str(tmp_path / "out"), store=str(store), scheduler=client.scheduler.address
        )
        killer.join(timeout=1)
        assert not killer.is_alive()
        assert pids[0] not in client.run(os.getpid).values()
        with get_client(sync_client=True) as api:
            shown = [str(one.data) for one in api.read_artifacts() if one.key == "dask"]
        assert any(client.dashboard_link in link for link in shown)
    assert scores(read_json(tmp_path / "out" / "results.json")) == scores(loop_results)

    artifact_store = open_client()
    experiment = artifact_store.get_experiment_by_name(load_study(study_file).name)
    assert experiment is not None
    runs = artifact_store.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    of_models = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert (len(runs), len(of_models)) == (7, 6)  # three models of two seeds below the study


def test_killed_study_goes_on_and_computes_nothing_again(study_file, loop_results, tmp_path):
    home = tmp_path / "home"
    environment = {**os.environ, "EELSFLOW_HOME": str(home)}
    command = [sys.executable, "-m", "eelsflow.cli", "study", str(study_file), "--out", str(tmp_path / "out")]
    command += ["--runner", "loop"]
    process = subprocess.Popen(command, env=environment)
    store = home / "store"
    while len(entries(store)) < 10:
        assert process.poll() is None, "the study ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    finished = entries(store)

    subprocess.run(command, env=environment, check=True, timeout=300)

    after = entries(store)
    assert {digest: after[digest] for digest in finished} == finished
    assert len(after) > len(finished)
    assert not list((store / "temporary").glob("*"))
    assert scores(read_json(tmp_path / "out" / "results.json")) == scores(loop_results)


def test_flow_sets_aside_what_the_loop_does_and_shows_it(prefect_server: Server, manifest_study, tmp_path, monkeypatch):
    monkeypatch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "loop-home"))
    study_file, bad = manifest_study(), "cubes-004-core-shell.zarr"
    image = read_spectrum_image(tmp_path / "files" / bad).load()
    elsewhere = build_spectrum_image(image.values, image["energy_loss"].values + 300)
    write_spectrum_image(elsewhere, tmp_path / "files" / bad)
    shutil.rmtree(tmp_path / "files" / "cubes-005-core-shell.zarr")
    place = Place(Store(tmp_path / "loop-store"), LoopExecutor())
    loop = run_study(load_study(study_file), tmp_path / "loop", place=place)

    def run(**options):
        state = study_flow(
            load_study(study_file), str(tmp_path / "out"), str(tmp_path / "store"), return_state=True, **options
        )
        run_id = state.state_details.flow_run_id
        with get_client(sync_client=True) as client:
            artifacts = client.read_artifacts(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
        return state, [str(artifact.data) for artifact in artifacts if artifact.key == "set-aside"]

    state, (shown,) = run()
    assert state.is_completed()
    results = read_json(tmp_path / "out" / "results.json")
    assert [one["acquisition"] for one in results["set_aside"]] == ["cubes-005-core-shell.zarr", bad]
    assert results["set_aside"] == loop["set_aside"]
    assert scores(results) == scores(loop)
    assert bad in shown
    assert "lies outside the energy axis" in shown
    _, (again,) = run()  # what is bad is not kept as if it were done
    assert again == shown
    state, _ = run(strict=True)
    with pytest.raises(InputError, match="1 of 6 acquisitions cannot be used"):
        state.result()
