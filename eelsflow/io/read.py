"""Read what microscopes and databases write: every file becomes the one schema of `eelsflow.spectrum_image`.

DM3, DM4, EMD (Velox, NCEM), hspy, zspy and msa go through rosettasciio; two-column text and this project's zarr
stores are read here. Readers return axes in whatever order a file has them, some with the energy first, so the
energy axis is found by its unit and name, never by its position.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from eelsflow.digest import digest_file
from eelsflow.errors import InputError, MissingDependencyError, UnreadableFileError
from eelsflow.io.zarr_store import open_spectrum_image
from eelsflow.spectrum_image import build_spectrum_image

_PLUGINS = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".hspy": "hspy",
    ".zspy": "zspy",
    ".msa": "msa",
    ".ems": "msa",
    ".mas": "msa",
    ".emsa": "msa",
}
_TEXT = (".txt", ".csv", ".tsv", ".dat", ".xy")
_ZARR = ".zarr"
_NAMES = {
    "digitalmicrograph": "DigitalMicrograph",
    "emd": "EMD",
    "hspy": "HyperSpy",
    "zspy": "HyperSpy zarr",
    "msa": "EMSA/MAS",
}

READABLE_EXTENSIONS = (*_PLUGINS, *_TEXT, _ZARR)
"""File name extensions that `read_spectrum_image` takes, in lower case."""

LAZY_BYTES = 1 << 29
"""Files larger than this stay on disk (dask-backed) where the format allows it; our choice."""

_ENERGY_UNITS = {"eV": 1.0, "ev": 1.0, "EV": 1.0, "keV": 1e3, "kev": 1e3, "KeV": 1e3, "KEV": 1e3, "meV": 1e-3}
_LENGTH_UNITS_NM = {
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometre": 1.0,
    "µm": 1e3,  # micro sign
    "μm": 1e3,  # Greek letter mu
    "um": 1e3,
    "micron": 1e3,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "mm": 1e6,
    "m": 1e9,
    "pm": 1e-3,
    "å": 0.1,  # letter; the Angstrom sign is folded into it
    "a": 0.1,
    "angstrom": 0.1,
}
# What rosettasciio calls spectra that are not electron energy loss, though their axis is an energy too.
_OTHER_SPECTROSCOPIES = ("EDS", "CL", "Luminescence", "PL", "XRF", "WDS")

# rosettasciio's warnings and log records are caught while a file is read; both are process-wide switches.
_reading = threading.RLock()


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


def is_readable_name(path: Path | str) -> bool:
    """Tell whether a name looks like an acquisition that `read_spectrum_image` takes; nothing is opened.

    Hidden files and what the simulator leaves beside an acquisition, ground truth and low loss, are not.

    >>> [is_readable_name(name) for name in ("a.DM4", "a.zarr", "a.truth.zarr", "a.low-loss.zarr", ".a.dm3", "a.png")]
    [True, True, False, False, False, False]
    """
    name = Path(path).name
    if name.startswith(".") or name.lower().endswith((".truth.zarr", ".low-loss.zarr")):
        return False
    return Path(name).suffix.lower() in READABLE_EXTENSIONS


def read_spectrum_image(path: Path | str, *, lazy: bool | None = None) -> xr.DataArray:
    """Read a spectrum image, line scan or single spectrum.

    Parameters
    ----------
    path
        DM3, DM4, EMD, hspy, zspy, msa, text in two columns (energy loss in eV, counts) or a zarr store of this
        project.
    lazy
        Whether the counts stay on disk until they are asked for. By default above `LAZY_BYTES`, and always for
        zarr. Formats that cannot (msa, text) ignore it.

    Returns
    -------
    xr.DataArray
        ``counts`` (y, x, energy_loss) by the schema; numbers as the file has them. ``attrs["metadata"]`` says, as
        JSON, which of several signals was taken and keeps what the reader found.

    Raises
    ------
    UnreadableFileError
        If the file is missing, damaged, of an unknown format, holds no energy-loss spectra, or counts that are not
        finite. Of lazy counts the latter is found when they are computed.
    InputError
        If the energy axis is not uniform, or there are more than two navigation axes.
    MissingDependencyError
        If the format's reader needs a package that is not installed.

    Notes
    -----
    Of several signals the EELS one with the most values is taken, then the one that reaches the highest energy (so
    the core loss of a dual acquisition; `read_low_loss` reads the other). An axis of descending energies is turned
    round. Pixel sizes are converted to nm; without a length unit they are 1 "px". All of these are our choices.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READABLE_EXTENSIONS:
        raise UnreadableFileError(
            f"{path} has the extension {suffix or '(none)'!r}, which no reader takes; expected one of "
            f"{', '.join(READABLE_EXTENSIONS)}: export it in one of these formats"
        )
    if not path.exists():
        raise UnreadableFileError(f"{path} does not exist; check the name")
    n_bytes = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    if n_bytes == 0:
        raise UnreadableFileError(f"{path} is empty: it holds no bytes at all; copy it from the microscope again")
    lazy = n_bytes > LAZY_BYTES if lazy is None else lazy
    if suffix == _ZARR:
        image = open_spectrum_image(path)
        image.attrs["sha256"] = digest_file(path)
        return _with_finite_counts(path, image)
    image = _read_text(path) if suffix in _TEXT else _read_with_rosettasciio(path, _PLUGINS[suffix], lazy=lazy)
    return _with_finite_counts(path, image)


