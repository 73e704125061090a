import os
import time

import pytest

from eelsflow.catalogue.ledger import Catalogue, Found
from eelsflow.catalogue.prune import YOUNG_SECONDS, find_unused, pruning, say_unused
from eelsflow.catalogue.states import State
from eelsflow.errors import InputError
from eelsflow.store import Store, read_json, write_json
from eelsflow.study import journal
from eelsflow.study.journal import Journal, referred_to, using_store


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def store(home):
    return Store(home / "store")


def put(store, digest, *, size=10, age=10 * YOUNG_SECONDS, name="fit.json"):
    path = store.compute(digest, lambda directory: (directory / name).write_bytes(bytes(size)))
    moment = time.time() - age
    os.utime(path, (moment, moment))


def unused(store):
    return [one.digest for one in find_unused(store, Catalogue())]


def test_what_nothing_refers_to_is_found_the_largest_first_and_said(store):
    put(store, "aa", size=1_000_000)
    put(store, "bb", size=3_000_000, name="prepared.zarr")
    assert unused(store) == ["bb", "aa"]
    assert say_unused(find_unused(store, Catalogue())) == (
        "2 entries that nothing refers to, 4.0 MB: 1 prepared acquisitions, 1 models"
    )


def test_what_is_young_or_referred_to_by_a_study_or_a_map_is_kept(store, tmp_path):
    for digest in ("of-a-study", "of-a-map", "of-nobody"):
        put(store, digest)
    put(store, "young", age=60)
    out = tmp_path / "out"
    Journal(out).note(["of-a-study"])
    write_json((out.mkdir() or out) / "results.json", {})
    Catalogue().take_over(Found("/in/a.dm3", 1, "1"), State.CLASSIFIED, facts={"prepared": "of-a-map"})
    assert unused(store) == ["of-nobody"]


def test_a_study_refers_as_long_as_its_results_are_there_or_it_may_go_on(store, tmp_path, monkeypatch):
    put(store, "aa")
    out = tmp_path / "out"
    Journal(out).note(["aa"])
    assert referred_to() == {"aa"}  # killed, and may be run again
    monkeypatch.setattr(journal, "RESUMABLE_SECONDS", 0.0)
    assert referred_to() == set()
    out.mkdir()
    (out / "results.json").write_text("{}")
    assert referred_to() == {"aa"}
    assert unused(store) == []


def test_a_journal_gathers_what_is_noted(home, tmp_path):
    study = Journal(tmp_path / "out")
    study.note(["aa", "bb"])
    study.note(["bb", "cc"])
    (path,) = (home / "studies").glob("*.json")
    assert read_json(path)["entries"] == ["aa", "bb", "cc"]
    Journal(tmp_path / "out").note(["dd"])  # run again with other settings: what it referred to before is gone
    assert referred_to() == {"dd"}


def test_nothing_is_dropped_while_a_study_runs(store):
    with using_store(store.root), pytest.raises(InputError, match="a study is running"), pruning(store):
        pass
    with pruning(store):
        pass
    with using_store(store.root), using_store(store.root):  # studies do not exclude each other
        pass


def test_the_command_says_before_it_drops(eelsflow, store):
    put(store, "aa")
    put(store, "bb")
    status, said, _ = eelsflow("store", "prune", "--yes")
    assert status == 0
    assert said.splitlines() == ["2 entries that nothing refers to, 0.0 MB: 2 models", "dropped"]
    assert store.entries() == []
    assert "nothing is in the store" in eelsflow("store", "prune", "--yes")[1]
