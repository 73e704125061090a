"""Preprocessing as data: steps, their order, and the presets that a study names.

A preset is a frozen value, so it can be written in a study file, shown as a form and hashed into the address of
what it produces. Steps come in two scopes: those of an *acquisition* end in the prepared product, those of a
*training set* turn prepared spectra into vectors and are fitted again for every split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eelsflow.errors import StudyFileError

DISPERSION = 0.1
"""Width of a channel of the prepared product, eV: the paper's 300 channels over 30 eV."""
MAX_OFFSET = 9.0
"""Largest error of a nominal energy axis that is looked for, eV."""
DISPERSION_ERROR = 0.02
"""How well the dispersion of a file is known, a relative standard deviation (our choice): where nobody has calibrated
it, errors of 1 % are usual and of 2 % are met. What is drawn back too little moves L3 by as much as an oxidation state
does: with half of it, an error of 1 % cost .06 of the single pixels that were right, with this .01 (decision 0035)."""


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spikes(_Step):
    """Find spikes (and dead channels) and replace them by a line between their neighbours.

    `threshold` in standard deviations of the noise that is estimated from the acquisition itself.
    """

    step: Literal["spikes"] = "spikes"
    threshold: Annotated[float, Field(gt=0)] = 8.0
    dead_channels: bool = True


class VacuumMask(_Step):
    """Tell the pixels that hold no specimen: two-class K-means, or a threshold on the edge signal."""

    step: Literal["vacuum_mask"] = "vacuum_mask"
    method: Literal["kmeans", "threshold"] = "threshold"


class Align(_Step):
    """Estimate the energy offset once, from the summed spectrum of the specimen, and move the axis.

    `max_offset` in eV. Of edges that are judged together the dispersion is estimated as well; `dispersion_error` says
    how well that of the file is known, relatively, one standard deviation.
    """

    step: Literal["align"] = "align"
    max_offset: Annotated[float, Field(gt=0, le=MAX_OFFSET)] = MAX_OFFSET
    dispersion_error: Annotated[float, Field(gt=0, lt=0.1)] = DISPERSION_ERROR


class Background(_Step):
    """Subtract a power law fitted before the edge; `shrink` draws the exponent to the acquisition's own mean."""

    step: Literal["background"] = "background"
    shrink: bool = True


class Deconvolve(_Step):
    """Take plural scattering out by the low loss of the same scan (Fourier ratio); the variance is carried along.

    An acquisition without a low loss stays as it is, and says so.
    """

    step: Literal["deconvolve"] = "deconvolve"


class Rebin(_Step):
    """Crop to the wide window and resample onto the common grid; `dispersion` in eV per channel."""

    step: Literal["rebin"] = "rebin"
    method: Literal["conserve", "linear"] = "conserve"
    dispersion: Annotated[float, Field(gt=0)] = DISPERSION


class Spatial(_Step):
    """Average the spectrum of a pixel with those of its neighbours that look alike.

    `method`: guided keeps edges, mean averages over whatever is near, none leaves pixels alone. So many pixels are
    averaged that the noise of a band of 1 eV is `noise` of its mean counts; `tolerance` is the difference, in units of
    its noise, at which a neighbour counts .6.
    """

    step: Literal["spatial"] = "spatial"
    method: Literal["guided", "mean", "none"] = "guided"
    noise: Annotated[float, Field(gt=0)] = 0.1
    tolerance: Annotated[float, Field(gt=0)] = 3.0


class Pca(_Step):
    """Keep the leading principal components, of one whole image or of the training set."""

    step: Literal["pca"] = "pca"
    scope: Literal["acquisition", "training_set"] = "training_set"
    rank: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


class Normalize(_Step):
    """Remove the scale of a spectrum, which holds the thickness of the specimen."""

    step: Literal["normalize"] = "normalize"
    method: Literal["min_max", "area", "l2", "robust_percentile", "none"] = "min_max"


Step = Annotated[
    Spikes | VacuumMask | Align | Background | Deconvolve | Rebin | Spatial | Pca | Normalize,
    Field(discriminator="step"),
]
StepType = TypeVar("StepType", bound=_Step)

