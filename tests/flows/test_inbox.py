import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

import eelsflow.maps
from eelsflow.edges import SHIPPED
from eelsflow.errors import UnusableModelError
from eelsflow.inbox import Ledger, find_new
from flows.inbox import process_inbox
from flows.server import Server

pytestmark = pytest.mark.server


def write_spectrum(path: Path, *, start: float = 480.0) -> None:
    energy_loss = start + 0.5 * np.arange(300)
    np.savetxt(path, np.column_stack([energy_loss, 1e3 * (energy_loss / start) ** -3]))


@pytest.fixture
def classified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that reached classification, which itself is tested with the maps."""
    names: list[str] = []

    def classify_file(path: Path, *, model: Path, out: Path) -> dict[str, Any]:
        if path.name.startswith("fault"):
            raise ZeroDivisionError("a fault of ours")
        out.mkdir(parents=True)
        names.append(path.name)
        return {}

    monkeypatch.setattr(eelsflow.maps, "classify_file", classify_file)
    monkeypatch.setattr(eelsflow.maps, "check_model", lambda model, edge: (tmp_path, SHIPPED[edge]))
    return names


def test_inbox_that_is_empty_completes(prefect_server: Server, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    assert process_inbox(tmp_path / "inbox", "default", tmp_path / "out") == []


def test_inbox_classifies_what_is_new_once_and_quarantines_what_it_cannot_use(
    prefect_server: Server, tmp_path: Path, classified: list[str]
) -> None:
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    inbox.mkdir()
    write_spectrum(inbox / "good.txt")
    write_spectrum(inbox / "elsewhere.txt", start=700.0)
    (inbox / "broken.dm3").write_bytes(b"no microscope wrote this")
    before = {path: path.read_bytes() for path in inbox.iterdir()}

    state = process_inbox(inbox, "default", out, settle_seconds=0, return_state=True)
    states = {Path(row["path"]).name: row["state"] for row in state.result()}
    assert states == {"good.txt": "done", "elsewhere.txt": "quarantined", "broken.dm3": "quarantined"}
    assert classified == ["good.txt"]
    notes = sorted(path.name.rsplit("-", 1)[0] for path in (out / "quarantine").iterdir())
    assert notes == ["broken", "elsewhere"]
    assert {path: path.read_bytes() for path in inbox.iterdir()} == before
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run_id).name == f"inbox {inbox}"
        (artifact,) = client.read_artifacts(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
        assert artifact.key == "inbox"

    assert process_inbox(inbox, "default", out, settle_seconds=0) == []
    assert classified == ["good.txt"]


def test_inbox_fails_after_the_rest_is_done_when_a_fault_is_not_the_file_s(
    prefect_server: Server, tmp_path: Path, classified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.inbox.classify_acquisition.retries", 0)
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    inbox.mkdir()
    write_spectrum(inbox / "fault.txt")
    write_spectrum(inbox / "good.txt", start=481.0)
    with pytest.raises(RuntimeError, match=r"1 of 2 files failed.*ZeroDivisionError: a fault of ours"):
        process_inbox(inbox, "default", out, settle_seconds=0)
    assert classified == ["good.txt"]


def test_inbox_judges_no_file_when_the_model_cannot_be_used(
    prefect_server: Server, tmp_path: Path, saved_model: Path
) -> None:
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    inbox.mkdir()
    write_spectrum(inbox / "good.txt")
    (inbox / "broken.dm3").write_bytes(b"no microscope wrote this")
    before = {path: path.read_bytes() for path in inbox.iterdir()}
    model = shutil.copytree(saved_model, tmp_path / "model")
    with pytest.raises(UnusableModelError, match=r"is for the edge O_K, and Mn_L3 is asked for"):
        process_inbox(inbox, str(model), out, edge="Mn_L3", settle_seconds=0)
    (model / "classifier" / "model.skops").unlink()
    with pytest.raises(UnusableModelError, match=r"the model in .* is damaged"):
        process_inbox(inbox, str(model), out, settle_seconds=0)
    assert Ledger(out).entries() == []
    assert not (out / "quarantine").exists()
    assert {path: path.read_bytes() for path in inbox.iterdir()} == before


def test_inbox_tries_a_file_again_whose_model_was_damaged_meanwhile(
    prefect_server: Server, tmp_path: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def classify_file(path: Path, *, model: Path, out: Path) -> dict[str, Any]:
        raise UnusableModelError("the model is damaged")

    inbox, out = tmp_path / "inbox", tmp_path / "out"
    inbox.mkdir()
    write_spectrum(inbox / "good.txt")
    monkeypatch.setattr(eelsflow.maps, "classify_file", classify_file)
    with pytest.raises(RuntimeError, match=r"1 of 1 files failed.*the model is damaged"):
        process_inbox(inbox, str(saved_model), out, settle_seconds=0)
    assert [entry.state for entry in Ledger(out).entries()] == ["failed"]
    assert [entry.name for entry in find_new(inbox, Ledger(out), settle_seconds=0)] == ["good.txt"]
