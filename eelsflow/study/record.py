"""A study's results in the artifact store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event

import numpy as np

from eelsflow.artifacts import LoggedModel, log_models, log_results
from eelsflow.digest import digest_of
from eelsflow.store import Store, read_json
from eelsflow.study.plan import AssessModel, FitModel, Plan
from eelsflow.study.stages import read_fit


def logged_model(step: AssessModel, store: Store) -> LoggedModel:
    """Return what the artifact store is told of one model: parameters, scores, curves, grid and the model itself."""
    fit, features = step.fit, step.fit.features
    noted = read_fit(fit, store)
    assessed = store.path(step.digest)
    with np.load(assessed / "correct.npz") as correct:
        metrics = {name: float(correct[name].mean()) for name in correct.files}
    series = {
        f"accuracy_by_{name}": values for name, values in read_json(assessed / "assessment.json")["curves"].items()
    }
    entry = store.path(fit.digest)
    history = entry / "history.json"
    if history.exists():
        found = read_json(history)
        series |= {name: found[name] for name in ("train_accuracy", "validation_accuracy") if name in found}
    for name in ("search_seconds", "train_seconds"):
        if noted[name] is not None:
            metrics[name] = noted[name]
    artifacts = (entry / "model", entry / "fit.json", entry / "search.zarr", history, assessed / "assessment.json")
    return LoggedModel(
        digest=step.digest,
        name=f"{fit.model.name} {fit.preset.name} {features.split} seed {features.seed}",
        tags={"model": fit.model.name, "preprocess": fit.preset.name, "split": features.split},
        params={"seed": str(features.seed), **{name: str(value) for name, value in noted["best_params"].items()}},
        metrics=metrics,
        series=series,
        artifacts=tuple(path for path in artifacts if path.exists()),
    )


def record_models(
    plan: Plan,
    assessed: Sequence[AssessModel],
    final: FitModel,
    store: Store,
    *,
    tags: dict[str, str],
    cancelled: Event | None = None,
) -> str:
    """Log a study and, below it, a run for each of its models; return the study's run, for `record_results`.

    Raises
    ------
    CancelledError
        Between two models, when `cancelled` is set; the next try goes on from there.
    """

    def models() -> Iterator[LoggedModel]:
        for step in assessed:
            if cancelled is not None and cancelled.is_set():
                raise CancelledError("the study was interrupted while its models were logged")
            yield logged_model(step, store)

    digest = digest_of("study", [step.digest for step in assessed], final.digest)
    return log_models(plan.study.name, digest=digest, models=models(), tags=tags)


def record_results(plan: Plan, run: str, directory: Path) -> dict[str, str]:
    """Log the results directory of a study to its run; return where that is."""
    return log_results(plan.study.name, run, directory)
