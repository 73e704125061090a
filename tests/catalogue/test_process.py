import hashlib
import json
import os
import shutil
import subprocess
import time

import fsspec
import pytest

from eelsflow.bucket import Bucket, read_from
from eelsflow.catalogue.ledger import AGAIN, Catalogue
from eelsflow.catalogue.process import Order, choose_model, identify, put_in_place, work_through
from eelsflow.catalogue.service import make_order, watch
from eelsflow.catalogue.states import Acquisition, State
from eelsflow.catalogue.watch import TROUBLE
from eelsflow.digest import digest_file
from eelsflow.errors import EdgeOutOfRangeError, InputError, UnusableModelError
from eelsflow.models.bundle import describe_model
from eelsflow.processes import name_process
from eelsflow.store import Store, read_json, write_json
from tests.catalogue.files import Inline, write


@pytest.fixture
def good(simulated_files):
    return next(path for path in sorted(simulated_files.glob("*.zarr")) if ".truth" not in path.name)


def put(good, folder, name="good.zarr"):
    shutil.copytree(good, folder / name)
    return Acquisition(1, str(folder / name), 1, "", State.INGESTED)


def with_content(one, order, **values):
    return Acquisition(**{**vars(one), "sha256": identify(one, order), **values})


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def an_order(tmp_path, saved_model):
    def make(place="one"):
        inbox = tmp_path / place / "inbox"
        inbox.mkdir(parents=True)
        return Order(
            inbox=str(inbox), out=tmp_path / place / "out", store=tmp_path / place / "store", model=str(saved_model)
        )

    return make


def yes(*_, **__):
    return True


def test_maps_of_the_same_content_are_the_same_bytes_wherever_they_are_made(good, an_order, tmp_path):
    made = []
    for place in ("one", "other"):
        order = an_order(place)
        one = with_content(put(good, tmp_path / place / "inbox"), order)
        outcome = work_through(one, order, yes)
        made.append(contents(order.folder_for(one)))
        assert outcome["facts"]["pixels"] > 0
        assert not [path for path in (order.out / "maps").iterdir() if path.name.startswith(".")]
    assert made[0] == made[1]
    assert {"map.png", "summary.json", "class.tif"} <= set(made[0])


def test_what_a_killed_worker_left_beside_a_map_is_removed_and_what_a_living_one_writes_is_not(good, an_order):
    order = an_order()
    one = with_content(put(good, order.out.parent / "inbox"), order)
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = order.folder_for(one)
    place = name_process().rpartition("_")[0]
    left, living = (folder.with_name(f".{folder.name}.{place}_{pid}_0a1b") for pid in (ended.pid, os.getpid()))
    for path in (left, living):
        write(path / "class.tif", "half")
    work_through(one, order, yes)
    assert (folder / "summary.json").exists()
    assert not left.exists()
    assert living.exists()


def test_a_map_that_is_there_is_not_made_again_unless_it_is_asked_for(good, an_order, monkeypatch):
    order = an_order()
    one = with_content(put(good, order.out.parent / "inbox"), order)
    first = work_through(one, order, yes)
    monkeypatch.setattr("eelsflow.catalogue.process._write", lambda *_, **__: pytest.fail("made again"))
    assert work_through(one, order, yes) == first
    with pytest.raises(pytest.fail.Exception, match="made again"):
        work_through(Acquisition(**{**vars(one), "facts": {AGAIN: True}}), order, yes)


def test_another_model_needs_the_map_alone(good, an_order, saved_model, tmp_path, monkeypatch):
    order = an_order()
    one = with_content(put(good, tmp_path / "one" / "inbox"), order)
    first = work_through(one, order, yes)
    other = shutil.copytree(saved_model, tmp_path / "other-model")
    describe_model(other, name="the new one")
    monkeypatch.setattr("eelsflow.study.stages._prepare", lambda *_: pytest.fail("prepared again"))
    again = work_through(one, Order(**{**vars(order), "model": str(other)}), yes)
    assert again["map"] == first["map"]
    assert again["model"] != first["model"]
    summary = read_json(order.folder_for(one) / "summary.json")
    assert summary["model"]["name"] == "the new one"
    assert summary["made_by"]["digest"] == again["model"]
    assert summary["file_sha256"] == one.sha256


def test_a_file_that_changed_after_it_was_ingested_is_not_mapped(good, an_order):
    order = an_order()
    one = with_content(put(good, order.out.parent / "inbox"), order)
    assert work_through(Acquisition(**{**vars(one), "sha256": "0" * 64}), order, yes) is None


def test_work_that_is_another_s_meanwhile_is_left(good, an_order):
    order = an_order()
    one = with_content(put(good, order.out.parent / "inbox"), order)
    assert work_through(one, order, lambda *_, **__: False) is None
    assert not order.folder_for(one).exists()


