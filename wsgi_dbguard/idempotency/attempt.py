"""One run of the application under a claim, and what becomes of the claim with it.

Until the first chunk nothing is sent, so that a request whose COMMIT is in doubt can still be told the truth. The
answer is recorded as it passes. It is stored before its last byte leaves where that can be told (a list, or as many
bytes as Content-Length says) and the application has given back its connections; else when the response is closed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from wsgi_dbguard import answers
from wsgi_dbguard.answers import Problem
from wsgi_dbguard.body import END
from wsgi_dbguard.causes import failure_behind
from wsgi_dbguard.request import Request

from .body import ReadBody
from .claims import Claim, active
from .problems import APPLIED, RUNNING, UNSETTLED
from .recorder import Recorder
from .store import Released, Store, Stored, Unreachable

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Attempt"]

logger = logging.getLogger(__name__)

FILE_WRAPPER = "wsgi.file_wrapper"
_LATER = frozenset({408, 425, 429})  # statuses that say: not now; like the 5xx they are no answer to keep


class Attempt:
    """`run` gives the iterable for the server, or what to answer instead of it.

    `request` is the one of a `DBGuard` around this, which may run the application again.
    """

    def __init__(
        self,
        store: Store,
        claim: Claim,
        fingerprint: str,
        start_response: StartResponse,
        request: Request | None,
        body: ReadBody | None,
        limit: int,
    ) -> None:
        self.claim = claim
        self._store = store
        self._fingerprint = fingerprint
        self._start = start_response
        self._request = request
        self._body = body
        self._recorder = Recorder(limit)
        self._write: Callable[[bytes], object] | None = None
        self._status: str | None = None
        self._headers: list[tuple[str, str]] = []
        self._sent = False
        self._over = False  # the claim is given back, or the row has all that it will have

    def run(self, app: WSGIApplication, environ: WSGIEnvironment) -> Iterable[bytes] | Problem | Stored:
        """The response of `app`, or what is to be said instead. Raises what `app` raises."""
        # A file is recorded like anything else: the server cannot send it by itself. It still looks for its wrapper.
        wrapper = environ.pop(FILE_WRAPPER, None)
        body: Iterable[bytes] | None = None
        iterator: Iterator[bytes] | None = None
        first: bytes = END
        token = active.set(self.claim)
        try:
            body = app(environ, self._start_response)
            if type(body) not in (list, tuple):
                iterator = iter(body)
                first = next(iterator, END)
            instead = self._instead(None)
            if instead is None:
                self._send()
            else:
                self._discard(body, iterator)
                return instead
        except Exception as error:
            self._discard(body, iterator)  # which may still commit
            instead = self._instead(error)
            if instead is None:
                self.end()
                raise
            logger.warning("a keyed request failed, answered with %r", instead, exc_info=error)
            return instead
        finally:
            active.reset(token)
            if wrapper is not None:
                environ[FILE_WRAPPER] = wrapper
        if iterator is not None:
            return Body(self, body, iterator, first)
        for chunk in body:
            self._recorder.take(chunk)
        self._recorder.complete = True
        self.end()
        return body

    # Towards the application

    def _start_response(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        if self._sent:
            return self._start(status, headers, exc_info)  # the server raises `exc_info`, as PEP 3333 has it
        if self._status is not None and exc_info is None:
            raise AssertionError("start_response() was called a second time without exc_info")
        self._status, self._headers = status, headers
        return self._write_now

    def _write_now(self, data: bytes) -> None:
        self._send()
        assert self._write is not None
        self._recorder.take(data)
        self._write(data)

    def _send(self) -> None:
        if not self._sent:
            self._sent = True
            if self._status is not None:  # else the server has a word to say to the application
                self._recorder.begin(self._status, self._headers)
                self._write = self._start(self._status, self._headers)

    @property
    def _code(self) -> int:
        return int(self._status[:3]) if self._status is not None and self._status[:3].isdecimal() else 500

    @property
    def _failing(self) -> bool:
        """Whether the answer is none to keep where nothing was applied."""
        broke_off = self._body is not None and self._body.broke_off
        return broke_off or self._code >= 500 or self._code in _LATER

    # What becomes of the claim

    def _instead(self, error: Exception | None) -> Problem | Stored | None:
        """What to answer instead of the application's response, or of `error`; None: nothing else."""
        claim = self.claim
        unclear = claim.in_doubt or claim.unseen
        if self._sent or not (claim.lost or unclear or error is not None or self._code >= 500):
            return None
        try:
            if claim.lost:
                return self._others()
            if claim.marked and not claim.in_doubt:
                if not self._is_databases(error):
                    return None
                self._finish(None, well=False)
                return APPLIED
            if not unclear and error is None and not self._is_databases(None):
                return None  # the response goes on, and may still commit
            released = self._release()
        except Unreachable as lost:
            logger.warning("what became of a keyed request is not known before its lease ends: %s", lost)
            self._over = True
            return UNSETTLED if claim.in_doubt else None
        if released is Released.APPLIED:
            return APPLIED
        if released is Released.LOST:
            return self._others()
        if not claim.in_doubt or (self._request is not None and (error is not None or self._code == 500)):
            return None  # the guard may run it again, and knows by now that nothing was committed
        return answers.UNAVAILABLE

    def _is_databases(self, error: Exception | None) -> bool:
        request = self._request
        if error is not None:
            return failure_behind(error, None if request is None else request.database_failure) is not None
        return request.blamed is not None if request is not None and request.told else self.claim.database_failed

    def _others(self) -> Problem | Stored:
        self._over = True
        return self._store.look(self.claim.id, self._fingerprint) or RUNNING

    def _release(self) -> Released:
        """Give the claim up; if it was applied, say that its answer is not there."""
        released = self._store.release(self.claim.id, self.claim.owner)
        self._over = True
        if released is Released.APPLIED:
            self._finish(None, well=False)
        elif released is Released.FREE and self._request is not None:
            # Whatever it has told to commit in this database was not committed, or has only read.
            self._request.note(commits=-min(self.claim.commits, self._request.commits))
            self._request.committing = None
            self._request.in_doubt = self._request.in_doubt and not self.claim.in_doubt
        return released

    def _finish(self, answer: Stored | None, *, well: bool) -> None:
        self._over = True
        self._store.finish(self.claim.id, self.claim.owner, answer, well=well)

    def take(self, chunk: bytes) -> None:
        """`chunk` is about to be sent."""
        self._recorder.take(chunk)
        if self._recorder.complete:
            self.end_early()

    def end_early(self) -> None:
        """The answer is complete, but the application may still have something to do at its close."""
        # With a connection of its own still out, another one could be one too many for the pool.
        if not self.claim.held and not self._failing:
            self.end()

    def exhausted(self) -> None:
        """The application has no more chunks."""
        self._recorder.complete = True
        self.end_early()

    def end(self) -> None:
        """The response is over: store it, or give the claim back. Never raises; only the first call counts."""
        if self._over:
            return
        self._over = True
        claim = self.claim
        answer = self._recorder.answer()
        try:
            if claim.in_doubt or (not claim.marked and (self._failing or answer is None)):
                self._release()
            elif not claim.lost:
                self._finish(answer, well=self._recorder.complete)
        except Exception:
            logger.warning("the end of a keyed request could not be stored", exc_info=True)

    def close(self, body: Iterable[bytes], iterator: Iterator[bytes] | None = None) -> None:
        """Close the application's response, and what is left of the claim. Raises what its ``close()`` raises."""
        token = active.set(self.claim)
        try:
            # First the iterator, as where a server's loop lets go of it.
            if iterator is not body and isinstance(iterator, Generator):
                iterator.close()
            close = getattr(body, "close", None)
            if close is not None:
                close()
        finally:
            active.reset(token)
            self.end()

    def _discard(self, body: Iterable[bytes] | None, iterator: Iterator[bytes] | None) -> None:
        """Close what the server will never see."""
        over, self._over = self._over, True  # what becomes of the claim is decided elsewhere
        try:
            if body is not None:
                self.close(body, iterator)
        except Exception:
            logger.exception("closing a response that is not sent failed")
        finally:
            self._over = over


class Body:
    """The application's iterable: each of its steps runs under the claim."""

    def __init__(self, attempt: Attempt, iterable: Iterable[bytes], iterator: Iterator[bytes], first: bytes) -> None:
        self._attempt = attempt
        self._iterable = iterable
        self._iterator: Iterator[bytes] | None = iterator
        self._first = first
        if first is END:
            attempt.exhausted()

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        chunk, self._first = self._first, END
        if chunk is END:
            chunk = self._step()
        self._attempt.take(chunk)
        return chunk

    def _step(self) -> bytes:
        if self._iterator is None:
            raise StopIteration
        # Set for this step only: between two steps the server may run another request in the same context.
        token = active.set(self._attempt.claim)
        try:
            return next(self._iterator)
        except StopIteration:
            self._iterator = None
            self._attempt.exhausted()
            raise
        finally:
            active.reset(token)

    def close(self) -> None:
        iterator, self._iterator, self._first = self._iterator, None, END
        self._attempt.close(self._iterable, iterator)
