"""A study of two edges, from the simulator to its pages."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from eelsflow.catalogue.process import Order, identify, work_through
from eelsflow.catalogue.states import Acquisition, State
from eelsflow.describe import describe, format_description
from eelsflow.errors import EelsflowError, StudyFileError
from eelsflow.executors import LoopExecutor
from eelsflow.explanation import explain_file
from eelsflow.explanation.contributions import explain
from eelsflow.io.zarr_store import open_dataset, open_spectrum_image, write_spectrum_image
from eelsflow.maps.mapping import classify
from eelsflow.maps.registry import find_model, models_alone, register_model
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.presets import Align
from eelsflow.public import plan_dose
from eelsflow.report.style import leave_out_gaps, new_figure, spans
from eelsflow.simulator import simulate_directory
from eelsflow.spectrum_image import energy_axis
from eelsflow.store import Store, read_json
from eelsflow.study.config import load_study
from eelsflow.study.plan import plan_data
from eelsflow.study.run import run_study
from eelsflow.study.stages import Place

STUDY = {
    "name": "both",
    "edges": ["O_K", "Fe_L3"],
    "classes": ["FeO", "Fe3O4"],
    "data": {"simulate": {"acquisitions": 12, "seed": 4141, "pixels": 12}},
    "split": {"by": "group", "seeds": 1, "folds": 2},
    "models": ["mlls", "svm-linear"],
    "grids": "small",
    "robustness": {"shift_ev": [-2, 2, 2], "noise_sigma": [0, 0.1, 0.1]},
}


def write(tmp_path, **changes):
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    return path


def study_in(folder, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EELSFLOW_HOME", str(folder / "home"))
        place = Place(store=Store(folder / "store"), executor=LoopExecutor())
        run_study(load_study(write(folder, **changes)), folder / "out", place=place)
    return folder / "out"


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    return study_in(tmp_path_factory.mktemp("both"))


def test_a_study_of_two_edges_maps_and_reports(studied):
    results = read_json(studied / "results.json")
    assert results["edge"]["name"] == "O_K+Fe_L3"
    assert {row["model"] for row in results["models"]} == {"mlls", "svm-linear"}
    assert all(row["accuracy"]["mean"] > 0.6 for row in results["models"])
    assert (studied / "report.html").stat().st_size > 100_000
    folder = next(path.parent for path in studied.glob("maps/*/summary.json"))
    summary, mapped = read_json(folder / "summary.json"), open_dataset(folder / "map.zarr")
    [distance] = summary["edges"]["distances"]
    assert (distance["from"], distance["to"]) == ("O_K", "Fe_L3")
    assert distance["value"] == pytest.approx(177.2, abs=3.0)
    assert summary["edges"]["dispersion"]["error"] < 0.01
    assert summary["edges"]["dispersion"]["known_to"] == 0.02
    assert summary["white_lines"]["distance"] == pytest.approx(13.0, abs=1.0)
    position, specimen = mapped["l3_position"].values, mapped["class_index"].values >= 0
    assert np.isfinite(position[specimen]).mean() > 0.9
    assert np.isnan(position[~specimen]).all()
    assert np.nanmedian(mapped["l3_position_error"].values) < 0.3
    page = (folder / "map.html").read_text()
    assert '<option value="1">Fe_L3</option>' in page
    assert "L3/L2 ratio" in page


def test_simulated_acquisitions_are_as_wrong_as_a_study_says(tmp_path):
    errors = []
    for known in ({}, {"dispersion_error": 5e-4}):
        store = Store(tmp_path / f"store{len(errors)}")
        data = {"simulate": {"acquisitions": 4, "seed": 1, "pixels": 8}}
        plan = plan_data(load_study(write(tmp_path, data=data, **known)), store)
        truths = [path.with_suffix(".truth.zarr") for path in sorted(Path(one.path) for one in plan.acquisitions)]
        errors.append([open_dataset(path).attrs["dispersion_error"] for path in truths])
    np.testing.assert_allclose(errors[1], np.array(errors[0]) * 5e-4 / 0.004, rtol=1e-9)
    assert np.abs(errors[0]).max() > 1e-3


def test_a_new_file_is_mapped_and_its_decision_explained(studied, tmp_path):
    simulate_directory(
        tmp_path / "new", n_acquisitions=5, seed=999, shape=(12, 12), preset="wide", window=(495.0, 745.0)
    )
    path = next(path for path in sorted((tmp_path / "new").glob("field-004*.zarr")) if "truth" not in path.name)
    bundle = ModelBundle.load(studied / "model")
    found = classify(path, model=bundle)
    assert found.summary["model"]["edge"] == "O_K+Fe_L3"
    explained = explain(bundle, found.prepared).dataset
    assert explained.sizes["band"] == 60
    assert float(explained["band_low"].values[30]) == pytest.approx(699.95, abs=0.1)
    total = explained["contribution"].values.sum(axis=1)
    difference = explained["decision"].values - explained["decision_at_mean"].values
    np.testing.assert_allclose(total, difference, rtol=1e-3, atol=1e-6)
    described = describe(path)
    assert described["dispersion"]["edges"] == ["O_K", "Fe_L3"]
    apart = described["dispersion"]["distances"]["Fe_L3"]
    assert apart["value"] * described["dispersion"]["value"] / described["energy_loss"]["dispersion"] == pytest.approx(
        apart["usual"], abs=0.1
    )
    assert "to Fe_L3 on this axis; compounds have 177.2 +- 0.6" in format_description(described)
    assert json.dumps(described, allow_nan=False)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """An acquisition whose axis ends before the iron edge."""
    tmp_path = tmp_path_factory.mktemp("short")
    simulate_directory(tmp_path / "short", n_acquisitions=1, seed=5, shape=(8, 8), preset="wide", window=(495.0, 570.0))
    image = open_spectrum_image(tmp_path / "short" / "field-000-FeO.zarr").load()
    return image.isel(energy_loss=image["energy_loss"].values < 650.0)


def test_a_file_that_shows_one_edge_is_mapped_by_the_model_of_that_edge(studied, short):
    found = classify(short, model=studied)
    assert found.summary["model"]["edge"] == "O_K"
    assert found.summary["edges"] is None
    said = "of the edges O_K and Fe_L3, which the model judges together, the file shows O_K alone"
    assert any(warning.startswith(said) for warning in found.summary["warnings"])
    assert "made its model the champion" not in " ".join(found.summary["warnings"])
    assert sorted(path.name for path in (studied / "model" / "alone").iterdir()) == ["Fe_L3", "O_K"]
    [iron] = [path for path in models_alone(studied / "model") if path.name == "Fe_L3"]
    assert ModelBundle.load(iron).edge.name == "Fe_L3"


def test_the_default_model_of_several_edges_stands_for_each_of_them(studied, short, tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    register_model(studied / "model", name="both", registered="2026-01-01T00:00:00+00:00", champion=True)
    found = classify(short)
    assert found.summary["model"]["edge"] == "O_K"
    assert "made its model the champion" not in " ".join(found.summary["warnings"])
    # a model for O K itself goes before one of O K beside others, which was never compared with it
    single = models_alone(studied / "model")[0]
    shutil.copytree(single, tmp_path / "single")
    register_model(tmp_path / "single", name="single", registered="2025-01-01T00:00:00+00:00")
    assert find_model("default", axis=energy_axis(short)) == tmp_path / "single"


def test_an_edge_that_is_cut_leaves_the_other(studied, tmp_path):
    """Within what an axis may be wrong by, but the detector ended inside the window of iron."""
    simulate_directory(
        tmp_path / "new", n_acquisitions=1, seed=78, shape=(12, 12), preset="wide", window=(495.0, 745.0)
    )
    image = open_spectrum_image(tmp_path / "new" / "field-000-FeO.zarr").load()
    offset = float(open_dataset(tmp_path / "new" / "field-000-FeO.truth.zarr").attrs["offset"])
    image = image.isel(energy_loss=image["energy_loss"].values + offset < 726.0)
    found = classify(image, model=studied)
    assert found.summary["model"]["edge"] == "O_K"


def test_an_edge_that_is_not_in_the_specimen_leaves_the_other(studied, tmp_path):
    """An axis over both edges, and counts in which nothing but a background lies where iron would be."""
    simulate_directory(
        tmp_path / "new", n_acquisitions=1, seed=77, shape=(12, 12), preset="wide", window=(495.0, 745.0)
    )
    image = open_spectrum_image(tmp_path / "new" / "field-000-FeO.zarr").load()
    energies, counts = image["energy_loss"].values, image.values.astype(np.float64)
    beyond = energies > 650.0
    before = (energies > 600.0) & ~beyond
    level = counts[..., before].mean(axis=-1, keepdims=True)
    fall = (energies[beyond] / energies[before].mean()) ** -3.0
    drawn = np.random.default_rng(0).poisson(np.maximum(level * fall, 0.0) * 50.0) / 50.0
    counts[..., beyond] = np.round(drawn)
    found = classify(image.copy(data=counts.astype(image.dtype)), model=studied)
    assert found.summary["model"]["edge"] == "O_K"


def test_a_plan_of_a_file_of_one_edge_says_so(studied, short):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eelsflow.dose.curves._N_ACQUISITIONS", 16)
        patch.setattr("eelsflow.dose.plan._PER_DECADE", 1)
        found = plan_dose(short, model=studied, accuracy=0.8, labels="FeO")
    assert "the file shows O_K alone, so the plan is for the model of that edge" in found.warnings


def test_a_model_of_both_edges_by_itself_refuses_a_file_of_one(studied, short):
    with pytest.raises(EelsflowError, match="cannot show the Fe_L3 edge"):
        classify(short, model=ModelBundle.load(studied / "model"))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A study of files whose dispersion is known."""
    return study_in(tmp_path_factory.mktemp("calibrated"), dispersion_error=5e-4, models=["mlls"])


