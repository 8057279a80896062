"""Django's application wrapped, its system checks, and its own connections after a fork.

Each test is a program of its own: Django's settings are those of a whole process.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wsgi_dbguard.lab.drivers import driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL

Run = Callable[..., str]

BEGIN = """
import sys
from django.conf import settings
from wsgi_dbguard.contrib.django import get_wsgi_application

def configure(**values):
    settings.configure(
        **{"SECRET_KEY": "x" * 60, "ROOT_URLCONF": "__main__", "ALLOWED_HOSTS": ["*"], "DATABASES": {}, **values}
    )

def ids(*options):
    from django.core.checks import run_checks
    return sorted(each.id for each in run_checks(tags=["dbguard"], include_deployment_checks="deploy" in options))

APP = "wsgi_dbguard.contrib.django"
urlpatterns = []
"""


def test_the_settings_have_the_guards_and_requests_are_guarded(run_python: Run) -> None:
    program = """
from django.http import HttpResponse
from django.urls import path
from werkzeug.test import Client
configure(DBGUARD_HOLD=10, DBGUARD_KEEPALIVE="20,5,3", DBGUARD_REPLAY="off")
urlpatterns.append(path("", lambda request: HttpResponse(str("wsgi_dbguard.request" in request.environ))))
application = get_wsgi_application(replay="safe")
print(application.config.hold, application.config.keepalive, application.config.replay)
print(Client(application).get("/").text)
"""
    assert run_python(BEGIN + program) == "10.0 (20, 5, 3) safe\nTrue\n"


@pytest.mark.parametrize(("key", "value"), [("DBGUARD_HOLT", 1), ("DBGUARD_HOLD", "soon")])
def test_a_wrong_setting_is_refused_at_the_start_and_by_check(run_python: Run, key: str, value: object) -> None:
    program = f"""
configure(INSTALLED_APPS=[APP], {key}={value!r})
try:
    get_wsgi_application()
except ValueError as error:
    print(type(error).__name__, {key!r} in str(error))
print(ids())
"""
    assert run_python(BEGIN + program) == "SettingError True\n['dbguard.E001']\n"


def test_checks_have_nothing_to_say_of_a_guarded_site(run_python: Run) -> None:
    program = """
application = None
configure(
    INSTALLED_APPS=[APP], DBGUARD_HOLD=10, WSGI_APPLICATION="__main__.application",
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}},
)
application = get_wsgi_application()
print(ids("deploy"))
"""
    assert run_python(BEGIN + program) == "[]\n"


def test_checks_find_what_is_not_guarded(run_python: Run) -> None:
    program = """
import django
from django.core.wsgi import get_wsgi_application
configure(
    INSTALLED_APPS=[APP], WSGI_APPLICATION="__main__.application",
    DATABASES={
        "default": {"ENGINE": "django.db.backends.postgresql", "CONN_MAX_AGE": None},
        "reports": {"ENGINE": "django.db.backends.postgresql", "OPTIONS": {"pool": True}},
        "archive": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "CONN_MAX_AGE": None},
    },
)
application = get_wsgi_application()
print(ids())
print(ids("deploy"))
"""
    expected = "['dbguard.W002', 'dbguard.W003']\n['dbguard.W001', 'dbguard.W002', 'dbguard.W003']\n"
    assert run_python(BEGIN + program) == expected


def test_checks_go_on_where_the_application_cannot_be_imported(run_python: Run) -> None:
    program = """
import django
configure(INSTALLED_APPS=[APP], WSGI_APPLICATION="nothing.here.application")
django.setup()
print(ids("deploy"))
"""
    assert run_python(BEGIN + program) == "['dbguard.W001']\n"


def test_imported_before_the_settings_are_known_it_does_not_ask_for_them(run_python: Run) -> None:
    program = """
print(settings.configured)
configure(DBGUARD_HOLD=1)
print(get_wsgi_application().config.hold)
"""
    assert run_python(BEGIN + program) == "False\n1.0\n"


FORK = """
import os, warnings
from wsgi_dbguard import ForkWarning
warnings.simplefilter("ignore", ForkWarning)
import logging
logging.getLogger("wsgi_dbguard").setLevel(logging.ERROR)

host, port, name, driver = sys.argv[1:]
if driver == "psycopg2":
    sys.modules["psycopg"] = None  # Django takes it where it is there
backends = "django.db.backends." + ("mysql" if driver == "MySQLdb" else "postgresql")
configure(DATABASES={"default": {"ENGINE": backends, "HOST": host, "PORT": port, "USER": name, "NAME": name}})
GUARDED
from django.db import connection, transaction

def backend():
    with connection.cursor() as cursor:
        cursor.execute("select connection_id()" if driver == "MySQLdb" else "select pg_backend_pid()")
        return cursor.fetchone()[0]

