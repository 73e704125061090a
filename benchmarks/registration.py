"""What looking for spectra on the axis costs and keeps: the table of docs/decisions/0025-registration.md.

    python -m benchmarks.registration [--seed 701]

Single pixels of held-out acquisitions of the wide simulator, judged by Fisher's discriminant (`mlls`): what is right of
each class, mean over classes. Some minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from eelsflow.dataset.spectra import LabelledSpectra
from eelsflow.executors import LoopExecutor
from eelsflow.models.disturbance import Disturbance
from eelsflow.models.registration import Registration
from eelsflow.models.spec import Align
from eelsflow.preprocess.features import FeatureTransform
from eelsflow.robustness.perturb import draw_shifts
from eelsflow.store import Store
from eelsflow.study import stages
from eelsflow.study.config import Study
from eelsflow.study.plan import plan_data, plan_features
from eelsflow.study.stages import Place

N_TRAIN, N_TEST = 5000, 2000
SHIFTS = (0.0, -8.0, 8.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Models that look for their spectra on the axis.")
    parser.add_argument("--seed", type=int, default=701)
    options = parser.parse_args()
    study = Study.model_validate(
        {
            "name": "registration",
            "edge": "O_K",
            "classes": ["FeO", "Fe3O4"],
            "data": {"simulate": {"acquisitions": 60, "seed": options.seed, "pixels": 24}},
            "preprocess": "recommended",
            "split": {"by": "group", "seeds": 1},
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        place = Place(Store(Path(directory)), LoopExecutor())
        plan = plan_data(study, place.store)
        outcomes = [stages.prepare_acquisition(step, place) for step in plan.prepare]
        plan = plan.without([outcome for outcome in outcomes if not isinstance(outcome, Path)])
        (dataset,) = plan.datasets
        spectra = LabelledSpectra.load(stages.build_dataset(dataset, place))
        (features,) = plan_features(study, dataset, study.preprocess[0], splits=["group"])
        fitted = stages.fit_features(features, place)
        train, test = (np.load(fitted / f"{part}.npy") for part in ("train", "test"))
        measure(spectra, FeatureTransform.load(fitted / "transform"), train, test)


def measure(spectra: LabelledSpectra, transform: FeatureTransform, train: np.ndarray, test: np.ndarray) -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    train, test = np.sort(rng.permutation(train)[:N_TRAIN]), np.sort(rng.permutation(test)[:N_TEST])
    assert spectra.group is not None  # of acquisitions
    wide, label, group = (np.asarray(array[train]) for array in (spectra.intensity, spectra.label, spectra.group))
    seen, truth, recorded = (np.asarray(array[test]) for array in (spectra.intensity, spectra.label, spectra.group))
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
    model.fit(transform.apply(wide), label)
    disturbances = {f"{shift:+g} eV": Disturbance(shift_ev=shift) for shift in SHIFTS}
    disturbances["U(-5, 5) eV"] = Disturbance(
        shift_ev=draw_shifts(len(seen), amplitude=5.0, rng=np.random.default_rng(3))
    )
    aligns: tuple[Align | None, ...] = (None, "spectrum", "acquisition", "marginal")
    for align in aligns:
        found = {}
        for name, disturbance in disturbances.items():
            place, weight = np.zeros((len(seen), 1), np.intp), np.ones((len(seen), 1))
            if align is not None:
                registration = Registration.fit(
                    wide, label, group, align=align, channels=transform.channels, dispersion=transform.axis.dispersion
                )
                place, weight = registration.locate(disturbance.spectra(transform, seen), recorded)
            probability = sum(
                weight[:, [column]] * model.predict_proba(disturbance.vectors(transform, seen, place=place[:, column]))
                for column in range(place.shape[1])
            )
            decided = model.classes_[np.argmax(probability, axis=1)]
            found[name] = np.mean([np.mean(decided[truth == one] == one) for one in model.classes_])
        print(f"{align or 'none':12s}", "  ".join(f"{name}: {value:.3f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
