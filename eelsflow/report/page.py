"""The report of a study: one HTML file with everything in it, from the files of a results directory."""

from __future__ import annotations

import base64
import json
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import InputError, OutputPathError, UnreadableFileError
from eelsflow.executors import Executor, LoopExecutor
from eelsflow.report import paper
from eelsflow.report.style import format_number, model_styles, render
from eelsflow.robustness.scores import BREAKDOWN_FRACTION, area_under_curve
from eelsflow.store import make_directory, read_json

if TYPE_CHECKING:
    import xarray as xr
    from jinja2 import Environment
    from matplotlib.figure import Figure

    from eelsflow.report.figures import GridPanel

MAX_ACQUISITIONS = 24
"""Acquisitions shown with their spectrum and maps; the table has all. More would make a file of tens of MB."""

MAX_INLINE_SVG = 300_000
"""Bytes of a drawing past which its PNG is put into the page instead, if that is smaller."""

PIXELS_PER_INCH = 120
"""Size of a figure on the page: its 8-point text is as tall as the text around it."""

_SCORES = ("accuracy", "balanced_accuracy", "translation", "noise")

# Perturbations whose largest amplitude is the mildest (a dose), so that curves are read from the clean end.
_MILDEST_IS_LARGEST = ("poisson", "dose", "counts", "electrons")

_PERTURBATIONS = {
    "shift_ev": "Energy shift",
    "noise_sigma": "Gaussian noise, sigma",
    "dispersion_error": "Error of the dispersion",
    "poisson_peak_counts": "Poisson noise",
    "pca_residual": "Residual noise beyond the tenth component",
    "dose": "Dose",
    "t_over_lambda": "Thickness over mean free path",
}


# What the page asks for. A field that an older or smaller study did not write reads as absent.
_RESULTS = dict.fromkeys(
    (
        "study",
        "edge",
        "n_spectra",
        "n_per_class",
        "padded",
        "started",
        "seconds",
        "versions",
        "machine",
        "runner",
        "links",
    )
)
_ROW = dict.fromkeys(
    ("base", "preprocess", "split", "seeds", "best_params", "best_params_by_seed", "search_seconds", "train_seconds")
) | dict.fromkeys(("warnings", *_SCORES))
_ACQUISITION = dict.fromkeys(
    ("name", "sha256", "label", "group", "preprocess", "pixels", "background_pixels", "pixel_size", "pixel_unit")
) | dict.fromkeys(("energy_offset", "spikes", "pca_rank", "warnings", "evidence"))


@dataclass(frozen=True, slots=True)
class _Picture:
    """A figure as the page shows it: where its bytes are, what it shows in words."""

    name: str
    uri: str
    alt: str
    caption: str
    width: int


@dataclass
class _Gallery:
    """Collects figures for the page, then draws them all: finding layouts and drawing is most of a report's time."""

    directory: Path
    figures: dict[str, Figure] = field(default_factory=dict)

    def add(self, name: str, figure: Figure, *, alt: str, caption: str) -> _Picture:
        slug = unique = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "figure"
        number = 1
        while unique in self.figures:
            number += 1
            unique = f"{slug}-{number}"
        self.figures[unique] = figure
        return _Picture(unique, _placeholder(unique), alt, caption, round(figure.get_figwidth() * PIXELS_PER_INCH))

    def draw(self, html: str, executor: Executor) -> str:
        """Write every figure to its files and return the page with the figures in it."""
        drawn = executor.map(_draw, list(self.figures.values()), label="draw")
        for name, (svg, png) in zip(self.figures, drawn, strict=True):
            for suffix, content in (("svg", svg), ("png", png)):
                (self.directory / f"{name}.{suffix}").write_bytes(content)
            kind, content = ("png", png) if len(svg) > max(MAX_INLINE_SVG, len(png)) else ("svg+xml", svg)
            uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
            html = html.replace(_placeholder(name), uri)
        return html


