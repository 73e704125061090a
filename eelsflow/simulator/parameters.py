"""What an acquisition is made of, bar chance: the ranges that every one of them draws from.

The levels are those measured on iron-oxide nanocubes (0.25 eV per channel): 405 counts per channel at 490 eV on the
particle and 65 on the support film, O K main peak 300 counts above the background, background exponent 3.38 before
O K on the particle and 3.69 on the film. What varies between acquisitions, and how far, is in the presets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError
from eelsflow.simulator.detector import AnyDetectorParameters, DetectorParameters, PositiveRange
from eelsflow.simulator.edges import LowLossParameters, PhaseParameters
from eelsflow.simulator.generic_edges import FILM_EDGE, OTHER_OXIDES, GenericEdgeParameters, OtherOxideParameters
from eelsflow.simulator.scenes import FieldParameters
from eelsflow.simulator.specimen import Range, SpecimenParameters, draw


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
    log_dose
        Draw the dose evenly in its logarithm.
    background_factor
        Range of the oxide's background relative to these levels, its edges staying as they are.
    support_factor
        Range of the film's background relative to these levels.
    film_oxygen
        Range of the main peak of the film's own O K edge relative to that of Fe3O4.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference_thickness: Annotated[float, Field(gt=0)] = 35.0
    particle_level: Annotated[float, Field(gt=0)] = 405.0
    support_level: Annotated[float, Field(ge=0)] = 65.0
    main_peak: Annotated[float, Field(gt=0)] = 300.0
    dose: Range = (0.9, 1.1)
    background_exponent: Range = (3.13, 3.63)
    support_exponent: Range = (3.5, 3.88)
    log_dose: bool = False
    background_factor: Range = (1.0, 1.0)
    support_factor: Range = (1.0, 1.0)
    film_oxygen: Range = (0.0, 0.0)

    def draw(self, rng: np.random.Generator) -> Levels:
        """Draw one acquisition's levels."""
        dose = draw(rng, self.dose) if not self.log_dose else float(np.exp(rng.uniform(*np.log(self.dose))))
        exponents = (draw(rng, self.background_exponent), draw(rng, self.support_exponent))
        # A range of one value costs no random number: parameters without these draw what they always drew.
        factors = (
            bounds[0] if bounds[0] == bounds[1] else draw(rng, bounds)
            for bounds in (self.background_factor, self.support_factor, self.film_oxygen)
        )
        return Levels(dose, *exponents, *factors)


@dataclass(frozen=True, slots=True)
class Levels:
    """One acquisition's levels: the values drawn from `LevelParameters`, field by field."""

    dose: float
    background_exponent: float
    support_exponent: float
    background_factor: float
    support_factor: float
    film_oxygen: float


class AxisSettingParameters(BaseModel):
    """Nominal axes as they differ between sessions and instruments.

    Parameters
    ----------
    dispersion
        Range, eV per channel.
    n_channels
        The numbers of channels there are.
    window
        Energies that every axis shows, even if it is wrong by `reserve` eV in either direction.
    reserve
        eV.
    lowest_start
        No axis starts below this, eV.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dispersion: PositiveRange
    n_channels: tuple[Annotated[int, Field(ge=16)], ...]
    window: Range
    reserve: Annotated[float, Field(ge=0)] = 9.0
    lowest_start: Annotated[float, Field(ge=100)] = 400.0

    @model_validator(mode="after")
    def _window_fits(self) -> AxisSettingParameters:
        need = self.window[1] - self.window[0] + 2.0 * self.reserve
        shortest = (min(self.n_channels) - 1) * self.dispersion[0]
        if shortest < need:
            raise ValueError(
                f"{min(self.n_channels)} channels of {self.dispersion[0]} eV span {shortest:.1f} eV, the window and "
                f"its reserve {need:.1f} eV; raise the dispersion or the channels"
            )
        return self

    def draw(self, rng: np.random.Generator) -> EnergyAxis:
        """Draw one acquisition's nominal axis."""
        n_channels = int(rng.choice(self.n_channels))
        dispersion = round(draw(rng, self.dispersion), 4)
        latest = self.window[0] - self.reserve
        earliest = max(self.window[1] + self.reserve - (n_channels - 1) * dispersion, self.lowest_start)
        return EnergyAxis(draw(rng, (min(earliest, latest), latest)), dispersion, n_channels)


class AxisParameters(BaseModel):
    """The nominal energy axis and how wrong it is.

    Parameters
    ----------
    start, dispersion, n_channels
        Centre of the first channel (eV), eV per channel, channels.
    any_setting
        Where given, the three are drawn instead.
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
    any_setting: AxisSettingParameters | None = None
    offset_scale: Annotated[float, Field(ge=0)] = 2.0
    offset_limit: Annotated[float, Field(ge=0)] = 8.0
    dispersion_error: Annotated[float, Field(ge=0, lt=0.1)] = 0.004
    drift: Annotated[float, Field(ge=0)] = 0.06

    def showing(self, window: Range) -> AxisParameters:
        """Return the same with a window (eV) that every axis shows, where axes are drawn; else as it is.

        The smallest dispersion grows where the fewest channels would not reach over it.

        Raises
        ------
        InputError
            If even the largest dispersion does not.
        """
        if self.any_setting is None or self.any_setting.window == window:
            return self
        setting = self.any_setting
        need = (window[1] - window[0] + 2.0 * setting.reserve) / (min(setting.n_channels) - 1)
        low, high = setting.dispersion
        if need > high:
            raise InputError(
                f"{min(setting.n_channels)} channels of {high} eV do not show {window[0]:g}-{window[1]:g} eV; simulate "
                "for edges that lie nearer"
            )
        wider = {"window": window, "dispersion": (max(low, math.ceil(1e3 * need) / 1e3), high)}
        return self.model_copy(update={"any_setting": setting.model_copy(update=wider)})

    def draw_setting(self, rng: np.random.Generator) -> EnergyAxis:
        """Return the nominal axis, drawn where it varies."""
        if self.any_setting is not None:
            return self.any_setting.draw(rng)
        return EnergyAxis(self.start, self.dispersion, self.n_channels)


class AcquisitionParameters(BaseModel):
    """Everything an acquisition is made of, bar chance.

    Parameters
    ----------
    shape
        Pixels (y, x).
    pixel_size
        nm.
    specimen
        Cubes in a corner of an empty film, or a field full of particles.
    low_loss, levels, axis, detector
        See there.
    feo, fe3o4
        The edges of each oxide.
    other
        The oxide of the scene ``other``.
    film_edge
        The film's own O K edge.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (48, 48)
    pixel_size: Annotated[float, Field(gt=0)] = 2.1
    specimen: SpecimenParameters | FieldParameters = SpecimenParameters()
    low_loss: LowLossParameters = LowLossParameters()
    levels: LevelParameters = LevelParameters()
    axis: AxisParameters = AxisParameters()
    detector: AnyDetectorParameters = DetectorParameters()
    feo: PhaseParameters
    fe3o4: PhaseParameters
    other: OtherOxideParameters = OTHER_OXIDES
    film_edge: GenericEdgeParameters = FILM_EDGE
