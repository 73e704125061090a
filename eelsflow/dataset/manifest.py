"""The manifest: which acquisitions a study uses, and what is known of them."""

from __future__ import annotations

import csv
import io
import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from eelsflow.dataset.labels import PURE_FRACTION, read_phase_fraction, require_label, require_phases
from eelsflow.dataset.splits import SplitBy
from eelsflow.digest import digest_file
from eelsflow.errors import DataSetError, OutputPathError, StudyFileError, UnreadableFileError

REQUIRED = ("path", "label", "group")
COLUMNS = (*REQUIRED, "session", "truth", "low_loss")


class Row(BaseModel):
    """One row of the manifest: the cells, before any file that they name is looked at."""

    model_config = ConfigDict(frozen=True)

    manifest: Path
    line: int
    path: str
    label: str
    group: str
    session: str
    truth: str
    low_loss: str

    @property
    def where(self) -> str:
        """Manifest and line, for messages."""
        return f"manifest {self.manifest}, line {self.line}"

    def resolve(self, cell: str) -> Path:
        """Return the path that a cell names, relative to the manifest's folder."""
        return (self.manifest.parent / cell).resolve()


class Acquisition(BaseModel):
    """An acquisition of the manifest; paths are absolute, `sha256` is that of the file's bytes.

    `given` is its path as the manifest writes it; `name` and, where the manifest has none, `group` are those of
    `name_acquisitions`.
    """

    model_config = ConfigDict(frozen=True)

    given: str
    name: str = ""
    path: Path
    sha256: str
    label: str = ""
    group: str = ""
    session: str = ""
    truth: Path | None = None
    truth_sha256: str = ""
    low_loss: Path | None = None
    low_loss_sha256: str = ""


def read_manifest(path: Path) -> list[Acquisition]:
    """Read a manifest and the bytes of every file that it names.

    Parameters
    ----------
    path
        As in `read_rows`.

    Raises
    ------
    UnreadableFileError
        If the manifest, or a file it names, cannot be read.
    StudyFileError
        As `read_rows`, `open_acquisition` and `refuse_repeats`.
    """
    rows = read_rows(path)
    acquisitions = [open_acquisition(row) for row in rows]
    refuse_repeats(rows, acquisitions)
    return name_acquisitions(acquisitions)


def read_rows(path: Path, *, allow_empty: bool = False) -> list[Row]:
    """Read the rows of a manifest; none of the files that they name is looked at.

    Parameters
    ----------
    path
        CSV with the columns path, label, group and optionally session, truth, low_loss. A label may be empty; an
        empty group is the acquisition itself. Relative paths are relative to its folder.
    allow_empty
        Take a manifest of a header alone, which names nothing yet.

    Raises
    ------
    UnreadableFileError
        If the manifest cannot be read.
    StudyFileError
        If a column is unknown, missing or given twice, a row has more cells than columns, a path is empty, or there
        are no rows.
    """
    try:
        # utf-8-sig: Excel begins a CSV with a byte-order mark, which would become part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            header = reader.fieldnames or []
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFileError(f"manifest {path} cannot be read: {error}") from error
    unknown = [column for column in header if column not in COLUMNS]
    missing = [column for column in REQUIRED if column not in header]
    twice = sorted({column for column in header if header.count(column) > 1})
    if unknown or missing or twice:
        problems = {"unknown": unknown, "missing": missing, "given twice": twice}
        found = "; ".join(f"{what}: {', '.join(columns)}" for what, columns in problems.items() if columns)
        raise StudyFileError(
            f"manifest {path} has the columns {list(header)} ({found}); expected path, label, group and optionally "
            "session, truth, low_loss, each once; a label or group that is not known is an empty cell"
        )
    if not lines and not allow_empty:
        raise StudyFileError(f"manifest {path} names no acquisition; write one row a file")

    rows = []
    for number, cells in enumerate(lines, start=2):
        row = Row(manifest=path, line=number, **{column: (cells.get(column) or "").strip() for column in COLUMNS})
        if None in cells:  # where csv puts the cells that have no column
            raise StudyFileError(
                f"{row.where}: {len(header) + len(cells[None])} cells for {len(header)} columns, the first without a "
                f"column being {cells[None][0]!r}; a comma inside a cell needs quotes around it"
            )
        if not row.path:
            raise StudyFileError(f"{row.where}: the path is empty")
        rows.append(row)
    return rows


