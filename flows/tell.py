"""Who is told of runs that fail: a hook of the flow where its process is there to say so, an automation where not."""

from __future__ import annotations

import itertools
import os
from typing import Any

from pydantic import SecretStr

from eelsflow.notify import destinations, is_news, notify

AUTOMATION = "eelsflow: tell of flow runs that crashed"
BLOCK = "eelsflow-notify"
PAYLOAD = """{"text": {{ ("eelsflow: " ~ flow_run.name ~ " crashed\\n" ~ flow_run.state.message) | tojson }}}"""
"""JSON, filled in by the server."""


def tell_of_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell people that a flow run failed; a hook of flows."""
    reason = (state.message or str(state.name)).partition("\n")[0]
    text = f"{flow_run.name} ({flow.name}): {reason}"
    if is_news(flow_run.name, text):
        notify(f"{flow_run.name} failed", [text])


def configure_crash_automation() -> None:
    """Let the server post to the webhooks of EELSFLOW_NOTIFY when a run crashes: its process cannot say so any more.

    Each webhook is kept by the server as a block, encrypted, and goes away when EELSFLOW_NOTIFY is set and no longer
    names it. Where it is not set, others have said who is told, and nothing is changed.
    """
    from prefect.automations import AutomationCore, CallWebhook, EventTrigger, Posture
    from prefect.blocks.webhook import Webhook
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    if "EELSFLOW_NOTIFY" not in os.environ:
        return
    wanted = [one for one in destinations() if not one.startswith("mailto:")]
    with get_client(sync_client=True) as client:
        for existing in client.read_automations_by_name(AUTOMATION):
            client.delete_automation(existing.id)
        for number in itertools.count(len(wanted)):
            try:
                block = client.read_block_document_by_name(f"{BLOCK}-{number}", "webhook")
            except ObjectNotFound:
                break
            client.delete_block_document(block.id)
        if not wanted:
            return
        actions = []
        for number, url in enumerate(wanted):
            block = Webhook(method="POST", url=SecretStr(url), headers={"Content-Type": "application/json"})
            identity = block.save(f"{BLOCK}-{number}", overwrite=True)
            actions.append(CallWebhook(block_document_id=identity, payload=PAYLOAD))
        client.create_automation(
            AutomationCore(
                name=AUTOMATION,
                description="Whose process is gone cannot tell anybody.",
                trigger=EventTrigger(
                    match={"prefect.resource.id": "prefect.flow-run.*"},
                    match_related={"prefect.resource.role": "flow", "prefect.resource.name": "eelsflow-*"},
                    expect={"prefect.flow-run.Crashed"},
                    posture=Posture.Reactive,
                    threshold=1,
                ),
                actions=actions,
            )
        )