@pytest.fixture(scope="module")
def wide_channels(tmp_path_factory):
    """A file whose channels are wider than it says, by 2 %, and one that says what they are."""
    folder = tmp_path_factory.mktemp("channels")
    simulate_directory(
        folder, n_acquisitions=1, seed=881, shape=(12, 12), preset="wide", window=(490.0, 750.0), dispersion_error=5e-4
    )
    right = open_spectrum_image(folder / "field-000-FeO.zarr").load()
    energies = right["energy_loss"]
    return right.assign_coords(energy_loss=530.0 + (energies - 530.0) / 1.02), right


def test_a_file_that_is_not_calibrated_is_mapped_by_the_model_that_does_not_expect_it(calibrated, wide_channels):
    wrong, right = wide_channels
    own, stand_in = (ModelBundle.load(calibrated / "model" / name) for name in ("", "uncalibrated"))
    assert [one.preset.find(Align).dispersion_error for one in (own, stand_in)] == [5e-4, 0.02]
    assert own.provenance["trained_on"] == stand_in.provenance["trained_on"]
    suits = classify(right, model=calibrated)
    assert suits.summary["edges"]["dispersion"]["known_to"] == 5e-4
    assert "not as well known" not in " ".join(suits.summary["warnings"])

    found = classify(wrong, model=calibrated)
    assert found.summary["edges"]["dispersion"]["known_to"] == 0.02
    (said,) = [one for one in found.summary["warnings"] if "not as well known as the model expects" in one]
    assert "apart on the file's axis, and compounds have 177.2 +- 0.6 eV" in said
    assert abs(found.summary["edges"]["dispersion"]["factor"] - 1.02) < 0.006
    named = classify(wrong, model=calibrated / "model" / "uncalibrated")
    np.testing.assert_array_equal(found.dataset["class_index"], named.dataset["class_index"])
    assert "not as well known" not in " ".join(named.summary["warnings"])  # whoever names it knows
    by_itself = classify(wrong, model=own)  # nothing stands beside a model object
    assert by_itself.summary["edges"]["dispersion"]["known_to"] == 5e-4
    assert "not known to 0.05 %" in " ".join(by_itself.summary["warnings"])