_ORDER: tuple[tuple[str, str, str], ...] = (
    ("spikes", "rebin", "the noise that spikes are measured against is known for the detector's own channels"),
    ("vacuum_mask", "background", "specimen is told from vacuum on whole spectra"),
    ("vacuum_mask", "rebin", "specimen is told from vacuum on whole spectra"),
    ("align", "background", "the pre-edge window lies where it should only on the aligned axis"),
    ("align", "rebin", "the common grid is relative to the reference energy of the aligned axis"),
    ("pca of the acquisition", "background", "its Poisson scaling needs counts, not differences of counts"),
    ("pca of the acquisition", "rebin", "its Poisson scaling needs counts, not differences of counts"),
    ("align", "spatial", "neighbours are compared by their fine structure"),
    ("background", "spatial", "neighbours are compared by their fine structure, without the background"),
    ("rebin", "spatial", "it averages the spectra of the product"),
    ("background", "rebin", "the power law and its variance follow from the counts that the detector recorded"),
    ("background", "deconvolve", "plural scattering is taken out of the edge alone"),
    ("spikes", "deconvolve", "a transform spreads a spike over the whole spectrum"),
    ("deconvolve", "rebin", "the noise that comes along is known for the detector's own channels"),
    ("deconvolve", "spatial", "thickness must not make neighbours differ"),
    ("pca of the training set", "normalize", "it is weighted by the variance of spectra that are not normalised"),
)


def _key(step: Step) -> str:
    if isinstance(step, Pca):
        return f"pca of the {step.scope.replace('_', ' ')}"
    return step.step