def in_child(function):
    # What function() returns in a forked child, as text.
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer = str(function())
        except Exception as error:
            answer = type(error).__name__
        os.write(writing, answer.encode())
        os.close(writing)
        connection.close()
        sys.exit()  # with exit handlers and destructors
    os.close(writing)
    with open(reading) as told:
        answer = told.read()
    assert os.waitpid(child, 0)[1] == 0
    return answer

assert connection.Database.__name__ == driver, connection.Database
ours = backend()
"""
GUARD = "get_wsgi_application()"
NO_GUARD = """
from django.core.wsgi import get_wsgi_application
from django.db.backends.signals import connection_created
connection_created.receivers.clear()
get_wsgi_application()
"""


@pytest.fixture
def fork(run_python: Run, server_of: Callable[..., PostgreSQL | MariaDB]) -> Callable[..., str]:
    def run(program: str, *, guarded: bool = True, driver: str = "psycopg2") -> str:
        server = server_of(driver_named("mysqlclient" if driver == "MySQLdb" else driver))
        begin = BEGIN + FORK.replace("GUARDED", GUARD if guarded else NO_GUARD)
        return run_python(begin + program, server.host, str(server.port), "dbguard", driver)

    return run


def test_without_the_guard_a_child_uses_djangos_connection_of_its_parent(fork: Callable[..., str]) -> None:
    assert fork("print(in_child(backend) == str(ours))", guarded=False) == "True\n"


def test_a_child_has_a_connection_of_its_own_and_the_parent_keeps_its(fork: Callable[..., str], driver: str) -> None:
    program = """
print(in_child(lambda: connection.connection), backend() == ours)
theirs = {in_child(backend) for _ in range(3)}
print(len(theirs - {str(ours)}), backend() == ours)
print(in_child(lambda: in_child(backend) not in (str(backend()), str(ours))), backend() == ours)
"""
    assert fork(program, driver=driver) == "None True\n3 True\nTrue True\n"


@pytest.mark.parametrize("guarded", [False, True], ids=["unguarded", "guarded"])
def test_a_child_that_ends_says_goodbye_to_mysql_on_no_connection_of_its_parents_threads(
    fork: Callable[..., str], guarded: bool
) -> None:
    """The destructor of mysqlclient's connections tells the server that the client leaves."""
    program = """
import threading
def work():
    first = backend()
    ready.set()
    go.wait()
    try:
        kept.append(backend() == first)
    except Exception:
        kept.append(False)

kept, ready, go = [], threading.Event(), threading.Event()
thread = threading.Thread(target=work)
thread.start()
ready.wait()
in_child(lambda: None)
go.set()
thread.join()
try:
    kept.append(backend() == ours)
except Exception:
    kept.append(False)
print(*kept)
"""
    assert fork(program, guarded=guarded, driver="MySQLdb") == ("True True\n" if guarded else "False False\n")


def test_a_warning_tells_the_line_that_opened_the_connection(fork: Callable[..., str]) -> None:
    program = """
from wsgi_dbguard import registry
(link,) = registry.links
print(link.opened_at.startswith("<string>:"), link.opened_at.endswith(" in backend"))
"""
    assert fork(program) == "True True\n"


def test_a_transaction_of_the_parent_cannot_be_used_until_its_block_is_left(fork: Callable[..., str]) -> None:
    program = """
def leave_and_ask():
    block.__exit__(None, None, None)
    return backend() != ours

block = transaction.atomic()
block.__enter__()
backend()
transaction.on_commit(lambda: print("committed in", os.getpid() == first))
first = os.getpid()
print(in_child(backend), in_child(leave_and_ask))
print(backend() == ours, connection.in_atomic_block)
block.__exit__(None, None, None)
"""
    assert fork(program) == "TransactionManagementError True\nTrue True\ncommitted in True\n"


def test_after_a_fork_that_python_does_not_see_the_next_request_cuts_off(fork: Callable[..., str]) -> None:
    program = """
import ctypes
from django.http import HttpResponse
from django.urls import path
from werkzeug.test import Client
import wsgi_dbguard.fork
urlpatterns.append(path("", lambda request: HttpResponse(str(backend()))))
application = get_wsgi_application()
first, answers = os.getpid(), os.pipe()
child = ctypes.CDLL(None).fork()
if not child:
    assert wsgi_dbguard.fork.pid == first
    os.write(answers[1], Client(application).get("/").text.encode())
    os._exit(0)
os.close(answers[1])
os.waitpid(child, 0)
print(int(os.read(answers[0], 100)) != ours, backend() == ours)
"""
    assert fork(program) == "True True\n"


def test_a_connection_that_was_closed_is_forgotten(fork: Callable[..., str]) -> None:
    program = """
import gc
from wsgi_dbguard import registry
for _ in range(5):
    connection.close()
    backend()
print(len(registry.links))
connection.close()
gc.collect()
print(len(registry.links))
"""
    assert fork(program) == "1\n0\n"
