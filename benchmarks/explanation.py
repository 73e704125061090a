"""Whether explanations name the energies that decide, where these are known.

    python -m benchmarks.explanation [--seeds 1 2 3] [--acquisitions 16] [--pixels 16]

Known bands: two classes with a peak each on a common edge; the share of all contributions, above three standard errors
of their mean over the spectra of a class, within 2.5 eV of either peak, and whether these speak for the class. None:
classes that do not differ; the largest mean contribution of a band in units of its spread. Trap: a narrow line at
550.5 eV in the training spectra of one class alone, about as telling as the peaks; its share of all contributions.
Oxides: simulated acquisitions; rank correlation, over the bands of the window, between the size of contributions (of
the model alone, and of the pixels of acquisitions that it was not trained on) and the difference of the shipped shapes
in units of the noise of one spectrum; beside it that of the training spectra's own difference.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.contrast import gather
from eelsflow.dataset.splits import inner_folds, split_spectra
from eelsflow.edges import O_K
from eelsflow.executors import LoopExecutor
from eelsflow.explanation import explain
from eelsflow.models.bundle import ModelBundle
from eelsflow.models.fitting import fit_model
from eelsflow.models.spec import resolve_model
from eelsflow.preprocess.features import FeatureTransform
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.preprocess.shapes import to_shapes
from eelsflow.simulator import PRESETS, simulate_directory
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.simulator.edges import NOMINAL_LOW_LOSS, calibrate_edges, detected, fine_energies
from eelsflow.unmixing.references import References

ENERGY = 513.05 + 0.1 * np.arange(540)
PLACES = {"FeO": 536.0, "Fe3O4": 547.0}
LINE, LINE_HEIGHT = 550.5, 0.6
MODELS = ("mlls", "svm-linear", "svm-rbf", "fcnn-1")
THICKNESS = 0.4


def peak(centre, sigma):
    return np.exp(-0.5 * ((ENERGY - centre) / sigma) ** 2)


def draw(n, rng, *, height=0.25, line=0.0, dose=150.0):
    """Return n spectra of each class with their variance, label and group: counts after a background is subtracted.

    `dose` is the counts of a channel of 0.1 eV at the main peak, where the specimen is thickest.
    """
    label = np.repeat(list(PLACES), n)
    edge = 0.5 * (1 + np.tanh((ENERGY - 532) / 2)) * (ENERGY / 532) ** -2.5 + 0.6 * peak(530, 1.2) + peak(540, 2.5)
    spectra = np.stack([edge + height * peak(PLACES[name], 0.8) for name in label])
    spectra[label == "FeO"] += line * peak(LINE, 0.25)
    thickness = rng.uniform(0.3, 1.0, (len(label), 1))
    expected = 0.5 * dose * (thickness * spectra + 1.0)
    counts = rng.poisson(expected) - 0.5 * dose
    group = np.array([f"{name}-{number % 6}" for number, name in enumerate(label)])
    return counts.astype(np.float32), expected.astype(np.float32), label, group


def train(base, data, energy_loss, *, seed):
    """Fit a model as a study does: the steps of `recommended`, and a search of the small grid in folds of groups."""
    wide, variance, label, group = data
    preset = resolve_preset("recommended")
    transform = FeatureTransform.fit(wide, energy_loss, edge=O_K, preset=preset, variance=variance)
    folds, _ = inner_folds(label, group, n_folds=3, seed=seed)
    spec = resolve_model(base)
    with tempfile.TemporaryDirectory() as scratch:
        fitted = fit_model(
            spec, transform.apply(wide), label, folds=folds, validation=folds[0], grid=spec.resolve_grid("small"),
            seed=seed, executor=LoopExecutor(), scratch=Path(scratch), epochs=40, batch_size=32, patience=20,
        )  # fmt: skip
    references = References.fit(to_shapes(wide, variance, transform.axis, O_K), label, group)
    before = transform.before_components(wide)[1]
    means = np.stack([before[label == name].mean(axis=0) for name in fitted.classifier.classes_])
    return ModelBundle(base, O_K, preset, transform, fitted.classifier, references, means=means)


def check_drawn(base, seed):
    """Print what is found of bands that are known, of none, and of a line that only the training spectra have."""
    rng = np.random.default_rng([seed, 7])
    test = draw(100, rng)
    model = train(base, draw(150, rng), ENERGY, seed=seed)
    found = explain(model, test[0], variance=test[1]).dataset
    size = np.abs(found["contribution"].values)
    floor = 3.0 * found["spread"].values / np.sqrt(found["n_spectra"].values[:, None])
    above = np.where(size > floor, size, 0.0)
    near = np.min([np.abs(found["band"].values - place) for place in PLACES.values()], axis=0) <= 2.5
    sign = np.where(found["of"].values == found.attrs["classes"][0], 1, -1)
    right = (np.sign(found["contribution"].values) == sign[:, None]) | (above == 0)
    known = above[:, near].sum(axis=1) / above.sum(axis=1)
    accuracy = np.mean(model.predict(test[0])[0] == test[2])
    print(f"  {base:11s} known bands {known.min():.3f} to {known.max():.3f} of all, "
          f"{right[:, near].mean():.0%} of signs right, accuracy {accuracy:.3f}", end="; ")  # fmt: skip
    model = train(base, draw(150, rng, height=0.0), ENERGY, seed=seed)
    test = draw(100, rng, height=0.0)
    of_class = [explain(model, test[0], pixels=test[2] == name).dataset for name in PLACES]
    largest = max(float((np.abs(one["contribution"]) / one["spread"]).max()) for one in of_class)
    print(f"none: at most {largest:.2f} spreads", end="; ")
    model = train(base, draw(150, rng, line=LINE_HEIGHT), ENERGY, seed=seed)
    found = explain(model).dataset
    share = np.abs(found["contribution"].values)
    trapped = np.abs(found["band"].values - LINE) <= 1.0
    print(f"trap: {(share[:, trapped].sum(axis=1) / share.sum(axis=1)).min():.2f} of the model's contributions")


def shipped_difference():
    """Return the difference of the shipped shapes, as shares of the window in bands of 1 eV."""
    grid = fine_energies(505.0, 760.0)
    parameters = PRESETS["paper"]
    spectra = np.stack([
        detected(calibrate_edges(phase.nominal, grid, relative_thickness=THICKNESS), NOMINAL_LOW_LOSS, THICKNESS)
        for phase in (parameters.feo, parameters.fe3o4)
    ])  # fmt: skip
    start, stop = O_K.elnes_window
    centres = np.arange(start + 0.5, stop)
    shares = np.stack([spectra[:, np.abs(grid - centre) < 0.5 - 1e-6].mean(axis=1) for centre in centres], axis=1)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares[0] - shares[1]


def check_oxides(seed, *, n_acquisitions, pixels):
    """Print the rank correlations of one set of simulated acquisitions."""
    preset = PRESETS["paper"].model_copy(update={"axis": AxisParameters(start=470.0, n_channels=520)})
    with tempfile.TemporaryDirectory() as directory:
        manifest = simulate_directory(
            Path(directory), n_acquisitions=n_acquisitions, seed=seed, shape=(pixels, pixels), preset=preset
        )
        wide, variance, label, group, energy_loss = gather(manifest, resolve_preset("recommended"))
    fit, held = split_spectra(label, group, by="group", test_fraction=0.35, seed=0)
    window = np.arange(*np.searchsorted(energy_loss, np.array(O_K.elnes_window) - 1e-6))
    starts = np.arange(0, window.size, window.size // 30)
    total = wide[:, window].sum(axis=1, keepdims=True)
    share = np.add.reduceat(wide[:, window], starts, axis=1) / total
    noise = np.median(np.sqrt(np.add.reduceat(variance[:, window], starts, axis=1)) / total, axis=0)
    told = np.abs(shipped_difference()) / noise
    feo, fe3o4 = (share[fit][label[fit] == name].mean(axis=0) for name in PLACES)
    own = np.abs(feo - fe3o4) / noise
    print(f"  oxides: {len(fit)} training spectra, whose own difference has {spearmanr(own, told).statistic:.2f}")
    for base in ("svm-linear", "svm-rbf"):
        model = train(base, tuple(part[fit] for part in (wide, variance, label, group)), energy_loss, seed=seed)
        accuracy = np.mean(model.predict(wide[held])[0] == label[held])
        found = {"model": explain(model), "pixels": explain(model, wide[held])}
        said = []
        for name, one in found.items():
            rows = np.abs(one.dataset["contribution"].values)
            values = [spearmanr(row, told).statistic for row in rows]
            said.append(f"{name} {min(values):.2f} to {max(values):.2f}")
        print(f"  {base:11s} accuracy {accuracy:.3f} on held-out acquisitions; rank correlation: {', '.join(said)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Explanations where the deciding energies are known.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--acquisitions", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=16)
    parser.add_argument("--models", nargs="+", default=MODELS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for seed in options.seeds:
        print(f"seed {seed}", flush=True)
        for base in options.models:
            check_drawn(base, seed)
        check_oxides(seed, n_acquisitions=options.acquisitions, pixels=options.pixels)


if __name__ == "__main__":
    main()
