"""S5, the deleted object that exists: reads go to a replica, writes to the primary. Just after a commit an attribute is
read, the refresh goes to the replica, which has not got the row: ObjectDeletedError. And the page that the client is
sent to afterwards says 404.

Unguarded the application splits reads from writes by SQLAlchemy's own recipe for it ("Custom Vertical Partitioning"),
or by advanced-alchemy's sessions, which keep to the primary from a write to its COMMIT.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, abort, redirect, url_for
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy import Delete, Engine, String, Update, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import ObjectDeletedError
from werkzeug.wrappers import Response

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.replication import MariaDBPair, Pair, PostgreSQLPair
from wsgi_dbguard.lab.server import DatabaseServer
from wsgi_dbguard.routing import Replicas, RoutingSession

pytestmark = pytest.mark.slow

DRIVERS = {PostgreSQLPair: "psycopg2", MariaDBPair: "pymysql"}


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))


class Site:
    """A Flask application with one page for each way to meet the story. `session`: the class of its sessions."""

    replicas: Replicas

    def __init__(self, primary: str, session: type[Any]) -> None:
        self.app = Flask(__name__)
        self.app.config["SQLALCHEMY_DATABASE_URI"] = primary
        self.app.config["TESTING"] = True  # exceptions come through
        self.db = SQLAlchemy(self.app, session_options={"class_": session})
        self.app.add_url_rule("/items/<name>", "add", self.add, methods=["POST"])
        self.app.add_url_rule("/visit/<name>", "visit", self.visit)
        self.app.add_url_rule("/items/<int:number>", "show", self.show)
        self.app.add_url_rule("/added/<name>", "add_and_go", self.add_and_go, methods=["POST"])
        with self.app.app_context():
            self.engine = self.db.engine

    def _add(self, name: str) -> Item:
        item = Item(name=name)
        self.db.session.add(item)
        self.db.session.commit()
        return item

    def add(self, name: str) -> str:
        return self._add(name).name

    def visit(self, name: str) -> str:
        """A GET that writes, as those do that count visits."""
        self.db.session.get(Item, 0)
        return self._add(name).name

    def add_and_go(self, name: str) -> Response:
        item = Item(name=name)
        self.db.session.add(item)
        self.db.session.flush()
        target = url_for("show", number=item.id)
        self.db.session.commit()
        return redirect(target, 303)

    def show(self, number: int) -> str:
        item = self.db.session.get(Item, number)
        return item.name if item is not None else abort(404)


@pytest.fixture(scope="module", params=DRIVERS, ids=["PostgreSQL", "MariaDB"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with request.param() as pair:
        yield pair


def url(server: DatabaseServer, pair: Pair) -> str:
    return server.url_through(server.host, server.port, DRIVERS[type(pair)])


@pytest.fixture
def replica(pair: Pair) -> Iterator[Engine]:
    """Of a replica that has the table, and will get nothing more."""
    made = create_engine(url(pair.primary, pair))
    Base.metadata.drop_all(made)
    Base.metadata.create_all(made)
    made.dispose()
    pair.caught_up()
    engine = create_engine(url(pair.replica, pair))
    yield engine
    engine.dispose()
    pair.resume_replay()
    pair.caught_up()


def recipe(replica: Engine) -> type[Any]:
    class Splitting(FlaskSession):
        def get_bind(self, mapper: Any = None, clause: Any = None, bind: Any = None, **keywords: Any) -> Any:
            if self._flushing or isinstance(clause, Update | Delete):
                return super().get_bind(mapper, clause, bind, **keywords)
            return replica

    return Splitting


def advanced_alchemy(replica: Engine) -> type[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what SQLAlchemy 2.1 deprecates
        from advanced_alchemy.config.routing import RoutingConfig
        from advanced_alchemy.routing import RoundRobinSelector, RoutingSyncSession
        from advanced_alchemy.routing.selectors import EngineSelector
    config = RoutingConfig()
    readers: dict[str, EngineSelector[Engine]] = {config.read_group: RoundRobinSelector([replica])}

    class Splitting(RoutingSyncSession):
        def __init__(self, db: SQLAlchemy, **keywords: Any) -> None:
            super().__init__(config, readers, db.engine, **keywords)

    return Splitting


@pytest.fixture(params=[recipe, advanced_alchemy])
def split(request: pytest.FixtureRequest, pair: Pair, replica: Engine) -> Iterator[Site]:
    site = Site(url(pair.primary, pair), request.param(replica))
    yield site
    site.engine.dispose()


@pytest.fixture
def routed(pair: Pair, replica: Engine) -> Iterator[Site]:
    site = Site(url(pair.primary, pair), RoutingSession)
    site.app.wsgi_app = DBGuard(site.app.wsgi_app, site.engine, replica)  # type: ignore[method-assign]
    site.replicas = Replicas(site.engine, [replica], secret="secret")
    yield site
    site.engine.dispose()


@pytest.mark.parametrize("path", ["/items/anvil", "/visit/anvil"])
def test_unguarded_it_loses_what_it_has_just_written(split: Site, pair: Pair, path: str) -> None:
    pair.pause_replay()
    with pytest.raises(ObjectDeletedError):
        split.app.test_client().open(path, method="POST" if "items" in path else "GET")


def test_unguarded_it_sends_the_client_to_what_is_not_there(split: Site, pair: Pair) -> None:
    pair.pause_replay()
    assert split.app.test_client().post("/added/anvil", follow_redirects=True).status_code == 404


@pytest.mark.parametrize("path", ["/items/anvil", "/visit/anvil"])
def test_within_the_request_what_was_written_is_read(routed: Site, pair: Pair, path: str) -> None:
    pair.pause_replay()
    answer = routed.app.test_client().open(path, method="POST" if "items" in path else "GET")
    assert (answer.status_code, answer.text) == (200, "anvil")


def test_in_the_next_request_what_was_written_is_read(routed: Site, pair: Pair) -> None:
    client = routed.app.test_client()

    def from_the_replica(status: int) -> bool:
        """Whether the replica served the item; that somebody does, with this status, is certain."""
        before = served(routed)
        assert client.get("/items/1").status_code == status
        return served(routed) > before

    wait_until(lambda: from_the_replica(404), timeout=60.0, what="a replica that is in use")
    pair.pause_replay()
    before = served(routed)
    answer = client.post("/added/anvil", follow_redirects=True)
    assert (answer.status_code, answer.text) == (200, "anvil")
    assert routed.replicas.stats()["primary"]["behind"] == 1
    assert served(routed) == before
    pair.resume_replay()
    pair.caught_up()
    wait_until(lambda: from_the_replica(200), timeout=60.0, what="the item, from the replica")


def served(site: Site) -> int:
    """How many requests the replica has served."""
    (replica,) = site.replicas.stats()["replicas"].values()
    return int(replica["requests"])
