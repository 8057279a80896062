from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from wsgi_dbguard.lab.load import Answer, LoadGenerator, LoadResult, wait_for_http
from wsgi_dbguard.lab.process import wait_until

Serve = Callable[[Callable[[BaseHTTPRequestHandler, str], None]], str]
ServeSockets = Callable[[Callable[[socket.socket, int], None]], str]


def reply(handler: BaseHTTPRequestHandler, body: str, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body.encode())


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start an HTTP/1.1 server that calls act(handler, token) for each request; its URL with {token} in it."""
    with ExitStack() as stack:

        def start(act: Callable[[BaseHTTPRequestHandler, str], None]) -> str:
            class Handler(BaseHTTPRequestHandler):
                protocol_version = "HTTP/1.1"
                wbufsize = -1  # the whole answer in one packet

                def do_GET(self) -> None:
                    act(self, parse_qs(urlsplit(self.path).query).get("token", [""])[0])

                do_POST = do_GET

                def log_message(self, format: str, *args: object) -> None:
                    pass

            class Server(ThreadingHTTPServer):
                request_queue_size = 128  # socketserver's 5 overflows, and a lost SYN costs a second
                daemon_threads = False  # server_close() joins them: no socket outlives the test

                def handle_error(self, request: object, client_address: object) -> None:
                    pass

            server = stack.enter_context(Server(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/echo?token={{token}}"

        yield start


@pytest.fixture
def serve_sockets() -> Iterator[ServeSockets]:
    """Start a server that calls act(connection, its number) for one connection after the other."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def start(act: Callable[[socket.socket, int], None]) -> str:
            def work() -> None:
                number = 0
                with suppress(OSError):
                    while True:
                        number += 1
                        connection = listener.accept()[0]
                        with connection, suppress(OSError):
                            connection.settimeout(60.0)
                            act(connection, number)

            thread = threading.Thread(target=work)
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return f"http://127.0.0.1:{listener.getsockname()[1]}/?token={{token}}"

        yield start


