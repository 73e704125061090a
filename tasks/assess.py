"""Tasks of the assessment of one fitted model: its single spectra, its maps, spectra of other laboratories."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from eelsflow.store import Store
from eelsflow.study import stages
from eelsflow.study.plan import AssessModel, JudgeOutside, ScoreMaps
from eelsflow.study.stages import Place
from tasks.options import executor_at, task_options


@task(**task_options("{title}", tags=("assess",)))
def assess_model(step: AssessModel, *, digest: str, title: str, store: str, scheduler: str | None) -> str:
    """Measure a fitted model on its test part, shifted and with noise; return the digest of the assessment."""
    stages.assess_model(step, Place(Store(Path(store)), executor_at(scheduler)))
    return digest


@task(**task_options("{title}", tags=("assess",)))
def score_maps(step: ScoreMaps, *, digest: str, title: str, store: str, scheduler: str | None) -> str:
    """Map the acquisitions that a model was not trained on and compare with the truth; return the digest."""
    stages.score_maps(step, Place(Store(Path(store)), executor_at(scheduler)))
    return digest


@task(**task_options("{title}", tags=("assess",)))
def judge_outside(step: JudgeOutside, *, digest: str, title: str, store: str, scheduler: str | None) -> str:
    """Let a model judge spectra of other laboratories; return the digest of its judgement."""
    stages.judge_outside(step, Place(Store(Path(store)), executor_at(scheduler)))
    return digest
