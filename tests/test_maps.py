import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from eelsflow.edges import SHIPPED
from eelsflow.energy import EnergyAxis, side_by_side
from eelsflow.errors import EdgeOutOfRangeError, UnusableModelError
from eelsflow.executors import LoopExecutor
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import open_dataset, write_spectrum_image
from eelsflow.maps import Map, check_model, classify, classify_file, find_model, map_product, register_model
from eelsflow.maps.pixels import on_axis
from eelsflow.maps.write import _file_names
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.simulator import PRESETS, simulate_acquisition, simulate_directory
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.spectrum_image import build_spectrum_image
from eelsflow.store import Store, read_json, write_json
from eelsflow.study.config import load_study
from eelsflow.study.run import run_study
from eelsflow.study.stages import Place


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A small study over six simulated acquisitions, with its model."""
    directory = tmp_path_factory.mktemp("study")
    axis = AxisParameters(start=470.0, n_channels=520)  # a quarter of the detector, for speed
    preset = PRESETS["paper"].model_copy(update={"axis": axis})
    simulate_directory(directory, n_acquisitions=6, seed=3, shape=(24, 24), preset=preset)
    content = {
        "name": "cubes",
        "edge": "O_K",
        "classes": ["FeO", "Fe3O4"],
        "data": {"manifest": "manifest.csv"},
        "models": ["svm-linear"],
        "split": {"by": ["group", "pixel"], "folds": 3, "seeds": 1},
        "grids": "small",
        "robustness": {"shift_ev": [-5, 5, 5], "noise_sigma": [0, 0.3, 0.15]},
    }
    (directory / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EELSFLOW_HOME", str(directory / "home"))
        patch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
        place = Place(Store(directory / "store"), LoopExecutor())
        run_study(load_study(directory / "study.yaml"), directory / "results", place=place)
    return directory / "results"


def acquisition(results: Path, kind: str) -> Path:
    return next(path for path in sorted(results.parent.glob(f"*{kind}.zarr")) if "truth" not in path.name)


@pytest.mark.slow
def test_map_has_a_class_for_every_specimen_pixel_and_a_blank_vacuum(results, tmp_path):
    path = acquisition(results, "FeO")
    summary = classify_file(path, model=results, out=tmp_path)
    folder = tmp_path / path.stem
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert sum(found["pixels"] for found in summary["classes"].values()) + summary["background_pixels"] == 24 * 24
    mapped = open_dataset(folder / "map.zarr")
    vacuum = mapped["class_index"].values == -1
    assert vacuum.sum() == summary["background_pixels"]
    probability = mapped["probability"].values
    assert np.isnan(probability[vacuum]).all()
    assert np.allclose(probability[~vacuum].sum(axis=-1), 1, atol=1e-5)
    assert np.array_equal(tifffile.imread(folder / "class.tif"), mapped["class_index"].values)
    assert not [text for text in summary["warnings"] if "unlike the training data" in text]


@pytest.mark.slow
def test_a_study_shows_maps_by_models_that_never_saw_the_field(results):
    evidence = read_json(results / "results.json")["map_evidence"]
    assert any("core-shell" in entry["acquisition"] for entry in evidence)
    for entry in evidence:
        made_by = read_json(results / entry["map"] / "summary.json")["model"]
        assert made_by["split"] == "group"
        assert entry["held_out"]
        assert (results / entry["truth"]).is_file()
        assert entry["acquisition"] not in made_by["groups"]


@pytest.mark.slow
def test_two_files_of_one_name_do_not_overwrite_each_other(results, tmp_path):
    for number, kind in enumerate(("000-FeO", "001-Fe3O4")):
        copy = tmp_path / str(number) / "scan.zarr"
        copy.parent.mkdir()
        copy.symlink_to(acquisition(results, kind))
        classify_file(copy, model=results, out=tmp_path / "maps")
    folders = list((tmp_path / "maps").iterdir())
    assert len(folders) == 2
    assert len({json.loads((folder / "summary.json").read_text())["file_sha256"] for folder in folders}) == 2


@pytest.mark.slow
@pytest.mark.real
def test_iron_map_of_a_titanium_and_lanthanum_oxide_carries_a_warning(results, tmp_path, real_data):
    summary = classify_file(real_data / "oxide_spectrum_image.dm3", model=results, out=tmp_path / "maps")
    assert "unlike the training data" in summary["warnings"][0]


@pytest.mark.slow
def test_models_are_found_by_directory_name_and_default(results, monkeypatch, tmp_path):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path))
    assert find_model(str(results)) == results / "model"
    register_model(results / "model", name="cubes", registered="2026-01-01T00:00:00+00:00")
    assert find_model("cubes") == find_model("default", edge="O_K") == results / "model"


def test_a_pixel_with_nan_is_marked_on_the_map_and_no_other_changes(saved_model, tmp_path):
    parameters = PRESETS["paper"].model_copy(
        update={"shape": (24, 24), "axis": AxisParameters(start=470.0, n_channels=480)}
    )
    image = simulate_acquisition(parameters, 3).image
    damaged = image.copy(data=image.values.astype(np.float32))
    damaged[12, 11, 100] = np.nan
    steps = resolve_preset([{"step": "background", "shrink": False}, "rebin"])
    bundle, maps, summaries = ModelBundle.load(saved_model), [], []
    for name, one in (("good", image), ("damaged", damaged)):
        folder = tmp_path / name
        folder.mkdir()
        prepare_blocks(
            write_spectrum_image(one, folder / "raw.zarr"), folder / "out.zarr", edge=SHIPPED["O_K"], preset=steps
        )
        summaries.append(map_product(folder / "out.zarr", bundle, folder, title=name))
        maps.append(open_dataset(folder / "map.zarr"))
    lost = np.zeros((24, 24), dtype=bool)
    lost[12, 11] = True
    good, marked = (found["class_index"].values for found in maps)
    assert good[12, 11] >= 0
    assert np.array_equal(marked, np.where(lost, -1, good))
    assert np.array_equal(maps[1]["lost"], lost)
    assert not maps[1]["unknown"].values[lost].any()
    assert np.isnan(maps[1]["probability"].values[lost]).all()
    assert [summary["lost_pixels"]["nan"] for summary in summaries] == [0, 1]
    assert [summary["background_pixels"] for summary in summaries] == [0, 0]
    assert ["1 of 576 pixels is lost" in " ".join(summary["warnings"]) for summary in summaries] == [False, True]


@pytest.mark.parametrize(
    ("damage", "edge", "message"),
    [
        ("model.json", "O_K", r"no model is at"),
        ("classifier/model.skops", "O_K", r"the model in .* is damaged"),
        ("references.npz", "O_K", r"the model in .* is damaged"),
        (None, "Mn_L3", r"is for the edge O_K, and Mn_L3 is asked for"),
    ],
)
def test_model_is_checked_whole_before_files_are(saved_model, tmp_path, damage, edge, message):
    model = shutil.copytree(saved_model, tmp_path / "model")
    assert check_model(str(model), edge="O_K") == (model, SHIPPED["O_K"])
    if damage:
        (model / damage).unlink()
    with pytest.raises(UnusableModelError, match=message):
        check_model(str(model), edge=edge)


def test_relative_path_of_a_registered_model_holds_from_another_working_directory(saved_model, tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(saved_model.parent)
    register_model(Path(saved_model.name), name="cubes", registered="2026-01-01T00:00:00+00:00")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert check_model("cubes", edge="O_K")[0] == saved_model
    assert find_model("default", edge="O_K") == saved_model


def test_default_model_is_the_champion_or_newest_of_an_edge_that_the_file_shows(saved_model, tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    for number, edge in enumerate(("O_K", "O_K", "Fe_L3", "Mn_L3")):
        model = shutil.copytree(saved_model, tmp_path / f"{number}-{edge}")
        description = read_json(model / "model.json") | {"edge": SHIPPED[edge].model_dump(mode="json")}
        write_json(model / "model.json", description)
        register_model(model, name=edge, registered=f"2026-01-0{number + 1}T00:00:00+00:00")
    oxygen, both = EnergyAxis(480.0, 0.1, 1000), EnergyAxis(480.0, 0.2, 1800)
    assert find_model("default").name == "3-Mn_L3"
    assert find_model("default", axis=oxygen).name == "1-O_K"
    assert find_model("default", axis=both).name == "3-Mn_L3"
    register_model(tmp_path / "0-O_K", name="O_K", registered="2026-01-01T00:00:00+00:00", champion=True)
    assert find_model("default", axis=oxygen).name == find_model("default", axis=both).name == "0-O_K"
    with pytest.raises(UnusableModelError, match=r"models are for Fe_L3, Mn_L3, O_K, and the energy axis 100.0.*none"):
        find_model("default", axis=EnergyAxis(100.0, 0.1, 1000))


def test_default_model_for_a_file_is_chosen_by_its_axis(saved_model, tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    newest = shutil.copytree(saved_model, tmp_path / "newest")
    description = read_json(newest / "model.json") | {"edge": SHIPPED["Fe_L3"].model_dump(mode="json")}
    write_json(newest / "model.json", description)
    register_model(saved_model, name="oxygen", registered="2026-01-01T00:00:00+00:00")
    register_model(newest, name="iron", registered="2026-01-02T00:00:00+00:00")
    axis = AxisParameters(start=470.0, n_channels=520)
    parameters = PRESETS["paper"].model_copy(update={"shape": (16, 16), "axis": axis})
    write_spectrum_image(simulate_acquisition(parameters, 3).image, tmp_path / "cube.zarr")
    summary = classify_file(tmp_path / "cube.zarr", model="default", out=tmp_path / "maps")
    assert summary["model"]["edge"] == "O_K"


@pytest.mark.slow
def test_file_without_the_models_edge_is_refused(results, tmp_path):
    image = build_spectrum_image(np.ones((4, 4, 100)), 600 + np.arange(100.0))
    path = write_spectrum_image(image, tmp_path / "late.zarr")
    with pytest.raises(EdgeOutOfRangeError, match=r"late\.zarr.*outside the energy axis"):
        classify_file(path, model=results, out=tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(("preset", "warned"), [("none", True), ("paper", False)])
def test_map_by_a_model_that_does_not_normalise_says_that_the_scale_may_decide(saved_model, tmp_path, preset, warned):
    axis = AxisParameters(start=470.0, n_channels=520)
    simulated = PRESETS["paper"].model_copy(update={"axis": axis})
    simulate_directory(tmp_path, n_acquisitions=1, seed=3, shape=(8, 8), preset=simulated)
    [path] = [path for path in tmp_path.glob("*.zarr") if "truth" not in path.name]
    bundle = replace(ModelBundle.load(saved_model), preset=resolve_preset(preset))
    (tmp_path / "model").mkdir()
    bundle.save(tmp_path / "model")
    summary = classify_file(path, model=tmp_path / "model", out=tmp_path / "maps")
    assert any("does not normalise" in warning for warning in summary["warnings"]) == warned


@pytest.fixture(scope="module")
def manganese(real_data, tmp_path_factory):
    """The shipped study of manganese in a small form, with the machine on shifted copies alone, and fewer of them."""
    directory = tmp_path_factory.mktemp("manganese")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EELSFLOW_DATA", str(real_data))
        patch.setenv("EELSFLOW_HOME", str(directory / "home"))
        patch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
        study = load_study(Path(__file__).parents[1] / "deployments" / "studies" / "manganese.yaml")
        (model,) = (model for model in study.models if model.name == "svm-rbf-copies")
        assert model.augment is not None
        chosen = (model.model_copy(update={"augment": model.augment.model_copy(update={"copies": 4})}),)
        split = study.split.model_copy(update={"seeds": 1, "folds": 3})
        small = study.model_copy(update={"models": chosen, "split": split, "grids": "small"})
        place = Place(Store(directory / "store"), LoopExecutor())
        run_study(small, directory / "results", place=place)
    return directory / "results"


@pytest.mark.slow
@pytest.mark.real
def test_valences_of_other_laboratories_are_told_on_one_axis_and_each_aligned(manganese):
    rows = {row["test"]: row for row in json.loads((manganese / "results.json").read_text())["outside"]}
    constant, aligned, wide = (
        rows[name] for name in ("literature, one constant", "literature, each by its L3", "wide Mn2+")
    )
    assert constant["of"] == aligned["of"] == 31
    assert aligned["right"] >= 30
    assert constant["right"] >= 28
    assert min(right / of for right, of in aligned["by_class"].values()) > 0.85
    assert {name: sum(found.values()) for name, found in aligned["apart"].items()} == {
        "mixed": 1, "mixed23": 6, "mixed34": 3,
    }  # fmt: skip
    assert {"Mn2+"} != set().union(*aligned["apart"].values())
    # true data enter at both ends where the spectra are wide
    within = [point["right"] / wide["of"] for point in wide["curve"] if abs(point["shift_ev"]) <= 4]
    assert min(within) > 0.95
    assert max(point["held_ev"] for point in wide["curve"]) == 0.0
    assert constant["moved_ev"][0] == constant["moved_ev"][1] == pytest.approx(-2.55, abs=0.1)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("dispersion", [0.5, 0.53])
def test_manganite_is_mapped_as_trivalent_and_its_wrong_dispersion_is_noticed(
    manganese, real_data, tmp_path, dispersion
):
    """La0.7Sr0.3MnO3 has Mn3.3+; the file's 0.5 eV per channel should be 0.53, by the distance of its edges."""
    image = read_spectrum_image(real_data / "lsmo_linescan.hspy")
    energy_loss = 634.5 + (image["energy_loss"].values - 634.5) * dispersion / 0.5
    path = write_spectrum_image(build_spectrum_image(image.values, energy_loss), tmp_path / "lsmo.zarr")

    summary = classify_file(path, model=manganese, out=tmp_path / "maps")

    assert (summary["pixels"], summary["background_pixels"]) == (40, 0)
    assert summary["energy_offset"]["value"] == pytest.approx(7.5, abs=0.15)
    assert summary["classes"]["Mn2+"]["pixels"] == 0
    assert summary["classes"]["Mn3+"]["pixels"] > 30
    unlike = [warning for warning in summary["warnings"] if "unlike the training data" in warning]
    assert bool(unlike) == (dispersion == 0.5)
    assert not any("normalise" in warning for warning in summary["warnings"])


