"""A study's results directory: tables, curves, grids and evidence in the files others rely on."""

from __future__ import annotations

import os
import platform
import shutil
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import yaml
from numpy.typing import NDArray

import eelsflow
from eelsflow.dataset.spectra import LabelledSpectra
from eelsflow.dataset.splits import split_spectra
from eelsflow.digest import code_version, digest_of
from eelsflow.edges import JOINED
from eelsflow.errors import DataSetError
from eelsflow.io.zarr_store import open_dataset, write_dataset
from eelsflow.preprocess.joint_features import load_transform
from eelsflow.preprocess.presets import DISPERSION_ERROR
from eelsflow.robustness.compare import compare_models
from eelsflow.robustness.control import shuffled_label_control
from eelsflow.robustness.scores import (
    Score,
    area_under_curve,
    bootstrap_curve,
    bootstrap_score,
    breakdown_point,
    share_score,
)
from eelsflow.robustness.shortcut import among_equal_noise, fit_on_conditions, judge_shortcut
from eelsflow.store import Store, read_json, write_json
from eelsflow.study.evidence import EXAMPLE_SHIFT_EV, example_spectra
from eelsflow.study.map_scores import expected_of_chosen, map_rows
from eelsflow.study.plan import AssessModel, FitFeatures, JudgeOutside, Plan, ScoreMaps
from eelsflow.study.stages import Place, read_fit

Row = dict[str, Any]
Key = tuple[str, str, str]
"""(model, preprocess, split)."""


def by_row(steps: Sequence[AssessModel]) -> dict[Key, list[AssessModel]]:
    """Group assessments of the same model, preprocessing and split over their seeds."""
    rows: dict[Key, list[AssessModel]] = defaultdict(list)
    for step in steps:
        rows[step.fit.model.name, step.fit.preset.name, step.fit.features.split].append(step)
    return dict(rows)


class _TestParts:
    """Labels and groups of test parts; many models share one."""

    def __init__(self, place: Place) -> None:
        self._store = place.store
        self._cache: dict[str, tuple[NDArray[np.str_], NDArray[np.str_] | None]] = {}

    def __getitem__(self, features: FitFeatures) -> tuple[NDArray[np.str_], NDArray[np.str_] | None]:
        if features.digest not in self._cache:
            spectra = LabelledSpectra.load(self._store.path(features.dataset))
            test = np.load(self._store.path(features.digest) / "test.npy")
            # Groups are the unit of resampling only where whole groups were held out; pixels of a random split
            # are resampled one by one, as the paper's protocol would have it.
            by_group = spectra.group is not None and features.split == "group"
            self._cache[features.digest] = (
                np.asarray(spectra.label[test]),
                np.asarray(spectra.group[test]) if by_group and spectra.group is not None else None,
            )
        return self._cache[features.digest]


def score_rows(steps: Sequence[AssessModel], place: Place) -> list[Row]:
    """Return one row of results for each model x preprocessing x split."""
    tests = _TestParts(place)
    return [_score_row(key, members, tests, place) for key, members in by_row(steps).items()]


