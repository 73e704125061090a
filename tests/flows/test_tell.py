import time

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from eelsflow.notify import log_path
from flows.server import Server
from flows.tell import AUTOMATION, configure_crash_automation, tell_of_failure

pytestmark = [pytest.mark.server, pytest.mark.slow]


@flow(name="eelsflow-told", on_failure=[tell_of_failure], flow_run_name="told", persist_result=False)
def failing(why: str | None) -> None:
    if why:
        raise RuntimeError(why)


def test_of_a_run_that_fails_its_own_process_tells(prefect_server: Server, webhook_url, tmp_path, monkeypatch) -> None:
    url, got = webhook_url
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("EELSFLOW_NOTIFY", url)
    for _ in range(2):  # as a schedule does every minute: it is told once
        failing("no space left", return_state=True)
    (message,) = got
    assert message["subject"] == "eelsflow: told failed"
    assert "no space left" in message["text"]
    assert "told (eelsflow-told)" in log_path().read_text()


def test_of_a_run_whose_process_is_gone_the_server_tells(
    prefect_server: Server, webhook_url, tmp_path, monkeypatch
) -> None:
    url, got = webhook_url
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("EELSFLOW_NOTIFY", f"{url} mailto:me@example.org")
    for _ in range(2):
        configure_crash_automation()
    run = failing(None, return_state=True).state_details.flow_run_id
    deadline = time.monotonic() + 90
    with get_client(sync_client=True) as client:
        assert len(client.read_automations_by_name(AUTOMATION)) == 1
        while not got and time.monotonic() < deadline:  # the server may learn of the automation after a moment
            client.set_flow_run_state(run, Crashed(message="No heartbeat"), force=True)
            time.sleep(3)
        monkeypatch.delenv("EELSFLOW_NOTIFY")
        configure_crash_automation()
        assert len(client.read_automations_by_name(AUTOMATION)) == 1  # who names nobody changes nothing
        monkeypatch.setenv("EELSFLOW_NOTIFY", "")
        configure_crash_automation()
        with pytest.raises(ObjectNotFound):
            client.read_block_document_by_name("eelsflow-notify-0", "webhook")
        assert client.read_automations_by_name(AUTOMATION) == []
    assert got[0]["text"] == "eelsflow: told crashed\nNo heartbeat"