def test_classes_whose_names_make_one_file_name_have_files_of_their_own():
    names = _file_names(["Fe²⁺ a/b", "Fe²⁺ a b", "磁鉄鉱", "赤鉄鉱", "FeO"])
    assert len(set(names)) == 5
    assert names[2:] == ["fraction-磁鉄鉱", "fraction-赤鉄鉱", "fraction-FeO"]


def test_a_map_saved_into_the_folder_of_another_leaves_nothing_of_it(saved_model, tmp_path):
    image = simulate_acquisition(PRESETS["paper"].model_copy(update={"shape": (16, 16)}), 3).image
    found = classify(image, model=saved_model)
    found.save(tmp_path)
    (tmp_path / "fraction-other.tif").touch()
    assert (tmp_path / "map.html").exists()
    Map.load(tmp_path).save(tmp_path)  # it has no spectra any more
    assert not (tmp_path / "map.html").exists()
    assert not (tmp_path / "fraction-other.tif").exists()
    assert "map.html" not in (tmp_path / "index.html").read_text()


def test_spectra_on_the_axis_of_a_model_are_taken_as_they_are_and_others_are_resampled_edge_by_edge():
    axis = side_by_side([EnergyAxis(513.0, 0.1, 50), EnergyAxis(688.0, 0.1, 60)])
    wide = np.random.default_rng(5).normal(size=(3, axis.size)).astype(np.float32)
    assert on_axis(wide, axis.values + 1e-12, axis) is wide  # as energies are that were written and read
    ramp = np.concatenate([np.linspace(0, 1, 50), np.linspace(5, 3, 60)]).astype(np.float32)[None]
    moved = on_axis(ramp, axis.values + 0.05, axis)
    between = ramp[0] + np.gradient(ramp[0]) * -0.5
    inside = np.r_[1:49, 51:109]
    np.testing.assert_allclose(moved[0, inside], between[inside], atol=1e-5)
