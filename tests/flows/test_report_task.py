"""What a study shows in its Prefect run; here because this folder has the server."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from eelsflow.store import Store
from flows.server import Server
from tasks.report import SHOWN_ACQUISITIONS, record_report, write_report

pytestmark = pytest.mark.server

SCORE = {"mean": 0.9, "low": 0.8, "high": 1.0}
FIGURES = (
    "search-My_net.v2+.png",
    "architecture-CNN_2.png",
    "training-mine-pixel.png",
    "robustness-shift_ev.png",
    "example-Fe_L3--mine-.png",
    *(f"acquisition-{number:02d}-mine.png" for number in range(20)),
)
SHOWN = {name for name in FIGURES if not name.startswith("acquisition")} | set(FIGURES[5 : 5 + SHOWN_ACQUISITIONS])


def write_outputs(plan: Any, assessed: Any, final: Any, place: Any, out: Path, **about: Any) -> dict[str, Any]:
    """Write figures of models and presets with other characters than artifact keys may have."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        (out / "figures" / name).write_bytes(b"png")
    scores: dict[str, Any] = dict.fromkeys(("accuracy", "balanced_accuracy", "translation"), SCORE) | {"noise": None}
    scores["balanced_accuracy"] = {"mean": 0.9, "low": None, "high": None}
    return {"models": [{"model": "My_net.v2+", "preprocess": "mine_1", "split": "pixel", "seeds": 2, **scores}]}


def test_names_of_studies_models_and_presets_may_have_characters_that_artifact_keys_may_not(
    prefect_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.report.write_outputs", write_outputs)
    link = "http://127.0.0.1:5000/#/experiments/1/runs/ab12"
    place = {"experiment": "1", "run": "ab12", "uri": "sqlite:///mlflow.db", "link": link}
    monkeypatch.setattr("tasks.report.record_results", lambda plan, run, out: {**place, "run": run})
    plan: Any = SimpleNamespace(study=SimpleNamespace(name="Oxides of Mn_2.0"))
    store = str(Store(tmp_path / "store").root)

    @flow(name="eelsflow-test-report", flow_run_name="Oxides of Mn_2.0")
    def report() -> None:
        about = {"out": str(tmp_path / "out"), "store": store}
        write_report(plan, [], None, scheduler=None, run={}, promote=False, **about)
        record_report(plan, "ab12", out=about["out"])

    state = report(return_state=True)
    state.result()
    run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(flow_run_filter=run)
    keys = [str(artifact.key) for artifact in artifacts]
    figures = {"search-my-net-v2", "architecture-cnn-2", "robustness-shift-ev", "example-fe-l3-mine"}
    figures |= {"training-mine-pixel", *(f"acquisition-{number:02d}-mine" for number in range(SHOWN_ACQUISITIONS))}
    assert set(keys) == {"models", "report", "artifact-store"} | figures
    assert all(re.fullmatch("[a-z0-9-]+", key) for key in keys)
    described = {artifact.description for artifact in artifacts}
    assert {Path(name).stem for name in SHOWN} <= described  # the names themselves are shown as they are
    (where,) = (artifact.data for artifact in artifacts if artifact.key == "artifact-store")
    assert f"]({link})" in str(where)
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in str(where)
    (table,) = (str(artifact.data) for artifact in artifacts if artifact.key == "models")
    assert "0.900 (0.800-1.000)" in table
    assert '"balanced_accuracy": "0.900"' in table  # a score without an interval
