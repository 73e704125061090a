"""Oxide nanocubes on a support film: where they lie and how thick each oxide is along the beam.

All lengths in nm; the beam runs along z. The size ranges (edges of 30-50 nm, an FeO core of 50-70 % of the edge)
are assumptions taken from the literature on such cubes, as are the tilts and the unevenness of the film, which are
our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from scipy.ndimage import gaussian_filter

from eelsflow.errors import InputError

PHASES = ("FeO", "Fe3O4")
"""The oxides in the order of every array with a ``phase`` dimension."""

Kind = Literal["FeO", "Fe3O4", "core_shell"]

_SUB_SAMPLES = 4
"""Beam positions per pixel and direction over which the thickness is averaged (a cube's rim crosses pixels)."""


def check_range(bounds: tuple[float, float]) -> tuple[float, float]:
    """Refuse a range whose bounds are in the wrong order."""
    if not bounds[0] <= bounds[1]:
        raise ValueError(f"range {bounds} is empty; write (low, high) with low <= high")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(check_range)]
"""``(low, high)``: a value is drawn uniformly between the two for every acquisition (or every cube)."""


def draw(rng: np.random.Generator, bounds: Range) -> float:
    """Draw one value uniformly from a range."""
    return float(rng.uniform(*bounds))


class SpecimenParameters(BaseModel):
    """What lies in the field of view.

    Parameters
    ----------
    kind
        Cubes of one oxide, or an FeO core in a Fe3O4 shell (with some pure cubes of either beside it).
    n_cubes
        Smallest and largest number of cubes aimed at; a small field holds fewer.
    edge_length
        Range of the cubes' edge, nm. Where the field is small, the edge is limited to `largest_share` of it,
        so that there is always some bare film.
    pure_share
        Probability that a cube beyond the first is a pure one in a field of core-shell cubes; FeO first
        (shells show pure Fe3O4 at the cubes' rims anyway, but cores show no pure FeO), then Fe3O4, in turn.
    core_fraction
        Range of core edge / cube edge of core-shell cubes.
    tilt
        Standard deviation of the tilt about each in-plane axis, degrees; the in-plane angle is uniform.
    largest_share
        Largest cube edge as a share of the shorter side of the field.
    film_unevenness
        Standard deviation of the support film's thickness over the field, relative to its mean.
    n_variants
        Local variants of each oxide (defects, strain, surface) that are mixed in proportions that change over the
        specimen; 1 for oxides that are the same everywhere. With 4, an acquisition shows about the five principal
        components above noise that were measured.
    variant_length
        Distance over which the proportions change, nm (standard deviation of a Gaussian).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "core_shell"
    n_cubes: Annotated[tuple[int, int], AfterValidator(check_range)] = (2, 4)
    edge_length: Range = (30.0, 50.0)
    pure_share: Annotated[float, Field(ge=0, le=1)] = 0.8
    core_fraction: Range = (0.5, 0.7)
    tilt: Annotated[float, Field(ge=0, le=45)] = 6.0
    largest_share: Annotated[float, Field(gt=0, le=1)] = 0.6
    film_unevenness: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    n_variants: Annotated[int, Field(ge=1, le=10)] = 4
    variant_length: Annotated[float, Field(gt=0)] = 4.0


@dataclass(frozen=True, slots=True)
class Cube:
    """One cube: a box of `outer_phase` around a concentric, equally oriented box of `core_phase`.

    Parameters
    ----------
    center
        (y, x) of its centre in the field, nm.
    edge_length
        nm.
    core_fraction
        Core edge / cube edge; 0 for a cube of one oxide.
    rotation
        Rotation matrix (3, 3) from the cube's frame to the laboratory's (x, y, z).
    outer_phase, core_phase
        Names in `PHASES`.
    """

    center: tuple[float, float]
    edge_length: float
    core_fraction: float
    rotation: NDArray[np.float64]
    outer_phase: str
    core_phase: str


@dataclass(frozen=True, slots=True)
class Specimen:
    """Projected thickness of each oxide and of the support film, per pixel.

    Parameters
    ----------
    thickness
        Shape (phase, y, x), nm along the beam, averaged over the pixel.
    film
        Shape (y, x): thickness of the support film relative to its mean.
    variants
        Shape (variant, y, x): proportions of the oxides' local variants; their sum is 1.
    cubes
        The cubes the thickness was computed from, where it was.
    phases
        Names of the phases of `thickness`.
    n_particles
        How many particles there are.
    """

    thickness: NDArray[np.float64]
    film: NDArray[np.float64]
    variants: NDArray[np.float64]
    cubes: tuple[Cube, ...]
    phases: tuple[str, ...] = PHASES
    n_particles: int = 0

    @property
    def oxide_thickness(self) -> NDArray[np.float64]:
        """Thickness of all oxides together, shape (y, x), nm."""
        return np.asarray(self.thickness.sum(axis=0))

    @property
    def phase_fraction(self) -> NDArray[np.float64]:
        """Share of each oxide in the projected oxide, shape (phase, y, x); 0 where there is no oxide."""
        total = self.oxide_thickness
        return self.thickness / np.where(total > 0, total, 1.0)

    @property
    def vacuum(self) -> NDArray[np.bool_]:
        """Pixels that count as no specimen, shape (y, x): oxide thinner than 25 % of the field's maximum."""
        total = self.oxide_thickness
        return np.asarray(total < 0.25 * total.max()) if total.max() > 0 else np.ones(total.shape, dtype=bool)

    def made_of(self, phase: str) -> Specimen:
        """Return the same specimen, as thick everywhere, made of one of its phases alone."""
        if phase not in self.phases:
            raise InputError(f"the specimen has no phase {phase!r}; it knows {', '.join(self.phases)}")
        thickness = np.zeros_like(self.thickness)
        thickness[self.phases.index(phase)] = self.oxide_thickness
        return replace(self, thickness=thickness)


