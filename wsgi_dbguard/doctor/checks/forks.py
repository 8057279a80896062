"""S2, the shared pool: what is there before the server forks."""

from __future__ import annotations

from collections.abc import Iterator

from wsgi_dbguard.doctor.facts import Facts, ServerFacts
from wsgi_dbguard.doctor.kinds import KINDS, Finding

from .words import count, hooks_line, listed

__all__ = ["CHECKS"]

_SEEN_BY_DEFAULT = (2, 0, 27)  # the version of uWSGI in which enable-threads became the default


def opened_at_import(facts: Facts) -> Iterator[Finding]:
    """Connections that the import leaves open, and what a fork makes of them."""
    server, opened = facts.server, facts.app.opened
    if not opened:
        return
    where = f"{count(len(opened), 'connection')} open after the import, opened at {listed(e.place for e in opened)}"
    if server is None:
        yield KINDS["DBG-S2-import"](
            seen=f"{where}.",
            happens="A server that imports the application before it forks (gunicorn --preload, uWSGI without "
            "lazy-apps) would share them between its workers.",
            change="Open no connection at import, or see to the hooks: wsgi-dbguard config gunicorn, or uwsgi.",
        )
    elif not server.preloads:
        return
    elif _is_cut(facts, server):
        yield KINDS["DBG-S2-idle"](
            seen=f"{where}; {server.name} then forks {count(server.processes, 'worker')}.",
            happens="The workers are cut off from them. In the master they stay open and idle for ever, and each "
            "counts against the server's max_connections.",
            change=_not_before_the_fork(server),
        )
    elif not _is_guarded(facts) and "cut" in (server.post_fork, facts.app.forks_noticed):
        yield KINDS["DBG-S2-recipe"](
            seen=f"{where}; a hook after {server.name}'s fork disposes of an engine's pool with close=False.",
            happens="That cuts the workers off, if it is done for each engine. In the master the connections stay open "
            "and idle for ever.",
            change=_not_before_the_fork(server),
        )
    elif not _is_guarded(facts) and (server.post_fork or facts.app.forks_noticed):
        yield KINDS["DBG-S2-own"](
            seen=f"{where}; {server.name} then forks {count(server.processes, 'worker')}, and a hook runs after it "
            "that does not itself call engine.dispose(close=False).",
            happens="Unless what it calls does so, for each engine, the workers share the connections and read each "
            "other's answers.",
            change=f"In the hook: engine.dispose(close=False)\nOr: {hooks_line(server)}",
        )
    elif not _is_guarded(facts):
        yield KINDS["DBG-S2-shared"](
            seen=f"{where}; {server.name} then forks {count(server.processes, 'worker')}, which all have them.",
            happens='Workers read each other\'s answers: "This result object does not return rows", "lost '
            'synchronization with server", "bad record mac", or other people\'s data in a page that looks right.',
            change=f"{hooks_line(server)}\nOr: {_not_before_the_fork(server)}",
        )


def uwsgi_prefork(facts: Facts) -> Iterator[Finding]:
    """uWSGI tells Python nothing of its forks: only its own hook sees them."""
    server = facts.server
    if server is None or server.name != "uwsgi" or not server.preloads or server.hooks:
        return
    if _is_guarded(facts):
        yield KINDS["DBG-S2-hook"](
            seen=f"{server.file} has no lazy-apps and no shared-import = wsgi_dbguard.hooks.uwsgi; the guard is there.",
            happens="Python does not see uWSGI's forks. The guard notices at a worker's first request; until then, and "
            "in mules, spoolers and threads, connections of the master can be used.",
            change=hooks_line(server),
        )
    elif server.threads > 1 and not facts.app.opened:
        yield KINDS["DBG-S2-lazy"](
            seen=f"{server.file} has no lazy-apps, with {count(server.processes, 'process')} of "
            f"{server.threads} threads.",
            happens="No connection is open after the import today. The first one that is will be shared by all "
            "workers, and locks that a thread holds at the fork stay locked in the workers.",
            change=f"In {server.file}: lazy-apps = true",
        )


def threads_at_import(facts: Facts) -> Iterator[Finding]:
    """Only the thread that forks exists in the child."""
    server, threads = facts.server, facts.app.threads
    if threads and server is not None and server.preloads:
        yield KINDS["DBG-S2-threads"](
            seen=f"{count(len(threads), 'thread')} started at import: {listed(threads)}.",
            happens="They run in the master only. The workers have what they share with the application, but not the "
            "threads: what waits for them waits for ever.",
            change=_not_before_the_fork(server),
        )


def uwsgi_threads(facts: Facts) -> Iterator[Finding]:
    """Without enable-threads, uWSGI never releases Python's lock outside of requests."""
    server = facts.server
    if server is None or server.name != "uwsgi" or server.enable_threads:
        return
    needed = _is_guarded(facts) or facts.app.threads
    by_default = server.enable_threads is None and _numbers(server.version) >= _SEEN_BY_DEFAULT
    if needed and not by_default:
        said = "does not say enable-threads" if server.enable_threads is None else "switches enable-threads off"
        whose = listed(facts.app.threads) if facts.app.threads else "the guard's timers"
        yield KINDS["DBG-UWSGI-threads"](
            seen=f"{server.file} {said}; there are threads: {whose}.",
            happens="Threads of the application run only while a request does: pings have no deadline, and connections "
            "that lie idle are not retired. (The default of uWSGI before 2.0.27.)",
            change=f"In {server.file}: enable-threads = true",
        )


def gunicorn_abort(facts: Facts) -> Iterator[Finding]:
    """A sync worker that is aborted leaves its query behind."""
    server = facts.server
    if server is not None and server.name == "gunicorn" and server.timeout and facts.app.guard and not server.hooks:
        yield KINDS["DBG-GUNICORN-abort"](
            seen=f"{server.file} does not import the guard's hooks; a worker is aborted after {server.timeout:g} s.",
            happens="The query of an aborted worker goes on in the database, with its locks.",
            change=hooks_line(server),
        )


def _is_guarded(facts: Facts) -> bool:
    """Whether the guard's package is imported with the application."""
    return facts.app.guard is not None or any(each.guard is not None for each in facts.app.engines)


def _is_cut(facts: Facts, server: ServerFacts) -> bool:
    """Whether each worker is cut off right after the fork. gunicorn's forks are seen by whoever imports the guard."""
    return server.hooks or (server.name == "gunicorn" and _is_guarded(facts))


def _not_before_the_fork(server: ServerFacts) -> str:
    if server.name == "gunicorn":
        return f"in {server.file}: preload_app = False"
    return f"in {server.file}: lazy-apps = true"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


CHECKS = (opened_at_import, uwsgi_prefork, threads_at_import, uwsgi_threads, gunicorn_abort)
