"""The manifest: which acquisitions a study uses, and what is known of them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from eelsflow.dataset.labels import PURE_FRACTION, read_phase_fraction, require_label, require_phases
from eelsflow.dataset.splits import SplitBy
from eelsflow.digest import digest_file
from eelsflow.errors import DataSetError, StudyFileError, UnreadableFileError

REQUIRED = ("path", "label", "group")
COLUMNS = (*REQUIRED, "session", "truth", "low_loss")


class Acquisition(BaseModel):
    """One row of the manifest; paths are absolute, `sha256` is that of the file's bytes."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: Path
    sha256: str
    label: str = ""
    group: str
    session: str = ""
    truth: Path | None = None
    truth_sha256: str = ""
    low_loss: Path | None = None
    low_loss_sha256: str = ""


def read_manifest(path: Path) -> list[Acquisition]:
    """Read a manifest; relative paths are relative to its folder.

    Parameters
    ----------
    path
        CSV with the columns path, label, group and optionally session, truth, low_loss. A label may be empty; an
        empty group is the acquisition itself. `session` is kept with the acquisition; no step
        uses it yet. `low_loss` is the file of the low loss of the same scan.

    Raises
    ------
    UnreadableFileError
        If the manifest, or a file it names, cannot be read.
    StudyFileError
        If a column is unknown, missing or given twice, a row has more cells than columns, a path is empty, a low_loss
        file is missing, an acquisition is given twice, or there are no rows.
    """
    try:
        # utf-8-sig: Excel begins a CSV with a byte-order mark, which would become part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            header = reader.fieldnames or []
            rows = list(reader)
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
    if not rows:
        raise StudyFileError(f"manifest {path} names no acquisition; write one row a file")

    values = [{column: (row.get(column) or "").strip() for column in COLUMNS} for row in rows]
    shared = Counter((path.parent / value["path"]).resolve().stem for value in values)
    acquisitions: list[Acquisition] = []
    seen: dict[str, int] = {}
    for number, (row, value) in enumerate(zip(rows, values, strict=True), start=2):
        if None in row:  # where csv puts the cells that have no column
            raise StudyFileError(
                f"manifest {path}, line {number}: {len(header) + len(row[None])} cells for {len(header)} columns, the "
                f"first without a column being {row[None][0]!r}; a comma inside a cell needs quotes around it"
            )
        if not value["path"]:
            raise StudyFileError(f"manifest {path}, line {number}: the path is empty")
        file = (path.parent / value["path"]).resolve()
        sha256 = digest_file(file)
        if sha256 in seen:
            raise StudyFileError(
                f"manifest {path}, line {number}: {value['path']} was already given in line {seen[sha256]} (the same "
                "content); the same spectra in two rows would count as independent: remove one"
            )
        seen[sha256] = number
        if value["low_loss"] and not (path.parent / value["low_loss"]).exists():
            raise StudyFileError(
                f"manifest {path}, line {number}: low_loss names {value['low_loss']}, which does not exist in "
                f"{path.parent}; correct the name or leave the cell empty"
            )
        truth = (path.parent / value["truth"]).resolve() if value["truth"] else None
        low_loss = (path.parent / value["low_loss"]).resolve() if value["low_loss"] else None
        name = file.stem
        if shared[name] > 1:  # files of this name in several folders: all of them, so that their order does not matter
            name = f"{name}-{sha256[:8]}"
        acquisitions.append(
            Acquisition(
                name=name,
                path=file,
                sha256=sha256,
                label=value["label"],
                group=value["group"] or name,
                session=value["session"],
                truth=truth,
                truth_sha256=digest_file(truth) if truth else "",
                low_loss=low_loss,
                low_loss_sha256=digest_file(low_loss) if low_loss else "",
            )
        )
    return acquisitions


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
    holding = {name: [acquisition for acquisition in acquisitions if acquisition.label == name] for name in classes}
    for acquisition in acquisitions:
        if acquisition.label:
            require_label(acquisition.label, classes, name=acquisition.name)
        elif acquisition.truth is not None:
            phases, fraction = read_phase_fraction(acquisition.truth)
            require_phases(phases, fraction, classes, name=acquisition.name)
            for phase, part in zip(phases, fraction, strict=True):
                if (part >= PURE_FRACTION).any():
                    holding[phase].append(acquisition)
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