def _placeholder(name: str) -> str:
    return f"figure:{name}:not-drawn"


def _draw(figure: Figure) -> tuple[bytes, bytes]:
    return render(figure, "svg"), render(figure, "png")


def build_report(directory: Path, *, executor: Executor | None = None) -> Path:
    """Write the report of a study, and its figures.

    Parameters
    ----------
    directory
        A results directory: ``results.json``, and what there is of ``evidence/``, ``search-*.zarr`` and
        ``robustness.zarr``. What is absent is said to be, with the reason.
    executor
        Where figures are drawn; a plain loop by default.

    Returns
    -------
    Path
        ``report.html`` in `directory`: images and styles are inside it, it needs no network. The figures are also in
        ``figures/`` as PNG and SVG. The same results give the same bytes.

    Raises
    ------
    InputError
        If this is not a results directory.
    UnreadableFileError
        If one of its files is damaged.
    OutputPathError
        If it cannot be written to.
    """
    directory = Path(directory)
    results = _read_results(directory)
    figures = directory / "figures"
    if figures.is_dir():  # those of an earlier study in this directory must not stay
        shutil.rmtree(figures)
    gallery = _Gallery(make_directory(figures))
    html = _environment().get_template("report.html.j2").render(**_context(directory, results, gallery))
    html = gallery.draw(html, executor or LoopExecutor())
    path = directory / "report.html"
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(html, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputPathError(
            f"cannot write {path}: {error.strerror or error}; name a directory to write to"
        ) from error
    return path


def _context(directory: Path, results: dict[str, Any], gallery: _Gallery) -> dict[str, Any]:
    """Return everything the template shows, in the order of the page."""
    styles = model_styles([(row["model"], row.get("base") or row["model"]) for row in results["models"]])
    examples = _read_examples(directory, _unique(results["models"], "preprocess"))
    provenance = _read_text(directory / "provenance.json")
    robustness = _read_dataset(directory / "robustness.zarr")
    return {
        "results": results,
        "edge": results.get("edge") or {},
        "warnings": _all_warnings(results),
        "inputs": _inputs(results, provenance),
        "highlights": _highlights(results),
        "examples": _example_pictures(examples, results, gallery),
        "tables": _paper_tables(results),
        "missing_scores": _missing_scores(results),
        "leakage": _leakage(results, styles, gallery),
        "architectures": _architecture_pictures(directory, gallery),
        "grids": _grid_pictures(directory, results, gallery),
        "perturbed": _perturbed_pictures(examples, gallery),
        "histories": _history_pictures(directory, gallery),
        "robustness": _robustness(robustness, results, styles, gallery),
        "acquisitions": _acquisitions(directory, results, gallery),
        "provenance": provenance,
        "study_file": _read_text(directory / "study.yaml"),
        "max_acquisitions": MAX_ACQUISITIONS,
    }


# -- reading --------------------------------------------------------------------------------------------------------


def _read_results(directory: Path) -> dict[str, Any]:
    path = directory / "results.json"
    if not path.is_file():
        raise InputError(
            f"{directory} holds no results.json, so it is not the results directory of a study; name the directory "
            "that was given to the study as its output"
        )
    results = _read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("models"), list):
        raise InputError(f"{path} is not the results of a study: it has no list of models; run the study again")
    for key in ("acquisitions", "leakage", "classes", "warnings"):
        results[key] = results.get(key) or []
    results["models"] = [_ROW | row for row in results["models"]]
    results["acquisitions"] = [_ACQUISITION | entry for entry in results["acquisitions"]]
    return _RESULTS | results


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnreadableFileError(f"{path} cannot be read ({error}); run the study again to write it anew") from error


def _read_optional_json(path: Path) -> Any:
    return _read_json(path) if path.is_file() else []


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged archive
        raise UnreadableFileError(f"{path} cannot be read ({error}); run the study again to write it anew") from error


