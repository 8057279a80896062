"""A body that ends too early: gunicorn gives less than Content-Length then, and raises nothing."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine

from .conftest import Database, Shop, kind, orders, post, rows, site

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Gone:
    """A stream whose client goes away after `content`."""

    def __init__(self, content: bytes) -> None:
        self.stream = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        if not (data := self.stream.read(size)):
            raise OSError("the client went away")
        return data


def sent(content: bytes, length: int) -> dict[str, Any]:
    return {"wsgi.input": io.BytesIO(content), "CONTENT_LENGTH": str(length)}


def test_it_takes_no_key(shop: Shop, engine: Engine, database: Database) -> None:
    app = site(shop, engine)
    broken = post(app, environ_overrides=sent(b"app", 5))
    assert kind(broken) == (400, "idempotency-body-incomplete")
    assert (shop.runs, rows(database)) == (0, 0)
    assert post(app).text == "apple 1"
    assert orders(database) == ["apple"]


@pytest.mark.parametrize("raises", [False, True])
def test_what_breaks_off_behind_the_part_that_is_compared_is_no_answer_to_keep(
    engine: Engine, database: Database, raises: bool
) -> None:
    def reads(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            content = environ["wsgi.input"].read(1000)
        except OSError:
            content = b""
        start_response("200 OK" if len(content) == 1000 else "400 Bad Request", [])
        return [str(len(content)).encode()]

    app = site(reads, engine, body_limit=100)
    broken = sent(b"a" * 500, 1000)
    if raises:
        broken["wsgi.input"] = Gone(b"a" * 500)
    assert post(app, environ_overrides=broken).status_code == 400
    assert post(app, data="a" * 1000).text == "1000"
    assert post(app, data="a" * 1000).headers["Idempotent-Replayed"] == "true"
