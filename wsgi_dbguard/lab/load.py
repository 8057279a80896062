"""A load generator that checks every answer, to tell a failed request from one that was answered wrongly.

Each request carries a token of its own in its URL, and the application is to answer with it: an answer with another
request's token is cross-talk, the worst that a shared database connection does, and no status code tells it.

Example::

    wait_for_http("http://127.0.0.1:8000/", timeout=10.0)
    load = LoadGenerator("http://127.0.0.1:8000/echo?token={token}", requests=10_000)
    result = load.run()
    assert (result.failed, result.wrong) == (0, 0), result.errors

Not a benchmark of the server: the standard library's client and the GIL are the limit, at some thousand requests a
second. With `rate` the requests keep to their schedule, so those an outage held up follow in a burst; a latency counts
from the sending of its own request.
"""

from __future__ import annotations

import http.client
import math
import secrets
import socket
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal
from urllib.parse import urlsplit

from .process import wait_until

__all__ = ["Answer", "LoadGenerator", "LoadResult", "wait_for_http"]

Expect = Callable[[str, int, bytes], bool]
Kind = Literal["ok", "failed", "wrong"]

_KEPT_ERRORS = 20
_ATTEMPT = 5.0  # seconds wait_for_http() gives a server that accepts and stays silent, before it asks again


@dataclass(frozen=True)
class Answer:
    """What came of one request, for `observe`."""

    token: str
    kind: Kind
    status: str
    """Status code ("200") or name of the exception ("TimeoutError")."""
    sent: float
    """`time.monotonic()` when it was sent."""
    took: float
    """Seconds."""
    what: str
    """In words, unless it is ok."""


