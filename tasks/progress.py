"""How far a task is that works in parts: told to the terminal, and to the user interface."""

from __future__ import annotations

import re
import time
from contextvars import ContextVar
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from eelsflow.executors import Report
from eelsflow.study.run import OnStep, tell_parts

ON_STEP: ContextVar[OnStep | None] = ContextVar("on_step", default=None)
"""Set by a flow that is watched from a terminal; tasks run in copies of its context."""

SECONDS = 2.0
"""Between two updates of the artifact: each is a request."""


def follow(title: str) -> Report:
    """Return what an executor tells how far it is; the artifact is made when the first of several parts is done."""
    on_step = ON_STEP.get()
    tell = None if on_step is None else tell_parts(on_step, title)
    artifacts: dict[str, UUID] = {}
    last = 0.0

    def report(label: str, done: int, total: int) -> None:
        nonlocal last
        if tell is not None:
            tell(label, done, total)
        if total < 2 or (time.monotonic() - last < SECONDS and done < total):
            return
        last = time.monotonic()
        share = 100.0 * done / total
        if label not in artifacts:
            key = re.sub(r"[^a-z0-9]+", "-", f"progress {label}".lower()).strip("-")  # all that a key may hold
            created = create_progress_artifact(share, key=key, description=f"{title}: {label}")
            assert isinstance(created, UUID)  # created in a synchronous task
            artifacts[label] = created
        else:
            update_progress_artifact(artifacts[label], share)

    return report
