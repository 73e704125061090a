"""The whole study as a plain loop: the oracle that the orchestrated one is compared with."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from eelsflow.dataset.aside import SetAside, named_in_refusals
from eelsflow.dataset.labels import class_fractions
from eelsflow.dataset.manifest import Acquisition
from eelsflow.dataset.spectra import LabelledSpectra
from eelsflow.dataset.splits import SplitBy
from eelsflow.errors import InputError, OutputPathError
from eelsflow.executors import LoopExecutor, Report
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import open_dataset
from eelsflow.maps import map_product, register_model
from eelsflow.maps.drift import conditions_of, ranges_of
from eelsflow.models.bundle import ModelBundle, describe_model
from eelsflow.report.page import build_report
from eelsflow.store import Store, empty_directory, make_directory
from eelsflow.study import stages
from eelsflow.study.champion import held_out_scores, judge_promotion, keep_champion
from eelsflow.study.config import ChooseBy, Study
from eelsflow.study.gpu import turn_at_gpu
from eelsflow.study.journal import Journal, using_store
from eelsflow.study.map_scores import best_maps, map_rows
from eelsflow.study.plan import (
    AssessModel,
    BuildDataSet,
    FitModel,
    JudgeOutside,
    Plan,
    PrepareAcquisition,
    ScoreMaps,
    Step,
    plan_assessment,
    plan_data,
    plan_features,
    plan_maps,
    plan_model,
    plan_outside,
    without_search,
)
from eelsflow.study.results import score_rows, write_results
from eelsflow.study.stages import Place
from eelsflow.study.stand_ins import plan_stand_ins, prepare_stand_ins, write_stand_ins

StepType = TypeVar("StepType", bound=Step)

OWN_NAMES = ("results.json", "model", "maps", "evidence", "figures", "robustness.zarr", "report.html", "study.yaml",
             "provenance.json", "table1.csv", "table2.csv", "outside.csv", "passports")  # fmt: skip
"""What a study replaces in its results directory."""

MOST_PIXELS = 1 << 20
"""Of a map that a worker makes, whose memory is limited; larger ones are made where the study runs."""

SIMULATED_ALONE = (
    "this map is by a model that was trained on simulated spectra of {classes} alone: no real acquisition has taken "
    "part in it. Check it on an acquisition of known phase"
)
"""What maps of a model say whose study simulates its acquisitions and names no caution of its own."""

MAPS_OF_A_CLASS = 2
"""Pure fields of each class whose maps are shown; of mixed and unlabelled fields all are."""

Outcome = Path | SetAside
"""What a stage returns: where its result lies, or why there is none."""

OnStep = Callable[[str, int | None, int | None], None]
"""Is told what is worked on, its number and how many there are; None where these are as they were."""

_UNFINISHED, _REPLACED = ".unfinished", ".replaced"


class Runner(Protocol):
    """Runs one stage over its steps; the plain loop and the Prefect flow differ in this alone."""

    def __call__(self, stage: Callable[[StepType, Place], Outcome], steps: Sequence[StepType]) -> Sequence[object]:
        """Call ``stage(step, place)`` for every step, in any order; return when all are done.

        What is returned is in the order of the steps, and holds every `SetAside` that a stage returned.
        """
        ...


def tell_parts(on_step: OnStep, title: str) -> Report:
    """Return what tells how far a step is that is worked on in several parts, such as the kernels of a search."""

    def report(label: str, done: int, total: int) -> None:
        if total > 1:
            on_step(f"{title}: {done} of {total}", None, None)

    return report


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


def plan_final_model(
    assessed: Sequence[AssessModel],
    rows: Sequence[dict[str, Any]],
    maps: Sequence[dict[str, Any]] = (),
    *,
    choose_by: ChooseBy = "maps",
) -> FitModel:
    """Plan the model that leaves the study, fitted on all labelled spectra.

    The best maps of held-out acquisitions decide, pixel by pixel over pure and mixed fields; without maps the balanced
    accuracy on held-out acquisitions, and only where nothing was held out that of the random split. Ties go to the
    first named. A study may choose by the accuracy of single spectra instead, or by that of shifted ones.
    """
    best = best_maps(maps) if choose_by == "maps" else None
    if best is None:
        by_group = [row for row in rows if row["split"] == "group"] or list(rows)
        score = "translation" if choose_by == "translation" else "balanced_accuracy"
        best = max(by_group, key=lambda row: (row[score] or row["accuracy"])["mean"])
    step = next(
        step for step in assessed if (step.fit.model.name, step.fit.preset.name) == (best["model"], best["preprocess"])
    )
    features = step.fit.features.model_copy(update={"split": "all", "seed": 0})
    return step.fit.model_copy(update={"features": features})


@dataclass(frozen=True)
class Measured:
    """What a study has measured: single spectra, whole maps, and spectra of other laboratories."""

    assessed: list[AssessModel]
    scored: list[ScoreMaps]
    outside: list[JudgeOutside] = field(default_factory=list)


def prepare_acquisitions(plan: Plan, run: Runner, *, strict: bool = False) -> Plan:
    """Prepare the acquisitions; return the plan of the study with those that can be used.

    Parameters
    ----------
    plan, run
        What is prepared, and how.
    strict
        Refuse acquisitions that cannot be used, instead of setting them aside.

    Raises
    ------
    InputError
        If it is strict, and an acquisition cannot be used.
    DataSetError
        If those that can do not suffice.
    """
    outcomes = run(stages.prepare_acquisition, plan.prepare)
    return plan.without([outcome for outcome in outcomes if isinstance(outcome, SetAside)], strict=strict)


def run_stages(plan: Plan, place: Place, run: Runner) -> tuple[Measured, FitModel]:
    """Compute a study whose acquisitions are prepared, stage after stage.

    Reads as the method section: build the data sets, split them and fit the features, search and train the models,
    assess them, map what they were not trained on, choose the best.

    Returns
    -------
    measured
        What was measured.
    final
        The final model, which is not fitted yet.

    Raises
    ------
    DataSetError
        If the spectra do not suffice for what was asked: the message names the acquisitions that were set aside.
    """
    with named_in_refusals(plan.set_aside, total=len(plan.acquisitions) + len(plan.set_aside)):
        run(stages.build_dataset, plan.datasets)
        fits = plan_models(plan, place.store)
        run(stages.fit_features, _unique(fit.features for fit in fits))
        if plan.study.split.search == "first":
            run(stages.fit_model, _unique(fit for fit in fits if fit.features.seed == 0))
            fits = _with_first_choice(fits, place.store)
        run(stages.fit_model, _unique(fits))
    assessed = [plan_assessment(plan.study, fit) for fit in fits]
    run(stages.assess_model, _unique(assessed))
    scored = plan_maps(plan, fits)
    run(stages.score_maps, _unique(scored))
    outside = _plan_outside(plan.study, fits, place.store)
    run(stages.fit_features, _unique(step.fit.features for step in outside))
    run(stages.fit_model, _unique(step.fit for step in outside))
    run(stages.judge_outside, _unique(outside))
    final = plan_final_model(
        assessed, score_rows(assessed, place), map_rows(scored, place.store), choose_by=plan.study.choose_by
    )
    if plan.study.split.search == "first" and final.grid:
        final = without_search(final, _choice_of(final, fits, place.store))
    return Measured(assessed, scored, outside), final


def _plan_outside(study: Study, fits: Sequence[FitModel], store: Store) -> list[JudgeOutside]:
    """Plan the judgement of spectra of other laboratories by each model with what its first fit has chosen."""
    if not study.outside:
        return []
    firsts = {(fit.model.name, fit.preset.name): fit for fit in reversed(fits)}
    chosen = {fit.digest: stages.read_fit(fit, store)["best_params"] for fit in firsts.values()}
    return plan_outside(study, list(firsts.values())[::-1], chosen)


def _with_first_choice(fits: Sequence[FitModel], store: Store) -> list[FitModel]:
    """Return the plans with those that would search again replaced by a fit of what the first seed has chosen."""
    return [
        without_search(fit, _choice_of(fit, fits, store)) if fit.grid and fit.features.seed else fit for fit in fits
    ]


def _choice_of(fit: FitModel, fits: Sequence[FitModel], store: Store) -> dict[str, Any]:
    """Return the parameters that the first seed has chosen for the same model and data; the split's, if it has one."""
    same = [
        one for one in fits
        if (one.model.name, one.preset.name, one.features.seed) == (fit.model.name, fit.preset.name, 0)
    ]  # fmt: skip
    searched = next((one for one in same if one.features.split == fit.features.split), same[0])
    choice: dict[str, Any] = stages.read_fit(searched, store)["best_params"]
    return choice


