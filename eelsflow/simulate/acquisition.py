"""Whole acquisitions with their ground truth: specimen -> losses -> energy axis -> detector -> files.

The levels are those measured on iron-oxide nanocubes (0.25 eV per channel): 405 counts per channel at 490 eV on the
particle and 65 on the support film, O K main peak 300 counts above the background, background exponent 3.38 before
O K on the particle and 3.69 on the film. What varies between acquisitions, and how far, is in the presets.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError, OutputPathError
from eelsflow.io.zarr_store import write_dataset, write_spectrum_image
from eelsflow.simulate.detector import Detector, DetectorParameters
from eelsflow.simulate.edges import (
    FE3O4_OXYGEN_DENSITY,
    REFERENCE_ENERGY,
    LowLoss,
    LowLossParameters,
    PhaseParameters,
    PhaseShape,
    broaden,
    calibrate_edges,
    fine_energies,
    poisson_weights,
    scatter,
)
from eelsflow.simulate.edges import FINE_STEP as _STEP
from eelsflow.simulate.specimen import PHASES, Kind, Range, Specimen, SpecimenParameters, build_specimen, draw
from eelsflow.spectrum_image import build_spectrum_image
from eelsflow.store import make_directory

TRUTH_SCHEMA = "eelsflow-simulated-truth/1"

# Two pure acquisitions of either oxide among the first four, so that a split by acquisition has both classes on
# both sides from four acquisitions on.
_KINDS: tuple[Kind, ...] = ("FeO", "Fe3O4", "FeO", "Fe3O4", "core_shell", "core_shell")

_LEVEL_ENERGY = 490.0  # eV, where the levels of the background were measured
_LEVEL_DISPERSION = 0.25  # eV per channel, which the counts per channel refer to


class LevelParameters(BaseModel):
    """How many counts there are, and how the background falls.

    Parameters
    ----------
    reference_thickness
        Oxide thickness that the levels belong to, nm: about the mean over a cube of 40 nm (our choice; the
        measurement names none).
    particle_level, support_level
        Background at 490 eV on the particle and on the bare film, counts per channel of 0.25 eV.
    main_peak
        Height of the O K main peak of Fe3O4 above the background, counts.
    dose
        Range of the beam dose relative to these levels.
    background_exponent
        Range of r on the particle, before O K.
    support_exponent
        Range of r on the film.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference_thickness: Annotated[float, Field(gt=0)] = 35.0
    particle_level: Annotated[float, Field(gt=0)] = 405.0
    support_level: Annotated[float, Field(ge=0)] = 65.0
    main_peak: Annotated[float, Field(gt=0)] = 300.0
    dose: Range = (0.9, 1.1)
    background_exponent: Range = (3.13, 3.63)
    support_exponent: Range = (3.5, 3.88)


class AxisParameters(BaseModel):
    """The nominal energy axis and how wrong it is.

    Parameters
    ----------
    start, dispersion, n_channels
        Centre of the first channel (eV), eV per channel, channels.
    offset_scale, offset_limit
        The offset is drawn from Student's t with 4 degrees of freedom times `offset_scale` eV (a bell with tails)
        within +-`offset_limit` eV.
    dispersion_error
        Standard deviation of the relative error of the dispersion, limited to +-2 of them.
    drift
        Largest drift over the scan, eV.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: Annotated[float, Field(ge=100)] = 450.0
    dispersion: Annotated[float, Field(gt=0)] = 0.25
    n_channels: Annotated[int, Field(ge=16)] = 2048
    offset_scale: Annotated[float, Field(ge=0)] = 2.0
    offset_limit: Annotated[float, Field(ge=0)] = 8.0
    dispersion_error: Annotated[float, Field(ge=0, lt=0.1)] = 0.004
    drift: Annotated[float, Field(ge=0)] = 0.06


class AcquisitionParameters(BaseModel):
    """Everything an acquisition is made of, bar chance.

    Parameters
    ----------
    shape
        Pixels (y, x).
    pixel_size
        nm.
    specimen, low_loss, levels, axis, detector
        See there.
    phases
        The edges of each oxide, by the names in `PHASES`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (48, 48)
    pixel_size: Annotated[float, Field(gt=0)] = 2.1
    specimen: SpecimenParameters = SpecimenParameters()
    low_loss: LowLossParameters = LowLossParameters()
    levels: LevelParameters = LevelParameters()
    axis: AxisParameters = AxisParameters()
    detector: DetectorParameters = DetectorParameters()
    feo: PhaseParameters
    fe3o4: PhaseParameters


