"""The database of a study: raters, links, sessions, lists, answers, events (SQLAlchemy; SQLite or another by URL)."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from isr.errors import UsageError

__all__ = ["answers", "assignments", "connect", "events", "links", "meta", "metadata", "raters", "sessions"]

metadata = MetaData()

meta = Table("meta", metadata, Column("key", String(40), primary_key=True), Column("value", Text, nullable=False))

raters = Table(
    "raters", metadata,
    Column("id", Integer, primary_key=True),
    Column("label", String(40), nullable=False, unique=True),
    Column("created", String(40), nullable=False),
    Column("consented", String(40)),
    Column("consent_hash", String(64)),
    Column("begun", String(40)),
    Column("revoked", String(40)),
    Column("withdrawn", String(40)),
)  # fmt: skip

#: One-time links and the sessions they are exchanged for. Only hashes of the secrets are stored.
links = Table(
    "links", metadata,
    Column("id", Integer, primary_key=True),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("role", String(12), nullable=False),
    Column("rater_id", ForeignKey("raters.id")),
    Column("created", String(40), nullable=False),
    Column("used", String(40)),
    Column("ended", String(40)),
)  # fmt: skip

sessions = Table(
    "sessions", metadata,
    Column("id", Integer, primary_key=True),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("role", String(12), nullable=False),
    Column("rater_id", ForeignKey("raters.id")),
    Column("created", String(40), nullable=False),
    Column("expires", String(40), nullable=False),
    Column("ended", String(40)),
)  # fmt: skip

assignments = Table(
    "assignments", metadata,
    Column("id", Integer, primary_key=True),
    Column("rater_id", ForeignKey("raters.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("item", String(40), nullable=False),
    Column("kind", String(12), nullable=False),
    UniqueConstraint("rater_id", "position"),
)  # fmt: skip

#: Append-only: a change of mind is a new row with the next revision. `key` is the browser's idempotency key.
answers = Table(
    "answers", metadata,
    Column("id", Integer, primary_key=True),
    Column("assignment_id", ForeignKey("assignments.id"), nullable=False),
    Column("rater_id", ForeignKey("raters.id"), nullable=False, index=True),
    Column("revision", Integer, nullable=False),
    Column("key", String(64), nullable=False),
    Column("said", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("seconds", Float),
    Column("received", String(40), nullable=False),
    UniqueConstraint("rater_id", "key"),
    UniqueConstraint("assignment_id", "revision"),
)  # fmt: skip

events = Table(
    "events", metadata,
    Column("id", Integer, primary_key=True),
    Column("at", String(40), nullable=False),
    Column("who", String(40), nullable=False),
    Column("what", String(40), nullable=False),
    Column("detail", Text, nullable=False),
)  # fmt: skip

_APPEND_ONLY = """
CREATE TRIGGER IF NOT EXISTS {table}_no_{verb} BEFORE {VERB} ON {table} {when}
BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END
"""

_POSTGRES_FUNCTION = """
CREATE OR REPLACE FUNCTION isr_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND TG_TABLE_NAME = 'answers' AND EXISTS (SELECT 1 FROM meta WHERE key = 'erasing') THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' is append-only';
END $$
"""
_POSTGRES_TRIGGER = """
CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION isr_append_only()
"""
#: Any fixed number: writers of one database wait for each other on it.
_POSTGRES_LOCK = 0x697372


def connect(url: str) -> Engine:
    """An engine whose tables exist.

    SQLite: write-ahead log, synchronous=FULL (an acknowledged answer survives a power cut), foreign keys on, and triggers that
    refuse to change answers and events. `write` as an execution option takes the write lock at once, so that two writers wait
    for each other instead of failing. PostgreSQL: the same triggers, and an advisory lock as the write lock.

    Raises:
        UsageError: no such database, or it cannot be reached or written.
    """
    try:
        sqlite = url.startswith("sqlite")
        engine = create_engine(
            url, pool_size=20, max_overflow=20, pool_pre_ping=not sqlite, **({"connect_args": {"timeout": 15}} if sqlite else {})
        )  # fmt: skip
    except (
        ArgumentError,
        NoSuchModuleError,
        ImportError,
        TypeError,
    ) as error:  # TypeError: in memory, where answers would be lost
        raise UsageError(
            f"database: cannot use the URL given ({type(error).__name__}); expected for example sqlite:////data/study.sqlite or "
            "postgresql+psycopg://user@host/name with its driver installed"
        ) from None
    if sqlite:
        event.listen(engine, "connect", _sqlite_settings)
        event.listen(engine, "begin", _sqlite_begin)
    elif engine.dialect.name == "postgresql":
        event.listen(engine, "begin", _postgres_begin)
    try:
        if sqlite and engine.url.database and not engine.url.database.startswith((":", "file:")):
            # Answers are for nobody else on the machine, wherever the file lies; its log files take over the mode.
            os.close(os.open(engine.url.database, os.O_CREAT | os.O_RDWR, 0o600))
        _make_tables(engine)
    except (DBAPIError, OSError) as error:
        engine.dispose()
        said = error.strerror if isinstance(error, OSError) else str(error.orig).strip().splitlines()[0]
        # The driver's words; the URL, which may hold a password, stays out.
        raise UsageError(
            f"database: it cannot be opened: {said}. Check that it runs, that the name is right and that it may "
            "be written"
        ) from None
    return engine


def _make_tables(engine: Engine) -> None:
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        metadata.create_all(connection)
        if engine.dialect.name == "sqlite":
            erasing = "WHEN NOT EXISTS (SELECT 1 FROM meta WHERE key = 'erasing')"
            for table in ("answers", "events"):
                for verb, when in (("update", ""), ("delete", erasing if table == "answers" else "")):
                    connection.exec_driver_sql(
                        _APPEND_ONLY.format(table=table, verb=verb, VERB=verb.upper(), when=when)
                    )
        elif engine.dialect.name == "postgresql":
            present = "SELECT count(*) FROM pg_trigger WHERE tgname = '{0}_append_only' AND tgrelid = '{0}'::regclass"
            for table in ("answers", "events"):
                if connection.exec_driver_sql(present.format(table)).scalar_one() == 0:
                    connection.exec_driver_sql(_POSTGRES_FUNCTION)
                    connection.exec_driver_sql(_POSTGRES_TRIGGER.format(table=table))


def _sqlite_settings(connection: Any, _record: Any) -> None:
    # SQLAlchemy's recipe: the driver must not begin transactions by itself, `_sqlite_begin` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    for line in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", "busy_timeout=15000"):
        cursor.execute(f"PRAGMA {line}")
    cursor.close()


def _sqlite_begin(connection: Any) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _postgres_begin(connection: Any) -> None:
    # Held until the transaction ends. Without it two writers see the same "last" rater, or a study that closes meanwhile.
    if connection.get_execution_options().get("write", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})")
