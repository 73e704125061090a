"""Files that rosettasciio reads, with the checks for damage that it leaves out, and ours of that kind."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from eelsflow.digest import members
from eelsflow.errors import MissingDependencyError, UnreadableFileError
from eelsflow.io.damage import damage_reported, quiet
from eelsflow.io.formats import (
    DIGITAL_MICROGRAPH,
    EMD,
    EMSA,
    GATAN_TIFF,
    NION_HDF5,
    NION_NDATA,
    PANTA_RHEI,
    RIPPLE,
    TIA,
    ZSPY,
    Format,
)
from eelsflow.io.hdf5 import require_all_stored, require_readable_hdf5
from eelsflow.io.nion import read_nion_hdf5, read_nion_ndata
from eelsflow.io.signals import image_of_signals, low_loss_of_signals
from eelsflow.io.uneven import without_rounding
from eelsflow.io.velox import read_velox

# These readers look for the extension as it is usually written.
_SPELLINGS = {PANTA_RHEI: (".prz",), RIPPLE: (".rpl", ".RPL")}
_TIA_32_BIT = 0x210  # the last version whose offsets have 4 bytes
_ZARR_DESCRIPTIONS = (".zgroup", ".zarray", ".zattrs", "zarr.json")


def read_with_rosettasciio(path: Path, one: Format, *, lazy: bool) -> xr.DataArray:
    """Read a file whose reader returns signals with axes.

    Parameters
    ----------
    path, one
        The file and its format.
    lazy
        Whether counts stay on disk; only for formats that can.

    Raises
    ------
    UnreadableFileError, InputError, MissingDependencyError
        See `eelsflow.io.read.read_spectrum_image`.
    """
    signals, messages = _open_signals(path, one, lazy=lazy)
    with damage_reported(path, one.name), quiet():
        return image_of_signals(path, one.name, signals, notes=messages)


def read_low_loss_with_rosettasciio(path: Path, one: Format, *, lazy: bool) -> xr.DataArray | None:
    """Read the low loss that a file holds beside its core loss; parameters and errors as above."""
    signals, messages = _open_signals(path, one, lazy=lazy)
    with damage_reported(path, one.name), quiet():
        return low_loss_of_signals(path, one.name, signals, notes=messages)


def _open_signals(path: Path, one: Format, *, lazy: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the signals of a file, and what the reader had to say."""
    if one.hdf5:
        require_readable_hdf5(path)
    with damage_reported(path, one.name), quiet() as messages:
        _require_whole(path, one)
        signals = _signals(path, one, lazy=lazy)
    if one is EMSA:
        _complete_msa(path, signals)
    return signals, messages


def _signals(path: Path, one: Format, *, lazy: bool) -> list[dict[str, Any]]:
    if one is NION_NDATA:
        return read_nion_ndata(path)
    if one is NION_HDF5:
        return read_nion_hdf5(path)
    if one is EMD and (signals := read_velox(path, lazy=lazy)) is not None:
        return signals
    if one.hdf5:
        require_all_stored(path)
    try:
        reader = importlib.import_module(f"rsciio.{one.plugin}").file_reader
    except ImportError as error:
        raise MissingDependencyError(f"reading {path.name} needs {error.name}: install it with pip") from error
    options: dict[str, Any] = {} if one is EMSA else {"lazy": lazy}
    if one is ZSPY:
        options["mode"] = "r"  # opened for writing otherwise when lazy
    return list(reader(str(path), **options))


def _require_whole(path: Path, one: Format) -> None:
    """Refuse what a reader would read as something else: files cut short, with parts missing, or of another kind."""
    if path.suffix not in _SPELLINGS.get(one, (path.suffix,)):
        raise UnreadableFileError(
            f"{path} has the extension {path.suffix!r}; its reader knows {one.extensions[0]!r} only: rename it"
        )
    if one is DIGITAL_MICROGRAPH:
        _require_little_endian(path)
    elif one is EMSA:
        _require_whole_last_line(path)
    elif one is ZSPY:
        _require_all_chunks(path)
    elif one is RIPPLE:
        _require_raw(path)
    elif one is PANTA_RHEI:
        _require_plain_metadata(path)
    elif one is TIA:
        _require_spectra(path)
    elif one is GATAN_TIFF:
        _require_gatan_tags(path)


def _require_little_endian(path: Path) -> None:
    """Refuse a DigitalMicrograph file whose header says big-endian: its reader takes counts as little-endian anyway."""
    with path.open("rb") as stream:
        header = stream.read(16)
    flag = header[8:12] if header[3:4] == b"\3" else header[12:16]
    if len(flag) == 4 and not any(flag):
        raise UnreadableFileError(
            f"{path} says that its numbers are big-endian, as DigitalMicrograph of Macintosh computers wrote them, and "
            "its counts would be read wrongly: open it in DigitalMicrograph of today and save it again"
        )


def _require_whole_last_line(path: Path) -> None:
    """Refuse an msa file that ends inside its last number: cut short it would still be a number."""
    content = path.read_bytes()
    if b"#ENDOFDATA" not in content[-400:].upper() and not content.endswith((b"\n", b"\r")):
        raise UnreadableFileError(
            f"{path} is truncated: it ends in the middle of a line, without #ENDOFDATA; copy it again"
        )


