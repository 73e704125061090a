"""The task run that stands for one acquisition of an inbox: it shows what becomes of it."""

from __future__ import annotations

import base64
import re
from concurrent.futures import Future
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_image_artifact

from eelsflow.bucket import read_from
from tasks.options import task_options

RUNNING: dict[int, Future[Any]] = {}
"""What is being worked on in this process, by the acquisition's number in the catalogue: no parameter of a task."""


@task(**task_options("map {name}", tags=("inbox",), retries=0, cached=False))
def map_acquisition(number: int, name: str) -> str | None:
    """Wait for the map of an acquisition, and show it; return its folder."""
    outcome = RUNNING.pop(number).result()
    if outcome is None:
        get_run_logger().info("%s changes while it is read, and is looked at again", name)
        return None
    where, facts = outcome["map"], outcome["facts"]
    classes = ", ".join(f"{one} {pixels:,}" for one, pixels in facts["classes"].items())
    offset = facts["energy_offset"]["value"]
    get_run_logger().info(
        "mapped %s: %s pixels (%s), offset %s, %s pixels with spikes",
        name,
        f"{facts['pixels']:,}",
        classes,
        "unknown" if offset is None else f"{offset:+.1f} eV",
        facts["spikes"]["pixels"],
    )
    for warning in facts["warnings"]:
        get_run_logger().warning("%s: %s", name, warning)
    picture = read_from(where, "map.png")
    if picture is not None:
        create_image_artifact(
            key=re.sub(r"[^a-z0-9]+", "-", f"map-{where.rpartition('/')[2]}".lower()).strip("-"),
            image_url=f"data:image/png;base64,{base64.b64encode(picture).decode()}",
            description=f"{name}: {classes}",
        )
    return str(where)
