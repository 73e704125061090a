"""The artifact store people browse: MLflow on SQLite and a folder, below eelsflow's home.

The content-addressed store holds the truth; this is its index. A run is keyed by the digest of what it shows, so a
repeat after a crash resumes it and never doubles it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from eelsflow.errors import MissingDependencyError
from eelsflow.store import home, make_directory

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DIGEST_TAG = "eelsflow.digest"


class LoggedModel(BaseModel):
    """One fitted and assessed model, as it goes into the artifact store."""

    model_config = ConfigDict(frozen=True)

    digest: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    series: dict[str, list[float]]
    """Metrics by step: accuracy by epoch, accuracy by amplitude."""
    artifacts: tuple[Path, ...]


def tracking_uri() -> str:
    """Return where runs are kept: $MLFLOW_TRACKING_URI, else SQLite in eelsflow's home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def open_client() -> MlflowClient:
    """Connect to the artifact store, creating the local one where it does not exist.

    Raises
    ------
    MissingDependencyError
        If MLflow is not installed.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingDependencyError(
            "MLflow is not installed, so models and figures have no artifact store; "
            "install eelsflow[orchestration], or run with --runner loop"
        ) from error
    if "MLFLOW_TRACKING_URI" not in os.environ:
        make_directory(home() / "mlflow" / "artifacts")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=tracking_uri())


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        location = (home() / "mlflow" / "artifacts" / name).as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _find_run(client: MlflowClient, experiment: str, digest: str) -> tuple[str, bool] | None:
    """Return the run of this digest and whether it is finished."""
    runs = client.search_runs([experiment], filter_string=f"tags.`{DIGEST_TAG}` = '{digest}'", max_results=1)
    if not runs:
        return None
    return str(runs[0].info.run_id), runs[0].info.status == "FINISHED"


def log_study(
    study: str, *, digest: str, models: Sequence[LoggedModel], directory: Path, tags: dict[str, str]
) -> dict[str, str]:
    """Log a study and its models; what is there already is not logged again.

    Parameters
    ----------
    study
        Name of the experiment.
    digest
        Of the study's results: the parent run's key.
    models
        Fitted and assessed models: a child run each.
    directory
        The results directory: tables, grids, curves, figures and the report go to the parent run.
    tags
        Of the parent run, such as the link to the Prefect run.

    Returns
    -------
    dict
        "experiment", "run" (ids), "uri" (the store's address) and "link" (the run's page).
    """
    from mlflow.entities import Metric, Param, RunTag

    client = open_client()
    experiment = _experiment(client, study)
    parent = _find_run(client, experiment, digest)
    parent_id = parent[0] if parent else str(
        client.create_run(experiment, run_name=f"{study} study", tags={DIGEST_TAG: digest, **tags}).info.run_id
    )  # fmt: skip

    for model in models:
        found = _find_run(client, experiment, model.digest)
        if found is not None and found[1]:
            client.set_tag(found[0], "mlflow.parentRunId", parent_id)
            client.set_tag(found[0], "mlflow.runName", model.name)
            continue
        run_id = found[0] if found else str(
            client.create_run(
                experiment,
                run_name=model.name,
                tags={DIGEST_TAG: model.digest, "mlflow.parentRunId": parent_id},
            ).info.run_id
        )  # fmt: skip
        metrics = [Metric(name, value, 0, 0) for name, value in model.metrics.items()]
        metrics += [
            Metric(name, value, 0, step) for name, values in model.series.items() for step, value in enumerate(values)
        ]
        for first in range(0, max(len(metrics), 1), 1000):  # MLflow's limit a batch
            client.log_batch(
                run_id,
                metrics=metrics[first : first + 1000],
                params=[Param(*item) for item in model.params.items()] if first == 0 else [],
                tags=[RunTag(*item) for item in model.tags.items()] if first == 0 else [],
            )
        for artifact in model.artifacts:
            client.log_artifact(run_id, str(artifact)) if artifact.is_file() else client.log_artifacts(
                run_id, str(artifact), artifact.name
            )
        client.set_terminated(run_id, "FINISHED")

    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            client.log_artifact(parent_id, str(path))
        else:
            client.log_artifacts(parent_id, str(path), path.name)
    client.set_terminated(parent_id, "FINISHED")
    return {
        "experiment": experiment,
        "run": parent_id,
        "uri": tracking_uri(),
        "link": _page(tracking_uri(), experiment, parent_id),
    }


def _page(uri: str, experiment: str, run: str) -> str:
    """Return the address of a run's page: at the server, or where `mlflow ui` shows a local store by default."""
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment}/runs/{run}"
