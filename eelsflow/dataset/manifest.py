"""The manifest: which acquisitions a study uses, and what is known of them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from eelsflow.digest import digest_file
from eelsflow.errors import StudyFileError, UnreadableFileError

COLUMNS = ("path", "label", "group", "session", "truth", "low_loss")


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


def read_manifest(path: Path) -> list[Acquisition]:
    """Read a manifest; relative paths are relative to its folder.

    Parameters
    ----------
    path
        CSV with the columns path, label, group and optionally session, truth, low_loss. An empty group is the
        acquisition itself.

    Raises
    ------
    UnreadableFileError
        If the manifest, or a file it names, cannot be read.
    StudyFileError
        If a column is unknown or missing, a path is empty or given twice, or there are no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            header = reader.fieldnames or []
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFileError(f"manifest {path} cannot be read: {error}") from error
    unknown = [column for column in header if column not in COLUMNS]
    if unknown or "path" not in header:
        raise StudyFileError(
            f"manifest {path} has the columns {list(header)}; expected path, label, group and optionally "
            "session, truth, low_loss"
        )
    if not rows:
        raise StudyFileError(f"manifest {path} names no acquisition; write one row a file")

    values = [{column: (row.get(column) or "").strip() for column in COLUMNS} for row in rows]
    shared = Counter((path.parent / value["path"]).resolve().stem for value in values)
    acquisitions: list[Acquisition] = []
    seen: dict[str, int] = {}
    for number, value in enumerate(values, start=2):
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
        truth = (path.parent / value["truth"]).resolve() if value["truth"] else None
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
            )
        )
    return acquisitions
