"""Does it pay to label what is proposed? Balanced accuracy on held-out acquisitions, beside labels at random.

    python -m benchmarks.labelling [--seeds 8] [--first-seed 7101] [--repeats 4]

Two settings, each for every seed and several divisions of its acquisitions:

- alike: four fields of the wide simulator are labelled from the start (two of either oxide), a pool and the held-out
  fields are drawn as they are;
- new conditions: four nanocubes of one microscope are labelled from the start, the pool is half of such cubes and half
  of wide fields, and wide fields are held out.

Four acquisitions of the pool are labelled then: those that `eelsflow label --suggest` ranks first, and in each the
regions that it proposes; or random ones, and in each as many random pixels of the specimen. A label is what is pure in
the simulator's truth; pixels that are not get none. The model is the discriminant.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eelsflow.dataset.labels import PURE_FRACTION
from eelsflow.edges import O_K
from eelsflow.errors import InputError
from eelsflow.executors import LoopExecutor
from eelsflow.io.zarr_store import open_dataset, write_dataset
from eelsflow.labelling.suggest import Suggestion, edge_strength, judge_usefulness
from eelsflow.maps.pixels import map_pixels
from eelsflow.models.bundle import ModelBundle
from eelsflow.models.fitting import fit_model
from eelsflow.models.spec import resolve_model
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.features import FeatureTransform
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.preprocess.shapes import to_shapes
from eelsflow.simulator import KNOWN_FIELDS, plan_directory, simulate_acquisition
from eelsflow.unmixing.references import References

CLASSES = ("FeO", "Fe3O4")
PRESET = resolve_preset("recommended")
PIXELS = 24
FIELDS, HELD_OUT, LABELLED = 36, 14, 4
CUBES, MIXED_POOL = 16, 10
START_PIXELS = 60
RANDOM_DRAWS = 8


@dataclass(frozen=True)
class Field:
    name: str
    path: Path
    intensity: np.ndarray
    variance: np.ndarray
    energy_loss: np.ndarray
    strength: np.ndarray
    specimen: np.ndarray
    label: np.ndarray  # (y, x), "" where no phase is pure

    def choose(self, pixels: np.ndarray) -> Labelled:
        return Labelled(self, pixels & (self.label != ""))

    def at_random(self, n: int, rng: np.random.Generator) -> Labelled:
        where = np.flatnonzero(self.specimen)
        chosen = np.zeros(self.specimen.size, dtype=bool)
        chosen[rng.permutation(where)[:n]] = True
        return self.choose(chosen.reshape(self.specimen.shape))


@dataclass(frozen=True)
class Labelled:
    field: Field
    pixels: np.ndarray


def simulate(seed: int, directory: Path, preset: str) -> list[Field]:
    """Simulate and prepare the wide fields of a seed, or its cubes."""
    options = {"n_acquisitions": CUBES} if preset == "paper" else {
        "n_acquisitions": FIELDS, "detector": "both", "scenes": KNOWN_FIELDS,
    }  # fmt: skip
    fields = []
    for planned in plan_directory(seed=seed, shape=(PIXELS, PIXELS), preset=preset, **options):
        acquisition = simulate_acquisition(planned.parameters, planned.seed, name=planned.name)
        try:
            product = prepare(acquisition.image, edge=O_K, preset=PRESET.for_acquisition)
        except InputError as error:
            print(f"seed {seed}: {planned.name} left out: {error}")
            continue
        path = directory / f"{planned.name}.zarr"
        write_dataset(product, path)
        specimen = ~product["vacuum_mask"].values
        label = np.full(specimen.shape, "", dtype="<U5")
        for phase, fraction in zip(acquisition.truth["phase"].values, acquisition.truth["phase_fraction"], strict=True):
            label[specimen & (fraction.values >= PURE_FRACTION)] = str(phase)
        fields.append(
            Field(
                planned.name, path, product["intensity"].values, product["variance"].values,
                product["energy_loss"].values, edge_strength(product, O_K), specimen, label,
            )
        )  # fmt: skip
    return fields


def train(labelled: list[Labelled]) -> ModelBundle:
    labelled = [one for one in labelled if one.pixels.any()]
    intensity, variance, label, group = (
        np.concatenate(parts)
        for parts in zip(
            *(
                (one.field.intensity[one.pixels], one.field.variance[one.pixels], one.field.label[one.pixels],
                 np.full(int(one.pixels.sum()), one.field.name))
                for one in labelled
            ),
            strict=True,
        )
    )  # fmt: skip
    transform = FeatureTransform.fit(
        intensity, labelled[0].field.energy_loss, edge=O_K, preset=PRESET, variance=variance
    )
    nothing = np.arange(0)
    with tempfile.TemporaryDirectory() as scratch:
        fitted = fit_model(
            resolve_model("mlls"), transform.apply(intensity), label, folds=[], validation=(nothing, nothing), seed=0,
            executor=LoopExecutor(), scratch=Path(scratch), epochs=1, batch_size=1, patience=1,
        )  # fmt: skip
    references = References.fit(to_shapes(intensity, variance, transform.axis, O_K), label, group)
    return ModelBundle("mlls", O_K, PRESET, transform, fitted.classifier, references)


def balanced_accuracy(model: ModelBundle, held_out: list[Field]) -> float:
    """Mean over the classes of the mean recall of the held-out acquisitions that show the class."""
    recalls: dict[str, list[float]] = {name: [] for name in CLASSES}
    for field in held_out:
        known = field.label != ""
        if known.any():
            predicted, _ = model.predict(field.intensity[known])
            for name in CLASSES:
                if (of_class := field.label[known] == name).any():
                    recalls[name].append(float((predicted[of_class] == name).mean()))
    return float(np.mean([np.mean(values) for values in recalls.values()]))


def rank(model: ModelBundle, pool: list[Field]) -> list[tuple[Field, Suggestion]]:
    judged = [
        (
            field,
            judge_usefulness(
                map_pixels(open_dataset(field.path), model), field.strength, model, acquisition=field.name
            ),
        )
        for field in pool
    ]
    return sorted(judged, key=lambda one: -one[1].score)


def two_of_either(fields: list[Field]) -> list[Field]:
    return [one for name in CLASSES for one in [field for field in fields if field.name.endswith(f"-{name}")][:2]]


def without(fields: list[Field], taken: list[Field]) -> list[Field]:
    return [field for field in fields if all(field is not one for one in taken)]


def divide(wide: list[Field], cubes: list[Field], rng: np.random.Generator) -> dict[str, tuple[list[Field], ...]]:
    """Return what is labelled at the start, the pool and what is held out, in either setting."""
    wide, cubes = ([fields[k] for k in rng.permutation(len(fields))] for fields in (wide, cubes))
    held_out, rest = wide[:HELD_OUT], wide[HELD_OUT:]
    first, first_cubes = two_of_either(rest), two_of_either(cubes)
    return {
        "alike": (first, without(rest, first), held_out),
        "new conditions": (
            first_cubes, [*without(cubes, first_cubes)[:MIXED_POOL], *rest[:MIXED_POOL]], held_out,
        ),
    }  # fmt: skip


def compare(first: list[Field], pool: list[Field], held_out: list[Field], rng: np.random.Generator) -> dict[str, float]:
    """Label one division both ways; return the balanced accuracy of each."""
    start = [field.at_random(START_PIXELS, rng) for field in first]
    model = train(start)
    proposed, elsewhere, numbers = list(start), list(start), []
    for field, suggestion in rank(model, pool)[:LABELLED]:
        chosen = np.zeros(field.specimen.shape, dtype=bool)
        for region in suggestion.regions:
            chosen[tuple(np.transpose(region.members))] = True
        numbers.append(int(chosen.sum()))
        proposed.append(field.choose(chosen))
        elsewhere.append(field.at_random(numbers[-1], rng))
    draws = []
    for _ in range(RANDOM_DRAWS):
        drawn = [pool[k] for k in rng.permutation(len(pool))[:LABELLED]]
        labelled = [field.at_random(n, rng) for field, n in zip(drawn, numbers, strict=True)]
        draws.append(balanced_accuracy(train([*start, *labelled]), held_out))
    scores = {
        "start": balanced_accuracy(model, held_out),
        "random": float(np.mean(draws)),
        "proposed": balanced_accuracy(train(proposed), held_out),
        "proposed acquisitions, random pixels": balanced_accuracy(train(elsewhere), held_out),
    }
    everything = [field.at_random(int(np.mean(numbers)), rng) for field in pool]
    scores["whole pool"] = balanced_accuracy(train([*start, *everything]), held_out)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description="Labels where they are proposed, beside labels at random.")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=7101)
    parser.add_argument("--repeats", type=int, default=4, help="divisions of the fields of a seed")
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as directory:
            wide, cubes = (simulate(seed, Path(directory), preset) for preset in ("wide", "paper"))
            found: dict[str, list[dict[str, float]]] = {}
            for repeat in range(options.repeats):
                rng = np.random.default_rng([seed, repeat])
                for setting, division in divide(wide, cubes, rng).items():
                    found.setdefault(setting, []).append(compare(*division, rng))
        for setting, scores in found.items():
            mean = {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
            rows.setdefault(setting, []).append(mean)
            print(f"seed {seed}, {setting}: " + ", ".join(f"{name} {value:.3f}" for name, value in mean.items()),
                  flush=True)  # fmt: skip
    for setting, means in rows.items():
        print(f"{setting}: balanced accuracy on held-out acquisitions, mean of {len(means)} seeds")
        for name in means[0]:
            apart = np.array([one[name] - one["random"] for one in means])
            error = apart.std(ddof=1) / np.sqrt(len(apart)) if len(apart) > 1 else np.nan
            print(f"  {name:38s} {np.mean([one[name] for one in means]):.3f}   {apart.mean():+.3f} +- {error:.3f} "
                  f"against random, better in {(apart > 0).sum()} of {len(apart)}")  # fmt: skip


if __name__ == "__main__":
    main()