_HDF5 = ("hspy", "emd")
PROBE_SECONDS = 30.0
"""How long the names and attributes of an HDF5 file may take to read; usual are .3 s."""
_PROBE = """
import sys, h5py
def look(name, item):
    for key in item.attrs:
        item.attrs[key]
with h5py.File(sys.argv[1], "r") as file:
    look("", file)
    file.visititems(look)
"""


def read_low_loss(path: Path | str, *, lazy: bool | None = None) -> xr.DataArray | None:
    """Read the low loss that a file holds beside its core loss: a dual acquisition.

    Parameters
    ----------
    path, lazy
        As given to `read_spectrum_image`, which reads the core loss.

    Returns
    -------
    xr.DataArray or None
        By the schema; None where the file holds no such signal.

    Raises
    ------
    UnreadableFileError, InputError, MissingDependencyError
        As `read_spectrum_image`.

    Notes
    -----
    Of the EELS signals that `read_spectrum_image` does not take, and whose axis holds the energy 0, the one with the
    same pixels is taken first, then the largest: our choice.
    """
    path = Path(path)
    plugin = _PLUGINS.get(path.suffix.lower())
    if plugin is None or not path.exists():
        return None
    lazy = path.is_file() and path.stat().st_size > LAZY_BYTES if lazy is None else lazy
    signals, candidates, messages = _open_signals(path, plugin, lazy=lazy)
    core = _choose(path, signals, candidates)
    beside = [
        one
        for one in candidates
        if one.signal_type == "EELS" and one.index != core.index and one.energy_loss.min() <= 0 <= one.energy_loss.max()
    ]
    if not beside:
        return None
    low = max(beside, key=lambda one: (one.n_pixels == core.n_pixels, one.size, -one.index))
    with _damage_reported(path, _NAMES[plugin]), _quiet():
        return _with_finite_counts(path, _build(path, plugin, low, len(signals), messages))


def _read_with_rosettasciio(path: Path, plugin: str, *, lazy: bool) -> xr.DataArray:
    signals, candidates, messages = _open_signals(path, plugin, lazy=lazy)
    chosen = _choose(path, signals, candidates)
    with _damage_reported(path, _NAMES[plugin]), _quiet():
        return _build(path, plugin, chosen, len(signals), messages)


def _open_signals(
    path: Path, plugin: str, *, lazy: bool
) -> tuple[list[Mapping[str, Any]], list[_Candidate], list[str]]:
    """Return the signals of a file, those of them with an energy axis, and what the reader had to say."""
    try:
        reader = importlib.import_module(f"rsciio.{plugin}").file_reader
    except ImportError as error:
        raise MissingDependencyError(f"reading {path.name} needs {error.name}: install it with pip") from error
    if plugin == "msa":
        _require_whole_last_line(path)
    options: dict[str, Any] = {} if plugin == "msa" else {"lazy": lazy}
    if plugin == "zspy":
        options["mode"] = "r"  # opened for writing otherwise when lazy
        _require_all_chunks(path)
    if plugin in _HDF5:
        _require_readable_hdf5(path)
    with _damage_reported(path, _NAMES[plugin]), _quiet() as messages:
        signals = list(reader(str(path), **options))
        candidates = [found for index, signal in enumerate(signals) for found in _energy_axes(signal, index)]
    return signals, candidates, messages