def _score_row(key: Key, members: Sequence[AssessModel], tests: _TestParts, place: Place) -> Row:
    model, preset, split = key
    correct: dict[str, list[NDArray[np.bool_]]] = defaultdict(list)
    labels, groups = [], []
    curves: dict[str, list[list[float]]] = defaultdict(list)
    for step in members:
        label, group = tests[step.fit.features]
        labels.append(label)
        groups.append(group)
        with np.load(place.store.path(step.digest) / "correct.npz") as arrays:
            for name in arrays.files:
                correct[name].append(arrays[name])
        for name, accuracy in read_json(place.store.path(step.digest) / "assessment.json")["curves"].items():
            curves[name].append(accuracy)
    fits = [read_fit(step.fit, place.store) for step in members]

    def score(name: str, *, balanced: bool = False) -> dict[str, float] | None:
        found: Score | None = bootstrap_score(correct[name], labels, groups, balanced=balanced)
        return found.model_dump() if found else None

    def mean_seconds(name: str) -> float | None:
        seconds = [fit[name] for fit in fits if fit[name] is not None]
        return float(np.mean(seconds)) if seconds else None

    accuracy = score("accuracy")
    assert accuracy is not None  # every assessment holds the unperturbed accuracy
    summary = {}
    for curve in members[0].curves:
        mean = np.mean(curves[curve.perturbation], axis=0)
        amplitudes = np.array(curve.amplitudes)
        summary[curve.perturbation] = {
            "breakdown": breakdown_point(amplitudes, mean, clean=accuracy["mean"], mild_end=curve.mild_end),
            "area": area_under_curve(amplitudes, mean) if amplitudes.size > 1 else None,
            "worst": {"accuracy": float(mean.min()), "amplitude": float(amplitudes[mean.argmin()])},
        }
    return {
        "model": model,
        "base": members[0].fit.model.base,
        "features": members[0].fit.model.features,
        "augment": None if members[0].fit.model.augment is None else members[0].fit.model.augment.model_dump(),
        "align": members[0].fit.model.align,
        "preprocess": preset,
        "split": split,
        "seeds": len(members),
        "searches": sum(fit["search_seconds"] is not None for fit in fits),
        "best_params": fits[0]["best_params"],
        "best_params_by_seed": [fit["best_params"] for fit in fits],
        "accuracy": accuracy,
        "balanced_accuracy": score("accuracy", balanced=True),
        "translation": score("translation"),
        "noise": score("noise"),
        "further": {name: score(name) for name in correct if name not in ("accuracy", "translation", "noise")},
        "curves": summary,
        "search_seconds": mean_seconds("search_seconds"),
        "train_seconds": mean_seconds("train_seconds"),
        "warnings": list(dict.fromkeys(warning for fit in fits for warning in fit["warnings"])),
    }


def leakage(rows: Sequence[Row]) -> list[Row]:
    """Return, for models assessed both ways, how much a random pixel split flatters them."""
    accuracy = {(row["model"], row["preprocess"], row["split"]): row["accuracy"]["mean"] for row in rows}
    return [
        {
            "model": model,
            "preprocess": preset,
            "pixel": value,
            "group": accuracy[model, preset, "group"],
            "gap": value - accuracy[model, preset, "group"],
        }
        for (model, preset, split), value in accuracy.items()
        if split == "pixel" and (model, preset, "group") in accuracy
    ]


def robustness_dataset(steps: Sequence[AssessModel], place: Place) -> xr.Dataset:
    """Return accuracy (model, preprocess, split, perturbation, amplitude, seed); NaN where nothing was tried.

    And ``low`` and ``high`` over all but the seeds: the 95 % interval over acquisitions, where these were held out.
    """
    rows = by_row(steps)
    models, presets, splits = (list(dict.fromkeys(key[axis] for key in rows)) for axis in range(3))
    curves = steps[0].curves
    n_amplitudes = max(len(curve.amplitudes) for curve in curves)
    n_seeds = max(len(members) for members in rows.values())
    accuracy = np.full((len(models), len(presets), len(splits), len(curves), n_amplitudes, n_seeds), np.nan)
    amplitude_value = np.full((len(curves), n_amplitudes), np.nan)
    interval = np.full((2, *accuracy.shape[:-1]), np.nan)
    tests = _TestParts(place)
    for number, curve in enumerate(curves):
        amplitude_value[number, : len(curve.amplitudes)] = curve.amplitudes
    for (model, preset, split), members in rows.items():
        for seed, step in enumerate(members):
            found = read_json(place.store.path(step.digest) / "assessment.json")["curves"]
            for number, curve in enumerate(curves):
                values = found[curve.perturbation]
                place_of = (models.index(model), presets.index(preset), splits.index(split), number)
                accuracy[*place_of, : len(values), seed] = values
        groups = [tests[step.fit.features][1] for step in members]
        if any(group is None for group in groups):
            continue
        hits = [_hits_of(step, place) for step in members]
        for number, curve in enumerate(curves):
            place_of = (models.index(model), presets.index(preset), splits.index(split), number)
            found = bootstrap_curve(
                [one[curve.perturbation] for one in hits], [group for group in groups if group is not None]
            )
            interval[:, *place_of, : len(curve.amplitudes)] = found
    dims = ("model", "preprocess", "split", "perturbation", "amplitude")
    return xr.Dataset(
        {"accuracy": ((*dims, "seed"), accuracy), "low": (dims, interval[0]), "high": (dims, interval[1])},
        coords={
            "model": models,
            "preprocess": presets,
            "split": splits,
            "perturbation": [curve.perturbation for curve in curves],
            "unit": ("perturbation", [curve.unit for curve in curves]),
            "amplitude": np.arange(n_amplitudes),
            "amplitude_value": (("perturbation", "amplitude"), amplitude_value),
            "seed": np.arange(n_seeds),
        },
    )


