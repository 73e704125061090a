"""Task of the search and training of one model on one split."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from eelsflow.store import Store
from eelsflow.study import stages
from eelsflow.study.gpu import turn_at_gpu
from eelsflow.study.plan import FitModel
from eelsflow.study.stages import Place
from tasks.options import CANCELLED, executor_at, task_options
from tasks.progress import follow


@task(**task_options("{title}", tags=("train",)))
def fit_model(step: FitModel, *, digest: str, title: str, store: str, scheduler: str | None) -> str:
    """Search a model's parameters on the cluster and fit it with the best; return the digest of the model."""
    executor = executor_at(scheduler)
    executor.report = follow(title)
    place = Place(Store(Path(store)), executor)
    with turn_at_gpu(step, place.store, cancelled=CANCELLED):
        stages.fit_model(step, place)
    return digest
