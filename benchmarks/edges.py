"""Two edges against one, on simulated fields with truth, with the bound and with errors of the axis.

    python -m benchmarks.edges [--seed 9011] [--training 165] [--test 66] [--pure 240]
    python -m benchmarks.edges --learning 10 20 40 80 160 --seed 9061 --pure 120         by how many acquisitions

Trained on acquisitions of the wide simulator, judged on others at dose 1, which have nothing in common with them; every
field is prepared for O K, for Fe L3 and for both. Measured are, each with the standard error that the scatter gives,

1. single pixels of 28 to 42 nm in fields of one phase, by the likelihood ratio of the references, each by itself; the
   pixels of a field are right or wrong together, so it takes hundreds of fields
2. maps, of pixels alone and with what neighbours lend: fields of one phase and of two (balanced), error of the fraction
3. the same on axes that are off by 8 eV with a dispersion wrong by 1 %, either way
4. the same where the dispersion is known to .05 %, by the models of a study that is told so and learns from such axes:
   its own, and the one that it leaves for files that are not calibrated, which is judged on the other axes too
5. the bound on 1: the likelihood ratio over the population of shapes, with the noise that prepared spectra show, for
   dispersions known exactly, to .05, .2 and .4 %

Twenty to sixty minutes on one core. What it found stands in docs/decisions/0035-edges-together.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import xarray as xr

from benchmarks.maps import CLASSES, Field, fit_references, map_of
from eelsflow.edges import Edge, resolve_edge
from eelsflow.energy import EnergyAxis, axis_of, side_by_side
from eelsflow.errors import InputError
from eelsflow.maps.registry import has_unlikely_distance
from eelsflow.maps.score import score_map
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.presets import Spatial, resolve_preset
from eelsflow.preprocess.shapes import Shapes, shape_noise, to_shapes, whitening
from eelsflow.preprocess.spatial import fit_guide, gather
from eelsflow.simulator import KNOWN_FIELDS, PRESETS, plan_directory, simulate_acquisition
from eelsflow.simulator import acquisition as simulation
from eelsflow.simulator.edges import calibrate_edges, detected, fine_energies
from eelsflow.simulator.scenes import Scene
from eelsflow.unmixing.references import References

EDGES = {name: resolve_edge(name) for name in ("O_K", "Fe_L3", "O_K+Fe_L3")}
THICKNESS = (28.0, 42.0)  # nm
USUAL = 177.2  # eV
KNOWN = 0.0005
"""Relative standard deviation of a dispersion that was calibrated."""
USUAL_AXIS, FAR_OFF, CALIBRATED = "usual axis", "8 eV, 1 %", f"axis known to {100 * KNOWN:g} %"
BOTH, TOLD = "O_K+Fe_L3", "O_K+Fe_L3, calibrated"
"""Prepared by a preset that is told nothing of the dispersion, and by one that is told that it is known."""


@dataclass(frozen=True)
class FieldOf(Field):
    """A field prepared for an edge or two, its thickness, and whether its edges lie as far apart as in no compound."""

    edge: Edge
    thickness: np.ndarray
    unlikely: bool

    def shapes(self, intensity: np.ndarray, variance: np.ndarray) -> Shapes:
        return to_shapes(intensity, variance, self.axis, self.edge)


def fields(
    n: int,
    *,
    seed: int,
    pixels: int,
    scenes: Sequence[Scene] = KNOWN_FIELDS,
    dose: tuple[float, float] | None = None,
    wrong_axis: bool = False,
    dispersion_error: float | None = None,
) -> Iterator[dict[str, FieldOf | None]]:
    """Yield each field as it is prepared for every choice of edges, both also as `TOLD`; None where it cannot be.

    Where a `dispersion_error` is given, axes are as wrong.
    """
    preset = resolve_preset("recommended").for_acquisition
    preset = preset.model_copy(update={"steps": tuple(s for s in preset.steps if not isinstance(s, Spatial))})
    both = EDGES[BOTH]
    ways = {
        **{name: (edge, preset) for name, edge in EDGES.items()},
        TOLD: (both, preset.knowing_the_dispersion(KNOWN)),
    }
    plan = plan_directory(
        n_acquisitions=n, seed=seed, shape=(pixels, pixels), preset="wide", detector="both", scenes=scenes,
        dose=dose, window=both.recorded_window, dispersion_error=dispersion_error,
    )  # fmt: skip
    drawn = _far_off if wrong_axis else simulation._draw_axis_error
    for planned in plan:
        with patch.object(simulation, "_draw_axis_error", drawn):
            acquisition = simulate_acquisition(planned.parameters, planned.seed, name=planned.name)
        found: dict[str, FieldOf | None] = {}
        for name, (edge, steps) in ways.items():
            try:
                found[name] = to_field(prepare(acquisition.image, edge=edge, preset=steps), acquisition.truth, edge)
            except InputError as error:
                print(f"{planned.name}, {name}: {error}")
                found[name] = None
        yield found


def _far_off(parameters, *, n_rows: int, rng: np.random.Generator) -> simulation._AxisError:  # type: ignore[no-untyped-def]
    """Return an axis off by 8 eV whose dispersion is wrong by 1 %."""
    slope = rng.uniform(-parameters.drift, parameters.drift)
    drift = slope * np.linspace(-0.5, 0.5, n_rows)
    return simulation._AxisError(float(rng.choice([-8.0, 8.0])), float(rng.choice([-0.01, 0.01])), drift)


def to_field(product: xr.Dataset, truth: xr.Dataset, edge: Edge) -> FieldOf:
    phases = [str(name) for name in truth["phase"].values]
    fraction = truth["phase_fraction"].values[[phases.index(name) for name in CLASSES]]
    return FieldOf(
        str(truth.attrs["scene"]),
        product["intensity"].values,
        product["variance"].values,
        axis_of(product["energy_loss"].values),  # type: ignore[arg-type]
        ~product["vacuum_mask"].values,
        np.where(truth["vacuum"].values, 0.0, fraction).transpose(1, 2, 0),
        edge,
        truth["thickness"].values,
        has_unlikely_distance(product),
    )


def single_pixels(tested: Sequence[FieldOf | None], known: References) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return which share of each pure field's pixels is right by itself, and the noise of each field's, a covariance.

    The share is NaN where the field could not be prepared or shows no pixel of that thickness.
    """
    order = [known.classes.index(name) for name in CLASSES]
    direction, middle = known.mean[order[1]] - known.mean[order[0]], known.mean.mean(axis=0)
    right, noises = np.full(len(tested), np.nan), []
    for index, field in enumerate(tested):
        if field is None:
            continue
        phase = int(field.fraction.sum(axis=(0, 1)).argmax())
        shapes = field.shapes(field.intensity, field.variance)
        noise = shape_noise(shapes, field.specimen & shapes.known, known.noise)
        chosen = field.specimen & (field.fraction[..., phase] > 0.5)
        chosen &= (field.thickness > THICKNESS[0]) & (field.thickness < THICKNESS[1])
        if not (chosen & shapes.known).any():
            continue
        of_field = np.where(shapes.known[chosen], 0.0, 0.5)  # without a shape: as likely as not
        for number in np.flatnonzero(shapes.known[chosen]):
            within = known.spread + noise * shapes.relative_variance[chosen][number]
            value = np.linalg.solve(within, direction) @ (shapes.values[chosen][number] - middle)
            of_field[number] = float((value > 0) == (phase == 1))
        right[index] = of_field.mean()
        noises.append(noise * np.median(shapes.relative_variance[chosen & shapes.known]))
    return right, noises


