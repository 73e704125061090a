"""What Nion Swift keeps: .ndata (a zip of an array and JSON) and HDF5 files with JSON beside the array."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import UnreadableFileError
from eelsflow.io.hdf5 import require_stored


def read_nion_ndata(path: Path) -> list[dict[str, Any]]:
    """Read the array and the calibration of a .ndata file, as a signal of the kind that rosettasciio returns."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "data.npy" not in names or "metadata.json" not in names:
            raise UnreadableFileError(
                f"{path} holds {', '.join(names[:6]) or 'nothing'}; expected data.npy and metadata.json of Nion Swift"
            )
        with archive.open("data.npy") as stream:
            counts = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read(1):
                raise ValueError("bytes follow the array")
        # Swift writes Latin-1, which in escaped JSON is the same as UTF-8
        properties = json.loads(archive.read("metadata.json").decode("utf-8", errors="replace"))
    return [_signal(path, counts, properties)]


def read_nion_hdf5(path: Path) -> list[dict[str, Any]]:
    """Read the arrays of a HDF5 file of Nion Swift (one dataset ``data``, or a group of them)."""
    with h5py.File(path, "r") as file:
        data = file.get("data")
        datasets = [data] if isinstance(data, h5py.Dataset) else list(data.values()) if data is not None else []
        known = [one for one in datasets if isinstance(one, h5py.Dataset) and "properties" in one.attrs]
        if not known:
            raise UnreadableFileError(
                f"{path} holds {', '.join(list(file)[:6]) or 'nothing'}; expected a dataset 'data' with the properties "
                "that Nion Swift writes: export the spectra in another format"
            )
        for one in known:
            require_stored(path, one)
        return [_signal(path, one[()], json.loads(one.attrs["properties"])) for one in known]


def _signal(path: Path, counts: NDArray[Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    calibrations = _calibrations(properties)
    if len(calibrations) != counts.ndim:
        raise UnreadableFileError(
            f"{path} has {len(calibrations)} calibrated axes for counts of the shape {counts.shape}; expected one for "
            "each: calibrate the energy axis in Nion Swift and save it again"
        )
    axes = [
        {
            "name": "Energy loss" if str(calibration.get("units")).strip() == "eV" else "",
            "offset": float(calibration.get("offset") or 0.0),
            "scale": float(calibration.get("scale") or 1.0),
            "units": calibration.get("units") or "",
            "size": size,
            "index_in_array": index,
        }
        for index, (calibration, size) in enumerate(zip(calibrations, counts.shape, strict=True))
    ]
    return {
        "data": counts,
        "axes": axes,
        "metadata": {"General": {"title": str(properties.get("title") or "")}, "Signal": {"signal_type": ""}},
        "original_metadata": dict(properties),
    }


def _calibrations(properties: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the calibration of each axis, in the order of the array; older versions keep them one level down."""
    sources = [properties, properties.get("data_source") or {}, *(properties.get("data_sources") or [])]
    for source in sources:
        for key in ("dimensional_calibrations", "spatial_calibrations"):
            if isinstance(source, Mapping) and source.get(key):
                return [dict(one) for one in source[key]]
    return []
