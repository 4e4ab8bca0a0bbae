"""The service's database: SQLite beside the process, or PostgreSQL by URL.

Tables are registered on ``metadata`` by the modules that use them, and made where they are missing when it is opened.
What has been committed outlives ``kill -9`` and, with SQLite's full synchronisation, a power cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import StaticPool

from schemas.errors import MissingError, SpecError, UnreachableError

metadata = MetaData()

_BUSY_TIMEOUT_MS = 10_000
_READ_ONLY = "headworks_read_only"
_turn = Lock()
_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def open_database(url: str) -> Engine:
    """The database at ``sqlite:///FILE``, ``sqlite://`` (in memory, for tests) or ``postgresql://HOST/NAME``.

    Modules with tables must be imported before. Transactions are ``writing`` and ``reading``. On SQLite every other
    ``begin()`` takes the write lock at once, too, so that what a transaction reads still holds when it writes.

    Raises:
        SpecError: not such a URL. MissingError: the driver is not installed. UnreachableError: it does not open.
    """
    engine = _engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        metadata.create_all(engine)
    except OperationalError as error:
        raise UnreachableError(
            f"the database at {shown(url)} does not open: {str(error.orig).strip()}; check the URL, that the folder or "
            "server is there, and that this user may write to it"
        ) from error
    return engine


def shown(url: str) -> str:
    """The URL without its password."""
    return make_url(url).render_as_string(hide_password=True)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes nothing and waits for no writer."""
    with engine.connect().execution_options(**{_READ_ONLY: True}) as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that may write, committed at the end of the block; it must not be opened within another.

    Threads of this process take turns before SQLite's own lock: whom that keeps waiting sleeps up to 100 ms at a time,
    and may be overtaken again and again.
    """
    with _turn if engine.dialect.name == "sqlite" else nullcontext(), engine.begin() as connection:
        yield connection


def answers(engine: Engine) -> str:
    """Empty if the database answers, else why it does not."""
    try:
        with reading(engine) as connection:
            connection.execute(text("SELECT 1"))
    except OperationalError as error:
        return str(error.orig).strip()
    return ""


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SpecError(_expected("a text that is no URL")) from None
    if parsed.drivername not in {*_DRIVERS, *_DRIVERS.values()}:
        raise SpecError(_expected(parsed.drivername))
    parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
    options: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 10, "max_overflow": 40}
    if parsed.drivername.startswith("sqlite"):
        options = {"connect_args": {"check_same_thread": False}}
        if parsed.database in (None, "", ":memory:"):
            options["poolclass"] = StaticPool
        else:
            _make_private(Path(parsed.database))
    try:
        return create_engine(parsed, **options)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise MissingError(f"--database: {error}; install the extra: pip install 'headworks[postgres]'") from error


def _make_private(file: Path) -> None:
    """SQLite makes its files as everybody's to read; those beside it get the rights of this one."""
    # Where that cannot be, SQLite says what is wrong.
    with suppress(OSError):
        file.touch(mode=0o600, exist_ok=True)


def _expected(got: str) -> str:
    return f"--database: expected sqlite:///FILE or postgresql://USER@HOST/NAME, got {got}"


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    """Transactions are begun by ``_begin_sqlite``; Python's driver would begin them later than they are."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={_BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON",
    ):  # fmt: skip
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
