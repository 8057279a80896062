"""What of a response passes through the guard: its iterable, and a server's ``wsgi.file_wrapper``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any

from .request import current

if TYPE_CHECKING:
    from .exchange import Exchange

__all__ = ["END", "Body", "FileWrapper", "SizedBody"]

END: Any = object()  # instead of a first chunk
_NOTHING: Iterator[bytes] = iter(())


class FileWrapper:
    """A server's ``wsgi.file_wrapper`` that is a function, remembering what it made: as if it were the class of that.

    By its result alone a file response is not to be told: uWSGI's wrapper gives back the very file that it was given.
    Where the wrapper is a class it is left in its place. gunicorn asks whether the body is an instance of what it finds
    there.
    """

    __slots__ = ("made", "wrap")

    def __init__(self, wrap: Callable[..., Iterable[bytes]]) -> None:
        self.wrap = wrap
        self.made: Iterable[bytes] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Iterable[bytes]:
        self.made = self.wrap(*args, **kwargs)
        return self.made

    def __instancecheck__(self, body: object) -> bool:
        return body is not None and body is self.made


class Body:
    """The application's iterable: each of its steps runs in the request's scope, and its close ends the request."""

    __slots__ = ("_context", "_exchange", "_first", "_iterable", "_iterator")

    def __init__(
        self,
        exchange: Exchange,
        iterable: Iterable[bytes],
        iterator: Iterator[bytes],
        first: bytes,
        context: Context | None,
    ) -> None:
        self._exchange = exchange
        self._iterable = iterable
        self._iterator = _NOTHING if first is END else iterator
        self._first = first
        self._context = context

    def __iter__(self) -> Iterator[bytes]:
        # Optimization: to end with a value is cheaper than with an exception that comes through several frames.
        return iter(self._next, END)

    def __next__(self) -> bytes:
        chunk = self._next()
        if chunk is END:
            raise StopIteration
        return chunk

    def _next(self) -> bytes:
        """The next chunk, or END."""
        if self._first is not END:
            chunk, self._first = self._first, END
            return chunk
        if self._context is not None:
            return self._context.run(self._step)
        return self._step()

    def _step(self) -> bytes:
        # Set for this step only: between two steps the server may run another request in the same context.
        request = self._exchange.request
        token = current.set(request)
        request.thread = threading.get_ident()
        try:
            return next(self._iterator, END)
        except BaseException as error:
            request.fail(error)
            raise
        finally:
            current.reset(token)

    def close(self) -> None:
        # First let go of the iterator, as a server's loop does: it may be a generator that is not the iterable.
        self._iterator, self._first = _NOTHING, END
        if self._context is not None:
            self._context.run(self._exchange.close, self._iterable)
        else:
            self._exchange.close(self._iterable)


class SizedBody(Body):
    """With the length of the application's iterable: of one chunk a server knows the Content-Length (PEP 3333)."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]
