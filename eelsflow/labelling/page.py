"""The page that regions are drawn on: what BokehJS draws, as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.dataset.labels import MIXED
from eelsflow.labelling.field import Field
from eelsflow.labelling.regions import Drawing
from eelsflow.report.style import GREY, class_colors

PALETTE = "Greys256"
"""Of what is measured: grey, so that the colours of classes are seen on it."""

NOTHING_KNOWN = "#d6e6f2"
"""A pale blue, which is no grey: without specimen, or where a layer says nothing."""


@dataclass(frozen=True)
class Layer:
    """One picture of the acquisition.

    Attributes
    ----------
    name
        As the page calls it.
    values
        Shape (y, x), or (y, x, 3) of red, green and blue from 0 to 1; NaN is drawn as the background.
    classes
        What the whole numbers stand for, with their colours; None: grey from the least value to the greatest.
    """

    name: str
    values: NDArray[np.floating]
    classes: dict[str, str] | None = None


def colors_of(drawing: Drawing, field: Field) -> dict[str, str]:
    """Return the colour of each class that is drawn, or that the model knows."""
    names = list(dict.fromkeys([*drawing.classes, *(field.mapped.classes if field.mapped else ())]))
    return dict(zip(names, class_colors(len(names)), strict=True))


def layers_of(field: Field, colors: dict[str, str]) -> list[Layer]:
    """Return the pictures of an acquisition, the first to be shown first; a class has the same colour everywhere."""
    components = field.components
    layers = [
        Layer("Strength of the edge (counts)", field.strength.astype(np.float64)),
        Layer("Principal components 1, 2, 3 as red, green, blue", components),
        *(Layer(f"Principal component {k + 1}", components[..., k]) for k in range(components.shape[-1])),
    ]
    if field.mapped is not None:
        index = np.where(field.specimen, field.mapped.class_index, np.nan)
        layers += [
            Layer("Class by the model", index, {name: colors[name] for name in field.mapped.classes}),
            Layer("Confidence of the model", field.mapped.confidence),
        ]
    if field.doubt is not None:
        layers.append(Layer("Doubt of the model, mixtures left out", field.doubt))
    return [layer for layer in layers if np.isfinite(layer.values).any()]


def page_content(field: Field, drawing: Drawing, *, truth: Path, manifest: Path | None) -> dict[str, Any]:
    """Return all that the page is made of, as JSON values.

    Parameters
    ----------
    field, drawing
        The acquisition, and what was drawn on it before.
    truth, manifest
        Where Save writes.
    """
    from bokeh.embed import json_item

    colors = colors_of(drawing, field)
    layers = layers_of(field, colors)
    labels = {name: colors[name] for name in drawing.classes} | {MIXED: GREY}
    return {
        "name": field.name,
        "truth": str(truth),
        "manifest": str(manifest) if manifest is not None else None,
        "shape": list(field.shape),
        "classes": [{"name": name, "color": color} for name, color in labels.items()],
        "mixed": MIXED,
        "regions": [region.to_json() for region in drawing.regions],
        "layers": [{"name": layer.name, "classes": list(layer.classes or ())} for layer in layers],
        "suggested": [
            {"box": list(one.box), "pixels": one.pixels, "doubt": one.doubt, "lines": outline(one.members)}
            for one in field.suggested
        ],
        "map": json_item(_map_figure(field, layers)),
        "spectra": json_item(_spectra_figure(labels, field.energy_loss)),
    }


def outline(members: tuple[tuple[int, int], ...]) -> list[list[list[int]]]:
    """Return the borders of pixels (y, x) with what is around them, each from (x, y) to (x, y).

    >>> outline(((0, 0),))
    [[[0, 0], [1, 0]], [[0, 1], [1, 1]], [[0, 0], [0, 1]], [[1, 0], [1, 1]]]
    """
    held, lines = set(members), []
    for y, x in members:
        for (dy, dx), line in (
            ((-1, 0), [[x, y], [x + 1, y]]),
            ((1, 0), [[x, y + 1], [x + 1, y + 1]]),
            ((0, -1), [[x, y], [x, y + 1]]),
            ((0, 1), [[x + 1, y], [x + 1, y + 1]]),
        ):
            if (y + dy, x + dx) not in held:
                lines.append(line)
    return lines


def _map_figure(field: Field, layers: list[Layer]) -> Any:
    from bokeh.models import (
        BoxSelectTool,
        ColumnDataSource,
        FreehandDrawTool,
        LassoSelectTool,
        LinearColorMapper,
        PanTool,
        Range1d,
        ResetTool,
        WheelZoomTool,
    )
    from bokeh.models.annotations import ColorBar
    from bokeh.plotting import figure

    n_y, n_x = field.shape
    plot: Any = figure(
        name="map",
        x_range=Range1d(start=0, end=n_x),
        y_range=Range1d(start=n_y, end=0),  # rows from the top, as they were scanned
        match_aspect=True,
        sizing_mode="stretch_both",
        toolbar_location=None,
        tools=[],
        background_fill_color=NOTHING_KNOWN,
        output_backend="canvas",
    )
    plot.axis.axis_label_text_font_style = "normal"
    plot.xaxis.axis_label, plot.yaxis.axis_label = "x (pixels)", "y (pixels)"
    plot.grid.visible = False
    where: dict[str, Any] = {"x": 0, "y": 0, "dw": n_x, "dh": n_y}
    for number, layer in enumerate(layers):
        name, visible = f"layer-{number}", number == 0
        if layer.values.ndim == 3:
            plot.image_rgba(image=[_rgba(layer.values)], **where, name=name, visible=visible)
            continue
        low, high = float(np.nanmin(layer.values)), float(np.nanmax(layer.values))
        if layer.classes is None:
            mapper = LinearColorMapper(palette=PALETTE, low=low, high=high if high > low else low + 1.0)
        else:
            mapper = LinearColorMapper(palette=list(layer.classes.values()), low=-0.5, high=len(layer.classes) - 0.5)
        mapper.nan_color = NOTHING_KNOWN
        values = layer.values.astype(np.float32)
        plot.image(image=[values], **where, color_mapper=mapper, name=name, visible=visible)
        if layer.classes is None:
            bar = ColorBar(color_mapper=mapper, name=f"bar-{number}", visible=visible, height=10, padding=4)
            plot.add_layout(bar, "below")
    plot.image_rgba(image=[np.zeros((n_y, n_x), dtype=np.uint32)], **where, name="labels")
    empty: dict[str, Any] = {"xs": [], "ys": [], "color": []}
    plot.multi_line("xs", "ys", source=ColumnDataSource(empty), line_color="white", line_width=3.5, name="halo")
    plot.multi_line("xs", "ys", source=ColumnDataSource(empty), line_color="color", line_width=1.8, name="outlines")
    for name, color, dash in (("suggested-halo", "white", "solid"), ("suggested", "black", [5, 3])):
        plot.multi_line("xs", "ys", source=ColumnDataSource({"xs": [], "ys": []}), line_color=color,
                        line_width=2, line_dash=dash, name=name)  # fmt: skip
    corners = ColumnDataSource({"x": [], "y": []}, name="corners")
    plot.line("x", "y", source=corners, line_color="white", line_width=4)
    plot.line("x", "y", source=corners, line_color="black", line_width=2, line_dash=[4, 3])
    plot.scatter("x", "y", source=corners, size=7, fill_color="white", line_color="black")
    stroke = plot.multi_line(
        "xs", "ys", source=ColumnDataSource({"xs": [], "ys": []}), name="stroke", line_color="black", line_alpha=0.5,
        line_width=2, line_cap="round", line_join="round",
    )  # fmt: skip
    tools = [
        LassoSelectTool(name="lasso", renderers=[], continuous=True),
        BoxSelectTool(name="rectangle", renderers=[], continuous=True),
        FreehandDrawTool(name="brush", renderers=[stroke], num_objects=1),
        PanTool(name="pan"),
        WheelZoomTool(name="zoom"),
        ResetTool(name="reset"),
    ]
    plot.add_tools(*tools)
    plot.toolbar.active_drag = None
    plot.toolbar.active_scroll = tools[4]
    plot.toolbar.autohide = True
    return plot


def _spectra_figure(colors: dict[str, str], energy_loss: NDArray[np.float64]) -> Any:
    from bokeh.models import ColumnDataSource, Range1d
    from bokeh.plotting import figure

    plot: Any = figure(
        name="spectra", sizing_mode="stretch_both", toolbar_location=None, tools=[], x_axis_label="Energy loss (eV)",
        y_axis_label="Intensity (mean of the window = 1)", y_range=Range1d(start=-0.2, end=3.0),
        x_range=Range1d(start=float(energy_loss[0]), end=float(energy_loss[-1])),
    )  # fmt: skip
    plot.axis.axis_label_text_font_style = "normal"
    plot.grid.grid_line_alpha = 0.4
    dashes = ("solid", "dashed", "dotdash", "dotted", "dashdot")
    for number, (name, color) in enumerate([*colors.items(), ("", "#000000")]):
        source = ColumnDataSource({"x": [], "mean": [], "low": [], "high": []}, name=f"spectrum-{name}")
        plot.varea("x", "low", "high", source=source, fill_color=color, fill_alpha=0.25)
        width, dash = (2.0, dashes[number % len(dashes)]) if name else (1.2, "solid")
        plot.line("x", "mean", source=source, line_color=color, line_width=width, line_dash=dash)
    return plot


def _rgba(components: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Return colours (y, x) of components (y, x, 3), transparent where one is not known."""
    known = np.isfinite(components).any(axis=-1)
    rgba = np.zeros((*components.shape[:2], 4), dtype=np.uint8)
    rgba[..., :3] = np.round(255 * np.nan_to_num(components))
    rgba[..., 3] = np.where(known, 255, 0)
    return rgba.view(np.uint32)[..., 0]
