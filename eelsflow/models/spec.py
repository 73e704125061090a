"""What a model is, as data: a base, fixed parameters, a grid to search and the augmentation of its training spectra."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, cast, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from eelsflow.errors import DataSetError

Align = Literal["spectrum", "acquisition", "marginal"]
Features = Literal["unit", "cumulative", "ratio", "convolutions"]
Shipped = Literal["mlls", "svm-linear", "svm-rbf", "svm-sigmoid", "svm-sgd", "fcnn-1", "cnn-1", "cnn-2", "fcn-1"]
GridSet = Literal["paper", "authors", "small"]

Base = str
"""One of `BASES`, or what a study brings along: ``sklearn:package.Class`` or ``keras:package.function``."""


def _as_number(value: Any) -> Any:
    """Return text that is a number as one: YAML takes 1e-4, without a point, for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Param = Annotated[bool | int | float | str | None, BeforeValidator(_as_number)]

BASES: tuple[Shipped, ...] = get_args(Shipped)
NETWORKS: tuple[Shipped, ...] = ("fcnn-1", "cnn-1", "cnn-2", "fcn-1")
STANDARD: tuple[Shipped, ...] = BASES[:8]
"""The models of a study that names none: the paper's, and the discriminant."""

ENSEMBLE = "ensemble"

NAMED: dict[str, dict[str, Any]] = {
    "svm-cosine": {"base": "svm-linear", "features": "unit"},
    "rocket-rbf": {"base": "svm-rbf", "features": "convolutions"},
    "forest": {
        "base": "sklearn:sklearn.ensemble.RandomForestClassifier",
        "features": "cumulative",
        "params": {"n_estimators": 200, "min_samples_leaf": 2},
    },
    "ratio": {"base": "sklearn:sklearn.linear_model.LogisticRegression", "features": "ratio"},
}
"""Models that have a name of their own, beside the bases."""

PARAMETERS: dict[str, tuple[str, ...]] = {
    "mlls": (),
    "svm-linear": ("C",),
    "svm-rbf": ("C", "gamma"),
    "svm-sigmoid": ("C", "gamma", "coef0"),
    "svm-sgd": ("alpha",),
    "fcnn-1": ("learning_rate", "dropout", "batch_size", "epochs", "patience", "units"),
    "cnn-1": ("learning_rate", "dropout", "batch_size", "epochs", "patience"),
    "cnn-2": ("learning_rate", "dropout", "batch_size", "epochs", "patience"),
    "fcn-1": ("learning_rate", "dropout", "batch_size", "epochs", "patience"),
}
"""The parameters each base understands, in the order in which a grid's axes are laid out."""

DEFAULTS: dict[str, dict[str, float]] = {
    "mlls": {},
    "svm-linear": {"C": 1.0},
    "svm-rbf": {"C": 100.0, "gamma": 0.1},
    "svm-sigmoid": {"C": 10.0, "gamma": 0.01, "coef0": 0.0},
    "svm-sgd": {"alpha": 1e-4},
    "fcnn-1": {"learning_rate": 1e-3, "dropout": 0.5, "units": 64},
    "cnn-1": {"learning_rate": 1e-3, "dropout": 0.1},
    "cnn-2": {"learning_rate": 1e-3, "dropout": 0.5},
    "fcn-1": {"learning_rate": 1e-3, "dropout": 0.1},
}
"""Values of the parameters that neither `params` nor a grid names."""

TRAINING_PARAMETERS = ("learning_rate", "batch_size", "epochs", "patience")
"""Of every network: how it is trained."""

OPEN = ("sklearn:", "keras:")
"""What bases begin with that are imported by their name."""

_INTEGERS = {"batch_size", "epochs", "patience", "units"}


def _log_grid(first: float, last: float, size: int) -> tuple[float, ...]:
    return tuple(float(value) for value in np.logspace(first, last, size))


