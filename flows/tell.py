"""Who is told of runs that fail: a hook of the flow where its process is there to say so, an automation where not."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from eelsflow.notify import destinations, notify

AUTOMATION = "eelsflow: tell of flow runs that crashed"
BLOCK = "eelsflow-notify"
PAYLOAD = """{"text": {{ ("eelsflow: " ~ flow_run.name ~ " crashed\\n" ~ flow_run.state.message) | tojson }}}"""
"""JSON, filled in by the server."""


def tell_of_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell people that a flow run failed; a hook of flows."""
    reason = (state.message or str(state.name)).partition("\n")[0]
    notify(f"{flow_run.name} failed", [f"{flow_run.name} ({flow.name}): {reason}"])


def configure_crash_automation() -> None:
    """Let the server post to the webhooks of EELSFLOW_NOTIFY when a run crashes: its process cannot say so any more.

    Each webhook is kept by the server as a block, encrypted, and goes away when it is no longer named.
    """
    from prefect.automations import AutomationCore, CallWebhook, EventTrigger, Posture
    from prefect.blocks.webhook import Webhook
    from prefect.client.orchestration import get_client

    wanted = [one for one in destinations() if not one.startswith("mailto:")]
    with get_client(sync_client=True) as client:
        for existing in client.read_automations_by_name(AUTOMATION):
            client.delete_automation(existing.id)
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
