"""A request that is sent twice is done once."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from werkzeug.test import Client, TestResponse

from wsgi_dbguard import DBGuard
from wsgi_dbguard.idempotency import ClaimLost, Idempotent, create_table, ddl, purge
from wsgi_dbguard.lab.drivers import DRIVERS
from wsgi_dbguard.lab.mariadb import MariaDB, ServerMissing
from wsgi_dbguard.lab.postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Database = PostgreSQL | MariaDB
KEYS = "idempotency_keys"


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDB]:
    try:
        server = MariaDB()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


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
    if isinstance(database, PostgreSQL):
        return make_engine(database.url("psycopg2"))
    return make_engine(database.url("pymysql", ssl_disabled="true"))


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


def test_the_second_one_gets_the_first_ones_answer(shop: Shop, engine: Engine, database: Database) -> None:
    shop.headers = [("X-Order", "7"), ("Set-Cookie", "a=b"), ("DB-Position", "secret")]
    app = site(shop, engine)
    first, second = post(app, '"k1"'), post(app, "k1")
    assert (first.status, first.text, first.headers.get("Idempotent-Replayed")) == ("201 Created", "apple 1", None)
    assert first.headers["Set-Cookie"] == "a=b"
    assert (second.status, second.text, second.headers["Idempotent-Replayed"]) == ("201 Created", "apple 1", "true")
    assert second.headers["X-Order"] == "7"
    assert "Set-Cookie" not in second.headers
    assert "DB-Position" not in second.headers
    assert orders(database) == ["apple"]


def test_requests_without_a_key_and_other_methods_pass(shop: Shop, engine: Engine, database: Database) -> None:
    app = site(shop, engine)
    assert [post(app, None).text, post(app, None).text] == ["apple 1", "apple 2"]
    assert Client(app).put("/", data="b", headers={"Idempotency-Key": "k"}).text == "b 3"
    assert rows(database) == 0


def test_what_is_wrong_with_the_key_is_told(shop: Shop, engine: Engine) -> None:
    app = site(shop, engine, required=lambda environ: environ["PATH_INFO"] == "/orders")
    missing = post(app, None)
    assert kind(missing) == (400, "idempotency-key-missing")
    assert missing.content_type == "application/problem+json"
    assert kind(post(app, "a b")) == (400, "idempotency-key-malformed")
    assert Client(app).post("/other", data="c").status_code == 201
    assert shop.runs == 1


@pytest.mark.parametrize("other", ["data", "path", "query", "method"])
def test_the_key_of_another_request_is_refused(shop: Shop, engine: Engine, other: str) -> None:
    app = site(shop, engine)
    request: dict[str, Any] = {"path": "/a", "method": "POST", "data": "one", "query_string": "x=1"}
    headers = {"Idempotency-Key": "k"}
    assert Client(app).open(**request, headers=headers).status_code == 201
    changed = {"data": "two", "path": "/b", "query": "x=2", "method": "PATCH"}[other]
    request["query_string" if other == "query" else other] = changed
    assert kind(Client(app).open(**request, headers=headers)) == (422, "idempotency-key-reused")
    assert shop.runs == 1


def test_principals_do_not_meet(shop: Shop, engine: Engine, database: Database) -> None:
    app = site(shop, engine, principal=lambda environ: environ.get("REMOTE_USER"))
    for user in ("ann", "bob", ""):
        response = post(app, environ_overrides={"REMOTE_USER": user})
        assert "Idempotent-Replayed" not in response.headers
    assert post(app, environ_overrides={"REMOTE_USER": "ann"}).text == "apple 1"
    assert len(orders(database)) == 3


def test_a_body_beyond_the_limit_reaches_the_application_whole(engine: Engine, database: Database) -> None:
    def lengths(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [str(len(environ["wsgi.input"].read())).encode()]

    app = site(lengths, engine, body_limit=100)
    assert post(app, data="a" * 1000).text == "1000"
    assert post(app, data="a" * 1000).headers["Idempotent-Replayed"] == "true"
    assert kind(post(app, data="a" * 1001))[0] == 422


def test_forty_at_once_are_one(shop: Shop, engine: Engine, database: Database) -> None:
    app = site(shop, engine)
    all_there = threading.Barrier(40)

    def send(number: int) -> TestResponse:
        all_there.wait(60)
        return post(app)

    with ThreadPoolExecutor(40) as threads:
        responses = list(threads.map(send, range(40)))
    assert orders(database) == ["apple"]
    assert shop.runs == 1
    fresh = [each for each in responses if each.status_code == 201 and "Idempotent-Replayed" not in each.headers]
    assert len(fresh) == 1
    for each in responses:
        assert each.text == "apple 1" or kind(each) == (409, "idempotency-running")
        assert each.status_code == 201 or int(each.headers["Retry-After"]) >= 1


def test_a_failure_before_the_commit_frees_the_key(shop: Shop, engine: Engine, database: Database) -> None:
    def fails(session: Session) -> None:
        raise KeyError("a bug")

    shop.before = fails
    app = site(shop, engine)
    with pytest.raises(KeyError):
        post(app)
    assert rows(database) == 0
    shop.before = lambda session: None
    assert post(app).text == "apple 2"
    assert orders(database) == ["apple"]


def test_a_failure_after_it_does_not(shop: Shop, engine: Engine, database: Database) -> None:
    def fails(session: Session) -> None:
        raise KeyError("a bug")

    shop.after = fails
    app = site(shop, engine)
    with pytest.raises(KeyError):
        post(app)
    assert kind(post(app)) == (409, "idempotency-applied")
    assert orders(database) == ["apple"]


@pytest.mark.parametrize(
    ("status", "kept"), [("500 Oh", False), ("503 No", False), ("429 Slow", False), ("404 No", True)]
)
def test_errors_that_applied_nothing(engine: Engine, database: Database, status: str, kept: bool) -> None:
    runs = []

    def refuses(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        runs.append(1)
        start_response(status, [("Content-Type", "text/plain")])
        yield b"no"

    app = site(refuses, engine)
    assert post(app).status_code == post(app).status_code == int(status[:3])
    assert len(runs) == (1 if kept else 2)
    assert rows(database) == kept


def test_an_error_page_after_the_commit_is_the_answer(shop: Shop, engine: Engine, database: Database) -> None:
    shop.status = "500 Internal Server Error"
    app = site(shop, engine)
    assert post(app).text == post(app).text == "apple 1"
    assert orders(database) == ["apple"]


def test_a_transaction_that_only_reads_is_no_mark(shop: Shop, engine: Engine, database: Database) -> None:
    """Such as an authentication that ends its transaction; what fails after it was not applied."""

    def reads_then_fails(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with Session(engine) as session:
            session.execute(text("select item from orders"))
            session.commit()
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        post(site(reads_then_fails, engine))
    assert rows(database) == 0


def test_a_commit_that_the_server_refused_is_no_mark(engine: Engine, database: Database) -> None:
    """And the next one, in the same request, sets it."""
    if isinstance(database, MariaDB):
        pytest.skip("no constraint waits for the COMMIT there")
    database.query("create table once (n int unique deferrable initially deferred)")
    try:
        outcomes = []

        def tries(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            with Session(engine) as session:
                session.execute(text("insert into once values (1), (1)"))
                try:
                    session.commit()
                except DBAPIError:
                    session.rollback()
                    outcomes.append(database.query(f"select applied from {KEYS}"))
                session.execute(text("insert into once values (1)"))
                session.commit()
            outcomes.append(database.query(f"select applied from {KEYS}"))
            start_response("200 OK", [])
            return [b"well"]

        assert post(site(tries, engine)).text == "well"
        assert outcomes == [[(False,)], [(True,)]]
    finally:
        database.query("drop table once")


def test_the_mark_is_made_once_whatever_a_later_snapshot_says(database: Database, make_engine: Any) -> None:
    """In REPEATABLE READ a second mark would be an update of a row that has changed since."""
    url = database.url("psycopg2") if isinstance(database, PostgreSQL) else database.url("pymysql", ssl_disabled="true")
    engine = make_engine(url, isolation_level="REPEATABLE READ")

    def two(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as outer, engine.connect() as inner:
            outer.execute(text("select item from orders"))
            inner.execute(text("insert into orders values ('inner')"))
            inner.commit()
            outer.execute(text("insert into orders values ('outer')"))
            outer.commit()
        start_response("200 OK", [])
        return [b"well"]

    app = site(two, engine)
    assert [post(app).text, post(app).text] == ["well", "well"]
    assert sorted(orders(database)) == ["inner", "outer"]


def test_a_lease_that_is_over_is_taken_and_the_late_commit_fails(
    shop: Shop, engine: Engine, database: Database
) -> None:
    """The first one comes back when another one has its key: it is told the other one's answer."""
    app = site(shop, engine)
    other: list[TestResponse] = []

    def late(session: Session) -> None:
        shop.before = lambda session: None
        assert kind(post(app)) == (409, "idempotency-running")
        database.query(f"update {KEYS} set expires = 1")
        other.append(post(app))

    shop.before = late
    first = post(app)
    assert other[0].text == "apple 2"
    assert "Idempotent-Replayed" not in other[0].headers
    assert (first.text, first.headers["Idempotent-Replayed"]) == ("apple 2", "true")
    assert orders(database) == ["apple"]
    assert shop.runs == 2


