"""A results directory as a study leaves it. Its numbers are drawn at random: a fixture, not a result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from eelsflow.edges import SHIPPED

SVMS = ("svm-linear", "svm-rbf", "svm-sigmoid", "svm-sgd")
NETWORKS = ("fcnn-1", "cnn-1", "cnn-2")
AMPLITUDES = {
    "shift_ev": ("eV", np.arange(-10, 10.5, 0.5)),
    "noise_sigma": ("fraction of p99 - p1", np.arange(0, 0.31, 0.05)),
    "poisson_peak_counts": ("counts at the peak", np.array([1000.0, 300, 100, 30, 10])),
}
GRIDS = {
    "svm-linear": {"C": np.logspace(-5, 5, 11)},
    "svm-rbf": {"C": np.logspace(-3, 5, 8), "gamma": np.logspace(-6, 4, 11)},
    "svm-sigmoid": {"C": np.logspace(-3, 5, 8), "gamma": np.logspace(-6, 1, 8), "coef0": np.array([0, 0.1, 1.0])},
}


def make_results(
    directory: Path,
    *,
    edge: str = "O_K",
    classes: tuple[str, ...] = ("FeO", "Fe3O4"),
    presets: tuple[str, ...] = ("paper", "paper-raw"),
    splits: tuple[str, ...] = ("group", "pixel"),
    models: tuple[str, ...] = SVMS + NETWORKS,
    shapes: tuple[tuple[int, int], ...] = ((40, 48), (1, 60), (24, 24)),
    n_seeds: int = 3,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a results directory with random but lifelike content; `changes` replace fields of results.json."""
    rng = np.random.default_rng(seed)
    evidence = directory / "evidence"
    evidence.mkdir(parents=True)
    rows = [_row(rng, model, preset, split, n_seeds) for model in models for preset in presets for split in splits]
    acquisitions = [
        _acquisition(rng, directory, number, shape, preset, edge)
        for number, shape in enumerate(shapes)
        for preset in presets
    ]
    accuracy = {(row["model"], row["preprocess"], row["split"]): row["accuracy"]["mean"] for row in rows}
    results = {
        "study": "iron-oxide",
        "models": rows,
        "acquisitions": acquisitions,
        "leakage": [
            {"model": m, "preprocess": p, "pixel": value, "group": accuracy[m, p, "group"],
             "gap": value - accuracy[m, p, "group"]}
            for (m, p, s), value in accuracy.items() if s == "pixel" and "group" in splits
        ],
        "classes": list(classes),
        "edge": SHIPPED[edge].model_dump(mode="json"),
        "n_spectra": 2000,
        "n_per_class": {name: 2000 // len(classes) for name in classes},
        "padded": False,
        "warnings": ["svm-linear (paper, group): the optimum C=1e5 lies on the edge of the grid"],
        "started": "2026-03-01T10:00:00+00:00",
        "seconds": 214.2,
        "versions": {"python": "3.11.9", "numpy": "2.4.6", "keras": "3.15.0"},
        "machine": {"system": "Linux", "processor": "fixture", "cores": 2},
        "runner": "loop",
        "links": {"mlflow": "http://127.0.0.1:5000/#/experiments/1"},
    } | changes  # fmt: skip
    (directory / "results.json").write_text(json.dumps(results))
    (directory / "provenance.json").write_text(json.dumps({"code": "0" * 16, "inputs": {}}))
    (directory / "study.yaml").write_text("name: iron-oxide\nedge: O_K\ndata: {spectra: table.npz}\n")
    for preset in presets:
        _examples(rng, evidence / f"examples-{preset}.npz", edge, classes)
    networks = [model for model in models if model in NETWORKS]
    histories = [
        _history(rng, model, preset, split, number)
        for model in networks for preset in presets for split in splits for number in range(n_seeds)
    ]  # fmt: skip
    (evidence / "histories.json").write_text(json.dumps(histories))
    (evidence / "architectures.json").write_text(json.dumps([_architecture(model, len(classes)) for model in networks]))
    for model in models:
        if model in GRIDS:
            _write(_search(rng, GRIDS[model], presets, splits, n_seeds), directory / f"search-{model}.zarr")
    _write(_robustness(rng, models, presets, splits, n_seeds), directory / "robustness.zarr")
    return directory


def _write(dataset: xr.Dataset, path: Path) -> None:
    # Fixed-length strings have no zarr v3 specification; those of variable length do.
    texts = {name: values.astype(object) for name, values in dataset.coords.items() if values.dtype.kind == "U"}
    dataset.assign_coords(texts).to_zarr(path, consolidated=False, zarr_format=3)


def _row(rng: np.random.Generator, model: str, preset: str, split: str, n_seeds: int) -> dict[str, Any]:
    base = rng.uniform(0.88, 0.97) if split == "pixel" else rng.uniform(0.7, 0.9)

    def score(value: float) -> dict[str, float]:
        return {
            "mean": value,
            "low": value - rng.uniform(0.01, 0.05),
            "high": min(1.0, value + rng.uniform(0.01, 0.03)),
        }

    params = {name: float(rng.choice(values)) for name, values in GRIDS.get(model, {}).items()}
    on_edge = model == "svm-linear" and preset == "paper" and split == "group"
    return {
        "model": model, "base": model, "preprocess": preset, "split": split, "seeds": n_seeds,
        "best_params": params, "best_params_by_seed": [params] * n_seeds,
        "accuracy": score(base), "balanced_accuracy": score(base - 0.01),
        "translation": score(base * rng.uniform(0.6, 0.95)), "noise": score(base * rng.uniform(0.6, 0.98)),
        "search_seconds": rng.uniform(3, 300) if params else None, "train_seconds": rng.uniform(0.05, 80),
        "warnings": ["the optimum C=1e5 lies on the edge of the grid"] if on_edge else [],
    }  # fmt: skip


def _spectrum(energy_loss: np.ndarray, reference: float, mixture: float = 0.0) -> np.ndarray:
    relative = energy_loss - reference
    peaks = ((0, 1.2, 0.45 + 0.2 * mixture), (9.2 - 0.5 * mixture, 2.6, 1.0), (29.5, 5.0, 0.6))
    continuum = 0.35 / (1 + np.exp(-(relative - 5) / 3))
    return continuum + sum(h * np.exp(-0.5 * ((relative - p) / w) ** 2) for p, w, h in peaks)


def _acquisition(
    rng: np.random.Generator, directory: Path, number: int, shape: tuple[int, int], preset: str, edge: str
) -> dict[str, Any]:
    window = SHIPPED[edge]
    energy_loss = np.arange(window.pre_edge_window[0] - 40, window.elnes_window[1] + 400, 0.25)
    background = 400 * (energy_loss / window.pre_edge_window[0]) ** -3.3
    signal = _spectrum(energy_loss, window.reference_energy) * 300 / 1.4
    y, x = np.indices(shape)
    distance = np.maximum(abs(y - shape[0] / 2) / max(shape[0], 3), abs(x - shape[1] / 2) / shape[1])
    thickness = np.clip((0.4 - distance) * 8, 0, 1)
    name = f"evidence/acquisition-{number}-{preset}.npz"
    np.savez(
        directory / name,
        energy_loss=energy_loss,
        mean_spectrum=background + signal + rng.normal(0, 3, energy_loss.size),
        background=np.where(energy_loss >= window.pre_edge_window[0], background, np.nan),
        vacuum_mask=thickness < 0.25,
        signal=(thickness * 9000 + rng.normal(0, 300, shape)).astype(np.float32),
        pixel_size=2.1,
        reference_energy=window.reference_energy,
    )
    return {
        "name": f"cube-{number:02d}", "source": f"cube-{number:02d}.zarr", "sha256": f"{number:064x}",
        "label": ("FeO", "Fe3O4", "")[number % 3], "group": f"cube-{number:02d}", "preprocess": preset,
        "pixels": shape[0] * shape[1], "background_pixels": int((thickness < 0.25).sum()),
        "pixel_size": 2.1 if number % 2 == 0 else 1.0, "pixel_unit": "nm" if number % 2 == 0 else "px",
        "energy_offset": {"value": rng.normal(0, 4), "error": 0.03},
        "spikes": {"channels": int(rng.integers(0, 40)), "pixels": int(rng.integers(0, 20))},
        "pca_rank": 6 if preset == "paper" else None,
        "warnings": ["energy offset beyond 5 eV: check the calibration"] if number == 1 else [],
        "evidence": name,
    }  # fmt: skip


def _examples(rng: np.random.Generator, path: Path, edge: str, classes: tuple[str, ...]) -> None:
    window = SHIPPED[edge]
    start, stop = window.elnes_window
    energy_loss = np.linspace(start, stop, 300, endpoint=False)
    wide = np.linspace(start - 12, stop + 12, 540, endpoint=False)
    means = np.stack([
        _spectrum(energy_loss, window.reference_energy, n / len(classes)) / 1.4 for n in range(len(classes))
    ])  # fmt: skip
    example = means[0] + rng.normal(0, 0.02, 300)
    np.savez(
        path, energy_loss=energy_loss, classes=np.array(classes), class_mean=means,
        class_std=np.full(means.shape, 0.04),
        example=example, example_class=np.array(classes[0]), example_raw_energy_loss=wide,
        example_raw=_spectrum(wide, window.reference_energy) * 200 + rng.normal(0, 4, 540),
        shifted=np.interp(energy_loss - 3.0, energy_loss, example), shift_ev=3.0,
        noisy=example + rng.normal(0, 0.15, 300), noise_sigma=0.15,
    )  # fmt: skip


def _history(rng: np.random.Generator, model: str, preset: str, split: str, seed: int) -> dict[str, Any]:
    epochs = np.arange(1, 61)
    rise = 1 - np.exp(-epochs / rng.uniform(5, 15))
    train = 0.5 + 0.45 * rise + rng.normal(0, 0.01, epochs.size)
    validation = 0.5 + 0.4 * rise + rng.normal(0, 0.03, epochs.size)
    return {
        "model": model, "preprocess": preset, "split": split, "seed": seed, "epochs": epochs.tolist(),
        "train_accuracy": train.tolist(), "validation_accuracy": validation.tolist(),
        "train_loss": (1 - train).tolist(), "validation_loss": (1 - validation).tolist(),
        "best_epoch": int(epochs[validation.argmax()]),
    }  # fmt: skip


def _architecture(model: str, n_classes: int) -> dict[str, Any]:
    def layer(kind: str, detail: str, shape: tuple[int, ...], parameters: int = 0) -> dict[str, Any]:
        return {"type": kind, "detail": detail, "output_shape": list(shape), "parameters": parameters}

    if model == "fcnn-1":
        layers = [layer("Input", "", (300,)), layer("Dropout", "rate 0.5", (300,))]
        for size in (300, 32):
            layers += [
                layer("Dense", "32, ReLU", (32,), size * 32 + 32),
                layer("BatchNormalization", "", (32,), 128),
                layer("Dropout", "rate 0.5", (32,)),
            ]
        layers[-1] = layer("Dense", f"{n_classes}, softmax", (n_classes,), 33 * n_classes)
    else:
        length, layers, channels = 300, [layer("Input", "", (300, 1))], 1
        for filters, kernel in ((2, 9), (2, 7), (4, 7), (4, 5), (8, 3)):
            length = length - kernel + 1
            weights = kernel * channels * filters + filters
            layers.append(
                layer("Conv1D", f"{filters} filters, kernel {kernel}, valid, ReLU", (length, filters), weights)
            )
            length //= 2
            layers.append(layer("AveragePooling1D", "pool 2", (length, filters)))
            layers.append(layer("BatchNormalization", "", (length, filters), 4 * filters))
            channels = filters
        layers += [
            layer("Dropout", "rate 0.1" if model == "cnn-1" else "rate 0.5", (length, 8)),
            layer("Conv1D", f"{n_classes} filters, kernel 1", (length, n_classes), 9 * n_classes),
            layer("GlobalAveragePooling1D", "", (n_classes,)),
            layer("Softmax", "", (n_classes,)),
        ]
    return {"model": model, "parameters": sum(item["parameters"] for item in layers), "layers": layers}


def _search(
    rng: np.random.Generator,
    grid: dict[str, np.ndarray],
    presets: tuple[str, ...],
    splits: tuple[str, ...],
    n_seeds: int,
) -> xr.Dataset:
    shape = tuple(len(values) for values in grid.values())
    position = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    hill = 0.55 + 0.4 * np.exp(-((position - 0.3) ** 2).sum(axis=0) * 1.5)
    if len(shape) == 1:
        hill = 0.6 + 0.3 * np.linspace(0, 1, shape[0])  # the optimum at the end of the grid
    noise = rng.normal(0, 0.004, (len(presets), len(splits), n_seeds, *shape, 5))
    coords = {"preprocess": list(presets), "split": list(splits), "seed": np.arange(n_seeds), **grid}
    return xr.Dataset({"accuracy": (("preprocess", "split", "seed", *grid, "fold"), hill[..., None] + noise)}, coords)


def _robustness(
    rng: np.random.Generator, models: tuple[str, ...], presets: tuple[str, ...], splits: tuple[str, ...], n_seeds: int
) -> xr.Dataset:
    longest = max(len(values) for _, values in AMPLITUDES.values())
    shape = (len(models), len(presets), len(splits), len(AMPLITUDES), longest, n_seeds)
    accuracy, amplitude_value = np.full(shape, np.nan), np.full((len(AMPLITUDES), longest), np.nan)
    for number, (name, (_, values)) in enumerate(AMPLITUDES.items()):
        amplitude_value[number, : values.size] = values
        harm = 30 / values if name == "poisson_peak_counts" else abs(values) / values.max()
        for index in np.ndindex(shape[:3]):
            strength = rng.uniform(0.5, 6)
            curve = 0.5 + 0.45 * np.exp(-strength * harm**2)
            accuracy[(*index, number, slice(0, values.size))] = curve[:, None] + rng.normal(
                0, 0.012, (values.size, n_seeds)
            )
    return xr.Dataset(
        {"accuracy": (("model", "preprocess", "split", "perturbation", "amplitude", "seed"), accuracy)},
        coords={
            "model": list(models), "preprocess": list(presets), "split": list(splits),
            "perturbation": list(AMPLITUDES), "unit": ("perturbation", [unit for unit, _ in AMPLITUDES.values()]),
            "amplitude": np.arange(longest), "amplitude_value": (("perturbation", "amplitude"), amplitude_value),
            "seed": np.arange(n_seeds),
        },
    )  # fmt: skip


@pytest.fixture
def results_factory() -> Callable[..., Path]:
    """Return the function that writes a synthetic results directory."""
    return make_results


@pytest.fixture(scope="session")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a whole synthetic study, built once."""
    from eelsflow.report import build_report

    directory = tmp_path_factory.mktemp("study") / "out"
    return build_report(
        make_results(
            directory, models=("svm-linear", "svm-rbf", "svm-sgd", "cnn-2"), shapes=((20, 24), (1, 30)), n_seeds=2
        )
    )
