import contextlib
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from eelsflow.edges import SHIPPED, join_edges
from eelsflow.errors import DataSetError, EdgeOutOfRangeError, OutputPathError
from eelsflow.executors import LoopExecutor, ThreadExecutor
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.preprocess.shapes import to_shapes
from eelsflow.simulator import PRESETS, simulate_directory
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.store import Store
from eelsflow.study.config import load_study
from eelsflow.study.results import _study_warnings
from eelsflow.study.run import _replace_outputs, run_study
from eelsflow.study.stages import Place


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def no_figures(monkeypatch):
    """Leave the report out; drawing takes longer than the study."""
    monkeypatch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)


@pytest.fixture
def figures_not_rendered(monkeypatch):
    """Write the report, with its figures made but not rendered, which takes most of the time."""
    monkeypatch.setattr("eelsflow.report.gallery.render", lambda figure, format: b"not drawn")


def run(study_file, out, *, store, executor=None):
    """Run a study; return its results and the titles of the steps whose result was not there yet."""
    place = Place(store=Store(store), executor=executor or LoopExecutor())
    before = {entry.name for entry in (store / "entries").glob("*/*")}
    results = run_study(load_study(study_file), out, place=place)
    computed = {entry.name for entry in (store / "entries").glob("*/*")} - before
    return results, computed


def scores(results):
    names = ("model", "preprocess", "split", "best_params", "accuracy", "translation", "noise")
    return [{name: row[name] for name in names} for row in results["models"]]


def test_table_study_writes_every_result(table_study, tmp_path):
    results, _ = run(table_study(), tmp_path / "out", store=tmp_path / "store")
    out = tmp_path / "out"
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert {(row["model"], row["split"]) for row in results["models"]} == {
        (model, split) for model in ("svm-linear", "svm-rbf", "svm-sgd") for split in ("group", "pixel")
    }
    for row in results["models"]:
        assert row["accuracy"]["low"] <= row["accuracy"]["mean"] <= row["accuracy"]["high"]
        assert row["seeds"] == 2
    # two peaks 2.5 eV apart at this noise are told apart, and a shift of up to 5 eV breaks that
    rbf = next(row for row in results["models"] if row["model"] == "svm-rbf" and row["split"] == "group")
    assert rbf["accuracy"]["mean"] > 0.95
    assert rbf["translation"]["mean"] < rbf["accuracy"]["mean"] - 0.05
    robustness = xr.open_zarr(out / "robustness.zarr", consolidated=False)
    assert robustness["accuracy"].dims == ("model", "preprocess", "split", "perturbation", "amplitude", "seed")
    clean = robustness["accuracy"].sel(perturbation="shift_ev", amplitude=2, model="svm-rbf", split="group")
    assert float(robustness["amplitude_value"].sel(perturbation="shift_ev", amplitude=2)) == 0
    assert np.allclose(float(clean.mean()), rbf["accuracy"]["mean"])
    search = xr.open_zarr(out / "search-svm-rbf.zarr", consolidated=False)
    assert {"preprocess", "split", "seed", "C", "gamma", "fold"} == set(search["accuracy"].dims)
    for name in ("report.html", "study.yaml", "provenance.json", "model/model.json"):
        assert (out / name).is_file()
    explanations = json.loads((out / "evidence" / "explanations.json").read_text())
    assert [(entry["model"], entry["split"]) for entry in explanations] == [
        (model, "group") for model in ("svm-linear", "svm-rbf", "svm-sgd")
    ]
    for entry in explanations:
        explained = entry["explanation"]
        assert explained["method"] == ("occlusion" if entry["model"] == "svm-rbf" else "exact")
        assert np.allclose(np.mean(explained["by_model"], axis=0), explained["contribution"], rtol=1e-4, atol=1e-4)
        assert len(explained["by_model"]) == 2  # splits
        assert (out / "figures" / f"energies-{entry['model']}.png").is_file()
        assert "Which energies decide" in (out / "passports" / f"{entry['model']}.html").read_text()


