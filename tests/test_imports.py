"""What a process imports: what most of them have no use for is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wsgi_dbguard.lab.postgres import PostgreSQL

REQUESTS = """
import sys
from sqlalchemy import create_engine, text
from werkzeug.test import create_environ
from wsgi_dbguard import DBGuard

engine = create_engine(sys.argv[1], pool_size=1, max_overflow=0)

def application(environ, start_response):
    with engine.begin() as connection:
        connection.execute(text(environ["QUERY_STRING"]))
    start_response("200 OK", [])
    return [b""]

def request(statement):
    DBGuard(application, engine)(create_environ(query_string=statement), lambda *ignored: lambda data: None)
    rare = ("arguments", "cancel", "canceller", "changes", "deadline", "quirks", "rollbacks", "settle", "variables")
    print(*(name for name in rare if f"wsgi_dbguard.{name}" in sys.modules))

request("select 1")
request("set statement_timeout = 4321")
request("select 1")
engine.dispose()
"""


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_worker_imports_what_its_requests_need(
    driver: str, postgres: PostgreSQL, run_python: Callable[..., str]
) -> None:
    pytest.importorskip(driver)
    told = run_python(REQUESTS, postgres.url(driver)).splitlines()
    assert told == ["", "arguments changes", "arguments changes variables"]


PREPARED = """
import sys
from sqlalchemy import create_engine
from wsgi_dbguard import cancel, canceller

create_engine("postgresql+psycopg2://")
print(cancel._libpq.cache_info().currsize)
"""


def test_what_a_signal_handler_may_need_is_there_before(run_python: Callable[..., str]) -> None:
    """`canceller.abort` is called by one: whoever imports it in time has what it needs for engines made later."""
    pytest.importorskip("psycopg2")
    assert run_python(PREPARED) == "1\n"


FORKED = """
import importlib, os, signal, sys, threading, warnings
import wsgi_dbguard

class Slow:
    begun, goes_on = threading.Event(), threading.Event()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "wsgi_dbguard.changes":
            cls.begun.set()
            cls.goes_on.wait()

warnings.simplefilter("ignore")  # of a fork with threads
sys.meta_path.insert(0, Slow)
thread = threading.Thread(target=importlib.import_module, args=["wsgi_dbguard.changes"])
thread.start()
Slow.begun.wait()
sys.setswitchinterval(10)  # nobody lets the thread go on but who waits for it
os.register_at_fork(before=Slow.goes_on.set)  # comes before the guard's
if (child := os.fork()) == 0:
    signal.alarm(10)
    import wsgi_dbguard.changes
    os._exit(0)
thread.join()
print(os.waitpid(child, 0)[1])
"""


def test_what_another_thread_was_importing_at_a_fork_can_be_imported_in_the_child(
    run_python: Callable[..., str],
) -> None:
    assert run_python(FORKED) == "0\n"
