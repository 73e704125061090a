"""Whole acquisitions with their ground truth: specimen -> losses -> energy axis -> detector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError
from eelsflow.simulator.detector import Detector, NoiseModel
from eelsflow.simulator.edges import FINE_STEP as _STEP
from eelsflow.simulator.edges import (
    REFERENCE_ENERGY,
    LowLoss,
    PhaseShape,
    broaden,
    calibrate_edges,
    fine_energies,
    poisson_weights,
    scatter,
)
from eelsflow.simulator.generic_edges import GenericEdge, OtherOxide
from eelsflow.simulator.low_loss import LowLossRecording, integrate_channels, recorded_resolution, scattered_beam
from eelsflow.simulator.parameters import AcquisitionParameters, AxisParameters, Levels
from eelsflow.simulator.presets import PRESETS
from eelsflow.simulator.scenes import OTHER, FieldParameters, build_field
from eelsflow.simulator.specimen import PHASES, Specimen, build_specimen, draw
from eelsflow.spectrum_image import build_spectrum_image

__all__ = [
    "PRESETS",
    "TRUTH_SCHEMA",
    "Acquisition",
    "AcquisitionParameters",
    "AxisParameters",
    "ExpectedCounts",
    "expected_counts",
    "simulate_acquisition",
]

TRUTH_SCHEMA = "eelsflow-simulated-truth/1"

_LEVEL_ENERGY = 490.0  # eV, where the levels of the background were measured
_LEVEL_DISPERSION = 0.25  # eV per channel, which the counts per channel refer to


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A simulated acquisition.

    Parameters
    ----------
    image
        Spectrum image by the schema of `eelsflow.spectrum_image`, int32 counts.
    truth
        ``phase_fraction`` (phase, y, x) of the projected oxide (0 where there is none; the phases are FeO and Fe3O4,
        and ``other`` in a field of another oxide), ``thickness`` (y, x) of oxide
        in nm, ``relative_thickness`` (y, x) t/lambda of it, ``vacuum`` (y, x) bool (oxide thinner than 25 % of the
        field's maximum), ``spike_mask`` (y, x, energy_loss) bool, ``dead_channels`` (energy_loss) bool and ``drift``
        (y) in eV. Attributes: ``offset`` (eV to *add* to the nominal axis so that the pre-peak reads 530.0 eV, mean
        over the scan), ``dispersion_error`` (relative: true energies are
        ``530 + (nominal + offset + drift - 530) * (1 + dispersion_error)``), ``drift`` (eV, last row minus first),
        ``kind`` of the specimen, ``scene`` (``pure`` where one phase is all there is, else the kind), ``detector``,
        and every other value that was drawn. Where a low loss was recorded also ``t_over_lambda`` (y, x), the
        ``relative_thickness`` under the name of what is measured, ``zero_loss`` (y), where the peak lies on the
        nominal axis, eV, and the attributes ``resolution`` (full width at half maximum of the recorded zero-loss peak,
        eV) and ``beam_counts``.
    low_loss
        The low loss of the same scan, where one was asked for: a spectrum image on an axis of its own.
    """

    image: xr.DataArray
    truth: xr.Dataset
    low_loss: xr.DataArray | None = None


