"""Fields full of particles with every arrangement of the oxides that a map must show: sharp, smooth, small, mixed.

In-plane lengths are pixels here, since what a map can show is a matter of pixels; thicknesses along the beam are nm.
All sizes are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import gaussian_filter

from eelsflow.simulator.specimen import PHASES, Range, Specimen, draw, mixture, uneven_film

Scene = Literal["FeO", "Fe3O4", "core_shell", "interface", "gradient", "inclusions", "two_particles", "mosaic", "other"]
"""What a field holds; ``other`` is an oxide that is neither FeO nor Fe3O4."""

SCENES: tuple[Scene, ...] = get_args(Scene)

OTHER = "other"
"""Name of the third phase in fields of another oxide."""

TILE = 8
"""Side of a mosaic's tiles, pixels."""


class FieldParameters(BaseModel):
    """A field filled with particles.

    Parameters
    ----------
    kind
        The scene: how the two oxides share the particles.
    coverage
        Range of the share of pixels that hold specimen.
    radius
        Range of the particles' half width, pixels; limited to `largest_share` of the field's shorter side.
    largest_share
        See `radius`.
    rounded
        Probability that a particle is an ellipsoid; the others are cubes, flat or tilted.
    peak_thickness
        Range of the thickness of the thickest place along the beam, nm.
    core_fraction
        Range of the projected share of the FeO core at the middle of a core-shell particle.
    core_radius
        Range of the core's half width relative to the particle's.
    core_blur
        Range of the distance over which the core fades, relative to the particle's half width; half of the
        acquisitions have a sharp core instead.
    inclusion_size
        Smallest and largest diameter of inclusions, pixels.
    film_unevenness
        Standard deviation of the support film's thickness over the field, relative to its mean.
    n_variants
        Local variants of each oxide, as in `SpecimenParameters`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Scene = "core_shell"
    coverage: Annotated[Range, Field()] = (0.5, 0.8)
    radius: Range = (4.0, 14.0)
    largest_share: Annotated[float, Field(gt=0, le=0.5)] = 0.3
    rounded: Annotated[float, Field(ge=0, le=1)] = 0.5
    # t/lambda .15-1.0 at the mean free path of 122-125 nm
    peak_thickness: Range = (18.5, 123.0)
    core_fraction: Range = (0.5, 0.9)
    core_radius: Range = (0.55, 0.8)
    core_blur: Range = (0.3, 0.7)
    inclusion_size: tuple[int, int] = (2, 5)
    film_unevenness: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    n_variants: Annotated[int, Field(ge=1, le=10)] = 1


@dataclass(frozen=True, slots=True)
class _Particles:
    """Particles before the oxides are shared out.

    Parameters
    ----------
    thickness
        Shape (y, x), relative to the thickest place.
    owner
        Shape (y, x): number of the particle that is thickest in the pixel; -1 where there is none.
    radial
        Shape (y, x): distance from the middle of that particle, 1 at its rim.
    centers
        Shape (particles, 2): (y, x) of the middles, pixels.
    """

    thickness: NDArray[np.float64]
    owner: NDArray[np.intp]
    radial: NDArray[np.float64]
    centers: NDArray[np.float64]

    @property
    def oxide(self) -> NDArray[np.bool_]:
        """Where there is any, shape (y, x)."""
        return np.asarray(self.owner >= 0)


def build_field(parameters: FieldParameters, *, shape: tuple[int, int], rng: np.random.Generator) -> Specimen:
    """Fill a field with particles and share them out between the oxides.

    Parameters
    ----------
    parameters
        Which scene, and its sizes.
    shape
        Pixels of the field (y, x).
    rng
        Source of every random choice.
    """
    field = _fill(parameters, shape=shape, rng=rng)
    thickness = draw(rng, parameters.peak_thickness) * field.thickness
    film = uneven_film(parameters.film_unevenness, shape, rng)
    variants = mixture(parameters.n_variants, shape, 2.0, rng)
    n_particles = len(field.centers)
    if parameters.kind == OTHER:
        parts = np.stack([np.zeros(shape), np.zeros(shape), thickness])
        return Specimen(parts, film, variants, (), phases=(*PHASES, OTHER), n_particles=n_particles)
    share = _share_of_feo(parameters, field, rng)
    return Specimen(
        np.stack([share * thickness, (1.0 - share) * thickness]), film, variants, (), n_particles=n_particles
    )


def _fill(parameters: FieldParameters, *, shape: tuple[int, int], rng: np.random.Generator) -> _Particles:
    """Place particles one after the other on free pixels until enough of the field is covered."""
    thickness, radial = np.zeros(shape), np.zeros(shape)
    owner = np.full(shape, -1, dtype=np.intp)
    centers: list[tuple[float, float]] = []
    covered = draw(rng, parameters.coverage) * thickness.size
    largest = parameters.largest_share * min(shape)
    while np.count_nonzero(owner >= 0) < covered:
        free = np.flatnonzero(owner < 0)
        y, x = np.unravel_index(int(free[rng.integers(free.size)]), shape)
        center = (float(y) + rng.uniform(0.0, 1.0), float(x) + rng.uniform(0.0, 1.0))
        # The last particle must not overshoot by more than a few per cent of the field.
        room = np.sqrt((covered - np.count_nonzero(owner >= 0) + 0.05 * thickness.size) / np.pi)
        radius = max(min(draw(rng, parameters.radius), largest, float(room)), 1.0)
        where, height, distance = _particle(parameters, center, radius, shape, rng)
        height = height * rng.uniform(0.6, 1.0)
        thicker = height > thickness[where]
        thickness[where][thicker] = height[thicker]
        radial[where][thicker] = distance[thicker]
        owner[where][thicker] = len(centers)
        centers.append(center)
    waves = gaussian_filter(rng.normal(size=shape), 3.0, mode="wrap")
    thickness *= np.clip(1.0 + 0.08 * waves / waves.std(), 0.7, 1.3)
    return _Particles(thickness / thickness.max(), owner, radial, np.array(centers))


def _particle(
    parameters: FieldParameters,
    center: tuple[float, float],
    radius: float,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[tuple[slice, slice], NDArray[np.float64], NDArray[np.float64]]:
    """Return where a particle is, its thickness there (1 at its thickest) and the distance from its middle."""
    angle, aspect = rng.uniform(0.0, np.pi), rng.uniform(0.7, 1.0)
    reach = int(np.ceil(1.5 * radius)) + 1
    y0, x0 = (max(int(c) - reach, 0) for c in center)
    y1, x1 = (min(int(c) + reach + 1, n) for c, n in zip(center, shape, strict=True))
    y, x = np.arange(y0, y1)[:, None] + 0.5 - center[0], np.arange(x0, x1)[None] + 0.5 - center[1]
    u = (np.cos(angle) * x + np.sin(angle) * y) / radius
    v = (np.cos(angle) * y - np.sin(angle) * x) / (aspect * radius)
    if rng.random() < parameters.rounded:
        distance = np.hypot(u, v)
        # .5: an ellipsoid; less: flattened towards a disc
        height = np.clip(1.0 - distance**2, 0.0, None) ** rng.uniform(0.25, 0.5)
    else:
        distance = np.maximum(np.abs(u), np.abs(v))
        slope, side = rng.uniform(0.0, 0.2), rng.uniform(0.05, 0.4)  # a tilted top, and sides that are not upright
        height = np.clip((1.0 - distance) / side, 0.0, 1.0) * (1.0 - slope + slope * u)
    return (slice(y0, y1), slice(x0, x1)), np.clip(height, 0.0, 1.0), distance


def _share_of_feo(parameters: FieldParameters, field: _Particles, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the share of FeO in the projected oxide, shape (y, x)."""
    shape = field.thickness.shape
    match parameters.kind:
        case "FeO":
            return np.ones(shape)
        case "Fe3O4":
            return np.zeros(shape)
        case "core_shell":
            return _core_shell(parameters, field, rng)
        case "interface":
            position = _along(field, rng)
            boundary = np.quantile(position[_well_inside(field)], rng.uniform(0.35, 0.65))
            return np.asarray(
                np.clip(position - boundary + 0.5, 0.0, 1.0)
            )  # a pixel that the boundary crosses is mixed
        case "gradient":
            position = _along(field, rng)
            low, high = np.quantile(position[_well_inside(field)], [rng.uniform(0.0, 0.2), rng.uniform(0.8, 1.0)])
            return np.asarray(np.clip((position - low) / (high - low), 0.0, 1.0))
        case "inclusions":
            share = _inclusions(parameters, field, rng)
        case "two_particles":
            share = _opposite_neighbors(field, rng)
        case "mosaic":
            tiles = rng.permutation(np.arange(-(-shape[0] // TILE) * -(-shape[1] // TILE)) % 2)
            share = np.kron(tiles.reshape(-(-shape[0] // TILE), -1), np.ones((TILE, TILE)))[: shape[0], : shape[1]]
        case _:
            raise ValueError(f"no scene is called {parameters.kind!r}; there are {', '.join(SCENES)}")
    # Which of the two is host, or comes first, is a matter of chance.
    return share if rng.random() < 0.5 else 1.0 - share


def _well_inside(field: _Particles) -> NDArray[np.bool_]:
    """Return where the specimen is thick enough to count, shape (y, x)."""
    return np.asarray(field.thickness >= 0.25)


def _along(field: _Particles, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the coordinate of each pixel along a random direction, pixels, shape (y, x)."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    y, x = np.indices(field.thickness.shape)
    return np.asarray(np.cos(angle) * x + np.sin(angle) * y)


def _core_shell(parameters: FieldParameters, field: _Particles, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the share of an FeO core in a Fe3O4 shell; every particle has a share and a radius of its own."""
    n_particles = len(field.centers)
    top, radius = (rng.uniform(*bounds, n_particles) for bounds in (parameters.core_fraction, parameters.core_radius))
    blur = 0.02 if rng.random() < 0.5 else draw(rng, parameters.core_blur)
    number = np.maximum(field.owner, 0)
    inside = np.clip((radius[number] - field.radial) / blur + 0.5, 0.0, 1.0)
    return np.asarray(top[number] * inside * inside * (3.0 - 2.0 * inside))


def _inclusions(parameters: FieldParameters, field: _Particles, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return 1 in small discs inside the particles, with at least two pixels of host between any two."""
    share = np.zeros(field.thickness.shape)
    taken = ~_well_inside(field)
    wanted = max(int(rng.uniform(0.004, 0.012) * share.size), 2)
    for _ in range(wanted):
        size = int(rng.integers(*parameters.inclusion_size, endpoint=True))
        offsets = np.arange(size) - (size - 1) / 2.0
        disc = np.hypot(offsets[:, None], offsets[None]) <= size / 2.0
        places = np.argwhere(~taken[: taken.shape[0] - size + 1, : taken.shape[1] - size + 1])
        for y, x in rng.permutation(places)[:20]:
            if not (taken[y : y + size, x : x + size] & disc).any():
                share[y : y + size, x : x + size][disc] = 1.0
                taken[max(y - 2, 0) : y + size + 2, max(x - 2, 0) : x + size + 2] = True
                break
    return share


def _opposite_neighbors(field: _Particles, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return 1 in some particles and 0 in the others: each unlike the nearest one that has been decided."""
    centers = field.centers
    value = np.zeros(len(centers))
    value[0] = float(rng.integers(2))
    for number in range(1, len(centers)):
        nearest = int(np.argmin(np.hypot(*(centers[:number] - centers[number]).T)))
        value[number] = 1.0 - value[nearest]
    return np.asarray(value[np.maximum(field.owner, 0)])
