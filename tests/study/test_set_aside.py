"""One bad acquisition does not stop the others: it is set aside with its reason."""

import shutil
from functools import partial

import numpy as np
import pytest

from eelsflow.dataset.aside import SetAside, attempt
from eelsflow.errors import DataSetError, InputError, OutputPathError, StudyFileError
from eelsflow.executors import LoopExecutor
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import write_spectrum_image
from eelsflow.spectrum_image import build_spectrum_image
from eelsflow.store import Store, read_json
from eelsflow.study import stages
from eelsflow.study.config import load_study
from eelsflow.study.plan import plan_data
from eelsflow.study.run import prepare_acquisitions, run_study
from eelsflow.study.stages import Place

FEO, MAGNETITE, ALSO_FEO = "cubes-000-FeO.zarr", "cubes-001-Fe3O4.zarr", "cubes-002-FeO.zarr"
MIXED, ALSO_MIXED = "cubes-004-core-shell.zarr", "cubes-005-core-shell.zarr"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("eelsflow.report.gallery.render", lambda figure, format: b"not drawn")


@pytest.fixture
def place(tmp_path):
    return Place(Store(tmp_path / "home" / "store"), LoopExecutor())


@pytest.fixture
def files(manifest_study, tmp_path):
    return tmp_path / "files"


def truncate(path):
    chunk = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:1000])


def rewrite(path, *, counts=None, shift_ev=0.0, n_channels=400):
    image = read_spectrum_image(path).load()[..., :n_channels]
    counts = image.values if counts is None else counts(image.values.astype(np.float32))
    write_spectrum_image(build_spectrum_image(counts, image["energy_loss"].values + shift_ev), path)


def without_a_third(counts):
    counts[: len(counts) // 3] = np.nan
    return counts


def noise_alone(counts):
    film = np.median(counts[:2], axis=(0, 1))
    return film + 6 * np.random.default_rng(0).standard_normal(counts.shape)


def without_seconds(rows):
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


@pytest.mark.slow
def test_study_goes_on_as_if_the_manifest_lacked_what_is_set_aside_and_takes_in_what_is_repaired(
    eelsflow, manifest_study, files, place, tmp_path
):
    whole = shutil.copytree(files / MIXED, tmp_path / "whole.zarr")
    truncate(files / MIXED)
    rewrite(files / ALSO_MIXED, shift_ev=300)
    status, _, told = eelsflow("study", manifest_study(), "--out", tmp_path / "out", "--runner", "loop")
    assert status == 0
    found = read_json(tmp_path / "out" / "results.json")
    reasons = {one["acquisition"]: one["reason"] for one in found["set_aside"]}
    assert list(reasons) == [MIXED, ALSO_MIXED]
    assert "damaged" in reasons[MIXED]
    assert "lies outside the energy axis, which spans 785.0" in reasons[ALSO_MIXED]
    assert all(f"warning: {name} set aside: {reason}\n" in told for name, reason in reasons.items())
    assert told.splitlines()[-1].startswith("2 of 6 acquisitions set aside")
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.index("2 of 6 acquisitions set aside") < html.index(ALSO_MIXED) < html.index('<section id="run">')

    computed = set((place.store.root / "entries").glob("*/*"))
    study = load_study(manifest_study(without=(MIXED, ALSO_MIXED)))
    lacking = run_study(study, tmp_path / "lacking", place=place)
    assert set((place.store.root / "entries").glob("*/*")) == computed
    assert lacking["set_aside"] == []
    assert without_seconds(found["models"]) == without_seconds(lacking["models"])
    for name in ("maps", "n_per_class", "acquisitions", "final_model", "warnings"):
        assert found[name] == lacking[name]
    assert "set aside" not in (tmp_path / "lacking" / "report.html").read_text()

    shutil.rmtree(files / MIXED)
    shutil.copytree(whole, files / MIXED)
    again = run_study(load_study(manifest_study()), tmp_path / "out", place=place)
    assert [one["acquisition"] for one in again["set_aside"]] == [ALSO_MIXED]
    assert len(again["acquisitions"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "preset", "reason"),
    [
        pytest.param(truncate, "paper", "damaged", id="truncated"),
        pytest.param(shutil.rmtree, "paper", "cannot be read", id="missing"),
        pytest.param(partial(rewrite, shift_ev=300), "paper", "outside the energy axis", id="no-edge"),
        pytest.param(partial(rewrite, n_channels=260), "nominal", "no data at 549.9-554.9 eV", id="no-window"),
        pytest.param(partial(rewrite, counts=without_a_third), "paper", "pixels are lost", id="nan"),
        pytest.param(partial(rewrite, counts=noise_alone), "recommended", "no pixel's edge signal", id="vacuum"),
    ],
)
def test_bad_acquisition_is_set_aside_with_the_reason(manifest_study, files, place, damage, preset, reason):
    damage(files / MIXED)
    changes = {} if preset == "nominal" else {"preprocess": preset}
    plan = plan_data(load_study(manifest_study(**changes)), place.store)
    steps = [step for step in plan.prepare if step.acquisition.given == MIXED]
    found = [*plan.set_aside, *(stages.prepare_acquisition(step, place) for step in steps)]
    (one,) = found
    assert isinstance(one, SetAside)
    assert one.acquisition == MIXED
    assert reason in one.reason


@pytest.mark.slow
def test_truth_of_another_shape_is_set_aside_and_taken_in_when_it_is_repaired_though_the_acquisition_is_the_same(
    manifest_study, files, place
):
    study = load_study(manifest_study())
    manifest = files / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("cubes-004-core-shell.truth.zarr", "truth.npz"))

    def prepare(*pixels):
        np.savez(files / "truth.npz", phase=["FeO", "Fe3O4"], phase_fraction=np.full((2, *pixels), 0.5))
        (step,) = (step for step in plan_data(study, place.store).prepare if step.acquisition.given == MIXED)
        return stages.prepare_acquisition(step, place)

    refused = prepare(9, 16)
    assert isinstance(refused, SetAside)
    assert "has (9, 16) pixels but the acquisition (16, 16)" in refused.reason
    assert (prepare(16, 16) / "prepared.zarr").is_dir()


