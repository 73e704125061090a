"""What the report says in words and numbers: inputs, warnings, highlights, and the tables in the paper's layout."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eelsflow.report import paper, wording
from eelsflow.report.results import SCORES, mean_of, unique
from eelsflow.robustness.compare import SIGNIFICANT


def collect_warnings(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each distinct warning once, with the acquisitions it came from; those of one model stand in its row."""
    sources: dict[str, list[str]] = {}
    for entry in results["acquisitions"]:
        for text in entry.get("warnings") or []:
            sources.setdefault(text, []).append(f"{entry.get('name')} ({entry.get('preprocess')})")
    # A study repeats the warnings of its parts, with their names before them.
    repeated = {f"{name}: {text}" for text, names in sources.items() for name in names}
    repeated |= {
        f"{row['model']} ({row.get('preprocess')}, {row.get('split')}): {text}"
        for row in results["models"]
        for text in row.get("warnings") or []
    }
    of_study = [text for text in map(str, results["warnings"]) if text not in repeated and text not in sources]
    listed = {**{text: [] for text in of_study}, **sources}
    return [{"text": text, "sources": list(dict.fromkeys(names))} for text, names in listed.items()]


def list_inputs(results: Mapping[str, Any], provenance: str | None) -> list[dict[str, Any]]:
    """Return the files that went in, once each: acquisitions, or the tables that provenance names."""
    inputs: dict[tuple[Any, Any], dict[str, Any]] = {}
    for entry in results["acquisitions"]:
        inputs.setdefault((entry.get("name"), entry.get("sha256")), entry)
    if inputs or provenance is None:
        return list(inputs.values())
    tables = json.loads(provenance).get("inputs") or {}
    return [
        {"name": name, "sha256": table.get("sha256"), "label": None, "group": None} for name, table in tables.items()
    ]


