"""What becomes of a key with the answer of the application, or its failure."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from wsgi_dbguard import DBGuard
from wsgi_dbguard.idempotency import Idempotent
from wsgi_dbguard.lab.mariadb import MariaDB

from .conftest import KEYS, Database, Shop, kind, orders, post, rows, site, url_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


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
    again = post(app)
    assert kind(again) == (409, "idempotency-applied")
    assert "a part of it, or all of it" in again.text
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
    again = post(app, "k2", data="99")
    assert kind(again) == (409, "idempotency-applied")
    assert "was carried out" in again.text
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
    engine = make_engine(url_of(database), pool_size=1, max_overflow=0, pool_timeout=1)

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
    if isinstance(database, MariaDB):  # does not tell that it only read
        assert kind(post(app)) == (409, "idempotency-applied")
    else:
        assert kind(post(app)) == (503, "unavailable")
        assert rows(database) == 0
