"""Classification maps as a picture, and as TIFF with the pixel size in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import InputError, OutputPathError
from eelsflow.report.style import BLUE, PAGE_WIDTH, class_colors, figure_style, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VACUUM = -1
"""Class index of a pixel without specimen, and of a lost one."""

Extent = tuple[float, float, float, float]
"""Left, right, bottom and top of an image, in units of the pixel size."""

_UNKNOWN: dict[str, Any] = {"edgecolor": "#222222", "linewidth": 0, "hatch": "//////"}
_LOST: dict[str, Any] = {"facecolor": "#555555", "edgecolor": "white", "linewidth": 0, "hatch": "xxxxxx"}
_WARNING_COLUMNS = 125  # letters of a warning's line at page width


@figure_style()
def map_figure(
    classes: Sequence[str],
    class_index: NDArray[np.integer[Any]],
    probability: NDArray[np.floating[Any]],
    *,
    pixel_size: float,
    pixel_unit: str,
    fraction: NDArray[np.floating[Any]] | None = None,
    unknown: NDArray[np.bool_] | None = None,
    lost: NDArray[np.bool_] | None = None,
    t_over_lambda: NDArray[np.floating[Any]] | None = None,
    reach: float = 0.0,
    title: str = "",
    warnings: Sequence[str] = (),
) -> Figure:
    """Draw the class of every pixel beside the probability of that class and the fractions of the classes.

    Parameters
    ----------
    classes
        Names; `class_index` counts them from 0.
    class_index
        Shape (y, x); -1 where there is no specimen, which is left blank. Not modified.
    probability
        Probability of the class given, 0-1, shape (y, x); ignored where there is no specimen. Not modified.
    pixel_size, pixel_unit
        Size of a pixel and its unit: "nm", or "px" where the image is uncalibrated.
    fraction
        Of each class, 0-1, shape (y, x, classes); None draws none. Of two classes one is drawn: the other is the rest.
    unknown
        Pixels whose spectra are unlike all training spectra, shape (y, x): hatched.
    lost
        Pixels that hold no usable spectrum, shape (y, x): dark and cross-hatched. Their class index is -1.
    t_over_lambda
        Thickness in mean free paths, shape (y, x), where there is a low loss: drawn beside the fractions of an image.
    reach
        Over which neighbours were averaged, pixels; drawn beside the scale bar's length.
    title
        Heading.
    warnings
        What must be known before the map is believed; written into the picture, so that it cannot be cut off from it.

    Returns
    -------
    matplotlib.figure.Figure
        An image is drawn with a scale bar. A line scan (one row or column) is drawn as a strip of readable height
        over a curve of the probability, along an axis with the unit.

    Raises
    ------
    InputError
        If the shapes differ, or an index has no class.
    """
    index, confidence = np.asarray(class_index), np.asarray(probability, dtype=np.float64)
    if index.ndim != 2 or index.shape != confidence.shape:
        raise InputError(
            f"class_index has shape {index.shape} and probability {confidence.shape}; a map needs both as (y, x)"
        )
    if index.size and not VACUUM <= index.min() <= index.max() < len(classes):
        raise InputError(
            f"class_index runs from {index.min()} to {index.max()}, but {len(classes)} classes are named: "
            f"expected {VACUUM} (vacuum) to {len(classes) - 1}"
        )
    specimen = index != VACUUM
    confidence = np.where(specimen, confidence, np.nan)
    text = _warning_text(warnings)
    room = 0.15 * (text.count("\n") + 1) + 0.35 if text else 0.0
    if 1 in index.shape:
        figure = _strip(classes, index, confidence, pixel_size, pixel_unit, room, fraction, lost)
    else:
        figure = _image(
            classes, index, confidence, pixel_size, pixel_unit, room, fraction, unknown, lost, t_over_lambda
        )
    if reach:
        length = f"{reach * pixel_size:.3g} {pixel_unit}" if pixel_unit != "px" else f"{reach:.2g} px"
        title = f"{title}   neighbours averaged over {length}" if title else f"neighbours averaged over {length}"
    is_placed = figure.get_layout_engine() is None
    if title:
        top = {"y": 1.0 - 0.06 / figure.get_figheight()} if is_placed else {}
        figure.suptitle(plain(title), x=0.01, ha="left", va="top", fontsize=10, fontweight="bold", **top)
    if text:
        share = room / figure.get_figheight()
        if not is_placed:
            figure.set_layout_engine("constrained", rect=(0.01, share, 0.99, 1 - share))
        figure.text(
            0.012, 0.3 * share, plain(text), ha="left", va="bottom", fontsize=8, color="#6B3B00", in_layout=False,
            bbox={"facecolor": "#FFF4E0", "edgecolor": "#E6A23C", "linewidth": 0.8, "pad": 3},
        )  # fmt: skip
    return figure


def _image(
    classes: Sequence[str],
    index: NDArray[Any],
    confidence: NDArray[Any],
    size: float,
    unit: str,
    room: float,
    fraction: NDArray[Any] | None,
    unknown: NDArray[np.bool_] | None,
    lost: NDArray[np.bool_] | None,
    t_over_lambda: NDArray[Any] | None,
) -> Figure:
    n_y, n_x = index.shape
    drawn = {f"Fraction of {name}": values for name, values in _fractions_to_draw(classes, fraction).items()}
    n_fractions = len(drawn)
    if t_over_lambda is not None:
        drawn["Thickness"] = np.asarray(t_over_lambda, dtype=np.float64)
    n_panels = 2 + len(drawn)
    wide = n_x > 2.5 * n_y
    bars: dict[Axes, Axes] = {}
    if wide:
        figure, panels = _below_each_other(n_panels, n_y / n_x, room)
    else:
        lines = _legend_lines(classes, lost)
        figure, panels, bars = _side_by_side(n_panels, n_y / n_x, room, legend=0.17 * lines)
    extent = (0.0, n_x * size, n_y * size, 0.0)

    def add_bar(axes: Axes, image: Any, label: str) -> None:
        place: dict[str, Any] = {"ax": axes, "location": "right", "pad": 0.03, "shrink": 0.85, "aspect": 6}
        if axes in bars:
            place = {"cax": bars[axes], "orientation": "horizontal"}
        figure.colorbar(image, label=label, **place)

    _draw_classes(panels[0], classes, index, extent)
    _hatch(panels[0], unknown, extent, _UNKNOWN)
    _hatch(panels[0], lost, extent, _LOST)
    _legend(panels[0], classes, index, unknown, lost, below=not wide)
    panels[0].set_title("Class")
    add_bar(panels[1], _draw_confidence(panels[1], classes, confidence, extent), "Probability of the class")
    panels[1].set_title("Confidence")
    for number, (axes, (title, values)) in enumerate(zip(panels[2:], drawn.items(), strict=True)):
        is_fraction = number < n_fractions
        image = _draw_values(axes, index != VACUUM, values, extent, largest=1.0 if is_fraction else None)
        add_bar(axes, image, plain(title if is_fraction else "t/λ"))
        axes.set_title(plain(title))
    _frame(panels, n_x, size, unit)
    return figure


def _below_each_other(n_panels: int, slope: float, room: float) -> tuple[Figure, list[Axes]]:
    """Return panels for images much wider than high, of height over width `slope`, and `room` inches below."""
    height = max((PAGE_WIDTH - 2.4) * slope, 0.6)
    figure = new_figure(PAGE_WIDTH, n_panels * (height + 0.65) + 0.3 + room)
    return figure, list(figure.subplots(n_panels, 1, squeeze=False).ravel())


_HEADING, _TITLE, _BAR, _BELOW, _SIDE = 0.3, 0.24, 0.4, 0.92, 0.12
"""Inches: the heading of a figure, the title of a panel, from a panel down to its colour bar, all that is below it, and
what is free beside it."""


def _side_by_side(
    n_panels: int, slope: float, room: float, *, legend: float
) -> tuple[Figure, list[Axes], dict[Axes, Axes]]:
    """Return panels in rows for images of height over width `slope`, a place for the colour bar of each but the first.

    Below the first is a legend, `legend` inches high; `room` inches are left below all.
    """
    columns = 2 if n_panels == 4 else min(n_panels, 3)
    width = PAGE_WIDTH / columns - _SIDE
    height = min(max(width * slope, 0.6), 5.5)
    rows = [list(range(first, min(first + columns, n_panels))) for first in range(0, n_panels, columns)]
    below = [max(_BELOW, _BAR + legend) if number == 0 else _BELOW for number in range(len(rows))]
    total = _HEADING + sum(_TITLE + height + one for one in below) + room
    figure = new_figure(PAGE_WIDTH, total, is_placed=True)

    def place(left: float, bottom: float, width: float, height: float) -> Axes:
        return figure.add_axes((left / PAGE_WIDTH, bottom / total, width / PAGE_WIDTH, height / total))

    panels, bars, top = [], {}, total - _HEADING
    for row, left_below in zip(rows, below, strict=True):
        bottom = top - _TITLE - height
        for column, number in enumerate(row):
            left = _SIDE / 2 + column * (width + _SIDE)
            panels.append(place(left, bottom, width, height))
            if number:
                bars[panels[-1]] = place(left + 0.075 * width, bottom - _BAR, 0.85 * width, 0.11)
        top = bottom - left_below
    return figure, panels, bars


@figure_style()
def truth_and_map(
    classes: Sequence[str],
    class_index: NDArray[np.integer[Any]],
    probability: NDArray[np.floating[Any]],
    *,
    fraction: NDArray[np.floating[Any]],
    unknown: NDArray[np.bool_],
    lost: NDArray[np.bool_] | None,
    truth: NDArray[np.floating[Any]] | None,
    pixel_size: float,
    pixel_unit: str,
) -> Figure:
    """Draw a map beside what is true: the true fraction, the mapped one, the class and its confidence, in one row.

    Parameters
    ----------
    classes, class_index, probability, fraction, unknown, lost, pixel_size, pixel_unit
        As in `map_figure`.
    truth
        True fraction of each class, shape (y, x, classes); None where it is not known.
    """
    index = np.asarray(class_index)
    n_y, n_x = index.shape
    n_panels = 3 if truth is None else 4
    width = (PAGE_WIDTH - 0.6) / n_panels
    height = min(max(width * n_y / n_x, 0.5), 4.0)
    figure = new_figure(PAGE_WIDTH, height + 0.9 + 0.17 * _legend_lines(classes, lost))
    panels = figure.subplots(1, n_panels, squeeze=False).ravel()
    extent = (0.0, n_x * pixel_size, n_y * pixel_size, 0.0)
    specimen = index != VACUUM
    first = plain(classes[0])
    shown = {} if truth is None else {"Truth": truth[..., 0]}
    bar: dict[str, Any] = {"pad": 0.03, "shrink": 0.9, "location": "bottom"}
    for axes, (name, values) in zip(panels, {**shown, "Map": fraction[..., 0]}.items(), strict=False):
        image = _draw_values(axes, specimen, values, extent)
        figure.colorbar(image, ax=axes, label=f"Fraction of {first}", **bar)
        axes.set_title(f"{name}: fraction")
    axes = panels[-2]
    _draw_classes(axes, classes, index, extent)
    _hatch(axes, unknown, extent, _UNKNOWN)
    _hatch(axes, lost, extent, _LOST)
    _legend(axes, classes, index, unknown, lost, below=True)
    axes.set_title("Map: class")
    image = _draw_confidence(panels[-1], classes, np.where(specimen, probability, np.nan), extent)
    figure.colorbar(image, ax=panels[-1], label="Probability of the class", **bar)
    panels[-1].set_title("Map: confidence")
    _frame(panels, n_x, pixel_size, pixel_unit)
    return figure


def _draw_values(
    axes: Axes, specimen: NDArray[np.bool_], values: NDArray[Any], extent: Extent, *, largest: float | None = 1.0
) -> Any:
    """Draw a map of the specimen's values from 0 to `largest`, or to the largest there is."""
    return axes.imshow(
        np.ma.masked_invalid(np.where(specimen, values, np.nan)), extent=extent, cmap="viridis", vmin=0, vmax=largest,
        interpolation="none", aspect=_aspect(values, extent),
    )  # fmt: skip