@pytest.mark.usefixtures("no_figures")
def test_model_that_leaves_a_study_is_fitted_on_all_labelled_spectra(table_study, labelled_table, tmp_path):
    results, _ = run(table_study(models=["svm-rbf"]), tmp_path / "out", store=tmp_path / "store")
    bundle = ModelBundle.load(tmp_path / "out" / "model")
    assert bundle.provenance["split"] == "all"
    assert bundle.provenance["n_train"] == results["n_spectra"] == 144
    with np.load(labelled_table) as table:
        predicted, probability = bundle.predict(table["spectra"].astype(np.float32))
        shapes = to_shapes(table["spectra"], None, bundle.transform.axis, bundle.edge)
        assert (predicted == table["label"]).mean() > 0.95
    assert np.allclose(probability.sum(axis=1), 1)
    assert (bundle.references.distance(shapes) > bundle.references.pixel_limit).mean() < 0.1


@pytest.mark.usefixtures("figures_not_rendered")
def test_table_is_taken_as_it_is_without_a_window_before_the_edge_and_ends_up_to_an_ev_inside_the_other(
    table_study, tmp_path
):
    """The table spans 690 to 739.5 eV."""
    edge = {"name": "Mn_placed", "reference_energy": 710.0}

    def study(elnes_window, pre_edge_window=None):
        windows = {"elnes_window": elnes_window} | ({"pre_edge_window": pre_edge_window} if pre_edge_window else {})
        split = {"by": "group", "folds": 3, "seeds": 1}
        return table_study(edge=edge | windows, preprocess="none", models=["svm-sgd", "mlls"], split=split)

    def results_of(study_file, out):
        return run(study_file, tmp_path / out, store=tmp_path / "store")[0]

    clipped = results_of(study([700.0, 740.6]), "clipped")
    assert scores(clipped) == scores(results_of(study([700.0, 740.6], [690.0, 705.0]), "overlapping"))
    assert scores(clipped) == scores(results_of(study([700.0, 739.75]), "covered"))
    assert "background fitted on" not in (tmp_path / "overlapping" / "report.html").read_text()
    with pytest.raises(EdgeOutOfRangeError, match=r"ELNES window \(700.0, 740.8\) eV for Mn_placed lies outside"):
        results_of(study([700.0, 740.8]), "beyond")


@pytest.mark.usefixtures("no_figures")
def test_resolved_study_file_gives_the_same_results(table_study, tmp_path):
    first, _ = run(table_study(), tmp_path / "one", store=tmp_path / "store")
    again, computed = run(tmp_path / "one" / "study.yaml", tmp_path / "two", store=tmp_path / "store")
    assert scores(first) == scores(again)
    assert not computed


@pytest.mark.usefixtures("no_figures")
def test_second_run_computes_nothing_and_a_changed_parameter_only_what_depends_on_it(table_study, tmp_path):
    run(table_study(), tmp_path / "out", store=tmp_path / "store")
    _, computed = run(table_study(), tmp_path / "out", store=tmp_path / "store")
    assert not computed
    # other amplitudes: the assessments alone (3 models x 2 splits x 2 seeds)
    changed = table_study(robustness={"shift_ev": [-2, 2, 2], "noise_sigma": [0, 0.3, 0.15]})
    _, computed = run(changed, tmp_path / "out", store=tmp_path / "store")
    assert len(computed) == 12


@pytest.mark.usefixtures("no_figures")
def test_it_is_told_how_far_a_search_is(table_study, tmp_path):
    told = []
    split = {"by": "pixel", "folds": 3, "seeds": 1}
    study = load_study(table_study(models=["svm-rbf"], split=split))
    place = Place(store=Store(tmp_path / "store"), executor=LoopExecutor())
    run_study(study, tmp_path / "out", place=place, on_step=lambda *progress: told.append(progress))
    title = "search and fit svm-rbf (none, pixel, seed 0)"
    first = told.index((title, 0, 1))
    parts = [what for what, number, _ in told[first + 1 :] if number is None]
    n_kernels = len(study.models[0].resolve_grid("small")["gamma"])
    assert parts[-1].startswith("search and fit svm-rbf (none, all, seed 0): ")
    assert f"{title}: {2 * n_kernels} of {2 * n_kernels}" in parts  # few kernels: two jobs each
    assert f"{title}: 1 of {2 * n_kernels}" in parts


