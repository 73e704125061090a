"""What plural scattering costs the classes, and what deconvolution gives back: maps of thin and thick fields.

    python -m benchmarks.thickness [--training 132] [--acquisitions 36] [--seed 2000]

Fields of the wide simulator whose specimen is .2 and 1 mean free paths thick in the middle, otherwise the same (shapes,
scene, instrument, dose), the thick ones on a film five times as thick, so that nothing but plural scattering differs;
the film holds no oxygen of its own, which the simulator does not scatter. At equal dose both edges are equally clear:
of five times as many atoms exp(-.8) show their edge unscattered, and the noise of the background has grown by sqrt(5).
References from other fields of the wide simulator, with its own thicknesses and films, of the same preset.
Reproduces the table of
docs/decisions/0021-low-loss.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from benchmarks.maps import Field, fit_references, library, scores_of, to_field
from eelsflow.edges import O_K
from eelsflow.errors import InputError
from eelsflow.low_loss.companion import companion_of
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.presets import Spatial, resolve_preset
from eelsflow.simulator import KNOWN_FIELDS, PRESETS, LowLossRecording, plan_directory, simulate_acquisition
from eelsflow.simulator.edges import LowLossParameters

FREE_PATH = 123.5  # nm, the wide simulator's own
THICKNESS = (0.2, 1.0)  # t/lambda of a field's median pixel
DOSE = (1.0, 1.0)
PEAK_TO_MEDIAN = 1.45  # of the thickness over the specimen of a field of particles
NAMES = ("recommended", "deconvolved")


def fields(n: int, *, seed: int, pixels: int, parameters) -> Iterator[tuple[float, dict[str, Field]]]:
    """Yield t/lambda of each field's median specimen pixel, and the field prepared by either preset."""
    plan = plan_directory(
        n_acquisitions=n,
        seed=seed,
        shape=(pixels, pixels),
        preset=parameters,
        detector="both",
        scenes=KNOWN_FIELDS,
    )
    for planned in plan:
        pair = simulate_acquisition(planned.parameters, planned.seed, name=planned.name, low_loss=LowLossRecording())
        companion = companion_of(pair.low_loss, shape=pair.image.shape[:2])
        found = {}
        for name in NAMES:
            preset = resolve_preset(name).for_acquisition
            steps = tuple(step for step in preset.steps if not isinstance(step, Spatial))
            try:
                product = prepare(
                    pair.image, edge=O_K, preset=preset.model_copy(update={"steps": steps}), companion=companion
                )
            except InputError as error:
                print(f"{planned.name}: {error}")
            found[name] = to_field(product, pair.truth)
        if len(found) == len(NAMES):
            thickness = pair.truth["t_over_lambda"].values[found[NAMES[0]].specimen]
            yield float(np.median(thickness)), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=132)
    parser.add_argument("--acquisitions", type=int, default=36)
    parser.add_argument("--seed", type=int, default=2000)
    arguments = parser.parse_args()
    wide = PRESETS["wide"]
    training = list(fields(arguments.training, seed=arguments.seed, pixels=24, parameters=wide))
    known = {name: fit_references([found[name] for _, found in training]) for name in NAMES}
    print(f"training: t/lambda of fields {np.quantile([t for t, _ in training], [0, 0.5, 1]).round(2)}")
    print(f"{'preset':14}{'t/lambda':>10}{'pure':>8}{'mixed':>8}{'fraction rmse':>15}{'n':>5}")
    for thickness in THICKNESS:
        film = thickness / max(THICKNESS)
        peak = PEAK_TO_MEDIAN * thickness * FREE_PATH
        parameters = wide.model_copy(
            update={
                "low_loss": wide.low_loss.model_copy(update={"mean_free_path": (FREE_PATH, FREE_PATH)}),
                "specimen": wide.specimen.model_copy(update={"peak_thickness": (peak, peak)}),
                "levels": wide.levels.model_copy(
                    update={"dose": DOSE, "film_oxygen": (0.0, 0.0), "support_factor": (film, film)}
                ),
            }
        )
        assert isinstance(parameters.low_loss, LowLossParameters)
        tested = list(fields(arguments.acquisitions, seed=arguments.seed + 1, pixels=32, parameters=parameters))
        for name in NAMES:
            row = scores_of([found[name] for _, found in tested], library(Spatial()), known[name])
            print(
                f"{name:14}{np.median([t for t, _ in tested]):10.2f}{row['pure']:8.3f}{row['mixed']:8.3f}"
                f"{row['fraction']:15.3f}{len(tested):5}",
                flush=True,
            )


if __name__ == "__main__":
    main()
