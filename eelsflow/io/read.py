"""Read what microscopes and databases write: every file becomes the one schema of `eelsflow.spectrum_image`."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from eelsflow.digest import digest_file, members
from eelsflow.errors import UnreadableFileError
from eelsflow.io import counts
from eelsflow.io.formats import PARTS, READABLE_EXTENSIONS, TEXT, ZARR, Format, format_of
from eelsflow.io.rosetta import read_low_loss_with_rosettasciio, read_with_rosettasciio
from eelsflow.io.text import read_text
from eelsflow.io.zarr_store import open_spectrum_image


def read_spectrum_image(path: Path | str, *, lazy: bool | None = None) -> xr.DataArray:
    """Read a spectrum image, line scan or single spectrum.

    Parameters
    ----------
    path
        A file, or a zarr store, in one of `eelsflow.io.formats.FORMATS`.
    lazy
        Whether the counts stay on disk until they are asked for. By default above `LAZY_BYTES`, and always for
        zarr. Formats that cannot ignore it.

    Returns
    -------
    xr.DataArray
        ``counts`` (y, x, energy_loss) by the schema; numbers as the file has them. ``attrs["metadata"]`` says, as
        JSON, which of several signals was taken and keeps what the reader found.

    Raises
    ------
    UnreadableFileError
        If the file is missing, damaged, of an unknown format, holds no energy-loss spectra, or counts that are not
        finite in every pixel. Of lazy counts the latter is found when they are prepared.
    InputError
        If the energy axis of more than one spectrum is not uniform, or there are more than two navigation axes.
    MissingDependencyError
        If the format's reader needs a package that is not installed.

    Notes
    -----
    Of several signals the EELS one with the most values is taken, then the one that reaches the highest energy (so
    the core loss of a dual acquisition; `read_low_loss` reads the other). An axis of descending energies is turned
    round. A single spectrum whose energies are not in equal steps is averaged onto a uniform axis, and a note says so
    (`eelsflow.io.uneven.to_uniform_axis`). Pixel sizes are converted to nm; without a length unit they are 1 "px". All
    of these are our choices.
    """
    path = Path(path)
    one = _require_format(path)
    n_bytes = _require_content(path, one)
    lazy = n_bytes > counts.LAZY_BYTES if lazy is None else lazy
    if one is ZARR:
        image = open_spectrum_image(path)
        image.attrs["sha256"] = digest_file(path)
    elif one is TEXT:
        image = read_text(path)
    else:
        image = read_with_rosettasciio(path, one, lazy=lazy and one.lazy)
    return counts.with_whole_pixels(path, image)


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
    """
    path = Path(path)
    one = _require_format(path)
    n_bytes = _require_content(path, one)
    if one in (ZARR, TEXT):
        return None
    if lazy is None and one.hdf5 and one.lazy and read_low_loss_with_rosettasciio(path, one, lazy=True) is None:
        return None  # most files: their heads tell, and the core loss is not read once more
    lazy = n_bytes > counts.LAZY_BYTES if lazy is None else lazy
    image = read_low_loss_with_rosettasciio(path, one, lazy=lazy and one.lazy)
    return None if image is None else counts.with_whole_pixels(path, image)


def _require_format(path: Path) -> Format:
    found = format_of(path)
    if found is not None:
        return found
    suffix = path.suffix.lower()
    if suffix in PARTS:
        raise UnreadableFileError(f"{path} is {PARTS[suffix]}")
    raise UnreadableFileError(
        f"{path} has the extension {suffix or '(none)'!r}, which no reader takes; expected one of "
        f"{', '.join(READABLE_EXTENSIONS)}: export it in one of these formats"
    )


def _require_content(path: Path, one: Format) -> int:
    """Return the size in bytes of what belongs to an acquisition."""
    if not path.exists():
        raise UnreadableFileError(f"{path} does not exist; check the name")
    if path.is_dir() and not one.is_folder:
        raise UnreadableFileError(
            f"{path} is a folder; expected a file of the format {one.name}: name the file, not the folder that holds it"
        )
    try:
        n_bytes = sum(file.stat().st_size for file in members(path))
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if n_bytes == 0:
        raise UnreadableFileError(f"{path} is empty: it holds no bytes at all; copy it from the microscope again")
    return n_bytes
