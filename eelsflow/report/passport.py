"""Robustness passports: for each model one page with what it was trained on, what it is worth, and what it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.report.gallery import Gallery, Picture
from eelsflow.report.results import chance_of, read_optional_json
from eelsflow.report.style import format_number, model_styles
from eelsflow.report.wording import counted
from eelsflow.robustness.curves import DOSE_CURVE
from eelsflow.robustness.scores import BREAKDOWN_FRACTION, area_under_curve, share_score

if TYPE_CHECKING:
    import xarray as xr

FOLDER = "passports"
"""In a results directory; one HTML file a model."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stand:
    """How a perturbation is spoken of.

    Attributes
    ----------
    title
        Of its curve.
    holds
        What is said of the largest amplitude that a model stands, with ``{}`` for it.
    fails
        What is said where it does not stand the smallest that was tried.
    mildest
        The amplitude that disturbs nothing, or least.
    scale
        From the amplitude to what is said.
    """

    title: str
    holds: str
    fails: str
    mildest: float = 0.0
    scale: float = 1.0


STANDS: dict[str, Stand] = {
    "shift_ev": Stand("Axis shifted (eV)", "{} eV on the axis", "an axis off by {} eV"),
    "dispersion_error": Stand(
        "Dispersion wrong (%)", "a dispersion wrong by {} %", "a dispersion wrong by {} %", scale=100.0
    ),
    "dose": Stand(
        "Dose (electrons per 0.1 eV)",
        "{} electrons per channel of 0.1 eV",
        "{} electrons per channel of 0.1 eV",
        mildest=np.inf,
    ),
    "poisson_peak_counts": Stand("Dose (counts at the peak)", "{} counts at the peak", "{} counts at the peak", np.inf),
    "noise_sigma": Stand(
        "Gaussian noise (of the range)",
        "Gaussian noise of {} of the spectrum's range",
        "Gaussian noise of {}",
    ),
    "t_over_lambda": Stand(
        "Thicker by t/\N{GREEK SMALL LETTER LAMDA}",
        "{} more in t/\N{GREEK SMALL LETTER LAMDA}",
        "{} more in t/\N{GREEK SMALL LETTER LAMDA}",
    ),
    "broadening": Stand("Broadened by (eV, FWHM)", "{} eV of broadening", "{} eV of broadening"),
    "pca_residual": Stand("Residual noise (times)", "{} times the residual noise", "{} times the residual noise", 1.0),
}
"""Perturbation -> how it is spoken of, in the order of the page."""


ABOVE_CHANCE = 0.02
"""By how much an accuracy has to be above chance to be called more than chance."""

AT_CHANCE = "Is no better than always answering the most frequent class."


@dataclass(frozen=True)
class Range:
    """What a model stands of one perturbation: nine tenths of its accuracy on spectra as they are.

    Attributes
    ----------
    low, high
        The last amplitudes on either side of the mildest up to which it holds; equal to the mildest where it does not
        stand the first step.
    first_low, first_high
        The first amplitudes at which it does not hold, or None where it holds at all that were tried.
    mildest
        The mildest amplitude that was tried.
    """

    low: float
    high: float
    first_low: float | None
    first_high: float | None
    mildest: float = 0.0


def find_range(amplitudes: Floats, accuracy: Floats, *, clean: float, mildest: float, chance: float = 0.0) -> Range:
    """Return between which amplitudes accuracy stays above chance, and at `BREAKDOWN_FRACTION` of the clean one.

    Parameters
    ----------
    amplitudes
        Shape (n,), ascending.
    accuracy
        Shape (n,).
    clean
        Accuracy of the spectra as they are.
    mildest
        Amplitude that disturbs nothing, or least; infinite for a dose.
    chance
        Accuracy of always answering the most frequent class.
    """
    holds = accuracy >= max(BREAKDOWN_FRACTION * clean, chance + ABOVE_CHANCE)
    start = int(np.abs(amplitudes - mildest).argmin()) if np.isfinite(mildest) else amplitudes.size - 1
    ends: list[tuple[float, float | None]] = []
    for side in (range(start, -1, -1), range(start, amplitudes.size)):
        last, first = float(amplitudes[start]), None
        for index in side:
            if not holds[index]:
                first = float(amplitudes[index])
                break
            last = float(amplitudes[index])
        ends.append((last, first))
    (low, first_low), (high, first_high) = ends
    return Range(low, high, first_low, first_high, float(amplitudes[start]))


