"""What the commands call: regions from a file to a truth file, and the page for a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from eelsflow.dataset.aside import SetAside
from eelsflow.dataset.manifest import name_truth, read_rows, row_of
from eelsflow.edges import Edge, resolve_edge
from eelsflow.errors import InputError, UnreadableFileError
from eelsflow.io.read import read_spectrum_image
from eelsflow.labelling.field import open_field
from eelsflow.labelling.regions import Drawing, parse_regions, start_drawing, write_drawing
from eelsflow.labelling.serve import Session
from eelsflow.labelling.suggest import Suggestion, suggest
from eelsflow.maps.mapping import DEFAULT_EDGE
from eelsflow.maps.registry import find_model
from eelsflow.models.bundle import ModelBundle


def truth_beside(path: Path) -> Path:
    """Return the truth file of an acquisition where none is named: NAME.truth.npz beside it."""
    return path.with_name(f"{path.stem}.truth.npz")


def label_from_file(
    path: Path, regions: Path, *, truth: Path, classes: Sequence[str] = (), manifest: Path | None = None
) -> Drawing:
    """Label an acquisition by regions from a file; nobody has to draw.

    Parameters
    ----------
    path
        A readable acquisition.
    regions
        JSON: a list of ``{"class": "FeO", "polygon": [[x, y], ...]}``, or ``{"regions": [...], "classes": [...]}``.
    truth
        The file to write. Regions that are in it already stay; the new ones come after them, and win.
    classes
        Beside those that the two files name.
    manifest
        Whose row of the acquisition is to name the truth.

    Raises
    ------
    EelsflowError
        If a file cannot be read or written, or the regions are none.
    """
    if manifest is not None:
        row_of(manifest, path)  # refused before anything is written
    try:
        content = json.loads(regions.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableFileError(f"regions cannot be read from {regions}: {error}; expected a JSON file") from error
    named = content.get("classes", []) if isinstance(content, dict) else []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InputError(f'{regions}: "classes" is {named!r}; expected a list of names, such as ["FeO", "Fe3O4"]')
    drawing = _start(path, truth, [*classes, *named])
    found = tuple(parse_regions(content, drawing.classes, where=str(regions)))
    for number, region in enumerate(found, start=1):
        if not region.pixels(drawing.shape).any():
            n_y, n_x = drawing.shape
            raise InputError(
                f"{regions}: region {number} holds the centre of no pixel of {path.name}, which has {n_x} x {n_y}; "
                "coordinates are x, y in pixels from the upper left corner"
            )
    if drawing.regions[-len(found) :] != found:  # the same file once more adds nothing
        drawing = drawing.model_copy(update={"regions": (*drawing.regions, *found)})
    write_drawing(drawing, truth)
    if manifest is not None:
        name_truth(manifest, path, truth)
    return drawing


def open_session(
    path: Path,
    *,
    truth: Path,
    classes: Sequence[str] = (),
    model: str | None = None,
    edge: Edge | None = None,
    low_loss: Path | None = None,
    manifest: Path | None = None,
    say: Callable[[str], None],
) -> Session:
    """Prepare an acquisition for the page.

    Parameters
    ----------
    path, truth, classes, manifest
        As in `label_from_file`; classes are those of the model, or of the manifest, where none are named anywhere.
    model
        What `find_model` takes; it maps the acquisition, and says where it doubts.
    edge
        By default that of the model, or O_K.
    low_loss
        The file of the low loss of the same scan.
    say
        Told what takes a while.

    Raises
    ------
    EelsflowError
        If the acquisition, the model or the truth file cannot be used.
    """
    if manifest is not None:
        row_of(manifest, path)  # refused before she draws
    bundle = ModelBundle.load(find_model(model, edge=edge.name if edge else None)) if model is not None else None
    if not classes and bundle is not None and not truth.exists():
        classes = bundle.classes
    if not classes and manifest is not None and not truth.exists():
        classes = sorted({row.label for row in read_rows(manifest)} - {""})
    drawing = _start(path, truth, classes)
    say(f"preparing {path.name}")
    chosen: Edge = bundle.edge if bundle is not None else edge or resolve_edge(DEFAULT_EDGE)
    field = open_field(path, edge=chosen, model=bundle, low_loss=low_loss)
    return Session(field, drawing, truth, manifest=manifest, acquisition=path)


def suggest_next(
    files: Sequence[Path], *, model: str, progress: Callable[[str, int, int], None] | None = None
) -> tuple[list[Suggestion], list[SetAside]]:
    """Rank what to label next; of a manifest the rows that have neither label nor truth.

    Parameters
    ----------
    files
        Acquisitions, or one manifest.
    model
        What `find_model` takes.
    progress
        Called with (name, done, all).

    Raises
    ------
    EelsflowError
        If the manifest or the model cannot be used, or everything is labelled.
    """
    if len(files) == 1 and files[0].suffix.lower() == ".csv":
        rows = read_rows(files[0])
        acquisitions = [
            (row.path, row.resolve(row.path), row.resolve(row.low_loss) if row.low_loss else None)
            for row in rows
            if not (row.label or row.truth)
        ]
        if not acquisitions:
            raise InputError(f"all {len(rows)} rows of {files[0]} have a label or a truth; there is nothing to propose")
    else:
        acquisitions = [(str(path), path, None) for path in files]
    bundle = ModelBundle.load(find_model(model))
    ranked, aside = suggest(acquisitions, bundle, progress=progress)
    if not ranked:
        raise InputError("no acquisition can be used:" + "".join(f"\n  {a.acquisition}: {a.reason}" for a in aside))
    return ranked, aside


def format_ranked(ranked: Sequence[Suggestion]) -> str:
    """Return what to label next as lines for a terminal, the most useful first."""
    lines = []
    for number, one in enumerate(ranked, start=1):
        shares = ", ".join(f"{name} {share:.0%}" for name, share in one.shares.items())
        lines.append(
            f"{number}. {one.acquisition}: score {one.score:.3f} ({shares}; doubt {one.doubt:.2f}, distance "
            f"{one.distance:.2f} of the limit, unknown {one.unknown:.0%})"
        )
        for region in one.regions:
            y0, x0, y1, x1 = region.box
            lines.append(f"     y {y0}-{y1 - 1}, x {x0}-{x1 - 1}: {region.pixels} pixels, doubt {region.doubt:.2f}")
    return "\n".join(lines)


def _start(path: Path, truth: Path, classes: Sequence[str]) -> Drawing:
    image = read_spectrum_image(path)
    n_y, n_x = image.shape[:2]
    return start_drawing(truth, classes=classes, shape=(n_y, n_x), sha256=image.attrs["sha256"])


def describe_counts(drawing: Drawing) -> str:
    """Return how many pixels each class has, in words.

    >>> describe_counts(Drawing(classes=("FeO",), shape=(2, 2), sha256=""))
    'FeO 0, mixed 0 of 4 pixels'
    """
    total = drawing.shape[0] * drawing.shape[1]
    return f"{', '.join(f'{name} {n}' for name, n in drawing.counts().items())} of {total} pixels"
