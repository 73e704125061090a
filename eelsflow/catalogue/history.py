"""The history of the recordings: each of their conditions, acquisition after acquisition, over the training's range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eelsflow.catalogue.ledger import Catalogue
from eelsflow.catalogue.states import Acquisition, State
from eelsflow.maps.drift import QUANTITIES
from eelsflow.report.style import BLUE, GREY, PAGE_WIDTH, VERMILION, figure_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def recorded_in(catalogue: Catalogue) -> list[Acquisition]:
    """Return the acquisitions whose maps tell how they were recorded, in the order of the maps."""
    mapped = [one for one in catalogue.select() if one.state is State.CLASSIFIED and one.alias_of is None]
    return sorted((one for one in mapped if "conditions" in one.facts), key=lambda one: (one.changed, one.id))


@figure_style()
def history_figure(recorded: Sequence[Acquisition]) -> Figure:
    """Draw what is known of every recording; a cross is outside of the range of the model that mapped it."""
    names = [name for name in QUANTITIES if any(_value(one, name) is not None for one in recorded)]
    figure = new_figure(PAGE_WIDTH, 0.5 + 1.35 * max(len(names), 1))
    axes = figure.subplots(max(len(names), 1), 1, squeeze=False, sharex=True)[:, 0]
    for panel, name in zip(axes, names, strict=False):
        _draw(panel, name, recorded)
    axes[0].legend(loc="upper left", ncols=3)
    axes[-1].set_xlabel("acquisition, in the order of the maps")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _draw(panel: Any, name: str, recorded: Sequence[Acquisition]) -> None:
    title, unit, _, _ = QUANTITIES[name]
    points = [(number, one) for number, one in enumerate(recorded, 1) if _value(one, name) is not None]
    training = (points[-1][1].facts.get("training") or {}).get(name)
    if training is not None:
        panel.axhspan(training["low"], training["high"], color="#DDDDDD", linewidth=0, label="training acquisitions")
    x, y = [number for number, _ in points], [_value(one, name) for _, one in points]
    panel.plot(x, y, color=GREY, linewidth=0.6)
    panel.plot(x, y, linestyle="none", marker="o", color=BLUE, label="acquisitions")
    out = [(number, _value(one, name)) for number, one in points if _is_outside(one, title)]
    if out:
        look = {"linestyle": "none", "marker": "X", "markersize": 6, "color": VERMILION}
        panel.plot([number for number, _ in out], [value for _, value in out], label="outside", **look)
    panel.set_title(title)
    panel.set_ylabel(unit.replace(" per channel", "\nper channel").replace("per channel of ", "per "))


def _value(one: Acquisition, name: str) -> float | None:
    value: float | None = one.facts["conditions"].get(name)
    return value


def _is_outside(one: Acquisition, title: str) -> bool:
    return any(text.startswith(title) for text in one.facts.get("drift", []))
