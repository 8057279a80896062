"""A mark that cannot be set, inside the application's COMMIT: nothing of that transaction lasts, on either database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.idempotency import Idempotent
from wsgi_dbguard.lab.postgres import PostgreSQL

from .conftest import KEYS, Database, kind, orders, post, rows, site, url_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# SQLSTATE in PostgreSQL, error number in MariaDB; what is found in the message.
SAID = {
    "deadlock": ("40P01", 1213, "deadlock"),
    "disk full": ("53100", 1114, "disk full"),
    "out of memory": ("53200", 1041, "out of memory"),
}
HELD = {
    "lock timeout": ("set local lock_timeout = '50ms'", "set innodb_lock_wait_timeout = 0", "lock"),
    "statement timeout": ("set local statement_timeout = '50ms'", "set max_statement_time = 0.05", "time"),
}
FAULTS = [*SAID, *HELD, "connection lost"]


class Faulty:
    """`fault` is there for the marks of `engine`, until `over()`."""

    def __init__(self, database: Database, engine: Engine, fault: str) -> None:
        self.database = database
        self.fault = fault
        self.over: Callable[[], object] = lambda: None
        self.postgresql = isinstance(database, PostgreSQL)
        if fault in SAID:
            self._say(*SAID[fault])
        elif fault in HELD:
            self._engine = engine

    def _say(self, state: str, number: int, message: str) -> None:
        """The server says so of every UPDATE of the table; MariaDB's statement fails, its transaction stays."""
        if self.postgresql:
            self.database.query(
                f"create function refuse() returns trigger language plpgsql as "
                f"$$ begin raise exception '{message}' using errcode = '{state}'; end $$"
            )
            self.database.query(f"create trigger refuse before update on {KEYS} for each row execute function refuse()")
            self.over = lambda: self.database.query("drop function if exists refuse() cascade")
        else:
            self.database.query(
                f"create trigger refuse before update on {KEYS} for each row "
                f"signal sqlstate 'HY000' set mysql_errno = {number}, message_text = '{message}'"
            )
            self.over = lambda: self.database.query("drop trigger if exists refuse")

    def strike(self, session: Session) -> None:
        """Just before the COMMIT."""
        if self.fault in HELD:
            mine, theirs, _ = HELD[self.fault]
            session.execute(text(mine if self.postgresql else theirs))
            holder = self._engine.connect()
            holder.execute(text(f"select id from {KEYS} for update"))
            self.over = holder.close
        elif self.fault == "connection lost":
            backend = "pg_backend_pid()" if self.postgresql else "connection_id()"
            self.database.terminate(session.scalar(text(f"select {backend}")) or 0)

    def open_transactions(self) -> int:
        if self.postgresql:
            busy = "select count(*) from pg_stat_activity where state like 'idle in transaction%%' and pid = any(%s)"
            return int(self.database.query(busy, self.database.backends())[0][0])
        return int(self.database.query("select count(*) from information_schema.innodb_trx")[0][0])


@pytest.fixture(params=FAULTS)
def faulty(request: pytest.FixtureRequest, database: Database, make_engine: Any) -> Iterator[Faulty]:
    faulty = Faulty(database, make_engine(url_of(database)), request.param)
    yield faulty
    faulty.over()


@pytest.fixture
def one(database: Database, make_engine: Any) -> Engine:
    """An engine whose next request gets the connection of the last one."""
    engine: Engine = make_engine(url_of(database), pool_size=1, max_overflow=0)
    return engine


def item_of(environ: WSGIEnvironment) -> dict[str, str]:
    return {"item": environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()}


INSERT = text("insert into orders values (:item)")


