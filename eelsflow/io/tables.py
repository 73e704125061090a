"""Ready tables of spectra (npz), on one energy axis or on a range each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.digest import digest_file
from eelsflow.errors import UnreadableFileError
from eelsflow.io.counts import with_finite_counts
from eelsflow.io.damage import damage_reported
from eelsflow.spectrum_image import build_spectrum_image


def read_separate_ranges(path: Path | str) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Read a table (npz) whose spectra lie on an energy range each.

    Returns
    -------
    spectra, ranges
        Shape (n, channels) and (n, 2), lowest and highest energy in eV; None if the file is no such table.

    Raises
    ------
    UnreadableFileError
        If the file is damaged.
    """
    path = Path(path)
    with damage_reported(path, "npz"), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, ranges in arrays.items():
        if not (re.search("energy|loss", name, re.I) and ranges.ndim == 2 and ranges.shape[1] == 2):
            continue
        for spectra in arrays.values():
            if (
                spectra.ndim == 2
                and spectra.dtype.kind in "uif"
                and len(spectra) == len(ranges)
                and spectra.shape[1] > 2
            ):
                return spectra, ranges
    return None


def read_spectra_table(path: Path | str, *, array: str | None = None) -> xr.DataArray:
    """Read a ready table of spectra (npz) as one line of pixels.

    Parameters
    ----------
    path
        Arrays ``spectra`` (n, channels) and ``energy_loss`` (channels,) in eV. Under other names the one-dimensional
        array whose name speaks of energy is taken, and the largest two-dimensional one with as many columns.
    array
        The name of the spectra, where there are several.

    Returns
    -------
    xr.DataArray
        ``counts`` (1, n, energy_loss) by the schema, in the order of the table.

    Raises
    ------
    UnreadableFileError
        If the file is damaged, holds pickled objects, no spectra on a common energy axis, or values not finite.
    """
    path = Path(path)
    with damage_reported(path, "npz"), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    energies = {
        name: array for name, array in arrays.items() if array.ndim == 1 and re.search("energy|loss", name, re.I)
    }
    tables = {
        (spectra_name, energy_name): spectra
        for energy_name, energy_loss in energies.items()
        for spectra_name, spectra in arrays.items()
        if (array is None or spectra_name == array)
        and spectra.ndim == 2
        and spectra.dtype.kind in "uif"
        and spectra.shape[1] == energy_loss.size > 0 < len(spectra)
    }
    if not tables:
        held = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise UnreadableFileError(
            f"{path} holds {held}; expected arrays {array or 'spectra'} (n, channels) and energy_loss (channels,) in "
            "eV, the same axis for all: resample the spectra onto one axis and save them under these names"
        )
    names = max(tables, key=lambda pair: (pair[0] == "spectra", tables[pair].size))
    with damage_reported(path, "npz"):
        image = build_spectrum_image(
            np.ascontiguousarray(tables[names]),
            arrays[names[1]].astype(np.float64),
            sha256=digest_file(path),
            source=path.name,
            metadata={"format": "table of spectra", "signal": {"title": names[0]}, "notes": []},
        )
    return with_finite_counts(path, image)
