"""Frameworks that make a 500 of an exception themselves: what the database had to do with it is known all the same.

In the process of the tests; see tests/servers/test_frameworks.py for whole applications on real servers.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import flask
import pytest
from django.core import signals
from sqlalchemy import Engine, QueuePool, create_engine, exc, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.failures import Failure
from wsgi_dbguard.request import current

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Page = Callable[[], str]
Framework = Callable[[Page], "WSGIApplication"]


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    __mapper_args__: Any = {"version_id_col": version}


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def by_flask(page: Page) -> WSGIApplication:
    app = flask.Flask(__name__)
    app.add_url_rule("/", "page", page)
    return app


def by_flask_with_a_page_for_errors(page: Page) -> WSGIApplication:
    app = flask.Flask(__name__)
    app.add_url_rule("/", "page", page)
    app.register_error_handler(500, lambda error: ("sorry", 500))
    return app


def by_hand(page: Page, tell: Callable[[], object] = lambda: None) -> WSGIApplication:
    """An application that catches everything, and by default tells nobody."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            body, status = page(), "200 OK"
        except Exception:
            tell()
            body, status = "sorry", "500 Internal Server Error"
        start_response(status, [("Content-Type", "text/plain")])
        return [body.encode()]

    return app


def by_django(page: Page) -> WSGIApplication:
    """What `django.core.handlers` does, without the settings of a whole Django."""
    return by_hand(page, lambda: signals.got_request_exception.send(sender=None, request=None))


def by_pyramid(page: Page) -> WSGIApplication:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources
        from pyramid.config import Configurator
        from pyramid.response import Response
    with Configurator() as config:
        config.add_route("page", "/")
        config.add_view(lambda request: Response(page()), route_name="page")
        config.add_exception_view(lambda error, request: Response("sorry", status=500), context=Exception)
        app: WSGIApplication = config.make_wsgi_app()
    return app


TELLING = [by_flask, by_flask_with_a_page_for_errors, by_django, by_pyramid]


def by_flask_that_catches_everything(page: Page) -> WSGIApplication:
    app = flask.Flask(__name__)
    app.add_url_rule("/", "page", page)
    app.register_error_handler(Exception, lambda error: ("sorry", 500))
    return app


SILENT = [by_hand, by_flask_that_catches_everything]


def answer(app: WSGIApplication, engine: Engine, **settings: Any) -> str:
    """Status and problem, if any."""
    response = Client(DBGuard(app, engine, **settings)).get("/")
    problem = json.loads(response.data)["type"].rpartition(":")[2] if response.is_json else ""
    return f"{response.status_code} {problem}".strip()


def database_fails() -> None:
    """As when the last connection was lost and a new one cannot be had: nothing that a second run could help."""
    request = current.get()
    assert request is not None
    request.database_failed(Failure.UNAVAILABLE, committing=False)


def stale(engine: Engine, finish: Callable[[Session], object] = Session.commit) -> None:
    with Session(engine) as session:
        session.merge(Note(id=1))
        session.commit()
        note = session.get_one(Note, 1)
        session.execute(text("update note set version = version + 1"))
        note.id = 2
        finish(session)


@pytest.mark.parametrize("framework", TELLING)
def test_exhausted_pool_is_unavailable(framework: Framework, engine: Engine) -> None:
    def page() -> str:
        with engine.connect(), engine.connect():
            return "never"

    assert answer(framework(page), engine) == "503 unavailable"
    assert answer(framework(page), engine, statuses=False) == "500"


@pytest.mark.parametrize("framework", [*TELLING, *SILENT])
@pytest.mark.parametrize("finish", [Session.commit, Session.flush])
def test_stale_update_is_a_conflict(framework: Framework, finish: Callable[[Session], object], engine: Engine) -> None:
    def page() -> str:
        stale(engine, finish)
        return "never"

    assert answer(framework(page), engine) == "409 conflict"
    assert answer(framework(page), engine, statuses=False) == "500"


@pytest.mark.parametrize("framework", TELLING)
def test_stale_read_is_a_conflict(framework: Framework, engine: Engine) -> None:
    """No flush failed: `Session.merge` compares the versions."""

    def page() -> str:
        raise StaleDataError

    assert answer(framework(page), engine) == "409 conflict"


