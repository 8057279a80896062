"""Pools: S1 and S3, connections that die while they lie there; and settings that defeat a pool."""

from __future__ import annotations

from collections.abc import Iterator

from wsgi_dbguard.doctor.facts import DatabaseFacts, EngineFacts, Facts
from wsgi_dbguard.doctor.kinds import KINDS, Finding

from .words import WRAP, engine_at, seconds, sentence

__all__ = ["CHECKS"]


def idle_connections(facts: Facts) -> Iterator[Finding]:
    """What the server closes, and what nobody looks at: one finding for each engine, the more certain one."""
    for engine in facts.app.engines:
        if not engine.has_server or not engine.keeps:
            continue
        limit, name = _idle_limit(engine, facts.database(engine))
        if engine.guard is not None:
            if limit is not None:
                yield from _guarded(engine, limit, name)
        elif engine.pre_ping:
            continue
        elif limit is not None and (engine.recycle is None or engine.recycle >= limit):
            recycle = "no pool_recycle" if engine.recycle is None else f"pool_recycle = {engine.recycle:g}"
            yield KINDS["DBG-S3-idle"](
                seen=sentence(f"{engine_at(engine)} has {recycle}; the server's {name} is {seconds(limit)}."),
                happens="After a quiet night the pool is full of connections that the server has closed, and the first "
                "request on each of them fails (server has gone away, terminating connection, SSL SYSCALL error).",
                change=f"{WRAP}Or: make the engine with pool_pre_ping=True, or pool_recycle={max(1, int(limit / 2))}.",
            )
        else:
            yield KINDS["DBG-S1-unchecked"](
                seen=sentence(f"{engine_at(engine)} has neither the guard nor pool_pre_ping."),
                happens="When the server restarts, or a firewall drops connections, those in the pool are dead, and "
                "each fails one request: 500s on any page that do not repeat, while the server is healthy.",
                change=f"{WRAP}Or: make the engine with pool_pre_ping=True.",
            )


def null_pool(facts: Facts) -> Iterator[Finding]:
    """A pool that keeps nothing; right behind a pooler."""
    for engine in facts.app.engines:
        database = facts.database(engine)
        if engine.pool == "NullPool" and engine.has_server and not (database is not None and database.pooler):
            yield KINDS["DBG-POOL-null"](
                seen=sentence(f"{engine_at(engine)} has poolclass=NullPool, and no pooler is in between."),
                happens="Each use opens a connection and logs in anew: slow, without a bound on how many, and after a "
                "restart all at once. The guard has nothing to look after.",
                change="Leave poolclass out: the default pool is safe with the guard, after forks as well.",
            )


def autocommit(facts: Facts) -> Iterator[Finding]:
    """Transactions that are none."""
    for engine in facts.app.engines:
        database = facts.database(engine)
        asked = database is not None and database.autocommit and not database.standby
        if engine.autocommit_argument or asked:
            by = f"{engine.autocommit_argument} in its URL" if engine.autocommit_argument else "AUTOCOMMIT"
            yield KINDS["DBG-POOL-autocommit"](
                seen=sentence(f"{engine_at(engine)} has {by}."),
                happens="Each statement is committed at once: rollback() takes nothing back, a request that fails "
                "half-way leaves its half, and the guard cannot run it again.",
                change="Take it out, and use execution_options(isolation_level='AUTOCOMMIT') where it is wanted.",
            )


def ping_beside_guard(facts: Facts) -> Iterator[Finding]:
    """Two checks at each checkout."""
    for engine in facts.app.engines:
        if engine.pre_ping and engine.guard is not None and engine.has_server:
            yield KINDS["DBG-POOL-ping"](
                seen=sentence(f"{engine_at(engine)} has pool_pre_ping=True, and the guard."),
                happens="One needless round trip to the database at each checkout: the guard looks at the socket.",
                change="Make the engine without pool_pre_ping.",
            )


def _idle_limit(engine: EngineFacts, database: DatabaseFacts | None) -> tuple[float | None, str]:
    """After how many seconds the server closes an idle pooled connection, and the name of that setting."""
    if database is None or database.pooler:
        return None, ""
    limits = [(database.idle_limit, database.idle_limit_name)]
    if not engine.resets:  # it lies in the pool with its transaction open
        limits.append((database.transaction_limit, "limit for idle transactions"))
    found = [(limit, name) for limit, name in limits if limit]
    return min(found) if found else (None, "")


def _guarded(engine: EngineFacts, limit: float, name: str) -> Iterator[Finding]:
    assert engine.guard is not None
    idle = engine.guard["idle_timeout"]
    lifetime = engine.guard["max_lifetime"]
    earliest = min((each for each in (idle, lifetime) if each is not None), default=None)
    if earliest is None or earliest > limit:
        yield KINDS["DBG-S3-guard"](
            seen=sentence(
                f"{engine_at(engine)} is guarded with idle_timeout {seconds(idle)} and max_lifetime "
                f"{seconds(lifetime)}; the server's {name} is {seconds(limit)}."
            ),
            happens="The server closes idle connections first. The guard finds them dead and no request fails, but a "
            "request waits for a new connection, and a close just after the check is an error.",
            change=f"DBGuard(application, idle_timeout={max(1, int(limit * 0.8))})",
        )


CHECKS = (idle_connections, null_pool, autocommit, ping_beside_guard)