@pytest.mark.usefixtures("no_figures")
def test_threads_give_the_numbers_of_the_loop(table_study, tmp_path):
    loop, _ = run(table_study(), tmp_path / "loop", store=tmp_path / "store-1")
    threads, _ = run(table_study(), tmp_path / "threads", store=tmp_path / "store-2", executor=ThreadExecutor(2))
    assert scores(loop) == scores(threads)


@pytest.mark.usefixtures("no_figures")
def test_augmented_spectra_stand_up_better_to_shifts(table_study, tmp_path):
    models = [
        {"name": "plain", "base": "svm-rbf"},
        {"name": "augmented", "base": "svm-rbf", "augment": {"shift_ev": 5, "copies": 3}},
    ]
    study = table_study(models=models, split={"by": "group", "folds": 3, "seeds": 1})
    results, _ = run(study, tmp_path / "out", store=tmp_path / "store")
    plain, augmented = ({row["model"]: row for row in results["models"]}[name] for name in ("plain", "augmented"))
    assert augmented["translation"]["mean"] > plain["translation"]["mean"]


@pytest.mark.usefixtures("no_figures")
def test_a_grid_is_searched_on_the_first_seed_and_the_others_are_fitted_with_its_choice(table_study, tmp_path):
    split = {"by": "pixel", "folds": 3, "seeds": 3}
    every, _ = run(table_study(split=split), tmp_path / "every", store=tmp_path / "store")
    first, computed = run(table_study(split={**split, "search": "first"}), tmp_path / "first", store=tmp_path / "store")
    assert computed
    for row, searched in zip(first["models"], every["models"], strict=True):
        has_grid = row["model"] != "svm-sgd"
        assert (row["searches"], searched["searches"]) == ((1, 3) if has_grid else (0, 0))
        assert all(params == searched["best_params"] for params in row["best_params_by_seed"])
    final = ModelBundle.load(tmp_path / "first" / "model")
    chosen = next(row for row in first["models"] if row["model"] == final.name)
    assert final.classifier.params == chosen["best_params"]
    assert final.provenance["split"] == "all"


NETWORK_OF_SOMEBODY = """
from keras import Input, Sequential, layers

def network(n_channels, n_classes, units=8):
    last = layers.Dense(n_classes, activation="softmax")
    return Sequential([Input((n_channels,)), layers.Dense(units, activation="gelu"), last])
"""


@pytest.mark.usefixtures("no_figures")
def test_models_that_look_for_their_spectra_stand_shifts_and_come_back_from_the_store(
    table_study, tmp_path, monkeypatch
):
    models = [
        "svm-sgd",
        {"name": "aligned", "base": "svm-sgd", "align": "spectrum"},
        {"name": "forest-aligned", "base": "forest", "params": {"n_estimators": 20}, "align": "marginal"},
    ]
    (tmp_path / "somebodys.py").write_text(NETWORK_OF_SOMEBODY)
    monkeypatch.syspath_prepend(tmp_path)
    models.append({"name": "own", "base": "keras:somebodys.network", "params": {"epochs": 2, "units": 4}})
    study = table_study(models=models, split={"by": "group", "folds": 3, "seeds": 1})
    results, _ = run(study, tmp_path / "out", store=tmp_path / "store")
    rows = {row["model"]: row for row in results["models"]}
    assert rows["own"]["best_params"]["units"] == 4
    (drawn,) = json.loads(next((tmp_path / "out").rglob("architectures.json")).read_text())
    assert [layer["type"] for layer in drawn["layers"]] == ["Dense", "Dense"]
    assert rows["aligned"]["translation"]["mean"] > rows["svm-sgd"]["translation"]["mean"]
    assert results["shortcuts"][0]["chance"] == 0.5
    assert len(results["comparisons"]) == 6
    curves = xr.open_zarr(tmp_path / "out" / "robustness.zarr", consolidated=False).load()
    known = np.isfinite(curves["accuracy"].mean("seed").values)
    assert known.any()
    mean = curves["accuracy"].mean("seed").values[known]
    low, high = (curves[name].values[known] for name in ("low", "high"))
    assert (low <= mean + 1e-9).all()
    assert (mean <= high + 1e-9).all()
    assert all(row["difference"] >= 0 for row in results["comparisons"])
    assert rows["forest-aligned"]["base"] == "sklearn:sklearn.ensemble.RandomForestClassifier"
    loaded = ModelBundle.load(tmp_path / "out" / "model")
    assert (loaded.registration is None) == (results["final_model"]["model"] == "svm-sgd")


