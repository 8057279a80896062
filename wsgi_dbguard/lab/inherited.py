"""What the scenarios of `forking` inherit from a parent: connections held in every way that there is, on any database.

Loaded by path in an interpreter that has not imported the package, see `forking`: nothing of the package is imported
here. What differs between the databases is in `SQL`, one object for each.

Example, in a scenario::

    engine = forks.engine(url, certificate)
    sql = forks.sql(engine)
    held = forks.hold(engine)
    engine.connect().execute(text(sql.backend)).scalar() in held.backends
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.orm import scoped_session, sessionmaker

if TYPE_CHECKING:
    from .forking import Forks

__all__ = ["SQL", "STREAM", "Held", "engine_of", "sql_of"]

STREAM = {"stream_results": True, "max_row_buffer": 10}  # execution options


@dataclass(frozen=True)
class SQL:
    """How one database says it. `{key}` stands for the number of an advisory lock, which a session holds to its end."""

    backend: str
    """The server's own number of the connection."""
    numbers: str
    """1000 rows that begin with 1, 2, … and are more than any driver reads ahead: some lie in the socket."""
    lock: str
    unlock: str
    locked: str
    """'mine', as soon as it has the lock."""
    waiting: str
    """How many wait for the lock."""


_POSTGRESQL = SQL(
    backend="select pg_backend_pid()",
    numbers="select n, repeat('x', 200) from generate_series(1, 1000) as n",
    lock="select pg_advisory_lock({key})",
    unlock="select pg_advisory_unlock({key})",
    locked="select 'mine' from pg_advisory_lock({key})",
    waiting="select count(*) from pg_locks where locktype = 'advisory' and objid = {key} and not granted",
)
_MARIADB = SQL(
    backend="select connection_id()",
    numbers="select seq, repeat('x', 200) from seq_1_to_1000",
    lock="select get_lock('{key}', 0)",
    unlock="select release_lock('{key}')",
    locked="select if(get_lock('{key}', 600), 'mine', null)",
    waiting="select count(*) from information_schema.processlist"
    " where state = 'User lock' and info like '%get_lock(''{key}''%'",
)


def sql_of(name: str) -> SQL:
    """`name`: of a database as in `drivers`, or of SQLAlchemy's dialect."""
    return _POSTGRESQL if name == "postgresql" else _MARIADB


def engine_of(url: str, certificate: str | None, **options: Any) -> Engine:
    """An engine that encrypts where there is a `certificate`; pg8000 takes a context instead of libpq's words."""
    if certificate and url.startswith("postgresql+pg8000:"):
        context = ssl.create_default_context(cafile=certificate)
        return create_engine(make_url(url).set(query={}), connect_args={"ssl_context": context}, **options)
    return create_engine(url, **options)


class Held:
    """Connections to one database, held in every way that there is, each in a transaction; one lies in the pool.

    `in_child` and `in_parent` use and close them all, and return what was not as it should be.
    """

    def __init__(self, forks: Forks, engines: Sequence[Engine]) -> None:
        self.engines = engines
        self._failure = forks.failure
        self._sql = sql_of(engines[0].dialect.name)
        self._holders: list[tuple[str, Any]] = []  # all that can execute, rollback and close
        self._raw: list[tuple[str, Any]] = []
        self._results: list[Any] = []
        self._before: dict[str, int] = {}
        for engine in engines:
            self._check_out(engine)

    def _check_out(self, engine: Engine) -> None:
        holders: dict[str, Any] = {
            "idle": engine.connect(),
            "connection": engine.connect(),
            "detached": engine.connect(),
            "autocommit": engine.connect().execution_options(isolation_level="AUTOCOMMIT"),
            "session": scoped_session(sessionmaker(engine)),
            "stream": engine.connect(),
            "raw": engine.raw_connection(),
        }
        holders["detached"].detach()
        self._before |= {f"{engine.driver} {name}": self._backend(holder) for name, holder in holders.items()}
        result = holders["stream"].execute(text(self._sql.numbers), execution_options=STREAM)
        result.fetchone()
        self._results.append(result)
        holders.pop("idle").close()
        self._raw.append((f"{engine.driver} raw", holders.pop("raw")))
        self._holders += [(f"{engine.driver} {name}", holder) for name, holder in holders.items()]

    @property
    def backends(self) -> set[int]:
        """The server's own numbers of them."""
        return set(self._before.values())

    def in_child(self) -> list[str]:
        """By SQLAlchemy's own rules the transactions are lost: rolled back, all works on connections of the child's."""
        wrong = []
        for name, holder in self._holders:
            error = self._failure(partial(self._backend, holder))
            if error != "PendingRollbackError":
                wrong.append(f"{name} before rollback: {error}")
            holder.rollback()
        own = {name: self._backend(holder) for name, holder in self._holders}
        for name, raw in self._raw:
            if self._failure(partial(self._backend, raw)) is None:
                wrong.append(f"{name} works")
        self._close()
        for engine in self.engines:
            with engine.connect() as fresh:
                own[f"{engine.driver} engine"] = self._backend(fresh)
            engine.dispose()
        return wrong + [f"{name} is the parent's" for name, backend in own.items() if backend in self.backends]

    def in_parent(self) -> list[str]:
        """Each still has its own backend, and the streams go on where they were."""
        wrong = [f"stream: {rest}" for result in self._results if (rest := len(result.fetchall())) != 999]
        for name, holder in (*self._holders, *self._raw):
            if self._backend(holder) != self._before[name]:
                wrong.append(f"{name} has another backend")
        for engine in self.engines:
            with engine.connect() as idle:
                if self._backend(idle) != self._before[f"{engine.driver} idle"]:
                    wrong.append(f"{engine.driver} idle has another backend")
        self._close()
        for engine in self.engines:
            engine.dispose()
        return wrong

    def _close(self) -> None:
        for _, holder in (*self._holders, *self._raw):
            holder.close()

    def _backend(self, holder: Any) -> int:
        if hasattr(holder, "execute") and not hasattr(holder, "cursor"):
            return int(holder.execute(text(self._sql.backend)).scalar())
        cursor = holder.cursor()
        cursor.execute(self._sql.backend)
        (number,) = cursor.fetchone()
        cursor.close()
        return int(number)
