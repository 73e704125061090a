from pathlib import Path

import pytest

from eelsflow.errors import UnreadableFileError
from eelsflow.io.formats import FORMATS, READABLE_EXTENSIONS, is_readable_name, list_formats
from eelsflow.io.read import read_spectrum_image


def test_no_extension_belongs_to_two_formats():
    assert len(set(READABLE_EXTENSIONS)) == len(READABLE_EXTENSIONS)
    assert all(extension == extension.lower() for extension in READABLE_EXTENSIONS)


def test_help_names_every_extension():
    assert all(extension in list_formats() for one in FORMATS for extension in one.extensions)


def test_page_of_formats_names_every_extension():
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert [extension for extension in READABLE_EXTENSIONS if not any(extension in row for row in rows)] == []


@pytest.mark.parametrize("name", ["a.tif", "a.TIFF", "a.h5", "a.raw", "a.emi", "a.npz"])
def test_names_that_pictures_and_parts_bear_are_no_acquisitions_of_a_folder(name):
    assert not is_readable_name(name)


@pytest.mark.parametrize(("name", "match"), [("a.raw", r"open the \.rpl file"), ("a.emi", r"open the \.ser file")])
def test_part_of_an_acquisition_says_which_file_to_open(tmp_path, name, match):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UnreadableFileError, match=match):
        read_spectrum_image(tmp_path / name)


@pytest.mark.parametrize("name", ["x.dm3", "x.msa", "x.emd", "x.txt", "x.ser"])
def test_folder_with_the_name_of_a_file_is_called_a_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UnreadableFileError, match=r"is a folder; expected a file of the format"):
        read_spectrum_image(tmp_path / name)
