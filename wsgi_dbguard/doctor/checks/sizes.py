"""How many connections there may be: of a server's limit, and of a pool for its threads.

A pool belongs to a process, and a thread has one connection of each engine at a time. So all threads at work need
``processes x min(threads, pool_size + max_overflow)``, over all engines of a database server; at most the pools may
open ``processes x (pool_size + max_overflow)``. A master that preloads and workers that are being replaced come on top.
"""

from __future__ import annotations

from collections.abc import Iterator

from wsgi_dbguard.doctor.facts import EngineFacts, Facts, ServerFacts
from wsgi_dbguard.doctor.kinds import KINDS, Finding

from .words import count, engine_at, sentence

__all__ = ["CHECKS"]


def server_limit(facts: Facts) -> Iterator[Finding]:
    """All pools of all processes against max_connections, one finding for each database server at most."""
    server = facts.server
    if server is None:
        return
    for name, engines in _by_server(facts).items():
        known = next((found for each in engines if (found := facts.database(each)) is not None), None)
        if known is None or known.max_connections is None or known.pooler:
            continue
        given = known.max_connections - known.reserved
        needed = server.processes * sum(min(server.threads, _limit(each, server)) for each in engines)
        most = server.processes * sum(_limit(each, server) for each in engines)
        pools = " + ".join(_pool(each, server) for each in engines)
        seen = (
            f"{name}: {count(server.processes, 'process')} of {count(server.threads, 'thread')}, each with {pools}; "
            f"max_connections is {known.max_connections}, {known.reserved} of them reserved."
        )
        refused = "are refused (too many connections, remaining connection slots are reserved), and those requests fail"
        if needed > given:
            yield KINDS["DBG-POOL-limit"](
                seen=seen,
                happens=f"All threads at work need {needed} connections, the server gives {given}; others {refused}.",
                change=f"Fewer processes or threads in {server.file}, or max_connections = {needed + known.reserved}, "
                "or PgBouncer in between.",
            )
        elif most > given:
            each = max(1, given // (server.processes * len(engines)))
            size = min(each, max(server.threads, 1))
            yield KINDS["DBG-POOL-burst"](
                seen=seen,
                happens=f"The pools may open {most} connections, the server gives {given}: should requests take more "
                f"than one each, or other clients the rest, some {refused}.",
                change=f"create_engine(…, pool_size={size}, max_overflow={each - size}), or max_connections = "
                f"{most + known.reserved} or more.",
            )


def pool_for_threads(facts: Facts) -> Iterator[Finding]:
    """Threads that wait for each other's connections."""
    server = facts.server
    for engine in facts.app.engines:
        if server is None or not engine.has_server or engine.limit is None or engine.limit >= server.threads:
            continue
        wait = f"{engine.pool_timeout:g} s" if engine.pool_timeout is not None else "pool_timeout"
        at_once = "requests at once" if server.worker and server.threads > 100 else "threads"
        yield KINDS["DBG-POOL-threads"](
            seen=sentence(
                f"{engine_at(engine)} has at most {count(engine.limit, 'connection')} (pool_size + max_overflow), a "
                f"process of {server.file} has {server.threads} {at_once}."
            ),
            happens=f"When all are busy the others wait for a connection, for up to {wait}, and then fail: QueuePool "
            "limit reached.",
            change=f"create_engine(…, pool_size={server.threads}), or fewer threads in {server.file}.",
        )


def _by_server(facts: Facts) -> dict[str, list[EngineFacts]]:
    found: dict[str, list[EngineFacts]] = {}
    for engine in facts.app.engines:
        if engine.can_ask:
            found.setdefault(engine.server, []).append(engine)
    return found


def _limit(engine: EngineFacts, server: ServerFacts) -> int:
    return server.threads if engine.limit is None else engine.limit


def _pool(engine: EngineFacts, server: ServerFacts) -> str:
    if engine.limit is None:
        return f"{engine.pool} without bound"
    return f"pool_size {engine.pool_size} + max_overflow {engine.max_overflow}"


CHECKS = (server_limit, pool_for_threads)
