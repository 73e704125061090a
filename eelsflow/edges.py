"""Edges as configuration: where an edge lies, which window holds its fine structure, what it looks like."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from eelsflow.energy import Axis, Window, format_window
from eelsflow.errors import EdgeOutOfRangeError, StudyFileError

MARGIN = 12.0
"""How far, in eV, what is kept of an edge reaches past its fine structure on either side."""

JOINED = "+"
"""Between the names of edges that are judged together, such as O_K+Fe_L3."""


class Feature(BaseModel):
    """One feature of an edge's shape, relative to the edge's reference energy.

    `position` and `sigma` in eV, `height` relative to the highest feature. The ranges say how far real
    specimens spread: the offset estimate may move a feature within `position_range`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    position: float
    sigma: Annotated[float, Field(gt=0)]
    height: Annotated[float, Field(gt=0)]
    position_range: Window | None = None


class Edge(BaseModel):
    """An ionisation edge and the windows its analysis uses; energies in eV, windows half-open.

    `reference_energy` is where the feature named by `align_on` belongs: the first peak of the edge or its
    maximum. `features` is the shape that an acquisition's summed spectrum is matched with when the energy
    offset is estimated: the reference feature first, at position 0, then the others by energy. Without it the offset
    is found from the highest or the first clear peak within reach, which an axis that is wrong by several eV may
    mistake. `pre_edge_window` counts only where raw acquisitions are prepared, and is checked there: see
    `background_window`. `beside` are further edges, higher in energy, that are prepared and judged together with this
    one: see `join_edges`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reference_energy: Annotated[float, Field(gt=0)]
    align_on: Literal["first_peak", "maximum"] = "maximum"
    elnes_window: Window
    pre_edge_window: Window | None = None
    features: tuple[Feature, ...] = ()
    beside: tuple[Edge, ...] = ()

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        if not self.elnes_window[0] < self.elnes_window[1]:
            raise ValueError(f"elnes_window {format_window(self.elnes_window)} is empty; write start < stop")
        positions = [feature.position for feature in self.features]
        if positions and (positions[0] != 0.0 or sorted(positions) != positions):
            raise ValueError(
                f"features lie at {', '.join(f'{position:g}' for position in positions)} eV; the "
                "reference feature comes first, at 0, then the others by energy"
            )
        return self

    @property
    def alone(self) -> tuple[Edge, ...]:
        """The edges that are judged together, each without the others; one where there is one."""
        if not self.beside:
            return (self,)
        others = "".join(f"{JOINED}{edge.name}" for edge in self.beside)
        first = self.model_copy(update={"beside": (), "name": self.name.removesuffix(others)})
        return (first, *self.beside)

    @property
    def recorded_window(self) -> Window:
        """What an acquisition should show, eV: from before the lowest edge to 15 eV beyond the highest one's window."""
        return self.background_window[0], self.alone[-1].elnes_window[1] + 15.0

    @property
    def background_window(self) -> Window:
        """The window before the edge that the background of raw acquisitions is fitted on.

        Raises
        ------
        StudyFileError
            If there is none, or it is empty or overlaps the fine structure.
        """
        window = self.pre_edge_window
        if window is None:
            raise StudyFileError(
                f"edge {self.name} has no pre_edge_window, on which the background of raw acquisitions is fitted; "
                "write pre_edge_window: [start, stop], in eV, below its elnes_window "
                f"{format_window(self.elnes_window)}"
            )
        if not window[0] < window[1]:
            raise StudyFileError(f"pre_edge_window {format_window(window)} is empty; write start < stop")
        if window[1] > self.elnes_window[0]:
            raise StudyFileError(
                f"pre_edge_window {format_window(window)} overlaps elnes_window {format_window(self.elnes_window)}; "
                "the background must be fitted before the edge begins"
            )
        return window

    def require_within(self, axis: Axis, *, overhang: float = 0.0, pre_edge: bool = True) -> None:
        """Refuse an axis that does not show this edge.

        Parameters
        ----------
        axis
            The energy axis at hand.
        overhang
            How far, in eV, a window may reach past the axis: the largest energy offset to allow for.
        pre_edge
            Whether the background window is needed too.

        Raises
        ------
        EdgeOutOfRangeError
            If the fine-structure window, or the background window, lies outside the axis.
        StudyFileError
            If the background window is needed, and is not a usable one.
        """
        for other in self.beside:
            other.require_within(axis, overhang=overhang, pre_edge=pre_edge)
        windows = {"pre-edge window": self.background_window} if pre_edge else {}
        windows["ELNES window"] = self.elnes_window
        for what, window in windows.items():
            if not axis.covers(window, overhang=overhang):
                raise EdgeOutOfRangeError(
                    f"{what} {format_window(window)} for {self.name} lies outside the energy axis, which spans "
                    f"{axis.start:.1f}-{axis.stop:.1f} eV; this file cannot show the {self.name} edge: record "
                    f"{next(iter(windows.values()))[0]:g}-{self.elnes_window[1]:g} eV, "
                    "or choose an edge that the axis covers"
                )


