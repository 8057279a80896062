"""What a request leaves behind when it ends: sessions in a transaction, and connections that are still out.

The sessions are `sessions`' business. A connection that this request took from a guarded pool, and that is not back
when its sessions are rolled back, is reported, once, and left alone: the application may keep it on purpose (for
LISTEN, say). One that nothing refers to any more went home by itself: SQLAlchemy holds it weakly. Only a Connection in
a transaction refers to itself in a circle; those are reported as well, and then collected, but for older objects.

No leaks are connections that a pool shares by design (StaticPool, SingletonThreadPool), those of sessions that are left
alone, which have a report of their own, and those that a thread of the application's own took.

Where it was taken is told when it was noted: `leak_stacks` keeps the stack of each checkout, "raise" the line.
"""

from __future__ import annotations

import gc
import logging
import time
import warnings

from . import events, registry, sessions, sockets, stacks, state, tally
from .config import GuardConfig
from .errors import LeakWarning
from .guards import guards
from .link import Link
from .pool import PoolGuard
from .request import Request

__all__ = ["holders", "observe", "observes", "settle", "tell_holders"]

logger = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds between two reports of who has the connections of exhausted pools
_YOUNG = 1  # the generations of objects that a request makes; all of them could take a tenth of a second and more
_told = float("-inf")


def observes(config: GuardConfig) -> bool:
    """Whether `observe` has anything to do: a `Request` does by itself what the defaults ask for."""
    return config.leaks != "heal" or config.leak_stacks or config.deadline is not None


def observe(request: Request, config: GuardConfig) -> None:
    """Have `request` note what the settings ask for, where they are not the defaults: where it takes its connections,
    what it changes on them, and how long it may be in the database."""
    request.limit = config.deadline
    request.heals = config.leaks in ("heal", "raise")
    if config.leak_stacks:
        request.trace = stacks.stack
    elif config.leaks == "raise":
        request.trace = stacks.place


def settle(request: Request, leaks: str) -> None:
    """At the end of `request`: roll back its sessions and report what else it left, as `leaks` (the setting) says.

    Raises:
        LeakWarning: with "raise", if anything was left; with "warn" and "heal", where warnings are made errors.
    """
    sessions_left = sessions.release(request, leaks) if request.sessions else ""
    links: list[Link] = []
    if leaks != "off":
        for link in request.links:
            if link.changed or link.taken() is not None:  # Optimization: most requests leave none so
                links = _links_of(request)
                break
    for link in links:
        if link.changed and state.keeps_a_lock(link) and link.guard is not None:
            link.guard.give_up(link)
    if not sessions_left and not links:
        return
    found = [_report(link, request) for link in links if _is_leaked(link, request)]
    for each in found:
        logger.error(each)
        events.note("a request left a connection checked out", bad=True)
    tally.count("leaks", "connection", len(found))
    tally.count("leaks", "session", bool(sessions_left))
    if found and leaks != "warn":
        gc.collect(_YOUNG)
    if sessions_left and leaks != "heal":
        found.insert(0, sessions_left)
    if found and leaks == "raise":
        raise LeakWarning("\n".join(found))
    for each in found:
        warnings.warn(each, LeakWarning, stacklevel=2)


def _links_of(request: Request) -> list[Link]:
    """The connections that it was the last one to take, in that order, but for those that are as they were before."""
    links = {
        link
        for link in request.links
        if (link.changed or link.taken() is not None) and link.owner is request.owner and link in registry.links
    }
    return sorted(links, key=lambda link: link.used)


def _is_leaked(link: Link, request: Request) -> bool:
    assert link.guard is not None
    proxy = link.taken()
    # Another thread may be taking it at this moment: it names itself as the owner first.
    if proxy is None or not proxy.is_valid or link.owner is not request.owner:
        return False
    return not link.lent and not link.guard.shares and not _closed(link) and not _session_has_it(link, request)


def _closed(link: Link) -> bool:
    """By the application itself, after it detached it from the pool."""
    return link.fd is not None and sockets.identity(link.fd) != link.identity


def _session_has_it(link: Link, request: Request) -> bool:
    return any(each is link and session.in_transaction() for session, each in sessions.held(request))


def _report(link: Link, request: Request) -> str:
    assert link.guard is not None
    return f"{request.method} {request.path} left a connection of {link.guard.name} checked out{_place(link)}"


def _place(link: Link) -> str:
    if link.taken_at is None:
        return ""
    return f", taken at {'' if len(link.taken_at) == 1 else chr(10)}{stacks.render(link.taken_at)}"


def holders(pool_guard: PoolGuard) -> list[str]:
    """Who has the connections of this pool now, the longest first: a line for each, or several with `leak_stacks`."""
    links = sorted((link for link in pool_guard.links() if link.in_use), key=lambda link: link.used)
    now = time.monotonic()
    return [f"{' '.join(link.owner or ['no request'])}, for {now - link.used:.1f} s{_place(link)}" for link in links]


def tell_holders() -> None:
    """A pool is exhausted: log who has its connections. Once a second at most.

    Which pool it is SQLAlchemy does not tell: those that have no connection idle, and where there is none (any more),
    all that have some out.
    """
    global _told
    now = time.monotonic()
    if now - _told < _PAUSE:
        return
    _told = now
    out = {each: [link.in_use for link in each.links()] for each in guards()}
    exhausted = [each for each, used in out.items() if used and all(used)]
    for each in exhausted or [each for each, used in out.items() if any(used)]:
        lines = holders(each)
        logger.warning("%s: no connection was free; %d are out, with:\n%s", each.name, len(lines), "\n".join(lines))
        events.note("no connection was free: the pool is exhausted", each.name, bad=True)
