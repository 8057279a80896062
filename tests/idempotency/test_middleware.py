"""A request that is sent twice is done once."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from werkzeug.test import Client, TestResponse

from wsgi_dbguard import DBGuard
from wsgi_dbguard.idempotency import Idempotent, ddl

from .conftest import Database, Shop, kind, orders, post, rows, site

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def test_the_second_one_gets_the_first_ones_answer(shop: Shop, engine: Engine, database: Database) -> None:
    shop.headers = [("X-Order", "7"), ("Set-Cookie", "a=b")]
    app = site(shop, engine)
    first, second = post(app, '"k1"'), post(app, "k1")
    assert (first.status, first.text, first.headers.get("Idempotent-Replayed")) == ("201 Created", "apple 1", None)
    assert first.headers["Set-Cookie"] == "a=b"
    assert (second.status, second.text, second.headers["Idempotent-Replayed"]) == ("201 Created", "apple 1", "true")
    assert second.headers["X-Order"] == "7"
    assert "Set-Cookie" not in second.headers
    assert orders(database) == ["apple"]


def test_requests_without_a_key_and_other_methods_pass(shop: Shop, engine: Engine, database: Database) -> None:
    app = site(shop, engine)
    assert [post(app, None).text, post(app, None).text] == ["apple 1", "apple 2"]
    assert Client(app).put("/", data="b", headers={"Idempotency-Key": "k"}).text == "b 3"
    assert rows(database) == 0


def test_methods_are_known_in_small_letters(shop: Shop, engine: Engine) -> None:
    app = site(shop, engine, methods={"post"})
    assert [post(app).text, post(app).text] == ["apple 1", "apple 1"]


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


def test_a_principal_may_read_the_body(shop: Shop, engine: Engine, database: Database) -> None:
    """To check its signature: it is compared and worked at all the same."""

    def signed(environ: WSGIEnvironment) -> str:
        return "ann" if environ["wsgi.input"].read(5) else "nobody"

    app = site(shop, engine, principal=signed)
    assert [post(app).text, post(app).text] == ["apple 1", "apple 1"]
    assert kind(post(app, data="melon")) == (422, "idempotency-key-reused")
    assert orders(database) == ["apple"]


def test_a_principal_of_another_type_is_told_of(shop: Shop, engine: Engine) -> None:
    with pytest.raises(TypeError, match="principal gives a str, bytes or None, not int: 7"):
        post(site(shop, engine, principal=lambda environ: 7))


@pytest.mark.parametrize("content", [b"apple", b""])
def test_a_body_is_the_same_with_and_without_a_length(shop: Shop, engine: Engine, content: bytes) -> None:
    app = site(shop, engine)
    told = {"wsgi.input": io.BytesIO(content), "CONTENT_LENGTH": str(len(content))}
    untold = {"wsgi.input": io.BytesIO(content), "CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    assert post(app, environ_overrides=told).text == post(app, environ_overrides=untold).text
    assert shop.runs == 1


def test_a_body_beyond_the_limit_reaches_the_application_whole(engine: Engine, database: Database) -> None:
    def lengths(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [str(len(environ["wsgi.input"].read())).encode()]

    app = site(lengths, engine, body_limit=100)
    assert post(app, data="a" * 1000).text == "1000"
    assert post(app, data="a" * 1000).headers["Idempotent-Replayed"] == "true"
    assert kind(post(app, data="a" * 1001))[0] == 422


@pytest.mark.parametrize("way", ["read", "readinto", "readline", "other"])
def test_a_body_is_read_from_its_beginning_by_whatever_method(engine: Engine, database: Database, way: str) -> None:
    """Flask takes `readinto` where the server's stream has it; what else that has would go on behind what was read."""

    def reads(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        stream: Any = environ["wsgi.input"]
        if way == "readinto":
            buffer = bytearray(400)
            content = b"".join(bytes(buffer[: stream.readinto(buffer)]) for _ in range(3))
        elif way == "other":
            content = b"" if hasattr(stream, "seek") or hasattr(stream, "read1") else stream.read(1000)
        else:
            content = getattr(stream, way)()
        start_response("200 OK", [])
        return [content]

    sent = "begins " + "x" * 900
    assert post(site(reads, engine, body_limit=100), data=sent).text == sent


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


def test_a_missing_table_is_the_applications_to_see(engine: Engine, shop: Shop) -> None:
    app = Idempotent(shop, engine, principal=None, table="missing")
    with pytest.raises(DBAPIError, match="missing"):
        post(app)


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
    for methods in ("POST", [], [b"POST"], ["POST, PATCH"]):
        with pytest.raises(TypeError, match="methods"):
            Idempotent(shop, engine, principal=None, methods=methods)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lease"):
        Idempotent(shop, engine, principal=None, lease=0)
    with pytest.raises(ValueError, match="oracle"):
        ddl("oracle")


def test_who_does_not_import_it_pays_nothing(run_python: Callable[..., str]) -> None:
    program = "import sys, wsgi_dbguard; print([name for name in sys.modules if 'idempotency' in name])"
    assert run_python(program) == "[]\n"
