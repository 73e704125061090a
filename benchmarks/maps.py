"""Maps against truth on simulated fields: methods of lending strength between neighbours, and the best there could be.

    python -m benchmarks.maps methods [--acquisitions 168] [--seed 32]     which spatial step
    python -m benchmarks.maps reach [--acquisitions 120] [--seed 601] [--detector counting] [--dose 0.1]
                                                                           how far it reaches at low dose
    python -m benchmarks.maps dose [--seed 33]                             accuracy against dose, with the bound

Trained and tested on acquisitions of the wide simulator that have nothing in common. `methods` reproduces the table of
docs/decisions/0018-spatial-step.md, `reach` the one below it. `dose` draws docs/benchmarks/dose.png: pixels right in
maps of held-out fields beside the likelihood ratio with the true spectra and noise, which is the most that a pixel
alone can give.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

from eelsflow.edges import O_K
from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError
from eelsflow.maps.pixels import VACUUM, PixelMap
from eelsflow.maps.score import calibration_error, score_map
from eelsflow.preprocess import spatial
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.presets import Spatial, resolve_preset
from eelsflow.preprocess.shapes import Shapes, shape_noise, to_shapes, whitening
from eelsflow.preprocess.spatial import fit_guide, gather
from eelsflow.simulator import KNOWN_FIELDS, expected_counts, plan_directory, simulate_acquisition
from eelsflow.unmixing.field import unmix
from eelsflow.unmixing.references import References

CLASSES = ["FeO", "Fe3O4"]
TRAINING_SEED = 31


@dataclass(frozen=True)
class Field:
    """A prepared field with its truth."""

    scene: str
    intensity: np.ndarray
    variance: np.ndarray
    axis: EnergyAxis
    specimen: np.ndarray
    fraction: np.ndarray  # (y, x, class)

    def shapes(self, intensity: np.ndarray, variance: np.ndarray) -> Shapes:
        return to_shapes(intensity, variance, self.axis, O_K)


def fields(
    n: int, *, seed: int, pixels: int, dose: tuple[float, float] | None = None, detector: str = "both"
) -> Iterator[Field]:
    preset = resolve_preset("recommended").for_acquisition
    preset = preset.model_copy(update={"steps": tuple(s for s in preset.steps if not isinstance(s, Spatial))})
    plan = plan_directory(
        n_acquisitions=n, seed=seed, shape=(pixels, pixels), preset="wide", detector=detector, scenes=KNOWN_FIELDS,
        dose=dose,
    )  # fmt: skip
    for planned in plan:
        acquisition = simulate_acquisition(planned.parameters, planned.seed, name=planned.name)
        try:
            product = prepare(acquisition.image, edge=O_K, preset=preset)
        except InputError as error:
            print(f"{planned.name}: {error}")
            continue
        yield to_field(product, acquisition.truth)


def to_field(product: xr.Dataset, truth: xr.Dataset) -> Field:
    """Return a prepared product with its truth."""
    phases = [str(name) for name in truth["phase"].values]
    fraction = truth["phase_fraction"].values[[phases.index(name) for name in CLASSES]]
    return Field(
        str(truth.attrs["scene"]),
        product["intensity"].values,
        product["variance"].values,
        EnergyAxis.from_values(product["energy_loss"].values),
        ~product["vacuum_mask"].values,
        np.where(truth["vacuum"].values, 0.0, fraction).transpose(1, 2, 0),
    )


def references(n: int = 264) -> References:
    """Fit the references on pure pixels of wide acquisitions."""
    return fit_references(fields(n, seed=TRAINING_SEED, pixels=24))


def fit_references(training: Iterable[Field]) -> References:
    """Fit the references on the pure pixels of fields."""
    shapes, label, group = [], [], []
    for number, field in enumerate(training):
        found = field.shapes(field.intensity, field.variance)
        for k, name in enumerate(CLASSES):
            chosen = field.specimen & (field.fraction[..., k] >= 0.8) & found.known
            if chosen.any():
                shapes.append(found[chosen])
                label += [name] * int(chosen.sum())
                group += [f"{number:04d}"] * int(chosen.sum())
    arrays = [
        np.concatenate([getattr(one, name) for one in shapes]) for name in ("values", "relative_variance", "counts")
    ]
    return References.fit(Shapes(*arrays, shapes[0].energy_loss), np.array(label), np.array(group))


Gathered = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Intensity, variance and number of effective spectra."""
Method = Callable[[Field], Gathered]


