import os
import stat
import zipfile

import fsspec
import pytest

from eelsflow.catalogue.inbox import LocalInbox, RemoteInbox, look_at, open_inbox, refuse_unsafe
from eelsflow.errors import InputError, UnreadableFileError
from tests.catalogue.files import write


def names(inbox):
    return [one.path.removeprefix(inbox.root + "/") for one in inbox.list()]


def test_readable_files_of_all_folders_are_listed_and_a_store_is_one(inbox):
    for name in ("a.dm3", "monday/b.msa", "notes.pdf", ".hidden.dm3", ".git/c.dm3", "scan.zarr/zarr.json"):
        write(inbox / name, name)
    write(inbox / "scan.zarr" / "0" / "c.msa", "part of it")
    write(inbox / "scan.truth.zarr" / "zarr.json", "beside it")
    assert names(LocalInbox(inbox)) == ["a.dm3", "monday/b.msa", "scan.zarr"]


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        open_inbox(tmp_path / "absent")
    assert isinstance(open_inbox(f"file://{tmp_path}"), LocalInbox)


def test_the_look_of_a_file_changes_with_its_bytes_its_time_and_its_permission(inbox):
    path = write(inbox / "a.dm3", "abc")
    first = look_at(path)
    assert look_at(path) == first
    write(path, "abd", age=50)
    second = look_at(path)
    assert second.version != first.version
    path.chmod(stat.S_IRUSR)
    assert look_at(path).version != second.version


def test_the_look_of_a_store_changes_with_its_parts(inbox):
    write(inbox / "s.zarr" / "zarr.json", "{}")
    first = look_at(inbox / "s.zarr")
    write(inbox / "s.zarr" / "c" / "0", "chunk", age=1000)
    assert look_at(inbox / "s.zarr").version != first.version


def test_links_that_lead_out_or_nowhere_are_refused_with_the_reason(inbox, tmp_path):
    secret = write(tmp_path / "secret.txt", "not for the inbox")
    (tmp_path / "elsewhere").mkdir()
    (inbox / "out.txt").symlink_to(secret)
    (inbox / "up.txt").symlink_to("../secret.txt")
    (inbox / "folder").symlink_to(tmp_path / "elsewhere")
    (inbox / "nowhere.txt").symlink_to("absent.txt")
    write(inbox / "a.txt", "here")
    (inbox / "b.txt").symlink_to("a.txt")
    found = {one.path.rpartition("/")[2]: one.refused for one in LocalInbox(inbox).list()}
    assert found["a.txt"] is found["b.txt"] is None
    assert all("leads out of the inbox" in found[name] for name in ("out.txt", "up.txt", "folder"))
    assert "where nothing is" in found["nowhere.txt"]


def test_a_store_that_holds_a_link_out_is_refused(inbox, tmp_path):
    secret = write(tmp_path / "secret", "x")
    write(inbox / "s.zarr" / "zarr.json", "{}")
    (inbox / "s.zarr" / "0").symlink_to(secret)
    with pytest.raises(UnreadableFileError, match=r"a link to .*secret outside of the inbox"):
        refuse_unsafe(inbox / "s.zarr", inbox=str(inbox))


def test_a_file_that_is_open_for_writing_is_known(inbox):
    path = write(inbox / "a.txt", "x")
    listing = LocalInbox(inbox)
    with path.open("a"):
        assert str(path) in listing.open_for_writing()
    with path.open():
        assert str(path) not in listing.open_for_writing()


def test_a_folder_that_cannot_be_listed_is_said(inbox, monkeypatch):
    (inbox / "locked").mkdir()
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    (found,) = LocalInbox(inbox).list()
    assert "cannot be listed: Permission denied" in found.refused


def test_the_parts_of_a_store_that_is_done_are_not_looked_through_at_every_look(inbox, monkeypatch):
    write(inbox / "s.zarr" / "zarr.json", "{}")
    listing = LocalInbox(inbox)
    (found,) = listing.list()
    listing.ended.add(found.path)
    monkeypatch.setattr("eelsflow.catalogue.inbox.look_at", lambda path: pytest.fail("looked through again"))
    assert listing.list() == [found]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:\\evil", "..\\evil"])
def test_an_archive_that_leads_out_is_refused(tmp_path, name):
    path = tmp_path / "a.zspy"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(UnreadableFileError, match="leads out of it"):
        refuse_unsafe(path)


def test_an_archive_that_explodes_is_refused_without_being_unpacked(tmp_path):
    path = tmp_path / "bomb.zspy"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("0.0", "w", force_zip64=True) as member,
    ):
        for _ in range(1100):
            member.write(bytes(1 << 20))
    with pytest.raises(UnreadableFileError, match=r"unpacks to 1,153,433,600, \d+ times as many"):
        refuse_unsafe(path)


def test_an_archive_that_is_none_is_left_to_its_reader(tmp_path):
    good = tmp_path / "good.prz"
    with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", "{}" * 1000)
    refuse_unsafe(good)
    refuse_unsafe(write(tmp_path / "a.txt", "no archive"))