def _read_dataset(path: Path) -> xr.Dataset | None:
    import xarray as xr

    if not path.exists():
        return None
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as dataset:
            loaded: xr.Dataset = dataset.load()
            return loaded
    except Exception as error:  # zarr's codecs each raise their own for a damaged chunk
        raise UnreadableFileError(f"{path} cannot be read ({error}); run the study again to write it anew") from error


def _read_examples(directory: Path, presets: Sequence[str]) -> dict[str, dict[str, NDArray[Any]]]:
    paths = {preset: directory / "evidence" / f"examples-{preset}.npz" for preset in presets}
    return {preset: _read_arrays(path) for preset, path in paths.items() if path.is_file()}


# -- what was run, and what to be careful about ---------------------------------------------------------------------


def _all_warnings(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each distinct warning once, with the models and acquisitions it came from."""
    sources: dict[str, list[str]] = {}
    for row in results["models"]:
        for text in row.get("warnings") or []:
            sources.setdefault(text, []).append(f"{row['model']} ({row.get('preprocess')}, {row.get('split')})")
    for entry in results["acquisitions"]:
        for text in entry.get("warnings") or []:
            sources.setdefault(text, []).append(f"{entry.get('name')} ({entry.get('preprocess')})")
    # A study repeats the warnings of its parts, with their names before them.
    repeated = {f"{name}: {text}" for text, names in sources.items() for name in names}
    of_study = [text for text in map(str, results["warnings"]) if text not in repeated and text not in sources]
    listed = {**{text: [] for text in of_study}, **sources}
    return [{"text": text, "sources": list(dict.fromkeys(names))} for text, names in listed.items()]


def _inputs(results: Mapping[str, Any], provenance: str | None) -> list[dict[str, Any]]:
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


def _unique(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None))


def _mean(score: Any) -> float | None:
    """Return the mean of a score, which may be a plain number or null."""
    value = score.get("mean") if isinstance(score, Mapping) else score
    return float(value) if isinstance(value, int | float) else None


def _highlights(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the figures a reader looks for first."""
    highlights = []
    for split, what in (("group", "on held-out acquisitions"), ("pixel", "by random pixel split")):
        rows = [
            row for row in results["models"] if row.get("split") == split and _mean(row.get("accuracy")) is not None
        ]
        if rows:
            best = max(rows, key=lambda row: _mean(row["accuracy"]) or 0.0)
            highlights.append(
                {
                    "value": f"{_mean(best['accuracy']):.3f}",
                    "label": f"best accuracy {what}: {best['model']}, {best.get('preprocess')}",
                }
            )
    translated = [row for row in results["models"] if _mean(row.get("translation")) is not None]
    if translated:
        split = "group" if any(row.get("split") == "group" for row in translated) else translated[0].get("split")
        best = max(
            (row for row in translated if row.get("split") == split), key=lambda row: _mean(row["translation"]) or 0.0
        )
        highlights.append(
            {
                "value": f"{_mean(best['translation']):.3f}",
                "label": f"best accuracy on shifted spectra ({split} split): {best['model']}, {best.get('preprocess')}",
            }
        )
    return highlights


# -- tables ---------------------------------------------------------------------------------------------------------


def _paper_tables(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return Tables I and II in the paper's layout, with the paper's values where they fit.

    The paper splits pixels at random, so these tables use the pixel split; a study without one shows its own split
    and no values of the paper.
    """
    rows = results["models"]
    splits = _unique(rows, "split")
    split = "pixel" if "pixel" in splits else (splits[0] if splits else "")
    presets = _unique(rows, "preprocess")
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


def _missing_scores(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Say for each score that is null why, as far as the study recorded it."""
    missing = []
    for row in results["models"]:
        names = [name.replace("_", " ") for name in _SCORES if _mean(row.get(name)) is None]
        if names:
            reasons = "; ".join(row.get("warnings") or []) or "the study recorded no reason"
            missing.append(
                {
                    "what": f"{row['model']} ({row.get('preprocess')}, {row.get('split')}): {', '.join(names)}",
                    "reason": reasons,
                }
            )
    return missing


def _leakage(results: Mapping[str, Any], styles: Mapping[str, Any], gallery: _Gallery) -> dict[str, Any]:
    from eelsflow.report import figures

    rows = [
        {
            "model": row["model"],
            "preprocess": row.get("preprocess"),
            "pixel": _mean(row.get("pixel")),
            "group": _mean(row.get("group")),
            "gap": _mean(row.get("gap")),
        }
        for row in results["leakage"]
    ]
    pictures = []
    for preset in _unique(rows, "preprocess"):
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
                    alt=f"Accuracy of {_count(len(drawn), 'model')} by pixel split and on held-out acquisitions",
                    caption=f"Preset {preset}. The length of each bar is what the pixel split flatters the model by.",
                )
            )
    return {"rows": rows, "pictures": pictures, "reason": _leakage_absent(results)}


