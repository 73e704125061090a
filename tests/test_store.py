import os
import subprocess
import time

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


def left_behind(store, monkeypatch, *, host=None, process=None):
    """Leave unfinished work as a process of a host does that is gone; by default of this host."""
    if process is None:
        ended = subprocess.Popen(["true"])
        ended.wait()
        process = ended.pid
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: process)
        if host is not None:
            patch.setattr("socket.gethostname", lambda: host)
        work = store.temporary()
    (work / "part").mkdir()
    (work / "part" / "half").write_text("half")
    return work


def age(work, days):
    then = time.time() - days * 86400
    for path in (work, *work.rglob("*")):
        os.utime(path, (then, then))


def test_abandoned_work_of_this_host_is_removed_at_once_but_not_that_of_living_processes(tmp_path, monkeypatch):
    store = Store(tmp_path)
    mine, gone = store.temporary(), left_behind(store, monkeypatch)
    age(mine, days=100)
    assert store.remove_abandoned() == 1
    assert mine.is_dir()
    assert not gone.exists()


@pytest.mark.parametrize("host", ["node-17", "node_17", "node-17.cluster.example"])
def test_unfinished_work_of_another_host_is_left_alone(tmp_path, monkeypatch, host):
    store = Store(tmp_path)
    theirs = left_behind(store, monkeypatch, host=host)
    age(theirs, days=13)
    assert store.remove_abandoned() == 0
    assert (theirs / "part" / "half").read_text() == "half"


def test_unfinished_work_of_another_container_is_left_alone(tmp_path, monkeypatch):
    store = Store(tmp_path)
    mine = left_behind(store, monkeypatch)
    place, process, name = mine.name.split("_")
    theirs = mine.with_name(f"{place}1_{process}_{name}")  # the same host name, other process ids
    mine.rename(theirs)
    assert store.remove_abandoned() == 0
    assert theirs.is_dir()


def test_work_of_another_host_is_removed_when_nothing_was_written_to_it_for_two_weeks(tmp_path, monkeypatch):
    store = Store(tmp_path)
    forgotten, slow = (left_behind(store, monkeypatch, host="node-17", process=os.getpid()) for _ in range(2))
    nameless = tmp_path / "temporary" / "999999999-abc"
    nameless.mkdir()
    for work in (forgotten, slow, nameless):
        age(work, days=15)
    (slow / "part" / "half").touch()
    assert store.remove_abandoned() == 2
    assert slow.is_dir()
    assert not forgotten.exists()
    assert not nameless.exists()


def test_discarding_changes_the_generation_so_that_other_caches_cannot_outlive_it(tmp_path):
    store = Store(tmp_path)
    for digest in ("aa", "bb"):
        store.compute(digest, lambda directory: None)
    before = store.generation
    assert store.generation == before
    store.discard("bb")
    assert store.generation != before
    assert store.has("aa")
    assert not store.has("bb")
    assert [path.name for path in store.entries()] == ["aa"]


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
