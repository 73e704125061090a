"""Tasks that write what a person reads: the results directory, the artifact store, the artifacts of the Prefect run."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from eelsflow.store import Store
from eelsflow.study.plan import AssessModel, FitModel, Plan
from eelsflow.study.record import record_study
from eelsflow.study.run import write_outputs
from eelsflow.study.stages import Place
from tasks.options import executor_at, task_options

SHOWN_FIGURES = 10
"""How many figures are shown in the Prefect run; all are in the report."""


@task(**task_options("write results, figures and report", tags=("report",), cached=False))
def write_report(
    plan: Plan,
    assessed: Sequence[AssessModel],
    final: FitModel,
    *,
    out: str,
    store: str,
    scheduler: str | None,
    run: dict[str, Any],
    promote: bool,
) -> None:
    """Write the results directory and show its tables, figures and report in the Prefect run."""
    directory, place = Path(out), Place(Store(Path(store)), executor_at(scheduler))
    results = write_outputs(plan, assessed, final, place, directory, run=run, promote=promote)
    create_table_artifact(key="models", table=[_table_row(row) for row in results["models"]], description="All models")
    create_link_artifact(
        key="report", link=(directory / "report.html").resolve().as_uri(), link_text="report.html", description="Report"
    )
    for path in sorted((directory / "figures").glob("*.png"), key=_least_telling_last)[:SHOWN_FIGURES]:
        picture = base64.b64encode(path.read_bytes()).decode()
        create_image_artifact(
            key=re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-"),
            image_url=f"data:image/png;base64,{picture}",
            description=path.stem,
        )


def _least_telling_last(figure: Path) -> tuple[bool, str]:
    return figure.stem.startswith(("acquisition", "architecture")), figure.name


def _table_row(row: dict[str, Any]) -> dict[str, Any]:
    def text(score: dict[str, float] | None) -> str:
        return f"{score['mean']:.3f} ({score['low']:.3f}-{score['high']:.3f})" if score else "-"

    scores = {name: text(row[name]) for name in ("accuracy", "balanced_accuracy", "translation", "noise")}
    return {name: row[name] for name in ("model", "preprocess", "split", "seeds")} | scores


@task(**task_options("keep models, grids and figures in the artifact store", tags=("report",), cached=False))
def record_in_artifact_store(
    plan: Plan, assessed: Sequence[AssessModel], final: FitModel, *, out: str, store: str, prefect_run: str
) -> dict[str, str]:
    """Log the study to MLflow and say in the Prefect run where it is."""
    place = record_study(plan, assessed, final, Store(Path(store)), Path(out), tags={"prefect.run": prefect_run})
    create_markdown_artifact(
        key="artifact-store",
        description="MLflow",
        markdown=(
            f"Experiment **{plan.study.name}** ({place['experiment']}), run `{place['run']}`, at `{place['uri']}`.\n\n"
            f"Browse it with `mlflow ui --backend-store-uri {place['uri']}`."
        ),
    )
    return place
