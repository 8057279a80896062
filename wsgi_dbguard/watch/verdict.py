"""Whose fault was it? A pure function of the beats.

* The server: it restarted, refused everybody, said itself that it cannot, or let people in and answered none of them.
* The network: new connections got no answer, no route, or broke, and the server ran on.
* The client (its pool): new connections worked all the time, and only ones that were kept open were dead.

The server's uptime decides between the first two: one that has been up for less long than this watch has restarted, and
one that has been up all the time has refused nobody, whatever a proxy or firewall on the way said in its name.

Example::

    verdict(beats).fault            # Fault.CLIENT
    verdict(beats).evidence         # ("12 of 12 new connections worked, …", …)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from .beats import Beat, Trouble, Way

__all__ = ["Fault", "Verdict", "verdict"]


class Fault(StrEnum):
    SERVER = "server"
    NETWORK = "network"
    CLIENT = "client"
    NONE = "none"


HEADLINES = {
    Fault.SERVER: "Server fault",
    Fault.NETWORK: "Network fault",
    Fault.CLIENT: "Client (pool) fault",
    Fault.NONE: "No fault",
}
_SAID = frozenset({Trouble.ANSWERED, Trouble.READ_ONLY, Trouble.CRASHED})
_LOST = frozenset({Trouble.SILENT, Trouble.UNREACHABLE, Trouble.BROKEN})
# Of `PoolGuard.stats()["replaced"]`: the others are the guard's own housekeeping.
DEAD = frozenset({"dead", "ping", "condemned", "read_only"})
_WHOLE = 1.0  # seconds: MySQL and MariaDB tell the difference of two whole ones


@dataclass(frozen=True)
class Verdict:
    """A fault, and what speaks for it, each in a line."""

    fault: Fault
    evidence: tuple[str, ...]

    @property
    def headline(self) -> str:
        return HEADLINES[self.fault]


def verdict(beats: Sequence[Beat]) -> Verdict:
    """What the beats say, in the order in which they were made."""
    fresh = [beat for beat in beats if beat.way is Way.FRESH]
    tried = [beat for beat in beats if _is_attempt(beat)]
    crashed = [beat for beat in beats if beat.trouble is Trouble.CRASHED]
    said = [beat for beat in beats if beat.trouble in _SAID]
    refused = [beat for beat in tried if beat.trouble is Trouble.REFUSED]
    # A network that is slow takes longest for new connections: then the others get their answers.
    answered = {beat.number for beat in beats if beat.trouble is None}
    stuck = [beat for beat in tried if beat.trouble is Trouble.STUCK and beat.number not in answered]
    slow = [beat for beat in tried if beat.trouble is Trouble.STUCK and beat.number in answered]
    lost = [*(beat for beat in tried if beat.trouble in _LOST), *slow]
    restarted = _restart(fresh)
    ran_on = restarted is None and _ran_on(fresh, [*refused, *lost])
    reasons: list[str] = []
    fault = Fault.NONE
    if restarted is not None:
        fault = Fault.SERVER
        reasons.append(f"the server restarted {_when(_started(restarted))}: by its own word it is up since then")
    elif crashed:
        fault = Fault.SERVER
        reasons.append(f"one of the server's processes crashed {_when(crashed[0].at)}, and all others with it")
    elif said or stuck or refused or lost:
        against_server = len(said) + len(stuck) + (0 if ran_on else len(refused))
        against_network = len(lost) + (len(refused) if ran_on else 0)
        fault = Fault.SERVER if against_server >= against_network else Fault.NETWORK
        if ran_on and fault is Fault.NETWORK:
            reasons.append("the server ran on meanwhile: by its own word it did not restart")
    elif any(_is_dead(beat) for beat in beats):
        fault = Fault.CLIENT
        reasons.append("only connections that had been open before were dead: what keeps connections has to check them")
    if said:
        reasons.append(f"the server answered with an error, {_counted(said, all_of=len(beats))}")
    if stuck:
        told = _counted(stuck, all_of=len(tried))
        reasons.append(f"the server let new connections in, and did not answer their statements, {told}")
    if refused:
        who = "a proxy or firewall refused new connections" if ran_on else "nobody listened at the address"
        reasons.append(f"{who}, {_counted(refused, all_of=len(tried))}")
    reasons += _lost_lines(lost, fault, ran_on=ran_on, all_of=len(tried))
    reasons += _fresh_lines(fresh, fault)
    reasons += _kept_lines(beats, fault)
    reasons += _pool_lines(beats)
    return Verdict(fault, tuple(reasons))


def _started(beat: Beat) -> float:
    """When the server started, in the watch's seconds; from MySQL and MariaDB up to `_WHOLE` too early or late."""
    return beat.at - (beat.uptime or 0.0)


def _restart(fresh: Sequence[Beat]) -> Beat | None:
    """The first beat of a server that started after the watch did.

    Several servers behind one address have several uptimes, but none that is shorter than the watch.
    """
    longest = 0.0
    for beat in fresh:
        if beat.uptime is None:
            continue
        if _started(beat) > _WHOLE or (_started(beat) > 0 and beat.uptime < longest):
            return beat
        longest = max(longest, beat.uptime)
    return None


