"""What a client is told when the database failed its request: the truth, instead of a 500.

RFC 9457 problem details as JSON, or plain text for who prefers that (Accept), without a body for HEAD. An application
that wants its own page gives a WSGI application as ``DBGuard(..., render=app)``; it finds the `Problem` in
``environ["wsgi_dbguard.problem"]``, and sends status and headers itself. One that raises is logged, and not missed.
"""

from __future__ import annotations

import json
import logging
import random
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from .patterns import lazily
from .replay import RecordedInput

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["CONFLICT", "OUTCOME_UNKNOWN", "PROBLEM", "UNAVAILABLE", "Problem", "answer", "drain"]

logger = logging.getLogger(__name__)

PROBLEM = "wsgi_dbguard.problem"
# Of http.HTTPStatus, the import of which takes 5 ms.
_PHRASES = {400: "Bad Request", 409: "Conflict", 422: "Unprocessable Content", 503: "Service Unavailable"}
_REFUSED = lazily(r"(?:^|;)q=0(?:\.0*)?(?:;|$)")


class Problem(NamedTuple):
    """One kind of failure, as the client sees it."""

    type: str
    status: int
    title: str
    detail: str
    retry: bool  # whether the same request may simply be sent again

    @property
    def status_line(self) -> str:
        return f"{self.status} {_PHRASES[self.status]}"


UNAVAILABLE = Problem(
    "urn:wsgi-dbguard:unavailable",
    503,
    "Database unavailable",
    "The database could not be reached, or did not answer in time. As far as is known nothing was saved; try again.",
    retry=True,
)
OUTCOME_UNKNOWN = Problem(
    "urn:wsgi-dbguard:outcome-unknown",
    503,
    "Outcome unknown",
    "The database failed while this request's changes were being saved, or after some of them were. They may have been "
    "saved or not: look before you repeat the request.",
    retry=False,
)
CONFLICT = Problem(
    "urn:wsgi-dbguard:conflict",
    409,
    "Conflict",
    "Somebody else changed the same data at the same time: fetch the current state.",
    retry=False,
)


def answer(
    problem: Problem,
    environ: WSGIEnvironment,
    start_response: StartResponse,
    retry_after: float,
    render: WSGIApplication | None = None,
) -> Iterable[bytes]:
    """Send `problem` as a WSGI application would, or have `render` do it.

    `retry_after` is the base of the jittered Retry-After, in seconds.
    """
    failed: Any = None
    if render is not None:
        environ[PROBLEM] = problem
        try:
            return _complete(render(environ, start_response))
        except Exception:
            logger.exception("rendering %s failed", problem.type)
            failed = sys.exc_info()
    if _prefers_text(environ.get("HTTP_ACCEPT", "")):
        kind, body = "text/plain; charset=utf-8", f"{problem.title}. {problem.detail}\n".encode()
    else:
        document = {
            "type": problem.type,
            "title": problem.title,
            "status": problem.status,
            "detail": problem.detail,
        }
        kind, body = "application/problem+json", json.dumps(document).encode()
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    if problem.retry:
        # Whole seconds, as RFC 9110 has it; spread, so that the clients do not all come back at once.
        headers.append(("Retry-After", str(max(1, round(retry_after * random.uniform(0.5, 1.5))))))
    try:
        if failed is None:
            start_response(problem.status_line, headers)
        else:  # it may have called start_response() itself
            start_response(problem.status_line, headers, failed)
    finally:
        failed = None  # or this frame and the traceback keep each other alive
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


def _complete(pages: Iterable[bytes]) -> list[bytes]:
    """All of a page, so that one that fails half-way is known to fail before it is sent."""
    try:
        return list(pages)
    finally:
        close = getattr(pages, "close", None)
        if close is not None:
            close()


def _prefers_text(accept: str) -> bool:
    """Whether the Accept header names text (a browser, curl with a header) and no JSON at all."""
    parts = [part.replace(" ", "").lower().partition(";") for part in accept.split(",")]
    kinds = [kind for kind, _, parameters in parts if not _REFUSED.search(parameters)]
    return any(kind.startswith("text/") for kind in kinds) and not any("json" in kind for kind in kinds)


def drain(body: RecordedInput, environ: WSGIEnvironment, limit: int = 1 << 20) -> None:
    """Read what is left of the request's body, up to `limit` bytes.

    A server that closes a connection with unread input resets it, and nginx then gives its client a 502 instead of the
    answer (seen with bodies above the socket's buffers, some 100 kB).
    """
    if not environ.get("CONTENT_LENGTH", "").isdecimal() and not environ.get("wsgi.input_terminated"):
        return  # nobody tells where it ends
    try:
        body.drain(limit)
    except Exception:  # the client went away, or lied about the length; servers have their own errors for that
        logger.debug("reading the rest of a request's body failed", exc_info=True)
