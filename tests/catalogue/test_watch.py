import errno
import time
from pathlib import Path
from threading import Event

import pytest

from eelsflow.catalogue import watch as watching
from eelsflow.catalogue.ledger import Catalogue
from eelsflow.catalogue.process import Order
from eelsflow.catalogue.states import State
from eelsflow.catalogue.watch import MOST_ATTEMPTS, MOST_LOSSES, Watcher, say_end
from eelsflow.catalogue.workers import WorkerDiedError
from eelsflow.errors import EdgeOutOfRangeError, UnusableModelError
from tests.catalogue.files import Inline, write

FACTS = {"pixels": 4, "classes": {"FeO": 3}, "energy_offset": {"value": None}, "spikes": {"pixels": 0}}


@pytest.fixture
def made(monkeypatch):
    """Names of what was worked on, in order; a file's text says what comes of it."""
    names = []

    def process(acquisition, order, url, owner):
        names.append(acquisition.name)
        text = Path(acquisition.path).read_text()
        if text.startswith("bad"):
            raise EdgeOutOfRangeError("shows no edge")
        if text.startswith("fault"):
            raise ZeroDivisionError("a fault of ours")
        if text.startswith("killer"):
            raise WorkerDiedError("the process is gone")
        if text.startswith("changing"):
            return None
        return {"map": str(order.folder_for(acquisition)), "model": "m" * 64, "facts": FACTS}

    monkeypatch.setattr(watching, "process", process)
    monkeypatch.setattr(watching, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(watching, "ASK_SECONDS", 0.0)
    return names


@pytest.fixture
def order(inbox, tmp_path):
    return Order(inbox=str(inbox), out=tmp_path / "out", store=tmp_path / "store")


@pytest.fixture
def watcher(url, order):
    return Watcher(Catalogue(url), order, Inline(), settle_seconds=0.0)


def run(watcher):
    return watcher.run(interval=0.01, stop=Event(), once=True)


def states(watcher):
    return {one.name: str(one.state) for one in watcher.catalogue.select()}


def test_good_files_are_mapped_once_and_bad_ones_put_aside_with_the_reason(inbox, watcher, made, order):
    for name in ("a.txt", "b/c.txt", "d.txt"):
        write(inbox / name, f"good {name}")
    write(inbox / "x.txt", "bad")
    before = {path: path.read_bytes() for path in inbox.rglob("*.txt")}
    assert run(watcher) == []
    assert states(watcher) == dict.fromkeys(["a.txt", "c.txt", "d.txt"], "classified") | {"x.txt": "quarantined"}
    (note,) = (order.out / "quarantine").iterdir()
    assert "shows no edge" in note.read_text()
    assert str(inbox / "x.txt") in note.read_text()
    assert {path: path.read_bytes() for path in inbox.rglob("*.txt")} == before
    done = list(made)
    run(watcher)
    assert made == done


def test_the_same_content_under_a_second_name_is_an_alias(inbox, watcher, made):
    write(inbox / "a.txt", "good")
    write(inbox / "b.txt", "good")
    run(watcher)
    write(inbox / "0.txt", "good")  # later, though its name comes first
    run(watcher)
    assert made == ["a.txt"]
    found = {one.name: one.alias_of for one in watcher.catalogue.select()}
    assert found == {"a.txt": None, "b.txt": str(inbox / "a.txt"), "0.txt": str(inbox / "a.txt")}
    assert len({one.map for one in watcher.catalogue.select()}) == 1


def test_bad_content_under_a_second_name_is_put_aside_too(inbox, watcher, made):
    write(inbox / "a.txt", "bad")
    write(inbox / "b.txt", "bad")
    run(watcher)
    assert states(watcher) == {"a.txt": "quarantined", "b.txt": "quarantined"}


def test_a_file_that_changes_is_mapped_again_and_its_note_goes(inbox, watcher, made, order):
    path = write(inbox / "a.txt", "bad")
    run(watcher)
    write(path, "good", age=10)
    run(watcher)
    assert states(watcher) == {"a.txt": "classified"}
    run(watcher)
    assert made == ["a.txt", "a.txt"]


def test_a_fault_is_tried_again_some_times_and_does_not_stop_the_others(inbox, watcher, made, monkeypatch):
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.01)
    write(inbox / "a.txt", "fault")
    write(inbox / "b.txt", "good")
    run(watcher)
    assert made.count("a.txt") == MOST_ATTEMPTS
    assert states(watcher) == {"a.txt": "quarantined", "b.txt": "classified"}
    assert "a fault of the program, 5 times: ZeroDivisionError: a fault of ours" in watcher.catalogue.select()[0].reason


