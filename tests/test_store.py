import os

import pytest

from eelsflow.errors import OutputPathError
from eelsflow.store import Store, make_directory, write_json


def test_entry_is_computed_once(tmp_path):
    store, calls = Store(tmp_path), []

    def write(directory):
        calls.append(directory)
        (directory / "value").write_text("1")

    first, again = store.compute("ab12", write), store.compute("ab12", write)
    assert first == again
    assert (first / "value").read_text() == "1"
    assert len(calls) == 1


def test_failed_entry_leaves_nothing_behind(tmp_path):
    store = Store(tmp_path)

    def write(directory):
        (directory / "half").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        store.compute("ab12", write)
    assert not store.has("ab12")
    assert not list(tmp_path.rglob("half"))


def test_second_writer_of_the_same_entry_is_harmless(tmp_path):
    store = Store(tmp_path)

    def write(directory):
        store.compute("ab12", lambda other: (other / "value").write_text("first") and None)
        (directory / "value").write_text("second")

    assert (store.compute("ab12", write) / "value").read_text() == "first"


def test_abandoned_work_is_removed_but_not_that_of_living_processes(tmp_path):
    store = Store(tmp_path)
    mine = store.temporary()
    gone = tmp_path / "temporary" / "999999999-abc"
    gone.mkdir()
    assert store.remove_abandoned() == 1
    assert mine.is_dir()
    assert not gone.exists()
    assert mine.name.startswith(f"{os.getpid()}-")


def test_prune_changes_the_generation_so_that_other_caches_cannot_outlive_it(tmp_path):
    store = Store(tmp_path)
    for digest in ("aa", "bb"):
        store.compute(digest, lambda directory: None)
    before = store.generation
    assert store.generation == before
    assert store.prune({"aa"}) == ["bb"]
    assert store.generation != before
    assert store.has("aa")
    assert not store.has("bb")


def test_output_below_a_regular_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputPathError, match=r"cannot write to .*file/out.*Not a directory"):
        make_directory(tmp_path / "file" / "out")


def test_json_with_nan_is_refused_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'
