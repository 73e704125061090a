"""The artifact store people browse: MLflow on SQLite and a folder, below eelsflow's home.

The content-addressed store holds the truth; this is its index. A run is keyed by the digest of what it shows, so a
repeat after a crash resumes it and never doubles it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

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


def artifact_root() -> str | None:
    """Return below which URL files are kept: $MLFLOW_DEFAULT_ARTIFACT_ROOT, else a folder of eelsflow's home.

    None where an MLflow server is configured, which knows it.
    """
    if configured := os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        return configured.rstrip("/")
    return None if tracking_uri().startswith("http") else _local_artifacts().as_uri()


def _local_artifacts() -> Path:
    return home() / "mlflow" / "artifacts"


def open_client() -> MlflowClient:
    """Connect to the artifact store, creating the local one where it does not exist.

    Raises
    ------
    MissingDependencyError
        If MLflow is not installed.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # By default seven, of two minutes each where no server answers, for which Ctrl-C waits. The task tries again.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingDependencyError(
            "MLflow is not installed, so models and figures have no artifact store; "
            "install eelsflow[orchestration], or run with --runner loop"
        ) from error
    if artifact_root() == _local_artifacts().as_uri():
        make_directory(_local_artifacts())
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)  # what it raises says more than its tries
    return MlflowClient(tracking_uri=tracking_uri())


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of an experiment, which is made where it is not there."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    root = artifact_root()
    location = None if root is None else f"{root}/{quote(name)}"
    return str(client.create_experiment(name, artifact_location=location))


def _runs_of(client: MlflowClient, experiment: str) -> dict[str, tuple[str, bool]]:
    """Return the runs of an experiment by their digest, the newest of each: id, and whether it is finished."""
    found: dict[str, tuple[str, bool]] = {}
    token = None
    while True:
        page = client.search_runs([experiment], page_token=token)
        for run in page:
            if DIGEST_TAG in run.data.tags:
                key = run.data.tags[DIGEST_TAG]
                found.setdefault(key, (str(run.info.run_id), run.info.status == "FINISHED"))
        token = page.token
        if not token:
            return found


def log_models(study: str, *, digest: str, models: Iterable[LoggedModel], tags: dict[str, str]) -> str:
    """Log the models of a study; what is there already is not logged again.

    Parameters
    ----------
    study
        Name of the experiment.
    digest
        Of the study's results: the parent run's key.
    models
        Fitted and assessed models: a child run each.
    tags
        Of the parent run, such as the link to the Prefect run.

    Returns
    -------
    str
        The parent run's id, for `log_results`.
    """
    from mlflow.entities import Metric, Param, RunTag

    client = open_client()
    experiment = experiment_id(client, study)
    runs = _runs_of(client, experiment)
    parent = runs[digest][0] if digest in runs else str(
        client.create_run(experiment, run_name=f"{study} study", tags={DIGEST_TAG: digest, **tags}).info.run_id
    )  # fmt: skip

    for model in models:
        run, finished = runs.get(model.digest, ("", False))
        if finished:
            client.set_tag(run, "mlflow.parentRunId", parent)
            client.set_tag(run, "mlflow.runName", model.name)
            continue
        if not run:
            keys = {DIGEST_TAG: model.digest, "mlflow.parentRunId": parent}
            run = str(client.create_run(experiment, run_name=model.name, tags=keys).info.run_id)
        metrics = [Metric(name, value, 0, 0) for name, value in model.metrics.items()]
        metrics += [
            Metric(name, value, 0, step) for name, values in model.series.items() for step, value in enumerate(values)
        ]
        for first in range(0, max(len(metrics), 1), 1000):  # MLflow's limit a batch
            client.log_batch(
                run,
                metrics=metrics[first : first + 1000],
                params=[Param(*item) for item in model.params.items()] if first == 0 else [],
                tags=[RunTag(*item) for item in model.tags.items()] if first == 0 else [],
            )
        for artifact in model.artifacts:
            _log_path(client, run, artifact)
        client.set_terminated(run, "FINISHED")
        runs[model.digest] = (run, True)
    return parent


def log_results(study: str, run: str, directory: Path) -> dict[str, str]:
    """Log a study's results directory: tables, grids, curves, figures and the report go to its run.

    Parameters
    ----------
    study
        Name of the experiment.
    run
        The id that `log_models` returned.
    directory
        The results directory.

    Returns
    -------
    dict
        "experiment", "run" (ids), "uri" (the store's address) and "link" (the run's page).
    """
    client = open_client()
    for path in sorted(directory.iterdir()):
        if not path.name.startswith("."):
            _log_path(client, run, path)
    client.set_terminated(run, "FINISHED")
    experiment = experiment_id(client, study)
    link = _page(tracking_uri(), experiment, run)
    return {"experiment": experiment, "run": run, "uri": tracking_uri(), "link": link}


def _log_path(client: MlflowClient, run: str, path: Path) -> None:
    if path.is_file():
        client.log_artifact(run, str(path))
    else:
        client.log_artifacts(run, str(path), path.name)


def _page(uri: str, experiment: str, run: str) -> str:
    """Return the address of a run's page: at the server, or where `mlflow ui` shows a local store by default."""
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment}/runs/{run}"
