"""Directories of wide acquisitions, and what is expected of each without noise."""

import csv
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from eelsflow.errors import InputError
from eelsflow.io.zarr_store import open_dataset, open_spectrum_image
from eelsflow.simulator import PRESETS, expected_counts, plan_directory, simulate_acquisition, simulate_directory
from eelsflow.simulator.acquisition import _Drawn

SMALL = (12, 12)


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve wide acquisitions with either detector."""
    directory = tmp_path_factory.mktemp("wide")
    return simulate_directory(directory, n_acquisitions=12, seed=2, shape=SMALL, preset="wide", detector="both")


def test_twelve_wide_acquisitions_hold_every_scene(manifest: Path) -> None:
    kinds = [row["group"][10:] for row in rows_of(manifest)]
    assert kinds[:4] == ["FeO", "Fe3O4", "FeO", "Fe3O4"]
    mixed = {"core-shell", "interface", "gradient", "inclusions", "two-particles", "mosaic"}
    assert set(kinds) == {"FeO", "Fe3O4", "other"} | mixed
    assert kinds[-1] == "other"
    names = [planned.name for planned in plan_directory(n_acquisitions=24, seed=2, preset="wide")]
    assert sum("-FeO" in name for name in names) == sum("-Fe3O4" in name for name in names) == 5


def test_only_pure_fields_are_labeled_and_another_oxide_has_no_truth_to_learn_from(manifest: Path) -> None:
    for row in rows_of(manifest):
        name = row["group"]
        assert row["label"] == (name[10:] if name[10:] in ("FeO", "Fe3O4") else "")
        assert row["truth"] == ("" if name.endswith("other") else f"{name}.truth.zarr")
        truth = open_dataset(manifest.parent / f"{name}.truth.zarr")
        assert list(truth["phase"].values) == ["FeO", "Fe3O4", "other"][: 3 if name.endswith("other") else 2]
        oxide = truth["thickness"].values > 0
        np.testing.assert_allclose(truth["phase_fraction"].values.sum(axis=0), oxide, atol=1e-6)


def test_both_detectors_record_and_each_acquisition_says_which(manifest: Path) -> None:
    seen = set()
    for row in rows_of(manifest):
        truth = open_dataset(manifest.parent / f"{row['group']}.truth.zarr")
        counts = open_spectrum_image(manifest.parent / row["path"]).values
        seen.add(truth.attrs["detector"])
        if truth.attrs["detector"] == "counting":
            assert counts.min() >= 0
            assert counts.mean() < 400
            assert (truth.attrs["counts_per_electron"], truth.attrs["readout_noise"]) == (1.0, 0.0)
        else:
            assert truth.attrs["counts_per_electron"] == pytest.approx(19.0, abs=0.5)
    assert seen == {"ccd", "counting"}


def test_an_acquisition_depends_on_its_number_alone(manifest: Path, tmp_path: Path) -> None:
    """Not on how many others there are: more of them add to the same ones."""
    few = simulate_directory(tmp_path, n_acquisitions=3, seed=2, shape=SMALL, preset="wide", detector="both")
    for row in rows_of(few):
        one, other = (open_spectrum_image(path.parent / row["path"]) for path in (few, manifest))
        xr.testing.assert_identical(one, other)


def test_another_detector_sees_the_same_field() -> None:
    truths = []
    for detector in ("ccd", "counting"):
        planned = plan_directory(n_acquisitions=7, seed=4, shape=SMALL, preset="wide", detector=detector)[6]  # type: ignore[arg-type]
        truths.append(simulate_acquisition(planned.parameters, planned.seed).truth)
    for name in ("thickness", "phase_fraction", "drift", "energy_loss"):
        xr.testing.assert_identical(truths[0][name], truths[1][name])
    assert truths[0].attrs["offset"] == truths[1].attrs["offset"]


def test_scenes_and_dose_can_be_chosen() -> None:
    plan = plan_directory(
        n_acquisitions=5, seed=0, shape=SMALL, preset="wide", scenes=("mosaic", "other"), dose=(0.01, 0.01)
    )
    assert [p.parameters.specimen.kind for p in plan] == ["mosaic", "other", "mosaic", "other", "mosaic"]
    truth = simulate_acquisition(plan[0].parameters, plan[0].seed).truth
    assert truth.attrs["dose"] == pytest.approx(0.01)
    exact = plan_directory(n_acquisitions=1, seed=0, shape=SMALL, preset="wide", dispersion_error=0.0)
    assert simulate_acquisition(exact[0].parameters, exact[0].seed).truth.attrs["dispersion_error"] == 0.0
    cubes = plan_directory(n_acquisitions=2, seed=0, scenes=("core_shell",))
    assert [p.name for p in cubes] == ["cubes-000-core-shell", "cubes-001-core-shell"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenes": ("mosaic",)}, r"scenes \['mosaic'\] cannot be simulated; choose from FeO, Fe3O4, core_shell; the"),
        ({"scenes": ()}, r"scenes \[\] cannot be simulated"),
        ({"detector": "film"}, "no detector is called 'film'; there are ccd, counting, both"),
        ({"dose": (0.0, 1.0)}, "is no range"),
        ({"dose": (2.0, 1.0)}, "is no range"),
        ({"dispersion_error": 0.5}, "is no share from 0 to below .1"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_directory(**{"n_acquisitions": 1, "seed": 0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("detector", ["ccd", "counting"])
def test_expected_counts_are_the_mean_of_many_noise_draws(detector: str) -> None:
    planned = plan_directory(
        n_acquisitions=6,
        seed=1,
        shape=(8, 10),
        preset="wide",
        detector=detector,
        scenes=("interface",),  # type: ignore[arg-type]
    )[5]
    parameters, n_draws = planned.parameters, 120
    if detector == "ccd":
        still = parameters.detector.model_copy(update={"spike_rate": 0.0})
        parameters = parameters.model_copy(update={"detector": still})
    expected = expected_counts(parameters, planned.seed)
    image = simulate_acquisition(parameters, planned.seed).image
    np.testing.assert_array_equal(expected.energy_loss, image["energy_loss"].values)
    assert expected.counts.shape == image.shape
    drawn, rng = _Drawn.draw(parameters, planned.seed), np.random.default_rng(0)
    rows = list(drawn.rows())
    total, squares = np.zeros(image.shape), np.zeros(image.shape)
    for _ in range(n_draws):
        counts = np.stack([drawn.detector.record(row, rng=rng)[0] for row in rows]).astype(float)
        total += counts
        squares += (counts - expected.counts) ** 2
    alive = expected.counts.any(axis=(0, 1))
    mean = expected.counts[..., alive]
    variance = expected.noise.variance_to_mean * mean + expected.noise.readout_variance
    deviation = (total[..., alive] / n_draws - mean) / np.sqrt(variance / n_draws)
    assert abs(deviation.mean()) < 0.02  # 80,000 values or more, correlated over a few channels
    assert deviation.std() == pytest.approx(1.0, abs=0.03)
    assert (squares[..., alive] / n_draws / variance)[..., 12:-12].mean() == pytest.approx(1.0, abs=0.02)
    # the acquisition itself is one such draw
    one = (image.values[..., alive] - mean) / np.sqrt(variance)
    assert abs(one.mean()) < 0.02
    assert one.std() == pytest.approx(1.0, abs=0.03)


def test_expected_counts_of_each_phase_bracket_the_mixture() -> None:
    """A field that is one phase gives that phase's expectation; a gradient lies between the two."""
    plan = plan_directory(n_acquisitions=2, seed=3, shape=(16, 16), preset="wide", scenes=("FeO", "gradient"))
    pure, gradient = plan
    np.testing.assert_array_equal(
        expected_counts(pure.parameters, pure.seed).counts,
        expected_counts(pure.parameters, pure.seed, phase="FeO").counts,
    )
    mixed, feo, fe3o4 = (
        expected_counts(gradient.parameters, gradient.seed, phase=phase).counts for phase in (None, "FeO", "Fe3O4")
    )
    share = simulate_acquisition(gradient.parameters, gradient.seed).truth["phase_fraction"].values[0][..., None]
    between = share * feo + (1.0 - share) * fe3o4
    # with fractions as float32; where there is no oxide all three are the film
    np.testing.assert_allclose(mixed, between, rtol=1e-4, atol=1e-2)
    assert np.abs(feo - fe3o4).max() > 1.0


def test_expected_counts_of_an_unknown_phase_are_refused() -> None:
    with pytest.raises(InputError, match="the specimen has no phase 'Fe2O3'; it knows FeO, Fe3O4"):
        expected_counts(PRESETS["wide"].model_copy(update={"shape": SMALL}), 0, phase="Fe2O3")
