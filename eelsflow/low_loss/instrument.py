"""What a file says of the instrument: beam energy and angles, which make nanometres of t/lambda."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import xarray as xr


@dataclass(frozen=True)
class Instrument:
    """As recorded with an acquisition; None where the file does not say.

    Attributes
    ----------
    beam_energy
        keV.
    convergence_angle, collection_angle
        Semi-angles, mrad.
    """

    beam_energy: float | None = None
    convergence_angle: float | None = None
    collection_angle: float | None = None


def instrument_of(image: xr.DataArray) -> Instrument:
    """Read the instrument from the metadata of an image, under the names that HyperSpy and its readers use."""
    try:
        found: Any = json.loads(image.attrs.get("metadata") or "{}")
    except ValueError:
        return Instrument()
    microscope = _section(found, "metadata", "Acquisition_instrument", "TEM")
    detector = _section(microscope, "Detector", "EELS")
    return Instrument(
        beam_energy=_positive(microscope.get("beam_energy")),
        convergence_angle=_positive(microscope.get("convergence_angle")),
        collection_angle=_positive(detector.get("collection_angle")),
    )


def _section(value: Any, *path: str) -> dict[str, Any]:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _positive(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None
