"""What the paper found, looked for in a study: does it come out here, and if not, why."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from eelsflow.report import paper
from eelsflow.report.results import mean_of

NEAR_CHANCE = 0.15
"""How far above chance is still near it: the paper calls .52 to .61 so, of two classes."""

NEARLY_LINEAR = 0.01
"""Gamma up to which the kernel of spectra between 0 and 1 hardly curves: their products are some tens."""

MACHINES = ("svm-linear", "svm-rbf", "svm-sigmoid", "svm-sgd")


def find_trends(tables: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the paper's trends with what this study says of them; none where its tables are not comparable.

    Parameters
    ----------
    tables
        As `eelsflow.report.tables.build_paper_tables` returns them.
    classes
        Of the study.

    Returns
    -------
    list of dict
        ``trend``, ``holds``, ``found`` (the figures) and ``why`` (empty where it holds).
    """
    if tables["reason"]:
        return []
    clean = {
        row["model"]: row
        for row in (*tables["first"], *tables["second"])
        if row["trained_on"] == paper.TRAINED_ON["paper"]
    }
    chance = 1.0 / max(len(classes), 1)
    found = [
        _order_on_clean(clean),
        _near_chance_when_shifted(clean, chance),
        _networks_stand_shifts(clean),
        _descent_stands_noise(clean),
    ]
    return [trend for trend in found if trend is not None]


def _scores(rows: Mapping[str, Any], names: Sequence[str], score: str) -> dict[str, float]:
    values = {name: mean_of(rows[name].get(score)) for name in names if name in rows}
    return {name: value for name, value in values.items() if value is not None}


def _say(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _order_on_clean(rows: Mapping[str, Any]) -> dict[str, Any] | None:
    names = ("svm-rbf", "svm-linear", "svm-sigmoid")
    values = _scores(rows, names, "accuracy")
    if len(values) < len(names):
        return None
    rbf, linear, sigmoid = (values[name] for name in names)
    holds = all(_is_above(rows[one], rows[other]) for one, other in itertools.pairwise(names))
    why = []
    for name, value in (("svm-rbf", rbf), ("svm-sigmoid", sigmoid)):
        gamma = (rows[name].get("best_params") or {}).get("gamma")
        if abs(value - linear) < 0.01 and gamma is not None and gamma <= NEARLY_LINEAR:
            why.append(
                f"the search chose gamma = {gamma:g} for {name}, at which its kernel is nearly linear, so it is the "
                "linear machine over again"
            )
    if abs(rbf - linear) < 0.005 and not any("svm-rbf" in reason for reason in why):
        why.append("a plane tells the classes of these spectra apart as well as a curved surface does")
    if not holds and not why:
        why.append("the differences are within the intervals or the other way round on these spectra")
    return {
        "trend": "Clean spectra, random split: RBF above linear above sigmoid",
        "holds": holds,
        "found": _say(values),
        "why": "" if holds else "; ".join(why),
    }


def _is_above(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether one accuracy lies above another's interval."""
    score, against = row["accuracy"], other["accuracy"]
    return bool(score["mean"] > (against["mean"] if against.get("high") is None else against["high"]))


def _near_chance_when_shifted(rows: Mapping[str, Any], chance: float) -> dict[str, Any] | None:
    values = _scores(rows, [name for name in rows if name.startswith("svm-")], "translation")
    if not values:
        return None
    apart = [name for name, value in values.items() if value > chance + NEAR_CHANCE]
    return {
        "trend": "Shifts of up to 5 eV: every machine near chance",
        "holds": not apart,
        "found": _say(values),
        "why": f"{', '.join(apart)} keep more: what they weigh lies in features wider than the shift" if apart else "",
    }


def _networks_stand_shifts(rows: Mapping[str, Any]) -> dict[str, Any] | None:
    networks, machines = (_scores(rows, names, "translation") for names in (("cnn-1", "cnn-2"), MACHINES))
    if not networks or not machines:
        return None
    holds = min(networks.values()) > max(machines.values())
    return {
        "trend": "Shifts of up to 5 eV: convolutional networks ahead of machines",
        "holds": holds,
        "found": _say({**networks, **machines}),
        "why": "" if holds else "pooling did not make up for the place of the features on these spectra",
    }


def _descent_stands_noise(rows: Mapping[str, Any]) -> dict[str, Any] | None:
    large = [name for name, row in rows.items() if ((row.get("best_params") or {}).get("C") or 0) >= 100]
    values, others = _scores(rows, ["svm-sgd"], "noise"), _scores(rows, large, "noise")
    if not values or not others:
        return None
    holds = values["svm-sgd"] > max(others.values())
    return {
        "trend": "Noise: gradient descent ahead of kernels with a large C",
        "holds": holds,
        "found": _say({**values, **others}),
        "why": "" if holds else "the machines with a large C were not fitted to directions that noise fills",
    }
