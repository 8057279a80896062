"""PgBouncer and HAProxy before a database: what both do."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from wsgi_dbguard.lab.haproxy import HAProxy
from wsgi_dbguard.lab.pgbouncer import PgBouncer
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing
from wsgi_dbguard.lab.process import gone

Middleman: TypeAlias = PgBouncer | HAProxy
Make: TypeAlias = Callable[[Mapping[str, str]], Middleman]


@pytest.fixture(params=[PgBouncer, HAProxy])
def make(request: pytest.FixtureRequest, database: PostgreSQL) -> Make:
    """`make(settings)`: one that was not started yet."""

    def make(settings: Mapping[str, str]) -> Middleman:
        try:
            made: Middleman = request.param(database, settings=settings)
        except ServerMissing as missing:
            pytest.skip(str(missing))
        return made

    return make


@pytest.fixture
def middleman(make: Make) -> Iterator[Middleman]:
    with make({}) as running:
        yield running


@pytest.mark.parametrize("end", ["restart", "kill"])
def test_restart_and_kill_disconnect_clients_and_keep_the_port(middleman: Middleman, end: str) -> None:
    engine = create_engine(middleman.url())
    port, pid = middleman.port, middleman.pid
    with engine.connect() as connection:
        assert connection.scalar(text("select 1")) == 1
        getattr(middleman, end)()
        assert gone(pid)
        middleman.start()
        with pytest.raises(OperationalError):
            connection.scalar(text("select 1"))
    with engine.connect() as connection:
        assert connection.scalar(text("select 1")) == 1
    assert middleman.port == port
    engine.dispose()


def test_stopped_it_refuses(middleman: Middleman) -> None:
    middleman.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((middleman.host, middleman.port))


def test_impossible_setting_fails_with_the_words_of_the_log_and_leaves_nothing(make: Make) -> None:
    middleman = make({"no_such_setting": "1"})
    with pytest.raises(RuntimeError, match="no_such_setting"), middleman:
        pass
    assert not middleman.running
    assert not middleman.log.exists()