def _require_readable_hdf5(path: Path) -> None:
    """Refuse a file whose damage makes the HDF5 library run for ever or crash: a process of its own looks first.

    Raises
    ------
    UnreadableFileError
        If the names, shapes and attributes in the file cannot be read within `PROBE_SECONDS`.
    """
    problem = f"took more than {PROBE_SECONDS:g} s to read, where fractions of a second are usual"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE, str(path)], capture_output=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pass
    else:
        if done.returncode >= 0:  # what it raises is raised again, with more to say, when the file is read
            return
        problem = f"made the HDF5 library crash (signal {-done.returncode})"
    raise UnreadableFileError(f"{path} is damaged: its names and attributes {problem}; copy it again")


def _require_whole_last_line(path: Path) -> None:
    """Refuse an msa file that ends inside its last number: cut short it would still be a number."""
    with _damage_reported(path, "EMSA/MAS"):
        content = path.read_bytes()
    if b"#ENDOFDATA" not in content[-400:].upper() and not content.endswith((b"\n", b"\r")):
        raise UnreadableFileError(
            f"{path} is truncated: it ends in the middle of a line, without #ENDOFDATA; copy it again"
        )


def _require_all_chunks(path: Path) -> None:
    """Refuse a zspy file that lost chunks: they would read as zeros. HyperSpy writes them all, empty or not."""
    with _damage_reported(path, "HyperSpy zarr"), _quiet():
        store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
        experiments: Any = zarr.open_group(store, mode="r")["Experiments"]
        for name, experiment in experiments.groups():
            data = experiment["data"]
            if data.nchunks_initialized < data.nchunks:
                raise UnreadableFileError(
                    f"{path} is truncated: {data.nchunks_initialized} of {data.nchunks} chunks of {name!r} are there; "
                    "copy it again"
                )


def _energy_axes(signal: Mapping[str, Any], index: int) -> Iterator[_Candidate]:
    """Yield the signal with the axis of it that is an energy in eV, by unit first and name second."""
    axes = list(signal["axes"])
    shape = tuple(signal["data"].shape)
    by_unit = [i for i, axis in enumerate(axes) if str(axis.get("units") or "").strip() in _ENERGY_UNITS]
    by_name = [i for i, axis in enumerate(axes) if re.search(r"energy|\bloss\b|eels", str(axis.get("name")), re.I)]
    found = [i for i in by_unit if i in by_name] or by_unit
    if not found:
        # No unit: believed only if somebody calibrated it.
        found = [i for i in by_name if not str(axes[i].get("units") or "").strip() and _is_calibrated(axes[i])]
    if len(found) != 1:
        return
    axis = axes[found[0]]
    dim = int(axis.get("index_in_array", found[0]))
    factor = _ENERGY_UNITS.get(str(axis.get("units") or "").strip(), 1.0)
    values = factor * _axis_values(axis)
    if len(axes) != len(shape) or values.size != shape[dim] or 0 in shape:
        raise ValueError(f"{len(axes)} axes with {values.size} energies describe counts of shape {shape}")
    yield _Candidate(signal, index, dim, values, math.prod(shape))


def _is_calibrated(axis: Mapping[str, Any]) -> bool:
    return "axis" in axis or (axis.get("scale", 1), axis.get("offset", 0)) != (1, 0)


def _axis_values(axis: Mapping[str, Any]) -> NDArray[np.float64]:
    if "axis" in axis:  # a non-uniform axis of HyperSpy; the schema decides whether it is uniform after all
        return np.asarray(axis["axis"], dtype=np.float64)
    return float(axis["offset"]) + float(axis["scale"]) * np.arange(int(axis["size"]), dtype=np.float64)


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


