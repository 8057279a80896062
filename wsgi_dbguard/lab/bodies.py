"""One request through a guard, its body not read yet; and bodies that tell what each of their steps saw.

Example::

    made = Body(b"one", b"two")
    body, request = opened(returns(made))
    assert list(body) == [b"one", b"two"]
    body.close()
    assert made.seen[-1] == ("close", request)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard
from wsgi_dbguard.request import Request, current

from .exchanges import KEY, ApplicationError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

__all__ = ["ENGINE", "Body", "ignore", "opened", "returns"]

ENGINE = create_engine("sqlite://")  # named: DBGuard(app) would guard the engines of all other tests as well


def ignore(*args: Any) -> Any:
    """A start_response."""


def opened(app: WSGIApplication, environ: WSGIEnvironment | None = None) -> tuple[Any, Request]:
    """The body of one request through a guard, and the request."""
    environ = create_environ("/path") if environ is None else environ
    body = DBGuard(app, ENGINE)(environ, ignore)
    return body, environ[KEY]


def returns(body: Any) -> WSGIApplication:
    return lambda environ, start_response: body


class Body:
    """Tells what it saw, in order; raises ApplicationError in the step that it is told to."""

    def __init__(self, *chunks: bytes, failing: str = "") -> None:
        self.chunks = chunks
        self.failing = failing
        self.seen: list[tuple[str, Request | None]] = []

    def _step(self, name: str) -> None:
        self.seen.append((name, current.get()))
        if name == self.failing:
            raise ApplicationError(name)

    def __iter__(self) -> Iterator[bytes]:
        self._step("iter")
        try:
            for chunk in self.chunks:
                self._step("next")
                yield chunk
        finally:
            self._step("finally")

    def close(self) -> None:
        self._step("close")
