"""Made-up facts for the checks: a deployment with nothing wrong, and what differs from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wsgi_dbguard.doctor.checks import findings
from wsgi_dbguard.doctor.facts import AppFacts, DatabaseFacts, EngineFacts, Facts, ServerFacts

__all__ = ["GUARD", "app", "database", "engine", "gunicorn", "ids", "uwsgi"]

GUARD: dict[str, Any] = {
    "hold": 10.0,
    "deadline": None,
    "max_lifetime": 3600.0,
    "idle_timeout": 600.0,
    "leaks": "heal",
    "ping_after": 60.0,
}


def engine(number: int = 0, *, guarded: bool = True, **differences: Any) -> EngineFacts:
    """A guarded engine of PostgreSQL."""
    made = EngineFacts(
        number=number,
        url="postgresql+psycopg2://app:***@db.example/app",
        dialect="postgresql",
        driver="psycopg2",
        server="postgresql db.example:5432",
        made_at="shop.py:7 in <module>",
        guard=GUARD if guarded else None,
    )
    return replace(made, **differences)


def app(*engines: EngineFacts, guarded: bool = True, **differences: Any) -> AppFacts:
    """A guarded application with one engine, or these."""
    return AppFacts(
        target="wsgi:application",
        engines=list(engines) or [engine(guarded=guarded)],
        **{"guard": GUARD if guarded else None, **differences},
    )


def database(number: int = 0, **differences: Any) -> DatabaseFacts:
    """A PostgreSQL as it comes, by TLS."""
    made = DatabaseFacts(
        engine=number, version="PostgreSQL 18.1", max_connections=100, reserved=3, remote=True, tls=True
    )
    return replace(made, **differences)


def gunicorn(**differences: Any) -> ServerFacts:
    """2 workers of 4 threads, with the hooks."""
    made = ServerFacts(
        name="gunicorn", file="gunicorn.conf.py", version="27.0", processes=2, threads=4, worker="gthread", hooks=True
    )
    return replace(made, timeout_name="timeout", **differences)


def uwsgi(**differences: Any) -> ServerFacts:
    """2 processes of 4 threads, with dbguard.ini."""
    made = ServerFacts(
        name="uwsgi",
        file="uwsgi.ini",
        version="2.0.31",
        processes=2,
        threads=4,
        hooks=True,
        enable_threads=True,
        timeout=60.0,
        timeout_name="harakiri",
    )
    return replace(made, **differences)


def ids(application: AppFacts | None = None, server: ServerFacts | None = None, *databases: DatabaseFacts) -> list[str]:
    """The ids of all findings; of what is left out, the deployment with nothing wrong."""
    facts = Facts(app=application or app(), server=server or gunicorn(), databases=list(databases) or [database()])
    return [each.kind.id for each in findings(facts)]