# O K of iron oxides: positions and heights as measured on iron-oxide nanocubes at 200 kV (pre-peak at 0, main
# peak +9.0 eV, third peak +30.5 eV, fourth +43 eV); the ranges cover FeO to Fe2O3.
O_K = Edge(
    name="O_K",
    reference_energy=530.0,
    align_on="first_peak",
    elnes_window=(525.0, 555.0),
    pre_edge_window=(495.0, 522.0),
    features=(
        Feature(name="pre_peak", position=0.0, sigma=1.2, height=0.63),
        Feature(name="main_peak", position=9.4, sigma=2.5, height=1.0, position_range=(8.5, 11.0)),
        Feature(name="third_peak", position=29.5, sigma=4.5, height=0.5, position_range=(26.5, 31.0)),
        Feature(name="fourth_peak", position=43.0, sigma=5.0, height=0.3, position_range=(40.0, 46.0)),
    ),
)

# White lines: L3 at the reference energy, L2 above it by the spin-orbit splitting; ratios near 2.8 (Fe, measured
# on the same nanocubes) and 2.5 (Mn, an assumption).
FE_L3 = Edge(
    name="Fe_L3",
    reference_energy=709.0,
    align_on="maximum",
    elnes_window=(700.0, 730.0),
    pre_edge_window=(660.0, 698.0),
    features=(
        Feature(name="L3", position=0.0, sigma=2.1, height=1.0),
        Feature(name="L2", position=13.0, sigma=2.2, height=0.36, position_range=(12.5, 13.7)),
    ),
)

MN_L3 = Edge(
    name="Mn_L3",
    reference_energy=642.0,
    align_on="maximum",
    elnes_window=(634.0, 664.0),
    pre_edge_window=(595.0, 632.0),
    features=(
        Feature(name="L3", position=0.0, sigma=1.9, height=1.0),
        Feature(name="L2", position=11.0, sigma=2.1, height=0.45, position_range=(10.3, 11.8)),
    ),
)

SHIPPED: dict[str, Edge] = {edge.name: edge for edge in (O_K, FE_L3, MN_L3)}


def join_edges(edges: Sequence[Edge]) -> Edge:
    """Return one edge for several that are prepared and judged together; a single one as it is.

    Parameters
    ----------
    edges
        Each described alone; any order.

    Raises
    ------
    StudyFileError
        If one is named twice, or two are so near that their windows would touch.
    """
    ordered = sorted(edges, key=lambda edge: edge.elnes_window)
    if len(ordered) == 1:
        return ordered[0]
    names = [edge.name for edge in ordered]
    for name in names:
        if names.count(name) > 1 or not re.fullmatch(r"[\w.-]+", name):
            raise StudyFileError(
                f"edges {', '.join(map(repr, names))} are judged together, and {name!r} must be the only one of its "
                "name, of letters, digits, dot, dash and underscore: it becomes part of the names of files"
            )
    for lower, upper in itertools.pairwise(ordered):
        distance = upper.elnes_window[0] - lower.elnes_window[1]
        if distance < 2 * MARGIN + 1:
            raise StudyFileError(
                f"the fine structure of {lower.name}, {format_window(lower.elnes_window)}, and of {upper.name}, "
                f"{format_window(upper.elnes_window)}, lie {distance:g} eV apart; edges that are judged together need "
                f"{2 * MARGIN + 1:g} eV between them: study one of them, or give them narrower windows"
            )
    name = JOINED.join(edge.name for edge in ordered)
    return ordered[0].model_copy(update={"name": name, "beside": tuple(ordered[1:])})


def resolve_edges(edges: Sequence[str | dict[str, Any] | Edge]) -> Edge:
    """Return the edge, or edges judged together, that a study file lists."""
    return join_edges([resolve_edge(edge) for edge in edges])


def resolve_edge(edge: str | dict[str, Any] | Edge) -> Edge:
    """Return the edge that a study file or a command names.

    Raises
    ------
    StudyFileError
        If the name is not a shipped edge.
    """
    if isinstance(edge, Edge):
        return edge
    if isinstance(edge, str):
        if JOINED in edge and edge not in SHIPPED:
            return resolve_edges(edge.split(JOINED))
        if edge not in SHIPPED:
            raise StudyFileError(
                f"no shipped edge is called {edge!r}; shipped are {', '.join(SHIPPED)}: use one of them or write the "
                "edge out as {name, reference_energy, align_on, elnes_window, pre_edge_window}"
            )
        return SHIPPED[edge]
    return Edge.model_validate(edge)
