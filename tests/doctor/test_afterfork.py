"""Hooks of an application's own that run after the fork."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsgi_dbguard.doctor.afterfork import cuts
from wsgi_dbguard.lab.postgres import PostgreSQL

from .conftest import Examine

OPENS = """
import os
from sqlalchemy import create_engine, text
engine = create_engine(os.environ["DATABASE_URL"], pool_pre_ping=True)
with engine.connect() as connection:
    connection.execute(text("SELECT 1"))
def application(environ, start_response): ...
"""
DISPOSES = "engine.dispose(close=False)"
GUNICORN = "preload_app = True\nwsgi_app = 'wsgi'\n"
POST_FORK = "def post_fork(server, worker):\n    "
AT_FORK = "os.register_at_fork(after_in_child=lambda: "
UWSGI = "[uwsgi]\nmodule = wsgi\nmaster = true\n"
DECORATED = """
import uwsgi
from uwsgidecorators import postfork, thread, timer
uwsgi.register_signal(90, "", print)
@timer(3)
def tick(signal): ...
@thread
def forever():
    while True: ...
forever()
@postfork
def fresh():
    """


def test_sqlalchemys_recipe_is_known_by_its_code() -> None:
    engine: Any = None
    known: list[Callable[..., Any]] = [
        lambda: engine.dispose(close=False),
        lambda: [each.dispose(close=False) for each in engine],
    ]
    others: list[Any] = [lambda: engine.dispose(), lambda: print("forked"), print, None]
    assert [cuts(each) for each in known] == [True, True]
    assert not any(cuts(each) for each in others)


@pytest.mark.parametrize(
    ("name", "configuration", "more", "found"),
    [
        ("gunicorn.conf.py", GUNICORN, "", "DBG-S2-shared"),
        ("gunicorn.conf.py", f"{GUNICORN}{POST_FORK}from wsgi import engine; {DISPOSES}\n", "", "DBG-S2-recipe"),
        ("gunicorn.conf.py", f"{GUNICORN}{POST_FORK}print('forked')\n", "", "DBG-S2-own"),
        ("gunicorn.conf.py", GUNICORN, f"{AT_FORK}{DISPOSES})\n", "DBG-S2-recipe"),
        ("uwsgi.ini", UWSGI, f"{AT_FORK}{DISPOSES})\n", "DBG-S2-shared"),  # Python does not see uWSGI's forks
        ("uwsgi.ini", UWSGI, f"{DECORATED}{DISPOSES}\n", "DBG-S2-recipe"),
    ],
)
def test_hooks_after_the_fork_are_seen(
    name: str, configuration: str, more: str, found: str, site: Path, database: PostgreSQL, look: Examine
) -> None:
    (site / name).write_text(configuration)
    (site / "wsgi.py").write_text(OPENS + more)
    _, findings = look(database=False)
    assert [each.kind.id for each in findings] == [found]
