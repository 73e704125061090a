"""What a person types, and what bad input gets: one clear message, exit status 2, nothing that looks whole."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eelsflow.cli import studies
from eelsflow.errors import UnusableModelError
from eelsflow.io.zarr_store import open_dataset, write_spectrum_image
from eelsflow.maps.registry import check_model
from eelsflow.models.spec import STANDARD
from eelsflow.simulator import PRESETS, simulate_acquisition
from eelsflow.spectrum_image import build_spectrum_image
from eelsflow.study.config import load_study


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def cube():
    """A simulated acquisition of 24 x 24 pixels."""
    parameters = PRESETS["paper"].model_copy(update={"shape": (24, 24)})
    return simulate_acquisition(parameters, 3).image


def write_acquisition(directory, name, cube, *, counts=None, energy_loss=None):
    """Write the cube, with other counts or another axis, as an acquisition."""
    counts = cube.values if counts is None else counts
    energy_loss = cube["energy_loss"].values if energy_loss is None else energy_loss
    image = build_spectrum_image(counts, energy_loss, pixel_size=2.1, pixel_unit="nm")
    return write_spectrum_image(image, directory / name)


@pytest.fixture
def study(tmp_path, cube):
    """Write a study file with a manifest of these acquisitions: name -> (label, counts or None)."""

    def write(acquisitions, **changes):
        rows = ["path,label,group"]
        for name, (label, counts) in acquisitions.items():
            write_acquisition(tmp_path, name, cube, counts=counts)
            rows.append(f"{name},{label},")
        (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
        content = {
            "name": "iron",
            "edge": "O_K",
            "classes": ["FeO", "Fe3O4"],
            "data": {"manifest": "manifest.csv"},
            "models": ["svm-sgd"],
            "split": {"by": "pixel", "folds": 3, "seeds": 1},
            **changes,
        }
        path = tmp_path / "study.yaml"
        path.write_text(json.dumps(content))  # JSON is YAML
        return path

    return write


def assert_refused(outcome, *words):
    status, _, error = outcome
    assert status == 2
    assert error.startswith("error: ")
    assert "Traceback" not in error
    for word in words:
        assert word in error


def test_import_of_the_command_line_is_quick_because_nothing_heavy_is_loaded():
    heavy = ["tensorflow", "keras", "mlflow", "matplotlib", "distributed", "sklearn", "xarray", "prefect"]
    code = f"import sys, eelsflow, eelsflow.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [["study", "missing.yaml", "--out", "out"], ["demo", "missing/file/demo"]])
def test_numerical_libraries_have_one_thread_in_a_study_so_that_its_numbers_do_not_depend_on_the_cores(
    command, tmp_path
):
    (tmp_path / "missing").write_text("a file, not a directory: the demo ends before it simulates")
    code = f"""
import sys
from pathlib import Path
from eelsflow import cli
sys.argv = ["eelsflow", *{command}]
try:
    cli.main()
except SystemExit as exit_:
    assert exit_.code == 2
import numpy, scipy.linalg
from threadpoolctl import threadpool_info
print({{library["num_threads"] for library in threadpool_info()}})
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    assert done.stdout == "{1}\n"


def test_every_command_explains_itself(eelsflow):
    for command in ("info", "simulate", "study", "demo", "classify", "report", "up"):
        status, out, _ = eelsflow(command, "--help")
        assert status == 0
        assert "Usage" in out


def test_misuse_ends_with_status_2(eelsflow):
    assert eelsflow("no-such-command")[0] == 2
    assert_refused(eelsflow("study"), "--out DIR")


def test_info_describes_an_acquisition_as_json(eelsflow, cube, tmp_path):
    path = write_acquisition(tmp_path, "cube.zarr", cube)
    status, out, _ = eelsflow("info", path, "--json")
    description = json.loads(out)
    assert status == 0
    assert description["shape"] == [24, 24, 2048]
    assert "O_K" in description["edges"]
    assert description["energy_loss"]["dispersion"] == pytest.approx(0.25)