def fit_final_model(plan: Plan, final: FitModel, place: Place, run: Runner) -> None:
    """Fit the model that leaves the study, on all labelled spectra; of several edges also its stand-ins."""
    run(stages.fit_features, [final.features])
    run(stages.fit_model, [final])
    if not plan.study.edge.beside:
        return
    run(stages.prepare_acquisition, prepare_stand_ins(plan, final))
    for one in plan_stand_ins(plan, final, place.store):
        with contextlib.suppress(InputError):  # there is no such model then
            run(stages.build_dataset, [one.dataset])
            run(stages.fit_features, [one.fit.features])
            run(stages.fit_model, [one.fit])


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
    plan: Plan, measured: Measured, final: FitModel, place: Place, out: Path, *, run: dict[str, Any],
    promote: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write everything a study leaves behind: results, model, maps, figures and report; whole, or not at all.

    Parameters
    ----------
    plan, measured, final, place
        What was computed, and where.
    out
        The results directory.
    run
        What is known of the run: "runner", "started", "seconds", "links".
    promote
        Whether the final model becomes the champion of its edge, the default one, unless it is worse than the present.
    """
    unfinished = out / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir()
    shutil.copytree(place.store.path(final.digest) / "model", unfinished / "model")
    about = _about_model(plan.study) | _about_training(plan, measured, final, place)
    describe_model(unfinished / "model", name=final.model.name, **about)
    write_stand_ins(plan, final, place.store, unfinished / "model", about=_about_model(plan.study))
    evidence = _write_maps(plan, measured, final, place, unfinished / "maps")
    promotion = judge_promotion(plan, measured.scored, final, place) if promote else None
    run = {
        **run,
        "promotion": promotion,
        "final_model": {"model": final.model.name, "preprocess": final.preset.name},
        "map_evidence": evidence,
    }
    results = write_results(
        unfinished, plan, measured.assessed, measured.scored, place, run=run, outside=measured.outside
    )
    build_report(unfinished, executor=place.executor)
    _replace_outputs(unfinished, out)
    register_model(out / "model", name=plan.study.name, registered=run["started"])
    if promotion is not None and promotion["promote"]:
        keep_champion(out / "model", edge=plan.study.edge.name, name=plan.study.name, registered=run["started"])
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


def _about_model(study: Study) -> dict[str, Any]:
    """Return what a study file says of the model that leaves it."""
    about: dict[str, Any] = {}
    if study.valence:
        about["valence"] = study.valence
    if study.density:
        about["density"] = study.density
    if study.caution:
        about["caution"] = study.caution
    elif study.data.simulate is not None:
        about["caution"] = SIMULATED_ALONE.format(classes=" and ".join(study.classes) or "oxides")
    return about


def _about_training(plan: Plan, measured: Measured, final: FitModel, place: Place) -> dict[str, Any]:
    """Return what the final model was fitted on: how it was recorded, which files, and how it mapped each unseen."""
    labelled = [
        step for step in plan.prepare
        if step.preset.name == final.preset.name and (step.acquisition.label or step.acquisition.truth)
    ]  # fmt: skip
    products = (open_dataset(place.store.path(step.digest) / "prepared.zarr") for step in labelled)
    return {
        "training": ranges_of([conditions_of(product) for product in products]),
        "trained_on": sorted(step.acquisition.sha256 for step in labelled),
        "held_out": held_out_scores(measured.scored, final, place.store),
    }


@dataclass(frozen=True)
class _MapToWrite:
    """One map of a results directory, small to send to a worker."""

    prepared: Path
    model: Path
    target: Path
    path: Path
    about: dict[str, Any]


def _write_maps(plan: Plan, measured: Measured, final: FitModel, place: Place, directory: Path) -> list[dict[str, Any]]:
    """Write the maps that the report shows, and return what each is; every one by a model that never saw the field.

    Acquisitions with a truth are mapped by the model that stands for the final one in a split that held them out;
    those without label and truth by the final model, which cannot have been trained on them.
    """
    store = place.store
    items, entries = [], []
    shown = _maps_to_show(plan, measured, final, store)
    if not shown:
        return []
    for step, fit in shown:
        if step.acquisition.group in stages.training_groups(fit, store):
            raise RuntimeError(
                f"the map of {step.acquisition.name} was to be made by a model trained on its group "
                f"{step.acquisition.group}"
            )
    work = store.temporary()  # every worker sees the store, and perhaps not the results directory
    for step, fit in shown:
        acquisition = step.acquisition
        items.append(
            _MapToWrite(
                prepared=store.path(step.digest) / "prepared.zarr",
                model=store.path(fit.digest) / "model",
                target=work / acquisition.name,
                path=acquisition.path,
                about=_about_model(plan.study),
            )
        )
        entry = {
            "acquisition": acquisition.name,
            "map": f"maps/{acquisition.name}",
            "label": acquisition.label,
            "model": fit.model.name,
            "preprocess": fit.preset.name,
            "held_out": fit.features.split != "all",
            "seed": fit.features.seed,
        }
        entries.append((entry, acquisition))
    try:
        sizes = [open_dataset(item.prepared)["vacuum_mask"].size for item in items]
        executor = place.executor if max(sizes) <= MOST_PIXELS else LoopExecutor()
        executor.map(_write_map, items, label="map")
        shutil.copytree(work, directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for entry, acquisition in entries:
        with_truth = _write_truth(acquisition, plan.study.classes, directory / acquisition.name)
        entry["truth"] = f"maps/{acquisition.name}/truth.npz" if with_truth else None
    return [entry for entry, _ in entries]


def _maps_to_show(
    plan: Plan, measured: Measured, final: FitModel, store: Store
) -> list[tuple[PrepareAcquisition, FitModel]]:
    """Pair acquisitions with models that did not see them: mixed fields first, then pure, then unlabelled ones."""
    prepared = [step for step in plan.prepare if step.preset.name == final.preset.name]
    stand_ins = [
        step.fit
        for step in measured.scored
        if (step.fit.model.name, step.fit.preset.name) == (final.model.name, final.preset.name)
    ]
    mixed, pure, unlabelled = [], [], []
    shown_of: dict[str, int] = {}
    for step in prepared:
        acquisition = step.acquisition
        if not acquisition.label and acquisition.truth is None:
            unlabelled.append((step, final))
            continue
        fit = next((fit for fit in stand_ins if acquisition.group not in stages.training_groups(fit, store)), None)
        if fit is None:
            continue
        if not acquisition.label:
            mixed.append((step, fit))
        elif shown_of.get(acquisition.label, 0) < MAPS_OF_A_CLASS:
            shown_of[acquisition.label] = shown_of.get(acquisition.label, 0) + 1
            pure.append((step, fit))
    return [*mixed, *pure, *unlabelled]


def _write_map(item: _MapToWrite) -> None:
    bundle = ModelBundle.load(item.model)
    bundle = replace(bundle, provenance={**bundle.provenance, **item.about})
    image = read_spectrum_image(item.path)
    map_product(item.prepared, bundle, empty_directory(item.target), title=item.path.name, recorded=image)


def _write_truth(acquisition: Acquisition, classes: Sequence[str], directory: Path) -> bool:
    """Keep the truth of a field beside its map, in the order of the map's classes, for the report."""
    mapped = open_dataset(directory / "map.zarr")
    names = [str(name) for name in mapped["class"].values]
    n_y, n_x = mapped["class_index"].shape
    truth = class_fractions(
        (n_y, n_x), label=acquisition.label, truth=acquisition.truth, classes=names,
        name=acquisition.name,
    )  # fmt: skip
    if truth is not None:
        np.savez(directory / "truth.npz", allow_pickle=False, fraction=truth, classes=np.array(names))
    return truth is not None


