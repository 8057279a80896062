"""An answer on its way to the client, recorded to be given again; and how it is given again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from wsgi_dbguard.request import tokens

from .store import Stored

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

__all__ = ["REPLAYED", "Recorder", "replay"]

REPLAYED = "Idempotent-Replayed"
_COOKIE = "set-cookie"


class Recorder:
    """Keeps the status, the headers and up to `limit` bytes of body."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head: bytes | None = None
        self._body = bytearray()
        self._length: int | None = None  # what Content-Length promises
        self._too_large = False
        self.complete = False  # nothing is missing at the end

    def begin(self, status: str, headers: Iterable[tuple[str, str]]) -> None:
        """The answer begins with these."""
        # Not what is for the one client that gets it: its cookies, and how far the database was when it wrote.
        kept = [each for each in headers if (name := each[0].lower()) != _COOKIE and name not in tokens]
        self._head = json.dumps([status, kept]).encode()
        lengths = [value for name, value in kept if name.lower() == "content-length"]
        self._length = int(lengths[0]) if lengths and lengths[0].isdecimal() else None

    def take(self, chunk: bytes) -> None:
        """Another part of the body. Past the limit all of it is given up."""
        if self._too_large:
            return
        if len(self._body) + len(chunk) > self._limit:
            self._too_large = True
            self._body.clear()
            return
        self._body += chunk
        if self._length is not None and len(self._body) >= self._length:
            self.complete = True

    def answer(self) -> Stored | None:
        """The whole answer, if it is there and not too large."""
        if self._head is None or self._too_large or not self.complete:
            return None
        return Stored(self._head, bytes(self._body))


def replay(answer: Stored, start_response: StartResponse) -> Iterable[bytes]:
    """Send `answer` once more."""
    status, headers = json.loads(answer.head)
    start_response(status, [*((name, value) for name, value in headers), (REPLAYED, "true")])
    return [answer.body]
