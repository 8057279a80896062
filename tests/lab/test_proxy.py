from __future__ import annotations

import errno
import gc
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.lab.wire import TIMEOUT, abort, fill, is_reset, read

Pair = tuple[socket.socket, socket.socket]
Connect = Callable[[], Pair]


class TestRefuse:
    def test_new_connections_are_refused_and_existing_ones_go_on(
        self, proxy: FaultProxy, connect: Connect, dial: Callable[[], socket.socket]
    ) -> None:
        client, server = connect()
        port = proxy.port
        proxy.refuse()
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                dial()
        client.sendall(b"x")
        assert read(server, 1) == b"x"
        proxy.up()
        assert proxy.port == port
        connect()
        assert proxy.accepted == 2

    def test_a_connection_made_before_is_not_lost(
        self,
        proxy: FaultProxy,
        dial: Callable[[], socket.socket],
        answer: Callable[[], socket.socket],
    ) -> None:
        for _ in range(20):
            client = dial()
            proxy.refuse()
            client.sendall(b"x")
            assert read(answer(), 1) == b"x"
            proxy.up()

    def test_the_port_is_nobody_elses_meanwhile(self, proxy: FaultProxy) -> None:
        proxy.refuse()
        with socket.socket() as thief, pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            thief.bind((proxy.host, proxy.port))


class TestRedirect:
    def test_new_connections_go_to_the_other_server_and_existing_ones_go_on(
        self, proxy: FaultProxy, connect: Connect, dial: Callable[[], socket.socket]
    ) -> None:
        client, server = connect()
        with socket.create_server(("127.0.0.1", 0)) as other:
            other.settimeout(TIMEOUT)
            proxy.redirect(*other.getsockname())
            assert f"-> 127.0.0.1:{other.getsockname()[1]}" in repr(proxy)
            later = dial()
            with other.accept()[0] as there:
                there.settimeout(TIMEOUT)
                later.sendall(b"x")
                assert read(there, 1) == b"x"
                client.sendall(b"y")
                assert read(server, 1) == b"y"