def choose_highlights(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the figures a reader looks for first: what the maps are worth, then what single spectra are."""
    highlights = [
        {
            "value": f"{row['accuracy']['mean']:.3f}",
            "label": f"of the labels told without any chemistry, {row['preprocess']}, by {row['split']} (chance "
            f"{row['chance']:.2f}): scores below may measure the recordings",
        }
        for row in results["shortcuts"]
        if row["told"]
    ]
    highlights += _map_highlights(results)
    for split, what in (("group", "on held-out acquisitions"), ("pixel", "by random pixel split")):
        rows = [
            row for row in results["models"] if row.get("split") == split and mean_of(row.get("accuracy")) is not None
        ]
        if rows:
            best = max(rows, key=lambda row: mean_of(row["accuracy"]) or 0.0)
            highlights.append(
                {
                    "value": f"{mean_of(best['accuracy']):.3f}",
                    "label": f"best accuracy {what}: {best['model']}, {best.get('preprocess')}",
                }
            )
    translated = [row for row in results["models"] if mean_of(row.get("translation")) is not None]
    if translated:
        split = "group" if any(row.get("split") == "group" for row in translated) else translated[0].get("split")
        best = max(
            (row for row in translated if row.get("split") == split), key=lambda row: mean_of(row["translation"]) or 0.0
        )
        highlights.append(
            {
                "value": f"{mean_of(best['translation']):.3f}",
                "label": f"best accuracy on shifted spectra ({split} split): {best['model']}, {best.get('preprocess')}",
            }
        )
    return highlights


def _map_highlights(results: Mapping[str, Any]) -> list[dict[str, str]]:
    final = results.get("final_model") or {}
    row = next(
        (
            row
            for row in results["maps"]
            if (row["model"], row["preprocess"]) == (final.get("model"), final.get("preprocess"))
        ),
        None,
    )
    if row is None:
        return []
    found = [
        {
            "value": f"{row['score']['mean']:.3f}",
            "label": f"pixels right in maps of held-out fields, classes and kinds of field counting the same: "
            f"{row['model']}, {row['preprocess']}, chosen by this",
        }
    ]
    for kind, what in (("pure", "of one phase"), ("mixed", "of two phases")):
        if row.get(kind):
            found.append({"value": f"{row[kind]['mean']:.3f}", "label": f"of it in {row['n_' + kind]} fields {what}"})
    return found


def build_paper_tables(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return Tables I and II in the paper's layout, with the paper's values where they fit.

    The paper splits pixels at random, so these tables use the pixel split; a study without one shows its own split
    and no values of the paper.
    """
    rows = results["models"]
    splits = unique(rows, "split")
    split = "pixel" if "pixel" in splits else (splits[0] if splits else "")
    presets = unique(rows, "preprocess")
    main = "paper" if "paper" in presets else (presets[0] if presets else "")
    edge_name = str((results.get("edge") or {}).get("name", ""))
    reason = paper.reason_not_comparable(edge_name, results["classes"])
    if reason is None and split != "pixel":
        reason = "they are for a random split of pixels, which this study did not run"
    if reason is None and not set(presets) & set(paper.TRAINED_ON):
        reason = "they are for the presets paper and paper-raw, which this study did not run"
    networks = {row["model"] for row in rows if (row.get("base") or row["model"]) in paper.TABLE_II}
    order = {name: number for number, name in enumerate((*paper.TABLE_I, *paper.TABLE_II))}
    two_phases = {(row["model"], row["preprocess"]): row.get("mixed") for row in results["maps"]}

    def rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
        base = row.get("base") or row["model"]
        return order.get(row["model"], order.get(base, 99)), row["model"] != base, row["model"]

    def table(names: Callable[[str], bool], keep: Sequence[str]) -> list[dict[str, Any]]:
        chosen = [row for row in rows if row.get("split") == split and row.get("preprocess") in keep]
        chosen = [row for row in chosen if names(row["model"])]
        chosen.sort(key=lambda row: (*rank(row), keep.index(row["preprocess"])))
        return [
            {
                **row,
                "trained_on": paper.TRAINED_ON.get(row["preprocess"], row["preprocess"]),
                "paper": paper.ROWS.get((row["model"], row["preprocess"])) if reason is None else None,
                "two_phases": two_phases.get((row["model"], row["preprocess"])),
                "search": wording.searched(row.get("searches"), row.get("seeds")),
            }
            for row in chosen
        ]

    trained_on = sorted(presets, key=lambda preset: (list(paper.TRAINED_ON) + presets).index(preset))
    return {
        "split": split,
        "preset": main,
        "reason": reason,
        "first": table(lambda name: name not in networks, trained_on),
        "second": table(lambda name: name in networks, trained_on),
    }


_COLUMNS = ("accuracy", "translation", "translation_3", "translation_1", "noise", "noise_0.10", "two_phases")
"""The scores of a table, each with its interval; the paper has the first of each kind."""


def write_tables(directory: Path, tables: Mapping[str, Any]) -> None:
    """Write Tables I and II as CSV: ``table1.csv`` and ``table2.csv``, a line a model, empty where nothing is known.

    Columns are ``model``, ``trained_on``, ``seeds``, ``search``, ``best_params``, ``train_seconds``, and of each score
    the mean over seeds and both ends of its 95 % interval (``accuracy``, ``accuracy_low``, ``accuracy_high``); the
    paper's values have ``paper_`` before their names. ``two_phases`` is the accuracy of pixels in maps of held-out
    fields of two phases, the mean of the recalls.
    """
    for number, name in enumerate(("first", "second"), start=1):
        lines = [_flatten(row) for row in tables[name]]
        if not lines:
            continue
        with (directory / f"table{number}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    theirs: paper.PaperRow | None = row["paper"]
    line = {name: row.get(name) for name in ("model", "trained_on", "seeds", "search")}
    line["best_params"] = wording.parameters(row.get("best_params_by_seed") or row.get("best_params"))
    line["paper_best_params"] = theirs and theirs.best_params
    line["train_seconds"] = wording.seconds(row.get("train_seconds"))
    line["paper_train_seconds"] = theirs and theirs.train_seconds
    scores = {**(row.get("further") or {}), **row}
    for name in _COLUMNS:
        score = scores.get(name) or {}
        for end in ("mean", "low", "high"):
            value = score.get(end)
            line[name if end == "mean" else f"{name}_{end}"] = None if value is None else f"{value:.4f}"
        if name in SCORES:
            line[f"paper_{name}"] = theirs and getattr(theirs, name)
    return line


def compare_with_best(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for each preset and split, the best model against every other: who is as good, and who is not."""
    parts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in results["comparisons"]:
        parts.setdefault((row["preprocess"], row["split"]), []).append(row)
    shown = []
    for (preset, split), rows in parts.items():
        lost = {row["second"] for row in rows if row["difference"] > 0}
        best = next((row["first"] for row in rows if row["first"] not in lost), rows[0]["first"])
        others = [row for row in rows if best in (row["first"], row["second"])]
        shown.append(
            {
                "preset": preset,
                "split": split,
                "best": best,
                "rows": [
                    {
                        "model": row["second"] if row["first"] == best else row["first"],
                        **{key: row[key] for key in ("difference", "low", "high", "p_holm")},
                        "differs": row["p_holm"] < SIGNIFICANT,
                    }
                    for row in sorted(others, key=lambda row: row["difference"])
                ],
            }
        )
    return shown


def explain_missing_scores(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Say for each score that is null why, as far as the study recorded it."""
    missing = []
    for row in results["models"]:
        names = [name.replace("_", " ") for name in SCORES if mean_of(row.get(name)) is None]
        if names:
            reasons = "; ".join(row.get("warnings") or []) or "the study recorded no reason"
            missing.append(
                {
                    "what": f"{row['model']} ({row.get('preprocess')}, {row.get('split')}): {', '.join(names)}",
                    "reason": reasons,
                }
            )
    return missing
