"""Regions that a person drew, and the truth of every pixel that follows from them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eelsflow.dataset.labels import MIXED, UNLABELLED
from eelsflow.errors import InputError, OutputPathError, UnreadableFileError
from eelsflow.io.damage import PICKLED, is_about_pickles
from eelsflow.store import make_directory

NOT_LABELLED = -1
"""Code of pixels that nobody said anything of."""

SCHEMA = "eelsflow-regions/1"

Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]
Point = tuple[Coordinate, Coordinate]
"""x and y in pixels: (0, 0) is the corner of the first pixel, whose centre is (0.5, 0.5); y points down."""


class Region(BaseModel):
    """One region: a polygon, or the stroke of a brush.

    `label` (in JSON ``class``) is a class; "mixed" for a mixture, or none of the classes; "" to take a label away.
    A pixel belongs to a polygon where its centre lies inside (even-odd rule), to a brush where its centre lies within
    `radius` pixels of the stroke.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    label: Annotated[str, Field(alias="class", max_length=60)]
    polygon: tuple[Point, ...] = ()
    brush: tuple[Point, ...] = ()
    radius: Annotated[float, Field(gt=0, le=1000)] = 1.0

    @model_validator(mode="after")
    def _is_one_shape(self) -> Self:
        if bool(self.polygon) == bool(self.brush) or (self.polygon and len(self.polygon) < 3):
            raise ValueError("a region is a polygon of three points or more, or a brush of one or more")
        return self

    def pixels(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which pixels of an image of this shape (y, x) it holds, same shape."""
        points = np.array(self.polygon or self.brush)
        reach = 0.0 if self.polygon else self.radius
        low, high = np.floor(points.min(axis=0) - reach), np.ceil(points.max(axis=0) + reach)
        columns, rows = (
            slice(int(np.clip(first, 0, n)), int(np.clip(last, 0, n)))
            for first, last, n in zip(low, high, shape[::-1], strict=True)
        )
        held = np.zeros(shape, dtype=bool)
        near = held[rows, columns]
        y, x = np.mgrid[rows, columns] + 0.5
        if self.polygon:
            near[:] = _inside(x, y, points)
        for start, end in zip(points, [*points[1:], points[-1]], strict=True) if self.brush else ():
            near |= _squared_distance(x, y, start, end) <= self.radius**2
        return held

    def to_json(self) -> dict[str, Any]:
        """Return it as the JSON value that it is read from."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _inside(x: NDArray[np.float64], y: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Count the sides that a ray to the right crosses; a side holds its upper end and not its lower one."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 <= y) != (y1 <= y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def _squared_distance(
    x: NDArray[np.float64], y: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    along = end - start
    length = float(along @ along)
    share = np.zeros(x.shape)
    if length:
        share = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / length, 0.0, 1.0)
    return np.asarray((x - start[0] - share * along[0]) ** 2 + (y - start[1] - share * along[1]) ** 2)


def parse_regions(value: Any, classes: Sequence[str], *, where: str) -> list[Region]:
    """Return regions from JSON values.

    Parameters
    ----------
    value
        A list of regions, or ``{"regions": [...]}``.
    classes
        The classes that a region may have.
    where
        What they come from, for messages.

    Raises
    ------
    InputError
        If they are no regions, or are of other classes.
    """
    listed = value.get("regions") if isinstance(value, dict) else value
    if not isinstance(listed, list):
        raise InputError(
            f"{where} holds {type(value).__name__} and no list of regions; expected "
            '[{"class": "FeO", "polygon": [[x, y], [x, y], [x, y]]}, ...], x and y in pixels'
        )
    regions = []
    for number, one in enumerate(listed, start=1):
        try:
            region = Region.model_validate(one)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise InputError(
                f"{where}: region {number} cannot be used: {place}{': ' if place else ''}"
                f"{problem['msg'].removeprefix('Value error, ')}; expected "
                '{"class": "FeO", "polygon": [[x, y], [x, y], [x, y]]}, x and y in pixels'
            ) from error
        if region.label not in (*classes, MIXED, UNLABELLED):
            raise InputError(
                f"{where}: region {number} has the class {region.label!r}, which is none of {list(classes)} (nor "
                f"{MIXED!r}, nor '' to take a label away); correct it, or name it in --classes"
            )
        regions.append(region)
    return regions


def draw_labels(regions: Sequence[Region], shape: tuple[int, int], codes: dict[str, int]) -> NDArray[np.int16]:
    """Return the code of every pixel's label, shape (y, x); of regions that overlap the later ones win.

    Parameters
    ----------
    regions
        What was drawn.
    shape
        Pixels (y, x) of the acquisition.
    codes
        Of each label, see `label_codes`.
    """
    labels = np.full(shape, NOT_LABELLED, dtype=np.int16)
    for region in regions:
        labels[region.pixels(shape)] = codes[region.label]
    return labels


def label_codes(classes: Sequence[str]) -> dict[str, int]:
    """Return the code of each label: classes in their order, then "mixed"; -1 for no label.

    >>> label_codes(["FeO", "Fe3O4"])
    {'FeO': 0, 'Fe3O4': 1, 'mixed': 2, '': -1}
    """
    return {**{name: number for number, name in enumerate([*classes, MIXED])}, UNLABELLED: NOT_LABELLED}


def phase_fraction(labels: NDArray[np.int16], n_classes: int) -> NDArray[np.float32]:
    """Return the truth that a study reads: the fraction of each class in every pixel, shape (class, y, x).

    1 for the pixel's class and 0 for the others; 0 for all where it was labelled as mixed or none of them; NaN for all
    where it was not labelled. Neither 0 nor NaN throughout is trained on or scored: a pixel counts to a class from
    `eelsflow.dataset.labels.PURE_FRACTION` on, and a map is scored where fractions add up to more than one half.
    """
    fraction = np.where(labels == np.arange(n_classes)[:, None, None], np.float32(1.0), np.float32(0.0))
    fraction[:, labels == NOT_LABELLED] = np.nan
    return fraction


class Drawing(BaseModel):
    """What a truth file says of one acquisition: its classes, the regions, and which acquisition it is."""

    model_config = ConfigDict(frozen=True)

    classes: tuple[str, ...]
    regions: tuple[Region, ...] = ()
    shape: tuple[int, int]
    sha256: str

    @property
    def labels(self) -> NDArray[np.int16]:
        """The code of every pixel's label, shape (y, x)."""
        return draw_labels(self.regions, self.shape, label_codes(self.classes))

    def counts(self) -> dict[str, int]:
        """Return the number of pixels of each class, and of mixed ones."""
        labels = self.labels
        return {name: int((labels == code).sum()) for name, code in label_codes(self.classes).items() if name}


def read_drawing(path: Path) -> Drawing:
    """Read a truth file that `write_drawing` wrote, to go on with it.

    Raises
    ------
    UnreadableFileError
        If it cannot be read, or was not drawn here: it holds no regions then, and saving would lose what it says.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            described = json.loads(str(arrays["regions"])) if "regions" in arrays.files else None
    except Exception as error:  # zipfile.BadZipFile, zlib.error and numpy's errors share no base class
        reason = PICKLED if is_about_pickles(error) else f"cannot be read ({error})"
        raise UnreadableFileError(f"{path} {reason}; name another truth file (--out), or remove it") from error
    if not isinstance(described, dict) or described.get("schema") != SCHEMA:
        raise UnreadableFileError(
            f"{path} exists and holds no regions that were drawn here (schema {SCHEMA}), so that what it says would be "
            "lost; name another truth file (--out)"
        )
    try:
        return Drawing.model_validate({name: described.get(name) for name in Drawing.model_fields})
    except ValidationError as error:
        raise UnreadableFileError(
            f"the regions in {path} are damaged ({error.errors(include_url=False)[0]['msg']}); name another truth file"
        ) from error


def write_drawing(drawing: Drawing, path: Path) -> None:
    """Write the truth file that a manifest's column ``truth`` takes, whole or not at all.

    It is an npz with ``phase_fraction`` (phase, y, x), see `phase_fraction`, ``phase``, and ``regions``, as JSON, from
    which `read_drawing` goes on.

    Raises
    ------
    InputError
        If no pixel is labelled: an empty file would take the place of one that says something.
    OutputPathError
        If it is no npz, or cannot be written.
    """
    if path.suffix.lower() != ".npz":
        raise OutputPathError(f"a truth file is written as .npz, and {path} is none; name it so")
    labels = drawing.labels
    if not (labels != NOT_LABELLED).any():
        raise InputError(
            "no pixel is labelled, so nothing was written; draw a region first (to be rid of a truth file, delete it)"
        )
    make_directory(path.parent)
    described = {
        "schema": SCHEMA,
        "classes": list(drawing.classes),
        "shape": list(drawing.shape),
        "sha256": drawing.sha256,
        "regions": [region.to_json() for region in drawing.regions],
    }
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as stream:
            np.savez_compressed(
                stream,
                allow_pickle=False,
                phase_fraction=phase_fraction(labels, len(drawing.classes)),
                phase=np.array(drawing.classes),
                regions=np.array(json.dumps(described)),
            )
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputPathError(f"cannot write {path}: {error.strerror or error}; name another --out") from error


def start_drawing(path: Path, *, classes: Sequence[str], shape: tuple[int, int], sha256: str) -> Drawing:
    """Return the drawing that a truth file holds, with the classes asked for added; an empty one where there is none.

    Raises
    ------
    UnreadableFileError
        See `read_drawing`.
    InputError
        If there are no classes, one is called "mixed", or the file is of another acquisition.
    """
    found = read_drawing(path) if path.exists() else None
    if found is not None and (found.shape != shape or found.sha256 != sha256):
        raise InputError(
            f"{path} was drawn on another acquisition (of {found.shape[0]} x {found.shape[1]} pixels, this one has "
            f"{shape[0]} x {shape[1]}, or of other content); name another truth file (--out)"
        )
    names = tuple(dict.fromkeys([*(found.classes if found else ()), *classes]))
    if not names:
        raise InputError("no classes are known; name them, as --classes FeO,Fe3O4")
    if MIXED in names or UNLABELLED in names:
        raise InputError(
            f"the classes are {list(names)}; none of them may be empty or {MIXED!r}, which is there anyway: "
            "name others, as --classes FeO,Fe3O4"
        )
    return Drawing(classes=names, regions=found.regions if found else (), shape=shape, sha256=sha256)