class Shop:
    """Inserts what it is sent, by `way`; the fault comes with the first one."""

    def __init__(self, engine: Engine, faulty: Faulty, way: str) -> None:
        self.engine = engine
        self.faulty: Faulty | None = faulty
        self.way = way
        self.met: list[SQLAlchemyError] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        item = item_of(environ)
        faulty, self.faulty = self.faulty, None
        with self._struck(faulty):
            if self.way == "session":
                with Session(self.engine) as session:
                    session.execute(INSERT, item)
                    if faulty:
                        faulty.strike(session)
                    session.commit()
            else:
                with self.engine.connect() as connection:
                    connection.execute(INSERT, item)
                    if faulty:
                        faulty.strike(Session(connection))
                    connection.commit()
        start_response("201 Created", [("Content-Type", "text/plain")])
        return [b"well"]

    @contextmanager
    def _struck(self, faulty: Faulty | None) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            self.met.append(error)
            raise
        finally:
            if faulty is not None:
                faulty.over()


def alone(app: WSGIApplication, engine: Engine) -> WSGIApplication:
    return Idempotent(app, engine, principal=None)


def outside(app: WSGIApplication, engine: Engine) -> WSGIApplication:
    return Idempotent(DBGuard(app, engine), engine, principal=None)


@pytest.mark.parametrize(
    ("wrap", "way"),
    [
        pytest.param(site, "session", id="inside"),
        pytest.param(outside, "connection", id="outside"),
        pytest.param(alone, "connection", id="alone"),
    ],
)
def test_nothing_lasts_and_the_client_is_told_so(
    faulty: Faulty, one: Engine, database: Database, wrap: Callable[..., WSGIApplication], way: str
) -> None:
    shop = Shop(one, faulty, way)
    app = wrap(shop, one)
    if faulty.fault == "connection lost" and wrap is not alone:
        assert kind(post(app)) == (503, "unavailable")
    else:
        with pytest.raises(DBAPIError):
            post(app)
    assert len(shop.met) == 1
    assert orders(database) == []
    assert (rows(database), faulty.open_transactions()) == (0, 0)
    # Whoever has the connection next has no part in it.
    assert post(app, None, "pear").status_code == 201
    assert orders(database) == ["pear"]
    # And the key is free.
    assert [post(app).status_code, post(app).status_code] == [201, 201]
    assert sorted(orders(database)) == ["apple", "pear"]


@pytest.mark.parametrize("close", [False, True])
def test_an_application_that_goes_on_commits_what_comes_after_it_alone(
    faulty: Faulty, one: Engine, database: Database, close: bool
) -> None:
    """After `rollback()` or `close()`, of which SQLAlchemy sends no ROLLBACK after a failed COMMIT."""

    def goes_on(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with one.connect() as connection:
            connection.execute(INSERT, {"item": "first"})
            faulty.strike(Session(connection))
            with suppress(DBAPIError):
                connection.commit()
            faulty.over()
            if not close:
                connection.rollback()
                connection.execute(INSERT, {"item": "second"})
                connection.commit()
        if close:
            with one.begin() as connection:
                connection.execute(INSERT, {"item": "second"})
        start_response("201 Created", [("Content-Type", "text/plain")])
        return [b"well"]

    app = site(goes_on, one)
    assert [post(app).text, post(app).text] == ["well", "well"]
    assert orders(database) == ["second"]
    assert database.query(f"select applied from {KEYS}") in ([(True,)], [(1,)])


def test_a_savepoint_is_no_commit(one: Engine, database: Database) -> None:
    """What was released in one is not applied before the transaction is; what was rolled back to one is not at all."""
    marked = []

    def nests(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with Session(one) as session:
            with session.begin_nested():
                session.execute(INSERT, {"item": "kept"})
            nested = session.begin_nested()
            session.execute(INSERT, {"item": "dropped"})
            nested.rollback()
            marked.append(database.query(f"select count(*) from {KEYS} where applied")[0][0])
            if environ["PATH_INFO"] == "/fails":
                raise KeyError("a bug")
            session.commit()
            marked.append(database.query(f"select count(*) from {KEYS} where applied")[0][0])
        start_response("201 Created", [("Content-Type", "text/plain")])
        return [b"well"]

    app = site(nests, one)
    with pytest.raises(KeyError):
        Client(app).post("/fails", headers={"Idempotency-Key": "k0"})
    assert rows(database) == 0
    assert [post(app).text, post(app).text] == ["well", "well"]
    assert orders(database) == ["kept"]
    assert marked == [0, 0, 1]