def say_range(name: str, found: Range) -> tuple[bool, str]:
    """Return whether a model stands a perturbation at all, and how far, in words.

    >>> say_range("shift_ev", Range(-8.0, 8.0, -9.0, 9.0))
    (True, 'to ±8 eV on the axis')
    >>> say_range("dose", Range(3.0, 30.0, 2.0, None, mildest=30.0))
    (True, 'to 3 electrons per channel of 0.1 eV')
    >>> say_range("noise_sigma", Range(0.0, 0.3, None, None))
    (True, "to Gaussian noise of 0.3 of the spectrum's range (the most tried)")
    >>> say_range("broadening", Range(0.0, 0.0, None, 0.5))
    (False, '0.5 eV of broadening')
    """
    stand = STANDS[name]
    firsts = [value for value in (found.first_low, found.first_high) if value is not None]
    if found.low == found.high == found.mildest and firsts:  # not even the mildest, or the first step from it
        failed = found.mildest if found.mildest in firsts else min(firsts, key=lambda value: abs(value - found.mildest))
        return False, stand.fails.format(format_number(abs(failed) * stand.scale))
    low, high = found.low * stand.scale, found.high * stand.scale
    if stand.mildest == np.inf:
        tried = "" if found.first_low is not None else " (the least tried)"
        return True, f"to {stand.holds.format(format_number(low))}{tried}"
    tried = "" if firsts else " (the most tried)"
    if found.low == found.mildest and found.first_low is None:  # nothing was tried on that side
        return True, f"to {stand.holds.format(format_number(high))}{tried}"
    if -low == high:
        return True, f"to {stand.holds.format(f'{chr(0xB1)}{format_number(high)}')}{tried}"
    return True, f"with {stand.holds.format(f'{_signed(low)} to {_signed(high)}')}{tried}"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else chr(0x2212) if value < 0 else ''}{format_number(abs(value))}"


def say_stand(ranges: Mapping[str, Range]) -> str:
    """Return one plain sentence of what a model stands and what it does not."""
    said = [say_range(name, found) for name, found in ranges.items()]
    held = [text for holds, text in said if holds]
    broken = [text for holds, text in said if not holds]
    if not said:
        return ""
    parts = []
    if held:
        parts.append(f"Holds {_enumerate(held)}.")
    if broken:
        parts.append(f"Does not hold with {_enumerate(broken, 'or')}.")
    return " ".join(parts)


def _enumerate(items: Sequence[str], last: str = "and") -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def stands_of(
    dataset: xr.Dataset | None, row: Mapping[str, Any], perturbations: Sequence[str], *, chance: float
) -> list[str]:
    """Return in words how far the model of a row of results stands each perturbation; empty where it was not tried."""
    curves = {} if dataset is None else _curves_of(dataset, (row["model"], row["preprocess"], row["split"]))
    if row["accuracy"]["mean"] < chance + ABOVE_CHANCE:
        return ["" for _ in perturbations]
    ranges = _ranges_of(curves, row, chance)
    said = {name: say_range(name, found) for name, found in ranges.items()}
    return [("" if said[name][0] else "not ") + said[name][1] if name in said else "" for name in perturbations]


def _ranges_of(curves: Mapping[str, Mapping[str, Floats]], row: Mapping[str, Any], chance: float) -> dict[str, Range]:
    options = {"clean": row["accuracy"]["mean"], "chance": chance}
    return {
        name: find_range(curve["amplitude"], curve["mean"], mildest=STANDS[name].mildest, **options)
        for name, curve in curves.items()
    }