# The ranges of pre-peak height, main and third position and of the widths lie within those assumed for the two
# oxides. The magnetite is centred near the measured shape (pre-peak .61 for .63, main peak +9.2 eV for +9.0), the
# wuestite lies at the end of its range towards the magnetite.
#
# How far apart the two are is the knob that sets how hard the task is. It was set so that an RBF SVM after the steps
# of the paper (PCA of the whole image) comes near the paper's .97 under a random split of the pixels of six
# acquisitions of 48 x 48; benchmarks/contrast.py measures it (.945 with seed 1). Nearly all of its errors are in the
# core-shell fields: PCA of a whole image leaves so little noise in a pure one that the acquisition itself is
# recognised, whatever the contrast.
_FE3O4 = PhaseParameters(
    oxygen_density=FE3O4_OXYGEN_DENSITY,
    iron_density=40.5,  # 24 in a cell of 0.8396 nm
    pre_peak_height=(0.55, 0.67),
    pre_peak_sigma=(1.0, 1.4),
    valley_height=(0.28, 0.36),
    shoulder_height=(0.77, 0.85),
    main_position=(8.9, 9.5),
    main_sigma=(2.0, 2.5),
    minimum_height=(0.36, 0.44),
    third_position=(29.5, 31.0),
    third_height=(0.67, 0.77),
    third_sigma=(4.0, 5.0),
    fourth_height=(0.50, 0.60),
    l3_position=(177.0, 178.0),
)
_FEO = PhaseParameters(
    oxygen_density=49.3,  # 4 in a cell of 0.4330 nm
    iron_density=41.9,  # Fe(0.85)O: wuestite lacks 5-15 % of its iron
    pre_peak_height=(0.475, 0.50),
    pre_peak_sigma=(1.0, 1.4),
    valley_height=(0.28, 0.36),
    shoulder_height=(0.77, 0.85),
    main_position=(9.6, 9.65),
    main_sigma=(2.0, 2.5),
    minimum_height=(0.36, 0.44),
    third_position=(29.5, 30.0),
    third_height=(0.66, 0.76),
    third_sigma=(4.0, 5.0),
    fourth_height=(0.50, 0.60),
    # Fe2+ L3 lies 1.7 eV below Fe3+ and two thirds of magnetite's iron are Fe3+, which would be 1.1 eV between the two.
    # Vacancies make some Fe3+ in wuestite too; that the distance is as short as this is part of the knob above: PCA of
    # the whole spectrum carries the iron edge's contrast into the oxygen edge.
    l3_position=(176.8, 177.5),
)

