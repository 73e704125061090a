"""How hard the simulated oxides are: accuracy of an RBF SVM by preset, split and number of components.

    python benchmarks/contrast.py [--acquisitions 6] [--pixels 48] [--seed 1]

Reproduces the figures quoted for the contrast of the simulator and for the least number of components that a
classifier is given.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from eelsflow.dataset.labels import label_pixels
from eelsflow.dataset.manifest import read_manifest
from eelsflow.dataset.splits import split_spectra
from eelsflow.edges import O_K
from eelsflow.io.read import read_spectrum_image
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.features import FeatureTransform
from eelsflow.preprocess.presets import Normalize, Pca, Preset, resolve_preset
from eelsflow.simulator import simulate_directory

GRID = {"C": [1.0, 10.0, 100.0], "gamma": [0.01, 0.1, 1.0]}
MOST_SPECTRA = 1600


def gather(manifest: Path, preset: Preset):
    """Return wide intensity, variance, energies, label and group of a spread-out sample of the labelled pixels."""
    intensity, variance, label, group = [], [], [], []
    for acquisition in read_manifest(manifest):
        product = prepare(read_spectrum_image(acquisition.path).load(), edge=O_K, preset=preset.for_acquisition)
        names = label_pixels(
            product["vacuum_mask"].values,
            label=acquisition.label,
            truth=acquisition.truth,
            classes=["FeO", "Fe3O4"],
            name=acquisition.name,
        )
        chosen = np.isin(names, ["FeO", "Fe3O4"])
        intensity.append(product["intensity"].values[chosen])
        variance.append(product["variance"].values[chosen])
        label.append(names[chosen])
        group.append(np.full(int(chosen.sum()), acquisition.name))
    arrays = [np.concatenate(parts) for parts in (intensity, variance, label, group)]
    some = np.sort(np.random.default_rng(0).permutation(len(arrays[2]))[:MOST_SPECTRA])
    return *(array[some] for array in arrays), product["energy_loss"].values


def accuracy(data, preset: Preset, by: str) -> tuple[float, int | None]:
    """Return test accuracy after a search inside the training part, and the number of components kept."""
    intensity, variance, label, group, energy_loss = data
    train, test = split_spectra(label, group, by=by, test_fraction=0.35, seed=0)
    transform = FeatureTransform.fit(intensity[train], energy_loss, edge=O_K, preset=preset, variance=variance[train])
    search = GridSearchCV(SVC(class_weight="balanced"), GRID, cv=5).fit(transform.apply(intensity[train]), label[train])
    rank = transform.pca.rank if transform.pca is not None else None
    return float(search.score(transform.apply(intensity[test]), label[test])), rank


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of an RBF SVM on simulated oxides.")
    parser.add_argument("--acquisitions", type=int, default=6)
    parser.add_argument("--pixels", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("preset       components  split  accuracy")
    with tempfile.TemporaryDirectory() as directory:
        shape = (options.pixels, options.pixels)
        manifest = simulate_directory(
            Path(directory), n_acquisitions=options.acquisitions, seed=options.seed, shape=shape
        )
        for name in ("paper", "recommended"):
            preset = resolve_preset(name)
            data = gather(manifest, preset)
            variants = [preset]
            if name == "recommended":
                normalize = preset.find(Normalize)
                assert normalize is not None
                variants += [Preset(name=name, steps=(Pca(rank=rank), normalize)) for rank in (1, 2, 3, 5, 10, 20)]
            for variant in variants:
                for by in ("pixel", "group"):
                    score, rank = accuracy(data, variant, by)
                    print(f"{name:12s} {rank or '-'!s:>10s}  {by:5s}  {score:.3f}", flush=True)


if __name__ == "__main__":
    main()