def _build(path: Path, plugin: str, chosen: _Candidate, n_signals: int, messages: list[str]) -> xr.DataArray:
    signal, dim = chosen.signal, chosen.energy_dim
    counts = signal["data"]
    if counts.dtype.kind not in "uifb":
        raise UnreadableFileError(f"{path} holds values of the type {counts.dtype}; expected real counts")
    expected = _section(signal, "original_metadata").get("NPOINTS") if plugin == "msa" else None
    if isinstance(expected, int | float) and counts.shape[0] < expected:
        raise UnreadableFileError(
            f"{path} is truncated: it announces {expected:g} channels and holds {counts.shape[0]}; copy it again"
        )
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
    if hasattr(counts, "dask"):
        counts = counts.rechunk({counts.ndim - 1: -1})
    else:
        counts = np.ascontiguousarray(counts, dtype=counts.dtype.newbyteorder("="))
    return build_spectrum_image(
        counts,
        energy_loss,
        pixel_size=pixel_size,
        pixel_unit=pixel_unit,
        sha256=digest_file(path),
        source=path.name,
        metadata={
            "format": _NAMES[plugin],
            "signal": {
                "title": chosen.title,
                "signal_type": chosen.signal_type,
                "index": chosen.index,
                "of": n_signals,
            },
            "notes": [*([note] if note else []), *messages],
            "metadata": _plain(_section(signal, "metadata")),
            "original_metadata": _plain(_section(signal, "original_metadata")),
        },
    )


def _pixel_size(navigation: Sequence[Mapping[str, Any]]) -> tuple[float, str, str]:
    """Return the pixel size, its unit ("nm" or "px") and a remark; axes are (y, x) or (x,)."""
    sizes = []
    for axis in reversed(navigation):  # x first: a scale bar lies along it
        unit = str(axis.get("units") or "").strip().replace("\u212b", "å").lower()
        size = abs(float(axis.get("scale", 0.0))) * _LENGTH_UNITS_NM.get(unit, 0.0)
        if math.isfinite(size) and size > 0:
            sizes.append(size)
    if not sizes:
        return 1.0, "px", ""
    note = ""
    if len(sizes) == 2 and abs(sizes[1] / sizes[0] - 1) > 0.01:
        note = f"pixels are not square: {sizes[0]:g} nm along x, {sizes[1]:g} nm along y; the size along x is used"
    return sizes[0], "nm", note


def _read_text(path: Path) -> xr.DataArray:
    """Read energy loss (eV) and counts from two columns separated by commas, semicolons, tabs or spaces.

    Lines that begin with #, %, ; or // and the lines before the first number are the header.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if b"\0" in raw:
        raise UnreadableFileError(f"{path} is not text: it holds zero bytes; expected two columns of numbers")
    header: list[str] = []
    rows: list[tuple[float, float]] = []
    decimals = 0
    for number, line in enumerate(raw.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        text = line.strip()
        if not text:
            continue
        fields = [field for field in re.split(r"[,;\s]+", text) if field]
        values = _numbers(fields)
        if text.startswith(("#", "%", ";", "//")) or (values is None and not rows):
            header.append(text[:500])
        elif values is None or len(values) != 2:
            raise UnreadableFileError(
                f"{path} line {number} is {text[:60]!r}; expected two numbers, energy loss in eV and counts, with "
                "points as decimal marks"
            )
        else:
            rows.append((values[0], values[1]))
            decimals = max(decimals, len(fields[0].lower().partition("e")[0].partition(".")[2]))
    if len(rows) < 2:
        raise UnreadableFileError(
            f"{path} holds {len(rows)} rows of two numbers; expected a spectrum: energy loss in eV and counts"
        )
    table = np.array(rows)
    if table[0, 0] > table[-1, 0]:
        table = table[::-1]
    return build_spectrum_image(
        table[:, 1],
        _without_rounding(table[:, 0], 10.0**-decimals),
        sha256=digest_file(path),
        source=path.name,
        metadata={"format": "two-column text", "header": header[:100], "notes": []},
    )


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
    with _damage_reported(path, "npz"), np.load(path, allow_pickle=False) as archive:
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


def read_spectra_table(path: Path | str) -> xr.DataArray:
    """Read a ready table of spectra (npz) as one line of pixels.

    Parameters
    ----------
    path
        Arrays ``spectra`` (n, channels) and ``energy_loss`` (channels,) in eV. Under other names the one-dimensional
        array whose name speaks of energy is taken, and the largest two-dimensional one with as many columns.

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
    with _damage_reported(path, "npz"), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    energies = {
        name: array for name, array in arrays.items() if array.ndim == 1 and re.search("energy|loss", name, re.I)
    }
    tables = {
        (spectra_name, energy_name): spectra
        for energy_name, energy_loss in energies.items()
        for spectra_name, spectra in arrays.items()
        if spectra.ndim == 2 and spectra.dtype.kind in "uif" and spectra.shape[1] == energy_loss.size > 0 < len(spectra)
    }
    if not tables:
        held = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise UnreadableFileError(
            f"{path} holds {held}; expected arrays spectra (n, channels) and energy_loss (channels,) in eV, the same "
            "axis for all: resample the spectra onto one axis and save them under these names"
        )
    names = max(tables, key=lambda pair: (pair[0] == "spectra", tables[pair].size))
    with _damage_reported(path, "npz"):
        image = build_spectrum_image(
            np.ascontiguousarray(tables[names]),
            arrays[names[1]].astype(np.float64),
            sha256=digest_file(path),
            source=path.name,
            metadata={"format": "table of spectra", "signal": {"title": names[0]}, "notes": []},
        )
    return _with_finite_counts(path, image)