PRESETS: MappingProxyType[str, AcquisitionParameters] = MappingProxyType(
    {
        "paper": AcquisitionParameters(feo=_FEO, fe3o4=_FE3O4),
        # Nothing but counting statistics: no axis error, no spikes, no dead channels, even film.
        "clean": AcquisitionParameters(
            feo=_FEO,
            fe3o4=_FE3O4,
            specimen=SpecimenParameters(film_unevenness=0.0),
            axis=AxisParameters(offset_scale=0.0, dispersion_error=0.0, drift=0.0),
            detector=DetectorParameters(gain_pattern=0.0, n_dead_channels=(0, 0), spike_rate=0.0),
        ),
    }
)
"""Parameter sets by name: ``paper`` (the measured instrument) and ``clean`` (its counting statistics alone)."""


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A simulated acquisition.

    Parameters
    ----------
    image
        Spectrum image by the schema of `eelsflow.spectrum_image`, int32 counts.
    truth
        ``phase_fraction`` (phase, y, x) of the projected oxide (0 where there is none), ``thickness`` (y, x) of oxide
        in nm, ``relative_thickness`` (y, x) t/lambda of it, ``vacuum`` (y, x) bool (oxide thinner than 25 % of the
        field's maximum), ``spike_mask`` (y, x, energy_loss) bool, ``dead_channels`` (energy_loss) bool and ``drift``
        (y) in eV. Attributes: ``offset`` (eV to *add* to the nominal axis so that the pre-peak reads 530.0 eV, mean
        over the scan), ``dispersion_error`` (relative: true energies are
        ``530 + (nominal + offset + drift - 530) * (1 + dispersion_error)``), ``drift`` (eV, last row minus first),
        and every other value that was drawn.
    """

    image: xr.DataArray
    truth: xr.Dataset


@dataclass(frozen=True, slots=True)
class _AxisError:
    """What is wrong with the energy axis: offset (eV), relative dispersion error, drift of each row (eV)."""

    offset: float
    dispersion_error: float
    drift: NDArray[np.float64]

    def true_energies(self, nominal: NDArray[np.float64], row: int) -> NDArray[np.float64]:
        shifted = nominal + self.offset + self.drift[row]
        true: NDArray[np.float64] = REFERENCE_ENERGY + (shifted - REFERENCE_ENERGY) * (1.0 + self.dispersion_error)
        return true


def simulate_acquisition(
    parameters: AcquisitionParameters, seed: int | np.random.SeedSequence, *, name: str = "simulated"
) -> Acquisition:
    """Simulate one acquisition.

    Parameters
    ----------
    parameters
        What is simulated, for example ``PRESETS["paper"]``.
    seed
        The acquisition depends on this and the parameters alone. Specimen, physics, axis and detector draw from
        streams of their own, so a change of detector leaves the specimen as it was.
    name
        The acquisition's name, kept as its source.

    Raises
    ------
    InputError
        If the seed is negative.

    Notes
    -----
    Cubes -> projected thickness of each oxide -> O K and Fe L2,3 times thickness -> plural scattering by
    Poisson(t/lambda) -> power-law background -> support film -> zero-loss broadening -> offset, dispersion error,
    drift -> Poisson electrons -> gain -> point spread -> gain pattern, dead channels -> spikes -> read-out noise.
    The broadening comes before the axis error because it is a convolution in true energy. The background is taken as
    measured, that is with its plural scattering; the drift is constant along a row.
    """
    rng = _streams(seed, "specimen", "physics", "axis", "detector", "noise")
    axis = EnergyAxis(parameters.axis.start, parameters.axis.dispersion, parameters.axis.n_channels)
    specimen = build_specimen(
        parameters.specimen, shape=parameters.shape, pixel_size=parameters.pixel_size, rng=rng["specimen"]
    )
    low_loss = parameters.low_loss.draw(rng["physics"])
    phases = dict(zip(PHASES, (parameters.feo, parameters.fe3o4), strict=True))
    n_variants = parameters.specimen.n_variants
    shapes = {name: [phase.draw(rng["physics"]) for _ in range(n_variants)] for name, phase in phases.items()}
    levels = {
        key: draw(rng["physics"], getattr(parameters.levels, key))
        for key in ("dose", "background_exponent", "support_exponent")
    }
    axis_error = _draw_axis_error(parameters.axis, n_rows=parameters.shape[0], rng=rng["axis"])
    detector = Detector.draw(parameters.detector, n_channels=axis.size, rng=rng["detector"])

    energy, basis = _basis(parameters, low_loss, shapes, levels, axis, axis_error)
    weights = _weights(specimen, low_loss, parameters.levels.reference_thickness)
    counts = np.empty((*parameters.shape, axis.size), dtype=np.int32)
    spike_mask = np.empty(counts.shape, dtype=bool)
    for row in range(parameters.shape[0]):  # a row at a time bounds the memory and carries the drift
        sampled = _sample(energy, basis, axis_error.true_energies(axis.values, row))
        expected = (weights[:, row].T @ sampled).astype(np.float32)
        counts[row], spike_mask[row] = detector.record(expected, rng=rng["noise"])

    image = _build_image(counts, axis, parameters, name)
    drawn = {
        **levels,
        **asdict(low_loss),
        **{f"shape_{k}": json.dumps([asdict(v) for v in values]) for k, values in shapes.items()},
    }
    truth = _build_truth(specimen, low_loss, axis_error, detector, spike_mask, image, drawn, parameters)
    return Acquisition(image, truth)


def simulate_directory(
    directory: Path | str,
    *,
    n_acquisitions: int,
    seed: int,
    shape: tuple[int, int] | None = None,
    preset: str | AcquisitionParameters = "paper",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write simulated acquisitions, their ground truth and a manifest.

    Parameters
    ----------
    directory
        Created where it does not exist; acquisitions of the same names in it are replaced.
    n_acquisitions
        How many. Pure FeO, pure Fe3O4, FeO, Fe3O4, core-shell, core-shell, and so on: six hold two of each.
    seed
        Acquisition number i depends on (seed, i, shape, preset) alone: asking for more adds to the same ones.
    shape
        Pixels (y, x) of each; as the preset has it where None.
    preset
        A name in `PRESETS`, or parameters. The kind of specimen in it is overridden, acquisition by acquisition.
    progress
        Called with (done, all) after each acquisition.

    Returns
    -------
    Path
        ``manifest.csv``, with the columns path, label (empty for core-shell), group (the acquisition's name) and
        truth; its paths are relative to the directory. Each acquisition is a spectrum image NAME.zarr with
        NAME.truth.zarr beside it (see `Acquisition`).

    Raises
    ------
    InputError
        If there is nothing to simulate, the seed is negative or the preset unknown.
    OutputPathError
        If the directory cannot be written to.
    """
    if n_acquisitions < 1:
        raise InputError(f"{n_acquisitions} acquisitions were asked for; simulate at least 1")
    parameters = _resolve(preset)
    if shape is not None:
        parameters = parameters.model_copy(update={"shape": shape})
    directory = make_directory(Path(directory))
    rows = []
    for index in range(n_acquisitions):
        kind = _KINDS[index % len(_KINDS)]
        specimen = parameters.specimen.model_copy(update={"kind": kind})
        name = f"cubes-{index:03d}-{kind.replace('_', '-')}"
        acquisition = simulate_acquisition(
            parameters.model_copy(update={"specimen": specimen}), _acquisition_seed(seed, index), name=name
        )
        write_dataset(acquisition.truth, directory / f"{name}.truth.zarr")
        write_spectrum_image(acquisition.image, directory / f"{name}.zarr")
        label = "" if kind == "core_shell" else kind
        rows.append({"path": f"{name}.zarr", "label": label, "group": name, "truth": f"{name}.truth.zarr"})
        if progress is not None:
            progress(index + 1, n_acquisitions)
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


def _streams(seed: int | np.random.SeedSequence, *names: str) -> dict[str, np.random.Generator]:
    """Return independent generators by name. The seed sequence is not spawned from: that would change it."""
    if not isinstance(seed, np.random.SeedSequence):
        if seed < 0:
            raise InputError(f"the seed is {seed}; it must not be negative")
        seed = np.random.SeedSequence(seed)
    return {
        name: np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number)))
        for number, name in enumerate(names)
    }


