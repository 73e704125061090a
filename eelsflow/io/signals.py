"""Signals as rosettasciio describes them (counts and a list of axes): one is chosen and follows the schema.

Readers return axes in whatever order a file has them, some with the energy first, so the energy axis is found by its
unit and name, never by its position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.digest import digest_file
from eelsflow.errors import InputError, UnreadableFileError
from eelsflow.io.counts import guarded
from eelsflow.io.uneven import is_uniform, to_uniform_axis
from eelsflow.io.units import axis_energy_in_ev, is_energy_name, length_in_nm
from eelsflow.spectrum_image import build_spectrum_image

# What rosettasciio calls spectra that are not electron energy loss, though their axis is an energy too.
_OTHER_SPECTROSCOPIES = ("EDS", "CL", "Luminescence", "PL", "XRF", "WDS")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A signal of a file with an energy axis: where that axis is, and its calibration in eV."""

    signal: Mapping[str, Any]
    index: int
    energy_dim: int
    energy_loss: NDArray[np.float64]
    size: int

    @property
    def signal_type(self) -> str:
        return str(_section(_section(self.signal, "metadata"), "Signal").get("signal_type") or "")

    @property
    def n_pixels(self) -> int:
        return self.size // max(self.energy_loss.size, 1)

    @property
    def title(self) -> str:
        return str(_section(_section(self.signal, "metadata"), "General").get("title") or "")


def image_of_signals(
    path: Path,
    format_name: str,
    signals: Sequence[Mapping[str, Any]],
    *,
    notes: Sequence[str] = (),
    sha256: str | None = None,
) -> xr.DataArray:
    """Choose the energy-loss signal of a file and return it by the schema.

    Parameters
    ----------
    path, format_name
        The file, and what its format is called.
    signals
        ``data``, ``axes``, ``metadata`` and ``original_metadata`` of each.
    notes
        Remarks of the reader to keep.
    sha256
        Identity of what does not come from a file; by default the digest of the file.

    Raises
    ------
    UnreadableFileError
        If there are no energy-loss spectra.
    InputError
        If the energy axis is not uniform, or there are more than two navigation axes.
    """
    candidates = [found for index, signal in enumerate(signals) for found in _energy_axes(signal, index)]
    return _build(path, format_name, _choose(path, signals, candidates), len(signals), notes, sha256)


def low_loss_of_signals(
    path: Path, format_name: str, signals: Sequence[Mapping[str, Any]], *, notes: Sequence[str] = ()
) -> xr.DataArray | None:
    """Return the low loss beside the signal that `image_of_signals` chooses, by the schema; None without one.

    Of the other EELS signals whose axis holds the energy 0, the one with the same pixels is taken first, then the
    largest: our choice. Parameters and errors are those of `image_of_signals`.
    """
    candidates = [found for index, signal in enumerate(signals) for found in _energy_axes(signal, index)]
    core = _choose(path, signals, candidates)
    beside = [
        one
        for one in candidates
        if one.signal_type == "EELS" and one.index != core.index and one.energy_loss.min() <= 0 <= one.energy_loss.max()
    ]
    if not beside:
        return None
    low = max(beside, key=lambda one: (one.n_pixels == core.n_pixels, one.size, -one.index))
    return _build(path, format_name, low, len(signals), notes)


def _energy_axes(signal: Mapping[str, Any], index: int) -> Iterator[_Candidate]:
    """Yield the signal with the axis of it that is an energy in eV, by unit first and name second."""
    axes = list(signal["axes"])
    shape = tuple(signal["data"].shape)
    factors = {i: axis_energy_in_ev(axis.get("name"), axis.get("units")) for i, axis in enumerate(axes)}
    by_unit = [i for i, factor in factors.items() if factor is not None]
    by_name = [i for i, axis in enumerate(axes) if is_energy_name(axis.get("name"))]
    found = [i for i in by_unit if i in by_name] or by_unit
    if not found:
        # No unit: believed only if somebody calibrated it.
        found = [i for i in by_name if not str(axes[i].get("units") or "").strip() and _is_calibrated(axes[i])]
    if len(found) != 1:
        return
    axis = axes[found[0]]
    dim = int(axis.get("index_in_array", found[0]))
    values = (factors[found[0]] or 1.0) * _axis_values(axis)
    if len(axes) != len(shape) or values.size != shape[dim] or 0 in shape:
        raise ValueError(f"{len(axes)} axes with {values.size} energies describe counts of shape {shape}")
    yield _Candidate(signal, index, dim, values, math.prod(shape))


def _is_calibrated(axis: Mapping[str, Any]) -> bool:
    return "axis" in axis or (axis.get("scale", 1), axis.get("offset", 0)) != (1, 0)


def _axis_values(axis: Mapping[str, Any]) -> NDArray[np.float64]:
    if "axis" in axis:  # a non-uniform axis of HyperSpy
        return np.asarray(axis["axis"], dtype=np.float64)
    if "expression" in axis:
        raise InputError(
            "the energy axis is a formula, which is never evaluated because it can be any program; expected energies: "
            "convert it to a uniform axis in HyperSpy and save it again"
        )
    size = int(axis["size"])
    if size > 1 << 24:
        raise ValueError(f"an energy axis of {size} channels")
    return float(axis["offset"]) + float(axis["scale"]) * np.arange(size, dtype=np.float64)


