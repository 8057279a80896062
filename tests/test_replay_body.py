"""The body of a request that runs again: the very same, or no second run."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from wsgi_dbguard.lab.exchanges import Site, posted
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.replay import RecordedInput

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(postgres.url())


class Strict(io.RawIOBase):
    """A server's input: whoever reads past the body's end would wait for ever."""

    def __init__(self, content: bytes, *, short: int = 1 << 30) -> None:
        self.content = io.BytesIO(content)
        self.left = len(content)
        self.short = short

    def _took(self, data: bytes) -> bytes:
        self.left -= len(data)
        return data

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert 0 <= size <= self.left
        return self._took(self.content.read(min(size, self.short)))

    def readline(self, size: int | None = -1) -> bytes:
        assert self.left
        return self._took(self.content.readline(-1 if size is None else size))


def read_at_once(stream: Any, length: int) -> bytes:
    return bytes(stream.read(length))


def read_in_pieces(stream: Any, length: int) -> bytes:
    data = b""
    while len(data) < length:
        data += stream.read(min(7, length - len(data)))
    return data


def read_into(stream: Any, length: int) -> bytes:
    buffer, data = bytearray(7), b""
    while len(data) < length:
        data += buffer[: stream.readinto(memoryview(buffer)[: length - len(data)])]
    return data


def read_lines(stream: Any, length: int) -> bytes:
    data = b""
    while len(data) < length:
        data += stream.readline()
    return data


def read_short_lines(stream: Any, length: int) -> bytes:
    data = b""
    while len(data) < length:
        data += stream.readline(3)
    return data


BODY = b"first line\nsecond line\n\nand the last one"


@pytest.mark.parametrize("reader", [read_at_once, read_in_pieces, read_into, read_lines, read_short_lines])
@pytest.mark.parametrize("before", [0, 5, 11, 15, len(BODY)])
def test_the_second_run_reads_the_very_same_body(
    reader: Callable[[Any, int], bytes], before: int, postgres: PostgreSQL, engine: Engine
) -> None:
    seen: list[bytes] = []

    class Reading(Site):
        def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            stream = environ["wsgi.input"]
            if not self.runs:
                seen.append(stream.read(before))
            else:
                seen.append(reader(stream, int(environ["CONTENT_LENGTH"])))
            return super().__call__(environ, start_response)

    stream = Strict(BODY)
    site = Reading(postgres, engine, lambda engine: None)
    more = {"wsgi.input": stream, "CONTENT_LENGTH": str(len(BODY))}
    assert posted(site, engine, **more)[0] == "200 OK"
    assert seen == [BODY[:before], BODY]


@pytest.mark.parametrize("way", [lambda s: s.read(), lambda s: b"".join(s), lambda s: b"".join(s.readlines())])
@pytest.mark.parametrize("told", [{"HTTP_TRANSFER_ENCODING": "chunked"}, {}], ids=["chunked", "HTTP/2"])
def test_a_body_of_unknown_length_is_read_again(
    told: dict[str, str], way: Callable[[Any], bytes], postgres: PostgreSQL, engine: Engine
) -> None:
    seen: list[bytes] = []

    class Reading(Site):
        def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            seen.append(way(environ["wsgi.input"]))
            return super().__call__(environ, start_response)

    more = {"wsgi.input": io.BytesIO(BODY), "CONTENT_LENGTH": "", "wsgi.input_terminated": True, **told}
    assert posted(Reading(postgres, engine, lambda engine: None), engine, **more)[0] == "200 OK"
    assert seen == [BODY, BODY]


def reads(way: Callable[[Any], object]) -> Callable[..., WSGIApplication]:
    class Reading(Site):
        def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            way(environ["wsgi.input"])
            return super().__call__(environ, start_response)

    return Reading


@pytest.mark.parametrize(("size", "runs"), [(65536, 2), (65537, 1)])
def test_a_body_larger_than_replay_body_is_not_run_again(
    size: int, runs: int, postgres: PostgreSQL, engine: Engine
) -> None:
    site: Any = reads(lambda stream: stream.read(size))(postgres, engine, lambda engine: None)
    posted(site, engine, **{"wsgi.input": Strict(bytes(size)), "CONTENT_LENGTH": str(size)})
    assert site.runs == runs


def test_a_large_body_of_which_little_was_read_runs_again(postgres: PostgreSQL, engine: Engine) -> None:
    site: Any = reads(lambda stream: stream.read(10))(postgres, engine, lambda engine: None)
    posted(site, engine, **{"wsgi.input": Strict(bytes(1 << 20)), "CONTENT_LENGTH": str(1 << 20)})
    assert site.runs == 2


def test_a_body_that_was_read_past_wsgi_input_is_not_run_again(postgres: PostgreSQL, engine: Engine) -> None:
    site: Any = reads(lambda stream: stream.read1(4))(postgres, engine, lambda engine: None)
    posted(site, engine, **{"wsgi.input": io.BytesIO(BODY), "CONTENT_LENGTH": str(len(BODY))})
    assert site.runs == 1


def test_a_buffered_reader_around_it_does_not_close_it(postgres: PostgreSQL, engine: Engine) -> None:
    site: Any = reads(lambda stream: io.BufferedReader(stream).read(4))(postgres, engine, lambda engine: None)
    stream = io.BytesIO(bytes(1 << 14))  # more than it takes at once
    posted(site, engine, **{"wsgi.input": stream, "CONTENT_LENGTH": str(1 << 14)})
    assert site.runs == 2
    assert not stream.closed


def test_a_chunked_body_that_uwsgi_gives_by_its_own_function_is_not_run_again(
    postgres: PostgreSQL, engine: Engine
) -> None:
    site = Site(postgres, engine, lambda engine: None)
    more = {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked", "uwsgi.version": b"2.0.31"}
    posted(site, engine, **more)
    assert site.runs == 1


def test_reading_nothing_after_the_rewind_loses_nothing() -> None:
    body = RecordedInput(io.BytesIO(b"hello"), 100)
    assert body.read() == b"hello"
    body.rewind()
    assert body.read(0) == b""
    assert body.read() == b"hello"


CALLS = st.lists(
    st.tuples(st.sampled_from(["read", "readline"]), st.one_of(st.none(), st.integers(-1, 30))), max_size=8
)


@given(st.binary(max_size=60).map(lambda data: data.replace(b"\x00", b"\n")), CALLS, CALLS, st.integers(0, 80))
def test_recorded_input_reads_as_the_stream_itself(data: bytes, first: Any, second: Any, limit: int) -> None:
    recorded = RecordedInput(io.BytesIO(data), limit)

    def same(calls: Any) -> None:
        plain = io.BytesIO(data)
        for name, size in calls:
            assert getattr(recorded, name)(size) == getattr(plain, name)(size)

    same(first)
    assert recorded.rewindable == (recorded.consumed <= limit)
    if recorded.rewindable:
        recorded.rewind()
        same(second)
        assert b"".join(iter(recorded.readline, b"")) is not None
        assert recorded.consumed == len(data)


def test_an_application_that_seeks_reads_what_it_would_read_without_the_guard() -> None:
    body = RecordedInput(io.BytesIO(b"hello"), 100, 5)
    assert body.read() == b"hello"
    body.seek(0)
    assert body.read() == b"hello"
    assert not body.rewindable