def test_a_file_without_the_edge_is_its_own_fault_and_a_model_that_is_missing_is_not(an_order, tmp_path):
    order = an_order()
    path = write(tmp_path / "one" / "inbox" / "a.txt", "\n".join(f"{700 + n} {1000 - n}" for n in range(300)))
    one = with_content(Acquisition(1, str(path), 1, "", State.INGESTED), order)
    with pytest.raises(EdgeOutOfRangeError, match=r"a\.txt"):
        work_through(one, order, yes)
    with pytest.raises(UnusableModelError):
        work_through(one, Order(**{**vars(order), "model": str(tmp_path / "absent")}), yes)
    assert not list((order.store / "temporary").iterdir())


def test_the_default_model_is_looked_for_by_the_edge_that_a_file_shows(an_order, saved_model, tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    order = Order(**{**vars(an_order()), "model": "default"})
    path = write(tmp_path / "one" / "inbox" / "a.txt", "\n".join(f"{300 + n} {1000 - n}" for n in range(100)))
    with pytest.raises(UnusableModelError, match="no model for any edge is registered"):
        choose_model(path, order)
    (tmp_path / "home").mkdir()
    entries = [
        {"name": edge, "edge": edge, "path": str(saved_model), "registered": "2026", "champion": False}
        for edge in ("O_K", "Mn_L3")
    ]
    write_json(tmp_path / "home" / "models.json", entries)
    with pytest.raises(InputError, match="shows none of these edges"):
        choose_model(path, order)
    with pytest.raises(UnusableModelError, match="is for the edge O_K, and Mn_L3 is asked for"):
        choose_model(path, Order(**{**vars(order), "edge": "Mn_L3"}))


def test_a_folder_takes_the_place_of_another_whole(tmp_path):
    for name in ("old", "new"):
        write(tmp_path / name / "file", name)
    put_in_place(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_maps_carry_no_times(good, an_order):
    order = an_order()
    one = with_content(put(good, order.out.parent / "inbox"), order)
    work_through(one, order, yes)
    text = json.dumps(read_json(order.folder_for(one) / "summary.json"))
    assert str(order.out.parent) not in text  # nor where they were made
    assert time.strftime("%Y-%m") not in text


def test_what_was_read_while_it_changed_is_kept_nowhere(good, an_order, monkeypatch):
    order = an_order()
    one = with_content(put(good, order.out.parent / "inbox"), order)
    found = iter([one.sha256, "0" * 64])  # before it is read, and after

    def changing(path):
        return next(found) if str(path) == one.path else digest_file(path)

    monkeypatch.setattr("eelsflow.catalogue.process.digest_file", changing)
    assert work_through(one, order, yes) is None
    assert not order.folder_for(one).exists()
    assert Store(order.store).entries() == []


def test_where_a_worker_does_not_see_the_inbox_no_file_is_at_fault(good, an_order, tmp_path):
    order = an_order()
    one = with_content(put(good, tmp_path / "one" / "inbox"), order)
    (tmp_path / "one" / "inbox").rename(tmp_path / "unmounted")
    with pytest.raises(OSError, match="the inbox is not seen on") as raised:
        work_through(one, order, yes)
    assert raised.value.errno in TROUBLE


def test_from_a_bucket_to_a_bucket_everything_comes_to_the_same_bytes(
    good, an_order, bucket_url, catalogue, saved_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    local = an_order()
    one = with_content(put(good, tmp_path / "one" / "inbox"), local)
    work_through(one, local, yes)

    files = fsspec.filesystem("s3")
    files.put(str(good), f"{bucket_url}/inbox/good.zarr", recursive=True)
    files.pipe_file(f"{bucket_url}/inbox/broken.dm3", b"no microscope wrote this")
    monkeypatch.setenv("EELSFLOW_STORE", f"{bucket_url}/store")
    order = make_order(f"{bucket_url}/inbox", out=f"{bucket_url}/results", model=str(saved_model))
    catalogue = Catalogue(catalogue.url)
    assert watch(order, pool=Inline(), interval=0.1, once=True, catalogue=catalogue) == []

    mapped, broken = catalogue.find(f"{bucket_url}/inbox/good.zarr"), catalogue.find(f"{bucket_url}/inbox/broken.dm3")
    assert mapped.map == f"{bucket_url}/results/maps/{one.result_name}"
    Bucket(f"{bucket_url}/results").get_folder(f"maps/{one.result_name}", tmp_path / "fetched")
    assert contents(tmp_path / "fetched") == contents(local.folder_for(one))
    note = read_from(f"{bucket_url}/results/quarantine", f"{broken.result_name}.txt")
    assert "not a readable DigitalMicrograph file" in note.decode()

    # another machine finds what was prepared, and writes no map that is there
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "other"))
    monkeypatch.setattr("eelsflow.catalogue.process.prepare_acquisition", fetched_alone)
    monkeypatch.setattr(Bucket, "put_folder", lambda *_, **__: pytest.fail("written again"))
    order = make_order(order.inbox, out=f"{bucket_url}/results", model=str(saved_model))
    assert work_through(mapped, order, yes)["map"] == mapped.map


def fetched_alone(step, place, *, read):
    assert place.store.has(step.digest)
    return place.store.path(step.digest)
