"""What the beam loses in an iron oxide: O K and Fe L2,3, scattered again by the plasmons, on a background.

Energies in eV. The shapes are sums of peaks and steps whose strengths are solved for, so that the edge *as
detected* (after plural scattering and broadening) has the heights that a real one shows. Measured on iron-oxide
nanocubes, pre-peak at 0 and main peak 1: pre-peak .63, valley +3.3 eV .32, shoulder +7 eV .81, main peak +9.0 eV,
minimum +20 eV .40, third peak +30.5 eV .72, +43 eV .55; Fe L3 177.5 eV above the pre-peak and 2.4 times the main
peak, L3-L2 13.0 eV, L3/L2 2.77, L3 5.0 eV wide. The ranges by phase are assumptions (textbook spread).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import factorial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import nnls
from scipy.signal import fftconvolve
from scipy.special import erf

from eelsflow.simulator.specimen import Range, draw

REFERENCE_ENERGY = 530.0
"""Where the detected O pre-peak has its maximum in every simulated phase (no chemical shift of the pre-peak)."""

FINE_STEP = 0.1
"""Step of the grid of true energies that spectra are computed on before a detector samples them, eV."""

MAX_SCATTERINGS = 5
"""Plasmon losses followed; at t/lambda .5 the sixth has a probability of 1e-5."""

_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
_CONTINUUM_EXPONENT = 2.5
"""Decay of the continuum with the energy loss; set so that r before Fe L comes out near the measured 3.05."""


class LowLossParameters(BaseModel):
    """Plasmons and the zero-loss peak.

    Parameters
    ----------
    plasmon_energy, plasmon_width
        Ranges, eV; width is the full width at half maximum (assumptions for iron oxides).
    zero_loss_width
        Range of the zero-loss full width at half maximum, eV.
    mean_free_path
        Range of the inelastic mean free path, nm: 122-125 at 200 kV.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plasmon_energy: Range = (22.0, 25.0)
    plasmon_width: Range = (10.0, 20.0)
    zero_loss_width: Range = (0.3, 1.2)
    mean_free_path: Range = (122.0, 125.0)

    def draw(self, rng: np.random.Generator) -> LowLoss:
        """Draw one acquisition's low loss."""
        return LowLoss(
            draw(rng, self.plasmon_energy),
            draw(rng, self.plasmon_width),
            draw(rng, self.zero_loss_width),
            draw(rng, self.mean_free_path),
        )


@dataclass(frozen=True, slots=True)
class LowLoss:
    """One acquisition's plasmon (eV), zero-loss width (eV) and mean free path (nm)."""

    plasmon_energy: float
    plasmon_width: float
    zero_loss_width: float
    mean_free_path: float

    def single_plasmon(self, *, step: float = FINE_STEP) -> NDArray[np.float64]:
        """Return the single-plasmon distribution from loss 0 in steps of `step` eV, up to 10 widths; its sum is 1.

        Notes
        -----
        Drude: ``P(E) ~ E / ((E^2 - Ep^2)^2 + (E W)^2)`` (Egerton, EELS in the Electron Microscope, section 3.3.1).
        """
        energy = np.arange(0.0, self.plasmon_energy + 10.0 * self.plasmon_width, step)
        loss = energy / ((energy**2 - self.plasmon_energy**2) ** 2 + (energy * self.plasmon_width) ** 2)
        return np.asarray(loss / loss.sum())


NOMINAL_LOW_LOSS = LowLoss(23.5, 15.0, 0.75, 123.5)
"""The middle of the ranges: the conditions under which `calibrate_edges` meets the heights."""


