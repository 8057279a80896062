"""A request's body, of which the beginning was read before the application comes to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wsgi_dbguard.replay import RecordedInput

__all__ = ["ReadBody"]


class ReadBody(RecordedInput):
    """``wsgi.input`` by the methods that remember; what else the server's own stream offers would go on behind them.

    `broke_off`: the client went away before the end. Some servers raise an error then, others (gunicorn) give less than
    Content-Length says.
    """

    _failed = False
    _short = False  # the last read got less than it wanted: PEP 3333's streams do that at their end only

    @property
    def length(self) -> int | None:
        """In bytes, where it is known."""
        return self._length

    @property
    def broke_off(self) -> bool:
        return self._failed or (self._short and self._length is not None and self.consumed < self._length)

    def beginning(self) -> bytes:
        """As much as is remembered; the application reads it again. Raises OSError, or the server's own error."""
        end = self._limit if self._length is None else min(self._limit, self._length)
        content = bytearray()
        while len(content) < end and (data := self.read(end - len(content))):
            content += data
        self.rewind()
        return bytes(content)

    def read(self, size: int | None = -1) -> bytes:
        if size == 0:
            return b""
        with self._watched():
            data = super().read(size)
        self._short = size is None or size < 0 or len(data) < size
        return data

    def readline(self, size: int | None = -1) -> bytes:
        if size == 0:
            return b""
        with self._watched():
            line = super().readline(size)
        self._short = not line.endswith(b"\n") and (size is None or size < 0 or len(line) < size)
        return line

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._failed = True
            raise

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no {name}, as it was read before")