def _hits_of(step: AssessModel, place: Place) -> dict[str, NDArray[np.float64]]:
    with np.load(place.store.path(step.digest) / "hits.npz") as arrays:
        return dict(arrays)


def search_dataset(members: Sequence[AssessModel], place: Place) -> xr.Dataset | None:
    """Return accuracy (preprocess, split, seed, grid parameters..., fold) of one model, or None without a grid."""
    found: dict[tuple[str, str, int], xr.DataArray] = {}
    for step in members:
        path = place.store.path(step.fit.digest) / "search.zarr"
        if path.exists():
            accuracy = open_dataset(path)["accuracy"].load()
            features = step.fit.features
            found[step.fit.preset.name, features.split, features.seed] = accuracy
    if not found:
        return None
    cells = [
        array.expand_dims(preprocess=[preset], split=[split], seed=[seed])
        for (preset, split, seed), array in found.items()
    ]
    combined = xr.combine_by_coords(
        [cell.to_dataset(name="accuracy") for cell in cells], join="outer", fill_value=np.nan
    )
    assert isinstance(combined, xr.Dataset)  # datasets in, dataset out
    return combined


def write_results(
    directory: Path,
    plan: Plan,
    steps: Sequence[AssessModel],
    scored: Sequence[ScoreMaps],
    place: Place,
    *,
    run: dict[str, Any],
    outside: Sequence[JudgeOutside] = (),
) -> dict[str, Any]:
    """Write a results directory, all but the figures and the report.

    Parameters
    ----------
    directory
        Exists, and is empty.
    plan, steps, scored
        What was computed.
    place
        Where it was computed.
    run
        What is known of the run itself: "runner", "started", "seconds", "links".
    outside
        Judgements of spectra of other laboratories.

    Returns
    -------
    dict
        The content of ``results.json``.
    """
    study = plan.study
    evidence = directory / "evidence"
    evidence.mkdir()
    rows = score_rows(steps, place)
    told = shortcuts(steps, place)
    _score_among_equal_noise(rows, told, steps, place)
    maps = map_rows(scored, place.store)

    acquisitions = []
    for prepared in plan.prepare:
        entry = place.store.path(prepared.digest)
        index = plan.acquisitions.index(prepared.acquisition)
        name = f"acquisition-{index}-{prepared.preset.name}.npz"
        shutil.copyfile(entry / "evidence.npz", evidence / name)
        acquisitions.append(
            {
                "name": prepared.acquisition.name,
                "label": prepared.acquisition.label,
                "group": prepared.acquisition.group,
                "preprocess": prepared.preset.name,
                **read_json(entry / "summary.json"),
                "source": prepared.acquisition.path.name,
                "sha256": prepared.acquisition.sha256,
                "evidence": f"evidence/{name}",
            }
        )

    n_per_class: dict[str, dict[str, int]] = {}
    for dataset in plan.datasets:
        label = LabelledSpectra.load(place.store.path(dataset.digest)).label
        names, counts = np.unique(label, return_counts=True)
        n_per_class[dataset.preset_name] = {str(n): int(c) for n, c in zip(names, counts, strict=True)}
    first_counts = next(iter(n_per_class.values()))

    histories = []
    for step in steps:
        path = place.store.path(step.fit.digest) / "history.json"
        if path.exists():
            histories.append({**_identity(step), **read_json(path)})
    write_json(evidence / "histories.json", histories)
    write_json(evidence / "passports.json", passports(steps, place))
    write_json(evidence / "explanations.json", explanations(steps, place))
    write_json(evidence / "architectures.json", _architectures(steps, place, n_classes=len(first_counts)))
    firsts = {step.fit.preset.name: step.fit.features for step in reversed(steps)}
    items = [(firsts[preset.name], place.store.root) for preset in study.preprocess]
    for preset, arrays in zip(study.preprocess, place.executor.map(_examples, items, label="examples"), strict=True):
        np.savez(evidence / f"examples-{preset.name}.npz", allow_pickle=False, **arrays)

    write_dataset(robustness_dataset(steps, place), directory / "robustness.zarr")
    for model in study.models:
        search = search_dataset([step for step in steps if step.fit.model.name == model.name], place)
        if search is not None:
            write_dataset(search, directory / f"search-{model.name}.zarr")

    padded = any(read_json(place.store.path(step.digest) / "assessment.json")["padded"] for step in steps)
    results = {
        "study": study.name,
        "models": rows,
        "acquisitions": acquisitions,
        "set_aside": [one.model_dump() for one in plan.set_aside],
        "leakage": leakage(rows),
        "controls": controls(steps, place),
        "shortcuts": told,
        "comparisons": comparisons(steps, place),
        "maps": maps,
        "outside": outside_rows(outside, place.store),
        "expected": _expected(scored, place),
        "classes": sorted(first_counts),
        "edge": study.edge.model_dump(mode="json"),
        "n_spectra": sum(first_counts.values()),
        "n_per_class": first_counts,
        "n_per_class_by_preprocess": n_per_class,
        "padded": padded,
        "warnings": [*_shortcut_warnings(told), *_study_warnings(plan, maps, acquisitions, padded=padded)],
        "versions": versions(),
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        **run,
    }
    resolved = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (directory / "study.yaml").write_text(resolved)
    write_json(directory / "provenance.json", _provenance(plan, steps))
    write_json(directory / "results.json", results)
    return results


