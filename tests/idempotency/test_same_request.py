"""One key twice within one guarded request; and what an answer that is given again counts as."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.idempotency import Idempotent
from wsgi_dbguard.routing import Replicas

from .conftest import Database, Shop, kind, orders, post, url_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def retrying(app: WSGIApplication, *, copied: bool) -> WSGIApplication:
    """A middleware that tries again whatever raised."""

    def tries(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with suppress(KeyError):
            return app(dict(environ) if copied else environ, start_response)
        environ["wsgi.input"] = io.BytesIO(b"apple")
        return app(environ, start_response)

    return tries


@pytest.mark.parametrize("copied", [False, True])
def test_a_retry_of_what_was_committed_is_told_so(shop: Shop, engine: Engine, database: Database, copied: bool) -> None:
    def fails(session: Session) -> None:
        raise KeyError("a bug")

    shop.after = fails
    app = DBGuard(retrying(Idempotent(shop, engine, principal=None), copied=copied), engine)
    assert kind(post(app)) == (409, "idempotency-applied")
    assert (shop.runs, orders(database)) == (1, ["apple"])


def test_a_retry_of_what_was_not_runs(shop: Shop, engine: Engine, database: Database) -> None:
    def fails(session: Session) -> None:
        shop.before = lambda session: None
        raise KeyError("a bug")

    shop.before = fails
    app = DBGuard(retrying(Idempotent(shop, engine, principal=None), copied=False), engine)
    assert post(app).text == "apple 2"
    assert orders(database) == ["apple"]


def test_two_sub_requests_with_one_key_are_two_requests(shop: Shop, engine: Engine, database: Database) -> None:
    inner = Idempotent(shop, engine, principal=None)
    answers: list[Any] = []

    def batch(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        of = {"wsgi_dbguard.request": environ["wsgi_dbguard.request"]}
        answers.extend(post(inner, data=data, environ_overrides=of) for data in ("apple", "pear", "apple"))
        start_response("200 OK", [])
        return [b""]

    Client(DBGuard(batch, engine)).post("/batch")
    assert [each.status_code for each in answers] == [201, 422, 201]
    assert answers[2].headers["Idempotent-Replayed"] == "true"
    assert orders(database) == ["apple"]


@pytest.mark.parametrize("applied", [False, True])
def test_an_answer_that_speaks_of_a_commit_counts_as_one(
    shop: Shop, engine: Engine, database: Database, applied: bool
) -> None:
    """So that the client of the repeated request, too, is told how far the primary is, by `wsgi_dbguard.routing`."""
    guarded: list[Any] = []

    def keeps(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        guarded.append(environ["wsgi_dbguard.request"])
        return inner(environ, start_response)

    inner = Idempotent(shop, engine, principal=None)
    app = DBGuard(keeps, engine)
    post(app)
    if applied:
        database.query("update idempotency_keys set head = null, body = null")
    post(app)
    post(app, data="pear")
    assert [each.commits for each in guarded] == [1, 1, 0]


def test_and_with_routing_it_brings_a_position(
    shop: Shop, engine: Engine, database: Database, make_engine: Callable[..., Engine]
) -> None:
    replica = make_engine(url_of(database))
    replicas = Replicas(engine, [replica], secret="secret")
    app = DBGuard(Idempotent(shop, engine, principal=None), engine, replica)
    assert replicas.stats()  # which have to live
    told = [post(app), post(app), post(app, data="pear")]
    assert [each.status_code for each in told] == [201, 201, 422]
    assert ["DB-Position" in each.headers for each in told] == [True, True, False]
    database.query("update idempotency_keys set head = null, body = null")
    told.append(post(app))
    assert kind(told[-1]) == (409, "idempotency-applied")
    assert "DB-Position" in told[-1].headers


@pytest.mark.parametrize("header", ["DB-Position", "X-Other-Position"])
def test_but_never_the_position_of_the_first_one(
    shop: Shop, engine: Engine, database: Database, make_engine: Callable[..., Engine], header: str
) -> None:
    """Outside of the guard it is part of the answer, whatever its name; it is not stored."""
    replica = make_engine(url_of(database))
    replicas = Replicas(engine, [replica], secret="secret", header=header)
    app = Idempotent(DBGuard(shop, engine, replica), engine, principal=None)
    assert replicas.stats()
    first, second = post(app), post(app)
    assert (header in first.headers, header in second.headers) == (True, False)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert "Set-Cookie" not in second.headers