def _leakage_absent(results: Mapping[str, Any]) -> str:
    splits = set(_unique(results["models"], "split"))
    if "group" not in splits:
        return "the study has no split by group (the data name fewer than two groups, or the study file leaves it out)"
    if "pixel" not in splits:
        return "the study ran no random pixel split to compare held-out acquisitions with"
    return "no model has an accuracy under both splits"


# -- pictures -------------------------------------------------------------------------------------------------------


def _example_pictures(
    examples: Mapping[str, Mapping[str, NDArray[Any]]], results: Mapping[str, Any], gallery: _Gallery
) -> list[_Picture]:
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


def _perturbed_pictures(examples: Mapping[str, Mapping[str, NDArray[Any]]], gallery: _Gallery) -> list[_Picture]:
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


def _architecture_pictures(directory: Path, gallery: _Gallery) -> list[_Picture]:
    from eelsflow.report import figures

    pictures = []
    for entry in _read_optional_json(directory / "evidence" / "architectures.json"):
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


def _grid_pictures(directory: Path, results: Mapping[str, Any], gallery: _Gallery) -> list[dict[str, Any]]:
    """Return for each searched model its pictures, and what is to be said about each optimum."""
    searches = []
    order = _unique(results["models"], "model")
    paths = {path.name.removeprefix("search-").removesuffix(".zarr"): path for path in directory.glob("search-*.zarr")}
    for model in sorted(paths, key=lambda name: (order.index(name) if name in order else len(order), name)):
        dataset = _read_dataset(paths[model])
        if dataset is None:
            continue
        searches.append({"model": model, **_grid_search(model, dataset, gallery)})
    return searches


def _grid_search(model: str, dataset: xr.Dataset, gallery: _Gallery) -> dict[str, Any]:
    from eelsflow.report import figures
    from eelsflow.search.grid import best_cell

    batches: list[tuple[str, list[GridPanel]]] = []
    optima = []
    n_folds = _count(dataset.sizes["fold"], "fold") if "fold" in dataset.sizes else "the validation part"
    n_seeds = dataset.sizes.get("seed", 1)
    for preset, split, accuracy in _by_preset_and_split(dataset["accuracy"]):
        # The mean over seeds, because each seed's own optimum need not be the same cell.
        scores = accuracy.mean("seed") if "seed" in accuracy.dims else accuracy
        scores = scores if "fold" in scores.dims else scores.expand_dims("fold", axis=-1)
        if not np.isfinite(scores.values).any():
            continue
        # C up and gamma across, whatever the order on disk; among equal cells the smallest C comes first.
        known = [name for name in ("C", "gamma", "coef0", "alpha") if name in scores.dims]
        scores = scores.transpose(*known, ..., "fold").dropna("fold", how="all")
        best = best_cell(scores.fillna(-1.0).to_dataset(name="accuracy"))
        mean = scores.mean("fold")
        optima.append(
            {
                "preset": preset,
                "split": split,
                "params": best.params,
                "accuracy": best.mean_accuracy,
                "edge": [_edge_text(mean, name, best.params[name]) for name in best.on_edge],
            }
        )
        panels = _grid_panels(mean, best.params, title=", ".join(filter(None, (preset, split))))
        if len(panels) > 1 or not batches or batches[-1][0]:
            batches.append((f"-{preset}-{split}" if len(panels) > 1 else "", []))
        batches[-1][1].extend(panels)
    pictures = [
        gallery.add(
            f"search-{model}{suffix}",
            figures.grid_scores(panels, columns=3 if suffix else 2),
            alt=f"Cross-validation accuracy of {model} over its grid, {_count(len(panels), 'panel')}",
            caption=f"{model}: mean accuracy over {n_folds} and {_count(n_seeds, 'seed')}; the best cell is outlined.",
        )
        for suffix, panels in batches
    ]
    return {"pictures": pictures, "optima": optima}