REMOTE = {
    "a.msa": b"one", "s.zarr/zarr.json": b"{}", "s.zarr/c/0.msa": b"x", "deep/b.rpl": b"header",
    "deep/b.raw": b"counts", "x.pdf": b"no", ".c.msa": b"hidden",
}  # fmt: skip


@pytest.fixture(params=["memory", "s3"])
def remote(request, tmp_path):
    """An inbox that is no folder, and what puts an object into it."""
    url = f"memory:///{tmp_path.name}" if request.param == "memory" else request.getfixturevalue("bucket_url")
    files = fsspec.url_to_fs(url)[0]

    def put(name, content):
        files.pipe_file(f"{url}/in/{name}", content)

    for name, content in REMOTE.items():
        put(name, content)
    return RemoteInbox(f"{url}/in"), put


def test_a_remote_inbox_lists_what_a_local_one_would(remote):
    inbox, _ = remote
    assert names(inbox) == ["a.msa", "deep/b.rpl", "s.zarr"]


def test_the_look_of_a_remote_file_changes_with_it(remote):
    inbox, put = remote
    before = {one.path: one.version for one in inbox.list()}
    put("a.msa", b"two")
    after = {one.path: one.version for one in inbox.list()}
    assert {path for path in before if before[path] != after[path]} == {f"{inbox.root}/a.msa"}


def test_a_remote_acquisition_is_fetched_with_what_belongs_to_it(remote, tmp_path):
    inbox, _ = remote
    assert inbox.fetch(f"{inbox.root}/a.msa", tmp_path).read_bytes() == b"one"
    assert inbox.fetch(f"{inbox.root}/deep/b.rpl", tmp_path).with_suffix(".raw").read_bytes() == b"counts"
    store = inbox.fetch(f"{inbox.root}/s.zarr", tmp_path)
    assert (store / "c" / "0.msa").read_bytes() == b"x"
    with pytest.raises(UnreadableFileError, match="is not there any more"):
        inbox.fetch(f"{inbox.root}/gone.msa", tmp_path)


def test_objects_that_no_folder_could_hold_are_refused_alone(remote, tmp_path):
    inbox, put = remote
    for name in ("/b.msa", "d.zarr/../../b.msa", "e [1].zarr/zarr.json", "e [1].zarr/c/0 #+%20ü"):
        put(name, b"odd")
    refused = {one.path.removeprefix(inbox.root) for one in inbox.list() if one.refused}
    assert refused <= {"//b.msa", "/d.zarr/../../b.msa"}  # the file system in memory makes other names of these
    store = inbox.fetch(f"{inbox.root}/e [1].zarr", tmp_path)
    assert (store / "c" / "0 #+%20ü").read_bytes() == b"odd"


def test_a_remote_file_that_goes_away_is_missed(remote):
    inbox, _ = remote
    inbox.list()
    fsspec.url_to_fs(inbox.root)[0].rm_file(f"{inbox.root}/a.msa")
    assert not inbox.is_there(f"{inbox.root}/a.msa")
    assert inbox.is_there(f"{inbox.root}/deep/b.rpl")


def test_what_cannot_be_looked_at_is_refused_alone_and_the_rest_is_seen(inbox):
    write(inbox / "good.txt", "x")
    os.mkfifo(inbox / "pipe.dm3")
    (inbox / os.fsdecode(b"\xfc.dm3")).write_text("a name of another encoding")
    write(inbox / "loop.zarr" / "zarr.json", "{}")
    (inbox / "loop.zarr" / "a").symlink_to("b")
    (inbox / "loop.zarr" / "b").symlink_to("a")
    write(inbox / "dangling.zarr" / "zarr.json", "{}")
    (inbox / "dangling.zarr" / "0").symlink_to("nowhere")
    found = {one.path.rpartition("/")[2]: one.refused for one in LocalInbox(inbox).list()}
    assert found["good.txt"] is None
    assert "neither a file nor a folder" in found["pipe.dm3"]
    assert "no UTF-8 text" in found["\\xfc.dm3"]
    assert found["loop.zarr"]
    assert "a link to where nothing is" in found["dangling.zarr"]
    for name in found:
        name.encode()  # a database takes it


def test_a_store_that_holds_a_link_to_a_folder_is_refused(inbox, tmp_path):
    write(inbox / "s.zarr" / "zarr.json", "{}")
    (tmp_path / "outside").mkdir()
    (inbox / "s.zarr" / "counts").symlink_to(tmp_path / "outside")
    with pytest.raises(UnreadableFileError, match="outside of the inbox"):
        refuse_unsafe(inbox / "s.zarr", inbox=str(inbox))
    (inbox / "inside").mkdir()
    (inbox / "s.zarr" / "counts").unlink()
    (inbox / "s.zarr" / "counts").symlink_to(inbox / "inside")
    with pytest.raises(UnreadableFileError, match="a link to a folder"):
        refuse_unsafe(inbox / "s.zarr", inbox=str(inbox))