def build_specimen(
    parameters: SpecimenParameters, *, shape: tuple[int, int], pixel_size: float, rng: np.random.Generator
) -> Specimen:
    """Place cubes in a field and project them along the beam.

    Parameters
    ----------
    parameters
        What to place.
    shape
        Pixels of the field (y, x).
    pixel_size
        nm.
    rng
        Source of every random choice.
    """
    cubes = _place_cubes(parameters, field=(shape[0] * pixel_size, shape[1] * pixel_size), rng=rng)
    thickness = np.zeros((len(PHASES), *shape))
    for cube in cubes:
        total = projected_thickness(cube, shape=shape, pixel_size=pixel_size)
        core = projected_thickness(cube, shape=shape, pixel_size=pixel_size, scale=cube.core_fraction)
        thickness[PHASES.index(cube.outer_phase)] += total - core
        thickness[PHASES.index(cube.core_phase)] += core
    film = uneven_film(parameters.film_unevenness, shape, rng)
    length = parameters.variant_length / pixel_size
    return Specimen(thickness, film, mixture(parameters.n_variants, shape, length, rng), cubes, n_particles=len(cubes))


def projected_thickness(
    cube: Cube, *, shape: tuple[int, int], pixel_size: float, scale: float = 1.0
) -> NDArray[np.float64]:
    """Return the length of the beam's path inside a cube, averaged over each pixel.

    Parameters
    ----------
    cube
        Position, size and orientation.
    shape
        Pixels of the field (y, x).
    pixel_size
        nm.
    scale
        Size of the box relative to the cube, so that its core is the same cube at ``scale=core_fraction``.

    Returns
    -------
    thickness
        Shape (y, x), nm. Its sum times the pixel's area is the box's volume if the box lies inside the field.

    Notes
    -----
    Slab method: in the cube's frame the beam enters each pair of faces at ``(-h - o) / d`` and leaves at
    ``(h - o) / d`` (in either order); the path is what is left between the last entry and the first exit.
    """
    if scale <= 0:
        return np.zeros(shape)
    half = 0.5 * scale * cube.edge_length
    step = pixel_size / _SUB_SAMPLES
    y, x = (step * (np.arange(n * _SUB_SAMPLES) + 0.5) - c for n, c in zip(shape, cube.center, strict=True))
    origin = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 0.0), axis=-1) @ cube.rotation
    direction = cube.rotation[2]  # the beam (0, 0, 1) seen from the cube
    # A beam parallel to a face never crosses it; a tiny component gives the same answer without a special case.
    direction = np.where(np.abs(direction) < 1e-9, 1e-9, direction)
    one, other = (-half - origin) / direction, (half - origin) / direction
    path = np.minimum.reduce(np.maximum(one, other), axis=-1) - np.maximum.reduce(np.minimum(one, other), axis=-1)
    fine = np.clip(path, 0.0, None).reshape(shape[0], _SUB_SAMPLES, shape[1], _SUB_SAMPLES)
    return np.asarray(fine.mean(axis=(1, 3)))