def test_what_takes_its_workers_with_it_does_not_do_so_for_ever(inbox, watcher, made, monkeypatch):
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.01)
    write(inbox / "a.txt", "killer")
    run(watcher)
    assert made.count("a.txt") == MOST_LOSSES
    assert "for want of memory" in watcher.catalogue.select()[0].reason


@pytest.mark.parametrize(
    "error",
    [UnusableModelError("no model for O_K is registered yet"), OSError(errno.ENOSPC, "No space left on device")],
)
def test_what_is_not_the_file_s_fault_is_waited_for_and_said(inbox, watcher, made, monkeypatch, error):
    good = watching.process
    write(inbox / "a.txt", "good")

    def refuse(*_):
        raise error

    monkeypatch.setattr(watching, "process", refuse)
    (held,) = run(watcher)
    assert held.reason.endswith(str(error))
    assert states(watcher) == {"a.txt": "ingested"}
    assert held.attempts == 0
    monkeypatch.setattr(watching, "process", good)
    monkeypatch.setattr(watcher, "_held", set())
    assert run(watcher) == []
    assert states(watcher) == {"a.txt": "classified"}


def test_what_cannot_be_begun_just_now_is_given_back_at_once(inbox, watcher, made, monkeypatch):
    for name in ("a.txt", "b.txt", "c.txt"):
        write(inbox / name, f"good {name}")
    watcher.look()
    watcher.look()

    def no_process(*_):
        raise OSError("no process can be started")

    monkeypatch.setattr(watcher.pool, "submit", no_process, raising=False)
    with pytest.raises(OSError, match="no process"):
        watcher.work()
    assert {one.owner for one in watcher.catalogue.select()} == {None}
    monkeypatch.undo()


def test_a_full_disk_is_never_taken_for_a_bad_file(inbox, watcher, made, monkeypatch):
    monkeypatch.setattr(watching.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 0})())
    (watcher.order.out).mkdir(exist_ok=True)
    write(inbox / "a.txt", "bad")
    (held,) = run(watcher)
    assert held.name == "a.txt"


def test_a_watcher_that_was_killed_between_any_two_steps_is_taken_over_from(inbox, order, url, made):
    """Every state in which a file can be left, with the owner gone."""
    for number in range(4):
        write(inbox / f"{number}.txt", f"good {number}")
    first = Watcher(Catalogue(url), order, Inline(), settle_seconds=0.0)
    first.catalogue.owner = f"{first.catalogue.owner.rpartition('_')[0].rpartition('_')[0]}_999999999_dead"
    first.look()
    first.look()
    _, two, three = first.catalogue.claim(order.inbox, most=3)
    first.catalogue.advance(two, State.INGESTED, sha256="2" * 64)
    first.catalogue.advance(three, State.INGESTED, sha256="3" * 64)
    first.catalogue.advance(three, State.PREPARED)
    second = Watcher(Catalogue(url), order, Inline(), settle_seconds=0.0)
    run(second)
    assert set(states(second).values()) == {"classified"}
    assert sorted(made) == ["0.txt", "1.txt", "2.txt", "3.txt"]


def test_two_watchers_of_one_inbox_map_everything_once(inbox, order, url, made):
    for number in range(12):
        write(inbox / f"{number}.txt", f"good {number}")
    one, other = (Watcher(Catalogue(url), order, Inline(), settle_seconds=0.0) for _ in range(2))
    for watcher in (one, other, one, other):
        watcher.look()
    while set(states(one).values()) != {"classified"}:
        one.work()
        other.work()
    assert sorted(made) == sorted(f"{number}.txt" for number in range(12))


def test_a_file_that_goes_away_before_it_is_taken_is_forgotten(inbox, watcher, made):
    path = write(inbox / "a.txt", "good")
    watcher.look()
    path.unlink()
    watcher.look()
    assert watcher.catalogue.select() == []


def test_a_file_that_changes_while_it_is_worked_on_is_looked_at_again(inbox, watcher, made):
    path = write(inbox / "a.txt", "changing")
    watcher.look()
    watcher.look()
    watcher.work()
    watcher.work()
    assert states(watcher) == {"a.txt": "ingested"}
    write(path, "good", age=1)
    run(watcher)
    assert states(watcher) == {"a.txt": "classified"}


def test_old_files_are_passed_over_where_a_date_is_given(inbox, url, order, made):
    write(inbox / "old.txt", "good", age=3 * 86400)
    write(inbox / "new.txt", "good new", age=3600)
    watcher = Watcher(Catalogue(url), order, Inline(), settle_seconds=0.0, since=time.time() - 86400)
    run(watcher)
    assert states(watcher) == {"new.txt": "classified"}