def _by_preset_and_split(accuracy: xr.DataArray) -> list[tuple[str, str, xr.DataArray]]:
    """Take the array apart along ``preprocess`` and ``split``, where it has them."""
    parts = [("", "", accuracy)]
    if "preprocess" in accuracy.dims:
        parts = [(str(name), "", accuracy.sel(preprocess=name)) for name in accuracy["preprocess"].values]
    if "split" in accuracy.dims:
        parts = [
            (preset, str(name), part.sel(split=name)) for preset, _, part in parts for name in part["split"].values
        ]
    return parts


def _grid_panels(mean: xr.DataArray, best: Mapping[str, float], *, title: str) -> list[GridPanel]:
    """Cut the scores into panels of at most two parameters; further ones become a panel for each of their values."""
    from eelsflow.report.figures import GridPanel

    varied = [str(name) for name in mean.dims if mean.sizes[name] > 1] or [str(mean.dims[0])]
    fixed = {str(name): mean[name].values[0] for name in mean.dims if str(name) not in varied}
    parts = [(title, mean.sel(fixed), True)]
    for name in varied[2:]:
        parts = [
            (f"{heading}, {name} {format_number(value)}", part.sel({name: value}), holds and value == best[name])
            for heading, part, holds in parts
            for value in part[name].values.tolist()
        ]
    return [GridPanel(heading, part, best if holds else None) for heading, part, holds in parts]


def _edge_text(mean: xr.DataArray, name: str, value: float) -> str:
    values = mean[name].values.tolist()
    end = "lowest" if value == values[0] else "highest"
    return f"{name} = {format_number(value)} is the {end} value of the grid"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _history_pictures(directory: Path, gallery: _Gallery) -> list[_Picture]:
    from eelsflow.report import figures

    histories = _read_optional_json(directory / "evidence" / "histories.json")
    pictures = []
    for preset, split in dict.fromkeys((entry.get("preprocess"), entry.get("split")) for entry in histories):
        chosen = [entry for entry in histories if (entry.get("preprocess"), entry.get("split")) == (preset, split)]
        panels = [(model, [entry for entry in chosen if entry["model"] == model]) for model in _unique(chosen, "model")]
        pictures.append(
            gallery.add(
                f"training-{preset}-{split}",
                figures.training_histories(panels),
                alt=f"Training and validation accuracy by epoch of {', '.join(model for model, _ in panels)}",
                caption=f"Preset {preset}, {split} split; a pair of lines for each seed.",
            )
        )
    return pictures


# -- robustness -----------------------------------------------------------------------------------------------------


