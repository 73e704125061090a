"""A simulated first look at both oxides, for a plan before anything was recorded."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.dataset.labels import MIXED, PURE_FRACTION
from eelsflow.errors import InputError
from eelsflow.simulator import PRESETS, plan_directory, simulate_acquisition

N_PIXELS = 48
"""Along either side of the field; ours."""


def simulate_specimen(
    *,
    preset: Literal["paper", "wide"] = "wide",
    detector: Literal["ccd", "counting", "both"] = "ccd",
    thickness: float | None = None,
    seed: int = 0,
    window: tuple[float, float] | None = None,
) -> tuple[xr.DataArray, NDArray[np.str_]]:
    """Return a simulated field that holds both oxides, and the class of each of its pixels.

    Parameters
    ----------
    preset, detector
        As in `eelsflow.simulate`; the dose is the measured one.
    thickness
        Of the thickest place, nm; by default what the preset draws.
    seed
        Of the specimen and its noise.
    window
        Energies that the axis shows at the least, eV.

    Returns
    -------
    image, labels
        Counts (y, x, energy_loss), and classes (y, x): a phase, or "mixed".

    Raises
    ------
    InputError
        If the preset's specimens have a thickness of their own.
    """
    parameters, scene = PRESETS[preset], "core_shell"
    if preset == "wide":
        scene = "mosaic"
        if thickness is not None:
            specimen = parameters.specimen.model_copy(update={"peak_thickness": (thickness, thickness)})
            parameters = parameters.model_copy(update={"specimen": specimen})
    elif thickness is not None:
        raise InputError(f"the specimens of the preset {preset} have the thickness of their size; use the preset wide")
    planned = plan_directory(
        n_acquisitions=1, seed=seed, preset=parameters, detector=detector, scenes=(scene,), dose=(1.0, 1.0),
        shape=(N_PIXELS, N_PIXELS), window=window,
    )[0]  # fmt: skip
    acquisition = simulate_acquisition(planned.parameters, planned.seed, name=planned.name)
    fraction = acquisition.truth["phase_fraction"].values
    labels = np.full(fraction.shape[1:], MIXED, dtype="<U8")
    for number, name in enumerate(acquisition.truth["phase"].values):
        labels[fraction[number] >= PURE_FRACTION] = name
    return acquisition.image, labels