def test_a_link_out_is_put_aside_with_a_note_and_never_opened(inbox, watcher, made, tmp_path, order):
    write(tmp_path / "secret.txt", "good")
    (inbox / "link.txt").symlink_to(tmp_path / "secret.txt")
    run(watcher)
    assert states(watcher) == {"link.txt": "quarantined"}
    assert made == []
    (note,) = (order.out / "quarantine").iterdir()
    assert "leads out of the inbox" in note.read_text()


def test_an_end_is_said_in_a_line(inbox, watcher, made):
    write(inbox / "a.txt", "good")
    run(watcher)
    (one,) = watcher.catalogue.select()
    assert say_end(one) == "a.txt: mapped 4 pixels (FeO 3), 0 with spikes"


def test_copies_of_a_file_that_waits_for_a_model_do_not_keep_a_single_pass_for_ever(inbox, watcher, made, monkeypatch):
    def refuse(*_):
        raise UnusableModelError("no model")

    monkeypatch.setattr(watching, "process", refuse)
    write(inbox / "a.txt", "good")
    write(inbox / "b.txt", "good")
    assert {one.name for one in run(watcher)} == {"a.txt", "b.txt"}


def test_an_inbox_that_goes_away_puts_no_file_aside(inbox, watcher, made, tmp_path):
    write(inbox / "a.txt", "good")
    watcher.look()
    watcher.look()
    inbox.rename(tmp_path / "unmounted")
    with pytest.raises(OSError, match=r"the inbox .* is not there"):
        watcher.work()
    assert states(watcher) == {"a.txt": "stable"}
    (tmp_path / "unmounted").rename(inbox)
    run(watcher)
    assert states(watcher) == {"a.txt": "classified"}


def test_a_file_that_goes_away_before_it_is_read_is_forgotten(inbox, watcher, made):
    path = write(inbox / "a.txt", "good")
    watcher.look()
    watcher.look()
    path.unlink()
    watcher.work()
    watcher.look()
    assert watcher.catalogue.select() == []


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("odd"), "quarantined"), (PermissionError("no right to read it"), "stable")]
)
def test_a_file_that_cannot_be_identified_stops_no_other(inbox, watcher, made, monkeypatch, error, state):
    identify = watching.identify

    def odd(one, order):
        if one.name == "a.txt":
            raise error
        return identify(one, order)

    monkeypatch.setattr(watching, "identify", odd)
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.0)
    for name in ("a.txt", "b.txt"):
        write(inbox / name, f"good {name}")
    run(watcher)
    assert states(watcher) == {"a.txt": state, "b.txt": "classified"}


def test_the_network_is_no_file_s_fault(inbox, watcher, made, monkeypatch):
    def refuse(*_):
        raise ConnectionResetError("by peer")

    write(inbox / "a.txt", "good")
    monkeypatch.setattr(watching, "process", refuse)
    (held,) = run(watcher)
    assert held.attempts == 0


def test_a_fault_of_the_watcher_does_not_end_it_unless_it_stays(inbox, watcher, made, monkeypatch):
    write(inbox / "a.txt", "good")
    look, faults = watcher.look, iter([KeyError("a fault of ours"), KeyError("again")])

    def sometimes():
        for fault in faults:
            raise fault
        look()

    monkeypatch.setattr(watcher, "look", sometimes)
    run(watcher)
    assert states(watcher) == {"a.txt": "classified"}
    monkeypatch.setattr(watcher, "look", lambda: {}["stays"])
    with pytest.raises(KeyError, match="stays"):
        run(watcher)


def test_what_another_watcher_has_begun_is_waited_for_though_it_came_later(inbox, order, url, made):
    one, other = (Watcher(Catalogue(url), order, Inline(), settle_seconds=0.0) for _ in range(2))
    write(inbox / "a.txt", "good")
    write(inbox / "b.txt", "good")
    one.look()
    one.look()
    first, second = one.catalogue.claim(order.inbox)
    for found in (first, second):
        one.catalogue.advance(found, State.INGESTED, sha256="c" * 64)
        one.catalogue.release(found.id)
    later = next(found for found in other.catalogue.claim(order.inbox) if found.name == "b.txt")
    other.catalogue.release(first.id)
    assert other.catalogue.original_of(later).name == "a.txt"
    earlier = next(found for found in one.catalogue.claim(order.inbox) if found.name == "a.txt")
    assert one.catalogue.original_of(earlier).name == "b.txt"  # the other has it in hand
    other.catalogue.release(later.id)
    assert one.catalogue.original_of(earlier) is None
