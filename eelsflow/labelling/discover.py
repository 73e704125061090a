"""A manifest of the acquisitions below a folder, with what can be known of them without a person."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eelsflow.dataset.labels import read_truth
from eelsflow.dataset.manifest import COLUMNS, read_rows, write_manifest
from eelsflow.describe import describe
from eelsflow.digest import digest_file
from eelsflow.edges import Edge
from eelsflow.errors import EelsflowError, InputError
from eelsflow.io.formats import format_of, is_readable_name
from eelsflow.io.read import read_spectrum_image
from eelsflow.preprocess.chain import check_image
from eelsflow.spectrum_image import energy_axis

MOSTLY_VACUUM = 0.9
"""Share of pixels without specimen from which an acquisition is said to look odd (our choice)."""

TRUTH_SUFFIXES = (".truth.zarr", ".truth.npz", ".npz")
"""What a truth file is called beside NAME.dm3: NAME.truth.zarr as the simulator writes it, or one of the others."""

_LOW_LOSS_STORE = ".low-loss.zarr"
_KIND_WORDS = re.compile(
    r"(?<![^\W_])(low[ _-]?loss|core[ _-]?loss|high[ _-]?loss|zero[ _-]?loss|zlp|ll|hl|low|core|high)(?![^\W_])"
)
_DATE_KEYS = ("acquisition date", "date")


@dataclass
class Discovery:
    """What came of looking for acquisitions.

    Attributes
    ----------
    rows
        Of the whole manifest: the cells by column, those that were there first.
    added, kept
        How many rows are new, and how many were there.
    left_out
        (path, reason) of every file that is no row.
    remarks
        (path, what looks odd) of files that are rows all the same.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    added: int = 0
    kept: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Found:
    """A readable file."""

    path: Path
    sha256: str
    shape: tuple[int, ...]
    date: str
    is_low_loss: bool
    odd: tuple[str, ...] = ()


