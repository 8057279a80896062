"""The opening of connections is bounded."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.exc import OperationalError

from wsgi_dbguard import guard
from wsgi_dbguard.connecting import bound


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where somebody accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "mysqldb", "mariadbconnector", "pymysql"])
def test_the_driver_is_told(driver: str) -> None:
    keywords: dict[str, Any] = {"host": "db"}
    bound(driver, (), keywords, 9.2)
    assert keywords == {"host": "db", "connect_timeout": 10}


@pytest.mark.parametrize(
    ("driver", "args", "keywords"),
    [
        ("psycopg2", (), {"connect_timeout": 3}),
        ("psycopg2", (), {"dsn": "host=db connect_timeout=3"}),
        ("psycopg", ("host=db connect_timeout=3",), {}),
        ("pg8000", (), {"host": "db"}),
        ("unknown", (), {"host": "db"}),
    ],
)
def test_what_the_application_says_stays(driver: str, args: tuple[str, ...], keywords: dict[str, Any]) -> None:
    before = dict(keywords)
    bound(driver, args, keywords, 10.0)
    assert keywords == before


def test_so_does_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "3")
    assert os.environ["PGCONNECT_TIMEOUT"] == "3"
    keywords: dict[str, Any] = {}
    bound("psycopg2", (), keywords, 10.0)
    assert keywords == {}


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_server_that_says_nothing_is_given_up(driver: str, silent: int) -> None:
    engine = create_engine(f"postgresql+{driver}://app@127.0.0.1:{silent}/app")
    guarded = guard(engine, connect_timeout=2.0)
    with pytest.raises(OperationalError, match="time"):
        engine.connect()
    assert guarded.stats()["away"]
    engine.dispose()


def test_a_listener_of_the_users_has_the_last_word() -> None:
    engine = create_engine("postgresql+psycopg2://app@127.0.0.1:1/app")
    guard(engine)
    seen: list[Any] = []

    def listener(dialect: Any, entry: Any, args: Any, keywords: dict[str, Any]) -> None:
        seen.append(keywords["connect_timeout"])
        keywords["connect_timeout"] = 5

    event.listen(engine, "do_connect", listener)
    with pytest.raises(OperationalError):
        engine.connect()
    assert seen == [10]
