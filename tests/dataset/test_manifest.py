import pytest

from eelsflow.dataset.manifest import read_manifest
from eelsflow.errors import StudyFileError, UnreadableFileError


@pytest.fixture
def manifest(tmp_path):
    for name in ("a.dm3", "b.dm3"):
        (tmp_path / name).write_bytes(name.encode())

    def write(text):
        path = tmp_path / "manifest.csv"
        path.write_text(text)
        return path

    return write


def test_rows_become_acquisitions_with_absolute_paths_and_digests(manifest, tmp_path):
    first, second = read_manifest(manifest("path,label,group\na.dm3,FeO,cube-1\nb.dm3,,\n"))
    assert (first.path, first.label, first.group) == (tmp_path / "a.dm3", "FeO", "cube-1")
    assert (second.label, second.group) == ("", "b")
    assert first.sha256 != second.sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.dm3,FeO\n", "expected path, label, group"),
        ("path,label,group\n", "names no acquisition"),
        ("path,label,group\na.dm3,FeO,\na.dm3,FeO,\n", "line 3.*already given in line 2"),
        ("path,label,group\n,FeO,\n", "line 2: the path is empty"),
    ],
)
def test_manifest_that_cannot_be_used_is_refused(manifest, text, message):
    with pytest.raises(StudyFileError, match=message):
        read_manifest(manifest(text))


def test_missing_file_is_named(manifest):
    with pytest.raises(UnreadableFileError, match=r"c\.dm3 cannot be read: No such file"):
        read_manifest(manifest("path,label,group\nc.dm3,FeO,\n"))


def test_same_content_under_two_names_is_refused(manifest, tmp_path):
    (tmp_path / "copy.dm3").write_bytes(b"a.dm3")
    with pytest.raises(StudyFileError, match="same content"):
        read_manifest(manifest("path,label,group\na.dm3,FeO,\ncopy.dm3,Fe3O4,\n"))


def test_files_of_one_name_in_two_folders_are_told_apart(manifest, tmp_path):
    (tmp_path / "day2").mkdir()
    (tmp_path / "day2" / "a.dm3").write_bytes(b"other")
    first, second = read_manifest(manifest("path,label,group\na.dm3,FeO,\nday2/a.dm3,Fe3O4,\n"))
    assert first.name != second.name
    assert first.group != second.group
    reverse = read_manifest(manifest("path,label,group\nday2/a.dm3,Fe3O4,\na.dm3,FeO,\n"))
    assert reverse == [second, first]
