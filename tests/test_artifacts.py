from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import psycopg
import pytest

pytest.importorskip("mlflow", reason="the artifact store needs the extra 'orchestration'")

from eelsflow.artifacts import LoggedModel, log_models, log_results, open_client
from eelsflow.bucket import read_from

pytestmark = pytest.mark.slow  # MLflow sets up its database


def logged(location: str) -> list[str]:
    """Return the files below an artifact location."""
    folder = Path(url2pathname(urlparse(location).path))
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_relative_paths_are_logged_once_and_found_from_another_working_directory(tmp_path, monkeypatch):
    (tmp_path / "results" / "figures").mkdir(parents=True)
    (tmp_path / "results" / "results.json").write_text("{}")
    (tmp_path / "results" / "figures" / "map.png").write_bytes(b"png")
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "model.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("EELSFLOW_HOME", "home")
    model = LoggedModel(
        digest="ab12",
        name="My_net.v2+ recommended pixel seed 0",
        tags={"model": "My_net.v2+"},
        params={"seed": "0"},
        metrics={"accuracy": 0.9},
        series={"accuracy_by_shift_ev": [0.8, 0.9]},
        artifacts=(Path("entry"), Path("entry/model.json")),
    )
    twin = model.model_copy(update={"name": "twin recommended pixel seed 0"})  # equal but for the name: one run
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        run = log_models("Oxides of Mn, 2.0", digest="cd34", models=iter([model, twin]), tags={})
        place = log_results("Oxides of Mn, 2.0", run, Path("results"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    client = open_client()
    assert place["uri"] == f"sqlite:///{tmp_path}/home/mlflow/mlflow.db"
    runs = {run.data.tags["eelsflow.digest"]: run for run in client.search_runs([place["experiment"]])}
    assert {digest: run.info.status for digest, run in runs.items()} == {"ab12": "FINISHED", "cd34": "FINISHED"}
    assert logged(runs["cd34"].info.artifact_uri) == ["figures/map.png", "results.json"]
    assert logged(runs["ab12"].info.artifact_uri) == ["entry/model.json", "model.json"]
    assert runs["ab12"].data.metrics["accuracy_by_shift_ev"] == 0.9
    assert len(client.search_runs([place["experiment"]])) == 2


def test_runs_on_postgresql_with_files_in_a_bucket(postgresql_server, bucket_url, tmp_path, monkeypatch):
    with psycopg.connect(f"postgresql://{postgresql_server}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE mlflow")
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg://{postgresql_server}/mlflow")
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", f"{bucket_url}/runs")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text("{}")
    model = LoggedModel(
        digest="ab12", name="svm", tags={}, params={"seed": "0"}, metrics={"accuracy": 0.9}, series={}, artifacts=()
    )
    for _ in range(2):
        run = log_models("Oxides of Mn, 2.0", digest="cd34", models=iter([model]), tags={})
        place = log_results("Oxides of Mn, 2.0", run, tmp_path / "results")
    client = open_client()
    assert len(client.search_runs([place["experiment"]])) == 2
    artifacts = client.get_run(run).info.artifact_uri
    assert artifacts.startswith(f"{bucket_url}/runs/Oxides")
    assert read_from(artifacts, "results.json") == b"{}"
