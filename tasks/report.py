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
from eelsflow.study.record import record_models, record_results
from eelsflow.study.run import Measured, write_outputs
from eelsflow.study.stages import Place
from tasks.options import CANCELLED, executor_at, task_options

KINDS = ("map", "leakage", "robustness", "search", "training", "architecture", "perturbed", "example", "acquisition")
"""Figures of a study by how their names begin, in the order in which the Prefect run shows them: results first."""

SHOWN_ACQUISITIONS = 6
"""How many pictures of acquisitions are shown in the Prefect run; of every other kind all are. There may be hundreds of
acquisitions, and each picture is kept in the server's database; the report has them."""


@task(**task_options("write results, figures and report", tags=("report",), cached=False))
def write_report(
    plan: Plan,
    measured: Measured,
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
    results = write_outputs(plan, measured, final, place, directory, run=run, promote=promote)
    create_table_artifact(key="models", table=[_table_row(row) for row in results["models"]], description="All models")
    create_link_artifact(
        key="report", link=(directory / "report.html").resolve().as_uri(), link_text="report.html", description="Report"
    )
    for path in _shown_figures(directory / "figures"):
        picture = base64.b64encode(path.read_bytes()).decode()
        create_image_artifact(
            key=re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-"),
            image_url=f"data:image/png;base64,{picture}",
            description=path.stem,
        )


def _shown_figures(figures: Path) -> list[Path]:
    def rank(figure: Path) -> tuple[int, str]:
        kind = figure.stem.partition("-")[0]
        return KINDS.index(kind) if kind in KINDS else len(KINDS), figure.name

    ordered = sorted(figures.glob("*.png"), key=rank)
    acquisitions = [path for path in ordered if path.stem.startswith("acquisition-")]
    left_out = set(acquisitions[SHOWN_ACQUISITIONS:])
    return [path for path in ordered if path not in left_out]


def _table_row(row: dict[str, Any]) -> dict[str, Any]:
    def text(score: dict[str, float] | None) -> str:
        if not score:
            return "-"
        interval = f" ({score['low']:.3f}-{score['high']:.3f})" if score["low"] is not None else ""
        return f"{score['mean']:.3f}{interval}"

    scores = {name: text(row[name]) for name in ("accuracy", "balanced_accuracy", "translation", "noise")}
    return {name: row[name] for name in ("model", "preprocess", "split", "seeds")} | scores


@task(**task_options("keep the models in the artifact store", tags=("report",), cached=False))
def record_in_artifact_store(
    plan: Plan, assessed: Sequence[AssessModel], final: FitModel, *, store: str, prefect_run: str
) -> str:
    """Log the models to MLflow; return the study's run there."""
    tags = {"prefect.run": prefect_run}
    return record_models(plan, assessed, final, Store(Path(store)), tags=tags, cancelled=CANCELLED)


@task(**task_options("keep results and figures in the artifact store", tags=("report",), cached=False))
def record_report(plan: Plan, run: str, *, out: str) -> dict[str, str]:
    """Log the results directory to the study's run in MLflow, and say in the Prefect run where it is."""
    place = record_results(plan, run, Path(out))
    create_markdown_artifact(key="artifact-store", description="MLflow", markdown=_where(plan.study.name, place))
    return place


def _where(study: str, place: dict[str, str]) -> str:
    """Say where in the artifact store a study is, with a link that can be followed."""
    start = ""
    if not place["uri"].startswith("http"):
        start = (
            "The link works while MLflow's pages are served, by this in a terminal:\n\n"
            f"    mlflow ui --backend-store-uri {place['uri']}\n"
        )
    link = f"[Experiment **{study}**, run `{place['run']}`]({place['link']})"
    return f"{link}: every model, grid, curve and figure.\n\n{start}"
