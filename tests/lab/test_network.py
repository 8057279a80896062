from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from wsgi_dbguard.lab import network
from wsgi_dbguard.lab.network import SilentDrop, available
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.wire import TIMEOUT, is_reset, read

reason = available()
needs_network = pytest.mark.skipif(reason is not None, reason=str(reason))

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def link(upstream: socket.socket) -> Iterator[SilentDrop]:
    with SilentDrop(*upstream.getsockname(), record=True) as running:
        yield running


@pytest.fixture
def pair(link: SilentDrop, upstream: socket.socket) -> Iterator[Pair]:
    """Both ends of a connection over the link: (client, server)."""
    with socket.create_connection((link.host, link.port), timeout=TIMEOUT) as client, upstream.accept()[0] as server:
        server.settimeout(TIMEOUT)
        yield client, server


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def ours() -> set[str]:
    return {name for name in interfaces() if name.startswith(f"dbg{os.getpid()}-")}


@needs_network
def test_dropped_bytes_are_lost_unacknowledged_and_come_again_after_healing(link: SilentDrop, pair: Pair) -> None:
    client, server = pair
    client.sendall(b"before")
    assert read(server, 6) == b"before"
    link.drop()
    assert "dropping" in repr(link)
    client.sendall(b"question")
    server.sendall(b"answer")
    assert select.select(pair, [], [], 0.5)[0] == []
    assert link.snapshot() == {1: (6, 6)}  # the server's answer is on the proxy's side of the link
    link.heal()
    assert "dropping" not in repr(link)
    assert read(server, 8) == b"question"
    assert read(client, 6) == b"answer"


@needs_network
def test_new_connections_hang_while_dropped(link: SilentDrop) -> None:
    link.drop()
    with socket.socket() as client:
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.connect((link.host, link.port))
    assert link.accepted == 0


@needs_network
@pytest.mark.slow
def test_keepalive_finds_the_link_dead(link: SilentDrop, pair: Pair) -> None:
    client, _ = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)):
        client.setsockopt(socket.IPPROTO_TCP, option, value)
    link.drop()
    with pytest.raises(OSError, match=os.strerror(errno.ETIMEDOUT)) as caught:
        client.recv(1)
    assert caught.value.errno == errno.ETIMEDOUT  # not the TimeoutError of settimeout()


@needs_network
@pytest.mark.slow
def test_user_timeout_ends_a_wait_for_an_acknowledgement(link: SilentDrop, pair: Pair) -> None:
    client, _ = pair
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
    link.drop()
    client.sendall(b"x")
    with pytest.raises(OSError, match=os.strerror(errno.ETIMEDOUT)) as caught:
        client.recv(1)
    assert caught.value.errno == errno.ETIMEDOUT


@needs_network
def test_what_was_reset_behind_a_dropped_link_answers_rst_to_the_next_packet(link: SilentDrop, pair: Pair) -> None:
    client, _ = pair
    link.drop()
    link.reset()
    link.heal()
    assert select.select([client], [], [], 0.2)[0] == []  # nothing tells it until it asks
    client.sendall(b"x")
    assert is_reset(client)


@needs_network
def test_faults_of_the_proxy_work_over_the_link_and_up_ends_all(link: SilentDrop, pair: Pair) -> None:
    client, server = pair
    link.blackhole()
    client.sendall(b"held")
    assert link.snapshot() == {1: (4, 0)}
    link.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((link.host, link.port), timeout=TIMEOUT)
    link.drop()
    link.up()
    assert not link.dropping
    assert read(server, 4) == b"held"
    socket.create_connection((link.host, link.port), timeout=TIMEOUT).close()


@needs_network
def test_two_links_do_not_disturb_each_other(link: SilentDrop, upstream: socket.socket) -> None:
    with SilentDrop(*upstream.getsockname()) as other:
        assert other.host != link.host
        link.drop()
        socket.create_connection((other.host, other.port), timeout=TIMEOUT).close()
        upstream.accept()[0].close()


@needs_network
def test_stop_ends_connections_also_of_a_dropped_link_and_leaves_nothing(upstream: socket.socket) -> None:
    gc.collect()  # what other tests have left is not to be closed meanwhile
    before, others = os.listdir("/proc/self/fd"), ours()
    link = SilentDrop(*upstream.getsockname())
    with link:
        assert len(ours() - others) == 1
        client = socket.create_connection((link.host, link.port), timeout=TIMEOUT)
        server = upstream.accept()[0]
        link.drop()
        server.sendall(b"lost")
        link.snapshot()
    with client, server:
        assert is_reset(client)
    link.stop()
    assert ours() == others
    assert len(os.listdir("/proc/self/fd")) == len(before)
    with pytest.raises(RuntimeError, match="already"):
        link.start()


@needs_network
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_neither_removes_nor_keeps_the_link(link: SilentDrop, upstream: socket.socket) -> None:
    wait_here, let_go = os.pipe()
    before = ours()
    child = os.fork()
    if child == 0:
        try:
            os.close(let_go)
            link.stop()
            os.read(wait_here, 1)
        finally:
            os._exit(0)
    try:
        os.close(wait_here)
        socket.create_connection((link.host, link.port), timeout=TIMEOUT).close()
        upstream.accept()[0].close()
        link.stop()
        assert len(before - ours()) == 1
    finally:
        os.close(let_go)
        os.waitpid(child, 0)


OWNER = """
import socket, time
from wsgi_dbguard.lab.network import SilentDrop
with socket.create_server(("127.0.0.1", 0)) as upstream:
    with SilentDrop(*upstream.getsockname()) as link:
        client = socket.create_connection((link.host, link.port))
        upstream.accept()[0].sendall(b"x")
        link.drop()
        client.sendall(b"unacknowledged")
        print([name for _, name in socket.if_nameindex() if name.startswith("dbg")][-1], flush=True)
        time.sleep(600)
"""


@needs_network
def test_link_of_an_owner_that_was_killed_is_gone_when_the_next_one_is_made(upstream: socket.socket) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            name = owner.stdout.readline().strip()
            assert name in interfaces()
            owner.send_signal(signal.SIGKILL)
            owner.wait(60)
        finally:
            owner.kill()
    with SilentDrop(*upstream.getsockname()):
        wait_until(lambda: name not in interfaces(), timeout=60, what="the end of its link")


@needs_network
@pytest.mark.slow
def test_a_pooled_connection_over_a_dropped_link_fails_only_when_tcp_gives_up() -> None:
    with PostgreSQL() as database, SilentDrop(database.host, database.port) as link:
        url = database.url_through(link.host, link.port, "psycopg2", tcp_user_timeout="1000")
        engine = create_engine(url, pool_size=1)
        with engine.connect() as connection:
            assert connection.scalar(text("select 1")) == 1
        link.drop()
        with pytest.raises(OperationalError, match="timed out"), engine.connect() as connection:
            connection.scalar(text("select 1"))
        link.heal()
        with engine.connect() as connection:
            assert connection.scalar(text("select 1")) == 1
        engine.dispose()


def test_without_rights_it_says_why(monkeypatch: pytest.MonkeyPatch, upstream: socket.socket) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    available.cache_clear()
    try:
        assert available() == "a network namespace needs root"
        link = SilentDrop(*upstream.getsockname())
        with pytest.raises(RuntimeError, match="needs root"):
            link.start()
    finally:
        available.cache_clear()


def test_without_ip_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda *args, **kwargs: None)
    available.cache_clear()
    try:
        assert network.available() == "no ip: apt-get install iproute2"
    finally:
        available.cache_clear()