@pytest.mark.usefixtures("no_figures")
def test_spectra_of_other_laboratories_are_judged_by_models_of_the_whole_table(table_study, labelled_table, tmp_path):
    with np.load(labelled_table) as table:
        energy, label = table["energy_loss"], table["label"]
        chosen = [np.flatnonzero(label == name)[:6] for name in np.unique(label)]
        rows = np.concatenate(chosen)
        ranges = np.tile(energy[[0, -1]] - 68.0, (rows.size + 2, 1))
        given = np.concatenate([label[rows], ["of both", "of both"]])
        spectra = np.concatenate([table["spectra"][rows], table["spectra"][:2]])
    np.savez(tmp_path / "theirs.npz", X=spectra, energy_min_max=ranges, label=given)
    outside = [
        {
            "name": name,
            "spectra": "theirs.npz",
            "labels": {kind: kind for kind in np.unique(label).tolist()},
            "place": where,
        }
        for name, where in (("by maximum", "maximum"), ("as recorded", "recorded"))
    ]
    outside[0]["further_ev"] = [-4, 4, 4]
    models = ["svm-sgd", {"name": "linear", "base": "svm-linear", "grid": {"C": [0.1, 1.0]}}]
    edge = {"name": "moved", "reference_energy": 642.0, "elnes_window": [632.0, 662.0]}
    study = table_study(
        models=models, outside=outside, edge=edge, split={"by": "pixel", "folds": 3, "seeds": 2},
        data={"spectra": str(labelled_table), "move_ev": -68.0},
    )  # fmt: skip
    results, computed = run(study, tmp_path / "out", store=tmp_path / "store")
    rows_of = {(row["test"], row["model"]): row for row in results["outside"]}
    assert set(rows_of) == {(name, model) for name in ("by maximum", "as recorded") for model in ("svm-sgd", "linear")}
    recorded = rows_of["as recorded", "linear"]
    assert recorded["of"] == 6 * len(np.unique(label))
    assert (
        recorded["right"] > 0.9 * recorded["of"]
    )  # these spectra are the table's own, and its axis was moved as theirs
    assert sum(recorded["apart"]["of both"].values()) == 2
    assert sum(right for right, _ in recorded["by_class"].values()) == recorded["right"]
    curve = rows_of["by maximum", "linear"]["curve"]
    assert [point["shift_ev"] for point in curve] == [-4.0, 0.0, 4.0]
    assert curve[1]["right"] == rows_of["by maximum", "linear"]["right"]
    again, computed = run(study, tmp_path / "out", store=tmp_path / "store")
    assert not computed
    assert again["outside"] == results["outside"]


@pytest.mark.usefixtures("no_figures")
def test_fields_kept_for_maps_give_no_spectrum_and_are_scored_under_a_random_split(manifest_study, tmp_path):
    split = {"by": "pixel", "folds": 2, "seeds": 1}
    models = ["svm-sgd", {"name": "aligned", "base": "svm-sgd", "align": "marginal"}]
    usual, _ = run(manifest_study(split=split, models=models), tmp_path / "usual", store=tmp_path / "store")
    assert usual["maps"] == []
    keeping = {**split, "held_out_fields": 1}
    kept, _ = run(manifest_study(split=keeping, models=models), tmp_path / "kept", store=tmp_path / "store")
    assert kept["n_spectra"] < usual["n_spectra"]
    for row in kept["maps"]:
        assert (row["n_mixed"] + row["n_pure"], row["acquisitions"]) == (1, 1)
    few = manifest_study(split={**keeping, "spectra": 100}, models=models)
    some, _ = run(few, tmp_path / "some", store=tmp_path / "store")
    assert some["n_spectra"] == 100
    with pytest.raises(DataSetError, match="9 fields of two phases were to be kept"):
        run(manifest_study(split={**split, "held_out_fields": 9}), tmp_path / "no", store=tmp_path / "store")