class PhaseParameters(BaseModel):
    """The edges of one oxide, as ranges: every acquisition draws its own values.

    Heights are those of the detected edge relative to its main peak at nominal conditions; positions are relative
    to the pre-peak; widths are standard deviations; eV. `onset` and `onset_width` are those of the continuum.
    `error` is the relative standard deviation of a smooth random factor on O K, `error_length` the distance over which
    it changes, eV: what no sum of six peaks has. `key_weight` is how much more the heights of pre-peak and main peak
    weigh than the others where not all of them can be met.

    Fe L2,3 is that of Fe2+, with the share `ferric` of Fe3+, whose lines lie `l3_shift` higher. `l3_position` is that
    of Fe2+, `l3_l2` the distance of the two lines, `l3_l2_ratio` that of their detected heights, `l3_width` the full
    width at half maximum of the detected L3 of one ion.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    oxygen_density: Annotated[float, Field(gt=0)]
    iron_density: Annotated[float, Field(gt=0)]
    pre_peak_height: Range
    pre_peak_sigma: Range
    valley_height: Range
    shoulder_height: Range
    main_position: Range
    main_sigma: Range
    minimum_height: Range
    third_position: Range
    third_height: Range
    third_sigma: Range
    fourth_height: Range
    l3_position: Range
    fourth_position: Range = (43.0, 43.0)
    onset: Range = (4.5, 4.5)
    onset_width: Range = (1.6, 1.6)
    error: Range = (0.0, 0.0)
    error_length: Range = (8.0, 8.0)
    key_weight: Annotated[float, Field(ge=1)] = 1.0
    ferric: Range = (0.0, 0.0)
    l3_shift: Range = (0.0, 0.0)
    l3_l2: Range = (13.0, 13.0)
    l3_l2_ratio: Range = (2.77, 2.77)
    l3_width: Range = (5.0, 5.0)

    def draw(self, rng: np.random.Generator) -> PhaseShape:
        """Draw one acquisition's shape of this oxide's edges."""
        ranges = {name: getattr(self, name) for name in PhaseShape.__dataclass_fields__ if name != "error_seed"}
        # The values that may be fixed cost no random number where they are: a set of parameters that does not know
        # them draws what it always drew.
        fixed = {name: ranges[name][0] for name in _MAY_BE_FIXED if ranges[name][0] == ranges[name][1]}
        iron = {name: ranges.pop(name) for name in _OF_IRON}
        drawn: dict[str, Any] = {
            k: draw(rng, v) if isinstance(v, tuple) else v for k, v in ranges.items() if k not in fixed
        }
        error_seed = int(rng.integers(2**31)) if self.error[1] > 0 else 0
        # Fe L2,3 has a stream of its own, so that O K is what it was before these could be drawn.
        is_drawn = any(low < high for low, high in iron.values())
        stream = np.random.default_rng((error_seed if error_seed or not is_drawn else int(rng.integers(2**31)), 1))
        return PhaseShape(**drawn, **fixed, **{k: draw(stream, v) for k, v in iron.items()}, error_seed=error_seed)

    @property
    def nominal(self) -> PhaseShape:
        """The middle of every range, without the random factor."""
        ranges = {name: getattr(self, name) for name in PhaseShape.__dataclass_fields__ if name != "error_seed"}
        middle: dict[str, Any] = {k: sum(v) / 2 if isinstance(v, tuple) else v for k, v in ranges.items()}
        return PhaseShape(**{**middle, "error": 0.0})


_MAY_BE_FIXED = ("fourth_position", "onset", "onset_width", "error", "error_length")
_OF_IRON = ("ferric", "l3_shift", "l3_l2", "l3_l2_ratio", "l3_width")


@dataclass(frozen=True, slots=True)
class PhaseShape:
    """One oxide's edges: the values drawn from `PhaseParameters`, field by field."""

    oxygen_density: float
    iron_density: float
    pre_peak_height: float
    pre_peak_sigma: float
    valley_height: float
    shoulder_height: float
    main_position: float
    main_sigma: float
    minimum_height: float
    third_position: float
    third_height: float
    third_sigma: float
    fourth_height: float
    l3_position: float
    fourth_position: float = 43.0
    onset: float = 4.5
    onset_width: float = 1.6
    error: float = 0.0
    error_length: float = 8.0
    key_weight: float = 1.0
    ferric: float = 0.0
    l3_shift: float = 0.0
    l3_l2: float = 13.0
    l3_l2_ratio: float = 2.77
    l3_width: float = 5.0
    error_seed: int = 0

    @property
    def l3_mean(self) -> float:
        """Where L3 lies over both ions, eV above the pre-peak."""
        return self.l3_position + self.ferric * self.l3_shift


def fine_energies(start: float, stop: float) -> NDArray[np.float64]:
    """Return the grid of true energies (multiples of `FINE_STEP`) that spans ``start`` to ``stop``, eV."""
    first, last = int(np.floor(start / FINE_STEP)), int(np.ceil(stop / FINE_STEP))
    return FINE_STEP * np.arange(first, last + 1, dtype=np.float64)


def scatter(spectra: NDArray[np.float64], low_loss: LowLoss) -> NDArray[np.float64]:
    """Return spectra after 0, 1, ..., `MAX_SCATTERINGS` plasmon losses.

    Parameters
    ----------
    spectra
        Single-scattering spectra on the fine grid, shape (..., energies); not modified.
    low_loss
        The plasmon.

    Returns
    -------
    orders
        Shape (MAX_SCATTERINGS + 1, ..., energies); weigh them with `poisson_weights` for a thickness.
    """
    plasmon = low_loss.single_plasmon().reshape((1,) * (spectra.ndim - 1) + (-1,))
    orders = [spectra]
    for _ in range(MAX_SCATTERINGS):
        orders.append(fftconvolve(orders[-1], plasmon, axes=-1)[..., : spectra.shape[-1]])
    return np.stack(orders)


