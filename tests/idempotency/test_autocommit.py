"""What is written in autocommit: kept out of the promise, as the package says, but not out of the answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, text

from .conftest import Database, orders, post, site

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def writing(engine: Engine, failures: list[Exception]) -> WSGIApplication:
    """Writes in autocommit, and then fails as long as there is something to fail with."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("insert into orders values ('apple')"))
        if failures:
            raise failures.pop()
        start_response("201 Created", [("Content-Type", "text/plain")])
        return [b"well"]

    return app


def test_a_request_that_ends_well_is_done_once(engine: Engine, database: Database) -> None:
    app = site(writing(engine, []), engine)
    assert [post(app).text, post(app).text] == ["well", "well"]
    assert orders(database) == ["apple"]


def test_one_that_fails_after_the_write_does_it_again(engine: Engine, database: Database) -> None:
    """Nothing tells that it was applied: it is the documented limit."""
    app = site(writing(engine, [KeyError("a bug")]), engine)
    with pytest.raises(KeyError):
        post(app)
    assert post(app).text == "well"
    assert orders(database) == ["apple", "apple"]
