"""What the report says in words and numbers: inputs, warnings, highlights, and the tables in the paper's layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eelsflow.report import paper
from eelsflow.report.results import SCORES, mean_of, unique


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
    highlights = _map_highlights(results)
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

    def table(names: Callable[[str], bool], keep: Sequence[str]) -> list[dict[str, Any]]:
        chosen = [row for row in rows if row.get("split") == split and row.get("preprocess") in keep]
        chosen = [row for row in chosen if names(row["model"])]
        chosen.sort(key=lambda row: (order.get(row["model"], 99), row["model"], keep.index(row["preprocess"])))
        return [
            {
                **row,
                "trained_on": paper.TRAINED_ON.get(row["preprocess"], row["preprocess"]),
                "paper": paper.ROWS.get((row["model"], row["preprocess"])) if reason is None else None,
            }
            for row in chosen
        ]

    trained_on = sorted(presets, key=lambda preset: (list(paper.TRAINED_ON) + presets).index(preset))
    return {
        "split": split,
        "preset": main,
        "reason": reason,
        "first": table(lambda name: name not in networks, [main]),
        "second": table(lambda name: name in networks, trained_on),
    }


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