def show_passports(
    directory: Path,
    dataset: xr.Dataset | None,
    results: Mapping[str, Any],
    gallery: Gallery,
) -> list[dict[str, Any]]:
    """Return a passport of every model and preset, with its figure; none without curves.

    A model is judged by the acquisitions that it has not seen where the study held some out, by random spectra
    otherwise.
    """
    from eelsflow.report.explanation_figure import explanation_figure, say_bands
    from eelsflow.report.passport_figure import draw_passport

    if dataset is None:
        return []
    evidence = {
        (entry["model"], entry["preprocess"], entry["split"]): entry
        for entry in read_optional_json(directory / "evidence" / "passports.json")
    }
    explained = {
        (entry["model"], entry["preprocess"], entry["split"]): entry["explanation"]
        for entry in read_optional_json(directory / "evidence" / "explanations.json")
    }
    chance = chance_of(results)
    several = len({row["preprocess"] for row in results["models"]}) > 1
    by_group = {(row["model"], row["preprocess"]) for row in results["models"] if row["split"] == "group"}
    styles = model_styles([(row["model"], row.get("base") or row["model"]) for row in results["models"]])
    passports = []
    for row in results["models"]:
        key = row["model"], row["preprocess"], row["split"]
        if row["split"] != "group" and key[:2] in by_group:
            continue
        curves = _curves_of(dataset, key)
        if not curves or not isinstance(row["accuracy"], Mapping):
            continue
        ranges = _ranges_of(curves, row, chance)
        about = evidence.get(key, {})
        title = f"{row['model']} ({row['preprocess']})" if several else row["model"]
        passport = {
            "title": title,
            "file": f"{_slug(title)}.html",
            "model": row["model"],
            "preprocess": row["preprocess"],
            "row": row,
            "stand": AT_CHANCE if row["accuracy"]["mean"] < chance + ABOVE_CHANCE else say_stand(ranges),
            "worth": _say_worth(row, about),
            "trained_on": _say_training(row, about, results),
            "groups": _groups(about),
            "curves": [
                _describe(name, curve, found)
                for (name, curve), found in zip(curves.items(), ranges.values(), strict=True)
            ],
        }
        passport["picture"] = gallery.add(
            f"passport-{_slug(title)}",
            draw_passport(passport, curves, classes=results["classes"], style=styles[row["model"]]),
            alt=f"Passport of {title}. {passport['worth']} {passport['stand']}",
            caption="Dots: single acquisitions with the 95 % interval of their spectra. Curves: mean over seeds; band: "
            "95 % interval over acquisitions where these were held out, else over seeds; shaded: nine tenths of the "
            "clean accuracy or more.",
        )
        passport["decides"], passport["energies"] = None, []
        if (explanation := explained.get(key)) is not None:
            explanation = {**explanation, "model": title}
            passport["energies"] = say_bands(explanation)
            passport["decides"] = gallery.add(
                f"energies-{_slug(title)}",
                explanation_figure(explanation),
                alt=f"Which energies decide: {' '.join(passport['energies'])}",
                caption=_say_method(explanation),
            )
        passports.append(passport)
    return passports


def _say_method(explanation: Mapping[str, Any]) -> str:
    """Return how contributions were found, for the caption of their figure."""
    how = (
        "Terms of the machine's own sum over channels, which add up to its decision"
        if explanation["method"] == "exact"
        else "What the log-odds lose where a band is replaced by that of the mean spectrum; bands of which any one "
        "would do show nothing"
    )
    several = f"; mean of {len(explanation['by_model'])} splits, and each" if "by_model" in explanation else ""
    return f"{how}. The classes' mean spectra against {explanation['compared_with']}{several}."


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")


