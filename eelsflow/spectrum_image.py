"""The one schema every reader produces and every step takes.

A spectrum image is an `xarray.DataArray` named ``counts`` with dimensions ``("y", "x", "energy_loss")``:

- ``energy_loss``: channel centres in eV, uniform, with ``units = "eV"``;
- ``y``, ``x``: pixel centres in the unit of the pixel size (from 0);
- ``attrs``: ``pixel_size`` (float), ``pixel_unit`` ("nm", or "px" where the file has no calibration),
  ``sha256`` (of the file's bytes: the identity of the acquisition), ``source`` (file name),
  ``metadata`` (the reader's metadata as a JSON string).

A line scan has one row (``y`` of size 1), a single spectrum one pixel.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from eelsflow.energy import EnergyAxis
from eelsflow.errors import SpectrumImageSchemaError

DIMS = ("y", "x", "energy_loss")


def build_spectrum_image(
    counts: ArrayLike,
    energy_loss: ArrayLike,
    *,
    pixel_size: float = 1.0,
    pixel_unit: str = "px",
    sha256: str = "",
    source: str = "",
    metadata: dict[str, Any] | None = None,
) -> xr.DataArray:
    """Build a spectrum image by the schema.

    Parameters
    ----------
    counts
        Shape (y, x, channels), (x, channels) or (channels,); not copied, the data type is kept.
    energy_loss
        Channel centres, shape (channels,), eV.
    pixel_size, pixel_unit
        Size of a pixel and its unit: "nm", or "px" where it is not known.
    sha256, source, metadata
        Identity (hash of the file's bytes), file name and the reader's metadata.

    Raises
    ------
    SpectrumImageSchemaError
        If the shapes do not agree or the unit is unknown.
    InputError
        If the energy axis is not uniform.
    """
    # a dask or zarr-backed array must not be loaded here
    values: Any = counts if hasattr(counts, "ndim") else np.asarray(counts)
    if not 1 <= values.ndim <= 3:
        raise SpectrumImageSchemaError(
            f"counts have {values.ndim} dimensions; expected a spectrum image (y, x, energy_loss), a line scan or "
            "a spectrum"
        )
    values = values.reshape((1,) * (3 - values.ndim) + tuple(values.shape))
    axis = EnergyAxis.from_values(energy_loss)
    if values.shape[2] != axis.size:
        raise SpectrumImageSchemaError(
            f"counts have {values.shape[2]} channels but energy_loss has {axis.size}; they must agree"
        )
    image = xr.DataArray(
        values,
        dims=DIMS,
        coords={
            "y": ("y", pixel_size * np.arange(values.shape[0], dtype=np.float64), {"units": pixel_unit}),
            "x": ("x", pixel_size * np.arange(values.shape[1], dtype=np.float64), {"units": pixel_unit}),
            "energy_loss": ("energy_loss", np.asarray(energy_loss, dtype=np.float64), {"units": "eV"}),
        },
        name="counts",
        attrs={
            "pixel_size": float(pixel_size),
            "pixel_unit": pixel_unit,
            "sha256": sha256,
            "source": source,
            "metadata": json.dumps(metadata or {}, default=str),
            "units": "counts",
        },
    )
    check_spectrum_image(image)
    return image


def check_spectrum_image(image: xr.DataArray) -> None:
    """Refuse an array that does not follow the schema.

    Raises
    ------
    SpectrumImageSchemaError
        Naming the dimension, coordinate or attribute that is wrong.
    """
    if tuple(image.dims) != DIMS:
        raise SpectrumImageSchemaError(f"dimensions are {tuple(image.dims)}; expected {DIMS}: transpose the array")
    if 0 in image.shape:
        raise SpectrumImageSchemaError(f"the spectrum image is empty: its shape is {image.shape}")
    unit = image.coords["energy_loss"].attrs.get("units") if "energy_loss" in image.coords else None
    if unit != "eV":
        raise SpectrumImageSchemaError(f"energy_loss has the unit {unit!r}; expected a coordinate in 'eV'")
    size = image.attrs.get("pixel_size")
    if not isinstance(size, int | float | np.number) or not np.isfinite(size) or size <= 0:
        raise SpectrumImageSchemaError(
            f"pixel_size is {size!r}; expected a positive number, or 1 with the pixel_unit 'px' where it is not known"
        )
    if image.attrs.get("pixel_unit") not in ("nm", "px"):
        raise SpectrumImageSchemaError(
            f"pixel_unit is {image.attrs.get('pixel_unit')!r}; expected 'nm', or 'px' where the size is not known"
        )
    chunks = image.chunks[2] if image.chunks is not None else (image.shape[2],)
    if len(chunks) > 1:
        raise SpectrumImageSchemaError(
            f"'energy_loss' is split into {len(chunks)} chunks {chunks}; every step needs whole spectra: "
            "rechunk with {'energy_loss': -1}"
        )


def energy_axis(image: xr.DataArray | xr.Dataset) -> EnergyAxis:
    """Return the energy axis of a spectrum image or of a prepared product."""
    return EnergyAxis.from_values(image.coords["energy_loss"].values)
