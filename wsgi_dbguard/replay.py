"""May this request run a second time? Only when its first run provably left nothing behind, and nobody saw any of it.

`reason_against` has the whole contract. A second run gets the body of the first (`RecordedInput`: recorded as the
application reads it, never read ahead), and there is a `Budget`, so that an outage does not double the load that has to
be carried after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import IO, Any, ParamSpec, TypeVar, overload

from .failures import Failure
from .request import Request, current

__all__ = ["Budget", "RecordedInput", "leaves_writes", "reason_against", "replayable"]

P = ParamSpec("P")
R = TypeVar("R")

# What a second run can do better. Not "unavailable": the database would be as far away as it was a moment ago.
_HELPED = frozenset({Failure.DISCONNECT, Failure.READ_ONLY, Failure.SERIALIZATION, Failure.DEADLOCK})
_ELSEWHERE = frozenset({Failure.UNAVAILABLE})
# Of a stream: nothing is read by these.
_HARMLESS = frozenset({"closed", "flush", "mode", "name", "readable", "seekable", "tell", "writable"})


def reason_against(request: Request, mode: str) -> str | None:
    """Why `request`, which failed, must not run again; None if it may. `mode` is the setting ``replay``.

    * The failure is a lost connection, a failover, a serialization failure or a deadlock; or a replica that is away.
    * No commit was finished, none is in doubt (see `transactions` for what counts as one).
    * It left no write in an open transaction: a second run could make both last.
    * No connection was used past SQLAlchemy's Connection: what was done there is not known.
    * The method is safe, or the application marked the request (`replayable`), or `mode` is "uncommitted".
    * It did not run twice already.

    That nothing was sent, and that the body can be given again, is for the caller to see to; and to roll back the
    request's sessions before it asks for the last time.
    """
    if mode == "off":
        return "replay is off"
    if request.attempt > 1:
        return "it was the second attempt"
    # Where a replica is away the primary may not be.
    if request.database_failure not in _HELPED and not (request.moves and request.database_failure in _ELSEWHERE):
        return f"the failure is {request.database_failure or 'not the database'}"
    if request.in_doubt:
        return "a commit is in doubt"
    if request.commits:
        return "it has committed"
    if request.unseen:
        return "a connection was used past SQLAlchemy's Connection"
    if request.safe or request.replayable or mode == "uncommitted":
        return None
    return f"the method is {request.method}"


def leaves_writes(request: Request) -> bool:
    """Whether a connection still has writes of `request` in an open transaction."""
    connections = list(request.unfinished)
    return any(not each.closed and not each.invalidated and each.in_transaction() for each in connections)


@overload
def replayable() -> None: ...
@overload
def replayable(view: Callable[P, R]) -> Callable[P, R]: ...
def replayable(view: Callable[P, R] | None = None) -> Callable[P, R] | None:
    """Say that a request may run again if the database fails it, though its method is not safe.

    For views whose every effect is in the database: mail that was sent before the failure would be sent twice. Called
    from inside a request, or as a decorator of a view (below the framework's); ``environ["wsgi_dbguard.replayable"] =
    True`` says the same. ::

        @app.post("/orders")
        @replayable
        def order(): ...
    """
    if view is not None:
        return _replayable_view(view)
    request = current.get()
    if request is not None:
        request.replayable = True
    return None


def _replayable_view(view: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(view)
    def marked(*args: P.args, **keywords: P.kwargs) -> R:
        replayable()
        return view(*args, **keywords)

    return marked


class Budget:
    """Lets through at most `share` of recent requests, and `burst` at once: a token bucket that requests fill.

    It is filled when it is asked, so that most requests have nothing to do with it. Not locked: a token more or less is
    of no consequence.
    """

    def __init__(self, share: float = 0.1, burst: float = 20.0) -> None:
        self._share = share
        self._burst = burst
        self._tokens = burst
        self._requests = 0  # that have filled it

    def spend(self, requests: int) -> bool:
        """Whether there is a token left for a replay, now that so many requests have come; it is taken."""
        self._tokens = min(self._burst, self._tokens + self._share * (requests - self._requests))
        self._requests = requests
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class RecordedInput:
    """``wsgi.input``, remembering up to `limit` bytes of what was read, so that it can be read again from the start.

    `length` is the body's, in bytes, where that is known: past it the server is not asked, which may wait for ever.
    """

    def __init__(self, stream: IO[bytes], limit: int, length: int | None = None) -> None:
        self._stream = stream
        self._limit = limit
        self._length = length
        self._kept = bytearray()
        self._position = 0  # in what was kept
        self._escaped = False  # read by other ways than PEP 3333's
        self.consumed = 0  # bytes taken from the server, kept or not

    @property
    def rewindable(self) -> bool:
        """Whether all that was read is still there."""
        return self.consumed == len(self._kept) and not self._escaped

    @property
    def _over(self) -> bool:
        # One that was sought in is wherever the application put it: then the stream itself knows best.
        return self._length is not None and self.consumed >= self._length and not self._escaped

    def rewind(self) -> None:
        """Start over, for a second run. Only where `rewindable`."""
        self._position = 0

    def drain(self, limit: int) -> None:
        """Read what is left of the body, up to `limit` bytes.

        Raises:
            OSError: if the client went away; servers have errors of their own for that as well.
        """
        if self._escaped:
            return  # nobody knows how much is left, and a server may wait for what is not coming
        end = self.consumed + limit if self._length is None else min(self._length, self.consumed + limit)
        while (left := end - self.consumed) > 0 and self._take(self._stream.read(min(left, 1 << 16))):
            pass

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            again = self._again(None)
            return again if self._over else again + self._take(self._stream.read())
        again = self._again(size)
        if self._over or (again and len(again) == size):
            return again
        return again + self._take(self._stream.read(size - len(again)))

    def readline(self, size: int | None = -1) -> bytes:
        limit = None if size is None or size < 0 else size
        end = self._kept.find(b"\n", self._position) + 1
        line = end - self._position if end else None
        again = self._again(line if limit is None else limit if line is None else min(line, limit))
        if self._over or again.endswith(b"\n") or (limit is not None and len(again) >= limit):
            return again
        rest = self._stream.readline() if limit is None else self._stream.readline(limit - len(again))
        return again + self._take(rest)

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; returns how many bytes there were. Beyond PEP 3333: werkzeug reads this way where it can."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        lines = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if line := self.readline():
            return line
        raise StopIteration

    def close(self) -> None:
        """Nothing: that is the server's to do, and a BufferedReader around this would when it is collected."""

    def _again(self, size: int | None) -> bytes:
        """Up to `size` bytes of what was read before the rewind."""
        end = len(self._kept) if size is None else min(self._position + size, len(self._kept))
        data = bytes(self._kept[self._position : end])
        self._position = end
        return data

    def _take(self, data: bytes) -> bytes:
        if not data:  # read(0), before all that was kept is read again: the position stays
            return data
        if self.rewindable and self.consumed + len(data) <= self._limit:
            self._kept += data
            self._position = len(self._kept)
        self.consumed += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._stream, name)  # what a server offers beyond PEP 3333
        self._escaped = self._escaped or name not in _HARMLESS
        return found
