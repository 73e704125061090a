import shutil
from types import SimpleNamespace

import pytest

from eelsflow.artifacts import open_client
from eelsflow.champions import read_champions
from eelsflow.digest import digest_file
from eelsflow.errors import UnusableModelError
from eelsflow.executors import LoopExecutor
from eelsflow.maps.registry import champion_of, find_model
from eelsflow.models.bundle import ModelBundle, describe_model
from eelsflow.store import Store, read_json
from eelsflow.study.champion import follow_champions, judge_promotion, keep_champion
from eelsflow.study.config import load_study
from eelsflow.study.run import run_study
from eelsflow.study.stages import Place

pytestmark = pytest.mark.slow


@pytest.fixture
def promote(manifest_study, tmp_path, monkeypatch):
    """Run the same study with --promote; the second run computes nothing again."""
    monkeypatch.setattr("eelsflow.study.run.build_report", lambda directory, executor: None)
    monkeypatch.setattr("eelsflow.study.champion.set_champion", lambda *_, **__: "1")  # has tests of its own below
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


@pytest.fixture
def shared_registry(tmp_path, monkeypatch):
    """A registry that two homes share; provides a function that changes from one to the other."""
    pytest.importorskip("mlflow", reason="the registry needs the extra 'orchestration'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", (tmp_path / "artifacts").as_uri())

    def at(home):
        monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / home))

    at("one")
    return at


def model_named(saved_model, folder, name):
    shutil.copytree(saved_model, folder)
    describe_model(folder, name=name)
    return folder


def test_the_alias_in_the_registry_says_who_is_champion_on_every_machine(shared_registry, saved_model, tmp_path):
    first, second = (model_named(saved_model, tmp_path / name, name) for name in ("first", "second"))
    for model in (first, second):
        keep_champion(model, edge="O_K", name=model.name, registered="2026-01-01T00:00:00+00:00")
    assert follow_champions() == []

    shared_registry("other")
    assert champion_of("O_K") is None
    assert follow_champions() == ["the champion of O_K is second now, as MLflow's registry says"]
    assert digest_file(champion_of("O_K")) == digest_file(second)

    open_client().set_registered_model_alias("eelsflow-O_K", "champion", "1")  # as a person does in MLflow's pages
    for home in ("other", "one"):
        shared_registry(home)
        assert len(follow_champions()) == 1
        assert digest_file(champion_of("O_K")) == digest_file(first)
        assert follow_champions() == []

    keep_champion(second, edge="O_K", name="second", registered="2026-01-02T00:00:00+00:00")
    assert len(open_client().search_model_versions("name = 'eelsflow-O_K'")) == 2  # the same bytes are one version


def test_a_champion_whose_files_were_changed_is_not_used(shared_registry, saved_model, tmp_path):
    model = model_named(saved_model, tmp_path / "first", "first")
    keep_champion(model, edge="O_K", name="first", registered="2026-01-01T00:00:00+00:00")
    next((tmp_path / "artifacts").rglob("model.json")).write_text("{}")
    shared_registry("other")
    with pytest.raises(UnusableModelError, match="were changed in the artifact store"):
        follow_champions()
    assert champion_of("O_K") is None


def test_a_champion_that_no_study_promoted_is_not_used_and_those_of_other_edges_are(
    shared_registry, saved_model, tmp_path
):
    model = model_named(saved_model, tmp_path / "first", "first")
    keep_champion(model, edge="O_K", name="first", registered="2026-01-01T00:00:00+00:00")
    client = open_client()
    for number, tag in enumerate(("", "../../../../evil")):
        client.create_registered_model(f"eelsflow-A{number}")
        client.create_model_version(f"eelsflow-A{number}", "file:///nowhere", tags={"eelsflow.digest": tag})
        client.set_registered_model_alias(f"eelsflow-A{number}", "champion", "1")
    shared_registry("other")
    with pytest.raises(UnusableModelError, match="no study promoted it"):
        follow_champions()
    assert digest_file(champion_of("O_K")) == digest_file(model)
    assert not list((tmp_path / "other" / "store" / "temporary").glob("*"))


def test_an_edge_may_have_any_name(shared_registry, saved_model, tmp_path):
    model = model_named(saved_model, tmp_path / "first", "first")
    keep_champion(model, edge="O:K / 'wide'", name="first", registered="2026-01-01T00:00:00+00:00")
    assert [one.edge for one in read_champions()] == ["O:K / 'wide'"]


@pytest.mark.parametrize("away", [True, False])
def test_a_promotion_asks_the_registry_first(away, shared_registry, saved_model, tmp_path, monkeypatch):
    model = model_named(saved_model, tmp_path / "first", "first")
    keep_champion(model, edge="O_K", name="first", registered="2026-01-01T00:00:00+00:00")
    shared_registry("other")
    if away:
        monkeypatch.setattr("eelsflow.study.champion.read_champions", lambda: (_ for _ in ()).throw(OSError("refused")))
    study = SimpleNamespace(edge=SimpleNamespace(name="O_K"), classes=["other", "ones"])
    verdict = judge_promotion(SimpleNamespace(study=study), [], None, None)
    if away:
        assert not verdict["promote"]
        assert "cannot be asked (refused)" in verdict["reason"]
    else:
        assert "tells other classes apart" in verdict["reason"]  # it is there, and was looked at


def test_where_mlflow_was_never_used_nobody_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("eelsflow.study.champion.read_champions", lambda: pytest.fail("asked"))
    assert follow_champions() == []