def _identity(step: AssessModel) -> dict[str, Any]:
    features = step.fit.features
    return {
        "model": step.fit.model.name,
        "preprocess": step.fit.preset.name,
        "split": features.split,
        "seed": features.seed,
    }


def controls(steps: Sequence[AssessModel], place: Place) -> list[Row]:
    """Return for each preset what labels that mean nothing score under a random split of pixels.

    Near .5 the split measures the classes; near 1 every acquisition is recognised, whatever it holds.
    """
    first = {
        step.fit.preset.name: step.fit.features
        for step in reversed(steps)
        if step.fit.features.split == "pixel" and step.fit.features.seed == 0
    }
    items = [(features, place.store.root) for features in first.values()]
    found = place.executor.map(_control, items, label="control") if items else []
    return [
        {"preprocess": preset, "shuffled": value}
        for preset, value in zip(first, found, strict=True)
        if value is not None
    ]


def _control(item: tuple[FitFeatures, Path]) -> float | None:
    step, root = item
    store = Store(root)
    spectra = LabelledSpectra.load(store.path(step.dataset))
    if spectra.group is None:
        return None
    features = store.path(step.digest)
    train = np.load(features / "train.npy")
    vectors = np.load(features / "vectors.npy", mmap_mode="r")
    try:
        return shuffled_label_control(vectors, spectra.group[train], spectra.label[train], n_draws=4).mean
    except DataSetError:  # too few acquisitions of a class
        return None


