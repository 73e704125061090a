"""What a study computes, as a pure value: steps with a digest each, before anything is run.

A step's digest is the address of its result: digest(content of the inputs, parameters, code version). Steps name
their inputs by digest, so a change of one acquisition or one parameter changes exactly the digests that depend on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from eelsflow.dataset.aside import SetAside, attempt, merge, named_in_refusals, refuse
from eelsflow.dataset.labels import require_label
from eelsflow.dataset.manifest import (
    Acquisition,
    Row,
    check_labels,
    classes_held,
    name_acquisitions,
    open_acquisition,
    read_rows,
    refuse_repeats,
)
from eelsflow.dataset.outside import Outside, check_outside
from eelsflow.dataset.splits import SplitBy
from eelsflow.digest import code_version, digest_file, digest_of
from eelsflow.edges import Edge
from eelsflow.errors import DataSetError
from eelsflow.models.imported import source_digest
from eelsflow.models.spec import ModelSpec, Param, resolve_model
from eelsflow.preprocess.presets import Preset
from eelsflow.robustness.curves import Curve, further_curves
from eelsflow.simulator import KNOWN_FIELDS, simulate_directory
from eelsflow.store import Store
from eelsflow.study.config import Simulated, Study, TrainingPlan

SplitName = SplitBy | Literal["all"]

_FOUNDATION = ("energy", "edges", "spectrum_image")


class Step(BaseModel, ABC):
    """A piece of work that a person may want to see, retry or reuse."""

    model_config = ConfigDict(frozen=True, ignored_types=(cached_property,))

    def __copy__(self) -> Self:
        """Copy what the step is, not what was derived from it: `model_copy` would keep the digest of other fields."""
        return self._forget_derived(super().__copy__())

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """As `__copy__`."""
        return self._forget_derived(super().__deepcopy__(memo))

    @classmethod
    def _forget_derived(cls, copied: Self) -> Self:
        for name in set(copied.__dict__) - set(cls.model_fields):
            del copied.__dict__[name]
        return copied

    @property
    @abstractmethod
    def title(self) -> str:
        """What the step does, in the words of a method section."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """The address of the step's result."""


class PrepareAcquisition(Step):
    """Prepare one acquisition by the acquisition steps of a preset."""

    acquisition: Acquisition
    edge: Edge
    preset: Preset

    @property
    def title(self) -> str:
        """What the step does."""
        return f"prepare {self.acquisition.name} ({self.preset.name})"

    @cached_property
    def digest(self) -> str:
        """Address: the files' bytes, edge, acquisition steps, code."""
        steps = [step.model_dump(mode="json") for step in self.preset.acquisition_steps]
        code = code_version(
            "preparation", "preprocess", "low_loss", "io", "study.stages", "study.evidence", *_FOUNDATION
        )
        files = [self.acquisition.sha256, self.acquisition.low_loss_sha256]
        return digest_of("prepare", files, self.edge, steps, code)


class BuildDataSet(Step):
    """Collect the labelled pixels of prepared acquisitions, or read a table."""

    preset_name: str
    classes: tuple[str, ...]
    acquisitions: tuple[Acquisition, ...] = ()
    prepared: tuple[str, ...] = ()
    table: Path | None = None
    table_sha256: str = ""
    move_ev: float = 0.0
    n_spectra: int | None = None

    @property
    def title(self) -> str:
        """What the step does."""
        return f"build data set ({self.preset_name})"

    @property
    def inputs(self) -> list[tuple[str, Acquisition]]:
        """The prepared products, each with its acquisition, in the order of the files' bytes.

        Not in the manifest's order, so that the order of its rows does not matter; and not in that of the products'
        digests, so that a seed splits alike whatever the preset and the version of the code.
        """
        pairs = zip(self.prepared, self.acquisitions, strict=True)
        return sorted(pairs, key=lambda pair: pair[1].sha256)

    @cached_property
    def digest(self) -> str:
        """Address: the prepared products and their labels, or the table's bytes."""
        inputs = [
            [digest, acquisition.label, acquisition.group, acquisition.truth_sha256]
            for digest, acquisition in self.inputs
        ]
        code = code_version("dataset", "study.stages")
        return digest_of("data set", inputs, self.table_sha256, self.move_ev, self.classes, self.n_spectra, code)


class FitFeatures(Step):
    """Split a data set and fit what turns spectra into vectors on its training part."""

    dataset: str
    edge: Edge
    preset: Preset
    split: SplitName
    test_fraction: float
    seed: int

    @property
    def title(self) -> str:
        """What the step does."""
        return f"split by {self.split} and fit features ({self.preset.name}, seed {self.seed})"

    @cached_property
    def digest(self) -> str:
        """Address: data set, split, training steps, edge, code."""
        steps = [step.model_dump(mode="json") for step in self.preset.training_steps]
        code = code_version("preprocess", "unmixing", "dataset", "study.stages", *_FOUNDATION)
        split = [self.split, self.test_fraction if self.split != "all" else 0, self.seed]
        return digest_of("features", self.dataset, self.edge, steps, split, code)