def test_labels_that_noise_alone_tells_are_in_the_headline(table_study, labelled_table, tmp_path, figures_not_rendered):
    split = {"by": "group", "folds": 3, "seeds": 3}
    plain, _ = run(table_study(split=split, models=["svm-sgd"]), tmp_path / "plain", store=tmp_path / "store")
    (row,) = plain["shortcuts"]
    assert not row["told"]
    assert plain["models"][0]["equal_noise"] is None
    with np.load(labelled_table) as stored:
        table = dict(stored)
    unlike = tmp_path / "unlike.npz"
    noisier = table["label"] == table["label"][0]
    noise = np.random.default_rng(0).normal(0, np.where(noisier, 0.2, 0.01)[:, None], table["spectra"].shape)
    np.savez(unlike, **{**table, "spectra": table["spectra"] + noise})
    study = table_study(split=split, models=["svm-sgd"], data={"spectra": str(unlike)})
    unequal, _ = run(study, tmp_path / "unequal", store=tmp_path / "store")
    (row,) = unequal["shortcuts"]
    assert row["told"]
    assert row["accuracy"]["mean"] > 0.9
    assert "can be told without chemistry" in unequal["warnings"][0]
    page = (tmp_path / "unequal" / "report.html").read_text()
    assert "of the labels told without any chemistry" in page
    assert "What else could tell the classes" in page


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_models_renamed_in_the_study_file_run_through_to_the_results_and_nothing_is_computed(table_study, tmp_path):
    def study(names):
        models = [{"name": name, "base": base} for name, base in names.items()]
        split = {"by": "group", "folds": 3, "seeds": 1}
        return table_study(models=models, split=split, training={"epochs": 2, "batch_size": 16})

    run(study({"svm-linear": "svm-linear", "fcnn-1": "fcnn-1"}), tmp_path / "first", store=tmp_path / "store")
    names = {"Mine_v2.0": "svm-linear", "twin": "svm-linear", "My-net+": "fcnn-1"}
    results, computed = run(study(names), tmp_path / "out", store=tmp_path / "store")
    out = tmp_path / "out"
    assert not computed
    assert {row["model"]: row["base"] for row in results["models"]} == names
    mine, twin = ({**row, "model": ""} for row in results["models"][:2])
    assert mine == twin  # equal but for the name
    assert sorted(path.name for path in out.glob("search-*")) == ["search-Mine_v2.0.zarr", "search-twin.zarr"]
    for name in ("histories", "architectures"):
        assert {entry["model"] for entry in json.loads((out / "evidence" / f"{name}.json").read_text())} == {"My-net+"}
    chosen = ModelBundle.load(out / "model")
    assert (chosen.name, chosen.classifier.base) == ("Mine_v2.0", "svm-linear")


def test_results_say_what_the_order_of_the_paper_costs():
    names = ("paper", "recommended")
    for chosen in (names, names[1:]):
        study = SimpleNamespace(
            preprocess=[resolve_preset(name) for name in chosen], edge=SHIPPED["O_K"], dispersion_error=None
        )
        plan = SimpleNamespace(acquisitions=("one",), study=study)
        warnings = _study_warnings(plan, [{"n_mixed": 1, "one_class": 0}], [], padded=False)
        assert ["hardly any spike" in warning for warning in warnings] == [True] * ("paper" in chosen)


@pytest.mark.parametrize(
    ("edges", "n", "known", "warned"),
    [(2, 19, None, True), (2, 20, None, False), (1, 6, None, False), (2, 6, 5e-4, False)],
)
def test_few_acquisitions_of_several_edges_are_said_to_be_few(edges, n, known, warned):
    edge = join_edges([SHIPPED["O_K"], SHIPPED["Fe_L3"]][:edges])
    study = SimpleNamespace(preprocess=[], edge=edge, dispersion_error=known)
    plan = SimpleNamespace(acquisitions=("one",) * n, study=study)
    warnings = _study_warnings(plan, [{"n_mixed": 1, "one_class": 0}], [], padded=False)
    assert any("tell little of O_K and Fe_L3 together" in warning for warning in warnings) == warned