SHORTCUT_SEEDS = 10
"""Splits that the classifier of conditions is scored on, at most."""


def shortcuts(steps: Sequence[AssessModel], place: Place) -> list[Row]:
    """Return, for each preset, what a classifier of what is not chemistry scores.

    On held-out acquisitions, wherever there are two of each class: that an acquisition is recognised by how it was
    recorded is no shortcut to the classes. On random spectra otherwise.
    """
    features_of: dict[str, FitFeatures] = {}
    n_seeds: dict[str, int] = {}
    for step in steps:
        features, preset = step.fit.features, step.fit.preset.name
        features_of.setdefault(preset, features)
        n_seeds[preset] = min(max(n_seeds.get(preset, 0), features.seed + 1), SHORTCUT_SEEDS)
    items = [
        (features, seed, place.store.root)
        for preset, features in features_of.items()
        for seed in range(n_seeds[preset])
    ]
    found = iter(place.executor.map(_fit_on_conditions, items, label="shortcuts"))
    rows = []
    for preset in features_of:
        fits = [next(found) for _ in range(n_seeds[preset])]
        judged = judge_shortcut(
            [fit.correct for fit in fits], [fit.label for fit in fits], [fit.group for fit in fits],
            [fit.weight for fit in fits],
        )  # fmt: skip
        split = "pixel" if any(fit.group is None for fit in fits) else "group"
        rows.append({"preprocess": preset, "split": split, **judged.model_dump(mode="json")})
    return rows


class _OnConditions(NamedTuple):
    correct: NDArray[np.bool_]
    label: NDArray[np.str_]
    group: NDArray[np.str_] | None
    weight: NDArray[np.float64]


def _fit_on_conditions(item: tuple[FitFeatures, int, Path]) -> _OnConditions:
    features, seed, root = item
    spectra = LabelledSpectra.load(Store(root).path(features.dataset))
    assert spectra.conditions is not None  # every data set has them
    label = np.asarray(spectra.label)
    group = None if spectra.group is None else np.asarray(spectra.group)
    options: dict[str, Any] = {"test_fraction": features.test_fraction, "seed": seed}
    try:
        train, test = split_spectra(label, group, by="group", **options)
    except DataSetError:  # no groups, or too few of them
        group = None
        train, test = split_spectra(label, None, by="pixel", **options)
    correct, weight = fit_on_conditions(np.asarray(spectra.conditions), label, train, test, seed=seed)
    return _OnConditions(correct, label[test], None if group is None else group[test], weight)


def _score_among_equal_noise(
    rows: Sequence[Row], told: Sequence[Row], steps: Sequence[AssessModel], place: Place
) -> None:
    """Add to rows whose labels can be told without chemistry the accuracy among spectra of equal noise."""
    affected = {row["preprocess"] for row in told if row["told"]}
    members = by_row(steps)
    for row in rows:
        row["equal_noise"] = None
        if row["preprocess"] not in affected:
            continue
        correct, labels, groups = [], [], []
        for step in members[row["model"], row["preprocess"], row["split"]]:
            features = step.fit.features
            spectra = LabelledSpectra.load(place.store.path(features.dataset))
            test = np.load(place.store.path(features.digest) / "test.npy")
            assert spectra.conditions is not None
            label, group = np.asarray(spectra.label[test]), None
            if spectra.group is not None and features.split == "group":
                group = np.asarray(spectra.group[test])
            chosen = among_equal_noise(np.asarray(spectra.conditions[test]), label, seed=features.seed)
            if chosen.size:
                with np.load(place.store.path(step.digest) / "correct.npz") as arrays:
                    correct.append(arrays["accuracy"][chosen])
                labels.append(label[chosen])
                groups.append(None if group is None else group[chosen])
        found = bootstrap_score(correct, labels, groups, balanced=True)
        row["equal_noise"] = found.model_dump() if found else None