def _choose(path: Path, signals: Sequence[Mapping[str, Any]], candidates: Sequence[_Candidate]) -> _Candidate:
    electrons = [candidate for candidate in candidates if not candidate.signal_type.startswith(_OTHER_SPECTROSCOPIES)]
    if not electrons:
        held = "; ".join(_describe_signal(signal) for signal in signals[:6]) or "nothing"
        raise UnreadableFileError(
            f"{path} holds no energy-loss spectra: expected a signal with an axis in eV, found {held}. "
            "Choose another file, or calibrate the energy axis and save it again"
        )
    return max(electrons, key=lambda one: (one.signal_type == "EELS", one.size, one.energy_loss.max(), -one.index))


def _describe_signal(signal: Mapping[str, Any]) -> str:
    kind = _section(_section(signal, "metadata"), "Signal").get("signal_type") or "signal"
    axes = ", ".join(f"{axis.get('name') or '?'} ({axis.get('units') or 'no unit'})" for axis in signal["axes"])
    return f"{kind} with axes {axes or '(none)'}"


def _build(
    path: Path,
    format_name: str,
    chosen: _Candidate,
    n_signals: int,
    messages: Sequence[str],
    sha256: str | None = None,
) -> xr.DataArray:
    signal, dim = chosen.signal, chosen.energy_dim
    counts = signal["data"]
    if counts.dtype.kind not in "uifb":
        raise UnreadableFileError(f"{path} holds values of the type {counts.dtype}; expected real counts")
    navigation = [(int(axis.get("index_in_array", i)), axis) for i, axis in enumerate(signal["axes"])]
    navigation = sorted((item for item in navigation if item[0] != dim), key=lambda item: item[0])
    if len(navigation) > 2:  # a stack of one frame is still a spectrum image
        navigation = [(i, axis) for i, axis in navigation if counts.shape[i] > 1]
    if len(navigation) > 2:
        raise InputError(
            f"{path} has {len(navigation)} navigation axes of the sizes {[counts.shape[i] for i, _ in navigation]}; "
            "expected a spectrum image (y, x), a line scan or a spectrum: save one frame of the series"
        )
    names = [str(axis.get("name") or "").strip().lower() for _, axis in navigation]
    if names == ["x", "y"]:
        navigation.reverse()  # without such names the file's order stands, rows first
    dropped = [i for i in range(counts.ndim) if i != dim and i not in [j for j, _ in navigation]]
    counts = counts.transpose([*dropped, *(i for i, _ in navigation), dim])[(0,) * len(dropped)]
    energy_loss = chosen.energy_loss
    if energy_loss[0] > energy_loss[-1]:
        counts, energy_loss = counts[..., ::-1], energy_loss[::-1]
    pixel_size, pixel_unit, note = _pixel_size([axis for _, axis in navigation])
    notes = [note] if note else []
    if counts.size == energy_loss.size and np.isfinite(energy_loss).all() and not _is_calibration(energy_loss):
        energy_loss, counts, note = to_uniform_axis(energy_loss, np.asarray(counts).ravel(), source=str(path))
        notes.append(note)
    if hasattr(counts, "dask"):
        counts = guarded(path, format_name, counts.rechunk({counts.ndim - 1: -1}))
    else:
        counts = np.ascontiguousarray(counts, dtype=counts.dtype.newbyteorder("="))
    return build_spectrum_image(
        counts,
        energy_loss,
        pixel_size=pixel_size,
        pixel_unit=pixel_unit,
        sha256=digest_file(path) if sha256 is None else sha256,
        source=path.name,
        metadata={
            "format": format_name,
            "signal": {
                "title": chosen.title,
                "signal_type": chosen.signal_type,
                "index": chosen.index,
                "of": n_signals,
            },
            "notes": [*notes, *messages],
            "metadata": plain_metadata(_section(signal, "metadata")),
            "original_metadata": plain_metadata(_section(signal, "original_metadata")),
        },
    )


def _is_calibration(energy_loss: NDArray[np.float64]) -> bool:
    """Tell whether energies are uniform, or so far from it that the calibration itself is at fault."""
    return energy_loss.size < 2 or is_uniform(energy_loss) or not np.diff(energy_loss).any()


def _pixel_size(navigation: Sequence[Mapping[str, Any]]) -> tuple[float, str, str]:
    """Return the pixel size, its unit ("nm" or "px") and a remark; axes are (y, x) or (x,)."""
    sizes = []
    for axis in reversed(navigation):  # x first: a scale bar lies along it
        size = abs(float(axis.get("scale", 0.0))) * length_in_nm(axis.get("units"))
        if math.isfinite(size) and size > 0:
            sizes.append(size)
    if not sizes:
        return 1.0, "px", ""
    note = ""
    if len(sizes) == 2 and abs(sizes[1] / sizes[0] - 1) > 0.01:
        note = f"pixels are not square: {sizes[0]:g} nm along x, {sizes[1]:g} nm along y; the size along x is used"
    return sizes[0], "nm", note


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = values.get(key)
    return section if isinstance(section, Mapping) else {}


def plain_metadata(value: Any) -> Any:
    """Return metadata as JSON values: long arrays become a remark, what is not finite becomes null."""
    match value:
        case Mapping():
            return {str(key): plain_metadata(item) for key, item in value.items()}
        case np.ndarray() if value.size > 256:
            return f"array of shape {value.shape} and type {value.dtype}"
        case np.ndarray() | np.generic():
            return plain_metadata(value.tolist())
        case list() | tuple() if len(value) > 256:
            return f"list of {len(value)} values"
        case list() | tuple():
            return [plain_metadata(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
        case bytes():
            return value.decode("latin-1") if len(value) <= 256 else f"{len(value)} bytes"
        case _:
            return str(value)
