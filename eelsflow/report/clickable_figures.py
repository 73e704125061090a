"""The figures of a map that one can click, as the document that BokehJS draws; the page's script fills them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from eelsflow.report.style import BLACK, GREY, SKY, VERMILION, class_colors

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource, ScaleBar
    from bokeh.plotting import figure

COLORS = {
    "recorded": GREY, "background": BLACK, "prepared": SKY, "mixture": BLACK, "residual": VERMILION,
    "noise": "#C9CFD6", "spread": "#ECEFF2",
}  # fmt: skip
"""Of the lines and bands; classes have their own."""

_LEFT, _RIGHT = 66, 14  # pixels of the screen beside every frame, so that panels stand below one another
_TEXT, _GRID = "#1c2430", "#e6e9ed"
_DASHES = ("dashed", "dotted")  # classes are told apart without colours too
_ROUND = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]  # pixels, of a scale bar


@dataclass(frozen=True)
class Layer:
    """What the map may show.

    Attributes
    ----------
    name
        Of the map's numbers.
    title, label
        In the list, and beside the colours, with the unit.
    low, high
        Ends of the colours.
    palette
        Of `palettes`.
    hatched
        Whether unknown pixels are hatched.
    """

    name: str
    title: str
    label: str
    low: float
    high: float
    palette: str = "viridis"
    hatched: bool = False


def palettes(n_classes: int) -> dict[str, list[str]]:
    """Return the colours by the names that layers give them."""
    from bokeh.palettes import Cividis256, Viridis256

    return {"classes": class_colors(n_classes), "viridis": list(Viridis256), "cividis": list(Cividis256)}


@lru_cache(maxsize=8)
def draw_figures(n_classes: int, unit: str) -> str:
    """Return the figures as JSON: ``document``, and ``roots``, the name of each of its roots by its id.

    They are empty, and the page's script gives them axes and numbers: to build them takes longer than all the rest, and
    maps of the same number of classes and unit of the pixel size share them. The same bytes each time: Bokeh's ids,
    which count all that a process has drawn, are counted anew.
    """
    from bokeh.document import Document

    document = Document()
    drawn = [_draw_map(n_classes, unit), *_draw_panels(n_classes)]
    for one in drawn:
        document.add_root(one)
    ids: dict[str, str] = {}
    content = _with_own_ids(document.to_json(deferred=False), ids)
    return json.dumps({"document": content, "roots": {ids[one.id]: one.name for one in drawn}}, separators=(",", ":"))


def _with_own_ids(value: Any, ids: dict[str, str]) -> Any:
    """Return JSON with its ids replaced by the order of their appearance, which `ids` keeps."""
    if isinstance(value, list):
        return [_with_own_ids(item, ids) for item in value]
    if not isinstance(value, dict):
        return value
    if "id" in value:  # of the object itself, which comes before those that it holds
        ids.setdefault(value["id"], f"m{len(ids)}")
    return {name: ids[item] if name == "id" else _with_own_ids(item, ids) for name, item in value.items()}


def _draw_map(n_classes: int, unit: str) -> figure:
    from bokeh.models import (
        BoxSelectTool,
        ColorBar,
        LinearColorMapper,
        PanTool,
        Range1d,
        ResetTool,
        SaveTool,
        WheelZoomTool,
    )

    select = BoxSelectTool(renderers=[])
    drawn = _figure(
        "map",
        x_range=Range1d(0, 1),
        y_range=Range1d(1, 0),  # the first row is the uppermost
        tools=[select, PanTool(), WheelZoomTool(), ResetTool(), SaveTool()],
        active_drag=select,
        frame_width=280,
        frame_height=280,
        x_axis_label=f"x ({unit})",
        y_axis_label=f"y ({unit})",
    )
    drawn.subscribed_events.add("tap")  # or the page's script would hear of no event at all
    drawn.grid.visible = False
    drawn.outline_line_color = "#bbbbbb"
    mapper = LinearColorMapper(
        palette=class_colors(n_classes), low=0, high=1, nan_color="rgba(0, 0, 0, 0)", name="mapper"
    )
    layer = _source("layer", "x", "y", "dw", "dh")
    layer.add([np.zeros((1, 1), dtype=np.float32)], "image")  # of the type that the script fills in
    drawn.image("image", x="x", y="y", dw="dw", dh="dh", source=layer, color_mapper=mapper)
    hatched: dict[str, Any] = {"x": "x", "y": "y", "line_color": None, "hatch_scale": 9}
    unknown, lost = (_source(name, "x", "y") for name in ("unknown", "lost"))
    for color, weight in (("white", 2.4), ("#222222", 1.0)):  # seen on dark and on light colours
        look = {"hatch_pattern": "/", "hatch_color": color, "hatch_weight": weight}
        drawn.patch(source=unknown, fill_color=None, **look, **hatched)
    drawn.patch(source=lost, fill_color="#555555", hatch_pattern="x", hatch_color="white", **hatched)
    corners = _source("marker", "left", "right", "top", "bottom")
    for color, width in (("white", 4.0), (BLACK, 1.6)):
        drawn.quad(source=corners, fill_color=None, line_color=color, line_width=width)
    bar = ColorBar(
        color_mapper=mapper, name="colors", title=" ", height=12, location=(0, 0), orientation="horizontal", padding=4,
        major_label_text_color=_TEXT, major_label_text_font_size="11px", title_text_color=_TEXT,
        title_text_font_size="12px", title_text_font_style="normal",
    )  # fmt: skip
    drawn.add_layout(_scale_bar(unit), "above")
    drawn.add_layout(bar, "below")
    return drawn


def _scale_bar(unit: str) -> ScaleBar:
    from bokeh.models import ScaleBar
    from bokeh.models.annotations.dimensional import MetricLength

    # Pixels are drawn as nanometres of another name: BokehJS does not know dimensions of one's own.
    dimensional = MetricLength() if unit == "nm" else MetricLength(include=["nm"], ticks=_ROUND)
    return ScaleBar(
        unit="nm", label="@{value} @{unit}" if unit == "nm" else f"@{{value}} {unit}",
        dimensional=dimensional, bar_length=0.25, bar_length_units="percent", label_location="right",
        location="bottom_left", margin=2, padding=4, bar_line_width=3, border_line_color=None,
        background_fill_color=None, label_text_color=_TEXT, label_text_font_size="11px",
    )  # fmt: skip


def _draw_panels(n_classes: int) -> list[figure]:
    """Return the panels of the spectra; they share their energies."""
    from bokeh.models import Range1d

    shared: dict[str, Any] = {"x_range": Range1d(0, 1, name="energies"), "y_axis_label": "counts", "height": 230}
    recorded = _figure("recorded-panel", **shared, **_tools())
    _line(recorded, "recorded", line_width=1.0)
    _line(recorded, "background", line_width=1.6, line_dash="dashed")
    prepared = _figure("prepared-panel", **shared, **_tools())
    _line(prepared, "prepared", line_width=1.0)
    for number, color in enumerate(class_colors(n_classes)):
        _line(prepared, f"class-{number}", color=color, line_width=1.8, line_dash=_DASHES[number % len(_DASHES)])
    _line(prepared, "mixture", line_width=2.0)
    residual = _figure("residual-panel", **shared | {"height": 200}, x_axis_label="energy loss (eV)", **_tools())
    source = _source("bands", "x", "y", "spread_low", "spread_high", "noise_low", "noise_high")
    for name in ("spread", "noise"):
        residual.varea("x", f"{name}_low", f"{name}_high", source=source, color=COLORS[name])
    residual.line("x", "y", source=source, color=COLORS["residual"], line_width=1.6)
    dots = residual.scatter("x", "y", source=source, color=COLORS["residual"], size=4)
    residual.hover[0].renderers = [dots]
    for upper in (recorded, prepared):
        upper.xaxis.major_label_text_font_size = "0px"
        upper.hover[0].renderers = upper.renderers[:1]
    return [recorded, prepared, residual]


def _tools() -> dict[str, Any]:
    from bokeh.models import BoxZoomTool, HoverTool, ResetTool, SaveTool, WheelZoomTool

    hover = HoverTool(
        tooltips=[("energy loss", "@x{0.00} eV"), ("counts", "@y{0.0}")],
        mode="vline",
        line_policy="nearest",
        visible=False,
    )
    return {
        "tools": [BoxZoomTool(), WheelZoomTool(), ResetTool(), SaveTool(), hover],
        "active_drag": None,
        "sizing_mode": "stretch_width",
    }


def _source(name: str, *columns: str) -> ColumnDataSource:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource({column: [0.0] for column in columns}, name=name)


def _line(drawn: figure, name: str, *, color: str | None = None, **look: Any) -> None:
    drawn.line("x", "y", source=_source(name, "x", "y"), color=color or COLORS[name], **look)


def _figure(name: str, **options: Any) -> figure:
    from bokeh.plotting import figure

    drawn = figure(name=name, min_border_left=_LEFT, min_border_right=_RIGHT, **options)
    drawn.toolbar.logo = None
    drawn.axis.axis_label_text_font_style = "normal"
    drawn.axis.axis_label_text_font_size = "12px"
    drawn.axis.major_label_text_font_size = "11px"
    drawn.axis.axis_label_text_color = drawn.axis.major_label_text_color = _TEXT
    drawn.axis.axis_line_color = drawn.axis.major_tick_line_color = "#6b7580"
    drawn.axis.minor_tick_line_color = None
    drawn.grid.grid_line_color = _GRID
    drawn.outline_line_color = None
    return drawn