def _draw_axis_error(parameters: AxisParameters, *, n_rows: int, rng: np.random.Generator) -> _AxisError:
    offset = parameters.offset_scale * rng.standard_t(4)
    while abs(offset) > parameters.offset_limit:
        offset = parameters.offset_scale * rng.standard_t(4)
    dispersion_error = parameters.dispersion_error * float(np.clip(rng.normal(), -2.0, 2.0))
    slope = rng.uniform(-parameters.drift, parameters.drift)
    # Zero mean over the scan, so that the offset is that of the summed spectrum.
    drift = slope * np.linspace(-0.5, 0.5, n_rows) if n_rows > 1 else np.zeros(1)
    return _AxisError(float(offset), dispersion_error, drift)


def _basis(
    parameters: AcquisitionParameters,
    low_loss: LowLoss,
    shapes: dict[str, list[PhaseShape]],
    levels: dict[str, float],
    axis: EnergyAxis,
    axis_error: _AxisError,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the fine energies and the spectra that every pixel is a mixture of.

    The rows of the basis: the edges by oxide, variant and number of scatterings, the background of the oxide, the
    support film; counts per channel at the reference thickness.
    """
    level = parameters.levels
    first, last = (axis_error.true_energies(axis.values[[0, -1]], row) for row in (0, -1))
    margin = 10.0  # the broadening needs neighbours
    energy = fine_energies(min(first[0], last[0]) - margin, max(first[-1], last[-1]) + margin)
    reference = level.reference_thickness / low_loss.mean_free_path
    # Losses only move intensity upwards, so the edges need the grid from below O K on, whatever the axis shows.
    whole = fine_energies(min(float(energy[0]), 505.0), float(energy[-1]))
    edges = np.stack(
        [calibrate_edges(shape, whole, relative_thickness=reference) for phase in PHASES for shape in shapes[phase]]
    )
    orders = scatter(edges, low_loss)[..., whole.size - energy.size :]
    ratio = np.maximum(energy, 50.0) / _LEVEL_ENERGY
    oxide_level = level.particle_level - level.support_level
    # The drawn exponent is that of oxide and film together, as it is measured on the particle.
    oxide_exponent = (
        level.particle_level * levels["background_exponent"] - level.support_level * levels["support_exponent"]
    ) / oxide_level
    rows = [
        *(level.main_peak * orders.transpose(1, 0, 2).reshape(-1, energy.size)),
        oxide_level * ratio**-oxide_exponent,
        level.support_level * ratio ** -levels["support_exponent"],
    ]
    scale = levels["dose"] * axis.dispersion / _LEVEL_DISPERSION
    return energy, scale * broaden(np.stack(rows), low_loss.zero_loss_width)


def _weights(specimen: Specimen, low_loss: LowLoss, reference_thickness: float) -> NDArray[np.float64]:
    """Return how much of each row of the basis is in each pixel, shape (basis, y, x)."""
    relative = specimen.oxide_thickness / reference_thickness
    orders = poisson_weights(specimen.oxide_thickness / low_loss.mean_free_path)
    thickness = specimen.thickness / reference_thickness
    edges = thickness[:, None, None] * specimen.variants[:, None] * orders
    return np.concatenate([edges.reshape(-1, *relative.shape), relative[None], specimen.film[None]])


def _sample(energy: NDArray[np.float64], basis: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the basis at the given energies by linear interpolation (the grid is fine against every feature)."""
    position = (at - energy[0]) / _STEP
    index = np.clip(position.astype(np.intp), 0, energy.size - 2)
    part = position - index
    return np.asarray(basis[:, index] * (1.0 - part) + basis[:, index + 1] * part)


def _build_image(
    counts: NDArray[np.int32], axis: EnergyAxis, parameters: AcquisitionParameters, name: str
) -> xr.DataArray:
    return build_spectrum_image(
        counts,
        axis.values,
        pixel_size=parameters.pixel_size,
        pixel_unit="nm",
        sha256=hashlib.sha256(counts.tobytes()).hexdigest(),
        source=name,
        metadata={"simulated": True, "parameters": parameters.model_dump(mode="json")},
    )


def _build_truth(
    specimen: Specimen,
    low_loss: LowLoss,
    axis_error: _AxisError,
    detector: Detector,
    spike_mask: NDArray[np.bool_],
    image: xr.DataArray,
    drawn: dict[str, Any],
    parameters: AcquisitionParameters,
) -> xr.Dataset:
    thickness = specimen.oxide_thickness
    return xr.Dataset(
        {
            "phase_fraction": (("phase", "y", "x"), specimen.phase_fraction.astype(np.float32)),
            "thickness": (("y", "x"), thickness.astype(np.float32), {"units": "nm"}),
            "relative_thickness": (("y", "x"), (thickness / low_loss.mean_free_path).astype(np.float32)),
            "vacuum": (("y", "x"), specimen.vacuum),
            "spike_mask": (("y", "x", "energy_loss"), spike_mask),
            "dead_channels": (("energy_loss",), detector.dead_channels),
            "drift": (("y",), axis_error.drift, {"units": "eV"}),
        },
        coords={"phase": list(PHASES), **{dim: image.coords[dim] for dim in ("y", "x", "energy_loss")}},
        attrs={
            "schema": TRUTH_SCHEMA,
            "offset": axis_error.offset,
            "offset_energy": REFERENCE_ENERGY,
            "dispersion_error": axis_error.dispersion_error,
            "drift": float(axis_error.drift[-1] - axis_error.drift[0]),
            "kind": parameters.specimen.kind,
            "n_cubes": len(specimen.cubes),
            "counts_per_electron": parameters.detector.counts_per_electron,
            "readout_noise": parameters.detector.readout_noise,
            "sha256": image.attrs["sha256"],
            **drawn,
        },
    )


def _write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write the manifest whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=["path", "label", "group", "truth"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text.getvalue(), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputPathError(f"cannot write {path}: {error.strerror or error}") from error
    return path