class FitModel(Step):
    """Search a model's parameters inside the training part and fit it with the best."""

    features: FitFeatures
    model: ModelSpec
    grid: dict[str, tuple[Param, ...]]
    folds: int
    training: TrainingPlan
    preset: Preset
    extend_grid: bool = False

    @property
    def title(self) -> str:
        """What the step does."""
        verb = "train" if self.model.is_network else "search and fit" if self.grid else "fit"
        return f"{verb} {self.model.name} ({self.preset.name}, {self.features.split}, seed {self.features.seed})"

    @cached_property
    def digest(self) -> str:
        """Address: features, model, grid, folds, training, code."""
        parts = [self.model, *map(resolve_model, self.model.members)]
        training = self.training if any(part.is_network for part in parts) else None
        code = code_version("models", "search", "robustness.perturb", "dataset.splits", "study.stages")
        # The whole preset, not its training steps alone: the saved model says how a file must be prepared for it.
        preset = [step.model_dump(mode="json") for step in self.preset.steps]
        return digest_of(
            "model",
            self.features.digest,
            self.model.model_dump(mode="json", exclude={"name"}),
            {name: list(values) for name, values in self.grid.items()},
            self.extend_grid,
            self.folds,
            training,
            preset,
            code,
            [source_digest(part.base) for part in parts if part.is_open],
        )


class AssessModel(Step):
    """Measure a fitted model on its test part: as it is, shifted and with noise."""

    fit: FitModel
    curves: tuple[Curve, ...]

    @property
    def title(self) -> str:
        """What the step does."""
        features = self.fit.features
        return f"assess {self.fit.model.name} ({self.fit.preset.name}, {features.split}, seed {features.seed})"

    @cached_property
    def digest(self) -> str:
        """Address: the model, the curves, code."""
        code = code_version("robustness", "simulator.edges", "study.stages")
        return digest_of("assessment", self.fit.digest, list(self.curves), code)


class ScoreMaps(Step):
    """Map the acquisitions that a fitted model was not trained on, and compare the maps with the truth."""

    fit: FitModel
    classes: tuple[str, ...]
    acquisitions: tuple[Acquisition, ...]
    prepared: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the step does."""
        return f"score maps of {self.fit.model.name} ({self.fit.preset.name}, seed {self.fit.features.seed})"

    @cached_property
    def digest(self) -> str:
        """Address: the model, the prepared products, their truth, code."""
        inputs = [
            [prepared, acquisition.label, acquisition.group, acquisition.truth_sha256]
            for prepared, acquisition in zip(self.prepared, self.acquisitions, strict=True)
        ]
        return digest_of("maps", self.fit.digest, inputs, code_version("maps", "unmixing", "study.stages"))


class JudgeOutside(Step):
    """Let a model that was fitted on all labelled spectra judge those of other laboratories."""

    fit: FitModel
    tests: tuple[Outside, ...]
    sha256: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the step does."""
        return f"judge spectra of other laboratories by {self.fit.model.name} ({self.fit.preset.name})"

    @cached_property
    def digest(self) -> str:
        """Address: the model, the tests, the bytes of their files, code."""
        tests = [test.model_dump(mode="json") for test in self.tests]
        return digest_of("outside", self.fit.digest, tests, self.sha256, code_version("dataset", "io", "study.stages"))


class Plan(BaseModel):
    """Everything a study computes, stage by stage."""

    model_config = ConfigDict(frozen=True)

    study: Study
    acquisitions: tuple[Acquisition, ...]
    prepare: tuple[PrepareAcquisition, ...]
    datasets: tuple[BuildDataSet, ...]
    set_aside: tuple[SetAside, ...] = ()

    def without(self, found: Sequence[SetAside], *, strict: bool = False) -> Plan:
        """Return the plan of the study without acquisitions that turned out not to be usable.

        It is that of a study whose manifest lacks them, but for the list of what was set aside.

        Parameters
        ----------
        found
            Why not; an acquisition may have several entries, one for each preset.
        strict
            Refuse them instead.

        Raises
        ------
        InputError
            If it is strict.
        DataSetError
            If the acquisitions that are left do not suffice: the message names those set aside.
        """
        if not found:
            return self
        names = {one.acquisition for one in found}
        usable = [acquisition for acquisition in self.acquisitions if acquisition.given not in names]
        return _plan_acquisitions(self.study, usable, merge([*self.set_aside, *found]), strict=strict)


