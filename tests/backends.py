"""Which of PostgreSQL's processes a pool leads to, and how many connections its guard has closed."""

from __future__ import annotations

from sqlalchemy import Engine, text

from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.pool import PoolGuard

PID = text("select pg_backend_pid()")


def pid_of(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(PID) or 0


def retired(pool_guard: PoolGuard, count: int) -> None:
    """Wait until that many idle connections were closed before their time."""
    wait_until(lambda: pool_guard.stats()["retired"] == count, timeout=60.0, what=f"the end of {count} connections")
