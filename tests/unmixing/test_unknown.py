"""Acquisitions unlike the training set are found by their mean spectrum, also oxides between the classes, small shifts.

References from narrow acquisitions (the simulator's paper draw) know few shapes, those from wide ones many; neither may
call its own kind unknown.
"""

import numpy as np
import pytest

from eelsflow.edges import O_K
from eelsflow.energy import EnergyAxis
from eelsflow.errors import EelsflowError
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.presets import PRESETS, Spatial
from eelsflow.preprocess.shapes import Shapes, shape_noise, to_shapes
from eelsflow.simulator import PRESETS as SIMULATED
from eelsflow.simulator import plan_directory, simulate_acquisition
from eelsflow.simulator.generic_edges import OTHER_OXIDES
from eelsflow.unmixing.references import References, mean_shape

STEPS = tuple(step for step in PRESETS["recommended"].acquisition_steps if not isinstance(step, Spatial))
PRESET = PRESETS["recommended"].model_copy(update={"steps": STEPS})

pytestmark = pytest.mark.slow


def products(n, *, seed, preset, scenes, detector="ccd"):
    """Yield prepared acquisitions of a simulator with the phase of each; those that are refused are left out."""
    plan = plan_directory(
        n_acquisitions=n, seed=seed, shape=(16, 16), preset=preset, scenes=scenes, detector=detector, dose=(1.0, 1.0)
    )
    for planned in plan:
        image = simulate_acquisition(planned.parameters, planned.seed, name=planned.name).image
        try:
            yield planned.label, prepare(image, edge=O_K, preset=PRESET)
        except EelsflowError:
            continue


def shapes_of(product, *, shift_ev=0.0):
    """Return the shapes of a product's specimen, moved along the energy axis, and their noise."""
    axis = EnergyAxis.from_values(product["energy_loss"].values)
    channels = round(shift_ev / axis.dispersion)
    intensity, variance = (np.roll(product[name].values, channels, axis=-1) for name in ("intensity", "variance"))
    shapes = to_shapes(intensity, variance, axis, O_K)
    known = ~product["vacuum_mask"].values & shapes.known
    return shapes[known], shape_noise(shapes, known, np.eye(shapes.values.shape[-1]))


@pytest.fixture(scope="module")
def narrow():
    parts, label, group = [], [], []
    for number, (name, product) in enumerate(products(16, seed=4711, preset="paper", scenes=["FeO", "Fe3O4"])):
        shapes, _ = shapes_of(product)
        parts.append(shapes)
        label += [name] * len(shapes.values)
        group += [f"{number:02d}"] * len(shapes.values)
    arrays = (np.concatenate([getattr(one, key) for one in parts]) for key in ("values", "relative_variance", "counts"))
    return References.fit(Shapes(*arrays, parts[0].energy_loss), np.array(label), np.array(group))


@pytest.fixture(scope="module")
def held_out():
    return [product for _, product in products(8, seed=9091, preset="paper", scenes=["FeO", "Fe3O4"])]


def share_unlike(references, found, *, shift_ev=0.0):
    """Return the share of acquisitions whose mean spectrum lies beyond the limit."""
    unlike = []
    for product in found:
        shapes, noise = shapes_of(product, shift_ev=shift_ev)
        unlike.append(float(references.distance(mean_shape(shapes), noise)[0]) > references.mean_limit)
    assert len(unlike) >= 6
    return np.mean(unlike)


def test_held_out_acquisitions_of_the_same_kind_are_known(narrow, held_out):
    assert share_unlike(narrow, held_out) == 0.0


@pytest.mark.parametrize("shift_ev", [-0.5, 0.5])
def test_spectra_half_an_ev_off_are_unlike(narrow, held_out, shift_ev):
    assert share_unlike(narrow, held_out, shift_ev=shift_ev) >= 0.95


def test_counting_detector_and_other_dose_are_not_unlike(narrow):
    counted = [p for _, p in products(6, seed=12, preset="paper", scenes=["FeO", "Fe3O4"], detector="counting")]
    assert share_unlike(narrow, counted) == 0.0


@pytest.mark.parametrize("family", ["split_pre_peak", "white_lines"])
def test_oxides_that_are_neither_are_unlike(narrow, family):
    """A doublet between the pre-peaks of the two is what hematite and maghemite show."""
    other = OTHER_OXIDES.model_copy(update={"families": {family: OTHER_OXIDES.families[family]}})
    preset = SIMULATED["wide"].model_copy(update={"other": other})
    found = [product for _, product in products(8, seed=9092, preset=preset, scenes=["other"])]
    assert share_unlike(narrow, found) >= 0.95
