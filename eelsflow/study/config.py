"""The study file: one pydantic model, unknown keys are errors."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from eelsflow.dataset.labels import MIXED, UNLABELLED
from eelsflow.dataset.outside import Like, Outside
from eelsflow.dataset.splits import SplitBy
from eelsflow.edges import Edge, resolve_edge, resolve_edges
from eelsflow.errors import StudyFileError, UnreadableFileError
from eelsflow.models.spec import STANDARD, ModelSpec, resolve_model
from eelsflow.preprocess.presets import DISPERSION_ERROR, Align, Preset, resolve_preset
from eelsflow.robustness.amplitudes import AmplitudeRange

QUICK_SPECTRA, QUICK_SIMULATION = 600, {"acquisitions": 12, "pixels": 24}
QUICK_COPIES, QUICK_EPOCHS, QUICK_PATIENCE = 2, 30, 8
"""Of a quick study, at most."""

CLUSTER_KINDS = ("slurm", "kubernetes")
"""What starts workers for a study, beside a local cluster and the address of a scheduler."""


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else [value]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Simulated(_Part):
    """Acquisitions that are simulated for the study; see `eelsflow simulate`."""

    acquisitions: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)] = 0
    pixels: Annotated[int, Field(ge=8)] = 32
    preset: Literal["paper", "wide"] = "wide"
    detector: Literal["ccd", "counting", "both"] = "both"


class DataSource(_Part):
    """Where the spectra come from: a manifest of acquisitions, a ready table, or the simulator."""

    manifest: Path | None = None
    spectra: Path | None = None
    simulate: Simulated | None = None
    move_ev: float = 0.0
    """By how much the axis of a table is moved, eV: to where an acquisition of the same edge lies."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(source is not None for source in (self.manifest, self.spectra, self.simulate)) != 1:
            raise ValueError(
                "name one of a manifest of acquisitions, a table of spectra, and acquisitions to simulate, not several "
                "and not none"
            )
        if self.move_ev and self.spectra is None:
            raise ValueError("move_ev moves the axis of a table (spectra); acquisitions are aligned one by one")
        return self

    @property
    def has_acquisitions(self) -> bool:
        """Whether there are whole acquisitions, and not a table of spectra."""
        return self.spectra is None


class SplitPlan(_Part):
    """How spectra are held out. `by` empty: group and pixel if there are two groups or more, else pixel."""

    by: Annotated[tuple[SplitBy, ...], BeforeValidator(_as_list)] = ()
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.35
    folds: Annotated[int, Field(ge=2)] = 10
    seeds: Annotated[int, Field(ge=1)] = 10
    search: Literal["every", "first"] = "every"
    """Which seeds search the grid; with `first` the others, and the final model, are fitted with its choice."""
    spectra: Annotated[int | None, Field(ge=2)] = None
    """How many of the labelled spectra take part, chosen at random; all where None."""
    held_out_fields: Annotated[int, Field(ge=0)] = 0
    """Fields of two phases that give no spectrum to train or test on: they are mapped and scored by every model."""


class RobustnessPlan(_Part):
    """Amplitudes of the robustness curves: shift in eV, Gaussian noise in units of p99 - p1."""

    shift_ev: AmplitudeRange = AmplitudeRange(start=-10, stop=10, step=0.5)
    noise_sigma: AmplitudeRange = AmplitudeRange(start=0, stop=0.3, step=0.05)

    @field_validator("noise_sigma")
    @classmethod
    def _not_negative(cls, value: AmplitudeRange) -> AmplitudeRange:
        if value.start < 0:
            raise ValueError(f"range begins at {value.start}; a standard deviation is 0 or more")
        return value


class TrainingPlan(_Part):
    """How networks are trained where a model does not say otherwise: the authors' epochs and batch, our patience."""

    epochs: Annotated[int, Field(ge=1)] = 500
    batch_size: Annotated[int, Field(ge=1)] = 512
    patience: Annotated[int, Field(ge=1)] = 50


