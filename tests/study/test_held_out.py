"""Nothing is chosen by, and nothing shown as evidence of, acquisitions that a model was trained on."""

import json

import numpy as np
import pytest
import yaml

from eelsflow.executors import LoopExecutor
from eelsflow.io.zarr_store import open_dataset
from eelsflow.robustness.control import shuffled_label_control
from eelsflow.store import Store, read_json
from eelsflow.study import run as study_run
from eelsflow.study import stages
from eelsflow.study.config import load_study
from eelsflow.study.map_scores import best_maps
from eelsflow.study.run import run_study
from eelsflow.study.stages import Place


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of twelve simulated fields, pure and mixed, with a model of either kind; its place and results."""
    directory = tmp_path_factory.mktemp("held-out")
    content = {
        "name": "fields",
        "edge": "O_K",
        "classes": ["FeO", "Fe3O4"],
        "valence": {"FeO": 2.0, "Fe3O4": 2.667},
        "data": {"simulate": {"acquisitions": 12, "seed": 5, "pixels": 16, "preset": "wide", "detector": "ccd"}},
        "split": {"by": ["group", "pixel"], "seeds": 2, "folds": 2},
        "models": ["mlls", "svm-sgd"],
        "grids": "small",
        "robustness": {"shift_ev": [0, 0, 1], "noise_sigma": [0, 0, 1]},
    }
    (directory / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EELSFLOW_HOME", str(directory / "home"))
        patch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
        place = Place(Store(directory / "store"), LoopExecutor())
        seen = []
        original = study_run.plan_final_model

        def plan_final_model(*args, **options):
            seen.append(args)
            return original(*args, **options)

        patch.setattr(study_run, "plan_final_model", plan_final_model)
        results = run_study(load_study(directory / "study.yaml"), directory / "out", place=place)
    return directory, place, results, seen


@pytest.mark.slow
def test_maps_are_scored_on_acquisitions_that_their_model_did_not_see(study):
    directory, _place, results, _ = study
    entries = list((directory / "store").glob("entries/*/*/scores.json"))
    assert len(entries) == 4  # two models, two seeds
    scored = {field["group"] for path in entries for field in read_json(path)["maps"]}
    assert scored
    for path in (directory / "store").glob("entries/*/*/model/model.json"):
        assert "groups" in read_json(path)["provenance"]
    assert {row["model"] for row in results["maps"]} == {"mlls", "svm-sgd"}
    assert all(row["n_mixed"] and row["n_pure"] for row in results["maps"])


@pytest.mark.slow
def test_the_final_model_is_the_one_with_the_best_maps_of_held_out_fields(study):
    _, _, results, ((_, _, maps),) = study
    assert maps == results["maps"]
    best = best_maps(results["maps"])
    assert results["final_model"] == {"model": best["model"], "preprocess": best["preprocess"]}
    worse = [{**row, "score": {"mean": 1.0 - row["score"]["mean"]}} for row in results["maps"]]
    assert best_maps(worse)["model"] != best["model"] or len({row["score"]["mean"] for row in worse}) == 1


@pytest.mark.slow
def test_maps_shown_are_by_models_that_did_not_see_the_field(study):
    directory, _, results, _ = study
    assert results["map_evidence"]
    for entry in results["map_evidence"]:
        summary = read_json(directory / "out" / entry["map"] / "summary.json")
        assert entry["acquisition"] not in summary["model"]["groups"]
        assert summary["model"]["split"] == "group"
        mapped = open_dataset(directory / "out" / entry["map"] / "map.zarr")
        with np.load(directory / "out" / entry["truth"]) as truth:
            assert truth["fraction"].shape == mapped["fraction"].shape
            assert truth["classes"].tolist() == mapped["class"].values.tolist()
        valence = mapped["valence"].values[mapped["class_index"].values >= 0]
        assert np.nanmin(valence) >= 1.99
        assert np.nanmax(valence) <= 2.68


@pytest.mark.slow
def test_a_map_of_a_training_acquisition_is_never_written(study, monkeypatch, tmp_path):
    directory, place, _results, ((assessed, _, _),) = study
    plan = study_run.plan_data(load_study(directory / "study.yaml"), place.store)
    final = assessed[0].fit.model_copy(
        update={"features": assessed[0].fit.features.model_copy(update={"split": "all", "seed": 0})}
    )
    scored = study_run.plan_maps(plan, [step.fit for step in assessed])
    measured = study_run.Measured(list(assessed), scored)
    # a planner that pairs a field with a model that has seen it
    trained = scored[0].fit
    seen = next(
        step
        for step in plan.prepare
        if step.preset.name == trained.preset.name
        and step.acquisition.group in stages.training_groups(trained, place.store)
    )
    monkeypatch.setattr(study_run, "_maps_to_show", lambda *args: [(seen, trained)])
    with pytest.raises(RuntimeError, match="trained on its group"):
        study_run._write_maps(plan, measured, final, place, tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


@pytest.mark.slow
def test_a_random_split_recognises_acquisitions_of_one_phase_and_the_results_say_so(study):
    """Labels drawn at random for whole acquisitions ought to be predicted at chance."""
    _directory, _, results, _ = study
    (control,) = results["controls"]
    assert control["preprocess"] == "recommended"
    assert control["shuffled"] > 0.6
    rng = np.random.default_rng(0)
    group = np.repeat([f"g{number}" for number in range(12)], 40)
    one_phase = np.full(480, "FeO")
    nothing = shuffled_label_control(rng.standard_normal((480, 6)).astype(np.float32), group, one_phase, n_draws=4)
    assert abs(nothing.mean - 0.5) < 0.1


@pytest.mark.slow
def test_results_say_what_is_untested(study, tmp_path):
    directory, _, results, _ = study
    assert not any("mixed fields are untested" in text for text in results["warnings"])
    assert json.loads((directory / "out" / "results.json").read_text())["expected"] is not None


@pytest.mark.slow
def test_confidence_is_fitted_on_the_averages_that_maps_are_judged_by(study):
    directory, *_ = study
    features = [path.parent for path in (directory / "store").glob("entries/*/*/vectors.npy")]
    assert features
    for entry in features:
        single, gathered = np.load(entry / "vectors.npy"), np.load(entry / "gathered.npy")
        assert gathered.shape == single.shape
        assert gathered.std(axis=0).mean() < single.std(axis=0).mean()
