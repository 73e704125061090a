"""The dose that the planner names from one acquisition, against the dose at which the simulator has what was wanted.

    python -m benchmarks.dose_plan --model DIR [--seed 5923] [--specimens 1] [--pixels 32]

Specimens of the wide simulator, three thicknesses and both detectors, each with shapes of its own. The planner sees one
acquisition at one dose: a mosaic of both oxides with its labels, at the doses .3, 1 and 3, or a pure field without
labels, at 1. What is needed is measured on fresh acquisitions of the specimen at many doses, prepared from their counts
alone, every pixel that is a quarter as thick as the thickest tenth judged by itself: of the mosaic, and of two pure
fields, whose energy offsets are found apart. Fractions are least squares on the shapes at the largest dose. Ratios are
of doses, named over needed; of errors, measured at the dose that was named over wanted.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from eelsflow.dataset.labels import PURE_FRACTION
from eelsflow.dose import DosePlan, plan_dose
from eelsflow.energy import axis_of
from eelsflow.errors import EelsflowError
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.presets import Spatial
from eelsflow.preprocess.shapes import Shapes, shape_noise, to_shapes, whitening
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import plan_directory, simulate_acquisition
from eelsflow.unmixing.field import TELLING
from eelsflow.unmixing.references import mean_shape

CLASSES = ("FeO", "Fe3O4")
THICKNESSES = (30.0, 60.0, 110.0)  # nm, at the thickest place
DOSES = np.geomspace(0.15, 13.0, 10)  # of the fresh acquisitions, relative to the measured one
ACCURACIES = (0.9, 0.95)
ERRORS = (0.3, 0.15)
PILOTS = (0.3, 1.0, 3.0)


def simulate(
    seed: int, number: int, *, scene: str, thickness: float, detector: str, dose: float, pixels: int,
    window: tuple[float, float] | None,
) -> Any:  # fmt: skip
    """Return the acquisition of a specimen; scene, detector and dose leave its shapes and thickness as they are."""
    wide = SIMULATED["wide"]
    preset = wide.model_copy(
        update={"specimen": wide.specimen.model_copy(update={"peak_thickness": (thickness, thickness)})}
    )
    planned = plan_directory(
        n_acquisitions=number + 1, seed=seed, shape=(pixels, pixels), preset=preset, detector=detector,
        scenes=(scene,), dose=(dose, dose), window=window,
    )[number]  # fmt: skip
    return simulate_acquisition(planned.parameters, planned.seed, name=planned.name)


def labels_of(acquisition: Any) -> NDArray[Any]:
    """Return the class of every pixel of one phase, empty elsewhere."""
    fraction = acquisition.truth["phase_fraction"].values
    labels = np.full(fraction.shape[1:], "", dtype="<U8")
    for k, name in enumerate(acquisition.truth["phase"].values):
        labels[fraction[k] >= PURE_FRACTION] = str(name)
    return labels


class Field:
    """The pixels of a fresh acquisition that are thick enough, judged."""

    def __init__(self, acquisition: Any, bundle: ModelBundle) -> None:
        preset = bundle.acquisition_preset
        steps = tuple(step for step in preset.steps if not isinstance(step, Spatial))
        product = prepare(acquisition.image, edge=bundle.edge, preset=preset.model_copy(update={"steps": steps}))
        axis = axis_of(product["energy_loss"].values)
        self.image_shapes = to_shapes(product["intensity"].values, product["variance"].values, axis, bundle.edge)
        known = ~product["vacuum_mask"].values & self.image_shapes.known
        self.telling = known & (self.image_shapes.counts >= TELLING * np.quantile(self.image_shapes.counts[known], 0.9))
        labels = labels_of(acquisition)
        self.shapes: Shapes = self.image_shapes[self.telling]
        self.label = labels[self.telling]
        self.labels = labels
        self.electrons = float(np.median(product["electrons"].values[self.telling]))
        self.predicted = bundle.predict(product["intensity"].values[self.telling])[0]

    def squares(self, ends: list[NDArray[Any]], name: str) -> NDArray[Any]:
        """Return the squared errors of the fraction of the pixels of a class."""
        same = self.telling & (self.labels == name)
        white = whitening(shape_noise(self.image_shapes, same, np.eye(len(ends[0]))))
        direction = white @ (ends[0] - ends[1])
        values = self.shapes.values[self.label == name]
        found = (values - ends[1]) @ white.T @ direction / (direction @ direction)
        return (found - float(name == CLASSES[0])) ** 2


def crossing(doses: NDArray[Any], values: NDArray[Any], target: float) -> float:
    """Return the dose at which a smooth rising curve through scattered values reaches a target; NaN if it does not."""
    logs = np.log(doses)
    near = np.argsort(np.abs(values - target))[:6]  # a parabola through the six that lie nearest to it
    fine = np.linspace(logs[near].min(), logs[near].max(), 2001)
    fitted = np.polyval(np.polyfit(logs[near], values[near], 2), fine) - target
    changes = np.flatnonzero((fitted[:-1] < 0) & (fitted[1:] >= 0))
    return float(np.exp(fine[changes[0]])) if changes.size else float("nan")


def measure(doses: list[list[Field]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return electrons, accuracy, and root mean square error of the fraction at each dose, over the fields of it."""

    def of_class(fields: list[Field], name: str) -> list[Field]:
        return [field for field in fields if (field.label == name).any()]

    ends = [mean_shape(field.shapes[field.label == name]).values[0]
            for name in CLASSES for field in of_class(doses[-1], name)]  # fmt: skip
    electrons, accuracy, error = [], [], []
    for fields in doses:
        both = [(name, field) for name in CLASSES for field in of_class(fields, name)]
        electrons.append(np.mean([field.electrons for field in fields]))
        accuracy.append(np.mean([(field.predicted[field.label == name] == name).mean() for name, field in both]))
        error.append(np.sqrt(np.mean([field.squares(ends, name).mean() for name, field in both])))
    return np.array(electrons), np.array(accuracy), np.array(error)