ChooseBy = Literal["maps", "accuracy", "translation"]

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Study(_Part):
    """A study file, resolved."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w][\w .-]*$")]
    edge: Annotated[Edge, BeforeValidator(resolve_edge)]
    classes: tuple[str, ...] = ()
    valence: dict[str, float] = {}
    density: Annotated[float | None, Field(gt=0, le=25)] = None
    caution: str = ""
    dispersion_error: Annotated[float | None, Field(gt=0, lt=0.1)] = None
    """How well the dispersion of every file is known, simulated ones included, a relative standard deviation.
    Where None presets say it, and the simulator has its own."""
    data: DataSource
    preprocess: Annotated[
        tuple[Annotated[Preset, BeforeValidator(resolve_preset)], ...], BeforeValidator(_as_list), Field(min_length=1)
    ]
    split: SplitPlan = SplitPlan()
    models: Annotated[
        tuple[Annotated[ModelSpec, BeforeValidator(resolve_model)], ...], BeforeValidator(_as_list), Field(min_length=1)
    ] = tuple(resolve_model(base) for base in STANDARD)
    grids: Literal["paper", "authors", "small"] = "paper"
    extend_grid: bool = False
    training: TrainingPlan = TrainingPlan()
    robustness: RobustnessPlan = RobustnessPlan()
    choose_by: ChooseBy = "maps"
    """What decides which model leaves the study: maps of held-out acquisitions, where there are some, and else the
    accuracy of single spectra; that accuracy always; or that of shifted spectra."""
    outside: tuple[Outside, ...] = ()
    """Spectra of other laboratories that every model judges and none is trained on."""
    cluster: str | dict[str, dict[str, Any]] = "local"

    @model_validator(mode="before")
    @classmethod
    def _join_edges(cls, value: Any) -> Any:
        """Let ``edges: [O_K, Fe_L3]`` name edges that are judged together."""
        if not isinstance(value, dict) or "edges" not in value:
            return value
        if "edge" in value:
            raise ValueError("edge and edges are both given; write edges: [...] for several, edge: ... for one")
        edges = value["edges"]
        if not isinstance(edges, list | tuple) or not edges:
            raise ValueError(f"edges is a list of edges that are judged together, found {edges!r}")
        rest = {name: one for name, one in value.items() if name != "edges"}
        return {**rest, "edge": resolve_edges(edges)}

    @model_validator(mode="before")
    @classmethod
    def _default_preprocess(cls, value: Any) -> Any:
        if isinstance(value, dict) and "preprocess" not in value:
            is_table = isinstance(value.get("data"), dict) and "spectra" in value["data"]
            return {**value, "preprocess": "none" if is_table else "recommended"}
        return value

    @field_validator("classes")
    @classmethod
    def _not_reserved(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        for name in (MIXED, UNLABELLED):
            if name in classes:
                raise ValueError(
                    f"{name!r} is what pixels of no single class are called, and those are never trained on: call "
                    "the class something else"
                )
        return classes

    @field_validator("cluster")
    @classmethod
    def _known_cluster(cls, cluster: str | dict[str, dict[str, Any]]) -> str | dict[str, dict[str, Any]]:
        if isinstance(cluster, str):
            known = cluster == "local" or ":" in cluster
        else:
            known = len(cluster) == 1 and set(cluster) <= set(CLUSTER_KINDS)
        if not known:
            raise ValueError(
                f"{cluster!r} is no cluster; write 'local', the address of a scheduler (tcp://host:8786), or one of "
                f"{', '.join(f'{{{kind}: {{...}}}}' for kind in CLUSTER_KINDS)}"
            )
        return cluster

    @field_validator("preprocess")
    @classmethod
    def _knowing_the_dispersion(cls, presets: tuple[Preset, ...], info: ValidationInfo) -> tuple[Preset, ...]:
        error: float | None = info.data.get("dispersion_error")
        if error is None:
            return presets
        for preset in presets:
            align = preset.find(Align)
            if align is None:
                raise ValueError(
                    f"{preset.name!r} does not align acquisitions, so the study's dispersion_error means nothing to "
                    "it: add the step align, or leave dispersion_error out"
                )
            if align.dispersion_error not in (DISPERSION_ERROR, error):
                raise ValueError(
                    f"the step align of {preset.name!r} says dispersion_error {align.dispersion_error:g} and the study "
                    f"{error:g}: leave one of them out"
                )
        return tuple(preset.knowing_the_dispersion(error) for preset in presets)

    @field_validator("preprocess")
    @classmethod
    def _named_like_files(cls, presets: tuple[Preset, ...]) -> tuple[Preset, ...]:
        for preset in presets:
            if not _FILE_NAME.fullmatch(preset.name):
                raise ValueError(
                    f"{preset.name!r} would be part of the names of files: use letters, digits, dot, dash, plus and "
                    "underscore, a letter or digit first"
                )
        return presets

    @field_validator("preprocess")
    @classmethod
    def _background_can_be_fitted(cls, presets: tuple[Preset, ...], info: ValidationInfo) -> tuple[Preset, ...]:
        edge: Edge | None = info.data.get("edge")  # none if it was refused itself
        preparing = next((preset for preset in presets if preset.acquisition_steps), None)
        if edge is not None and preparing is not None:
            try:
                _ = edge.background_window
            except StudyFileError as error:
                raise ValueError(f"{preparing.name!r} prepares raw acquisitions, and {error}") from error
        return presets

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, names in (
            ("models", [model.name for model in self.models]),
            ("preprocess", [preset.name for preset in self.preprocess]),
            ("classes", list(self.classes)),
            ("split.by", [str(by) for by in self.split.by]),
            ("outside", [test.name for test in self.outside]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} names {twice} more than once; results would overwrite each other")
        if self.valence and self.classes and set(self.valence) != set(self.classes):
            raise ValueError(
                f"valence names {sorted(self.valence)} and the classes are {sorted(self.classes)}; a map of the "
                "valence needs that of every class: name all of them, or none"
            )
        for preset in self.preprocess:
            if self.data.has_acquisitions and not preset.acquisition_steps:
                raise ValueError(
                    f"preprocess {preset.name!r} has no step that prepares acquisitions, and the data are raw "
                    "acquisitions: use 'recommended' or 'paper'"
                )
            if self.data.spectra is not None and preset.acquisition_steps:
                raise ValueError(
                    f"preprocess {preset.name!r} prepares raw acquisitions, and the data is a table of ready spectra: "
                    "use 'none' (or only steps that are fitted on the training set, such as normalize)"
                )
        for test in self.outside:
            named = {
                *test.labels.values(),
                *(part.label for part in (test, test.place) if isinstance(part, Like | Outside)),
            }
            if unknown := sorted(named - {None, *self.classes}, key=str) if self.classes else []:
                raise ValueError(
                    f"outside, {test.name}: {unknown} is no class of the study, which has {list(self.classes)}"
                )
        if self.edge.beside and not self.data.has_acquisitions:
            raise ValueError(
                f"edges: {', '.join(one.name for one in self.edge.alone)} are judged together where acquisitions are "
                "prepared, and the data is a table of ready spectra, which is of one edge: name that edge"
            )
        if self.dispersion_error is not None and not self.edge.beside:
            raise ValueError(
                f"dispersion_error: edges together judge the dispersion, and the study has {self.edge.name} alone: "
                "name the edges (edges: [O_K, Fe_L3]), or leave it out"
            )
        if self.outside and self.data.has_acquisitions:
            raise ValueError(
                "outside: spectra of other laboratories are judged by models of a table (data.spectra); acquisitions "
                "of other laboratories are mapped with `eelsflow classify`"
            )
        if self.data.has_acquisitions and len(self.classes) < 2:
            raise ValueError(f"classes are {list(self.classes)}; a classifier needs at least two")
        return self

    def quick(self) -> Study:
        """Return a small version of this study for a first look: small grids, 2 seeds, 3 folds, 30 epochs, few copies.

        Where its acquisitions are simulated, they are few and small.
        """
        spectra = None if self.split.spectra is None else min(self.split.spectra, QUICK_SPECTRA)
        split = self.split.model_copy(
            update={"seeds": min(self.split.seeds, 2), "folds": min(self.split.folds, 3), "spectra": spectra},
        )
        data = self.data
        if data.simulate is not None:
            update = {name: min(getattr(data.simulate, name), most) for name, most in QUICK_SIMULATION.items()}
            data = data.model_copy(update={"simulate": data.simulate.model_copy(update=update)})
        training = self.training.model_copy(
            update={
                "epochs": min(self.training.epochs, QUICK_EPOCHS),
                "patience": min(self.training.patience, QUICK_PATIENCE),
                "batch_size": min(self.training.batch_size, 64),
            }
        )
        robustness = RobustnessPlan(
            shift_ev=AmplitudeRange(start=-10, stop=10, step=5),
            noise_sigma=AmplitudeRange(start=0, stop=0.3, step=0.15),
        )
        models = tuple(
            model
            if model.augment is None
            else model.model_copy(
                update={"augment": model.augment.model_copy(update={"copies": min(model.augment.copies, QUICK_COPIES)})}
            )
            for model in self.models
        )
        return self.model_copy(
            update={
                "data": data,
                "split": split,
                "models": models,
                "training": training,
                "grids": "small",
                "robustness": robustness,
            }
        )


_VARIABLE = re.compile(r"\$\{(\w+)\}")


def _expand(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise StudyFileError(f"the study file uses ${{{name}}}, which is not set; set it in the environment")
        return os.environ[name]

    return _VARIABLE.sub(value, text)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would take the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused below
            line = key_node.start_mark.line + 1
            if key_node.value in lines:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key_node.value!r} was already given in line {lines[key_node.value]}, and only one of "
                    "the two can count: remove one",
                    key_node.start_mark,
                )
            lines[key_node.value] = line
        return super().construct_mapping(node, deep=deep)


def _explain_yaml(error: yaml.YAMLError) -> str:
    """Say in one line where the text stops to be YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    reason = ", ".join(part for part in (error.context, error.problem) if part)  # type: ignore[attr-defined]
    return f"line {mark.line + 1}, column {mark.column + 1}: {reason}"