def _frame(panels: Iterable[Axes], n_x: int, size: float, unit: str) -> None:
    """Give maps a border and a scale bar in place of axes."""
    from eelsflow.report.figures import draw_scale_bar

    for axes in panels:
        axes.set(xticks=[], yticks=[], anchor="N")
        for spine in axes.spines.values():
            spine.set(visible=True, color="#BBBBBB")
        draw_scale_bar(axes, n_x * size, size, unit)


def _fractions_to_draw(classes: Sequence[str], fraction: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    if fraction is None:
        return {}
    shown = classes[:1] if len(classes) == 2 else classes
    return {name: np.asarray(fraction[..., number], dtype=np.float64) for number, name in enumerate(shown)}


def _hatch(axes: Axes, chosen: NDArray[np.bool_] | None, extent: Extent, style: dict[str, Any]) -> None:
    """Hatch the chosen pixels by rectangles of rows, so that single ones are seen too."""
    if chosen is None or not chosen.any():
        return
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    n_y, n_x = chosen.shape
    width, height = extent[1] / n_x, extent[2] / n_y
    padded = np.pad(chosen, ((0, 0), (1, 1))).astype(np.int8)
    starts, stops = (np.argwhere(np.diff(padded, axis=1) == sign) for sign in (1, -1))
    patches = [
        Rectangle((x * width, y * height), (end - x) * width, height)
        for (y, x), (_, end) in zip(starts, stops, strict=True)
    ]
    looks = [(style, 1.0)]
    if style["edgecolor"] != "white":  # then it is seen on dark colours too
        looks.insert(0, ({**style, "edgecolor": "white"}, 2.0))
    for look, width in looks:
        axes.add_collection(PatchCollection(patches, hatch_linewidth=width, **{"facecolor": "none", **look}))


def _strip(
    classes: Sequence[str],
    index: NDArray[Any],
    confidence: NDArray[Any],
    size: float,
    unit: str,
    room: float,
    fraction: NDArray[Any] | None,
    lost: NDArray[np.bool_] | None,
) -> Figure:
    lost = None if lost is None else lost.reshape(1, -1)
    index, confidence = index.reshape(1, -1), confidence.ravel()
    length = index.size * size
    figure = new_figure(PAGE_WIDTH, 3.0 + room)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(0.7, 1.6))
    extent = (0.0, length, 1.0, 0.0)
    _draw_classes(top, classes, index, extent)
    _hatch(top, lost, extent, _LOST)
    top.set(yticks=[], title="Class")
    top.tick_params(bottom=False, labelbottom=False)
    _legend(top, classes, index, None, lost, below=False)
    places = np.arange(index.size + 1) * size
    bottom.stairs(confidence, places, color=BLUE, linewidth=1.2, baseline=None, label="probability of the class")
    drawn = _fractions_to_draw(classes, fraction)
    for name, values in drawn.items():
        color = class_colors(len(classes))[list(classes).index(name)]
        label = plain(f"fraction of {name}")
        bottom.stairs(values.ravel(), places, color=color, linewidth=1.2, linestyle="--", baseline=None, label=label)
    if drawn:
        bottom.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    bottom.set(
        ylim=(0, 1.02), xlim=(0, length), title="Confidence", xlabel=plain(f"Position ({unit})"), ylabel="Probability"
    )
    bottom.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    return figure


