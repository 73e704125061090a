"""What the report reads: the files of a results directory, each with what to do when it is damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import InputError, UnreadableFileError
from eelsflow.store import read_json

if TYPE_CHECKING:
    import xarray as xr


SCORES = ("accuracy", "balanced_accuracy", "translation", "noise")

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
        "expected",
        "final_model",
    )
)

_LISTS = ("acquisitions", "leakage", "classes", "warnings", "maps", "map_evidence", "controls", "set_aside",
          "shortcuts", "comparisons", "outside")  # fmt: skip

_ROW = dict.fromkeys(
    ("base", "preprocess", "split", "seeds", "best_params", "best_params_by_seed", "search_seconds", "train_seconds")
) | dict.fromkeys(("warnings", "searches", "further", "equal_noise", "features", "augment", "align", *SCORES))

_ACQUISITION = dict.fromkeys(
    ("name", "sha256", "label", "group", "preprocess", "pixels", "background_pixels", "pixel_size", "pixel_unit")
) | dict.fromkeys(("energy_offset", "spikes", "pca_rank", "low_loss", "warnings", "evidence"))


def read_results(directory: Path) -> dict[str, Any]:
    """Read ``results.json``, with None for fields that an older or smaller study did not write.

    Raises
    ------
    InputError
        If there is none, or it is not a study's.
    UnreadableFileError
        If it is damaged.
    """
    path = directory / "results.json"
    if not path.is_file():
        raise InputError(
            f"{directory} holds no results.json, so it is not the results directory of a study; name the directory "
            "that was given to the study as its output"
        )
    results = _read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("models"), list):
        raise InputError(f"{path} is not the results of a study: it has no list of models; run the study again")
    for key in _LISTS:
        results[key] = results.get(key) or []
    results["models"] = [_ROW | row for row in results["models"]]
    results["acquisitions"] = [_ACQUISITION | entry for entry in results["acquisitions"]]
    return _RESULTS | results


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnreadableFileError(f"{path} cannot be read ({error}); run the study again to write it anew") from error


def read_optional_json(path: Path) -> Any:
    """Read a JSON file; an empty list where there is none."""
    return _read_json(path) if path.is_file() else []


def read_text(path: Path) -> str | None:
    """Read a text file for people; None where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an npz file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged archive
        raise UnreadableFileError(f"{path} cannot be read ({error}); run the study again to write it anew") from error


def read_dataset(path: Path) -> xr.Dataset | None:
    """Read a zarr dataset into memory; None where there is none."""
    import xarray as xr

    if not path.exists():
        return None
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as dataset:
            loaded: xr.Dataset = dataset.load()
            return loaded
    except Exception as error:  # zarr's codecs each raise their own for a damaged chunk
        raise UnreadableFileError(f"{path} cannot be read ({error}); run the study again to write it anew") from error


def read_examples(directory: Path, presets: Sequence[str]) -> dict[str, dict[str, NDArray[Any]]]:
    """Read the example spectra of each preset that has some."""
    paths = {preset: directory / "evidence" / f"examples-{preset}.npz" for preset in presets}
    return {preset: read_arrays(path) for preset, path in paths.items() if path.is_file()}


def unique(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Return the distinct values that rows have for a key, as text, in order."""
    return list(dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None))


def mean_of(score: Any) -> float | None:
    """Return the mean of a score, which may be a plain number or null."""
    value = score.get("mean") if isinstance(score, Mapping) else score
    return float(value) if isinstance(value, int | float) else None


def chance_of(results: Mapping[str, Any]) -> float:
    """Return the accuracy of always answering the most frequent class."""
    counts = [int(count) for count in (results.get("n_per_class") or {}).values()]
    return max(counts) / sum(counts) if sum(counts) else 1 / max(len(results["classes"]), 1)


def by_preset_and_split(accuracy: xr.DataArray) -> list[tuple[str, str, xr.DataArray]]:
    """Take the array apart along ``preprocess`` and ``split``, where it has them."""
    parts = [("", "", accuracy)]
    if "preprocess" in accuracy.dims:
        parts = [(str(name), "", accuracy.sel(preprocess=name)) for name in accuracy["preprocess"].values]
    if "split" in accuracy.dims:
        parts = [
            (preset, str(name), part.sel(split=name)) for preset, _, part in parts for name in part["split"].values
        ]
    return parts
