"""A shop, by Django with SQLAlchemy beside it: one global scoped Session for all requests of the process, committed
when a response is well, and never removed nor rolled back (as in story S4).

See lab/shop.py for what is asked of it; `wrapped` serves it guarded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST
from shop_items import Item
from sqlalchemy import create_engine, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import scoped_session, sessionmaker

settings.configure(
    SECRET_KEY="of no use to anybody",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[f"{__name__}.commit"],
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"]},
    },
)

engine = create_engine(os.environ["DATABASE_URL"], pool_size=3, max_overflow=0, pool_timeout=1)
Session = scoped_session(sessionmaker(engine))


def commit(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware: what a view changed is saved when it succeeds."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if response.status_code < 400:
            Session.commit()
        return response

    return middleware


def healthz(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


def items(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        Session.add(Item(name=request.POST["name"]))
        return HttpResponse("added", status=201)
    return HttpResponse(" ".join(Session.scalars(select(Item.name).order_by(Item.name))))


@require_POST  # type: ignore[untyped-decorator]
def sell(request: HttpRequest, number: int) -> HttpResponse:
    item = Session.get(Item, number)
    if item is None:
        raise Http404
    item.stock -= 1
    return HttpResponse("sold")


@require_GET  # type: ignore[untyped-decorator]
def export(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[str]:
        yield "name,stock\n"
        for item in Session.scalars(select(Item).order_by(Item.name)):
            yield f"{item.name},{item.stock}\n"

    return StreamingHttpResponse(lines(), content_type="text/csv")


def report(request: HttpRequest) -> HttpResponse:
    """Gets over a database that fails, and then has a bug."""
    count: Any
    try:
        count = Session.scalar(select(func.count(Item.id)))
    except OperationalError:
        Session.rollback()
        count = None
    return HttpResponse(str(count + 1))


def broken(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(1 // 0))


urlpatterns = [
    path("healthz", healthz),
    path("items", items),
    path("items/<int:number>/sell", sell),
    path("items.csv", export),
    path("report", report),
    path("broken", broken),
]
application = get_wsgi_application()
