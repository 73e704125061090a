"""Fixtures of the readers."""

import pytest

from tests.io.cube_files import CUBES


@pytest.fixture(scope="session")
def cubes(tmp_path_factory):
    """The folder of all files of `CUBES`."""
    folder = tmp_path_factory.mktemp("cubes")
    for name, writer in CUBES.items():
        writer(folder / name)
    return folder
