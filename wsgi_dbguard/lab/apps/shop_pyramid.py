"""A shop, by Pyramid with a SQLAlchemy session for each request, and an exception view that makes the page of every
error, as many applications have one.

See lab/shop.py for what is asked of it; `wrapped` serves it guarded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPNotFound
from pyramid.request import Request
from pyramid.response import Response
from shop_items import Item
from sqlalchemy import create_engine, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

logger = logging.getLogger(__name__)
engine = create_engine(os.environ["DATABASE_URL"], pool_size=3, max_overflow=0, pool_timeout=1)


def session_of(request: Request) -> Session:
    """``request.database``: opened when it is first asked for, closed when the request is finished."""
    session = Session(engine)
    request.add_finished_callback(lambda request: session.close())
    return session


def healthz(request: Request) -> Response:
    return Response("ok")


def items(request: Request) -> Response:
    return Response(" ".join(request.database.scalars(select(Item.name).order_by(Item.name))))


def add(request: Request) -> Response:
    request.database.add(Item(name=request.POST["name"]))
    request.database.commit()
    return Response("added", status=201)


def sell(request: Request) -> Response:
    item = request.database.get(Item, int(request.matchdict["number"]))
    if item is None:
        raise HTTPNotFound
    item.stock -= 1
    request.database.commit()
    return Response("sold")


def export(request: Request) -> Response:
    def lines() -> Iterator[bytes]:
        yield b"name,stock\n"
        with Session(engine) as session:  # the request's is closed by then
            for item in session.scalars(select(Item).order_by(Item.name)):
                yield f"{item.name},{item.stock}\n".encode()

    return Response(app_iter=lines(), content_type="text/csv")


def report(request: Request) -> Response:
    """Gets over a database that fails, and then has a bug."""
    count: Any
    try:
        count = request.database.scalar(select(func.count(Item.id)))
    except OperationalError:
        request.database.rollback()
        count = None
    return Response(str(count + 1))


def broken(request: Request) -> Response:
    return Response(str(1 // 0))


def failed(error: Exception, request: Request) -> Response:
    """The exception view."""
    logger.exception("%s %s failed", request.method, request.path)
    return Response("something went wrong", status=500)


def main() -> Any:
    with Configurator() as config:
        config.add_request_method(session_of, "database", reify=True)
        for name, pattern, view, method in (
            ("healthz", "/healthz", healthz, "GET"),
            ("items", "/items", items, "GET"),
            ("add", "/items", add, "POST"),
            ("sell", "/items/{number}/sell", sell, "POST"),
            ("export", "/items.csv", export, "GET"),
            ("report", "/report", report, "GET"),
            ("broken", "/broken", broken, "GET"),
        ):
            config.add_route(name, pattern, request_method=method)
            config.add_view(view, route_name=name)
        config.add_exception_view(failed, context=Exception)
        return config.make_wsgi_app()


application = main()
