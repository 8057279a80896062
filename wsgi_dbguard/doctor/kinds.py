"""Every kind of finding there is: its stable id, its severity and what it is about. The only list of them.

An id is ``DBG-<area>-<word>``. The area is the story whose failure it leads to (S1 the stale pool, S2 the shared pool,
S3 gone away, S4 the invalid transaction, S5 the deleted object, S6 the stale update), else POOL, TIME, UWSGI, GUNICORN,
DB or APP. Ids are promises: one that is not used any more is not used for anything else.

An *error* fails requests or mixes up their data as the deployment stands; a *warning* does so on a bad day, such as a
restart or a busy hour; an *info* costs something, or is worth knowing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["KINDS", "SEVERITIES", "Finding", "Kind", "at_least"]

SEVERITIES = ("error", "warning", "info")  # the worst first


@dataclass(frozen=True)
class Kind:
    """One row of the table. Called, it makes a finding of this kind."""

    id: str
    severity: str
    about: str

    def __call__(self, *, seen: str, happens: str, change: str) -> Finding:
        return Finding(self, seen, happens, change)


@dataclass(frozen=True)
class Finding:
    """What was seen, what happens because of it, and the line to change. Sentences, without passwords."""

    kind: Kind
    seen: str
    happens: str
    change: str

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {
            "id": self.kind.id,
            "severity": self.kind.severity,
            "seen": self.seen,
            "happens": self.happens,
            "change": self.change,
        }


def at_least(severity: str, threshold: str) -> bool:
    """Whether `severity` is as bad as `threshold`, or worse; nothing is as bad as "never"."""
    return threshold in SEVERITIES and SEVERITIES.index(severity) <= SEVERITIES.index(threshold)


_TABLE = """
DBG-S1-unchecked      warning  connections stay in the pool, and nothing checks them before they are used again
DBG-S2-shared         error    connections are opened before the fork, and nothing cuts the workers off from them
DBG-S2-own            warning  connections are opened before the fork, and what a hook of one's own does is not known
DBG-S2-recipe         info     connections are opened before the fork, and a hook of one's own cuts the workers off
DBG-S2-hook           warning  uWSGI forks after the import, and only the middleware would notice it
DBG-S2-lazy           warning  uWSGI forks after the import, and nothing would cut the workers off from a connection
DBG-S2-threads        warning  threads that the import started do not exist in the workers
DBG-S2-idle           info     connections that were opened before the fork stay open in the master for nothing
DBG-S2-import         info     connections are opened at import: a server that forks after it would share them
DBG-S3-idle           error    the server closes idle connections that the pool keeps, and nothing checks them
DBG-S3-guard          info     the server closes idle connections before the guard's idle_timeout does
DBG-S4-session        error    one Session is used by all requests
DBG-S4-closed         info     a Session that was used at import is still there
DBG-S5-expire         error    reads go to a replica, and what was just committed is read again from there
DBG-S5-split          warning  reads go to a replica that may not have yet what this client has just written
DBG-S6-version        warning  StaleDataError is expected, and no mapped class has a version_id_col
DBG-POOL-limit        error    all threads at work need more connections than the server gives
DBG-POOL-burst        warning  the pools may open more connections than the server gives
DBG-POOL-threads      warning  a pool has fewer connections than the process has threads
DBG-POOL-null         warning  each request opens a connection of its own (NullPool)
DBG-POOL-autocommit   warning  each statement is committed at once
DBG-POOL-ping         info     pool_pre_ping beside the guard
DBG-TIME-hold         warning  the server ends a request before `hold` is over
DBG-TIME-deadline     warning  the server ends a request before its `deadline`
DBG-TIME-pool         warning  the server ends a request before pool_timeout is over
DBG-UWSGI-threads     warning  threads that uWSGI does not let run
DBG-GUNICORN-abort    info     the query of a worker that gunicorn aborts goes on in the server
DBG-DB-prepared       error    server-side prepared statements through a pooler in transaction mode
DBG-DB-tls            warning  no TLS on the way to a database on another host
DBG-DB-unreachable    warning  the database could not be asked
DBG-APP-engines       info     no engine was there after the import
"""


def _rows() -> Iterator[Kind]:
    for line in _TABLE.strip().splitlines():
        name, severity, about = line.split(maxsplit=2)
        yield Kind(name, severity, about)


KINDS = {kind.id: kind for kind in _rows()}
