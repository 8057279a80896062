"""One request's way through the application and back, with room for a second attempt.

Until the first chunk of the response nothing is sent: `start_response` is held back. So when the database failed the
request (the application raised, or its framework made a 500 of it), the whole attempt can still be thrown away, and be
run again (`replay`) or answered honestly (`answers`). The application's ``write()`` ends that, as the first chunk does.

A second attempt finds environ and the context variables as they were before the first one, the same request body, and
sessions without a transaction. environ is the server's own: what is around the guard sees what the last attempt put in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from . import answers, events, failover, frameworks, leaks, sessions, tally
from .answers import Problem
from .body import END, Body, FileWrapper, SizedBody
from .causes import failure_behind
from .config import GuardConfig
from .failures import Failure
from .replay import Budget, RecordedInput, leaves_writes, reason_against
from .request import Request, arrivals, current

if TYPE_CHECKING:
    from typing import Protocol

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    class Guard(Protocol):
        """What is the same for all requests of a `DBGuard`, which is one."""

        app: WSGIApplication
        config: GuardConfig
        observes: bool  # see `leaks.observes`
        budget: Budget
        render: WSGIApplication | None
        requests: int  # that have come so far


__all__ = ["REQUEST", "Exchange"]

logger = logging.getLogger(__name__)

REQUEST = "wsgi_dbguard.request"
ATTEMPT = "wsgi_dbguard.attempt"
REPLAYABLE = "wsgi_dbguard.replayable"
FILE_WRAPPER = "wsgi.file_wrapper"
_MADE: frozenset[type] = frozenset({type(iter([])), type(iter(()))})  # iterators of what is there as a whole
_AWAY = frozenset({Failure.DISCONNECT, Failure.UNAVAILABLE, Failure.READ_ONLY, Failure.DEADLINE})
_CONFLICTS = frozenset({Failure.SERIALIZATION, Failure.DEADLOCK})
_AGAIN = object()  # a verdict: run the application once more


class Exchange:
    """One attempt after the other, for one request. `run` gives the server its iterable."""

    # Optimization: between two requests a busy machine's caches are filled with other things, and each function, class
    # and module that a request meets is read from memory again. So these are few. See tests/benchmarks/cold.py.

    __slots__ = ("_guard", "_headers", "_input", "_sent", "_start", "_status", "_write", "request")

    def __init__(self, guard: Guard, start_response: StartResponse) -> None:
        self._guard = guard
        self._start = start_response
        self._input: RecordedInput | None = None
        # Of the present attempt:
        self._status: str | None = None
        self._headers: list[tuple[str, str]] = []
        self._write: Callable[[bytes], object] | None = None
        self._sent = False

    def run(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        """The response of the application's first or second attempt, or the guard's answer."""
        request = self.request = environ[REQUEST] = Request(environ, current.get())
        length = environ.get("CONTENT_LENGTH", "")
        stream = environ.get("wsgi.input")  # test clients leave it out
        # HTTP/2 has bodies that no header tells of.
        if stream is not None and (length or not request.safe or "HTTP_TRANSFER_ENCODING" in environ):
            self._input = environ["wsgi.input"] = RecordedInput(
                stream, self._guard.config.replay_body, int(length) if length.isdecimal() else None
            )
        if self._guard.observes:
            leaks.observe(request, self._guard.config)
        environ[ATTEMPT] = 1
        pristine, context = dict(environ), copy_context()
        outcome = self._attempt(environ, None)
        if outcome is _AGAIN:
            request.again()
            self._status, self._headers = None, []  # nothing is sent
            if self._input is not None:
                self._input.rewind()
            environ.clear()
            environ.update(pristine)
            environ[ATTEMPT] = request.attempt
            outcome = self._again(environ, context)
        if type(outcome) is Problem:  # isinstance() would ask the body for its __class__
            return self._answer(outcome, environ)
        return outcome  # type: ignore[no-any-return]

    def _again(self, environ: WSGIEnvironment, context: Context) -> Any:
        """The second attempt, counted."""
        succeeded = False
        try:
            outcome = context.run(self._attempt, environ, context)
            succeeded = not isinstance(outcome, Problem) and not str(self._status).startswith("5")
            return outcome
        finally:
            tally.count("replays", "succeeded" if succeeded else "failed")

    def _attempt(self, environ: WSGIEnvironment, context: Context | None) -> Any:
        """One run of the application: the iterable for the server, a Problem to answer with, or _AGAIN.

        `context` is what it runs in, where that is not the server's own context.
        """
        request = self.request
        wrapper: Any = environ.get(FILE_WRAPPER)
        if wrapper is not None and not isinstance(wrapper, type):
            wrapper = environ[FILE_WRAPPER] = FileWrapper(wrapper)
        body: Iterable[bytes] | None = None
        iterator: Iterator[bytes] | None = None
        first: bytes = END
        token = current.set(request)
        try:
            for arrive in arrivals:
                arrive(request, environ)
            body = self._guard.app(environ, self._start_response)
            # Given all there is (uWSGI sends plain bytes too), or a file that the server sends by itself, nothing of
            # the application runs any more.
            made: type = type(body)
            complete = made is list or made is tuple or made is bytes
            if not complete and (wrapper is None or not isinstance(body, wrapper)):
                iterator = iter(body)
                while (first := next(iterator, END)) == b"":
                    pass  # PEP 3333: nothing to send yet
            status = self._status
            failed = isinstance(status, str) and "500" <= status < "501"  # no call: cheaper than startswith()
            verdict = self._verdict(None, environ, body, iterator) if failed else None
            if verdict is None:
                if iterator is None:
                    self._end()
                elif not request.safe:
                    request.streams = self._goes_on(first, iterator)
                self._send()
        except Exception as error:
            verdict = self._verdict(error, environ, body, iterator)
            if verdict is None:
                request.fail(error)
                self._abandon(body)
                raise
        except BaseException as error:
            request.fail(error)
            self._abandon(body)
            raise
        finally:
            current.reset(token)
        if verdict is not None:
            return verdict
        assert body is not None
        if iterator is None:
            return body
        # The class alone would tell, but to ask an object is cheaper, and most have no length.
        try:
            sized = getattr(body, "__len__", None) is not None and hasattr(type(body), "__len__")
        except Exception:  # of a __getattr__ of its own: the class has none
            sized = False
        return (SizedBody if sized else Body)(self, body, iterator, first, context)

    # Towards the application

    def _start_response(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        if self._sent:
            return self._start(status, headers, exc_info)  # the server raises `exc_info`, as PEP 3333 has it
        if self._status is not None and exc_info is None:
            raise AssertionError("start_response() was called a second time without exc_info")
        self._status, self._headers = status, headers
        return self._write_now

    def _goes_on(self, first: bytes, iterator: Iterator[bytes]) -> bool:
        """Whether there may be more of the body than `first`, that the application has yet to make."""
        if first is END or type(iterator) in _MADE:
            return False
        if not isinstance(first, bytes) or not self._headers:  # what is wrong with it is the server's to say
            return True
        lengths = [value for name, value in self._headers if name.lower() == "content-length"]
        return lengths != [str(len(first))]

    def _write_now(self, data: bytes) -> None:
        self.request.streams = True
        self._send()
        assert self._write is not None
        self._write(data)

    def _send(self) -> None:
        if not self._sent:
            self._sent = True
            if self._status is not None:  # else the server has a word to say to the application
                headers = self._departing(self._headers) if self.request.extras else self._headers
                self._write = self._start(self._status, headers)

    def _departing(self, headers: list[tuple[str, str]], *, failed: bool = False) -> list[tuple[str, str]]:
        for extra in self.request.extras:
            headers = extra.depart(self.request, headers, failed=failed)
        return headers

    # The decision

    def _verdict(
        self,
        error: Exception | None,
        environ: WSGIEnvironment,
        body: Iterable[bytes] | None,
        iterator: Iterator[bytes] | None,
    ) -> Any:
        """What to do about an attempt that failed with `error`, or with a response of status 500: a Problem, _AGAIN, or
        None where it is not the database's failure, or is sent already. But for None, `body` is closed then."""
        request, config = self.request, self._guard.config
        if self._sent:
            return None
        failure = self._failure(error)
        if failure is Failure.READ_ONLY and failover.is_own(request):
            failure = None
        request.database_failure = failure
        closed = False
        if failure is not None and self._may_run_again(environ):
            # What runs at its close belongs to this attempt, and may commit. Then the sessions.
            self._discard(body, iterator)
            closed = True
            sessions.release(request, "heal")
            unwritten = sessions.keeps_changes(request)
            if reason_against(request, config.replay) is None and not leaves_writes(request) and not unwritten:
                logger.warning("%r failed (%s) and runs again", request, failure, exc_info=error)
                events.note("a request that the database failed runs again")
                return _AGAIN
        problem = None
        if closed and error is None:  # the application's own response cannot be sent any more
            problem = answers.OUTCOME_UNKNOWN
        elif config.statuses:
            problem = self._problem(failure)
        if problem is not None:
            # An outage was told of when it began: not once more by each request that it fails.
            level = logging.ERROR if problem is answers.OUTCOME_UNKNOWN else logging.WARNING
            logger.log(level, "%r failed (%s), answered with %s", request, failure, problem.type, exc_info=error)
            events.note(f"a request was answered with {problem.status}: {problem.title}", bad=True)
            if not closed:
                self._discard(body, iterator)
            self._end_quietly()
        return problem

    def _failure(self, error: Exception | None) -> Failure | None:
        """How the database failed the request, if it did: `error` was raised, or a framework made a response of it."""
        request = self.request
        if error is not None:
            return failure_behind(error, request.database_failure)
        if request.told:
            return request.blamed
        frameworks.connect()  # for the next time, see there
        return request.database_failure

    def _problem(self, failure: Failure | None) -> Problem | None:
        """What the client is told of `failure`; None: nothing but what the application says."""
        if self.request.in_doubt or (failure in _AWAY and self._may_have_saved()):
            return answers.OUTCOME_UNKNOWN
        if failure in _AWAY:
            return answers.UNAVAILABLE
        if failure is Failure.STALE or (failure in _CONFLICTS and self._guard.config.statuses == "conflicts"):
            return answers.CONFLICT
        return None

    def _may_have_saved(self) -> bool:
        return self.request.commits > 0 or self.request.unseen > 0

    def _may_run_again(self, environ: WSGIEnvironment) -> bool:
        self.request.replayable |= environ.get(REPLAYABLE) is True
        reason = reason_against(self.request, self._guard.config.replay)
        if reason is None and self._input is not None and not self._input.rewindable:
            reason = "its body is larger than replay_body, or was read past wsgi.input"
        if reason is None and "uwsgi.version" in environ and self._input is not None and not self._input.consumed:
            # uWSGI gives a chunked body by a function of its own.
            reason = "its body cannot be given again" if "HTTP_TRANSFER_ENCODING" in environ else None
        # What a replica failed is no more work for the primary than if it had been asked at first.
        if reason is None and not self.request.moves and not self._guard.budget.spend(self._guard.requests):
            reason = "too many requests ran again lately"
        if reason is not None:
            logger.debug("%r does not run again: %s", self.request, reason)
        return reason is None

    def _answer(self, problem: Problem, environ: WSGIEnvironment) -> Iterable[bytes]:
        if self._input is not None:
            answers.drain(self._input, environ)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            leaving = self._departing(headers, failed=True)
            return self._start(status, leaving) if exc_info is None else self._start(status, leaving, exc_info)

        return answers.answer(problem, environ, start, self._guard.config.retry_after, self._guard.render)

    # The end

    def _discard(self, body: Iterable[bytes] | None, iterator: Iterator[bytes] | None = None) -> None:
        """Close what the server will never see."""
        try:
            # First the iterator, as where a server's loop lets go of it.
            if iterator is not body and isinstance(iterator, Generator):
                iterator.close()
            self._close(body)
        except Exception:
            logger.exception("%r: closing a response that is not sent failed", self.request)

    def _abandon(self, body: Iterable[bytes] | None) -> None:
        """The request ends with an error that the server will see."""
        try:
            self._discard(body)
        finally:
            self._end_quietly()

    def _end_quietly(self) -> None:
        try:
            self._end()
        except Warning as leak:  # there is an answer or an error already, which tells more
            logger.warning("%r: %s", self.request, leak)

    def close(self, body: Iterable[bytes]) -> None:
        """The server is done with `body`; an error of the application's own close() is the server's to see."""
        token = current.set(self.request)
        try:
            self._close(body)
        finally:
            try:
                self._end()
            finally:
                current.reset(token)

    def _close(self, body: Iterable[bytes] | None) -> None:
        self.request.thread = threading.get_ident()
        try:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            self.request.fail(error)
            raise

    def _end(self) -> None:
        request = self.request
        if request.ended is None:
            request.end()
            if request.sessions or request.links:
                leaks.settle(request, self._guard.config.leaks)