def test_the_model_of_uncalibrated_files_refers_to_those_of_single_edges(calibrated, short):
    assert classify(short, model=calibrated / "model" / "uncalibrated").summary["model"]["edge"] == "O_K"


def through_an_inbox(image, model, folder):
    """Return the summary of the map that a watcher makes of an image."""
    (folder / "inbox").mkdir(exist_ok=True, parents=True)
    write_spectrum_image(image, folder / "inbox" / "scan.zarr")
    order = Order(inbox=str(folder / "inbox"), out=folder / "out", store=folder / "store", model=str(model))
    one = Acquisition(1, str(folder / "inbox" / "scan.zarr"), 1, "", State.INGESTED)
    one = replace(one, sha256=identify(one, order))
    assert work_through(one, order, lambda *_, **__: True) is not None
    return read_json(order.folder_for(one) / "summary.json")


def test_an_inbox_takes_the_model_that_a_map_takes(calibrated, wide_channels, tmp_path):
    wrong, _ = wide_channels
    named = through_an_inbox(wrong, calibrated / "model" / "uncalibrated", tmp_path)
    summary = through_an_inbox(wrong, calibrated, tmp_path)  # the same model and preparation, and now it says why
    for one, says_why in ((named, False), (summary, True)):
        assert one["edges"]["dispersion"]["known_to"] == 0.02
        assert one["model"]["stands_in_for"] == "files whose dispersion is not known"
        assert any("not as well known" in warning for warning in one["warnings"]) == says_why