class Preset(BaseModel):
    """Steps in the order in which they run.

    Raises
    ------
    pydantic.ValidationError
        If a step is unknown, appears twice, or comes before one that it needs.

    Notes
    -----
    Without `Rebin` the product keeps the detector's channels; without `Background` it is not background-subtracted;
    without `VacuumMask` every pixel counts as specimen; without `Align` the nominal axis is taken as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "custom"
    steps: tuple[Step, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_names(cls, value: Any) -> Any:
        """Let ``- align`` stand for ``- {step: align}`` in a study file."""
        if isinstance(value, dict) and isinstance(value.get("steps"), list | tuple):
            steps = [{"step": step} if isinstance(step, str) else step for step in value["steps"]]
            return {**value, "steps": steps}
        return value

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        keys = [_key(step) for step in self.steps]
        position = {key: number for number, key in enumerate(keys)}
        for key in position:
            if keys.count(key) > 1:
                raise ValueError(f"the step {key!r} appears {keys.count(key)} times; write each step once")
        for earlier, later, reason in _ORDER:
            if earlier in position and later in position and position[earlier] > position[later]:
                raise ValueError(f"{later!r} comes before {earlier!r}, but {reason}: put {earlier!r} first")
        n_acquisition = len(self.acquisition_steps)
        for key, number in position.items():
            if number < n_acquisition and self.steps[number] in self.training_steps:
                raise ValueError(
                    f"{key!r} is fitted on the training set and works on prepared spectra, but "
                    f"{_key(self.acquisition_steps[-1])!r} comes after it: put {key!r} at the end"
                )
        if "rebin" in position and "background" not in position:
            raise ValueError(
                "'rebin' needs 'background' before it: the common grid holds background-subtracted intensity, and a "
                "sloping background would enter every normalisation"
            )
        if "deconvolve" in position and "background" not in position:
            raise ValueError(
                "'deconvolve' needs 'background' before it: plural scattering is taken out of the edge alone"
            )
        return self

    @property
    def acquisition_steps(self) -> tuple[Step, ...]:
        """The steps fitted on one acquisition; they end in the prepared product."""
        return tuple(step for step in self.steps if not _of_training_set(step))

    @property
    def training_steps(self) -> tuple[Step, ...]:
        """The steps fitted on a training set, or that belong after those; they end in vectors."""
        return tuple(step for step in self.steps if _of_training_set(step))

    @property
    def for_acquisition(self) -> Preset:
        """The preset without its training steps: all that the prepared product depends on."""
        return Preset(name=self.name, steps=self.acquisition_steps)

    def knowing_the_dispersion(self, error: float) -> Preset:
        """Return the preset for files whose dispersion is known to `error`, a relative standard deviation."""
        known = {"dispersion_error": error}
        steps = tuple(step.model_copy(update=known) if isinstance(step, Align) else step for step in self.steps)
        return self.model_copy(update={"steps": steps})

    @property
    def caution(self) -> str | None:
        """What a reader of its results should know; None where the order of the steps costs nothing known."""
        kinds = [step.step for step in self.acquisition_steps]
        if "pca" not in kinds or "spikes" in kinds[: kinds.index("pca")]:
            return None
        spikes = "hardly any spike is found afterwards" if "spikes" in kinds else "spikes stay in the spectra"
        return (
            f"the preset {self.name} takes components of the whole image with its spikes in it: {spikes}, a few strong "
            "ones raise the number of components, and a small phase may leave none"
        )

    def find(self, kind: type[StepType]) -> StepType | None:
        """Return the step of this kind, or None; for `Pca` the first of the two scopes."""
        return next((step for step in self.steps if isinstance(step, kind)), None)


def _of_training_set(step: Step) -> bool:
    return isinstance(step, Normalize) or (isinstance(step, Pca) and step.scope == "training_set")


_PAPER_AFTER_PCA = (
    VacuumMask(method="kmeans"),
    Align(),
    Background(shrink=False),
    Spikes(),
    Rebin(method="linear"),
    Normalize(method="min_max"),
)

_RECOMMENDED = (
    Spikes(),
    VacuumMask(method="threshold"),
    Align(),
    Background(shrink=True),
    Rebin(method="conserve"),
    Spatial(),
    Pca(scope="training_set"),
    Normalize(method="robust_percentile"),
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(name="paper", steps=(Pca(scope="acquisition"), *_PAPER_AFTER_PCA)),
        Preset(name="paper-raw", steps=_PAPER_AFTER_PCA),
        Preset(name="recommended", steps=_RECOMMENDED),
        Preset(name="deconvolved", steps=(*_RECOMMENDED[:4], Deconvolve(), *_RECOMMENDED[4:])),
        Preset(name="none"),
    )
}
"""The order of the paper, the same without denoising, what we recommend, the same on single scattering (where there is
a low loss), and nothing at all (for ready tables).

The paper takes components of the whole image before it looks for spikes; see `Preset.caution` for what that costs."""


def resolve_preset(preset: str | dict[str, Any] | Sequence[Any] | Preset) -> Preset:
    """Return the preset that a study file names or spells out.

    Parameters
    ----------
    preset
        A name of `PRESETS`; ``{name, steps}``; or the steps alone. A step is its name, or a mapping with its
        parameters.

    Raises
    ------
    StudyFileError
        If there is no such preset or step, a step appears twice, or steps are in an order that cannot work.

    Examples
    --------
    >>> [step.step for step in resolve_preset("paper-raw").steps]
    ['vacuum_mask', 'align', 'background', 'spikes', 'rebin', 'normalize']
    >>> resolve_preset(["align", "background", {"step": "rebin", "method": "linear"}]).steps[2].method
    'linear'
    """
    if isinstance(preset, Preset):
        return preset
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise StudyFileError(
                f"no preset is called {preset!r}; there are {', '.join(PRESETS)}: use one of them, or write the steps "
                "out as {name, steps}"
            )
        return PRESETS[preset]
    if not isinstance(preset, dict | Sequence):
        raise StudyFileError(f"preprocess is a name, {{name, steps}} or a list of steps, found {preset!r}")
    value = preset if isinstance(preset, dict) else {"steps": list(preset)}
    try:
        return Preset.model_validate(value)
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_url=False):
            where = ".".join(str(part) for part in problem["loc"])
            text = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {text}" if where else text)
        raise StudyFileError(f"preprocessing steps cannot be used: {'; '.join(problems)}") from error