def simulated_manifest(
    simulated: Simulated, edge: Edge, store: Store, *, dispersion_error: float | None = None
) -> Path:
    """Simulate acquisitions that show the edge, or find them in the store, and return their manifest.

    Their dispersions are wrong by `dispersion_error`, a relative standard deviation; as the preset has it where None.
    """
    window = edge.recorded_window

    def write(directory: Path) -> None:
        simulate_directory(
            directory,
            n_acquisitions=simulated.acquisitions,
            seed=simulated.seed,
            shape=(simulated.pixels, simulated.pixels),
            preset=simulated.preset,
            # the preset of cubes has one detector and its own scenes
            detector=simulated.detector if simulated.preset == "wide" else None,
            scenes=KNOWN_FIELDS if simulated.preset == "wide" else None,
            window=window,
            dispersion_error=dispersion_error,
        )

    code = code_version("simulator", "io", *_FOUNDATION)
    digest = digest_of("simulated", simulated, window, dispersion_error, code)
    return store.compute(digest, write) / "manifest.csv"


def plan_data(study: Study, store: Store, *, strict: bool = False) -> Plan:
    """Plan the preparation of a study's data; reads the manifest, the bytes of every input and every truth.

    Acquisitions that the study wants simulated are simulated into the store first.

    Parameters
    ----------
    study, store
        What is planned, and where it is kept.
    strict
        Refuse acquisitions that cannot be used, instead of setting them aside.

    Raises
    ------
    EelsflowError
        If the manifest or a table cannot be read, the labels are not those of a study, an acquisition cannot be used
        and `strict` is set, or those that can do not suffice.
    """
    if study.data.spectra is not None:
        for test in study.outside:
            check_outside(test)
        sha256 = digest_file(study.data.spectra)
        datasets = tuple(
            BuildDataSet(
                preset_name=preset.name,
                classes=study.classes,
                table=study.data.spectra,
                table_sha256=sha256,
                move_ev=study.data.move_ev,
                n_spectra=study.split.spectra,
            )
            for preset in study.preprocess
        )
        return Plan(study=study, acquisitions=(), prepare=(), datasets=datasets)

    manifest = study.data.manifest
    if study.data.simulate is not None:
        manifest = simulated_manifest(study.data.simulate, study.edge, store, dispersion_error=study.dispersion_error)
    assert manifest is not None  # the study model has one of the three
    rows = read_rows(manifest)
    for row in rows:
        if row.label:
            require_label(row.label, study.classes, name=row.path)
    found = [attempt(row.path, partial(_open, row, study.classes)) for row in rows]
    opened = [(row, one) for row, one in zip(rows, found, strict=True) if isinstance(one, Acquisition)]
    usable = [acquisition for _, acquisition in opened]
    refuse_repeats([row for row, _ in opened], usable)
    set_aside = merge([one for one in found if isinstance(one, SetAside)])
    return _plan_acquisitions(study, usable, set_aside, strict=strict)


def _open(row: Row, classes: Sequence[str]) -> Acquisition:
    """Read the bytes of an acquisition's files, and its truth."""
    acquisition = open_acquisition(row)
    classes_held(acquisition, classes)
    return acquisition


def _plan_acquisitions(
    study: Study, usable: Sequence[Acquisition], set_aside: tuple[SetAside, ...], *, strict: bool
) -> Plan:
    """Plan the preparation of the acquisitions that can be used, as far as is known, if they suffice."""
    total = len(usable) + len(set_aside)
    if strict:
        refuse(set_aside, total=total)
    acquisitions = tuple(name_acquisitions(usable))
    with named_in_refusals(set_aside, total=total):
        check_labels(acquisitions, study.classes, split_by=study.split.by)
        kept = _groups_for_maps(acquisitions, study.split.held_out_fields)
    prepare: list[PrepareAcquisition] = []
    datasets: list[BuildDataSet] = []
    for preset in study.preprocess:
        steps = tuple(
            PrepareAcquisition(acquisition=acquisition, edge=study.edge, preset=preset.for_acquisition)
            for acquisition in acquisitions
        )
        prepare += steps
        trained_on = [step for step in steps if step.acquisition.group not in kept]
        datasets.append(
            BuildDataSet(
                preset_name=preset.name,
                classes=study.classes,
                acquisitions=tuple(step.acquisition for step in trained_on),
                prepared=tuple(step.digest for step in trained_on),
                n_spectra=study.split.spectra,
            )
        )
    return Plan(
        study=study,
        acquisitions=acquisitions,
        prepare=tuple(prepare),
        datasets=tuple(datasets),
        set_aside=set_aside,
    )