def _complete_msa(path: Path, signals: Sequence[dict[str, Any]]) -> None:
    """Check the number of channels, and take the energies of a file that lists them, which the reader leaves out."""
    for signal in signals:
        keywords, n_channels = signal["original_metadata"], signal["data"].shape[0]
        expected = keywords.get("NPOINTS")
        if isinstance(expected, int | float) and n_channels < expected:
            raise UnreadableFileError(
                f"{path} is truncated: it announces {expected:g} channels and holds {n_channels}; copy it again"
            )
        if keywords.get("DATATYPE") != "XY" or len(signal["axes"]) != 1:
            continue
        with damage_reported(path, EMSA.name):
            text = path.read_text(encoding="latin-1").upper().partition("#SPECTRUM")[2]
            lines = [line for line in text.splitlines()[1:] if line.strip()[:1] not in ("", "#")]
            rows = [line.replace(",", " ").split() for line in lines]
            if len(rows) != n_channels:
                continue  # several columns a row: the calibration in the header stands
            decimals = max(len(row[0].partition("E")[0].partition(".")[2]) for row in rows)
            energies = np.array([float(row[0]) for row in rows])
            signal["axes"][0]["axis"] = without_rounding(energies, 10.0**-decimals)


def _require_all_chunks(path: Path) -> None:
    """Refuse a zspy file that lost chunks: they would read as zeros. HyperSpy writes them all, empty or not."""
    _require_readable_descriptions(path)
    with contextlib.closing(_zarr_store(path)) as store:
        experiments: Any = zarr.open_group(store, mode="r")["Experiments"]
        for name, experiment in experiments.groups():
            data = experiment["data"]
            if data.nchunks_initialized < data.nchunks:
                raise UnreadableFileError(
                    f"{path} is truncated: {data.nchunks_initialized} of {data.nchunks} chunks of {name!r} are there; "
                    "copy it again"
                )


def _zarr_store(path: Path) -> zarr.storage.LocalStore | zarr.storage.ZipStore:
    if path.is_dir():
        return zarr.storage.LocalStore(path, read_only=True)
    return zarr.storage.ZipStore(path, mode="r")


def _require_readable_descriptions(path: Path) -> None:
    """Read what describes the arrays of a zarr store, one after the other.

    zarr reads them all at once and raises the first failure; those of the others come out as tracebacks later.
    """
    if path.is_dir():
        for file in members(path):
            if file.name in _ZARR_DESCRIPTIONS:
                json.loads(file.read_bytes())
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.rpartition("/")[2] in _ZARR_DESCRIPTIONS:
                json.loads(archive.read(name))


def _require_raw(path: Path) -> None:
    """Refuse a Ripple description without its counts, or with more or fewer bytes of them than it announces."""
    files = members(path)
    if len(files) < 2:
        raise UnreadableFileError(f"{path} describes counts in {path.stem}.raw, which is missing: copy both files")
    fields = [line.split("\t") for line in path.read_text(encoding="latin-1").splitlines()]
    said = {field[0].strip().lower(): field[1].strip() for field in fields if len(field) > 1}
    sizes = [int(said[key]) for key in ("width", "height", "depth", "data-length")]
    expected, n_bytes = int(said.get("offset", 0)) + math.prod(sizes), files[1].stat().st_size
    if min(sizes) < 1 or n_bytes != expected:
        raise UnreadableFileError(
            f"{path} announces {expected} bytes of counts and {files[1].name} holds {n_bytes}; one of them is damaged "
            "or belongs to another acquisition: copy both again"
        )


def _require_plain_metadata(path: Path) -> None:
    with np.load(path, allow_pickle=False) as archive:
        if "meta_data_json" not in archive.files:
            raise UnreadableFileError(
                f"{path} has no axes in plain text: Panta Rhei before 24.03 wrote them as pickled Python objects, "
                "which are never loaded because they can run any program: export it as hspy from Panta Rhei"
            )


def _require_spectra(path: Path) -> None:
    """Refuse a .ser file of pictures, or one that announces more elements than it has bytes for."""
    with path.open("rb") as stream:
        header = stream.read(22)
    kind = int.from_bytes(header[6:10], "little")
    n_elements = int.from_bytes(header[18:22], "little")
    if header[:4] != b"II\x97\x01" or kind not in (0x4120, 0x4122):
        raise ValueError("it does not begin like a .ser file")
    if kind == 0x4122:
        raise UnreadableFileError(f"{path} holds images, no spectra: choose the .ser file of the spectrum image")
    if n_elements * (32 + _channels_of_ser(path)) > path.stat().st_size:
        raise UnreadableFileError(f"{path} is truncated: it announces {n_elements} spectra; copy it again")


def _channels_of_ser(path: Path) -> int:
    """Return how many channels the first spectrum of a .ser file announces, one byte each at least."""
    with path.open("rb") as stream:
        stream.seek(4)
        n_offset = 4 if int.from_bytes(stream.read(2), "little") <= _TIA_32_BIT else 8
        stream.seek(22)
        for _ in range(2):  # where the offsets are, and the first of these
            stream.seek(int.from_bytes(stream.read(n_offset), "little"))
        stream.seek(22, io.SEEK_CUR)
        return int.from_bytes(stream.read(4), "little")


def _require_gatan_tags(path: Path) -> None:
    """Refuse pictures: only DigitalMicrograph says of a TIFF file which axis is an energy."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].tags
        if not any(number in tags for number in (65003, 65004, 65005)):
            raise UnreadableFileError(
                f"{path} is a picture, or a stack of pictures without an energy axis; expected a spectrum image that "
                "DigitalMicrograph saved as TIFF, or the acquisition itself"
            )
