"""What a microscopist looks for first: maps of fields that the model never saw, beside the truth, and their score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from eelsflow.report.gallery import Gallery
from eelsflow.report.results import read_arrays, read_dataset, read_optional_json

PAGE = "map.html"
"""In the folder of a map, the page that one can click."""

MAX_MAPS = 8
"""Maps on the page; all are in the folder ``maps``."""


def show_maps(directory: Path, results: Mapping[str, Any], gallery: Gallery) -> dict[str, Any]:
    """Return the pictures of the maps, the table of their scores, and what is to be said of either.

    Only maps that the study recorded as made without their field are shown: a map of a training acquisition is no
    evidence of anything.
    """
    evidence = [entry for entry in results["map_evidence"] if entry.get("held_out") or not entry.get("truth")]
    final = results.get("final_model") or {}
    return {
        "pictures": [picture for entry in evidence[:MAX_MAPS] if (picture := _picture(directory, entry, gallery))],
        "n": len(evidence),
        "rows": results["maps"],
        "final": final,
        "best": next(
            (
                row
                for row in results["maps"]
                if (row["model"], row["preprocess"]) == (final.get("model"), final.get("preprocess"))
            ),
            None,
        ),
        "expected": (results.get("expected") or {}).get("expected"),
        "controls": results["controls"],
    }


def _picture(directory: Path, entry: Mapping[str, Any], gallery: Gallery) -> Any:
    from eelsflow.report.map_figure import truth_and_map

    mapped = read_dataset(directory / entry["map"] / "map.zarr")
    summary = read_optional_json(directory / entry["map"] / "summary.json")
    if mapped is None or not summary:
        return None
    truth = None
    if entry.get("truth"):
        truth = read_arrays(directory / entry["truth"])["fraction"]
    classes = [str(name) for name in mapped["class"].values]
    figure = truth_and_map(
        classes,
        mapped["class_index"].values,
        np.nanmax(np.nan_to_num(mapped["probability"].values, nan=0.0), axis=-1),
        fraction=mapped["fraction"].values,
        unknown=mapped["unknown"].values,
        lost=mapped["lost"].values if "lost" in mapped else None,  # maps of before know none
        truth=truth,
        pixel_size=float(summary["pixel_size"]),
        pixel_unit=str(summary["pixel_unit"]),
    )
    name, page = str(entry["acquisition"]), f"{entry['map']}/{PAGE}"
    how = (
        f"by {entry['model']} ({entry['preprocess']}), fitted without this acquisition"
        if entry.get("held_out")
        else f"by the final model, {entry['model']} ({entry['preprocess']}): without a label the acquisition took no "
        "part in the training, and there is no truth to compare with"
    )
    said = "".join(f" Warning: {text}." for text in summary["warnings"][:2])
    return gallery.add(
        f"map-{name}",
        figure,
        alt=f"{name}: fraction{'' if truth is None else ', true and mapped'}, class and confidence of every pixel",
        caption=f"{name}, mapped {how}.{said}",
        link=quote(page) if (directory / page).is_file() else "",
    )