def _draw_classes(axes: Axes, classes: Sequence[str], index: NDArray[Any], extent: Extent) -> None:
    from matplotlib.colors import ListedColormap

    axes.imshow(
        np.ma.masked_equal(index, VACUUM), extent=extent, cmap=ListedColormap(class_colors(len(classes))),
        vmin=-0.5, vmax=len(classes) - 0.5, interpolation="none", aspect=_aspect(index, extent),
    )  # fmt: skip


def _draw_confidence(axes: Axes, classes: Sequence[str], confidence: NDArray[Any], extent: Extent) -> Any:
    # The most probable of n classes has at least 1/n: below it the scale would be empty.
    return axes.imshow(
        np.ma.masked_invalid(confidence), extent=extent, cmap="cividis", vmin=1 / max(len(classes), 2), vmax=1,
        interpolation="none", aspect=_aspect(confidence, extent),
    )  # fmt: skip


def _aspect(array: NDArray[Any], extent: Extent) -> Literal["auto", "equal"]:
    """Pixels are square, unless that would make a sliver of the image."""
    n_y, n_x = array.shape
    return "auto" if 1 in array.shape or n_x > 16 * n_y or n_y > 16 * n_x else "equal"


def _legend_lines(classes: Sequence[str], lost: NDArray[np.bool_] | None) -> int:
    """Return how many lines of a legend below a map to leave room for."""
    return len(classes) + 2 + (lost is not None and bool(lost.any()))


