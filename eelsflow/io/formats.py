"""The formats that are read: one table that readers, folder inboxes, help texts and errors follow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Format:
    """A file format of energy-loss spectra.

    Attributes
    ----------
    name
        What people call it.
    extensions
        Of its file names, in lower case.
    written_by
        The programs that write it.
    plugin
        The reader of rosettasciio; empty if the reader is ours.
    lazy
        Whether counts can stay on disk until they are asked for.
    hdf5
        Whether it is an HDF5 file: a damaged one can make the HDF5 library crash, so a process of its own looks first.
    is_folder
        Whether it may be a folder of files.
    in_folders
        Whether a name alone makes a file of a folder an acquisition. Not where other files usually bear such names:
        these are read only when they are named.
    """

    name: str
    extensions: tuple[str, ...]
    written_by: str
    plugin: str = ""
    lazy: bool = False
    hdf5: bool = False
    is_folder: bool = False
    in_folders: bool = True


DIGITAL_MICROGRAPH = Format(
    "DigitalMicrograph", (".dm3", ".dm4"), "Gatan DigitalMicrograph", "digitalmicrograph", lazy=True
)
TEXT = Format("two-column text", (".txt", ".csv", ".tsv", ".dat", ".xy"), "databases, plotting programs")
ZARR = Format("eelsflow zarr", (".zarr",), "eelsflow", lazy=True, is_folder=True)
EMD = Format("EMD", (".emd",), "Velox (EELS), NCEM tools", "emd", lazy=True, hdf5=True)
EMSA = Format("EMSA/MAS", (".msa", ".ems", ".mas", ".emsa"), "DigitalMicrograph, EELS Data Base, HyperSpy", "msa")
ZSPY = Format("HyperSpy zarr", (".zspy",), "HyperSpy", "zspy", lazy=True, is_folder=True)
GATAN_TIFF = Format("Gatan TIFF", (".tif", ".tiff"), "DigitalMicrograph", "tiff", in_folders=False)
RIPPLE = Format("Ripple", (".rpl",), "Lispix, HyperSpy", "ripple", lazy=True)
TIA = Format("TIA series", (".ser",), "FEI TIA (Emispec)", "tia")
PANTA_RHEI = Format("Panta Rhei", (".prz",), "CEOS Panta Rhei from 24.03", "pantarhei")
NION_NDATA = Format("Nion ndata", (".ndata",), "Nion Swift")
NION_HDF5 = Format("Nion HDF5", (".h5", ".nhdf"), "Nion Swift", hdf5=True, in_folders=False)

FORMATS: tuple[Format, ...] = (
    DIGITAL_MICROGRAPH,
    EMD,
    Format("HyperSpy", (".hspy",), "HyperSpy", "hspy", lazy=True, hdf5=True),
    ZSPY,
    EMSA,
    TIA,
    RIPPLE,
    PANTA_RHEI,
    NION_NDATA,
    NION_HDF5,
    GATAN_TIFF,
    TEXT,
    ZARR,
)

READABLE_EXTENSIONS = tuple(extension for one in FORMATS for extension in one.extensions)
"""File name extensions that `eelsflow.io.read.read_spectrum_image` takes, in lower case."""

PARTS = {
    ".raw": "the counts of a Ripple acquisition, which its .rpl file describes: open the .rpl file",
    ".emi": "the description of a TIA acquisition, whose spectra are in the .ser files beside it: open the .ser file",
}
"""Files that belong to an acquisition of another name, and what to do."""


def format_of(path: Path | str) -> Format | None:
    """Return the format that a file name says, or None.

    >>> format_of("a.DM4").name
    'DigitalMicrograph'
    """
    suffix = Path(path).suffix.lower()
    return next((one for one in FORMATS if suffix in one.extensions), None)


def is_readable_name(path: Path | str) -> bool:
    """Tell whether a name looks like an acquisition that may be read without being named; nothing is opened.

    Hidden files and what the simulator leaves beside an acquisition, truth and low loss, are not; nor are TIFF and .h5
    files, which are pictures and anything else more often than spectra.

    >>> [is_readable_name(name) for name in ("a.DM4", "a.zarr", "a.truth.zarr", ".a.dm3", "a.png", "a.tif", "a.raw")]
    [True, True, False, False, False, False, False]
    """
    name = Path(path).name
    if name.startswith(".") or name.lower().endswith((".truth.zarr", ".low-loss.zarr")):
        return False
    found = format_of(name)
    return found is not None and found.in_folders


def list_formats() -> str:
    """Return the formats with their extensions, as a help text says them."""
    return ", ".join(f"{one.name} ({' '.join(one.extensions)})" for one in FORMATS)
