"""A replication pair, and an application whose view is the test's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.replication import PostgreSQLPair
from wsgi_dbguard.routing import Replicas, RoutingSession

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Settings = dict[str, Any] | None
IN_RECOVERY = text("SELECT pg_is_in_recovery()")


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column()


@dataclass
class Answer:
    status: str
    headers: dict[str, str]
    body: str

    @property
    def cookie(self) -> str:
        return self.headers["Set-Cookie"].partition(";")[0]


class Site:
    """One process, so to say: engines, their `Replicas`, and a guarded application that does as it is asked."""

    def __init__(
        self, pair: PostgreSQLPair, settings: dict[str, Any], pool: dict[str, Any], guard: dict[str, Any]
    ) -> None:
        self.pair = pair
        self.primary = create_engine(settings.pop("url", None) or pair.primary.url(), **pool)
        self.replica = create_engine(pair.replica.url())
        self.replicas = Replicas(self.primary, [self.replica, *settings.pop("more", [])], secret="secret", **settings)
        self.session = sessionmaker(self.primary, class_=RoutingSession)
        self.application = DBGuard(self._application, self.primary, self.replica, **guard)

    def close(self) -> None:
        self.primary.dispose()
        self.replica.dispose()

    def _application(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["test.view"]()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body if isinstance(body, Iterable) and not isinstance(body, str) else [str(body).encode()]

    def ask(self, view: Callable[[], object], method: str = "GET", **environ: str) -> Answer:
        told: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., None]:
            told[:] = [status, dict(headers)]
            return lambda data: None

        full: dict[str, Any] = {"REQUEST_METHOD": method, "test.view": view, **environ}
        setup_testing_defaults(full)
        answer = self.application(full, start_response)
        body = b"".join(answer)
        close = getattr(answer, "close", None)
        if close is not None:
            close()
        return Answer(told[0], told[1], body.decode())

    def where(self, session: Any = None) -> str:
        """A view: which server a new session, or this one, reads from."""
        if session is not None:
            return "replica" if session.scalar(IN_RECOVERY) else "primary"
        with self.session() as session:
            return self.where(session)

    def add(self, name: str = "anvil") -> str:
        """A view: adds an item, and tells its name after the commit."""
        with self.session() as session:
            item = Item(name=name)
            session.add(item)
            session.commit()
            return item.name

    def names(self) -> str:
        """A view: all items."""
        with self.session() as session:
            return " ".join(session.scalars(text("SELECT name FROM items ORDER BY id")))

    def ready(self) -> Site:
        """Wait until the replica is in use."""
        wait_until(lambda: self.ask(self.where).body == "replica", timeout=60.0, what="a replica that is in use")
        return self


@pytest.fixture(scope="package")
def pair() -> Iterator[PostgreSQLPair]:
    try:
        pair = PostgreSQLPair()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with pair:
        yield pair


@pytest.fixture
def make_site(pair: PostgreSQLPair) -> Iterator[Callable[..., Site]]:
    """Makes a `Site` with an empty table. Keywords: settings of `Replicas`; `pool` and `guard`: of the others."""
    made: list[Site] = []

    def make(pair: PostgreSQLPair = pair, pool: Settings = None, guard: Settings = None, **settings: Any) -> Site:
        site = Site(pair, settings, pool or {}, guard or {})
        made.append(site)
        if pair.replica.query("SELECT pg_is_in_recovery()")[0][0]:
            prepare(site.primary, pair)
        return site

    yield make
    for site in made:
        site.close()
    if pair.replica.running:
        pair.resume_replay()


def prepare(engine: Engine, pair: PostgreSQLPair) -> None:
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    pair.caught_up()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    # On a machine that is busy an answer may take its time: no replica is to be out for that.
    return make_site(probe_timeout=30.0, max_lag=60.0, pin=70.0).ready()


__all__ = ["Answer", "Item", "Site"]