def read_token(connection: socket.socket) -> str:
    """Read one request; its token, or "" at the end of the connection."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        chunk = connection.recv(4096)
        if not chunk:
            return ""
        data += chunk
    return data.split(b"token=", 1)[1].split(b" ", 1)[0].decode()


def send_answer(connection: socket.socket, token: str) -> None:
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(token)}\r\n\r\n{token}".encode())


class TestAnswers:
    @pytest.mark.parametrize("keep_alive", [False, True])
    def test_each_request_has_a_token_of_its_own_and_gets_it_back(self, serve: Serve, keep_alive: bool) -> None:
        tokens: list[str] = []
        clients: set[object] = set()

        def act(handler: BaseHTTPRequestHandler, token: str) -> None:
            tokens.append(token)
            clients.add(handler.client_address)
            reply(handler, token)

        result = LoadGenerator(serve(act), requests=300, keep_alive=keep_alive).run()
        assert (result.requests, result.succeeded, result.failed, result.wrong) == (300, 300, 0, 0)
        assert len(set(tokens)) == len(tokens) == 300
        assert result.statuses == {"200": 300}
        assert result.errors == []
        assert len(clients) <= 8 if keep_alive else len(clients) > 8

    def test_each_answer_is_told_with_its_request(self, serve: Serve) -> None:
        methods: set[str] = set()

        def act(handler: BaseHTTPRequestHandler, token: str) -> None:
            methods.add(handler.command)
            reply(handler, token, 503 if token.endswith("-1") else 200)

        told: list[Answer] = []
        begun = time.monotonic()
        LoadGenerator(serve(act), requests=3, threads=1, method="POST", observe=told.append).run()
        assert methods == {"POST"}
        assert [(answer.kind, answer.status) for answer in told] == [("ok", "200"), ("failed", "503"), ("ok", "200")]
        assert [answer.token.rpartition("-")[2] for answer in told] == ["0", "1", "2"]
        assert begun <= told[0].sent <= told[0].sent + told[0].took <= told[1].sent
        assert "status 503" in told[1].what
        assert told[0].what == ""

    def test_another_requests_token_is_wrong(self, serve: Serve) -> None:
        last = ["none yet"]

        def act(handler: BaseHTTPRequestHandler, token: str) -> None:
            reply(handler, last[0])
            last[0] = token

        result = LoadGenerator(serve(act), requests=30, threads=1).run()
        assert (result.requests, result.failed, result.wrong) == (30, 0, 30)
        assert len(result.errors) == 20
        assert "none yet" in result.errors[0]
        assert result.errors[0].startswith("wrong at ")

    @pytest.mark.parametrize("status", [301, 404, 500, 503])
    def test_any_other_status_is_failed(self, serve: Serve, status: int) -> None:
        result = LoadGenerator(serve(lambda handler, token: reply(handler, token, status)), requests=5).run()
        assert (result.requests, result.failed, result.wrong) == (5, 5, 0)
        assert result.statuses == {str(status): 5}
        assert f"status {status}" in result.errors[0]

    def test_expect_decides_what_is_right(self, serve: Serve) -> None:
        url = serve(lambda handler, token: reply(handler, f"<{token}>", 404))
        result = LoadGenerator(
            url, requests=5, expect=lambda token, status, body: (status, body) == (404, f"<{token}>".encode())
        ).run()
        assert result.succeeded == 5

    def test_an_expect_that_raises_makes_the_answer_wrong(self, serve: Serve) -> None:
        url = serve(lambda handler, token: reply(handler, "no JSON"))
        result = LoadGenerator(
            url, requests=5, expect=lambda token, status, body: bool(json.loads(body)["token"] == token)
        ).run()
        assert result.wrong == 5
        assert "JSONDecodeError" in result.errors[0]


class TestFailures:
    def test_a_server_that_is_not_there_fails_every_request(self) -> None:
        # Bound and not listening: nobody else is given the port, and no client connects to itself from it.
        with socket.socket() as reservation:
            reservation.bind(("127.0.0.1", 0))
            port = reservation.getsockname()[1]
            result = LoadGenerator(f"http://127.0.0.1:{port}/{{token}}", requests=20).run()
        assert (result.requests, result.failed) == (20, 20)
        assert result.statuses == {"ConnectionRefusedError": 20}

    def test_no_answer_in_time_is_failed(self, serve: Serve) -> None:
        over = threading.Event()

        def act(handler: BaseHTTPRequestHandler, token: str) -> None:
            over.wait(60.0)
            handler.close_connection = True

        url = serve(act)
        try:
            result = LoadGenerator(url, requests=3, threads=3, timeout=0.1).run()
        finally:
            over.set()
        assert result.statuses == {"TimeoutError": 3}
        assert result.slowest >= 0.1

    def test_an_answer_that_breaks_off_is_failed_and_not_sent_again(self, serve_sockets: ServeSockets) -> None:
        asked: list[str] = []

        def act(connection: socket.socket, number: int) -> None:
            while token := read_token(connection):
                asked.append(token)
                if len(asked) != 2:
                    send_answer(connection, token)
                    continue
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                return

        result = LoadGenerator(serve_sockets(act), requests=4, threads=1, keep_alive=True).run()
        assert (result.requests, result.failed, result.wrong, result.retried) == (4, 1, 0, 0)
        assert result.statuses == {"200": 3, "IncompleteRead": 1}
        assert len(asked) == len(set(asked)) == 4

    def test_a_fresh_connection_that_is_closed_unanswered_is_failed(self, serve_sockets: ServeSockets) -> None:
        def act(connection: socket.socket, number: int) -> None:
            read_token(connection)

        result = LoadGenerator(serve_sockets(act), requests=4, threads=1).run()
        assert result.statuses == {"RemoteDisconnected": 4}
        assert (result.failed, result.retried) == (4, 0)


class TestKeepAlive:
    @pytest.mark.parametrize("ends", ["fin", "rst"])
    def test_a_kept_connection_that_was_closed_is_replaced_once(self, serve_sockets: ServeSockets, ends: str) -> None:
        def act(connection: socket.socket, number: int) -> None:
            send_answer(connection, read_token(connection))
            if ends == "rst":
                read_token(connection)  # the next request came too late: unread or not, it gets RST
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        result = LoadGenerator(serve_sockets(act), requests=10, threads=1, keep_alive=True).run()
        assert (result.requests, result.failed, result.wrong, result.retried) == (10, 0, 0, 9)

    def test_a_second_one_that_is_closed_too_is_failed(self, serve_sockets: ServeSockets) -> None:
        def act(connection: socket.socket, number: int) -> None:
            token = read_token(connection)
            if number == 1:
                send_answer(connection, token)

        result = LoadGenerator(serve_sockets(act), requests=2, threads=1, keep_alive=True).run()
        assert (result.requests, result.failed) == (2, 1)
        assert result.statuses == {"200": 1, "RemoteDisconnected": 1}

    def test_an_answer_that_begins_and_is_reset_is_not_sent_again(self, serve_sockets: ServeSockets) -> None:
        asked: list[str] = []

        def act(connection: socket.socket, number: int) -> None:
            while token := read_token(connection):
                asked.append(token)
                if len(asked) == 2:
                    connection.sendall(b"HTTP/1.1 2")
                    return
                send_answer(connection, token)

        result = LoadGenerator(serve_sockets(act), requests=2, threads=1, keep_alive=True).run()
        assert (result.failed, result.retried, len(asked)) == (1, 0, 2)

    def test_a_server_that_says_close_is_no_reason_to_retry(self, serve: Serve) -> None:
        def act(handler: BaseHTTPRequestHandler, token: str) -> None:
            handler.close_connection = True
            handler.send_response(200)
            handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(token.encode())

        result = LoadGenerator(serve(act), requests=20, threads=2, keep_alive=True).run()
        assert (result.succeeded, result.retried) == (20, 0)


class TestRun:
    def test_rate_is_not_exceeded(self, serve: Serve) -> None:
        url = serve(lambda handler, token: reply(handler, token))
        result = LoadGenerator(url, requests=21, rate=100.0).run()
        assert result.requests == 21
        assert result.seconds >= 0.2

    def test_seconds_end_the_run(self, serve: Serve) -> None:
        url = serve(lambda handler, token: reply(handler, token))
        result = LoadGenerator(url, seconds=1.0, threads=2).run()
        assert result.succeeded == result.requests > 0
        assert result.seconds >= 1.0
        # The second one is due in 1,000 seconds.
        assert LoadGenerator(url, seconds=500.0, rate=0.001, requests=50).run().requests == 1

    def test_it_runs_until_stop_and_can_be_watched(self, serve: Serve) -> None:
        load = LoadGenerator(serve(lambda handler, token: reply(handler, token)))
        assert load.stop().requests == 0
        load = LoadGenerator(load.url)
        assert "new" in repr(load)
        load.start()
        try:
            wait_until(lambda: load.result.requests >= 50, timeout=60.0, what="fifty requests", interval=0.001)
            assert "running" in repr(load)
            with pytest.raises(RuntimeError, match="already"):
                load.start()
        finally:
            result = load.stop()
        assert "ended" in repr(load)
        assert result.succeeded == result.requests >= 50
        assert load.stop() is result

    def test_what_has_been_sent_can_be_waited_for_while_more_is_sent(self, serve: Serve) -> None:
        gate = threading.Barrier(2, timeout=60.0)

        def act(handler: BaseHTTPRequestHandler, token: str) -> None:
            for _ in ("it has come", "it may go") if token.endswith("-0") else ():
                gate.wait()
            reply(handler, token)

        load = LoadGenerator(serve(act), threads=2)
        load.start()
        try:
            gate.wait()
            with pytest.raises(TimeoutError, match="running"):
                load.catch_up(timeout=0.1)
            gate.wait()
            load.catch_up()
        finally:
            load.stop()

    def test_an_interrupt_in_the_middle_of_its_start_leaves_nothing_that_cannot_be_stopped(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load = LoadGenerator(serve(lambda handler, token: reply(handler, token)), threads=4)

        def interrupt() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(load._threads[2], "start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load.start()
        load.stop()
        assert load.ended

    def test_a_run_without_an_end_is_refused(self) -> None:
        with pytest.raises(ValueError, match="requests or seconds"):
            LoadGenerator("http://127.0.0.1:1/{token}").run()

    @pytest.mark.parametrize(
        ("url", "settings", "message"),
        [
            ("http://127.0.0.1:1/", {}, "token"),
            ("https://127.0.0.1:1/{token}", {}, "http://"),
            ("http://127.0.0.1:1/{token}", {"threads": 0}, "threads must be 1 or more, not 0"),
            ("http://127.0.0.1:1/{token}", {"rate": 0.0}, "rate must be more than 0"),
            ("http://127.0.0.1:1/{token}", {"requests": -1}, "requests must be more than 0"),
            ("http://127.0.0.1:1/{token}", {"timeout": float("nan")}, "timeout must be more than 0"),
        ],
    )
    def test_an_impossible_setting_is_refused(self, url: str, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LoadGenerator(url, **settings)


class TestResult:
    def test_percentiles_are_by_nearest_rank(self) -> None:
        result = LoadResult()
        assert result.percentile(99) == 0.0
        result.latencies.extend([0.4, 0.1, 0.3, 0.2])
        assert [result.percentile(q) for q in (0, 25, 50, 51, 75, 100)] == [0.1, 0.1, 0.2, 0.3, 0.3, 0.4]
        with pytest.raises(ValueError, match="q must be"):
            result.percentile(101)

    def test_as_dict_is_json(self, serve: Serve) -> None:
        result = LoadGenerator(serve(lambda handler, token: reply(handler, token)), requests=10).run()
        told = json.loads(json.dumps(result.as_dict()))
        assert (told["requests"], told["failed"], told["wrong"], told["statuses"]) == (10, 0, 0, {"200": 10})
        assert 0 < told["p50"] <= told["p99"] <= told["slowest"] == max(result.latencies)


class TestWaitForHttp:
    def test_any_status_is_an_answer(self, serve: Serve) -> None:
        assert wait_for_http(serve(lambda handler, token: reply(handler, "", 503)), timeout=60.0) == 503

    def test_a_server_that_comes_later_is_waited_for(self, serve_sockets: ServeSockets) -> None:
        def act(connection: socket.socket, number: int) -> None:
            token = read_token(connection)
            if number > 3:
                send_answer(connection, token)

        assert wait_for_http(serve_sockets(act), timeout=60.0) == 200

    def test_the_last_error_is_told_when_none_comes(self) -> None:
        with socket.socket() as reservation:
            reservation.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{reservation.getsockname()[1]}/"
            with pytest.raises(TimeoutError, match=r"within 0.5 s.*ConnectionRefusedError"):
                wait_for_http(url, timeout=0.5)

    def test_a_server_that_accepts_and_stays_silent_is_no_answer(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            with pytest.raises(TimeoutError, match="TimeoutError"):
                wait_for_http(url, timeout=0.1)
