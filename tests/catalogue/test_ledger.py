import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from eelsflow.catalogue import tables
from eelsflow.catalogue.ledger import AGAIN, LEASE_SECONDS, Catalogue, Found
from eelsflow.catalogue.states import State
from eelsflow.catalogue.tables import METADATA, connect
from eelsflow.errors import InputError
from tests.catalogue.files import see

PATH = "/in/a.dm3"


def test_migrations_make_the_tables_that_the_code_uses(url):
    engine = connect(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_the_newest_revision_is_alembics():
    scripts = ScriptDirectory(str(Path(tables.__file__).with_name("migrations")))
    assert tables.newest_revision() == scripts.get_current_head()


def test_programs_that_start_at_once_set_one_catalogue_up(url):
    code = "import sys; from eelsflow.catalogue.ledger import Catalogue; Catalogue(sys.argv[1])"
    programs = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
    assert [program.wait(60) for program in programs] == [0, 0, 0]


@pytest.mark.parametrize("url", ["nonsense", "oracle9://x/y"])
def test_an_address_that_cannot_be_used_is_an_error_that_says_what_to_write(url):
    with pytest.raises(InputError, match=r"sqlite:///FILE or postgresql\+psycopg"):
        Catalogue(url)


def test_a_password_is_in_no_message():
    with pytest.raises(InputError) as caught:
        Catalogue("oracle9://user:secret@host/database")
    assert "secret" not in str(caught.value)


def test_a_file_is_stable_when_it_looks_the_same_twice(catalogue, clock):
    see(catalogue, PATH, size=1, settle=5)
    clock.now += 4
    see(catalogue, PATH, size=1, settle=5)
    assert catalogue.find(PATH).state is State.SEEN
    clock.now += 1
    see(catalogue, PATH, size=2, settle=5)  # it has grown
    clock.now += 4
    see(catalogue, PATH, size=2, settle=5)
    assert catalogue.find(PATH).state is State.SEEN
    clock.now += 1
    see(catalogue, PATH, size=2, settle=5)
    assert catalogue.find(PATH).state is State.STABLE


def test_a_file_that_is_open_for_writing_is_not_stable(catalogue):
    see(catalogue, PATH)
    see(catalogue, PATH, opened=[PATH])
    assert catalogue.find(PATH).state is State.SEEN
    see(catalogue, PATH)
    assert catalogue.find(PATH).state is State.STABLE


def stable(catalogue, *paths):
    see(catalogue, *paths)
    see(catalogue, *paths)


def test_of_two_watchers_one_gets_a_file(url, clock):
    one, other = Catalogue(url, clock=clock), Catalogue(url, clock=clock)
    stable(one, *[f"/in/{number}.dm3" for number in range(10)])
    mine, others = one.claim("/in", most=4), other.claim("/in")
    assert (len(mine), len(others)) == (4, 6)
    assert not {found.id for found in mine} & {found.id for found in others}
    assert one.claim("/in") == other.claim("/in") == []


def test_what_was_looked_at_before_another_took_it_is_not_taken_again(url, clock):
    one, other = Catalogue(url, clock=clock), Catalogue(url, clock=clock)
    stable(one, PATH)
    (found,) = one.select()
    assert other.claim("/in")
    assert not one._take(found, clock.now)


def test_what_another_takes_between_two_reads_is_not_stolen(url, clock, monkeypatch):
    one, other = Catalogue(url, clock=clock), Catalogue(url, clock=clock)
    see(one, PATH)
    see(one, PATH)
    select, taken = one.select, []

    def slow(*where):
        taken.extend(other.claim("/in"))
        return select(*where)

    monkeypatch.setattr(one, "select", slow)
    assert one.claim("/in") == []
    assert [found.path for found in taken] == [PATH]
    assert other.advance(taken[0], State.INGESTED, sha256="a" * 64)


def test_what_a_watcher_keeps_is_free_when_it_says_nothing_for_a_while(url, clock):
    one, other = Catalogue(url, clock=clock), Catalogue(url, clock=clock)
    one.owner = "another-host.1_7_aa"
    stable(one, PATH)
    (found,) = one.claim("/in")
    clock.now += LEASE_SECONDS - 1
    one.renew()
    clock.now += LEASE_SECONDS - 1
    assert other.claim("/in") == []
    clock.now += 2
    assert [again.id for again in other.claim("/in")] == [found.id]
    assert not one.advance(found, State.CLASSIFIED)  # it is another's now
    assert other.find(PATH).state is State.STABLE


def test_what_a_watcher_of_this_machine_keeps_is_free_when_its_process_is_gone(url, clock):
    one, other = Catalogue(url, clock=clock), Catalogue(url, clock=clock)
    gone = subprocess.run(
        [sys.executable, "-c", "from eelsflow.processes import name_process; print(name_process())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    stable(one, PATH)
    one.owner = f"{gone}_0123"
    assert len(one.claim("/in")) == 1
    assert len(other.claim("/in")) == 1


def test_a_result_of_old_content_is_not_recorded(catalogue):
    stable(catalogue, PATH)
    (old,) = catalogue.claim("/in")
    see(catalogue, PATH, version="2")
    assert catalogue.find(PATH).owner is None
    see(catalogue, PATH, version="2")
    (new,) = catalogue.claim("/in")  # by the same watcher
    assert not catalogue.advance(old, State.CLASSIFIED, map="/old")
    assert catalogue.advance(new, State.INGESTED, sha256="ab")


def test_history_tells_every_state_and_why(catalogue, clock):
    stable(catalogue, PATH)
    (one,) = catalogue.claim("/in")
    clock.now += 3
    catalogue.advance(one, State.QUARANTINED, reason="it is empty")
    assert [(state, note) for _, state, note in catalogue.history(one.id)] == [
        ("seen", None),
        ("stable", None),
        ("quarantined", "it is empty"),
    ]
    assert catalogue.find(PATH).changed == clock.now
    assert catalogue.find(PATH).owner is None


def test_content_that_changes_begins_anew(catalogue):
    stable(catalogue, PATH)
    (one,) = catalogue.claim("/in")
    catalogue.advance(one, State.QUARANTINED, reason="it is empty", attempts=3)
    see(catalogue, PATH, version="2")
    again = catalogue.find(PATH)
    assert (again.state, again.reason, again.attempts, again.sha256) == (State.SEEN, None, 0, None)


def test_what_is_postponed_is_taken_when_its_time_has_come(catalogue, clock):
    stable(catalogue, PATH)
    (one,) = catalogue.claim("/in")
    assert catalogue.postpone(one, 10, reason="no space", attempts=1)
    assert catalogue.claim("/in") == []
    clock.now += 10
    (again,) = catalogue.claim("/in")
    assert (again.reason, again.attempts) == ("no space", 1)


def ingested(catalogue, path, sha256):
    stable(catalogue, path)
    for one in catalogue.claim("/in"):
        if one.path == path:
            catalogue.advance(one, State.INGESTED, sha256=sha256)
        catalogue.release(one.id)
    return catalogue.find(path)


def test_the_first_of_a_content_is_its_original_unless_it_is_quarantined(catalogue):
    first, second = ingested(catalogue, "/in/a.dm3", "x"), ingested(catalogue, "/in/b.dm3", "x")
    other = ingested(catalogue, "/in/c.dm3", "y")
    assert catalogue.original_of(first) is None
    assert catalogue.original_of(second).path == "/in/a.dm3"
    assert catalogue.original_of(other) is None
    (first,) = catalogue.claim("/in", most=1)
    catalogue.advance(first, State.QUARANTINED, reason="bad")
    assert catalogue.original_of(second) is None


def test_an_original_that_is_mapped_stays_it_though_it_was_seen_later(catalogue):
    first, second = ingested(catalogue, "/in/a.dm3", "x"), ingested(catalogue, "/in/b.dm3", "x")
    (_, later) = catalogue.claim("/in")
    catalogue.advance(later, State.CLASSIFIED, map="/maps/b")
    assert catalogue.original_of(first).path == second.path


def test_sending_back_keeps_the_content_and_asks_for_the_map_again(catalogue):
    one = ingested(catalogue, PATH, "x")
    (one,) = catalogue.claim("/in")
    catalogue.advance(one, State.CLASSIFIED, map="/maps/a", facts={"pixels": 3})
    catalogue.send_back(catalogue.find(PATH), State.PREPARED, note="asked for")
    again = catalogue.find(PATH)
    assert (again.state, again.sha256, again.map) == (State.PREPARED, "x", "/maps/a")
    assert again.facts == {"pixels": 3, AGAIN: True}
    catalogue.send_back(again, State.STABLE, note="asked for")
    assert catalogue.find(PATH).sha256 is None


def test_only_what_is_below_an_inbox_is_its_own(catalogue):
    see(catalogue, "/in/a.dm3", "/in/deep/b.dm3", "/inbox2/c.dm3", "/in")
    assert [one.path for one in catalogue.below("/in/")] == ["/in/a.dm3", "/in/deep/b.dm3"]


def test_a_name_never_leads_out_of_the_folder_of_maps(catalogue):
    see(catalogue, "/in/..dm3", "/in/ö ü%2F..%2Fx.dm3", "/in/" + "n" * 200 + ".dm3")
    for one in catalogue.select():
        assert "/" not in one.result_name
        assert not one.result_name.startswith(".")
        assert len(one.result_name) < 100


def test_two_watchers_that_see_the_same_new_files_at_once_record_each_once(url):
    watchers, at_once = [Catalogue(url) for _ in range(3)], threading.Barrier(3)
    found = [Found(f"/in/{number}.dm3", 5, "v") for number in range(60)]

    def see(catalogue):
        at_once.wait()
        for one in found:
            catalogue.observe([one], settle_seconds=5.0, is_open=lambda _: False)
        catalogue.set("who", "somebody")

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(see, watchers))
    rows = watchers[0].select()
    assert sorted(row.path for row in rows) == sorted(one.path for one in found)
    assert {len(watchers[0].history(row.id)) for row in rows} == {1}
    assert watchers[0].setting("who") == "somebody"


def test_writers_wait_for_each_other(url):
    """Readers that become writers would be refused by SQLite at once; here every writer begins as one."""
    code = (
        "import sys; from eelsflow.catalogue.ledger import Catalogue; c = Catalogue(sys.argv[1])\n"
        "for k in range(40): c.set(sys.argv[2], str(k))"
    )
    programs = [subprocess.Popen([sys.executable, "-c", code, url, name]) for name in "abc"]
    assert [program.wait(60) for program in programs] == [0, 0, 0]
    catalogue = Catalogue(url)
    assert [catalogue.setting(name) for name in "abc"] == ["39", "39", "39"]