def test_strict_study_is_refused_with_every_reason_before_anything_is_computed(
    eelsflow, manifest_study, files, tmp_path
):
    study_file = manifest_study()
    shutil.rmtree(files / MIXED)
    shutil.rmtree(files / "cubes-005-core-shell.truth.zarr")
    command = ("study", study_file, "--out", tmp_path / "out", "--runner", "loop")
    status, _, told = eelsflow(*command, "--strict")
    assert status == 2
    assert told.startswith("error: 2 of 6 acquisitions cannot be used, and a strict study")
    assert [line.split(":")[0] for line in told.splitlines()[1:]] == [f"  {MIXED}", f"  {ALSO_MIXED}"]
    assert not (tmp_path / "out" / "results.json").exists()
    assert not list((tmp_path / "home" / "store").glob("entries/*/*"))


@pytest.mark.slow
def test_strict_study_is_refused_for_what_is_found_when_acquisitions_are_prepared(manifest_study, files, place):
    study_file = manifest_study()
    rewrite(files / MIXED, shift_ev=300)
    plan = plan_data(load_study(study_file), place.store, strict=True)

    def run(stage, steps):
        return [stage(step, place) for step in steps]

    with pytest.raises(InputError, match=rf"1 of 6 acquisitions cannot be used(.|\n)*\n  {MIXED}: ELNES|pre-edge"):
        prepare_acquisitions(plan, run, strict=True)
    assert [one.acquisition for one in prepare_acquisitions(plan, run).set_aside] == [MIXED]


@pytest.mark.slow
def test_refusal_of_what_is_left_names_what_was_set_aside(manifest_study, files, place, tmp_path):
    """Found when the plan is made, when acquisitions are prepared, and when spectra are split."""
    study = load_study(manifest_study(models=["svm-linear"], split={"by": "pixel", "folds": 400, "seeds": 1}))
    shutil.rmtree(files / MIXED)
    with pytest.raises(DataSetError, match=rf"fewer than the 400 folds(.|\n)*1 of 6 acquisitions(.|\n)*  {MIXED}: "):
        run_study(study, tmp_path / "out", place=place)
    rewrite(files / FEO, shift_ev=300)
    study = load_study(manifest_study())
    with pytest.raises(DataSetError, match=rf"each class needs at least 2(.|\n)*  {MIXED}: (.|\n)*  {FEO}: "):
        run_study(study, tmp_path / "out", place=place)
    shutil.rmtree(files / ALSO_FEO)
    with pytest.raises(DataSetError, match=rf"{{'FeO': 1, 'Fe3O4': 3}}(.|\n)*2 of 6(.|\n)*  {ALSO_FEO}: "):
        plan_data(study, place.store)


def test_study_of_bad_acquisitions_alone_is_refused(eelsflow, manifest_study, files, tmp_path):
    study_file = manifest_study()
    for path in files.glob("*[!h].zarr"):
        shutil.rmtree(path)
    status, _, told = eelsflow("study", study_file, "--out", tmp_path / "out", "--runner", "loop")
    assert status == 2
    assert "6 of 6 acquisitions" in told
    assert told.count("cannot be read: No such file") == 6


def test_manifest_with_a_label_of_no_class_is_refused_though_the_acquisition_cannot_be_read(manifest_study, files):
    study = load_study(manifest_study())
    manifest = files / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",FeO,", ",FeO3,"))
    shutil.rmtree(files / FEO)
    with pytest.raises(DataSetError, match=f"{FEO} is labelled 'FeO3'"):
        plan_data(study, Store(files / "store"))


def test_files_of_one_name_are_named_as_if_the_manifest_lacked_what_is_set_aside(manifest_study, files):
    study = load_study(manifest_study())
    manifest = files / "manifest.csv"
    (files / "day2").mkdir()
    shutil.move(files / MAGNETITE, files / "day2" / FEO)
    manifest.write_text(manifest.read_text().replace(MAGNETITE, f"day2/{FEO}").replace(",cubes-000-FeO,", ",,"))
    plan = plan_data(study, Store(files / "store"))
    assert plan.acquisitions[0].group == plan.acquisitions[0].name != "cubes-000-FeO"
    left = plan.without([SetAside(acquisition=ALSO_MIXED, reason="another")])
    assert left.acquisitions == plan.acquisitions[:-1]
    study = study.model_copy(update={"split": study.split.model_copy(update={"by": ("pixel",)})})
    left = plan.model_copy(update={"study": study}).without([SetAside(acquisition=f"day2/{FEO}", reason="bad")])
    assert (left.acquisitions[0].name, left.acquisitions[0].group) == ("cubes-000-FeO", "cubes-000-FeO")


def test_only_bad_input_is_set_aside():
    def fail(error):
        raise error

    assert attempt("a.dm3", lambda: 3) == 3
    assert attempt("a.dm3", partial(fail, StudyFileError("two\nlines"))).reason == "two lines"
    for error in (OutputPathError("the disk is full"), ValueError("a bug"), MemoryError()):
        with pytest.raises(type(error)):
            attempt("a.dm3", partial(fail, error))