def alone(field: Field) -> Gathered:
    return field.intensity, field.variance, np.ones(field.specimen.shape)


def library(step: Spatial) -> Method:
    def method(field: Field) -> Gathered:
        guide = fit_guide(field.shapes(field.intensity, field.variance), field.specimen, step)
        return gather(field.intensity, field.variance, guide)

    return method


def fixed_mean(reach: float) -> Method:
    """Average over a Gaussian of one width, whatever the noise."""

    def method(field: Field) -> Gathered:
        guide = fit_guide(field.shapes(field.intensity, field.variance), field.specimen, Spatial(method="mean"))
        return gather(field.intensity, field.variance, replace(guide, reach=reach))

    return method


def _pilot(field: Field, n_kept: int = 3, reach: float = 1.0) -> np.ndarray:
    """Return leading noise-whitened coordinates, smoothed, in units of their noise; shape (y, x, kept)."""
    shapes = field.shapes(field.intensity, field.variance)
    known = field.specimen & shapes.known
    white = np.zeros(shapes.values.shape)
    whiten = whitening(shape_noise(shapes, known, np.eye(shapes.values.shape[-1])))
    white[known] = shapes.values[known] @ whiten.T / np.sqrt(np.median(shapes.relative_variance[known]))
    white[known] -= white[known].mean(axis=0)
    _, _, vectors = np.linalg.svd(white[known], full_matrices=False)
    leading = white @ vectors[:n_kept].T
    weight = gaussian_filter(known.astype(float), reach, mode="constant")
    smooth = np.stack([gaussian_filter(leading[..., k], reach, mode="constant") for k in range(n_kept)], axis=-1)
    return smooth / np.maximum(weight, 1e-6)[..., None] * np.sqrt(4 * np.pi) * reach


def _average(field: Field, weights: np.ndarray) -> Gathered:
    """Apply weights (pixels, pixels) to the specimen's spectra."""
    total = weights.sum(axis=1, keepdims=True)
    share = weights / np.maximum(total, 1e-12)
    intensity, variance = field.intensity.copy(), field.variance.copy()
    intensity[field.specimen] = share @ field.intensity[field.specimen]
    variance[field.specimen] = share**2 @ field.variance[field.specimen]
    n = np.zeros(field.specimen.shape)
    n[field.specimen] = 1.0 / (share**2).sum(axis=1)
    return intensity, variance, n


def non_local(field: Field, *, patch: int = 1, search: float = 4.0, strength: float = 1.0) -> Gathered:
    """Non-local means (Buades, Coll & Morel 2005): weights by the likeness of whole patches of components."""
    leading = _pilot(field, reach=0.5)
    y, x = np.nonzero(field.specimen)
    padded = np.pad(leading, ((patch, patch), (patch, patch), (0, 0)))
    offsets = range(2 * patch + 1)
    patches = np.concatenate([padded[y + j, x + i] for j in offsets for i in offsets], axis=1)
    squared = ((patches[:, None] - patches[None]) ** 2).mean(axis=-1)
    near = np.exp(-0.5 * ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / search**2)
    return _average(field, near * np.exp(-np.maximum(squared - 2.0, 0.0) / strength**2))