def _legend(
    axes: Axes,
    classes: Sequence[str],
    index: NDArray[Any],
    unknown: NDArray[np.bool_] | None,
    lost: NDArray[np.bool_] | None,
    *,
    below: bool,
) -> None:
    from matplotlib.patches import Patch

    n_specimen = int((index != VACUUM).sum())
    handles = []
    for number, (name, color) in enumerate(zip(classes, class_colors(len(classes)), strict=True)):
        n_pixels = int((index == number).sum())
        share = f", {n_pixels / n_specimen:.0%}" if n_specimen else ""
        handles.append(Patch(facecolor=color, label=plain(f"{name}: {n_pixels:,} px{share}")))
    n_lost = 0 if lost is None else int(lost.sum())
    vacuum = f"vacuum: {index.size - n_specimen - n_lost:,} px"
    handles.append(Patch(facecolor="white", edgecolor="#BBBBBB", label=vacuum))
    for name, chosen, style in (("unknown", unknown, _UNKNOWN), ("lost", lost, _LOST)):
        if chosen is not None and chosen.any():
            handles.append(Patch(**{"facecolor": "white", **style}, label=f"{name}: {chosen.sum():,} px"))
    place: dict[str, Any] = (
        {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 2.8}
        if below
        else {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
    )
    axes.legend(handles=handles, **place)


def _warning_text(warnings: Sequence[str]) -> str:
    import textwrap

    return "\n".join(line for warning in warnings for line in textwrap.wrap(f"Warning: {warning}", _WARNING_COLUMNS))


def save_map_tiff(path: Path, array: NDArray[Any], pixel_size_nm: float | None) -> None:
    """Write a map as TIFF that ImageJ opens with its scale.

    Parameters
    ----------
    path
        Replaced if it exists; whole or not at all.
    array
        Shape (y, x). Boolean becomes 8 bit, other integers 16 bit (signed where there are negative ones), numbers
        with a fraction 32 bit. Not modified.
    pixel_size_nm
        Size of a pixel, nm; None writes no scale.

    Raises
    ------
    InputError
        If the array is not an image, or has integers that 16 bit cannot hold.
    OutputPathError
        If the file cannot be written.

    Notes
    -----
    ImageJ reads the unit from its own text in the description, and pixels per unit from the resolution tags.
    """
    import tifffile

    image = _for_imagej(np.asarray(array))
    options: dict[str, Any] = {"metadata": {"axes": "YX"}}
    if pixel_size_nm is not None:
        options = {"resolution": (1 / pixel_size_nm,) * 2, "metadata": {"axes": "YX", "unit": "nm"}}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        tifffile.imwrite(temporary, image, imagej=True, **options)
        temporary.replace(path)
    except OSError as error:
        raise OutputPathError(
            f"cannot write {path}: {error.strerror or error}; name a directory to write to"
        ) from error


def _for_imagej(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in one of the types that ImageJ knows."""
    if array.ndim != 2 or not array.size:
        raise InputError(f"the map has shape {array.shape}; an image needs (y, x) with at least one pixel")
    if array.dtype == bool:
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return array
    target = np.int16 if array.min() < 0 else np.uint16
    if not np.iinfo(target).min <= array.min() <= array.max() <= np.iinfo(target).max:
        raise InputError(
            f"the map holds integers from {array.min()} to {array.max()}, which 16 bit cannot hold; convert it to "
            "32-bit floating point first"
        )
    return array.astype(target)
