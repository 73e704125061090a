"""The energy-loss part of Velox EMD files: nothing else in them is opened.

rosettasciio reads such a file as a whole, and its X-ray part needs a package of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dask.array
import h5py
import numpy as np

from eelsflow.errors import UnreadableFileError
from eelsflow.io.hdf5 import require_stored

_EELS = "EelsSpectrumImage"


def read_velox(path: Path, *, lazy: bool) -> list[dict[str, Any]] | None:
    """Read the energy-loss spectra of a Velox file.

    Returns
    -------
    list of dict or None
        Signals as rosettasciio describes them, one for each energy range; None if Velox did not write the file.

    Raises
    ------
    UnreadableFileError
        If there are none.

    Notes
    -----
    The layout is the one that rosettasciio reads: counts (x, channels, y), or (channels, x) of a line scan; the energy
    axis, in eV, in the metadata of the acquisition.
    """
    file = h5py.File(path, "r")
    signals: list[dict[str, Any]] = []
    try:
        if not _is_velox(file):
            return None
        data = file.get("Data")
        groups = list(data) if isinstance(data, h5py.Group) else []
        if _EELS not in groups or not len(data[_EELS]):
            raise UnreadableFileError(
                f"{path} holds no energy-loss spectra: of Velox data it has {', '.join(groups) or 'none'}; expected "
                f"{_EELS}: choose a file that was recorded with EELS"
            )
        scan = _scan(data)
        signals = [_signal(path, group, scan, lazy=lazy) for group in list(data[_EELS].values())]
    finally:
        if not (lazy and signals):
            file.close()
    return signals


def _is_velox(file: h5py.File) -> bool:
    version = file.get("Version")
    if not isinstance(version, h5py.Dataset):
        return False
    described = json.loads(bytes(version[0]).rstrip(b"\0"))
    return isinstance(described, dict) and described.get("format") in ("Velox", "DevelopersKit")


def _metadata(group: h5py.Group, name: str) -> dict[str, Any]:
    """Return metadata stored as JSON in a column of bytes."""
    column = np.asarray(group[name][:, 0], dtype=np.uint8)
    found = json.loads(column.tobytes().rstrip(b"\0"))
    return found if isinstance(found, dict) else {}


def _scan(data: h5py.Group) -> dict[str, Any]:
    """Return what the file says of the scan; without it pixels have no size, and the spectra are the same."""
    try:
        group = data["SpectrumImage"]
        return dict(_metadata(group[next(iter(group))], "Metadata")["BinaryResult"])
    except (KeyError, StopIteration, ValueError, TypeError):
        return {}


def _signal(path: Path, group: h5py.Group, scan: dict[str, Any], *, lazy: bool) -> dict[str, Any]:
    dataset = group["Data"]
    if dataset.ndim not in (2, 3):
        raise UnreadableFileError(
            f"{path} holds energy-loss data of the shape {dataset.shape}; expected a spectrum image or a line scan"
        )
    require_stored(path, dataset)
    counts = dask.array.from_array(dataset, chunks=dataset.chunks or "auto", lock=True) if lazy else dataset[()]
    size = scan.get("PixelSize") or {}
    axes = [
        {"name": "y", "scale": float(size.get("height") or 0), "offset": 0.0, "units": scan.get("PixelUnitY")},
        {"name": "x", "scale": float(size.get("width") or 0), "offset": 0.0, "units": scan.get("PixelUnitX")},
    ]
    calibration = _metadata(group, "AcquisitionMetadata")["Data"]
    energy = {
        "name": "Energy loss",
        "scale": float(calibration["dispersion"]),
        "offset": float(calibration["offset"]),
        "units": "eV",
    }
    if dataset.ndim == 3:
        counts = counts.transpose(2, 0, 1)
    axes = [*axes[3 - dataset.ndim :], energy]
    for index, (axis, n_values) in enumerate(zip(axes, counts.shape, strict=True)):
        axis |= {"size": n_values, "index_in_array": index}
    return {
        "data": counts,
        "axes": axes,
        "metadata": {"General": {"title": "EELS"}, "Signal": {"signal_type": "EELS"}},
        "original_metadata": {"AcquisitionMetadata": _metadata(group, "AcquisitionMetadata")},
    }
