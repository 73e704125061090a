"""The mean spectrum of each class of a map, over the references that the model has of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.report.style import (
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
    from matplotlib.figure import Figure

COLUMNS = 3


@figure_style()
def class_spectra_figure(
    classes: Sequence[str],
    bands: NDArray[np.float64],
    mean: NDArray[np.float64],
    error: NDArray[np.float64],
    *,
    references: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    pixels: Sequence[int],
) -> Figure:
    """Draw, in a panel for each class, what its pixels look like on average and what they should.

    Parameters
    ----------
    classes
        Names.
    bands
        Centres of the bands, shape (bands,), eV.
    mean, error
        Share of the window's counts in each band, and its standard error; shape (classes, bands), NaN where a class
        has no pixel.
    references
        Bands (eV), means in the order of the classes, and spread between acquisitions (one standard deviation).
    pixels
        How many of each class.
    """
    columns = min(len(classes), COLUMNS)
    rows = -(-len(classes) // columns)
    height = 0.4 + 2.1 * rows
    figure = new_figure(PAGE_WIDTH, height, is_placed=True)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    # room for what stands about panels: numbers and names of axes on the left and below, a heading above, in inches
    figure.subplots_adjust(
        left=0.5 / PAGE_WIDTH, right=1.0 - 0.12 / PAGE_WIDTH, bottom=0.45 / height, top=1.0 - 0.24 / height,
        wspace=0.04, hspace=0.36 if rows > 1 else 0.0,
    )  # fmt: skip
    reference_bands, reference, spread = references
    for number, (name, color) in enumerate(zip(classes, class_colors(len(classes)), strict=True)):
        panel: Any = axes.flat[number]
        label = "training acquisitions" if number == 0 else None
        _band(panel, reference_bands, reference[number], spread, color="#DDDDDD")
        panel.plot(reference_bands, 100 * reference[number], color=GREY, linestyle=DASHES[1], label=label)
        if pixels[number]:
            _band(panel, bands, mean[number], error[number], color=color, alpha=0.3)
            panel.plot(bands, 100 * mean[number], color=color, label="this acquisition" if number == 0 else None)
        else:
            panel.text(0.5, 0.9, "no pixel", transform=panel.transAxes, ha="center", color=GREY)
        panel.set_title(plain(f"{name}: {pixels[number]:,} pixels"))
    for panel in axes.flat[len(classes) :]:
        panel.set_visible(False)
    for panel in axes.flat[: len(classes)]:
        leave_out_gaps(panel, bands)
    for panel in axes[-1]:
        panel.set_xlabel("energy loss (eV)")
    for row in axes:
        row[0].set_ylabel("share of counts (% per eV)")
    axes.flat[0].legend(loc="lower right" if len(classes) > 1 else "best")
    return figure


def _band(panel: Any, x: NDArray[np.float64], y: NDArray[np.float64], half: NDArray[np.float64], **look: Any) -> None:
    panel.fill_between(x, 100 * (y - half), 100 * (y + half), linewidth=0, **look)