def _robustness(
    dataset: xr.Dataset | None, results: Mapping[str, Any], styles: Mapping[str, Any], gallery: _Gallery
) -> dict[str, Any] | None:
    from eelsflow.report import figures

    if dataset is None or "accuracy" not in dataset or not np.isfinite(dataset["accuracy"].values).any():
        return None
    clean = {
        (row["model"], row.get("preprocess"), row.get("split")): _mean(row.get("accuracy")) for row in results["models"]
    }
    counts = [int(count) for count in (results.get("n_per_class") or {}).values()]
    chance = max(counts) / sum(counts) if sum(counts) else 1 / max(len(results["classes"]), 1)
    n_seeds = dataset.sizes.get("seed", 1)
    shown: list[dict[str, Any]] = []
    table: dict[tuple[str, str, str], dict[str, Any]] = {}
    for perturbation in dataset["perturbation"].values.tolist():
        part = dataset.sel(perturbation=perturbation)
        amplitudes = np.asarray(part["amplitude_value"].values, dtype=float)
        order = np.argsort(amplitudes)[: int(np.isfinite(amplitudes).sum())]
        amplitudes = amplitudes[order]
        unit = str(part["unit"].values) if "unit" in part.coords or "unit" in part else ""
        panels = []
        for preset, split, accuracy in _by_preset_and_split(part["accuracy"].isel(amplitude=order)):
            curves = {}
            for model in accuracy["model"].values.tolist():
                values = accuracy.sel(model=model).transpose("seed", "amplitude").values
                values = values[np.isfinite(values).all(axis=1)]
                if not values.size:
                    continue
                curve = _curve(perturbation, amplitudes, values, clean.get((model, preset, split)))
                curves[model] = curve
                key = (preset, split, model)
                table.setdefault(key, {})[perturbation] = {
                    "area": area_under_curve(amplitudes, curve.mean) if amplitudes.size > 1 else None,
                    "breakdown": [_signed(value, amplitudes) for value in curve.breakdown],
                }
            if curves:
                panels.append((", ".join(filter(None, (preset, split))), amplitudes, curves))
        if not panels:
            continue
        title = _PERTURBATIONS.get(perturbation, str(perturbation).replace("_", " ").capitalize())
        shown.append(
            {
                "name": perturbation,
                "title": title,
                "unit": unit,
                "picture": gallery.add(
                    f"robustness-{perturbation}",
                    figures.robustness_curves(
                        panels, label=f"{title} ({unit})" if unit else title, chance=chance, styles=styles
                    ),
                    alt=f"Accuracy of {_count(len(panels[0][2]), 'model')} against {title.lower()}",
                    caption=f"{title}, {_count(n_seeds, 'seed')}. Line: mean over seeds; band: their central 95 %. "
                    "A ring marks the first amplitude below 90 % of the accuracy on clean spectra.",
                ),
            }
        )
    rows = [{"preset": key[0], "split": key[1], "model": key[2], "cells": cells} for key, cells in table.items()]
    return {"shown": shown, "rows": rows} if shown else None


def _signed(value: float, amplitudes: NDArray[Any]) -> str:
    text = format_number(abs(value))
    if amplitudes.min() >= 0:
        return text
    return f"+{text}" if value > 0 else f"\N{MINUS SIGN}{text}"


def _curve(perturbation: str, amplitudes: NDArray[Any], values: NDArray[Any], clean: float | None) -> Any:
    """Return the mean over seeds, its band, and the breakdown points. `values` has shape (seeds, amplitudes)."""
    from eelsflow.report.figures import Curve

    mean = values.mean(axis=0)
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    if amplitudes.min() <= 0 <= amplitudes.max():
        mildest = int(np.argmin(np.abs(amplitudes)))
    else:
        largest = any(word in perturbation for word in _MILDEST_IS_LARGEST)
        mildest = len(amplitudes) - 1 if largest else 0
    reference = float(mean[mildest]) if clean is None or amplitudes[mildest] == 0 else clean
    sides = (range(mildest, -1, -1), range(mildest, len(amplitudes)))
    first = (next((i for i in side if mean[i] < BREAKDOWN_FRACTION * reference), None) for side in sides)
    return Curve(mean, low, high, tuple(dict.fromkeys(float(amplitudes[i]) for i in first if i is not None)))