def simulate_acquisition(
    parameters: AcquisitionParameters,
    seed: int | np.random.SeedSequence,
    *,
    name: str = "simulated",
    low_loss: LowLossRecording | None = None,
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
    low_loss
        How the low loss of the scan is recorded; None: it is not. The core loss is the same with it and without.

    Raises
    ------
    InputError
        If the seed is negative.

    Notes
    -----
    Particles -> projected thickness of each oxide -> O K and Fe L2,3 times thickness -> plural scattering by
    Poisson(t/lambda) -> power-law background -> support film -> zero-loss broadening -> offset, dispersion error,
    drift -> Poisson electrons -> gain -> point spread -> gain pattern, dead channels -> spikes -> read-out noise.
    The broadening comes before the axis error because it is a convolution in true energy. The background is taken as
    measured, that is with its plural scattering; the drift is constant along a row.
    """
    drawn = _Drawn.draw(parameters, seed)
    rng = _streams(seed, *_STREAMS)["noise"]
    counts = np.empty((*parameters.shape, drawn.axis.size), dtype=np.int32)
    spike_mask = np.empty(counts.shape, dtype=bool)
    for row, expected in enumerate(drawn.rows()):
        counts[row], spike_mask[row] = drawn.detector.record(expected, rng=rng)
    image = _build_image(counts, drawn.axis, parameters, name)
    truth = _build_truth(drawn, spike_mask, image)
    if low_loss is None:
        return Acquisition(image, truth)
    return _with_low_loss(image, truth, drawn, low_loss, _streams(seed, *_STREAMS)["low_loss"])


@dataclass(frozen=True, slots=True)
class ExpectedCounts:
    """What an acquisition would show without noise, and how much noise comes on top.

    Parameters
    ----------
    counts
        Shape (y, x, energy_loss), in the detector's counts as recorded: with the error of the axis, the point spread,
        the response of the channels (0 for dead ones); without spikes. float32.
    energy_loss
        Nominal energies, shape (energy_loss,), eV.
    noise
        Variance and correlation of the noise on `counts`.
    """

    counts: NDArray[np.float32]
    energy_loss: NDArray[np.float64]
    noise: NoiseModel


def expected_counts(
    parameters: AcquisitionParameters, seed: int | np.random.SeedSequence, *, phase: str | None = None
) -> ExpectedCounts:
    """Return the mean of the counts that `simulate_acquisition` draws from the same parameters and seed.

    Parameters
    ----------
    parameters, seed
        As given to `simulate_acquisition`.
    phase
        Where given, the same specimen, as thick in every pixel, made of this phase alone (``FeO`` or ``Fe3O4``; also
        ``other`` in a field of another oxide). From the two expectations of a pixel, and the noise, follows how well
        the two phases can be told apart at all.

    Raises
    ------
    InputError
        If the seed is negative, or the specimen does not know the phase.
    """
    drawn = _Drawn.draw(parameters, seed)
    if phase is not None:
        drawn = replace(drawn, specimen=drawn.specimen.made_of(phase))
    counts = np.stack([drawn.detector.mean_counts(expected) for expected in drawn.rows()])
    return ExpectedCounts(counts, drawn.axis.values, drawn.detector.noise)


@dataclass(frozen=True, slots=True)
class _AxisError:
    """What is wrong with the energy axis: offset (eV), relative dispersion error, drift of each row (eV)."""

    offset: float
    dispersion_error: float
    drift: NDArray[np.float64]

    def true_energies(
        self, nominal: NDArray[np.float64], row: int, *, fixed: float = REFERENCE_ENERGY
    ) -> NDArray[np.float64]:
        """Return true energies; the dispersion error moves nothing at the energy `fixed` (eV)."""
        shifted = nominal + self.offset + self.drift[row]
        true: NDArray[np.float64] = fixed + (shifted - fixed) * (1.0 + self.dispersion_error)
        return true


# Every part of an acquisition draws from a stream of its own; a further one is added at the end, so that the others
# stay as they are.
_STREAMS = ("specimen", "physics", "axis", "detector", "noise", "setting", "low_loss")


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One acquisition before its noise: all that chance decided, part by part.

    `edges` are the edges of each phase, by phase and variant.
    """

    parameters: AcquisitionParameters
    specimen: Specimen
    low_loss: LowLoss
    edges: dict[str, list[PhaseShape | OtherOxide]]
    levels: Levels
    film_edge: GenericEdge
    axis: EnergyAxis
    axis_error: _AxisError
    detector: Detector

    @classmethod
    def draw(cls, parameters: AcquisitionParameters, seed: int | np.random.SeedSequence) -> _Drawn:
        rng = _streams(seed, *_STREAMS)
        axis = parameters.axis.draw_setting(rng["setting"])
        specimen = _build_specimen(parameters, rng["specimen"])
        physics = rng["physics"]
        low_loss = parameters.low_loss.draw(physics)
        n_variants = parameters.specimen.n_variants
        edges: dict[str, list[PhaseShape | OtherOxide]] = {
            name: [phase.draw(physics) for _ in range(n_variants)]
            for name, phase in zip(PHASES, (parameters.feo, parameters.fe3o4), strict=True)
        }
        levels = parameters.levels.draw(physics)
        film_edge = parameters.film_edge.draw(physics)
        if OTHER in specimen.phases:
            edges[OTHER] = [parameters.other.draw(physics)] * n_variants
        axis_error = _draw_axis_error(parameters.axis, n_rows=parameters.shape[0], rng=rng["axis"])
        detector = Detector.draw(parameters.detector, n_channels=axis.size, rng=rng["detector"])
        return cls(parameters, specimen, low_loss, edges, levels, film_edge, axis, axis_error, detector)

    def rows(self) -> Iterator[NDArray[np.float32]]:
        """Return the counts expected at the detector, row by row, shape (x, energy_loss)."""
        energy, basis = self._basis()
        weights = _weights(self.specimen, self.low_loss, self.parameters.levels.reference_thickness)
        for row in range(self.parameters.shape[0]):  # a row at a time bounds the memory and carries the drift
            sampled = _sample(energy, basis, self.axis_error.true_energies(self.axis.values, row))
            yield (weights[:, row].T @ sampled).astype(np.float32)

    def _basis(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the fine energies and the spectra that every pixel is a mixture of.

        The rows of the basis: the edges by oxide, variant and number of scatterings, the background of the oxide, the
        support film; counts per channel at the reference thickness.
        """
        parameters, levels = self.parameters.levels, self.levels
        first, last = (self.axis_error.true_energies(self.axis.values[[0, -1]], row) for row in (0, -1))
        margin = 10.0  # the broadening needs neighbours
        energy = fine_energies(min(first[0], last[0]) - margin, max(first[-1], last[-1]) + margin)
        reference = parameters.reference_thickness / self.low_loss.mean_free_path
        # Losses only move intensity upwards, so the edges need the grid from below O K on, whatever the axis shows.
        whole = fine_energies(min(float(energy[0]), 505.0), float(energy[-1]))
        shapes = [shape for phase in self.specimen.phases for shape in self.edges[phase]]
        edges = np.stack([_single_scattering(shape, whole, relative_thickness=reference) for shape in shapes])
        orders = scatter(edges, self.low_loss)[..., whole.size - energy.size :]
        ratio = np.maximum(energy, 50.0) / _LEVEL_ENERGY
        oxide_level = (parameters.particle_level - parameters.support_level) * levels.background_factor
        support_level = parameters.support_level * levels.support_factor
        # The drawn exponent is that of oxide and film together, as it is measured on the particle.
        oxide_exponent = (
            (oxide_level + support_level) * levels.background_exponent - support_level * levels.support_exponent
        ) / oxide_level
        film = support_level * ratio**-levels.support_exponent
        if levels.film_oxygen > 0:
            edge = self.film_edge.spectrum(whole, relative_thickness=0.0)[whole.size - energy.size :]
            film = film + parameters.main_peak * levels.film_oxygen * edge
        rows = [
            *(parameters.main_peak * orders.transpose(1, 0, 2).reshape(-1, energy.size)),
            oxide_level * ratio**-oxide_exponent,
            film,
        ]
        scale = levels.dose * self.axis.dispersion / _LEVEL_DISPERSION * self.detector.parameters.level_scale
        return energy, scale * broaden(np.stack(rows), self.low_loss.zero_loss_width)


def _build_specimen(parameters: AcquisitionParameters, rng: np.random.Generator) -> Specimen:
    if isinstance(parameters.specimen, FieldParameters):
        return build_field(parameters.specimen, shape=parameters.shape, rng=rng)
    return build_specimen(parameters.specimen, shape=parameters.shape, pixel_size=parameters.pixel_size, rng=rng)


def _single_scattering(
    shape: PhaseShape | OtherOxide, energy: NDArray[np.float64], *, relative_thickness: float
) -> NDArray[np.float64]:
    if isinstance(shape, OtherOxide):
        return shape.oxygen_density * shape.edge.spectrum(energy, relative_thickness=relative_thickness)
    return calibrate_edges(shape, energy, relative_thickness=relative_thickness)


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


def _with_low_loss(
    image: xr.DataArray,
    truth: xr.Dataset,
    drawn: _Drawn,
    recording: LowLossRecording,
    rng: np.random.Generator,
) -> Acquisition:
    """Return the acquisition with the low loss of its scan, recorded on another part of the same detector."""
    parameters, axis_error = drawn.parameters, drawn.axis_error
    axis = EnergyAxis(recording.start, drawn.axis.dispersion, drawn.axis.size)
    detector = Detector.draw(parameters.detector, n_channels=axis.size, rng=rng)
    beam_counts = draw(rng, recording.beam_counts) * drawn.levels.dose * detector.parameters.level_scale
    boundaries = [axis_error.true_energies(axis.boundaries, row, fixed=0.0) for row in range(parameters.shape[0])]
    energy, orders = scattered_beam(
        drawn.low_loss, start=min(b[0] for b in boundaries), stop=max(b[-1] for b in boundaries)
    )
    weights = poisson_weights(drawn.specimen.oxide_thickness / drawn.low_loss.mean_free_path)
    counts = np.empty((*parameters.shape, axis.size), dtype=np.int32)
    for row, channels in enumerate(boundaries):
        expected = beam_counts * weights[:, row].T @ integrate_channels(energy, orders, channels)
        # a Fourier transform leaves some 1e-11 counts below zero where there are none
        counts[row], _ = detector.record(np.maximum(expected, 0.0).astype(np.float32), rng=rng)
    truth = truth.assign(
        t_over_lambda=truth["relative_thickness"],
        zero_loss=(("y",), -(axis_error.offset + axis_error.drift), {"units": "eV"}),
    ).assign_attrs(
        resolution=recorded_resolution(drawn.low_loss, axis, detector.parameters.autocorrelation),
        beam_counts=float(beam_counts),
    )
    name = f"{image.attrs['source']}.low-loss"
    return Acquisition(image, truth, _build_image(counts, axis, parameters, name))


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


def _build_truth(drawn: _Drawn, spike_mask: NDArray[np.bool_], image: xr.DataArray) -> xr.Dataset:
    specimen, low_loss, axis_error, detector = drawn.specimen, drawn.low_loss, drawn.axis_error, drawn.detector
    kind, thickness = drawn.parameters.specimen.kind, specimen.oxide_thickness
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
        coords={"phase": list(specimen.phases), **{dim: image.coords[dim] for dim in ("y", "x", "energy_loss")}},
        attrs={
            "schema": TRUTH_SCHEMA,
            "offset": axis_error.offset,
            "offset_energy": REFERENCE_ENERGY,
            "dispersion_error": axis_error.dispersion_error,
            "drift": float(axis_error.drift[-1] - axis_error.drift[0]),
            "kind": kind,
            "scene": "pure" if kind in (*PHASES, OTHER) else kind,
            "detector": detector.parameters.name,
            "n_cubes": specimen.n_particles,
            "counts_per_electron": detector.parameters.counts_per_electron,
            "readout_noise": detector.parameters.readout_noise,
            "sha256": image.attrs["sha256"],
            **asdict(drawn.levels),
            **asdict(low_loss),
            **{f"shape_{k}": json.dumps([asdict(v) for v in values]) for k, values in drawn.edges.items()},
            "shape_film": json.dumps(asdict(drawn.film_edge)),
        },
    )
