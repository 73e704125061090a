"""The figures of a report: arrays and tables in, a matplotlib figure out. Energies are in eV throughout.

The numbers in brackets are the figures of the paper that each corresponds to. No input is modified. Figures are
objects of their own (no pyplot), so threads may draw at the same time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.energy import Window
from eelsflow.report.style import (
    BLACK,
    BLUE,
    DASHES,
    GREY,
    ORANGE,
    PAGE_WIDTH,
    SKY,
    VERMILION,
    YELLOW,
    class_colors,
    figure_style,
    format_number,
    leave_out_gaps,
    new_figure,
    plain,
    scale_bar_length,
    spans,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.floating[Any]]

ENERGY_LABEL = "Energy loss (eV)"
INTENSITY_LABEL = "Normalized intensity"


# -- spectra --------------------------------------------------------------------------------------------------------


@figure_style()
def example_spectrum(
    energy_loss: Floats,
    example: Floats,
    *,
    classes: Sequence[str],
    class_mean: Floats,
    class_std: Floats,
    reference_energy: float | None,
    raw_energy_loss: Floats | None = None,
    raw: Floats | None = None,
) -> Figure:
    """Draw one prepared spectrum, what it was before normalization, and the mean of every class [Fig. 1].

    Parameters
    ----------
    energy_loss, example
        Energies and one prepared spectrum, shape (channels,).
    classes, class_mean, class_std
        Names, and the mean and standard deviation of each class, shape (classes, channels).
    reference_energy
        Where the edge's reference feature belongs; None draws no line.
    raw_energy_loss, raw
        The same spectrum before normalization, shape (wide channels,); None leaves that panel out.
    """
    panels = 3 if raw is not None else 2
    figure = new_figure(PAGE_WIDTH, 2.5)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if raw is not None and raw_energy_loss is not None:
        first = axes.pop(0)
        first.plot(raw_energy_loss, raw, color=BLACK, linewidth=0.9)
        for low, high in spans(energy_loss):
            first.axvspan(low, high, color=SKY, alpha=0.18, linewidth=0)
        leave_out_gaps(first, raw_energy_loss)
        first.set(title="Background subtracted", xlabel=ENERGY_LABEL, ylabel="Intensity (counts)")
        _mark_reference(first, reference_energy, label=False)
    axes[0].plot(energy_loss, example, color=BLACK, linewidth=0.9)
    axes[0].set(title="As the models see it", xlabel=ENERGY_LABEL, ylabel=INTENSITY_LABEL)
    _mark_reference(axes[0], reference_energy)
    for number, (name, mean, spread) in enumerate(zip(classes, class_mean, class_std, strict=True)):
        color = class_colors(len(classes))[number]
        axes[1].fill_between(energy_loss, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
        axes[1].plot(energy_loss, mean, color=color, label=plain(name), linestyle=DASHES[number % len(DASHES)])
    axes[1].set(title="Mean of each class", xlabel=ENERGY_LABEL, ylabel=INTENSITY_LABEL)
    _mark_reference(axes[1], reference_energy, label=False)
    axes[1].legend(loc="best")
    for panel in axes:
        leave_out_gaps(panel, energy_loss)
    return figure


@figure_style()
def perturbed_spectra(
    energy_loss: Floats, example: Floats, *, shifted: Floats, shift_ev: float, noisy: Floats, noise_sigma: float
) -> Figure:
    """Draw a test spectrum shifted, and with noise [Fig. 5].

    Parameters
    ----------
    energy_loss, example, shifted, noisy
        Energies and spectra, shape (channels,).
    shift_ev
        Shift, eV; positive moves features to higher energy.
    noise_sigma
        Standard deviation of the noise, as a fraction of the spectrum's p99 - p1.
    """
    figure = new_figure(PAGE_WIDTH, 2.5)
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot(energy_loss, example, color=GREY, label="as prepared")
    left.plot(energy_loss, shifted, color=VERMILION, linestyle="--", label=f"shifted by {shift_ev:+.2f} eV")
    left.set(title="Translation", xlabel=ENERGY_LABEL, ylabel=INTENSITY_LABEL)
    right.plot(
        energy_loss, noisy, color=BLUE, linewidth=0.8, label=f"Gaussian noise, sigma {noise_sigma:.2f} (p99 - p1)"
    )
    right.plot(energy_loss, example, color=GREY, label="as prepared")
    right.set(title="Noise", xlabel=ENERGY_LABEL)
    for axes in (left, right):
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.12 * (high - low))  # room for the legend above the highest peak
        axes.legend(loc="upper right")
        leave_out_gaps(axes, energy_loss)
    return figure


def _mark_reference(axes: Axes, reference_energy: float | None, *, label: bool = True) -> None:
    low, high = axes.get_xlim()
    if reference_energy is None or not low < reference_energy < high:
        return
    axes.axvline(reference_energy, color=VERMILION, linewidth=0.9, linestyle="--")
    if label:
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, top + 0.1 * (top - bottom))
        axes.annotate(
            f"{reference_energy:g} eV",
            (reference_energy, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -2),
            textcoords="offset points",
            va="top",
            color=VERMILION,
            fontsize=7.5,
        )


# -- networks -------------------------------------------------------------------------------------------------------

# Fill by what a layer does, and whether its text is dark on it.
_LAYER_COLORS = (
    ("input", "#E8E8E8"),
    ("dropout", "#FFF3B0"),
    ("conv", "#BFD9EE"),
    ("dense", "#F7CFA8"),
    ("normalization", "#DDEBDD"),
    ("pool", "#E5D5EA"),
)


@figure_style()
def architecture(layers: Sequence[Mapping[str, Any]], *, boxes_per_row: int = 6) -> Figure:
    """Draw a network from its specification, a box a layer, in reading order [Figs 2, 3].

    Parameters
    ----------
    layers
        For each layer ``type``, ``detail`` (text), ``output_shape`` (sequence or text) and ``parameters`` (count).
    boxes_per_row
        Boxes before the drawing goes on in the next row.
    """
    from matplotlib.patches import FancyBboxPatch

    n_rows = -(-len(layers) // boxes_per_row)
    figure = new_figure(PAGE_WIDTH, 0.12 + 0.98 * n_rows)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.06, boxes_per_row - 0.08), ylim=(0.94 - n_rows, 0.82))
    axes.set_axis_off()
    width, height = 0.86, 0.76
    arrow = {"arrowstyle": "-|>", "color": "#444444", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
    for index, layer in enumerate(layers):
        row, column = divmod(index, boxes_per_row)
        x, y = float(column), float(-row)
        kind = str(layer["type"]).lower()
        color = next((fill for word, fill in _LAYER_COLORS if word in kind), "white")
        axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.05",
                facecolor=color,
                edgecolor="#555555",
                lw=0.7,
            )
        )
        count = int(layer.get("parameters") or 0)
        texts = [
            *((line, 7.2, "bold") for line in _lines(str(layer["type"]), 15)),
            *((line, 6.4, "normal") for line in _lines(str(layer.get("detail") or ""), 20)),
            (_shape(layer.get("output_shape")), 6.6, "normal"),
        ]
        if count:
            texts.append((f"{count:,} parameter{'' if count == 1 else 's'}", 6.4, "normal"))
        spacing = min(0.155, (height - 0.06) / len(texts))
        top = y + height / 2 + spacing * (len(texts) - 1) / 2
        for number, (text, size, weight) in enumerate(texts):
            axes.text(
                x + width / 2, top - number * spacing, plain(text), size=size, weight=weight, ha="center", va="center",
                color="#222222",
            )  # fmt: skip
        if index + 1 < len(layers):
            if column + 1 < boxes_per_row:
                axes.annotate("", (x + 1, y + height / 2), (x + width, y + height / 2), arrowprops=arrow)
            else:  # on to the start of the next row, through the gap between the rows
                gap = y - (1 - height) / 2
                axes.plot([x + width / 2, x + width / 2, width / 2], [y, gap, gap], color="#444444", linewidth=0.9)
                axes.annotate("", (width / 2, y - 1 + height), (width / 2, gap), arrowprops=arrow)
    return figure


def _shape(shape: Any) -> str:
    if isinstance(shape, Sequence) and not isinstance(shape, str):
        return "\N{MULTIPLICATION SIGN}".join(str(size) for size in shape if size is not None)
    return str(shape)


def _lines(text: str, n_letters: int) -> list[str]:
    """Break a text into at most two lines, between words or before a capital; cut what does not fit those."""
    if len(text) <= n_letters:
        return [text] if text else []
    breaks = [match.start() for match in re.finditer(r"(?<=[a-z])(?=[A-Z])|(?<= )", text)]
    cut = max((position for position in breaks if position <= n_letters), default=n_letters)
    rest = text[cut:].strip()
    return [text[:cut].strip(), rest if len(rest) <= n_letters else rest[: n_letters - 1] + "…"]


# -- search and training --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GridPanel:
    """Accuracy of a search over one or two parameters.

    `scores` has the parameters as dimensions, (vertical, horizontal) or one; `best` is the best cell by parameter,
    or None where the best cell lies in another panel.
    """

    title: str
    scores: xr.DataArray
    best: Mapping[str, Any] | None


@figure_style()
def grid_scores(panels: Sequence[GridPanel], *, columns: int = 3, measure: str = "Cross-validation accuracy") -> Figure:
    """Draw a grid search: heat maps of two parameters, lines of one, the best cell marked [Fig. 4].

    All panels share one color scale, so that they can be compared; `measure` is what it is called.
    """
    columns = min(columns, len(panels))
    n_rows = -(-len(panels) // columns)
    flat = all(panel.scores.ndim == 1 for panel in panels)
    panel_width = PAGE_WIDTH / max(columns, 2)
    height = 2.1 if flat else min(max(0.26 * max(p.scores.sizes[p.scores.dims[0]] for p in panels) + 0.9, 2.2), 3.4)
    figure = new_figure(panel_width * columns + (0.0 if flat or columns > 1 else 1.6), height * n_rows)
    grid = figure.subplots(n_rows, columns, squeeze=False, sharey=flat)
    values = np.concatenate([panel.scores.values.ravel() for panel in panels])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    image = None
    for axes, panel in zip(grid.ravel(), panels, strict=False):
        if panel.scores.ndim == 1:
            _grid_line(axes, panel, measure)
        else:
            image = _grid_map(axes, panel, low, high, cell_width=(panel_width - 0.8) / panel.scores.shape[1])
        axes.set_title(plain(panel.title))
    first = panels[0].scores
    for index, (axes, panel) in enumerate(zip(grid.ravel(), panels, strict=False)):
        own, others = panel.scores[panel.scores.dims[0]], first[first.dims[0]]
        if index % columns and own.name == others.name and np.array_equal(own.values, others.values):
            axes.tick_params(labelleft=False)
            axes.set_ylabel("")
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    if image is not None:
        figure.colorbar(image, ax=grid, label=measure, shrink=min(1.0, 1.2 / n_rows), aspect=25)
    return figure


def _grid_map(axes: Axes, panel: GridPanel, low: float, high: float, *, cell_width: float) -> Any:
    vertical, horizontal = (str(name) for name in panel.scores.dims)
    scores = panel.scores.values
    image = axes.imshow(scores, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    axes.set(xlabel=_parameter_label(horizontal), ylabel=_parameter_label(vertical))
    for name, set_ticks in ((horizontal, axes.set_xticks), (vertical, axes.set_yticks)):
        labels = [format_number(value) for value in panel.scores[name].values.tolist()]
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        crowded = name == horizontal and max(map(len, labels)) * 0.075 > cell_width
        set_ticks(range(len(labels)), [plain(label) for label in labels], **(slanted if crowded else {}))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if cell_width >= 0.2:
        for (row, column), value in np.ndenumerate(scores):
            if np.isfinite(value):
                dark = value < low + 0.6 * (high - low)
                text = f"{value:.2f}".removeprefix("0")
                color = "white" if dark else "black"
                axes.text(column, row, text, size=5.8, ha="center", va="center", color=color, in_layout=False)
    if panel.best is not None:
        row, column = (panel.scores[name].values.tolist().index(panel.best[name]) for name in (vertical, horizontal))
        from matplotlib.patches import Rectangle

        axes.add_patch(
            Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.2, clip_on=False, zorder=5
            )
        )
    return image


def _grid_line(axes: Axes, panel: GridPanel, measure: str) -> None:
    (name,) = (str(dimension) for dimension in panel.scores.dims)
    values, scores = panel.scores[name].values.tolist(), panel.scores.values
    positions: Any = range(len(values))
    if all(isinstance(value, int | float) and value > 0 for value in values):
        positions = values
        axes.set_xscale("log")
    else:
        axes.set_xticks(positions, [plain(format_number(value)) for value in values])
    axes.plot(positions, scores, color=BLUE, marker="o")
    if panel.best is not None:
        index = values.index(panel.best[name])
        axes.plot(
            [positions[index]],
            [scores[index]],
            "o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=VERMILION,
            mew=1.8,
        )
    axes.set(xlabel=_parameter_label(name), ylabel=measure)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def _parameter_label(name: str) -> str:
    return plain(name.replace("_", " "))


@figure_style()
def training_histories(panels: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], *, columns: int = 3) -> Figure:
    """Draw accuracy by epoch, a panel for each title, a pair of lines for each seed [Fig. 6].

    Parameters
    ----------
    panels
        Titles with histories: ``epochs``, ``train_accuracy``, ``validation_accuracy`` (same length; None where
        it was not computed) and ``best_epoch``, the epoch whose weights were kept.
    columns
        Panels in a row.
    """
    columns = min(columns, len(panels))
    n_rows = -(-len(panels) // columns)
    figure = new_figure(PAGE_WIDTH if columns > 1 else PAGE_WIDTH / 2, 2.0 * n_rows + 0.3)
    grid = figure.subplots(n_rows, columns, squeeze=False, sharey=True)
    handles: list[Any] = []
    for axes, (title, histories) in zip(grid.ravel(), panels, strict=False):
        handles = []
        alpha = max(0.25, 1 / max(len(histories), 1) ** 0.5)
        for history in histories:
            epochs = history["epochs"]
            validation = _with_gaps(history["validation_accuracy"])
            train = _with_gaps(history["train_accuracy"])
            handles = [
                *axes.plot(epochs, train, color=ORANGE, linestyle=":", alpha=alpha, linewidth=1, label="training part"),
                *axes.plot(epochs, validation, color=BLUE, alpha=alpha, linewidth=1, label="validation part"),
            ]
            best = history.get("best_epoch")
            if best in epochs:
                handles += axes.plot(
                    [best],
                    [validation[epochs.index(best)]],
                    "o",
                    markerfacecolor="white",
                    markeredgecolor=BLACK,
                    markersize=4.5,
                    zorder=5,
                    label="best epoch on validation, kept",
                )
        axes.set_title(plain(title))
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for index, axes in enumerate(grid.ravel()[: len(panels)]):
        if index + columns >= len(panels):
            axes.set_xlabel("Epoch")
        if index % columns == 0:
            axes.set_ylabel("Accuracy")
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        for handle in figure.legends[0].legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    return figure


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [np.nan if value is None else float(value) for value in values]


# -- robustness -----------------------------------------------------------------------------------------------------


MOST_SHOWN = 8
"""Curves of a figure that can be told apart; the others are drawn thin and grey."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy of one model against amplitude: mean and band, and where it first falls below 90 % of clean.

    `mean`, `low` and `high` have shape (amplitudes,); `breakdown` holds amplitudes, at most one on each side.
    """

    mean: Floats
    low: Floats
    high: Floats
    breakdown: tuple[float, ...] = ()


@figure_style()
def leakage(rows: Sequence[tuple[str, float, float]], *, styles: Mapping[str, Mapping[str, str]]) -> Figure:
    """Draw the accuracy of each model by pixel split and on held-out acquisitions, joined by the gap.

    Parameters
    ----------
    rows
        Model, accuracy by pixel split, accuracy on held-out acquisitions; in order from the top.
    styles
        Line properties of each model.
    """
    figure = new_figure(PAGE_WIDTH * 0.8, 0.75 + 0.24 * len(rows))
    axes = figure.add_subplot()
    for position, (model, pixel, group) in enumerate(rows):
        color = styles[model]["color"]
        axes.plot([group, pixel], [position, position], color=color, linewidth=2, alpha=0.45)
        axes.plot([pixel], [position], "o", markersize=6, markerfacecolor="white", markeredgecolor=color, mew=1.5)
        axes.plot([group], [position], "o", markersize=6, color=color)
    axes.set_yticks(range(len(rows)), [plain(model) for model, _, _ in rows])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="Accuracy")
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.6)
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 6, "color": "#444444"}
    figure.legend(
        handles=[
            Line2D([], [], label="held-out acquisitions", **style),
            Line2D([], [], label="random pixel split", markerfacecolor="white", **style),
        ],
        loc="outside upper right",
        ncols=2,
    )
    return figure


def _highest(panels: Sequence[tuple[str, Floats, Mapping[str, Curve]]]) -> set[str]:
    """Return the models whose mean accuracy over all panels is among the highest."""
    found: dict[str, list[float]] = {}
    for _, _, curves in panels:
        for model, curve in curves.items():
            found.setdefault(model, []).append(float(np.mean(curve.mean)))
    order = sorted(found, key=lambda model: -float(np.mean(found[model])))
    return set(order[:MOST_SHOWN])


@figure_style()
def robustness_curves(
    panels: Sequence[tuple[str, Floats, Mapping[str, Curve]]],
    *,
    label: str,
    chance: float,
    styles: Mapping[str, Mapping[str, str]],
    columns: int = 2,
) -> Figure:
    """Draw accuracy against the amplitude of a perturbation, all models in each panel.

    Past `MOST_SHOWN` models those with the highest mean accuracy over all panels have their colours; the others are
    drawn thin and grey behind them.

    Parameters
    ----------
    panels
        Title, amplitudes (shape (amplitudes,)) and a curve for each model.
    label
        What the amplitude is, with its unit.
    chance
        Accuracy of always answering the most frequent class.
    styles
        Line properties of each model, from `eelsflow.report.style.model_styles`.
    columns
        Panels in a row.
    """
    columns = min(columns, len(panels))
    n_rows = -(-len(panels) // columns)
    figure = new_figure(PAGE_WIDTH, 2.5 * n_rows + (0.6 if columns > 1 else 0.9))
    grid = figure.subplots(n_rows, columns, squeeze=False, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    shown_models = _highest(panels)
    for axes, (title, amplitudes, curves) in zip(grid.ravel(), panels, strict=False):
        spacing = max(1, len(amplitudes) // 10)
        for nth, (model, curve) in enumerate(curves.items()):
            style = dict(styles[model])
            if model not in shown_models:
                (handles["\0others"],) = axes.plot(
                    amplitudes, curve.mean, color="#BBBBBB", linewidth=0.6, zorder=1, label="other models"
                )
                continue
            axes.fill_between(amplitudes, curve.low, curve.high, color=style["color"], alpha=0.13, linewidth=0)
            (handles[model],) = axes.plot(
                amplitudes, curve.mean, markevery=(nth % spacing, spacing), label=plain(model), **style
            )
            for amplitude in curve.breakdown:
                height = float(np.interp(amplitude, amplitudes, curve.mean))
                (handles["\0breakdown"],) = axes.plot(
                    [amplitude], [height], "o", markersize=8, markerfacecolor="none", markeredgecolor=style["color"],
                    markeredgewidth=1.3, zorder=6, label="first amplitude below 90 % of clean",
                )  # fmt: skip
        handles["\0chance"] = axes.axhline(
            chance, color=BLACK, linewidth=0.8, linestyle=(0, (1, 2)), label=f"most frequent class ({chance:.2f})"
        )
        if amplitudes.min() < 0 < amplitudes.max():
            axes.axvline(0, color="#BBBBBB", linewidth=0.7, zorder=0)
        elif amplitudes.min() > 0 and amplitudes.max() / amplitudes.min() >= 20:
            axes.set_xscale("log")
            axes.set_xticks(amplitudes, [format_number(value) for value in amplitudes.tolist()], minor=False)
            axes.set_xticks([], minor=True)
        axes.set_title(plain(title))
        axes.grid(color="#E6E6E6", linewidth=0.5)
        axes.tick_params(labelbottom=True)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for index, axes in enumerate(grid.ravel()[: len(panels)]):
        if index + columns >= len(panels):
            axes.set_xlabel(plain(label))
        if index % columns == 0:
            axes.set_ylabel("Accuracy")
    if grid[0, 0].get_ylim()[1] > 1:
        grid[0, 0].set_ylim(top=1.02)
    shown = [handles[name] for name in sorted(handles, key=lambda name: name.startswith("\0"))]
    figure.legend(handles=shown, loc="outside lower center", ncols=4)
    for handle in figure.legends[0].legend_handles:
        if handle is not None and handle.get_label() == "first amplitude below 90 % of clean":
            handle.set(markeredgecolor="#444444")
    return figure


# -- acquisitions ---------------------------------------------------------------------------------------------------


@figure_style()
def acquisition(
    energy_loss: Floats,
    mean_spectrum: Floats,
    background: Floats,
    *,
    signal: Floats,
    vacuum_mask: NDArray[np.bool_],
    pixel_size: float,
    pixel_unit: str,
    t_over_lambda: Floats | None = None,
    reference_energy: float | None = None,
    elnes_window: Window | None = None,
    pre_edge_window: Window | None = None,
    beside: Sequence[tuple[Window | None, Window | None]] = (),
) -> Figure:
    """Draw what preparation found in one acquisition.

    Parameters
    ----------
    energy_loss, mean_spectrum, background
        Corrected energies, mean counts of the specimen's pixels and the fitted background (NaN where there is
        none), shape (channels,).
    signal, vacuum_mask
        Integrated edge intensity, NaN where the pixel is lost, and True where there is no specimen; shape (y, x). A
        line scan (one row or one column) is drawn as a curve, a single spectrum without a map.
    pixel_size, pixel_unit
        Size of a pixel, and its unit ("px" where uncalibrated).
    t_over_lambda
        Thickness in mean free paths, shape (y, x), where a low loss was recorded; drawn of images.
    reference_energy, elnes_window, pre_edge_window
        What the edge's configuration says; None draws nothing.
    beside
        The windows of edges that are judged together with it, before the edge and of its fine structure.
    """
    windows = [(pre_edge_window, elnes_window), *beside]
    n_y, n_x = signal.shape
    if signal.size == 1:
        figure = new_figure(PAGE_WIDTH * 0.62, 2.5)
        _mean_spectrum(figure.add_subplot(), energy_loss, mean_spectrum, background, windows)
    elif min(n_y, n_x) == 1:
        figure = new_figure(PAGE_WIDTH, 2.5)
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _mean_spectrum(left, energy_loss, mean_spectrum, background, windows)
        _line_scan(right, signal.ravel(), vacuum_mask.ravel(), pixel_size, pixel_unit)
    else:
        from matplotlib.colors import ListedColormap

        figure = new_figure(PAGE_WIDTH, 2.5)
        if t_over_lambda is None:
            left, middle, right = figure.subplots(1, 3, width_ratios=(1.6, 1.2, 1))
            maps = [middle, right]
        else:
            left, middle, right, thickness = figure.subplots(1, 4, width_ratios=(1.6, 1.2, 1, 1.2))
            maps = [middle, right, thickness]
        _mean_spectrum(left, energy_loss, mean_spectrum, background, windows)
        extent = (0.0, n_x * pixel_size, n_y * pixel_size, 0.0)
        image = middle.imshow(signal, extent=extent, cmap="cividis", interpolation="none")
        figure.colorbar(image, ax=middle, label="Edge signal (counts)", aspect=16, pad=0.03, shrink=0.8)
        middle.set_title("Signal")
        # The mask is drawn with the signal's frame, so that the two can be compared pixel by pixel.
        lost = np.isnan(signal)
        right.imshow(
            np.where(lost, 2, vacuum_mask),
            extent=extent,
            cmap=ListedColormap(["#3B5B7A", "#F2EFE6", VERMILION]),
            vmin=0,
            vmax=2,
            interpolation="none",
        )
        and_lost = f", lost (red) {lost.sum():,} px" if lost.any() else ""
        right.set_title(f"Vacuum (light) {vacuum_mask.mean():.0%}{and_lost}")
        if t_over_lambda is not None:
            shown = np.where(vacuum_mask, np.nan, t_over_lambda)
            image = thickness.imshow(shown, extent=extent, cmap="viridis", interpolation="none")
            figure.colorbar(image, ax=thickness, label="t/λ", aspect=16, pad=0.03, shrink=0.8)
            thickness.set_title("Thickness")
        for axes in maps:
            axes.set(xticks=[], yticks=[])
            draw_scale_bar(axes, n_x * pixel_size, pixel_size, pixel_unit)
    _mark_reference(figure.axes[0], reference_energy)
    return figure


def _mean_spectrum(
    axes: Axes,
    energy_loss: Floats,
    mean_spectrum: Floats,
    background: Floats,
    windows: Sequence[tuple[Window | None, Window | None]],
) -> None:
    for number, pair in enumerate(windows):
        for window, color, label in zip(
            pair, (YELLOW, SKY), ("background window", "fine-structure window"), strict=True
        ):
            if window is not None:
                axes.axvspan(*window, color=color, alpha=0.22, linewidth=0, label=None if number else label)
    axes.plot(energy_loss, mean_spectrum, color=BLACK, linewidth=1, label="mean of specimen")
    shown = np.ones(energy_loss.shape, dtype=bool)
    first, last = windows[0][0], windows[-1][1]
    if first is not None and last is not None:
        shown = (energy_loss > first[0] - 12) & (energy_loss < last[1] + 25)
        axes.set_xlim(first[0] - 12, last[1] + 25)
    if np.isfinite(background).any():
        axes.plot(energy_loss, background, color=VERMILION, linestyle="--", linewidth=1.1, label="fitted background")
    near = np.concatenate([mean_spectrum[shown], background[shown]])
    near = near[np.isfinite(near)]
    if near.size:
        low, high = float(near.min()), float(near.max())
        margin = 0.05 * (high - low or 1.0)
        axes.set_ylim(low - margin, high + margin)
    axes.set(title="Mean spectrum", xlabel=ENERGY_LABEL, ylabel="Counts per channel")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.6, fontsize=7, ncols=2, handlelength=1.6,
        columnspacing=1.2,
    )  # fmt: skip


def _line_scan(axes: Axes, signal: Floats, vacuum_mask: NDArray[np.bool_], pixel_size: float, pixel_unit: str) -> None:
    position = (np.arange(signal.size) + 0.5) * pixel_size
    axes.plot(position, signal, color=BLUE, marker=".", linewidth=1, label="edge signal")
    if vacuum_mask.any():
        axes.fill_between(
            position, 0, 1, where=vacuum_mask, step="mid", transform=axes.get_xaxis_transform(),
            color="#BBBBBB", alpha=0.5, linewidth=0, label="vacuum",
        )  # fmt: skip
    axes.set(
        title=f"Line scan, vacuum {vacuum_mask.mean():.0%}",
        xlabel=f"Position ({pixel_unit})",
        ylabel="Edge signal (counts)",
    )
    axes.legend(loc="best")


def draw_scale_bar(axes: Axes, width: float, pixel_size: float, pixel_unit: str) -> None:
    """Draw a scale bar of a round length below the left of an image.

    Parameters
    ----------
    axes
        Axes whose horizontal data unit is `pixel_unit`.
    width
        Width of the image, in `pixel_unit`.
    pixel_size, pixel_unit
        Size of a pixel and its unit; the bar is at least a pixel long where the unit is "px".
    """
    from matplotlib.transforms import offset_copy

    length = scale_bar_length(width)
    if pixel_unit == "px":
        length = max(1.0, length)
    left = axes.get_xlim()[0]
    along, figure = axes.get_xaxis_transform(), axes.get_figure(root=True)
    axes.plot(
        [left, left + length], [0, 0], transform=offset_copy(along, figure, y=-5, units="points"), color=BLACK,
        linewidth=2.5, solid_capstyle="butt", clip_on=False,
    )  # fmt: skip
    axes.text(
        left, 0, plain(f"{format_number(length)} {pixel_unit}"),
        transform=offset_copy(along, figure, y=-8, units="points"), ha="left", va="top", size=7.5,
    )  # fmt: skip


__all__ = [
    "Curve",
    "GridPanel",
    "acquisition",
    "architecture",
    "draw_scale_bar",
    "example_spectrum",
    "grid_scores",
    "leakage",
    "perturbed_spectra",
    "robustness_curves",
    "training_histories",
]