class TestEnds:
    def test_reset_sends_rst_to_both_sides_of_every_connection(self, proxy: FaultProxy, connect: Connect) -> None:
        pairs = [connect() for _ in range(3)]
        proxy.reset()
        for client, server in pairs:
            assert is_reset(client)
            assert is_reset(server)
        assert proxy.connections == []
        assert {c.ended for c in proxy.history} == {"reset"}
        client, server = connect()
        client.sendall(b"x")
        assert read(server, 1) == b"x"

    def test_reset_reaches_a_connection_that_was_only_just_made(
        self, proxy: FaultProxy, dial: Callable[[], socket.socket]
    ) -> None:
        for _ in range(20):
            client = dial()
            proxy.reset()
            assert is_reset(client)

    def test_fin_closes_both_sides_in_order_after_what_was_sent(self, proxy: FaultProxy, connect: Connect) -> None:
        for _ in range(20):
            client, server = connect()
            client.sendall(b"request")
            server.sendall(b"response")
            proxy.fin()
            assert read(client, 8) == b"response"
            assert client.recv(1) == b""
            assert read(server, 7) == b"request"
            assert server.recv(1) == b""
        assert proxy.connections == []

    def test_fin_sends_delayed_bytes_first(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        proxy.delay(3600.0)
        server.sendall(b"response")
        proxy.fin()
        assert read(client, 8) == b"response"
        assert client.recv(1) == b""

    def test_writing_after_fin_is_answered_with_rst(self, proxy: FaultProxy, connect: Connect) -> None:
        client, _ = connect()
        proxy.fin()
        client.sendall(b"x")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(b"y")

    def test_half_close_ends_the_answers_only(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        server.sendall(b"before")
        proxy.half_close()
        assert read(client, 6) == b"before"
        assert client.recv(1) == b""
        client.sendall(b"still sent")
        assert read(server, 10) == b"still sent"
        server.sendall(bytes(4 << 20))  # read and thrown away, or the server would be stuck
        wait_until(lambda: proxy.connections[0].server_bytes == (4 << 20) + 6, timeout=TIMEOUT, what="the proxy")
        assert proxy.connections[0].forwarded == (10, 6)
        client.close()
        assert server.recv(1) == b""
        server.close()
        wait_until(lambda: not proxy.connections, timeout=TIMEOUT, what="the proxy")


class TestReadings:
    def test_a_byte_that_was_sent_is_counted_at_once(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        for number in range(1, 200):
            client.sendall(b"c")
            server.sendall(b"s")
            assert proxy.snapshot() == {1: (number, number)}
        assert proxy.connections[0].sent == b"c" * 199

    def test_recorded_bytes_are_kept_after_the_connection_and_the_proxy(
        self, proxy: FaultProxy, connect: Connect
    ) -> None:
        client, server = connect()
        client.sendall(b"question")
        server.sendall(b"answer")
        proxy.reset()
        proxy.stop()
        [connection] = proxy.history
        assert (connection.sent, connection.received) == (b"question", b"answer")
        assert connection.closed is not None
        assert connection.opened <= connection.closed
        assert proxy.snapshot() == {1: (8, 6)}
        assert proxy.accepted == 1

    def test_bytes_cannot_be_asked_for_when_they_were_not_recorded(self, upstream: socket.socket) -> None:
        with (
            FaultProxy(*upstream.getsockname()) as proxy,
            socket.create_connection((proxy.host, proxy.port)),
            pytest.raises(RuntimeError, match="record=True"),
        ):
            _ = proxy.connections[0].sent

    def test_repr_tells_the_state(self, upstream: socket.socket) -> None:
        proxy = FaultProxy(*upstream.getsockname())
        assert "new" in repr(proxy)
        with proxy:
            assert f"127.0.0.1:{proxy.port} -> 127.0.0.1:{upstream.getsockname()[1]} up, 0 of 0" in repr(proxy)
            proxy.refuse()
            assert "refusing" in repr(proxy)
            proxy.blackhole()
            proxy.delay(0.001)
            proxy.drop_after(7)
            assert "blackhole, delay 1 ms, drop after 7 B from the client" in repr(proxy)
            proxy.up()
            assert " up, 0 of 0" in repr(proxy)
        assert "stopped" in repr(proxy)


class TestLife:
    def test_stop_closes_everything_and_may_be_repeated(
        self, proxy: FaultProxy, connect: Connect, dial: Callable[[], socket.socket]
    ) -> None:
        client, server = connect()
        proxy.stop()
        proxy.stop()
        assert client.recv(1) == b""
        assert server.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            dial()
        with pytest.raises(RuntimeError, match="not running"):
            proxy.up()
        with pytest.raises(RuntimeError, match="already"):
            proxy.start()

    def test_a_proxy_that_never_ran_has_nothing_to_control(self) -> None:
        proxy = FaultProxy("127.0.0.1", 1)
        with pytest.raises(RuntimeError, match="not running"):
            proxy.reset()
        proxy.stop()
        assert proxy.snapshot() == {}

    def test_no_descriptor_is_left_whatever_way_connections_end(self, upstream: socket.socket) -> None:
        gc.collect()  # what other tests have left is not to be closed meanwhile
        before = os.listdir("/proc/self/fd")
        with FaultProxy(*upstream.getsockname()) as proxy:
            running = os.listdir("/proc/self/fd")

            def pair() -> Pair:
                return socket.create_connection((proxy.host, proxy.port)), upstream.accept()[0]

            for end in (proxy.reset, proxy.fin, proxy.half_close, lambda: proxy.drop_after(0), proxy.blackhole):
                for close in (socket.socket.close, abort):
                    for client, server in [pair() for _ in range(5)]:
                        end()
                        with suppress(ConnectionError):
                            client.sendall(b"x")
                        close(client)
                        close(server)
                        proxy.up()
            wait_until(lambda: not proxy.connections, timeout=TIMEOUT, what="the proxy")
            assert len(os.listdir("/proc/self/fd")) == len(running)
            assert proxy.accepted == 50
        assert len(os.listdir("/proc/self/fd")) == len(before)

    def test_it_does_not_spin_in_any_state(self, proxy: FaultProxy, connect: Connect) -> None:
        pairs = [connect() for _ in range(6)]
        pairs[0][0].shutdown(socket.SHUT_WR)
        pairs[1][1].shutdown(socket.SHUT_WR)
        sent = 0
        while proxy.snapshot()[3][0] == sent:  # until it does not read on: FIN will come both ways, and behind data
            sent += pairs[2][0].send(bytes(65536))
        pairs[2][1].shutdown(socket.SHUT_WR)
        proxy.snapshot()
        pairs[2][0].close()
        fill(pairs[3][0])
        abort(pairs[3][0])
        proxy.blackhole()
        for sock in pairs[4]:
            sock.shutdown(socket.SHUT_WR)
        abort(pairs[5][0])
        [thread] = [t for t in threading.enumerate() if t.name == f"FaultProxy:{proxy.port}"]
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        proxy.snapshot()
        begun = time.clock_gettime(clock)
        time.sleep(0.3)
        assert time.clock_gettime(clock) - begun < 0.05

    def test_changes_from_many_threads_lose_no_byte(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        payload = os.urandom(4 << 20)
        done = threading.Event()

        def disturb() -> None:
            while not done.is_set():
                proxy.blackhole()
                proxy.up()
                proxy.delay(0.001)
                proxy.refuse()
                proxy.snapshot()
                proxy.up()

        threads = [threading.Thread(target=disturb) for _ in range(4)]
        threads.append(threading.Thread(target=client.sendall, args=(payload,)))
        for thread in threads:
            thread.start()
        try:
            assert read(server, len(payload)) == payload
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert proxy.snapshot() == {1: (len(payload), 0)}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
class TestFork:
    def test_a_living_child_keeps_no_connection_and_no_port_open(
        self, proxy: FaultProxy, connect: Connect, dial: Callable[[], socket.socket]
    ) -> None:
        client, server = connect()
        wait_here, let_go = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(let_go)
                os.read(wait_here, 1)
            finally:
                os._exit(0)
        try:
            os.close(wait_here)
            client.sendall(b"the parent's go on")
            assert read(server, 18) == b"the parent's go on"
            proxy.reset()
            assert is_reset(client)
            assert is_reset(server)
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                dial()
            proxy.up()
            connect()
        finally:
            os.close(let_go)
            os.waitpid(child, 0)

    def test_a_byte_a_child_sends_is_the_only_one_counted(self, proxy: FaultProxy, connect: Connect) -> None:
        client, server = connect()
        client.sendall(b"parent")
        before = proxy.snapshot()
        for sends in (False, True):
            child = os.fork()
            if child == 0:
                try:
                    if sends:
                        client.send(b"!")
                    client.close()
                    proxy.stop()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            assert (proxy.snapshot() == before) is not sends
        assert proxy.connections[0].sent == b"parent!"
        assert read(server, 7) == b"parent!"

    def test_forks_while_connections_come_and_go_leave_every_end_in_force(
        self, proxy: FaultProxy, connect: Connect
    ) -> None:
        wait_here, let_go = os.pipe()
        children: list[int] = []
        forked = threading.Event()

        def fork_some() -> None:
            for _ in range(20):
                child = os.fork()
                if child == 0:
                    try:
                        os.close(let_go)
                        os.read(wait_here, 1)
                    finally:
                        os._exit(0)
                children.append(child)
            forked.set()

        thread = threading.Thread(target=fork_some)
        thread.start()
        try:
            while not forked.is_set():
                client, server = connect()
                proxy.reset()
                assert is_reset(client)
                assert is_reset(server)
                client.close()
                server.close()
        finally:
            thread.join()
            os.close(let_go)
            os.close(wait_here)
            for child in children:
                os.waitpid(child, 0)
