"""A private PostgreSQL or MariaDB with the table of the keys, and a shop that inserts what it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from werkzeug.test import Client, TestResponse

from wsgi_dbguard import DBGuard
from wsgi_dbguard.idempotency import Idempotent, ddl
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Database = PostgreSQL | MariaDB
KEYS = "idempotency_keys"


def url_of(database: Database) -> str:
    if isinstance(database, PostgreSQL):
        return database.url("psycopg2")
    return database.url("pymysql", ssl_disabled="true")


@pytest.fixture(params=["postgresql", "mariadb"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    server: Database = request.getfixturevalue("postgres" if request.param == "postgresql" else "mariadb")
    for statement in ddl(request.param).split(";")[:-1]:
        server.query(statement)
    server.query("create table orders (item varchar(40))")
    yield server
    server.query(f"drop table {KEYS}")
    server.query("drop table orders")


@pytest.fixture
def engine(database: Database, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(url_of(database))


class Shop:
    """Inserts what it is sent; `before` and `after` run around the COMMIT."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.runs = 0
        self.status = "201 Created"
        self.headers: list[tuple[str, str]] = []
        self.before: Callable[[Session], object] = lambda session: None
        self.after: Callable[[Session], object] = lambda session: None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.runs += 1
        item = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
        with Session(self.engine) as session:
            session.execute(text("insert into orders values (:item)"), {"item": item[:40]})
            self.before(session)
            session.commit()
            self.after(session)
        body = f"{item[:40]} {self.runs}".encode()
        start_response(self.status, [("Content-Type", "text/plain"), *self.headers])
        return [body]


@pytest.fixture
def shop(engine: Engine) -> Shop:
    return Shop(engine)


def site(app: WSGIApplication, engine: Engine, **options: Any) -> DBGuard:
    return DBGuard(Idempotent(app, engine, **{"principal": None, **options}), engine)


def post(app: WSGIApplication, key: str | None = "k1", data: str = "apple", **options: Any) -> TestResponse:
    headers = [("Idempotency-Key", key)] if key is not None else []
    response = Client(app).open("/orders", method="POST", data=data, headers=headers, **options)
    response.get_data()
    response.close()
    return response


def kind(response: TestResponse) -> tuple[int, str]:
    problem: Any = response.json
    return response.status_code, problem["type"].rpartition(":")[2]


def orders(database: Database) -> list[str]:
    return [item for (item,) in database.query("select item from orders")]


def rows(database: Database) -> int:
    return int(database.query(f"select count(*) from {KEYS}")[0][0])