def compare(plan: DosePlan, needed: Any, ratios: dict[str, list[float]]) -> None:
    """Add what the planner names to the ratios."""
    electrons, accuracy, error = needed
    probit = ndtri(np.clip(accuracy, 1e-3, 1 - 1e-3))
    for target in ACCURACIES:
        named = plan.accuracy.answer(target)
        at = crossing(electrons, probit, float(ndtri(target)))
        key = f"accuracy {target:g}"
        ratios[f"{key}, reached by one alone"].append(float((named.factor is None) != np.isnan(at)))
        if named.factor is not None and not np.isnan(at):
            ratios[key].append(named.factor * plan.electrons / at)
            inside = (named.low or 0) * plan.electrons <= at <= (named.high or np.inf) * plan.electrons
            ratios[f"{key}, needed in the interval"].append(float(inside))
        if named.factor is not None:
            x = np.log(named.factor * plan.electrons)
            if np.log(electrons[0]) < x < np.log(electrons[-1]):
                measured = np.interp(x, np.log(electrons), accuracy)
                ratios[f"{key}, accuracy at the named dose / wanted"].append(measured / target)
                ratios[f"{key}, above chance there / wanted"].append((measured - 0.5) / (target - 0.5))
                ratios[f"{key}, error rate at the named dose / wanted"].append((1 - measured) / (1 - target))
    if not plan.labelled:
        return
    for target in ERRORS:
        named = plan.fraction_error.answer(target)
        at = crossing(electrons, -np.log(error), -np.log(target))
        if named.factor is not None and not np.isnan(at):
            ratios[f"fraction error {target:g}"].append(named.factor * plan.electrons / at)
            x = np.log(named.factor * plan.electrons)
            ratios[f"fraction error {target:g}, error at the named dose / wanted"].append(
                np.exp(np.interp(x, np.log(electrons), np.log(error))) / target
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a model directory of FeO and Fe3O4")
    parser.add_argument("--seed", type=int, default=5923)
    parser.add_argument("--specimens", type=int, default=1, help="of each thickness and detector")
    parser.add_argument("--pixels", type=int, default=32)
    options = parser.parse_args()
    bundle = ModelBundle.load(options.model)
    window = bundle.edge.recorded_window if bundle.edge.beside else None
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for place, thickness in enumerate(THICKNESSES):
        for detector in ("ccd", "counting"):
            for number in range(options.specimens):
                about = {"thickness": thickness, "detector": detector, "pixels": options.pixels, "window": window}
                seed, which = options.seed + place, 2 * number + (detector == "counting")

                def field(scene: str, dose: float, seed=seed, which=which, about=about) -> Any:
                    return simulate(seed, which, scene=scene, dose=dose, **about)

                try:
                    needed = {
                        "mosaic": measure([[Field(field("mosaic", dose), bundle)] for dose in DOSES]),
                        "pure": measure([[Field(field(name, dose), bundle) for name in CLASSES] for dose in DOSES]),
                    }
                    pilots = [(field("mosaic", dose), dose) for dose in PILOTS] + [(field(CLASSES[which % 2], 1.0), 0)]
                    plans = [(plan_dose(one.image, bundle, labels=labels_of(one) if dose else None), dose)
                             for one, dose in pilots]  # fmt: skip
                except EelsflowError as error:
                    print(f"{thickness:g} nm, {detector}, specimen {which}: {error}", flush=True)
                    continue
                for plan, dose in plans:
                    for scene in ("mosaic", "pure") if dose else ("pure",):
                        found: dict[str, list[float]] = defaultdict(list)
                        compare(plan, needed[scene], found)
                        who = f"labelled, needed of {scene}" if dose else "no labels, pure field"
                        kinds = [f"{who}, from dose {dose:g}", f"{who}, {detector}", f"{who}, {thickness:g} nm", who]
                        for kind in kinds if dose else [who]:
                            for name, values in found.items():
                                rows[kind][name] += values
                        said = ", ".join(f"{name} {values[0]:.2f}" for name, values in found.items() if "," not in name)
                        print(f"{thickness:g} nm {detector} {which} {kinds[0]}: {said}", flush=True)
    for kind in sorted(rows):
        print(f"--- {kind}")
        for name, values in sorted(rows[kind].items()):
            array = np.array(values)
            if "interval" in name or "alone" in name:
                print(f"{name:55s} share {array.mean():6.3f}  n {array.size}")
                continue
            within = np.mean(np.abs(np.log(array)) <= np.log(1.15))
            print(
                f"{name:55s} geometric mean {np.exp(np.log(array).mean()):6.3f}  median {np.median(array):6.3f}  "
                f"within 15 % {within:5.2f}  n {array.size}"
            )


if __name__ == "__main__":
    main()
