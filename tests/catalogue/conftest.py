from itertools import count
from pathlib import Path

import psycopg
import pytest

from eelsflow.catalogue.ledger import Catalogue

_NUMBERS = count()


class Clock:
    """A time that the test moves."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The address of an empty catalogue, on either database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalogue.db'}"
    server, name = request.getfixturevalue("postgresql_server"), f"catalogue_{next(_NUMBERS)}"
    with psycopg.connect(f"postgresql://{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://{server}/{name}"


@pytest.fixture
def catalogue(url, clock):
    return Catalogue(url, clock=clock)


@pytest.fixture
def inbox(tmp_path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder
