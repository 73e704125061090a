"""The whole study as a plain loop: the oracle that the orchestrated one is compared with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from eelsflow.dataset.spectra import LabelledSpectra
from eelsflow.dataset.splits import SplitBy
from eelsflow.errors import OutputPathError
from eelsflow.executors import LoopExecutor
from eelsflow.io.zarr_store import open_dataset
from eelsflow.maps import map_product, register_model
from eelsflow.models.bundle import ModelBundle, rename_model
from eelsflow.report.page import build_report
from eelsflow.store import Store, empty_directory, make_directory
from eelsflow.study import stages
from eelsflow.study.config import Study
from eelsflow.study.plan import (
    AssessModel,
    BuildDataSet,
    FitModel,
    Plan,
    Step,
    plan_assessment,
    plan_data,
    plan_features,
    plan_model,
)
from eelsflow.study.results import score_rows, write_results
from eelsflow.study.stages import Place

StepType = TypeVar("StepType", bound=Step)

OWN_NAMES = ("results.json", "model", "maps", "evidence", "figures", "robustness.zarr", "report.html", "study.yaml",
             "provenance.json")  # fmt: skip
"""What a study replaces in its results directory."""

MOST_PIXELS = 1 << 20
"""Of a map that a worker makes, whose memory is limited; larger ones are made where the study runs."""

_UNFINISHED, _REPLACED = ".unfinished", ".replaced"


class Runner(Protocol):
    """Runs one stage over its steps; the plain loop and the Prefect flow differ in this alone."""

    def __call__(self, stage: Callable[[StepType, Place], Path], steps: Sequence[StepType]) -> object:
        """Call ``stage(step, place)`` for every step, in any order; return when all are done."""
        ...


def choose_splits(study: Study, dataset: BuildDataSet, store: Store) -> list[SplitBy]:
    """Return the ways of splitting: the study's, or group and pixel where there are two groups or more."""
    if study.split.by:
        return list(study.split.by)
    group = LabelledSpectra.load(store.path(dataset.digest)).group
    return ["group", "pixel"] if group is not None and len(set(group.tolist())) > 1 else ["pixel"]


def plan_models(plan: Plan, store: Store) -> list[FitModel]:
    """Plan every model on every split of every data set; the data sets are built."""
    study = plan.study
    fits = []
    for dataset, preset in zip(plan.datasets, study.preprocess, strict=True):
        splits = choose_splits(study, dataset, store)
        for features in plan_features(study, dataset, preset, splits=splits):
            fits += [plan_model(study, features, model) for model in study.models]
    return fits


def plan_final_model(assessed: Sequence[AssessModel], rows: Sequence[dict[str, Any]]) -> FitModel:
    """Plan the model that leaves the study: the best by balanced accuracy, fitted on all labelled spectra.

    Held-out acquisitions decide where there are any, else the random split; ties go to the first named.
    """
    by_group = [row for row in rows if row["split"] == "group"] or list(rows)
    best = max(by_group, key=lambda row: (row["balanced_accuracy"] or row["accuracy"])["mean"])
    step = next(
        step for step in assessed if (step.fit.model.name, step.fit.preset.name) == (best["model"], best["preprocess"])
    )
    features = step.fit.features.model_copy(update={"split": "all", "seed": 0})
    return step.fit.model_copy(update={"features": features})


def run_stages(plan: Plan, place: Place, run: Runner) -> tuple[list[AssessModel], FitModel]:
    """Compute a study, stage after stage; return its assessments and the final model, which is not fitted yet.

    Reads as the method section: prepare the acquisitions, build the data sets, split them and fit the features,
    search and train the models, assess them, choose the best.
    """
    run(stages.prepare_acquisition, plan.prepare)
    run(stages.build_dataset, plan.datasets)
    fits = plan_models(plan, place.store)
    run(stages.fit_features, _unique(fit.features for fit in fits))
    run(stages.fit_model, _unique(fits))
    assessed = [plan_assessment(plan.study, fit) for fit in fits]
    run(stages.assess_model, _unique(assessed))
    return assessed, plan_final_model(assessed, score_rows(assessed, place))


def fit_final_model(final: FitModel, run: Runner) -> None:
    """Fit the model that leaves the study, on all labelled spectra."""
    run(stages.fit_features, [final.features])
    run(stages.fit_model, [final])


def _unique(steps: Iterable[StepType]) -> list[StepType]:
    return list({step.digest: step for step in steps}.values())