@pytest.fixture
def acquisition_study(tmp_path):
    """Write a study over four small simulated acquisitions, with the rows of the manifest in any order."""
    axis = AxisParameters(start=485.0, n_channels=400)
    preset = PRESETS["paper"].model_copy(update={"axis": axis})
    for directory, seed in (("acquisitions", 3), ("others", 4)):
        simulate_directory(tmp_path / directory, n_acquisitions=4, seed=seed, shape=(16, 16), preset=preset)
    manifest = tmp_path / "acquisitions" / "manifest.csv"
    header, *rows = manifest.read_text().splitlines()

    def write(*, reverse=False):
        manifest.write_text("\n".join([header, *(rows[::-1] if reverse else rows)]) + "\n")
        content = {
            "name": "cubes",
            "edge": "O_K",
            "classes": ["FeO", "Fe3O4"],
            "data": {"manifest": str(manifest)},
            "preprocess": {"name": "nominal", "steps": ["vacuum_mask", "background", "rebin", "normalize"]},
            "models": ["svm-sgd"],
            "split": {"by": ["group", "pixel"], "folds": 2, "seeds": 1},
            "robustness": {"shift_ev": [-5, 5, 5], "noise_sigma": [0, 0.3, 0.15]},
        }
        study_file = tmp_path / "study.yaml"
        study_file.write_text(json.dumps(content))  # JSON is YAML
        return study_file

    return write


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_order_of_the_manifests_rows_does_not_matter(acquisition_study, tmp_path):
    first, computed = run(acquisition_study(), tmp_path / "one", store=tmp_path / "store-1")
    again, same = run(acquisition_study(reverse=True), tmp_path / "two", store=tmp_path / "store-2")
    assert scores(first) == scores(again)
    assert computed == same
    (dataset,) = (path.parent for path in (tmp_path / "store-1").glob("entries/*/*/intensity.npy"))
    for array in dataset.glob("*.npy"):
        other = tmp_path / "store-2" / array.relative_to(tmp_path / "store-1")
        np.testing.assert_array_equal(np.load(array), np.load(other))


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_changed_acquisition_recomputes_only_what_depends_on_it(acquisition_study, tmp_path):
    study_file = acquisition_study()
    _, computed = run(study_file, tmp_path / "out", store=tmp_path / "store")
    # 4 acquisitions, the data set, then features and model for each of two splits and of the final model, two
    # assessments, and the maps of the split that held out acquisitions
    assert len(computed) == 4 + 1 + 2 * 3 + 2 + 1
    one = sorted((tmp_path / "acquisitions").glob("*[!h].zarr"))[0]
    shutil.rmtree(one)
    shutil.copytree(tmp_path / "others" / one.name, one)
    _, computed = run(study_file, tmp_path / "out", store=tmp_path / "store")
    assert len(computed) == 1 + 1 + 2 * 3 + 2 + 1
    prepared = {path.parent.name for path in (tmp_path / "store").glob("entries/*/*/prepared.zarr")}
    assert len(prepared) == 4 + 1
    assert len(prepared & computed) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("figures_not_rendered")
def test_preset_without_an_align_step_takes_the_nominal_axis_and_is_reported(tmp_path):
    axis = AxisParameters(start=485.0, n_channels=400)
    preset = PRESETS["paper"].model_copy(update={"axis": axis})
    simulate_directory(tmp_path, n_acquisitions=2, seed=3, shape=(16, 16), preset=preset)
    content = {
        "name": "nominal",
        "edge": "O_K",
        "classes": ["FeO", "Fe3O4"],
        "data": {"manifest": "manifest.csv"},
        "preprocess": {"name": "nominal", "steps": ["vacuum_mask", "background", "rebin", "normalize"]},
        "models": ["svm-sgd"],
        "split": {"by": "pixel", "folds": 3, "seeds": 1},
        "robustness": {"shift_ev": [-5, 5, 5], "noise_sigma": [0, 0.3, 0.15]},
    }
    study_file = tmp_path / "study.yaml"
    study_file.write_text(json.dumps(content))  # JSON is YAML
    results, _ = run(study_file, tmp_path / "out", store=tmp_path / "store")
    assert [row["preprocess"] for row in results["models"]] == ["nominal"]
    for acquisition in results["acquisitions"]:
        assert acquisition["energy_offset"] == {"value": 0.0, "error": None}
    assert "<b>nominal</b>: offset +0.00 eV;" in (tmp_path / "out" / "report.html").read_text()