def diffusion(field: Field, *, steps: int = 12, edge: float = 3.0) -> Gathered:
    """Anisotropic diffusion (Perona & Malik 1990) of spectra, conductance by the guide's difference."""
    leading = _pilot(field)
    y, x = np.nonzero(field.specimen)
    number = np.full(field.specimen.shape, -1)
    number[y, x] = np.arange(y.size)
    flow = np.zeros((y.size, y.size))
    for dy, dx in ((0, 1), (1, 0)):
        a = number[: number.shape[0] - dy, : number.shape[1] - dx]
        b = number[dy:, dx:]
        both = (a >= 0) & (b >= 0)
        one, other = a[both], b[both]
        difference = leading[y[one], x[one]] - leading[y[other], x[other]]
        conductance = 0.2 / (1 + (difference**2).sum(axis=1) / edge**2)
        flow[one, other] += conductance
        flow[other, one] += conductance
    step = flow + np.diag(1 - flow.sum(axis=1))
    return _average(field, np.linalg.matrix_power(step, steps))


def low_rank(field: Field, *, half: int = 3, rank: int = 2) -> Gathered:
    """Principal components of every neighbourhood of 7 x 7 pixels; noise is judged by what is left of added noise."""

    def denoise(spectra: np.ndarray) -> np.ndarray:
        result = spectra.copy()
        for y, x in zip(*np.nonzero(field.specimen), strict=True):
            window = np.s_[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
            rows = spectra[window][field.specimen[window]]
            mean = rows.mean(axis=0)
            _, _, vectors = np.linalg.svd(rows - mean, full_matrices=False)
            kept = vectors[:rank]
            result[y, x] = mean + (spectra[y, x] - mean) @ kept.T @ kept
        return result

    starts = np.arange(0, field.axis.size, 10)  # bands of 1 eV: components of 540 channels hold noise alone
    bands = np.add.reduceat(np.nan_to_num(field.intensity), starts, axis=-1)
    band_variance = np.add.reduceat(np.nan_to_num(field.variance), starts, axis=-1)
    noise = np.random.default_rng(0).normal(size=bands.shape) * np.sqrt(np.maximum(band_variance, 0))
    clean = denoise(bands)
    left = (denoise(bands + 0.1 * noise) - clean)[field.specimen] / 0.1
    n = max(float((noise[field.specimen] ** 2).sum() / (left**2).sum()), 1.0)
    spread = np.repeat(clean / 10, 10, axis=-1).astype(np.float32)
    return spread, field.variance / n, np.full(field.specimen.shape, n)


METHODS: dict[str, Method] = {
    "none": alone,
    "mean over 1 pixel": fixed_mean(1.0),
    "mean over 2 pixels": fixed_mean(2.0),
    "mean, reach by the noise": library(Spatial(method="mean")),
    "guided, reach by the noise": library(Spatial()),
    "non-local means of components": non_local,
    "anisotropic diffusion": diffusion,
    "low rank per neighbourhood": low_rank,
}


def map_of(field: Field, method: Method, known: References) -> PixelMap:
    intensity, variance, n = method(field)
    single, gathered = field.shapes(field.intensity, field.variance), field.shapes(intensity, variance)
    found = unmix(single, gathered, n, field.specimen, known)
    order = [known.classes.index(name) for name in CLASSES]
    probability = np.nan_to_num(found.probability[..., order], nan=0.5).astype(np.float32)
    return PixelMap(
        classes=CLASSES,
        class_index=np.where(field.specimen, probability.argmax(axis=-1), VACUUM).astype(np.int16),
        probability=probability,
        fraction=found.fraction[..., order].astype(np.float32),
        fraction_error=found.error[..., order].astype(np.float32),
        unknown=np.zeros(field.specimen.shape, dtype=bool),
        distance=np.zeros(field.specimen.shape, dtype=np.float32),
        effective_spectra=n.astype(np.float32),
        relative_variance=0.0,
        mean_distance=0.0,
        correlation=found.correlation,
        ends=found.ends,
        class_shape=np.empty((0, 0)),
        class_shape_error=np.empty((0, 0)),
        bands=single.energy_loss,
        judged=gathered,
        noise=found.noise,
    )


def scores_of(tested: list[Field], method: Method, known: References) -> dict[str, float]:
    found = [(field.scene, score_map(map_of(field, method, known), field.fraction)) for field in tested]
    rows = [(scene, row) for scene, row in found if row is not None]
    by_scene: dict[str, list[float]] = defaultdict(list)
    for scene, row in rows:
        if row["kind"] == "mixed":
            by_scene[scene].append(row["balanced_accuracy"])
    mixed = [value for values in by_scene.values() for value in values]
    return {
        "pure": float(np.mean([row["balanced_accuracy"] for _, row in rows if row["kind"] == "pure"])),
        "mixed": float(np.mean(mixed)) if mixed else float("nan"),
        **{scene: float(np.mean(values)) for scene, values in sorted(by_scene.items()) if scene != "pure"},
        "boundary": float(np.mean([r["boundary_accuracy"] for _, r in rows if r["boundary_accuracy"] is not None])),
        "one class": float(sum(row["one_class"] for _, row in rows)),
        "fraction": float(np.sqrt(np.mean([row["fraction_rmse"] ** 2 for _, row in rows]))),
        "covered": float(np.mean([row["fraction_coverage"] for _, row in rows])),
        "calibration": calibration_error(np.sum([row["calibration"] for _, row in rows], axis=0)) or 0.0,
    }


def print_table(title: str, rows: Iterable[tuple[str, dict[str, float]]]) -> None:
    for number, (name, scores) in enumerate(rows):
        if number == 0:
            print(f"{title:32s}" + "".join(f"{key[:10]:>11s}" for key in scores))
        print(f"{name:32s}" + "".join(f"{value:11.3f}" for value in scores.values()), flush=True)


def compare_methods(n: int, seed: int) -> None:
    known = references()
    tested = list(fields(n, seed=seed, pixels=28))
    print_table("method", ((name, scores_of(tested, method, known)) for name, method in METHODS.items()))


REACHES = ((3.0, 1.5, 0.1), (3.0, 1.25, 0.1), (3.0, 1.5, 0.14), (1.75, 1.25, 0.1), (1.25, 1.25, 0.1))
"""Largest reach (pixels), eigenvalue from which a direction guides (of the noise's largest), and aim of the noise."""


def compare_reaches(n: int, seed: int, detector: str, dose: float) -> None:
    known = references()
    doses = (dose, dose) if dose else None
    tested = list(fields(n, seed=seed, pixels=28, detector=detector, dose=doses))
    print(f"median noise of a band over the mean counts of one: {np.median([band_noise(f) for f in tested]):.2f}")

    def rows() -> Iterator[tuple[str, dict[str, float]]]:
        for spatial.MAX_REACH, spatial._SIGNIFICANT, noise in REACHES:
            name = f"reach {spatial.MAX_REACH}, limit {spatial._SIGNIFICANT}, noise {noise}"
            yield name, scores_of(tested, library(Spatial(noise=noise)), known)

    print_table("largest reach, limit, noise", rows())


def band_noise(field: Field) -> float:
    """Return the noise of a band of 1 eV over the mean counts of a band: the spatial step takes its reach from it."""
    shapes = field.shapes(field.intensity, field.variance)
    known, n_bands = field.specimen & shapes.known, shapes.values.shape[-1]
    covariance = shape_noise(shapes, known, np.eye(n_bands))
    return float(np.sqrt(n_bands * np.trace(covariance) * np.median(shapes.relative_variance[known])))


DOSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


def bound(dose: float, *, seed: int, n: int = 16) -> float:
    """Return how often the likelihood ratio with true spectra and noise names a pixel's phase, of pure fields.

    The exact test between two spectra that are known: counts of one pixel in the fine-structure window, normal with the
    covariance of the detector. Nobody has more than this from one pixel; nobody has the true spectra either.
    """
    right = []
    plan = plan_directory(
        n_acquisitions=n, seed=seed, shape=(16, 16), preset="wide", detector="both", scenes=("FeO", "Fe3O4"),
        dose=(dose, dose),
    )  # fmt: skip
    for planned in plan:
        acquisition = simulate_acquisition(planned.parameters, planned.seed, name=planned.name)
        one, other = (expected_counts(planned.parameters, planned.seed, phase=name) for name in CLASSES)
        offset = float(acquisition.truth.attrs["offset"])
        energy = one.energy_loss + offset
        window = (energy >= 495.0) & (energy < 555.0)
        specimen = ~acquisition.truth["vacuum"].values
        a, b = (np.asarray(part.counts, dtype=np.float64)[specimen][:, window] for part in (one, other))
        noise = one.noise
        spread = np.asarray(noise.point_spread, dtype=np.float64)
        lags = np.correlate(spread, spread, "full")[spread.size - 1 :]
        row = np.zeros(int(window.sum()))
        row[: min(lags.size, row.size)] = (lags / lags[0])[: row.size]
        correlation = row[np.abs(np.subtract.outer(np.arange(row.size), np.arange(row.size)))]
        correlation += 1e-6 * np.eye(row.size)
        for first, second in zip(a[::7], b[::7], strict=True):
            sigma = np.sqrt(noise.variance_to_mean * np.maximum((first + second) / 2, 1e-6) + noise.readout_variance)
            difference = (first - second) / sigma
            separation = np.sqrt(difference @ np.linalg.solve(correlation, difference))
            # half the separation, in standard deviations of the ratio
            right.append(float(ndtr(separation / 2)))
    return float(np.mean(right))


def against_dose(seed: int, out: Path) -> None:
    from matplotlib.figure import Figure

    known = references()
    curves: dict[str, list[float]] = defaultdict(list)
    print(f"{'dose':>6s} {'bound':>8s} {'alone':>8s} {'neighbours':>11s} {'mixed':>8s}")
    for number, dose in enumerate(DOSES):
        tested = list(fields(48, seed=seed + number, pixels=28, dose=(dose, dose)))
        single, lent = (scores_of(tested, method, known) for method in (alone, library(Spatial())))
        best = bound(dose, seed=seed + number)
        for name, value in (
            ("one pixel, true spectra and noise known (likelihood ratio)", best),
            ("pure fields, the field's mean and pixels alone", single["pure"]),
            ("pure fields, with neighbours", lent["pure"]),
            ("mixed fields, with neighbours (balanced)", lent["mixed"]),
        ):
            curves[name].append(value)
        print(f"{dose:6.2f} {best:8.3f} {single['pure']:8.3f} {lent['pure']:11.3f} {lent['mixed']:8.3f}", flush=True)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(DOSES, values, marker="o", label=name)
    axes.set(xscale="log", xlabel="Dose relative to the measured acquisition", ylabel="Pixels right", ylim=(0.5, 1.01))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Maps of simulated fields against their truth.")
    parser.add_argument("what", choices=["methods", "reach", "dose"])
    parser.add_argument("--acquisitions", type=int, default=None)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--detector", choices=["ccd", "counting", "both"], default="counting", help="of `reach`")
    parser.add_argument("--dose", type=float, default=0.1, help="of `reach`; 0: the simulator's own range")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else {"methods": 32, "reach": 601, "dose": 33}[options.what]
    if options.what == "methods":
        compare_methods(options.acquisitions or 168, seed)
    elif options.what == "reach":
        compare_reaches(options.acquisitions or 120, seed, options.detector, options.dose)
    else:
        against_dose(seed, Path(__file__).parents[1] / "docs" / "benchmarks" / "dose.png")


if __name__ == "__main__":
    main()