@pytest.mark.parametrize(("factor", "end"), [(0.98, 728.0), (1.02, 726.0)])
def test_a_file_that_is_cut_and_not_calibrated_is_mapped_by_the_same_model_everywhere(
    calibrated, wide_channels, tmp_path, factor, end
):
    """The window of iron ends at 730 eV: whether it is all there depends on the dispersion."""
    _, right = wide_channels
    image = right.assign_coords(energy_loss=530.0 + (right["energy_loss"] - 530.0) / factor)
    image = image.isel(energy_loss=image["energy_loss"].values < end)
    direct = classify(image, model=calibrated).summary
    watched = through_an_inbox(image, calibrated, tmp_path)
    assert watched["model"]["edge"] == direct["model"]["edge"] == ("O_K" if factor < 1 else "O_K+Fe_L3")
    assert watched["warnings"] == direct["warnings"]
    assert any("not as well known" in warning for warning in direct["warnings"]) == (factor > 1)


def test_explanations_and_plans_take_the_model_that_a_map_takes(calibrated, wide_channels, tmp_path):
    wrong, right = wide_channels
    file, other = write_spectrum_image(wrong, tmp_path / "wrong.zarr"), calibrated / "model" / "uncalibrated"
    found, direct = (
        explain_file(file, models=[str(model)] * 2, out=tmp_path / "explained") for model in (calibrated, other)
    )
    assert "not as well known as the model expects" in found.dataset.attrs["note"]
    assert "not as well known" not in direct.dataset.attrs["note"]
    for name in found.dataset:
        np.testing.assert_array_equal(found.dataset[name], direct.dataset[name])
    own, stand_in = (ModelBundle.load(model) for model in (calibrated / "model", other))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eelsflow.dose.curves._N_ACQUISITIONS", 16)
        patch.setattr("eelsflow.dose.plan._PER_DECADE", 1)
        by_directory, by_object, expected = (
            plan_dose(image, model=model, accuracy=0.8, labels="FeO")
            for image, model in ((file, calibrated), (file, own), (file, stand_in))
        )
        plain = plan_dose(right, model=calibrated, accuracy=0.8, labels="FeO")
    np.testing.assert_array_equal(by_directory.accuracy.value, expected.accuracy.value)
    assert "so the plan is for its model for files whose dispersion is not known" in by_directory.warnings[0]
    assert "so classes are taken for each other" in by_object.warnings[0]
    assert not any("not as well known" in warning for warning in (*expected.warnings, *plain.warnings))


def test_edges_are_listed_once_and_not_beside_an_edge(tmp_path):
    study = load_study(write(tmp_path))
    assert [edge.name for edge in study.edge.alone] == ["O_K", "Fe_L3"]
    with pytest.raises(StudyFileError, match="edge and edges are both given"):
        load_study(write(tmp_path, edge="O_K"))
    with pytest.raises(StudyFileError, match="edges is a list of edges"):
        load_study(write(tmp_path, edges="O_K"))
    with pytest.raises(StudyFileError, match="must be the only one of its name"):
        load_study(write(tmp_path, edges=["O_K", "O_K"]))
    assert load_study(write(tmp_path, edges=["Fe_L3"])).edge.name == "Fe_L3"


def test_what_lies_between_edges_is_left_out_of_a_figure():
    figure = new_figure()
    axes = figure.subplots()
    bands = np.concatenate([np.arange(525.5, 555.0), np.arange(700.5, 730.0)])
    axes.plot(bands, bands)
    leave_out_gaps(axes, bands)
    low, at_end, at_start, high = axes.transData.transform([(x, 0.0) for x in (525.0, 555.0, 700.0, 730.0)])[:, 0]
    assert at_end - low == pytest.approx(high - at_start)
    assert at_start - at_end == pytest.approx((high - low) * 4.0 / 64.0)
    assert "710" in [label.get_text() for label in axes.get_xticklabels()]
    uneven = np.arange(0.0, 30.0, 0.9) + 0.1 * (np.arange(34) % 2)  # bands of three and of four channels
    assert len(spans(525.0 + uneven)) == 1
    assert spans([530.0]) == [(530.0, 530.0)]
    single = figure.add_subplot()
    leave_out_gaps(single, bands[:30])
    assert single.get_xscale() == "linear"