# -- acquisitions ---------------------------------------------------------------------------------------------------


def _acquisitions(directory: Path, results: Mapping[str, Any], gallery: _Gallery) -> dict[str, Any]:
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
    evidence: Path, entry: Mapping[str, Any], results: Mapping[str, Any], gallery: _Gallery
) -> _Picture:
    from eelsflow.report import figures

    arrays = _read_arrays(evidence)
    edge = results.get("edge") or {}
    windows = {
        name: (float(edge[name][0]), float(edge[name][1])) if edge.get(name) else None
        for name in ("elnes_window", "pre_edge_window")
    }
    figure = figures.acquisition(
        arrays["energy_loss"],
        arrays["mean_spectrum"],
        arrays["background"],
        signal=arrays["signal"],
        vacuum_mask=arrays["vacuum_mask"].astype(bool),
        pixel_size=float(entry.get("pixel_size") or 1.0),
        pixel_unit=str(entry.get("pixel_unit") or "px"),
        reference_energy=float(arrays["reference_energy"]) if "reference_energy" in arrays else None,
        **windows,
    )
    name, preset = entry.get("name"), entry.get("preprocess")
    return gallery.add(
        evidence.stem,
        figure,
        alt=f"{name}, preset {preset}: mean spectrum with the fitted background, map of the edge signal, vacuum mask",
        caption=f"Preset {preset}. The energy axis is corrected by the offset found.",
    )


# -- html -----------------------------------------------------------------------------------------------------------


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("eelsflow.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": _duration,
        "parameters": _parameters,
        "number": format_number,
        "seconds": _seconds,
        "seeds": _seeds,
        "share": _share,
        "safe_link": _safe_link,
        "mean": _mean,
    }
    return environment


def _duration(seconds: Any) -> str:
    """Return a duration as people say it.

    >>> _duration(3.21), _duration(200), _duration(7321)
    ('3.2 s', '3 min 20 s', '2 h 2 min')
    """
    if not isinstance(seconds, int | float):
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _seconds(value: Any) -> str:
    """Return seconds with two figures, as a table needs them.

    >>> _seconds(0.0123), _seconds(4.56), _seconds(812.3), _seconds(None)
    ('0.01', '4.6', '812', '')
    """
    if not isinstance(value, int | float):
        return ""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _parameters(params: Any) -> str:
    """Return best parameters as text; of a list with one for each seed, the most frequent.

    >>> _parameters({"C": 1e5, "gamma": 0.1}), _parameters([{"C": 1.0}, {"C": 10.0}, {"C": 1.0}])
    ('C=1e5, gamma=0.1', 'C=1 (2 of 3 seeds)')
    """
    if isinstance(params, Mapping):
        return ", ".join(f"{name}={format_number(_parameter(value))}" for name, value in params.items())
    if isinstance(params, list):
        counts = Counter(_parameters(item) for item in params if item)
        if not counts:
            return ""
        text, count = counts.most_common(1)[0]
        return text if len(counts) == 1 else f"{text} ({count} of {len(params)} seeds)"
    return "" if params is None else str(params)


def _parameter(value: Any) -> float | int | str | None:
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)


def _seeds(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else str(value if value is not None else "")


def _share(part: Any, whole: Any) -> str:
    """Return a percentage.

    >>> _share(1, 3), _share(None, 3)
    ('33 %', 'not recorded')
    """
    if not isinstance(part, int | float) or not isinstance(whole, int | float) or not whole:
        return "not recorded"
    return f"{100 * part / whole:.0f} %"


def _safe_link(target: Any) -> str | None:
    """Return a link's target if following it is harmless: a page, a file, or a path beside the report."""
    text = str(target)
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text)
    return text if scheme is None or scheme[0].lower() in ("http:", "https:", "file:") else None
