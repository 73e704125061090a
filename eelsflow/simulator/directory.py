"""Many acquisitions: which ones there are, and their files."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from eelsflow.errors import InputError, OutputPathError
from eelsflow.io.zarr_store import write_dataset, write_spectrum_image
from eelsflow.simulator.acquisition import simulate_acquisition
from eelsflow.simulator.detector import CountingParameters, DetectorParameters
from eelsflow.simulator.low_loss import LowLossRecording
from eelsflow.simulator.parameters import AcquisitionParameters
from eelsflow.simulator.presets import PRESETS
from eelsflow.simulator.scenes import OTHER, SCENES, FieldParameters, Scene
from eelsflow.simulator.specimen import PHASES, Kind
from eelsflow.store import make_directory

DetectorChoice = Literal["ccd", "counting", "both"]
"""Which detector records; ``both``: drawn for each acquisition."""

# Two pure acquisitions of either oxide among the first four, so that a split by acquisition has both classes on
# both sides from four acquisitions on.
_PURE: tuple[Kind, ...] = ("FeO", "Fe3O4", "FeO", "Fe3O4")
_CUBES: tuple[Kind, ...] = (*_PURE, "core_shell", "core_shell")


def _field_cycle(further: Scene) -> tuple[Scene, ...]:
    """Return twelve scenes: every mixture once, and one more pure field."""
    return (*_PURE, "core_shell", "interface", "gradient", further, "inclusions", "two_particles", "mosaic", "other")


_FIELDS: tuple[Scene, ...] = (*_field_cycle("FeO"), *_field_cycle("Fe3O4"))

KNOWN_FIELDS: tuple[Scene, ...] = tuple(scene for scene in _FIELDS if scene != "other")
"""The scenes of fields that hold FeO and Fe3O4 alone, in turn: what a model of the two can be trained on."""


@dataclass(frozen=True, slots=True)
class PlannedAcquisition:
    """One acquisition of a directory before it is simulated.

    Parameters
    ----------
    name
        Its name and group.
    parameters, seed
        What `simulate_acquisition` and `expected_counts` are given.
    """

    name: str
    parameters: AcquisitionParameters
    seed: np.random.SeedSequence

    @property
    def label(self) -> str:
        """The phase of a pure field of FeO or Fe3O4; empty for any other."""
        kind = self.parameters.specimen.kind
        return kind if kind in PHASES else ""


def plan_directory(
    *,
    n_acquisitions: int,
    seed: int,
    shape: tuple[int, int] | None = None,
    preset: str | AcquisitionParameters = "paper",
    detector: DetectorChoice | None = None,
    scenes: Sequence[str] | None = None,
    dose: tuple[float, float] | None = None,
    window: tuple[float, float] | None = None,
    dispersion_error: float | None = None,
) -> list[PlannedAcquisition]:
    """Return what `simulate_directory` would simulate from the same arguments, without simulating it.

    Raises
    ------
    InputError
        If there is nothing to simulate, the seed or the dispersion error is out of range, or the preset, the detector
        or a scene unknown.
    """
    if n_acquisitions < 1:
        raise InputError(f"{n_acquisitions} acquisitions were asked for; simulate at least 1")
    parameters = _resolve(preset)
    if window is not None:
        parameters = parameters.model_copy(update={"axis": parameters.axis.showing(window)})
    if dispersion_error is not None:
        if not 0 <= dispersion_error < 0.1:
            raise InputError(f"the dispersion error {dispersion_error} is no share from 0 to below .1; .004 is usual")
        axis = parameters.axis.model_copy(update={"dispersion_error": dispersion_error})
        parameters = parameters.model_copy(update={"axis": axis})
    if shape is not None:
        parameters = parameters.model_copy(update={"shape": shape})
    if dose is not None:
        if not 0 < dose[0] <= dose[1]:
            raise InputError(f"the dose {dose} is no range; write (low, high) with 0 < low <= high, 1 as measured")
        parameters = parameters.model_copy(update={"levels": parameters.levels.model_copy(update={"dose": dose})})
    if detector is not None and detector not in get_args(DetectorChoice):
        raise InputError(f"no detector is called {detector!r}; there are {', '.join(get_args(DetectorChoice))}")
    cycle = _resolve_scenes(parameters, scenes)
    prefix = "field" if isinstance(parameters.specimen, FieldParameters) else "cubes"
    plan = []
    for index in range(n_acquisitions):
        kind, acquisition_seed = cycle[index % len(cycle)], _acquisition_seed(seed, index)
        update: dict[str, object] = {"specimen": parameters.specimen.model_copy(update={"kind": kind})}
        if detector is not None:
            update["detector"] = _resolve_detector(parameters, detector, acquisition_seed)
        name = f"{prefix}-{index:03d}-{kind.replace('_', '-')}"
        plan.append(PlannedAcquisition(name, parameters.model_copy(update=update), acquisition_seed))
    return plan


def simulate_directory(
    directory: Path | str,
    *,
    n_acquisitions: int,
    seed: int,
    shape: tuple[int, int] | None = None,
    preset: str | AcquisitionParameters = "paper",
    detector: DetectorChoice | None = None,
    scenes: Sequence[str] | None = None,
    dose: tuple[float, float] | None = None,
    window: tuple[float, float] | None = None,
    dispersion_error: float | None = None,
    low_loss: LowLossRecording | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write simulated acquisitions, their ground truth and a manifest.

    Parameters
    ----------
    directory
        Created where it does not exist; acquisitions of the same names in it are replaced.
    n_acquisitions
        How many.
    seed
        Acquisition number i depends on (seed, i) and the arguments below alone: asking for more adds to the same ones.
    shape
        Pixels (y, x) of each; as the preset has it where None.
    preset
        A name in `PRESETS`, or parameters. The kind of specimen in it is overridden, acquisition by acquisition.
    detector
        ``ccd``, ``counting``, or ``both``: one of the two, drawn for each acquisition. The preset's (a CCD) where
        None.
    scenes
        Kinds of specimen, taken in turn, over and over. Where None: FeO, Fe3O4, FeO, Fe3O4, core-shell, core-shell
        for cubes (``paper``, ``clean``: six hold two of each); for fields (``wide``) FeO, Fe3O4, FeO, Fe3O4,
        core-shell, interface, gradient, a pure one again (FeO and Fe3O4 by turns), inclusions, two particles, mosaic,
        other.
    dose
        Range of the dose relative to the measured one; as the preset has it where None.
    window
        Energies that every axis shows, eV, where the preset draws axes (``wide``); as the preset has it where None.
    dispersion_error
        Standard deviation of the relative error of the dispersion; as the preset has it where None.
    low_loss
        How a low loss of each scan is recorded beside its core loss; None: it is not.
    progress
        Called with (done, all) after each acquisition.

    Returns
    -------
    Path
        ``manifest.csv``, with the columns path, label (empty but for pure FeO and Fe3O4), group (the acquisition's
        name) and truth; its paths are relative to the directory. Each acquisition is a spectrum image NAME.zarr with
        NAME.truth.zarr beside it (see `Acquisition`), and NAME.low-loss.zarr, which the column low_loss names, where a
        low loss is recorded. Fields of an oxide that is neither have no truth in the
        manifest, since its phase is none of the two: they are to be prepared and mapped.

    Raises
    ------
    InputError
        If there is nothing to simulate, the seed or the dispersion error is out of range, or the preset, the detector
        or a scene unknown.
    OutputPathError
        If the directory cannot be written to.
    """
    plan = plan_directory(
        n_acquisitions=n_acquisitions,
        seed=seed,
        shape=shape,
        preset=preset,
        detector=detector,
        scenes=scenes,
        dose=dose,
        window=window,
        dispersion_error=dispersion_error,
    )
    directory = make_directory(Path(directory))
    rows = []
    for number, planned in enumerate(plan, start=1):
        name = planned.name
        acquisition = simulate_acquisition(planned.parameters, planned.seed, name=name, low_loss=low_loss)
        write_dataset(acquisition.truth, directory / f"{name}.truth.zarr")
        write_spectrum_image(acquisition.image, directory / f"{name}.zarr")
        truth = "" if planned.parameters.specimen.kind == OTHER else f"{name}.truth.zarr"
        rows.append({"path": f"{name}.zarr", "label": planned.label, "group": name, "truth": truth})
        if acquisition.low_loss is not None:
            write_spectrum_image(acquisition.low_loss, directory / f"{name}.low-loss.zarr")
            rows[-1]["low_loss"] = f"{name}.low-loss.zarr"
        if progress is not None:
            progress(number, n_acquisitions)
    return _write_manifest(directory / "manifest.csv", rows)


