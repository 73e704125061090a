"""Tasks of the preparation: one acquisition, one data set, one split."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task

from eelsflow.dataset.aside import SetAside
from eelsflow.store import Store
from eelsflow.study import stages
from eelsflow.study.plan import BuildDataSet, FitFeatures, PrepareAcquisition
from eelsflow.study.stages import Place
from tasks.options import executor_at, task_options


# Not cached by Prefect: the store keeps the product, and why an acquisition cannot be used must not be kept.
@task(**task_options("{title}", tags=("prepare",), cached=False))
def prepare_acquisition(
    step: PrepareAcquisition, *, digest: str, title: str, store: str, scheduler: str | None
) -> str | SetAside:
    """Read one acquisition and prepare it block by block on the cluster; return the product's digest, or why not."""
    outcome = stages.prepare_acquisition(step, Place(Store(Path(store)), executor_at(scheduler)))
    if isinstance(outcome, SetAside):
        get_run_logger().warning("%s cannot be used: %s", outcome.acquisition, outcome.reason)
        return outcome
    return digest


@task(**task_options("{title}", tags=("data set",)))
def build_dataset(step: BuildDataSet, *, digest: str, title: str, store: str, scheduler: str | None) -> str:
    """Collect the labelled spectra; return the digest of the data set."""
    stages.build_dataset(step, Place(Store(Path(store)), executor_at(scheduler)))
    return digest


@task(**task_options("{title}", tags=("features",)))
def fit_features(step: FitFeatures, *, digest: str, title: str, store: str, scheduler: str | None) -> str:
    """Split a data set and fit its features on the training part; return their digest."""
    stages.fit_features(step, Place(Store(Path(store)), executor_at(scheduler)))
    return digest