def poisson_weights(relative_thickness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of 0, 1, ..., `MAX_SCATTERINGS` losses at t/lambda.

    Parameters
    ----------
    relative_thickness
        t/lambda, any shape.

    Returns
    -------
    weights
        Shape (MAX_SCATTERINGS + 1, *relative_thickness.shape): ``exp(-T) T^n / n!``.
    """
    t = np.asarray(relative_thickness, dtype=np.float64)
    return np.stack([np.exp(-t) * t**n / factorial(n) for n in range(MAX_SCATTERINGS + 1)])


def broaden(spectra: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Return spectra (..., energies) on the fine grid broadened by a Gaussian of `width` eV (FWHM); sums are kept."""
    sigma = width / _FWHM / FINE_STEP
    if sigma < 0.1:  # a tenth of a step: nothing reaches the neighbour
        return spectra
    reach = int(np.ceil(5.0 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).reshape((1,) * (spectra.ndim - 1) + (-1,))
    return np.asarray(fftconvolve(spectra, kernel, mode="same", axes=-1))


def detected(spectra: NDArray[np.float64], low_loss: LowLoss, relative_thickness: float) -> NDArray[np.float64]:
    """Return single-scattering spectra (..., energies) as detected behind a specimen of one thickness."""
    size = spectra.shape[-1]
    kernel = _detection_kernel(low_loss, relative_thickness, size).reshape((1,) * (spectra.ndim - 1) + (-1,))
    return np.asarray(fftconvolve(spectra, kernel, axes=-1)[..., _KERNEL_ORIGIN : _KERNEL_ORIGIN + size])


_KERNEL_ORIGIN = 100
"""Where loss 0 lies in a detection kernel: further from its start than the zero loss is wide."""


@lru_cache(maxsize=64)
def _detection_kernel(low_loss: LowLoss, relative_thickness: float, size: int) -> NDArray[np.float64]:
    """Return what detection makes of a single line: one convolution instead of one for each scattering."""
    line = np.zeros(_KERNEL_ORIGIN + size)
    line[_KERNEL_ORIGIN] = 1.0
    weights = poisson_weights(np.asarray(relative_thickness))
    kernel = broaden(np.tensordot(weights, scatter(line, low_loss), axes=1), low_loss.zero_loss_width)
    kernel.setflags(write=False)  # it is cached: nobody may change it
    return kernel


def calibrate_edges(
    shape: PhaseShape, energy: NDArray[np.float64], *, relative_thickness: float
) -> NDArray[np.float64]:
    """Return O K + Fe L2,3 of an oxide as single scattering, for one thickness of oxide.

    Parameters
    ----------
    shape
        Heights, positions and widths.
    energy
        Fine grid of true energies, shape (energies,), eV.
    relative_thickness
        t/lambda of that thickness, at which the heights are met with `NOMINAL_LOW_LOSS`.

    Returns
    -------
    spectrum
        Shape (energies,). Scaled so that the detected main peak of Fe3O4 is 1; another oxide's is its density of
        oxygen against that.

    Notes
    -----
    Strengths of pre-peak, valley, shoulder, main, third and fourth peak and continuum are non-negative least
    squares on the seven heights. The whole edge is then moved (by hundredths of an eV) so that the detected
    pre-peak has its maximum at `REFERENCE_ENERGY`: the neighbouring peaks pull it otherwise. Fe L2,3 is two
    Gaussians on two steps for each ion. The random factor comes after the fit, so it does change the heights.
    The shape of the model is ours; the heights are measured, or ranges about them.
    """
    grid = fine_energies(505.0, 760.0)
    position, height = _targets(shape)
    parts = _oxygen_parts(shape, grid, shift=0.0)
    seen = detected(parts, NOMINAL_LOW_LOSS, relative_thickness)
    at_targets = np.stack([np.interp(REFERENCE_ENERGY + position, grid, part) for part in seen], axis=1)
    weight = np.where(np.isin(position, (0.0, shape.main_position)), shape.key_weight, 1.0)
    strengths, _ = nnls(at_targets * weight[:, None], height * weight)
    oxygen = strengths @ seen
    if shape.error > 0:
        factor = _smooth_error(shape, grid)
        oxygen = detected(factor * (strengths @ parts), NOMINAL_LOW_LOSS, relative_thickness)
    scale = 1.0 / np.interp(REFERENCE_ENERGY + shape.main_position, grid, oxygen)
    near = np.abs(grid - REFERENCE_ENERGY) < 1.0
    parabola = np.polyfit(grid[near] - REFERENCE_ENERGY, oxygen[near], 3)
    peak = min(np.roots(np.polyder(parabola)).real, key=abs)
    spectrum = scale * (strengths @ _oxygen_parts(shape, energy, shift=-float(peak)))
    if shape.error > 0:
        spectrum *= _smooth_error(shape, energy + float(peak))

    # Fe atoms per O atom set the strength of Fe L against O K; the measured 2.4 is that of a Fe3O4-like specimen.
    iron = 2.4 * (shape.iron_density / shape.oxygen_density) / (3.0 / 4.0)
    lines, steps = _iron_parts(shape, grid)
    seen_lines, seen_steps = (detected(p, NOMINAL_LOW_LOSS, relative_thickness) for p in (lines, steps))
    at_lines = [REFERENCE_ENERGY + shape.l3_mean + d for d in (0.0, shape.l3_l2)]
    wanted = iron * np.array([1.0, 1.0 / shape.l3_l2_ratio]) - iron * np.interp(at_lines, grid, seen_steps)
    line_strengths = np.linalg.solve(np.stack([np.interp(at_lines, grid, s) for s in seen_lines], axis=1), wanted)
    lines, steps = _iron_parts(shape, energy)
    spectrum += line_strengths @ lines + iron * steps
    return np.asarray(spectrum * shape.oxygen_density / FE3O4_OXYGEN_DENSITY)


FE3O4_OXYGEN_DENSITY = 54.1
"""Oxygen atoms per nm^3 of magnetite: 32 in a cell of 0.8396 nm."""


def _targets(shape: PhaseShape) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where (eV above the pre-peak) the detected edge has which height."""
    points = {
        0.0: shape.pre_peak_height,
        3.3: shape.valley_height,
        shape.main_position - 2.0: shape.shoulder_height,
        shape.main_position: 1.0,
        shape.main_position + 11.0: shape.minimum_height,
        shape.third_position: shape.third_height,
        shape.fourth_position: shape.fourth_height,
    }
    return np.array(list(points)), np.array(list(points.values()))


def _oxygen_parts(shape: PhaseShape, energy: NDArray[np.float64], *, shift: float) -> NDArray[np.float64]:
    """Return the peaks and the continuum of O K, each of unit height, shape (7, energies)."""
    relative = energy - REFERENCE_ENERGY - shift
    peaks = [
        (0.0, shape.pre_peak_sigma),
        (4.2, 1.5),
        (shape.main_position - 3.0, 1.4),
        (shape.main_position, shape.main_sigma),
        (shape.third_position, shape.third_sigma),
        (shape.fourth_position + 1.0, 5.5),
    ]
    gaussians = [np.exp(-0.5 * ((relative - position) / sigma) ** 2) for position, sigma in peaks]
    continuum = continuum_step(energy, REFERENCE_ENERGY + shift + shape.onset, shape.onset_width)
    return np.stack([*gaussians, continuum])


def _smooth_error(shape: PhaseShape, energy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the random factor of a shape, shape (energies,): 1 + a Gaussian process with a Gaussian correlation.

    It depends on the energy alone, not on where a grid begins; beyond 200 eV above the pre-peak it is 1.
    """
    width = shape.error_length / np.sqrt(2.0)  # white noise through this Gaussian is correlated over `error_length`
    knots = REFERENCE_ENERGY - 30.0 + width * np.arange(int(230.0 / width))
    heights = np.random.default_rng(shape.error_seed).normal(size=knots.size)
    # Knots one width apart: the squares of the Gaussians add up to the root of pi everywhere between them.
    process = np.exp(-0.5 * ((energy[:, None] - knots) / width) ** 2) @ heights / np.pi**0.25
    return np.asarray(np.clip(1.0 + shape.error * process, 0.5, 1.5))


def _iron_parts(shape: PhaseShape, energy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the white lines (2, energies), each ion's as high as its share, and their steps, relative to L3."""
    # The detector, the zero loss and the step below it widen the line: 1.5 eV in quadrature off the measured width.
    sigma = np.sqrt(shape.l3_width**2 - 1.5**2) / _FWHM
    lines, steps = np.zeros((2, energy.size)), np.zeros(energy.size)
    for share, shift in ((1.0 - shape.ferric, 0.0), (shape.ferric, shape.l3_shift)):
        onset = REFERENCE_ENERGY + shape.l3_position + shift
        lines += share * np.stack([np.exp(-0.5 * ((energy - onset - d) / sigma) ** 2) for d in (0.0, shape.l3_l2)])
        # Four 2p3/2 and two 2p1/2 electrons: steps 2:1; their height against the line is our choice.
        of_both = 0.10 * continuum_step(energy, onset, 2.0) + 0.05 * continuum_step(energy, onset + shape.l3_l2, 2.0)
        steps += share * of_both
    return lines, steps


def continuum_step(energy: NDArray[np.float64], onset: float, width: float) -> NDArray[np.float64]:
    """Return a continuum that starts at `onset` over `width` eV and decays as a power of the energy."""
    rise = 0.5 * (1.0 + erf((energy - onset) / (np.sqrt(2.0) * width)))
    return np.asarray(rise * (energy / onset) ** -_CONTINUUM_EXPONENT)