def write_discovered(
    directory: Path,
    out: Path,
    *,
    edge: Edge,
    classes: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Discovery:
    """Write a manifest of the acquisitions below a folder, or add those that it lacks to one that is there.

    Parameters
    ----------
    directory
        Looked through with all folders in it; hidden ones are left out.
    out
        The manifest. Rows that are there stay as they are.
    edge
        Files that cannot show it are left out.
    classes
        A file is labelled where its name, or else that of a folder above it, holds exactly one of these as a word.
    progress
        Called with (name, done, all).

    Raises
    ------
    InputError
        If there is no such folder, or no acquisition in it and in the manifest.
    StudyFileError, UnreadableFileError
        If a manifest is there that cannot be read.
    OutputPathError
        If it cannot be written.

    Notes
    -----
    Ours, all of it. Session: the folder and the date in the file's metadata, as it is written there. Group: the file's
    own, but one for files of a folder whose names differ by their extension, or by what says core and low loss, alone:
    these are of one scan. Low loss: of the same pixels, an axis that holds 0 eV, and the same name but for such words;
    or the only one beside the only acquisition of a folder.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no folder; name the one that holds the acquisitions")
    discovery, given = Discovery(), set[Path]()
    seen: dict[str, str] = {}
    if out.exists():
        for there in read_rows(out, allow_empty=True):
            discovery.rows.append(there.model_dump(include=set(COLUMNS)))
            given |= {there.resolve(cell) for cell in (there.path, there.low_loss) if cell}
            if there.resolve(there.path).exists():
                seen.setdefault(digest_file(there.resolve(there.path)), there.path)
            else:
                discovery.remarks.append((there.path, "the manifest names it and it is not there; its row was kept"))
        discovery.kept = len(discovery.rows)
    root = out.resolve().parent
    paths = [path for path in _candidates(directory) if path.resolve() not in given and path.resolve() != out.resolve()]
    files = []
    for number, path in enumerate(paths):
        if progress is not None:
            progress(path.name, number, len(paths))
        name = _relative(path, root)
        try:
            found = _look(path, edge)
        except EelsflowError as error:
            discovery.left_out.append((name, " ".join(str(error).split())))
            continue
        if found.sha256 in seen:
            discovery.left_out.append((name, f"the same content as {seen[found.sha256]}"))
            continue
        files.append(found)
    files = _without_aliases(files, discovery, root)
    low_losses = _match_low_losses(files, discovery, root)
    cores = [found for found in files if not found.is_low_loss]
    groups = _groups(cores, root, {row["group"] or Path(row["path"]).stem for row in discovery.rows})
    for found in cores:
        row = dict.fromkeys(COLUMNS, "")
        row["path"] = _relative(found.path, root)
        row["label"], remark = _label_of(found.path, directory, classes)
        discovery.remarks += [(row["path"], text) for text in (*found.odd, remark) if text]
        row["group"] = groups[found.path]
        row["session"] = f"{_folder_name(found.path.parent, directory)} {found.date}".strip()
        if (truth := _truth_of(found.path)) is not None:
            try:
                read_truth(truth, found.shape[:2], name=found.path.name)
                row["truth"] = _relative(truth, root)
            except EelsflowError as error:
                discovery.remarks.append((row["path"], f"{truth.name} beside it is not taken for its truth: {error}"))
        if found.path in low_losses:
            row["low_loss"] = _relative(low_losses[found.path], root)
        discovery.rows.append(row)
    discovery.added = len(cores)
    if not discovery.rows:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in discovery.left_out)
        raise InputError(
            f"no file below {directory} is an acquisition that shows {edge.name}; name another folder or --edge"
            f"{', left out were:' if reasons else ''}{reasons}"
        )
    write_manifest(out, discovery.rows)
    return discovery


def _candidates(directory: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Return what looks like an acquisition or a low loss by its name, below a folder, in order.

    A link to a folder that it lies in leads round in circles, and is not followed.
    """
    above |= {directory.resolve()}
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        one = format_of(path)
        is_folder = path.is_dir()
        looks_readable = is_readable_name(path) or path.name.lower().endswith(_LOW_LOSS_STORE)
        if looks_readable and (not is_folder or (one is not None and one.is_folder)):
            yield path
        elif is_folder and one is None and path.resolve() not in above:
            yield from _candidates(path, above)


def _look(path: Path, edge: Edge) -> _Found:
    """Read a file, and say what looks odd about it.

    Raises
    ------
    EelsflowError
        If it cannot be read, or does not show the edge and is no low loss either.
    """
    image = read_spectrum_image(path)
    axis = energy_axis(image)
    is_low_loss = axis.start < 0 < axis.stop
    found = _Found(path, image.attrs["sha256"], image.shape, _date_of(image.attrs["metadata"]), is_low_loss)
    if is_low_loss:
        return found
    check_image(image, edge=edge)
    described = describe(path, edge=edge)
    if described["energy_offset"] is None:
        raise InputError(" ".join(described["warnings"]) or f"the energy offset at {edge.name} cannot be estimated")
    odd = list(described["warnings"])
    vacuum = described["background_fraction"]
    if vacuum is not None and vacuum > MOSTLY_VACUUM:
        odd.append(f"{vacuum:.0%} of the pixels show no specimen")
    return replace(found, odd=tuple(odd))


def _without_aliases(files: Sequence[_Found], discovery: Discovery, root: Path) -> list[_Found]:
    """Return one file of each content, that with a truth beside it rather than another; name the others."""
    chosen: dict[str, _Found] = {}
    for found in sorted(files, key=lambda one: _truth_of(one.path) is None):
        first = chosen.setdefault(found.sha256, found)
        if first is not found:
            reason = f"the same content as {_relative(first.path, root)}"
            discovery.left_out.append((_relative(found.path, root), reason))
    kept = {found.path for found in chosen.values()}
    return [found for found in files if found.path in kept]


def _date_of(metadata: str) -> str:
    """Return the day of the acquisition as the file has it; empty if it has none."""
    described = json.loads(metadata)
    general = (described.get("metadata") or {}).get("General") or {}
    return str(general.get("date") or "") or _find_date(described.get("original_metadata"))


def _find_date(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    here = [str(item).strip() for name, item in value.items() if name.lower() in _DATE_KEYS and isinstance(item, str)]
    return next(filter(None, itertools.chain(here, map(_find_date, value.values()))), "")


def _same_scan(path: Path) -> tuple[Path, str]:
    """Return what the files of one scan have in common: the folder, and the name without what tells them apart."""
    name = path.name.lower().removesuffix(_LOW_LOSS_STORE).removesuffix(path.suffix.lower())
    return path.parent, " ".join(re.split(r"[\s_.-]+", _KIND_WORDS.sub("", name))).strip()


def _match_low_losses(files: Sequence[_Found], discovery: Discovery, root: Path) -> dict[Path, Path]:
    """Return the low loss of every core loss that has one; what is left over is said."""
    by_scan, by_folder = defaultdict[Any, list[_Found]](list), defaultdict[Any, list[_Found]](list)
    cores_in = defaultdict[Path, int](int)
    for found in files:
        if found.is_low_loss:
            by_scan[_same_scan(found.path)].append(found)
            by_folder[found.path.parent].append(found)
        else:
            cores_in[found.path.parent] += 1
    matched: dict[Path, Path] = {}
    for core in files:
        if core.is_low_loss:
            continue
        named = [low for low in by_scan[_same_scan(core.path)] if low.shape[:2] in (core.shape[:2], (1, 1))]
        alone = by_folder[core.path.parent] if cores_in[core.path.parent] == 1 else []
        near = [low for low in alone if low.shape[:2] == core.shape[:2]]
        for choice in (named, near):
            if len(choice) == 1:
                matched[core.path] = choice[0].path
                break
    for found in files:
        if found.is_low_loss and found.path not in matched.values():
            reason = "it holds the zero loss, and no acquisition beside it is of the same name and pixels"
            discovery.left_out.append((_relative(found.path, root), reason))
    return matched


def _groups(cores: Sequence[_Found], root: Path, taken: set[str]) -> dict[Path, str]:
    """Return the group of every file: its name, or path where that is taken; one for files of one scan."""
    scans = defaultdict[Any, list[_Found]](list)
    for found in cores:
        scans[_same_scan(found.path)].append(found)
    stems = [members[0].path.stem for members in scans.values()]
    groups: dict[Path, str] = {}
    for members in scans.values():
        first = members[0].path
        is_own = stems.count(first.stem) == 1 and first.stem not in taken
        name = first.stem if is_own else str(Path(_relative(first, root)).with_suffix(""))
        groups |= {found.path: name for found in members}
    return groups


def _folder_name(folder: Path, directory: Path) -> str:
    return directory.resolve().name if folder == directory else folder.relative_to(directory).as_posix()


def _label_of(path: Path, directory: Path, classes: Sequence[str]) -> tuple[str, str]:
    """Return the class that a name says, of the file or else of the nearest folder, and a remark if there are two."""
    folders = path.relative_to(directory).parent.parts[::-1]
    for name in (path.stem, *folders):
        words = {word.lower() for word in re.split(r"[\s_.,()\[\]-]+", name)}
        said = [one for one in classes if one.lower() in words]
        if len(said) == 1:
            return said[0], ""
        if said:
            return "", f"{name} names {' and '.join(said)}, so it was left without a label"
    return "", ""


def _truth_of(path: Path) -> Path | None:
    candidates = [path.with_name(path.stem + suffix) for suffix in TRUTH_SUFFIXES]
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _relative(path: Path, root: Path) -> str:
    # by the name that it has here, also where that is a link to elsewhere
    return Path(os.path.relpath(path.parent.resolve() / path.name, root)).as_posix()