def maps(tested: Sequence[FieldOf | None], known: References) -> dict[str, np.ndarray]:
    """Return what the map of each field scores, of pixels alone and with neighbours; NaN where it does not apply."""
    found: dict[str, np.ndarray] = {}
    for index, field in enumerate(tested):
        for way in ("alone", "neighbours"):
            if field is None:
                continue

            def lend(one: Field, way: str = way) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                if way == "alone":
                    return one.intensity, one.variance, np.ones(one.specimen.shape)
                guide = fit_guide(one.shapes(one.intensity, one.variance), one.specimen, Spatial())
                return gather(one.intensity, one.variance, guide)

            row = score_map(map_of(field, lend, known), field.fraction)
            if row is not None:
                scores = {
                    **{f"{kind}, {way}": row["balanced_accuracy"] for kind in (row["kind"], "all mapped")},
                    f"fraction, {way}": row["fraction_rmse"],
                }
                for name, value in scores.items():
                    found.setdefault(name, np.full(len(tested), np.nan))[index] = value
    return found


def say(values: np.ndarray) -> str:
    """Return mean, standard error of the fields' scatter and number of fields."""
    values = values[np.isfinite(values)]
    return f"{values.mean():.3f} +-{values.std(ddof=1) / len(values) ** 0.5:.3f} ({len(values)} fields)"