def load_study(path: Path | str) -> Study:
    """Read a study file.

    Parameters
    ----------
    path
        YAML. Paths in it are relative to its folder; ``${VARIABLES}`` in paths are expanded.

    Raises
    ------
    UnreadableFileError
        If the file cannot be read.
    StudyFileError
        If it is not YAML, or does not follow the model: the message names each key that is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFileError(f"study file {path} cannot be read: {error}") from error
    try:
        content = yaml.load(text, Loader=_Loader)  # a safe loader
    except yaml.YAMLError as error:
        raise StudyFileError(f"study file {path} cannot be read as YAML: {_explain_yaml(error)}") from error
    if not isinstance(content, dict):
        raise StudyFileError(
            f"study file {path} holds {type(content).__name__}, expected keys and values; "
            "`eelsflow study --init` writes an example"
        )
    data = content.get("data")
    if isinstance(data, dict):
        content["data"] = {
            key: (path.parent / _expand(value)).resolve() if isinstance(value, str) else value
            for key, value in data.items()
        }
    outside = content.get("outside")
    for test in outside if isinstance(outside, list) else []:
        for part in (test, test.get("place") if isinstance(test, dict) else None):
            if isinstance(part, dict) and isinstance(part.get("spectra"), str):
                part["spectra"] = (path.parent / _expand(part["spectra"])).resolve()
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise StudyFileError(f"study file {path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """Say each problem in one line: where, what was found, what is wrong with it."""
    problems = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key; check its spelling (`eelsflow study --init` shows every key)"
        elif problem["type"] != "value_error" and not isinstance(problem["input"], dict):
            message += f", found {problem['input']!r}"
        problems.append(f"{where or 'the whole file'}: {message}")
    return "; ".join(problems)


EXAMPLE = """\
# An eelsflow study. Every key is explained; delete what you do not change.
name: iron-oxide
edge: O_K                      # a shipped edge (O_K, Fe_L3, Mn_L3), or spelled out in eV: {name, reference_energy,
                               # align_on: first_peak|maximum, elnes_window: [a, b], pre_edge_window: [a, b]};
                               # preprocess none needs no pre_edge_window
