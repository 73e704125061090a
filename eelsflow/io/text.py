"""Spectra as text: two columns, energy loss and counts, however a program or a country writes numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from eelsflow.digest import digest_file
from eelsflow.errors import InputError, UnreadableFileError
from eelsflow.io.formats import TEXT
from eelsflow.io.uneven import is_uniform, to_uniform_axis, without_rounding
from eelsflow.io.units import energy_of_label
from eelsflow.spectrum_image import build_spectrum_image

_COMMENT = ("#", "%", ";", "//")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+$")  # 1,234: a thousand or one and a quarter


@dataclass(frozen=True, slots=True)
class _Columns:
    """The rows of a file, and how they are written."""

    rows: list[tuple[float, float]]
    header: list[str]
    decimals: int


def read_text(path: Path) -> xr.DataArray:
    """Read one spectrum from two columns: energy loss and counts.

    Columns are separated by commas, semicolons, tabs or spaces; decimal marks are points, or commas where something
    else separates the columns. Lines that begin with #, %, ; or // and the lines before the first number are the
    header; a heading there may name eV or keV, without one energies are in eV.

    Raises
    ------
    UnreadableFileError
        If it is not text, or its lines are not two numbers each.
    InputError
        If its numbers can be read in two ways, or its energies are not those of one spectrum.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if b"\0" in raw:
        raise UnreadableFileError(f"{path} is not text: it holds zero bytes; expected two columns of numbers")
    lines = raw.decode("utf-8-sig", errors="replace").splitlines()
    columns = _columns(path, lines, decimal_comma=_has_decimal_commas(path, lines))
    if len(columns.rows) < 2:
        raise UnreadableFileError(
            f"{path} holds {len(columns.rows)} rows of two numbers; expected a spectrum: energy loss in eV and counts"
        )
    unit = _unit(columns.header)
    table = np.array(columns.rows)
    energy_loss, counts = unit * table[:, 0], table[:, 1]
    if energy_loss[0] > energy_loss[-1]:
        energy_loss, counts = energy_loss[::-1], counts[::-1]
    energy_loss = without_rounding(energy_loss, unit * 10.0**-columns.decimals)
    notes = []
    if np.isfinite(table).all() and not is_uniform(energy_loss):
        energy_loss, counts, note = to_uniform_axis(energy_loss, counts, source=str(path))
        notes.append(note)
    return build_spectrum_image(
        counts,
        energy_loss,
        sha256=digest_file(path),
        source=path.name,
        metadata={"format": TEXT.name, "header": columns.header[:100], "notes": notes},
    )


def _columns(path: Path, lines: Sequence[str], *, decimal_comma: bool) -> _Columns:
    header: list[str] = []
    rows: list[tuple[float, float]] = []
    decimals = 0
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        fields = _fields(text, decimal_comma=decimal_comma)
        values = _numbers(fields)
        if text.startswith(_COMMENT) or (values is None and not rows):
            header.append(text[:500])
        elif values is None or len(values) != 2:
            raise UnreadableFileError(
                f"{path} line {number} is {text[:60]!r}; expected two numbers, energy loss in eV and counts, with "
                "one kind of decimal mark and none for thousands"
            )
        else:
            rows.append((values[0], values[1]))
            decimals = max(decimals, _decimals(fields[0]))
    return _Columns(rows, header, decimals)


def _fields(text: str, *, decimal_comma: bool) -> list[str]:
    if not decimal_comma:
        return [field for field in re.split(r"[,;\s]+", text) if field]
    return [_DECIMAL_COMMA.sub(".", field) for field in re.split(r"[;\s]+", text) if field]


def _decimals(number: str) -> int:
    """Return after how many decimals a printed number ends.

    >>> _decimals("424.25"), _decimals("4.24250e+02"), _decimals("424")
    (2, 3, 0)
    """
    mantissa, _, exponent = number.lower().partition("e")
    return max(len(mantissa.partition(".")[2]) - int(exponent or 0), 0)


def _has_decimal_commas(path: Path, lines: Sequence[str]) -> bool:
    """Tell whether commas are decimal marks: they stand inside numbers, and something else separates two of these."""
    inside: list[str] = []
    for line in lines:
        text = line.strip()
        fields = [field for field in re.split(r"[;\s]+", text) if field]
        if text.startswith(_COMMENT) or len(fields) != 2:
            continue
        if _numbers(_fields(text, decimal_comma=True)) is None:
            continue
        inside += [field for field in fields if _DECIMAL_COMMA.search(field)]
    if inside and all(_GROUPED.match(field) for field in inside):
        raise InputError(
            f"{path} has numbers such as {inside[0]!r}, whose comma may be a decimal mark or one for thousands; "
            "a spectrum a thousand times off would be nonsense: write points as decimal marks"
        )
    return bool(inside)


def _unit(header: Sequence[str]) -> float:
    """Return how many eV the unit is that the last heading names; 1 without one.

    Lines with digits are settings, such as a beam energy, and no headings.
    """
    for line in reversed(header):
        if re.search(r"\d", line):
            continue
        text = line.lstrip("#%;/ \t")
        for cell in (*re.split(r"[,;\t]+|\s{2,}", text), *text.split()):
            if (found := energy_of_label(cell)) is not None:
                return found
    return 1.0


def _numbers(fields: Sequence[str]) -> list[float] | None:
    try:
        return [float(field) for field in fields]
    except ValueError:
        return None