def population(edge: Edge, n: int, *, seed: int, dispersion_error: float) -> dict[str, np.ndarray]:
    """Return shapes of each class at 35 nm without noise, (n, bands), on axes with that error of the dispersion."""
    rng, grid, wide = np.random.default_rng(seed), fine_energies(505.0, 760.0), PRESETS["wide"]
    axes = [
        EnergyAxis(one.elnes_window[0] - 12.0, 0.1, round((one.elnes_window[1] - one.elnes_window[0] + 24.0) / 0.1))
        for one in edge.alone
    ]
    found = {}
    for name, phase in zip(CLASSES, (wide.feo, wide.fe3o4), strict=True):
        spectra = []
        for _ in range(n):
            low_loss, shape = wide.low_loss.draw(rng), phase.draw(rng)
            reference = wide.levels.reference_thickness / low_loss.mean_free_path
            whole = detected(
                calibrate_edges(shape, grid, relative_thickness=reference), low_loss, 35.0 / low_loss.mean_free_path
            )
            moved = dispersion_error * float(np.clip(rng.normal(), -2.0, 2.0)) * USUAL
            parts = []
            for one, axis in zip(edge.alone, axes, strict=True):
                at = axis.values + (0.0 if one.name == "O_K" else moved)
                part = np.interp(at, grid, whole)
                if one.name != "O_K":  # what the oxygen edge leaves before it is background there
                    before = (grid >= one.background_window[0]) & (grid < one.background_window[1])
                    fit = np.polyfit(np.log(grid[before]), np.log(np.maximum(whole[before], 1e-12)), 1)
                    part = part - np.exp(np.polyval(fit, np.log(at)))
                parts.append(part)
            spectra.append(np.concatenate(parts))
        cube = np.array(spectra)
        found[name] = to_shapes(cube, np.full_like(cube, 1e-12), side_by_side(axes), edge).values
    return found


def bound(shapes: dict[str, np.ndarray], noises: list[np.ndarray]) -> float:
    """Return how often the likelihood ratio of normal populations names the class; one half is learnt from."""
    rng, right = np.random.default_rng(0), []
    for noise in noises:
        white = [shapes[name] @ whitening(noise, floor=1e-4).T for name in CLASSES]
        half = len(white[0]) // 2
        means = [one[:half].mean(axis=0) for one in white]
        spreads = [np.cov(one[:half].T) + np.eye(one.shape[1]) for one in white]
        inverses, sizes = [np.linalg.inv(one) for one in spreads], [np.linalg.slogdet(one)[1] for one in spreads]
        for number, one in enumerate(white):
            judged = one[half:] + rng.standard_normal(one[half:].shape)
            logs = [
                -0.5 * np.einsum("ij,jk,ik->i", judged - mean, inverse, judged - mean) - 0.5 * size
                for mean, inverse, size in zip(means, inverses, sizes, strict=True)
            ]
            right.append(float(np.mean(logs[number] > logs[1 - number])))
    return float(np.mean(right))


def learn(training: Iterable[dict[str, FieldOf | None]]) -> dict[str, References]:
    """Fit the references for every way of preparing the training fields."""
    prepared = list(training)
    return {name: fit_references([one[name] for one in prepared if one[name] is not None]) for name in prepared[0]}