def _numbers(fields: Sequence[str]) -> list[float] | None:
    try:
        return [float(field) for field in fields]
    except ValueError:
        return None


def _without_rounding(energy_loss: NDArray[np.float64], resolution: float) -> NDArray[np.float64]:
    """Return the uniform axis that was printed with `resolution` eV, or the values if there is none."""
    channels = np.arange(energy_loss.size)
    if not np.isfinite(energy_loss).all():
        return energy_loss
    slope, intercept = np.polyfit(channels, energy_loss, 1)
    uniform: NDArray[np.float64] = intercept + slope * channels
    # Twice the rounding error, for the fit is pulled by it too; below a quarter of a channel, or rows are missing.
    is_rounding = np.abs(uniform - energy_loss).max() <= min(resolution, 0.25 * abs(slope))
    return uniform if is_rounding else energy_loss


def _with_finite_counts(path: Path, image: xr.DataArray) -> xr.DataArray:
    """Refuse NaN and infinite counts now, or when they are computed if the image is large and on disk."""
    if image.dtype.kind != "f":
        return image
    if image.chunks is None and (image.variable._in_memory or image.nbytes <= LAZY_BYTES):
        _require_finite(image.values, source=str(path))
        return image
    lazy = image if image.chunks is not None else image.chunk({"y": 64, "x": 64, "energy_loss": -1})
    checked = lazy.data.map_blocks(_require_finite, source=str(path), dtype=lazy.dtype, meta=lazy.data._meta)
    return lazy.copy(data=checked)


def _require_finite(counts: NDArray[Any], *, source: str) -> NDArray[Any]:
    n_bad = int(counts.size - np.isfinite(counts).sum())
    if n_bad:
        raise UnreadableFileError(
            f"{source} holds {n_bad} counts that are NaN or infinite among {counts.size}; a fit over them has no "
            "meaning: export the raw counts again, or replace these values"
        )
    return counts


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = values.get(key)
    return section if isinstance(section, Mapping) else {}


def _plain(value: Any) -> Any:
    """Return metadata as JSON values: long arrays become a remark, what is not finite becomes null."""
    match value:
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case np.ndarray() if value.size > 256:
            return f"array of shape {value.shape} and type {value.dtype}"
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case list() | tuple() if len(value) > 256:
            return f"list of {len(value)} values"
        case list() | tuple():
            return [_plain(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
        case bytes():
            return value.decode("latin-1") if len(value) <= 256 else f"{len(value)} bytes"
        case _:
            return str(value)


@contextlib.contextmanager
def _damage_reported(path: Path, format_name: str) -> Iterator[None]:
    """Turn whatever a reader raises on broken bytes into `UnreadableFileError`; our own errors pass."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UnreadableFileError(f"{path} is not a readable {format_name} file: {reason}") from error
    except Exception as error:  # struct.error, KeyError, IndexError, MemoryError, zlib.error, ...: any of them
        detail = " ".join(str(error).split())[:200]
        raise UnreadableFileError(
            f"{path} is not a readable {format_name} file: it is truncated, damaged or of a variant that the reader "
            f"does not know ({type(error).__name__}: {detail}); copy it again or export it anew"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Collect a reader's warnings instead of showing them; its log records are dropped."""
    messages: list[str] = []
    logger = logging.getLogger("rsciio")
    with _reading, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield messages
        finally:
            logger.setLevel(level)
            messages.extend(sorted({f"{one.category.__name__}: {one.message}" for one in caught}))
