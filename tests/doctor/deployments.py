"""Five deployments that are broken as in the stories, and the same ones repaired: their files, as text.

Those for S2 to S5 have what helps against S1 (pool_pre_ping), so that each is broken in one way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DEPLOYMENTS", "Deployment"]


@dataclass(frozen=True)
class Deployment:
    """`files` by name, `ids` of all findings, and a part of what must be said to have been `seen`."""

    name: str
    files: dict[str, str]
    ids: list[str] = field(default_factory=list)
    seen: str = ""
    replica: bool = False

    def write(self, directory: Path) -> None:
        for name, text in self.files.items():
            (directory / name).write_text(text.lstrip())

    def __str__(self) -> str:
        return self.name


FLASK = """
import os

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()


def create_app():
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {options}
    db.init_app(app)
    return app
"""
PLAIN_WSGI = """
from shop import create_app

application = create_app()
"""
GUARDED_WSGI = """
from shop import create_app
from wsgi_dbguard import DBGuard

application = DBGuard(create_app())
"""
PLAIN_GUNICORN = """
wsgi_app = "wsgi"
worker_class = "gthread"
workers = 2
threads = 4
"""
GUARDED_GUNICORN = f"""
from wsgi_dbguard.hooks.gunicorn import *
{PLAIN_GUNICORN}
"""

S1_BROKEN = Deployment(
    "S1 the stale pool",
    {"shop.py": FLASK.format(options={}), "wsgi.py": PLAIN_WSGI, "gunicorn.conf.py": PLAIN_GUNICORN},
    ["DBG-S1-unchecked"],
    seen="made at shop.py:13 in create_app, has neither the guard nor pool_pre_ping",
)
S1_REPAIRED = Deployment(
    "S1 repaired",
    {"shop.py": FLASK.format(options={}), "wsgi.py": GUARDED_WSGI, "gunicorn.conf.py": GUARDED_GUNICORN},
)

LOGGING = """
import os

from sqlalchemy import create_engine, text

engine = create_engine(os.environ["DATABASE_URL"]{ping})


def log(message):
    with engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE IF NOT EXISTS log (message text)"))
        connection.execute(text("INSERT INTO log VALUES (:message)"), {{"message": message}})


log("the application starts")


def application(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]
"""
S2_UWSGI = """
[uwsgi]
master = true
processes = 2
threads = 2
module = {module}
socket = 127.0.0.1:0
"""
GUARD_OF_LOGGING = """
import logs
from wsgi_dbguard import DBGuard

application = DBGuard(logs.application)
"""
S2_BROKEN = Deployment(
    "S2 the shared pool",
    {"logs.py": LOGGING.format(ping=", pool_pre_ping=True"), "uwsgi.ini": S2_UWSGI.format(module="logs")},
    ["DBG-S2-shared"],
    seen="1 connection open after the import, opened at logs.py:9 in log; uwsgi then forks 2 workers",
)
S2_REPAIRED = Deployment(
    "S2 repaired",
    {
        "logs.py": LOGGING.format(ping=""),
        "wsgi.py": GUARD_OF_LOGGING,
        "uwsgi.ini": S2_UWSGI.format(module="wsgi:application") + "ini = exec://wsgi-dbguard config uwsgi\n",
    },
)

OVER_NIGHT = {"pool_recycle": 7200, "connect_args": {"options": "-c idle_session_timeout=1h"}}
S3_BROKEN = Deployment(
    "S3 gone away",
    {"shop.py": FLASK.format(options=OVER_NIGHT), "wsgi.py": PLAIN_WSGI, "gunicorn.conf.py": PLAIN_GUNICORN},
    ["DBG-S3-idle"],
    seen="has pool_recycle = 7200; the server's idle_session_timeout is 3600 s",
)
S3_REPAIRED = Deployment(
    "S3 repaired",
    {"shop.py": FLASK.format(options=OVER_NIGHT), "wsgi.py": GUARDED_WSGI, "gunicorn.conf.py": GUARDED_GUNICORN},
)

DJANGO = """
import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from sqlalchemy import create_engine, text
from sqlalchemy.orm import {imports}

engine = create_engine(os.environ["DATABASE_URL"]{ping})
session = {session}


def index(request):
    return HttpResponse(str(session.scalar(text("SELECT 1"))))


urlpatterns = [path("", index)]
settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="not a secret")
application = get_wsgi_application()
"""
S4_BROKEN = Deployment(
    "S4 the invalid transaction",
    {
        "wsgi.py": DJANGO.format(imports="Session", ping=", pool_pre_ping=True", session="Session(engine)"),
        "gunicorn.conf.py": PLAIN_GUNICORN,
    },
    ["DBG-S4-session"],
    seen="wsgi.session is a Session made at wsgi.py:11 in <module>, for all requests",
)
S4_REPAIRED = Deployment(
    "S4 repaired",
    {
        "wsgi.py": DJANGO.format(
            imports="scoped_session, sessionmaker", ping="", session="scoped_session(sessionmaker(engine))"
        )
        + "\nfrom wsgi_dbguard import DBGuard\n\napplication = DBGuard(application)\n",
        "gunicorn.conf.py": GUARDED_GUNICORN,
    },
)

SPLITTING = """
import os

from flask import Flask
from sqlalchemy import Delete, Insert, Update, create_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

primary = create_engine(os.environ["DATABASE_URL"], pool_pre_ping=True)
replica = create_engine(os.environ["REPLICA_URL"], pool_pre_ping=True)


class Splitting(Session):
    def get_bind(self, mapper=None, *, clause=None, **keywords):
        return primary if self._flushing or isinstance(clause, Insert | Update | Delete) else replica


session = scoped_session(sessionmaker(class_=Splitting))
app = Flask(__name__)
"""
ROUTED = """
import os

from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import scoped_session, sessionmaker
from wsgi_dbguard import DBGuard
from wsgi_dbguard.routing import Replicas, RoutingSession

primary = create_engine(os.environ["DATABASE_URL"])
replicas = Replicas(primary, [create_engine(os.environ["REPLICA_URL"])], secret="not a secret")
session = scoped_session(sessionmaker(primary, class_=RoutingSession))
app = DBGuard(Flask(__name__))
"""
S5_BROKEN = Deployment(
    "S5 the deleted object",
    {"wsgi.py": SPLITTING, "gunicorn.conf.py": PLAIN_GUNICORN},
    ["DBG-S5-expire"],
    seen="wsgi.Splitting, of the sessionmaker at wsgi.py:16 in <module>, has a get_bind of its own",
    replica=True,
)
S5_REPAIRED = Deployment("S5 repaired", {"wsgi.py": ROUTED, "gunicorn.conf.py": GUARDED_GUNICORN}, replica=True)

DEPLOYMENTS = (
    S1_BROKEN,
    S1_REPAIRED,
    S2_BROKEN,
    S2_REPAIRED,
    S3_BROKEN,
    S3_REPAIRED,
    S4_BROKEN,
    S4_REPAIRED,
    S5_BROKEN,
    S5_REPAIRED,
)