def _curves_of(dataset: xr.Dataset, key: tuple[str, str, str]) -> dict[str, dict[str, Floats]]:
    """Return amplitudes in ascending order with mean, low and high of each perturbation that was tried."""
    found = {}
    model, preset, split = key
    for name in STANDS:
        if name not in dataset["perturbation"].values:
            continue
        try:
            part = dataset.sel(perturbation=name, model=model, preprocess=preset, split=split)
        except KeyError:
            continue
        if name == "dose" and str(part["unit"].values) != DOSE_CURVE.unit:
            continue  # of an earlier version, relative to the recording
        amplitudes = np.asarray(part["amplitude_value"].values, dtype=np.float64)
        values = part["accuracy"].transpose("amplitude", "seed").values
        order = np.argsort(amplitudes)[: int(np.isfinite(amplitudes).sum())]
        order = order[np.isfinite(values[order]).any(axis=1)]
        if not order.size:
            continue
        values = values[order]
        low, high = np.nanpercentile(values, [2.5, 97.5], axis=1)
        if "low" in part and np.isfinite(part["low"].values[order]).all():
            low, high = part["low"].values[order], part["high"].values[order]
        found[name] = {"amplitude": amplitudes[order], "mean": np.nanmean(values, axis=1), "low": low, "high": high}
    return found


def _describe(name: str, curve: Mapping[str, Floats], found: Range) -> dict[str, Any]:
    """Return the row of a curve in the passport's table."""
    stand, mean = STANDS[name], curve["mean"]
    worst = int(mean.argmin())
    firsts = list(dict.fromkeys(value for value in (found.first_low, found.first_high) if value is not None))
    return {
        "title": stand.title,
        "holds": say_range(name, found),
        "breakdown": [_signed(v * stand.scale) if len(firsts) > 1 else format_number(v * stand.scale) for v in firsts],
        "area": area_under_curve(curve["amplitude"], mean) if mean.size > 1 else None,
        "worst": {
            "accuracy": {
                "mean": float(mean[worst]),
                "low": float(curve["low"][worst]),
                "high": float(curve["high"][worst]),
            },
            "amplitude": format_number(float(curve["amplitude"][worst]) * stand.scale),
        },
    }


def _groups(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tested acquisitions from the best to the worst, with the interval of each."""
    rows = []
    for group in about.get("groups", []):
        found = share_score(round(group["right"]), round(group["tested"]))
        rows.append({**group, "accuracy": group["right"] / group["tested"], "low": found.low, "high": found.high})
    return sorted(rows, key=lambda group: (-group["accuracy"], group["name"]))


def _say_worth(row: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    score = row["accuracy"]
    interval = "" if score["low"] is None else f" (95 % interval {score['low']:.3f} to {score['high']:.3f})"
    of = "single spectra of acquisitions that it has not seen" if row["split"] == "group" else "random test spectra"
    tested = about.get("groups")
    among = f", {counted(len(tested), 'acquisition')}" if tested else ""
    return f"Right for {score['mean']:.3f} of {of}{interval}{among}."


def _say_training(row: Mapping[str, Any], about: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    classes = ", ".join(results["classes"])
    edge = (results.get("edge") or {}).get("name")
    text = f"{classes}{f' at {edge}' if edge else ''}, prepared as {row['preprocess']!r}"
    if about:
        text = f"{about['train_spectra']:,.0f} spectra of {text}"
        if about["train_groups"]:
            text += f", from {about['train_groups']:.0f} acquisitions"
    return f"{text}; mean of {counted(row['seeds'], 'split')}." if isinstance(row["seeds"], int) else f"{text}."


def picture_of_final(passports: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> Picture | None:
    """Return the passport's picture of the model that the study keeps, if there is one."""
    final = results.get("final_model") or {}
    for passport in passports:
        if (passport["model"], passport["preprocess"]) == (final.get("model"), final.get("preprocess")):
            picture: Picture = passport["picture"]
            return picture
    return None
