"""The tables of the catalogue, and how a database comes to have them.

The tables are changed by the migrations beside this module alone (alembic); a test compares the two.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from eelsflow.errors import InputError

METADATA = sa.MetaData()

ACQUISITIONS = sa.Table(
    "acquisitions",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("path", sa.Text, nullable=False, unique=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("unchanged_since", sa.Float, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("sha256", sa.String(64), index=True),
    sa.Column("reason", sa.Text),
    sa.Column("alias_of", sa.Text),
    sa.Column("map", sa.Text),
    sa.Column("model", sa.String(64)),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("losses", sa.Integer, nullable=False, default=0),
    sa.Column("not_before", sa.Float, nullable=False, default=0.0),
    sa.Column("owner", sa.Text, index=True),
    sa.Column("lease_until", sa.Float, nullable=False, default=0.0),
    sa.Column("first_seen", sa.Float, nullable=False),
    sa.Column("changed", sa.Float, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
)

EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("acquisition", sa.Integer, sa.ForeignKey("acquisitions.id"), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("note", sa.Text),
)

SETTINGS = sa.Table(
    "settings",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

BUSY_SECONDS = 30.0  # how long a writer waits for the others on SQLite
MIGRATING = 0x65656C73  # a number of ours for PostgreSQL's lock


def connect(url: str) -> sa.Engine:
    """Connect to a database and bring its tables up to date; several programs may do so at once.

    Raises
    ------
    InputError
        If the address is not understood, or no database answers there.
    """
    try:
        address = sa.make_url(url)
        if address.get_backend_name() == "sqlite":
            engine = sa.create_engine(address, connect_args={"timeout": BUSY_SECONDS})
            sa.event.listen(engine, "connect", _set_up_sqlite)
            sa.event.listen(engine, "begin", _begin_as_writer)
        else:
            engine = sa.create_engine(address, pool_pre_ping=True, pool_size=2)
        _migrate(engine)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
        raise InputError(
            f"the catalogue's address is {_without_password(url)!r}, which cannot be used ({error}); write "
            "sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE into EELSFLOW_CATALOGUE"
        ) from error
    return engine


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "(not a URL)"


def _set_up_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_as_writer(connection: sa.Connection) -> None:
    # Who reads first and writes then is refused at once where another has written meanwhile; so nobody does.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


@contextlib.contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Provide a transaction that writes."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


def newest_revision() -> str:
    """Return the revision that the tables above are of: migrations are numbered, and files begin with the number."""
    versions = Path(__file__).with_name("migrations") / "versions"
    return max(file.name.partition("_")[0] for file in versions.glob("[0-9]*.py"))


def _migrate(engine: sa.Engine) -> None:
    head = newest_revision()
    if _revision(engine) == head:
        return
    with _alone(engine):
        if _revision(engine) != head:
            _upgrade(engine)


def _revision(engine: sa.Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(engine: sa.Engine) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextlib.contextmanager
def _alone(engine: sa.Engine) -> Iterator[None]:
    """Let one program at a time change the tables."""
    if engine.url.get_backend_name() == "sqlite":
        with Path(f"{engine.url.database}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATING})
        try:
            yield
        finally:
            connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATING})