def test_info_describes_the_low_loss_of_a_simulated_pair(eelsflow, tmp_path):
    assert eelsflow("simulate", tmp_path, "--acquisitions", "1", "--pixels", "12", "--low-loss")[0] == 0
    core = tmp_path / "cubes-000-FeO.zarr"
    status, out, _ = eelsflow("info", core, "--low-loss", tmp_path / "cubes-000-FeO.low-loss.zarr", "--json")
    found = json.loads(out)["low_loss"]
    assert status == 0
    assert found["offset"]["value"] == pytest.approx(open_dataset(core.with_suffix(".truth.zarr")).offset, abs=0.02)
    assert {"resolution", "t_over_lambda", "zero_loss"} <= set(found)
    assert_refused(eelsflow("info", core, "--low-loss", core), "no zero-loss peak")


def test_info_refuses_an_edge_outside_the_axis(eelsflow, cube, tmp_path):
    path = write_acquisition(tmp_path, "cube.zarr", cube, energy_loss=600 + 0.125 * np.arange(2048))
    assert_refused(eelsflow("info", path, "--edge", "O_K"), "O_K", "600.0-855.9 eV")


@pytest.mark.parametrize("name", ["a.dm3", "a.dm4", "a.hspy", "a.emd", "a.msa", "a.txt", "a.npz", "a.xyz"])
def test_random_bytes_are_refused(eelsflow, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(np.random.default_rng(0).bytes(3000))
    assert_refused(eelsflow("info", path), name)
    assert_refused(eelsflow("classify", path, "--model", "default", "--out", tmp_path / "maps"), name)
    assert not list((tmp_path / "maps").rglob("summary.json"))


def test_truncated_store_is_refused(eelsflow, cube, tmp_path):
    path = write_acquisition(tmp_path, "cube.zarr", cube)
    chunk = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:1000])
    assert_refused(eelsflow("info", path), "cube.zarr")


def test_edge_is_checked_before_the_model_is_looked_for(eelsflow, cube, tmp_path):
    path = write_acquisition(tmp_path, "cube.zarr", cube, energy_loss=600 + 0.125 * np.arange(2048))
    outcome = eelsflow("classify", path, "--model", "nowhere", "--out", tmp_path / "maps")
    assert_refused(outcome, "O_K", "outside the energy axis")


def test_missing_model_is_refused(eelsflow, cube, tmp_path):
    path = write_acquisition(tmp_path, "cube.zarr", cube)
    assert_refused(
        eelsflow("classify", path, "--model", "nowhere", "--out", tmp_path / "maps"), "no model is at nowhere"
    )


@pytest.mark.parametrize("content", ["[]", "null", '{"schema": "eelsflow-model/2"}'])
def test_damaged_model_is_refused(eelsflow, cube, saved_model, tmp_path, content):
    path = write_acquisition(tmp_path, "cube.zarr", cube)
    model = shutil.copytree(saved_model, tmp_path / "model")
    (model / "model.json").write_text(content)
    outcome = eelsflow("classify", path, "--model", model, "--out", tmp_path / "maps")
    assert_refused(outcome, "damaged", "model.json", "train or copy it again")


def test_model_of_a_table_without_a_window_before_the_edge_maps_no_acquisition_and_none_is_blamed(
    eelsflow, cube, saved_model, tmp_path
):
    path = write_acquisition(tmp_path, "cube.zarr", cube)
    model = shutil.copytree(saved_model, tmp_path / "model")
    description = json.loads((model / "model.json").read_text())
    description["edge"]["pre_edge_window"] = None
    (model / "model.json").write_text(json.dumps(description))
    outcome = eelsflow("classify", path, "--model", model, "--out", tmp_path / "maps")
    assert_refused(outcome, "cannot map acquisitions: edge O_K has no pre_edge_window")
    with pytest.raises(UnusableModelError, match="cannot map acquisitions"):
        check_model(str(model), edge="O_K")


def test_output_below_a_regular_file_is_refused(eelsflow, study, cube, tmp_path):
    (tmp_path / "file").write_text("")
    path = write_acquisition(tmp_path, "cube.zarr", cube)
    out = tmp_path / "file" / "out"
    assert_refused(eelsflow("simulate", out), "cannot write to")
    assert_refused(eelsflow("classify", path, "--model", "default", "--out", out), "cannot write to")
    study_file = study({"a.zarr": ("FeO", None), "b.zarr": ("Fe3O4", None)})
    assert_refused(eelsflow("study", study_file, "--out", out, "--runner", "loop"), "cannot write to")


def corrupt(cube, kind):
    counts = cube.values.astype(np.float32)
    if kind == "NaN":
        counts[3:10, :, 100:200] = np.nan
    elif kind == "negative":
        counts[:] -= 200
    else:  # the support film alone: no oxygen edge anywhere
        film = np.median(counts[:2], axis=(0, 1))
        rng = np.random.default_rng(0)
        counts = np.broadcast_to(film, counts.shape) * (counts.shape[-1] > 0) + 6 * rng.standard_normal(counts.shape)
    return counts


@pytest.mark.parametrize(("kind", "words"), [("NaN", "NaN"), ("negative", "zero or less"), ("vacuum", "a.zarr")])
def test_study_over_a_broken_acquisition_is_refused_and_names_it(eelsflow, study, cube, tmp_path, kind, words):
    study_file = study({"a.zarr": ("FeO", corrupt(cube, kind)), "b.zarr": ("Fe3O4", None)})
    outcome = eelsflow("study", study_file, "--out", tmp_path / "out", "--runner", "loop")
    assert_refused(outcome, "a.zarr", words)
    assert not (tmp_path / "out" / "results.json").exists()
    assert not list((tmp_path / "home" / "store" / "temporary").glob("*"))


def test_study_over_one_class_is_refused(eelsflow, study, tmp_path):
    study_file = study({"a.zarr": ("FeO", None)})
    outcome = eelsflow("study", study_file, "--out", tmp_path / "out", "--runner", "loop")
    assert_refused(outcome, "at least two classes", "'Fe3O4': 0")
    assert not list((tmp_path / "home" / "store").glob("entries/*/*"))  # nothing was prepared in vain


def test_unknown_key_in_the_study_file_is_refused(eelsflow, study, tmp_path):
    study_file = study({"a.zarr": ("FeO", None)}, kernels=["rbf"])
    assert_refused(eelsflow("study", study_file, "--out", tmp_path / "out"), "kernels: unknown key")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": 5}, "name"),
        ({"edge": "U_K"}, "edge"),
        ({"edge": {"name": "x", "reference_energy": "high"}}, "edge.reference_energy"),
        ({"classes": "FeO"}, "classes"),
        ({"data": {"manifest": 5}}, "data.manifest"),
        ({"preprocess": [5]}, "preprocess.0"),
        ({"preprocess": {"name": "a/b", "steps": ["background", "rebin"]}}, "preprocess"),
        ({"split": {"folds": "ten"}}, "split.folds"),
        ({"split": {"test_fraction": None}}, "split.test_fraction"),
        ({"models": [{"name": "x", "base": "svm-rbf", "params": {"C": "big"}}]}, "models.0: model 'x': params.C"),
        ({"grids": ["paper"]}, "grids"),
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"robustness": {"noise_sigma": [0, float("nan"), 0.1]}}, "robustness.noise_sigma.stop"),
        ({"cluster": 5}, "cluster"),
    ],
)
def test_bad_value_in_the_study_file_is_refused_by_key_in_one_message(eelsflow, tmp_path, change, key):
    content = {"name": "iron", "edge": "O_K", "classes": ["FeO", "Fe3O4"], "data": {"manifest": "manifest.csv"}}
    study_file = tmp_path / "study.yaml"
    study_file.write_text(json.dumps(content | change))  # JSON is YAML, but for NaN, which YAML takes for text
    outcome = eelsflow("study", study_file, "--out", tmp_path / "out", "--runner", "loop")
    assert_refused(outcome, f"study.yaml: {key}")
    assert outcome[2].count("\n") == outcome[2].count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_study_init_prints_a_study_file(eelsflow):
    status, out, _ = eelsflow("study", "--init")
    assert status == 0
    assert "elnes_window" in out