def write_manifest(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write a manifest with all its columns, whole or not at all.

    Raises
    ------
    OutputPathError
        If it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text.getvalue(), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputPathError(f"cannot write {path}: {error.strerror or error}; name another place") from error


def row_of(manifest: Path, acquisition: Path) -> Row:
    """Return the row of an acquisition that a truth can be named in.

    Raises
    ------
    StudyFileError
        If the manifest has no row of the acquisition, or its row has a label, which a study would take before a truth.
    UnreadableFileError
        If the manifest cannot be read.
    """
    own = next((row for row in read_rows(manifest) if row.resolve(row.path) == acquisition.resolve()), None)
    if own is None:
        raise StudyFileError(
            f"manifest {manifest} has no row of {acquisition}; add it (`eelsflow manifest`), or leave out --manifest"
        )
    if own.label:
        raise StudyFileError(
            f"{own.where}: {own.path} has the label {own.label}, which a study takes for every pixel before any truth: "
            "empty that cell, or leave out --manifest"
        )
    return own


def name_truth(manifest: Path, acquisition: Path, truth: Path) -> None:
    """Write the truth of an acquisition into its row of a manifest; all other cells stay as they are.

    Raises
    ------
    StudyFileError, UnreadableFileError
        As `row_of`.
    OutputPathError
        If the manifest cannot be written.
    """
    own = row_of(manifest, acquisition)
    cell = Path(os.path.relpath(truth.resolve(), manifest.resolve().parent)).as_posix()
    rows = [row.model_copy(update={"truth": cell}) if row == own else row for row in read_rows(manifest)]
    write_manifest(manifest, [row.model_dump(include=set(COLUMNS)) for row in rows])


def open_acquisition(row: Row) -> Acquisition:
    """Read the bytes of the files of one row; the acquisition has no name yet.

    `session` is kept with the acquisition; no step uses it yet. `low_loss` is the low loss of the same scan.

    Raises
    ------
    UnreadableFileError
        If a file cannot be read.
    StudyFileError
        If the low_loss file is missing.
    """
    file = row.resolve(row.path)
    sha256 = digest_file(file)
    if row.low_loss and not row.resolve(row.low_loss).exists():
        raise StudyFileError(
            f"{row.where}: low_loss names {row.low_loss}, which does not exist in {row.manifest.parent}; correct the "
            "name or leave the cell empty"
        )
    truth = row.resolve(row.truth) if row.truth else None
    low_loss = row.resolve(row.low_loss) if row.low_loss else None
    return Acquisition(
        given=row.path,
        path=file,
        sha256=sha256,
        label=row.label,
        group=row.group,
        session=row.session,
        truth=truth,
        truth_sha256=digest_file(truth) if truth else "",
        low_loss=low_loss,
        low_loss_sha256=digest_file(low_loss) if low_loss else "",
    )


def refuse_repeats(rows: Sequence[Row], acquisitions: Sequence[Acquisition]) -> None:
    """Refuse two rows with the same spectra.

    Raises
    ------
    StudyFileError
        Naming both lines.
    """
    seen: dict[str, Row] = {}
    for row, acquisition in zip(rows, acquisitions, strict=True):
        first = seen.setdefault(acquisition.sha256, row)
        if first is not row:
            raise StudyFileError(
                f"{row.where}: {row.path} was already given in line {first.line} (the same content); the same spectra "
                "in two rows would count as independent: remove one"
            )


def name_acquisitions(acquisitions: Sequence[Acquisition]) -> list[Acquisition]:
    """Name each acquisition by its file, and by its content too where files of several folders have one name.

    A group that the manifest does not give is the name. Names depend on which acquisitions there are and not on their
    order; they are given anew when some are left out.
    """
    shared = Counter(acquisition.path.stem for acquisition in acquisitions)
    named = []
    for acquisition in acquisitions:
        stem = acquisition.path.stem
        name = stem if shared[stem] == 1 else f"{stem}-{acquisition.sha256[:8]}"
        group = name if acquisition.group in ("", acquisition.name) else acquisition.group
        named.append(acquisition.model_copy(update={"name": name, "group": group}))
    return named


def classes_held(acquisition: Acquisition, classes: Sequence[str]) -> set[str]:
    """Return the classes that an acquisition can hold spectra of; none if it is unlabelled.

    Raises
    ------
    DataSetError
        If its label, or a phase of its truth, is no class of the study.
    UnreadableFileError
        If its truth cannot be read.
    """
    name = acquisition.name or acquisition.path.stem
    if acquisition.label:
        require_label(acquisition.label, classes, name=name)
        return {acquisition.label}
    if acquisition.truth is None:
        return set()
    phases, fraction = read_phase_fraction(acquisition.truth)
    require_phases(phases, fraction, classes, name=name)
    return {phase for phase, part in zip(phases, fraction, strict=True) if (part >= PURE_FRACTION).any()}


def check_labels(acquisitions: Sequence[Acquisition], classes: Sequence[str], *, split_by: Sequence[SplitBy]) -> None:
    """Refuse labels that no study can be made of, as far as that is known before hours of preparation.

    Parameters
    ----------
    acquisitions
        Of a manifest.
    classes
        Of the study.
    split_by
        How spectra are held out; empty: by group where there are two groups or more.

    Raises
    ------
    DataSetError
        If a label or a phase of the truth is no class of the study, no acquisition can hold spectra of a class, or
        only one group can where whole groups are held out.
    UnreadableFileError
        If a truth cannot be read.

    Notes
    -----
    What is vacuum is known after the preparation only, so there may be fewer spectra than this assumes.
    """
    holding: dict[str, list[Acquisition]] = {name: [] for name in classes}
    for acquisition in acquisitions:
        for name in classes_held(acquisition, classes):
            holding[name].append(acquisition)
    counts = {name: len(found) for name, found in holding.items()}
    if not all(counts.values()):
        raise DataSetError(
            f"acquisitions with spectra of each class: {counts}; a classifier needs at least two classes with spectra "
            "of each: add labelled acquisitions of the missing class or take it out of the study"
        )
    groups = {name: {acquisition.group for acquisition in found} for name, found in holding.items()}
    by_group = "group" in split_by or (not split_by and len(set.union(*groups.values())) > 1)
    if by_group and min(map(len, groups.values())) < 2:
        raise DataSetError(
            f"groups that hold each class: { ({name: len(found) for name, found in groups.items()}) }; where whole "
            "groups are held out, each class needs at least 2, one to train on and one to test with: record another "
            "acquisition of it, or split by pixel (`split: {by: pixel}`)"
        )