def _groups_for_maps(acquisitions: Sequence[Acquisition], n_fields: int) -> set[str]:
    """Return the groups of so many fields of two phases, chosen by the bytes of their files.

    Raises
    ------
    DataSetError
        If there are not more than that.
    """
    fields = [acquisition for acquisition in acquisitions if not acquisition.label and acquisition.truth is not None]
    fields.sort(key=lambda acquisition: acquisition.sha256)
    if n_fields and n_fields > len(fields):
        raise DataSetError(
            f"{n_fields} fields of two phases were to be kept for maps (split.held_out_fields), and {len(fields)} "
            "acquisitions have a truth for every pixel and no label; ask for fewer"
        )
    return {one.group for one in fields[:n_fields]}


def plan_features(study: Study, dataset: BuildDataSet, preset: Preset, *, splits: list[SplitBy]) -> list[FitFeatures]:
    """Plan the splits of one data set: every way of splitting, every seed."""
    return [
        FitFeatures(
            dataset=dataset.digest,
            edge=study.edge,
            preset=preset,
            split=split,
            test_fraction=study.split.test_fraction,
            seed=seed,
        )
        for split in splits
        for seed in range(study.split.seeds)
    ]


def plan_model(study: Study, features: FitFeatures, model: ModelSpec) -> FitModel:
    """Plan one model on one split."""
    return FitModel(
        features=features,
        model=model,
        grid=model.resolve_grid(study.grids),
        folds=study.split.folds,
        training=study.training,
        preset=features.preset,
        extend_grid=study.extend_grid,
    )


def without_search(fit: FitModel, best_params: Mapping[str, Param]) -> FitModel:
    """Return the plan of a model with the parameters that a search on other training spectra has chosen."""
    chosen = {name: best_params[name] for name in fit.grid}
    model = fit.model.model_copy(update={"params": {**fit.model.params, **chosen}, "grid": {}})
    return fit.model_copy(update={"model": model, "grid": {}, "extend_grid": False})


def plan_assessment(study: Study, fit: FitModel) -> AssessModel:
    """Plan the assessment of one fitted model."""
    robustness = study.robustness
    curves = (
        Curve(perturbation="shift_ev", unit="eV", amplitudes=robustness.shift_ev.values),
        Curve(perturbation="noise_sigma", unit="(p99 - p1) of the spectrum", amplitudes=robustness.noise_sigma.values),
        *further_curves(has_variance=study.data.spectra is None),
    )
    return AssessModel(fit=fit, curves=curves)


def plan_outside(
    study: Study, fits: Sequence[FitModel], best_params: Mapping[str, Mapping[str, Param]]
) -> list[JudgeOutside]:
    """Plan the judgement of spectra of other laboratories by every model, fitted once more on all labelled spectra.

    Parameters
    ----------
    study, fits
        What is studied, and its models on their splits.
    best_params
        Digest of the first fit of each model and preset -> the parameters that it chose.
    """
    if not study.outside:
        return []
    files = [path for test in study.outside for path in (test.spectra, getattr(test.place, "spectra", None))]
    sha256 = tuple(digest_file(path) for path in files if path is not None)
    steps = []
    for fit in fits:
        if fit.digest in best_params:
            features = fit.features.model_copy(update={"split": "all", "seed": 0})
            whole = fit.model_copy(update={"features": features})
            if whole.grid:
                whole = without_search(whole, best_params[fit.digest])
            steps.append(JudgeOutside(fit=whole, tests=study.outside, sha256=sha256))
    return steps


MAP_SEEDS = 3
"""Splits whose models draw maps: as many hold out nearly every acquisition once (ours)."""


def plan_maps(plan: Plan, fits: Sequence[FitModel]) -> list[ScoreMaps]:
    """Plan the maps of the models that held out whole acquisitions; none for tables.

    A random split of pixels holds out none, but for fields of two phases that are kept for maps.
    """
    splits = {fit.features.split for fit in fits}
    mapped = "group" if "group" in splits or not plan.study.split.held_out_fields else "pixel"
    steps = []
    for fit in fits:
        if fit.features.split != mapped or fit.features.seed >= MAP_SEEDS or not plan.acquisitions:
            continue
        # a preset's acquisition steps keep its name
        prepared = [step for step in plan.prepare if step.preset.name == fit.preset.name]
        known = [step for step in prepared if step.acquisition.label or step.acquisition.truth is not None]
        known.sort(key=lambda step: step.acquisition.sha256)  # the order of the manifest's rows does not matter
        steps.append(
            ScoreMaps(
                fit=fit,
                classes=plan.study.classes,
                acquisitions=tuple(step.acquisition for step in known),
                prepared=tuple(step.digest for step in known),
            )
        )
    return steps
