"""Pictures of the grid searches, and what is to be said about each optimum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eelsflow.report.gallery import Gallery
from eelsflow.report.results import by_preset_and_split, read_dataset, unique
from eelsflow.report.style import format_number
from eelsflow.report.wording import counted

if TYPE_CHECKING:
    import xarray as xr

    from eelsflow.report.figures import GridPanel


def show_searches(directory: Path, results: Mapping[str, Any], gallery: Gallery) -> list[dict[str, Any]]:
    """Return for each searched model its pictures, and what is to be said about each optimum."""
    searches = []
    order = unique(results["models"], "model")
    paths = {path.name.removeprefix("search-").removesuffix(".zarr"): path for path in directory.glob("search-*.zarr")}
    for model in sorted(paths, key=lambda name: (order.index(name) if name in order else len(order), name)):
        dataset = read_dataset(paths[model])
        if dataset is None:
            continue
        searches.append({"model": model, **_grid_search(model, dataset, gallery)})
    return searches


def _grid_search(model: str, dataset: xr.Dataset, gallery: Gallery) -> dict[str, Any]:
    from eelsflow.report import figures
    from eelsflow.search.grid import best_cell

    batches: list[tuple[str, list[GridPanel]]] = []
    optima = []
    # A network's sweep is scored once, on the part of the training spectra that its best epoch is chosen on.
    n_folds = dataset.sizes.get("fold", 1)
    measure = "Cross-validation accuracy" if n_folds > 1 else "Accuracy on the validation part"
    averaged = f"mean accuracy over {counted(n_folds, 'fold')} and" if n_folds > 1 else f"{measure.lower()}, mean over"
    n_seeds = dataset.sizes.get("seed", 1)
    for preset, split, accuracy in by_preset_and_split(dataset["accuracy"]):
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
        panels = cut_panels(mean, best.params, title=", ".join(filter(None, (preset, split))))
        if len(panels) > 1 or not batches or batches[-1][0]:
            batches.append((f"-{preset}-{split}" if len(panels) > 1 else "", []))
        batches[-1][1].extend(panels)
    pictures = [
        gallery.add(
            f"search-{model}{suffix}",
            figures.grid_scores(panels, columns=3 if suffix else 2, measure=measure),
            alt=f"{measure} of {model} over its grid, {counted(len(panels), 'panel')}",
            caption=f"{model}: {averaged} {counted(n_seeds, 'seed')}; the best cell is outlined.",
        )
        for suffix, panels in batches
    ]
    return {"pictures": pictures, "optima": optima}


def cut_panels(mean: xr.DataArray, best: Mapping[str, float], *, title: str) -> list[GridPanel]:
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
