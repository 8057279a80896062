"""The same shop by Flask, Django and Pyramid, and one client's way through it; for test_frameworks.py.

Each framework runs in an interpreter of its own: Django's settings are the process's.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, text
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.idempotency import Idempotent

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LIMIT = 65536  # bytes, the default of `body_limit`


class Shop:
    """What the pages do; `runs`: of each."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.runs: dict[str, int] = {}

    def order(self, item: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("insert into orders values (:item)"), {"item": item[:40]})

    def page(self, name: str, body: bytes) -> tuple[int, Iterator[bytes] | str]:
        """Status and content. Raises what the page's bug is."""
        run = self.runs[name] = self.runs.get(name, 0) + 1
        if name == "early" and run == 1:
            raise ZeroDivisionError
        if name not in ("read", "length"):
            self.order(f"{name} {run}")
        if name == "late":
            raise ZeroDivisionError
        if name == "sorry":
            return 500, f"sorry {run}"
        if name == "stream":
            return 200, (part for part in (b"in ", b"parts"))
        if name == "large":
            return 200, "x" * (LIMIT + 1)
        return 200, f"{name} {run} {len(body)}"


def by_flask(shop: Shop) -> WSGIApplication:
    import flask

    app = flask.Flask(__name__)

    @app.route("/<name>", methods=["GET", "POST"])
    def page(name: str) -> flask.Response:
        status, content = shop.page(name, flask.request.get_data())
        return flask.Response(content, status=status, mimetype="text/plain")

    return app


def by_django(shop: Shop) -> WSGIApplication:
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
    from django.urls import path

    def page(request: HttpRequest, name: str) -> HttpResponseBase:
        status, content = shop.page(name, request.body)
        kind = HttpResponse if isinstance(content, str) else StreamingHttpResponse
        return kind(content, status=status, content_type="text/plain")

    urls = type("urls", (), {"urlpatterns": [path("<str:name>", page)]})
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], DATA_UPLOAD_MAX_MEMORY_SIZE=None, SECRET_KEY="x", LOGGING_CONFIG=None)
    settings.ROOT_URLCONF = urls
    django.setup()
    app: WSGIApplication = get_wsgi_application()
    return app


def by_pyramid(shop: Shop) -> WSGIApplication:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources
        from pyramid.config import Configurator
        from pyramid.response import Response

    def page(request: Any) -> Any:
        status, content = shop.page(request.matchdict["name"], request.body)
        if isinstance(content, str):
            return Response(content, status=status, content_type="text/plain")
        return Response(app_iter=content, status=status, content_type="text/plain")

    with Configurator() as config:
        config.add_route("page", "/{name}")
        config.add_view(page, route_name="page")
        config.add_exception_view(lambda error, request: Response("sorry", status=500), context=Exception)
        app: WSGIApplication = config.make_wsgi_app()
    return app


FRAMEWORKS: dict[str, Callable[[Shop], WSGIApplication]] = {
    "flask": by_flask,
    "django": by_django,
    "pyramid": by_pyramid,
}
ORDERS: dict[str, Callable[[WSGIApplication, Engine], Any]] = {
    "inside": lambda app, engine: DBGuard(Idempotent(app, engine, principal=None), engine),
    "outside": lambda app, engine: Idempotent(DBGuard(app, engine), engine, principal=None),
}


def play(framework: str, order: str, engine: Engine) -> dict[str, Any]:
    """What a client was told that sent each request twice, and what is in the tables then."""
    shop = Shop(engine)
    client = Client(ORDERS[order](FRAMEWORKS[framework](shop), engine))

    def told(method: str, name: str, body: bytes = b"") -> str:
        response = client.open(f"/{name}", method=method, data=body, headers={"Idempotency-Key": name})
        response.get_data()
        problem = json.loads(response.data)["type"].rpartition(":")[2] if response.is_json else ""
        content = "…" if problem or response.status_code == 500 or len(response.data) > 99 else response.text
        replayed = response.headers.get("Idempotent-Replayed", "")
        response.close()
        return " ".join(filter(None, [str(response.status_code), problem or content, replayed and "replayed"]))

    def twice(method: str, name: str, body: bytes = b"") -> list[str]:
        return [told(method, name, body) for _ in range(2)]

    with engine.begin() as connection:
        for table in ("orders", "idempotency_keys"):
            connection.execute(text(f"delete from {table}"))
    outcome: dict[str, Any] = {
        "GET": twice("GET", "read"),
        "HEAD": [each.split()[0] for each in twice("HEAD", "read")],
    }
    with engine.connect() as connection:
        outcome["keys"] = connection.scalar(text("select count(*) from idempotency_keys"))
    for name in ("order", "stream", "sorry", "early", "late", "large"):
        outcome[name] = twice("POST", name, b"apple")
    outcome["length"] = twice("POST", "length", b"x" * (3 * LIMIT))
    with engine.connect() as connection:
        outcome["orders"] = sorted(connection.scalars(text("select item from orders")))
    return outcome


if __name__ == "__main__":
    logging.disable()
    # Pyramid keeps a large body in a file of its own, and leaves that to the garbage collector.
    warnings.simplefilter("ignore", ResourceWarning)
    shared = create_engine(sys.argv[2])
    print(json.dumps({order: play(sys.argv[1], order, shared) for order in ORDERS}))
    shared.dispose()
