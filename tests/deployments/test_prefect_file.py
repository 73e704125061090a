"""What Prefect is told to start exists, and two studies are not started at once."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.deploy import QUEUE

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"
DEPLOYMENTS = yaml.safe_load(FILE.read_text())["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: one["name"])
def test_an_entrypoint_is_a_flow_that_takes_what_it_is_given(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    given = set(deployment["parameters"])
    assert given <= set(flow.parameters.properties)
    assert set(flow.parameters.required) <= given


def test_studies_of_all_deployments_share_a_queue() -> None:
    queues = {one["name"]: one["work_pool"].get("work_queue_name") for one in DEPLOYMENTS}
    assert queues == {"inbox": None, "nightly": QUEUE, "sweep": QUEUE}
