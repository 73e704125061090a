import json
import subprocess
import sys
import threading
import time

import pytest

from eelsflow.catalogue import service
from eelsflow.catalogue.ledger import Catalogue
from eelsflow.catalogue.process import Order
from eelsflow.catalogue.service import (
    Stage,
    import_ledger,
    make_order,
    parse_date,
    send_back,
)
from eelsflow.catalogue.states import State
from eelsflow.catalogue.status import describe_status, format_status
from eelsflow.errors import InputError
from tests.catalogue.files import write


@pytest.fixture
def done(inbox, tmp_path, url):
    """A catalogue of a mapped file, a copy of it, and a quarantined one."""
    catalogue = Catalogue(url)
    order = Order(inbox=str(inbox), out=tmp_path / "out", store=tmp_path / "store")
    from eelsflow.catalogue.inbox import LocalInbox

    for name in ("a.txt", "b.txt", "c.txt"):
        write(inbox / name, name, age=100.0 if name != "c.txt" else 10 * 86400.0)
    for found in LocalInbox(inbox).list():
        kept = {"sha256": found.path[-5] * 64, "facts": {"prepared": "p" * 64}}
        name = found.path.rpartition("/")[2]
        if name == "c.txt":
            catalogue.take_over(found, State.QUARANTINED, reason="it is\nempty", sha256="c" * 64)
        else:
            alias = str(inbox / "a.txt") if name == "b.txt" else None
            catalogue.take_over(found, State.CLASSIFIED, map="/maps/a", alias_of=alias, **kept)
    return catalogue, order


def states(catalogue):
    return {one.name: str(one.state) for one in catalogue.select()}


def test_without_force_only_what_is_quarantined_is_tried_again(done):
    catalogue, order = done
    assert send_back(order, catalogue, since=0.0, force=None, path=None) == 1
    assert states(catalogue) == {"a.txt": "classified", "b.txt": "classified", "c.txt": "stable"}


@pytest.mark.parametrize(
    ("force", "state"), [("classified", "prepared"), ("prepared", "ingested"), ("ingested", "stable")]
)
def test_with_force_what_is_mapped_is_done_again_from_there_and_copies_follow(done, force, state):
    catalogue, order = done
    entry = order.store / "entries" / "pp" / ("p" * 64)
    entry.mkdir(parents=True)
    assert send_back(order, catalogue, since=0.0, force=Stage(force), path=None) == 2
    assert states(catalogue) == {"a.txt": state, "b.txt": "classified", "c.txt": "stable"}
    assert entry.exists() == (force == "classified")


def test_only_files_since_a_date_or_one_file_are_done_again(done, inbox):
    catalogue, order = done
    assert send_back(order, catalogue, since=parse_date("2100-01-01"), force=Stage.CLASSIFIED, path=None) == 0
    yesterday = (inbox / "a.txt").stat().st_mtime - 86400
    assert send_back(order, catalogue, since=yesterday, force=None, path=None) == 0  # the bad one is older
    assert send_back(order, catalogue, since=0.0, force=Stage.CLASSIFIED, path=str(inbox / "a.txt")) == 1


def test_a_date_that_is_none_is_an_error():
    with pytest.raises(InputError, match="'soon' is no date; write it as"):
        parse_date("soon")


def test_status_is_what_others_rely_on(done, inbox):
    catalogue, _ = done
    rows = json.loads(json.dumps(describe_status(catalogue)))
    assert {"path", "sha256", "state", "reason", "alias_of", "map"} <= set(rows[0])
    assert rows[2]["reason"] == "it is\nempty"
    assert len(describe_status(catalogue, str(inbox))) == 3


def test_status_is_told_without_what_maps_are_made_with():
    loaded = "import sys, eelsflow.catalogue.status; print(*{'alembic', 'numba', 'scipy', 'xarray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True).stdout.split() == []


def test_status_is_readable(done):
    catalogue, _ = done
    lines = format_status(describe_status(catalogue)).splitlines()
    assert lines[0].split() == ["acquisition", "state", "since", "map,", "or", "reason"]
    assert lines[1].split()[0:2] == ["a.txt", "classified"]
    assert lines[1].endswith("/maps/a")
    assert "the same content as" in lines[2]
    assert lines[3].endswith("it is empty")
    assert lines[4] == "3 acquisitions: 2 classified, 1 quarantined; 1 by another name"
    assert "no acquisition was seen yet" in format_status([])


def test_results_go_below_the_home_by_default(inbox, tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    order = make_order(str(inbox))
    assert (order.out, order.store) == (tmp_path / "home", tmp_path / "home" / "store")


def old_entry(path, out, state, number, **more):
    stat = path.stat()
    entry = {"path": str(path), "sha256": "a" * 64, "size": stat.st_size, "modified_ns": stat.st_mtime_ns,
             "state": state, "reason": None, "alias_of": None, "map": None} | more  # fmt: skip
    file = out / "ledger" / f"{number}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(entry))


def test_the_ledger_of_an_older_release_is_taken_over_once(inbox, tmp_path, url):
    catalogue, out = Catalogue(url), tmp_path / "out"
    (out / "maps" / "a").mkdir(parents=True)
    done, bad, unlucky, gone, changed = (write(inbox / f"{name}.txt", name) for name in "abcde")
    old_entry(done, out, "done", 1, map=str(out / "maps" / "a"))
    old_entry(bad, out, "quarantined", 2, reason="it is empty")
    old_entry(unlucky, out, "failed", 3, reason="OSError")
    old_entry(gone, out, "done", 4, map=str(out / "maps" / "nowhere"))
    old_entry(changed, out, "quarantined", 5, reason="it was empty")
    write(changed, "it is not empty any more")
    assert import_ledger(out, catalogue) == 2
    assert states(catalogue) == {"a.txt": "classified", "b.txt": "quarantined"}
    assert catalogue.select()[0].map == str(out / "maps" / "a")
    assert import_ledger(out, catalogue) == 0


def test_what_is_done_every_minute_goes_on_after_a_failure(monkeypatch, caplog):
    monkeypatch.setattr(service, "MINUTE_SECONDS", 0.01)
    done = []

    def failing():
        done.append("failing")
        raise RuntimeError("for once")

    with service._every_minute(failing, lambda: done.append("other")):
        deadline = time.monotonic() + 10
        while done.count("other") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert done.count("failing") >= 3


def test_what_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(service, "BEGIN_SECONDS", 0.05)
    left = threading.Event()
    began = time.monotonic()
    service.begin(left.wait)
    assert time.monotonic() - began < 5
    left.set()