def _resolve(preset: str | AcquisitionParameters) -> AcquisitionParameters:
    if isinstance(preset, AcquisitionParameters):
        return preset
    if preset not in PRESETS:
        raise InputError(f"no simulator preset is called {preset!r}; there are {', '.join(PRESETS)}")
    return PRESETS[preset]


def _acquisition_seed(seed: int, index: int) -> np.random.SeedSequence:
    if seed < 0:
        raise InputError(f"the seed is {seed}; it must not be negative")
    return np.random.SeedSequence(seed, spawn_key=(index,))


def _resolve_scenes(parameters: AcquisitionParameters, scenes: Sequence[str] | None) -> tuple[str, ...]:
    is_field = isinstance(parameters.specimen, FieldParameters)
    if scenes is None:
        return _FIELDS if is_field else _CUBES
    known: tuple[str, ...] = SCENES if is_field else get_args(Kind)
    wrong = [scene for scene in scenes if scene not in known]
    if wrong or not scenes:
        hint = "" if is_field else "; the preset 'wide' has more"
        raise InputError(f"scenes {list(scenes)} cannot be simulated; choose from {', '.join(known)}{hint}")
    return tuple(scenes)


def _resolve_detector(
    parameters: AcquisitionParameters, detector: DetectorChoice, seed: np.random.SeedSequence
) -> DetectorParameters | CountingParameters:
    if detector == "both":
        # A stream that no part of the acquisition draws from.
        choice = np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, 1000)))
        detector = "ccd" if choice.random() < 0.5 else "counting"
    if parameters.detector.name == detector:
        return parameters.detector
    return DetectorParameters() if detector == "ccd" else CountingParameters()


def _write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write the manifest whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text.getvalue(), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputPathError(f"cannot write {path}: {error.strerror or error}") from error
    return path