@pytest.mark.parametrize("framework", TELLING)
def test_own_error_after_a_failure_that_was_got_over_is_the_applications(framework: Framework, engine: Engine) -> None:
    def page() -> str:
        database_fails()
        raise ZeroDivisionError

    assert answer(framework(page), engine) == "500"


@pytest.mark.parametrize("framework", TELLING)
def test_own_error_after_a_conflict_that_was_got_over_is_the_applications(framework: Framework, engine: Engine) -> None:
    def page() -> str:
        with suppress(StaleDataError):
            stale(engine)
        raise ZeroDivisionError

    assert answer(framework(page), engine) == "500"


@pytest.mark.parametrize("framework", TELLING)
def test_integrity_error_is_the_applications(framework: Framework, engine: Engine) -> None:
    def page() -> str:
        database_fails()
        with engine.begin() as connection:
            connection.execute(text("insert into note values (7, 1), (7, 1)"))
        return "never"

    assert answer(framework(page), engine) == "500"


@pytest.mark.parametrize("framework", TELLING)
@pytest.mark.parametrize(("before", "told"), [(True, "503 unavailable"), (False, "500")])
def test_pending_rollback_means_what_failed_before(
    framework: Framework, before: bool, told: str, engine: Engine
) -> None:
    def page() -> str:
        if before:
            database_fails()
        raise exc.PendingRollbackError

    assert answer(framework(page), engine) == told


@pytest.mark.parametrize("framework", TELLING)
def test_error_that_the_application_put_around_the_databases_is_the_databases(
    framework: Framework, engine: Engine
) -> None:
    def page() -> str:
        try:
            with engine.connect(), engine.connect():
                return "never"
        except exc.TimeoutError as error:
            raise LookupError from error

    assert answer(framework(page), engine) == "503 unavailable"


@pytest.mark.parametrize("framework", SILENT)
def test_a_500_of_which_nobody_tells_is_taken_for_the_work_of_the_last_failure(
    framework: Framework, engine: Engine
) -> None:
    def page() -> str:
        database_fails()
        raise ZeroDivisionError

    assert answer(framework(page), engine) == "503 unavailable"


@pytest.mark.parametrize("framework", SILENT)
def test_an_exhausted_pool_of_which_nobody_tells_stays_a_500(framework: Framework, engine: Engine) -> None:
    def page() -> str:
        with engine.connect(), engine.connect():
            return "never"

    assert answer(framework(page), engine) == "500"


@pytest.mark.parametrize("framework", TELLING)
def test_a_commit_in_doubt_tells_more_than_a_conflict_after_it(framework: Framework, engine: Engine) -> None:
    def page() -> str:
        request = current.get()
        assert request is not None
        request.database_failed(Failure.IN_DOUBT, committing=False)
        raise StaleDataError

    assert answer(framework(page), engine) == "503 outcome-unknown"


def test_page_that_is_no_500_is_sent(engine: Engine) -> None:
    def page() -> str:
        try:
            stale(engine)
        except StaleDataError:
            return "somebody was faster"
        return "never"

    assert answer(by_hand(page), engine) == "200"
    assert answer(by_flask(page), engine) == "200"


def test_each_pyramid_application_is_connected_once(engine: Engine) -> None:
    from pyramid.config import global_registries

    app: Any = by_pyramid(lambda: "well")
    for _ in range(3):
        DBGuard(app, engine)
    assert app.registry in global_registries
    own = [each for each in app.registry.registeredHandlers() if each.handler.__module__.startswith("wsgi_dbguard")]
    assert len(own) == 1


def test_a_framework_that_comes_later_is_connected_at_its_first_500(run_python: Callable[..., str]) -> None:
    program = """
import logging, sys
from sqlalchemy import create_engine, exc
from wsgi_dbguard import DBGuard

def application(environ, start_response):
    import flask
    app = flask.Flask(__name__)
    @app.route("/")
    def page():
        raise exc.TimeoutError
    return app(environ, start_response)

logging.disable()
guard = DBGuard(application, create_engine("sqlite://"))
assert not {"flask", "django", "pyramid"} & set(sys.modules)
from werkzeug.test import Client
print(*(Client(guard).get("/").status_code for _ in range(3)))
"""
    assert run_python(program) == "500 503 503\n"