def _ran_on(fresh: Sequence[Beat], failed: Sequence[Beat]) -> bool:
    """Whether a server answered after the last of these failures that had been up before the first of them."""
    if not failed:
        return False
    first = min(beat.at for beat in failed)
    last = max(beat.at for beat in failed)
    return any(beat.uptime is not None and beat.at > last and _started(beat) < first - _WHOLE for beat in fresh)


def _is_attempt(beat: Beat) -> bool:
    """Whether the beat tells what a new connection is worth: the others open one as well when theirs has died.

    Of a failed beat over the pool that is certain only where nothing but opening a connection can end so.
    """
    if beat.way is Way.POOL:
        return beat.trouble in (Trouble.REFUSED, Trouble.UNREACHABLE, Trouble.STUCK)
    return beat.way is Way.FRESH or not beat.held


def _is_dead(beat: Beat) -> bool:
    """Whether the beat met a dead connection that had been open before, or a pool that failed."""
    if beat.way is Way.FRESH:
        return beat.trouble is Trouble.ENDED
    if _dead(beat):
        return True
    return beat.trouble is not None and (beat.held or beat.way is Way.POOL)


def _dead(beat: Beat) -> int:
    return sum(count for cause, count in beat.replaced.items() if cause in DEAD)


# The evidence


def _when(at: float) -> str:
    return f"{at:.1f} s after the beginning"


def _counted(beats: Sequence[Beat], *, all_of: int) -> str:
    first = beats[0]
    return f"{len(beats)} of {all_of}, first {_when(first.at)}: {first.error or first.trouble}"


def _lost_lines(lost: Sequence[Beat], fault: Fault, *, ran_on: bool, all_of: int) -> list[str]:
    lines = []
    for trouble, words in (
        (Trouble.SILENT, "new connections got no answer in time"),
        (Trouble.STUCK, "new connections were slower than they may be, and others were not"),
        (Trouble.UNREACHABLE, "the address could not be reached"),
        (Trouble.BROKEN, "new connections broke off without a word"),
    ):
        chosen = [beat for beat in lost if beat.trouble is trouble]
        if chosen:
            lines.append(f"{words}, {_counted(chosen, all_of=all_of)}")
    if fault is Fault.NETWORK and any(beat.trouble is Trouble.SILENT for beat in lost):
        lines.append("a host that is frozen or off is as silent: to tell, watch from the server's own host as well")
    if fault is Fault.NETWORK and not ran_on and any(beat.trouble is Trouble.BROKEN for beat in lost):
        lines.append("a proxy that has no server to pass them on to breaks connections off too: watch past it as well")
    return lines


def _fresh_lines(fresh: Sequence[Beat], fault: Fault) -> list[str]:
    lines = []
    ended = [beat for beat in fresh if beat.trouble is Trouble.ENDED]
    if ended:
        lines.append(f"new connections were ended by the server, {_counted(ended, all_of=len(fresh))}")
    worked = [beat for beat in fresh if beat.trouble is None]
    if worked and len(worked) == len(fresh):
        up = max((beat.uptime for beat in worked if beat.uptime is not None), default=None)
        since = "" if up is None or fault is Fault.SERVER else f", and the server has been up for {_span(up)}"
        lines.append(f"{len(worked)} of {len(fresh)} new connections worked{since}")
    return lines


def _kept_lines(beats: Sequence[Beat], fault: Fault) -> list[str]:
    kept = [beat for beat in beats if beat.way is Way.KEPT]
    failed = [beat for beat in kept if beat.held and beat.trouble is not None]
    died = [beat for beat in failed if beat.trouble is Trouble.CRASHED or beat.trouble not in _SAID]
    if not failed:
        return ["the connection that was kept open lived on"] if any(beat.held for beat in kept) else []
    if not died:
        return [f"beats over the connection that was kept open failed, {_counted(failed, all_of=len(kept))}"]
    lines = [f"the connection that was kept open died, {_counted(died, all_of=len(kept))}"]
    if fault is Fault.CLIENT and any(beat.trouble is Trouble.SILENT for beat in died):
        lines.append("it died in silence: a firewall, NAT or balancer on the way may forget connections")
    return lines


def _pool_lines(beats: Sequence[Beat]) -> list[str]:
    pool = [beat for beat in beats if beat.way is Way.POOL]
    failed = [beat for beat in pool if beat.trouble is not None]
    replaced: Counter[str] = Counter()
    for beat in pool:
        replaced.update(beat.replaced)
    causes = ", ".join(f"{count} {cause.replace('_', '-')}" for cause, count in sorted(replaced.items()))
    lines = []
    if any(cause in DEAD for cause in replaced):
        lines.append(f"the guarded pool replaced connections before their use ({causes})")
    if failed:
        lines.append(f"beats over the guarded pool failed, {_counted(failed, all_of=len(pool))}")
    elif pool:
        lines.append(f"{len(pool)} of {len(pool)} beats over the guarded pool worked")
    return lines


def _span(seconds: float) -> str:
    """For people: 42 s, 3 min, 5 h, 12 days."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