def comparisons(steps: Sequence[AssessModel], place: Place) -> list[Row]:
    """Return, for each preset and split, every two models compared on the spectra that both were tested on."""
    tests = _TestParts(place)
    members_of: dict[tuple[str, str], dict[str, Sequence[AssessModel]]] = defaultdict(dict)
    for (model, preset, split), members in by_row(steps).items():
        members_of[preset, split][model] = members
    rows = []
    for (preset, split), models in members_of.items():
        features = [step.fit.features for step in next(iter(models.values()))]
        correct = {name: [_correct_of(step, place) for step in members] for name, members in models.items()}
        labels, groups = zip(*(tests[part] for part in features), strict=True)
        clusters = [
            group if group is not None else np.load(place.store.path(part.digest) / "test.npy")
            for group, part in zip(groups, features, strict=True)
        ]
        found = compare_models(correct, labels, clusters)
        rows += [{"preprocess": preset, "split": split, **one.model_dump()} for one in found]
    return rows


def _correct_of(step: AssessModel, place: Place) -> NDArray[np.bool_]:
    with np.load(place.store.path(step.digest) / "correct.npz") as arrays:
        correct: NDArray[np.bool_] = arrays["accuracy"]
    return correct


def passports(steps: Sequence[AssessModel], place: Place) -> list[Row]:
    """Return for each row of results how many spectra and groups it was trained on, and what was right of each group.

    Numbers are means over the seeds, of a group over those that tested it; groups only where they were held out.
    """
    tests = _TestParts(place)
    rows = []
    for (model, preset, split), members in by_row(steps).items():
        sizes, n_groups = [], []
        tested: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for step in members:
            features = place.store.path(step.fit.features.digest)
            sizes.append(len(np.load(features / "train.npy", mmap_mode="r")))
            n_groups.append(len(read_json(features / "groups.json")))
            label, group = tests[step.fit.features]
            if group is None:
                continue
            correct = _correct_of(step, place)
            names, code = np.unique(group, return_inverse=True)
            for number, name in enumerate(names.tolist()):
                mine = code == number
                kinds, counts = np.unique(label[mine], return_counts=True)
                kind = str(kinds[counts.argmax()]) if counts.max() > 0.9 * counts.sum() else ""
                tested[name].append((int(correct[mine].sum()), int(mine.sum()), kind))
        rows.append(
            {
                "model": model,
                "preprocess": preset,
                "split": split,
                "train_spectra": float(np.mean(sizes)),
                "train_groups": float(np.mean(n_groups)),
                "groups": [
                    {
                        "name": name,
                        "label": found[0][2],
                        "right": float(np.mean([one[0] for one in found])),
                        "tested": float(np.mean([one[1] for one in found])),
                        "seeds": len(found),
                    }
                    for name, found in sorted(tested.items())
                ],
            }
        )
    return rows


EXPLAINED_SEEDS = 5
"""Splits whose models are explained together, at most: more hardly change their mean and spread (ours)."""


def explanations(steps: Sequence[AssessModel], place: Place) -> list[Row]:
    """Return which energies decide for each model and preset: the mean over its splits, and that of each.

    By the split that passports show: whole acquisitions held out, else random spectra.
    """
    rows = by_row(steps)
    keys = [key for key in rows if key[2] == "group" or (*key[:2], "group") not in rows]
    paths = [
        [place.store.path(step.fit.digest) / "model" for step in rows[key][:EXPLAINED_SEEDS]] for key in keys
    ]  # fmt: skip
    found = place.executor.map(_explain, paths, label="explain")
    return [
        {"model": model, "preprocess": preset, "split": split, "explanation": explanation}
        for (model, preset, split), explanation in zip(keys, found, strict=True)
    ]


def _explain(paths: list[Path]) -> dict[str, Any]:
    from eelsflow.explanation import explain
    from eelsflow.models.bundle import ModelBundle

    bundle, *others = [ModelBundle.load(path) for path in paths]
    return explain(bundle, models=others).as_dict()


