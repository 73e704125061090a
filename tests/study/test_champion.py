import pytest

from eelsflow.executors import LoopExecutor
from eelsflow.maps.registry import champion_of, find_model
from eelsflow.models.bundle import ModelBundle, describe_model
from eelsflow.store import Store, read_json
from eelsflow.study.config import load_study
from eelsflow.study.run import run_study
from eelsflow.study.stages import Place

pytestmark = pytest.mark.slow


@pytest.fixture
def promote(manifest_study, tmp_path, monkeypatch):
    """Run the same study with --promote; the second run computes nothing again."""
    monkeypatch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    place = Place(Store(tmp_path / "store"), LoopExecutor())
    study = load_study(manifest_study(split={"by": "group", "folds": 2, "seeds": 2}))

    def run():
        return run_study(study, tmp_path / "out", place=place, promote=True)["promotion"]

    return run


def change(**about):
    champion = champion_of("O_K")
    describe_model(champion, name="the champion", **about)
    return ModelBundle.load(champion).provenance


def test_the_first_model_of_an_edge_is_its_champion_and_stays_where_results_do_not_replace_it(promote, tmp_path):
    assert champion_of("O_K") is None
    verdict = promote()
    assert verdict["promote"]
    champion = champion_of("O_K")
    assert champion.is_relative_to(tmp_path / "home" / "models" / "O_K")
    assert find_model("default", edge="O_K") == champion
    known = ModelBundle.load(champion).provenance
    assert len(known["trained_on"]) == 6
    assert set(known["held_out"]) <= set(known["trained_on"])
    assert known["training"]["dispersion"]["low"] > 0


def test_a_champion_is_judged_by_acquisitions_it_had_not_seen_and_an_equal_model_may_take_its_place(promote):
    promote()
    verdict = promote()
    assert verdict["promote"]
    assert verdict["score"] == verdict["champion_score"]
    assert verdict["acquisitions"] >= 2


def test_a_model_that_is_worse_does_not_take_the_place_of_the_champion(promote, tmp_path):
    promote()
    held_out = change()["held_out"]
    perfect = {sha256: one | {"balanced_accuracy": 1.01} for sha256, one in held_out.items()}
    change(held_out=perfect)
    before = champion_of("O_K")
    verdict = promote()
    assert not verdict["promote"]
    assert verdict["champion_score"] == pytest.approx(1.01)
    assert "the champion stays" in verdict["reason"]
    assert champion_of("O_K") == before
    assert read_json(tmp_path / "out" / "results.json")["promotion"] == verdict


def test_a_champion_maps_acquisitions_it_was_not_trained_on(promote):
    promote()
    change(held_out={}, trained_on=[])
    verdict = promote()
    assert verdict["acquisitions"] >= 2
    assert 0.4 < verdict["champion_score"] <= 1.0


def test_what_a_champion_was_trained_on_and_had_not_held_out_is_left_out(promote):
    promote()
    change(held_out={})
    verdict = promote()
    assert verdict["promote"]
    assert "nothing could be compared" in verdict["reason"]


def test_a_champion_that_is_damaged_or_of_other_classes_stands_in_nobody_s_way(promote):
    promote()
    (champion_of("O_K") / "references.npz").unlink()
    verdict = promote()
    assert verdict["promote"]
    assert "cannot be used any more" in verdict["reason"]