def test_interrupted_study_says_that_it_can_go_on(eelsflow, study, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("eelsflow.study.run.run_study", interrupt)
    study_file = study({"a.zarr": ("FeO", None), "b.zarr": ("Fe3O4", None)})
    status, _, error = eelsflow("study", study_file, "--out", tmp_path / "out", "--runner", "loop")
    assert status == 130
    assert error == "interrupted; what was finished is kept, and the same command goes on from there\n"


def test_report_of_what_is_no_results_directory_is_refused(eelsflow, tmp_path):
    assert_refused(eelsflow("report", tmp_path), "results.json")


def test_simulate_takes_preset_detector_and_dose(eelsflow, tmp_path):
    options = ("--acquisitions", "2", "--seed", "4", "--pixels", "8")
    status, out, _ = eelsflow(
        "simulate", tmp_path / "wide", *options, "--preset", "wide", "--detector", "counting", "--dose", "0.5",
        "--dispersion-error", "1e-5",
    )  # fmt: skip
    assert status == 0
    manifest = Path(out.strip())
    assert manifest == tmp_path / "wide" / "manifest.csv"
    assert [line.split(",")[1] for line in manifest.read_text().splitlines()] == ["label", "FeO", "Fe3O4"]
    truth = open_dataset(tmp_path / "wide" / "field-000-FeO.truth.zarr")
    assert truth.attrs["detector"] == "counting"
    assert truth.attrs["dose"] == pytest.approx(0.5)
    assert 0 < abs(truth.attrs["dispersion_error"]) < 3e-5  # .004 by the preset


def test_simulate_draws_the_measured_cubes_if_nothing_else_is_asked_for(eelsflow, tmp_path):
    status, _, _ = eelsflow("simulate", tmp_path, "--acquisitions", "1", "--seed", "4", "--pixels", "12")
    assert status == 0
    parameters = PRESETS["paper"]
    specimen = parameters.specimen.model_copy(update={"kind": "FeO"})
    alone = parameters.model_copy(update={"shape": (12, 12), "specimen": specimen})
    expected = simulate_acquisition(alone, np.random.SeedSequence(4, spawn_key=(0,))).truth
    assert open_dataset(tmp_path / "cubes-000-FeO.truth.zarr").attrs["sha256"] == expected.attrs["sha256"]


@pytest.mark.parametrize(
    "option", [("--preset", "narrow"), ("--detector", "film"), ("--dose", "0"), ("--dispersion-error", "1")]
)
def test_simulate_refuses_what_it_does_not_know(eelsflow, tmp_path, option):
    status, _, err = eelsflow("simulate", tmp_path / "out", *option)
    assert status == 2
    assert option[0] in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        (
            [{"model": "mlls", "preprocess": "recommended", "score": {"mean": 0.9}}],
            "score of maps of held-out fields 0.900",
        ),
        ([], "accuracy 0.800, split by group"),
    ],
)
def test_a_study_says_which_model_it_kept_and_how_good_that_was_on_what_was_held_out(maps, said, capsys):
    def row(model, split, accuracy):
        return {"model": model, "preprocess": "recommended", "split": split, "accuracy": {"mean": accuracy}}

    results = {
        "final_model": {"model": "mlls", "preprocess": "recommended"},
        "maps": [{"model": "svm-rbf", "preprocess": "recommended", "score": {"mean": 0.5}}] * bool(maps) + maps,
        "models": [row("svm-rbf", "group", 0.7), row("mlls", "pixel", 0.95), row("mlls", "group", 0.8)],
    }
    studies._say_kept(results, Path("results"))
    assert capsys.readouterr().err == f"kept: mlls, recommended ({said}); it is in results/model\n"


@pytest.mark.parametrize("size", [studies.WHOLE_DEMO, studies.QUICK_DEMO])
def test_the_study_of_the_demonstration_is_one(size, tmp_path):
    (tmp_path / "study.yaml").write_text(studies.DEMO_STUDY % size)
    study = load_study(tmp_path / "study.yaml")
    assert (study.split.seeds, study.split.folds, study.training.epochs) == (
        size["seeds"],
        size["folds"],
        size["epochs"],
    )
    assert [model.name for model in study.models] == list(STANDARD)