def outside_rows(steps: Sequence[JudgeOutside], store: Store) -> list[Row]:
    """Return, for each test of spectra of other laboratories, model and preset, what was right."""
    rows = []
    for step in steps:
        for test in read_json(store.path(step.digest) / "outside.json"):
            label, truth, predicted = (np.array(test[name], dtype=np.str_) for name in ("label", "class", "predicted"))
            known = truth != ""
            n, right = int(known.sum()), int((truth == predicted)[known].sum())
            moved = np.array(test["moved_ev"])
            rows.append(
                {
                    "model": step.fit.model.name,
                    "preprocess": step.fit.preset.name,
                    "test": test["test"],
                    "right": right,
                    "of": n,
                    "accuracy": share_score(right, n).model_dump(),
                    "by_class": {
                        name: [int((predicted[truth == name] == name).sum()), int((truth == name).sum())]
                        for name in sorted(set(truth[known].tolist()))
                    },
                    "apart": {
                        name: dict(zip(*_counts(predicted[label == name]), strict=True))
                        for name in sorted(set(label[~known].tolist()))
                    },
                    "moved_ev": [float(moved.min()), float(moved.max())],
                    "held_ev": test["held_ev"],
                    "curve": test["curve"],
                }
            )
    return rows


def _counts(values: NDArray[np.str_]) -> tuple[list[str], list[int]]:
    names, counts = np.unique(values, return_counts=True)
    return names.tolist(), counts.tolist()


FEW_FOR_EDGES = 20
"""Acquisitions from which on edges together mapped fields of one phase as well as O K alone (decision 0035)."""

_HELD_OUT = {"group": "held-out acquisitions", "pixel": "random test spectra"}


def _shortcut_warnings(told: Sequence[Row]) -> list[str]:
    return [
        f"the labels can be told without chemistry: a classifier of noise, counts, background and place alone gets "
        f"{row['accuracy']['mean']:.2f} of {_HELD_OUT[row['split']]} right ({row['preprocess']}; chance "
        f"{row['chance']:.2f}), most of all by {', '.join(row['by']) or 'no single condition'}: the scores below may "
        "measure the recordings and not the classes; see the accuracy among spectra of equal noise"
        for row in told
        if row["told"]
    ]


def _expected(scored: Sequence[ScoreMaps], place: Place) -> dict[str, Any] | None:
    found = expected_of_chosen(scored, place.store)
    return None if found is None else found.model_dump(mode="json")


def _study_warnings(plan: Plan, maps: Sequence[Row], acquisitions: Sequence[Row], *, padded: bool) -> list[str]:
    """Return what concerns the study as a whole; what concerns one model stands in its row."""
    warnings = []
    if plan.acquisitions and not maps:
        warnings.append(
            "no acquisition was held out whole, so no map was compared with its truth: the final model was chosen by "
            "single pixels of acquisitions that it knows; split by group"
        )
    elif maps and not any(row["n_mixed"] for row in maps):
        warnings.append(
            "mixed fields are untested: no held-out acquisition shows two classes, so nothing here says what a map of "
            "two phases is worth; a preset may turn it into one of a single class. Add an acquisition with per-pixel "
            "truth, or simulated ones"
        )
    one_class = [f"{row['model']} ({row['preprocess']})" for row in maps if row["one_class"] > 0.5 * row["n_mixed"]]
    if one_class:
        warnings.append(
            f"most maps of fields of two phases show one class only, by {', '.join(one_class)}: these models erase the "
            "smaller phase, whatever they score on pure fields"
        )
    is_calibrated = (plan.study.dispersion_error or DISPERSION_ERROR) <= DISPERSION_ERROR / 2
    if plan.study.edge.beside and len(plan.acquisitions) < FEW_FOR_EDGES and not is_calibrated:
        first = plan.study.edge.alone[0].name
        warnings.append(
            f"{len(plan.acquisitions)} acquisitions tell little of {plan.study.edge.name.replace(JOINED, ' and ')} "
            f"together: of fewer than {FEW_FOR_EDGES} simulated ones, not calibrated, maps of fields of one phase were "
            "worse by O_K and Fe_L3 than by O_K, because more must be learnt; add acquisitions, or compare with a "
            f"study of {first}"
        )
    if plan.acquisitions:
        warnings += [preset.caution for preset in plan.study.preprocess if preset.caution]
    if padded:
        warnings.append(
            "shifted spectra were padded by repeating their last channel, because no wider data exists: the "
            "translation scores and shift curves say less than with a wider window"
        )
    for acquisition in acquisitions:
        warnings += [f"{acquisition['name']} ({acquisition['preprocess']}): {text}" for text in acquisition["warnings"]]
    return list(dict.fromkeys(warnings))


