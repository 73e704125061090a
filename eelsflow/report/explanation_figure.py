"""Which energies decided: contributions of bands to a decision, as bars under the spectra of the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.report.style import (
    BLACK,
    DASHES,
    GREY,
    PAGE_WIDTH,
    class_colors,
    figure_style,
    leave_out_gaps,
    new_figure,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SETS = 6
"""Sets of spectra that a figure shows; the file has all."""

DECISIVE = 0.5
"""Share of all contributions, taken without their sign, that the bands make up which are called decisive (ours)."""

Floats = NDArray[np.float64]


@figure_style()
def explanation_figure(explained: Mapping[str, Any]) -> Figure:
    """Draw an explanation.

    Parameters
    ----------
    explained
        As `eelsflow.explanation.Explanation.as_dict` returns it, and ``explanation.json`` holds it.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = explained["of"][:MOST_SETS]
    of_model = explained["spread_over"] != "spectra"
    color = dict(zip(explained["class"], class_colors(len(explained["class"])), strict=True))
    pair = explained["classes"]
    figure = new_figure(PAGE_WIDTH, 2.6 + 1.3 * len(names))
    panels: Sequence[Axes] = figure.subplots(
        1 + len(names), 1, sharex=True, gridspec_kw={"height_ratios": [1.45, *[1.0] * len(names)]}
    ).tolist()
    _draw_spectra(panels[0], explained, names, color, of_model=of_model)
    low, high = _array(explained["band_low"]), _array(explained["band_high"])
    largest = 0.0
    for number, axes in enumerate(panels[1:]):
        largest = max(largest, _draw_bars(axes, explained, number, low, high, [color[one] for one in pair]))
        axes.set_title(plain(_title(number, explained, of_model=of_model)))
        axes.set_ylabel(plain(f"contribution\n({explained['unit']})"))
    for axes in panels[1:]:  # one scale, so that sets may be compared
        axes.set_ylim(-1.08 * largest, 1.08 * largest)
    panels[-1].set_xlabel("energy loss (eV)")
    panels[-1].set_xlim(low[0], high[-1])
    for axes in panels:
        leave_out_gaps(axes, (low + high) / 2)
    handles: list[Any] = [
        Patch(color=color[one], label=plain(f"speaks for {one} ({way})"))
        for one, way in zip(pair, ("up", "down"), strict=True)
    ]
    handles.append(Patch(color=color[pair[0]], alpha=0.4, linewidth=0, label="pale: the lesser half"))
    whiskers = "acquisitions" if of_model else "spectra"
    if np.isfinite(_array(explained["spread"])).any():
        handles.append(Line2D([], [], color=BLACK, linewidth=0.8, marker="|", markersize=6, linestyle="none",
                              label=f"spread over {whiskers} (±1 s.d.)"))  # fmt: skip
    if np.isfinite(_array(explained["error"])).any():
        handles.append(Patch(color="#D8D8D8", label="noise of one spectrum (±1 s.d.)"))
    if "by_model" in explained:
        handles.append(Line2D([], [], color=BLACK, marker="o", markersize=2, linestyle="none", label="single models"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handlelength=1.2)
    figure.align_ylabels(panels)
    return figure


def _draw_spectra(
    axes: Axes, explained: Mapping[str, Any], names: Sequence[str], color: Mapping[str, str], *, of_model: bool
) -> None:
    energy_loss, means = _array(explained["energy_loss"]), _array(explained["class_spectrum"])
    for number, name in enumerate(explained["class"]):
        if name in explained["classes"]:
            dashes = DASHES[explained["classes"].index(name)]
            axes.plot(energy_loss, means[number], color=color[name], linestyle=dashes, label=plain(f"{name}, training"))
    spectra = _array(explained["spectrum"])
    boundaries, in_bands = _steps(_array(explained["band_low"]), _array(explained["band_high"]))
    single = [name for name in names if name not in color]
    for number, name in enumerate([] if of_model else names):
        label = f"{name}, here" if name in color else name if len(single) == 1 else "below, each"
        axes.stairs(
            in_bands(spectra[number]), boundaries, linewidth=0.8,
            color=color.get(name, BLACK if len(single) == 1 else GREY),
            baseline=None, label=None if len(single) > 1 and name != single[0] else plain(label),
        )  # fmt: skip
    axes.set_ylabel("counts of the window\n(% per eV)")
    axes.set_title(plain(f"Which energies decide: {explained['model']}, {explained['edge']}"))
    axes.legend(loc="best", ncols=2)


def _draw_bars(
    axes: Axes, explained: Mapping[str, Any], number: int, low: Floats, high: Floats, colors: Sequence[str]
) -> float:
    """Draw the bars of one set, and return how far from zero anything reaches."""
    height = _array(explained["contribution"][number])
    spread, error = _array(explained["spread"][number]), _array(explained["error"][number])
    centre = (low + high) / 2
    decisive = np.isin(np.arange(height.size), decisive_bands(height))
    if np.isfinite(error).any():
        boundaries, in_bands = _steps(low, high)
        error = in_bands(error)
        axes.stairs(error, boundaries, baseline=-error, fill=True, color="#D8D8D8", linewidth=0, zorder=0)
    for chosen, alpha in ((decisive, 1.0), (~decisive, 0.4)):
        axes.bar(
            centre[chosen], height[chosen], width=0.86 * (high - low)[chosen], alpha=alpha, linewidth=0,
            color=[colors[int(value < 0)] for value in height[chosen]],
        )  # fmt: skip
    axes.axhline(0.0, color=BLACK, linewidth=0.6)
    reach = np.abs(height).max(initial=0.0)
    if np.isfinite(spread).any():
        axes.errorbar(centre, height, yerr=spread, fmt="none", ecolor=BLACK, elinewidth=0.6)
        reach = max(reach, float(np.nanmax(np.abs(height) + spread)))
    if np.isfinite(error).any():
        reach = max(reach, float(np.nanmax(error)))
    for one in explained.get("by_model", []):
        axes.plot(centre, _array(one[number]), "o", color=BLACK, markersize=1.2, linestyle="none")
        reach = max(reach, np.abs(_array(one[number])).max(initial=0.0))
    return float(reach) or 1.0


def _steps(low: Floats, high: Floats) -> tuple[Floats, Callable[[Floats], Floats]]:
    """Return the boundaries of bands, and what adds a band of nothing between two edges to values of bands."""
    gaps = np.flatnonzero(low[1:] - high[:-1] > 1e-6) + 1
    boundaries = np.append(np.insert(low, gaps, high[gaps - 1]), high[-1])
    return boundaries, lambda values: np.insert(np.asarray(values, dtype=np.float64), gaps, 0.0)


def _title(number: int, explained: Mapping[str, Any], *, of_model: bool) -> str:
    name, n, n_in_set = (explained[key][number] for key in ("of", "n_spectra", "n_in_set"))
    if of_model:
        return f"mean spectrum of {name}"
    counted = f"{n:,} of {n_in_set:,} spectra" if n < n_in_set else f"{n:,} spectra"
    if name in explained["class"]:
        return f"decided {name}: mean of {counted}"
    return name if n == 1 else f"{name}: mean of {counted}"


def decisive_bands(contribution: Floats) -> NDArray[np.intp]:
    """Return the fewest bands that make up `DECISIVE` of all contributions without their sign, ascending.

    >>> decisive_bands(np.array([0.1, -3.0, 0.2, 2.0])).tolist()
    [1]
    """
    size = np.abs(contribution)
    order = np.argsort(-size, kind="stable")
    needed = int(np.searchsorted(np.cumsum(size[order]), DECISIVE * size.sum())) + 1
    return np.sort(order[:needed])


def say_bands(explained: Mapping[str, Any]) -> list[str]:
    """Say for each set of spectra where half of what decides lies, and for which class it speaks."""
    first, second = explained["classes"]
    sentences = []
    for number, name in enumerate(explained["of"]):
        height = _array(explained["contribution"][number])
        if not np.abs(height).any():
            sentences.append(f"{name}: no band has a contribution.")
            continue
        parts: list[list[Any]] = []
        bands = decisive_bands(height)
        for band, low, high in zip(
            bands, _array(explained["band_low"])[bands], _array(explained["band_high"])[bands], strict=True
        ):
            speaks = first if height[band] > 0 else second
            if parts and parts[-1][2] == speaks and abs(parts[-1][1] - low) < 1e-6:
                parts[-1][1] = high
            else:
                parts.append([low, high, speaks])
        said = ", ".join(f"{low:.1f}-{high:.1f} eV (for {speaks})" for low, high, speaks in parts)
        sentences.append(f"{name}: half of all contributions lie at {said}.")
    return [*sentences, explained["note"]] if explained.get("note") else sentences


def _array(values: Any) -> Floats:
    """Return numbers of a file as an array; None is NaN."""
    return np.array(values, dtype=np.float64)
