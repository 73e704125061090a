"""O K edges of anything but the two iron oxides: of the support film, and of oxides that are neither.

Sums of peaks on a continuum, drawn afresh each time from what O K edges in general look like: no table of any
particular compound. Energies in eV, positions relative to `REFERENCE_ENERGY`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from eelsflow.simulator.edges import NOMINAL_LOW_LOSS, REFERENCE_ENERGY, continuum_step, detected, fine_energies
from eelsflow.simulator.specimen import Range, draw


class GenericEdgeParameters(BaseModel):
    """A family of O K edges, as ranges.

    Parameters
    ----------
    position, sigma, height
        Ranges of each peak: its place above `REFERENCE_ENERGY`, its standard deviation, and its height relative to
        the highest one allowed, before the continuum is added.
    onset, onset_width
        Where the continuum begins above `REFERENCE_ENERGY`, and over how many eV (standard deviation).
    continuum
        Height of the continuum relative to that of the peaks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    position: tuple[Range, ...]
    sigma: tuple[Range, ...]
    height: tuple[Range, ...]
    onset: Range
    onset_width: Range = (0.8, 2.5)
    continuum: Range = (0.2, 0.6)

    @model_validator(mode="after")
    def _every_peak_is_complete(self) -> GenericEdgeParameters:
        if not len(self.position) == len(self.sigma) == len(self.height):
            raise ValueError(
                f"{len(self.position)} positions, {len(self.sigma)} widths and {len(self.height)} heights were given; "
                "every peak needs one of each"
            )
        return self

    def draw(self, rng: np.random.Generator) -> GenericEdge:
        """Draw one edge of the family."""
        position, sigma, height = (
            tuple(draw(rng, bounds) for bounds in ranges) for ranges in (self.position, self.sigma, self.height)
        )
        return GenericEdge(
            position, sigma, height, draw(rng, self.onset), draw(rng, self.onset_width), draw(rng, self.continuum)
        )


@dataclass(frozen=True, slots=True)
class GenericEdge:
    """One O K edge: the values drawn from `GenericEdgeParameters`, field by field."""

    position: tuple[float, ...]
    sigma: tuple[float, ...]
    height: tuple[float, ...]
    onset: float
    onset_width: float
    continuum: float

    def spectrum(self, energy: NDArray[np.float64], *, relative_thickness: float) -> NDArray[np.float64]:
        """Return the edge as single scattering, so that its highest detected point is 1 at that thickness.

        Parameters
        ----------
        energy
            Fine grid of true energies, shape (energies,), eV.
        relative_thickness
            t/lambda of the thickness, with `NOMINAL_LOW_LOSS`; 0 for no plural scattering.
        """
        grid = fine_energies(505.0, 600.0)
        seen = detected(self._parts(grid), NOMINAL_LOW_LOSS, relative_thickness)
        return self._parts(energy) / float(seen.max())

    def _parts(self, energy: NDArray[np.float64]) -> NDArray[np.float64]:
        relative = energy - REFERENCE_ENERGY
        total = self.continuum * continuum_step(energy, REFERENCE_ENERGY + self.onset, self.onset_width)
        for position, sigma, height in zip(self.position, self.sigma, self.height, strict=True):
            total = total + height * np.exp(-0.5 * ((relative - position) / sigma) ** 2)
        return np.asarray(total)


class OtherOxideParameters(BaseModel):
    """Oxides that are neither of the two: one family is drawn, then one edge of it.

    None of the families reaches the pre-peaks of the two: they are stronger, double, or not there.

    Parameters
    ----------
    families
        By name.
    oxygen_density
        Range of the main peak's height per thickness, relative to that of Fe3O4.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    families: dict[str, GenericEdgeParameters]
    oxygen_density: Annotated[Range, Field()] = (0.6, 1.4)

    def draw(self, rng: np.random.Generator) -> OtherOxide:
        """Draw one acquisition's oxide."""
        family = list(self.families)[int(rng.integers(len(self.families)))]
        return OtherOxide(family, draw(rng, self.oxygen_density), self.families[family].draw(rng))


@dataclass(frozen=True, slots=True)
class OtherOxide:
    """One oxide that is neither: its family, the height of its main peak relative to that of Fe3O4, its edge."""

    family: str
    oxygen_density: float
    edge: GenericEdge


# Positions, widths and heights are our choice after what such edges look like in general.
OTHER_OXIDES = OtherOxideParameters(
    families={
        # d states split by an octahedral crystal field (t2g, eg) well apart, then broad metal sp states.
        "white_lines": GenericEdgeParameters(
            position=((-0.5, 0.7), (2.1, 3.4), (7.0, 10.0), (12.0, 16.0), (28.0, 44.0)),
            sigma=((0.6, 1.0), (0.7, 1.2), (1.5, 3.0), (2.0, 4.0), (4.0, 7.0)),
            height=((0.7, 1.0), (0.65, 1.0), (0.4, 0.7), (0.3, 0.7), (0.1, 0.4)),
            onset=(3.0, 7.0),
        ),
        # Ferric d states alone: a pre-peak nearly as high as the main peak, a doublet of 1.2-1.5 eV.
        "split_pre_peak": GenericEdgeParameters(
            position=((-0.7, -0.6), (0.6, 0.8), (9.0, 11.5), (12.5, 15.0), (27.0, 32.0)),
            sigma=((0.4, 0.65), (0.4, 0.65), (1.8, 2.8), (2.0, 3.0), (4.0, 6.0)),
            height=((0.8, 0.88), (0.8, 0.88), (0.60, 0.66), (0.1, 0.25), (0.2, 0.4)),
            onset=(4.0, 6.0),
            continuum=(0.15, 0.25),
        ),
        # One strong line of nearly empty d or f states, stronger than anything above it.
        "strong_pre_peak": GenericEdgeParameters(
            position=((-0.8, 0.8), (5.0, 12.0), (14.0, 22.0), (28.0, 44.0)),
            sigma=((0.6, 1.5), (1.5, 3.5), (3.0, 6.0), (4.0, 7.0)),
            height=((0.95, 1.0), (0.1, 0.5), (0.1, 0.4), (0.05, 0.3)),
            onset=(3.0, 8.0),
            continuum=(0.1, 0.3),
        ),
        # No empty d states at all: the edge of silica, alumina or magnesia begins several eV higher.
        "no_pre_peak": GenericEdgeParameters(
            position=((6.0, 9.5), (11.0, 16.0), (24.0, 36.0)),
            sigma=((1.2, 2.5), (1.8, 4.5), (4.0, 8.0)),
            height=((0.6, 1.0), (0.2, 0.9), (0.1, 0.5)),
            onset=(3.5, 7.5),
            onset_width=(0.6, 1.8),
        ),
    }
)
"""Families of O K edges that are neither FeO nor Fe3O4."""

# Glass or carbonate: a broad edge without pre-peak, several eV above that of an iron oxide (our choice).
FILM_EDGE = GenericEdgeParameters(
    position=((8.5, 12.0), (25.0, 35.0)),
    sigma=((2.0, 3.3), (5.0, 8.0)),
    height=((0.7, 1.0), (0.1, 0.5)),
    onset=(4.5, 8.0),
    onset_width=(1.0, 2.0),
    continuum=(0.3, 0.7),
)
"""The O K edge of a support film that holds oxygen of its own."""