GRIDS: dict[GridSet, dict[str, dict[str, tuple[float, ...]]]] = {
    # The paper gives the sizes of the RBF grid and the optima. C=2714 is probably 10^2.714, the sixth of
    # logspace(-3, 5, 8); the ranges of the other two are the authors', widened to hold the paper's optima.
    "paper": {
        "svm-linear": {"C": _log_grid(-5, 5, 11)},
        "svm-rbf": {"C": _log_grid(-3, 5, 8), "gamma": _log_grid(-6, 4, 11)},
        "svm-sigmoid": {"C": _log_grid(-3, 5, 8), "gamma": _log_grid(-6, 1, 8), "coef0": (0.0, 0.1, 1.0)},
    },
    # The published code of the same group: del-Pozo-Bueno et al., Ultramicroscopy 221, 113190 (2021).
    "authors": {
        "svm-linear": {"C": _log_grid(-5, 4, 10)},
        "svm-rbf": {"C": _log_grid(-3, 4, 8), "gamma": _log_grid(-6, 4, 11)},
        "svm-sigmoid": {"C": _log_grid(-5, 4, 10), "gamma": _log_grid(-6, 4, 11), "coef0": _log_grid(-5, 3, 9)},
    },
    # Ours, for demonstrations: around the optima seen for min-max normalised spectra of 300 channels.
    "small": {
        "svm-linear": {"C": _log_grid(-1, 2, 4)},
        "svm-rbf": {"C": _log_grid(-1, 3, 5), "gamma": _log_grid(-3, 1, 5)},
        "svm-sigmoid": {"C": _log_grid(0, 3, 4), "gamma": _log_grid(-5, -1, 5), "coef0": (0.0,)},
    },
}
"""Named grids: set -> base -> parameter -> values. Bases that are not named (mlls, SGD and the networks) have none."""


class Augment(BaseModel):
    """Altered copies of the training spectra, added to the training part only.

    Each copy of a spectrum is folded with a Gaussian of a full width at half maximum from U(0, broaden_ev), shifted by
    U(-shift_ev, +shift_ev) and then given Gaussian noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shift_ev: Annotated[float, Field(ge=0, description="largest shift either way, eV")] = 0.0
    noise_sigma: Annotated[float, Field(ge=0, description="noise, in units of the spectrum's p99 - p1")] = 0.0
    broaden_ev: Annotated[float, Field(ge=0, description="largest broadening, eV")] = 0.0
    copies: Annotated[int, Field(ge=1, le=100, description="altered copies of each spectrum")] = 1

    @model_validator(mode="after")
    def _alters(self) -> Self:
        if self.shift_ev == self.noise_sigma == self.broaden_ev == 0:
            raise ValueError(
                "augment with shift_ev 0, noise_sigma 0 and broaden_ev 0 would add plain duplicates; set one of them"
            )
        return self


class ModelSpec(BaseModel):
    """One model of a study.

    A parameter in `params` is fixed and leaves the grid; one in `grid` is searched over the values given, instead of
    those of the named grid set. What neither names takes the grid set's values or, without any, `DEFAULTS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
    base: Base
    params: dict[str, Param] = {}
    grid: dict[str, tuple[Param, ...]] = {}
    members: tuple[str, ...] = ()
    """Of an ensemble: models by their names, whose probabilities are averaged."""
    features: Features | None = None
    """What the learner is given instead of the spectrum; see `eelsflow.models.inputs`."""
    augment: Augment | None = None
    align: Align | None = None
    """Whether the place of spectra on the axis is looked for; see `eelsflow.models.registration`."""

    @model_validator(mode="after")
    def _parameters_are_known(self) -> Self:
        if self.base not in (*BASES, ENSEMBLE) and not self.is_open:
            raise ValueError(f"no base is called {self.base!r}")
        if self.base == ENSEMBLE:
            self._check_members()
        elif self.members:
            raise ValueError(f"{self.base} has no members; only an {ENSEMBLE} has")
        known = PARAMETERS.get(self.base, ())
        for name in (*self.params, *self.grid):
            if not self.is_open and name not in known:
                raise ValueError(f"{self.base} has no parameter {name!r}; it has {', '.join(known) or 'none'}")
        if both := sorted(self.params.keys() & self.grid.keys()):
            raise ValueError(f"{', '.join(both)}: in params and in grid; a parameter is either fixed or searched")
        for name, values in self.grid.items():
            if not values:
                raise ValueError(f"the grid of {name} is empty; give at least one value")
        for name, value in self.params.items():
            if self._is_ours(name):
                _check_value(name, value, where="params")
        for name, values in self.grid.items():
            for value in values:
                if self._is_ours(name):
                    _check_value(name, value, where="grid")
        return self

    def _is_ours(self, name: str) -> bool:
        """Whether it is known here what values a parameter may have."""
        return self.base in BASES or (self.base.startswith("keras:") and name in TRAINING_PARAMETERS)

    def _check_members(self) -> None:
        if len(self.members) < 2:
            raise ValueError("an ensemble needs two members or more; name them: members: [mlls, svm-rbf]")
        if self.features is not None:
            raise ValueError("an ensemble has no features of its own; each member has those of its name")
        for member in self.members:
            if member == ENSEMBLE:
                raise ValueError("an ensemble cannot be a member of one")
            resolve_model(member)

    @property
    def is_open(self) -> bool:
        """Whether the base is not a shipped one, but imported by its name."""
        return self.base.startswith(OPEN)

    @property
    def is_network(self) -> bool:
        """Whether the base is a neural network: these train on a part and choose their epoch on another."""
        return self.base in NETWORKS or self.base.startswith("keras:")

    def resolve_grid(self, grids: GridSet) -> dict[str, tuple[Any, ...]]:
        """Return what is searched: parameter -> ascending values; empty if everything is fixed.

        >>> resolve_model({"base": "svm-rbf", "params": {"C": 100, "gamma": 0.1}}).resolve_grid("paper")
        {}
        >>> resolve_model({"base": "svm-rbf", "grid": {"gamma": [1, 0.1]}}).resolve_grid("small")
        {'C': (0.1, 1.0, 10.0, 100.0, 1000.0), 'gamma': (0.1, 1)}
        """
        if self.is_open or self.base == ENSEMBLE:  # its values may be words, which have no order
            return dict(self.grid)
        merged: dict[str, tuple[Any, ...]] = {**GRIDS[grids].get(cast("Shipped", self.base), {}), **self.grid}
        return {
            name: tuple(sorted(set(merged[name])))
            for name in PARAMETERS[self.base]
            if name in merged and name not in self.params
        }


