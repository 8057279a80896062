from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable

import pytest

from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.lab.wire import TIMEOUT, abort, fill, is_reset, is_reset_after_fin, read

Connect = Callable[[], tuple[socket.socket, socket.socket]]


def is_silent(proxy: FaultProxy, sock: socket.socket) -> bool:
    """Whether nothing came to `sock`, once the proxy has handled all that was sent."""
    proxy.snapshot()
    return not select.select([sock], [], [], 0)[0]


class TestUp:
    def test_bytes_pass_both_ways_and_are_counted(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        client.sendall(b"question")
        assert read(server, 8) == b"question"
        server.sendall(b"answers")
        assert read(client, 7) == b"answers"
        assert proxy.snapshot() == {1: (8, 7)}
        [connection] = proxy.connections
        assert (connection.client_bytes, connection.server_bytes) == (8, 7)
        assert connection.forwarded == (8, 7)
        assert (connection.sent, connection.received) == (b"question", b"answers")

    def test_large_transfers_in_both_directions_arrive_unchanged(self, connect: Connect) -> None:
        client, server = connect()
        payload = os.urandom(1 << 23)
        senders = [threading.Thread(target=sock.sendall, args=(payload,)) for sock in (client, server)]
        got: dict[str, bytes] = {}
        for sender in senders:
            sender.start()
        reader = threading.Thread(target=lambda: got.update(server=read(server, len(payload))))
        reader.start()
        got["client"] = read(client, len(payload))
        for thread in (*senders, reader):
            thread.join()
        assert got == {"client": payload, "server": payload}

    def test_fin_of_one_side_leaves_the_other_direction_open(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert read(server, 10) == b"last words"
        assert server.recv(1) == b""
        server.sendall(b"still here")
        assert read(client, 10) == b"still here"
        server.close()
        assert client.recv(1) == b""
        wait_until(lambda: not proxy.connections, timeout=TIMEOUT, what="the proxy")
        assert proxy.history[0].ended == "closed"

    @pytest.mark.parametrize("side", ["client", "server"])
    def test_rst_arrives_as_rst_after_the_bytes_before_it(self, proxy: FaultProxy, connect: Connect, side: str) -> None:
        for number in range(50):
            here, there = connect() if side == "client" else reversed(connect())
            here.sendall(b"last words")
            abort(here)
            assert read(there, 10) == b"last words"
            assert is_reset(there)
            assert proxy.history[number].ended == f"{side} reset"
        assert not proxy.connections

    def test_rst_arrives_although_the_other_direction_was_closed_before(self, connect: Connect) -> None:
        client, server = connect()
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        abort(client)
        assert is_reset_after_fin(server)

    def test_writing_to_a_closed_client_resets_the_server(self, connect: Connect) -> None:
        client, server = connect()
        client.close()
        assert server.recv(1) == b""
        server.sendall(b"too late")
        assert is_reset_after_fin(server)

    def test_last_words_of_a_server_that_closed_reach_a_client_that_writes(self, connect: Connect) -> None:
        for _ in range(50):
            client, server = connect()
            server.sendall(b"FATAL: terminating connection")
            server.close()
            client.sendall(b"select 1")
            assert read(client, 29) == b"FATAL: terminating connection"

    def test_a_receiver_that_does_not_read_stops_the_sender_and_loses_nothing(
        self, proxy: FaultProxy, connect: Connect
    ) -> None:
        client, server = connect()
        sent = fill(client)
        [connection] = proxy.connections
        assert connection.client_bytes - connection.forwarded[0] < 2 << 20
        server.sendall(b"the other direction is free")
        assert read(client, 27) == b"the other direction is free"
        assert read(server, sent) == bytes(sent)

    def test_a_client_that_dies_while_stopped_is_noticed(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        sent = fill(client)
        held = proxy.connections[0].client_bytes
        abort(client)
        assert proxy.history[0].client_bytes > held  # what the kernel had taken already is not lost
        with pytest.raises(ConnectionResetError):
            read(server, sent + 1)

    def test_an_upstream_that_is_down_resets_the_client(
        self, proxy: FaultProxy, upstream: socket.socket, dial: Callable[[], socket.socket]
    ) -> None:
        upstream.close()
        with pytest.raises(ConnectionResetError):  # by connect() or by recv(): a race
            dial().recv(1)
        assert proxy.history[0].ended == "upstream unreachable"


class TestBlackhole:
    def test_nothing_is_forwarded_until_up(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.blackhole()
        client.sendall(b"question")
        server.sendall(b"answer")
        assert is_silent(proxy, client)
        assert is_silent(proxy, server)
        assert proxy.snapshot() == {1: (8, 6)}
        assert proxy.connections[0].forwarded == (0, 0)
        proxy.up()
        assert read(server, 8) == b"question"
        assert read(client, 6) == b"answer"

    def test_what_was_sent_before_still_arrives(self, proxy: FaultProxy, connect: Connect) -> None:
        for _ in range(50):
            client, server = connect()
            client.sendall(b"before")
            proxy.blackhole()
            client.sendall(b"after")
            assert read(server, 6) == b"before"
            assert is_silent(proxy, server)
            proxy.up()
            assert read(server, 5) == b"after"

    def test_new_connections_are_accepted_and_reach_the_server_only_when_up(
        self,
        proxy: FaultProxy,
        upstream: socket.socket,
        dial: Callable[[], socket.socket],
        answer: Callable[[], socket.socket],
    ) -> None:
        proxy.refuse()
        proxy.blackhole()
        client = dial()
        client.sendall(b"hello")
        assert proxy.snapshot() == {1: (5, 0)}
        upstream.setblocking(False)
        with pytest.raises(BlockingIOError):
            upstream.accept()
        upstream.settimeout(TIMEOUT)
        proxy.up()
        assert read(answer(), 5) == b"hello"

    def test_fin_and_rst_are_held_too(self, proxy: FaultProxy, connect: Connect) -> None:
        (closing, closed), (resetting, was_reset) = connect(), connect()
        proxy.blackhole()
        closing.close()
        abort(resetting)
        assert is_silent(proxy, closed)
        assert is_silent(proxy, was_reset)
        assert len(proxy.connections) == 2
        proxy.up()
        assert closed.recv(1) == b""
        assert is_reset(was_reset)

    def test_the_sender_is_stopped_and_nothing_is_lost(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.blackhole()
        sent = fill(client)
        assert proxy.connections[0].client_bytes < 2 << 20
        assert is_silent(proxy, server)
        proxy.up()
        assert read(server, sent) == bytes(sent)

    def test_connections_can_be_ended_meanwhile(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.blackhole()
        client.sendall(b"lost")
        proxy.fin()
        assert client.recv(1) == b""
        assert server.recv(1) == b""


class TestDelay:
    def test_each_direction_takes_that_long(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.delay(0.05)
        begun = time.monotonic()
        client.sendall(b"question")
        assert read(server, 8) == b"question"
        halfway = time.monotonic()
        server.sendall(b"answer")
        assert read(client, 6) == b"answer"
        assert halfway - begun >= 0.05
        assert time.monotonic() - halfway >= 0.05

    def test_bytes_keep_their_order_when_it_ends(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.delay(0.1)
        client.sendall(b"first ")
        proxy.delay(0.0)
        client.sendall(b"second")
        client.shutdown(socket.SHUT_WR)
        assert read(server, 12) == b"first second"
        assert server.recv(1) == b""

    def test_fin_and_rst_take_that_long_too(self, proxy: FaultProxy, connect: Connect) -> None:
        (closing, closed), (resetting, was_reset) = connect(), connect()
        proxy.delay(0.1)
        begun = time.monotonic()
        closing.close()
        abort(resetting)
        assert closed.recv(1) == b""
        assert is_reset(was_reset)
        assert time.monotonic() - begun >= 0.1

    def test_up_ends_it_for_what_comes_after(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.delay(3600.0)
        proxy.up()
        client.sendall(b"x")
        assert read(server, 1) == b"x"

    @pytest.mark.parametrize("seconds", [-0.1, float("inf"), float("nan")])
    def test_an_impossible_delay_is_refused(self, proxy: FaultProxy, seconds: float) -> None:
        with pytest.raises(ValueError, match="delay"):
            proxy.delay(seconds)


class TestDropAfter:
    def test_the_connection_is_reset_after_exactly_so_many_bytes(self, proxy: FaultProxy, connect: Connect) -> None:
        other, other_server = connect()
        client, server = connect()
        proxy.drop_after(10)
        client.sendall(b"12345")
        assert read(server, 5) == b"12345"
        client.sendall(b"67890+lost")
        assert read(server, 5) == b"67890"
        assert is_reset(server)
        assert is_reset(client)
        assert proxy.history[1].ended == "drop_after"
        assert proxy.history[1].forwarded == (10, 0)
        other.sendall(b"it was for one connection only")
        assert read(other_server, 30) == b"it was for one connection only"

    def test_exactly_so_many_bytes_reset_nothing_until_the_next(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.drop_after(3)
        client.sendall(b"123")
        assert read(server, 3) == b"123"
        server.sendall(b"ok")
        assert read(client, 2) == b"ok"
        client.sendall(b"4")
        assert is_reset(server)

    def test_the_servers_bytes_count_in_its_direction(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.drop_after(4, direction="server")
        client.sendall(b"long question")
        assert read(server, 13) == b"long question"
        server.sendall(b"long answer")
        assert read(client, 4) == b"long"
        assert is_reset(client)

    def test_bytes_of_all_connections_count_together(self, proxy: FaultProxy, connect: Connect) -> None:
        (first, first_server), (second, second_server) = connect(), connect()
        proxy.drop_after(3)
        first.sendall(b"12")
        assert read(first_server, 2) == b"12"
        second.sendall(b"34")
        assert read(second_server, 1) == b"3"
        assert is_reset(second_server)
        assert is_silent(proxy, first_server)

    def test_zero_lets_nothing_through(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.drop_after(0)
        assert is_silent(proxy, client)
        client.sendall(b"x")
        assert is_reset(server)

    def test_a_slow_receiver_still_gets_all_of_them(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        payload = os.urandom(1 << 20)  # more than the server's socket takes unread, less than all buffers
        proxy.drop_after(len(payload))
        client.sendall(payload + b"one too many")
        wait_until(lambda: proxy.history[0].ended == "drop_after", timeout=TIMEOUT, what="the proxy")
        assert read(server, len(payload)) == payload
        assert is_reset(server)
        assert is_reset(client)

    def test_up_cancels_it(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.drop_after(0)
        proxy.up()
        client.sendall(b"x")
        assert read(server, 1) == b"x"

    def test_impossible_arguments_are_refused(self, proxy: FaultProxy) -> None:
        with pytest.raises(ValueError, match="drop_after"):
            proxy.drop_after(-1)
        with pytest.raises(ValueError, match="direction"):
            proxy.drop_after(1, direction="up")  # type: ignore[arg-type]


@pytest.fixture
def may_forget(proxy: FaultProxy, connect: Connect) -> None:
    connect()
    try:
        proxy.forget()
    except PermissionError:
        pytest.skip("this kernel wants CAP_NET_ADMIN for a socket filter")
    proxy.reset()


@pytest.mark.usefixtures("may_forget")
class TestForget:
    def test_what_clients_send_is_lost_unacknowledged_and_nobody_is_told(
        self, proxy: FaultProxy, connect: Connect
    ) -> None:
        client, server = connect()
        client.sendall(b"before")
        proxy.forget()
        assert read(server, 6) == b"before"
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
        client.sendall(b"question")
        server.sendall(b"answer")
        proxy.up()
        assert select.select([client, server], [], [], 0.1)[0] == []
        assert proxy.snapshot()[2] == (6, 0)
        assert "forget" in repr(proxy.connections[0])
        with pytest.raises(OSError, match=os.strerror(errno.ETIMEDOUT)):
            client.recv(1)

    def test_new_connections_work_and_stop_ends_the_old_ones(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.forget()
        other, other_server = connect()
        other.sendall(b"new")
        assert read(other_server, 3) == b"new"
        proxy.half_close()
        assert select.select([client], [], [], 0)[0] == []
        proxy.stop()
        assert client.recv(1) == b""
        assert server.recv(1) == b""

    def test_reset_reaches_what_was_forgotten(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.forget()
        proxy.forget()
        proxy.reset()
        assert is_reset(client)
        assert is_reset(server)
        assert proxy.connections == []