@dataclass
class LoadResult:
    """What came of the requests so far: each is counted once, when it is over; it succeeded, failed or was wrong."""

    requests: int = 0
    failed: int = 0
    """No answer (timeout, connection error), or an unexpected status that says so itself (not 2xx)."""
    wrong: int = 0
    """Answered as if all were well, with something else than was asked for."""
    retried: int = 0
    """Sent again because the server had closed the kept connection; not a failure, every HTTP client does so."""
    slowest: float = 0.0
    """Seconds, failed requests included."""
    seconds: float = 0.0
    """How long the run took; set at its end."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Number of requests by status code ("200") or name of the exception ("TimeoutError")."""
    errors: list[str] = field(default_factory=list)
    """The first 20 failed and wrong requests in words."""
    latencies: array[float] = field(default_factory=lambda: array("d"), repr=False)
    """Seconds each request took, in the order of their ends."""

    @property
    def succeeded(self) -> int:
        return self.requests - self.failed - self.wrong

    def percentile(self, q: float) -> float:
        """The latency in seconds that `q` percent of the requests did not exceed (nearest rank); 0.0 without requests.

        Raises ValueError when `q` is not within 0 to 100.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"q must be from 0 to 100 percent, not {q!r}")
        ranked = sorted(self.latencies)
        return ranked[max(0, math.ceil(q / 100 * len(ranked)) - 1)] if ranked else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single latencies, fit for JSON."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "wrong": self.wrong,
            "retried": self.retried,
            "slowest": self.slowest,
            "seconds": self.seconds,
            "p50": self.percentile(50),
            "p95": self.percentile(95),
            "p99": self.percentile(99),
            "statuses": dict(self.statuses),
            "errors": list(self.errors),
        }


class _Stale(Exception):
    """The server had closed the kept connection: not one byte of an answer came."""


def _answer_is_token(token: str, status: int, body: bytes) -> bool:
    return status == 200 and body == token.encode()


class LoadGenerator:
    """Sends requests from `threads` threads and checks each answer.

    url: plain http, with `{token}` in its path or query, where each request's own token goes.
    rate: requests per second in total; None is as fast as it can.
    requests, seconds: the run ends with the first that is reached; without both it goes on until stop().
    timeout: seconds for each step of a request: connecting, sending, and every wait for more of the answer.
    expect: called as expect(token, status, body) in the sending thread; false, or an exception, means not as it should
        be. The default wants status 200 and the token alone as the body.
    keep_alive: one kept connection for each thread, instead of one for each request.
    method: of each request, which has no body.
    observe: called with each Answer, in the sending thread; must not raise.

    `result` can be read while it runs. Raises ValueError for a setting that is not possible.
    """

    def __init__(
        self,
        url: str,
        *,
        threads: int = 8,
        rate: float | None = None,
        requests: int | None = None,
        seconds: float | None = None,
        timeout: float = 30.0,
        expect: Expect | None = None,
        keep_alive: bool = False,
        method: str = "GET",
        observe: Callable[[Answer], object] | None = None,
    ) -> None:
        self._host, self._port, self._target = _split(url)
        if "{token}" not in self._target:
            raise ValueError(f"url must have {{token}} in its path or query, not {url!r}")
        if threads < 1:
            raise ValueError(f"threads must be 1 or more, not {threads!r}")
        for name, value in (("rate", rate), ("requests", requests), ("seconds", seconds), ("timeout", timeout)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be more than 0, not {value!r}")
        self.url = url
        self.result = LoadResult()
        self._rate = rate
        self._requests = requests
        self._seconds = seconds
        self._timeout = timeout
        self._expect = expect or _answer_is_token
        self._headers = {} if keep_alive else {"Connection": "close"}
        self._keep_alive = keep_alive
        self._method = method
        self._observe = observe
        self._run_id = secrets.token_hex(4)
        self._numbers = count()
        self._lock = threading.Lock()
        self._under_way: set[str] = set()  # tokens
        self._stopping = threading.Event()
        self._started = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"LoadGenerator-{n}", daemon=True) for n in range(threads)
        ]

    def run(self) -> LoadResult:
        """Start, wait for `requests` or `seconds`, and return the result. Raises ValueError when neither was given."""
        if self._requests is None and self._seconds is None:
            raise ValueError("run() needs requests or seconds; start() and stop() do without")
        self.start()
        try:
            for thread in self._threads:
                thread.join()
        finally:
            self.stop()
        return self.result

    def start(self) -> None:
        """Begin, and return at once. Raises RuntimeError the second time."""
        if self._started:
            raise RuntimeError(f"{self!r} was started already")
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> LoadResult:
        """Send no more, wait for the requests that are under way (`timeout` bounds that), and return the result."""
        self._stopping.set()
        if self._started:
            for thread in self._threads:
                with suppress(RuntimeError):  # not started (yet), after an interrupt in start(): it will send nothing
                    thread.join()
            self.result.seconds = self.result.seconds or time.monotonic() - self._started
        return self.result

    def catch_up(self, *, timeout: float = 60.0) -> None:
        """Wait until what has been sent by now is answered or given up; more is sent meanwhile. Raises TimeoutError."""
        sent = self._under_way.copy()
        wait_until(lambda: sent.isdisjoint(self._under_way), timeout=timeout, what=f"the answers of {self!r}")

    @property
    def ended(self) -> bool:
        """Whether it was started, and all that it was to send is answered or given up."""
        return self._started > 0 and not any(thread.is_alive() for thread in self._threads)

    def __repr__(self) -> str:
        r = self.result
        state = "new" if not self._started else "ended" if self.ended else "running"
        return f"<LoadGenerator {self.url} {state}, {r.requests} requests, {r.failed} failed, {r.wrong} wrong>"

    def _work(self) -> None:
        connection = self._connection()
        try:
            while (number := self._next()) is not None:
                token = f"{self._run_id}-{number}"
                self._under_way.add(token)
                begun = time.monotonic()
                try:
                    status, body, retried = self._exchange(connection, self._target.replace("{token}", token))
                except Exception as error:  # whatever it is, the answer did not come
                    connection.close()
                    name = type(error).__name__
                    self._record(begun, token, name, failed=f"{token}: {name}: {error}")
                    continue
                self._judge(begun, token, status, body, retried)
                if not self._keep_alive:
                    connection.close()
        finally:
            connection.close()

    def _next(self) -> int | None:
        """The number of the next request, when its time has come; None at the end."""
        number = next(self._numbers)
        if self._requests is not None and number >= self._requests:
            return None
        now = time.monotonic()
        due = now if self._rate is None else max(now, self._started + number / self._rate)
        if self._seconds is not None and due >= self._started + self._seconds:
            return None
        return None if self._stopping.wait(due - now) else number

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)

    def _exchange(self, connection: http.client.HTTPConnection, target: str) -> tuple[int, bytes, bool]:
        try:
            return *self._send(connection, target), False
        except _Stale:
            connection.close()
            return *self._send(connection, target), True

    def _send(self, connection: http.client.HTTPConnection, target: str) -> tuple[int, bytes]:
        kept = connection.sock
        try:
            connection.request(self._method, target, headers=self._headers)
            if kept is not None and not kept.recv(1, socket.MSG_PEEK):
                raise _Stale
        except (ConnectionResetError, BrokenPipeError) as error:
            # A server that closes while our request is on its way answers with RST instead of FIN: the same thing.
            if kept is not None:
                raise _Stale from error
            raise
        with connection.getresponse() as response:
            return response.status, response.read()

    def _judge(self, begun: float, token: str, status: int, body: bytes, retried: bool) -> None:
        try:
            right, why = self._expect(token, status, body), ""
        except Exception as error:
            right, why = False, f" (expect raised {error!r})"
        what = f"{token}: status {status}, body {body[:200]!r}{why}"
        if right:
            self._record(begun, token, str(status), retried=retried)
        elif 200 <= status < 300:
            self._record(begun, token, str(status), wrong=what, retried=retried)
        else:
            self._record(begun, token, str(status), failed=what, retried=retried)

    def _record(
        self, begun: float, token: str, status: str, *, failed: str = "", wrong: str = "", retried: bool = False
    ) -> None:
        now = time.monotonic()
        result = self.result
        # Critical section: one request's figures.
        with self._lock:
            result.requests += 1
            result.failed += bool(failed)
            result.wrong += bool(wrong)
            result.retried += retried
            result.slowest = max(result.slowest, now - begun)
            result.statuses[status] = result.statuses.get(status, 0) + 1
            result.latencies.append(now - begun)
            if (failed or wrong) and len(result.errors) < _KEPT_ERRORS:
                kind = "failed" if failed else "wrong"
                result.errors.append(f"{kind} at {now - self._started:.3f} s: {failed or wrong}")
        if self._observe is not None:
            outcome: Kind = "failed" if failed else "wrong" if wrong else "ok"
            self._observe(Answer(token, outcome, status, begun, now - begun, failed or wrong))
        self._under_way.remove(token)


def wait_for_http(url: str, timeout: float = 30.0) -> int:
    """Ask until a server answers at all, and return the status of that answer, whatever it is.

    Raises TimeoutError with the last error when none came within `timeout` seconds.
    """
    host, port, target = _split(url)
    deadline = time.monotonic() + timeout
    pause = 0.01
    last: Exception | None = None
    while (left := deadline - time.monotonic()) > 0:
        connection = http.client.HTTPConnection(host, port, timeout=min(left, _ATTEMPT))
        try:
            connection.request("GET", target, headers={"Connection": "close"})
            with connection.getresponse() as response:
                return response.status
        except (OSError, http.client.HTTPException) as error:
            last = error
        finally:
            connection.close()
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(2 * pause, 0.2)
    raise TimeoutError(f"{url} did not answer within {timeout:g} s, at last: {last!r}") from last


def _split(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"url must begin with http://host, not {url!r}")
    return parts.hostname, parts.port or 80, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
