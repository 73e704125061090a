"""How figures look, and how they are written: one look for all of them, safe in threads, the same bytes each time."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from eelsflow.edges import MARGIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE_WIDTH = 7.6
"""Width of a figure that fills the page, inches; text of 8 points stays legible at it."""

# Okabe and Ito, "Color universal design" (2008): told apart with any common colour vision.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#7A7A7A"

# Cool colours for support vector machines, warm ones for networks, so that the family is seen before the legend.
_BASE_COLORS = {
    "svm-linear": SKY,
    "svm-rbf": BLUE,
    "svm-sigmoid": GREEN,
    "svm-sgd": GREY,
    "fcnn-1": PURPLE,
    "cnn-1": ORANGE,
    "cnn-2": VERMILION,
}
_MARKERS = "osD^vP*X"
DASHES = ("-", "--", ":", "-.")
"""Styles of lines that stand beside each other, so that they are told apart without colours."""

_OTHER_COLORS = (BLACK, "#882255", "#44AA99", "#999933")

# P. Tol, "Colour schemes" (SRON, 2021): three of the scheme high-contrast, which are told apart in grey as well, then
# others as far from them in lightness as can be. Classes do not borrow the colours of models.
CLASS_COLORS = ("#004488", "#DDAA33", "#BB5566", "#77CCEE", "#225522", "#FFCCCC")

_STYLE: dict[str, object] = {
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so it is the same everywhere
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "svg.hashsalt": "eelsflow",
    "svg.fonttype": "path",  # glyphs travel with the file: no font is needed where it is read
}

_lock = threading.RLock()  # matplotlib's settings are global to the process


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Draw in eelsflow's style whatever the user's matplotlibrc says; one thread at a time."""
    from matplotlib import style

    with _lock, style.context(["default", _STYLE]):
        yield


def new_figure(width: float = PAGE_WIDTH, height: float = 3.0, *, is_placed: bool = False) -> Figure:
    """Return an empty figure of `width` x `height` inches that belongs to no global state.

    Its layout is found when it is drawn, unless whoever draws has placed everything in it (`is_placed`): looking for it
    takes as long as drawing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=None if is_placed else "constrained")
    FigureCanvasAgg(figure)
    return figure


@figure_style()
def render(figure: Figure, format: str) -> bytes:
    """Return the figure as ``"png"`` or ``"svg"``: the same figure gives the same bytes.

    The figure's layout is settled the first time and kept, because finding it costs more than drawing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    stream = io.BytesIO()
    metadata: dict[str, str | None] = {"Date": None} if format == "svg" else {"Software": None}
    if format == "png" and figure.dpi == _STYLE["savefig.dpi"]:
        # as savefig does, which draws once more, for nothing, wherever a figure has had a layout
        FigureCanvasAgg(figure).print_png(stream, metadata=metadata)  # type: ignore[no-untyped-call]
    else:
        figure.savefig(stream, format=format, metadata=metadata)
    return stream.getvalue()


GAP = 4.0
"""How wide what lies between two edges is drawn, eV."""


def spans(energies: ArrayLike) -> list[tuple[float, float]]:
    """Return from where to where energies (eV) of channels or bands reach, edge by edge."""
    values = np.asarray(energies, dtype=np.float64)
    steps = np.diff(values)
    if steps.size == 0:
        return [(float(values[0]), float(values[-1]))]
    half = float(np.median(steps)) / 2
    parts = np.split(values, np.flatnonzero(steps > MARGIN) + 1)
    return [(float(part[0]) - half, float(part[-1]) + half) for part in parts]


def leave_out_gaps(axes: Axes, energies: ArrayLike) -> None:
    """Draw the energies (eV) of several edges side by side; nothing is changed for those of one.

    Parameters
    ----------
    axes
        With everything drawn.
    energies
        Of what was drawn: channels or bands, with gaps between edges.
    """
    ends = spans(energies)
    if len(ends) < 2:
        return
    at, drawn = [ends[0][0], ends[0][1]], [ends[0][0], ends[0][1]]
    for low, high in ends[1:]:
        at += [low, high]
        drawn += [drawn[-1] + GAP, drawn[-1] + GAP + high - low]
    beyond = 1e4  # eV; a scale must be defined everywhere
    at, drawn = ([one[0] - beyond, *one, one[-1] + beyond] for one in (at, drawn))
    axes.set_xscale("function", functions=(lambda x: np.interp(x, at, drawn), lambda x: np.interp(x, drawn, at)))
    ticks = [
        tick for low, high in ends for tick in np.arange(10 * np.ceil(low / 10), high, 10) if low + 1 < tick < high - 1
    ]
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ends[0][0], ends[-1][1])
    for (_, high), (low, _) in itertools.pairwise(ends):
        axes.axvspan(high, low, facecolor="white", edgecolor=GREY, linewidth=0.6, hatch="////", zorder=5)


def plain(text: object) -> str:
    r"""Return text that matplotlib shows letter by letter: no formulas, no label hidden by its underscore.

    >>> print(plain("a $b$"))
    a \$b\$
    """
    escaped = str(text).replace("$", r"\$")
    return f"\N{THIN SPACE}{escaped}" if escaped.startswith("_") else escaped


def model_styles(models: Sequence[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Return line properties for each model.

    Parameters
    ----------
    models
        Pairs (name, base) in the order of the study. A model has its base's colour; models of one base differ in
        marker and dashes, so that a variant is seen to be one.

    Returns
    -------
    dict
        By name: ``color``, ``marker`` and ``linestyle``, as matplotlib's line properties.
    """
    seen: dict[str, int] = {}
    styles: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for name, base in models:
        if name in styles:
            continue
        if base not in _BASE_COLORS and base not in unknown:
            unknown.append(base)
        color = _BASE_COLORS.get(base) or _OTHER_COLORS[unknown.index(base) % len(_OTHER_COLORS)]
        nth = seen.get(base, 0)
        seen[base] = nth + 1
        marker = _MARKERS[(list(seen).index(base) + 3 * nth) % len(_MARKERS)]
        styles[name] = {"color": color, "marker": marker, "linestyle": DASHES[nth % len(DASHES)]}
    return styles


def class_colors(n_classes: int) -> list[str]:
    """Return a colour for each class; past the palette's end, colours spread evenly over matplotlib's `turbo`."""
    if n_classes <= len(CLASS_COLORS):
        return list(CLASS_COLORS[:n_classes])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["turbo"](position)) for position in np.linspace(0.05, 0.95, n_classes)]


def scale_bar_length(extent: float) -> float:
    """Return the largest of 1, 2 or 5 x 10^n that is at most a third of `extent` (in any unit).

    >>> scale_bar_length(100.8), scale_bar_length(7), scale_bar_length(0.07)
    (20.0, 2.0, 0.02)
    """
    target = extent / 3
    decade = 10.0 ** np.floor(np.log10(target))
    return float(next(step * decade for step in (5, 2, 1) if step * decade <= target * (1 + 1e-9)))


def format_number(value: float | int | str | None) -> str:
    """Return a parameter or an amplitude the way people write it.

    >>> format_number(1e5), format_number(0.001), format_number(2714.0), format_number("scale")
    ('1e5', '0.001', '2714', 'scale')
    """
    if value is None or isinstance(value, str | bool):
        return str(value)
    if value != 0 and (abs(value) >= 1e4 or abs(value) < 1e-3):
        return re.sub(
            r"e([+-])0*(\d)", lambda match: f"e{match[1].replace('+', '')}{match[2]}", f"{value:.3g}"
        ).replace(".0e", "e")
    return f"{value:.4g}"
