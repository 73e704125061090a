"""The scores of maps of held-out acquisitions, gathered over seeds: one row for each model and preset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from eelsflow.maps.score import calibration_error
from eelsflow.robustness.choice import ChosenScore, chosen_score
from eelsflow.robustness.scores import Score
from eelsflow.store import Store, read_json
from eelsflow.study.plan import ScoreMaps

Row = dict[str, Any]


def map_rows(steps: Sequence[ScoreMaps], store: Store) -> list[Row]:
    """Return one row for each model and preset that maps were drawn with.

    Each row has ``score``: the mean of the accuracy of pure fields and of the balanced accuracy of mixed ones (of what
    there is of the two), with a 95 % interval over acquisitions; the two apart; how many mixed fields show one class
    only; and the figures of fractions, boundaries, calibration and unknown pixels.
    """
    by_row: dict[tuple[str, str], list[ScoreMaps]] = defaultdict(list)
    for step in steps:
        by_row[step.fit.model.name, step.fit.preset.name].append(step)
    rows = []
    for (model, preset), members in by_row.items():
        fields = _fields(members, store)
        if fields:
            rows.append({"model": model, "preprocess": preset, **_row(fields)})
    return rows


def _fields(steps: Sequence[ScoreMaps], store: Store) -> list[Row]:
    return [field for step in steps for field in read_json(store.path(step.digest) / "scores.json")["maps"]]


def _row(fields: Sequence[Row]) -> Row:
    pure, mixed = ([field for field in fields if field["kind"] == kind] for kind in ("pure", "mixed"))
    bins = np.sum([field["calibration"] for field in fields], axis=0)
    return {
        "acquisitions": len({field["acquisition"] for field in fields}),
        "maps": len(fields),
        "score": _both(pure, mixed).model_dump(),
        "pure": _mean(_by_acquisition(pure, "balanced_accuracy")).model_dump() if pure else None,
        "mixed": _mean(_by_acquisition(mixed, "balanced_accuracy")).model_dump() if mixed else None,
        "n_pure": len(pure),
        "n_mixed": len(mixed),
        "one_class": sum(field["one_class"] for field in mixed),
        "boundary": _plain_mean(fields, "boundary_accuracy"),
        "fraction_rmse": _root_mean_square(fields, "fraction_rmse"),
        "fraction_coverage": _plain_mean(fields, "fraction_coverage"),
        "calibration_error": calibration_error(bins),
        "unknown": _plain_mean(fields, "unknown"),
    }


def score_of(fields: Sequence[Row]) -> float:
    """Return the score of maps: the mean over acquisitions of pure fields, and of mixed ones, and of these two."""
    parts = [[field for field in fields if field["kind"] == kind] for kind in ("pure", "mixed")]
    return float(np.mean([_by_acquisition(part, "balanced_accuracy").mean() for part in parts if part]))


def _by_acquisition(fields: Sequence[Row], name: str) -> NDArray[np.float64]:
    """Return the mean over the seeds of each acquisition: one acquisition is one observation."""
    values: dict[str, list[float]] = defaultdict(list)
    for field in fields:
        values[field["acquisition"]].append(field[name])
    return np.array([np.mean(found) for found in values.values()])


def _mean(values: NDArray[np.float64]) -> Score:
    """Return the mean over acquisitions with its 95 % interval (Student), within 0 and 1."""
    mean = float(values.mean())
    if values.size < 2:
        return Score(mean=mean, low=None, high=None)
    half = float(student.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return Score(mean=mean, low=max(mean - half, 0.0), high=min(mean + half, 1.0))


def _both(pure: Sequence[Row], mixed: Sequence[Row]) -> Score:
    parts = [_mean(_by_acquisition(part, "balanced_accuracy")) for part in (pure, mixed) if part]
    mean = float(np.mean([part.mean for part in parts]))
    halves = [part.high - part.mean for part in parts if part.high is not None and part.low is not None]
    lows = [part.mean - part.low for part in parts if part.low is not None]
    if len(lows) < len(parts):
        return Score(mean=mean, low=None, high=None)
    # pure and mixed fields are other acquisitions, so their errors are independent
    return Score(
        mean=mean,
        low=max(mean - float(np.hypot.reduce(lows)) / len(parts), 0.0),
        high=min(mean + float(np.hypot.reduce(halves)) / len(parts), 1.0),
    )


def _plain_mean(fields: Sequence[Row], name: str) -> float | None:
    values = [field[name] for field in fields if field[name] is not None]
    return float(np.mean(values)) if values else None


def _root_mean_square(fields: Sequence[Row], name: str) -> float | None:
    values = [field[name] for field in fields if field[name] is not None]
    return float(np.sqrt(np.mean(np.square(values)))) if values else None


def best_maps(rows: Sequence[Row]) -> Row | None:
    """Return the row with the best score of maps, the first of equals; None without any."""
    return max(rows, key=lambda row: row["score"]["mean"], default=None)


def expected_of_chosen(steps: Sequence[ScoreMaps], store: Store) -> ChosenScore | None:
    """Return what to expect of the maps of the model that is chosen by these maps; None where it cannot be told.

    The best row of a table is the best partly by luck; see `eelsflow.robustness.choice`. Here the candidates are
    compared by the mean recall over all acquisitions, every acquisition counting the same.
    """
    by_row: dict[tuple[str, str], list[ScoreMaps]] = defaultdict(list)
    for step in steps:
        by_row[step.fit.model.name, step.fit.preset.name].append(step)
    recalls: list[dict[str, NDArray[np.float64]]] = []
    for members in by_row.values():
        found: dict[str, list[list[float]]] = defaultdict(list)
        for field in _fields(members, store):
            found[field["acquisition"]].append([np.nan if value is None else value for value in field["recall"]])
        # a class that a field does not show is NaN in all of its maps, and stays so
        recalls.append({name: np.mean(values, axis=0) for name, values in _complete(found).items()})
    if not recalls:
        return None
    common = sorted(
        name
        for name in set.intersection(*(set(found) for found in recalls))
        # presets take other pixels for vacuum, so that a class may be shown by one candidate's map and not by another's
        if len({tuple(np.isnan(found[name])) for found in recalls}) == 1
    )
    if not common:
        return None
    hits = np.array([[np.nan_to_num(found[name]) for name in common] for found in recalls])
    sizes = np.isfinite(np.array([recalls[0][name] for name in common])).astype(np.float64)
    if (sizes.sum(axis=0) == 0).any() or (sizes.sum(axis=1) == 0).any():
        return None
    return chosen_score(hits, sizes)


def _complete(found: dict[str, list[list[float]]]) -> dict[str, list[list[float]]]:
    """Leave out maps in which a class is shown that another map of the same acquisition does not show."""
    return {name: values for name, values in found.items() if len({tuple(np.isnan(value)) for value in values}) == 1}