def test_too_few_spectra_for_the_folds_end_the_study_and_leave_no_results(table_study, tmp_path):
    study = table_study(split={"by": "pixel", "folds": 60, "seeds": 1})
    with pytest.raises(DataSetError, match="fewer than the 60 folds"):
        run(study, tmp_path / "out", store=tmp_path / "store")
    assert not (tmp_path / "out" / "results.json").exists()
    assert not list((tmp_path / "store" / "temporary").glob("*"))


@pytest.mark.usefixtures("no_figures")
def test_partly_negative_spectra_are_studied_and_spectra_without_signal_refused(table_study, labelled_table, tmp_path):
    with np.load(labelled_table) as table:
        arrays = dict(table)
    path, about = tmp_path / "mine.npz", {"models": ["svm-sgd"], "split": {"by": "pixel", "folds": 3, "seeds": 1}}
    np.savez(path, **arrays | {"spectra": arrays["spectra"] - 0.3})
    study = table_study(data={"spectra": str(path)}, **about)
    results, _ = run(study, tmp_path / "out", store=tmp_path / "store")
    assert results["models"][0]["accuracy"]["mean"] > 0.9
    np.savez(path, **arrays | {"spectra": arrays["spectra"] - 30})
    with pytest.raises(DataSetError, match=r"mine\.npz: 144 of 144 spectra show no signal"):
        run(study, tmp_path / "out", store=tmp_path / "store")


@pytest.mark.usefixtures("no_figures")
def test_interrupted_writing_leaves_the_earlier_results_whole_or_no_results(table_study, tmp_path, monkeypatch):
    def small(name):
        return table_study(name=name, models=["svm-sgd"], split={"by": "pixel", "folds": 3, "seeds": 1})

    out = tmp_path / "out"
    run(small("first"), out, store=tmp_path / "store")
    (out / "search-of-before.zarr").mkdir()
    written = {path.name for path in out.iterdir()}

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("eelsflow.study.run.build_report", interrupt)  # all but the report is written
        with pytest.raises(KeyboardInterrupt):
            run(small("second"), out, store=tmp_path / "store")
    assert {path.name for path in out.iterdir()} == written | {".unfinished"}
    assert json.loads((out / "results.json").read_text())["study"] == "first"
    ModelBundle.load(out / "model")

    run(small("second"), out, store=tmp_path / "store")
    assert {path.name for path in out.iterdir()} == written - {"search-of-before.zarr"}
    assert json.loads((out / "results.json").read_text())["study"] == "second"


@pytest.mark.parametrize("stop", range(12))
def test_results_json_stands_beside_outputs_of_its_own_study_alone_wherever_a_kill_strikes(tmp_path, monkeypatch, stop):
    out, unfinished = tmp_path / "out", tmp_path / "out" / ".unfinished"
    for directory, content in ((out, "old"), (unfinished, "new")):
        for name in ("results.json", "report.html", "model/model.json", f"search-{content}.zarr/zarr.json"):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(content)
    rename, calls = Path.rename, itertools.count()

    def kill(path, target):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", kill)
    with contextlib.suppress(KeyboardInterrupt):
        _replace_outputs(unfinished, out)
    found = {path.relative_to(out).as_posix(): path.read_text() for path in out.glob("[!.]*/*")}
    found |= {path.name: path.read_text() for path in out.iterdir() if path.is_file()}
    assert len(found) == 4 or "results.json" not in found
    if "results.json" in found and stop > 0:
        assert set(found.values()) == {"new"}
    if stop >= 8:
        assert sorted(found) == ["model/model.json", "report.html", "results.json", "search-new.zarr/zarr.json"]
        assert [path.name for path in out.glob(".*")] == []


def test_directory_of_somebody_else_is_refused_before_anything_is_computed(table_study, tmp_path):
    notes = tmp_path / "mine" / "model" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("keep")
    with pytest.raises(OutputPathError, match="holds model, which no study wrote"):
        run(table_study(), tmp_path / "mine", store=tmp_path / "store")
    assert notes.read_text() == "keep"
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store" / "entries").glob("*/*"))
