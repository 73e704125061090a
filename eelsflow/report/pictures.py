"""Pictures of what went in and what was trained: spectra, acquisitions, leakage, networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eelsflow.energy import Window
from eelsflow.report.gallery import Gallery, Picture
from eelsflow.report.results import mean_of, read_arrays, read_optional_json, unique
from eelsflow.report.wording import counted

MAX_ACQUISITIONS = 24
"""Acquisitions shown with their spectrum and maps; the table has all. More would make a file of tens of MB."""


def show_examples(
    examples: Mapping[str, Mapping[str, NDArray[Any]]], results: Mapping[str, Any], gallery: Gallery
) -> list[Picture]:
    """Return for each preset the picture of a test spectrum beside the means of the classes."""
    from eelsflow.report import figures

    edge = results.get("edge") or {}
    pictures = []
    for preset, arrays in examples.items():
        figure = figures.example_spectrum(
            arrays["energy_loss"],
            arrays["example"],
            classes=[str(name) for name in arrays["classes"]],
            class_mean=arrays["class_mean"],
            class_std=arrays["class_std"],
            reference_energy=edge.get("reference_energy"),
            raw_energy_loss=arrays.get("example_raw_energy_loss"),
            raw=arrays.get("example_raw"),
        )
        kind = f", labelled {arrays['example_class']}" if "example_class" in arrays else ""
        line = f" The dashed line is at {edge['reference_energy']:g} eV." if edge.get("reference_energy") else ""
        pictures.append(
            gallery.add(
                f"example-{preset}",
                figure,
                alt=f"A test spectrum prepared with the preset {preset}, and the mean spectrum of each class",
                caption=f"Preset {preset}. A test spectrum{kind}, and the mean of each class with its standard "
                f"deviation (band).{line}",
            )
        )
    return pictures


def show_perturbed(examples: Mapping[str, Mapping[str, NDArray[Any]]], gallery: Gallery) -> list[Picture]:
    """Return for each preset the picture of the test spectrum shifted and with noise."""
    from eelsflow.report import figures

    pictures = []
    for preset, arrays in examples.items():
        if not {"shifted", "noisy"} <= set(arrays):
            continue
        shift_ev, noise_sigma = float(arrays["shift_ev"]), float(arrays["noise_sigma"])
        figure = figures.perturbed_spectra(
            arrays["energy_loss"],
            arrays["example"],
            shifted=arrays["shifted"],
            shift_ev=shift_ev,
            noisy=arrays["noisy"],
            noise_sigma=noise_sigma,
        )
        pictures.append(
            gallery.add(
                f"perturbed-{preset}",
                figure,
                alt=f"A test spectrum shifted by {shift_ev:+.2f} eV, and one with noise of sigma {noise_sigma:.2f}",
                caption=f"Preset {preset}. The example spectrum shifted by {shift_ev:+.2f} eV, and with Gaussian noise "
                f"of {noise_sigma:.2f} times its range from the 1st to the 99th percentile.",
            )
        )
    return pictures


def show_leakage(results: Mapping[str, Any], styles: Mapping[str, Any], gallery: Gallery) -> dict[str, Any]:
    """Return what a random split flatters each model by, as rows and pictures, and why there may be none."""
    from eelsflow.report import figures

    rows = [
        {
            "model": row["model"],
            "preprocess": row.get("preprocess"),
            "pixel": mean_of(row.get("pixel")),
            "group": mean_of(row.get("group")),
            "gap": mean_of(row.get("gap")),
        }
        for row in results["leakage"]
    ]
    pictures = []
    for preset in unique(rows, "preprocess"):
        drawn = [
            (str(row["model"]), row["pixel"], row["group"])
            for row in rows
            if row["preprocess"] == preset and row["pixel"] is not None and row["group"] is not None
        ]
        drawn = [row for row in drawn if row[0] in styles]
        if drawn:
            pictures.append(
                gallery.add(
                    f"leakage-{preset}",
                    figures.leakage(drawn, styles=styles),
                    alt=f"Accuracy of {counted(len(drawn), 'model')} by pixel split and on held-out acquisitions",
                    caption=f"Preset {preset}. The length of each bar is what the pixel split flatters the model by.",
                )
            )
    return {"rows": rows, "pictures": pictures, "reason": _leakage_absent(results)}


def _leakage_absent(results: Mapping[str, Any]) -> str:
    splits = set(unique(results["models"], "split"))
    if "group" not in splits:
        return "the study has no split by group (the data name fewer than two groups, or the study file leaves it out)"
    if "pixel" not in splits:
        return "the study ran no random pixel split to compare held-out acquisitions with"
    return "no model has an accuracy under both splits"


def show_architectures(directory: Path, gallery: Gallery) -> list[Picture]:
    """Return the pictures of the networks' layers."""
    from eelsflow.report import figures

    pictures = []
    for entry in read_optional_json(directory / "evidence" / "architectures.json"):
        kinds = Counter(str(layer["type"]) for layer in entry["layers"])
        total = entry.get("parameters")
        pictures.append(
            gallery.add(
                f"architecture-{entry['model']}",
                figures.architecture(entry["layers"]),
                alt=f"Layers of {entry['model']}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
                caption=f"{entry['model']}: {len(entry['layers'])} layers"
                + (f", {total:,} parameters." if isinstance(total, int) else "."),
            )
        )
    return pictures


