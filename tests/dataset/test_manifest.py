import numpy as np
import pytest

from eelsflow.dataset.manifest import check_labels, read_manifest
from eelsflow.errors import DataSetError, StudyFileError, UnreadableFileError


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
        ("path\na.dm3\n", "missing: label, group"),
        ("path,label,group,label\na.dm3,FeO,,FeO\n", "given twice: label"),
        ("path,label,group\nb.dm3,,\na.dm3,FeO,cube, old\n", "line 3: 4 cells for 3 columns.*' old'"),
        ("path,label,group,low_loss\na.dm3,FeO,,zlp.dm3\n", "line 2: low_loss names zlp.dm3, which does not exist"),
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


def test_manifest_saved_by_excel_with_a_byte_order_mark_is_read(manifest):
    [acquisition] = read_manifest(manifest("\ufeffpath,label,group,low_loss\na.dm3,FeO,,b.dm3\n"))
    assert acquisition.label == "FeO"


@pytest.mark.parametrize(
    ("labels", "split_by", "message"),
    [
        (["FeO", "FeO3"], ["pixel"], "b is labelled 'FeO3', which is not one of the classes"),
        (["FeO", "FeO"], ["pixel"], "{'FeO': 2, 'Fe3O4': 0}; a classifier needs at least two classes"),
        (["FeO", ""], ["pixel"], "{'FeO': 1, 'Fe3O4': 0}; a classifier needs at least two classes"),
        (["FeO", "Fe3O4"], ["group", "pixel"], "{'FeO': 1, 'Fe3O4': 1}; where whole groups are held out"),
        (["FeO", "Fe3O4"], [], "where whole groups are held out"),
    ],
)
def test_labels_that_no_study_can_be_made_of_are_refused(manifest, labels, split_by, message):
    acquisitions = read_manifest(manifest("path,label,group\na.dm3,{},\nb.dm3,{},\n".format(*labels)))
    with pytest.raises(DataSetError, match=message):
        check_labels(acquisitions, ["FeO", "Fe3O4"], split_by=split_by)


def test_truth_counts_for_the_phases_that_are_pure_somewhere(manifest, tmp_path):
    fraction = np.zeros((2, 2, 2))
    fraction[0, 0], fraction[:, 1] = 1, 0.5  # a row of Fe3O4 and one of both
    np.savez(tmp_path / "truth.npz", phase=["Fe3O4", "FeO"], phase_fraction=fraction)
    table = "path,label,group,truth\na.dm3,{},,\nb.dm3,,,truth.npz\n"
    check_labels(read_manifest(manifest(table.format("FeO"))), ["FeO", "Fe3O4"], split_by=["pixel"])
    with pytest.raises(DataSetError, match=r"{'FeO': 0, 'Fe3O4': 2}"):
        check_labels(read_manifest(manifest(table.format("Fe3O4"))), ["FeO", "Fe3O4"], split_by=["pixel"])
    with pytest.raises(DataSetError, match=r"truth of b names the phases .'FeO'."):
        check_labels(read_manifest(manifest(table.format("Fe3O4"))), ["Fe3O4", "Fe2O3"], split_by=["pixel"])