def _check_value(name: str, value: Param, *, where: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{where}.{name} is {value!r}; it must be a number")  # noqa: TRY004 - pydantic wants this one
    if name == "coef0":
        return
    if name == "dropout":
        if not 0 <= value < 1:
            raise ValueError(f"dropout is {value}; it is the share of values dropped, 0 <= dropout < 1")
        return
    if value <= 0:
        raise ValueError(f"{name} is {value}; it must be positive")
    if name in _INTEGERS and value != int(value):
        raise ValueError(f"{name} is {value}; it must be a whole number")


def resolve_model(model: str | dict[str, Any] | ModelSpec) -> ModelSpec:
    """Return the specification of a model named by its base, or spelled out; `name` and `base` default to each other.

    Raises
    ------
    DataSetError
        If there is no such base, or a parameter is unknown or out of range.

    Examples
    --------
    >>> resolve_model("svm-rbf").base
    'svm-rbf'
    """
    if isinstance(model, ModelSpec):
        return model
    if isinstance(model, str):
        model = {"base": model}
    if isinstance(model, dict):
        known = NAMED.get(str(model.get("base", model.get("name"))))
        if known is not None:
            name = model.get("name", model.get("base"))
            model = {**known, **{key: value for key, value in model.items() if key != "base"}, "name": name}
    if not isinstance(model, dict):
        raise DataSetError(f"a model is written as a base or {{name, base, ...}}, found {model!r}")
    try:
        name = str(model.get("base")).rpartition(":")[2].rpartition(".")[2]
        return ModelSpec.model_validate({"name": name, "base": model.get("name"), **model})
    except ValidationError as error:
        found = "; ".join(
            ": ".join(filter(None, [".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")]))
            for fault in error.errors()
        )
        name = model.get("name", model.get("base", model))
        raise DataSetError(
            f"model {name!r}: {found}; bases are {', '.join((*BASES, *NAMED, ENSEMBLE))} and "
            "sklearn:package.module.Class or keras:package.module.function"
        ) from error


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every cell of a grid as parameters, the last parameter running fastest."""
    return [dict(zip(grid, cell, strict=True)) for cell in itertools.product(*grid.values())]


def with_defaults(base: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with those not named filled in; whole numbers are integers.

    >>> with_defaults("cnn-1", {"batch_size": 32.0})
    {'learning_rate': 0.001, 'dropout': 0.1, 'batch_size': 32}
    """
    merged = {**DEFAULTS.get(base, {}), **params}
    return {name: int(value) if name in _INTEGERS else value for name, value in merged.items()}
