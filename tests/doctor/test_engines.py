"""An engine, described."""

from __future__ import annotations

from sqlalchemy import create_engine

from wsgi_dbguard.doctor import engines


def test_one_server_has_one_name() -> None:
    hosts = ("localhost", "127.0.0.1", "[::1]")
    made = [create_engine(f"postgresql+psycopg2://app@{host}:5433/app") for host in hosts]
    assert {engines.describe(each, 0, "").server for each in made} == {"postgresql localhost:5433"}
