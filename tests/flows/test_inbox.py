import shutil
from pathlib import Path

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows.inbox import process_inbox
from flows.server import Server

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(autouse=True)
def home_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def write_spectrum(path: Path, *, start: float) -> None:
    energy_loss = start + 0.5 * np.arange(300)
    np.savetxt(path, np.column_stack([energy_loss, 1e3 * (energy_loss / start) ** -3]))


def test_an_empty_inbox_completes(prefect_server: Server, inbox: Path) -> None:
    assert process_inbox(str(inbox), settle_seconds=0.1, workers=1) == []


def test_what_is_new_is_mapped_once_and_shown_and_what_cannot_be_used_is_put_aside(
    prefect_server: Server, tmp_path: Path, inbox: Path, saved_model: Path, simulated_files: Path
) -> None:
    good = next(path for path in sorted(simulated_files.glob("*.zarr")) if ".truth" not in path.name)
    shutil.copytree(good, inbox / "good.zarr")
    shutil.copytree(good, inbox / "same.zarr")
    write_spectrum(inbox / "elsewhere.txt", start=700.0)
    (inbox / "broken.dm3").write_bytes(b"no microscope wrote this")
    before = {path: path.read_bytes() for path in inbox.rglob("*") if path.is_file()}
    options = {"model": str(saved_model), "out": tmp_path / "out", "settle_seconds": 0.2, "workers": 1}

    state = process_inbox(str(inbox), **options, return_state=True)
    rows = {Path(row["path"]).name: row for row in state.result()}
    assert {name: row["state"] for name, row in rows.items()} == {
        "good.zarr": "classified",
        "same.zarr": "classified",
        "elsewhere.txt": "quarantined",
        "broken.dm3": "quarantined",
    }
    assert rows["same.zarr"]["alias_of"] == str(inbox / "good.zarr")
    assert len(list((tmp_path / "out" / "maps").iterdir())) == 1
    notes = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "out" / "quarantine").iterdir())
    assert notes == ["broken", "elsewhere"]
    assert {path: path.read_bytes() for path in inbox.rglob("*") if path.is_file()} == before

    run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        assert client.read_flow_runs(flow_run_filter=run)[0].name == f"inbox {inbox}"
        shown = {artifact.key: artifact for artifact in client.read_artifacts(flow_run_filter=run)}
        assert {one.name for one in client.read_task_runs(flow_run_filter=run)} >= {"map good.zarr"}
    assert shown.pop("inbox").type == "table"
    (picture,) = shown.values()
    assert picture.type == "image"
    assert picture.data.startswith("data:image/png;base64,")

    assert process_inbox(str(inbox), **options) == []


def test_files_wait_where_there_is_no_model(prefect_server: Server, inbox: Path, simulated_files: Path) -> None:
    good = next(path for path in sorted(simulated_files.glob("*.zarr")) if ".truth" not in path.name)
    shutil.copytree(good, inbox / "good.zarr")
    with pytest.raises(RuntimeError, match=r"1 files wait, .*good\.zarr: no model for O_K is registered yet"):
        process_inbox(str(inbox), edge="O_K", settle_seconds=0.1, workers=1)
