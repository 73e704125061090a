import io
import tarfile

import pytest

from eelsflow.bucket import Bucket, open_file_system, read_from
from eelsflow.errors import InputError, MissingDependencyError, OutputPathError
from eelsflow.store import Store


@pytest.fixture(params=["memory", "s3"])
def url(request, tmp_path):
    return f"memory://{tmp_path.name}/here" if request.param == "memory" else request.getfixturevalue("bucket_url")


def written(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_objects_are_written_read_replaced_and_removed(url, tmp_path):
    bucket, file = Bucket(url), tmp_path / "a.txt"
    assert not bucket.has("x/a.txt")
    assert bucket.read("x/a.txt") is None
    assert not bucket.get("x/a.txt", tmp_path / "absent")
    bucket.remove("x/a.txt")
    for text in ("one", "another"):
        file.write_text(text)
        bucket.put(file, "x/a.txt")
        assert bucket.has("x/a.txt")
        assert bucket.read("x/a.txt") == text.encode()
    assert bucket.get("x/a.txt", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "another"
    assert read_from(f"{url}/x", "a.txt") == read_from(str(tmp_path), "a.txt") == b"another"
    bucket.remove("x/a.txt")
    assert bucket.read("x/a.txt") is None


def test_a_folder_takes_the_place_of_the_one_that_was_there(url, tmp_path):
    bucket = Bucket(url)
    bucket.put_folder(written(tmp_path / "one", summary_json="1", map_zarr__c__0="old"), "maps/a", last="summary.json")
    bucket.put_folder(written(tmp_path / "two", summary_json="2", map_png="new"), "maps/a", last="summary.json")
    assert bucket.read("maps/a/summary.json") == b"2"
    assert bucket.read("maps/a/map.png") == b"new"
    assert bucket.read("maps/a/map.zarr/c/0") is None


def test_the_file_that_says_a_folder_is_whole_is_away_while_it_is_not(url, tmp_path, monkeypatch):
    bucket = Bucket(url)
    bucket.put_folder(written(tmp_path / "one", summary_json="1", z_txt="old"), "a", last="summary.json")
    put = Bucket.put

    def torn(self, path, name):
        if name.endswith("z.txt"):
            raise KeyboardInterrupt
        put(self, path, name)

    monkeypatch.setattr(Bucket, "put", torn)
    with pytest.raises(KeyboardInterrupt):
        bucket.put_folder(written(tmp_path / "two", summary_json="2", z_txt="new"), "a", last="summary.json")
    assert bucket.read("a/summary.json") is None


def test_stores_of_two_machines_compute_an_entry_once(url, tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_STORE", url)
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    assert not there.has("ab12")

    def write(directory):
        written(directory, value_txt="1", part__deep_txt="2")
        (directory / "empty").mkdir()

    made = here.compute("ab12", write)
    found = there.compute("ab12", lambda _: pytest.fail("computed twice"))
    assert found != made
    assert {str(path.relative_to(found)) for path in found.rglob("*")} == {
        "value.txt", "part", "part/deep.txt", "empty"
    }  # fmt: skip
    there.drop("ab12")
    assert there.has("ab12")
    there.discard("ab12")
    here.drop("ab12")
    assert not here.has("ab12")
    assert not list((tmp_path / "here" / "temporary").iterdir())


def test_an_entry_is_in_the_bucket_before_it_has_its_name_here(bucket_url, tmp_path, monkeypatch):
    monkeypatch.setenv("EELSFLOW_STORE", f"{bucket_url}/store")
    store = Store(tmp_path / "here")
    monkeypatch.setattr(Bucket, "put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.compute("ab12", lambda directory: written(directory, value_txt="1"))
    assert not store.has("ab12")
    assert not list((tmp_path / "here").rglob("value.txt"))


def test_a_bucket_that_is_not_there_is_named_with_what_it_takes(bucket_url, tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(OutputPathError, match=r"cannot write to s3://absent/x: .*credentials"):
        Bucket("s3://absent/x").put(tmp_path / "a", "a")


def test_a_bucket_that_does_not_answer_is_not_an_empty_one(bucket_url, monkeypatch):
    bucket = Bucket(bucket_url)

    def silent(*_, **__):
        raise TimeoutError("no answer")

    monkeypatch.setattr(bucket._files, "info", silent)
    with pytest.raises(OutputPathError, match=r"cannot read from .*no answer"):
        bucket.has("entries/ab/ab12.tar")


def test_what_was_computed_is_sent_again_where_a_bucket_is_away_for_a_while(bucket_url, tmp_path, monkeypatch):
    monkeypatch.setattr("eelsflow.store.SEND_AGAIN_SECONDS", (0.0, 0.0))
    monkeypatch.setenv("EELSFLOW_STORE", f"{bucket_url}/store")
    put, tries = Bucket.put, []

    def away(self, path, name):
        tries.append(name)
        if len(tries) < 3:
            raise OutputPathError("away")
        put(self, path, name)

    monkeypatch.setattr(Bucket, "put", away)
    entry = Store(tmp_path / "here").compute("ab12", lambda directory: written(directory, value_txt="1") and None)
    assert (entry / "value.txt").read_text() == "1"
    assert len(tries) == 3


def test_an_archive_in_the_bucket_cannot_write_beside_its_entry(url, tmp_path, monkeypatch):
    packed = tmp_path / "evil.tar"
    with tarfile.open(packed, "w") as archive:
        archive.addfile(tarfile.TarInfo("../../../evil.txt"), io.BytesIO())
    Bucket(url).put(packed, "entries/ab/ab12.tar")
    monkeypatch.setenv("EELSFLOW_STORE", url)
    with pytest.raises(OutputPathError, match="no entry of a store"):
        Store(tmp_path / "here").has("ab12")
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_store_that_is_no_url_and_an_unknown_file_system_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("EELSFLOW_STORE", "/data/store")
    with pytest.raises(InputError, match="expected the URL of a bucket"):
        Store(tmp_path)
    with pytest.raises(InputError, match="no address"):
        open_file_system("nonsense://x")
    with pytest.raises(MissingDependencyError, match="gcsfs"):
        open_file_system("gs://bucket/x")
