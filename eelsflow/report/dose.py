"""The curves of a dose plan: accuracy and error of the fraction against the electrons of a spectrum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eelsflow.report.style import BLACK, BLUE, GREY, ORANGE, PAGE_WIDTH, VERMILION, figure_style, new_figure, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

X_LABEL = "Electrons of a spectrum per channel of 0.1 eV"


class Curve(Protocol):
    """What is drawn of a curve; see `eelsflow.dose.Curve`."""

    @property
    def factor(self) -> Floats:
        """Relative to the acquisition's dose."""
        ...

    @property
    def value(self) -> Floats:
        """What is expected."""
        ...

    @property
    def low(self) -> Floats:
        """Lower end of the interval."""
        ...

    @property
    def high(self) -> Floats:
        """Upper end of the interval."""
        ...

    @property
    def limit(self) -> float:
        """Without noise."""
        ...


class Answer(Protocol):
    """What is drawn of an answer; see `eelsflow.dose.Answer`."""

    @property
    def target(self) -> float:
        """What is wanted."""
        ...

    @property
    def factor(self) -> float | None:
        """Where it is reached."""
        ...


@figure_style()
def dose_figure(
    accuracy: tuple[Curve, Curve],
    fraction_error: tuple[Curve, Curve],
    *,
    electrons: float,
    answers: Mapping[str, tuple[Answer, Answer]],
    n_classes: int,
    title: str,
) -> Figure:
    """Draw what doses give.

    Parameters
    ----------
    accuracy, fraction_error
        Against the dose, and against the number of averaged pixels.
    electrons
        Of the acquisition, per pixel and channel of .1 eV.
    answers
        As `eelsflow.dose.DosePlan.answers`.
    n_classes
        Chance gives one part of so many.
    title
        Above the figure.
    """
    figure = new_figure(PAGE_WIDTH, 3.6)
    left, right = figure.subplots(1, 2)
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    for axes, name, curves in ((left, "accuracy", accuracy), (right, "fraction_error", fraction_error)):
        _draw(axes, curves, electrons, answers.get(name))
    left.axhline(1 / n_classes, color=GREY, linestyle=":", linewidth=0.9)
    left.text(0.99, 1 / n_classes, "chance", color=GREY, ha="right", va="bottom", transform=left.get_yaxis_transform())
    left.set(ylim=(1 / n_classes - 0.03, 1.01), ylabel="Single pixels named rightly")
    right.set(yscale="log", ylabel="Standard error of a fraction")
    smallest = min(float(fraction_error[0].low.min()), *(one.target for one in answers.get("fraction_error", ())), 0.1)
    right.set_ylim(max(smallest / 1.5, 1e-3), 1.0)
    right.set_yticks([tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if tick >= right.get_ylim()[0]])
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _draw(axes: Axes, curves: tuple[Curve, Curve], electrons: float, answers: tuple[Answer, Answer] | None) -> None:
    dose, averaged = curves
    x = electrons * dose.factor
    axes.fill_between(x, dose.low, dose.high, color=BLUE, alpha=0.18, linewidth=0, label="90 % of such acquisitions")
    axes.plot(x, dose.value, color=BLUE, label="at another dose")
    axes.plot(
        electrons * averaged.factor[averaged.factor >= 1],
        averaged.value[averaged.factor >= 1],
        color=ORANGE,
        linestyle="--",
        label="pixels averaged at this dose",
    )
    axes.axhline(dose.limit, color=GREY, linestyle="-.", linewidth=0.9, label="without noise")
    axes.axvline(electrons, color=BLACK, linestyle=":", linewidth=1.0, label=f"this acquisition ({electrons:.3g})")
    if answers is not None:
        axes.axhline(answers[0].target, color=VERMILION, linewidth=0.8)
        axes.text(0.01, answers[0].target, f"wanted: {answers[0].target:g}", color=VERMILION, va="bottom",
                  transform=axes.get_yaxis_transform())  # fmt: skip
        if answers[0].factor is not None:
            named = electrons * answers[0].factor
            axes.plot([named], [answers[0].target], "o", color=VERMILION, markersize=5)
            axes.annotate(
                f"{named:.3g}",
                (named, answers[0].target),
                xytext=(6, -10),
                textcoords="offset points",
                color=VERMILION,
            )
    axes.set(xscale="log", xlabel=X_LABEL, xlim=(x[0], x[-1]))
    axes.grid(alpha=0.25)

    def relative(at: Any) -> Any:
        return at / electrons

    def absolute(at: Any) -> Any:
        return at * electrons

    top = axes.secondary_xaxis("top", functions=(relative, absolute))
    top.set_xlabel("Dose relative to this acquisition, or pixels averaged")