def test_an_application_that_ignores_the_loss_commits_nothing(engine: Engine, database: Database) -> None:
    met: list[BaseException] = []

    def stubborn(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        database.query(f"update {KEYS} set owner = 'another'")
        with engine.connect() as connection:
            for _ in range(3):
                try:
                    connection.execute(text("insert into orders values ('x')"))
                    connection.commit()
                except DBAPIError as error:
                    met.append(error)
                    connection.rollback()
        start_response("200 OK", [])
        return [b"well"]

    assert kind(post(site(stubborn, engine))) == (409, "idempotency-running")
    assert [type(each) for each in met] == [ClaimLost] * 3
    assert orders(database) == []


def test_a_dead_claim_that_was_applied_is_not_done_again(shop: Shop, engine: Engine, database: Database) -> None:
    """A worker was killed after the COMMIT, before it could store the answer."""
    app = site(shop, engine)
    post(app)
    database.query(f"update {KEYS} set head = null, body = null, expires = 1")
    assert kind(post(app)) == (409, "idempotency-applied")


def test_an_answer_that_streams_is_kept_up_to_the_limit(engine: Engine, database: Database) -> None:
    def streams(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        size = int(environ["wsgi.input"].read())
        with Session(engine) as session:
            session.execute(text("insert into orders values ('s')"))
            session.commit()
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"[")
        for _ in range(size):
            yield b"a"
        yield b"]"

    app = site(streams, engine, body_limit=100)
    assert post(app, data="98").text == post(app, data="98").text == "[" + "a" * 98 + "]"
    assert len(post(app, "k2", data="99").text) == 101
    assert kind(post(app, "k2", data="99")) == (409, "idempotency-applied")
    assert len(orders(database)) == 2


def test_a_client_that_goes_away_leaves_an_answer_that_is_not_whole(engine: Engine, database: Database) -> None:
    def streams(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with Session(engine) as session:
            session.execute(text("insert into orders values ('s')"))
            session.commit()
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"a"
        yield b"b"

    app = site(streams, engine)
    environ = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/orders", "QUERY_STRING": "", "CONTENT_LENGTH": "5",
        "wsgi.input": io.BytesIO(b"apple"), "HTTP_IDEMPOTENCY_KEY": "k1",
    }  # fmt: skip
    body: Any = app(environ, lambda *args: lambda data: None)
    assert next(iter(body)) == b"a"
    body.close()
    assert kind(post(app)) == (409, "idempotency-applied")


def test_with_a_length_the_answer_is_stored_before_it_is_sent(engine: Engine, database: Database) -> None:
    """So that a client that got it and asks again at once finds it, though its connection is not closed yet."""
    stored = []

    def sends(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        yield b"ok"
        stored.append(database.query(f"select count(*) from {KEYS} where head is not null")[0][0])

    post(site(sends, engine))
    assert stored == [1]


def test_a_pool_of_one_is_enough(database: Database, make_engine: Any) -> None:
    url = database.url("psycopg2") if isinstance(database, PostgreSQL) else database.url("pymysql", ssl_disabled="true")
    engine = make_engine(url, pool_size=1, max_overflow=0, pool_timeout=1)

    def keeps(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with Session(engine) as session:
            session.execute(text("insert into orders values ('s')"))
            session.commit()
            session.execute(text("select 1"))
            start_response("200 OK", [("Content-Length", "2")])
            yield b"ok"

    app = site(keeps, engine)
    assert [post(app).text, post(app).text] == ["ok", "ok"]
    assert len(orders(database)) == 1


@pytest.mark.parametrize("order", ["inside", "outside", "alone", "twice"])
def test_it_may_stand_inside_or_outside_of_the_guard_or_alone(
    shop: Shop, engine: Engine, database: Database, order: str
) -> None:
    apps: dict[str, Callable[[], WSGIApplication]] = {
        "inside": lambda: site(shop, engine),
        "outside": lambda: Idempotent(DBGuard(shop, engine), engine, principal=None),
        "alone": lambda: Idempotent(shop, engine, principal=None),
        "twice": lambda: Idempotent(site(shop, engine), engine, principal=None),
    }
    app = apps[order]()
    assert [post(app).text, post(app).text] == ["apple 1", "apple 1"]
    assert orders(database) == ["apple"]


@pytest.mark.parametrize("outside", [False, True])
def test_a_second_run_by_the_guard_is_the_same_owners(
    shop: Shop, engine: Engine, database: Database, outside: bool
) -> None:
    def cut(session: Session) -> None:
        shop.before = lambda session: None
        database.terminate(*database.backends())

    shop.before = cut
    guard: Any
    if outside:
        guard = Idempotent(DBGuard(shop, engine, replay="uncommitted"), engine, principal=None)
    else:
        guard = DBGuard(Idempotent(shop, engine, principal=None), engine, replay="uncommitted")
    assert post(guard).text == "apple 2"
    assert post(guard).headers["Idempotent-Replayed"] == "true"
    assert orders(database) == ["apple"]


def test_every_rule_of_wsgi_is_kept(shop: Shop, engine: Engine) -> None:
    app = validator(Idempotent(validator(shop), engine, principal=None, required=True))
    assert [post(app).text, post(app).text] == ["apple 1", "apple 1"]
    assert kind(post(app, None)) == (400, "idempotency-key-missing")


def test_a_file_is_kept_like_any_answer_and_the_server_finds_its_wrapper(engine: Engine) -> None:
    seen: list[WSGIEnvironment] = []

    def file(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(environ)
        assert "wsgi.file_wrapper" not in environ
        start_response("200 OK", [("Content-Type", "text/plain")])
        return FileWrapper(io.BytesIO(b"content"))

    app = site(file, engine)
    wrapper = {"wsgi.file_wrapper": FileWrapper}
    assert [post(app, environ_overrides=wrapper).text for _ in range(2)] == ["content"] * 2
    assert "wsgi.file_wrapper" in seen[0]
    assert len(seen) == 1


def page(app: WSGIApplication) -> WSGIApplication:
    """As frameworks do: a response of any exception."""

    def pages(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except Exception:
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"sorry"]

    return pages


@pytest.mark.parametrize("framework", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_a_database_that_goes_after_the_commit_leaves_it_applied(
    shop: Shop, engine: Engine, database: Database, outside: bool, framework: bool
) -> None:
    def cut(session: Session) -> None:
        session.execute(text("select 1"))
        database.terminate(*database.backends())
        session.execute(text("select 1"))

    shop.after = cut
    app = page(shop) if framework else shop
    guard: Any = site(app, engine) if not outside else Idempotent(DBGuard(app, engine), engine, principal=None)
    assert kind(post(guard)) == (409, "idempotency-applied")
    assert kind(post(guard)) == (409, "idempotency-applied")
    assert (shop.runs, orders(database)) == (1, ["apple"])


@pytest.mark.parametrize("framework", [False, True])
def test_one_that_goes_after_a_transaction_that_only_read_is_no_doubt(
    engine: Engine, database: Database, framework: bool
) -> None:
    def reads(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with Session(engine) as session:
            session.execute(text("select item from orders"))
            session.commit()
            session.execute(text("select 1"))
            database.terminate(*database.backends())
            session.execute(text("insert into orders values ('x')"))
        raise AssertionError("not reached")

    app = site(page(reads) if framework else reads, engine)
    assert kind(post(app)) == (503, "unavailable")
    assert rows(database) == 0


def test_old_keys_are_purged_in_batches_but_not_those_in_use(shop: Shop, engine: Engine, database: Database) -> None:
    app = site(shop, engine)
    for number in range(7):
        post(app, f"k{number}")
    database.query(f"update {KEYS} set created = 1")
    post(app, "young")
    shop.before = lambda session: inside.append(purge(engine, older_than=60, batch=3))
    inside: list[int] = []
    post(app, "running")
    assert inside == [7]
    assert rows(database) == 2
    shop.before = lambda session: inside.append(purge(engine, older_than=0))
    post(app, "another")
    assert rows(database) == 1  # that one
    with pytest.raises(ValueError, match="older_than"):
        purge(engine, older_than=-1)


@pytest.mark.parametrize("driver", ["psycopg", "pg8000", "mysqlclient", "mariadb"])
def test_the_other_drivers(request: pytest.FixtureRequest, make_engine: Any, driver: str) -> None:
    """What each of them counts as updated rows, and how its transactions begin and end."""
    known = next(each for each in DRIVERS if each.name == driver)
    if missing := known.missing():
        pytest.skip(missing)
    server: Database = request.getfixturevalue("postgres" if known.database == "postgresql" else "mariadb")
    engine = make_engine(server.url(driver))
    create_table(engine)
    server.query("create table orders (item varchar(40))")
    shop = Shop(engine)
    try:
        app = site(shop, engine)
        assert [post(app).text, post(app).text] == ["apple 1", "apple 1"]
        shop.before = lambda session: server.query(f"update {KEYS} set owner = 'another'")
        post(app, "lost")
        assert len(orders(server)) == 1
        shop.before = lambda session: session.rollback()
        assert post(app, "free").text == "apple 3"
        with engine.connect() as connection:  # and its mode is what it was
            connection.execute(text("insert into orders values ('x')"))
            connection.rollback()
        assert len(orders(server)) == 1
    finally:
        server.query(f"drop table {KEYS}")
        server.query("drop table orders")


def test_a_missing_table_is_the_applications_to_see(engine: Engine, shop: Shop) -> None:
    app = Idempotent(shop, engine, principal=None, table="missing")
    with pytest.raises(DBAPIError, match="missing"):
        post(app)


def test_the_table_is_made_by_a_call_as_well(engine: Engine, shop: Shop, database: Database) -> None:
    create_table(engine, "made")
    create_table(engine, "made")
    try:
        app = site(shop, engine, table="made")
        assert [post(app).text, post(app).text] == ["apple 1", "apple 1"]
    finally:
        database.query("drop table made")


def test_a_database_that_is_away_is_unavailable(make_engine: Any, shop: Shop) -> None:
    for driver in ("postgresql+psycopg2", "mysql+pymysql"):
        nobody = make_engine(f"{driver}://nobody@127.0.0.1:1/x")
        for app in (site(shop, nobody), Idempotent(shop, nobody, principal=None)):
            response = post(app)
            assert kind(response) == (503, "unavailable")
            assert int(response.headers["Retry-After"]) >= 1
    assert shop.runs == 0


def test_impossible_arguments_are_refused(make_engine: Any, shop: Shop) -> None:
    engine = make_engine("postgresql+psycopg2://nobody@127.0.0.1:1/x")
    with pytest.raises(ValueError, match="sqlite"):
        Idempotent(shop, create_engine("sqlite://"), principal=None)
    with pytest.raises(TypeError):
        Idempotent(shop, "postgresql://", principal=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Idempotent(None, engine, principal=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lease"):
        Idempotent(shop, engine, principal=None, lease=0)
    with pytest.raises(ValueError, match="oracle"):
        ddl("oracle")


def test_the_command_prints_the_statements(run_python: Callable[..., str]) -> None:
    program = (
        "import runpy, sys; sys.argv[1:] = [{!r}]; runpy.run_module('wsgi_dbguard.idempotency', run_name='__main__')"
    )
    for dialect in ("postgresql", "mariadb", "mysql"):
        printed = run_python(program.format(dialect))
        # SQLAlchemy puts the options of MySQL's tables in an order that differs from process to process.
        assert sorted(re.split(r"[\s)]+", printed)) == sorted(re.split(r"[\s)]+", ddl(dialect) + "\n"))


def test_who_does_not_import_it_pays_nothing(run_python: Callable[..., str]) -> None:
    program = "import sys, wsgi_dbguard; print([name for name in sys.modules if 'idempotency' in name])"
    assert run_python(program) == "[]\n"