# edges: [O_K, Fe_L3]          # instead: edges of the same spectra, judged together
# dispersion_error: 0.0005     # of edges together: how well that of files is known, relatively; without it 0.02, and
                               # 0.004 is that of simulated ones
classes: [FeO, Fe3O4]
valence: {FeO: 2.0, Fe3O4: 2.667}  # optional: mean valence of each class, for a map of it
# density: 5.4                 # optional, g/cm3: thickness in nm where a low loss and the microscope's angles are known
# caution: a sentence           # optional: goes with the model into every map; of simulated data it says so by itself
data:
  manifest: manifest.csv       # columns path,label,group[,session,truth,low_loss]; label is the class of every specimen
                               # pixel, empty: per-pixel truth, neither: prepared and mapped only
  # simulate: {acquisitions: 60, seed: 1, pixels: 32, preset: wide, detector: both}   # instead: none of your own yet
  # spectra: table.npz         # instead of a manifest: arrays spectra, energy_loss, label and optionally group
preprocess: [recommended, paper]   # recommended, deconvolved (single scattering, by the low loss), paper, paper-raw (no
                               # PCA), none; a row of results for each
split:
  by: [group, pixel]           # hold out whole acquisitions, and random pixels as the paper did
  test_fraction: 0.35
  folds: 10                    # of the grid search, inside the training part
  seeds: 10                    # repetitions with other splits
  # search: first              # the grid is searched on the first seed alone, and the others are fitted with its choice
  # spectra: 5000              # a random choice of so many labelled spectra, instead of all
  # held_out_fields: 4         # so many fields of two phases give no spectrum: every model maps them, and is scored
models: [mlls, svm-linear, svm-rbf, svm-sigmoid, svm-sgd, fcnn-1, cnn-1, cnn-2]
                               # or {name: mine, base: cnn-2, params: {dropout: 0.3},
                               # grid: {learning_rate: [1e-4, 1e-3]}, augment: {shift_ev: 5, noise_sigma: 0.1}}
grids: paper                   # or authors, small
# extend_grid: true            # search on where the best value is the last of its grid
training: {epochs: 500, batch_size: 512, patience: 50}
robustness: {shift_ev: [-10, 10, 0.5], noise_sigma: [0, 0.3, 0.05]}
# choose_by: translation       # decides which model is kept: maps (or accuracy, without any), accuracy, translation
# outside: [...]               # spectra of other laboratories that every model judges: see docs/manganese.md
cluster: local                 # or the address of a Dask scheduler
"""
