"""What a map says of itself: the warnings, each with and without its reason."""

from types import SimpleNamespace

import numpy as np
import pytest

from eelsflow.edges import SHIPPED
from eelsflow.maps.judge import judge_map, smallest_phase
from eelsflow.maps.pixels import PixelMap
from eelsflow.preprocess.presets import resolve_preset

N_BANDS = 20


def a_map(**changes) -> PixelMap:
    """Return a map of two halves in which nothing is wrong, but for the changes."""
    shape = (10, 10)
    halves = np.zeros(shape, dtype=np.int16)
    halves[:, 5:] = 1
    values = {
        "classes": ["A", "B"],
        "class_index": halves,
        "probability": np.full((*shape, 2), 0.5, dtype=np.float32),
        "fraction": np.full((*shape, 2), 0.5, dtype=np.float32),
        "fraction_error": np.full((*shape, 2), 0.1, dtype=np.float32),
        "unknown": np.zeros(shape, dtype=bool),
        "distance": np.ones(shape, dtype=np.float32),
        "effective_spectra": np.ones(shape, dtype=np.float32),
        "relative_variance": 1e-2,
        "mean_distance": 1.0,
        "correlation": 8.0,
        "ends": None,
        "class_shape": np.full((2, 3), 1 / 3),
        "class_shape_error": np.zeros((2, 3)),
        "bands": np.arange(3.0),
        "judged": None,
        "noise": np.eye(3),
    }
    return PixelMap(**(values | changes))


def references(contrast: float = 0.01) -> SimpleNamespace:
    mean = np.full((2, N_BANDS), 1 / N_BANDS)
    mean[0, ::2] += contrast
    mean[0, 1::2] -= contrast
    return SimpleNamespace(mean=mean, mean_limit=2.0, pixel_limit=3.0)


def sentences(found: PixelMap, preset: str = "recommended", caution: str | None = None) -> list[str]:
    chosen = resolve_preset(preset)
    bundle = SimpleNamespace(
        preset=chosen,
        acquisition_preset=chosen.for_acquisition,
        references=references(),
        provenance={"caution": caution} if caution else {},
        **{"edge": SHIPPED["O_K"], "name": "mlls"},
    )
    return judge_map(found, bundle, SimpleNamespace(attrs={"pca_rank": 2, "sha256": "an acquisition"}))


def test_a_map_in_which_nothing_is_wrong_says_nothing():
    assert sentences(a_map()) == []


def test_an_acquisition_whose_mean_is_unlike_the_training_set_is_warned_of():
    (sentence,) = sentences(a_map(mean_distance=2.5))
    assert "unlike the training data" in sentence
    assert "2.50" in sentence


@pytest.mark.parametrize(("n_unknown", "warned"), [(0, False), (10, False), (11, True), (100, True)])
def test_more_than_a_tenth_of_unknown_pixels_is_warned_of(n_unknown, warned):
    unknown = np.arange(100).reshape(10, 10) < n_unknown
    assert bool(sentences(a_map(unknown=unknown))) == warned


@pytest.mark.parametrize(("correlation", "warned"), [(1.0, False), (3.2, False), (3.4, True)])
def test_structure_in_a_map_of_one_class_is_warned_of(correlation, warned):
    one = np.zeros((10, 10), dtype=np.int16)
    assert bool(sentences(a_map(class_index=one, correlation=correlation))) == warned


def test_vacuum_is_no_second_class():
    one = np.zeros((10, 10), dtype=np.int16)
    one[:5] = -1
    assert "a second phase may be missed" in sentences(a_map(class_index=one))[0]


def test_components_of_the_whole_image_say_how_small_a_phase_they_erase():
    (sentence,) = sentences(a_map(), preset="paper")
    n = smallest_phase(references(), 1e-2, 100)
    assert f"fewer than about {n:,} of its 100" in sentence


def test_smallest_phase_grows_with_the_noise_and_falls_with_the_contrast():
    by_noise = [smallest_phase(references(), noise, 10_000) for noise in (1e-4, 1e-2, 1.0)]
    by_contrast = [smallest_phase(references(contrast), 1e-2, 10_000) for contrast in (0.001, 0.01, 0.04)]
    assert by_noise == sorted(set(by_noise))
    assert by_contrast == sorted(set(by_contrast), reverse=True)
    assert smallest_phase(references(0.0), 1e-2, 10_000) == 10_000  # classes of one shape: no component tells


def test_the_caution_of_the_model_comes_last():
    assert sentences(a_map(mean_distance=9.0), caution="simulated shapes")[-1] == "simulated shapes"


def test_a_map_of_the_training_itself_and_one_for_want_of_a_champion_say_so():
    found = a_map()
    bundle = SimpleNamespace(
        preset=resolve_preset("recommended"), acquisition_preset=resolve_preset("recommended").for_acquisition,
        references=references(), edge=SHIPPED["O_K"], name="mlls",
        provenance={"trained_on": ["an acquisition"], "unpromoted": True},
    )  # fmt: skip
    taught, unpromoted = judge_map(found, bundle, SimpleNamespace(attrs={"pca_rank": 2, "sha256": "an acquisition"}))
    assert "trained on this very acquisition" in taught
    assert "--promote" in unpromoted
    assert judge_map(found, bundle, SimpleNamespace(attrs={"pca_rank": 2, "sha256": "another"})) == [unpromoted]
