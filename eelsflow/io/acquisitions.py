"""What a person may call an acquisition: a file, a spectrum image in memory or a HyperSpy signal; one schema of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from eelsflow.digest import digest_of
from eelsflow.errors import InputError, SpectrumImageSchemaError
from eelsflow.io.hyperspy_signals import image_of_signal, is_signal
from eelsflow.io.read import read_spectrum_image
from eelsflow.spectrum_image import DIMS, build_spectrum_image, check_spectrum_image


def as_spectrum_image(acquisition: Any) -> xr.DataArray:
    """Return an acquisition by the schema of `eelsflow.spectrum_image`.

    Parameters
    ----------
    acquisition
        A file in one of the formats that are read; an `xarray.DataArray` with a coordinate ``energy_loss`` in eV and
        up to two other dimensions, (y, x) in this order where they bear other names; or a HyperSpy signal with an
        axis in eV. Not modified.

    Raises
    ------
    EelsflowError
        If it is none of these, cannot be read or does not follow the schema.
    """
    if isinstance(acquisition, str | Path):
        return read_spectrum_image(acquisition)
    if isinstance(acquisition, xr.DataArray):
        return _image_of_array(acquisition)
    if is_signal(acquisition):
        return image_of_signal(acquisition)
    raise InputError(
        f"an acquisition is a file, an xarray.DataArray or a HyperSpy signal, found {type(acquisition).__name__}; an "
        "array becomes one by eelsflow.spectrum_image.build_spectrum_image(counts, energy_loss)"
    )


def name_of(acquisition: Any, image: xr.DataArray) -> str:
    """Return what an acquisition, which was given and read, is called in messages: its file, else its source."""
    if isinstance(acquisition, str | Path):
        return Path(acquisition).name
    return str(image.attrs.get("source") or "the acquisition")


def _image_of_array(array: xr.DataArray) -> xr.DataArray:
    energy = DIMS[-1]
    if energy not in array.coords or array.coords[energy].dims != (energy,):
        raise SpectrumImageSchemaError(
            f"the array has dimensions {tuple(array.dims)} and coordinates {sorted(map(str, array.coords))}; expected "
            f"a coordinate {energy!r} with the channel centres in eV along a dimension of that name"
        )
    unit = array.coords[energy].attrs.get("units", "eV")
    if unit != "eV":
        raise SpectrumImageSchemaError(f"{energy} has the unit {unit!r}; expected eV: convert the coordinate")
    others = [dim for dim in array.dims if dim != energy]
    if set(others) == {"y", "x"}:
        others = ["y", "x"]
    elif len(others) > 2:
        raise SpectrumImageSchemaError(
            f"the array has dimensions {tuple(array.dims)}; expected {energy!r} and at most two others: select one "
            "image of the series"
        )
    ordered = array.transpose(*others, energy)
    if "pixel_unit" in array.attrs and tuple(ordered.dims) == DIMS and array.attrs.get("sha256"):
        check_spectrum_image(ordered)
        return ordered
    size, pixel_unit = _pixel_size(array, others)
    return build_spectrum_image(
        ordered.data,
        array.coords[energy].values,
        pixel_size=size,
        pixel_unit=pixel_unit,
        sha256=array.attrs.get("sha256") or digest_of(np.asarray(ordered.values), array.coords[energy].values),
        source=str(array.attrs.get("source") or array.name or ""),
        metadata={"notes": []},
    )


def _pixel_size(array: xr.DataArray, others: list[Any]) -> tuple[float, str]:
    """Return the pixel size that attributes or the coordinate along a row say."""
    size, unit = 1.0, "px"
    along = array.coords[others[-1]] if others and others[-1] in array.coords else None
    if "pixel_size" in array.attrs and array.attrs.get("pixel_unit") in ("nm", "px"):
        size, unit = float(array.attrs["pixel_size"]), str(array.attrs["pixel_unit"])
    elif along is not None and along.size > 1 and along.attrs.get("units") == "nm":
        size, unit = float(abs(along.values[1] - along.values[0])), "nm"
    return (size, unit) if np.isfinite(size) and size > 0 else (1.0, "px")
