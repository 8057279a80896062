"""What the snippets of README and of the pages take for granted, so that they can be short; and what runs them.

    python tests/docs_stage.py DIRECTORY <blocks.json

Each page in a process of its own: a guard is for the whole process, and so is what Sentry or Prometheus install. They
are forked, one after the other, from one that has imported what most of them need.

`stage` writes into DIRECTORY what a reader has: `myapp`, a Django project `mysite`, a distribution `shop` for
PasteDeploy. ``db.example`` is a private PostgreSQL, by libpq's own PGHOSTADDR.

Pages come as JSON, each as a list of its blocks, these as pairs of language and text. Blocks of one page share their
names, as a reader would have them. After each block what it has made is used: the application answers, engines connect.
One line of JSON for each page: how many of its blocks worked, and what the next one met.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import Engine
from werkzeug.test import Client

from wsgi_dbguard import DBGuard

__all__ = ["stage"]

MYAPP = """
from sqlalchemy import create_engine, text

engine = create_engine("postgresql+psycopg2://app@db.example/app")


def application(environ, start_response):
    with engine.connect() as connection:
        answer = connection.scalar(text("select 'ok'"))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer.encode()]


def paste(global_config, **settings):
    from pyramid.config import Configurator

    config = Configurator(settings=settings)
    config.add_route("home", "/")
    config.add_view(lambda request: "ok", route_name="home", renderer="string")
    return config.make_wsgi_app()
"""
MYSITE = """
from django.http import HttpResponse
from django.urls import path

SECRET_KEY = "not a secret"
ROOT_URLCONF = __name__
ALLOWED_HOSTS = ["*"]
DBGUARD_HOLD = 10.0
urlpatterns = [path("", lambda request: HttpResponse("ok"))]
"""


def stage(directory: Path) -> None:
    """Write what a reader has into `directory`."""
    (directory / "myapp.py").write_text(MYAPP)
    (directory / "mysite.py").write_text(MYSITE)
    shop = directory / "shop-1.0.dist-info"
    shop.mkdir()
    (shop / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (shop / "entry_points.txt").write_text("[paste.app_factory]\nmain = myapp:paste\n")


def main(directory: str) -> None:
    sys.path.insert(0, directory)
    os.environ["DJANGO_SETTINGS_MODULE"] = "mysite"
    answers, sys.stdout = sys.stdout, sys.stderr
    for blocks in json.load(sys.stdin):
        child = os.fork()
        if not child:
            print(json.dumps(run(blocks)), file=answers, flush=True)
            os._exit(0)  # no exit handler of what was installed sends anything to anybody
        os.waitpid(child, 0)


def run(blocks: list[tuple[str, str]]) -> tuple[int, str]:
    import myapp  # type: ignore[import-not-found]

    module = sys.modules["page"] = types.ModuleType("page")
    namespace = module.__dict__
    namespace.update(application=myapp.application, engine=myapp.engine)
    for worked, (language, text) in enumerate(blocks):
        try:
            if language == "python":
                if "app." in text or "(app)" in text:
                    namespace.setdefault("app", flask())
                exec(compile(text, "<snippet>", "exec"), namespace)
                use(namespace)
            else:
                paste(text)
        except Exception:
            return worked, traceback.format_exc()
    return len(blocks), ""


def flask() -> Any:
    app = Flask("shop")
    app.add_url_rule("/", view_func=lambda: "ok")
    return app


def use(namespace: dict[str, Any]) -> None:
    """Each thing that a reader would have now."""
    for name, value in list(namespace.items()):
        if isinstance(value, Engine):
            with value.connect() as connection:
                assert connection.exec_driver_sql("select 1").scalar() == 1
        elif name in ("application", "app"):
            response = Client(value).get("/")
            assert (response.status_code, response.text) == (200, "ok"), response.text
    guarded = namespace["application"]
    if isinstance(guarded, DBGuard) and guarded.config.health:
        assert Client(guarded).get(f"{guarded.config.health}/readyz").status_code == 200
    if "main" in namespace:  # Pyramid's
        assert isinstance(namespace["main"]({}, **{"dbguard.hold": "10"}), DBGuard)
    if "prometheus" in namespace and namespace["application"] is not sys.modules["myapp"].application:
        assert "db_client_connection_count" in Client(namespace["application"]).get("/metrics").text


def paste(text: str) -> None:
    """An ini file of PasteDeploy's."""
    from paste.deploy import loadapp  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "production.ini")
        file.write_text(text)
        application = loadapp(f"config:{file}")
    assert isinstance(application, DBGuard)
    assert application.config.hold == 10.0
    assert Client(application).get("/").text == "ok"


if __name__ == "__main__":
    main(sys.argv[1])
