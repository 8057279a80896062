"""Which patience ends first: the server's, or what the application is told to wait for."""

from __future__ import annotations

from collections.abc import Iterator

from wsgi_dbguard.doctor.facts import Facts, ServerFacts
from wsgi_dbguard.doctor.kinds import KINDS, Finding

from .words import listed

__all__ = ["CHECKS"]

_KILLED = "the worker is killed with its request, and with it all requests of its other threads"


def guards_patience(facts: Facts) -> Iterator[Finding]:
    """`hold` and `deadline` of the guard."""
    server, guard = facts.server, facts.app.guard
    if server is None or server.timeout is None or guard is None:
        return
    limit = _limit(server)
    if guard["hold"] >= server.timeout:
        yield KINDS["DBG-TIME-hold"](
            seen=f"hold is {guard['hold']:g} s, {limit}.",
            happens=f"While the database is away requests are to wait for it, but {_KILLED}.",
            change=f"DBGuard(application, hold={_below(server.timeout)}), or a longer {server.timeout_name} in "
            f"{server.file}.",
        )
    if guard["deadline"] is not None and guard["deadline"] >= server.timeout:
        yield KINDS["DBG-TIME-deadline"](
            seen=f"deadline is {guard['deadline']:g} s, {limit}.",
            happens=f"Before a slow query is cancelled, {_KILLED}; and the query goes on in the database.",
            change=f"DBGuard(application, deadline={_below(server.timeout)}), or a longer {server.timeout_name} in "
            f"{server.file}.",
        )


def pool_timeout(facts: Facts) -> Iterator[Finding]:
    """A request that waits for a place in the pool."""
    server = facts.server
    if server is None or server.timeout is None:
        return
    patient = [
        each
        for each in facts.app.engines
        if each.has_server and each.limit is not None and each.pool_timeout is not None
        if each.pool_timeout > server.timeout
    ]
    if patient:
        longest = max(each.pool_timeout or 0.0 for each in patient)
        yield KINDS["DBG-TIME-pool"](
            seen=f"pool_timeout is {longest:g} s ({listed(each.made_at for each in patient)}), {_limit(server)}.",
            happens=f"When a pool is exhausted, {_KILLED}, before anybody is told that it was the pool.",
            change=f"create_engine(…, pool_timeout={_below(server.timeout)})",
        )


def _limit(server: ServerFacts) -> str:
    return f"{server.timeout_name} of {server.file} {server.timeout:g} s"


def _below(timeout: float) -> int:
    return max(1, int(timeout / 2))


CHECKS = (guards_patience, pool_timeout)