def learning_curve(numbers: Sequence[int], options: argparse.Namespace) -> None:
    """Print what O K and both reach on usual axes, of three draws of so many acquisitions (one of 100 or more)."""
    ways = ("O_K", BOTH)

    def prepared(n: int, **shown) -> list[dict[str, FieldOf | None]]:  # type: ignore[no-untyped-def]
        return [one for one in fields(n, **shown) if all(one[name] is not None for name in ways)]

    training = prepared(options.training, seed=options.seed, pixels=18)
    pure = prepared(options.pure, seed=options.seed + 2, pixels=12, scenes=("FeO", "Fe3O4"), dose=(1, 1))
    mapped = prepared(options.test, seed=options.seed + 1, pixels=24, dose=(1, 1))
    print("acquisitions; of O K and of both: single pixels, maps of one phase, of two, error of the fraction")
    for number in numbers:
        found = []
        for draw in range(3 if number < 100 else 1):
            some = np.random.default_rng(draw).permutation(len(training))[:number]
            row = []
            for name in ways:
                known = fit_references([training[index][name] for index in some])  # type: ignore[misc]
                of_maps = maps([one[name] for one in mapped], known)
                row.append([np.nanmean(single_pixels([one[name] for one in pure], known)[0])])
                row[-1] += [np.nanmean(of_maps[f"{what}, alone"]) for what in ("pure", "mixed", "fraction")]
            found.append(row)
        print(number, *np.mean(found, axis=0).round(3).tolist(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Two edges against one.")
    parser.add_argument("--seed", type=int, default=9011)
    parser.add_argument("--training", type=int, default=165)
    parser.add_argument("--test", type=int, default=66, help="fields that are mapped")
    parser.add_argument("--pure", type=int, default=240, help="fields of one phase whose pixels are judged singly")
    parser.add_argument("--learning", type=int, nargs="+", help="numbers of acquisitions, instead of all the rest")
    options = parser.parse_args()
    if options.learning:
        learning_curve(options.learning, options)
        return
    usual, calibrated = (
        learn(fields(options.training, seed=options.seed, pixels=18, dispersion_error=error)) for error in (None, KNOWN)
    )
    stand_in = {"of a calibrated study, for others": (BOTH, calibrated[BOTH])}
    judged_by = {
        USUAL_AXIS: {name: (name, usual[name]) for name in EDGES} | stand_in,
        FAR_OFF: {name: (name, usual[name]) for name in EDGES} | stand_in | {TOLD: (TOLD, calibrated[TOLD])},
        CALIBRATED: {name: (name, calibrated[name]) for name in (*EDGES, TOLD)},
    }
    noises: dict[str, list[np.ndarray]] = {}
    found: dict[str, dict[str, np.ndarray]] = {}
    for axis, models in judged_by.items():
        shown = {
            "dose": (1, 1), "wrong_axis": axis == FAR_OFF, "dispersion_error": KNOWN if axis == CALIBRATED else None,
        }  # fmt: skip
        pure = list(fields(options.pure, seed=options.seed + 2, pixels=12, scenes=("FeO", "Fe3O4"), **shown))
        mapped = list(fields(options.test, seed=options.seed + 1, pixels=24, **shown))
        told = [field[TOLD] for field in (*pure, *mapped) if field[TOLD] is not None]
        print(f"{axis}: {np.mean([field.unlikely for field in told]):.3f} of fields have an unlikely distance")
        for name, (way, known) in models.items():
            single, found_noises = single_pixels([field[way] for field in pure], known)
            noises.setdefault(way, found_noises)
            scores = {"single pixels": single, **maps([field[way] for field in mapped], known)}
            for what, values in sorted(scores.items()):
                found.setdefault(f"{axis}, {what}", {})[name] = values
    for what, values in found.items():
        print(f"\n{what}")
        for name, of_fields in values.items():
            print(f"  {name}: {say(of_fields)}; more than O K on the same fields: {say(of_fields - values['O_K'])}")
            usual_axis = found[what.replace(FAR_OFF, USUAL_AXIS)]
            if what.startswith(FAR_OFF) and name in usual_axis:
                print(f"    more than on the usual axis: {say(of_fields - usual_axis[name])}")
    print("\nbound on single pixels")
    for name, edge in EDGES.items():
        for error in (0.0, KNOWN, 0.002, 0.004) if edge.beside else (0.0,):
            shapes = population(edge, 1500, seed=7, dispersion_error=error)
            limit = bound(shapes, noises[name][:: max(len(noises[name]) // 12, 1)])
            print(f"  {name}, dispersion known to {100 * error:.2g} %: {limit:.3f}; of its distance from chance")
            for axis, of in ((USUAL_AXIS, name), (CALIBRATED, TOLD if name == BOTH else name)):
                single = float(np.nanmean(found[f"{axis}, single pixels"][of]))
                print(f"    reached on the {axis}: {(single - 0.5) / (limit - 0.5):.3f}")


if __name__ == "__main__":
    main()