def _place_cubes(
    parameters: SpecimenParameters, *, field: tuple[float, float], rng: np.random.Generator
) -> tuple[Cube, ...]:
    """Place cubes where they fit without overlap, beginning anew a few times where fewer than wanted have fitted."""
    best: tuple[Cube, ...] = ()
    for _ in range(10):
        cubes = _try_to_place_cubes(parameters, field=field, rng=rng)
        best = max(best, cubes, key=len)
        if len(best) >= parameters.n_cubes[0]:
            break
    return best


def _try_to_place_cubes(
    parameters: SpecimenParameters, *, field: tuple[float, float], rng: np.random.Generator
) -> tuple[Cube, ...]:
    """Place cubes one after the other where they fit without overlap; the first always fits."""
    limit = parameters.largest_share * min(field)
    cubes: list[Cube] = []
    n_pure = 0
    for number in range(int(rng.integers(parameters.n_cubes[0], parameters.n_cubes[1], endpoint=True))):
        outer, core, core_fraction = "Fe3O4", "FeO", draw(rng, parameters.core_fraction)
        if parameters.kind != "core_shell":
            outer, core, core_fraction = parameters.kind, parameters.kind, 0.0
        elif number > 0 and rng.random() < parameters.pure_share:
            outer = core = PHASES[n_pure % 2]
            core_fraction = 0.0
            n_pure += 1
        edge_length = min(draw(rng, parameters.edge_length), limit)
        rotation = _rotation(rng.uniform(0.0, 90.0), *rng.normal(0.0, parameters.tilt, 2))
        for _ in range(50):
            center = (_inside(rng, field[0], edge_length), _inside(rng, field[1], edge_length))
            # 0.75: half a face's diagonal is 0.71 of the edge; the rest is room for the tilt.
            if all(
                np.hypot(center[0] - c.center[0], center[1] - c.center[1]) > 0.75 * (edge_length + c.edge_length)
                for c in cubes
            ):
                cubes.append(Cube(center, edge_length, core_fraction, rotation, outer, core))
                break
    return tuple(cubes)


def _inside(rng: np.random.Generator, side: float, edge_length: float) -> float:
    """Draw a coordinate that keeps the cube inside the field, or near its middle where it cannot be inside."""
    margin = min(0.75 * edge_length, 0.48 * side)
    return float(rng.uniform(margin, side - margin))


def _rotation(*degrees: float) -> NDArray[np.float64]:
    """Return Rx(tilt) Ry(tilt) Rz(in-plane angle), given (in-plane angle, tilt about x, tilt about y)."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_z = np.array([[c[0], -s[0], 0], [s[0], c[0], 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, c[1], -s[1]], [0, s[1], c[1]]])
    about_y = np.array([[c[2], 0, s[2]], [0, 1, 0], [-s[2], 0, c[2]]])
    return np.asarray(about_x @ about_y @ about_z)


def mixture(n_parts: int, shape: tuple[int, int], length: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return smooth random proportions, shape (parts, y, x), that change over `length` pixels."""
    # Wrapped around, so that the spread is the same in the middle and at the border.
    fields = gaussian_filter(rng.normal(size=(n_parts, *shape)), (0.0, length, length), mode="wrap")
    # White noise smoothed by a Gaussian keeps 1 / (4 pi length^2) of its variance; 2: each part rules somewhere.
    weights = np.exp(2.0 * np.sqrt(4.0 * np.pi) * length * fields)
    return np.asarray(weights / weights.sum(axis=0))


def uneven_film(unevenness: float, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a smooth random thickness of mean 1: a few cosines that are slow over the field."""
    y, x = ((np.arange(n) + 0.5) / n for n in shape)
    modes = [(i, j) for i in range(3) for j in range(3) if i + j]
    waves = [np.outer(np.cos(np.pi * i * y), np.cos(np.pi * j * x)) / (i + j) for i, j in modes]
    film = np.tensordot(rng.normal(size=len(modes)), np.stack(waves), axes=1)
    spread = float(film.std())
    return np.asarray(1.0 + unevenness * (film - film.mean()) / spread) if spread > 0 else np.ones(shape)
