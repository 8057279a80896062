"""What is noted of each beat: over which way, when, how long it took, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Beat", "Trouble", "Way"]


class Way(StrEnum):
    """The three ways to the database, in the order in which they are asked in each round."""

    KEPT = "kept"  # one connection that is kept open and that nobody guards, as in an application's own pool
    POOL = "pool"  # a guarded pool
    FRESH = "fresh"  # a connection opened for this one beat: what the server and the network are worth now


class Trouble(StrEnum):
    """How a beat failed."""

    REFUSED = "refused"  # nobody listens at the address
    ANSWERED = "answered"  # the server itself said no: starting, full, out of space, no permission
    READ_ONLY = "read-only"  # it takes no writes any more
    CRASHED = "crashed"  # it said goodbye, since another of its processes crashed
    ENDED = "ended"  # it said goodbye: killed by an administrator, or idle for too long
    SILENT = "silent"  # no answer in time
    STUCK = "stuck"  # it let a new connection in, and did not answer its statement in time
    UNREACHABLE = "unreachable"  # no route, no such name
    BROKEN = "broken"  # the connection ended without a word
    AWAY = "away"  # not tried: the pool's guard knows that the database is away


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One beat. Times are in seconds; `at` is counted from the first one."""

    way: Way
    number: int
    at: float  # when it began
    took: float
    trouble: Trouble | None = None
    error: str = ""  # one line, without passwords
    held: bool = False  # over a connection that was there before this beat
    uptime: float | None = None  # the server's, by itself; MySQL and MariaDB tell whole seconds
    replaced: Mapping[str, int] = field(default_factory=dict)  # the guard's, by cause, since the beat before

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told: dict[str, Any] = {"ms": round(1000 * self.took, 2), "trouble": self.trouble}
        if self.error:
            told["error"] = self.error
        if self.uptime is not None:
            told["uptime"] = round(self.uptime, 3)
        if self.replaced:
            told["replaced"] = dict(self.replaced)
        return told