def run_study(
    study: Study, out: Path, *, place: Place, on_step: OnStep | None = None,
    promote: bool = False, strict: bool = False,
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
        Called as ``on_step(title, number, total)`` before each step of a stage; and, within a step that is worked on in
        parts, as ``on_step(what, None, None)``.
    promote
        Whether the final model becomes the default one for its edge.
    strict
        Refuse acquisitions that cannot be used, instead of setting them aside.

    Returns
    -------
    dict
        The content of ``results.json``.
    """
    with using_store(place.store.root):
        return _run_study(study, out, place=place, on_step=on_step, promote=promote, strict=strict)


def _run_study(
    study: Study, out: Path, *, place: Place, on_step: OnStep | None, promote: bool, strict: bool
) -> dict[str, Any]:
    claim_directory(out)
    journal = Journal(out)
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    plan = plan_data(study, place.store, strict=strict)

    def run(stage: Callable[[StepType, Place], Outcome], steps: Sequence[StepType]) -> list[Outcome]:
        journal.note(step.digest for step in steps)
        outcomes = []
        for number, step in enumerate(steps):
            if on_step is not None:
                on_step(step.title, number, len(steps))
                place.executor.report = tell_parts(on_step, step.title)
            with turn_at_gpu(step, place.store):
                outcomes.append(stage(step, place))
        return outcomes

    plan = prepare_acquisitions(plan, run, strict=strict)
    measured, final = run_stages(plan, place, run)
    fit_final_model(plan, final, place, run)
    about = {
        "runner": "loop",
        "started": started,
        "seconds": time.perf_counter() - clock,
        "links": {},
    }
    return write_outputs(plan, measured, final, place, out, run=about, promote=promote)