def show_histories(directory: Path, gallery: Gallery) -> list[Picture]:
    """Return for each preset and split the picture of accuracy by epoch."""
    from eelsflow.report import figures

    histories = read_optional_json(directory / "evidence" / "histories.json")
    pictures = []
    for preset, split in dict.fromkeys((entry.get("preprocess"), entry.get("split")) for entry in histories):
        chosen = [entry for entry in histories if (entry.get("preprocess"), entry.get("split")) == (preset, split)]
        panels = [(model, [entry for entry in chosen if entry["model"] == model]) for model in unique(chosen, "model")]
        pictures.append(
            gallery.add(
                f"training-{preset}-{split}",
                figures.training_histories(panels),
                alt=f"Training and validation accuracy by epoch of {', '.join(model for model, _ in panels)}",
                caption=f"Preset {preset}, {split} split; a pair of lines for each seed.",
            )
        )
    return pictures


def show_acquisitions(directory: Path, results: Mapping[str, Any], gallery: Gallery) -> dict[str, Any]:
    """Return every acquisition for the table, and pictures of the first `MAX_ACQUISITIONS`."""
    by_name: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for entry in results["acquisitions"]:
        by_name.setdefault((entry.get("name"), entry.get("sha256")), []).append(entry)
    shown = []
    for number, entries in enumerate(list(by_name.values())[:MAX_ACQUISITIONS], start=1):
        views = []
        for entry in entries:
            evidence = directory / str(entry.get("evidence") or "")
            picture = _acquisition_picture(evidence, entry, results, gallery) if evidence.is_file() else None
            views.append({"entry": entry, "picture": picture})
        shown.append({"number": number, "first": entries[0], "views": views})
    return {"entries": results["acquisitions"], "shown": shown, "n": len(by_name)}


def _acquisition_picture(
    evidence: Path, entry: Mapping[str, Any], results: Mapping[str, Any], gallery: Gallery
) -> Picture:
    from eelsflow.report import figures

    arrays = read_arrays(evidence)
    edge = results.get("edge") or {}

    def window(of: Mapping[str, Any], name: str) -> Window | None:
        return (float(of[name][0]), float(of[name][1])) if of.get(name) else None

    figure = figures.acquisition(
        arrays["energy_loss"],
        arrays["mean_spectrum"],
        arrays["background"],
        signal=arrays["signal"],
        vacuum_mask=arrays["vacuum_mask"].astype(bool),
        pixel_size=float(entry.get("pixel_size") or 1.0),
        pixel_unit=str(entry.get("pixel_unit") or "px"),
        t_over_lambda=arrays.get("t_over_lambda"),
        reference_energy=float(arrays["reference_energy"]) if "reference_energy" in arrays else None,
        elnes_window=window(edge, "elnes_window"),
        pre_edge_window=window(edge, "pre_edge_window"),
        beside=[(window(one, "pre_edge_window"), window(one, "elnes_window")) for one in edge.get("beside", ())],
    )
    name, preset = entry.get("name"), entry.get("preprocess")
    return gallery.add(
        evidence.stem,
        figure,
        alt=f"{name}, preset {preset}: mean spectrum with the fitted background, map of the edge signal, vacuum mask",
        caption=f"Preset {preset}. The energy axis is corrected by the offset found.",
    )
