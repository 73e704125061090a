import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from eelsflow.errors import EdgeOutOfRangeError, InputError, UnreadableFileError, UnusableModelError
from eelsflow.inbox import Entry, Ledger, find_new, judge, summarize


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "out")


def write(path: Path, text: str, *, age: float = 100.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    touch(path, age=age)
    return path


def touch(path: Path, *, age: float) -> None:
    moment = time.time() - age
    os.utime(path, (moment, moment))


def finish(ledger: Ledger, entry: Entry) -> Entry:
    folder = ledger.folder_for(entry)
    folder.mkdir(parents=True)
    done = replace(entry, state="done", map=str(folder))
    ledger.record(done)
    return done


def names(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries]


def test_find_new_lists_readable_files_of_all_folders_once(inbox: Path, ledger: Ledger) -> None:
    for name in ("a.dm3", "monday/b.msa", "notes.pdf", ".hidden.dm3", ".git/c.dm3"):
        write(inbox / name, name)
    assert names(find_new(inbox, ledger)) == ["a.dm3", "b.msa"]


def test_find_new_takes_a_zarr_store_as_one_acquisition(inbox: Path, ledger: Ledger) -> None:
    for name in ("scan.zarr/zarr.json", "scan.zarr/0/c.msa"):
        write(inbox / name, name)
    for path in (inbox / "scan.zarr").rglob("*"):
        touch(path, age=100)
    assert names(find_new(inbox, ledger)) == ["scan.zarr"]


def test_find_new_leaves_a_file_that_is_still_being_written(inbox: Path, ledger: Ledger) -> None:
    path = write(inbox / "a.dm3", "half", age=1)
    assert find_new(inbox, ledger) == []
    touch(path, age=11)
    assert names(find_new(inbox, ledger)) == ["a.dm3"]


def test_find_new_passes_over_what_is_done_until_its_content_changes(inbox: Path, ledger: Ledger) -> None:
    path = write(inbox / "a.dm3", "first")
    finish(ledger, find_new(inbox, ledger)[0])
    assert find_new(inbox, ledger) == []
    touch(path, age=50)  # the content is the same
    assert find_new(inbox, ledger) == []
    write(path, "second")
    assert names(find_new(inbox, ledger)) == ["a.dm3"]


def test_find_new_lists_a_file_again_whose_map_is_gone(inbox: Path, ledger: Ledger) -> None:
    write(inbox / "a.dm3", "first")
    done = finish(ledger, find_new(inbox, ledger)[0])
    Path(done.map or "").rmdir()
    assert names(find_new(inbox, ledger)) == ["a.dm3"]


def test_find_new_records_a_copy_as_an_alias(inbox: Path, ledger: Ledger) -> None:
    write(inbox / "a.dm3", "same")
    write(inbox / "b.dm3", "same")
    (first,) = find_new(inbox, ledger)
    done = finish(ledger, first)
    assert find_new(inbox, ledger) == []
    (copy,) = [entry for entry in ledger.entries() if entry.path != first.path]
    assert (copy.state, copy.alias_of, copy.map) == ("done", first.path, done.map)


def test_find_new_does_not_try_quarantined_content_again_but_failed_content(inbox: Path, ledger: Ledger) -> None:
    write(inbox / "bad.dm3", "bad")
    write(inbox / "unlucky.dm3", "unlucky")
    bad, unlucky = find_new(inbox, ledger)
    ledger.record(replace(bad, state="quarantined", reason="no spectra in it"))
    ledger.record(replace(unlucky, state="failed", reason="OSError: disk full"))
    assert names(find_new(inbox, ledger)) == ["unlucky.dm3"]
    write(inbox / "bad.dm3", "better")
    assert names(find_new(inbox, ledger)) == ["bad.dm3", "unlucky.dm3"]


def test_find_new_refuses_what_is_not_a_folder(tmp_path: Path, ledger: Ledger) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        find_new(tmp_path / "absent", ledger)


def test_ledger_writes_a_reason_beside_and_removes_it_when_it_no_longer_holds(inbox: Path, ledger: Ledger) -> None:
    path = write(inbox / "bad.dm3", "bad")
    (entry,) = find_new(inbox, ledger)
    ledger.record(replace(entry, state="quarantined", reason="no spectra in it"))
    (note,) = (ledger.out / "quarantine").iterdir()
    assert "no spectra in it" in note.read_text()
    assert str(path) in note.read_text()
    assert path.read_text() == "bad"  # the user's file stays as it is, where it is
    finish(ledger, entry)
    assert not note.exists()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (UnreadableFileError("truncated"), "quarantined"),
        (EdgeOutOfRangeError("no O K edge"), "quarantined"),
        (UnusableModelError("damaged"), "failed"),
        (OSError("disk full"), "failed"),
    ],
)
def test_judge_blames_a_file_only_for_its_content(error: Exception, state: str) -> None:
    entry = judge(Entry("a.dm3", "0" * 64, 1, 2), error)
    assert entry.state == state
    assert str(error) in (entry.reason or "")


def test_summarize_has_the_keys_of_the_contract() -> None:
    entry = Entry("a.dm3", "0" * 64, 1, 2, state="quarantined", reason="empty")
    assert summarize([entry]) == [
        {
            "path": "a.dm3",
            "sha256": "0" * 64,
            "state": "quarantined",
            "reason": "empty",
            "alias_of": None,
            "map": None,
        }
    ]


def test_ripple_file_is_tried_again_when_its_counts_arrive(inbox: Path, ledger: Ledger) -> None:
    write(inbox / "a.rpl", "key\tvalue")
    [entry] = find_new(inbox, ledger)
    ledger.record(replace(entry, state="quarantined", reason="a.raw is missing"))
    assert find_new(inbox, ledger) == []
    write(inbox / "a.raw", "counts")
    assert names(find_new(inbox, ledger)) == ["a.rpl"]