def claim_directory(out: Path) -> None:
    """Make `out` the results directory of a study, before anything is computed.

    Raises
    ------
    OutputPathError
        If it cannot be written to, or holds files of somebody else under the names that results use.
    """
    make_directory(out)
    mark = out / ".eelsflow-results"
    taken = [name for name in OWN_NAMES if (out / name).exists()]
    if taken and not mark.exists():
        raise OutputPathError(
            f"{out} holds {', '.join(taken)}, which no study wrote and which results would replace; "
            "name another directory for the results"
        )
    mark.touch()


def write_outputs(
    plan: Plan, assessed: Sequence[AssessModel], final: FitModel, place: Place, out: Path, *, run: dict[str, Any],
    promote: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write everything a study leaves behind: results, model, maps, figures and report; whole, or not at all.

    Parameters
    ----------
    plan, assessed, final, place
        What was computed, and where.
    out
        The results directory.
    run
        What is known of the run: "runner", "started", "seconds", "links".
    promote
        Whether the final model becomes the default one for its edge.
    """
    unfinished = out / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir()
    results = write_results(unfinished, plan, assessed, place, run=run)
    shutil.copytree(place.store.path(final.digest) / "model", unfinished / "model")
    rename_model(unfinished / "model", final.model.name)
    _write_maps(plan, final, place, unfinished / "maps")
    build_report(unfinished, executor=place.executor)
    _replace_outputs(unfinished, out)
    register_model(out / "model", name=plan.study.name, registered=run["started"], champion=promote)
    return results


def _replace_outputs(unfinished: Path, out: Path) -> None:
    """Put outputs that are whole in the place of earlier ones.

    Each is renamed, not copied or removed in place, and ``results.json`` goes first and comes last: wherever a kill
    strikes, what has its name is whole, and where ``results.json`` is, everything beside it is of the same study.
    """
    replaced = out / _REPLACED
    shutil.rmtree(replaced, ignore_errors=True)
    replaced.mkdir()
    for path in (*(out / name for name in OWN_NAMES), *out.glob("search-*.zarr")):
        if path.exists():
            path.rename(replaced / path.name)
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "results.json"):
        path.rename(out / path.name)
    unfinished.rmdir()
    shutil.rmtree(replaced, ignore_errors=True)


def _write_maps(plan: Plan, final: FitModel, place: Place, directory: Path) -> None:
    """Map what was prepared but has no label for every pixel: mixed and unknown acquisitions."""
    steps = [step for step in plan.prepare if not step.acquisition.label and step.preset.name == final.preset.name]
    if not steps:
        return
    store = place.store
    work = store.temporary()  # every worker sees the store, and perhaps not the results directory
    try:
        items = [
            (
                store.path(step.digest) / "prepared.zarr",
                store.path(final.digest) / "model",
                work / step.acquisition.name,
                step.acquisition.path.name,
            )
            for step in steps
        ]
        sizes = [open_dataset(prepared)["vacuum_mask"].size for prepared, *_ in items]
        executor = place.executor if max(sizes) <= MOST_PIXELS else LoopExecutor()
        executor.map(_write_map, items, label="map")
        shutil.copytree(work, directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_map(item: tuple[Path, Path, Path, str]) -> None:
    prepared, model, target, title = item
    map_product(prepared, ModelBundle.load(model), empty_directory(target), title=title)


def run_study(
    study: Study, out: Path, *, place: Place, on_step: Callable[[str, int, int], None] | None = None,
    promote: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run a study in a plain loop.

    Parameters
    ----------
    study
        The study file, resolved.
    out
        The results directory; created.
    place
        Store and executor.
    on_step
        Called as ``on_step(title, number, total)`` before each step of a stage.
    promote
        Whether the final model becomes the default one for its edge.

    Returns
    -------
    dict
        The content of ``results.json``.
    """
    claim_directory(out)
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    plan = plan_data(study)

    def run(stage: Callable[[StepType, Place], Path], steps: Sequence[StepType]) -> None:
        for number, step in enumerate(steps):
            if on_step is not None:
                on_step(step.title, number, len(steps))
            stage(step, place)

    assessed, final = run_stages(plan, place, run)
    fit_final_model(final, run)
    about = {
        "runner": "loop",
        "started": started,
        "seconds": time.perf_counter() - clock,
        "links": {},
    }
    return write_outputs(plan, assessed, final, place, out, run=about, promote=promote)