def _architectures(steps: Sequence[AssessModel], place: Place, *, n_classes: int) -> list[dict[str, Any]]:
    """Describe the networks, on a worker: TensorFlow is loaded there already."""
    networks: dict[str, AssessModel] = {}
    for step in steps:
        if step.fit.model.is_network:
            networks.setdefault(step.fit.model.name, step)
    if not networks:
        return []
    items = []
    for step in networks.values():
        vectors = np.load(place.store.path(step.fit.features.digest) / "vectors.npy", mmap_mode="r")
        best_params = read_fit(step.fit, place.store)["best_params"]
        items.append((step.fit.model.name, step.fit.model.base, int(vectors.shape[1]), n_classes, best_params))
    return place.executor.map(_architecture, items, label="describe")


def _architecture(item: tuple[str, str, int, int, dict[str, Any]]) -> dict[str, Any]:
    from eelsflow.models.networks import architecture_table, build_network

    name, base, n_channels, n_classes, params = item
    network = build_network(base, n_channels, n_classes, params)
    return {"model": name, "parameters": int(network.count_params()), "layers": architecture_table(network)}


def _examples(item: tuple[FitFeatures, Path]) -> dict[str, NDArray[Any]]:
    step, root = item
    store = Store(root)
    features = store.path(step.digest)
    spectra = LabelledSpectra.load(store.path(step.dataset))
    test = np.load(features / "test.npy")
    transform = load_transform(features / "transform")
    raw = spectra.intensity[test]
    return example_spectra(
        transform.apply(raw),
        transform.apply(raw, shift_ev=EXAMPLE_SHIFT_EV),
        np.asarray(spectra.label[test]),
        energy_loss=transform.energy_loss,
        raw=raw,
        raw_energy_loss=np.asarray(spectra.energy_loss),
    )


def _provenance(plan: Plan, steps: Sequence[AssessModel]) -> dict[str, Any]:
    return {
        "eelsflow": eelsflow.__version__,
        "code": code_version("."),
        "study": digest_of(plan.study),
        "inputs": {
            acquisition.path.name: {"sha256": acquisition.sha256, "truth": acquisition.truth_sha256 or None}
            for acquisition in plan.acquisitions
        }
        or {dataset.table.name: {"sha256": dataset.table_sha256} for dataset in plan.datasets if dataset.table},
        "prepared": {step.title: step.digest for step in plan.prepare},
        "datasets": {step.title: step.digest for step in plan.datasets},
        "models": {step.fit.title: step.fit.digest for step in steps},
        "assessments": {step.title: step.digest for step in steps},
        "lock": digest_of(versions(every=True)),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(*, every: bool = False) -> dict[str, str]:
    """Return the versions of the distributions that matter to the numbers, or of every one installed."""
    found = {distribution.metadata["Name"].lower(): distribution.version for distribution in metadata.distributions()}
    if every:
        return dict(sorted(found.items()))
    chosen = ("eelsflow", "numpy", "scipy", "scikit-learn", "keras", "tensorflow-cpu", "tensorflow", "xarray", "zarr",
              "dask", "distributed", "prefect", "mlflow", "rosettasciio")  # fmt: skip
    return {"python": platform.python_version(), **{name: found[name] for name in chosen if name in found}}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
