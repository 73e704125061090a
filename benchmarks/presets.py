"""What each preset does to fields of one phase and of two: maps of held-out acquisitions, against the truth.

    python -m benchmarks.presets [--acquisitions 48] [--seed 4101]

One study over acquisitions of the wide simulator with their low loss, every preset, whole acquisitions held out in
three splits. Reproduces the table of docs/presets.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import yaml

import eelsflow

PRESETS = ["recommended", "deconvolved", "paper", "paper-raw"]
MODELS = ["mlls", "svm-sgd"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acquisitions", type=int, default=48)
    parser.add_argument("--seed", type=int, default=4101)
    parser.add_argument("--pixels", type=int, default=24)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = eelsflow.simulate(
            Path(folder) / "acquisitions",
            acquisitions=arguments.acquisitions,
            seed=arguments.seed,
            pixels=arguments.pixels,
            preset="wide",
            detector="both",
            low_loss=True,
        )
        study = Path(folder) / "study.yaml"
        content = {
            "name": "presets",
            "edge": "O_K",
            "classes": ["FeO", "Fe3O4"],
            "data": {"manifest": str(manifest)},
            "preprocess": PRESETS,
            "split": {"by": "group", "folds": 3, "seeds": 3},
            "grids": "small",
            "models": MODELS,
            "robustness": {"shift_ev": [0, 0, 1], "noise_sigma": [0, 0, 1]},
        }
        study.write_text(yaml.safe_dump(content))
        results = eelsflow.run_study(study, Path(folder) / "results")
    for one in results["set_aside"]:
        print(f"{one['acquisition']} set aside: {one['reason']}")
    accuracy = {(row["model"], row["preprocess"]): row["accuracy"]["mean"] for row in results["models"]}
    print(f"{'preset':14}{'model':10}{'spectra':>9}{'pure':>7}{'mixed':>7}{'one class':>11}{'fraction rmse':>15}")
    rows = {(row["preprocess"], row["model"]): row for row in results["maps"]}
    for preset in PRESETS:
        for model in MODELS:
            row = rows[preset, model]
            print(
                f"{preset:14}{model:10}{accuracy[model, preset]:9.3f}"
                f"{row['pure']['mean']:7.3f}{row['mixed']['mean']:7.3f}"
                f"{row['one_class']:5} of {row['n_mixed']:2}{row['fraction_rmse']:15.3f}"
            )


if __name__ == "__main__":
    main()
