"""A TCP proxy whose faults are switched on and off while it runs: the network between an application and its database.

Every method takes effect before it returns, and what had reached the proxy before the call is handled first, in the old
mode; so a test needs no sleep. Readings (`snapshot()`, `connections`, `ProxiedConnection.sent`, …) are exact in the
same way: a byte that had arrived when you asked is counted. In normal mode the proxy is as close to a wire as a program
can be: FIN is passed on as FIN (half-closed connections stay so), RST as RST after the bytes that came before it, and a
receiver that does not read stops the sender. It adds 10 to 20 µs each way.

Example::

    with FaultProxy("127.0.0.1", 5432, record=True) as proxy:
        engine = create_engine(f"postgresql://app@{proxy.host}:{proxy.port}/app")
        ...
        before = proxy.snapshot()
        run_child()
        assert proxy.snapshot() == before     # not one byte came from the child
        proxy.reset()                         # every pooled connection is dead now

As a blackhole it still acknowledges what it receives, so TCP keepalive and TCP_USER_TIMEOUT never fire: `forget()` is
for that, where new connections may work, and `network.SilentDrop` where they must not. Connecting is not delayed.
Linux only, for epoll, eventfd and the way a port is kept while it refuses. One thread serves all connections; a thread
of the same process that never releases the GIL slows it by up to `sys.getswitchinterval()`.

Forked children of the process (`os.fork`, not exec) close what they inherited of the proxy at once, so that a
connection ends when the proxy ends it, and not when the last child exits.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from math import inf
from typing import Any, Self, TypeVar

from .proxied import ProxiedConnection, Side
from .relay import Link, Relay, descriptors

__all__ = ["FaultProxy", "ProxiedConnection"]

T = TypeVar("T")

_ROUNDS = 32  # reads of 64 KiB: how far a call reads ahead of a sender that never pauses
_PR_SET_TIMERSLACK = 29  # linux/prctl.h: how late, in ns, the kernel may wake this thread; 50 µs by default

_running: weakref.WeakSet[FaultProxy] = weakref.WeakSet()


class FaultProxy:
    """A TCP proxy to `host`:`port` that listens on a free port of 127.0.0.1 between start() and stop().

    All methods may be called from any thread. `port` is 0 before start() and stays the same over refuse() and up().
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int, *, record: bool = False) -> None:
        self.upstream = (host, port)
        self.record = record
        self.port = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._open = False
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._listener: socket.socket | None = None
        self._history: list[ProxiedConnection] = []

    # What a test does with it

    def start(self) -> Self:
        """Listen and forward. Raises OSError when the upstream's name is unknown; a proxy starts once."""
        if self.port:
            raise RuntimeError(f"{self!r} was started already")
        family, _, _, _, address = socket.getaddrinfo(*self.upstream, type=socket.SOCK_STREAM)[0]
        with descriptors:
            # Bound but never listening: while the proxy refuses, nobody else can get the port, nor connect from it.
            self._reserved = self._socket()
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reserved.bind((self.host, 0))
            self.port = self._reserved.getsockname()[1]
            self._relay = Relay(family, address)
            self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            _running.add(self)
        self._relay.epoll.register(self._waker, select.EPOLLIN)
        self._listen()
        self._open = True
        self._thread = threading.Thread(target=self._run, name=f"FaultProxy:{self.port}", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close everything in order, as fin() does. Harmless when it is stopped already."""
        thread = self._thread
        if thread is None:
            return
        with suppress(RuntimeError):
            self._call(self._halt)
        thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def up(self) -> None:
        """Back to normal: accept, forward what was held, no delay, no pending drop_after()."""
        self._call(self._up)

    def redirect(self, host: str, port: int) -> None:
        """Lead new connections to another server, an IPv4 address, as DNS does after a failover; the others stay."""

        def act() -> None:
            self.upstream = self._relay.address = host, port

        self._call(act)

    def refuse(self) -> None:
        """Refuse new connections, as a server that is down does; those that exist go on."""
        self._call(self._unlisten)

    def reset(self) -> None:
        """End all connections with RST on both sides, at once: what the proxy still holds is lost."""
        self._call(lambda: self._end_all(self._relay.abort, "reset"))

    def fin(self) -> None:
        """End all connections with FIN on both sides, after what the proxy still holds (a blackhole's is lost).

        A sender that was stopped in the middle because nobody read gets RST after it, as from any close().
        """
        self._call(lambda: self._end_all(self._relay.finish, "fin"))

    def half_close(self) -> None:
        """Send FIN to the clients of all connections; what they send still reaches the server, its answers do not."""
        self._call(self._half_close)

    def blackhole(self) -> None:
        """Accept, but forward nothing in either direction, no FIN, no RST, no new connection either, until up().

        Up to 1 MiB is held in each direction of a connection, then the sender's buffers fill.
        """
        self._call(self._blackhole)

    def forget(self) -> None:
        """Have the network forget all connections, as a NAT or a firewall does whose table was lost.

        Their clients get no acknowledgement any more, no FIN and no RST; their servers are not told. New connections
        work. What was forgotten stays in `connections` until reset(), fin() or stop() ends it. Raises PermissionError
        without CAP_NET_ADMIN on kernels that want it for a filter on a TCP socket, as 6.18 does.
        """
        self._call(self._forget_all)

    def delay(self, seconds: float) -> None:
        """Deliver what arrives from now on `seconds` later, in each direction; 0 ends it. The order is kept."""
        if not 0 <= seconds < inf:
            raise ValueError(f"delay must be 0 s or more, not {seconds!r}")
        self._call(lambda: setattr(self._relay, "delay", seconds))

    def drop_after(self, n: int, *, direction: Side = "client") -> None:
        """Forward `n` more bytes that come from the side `direction`, then reset the connection with the next one.

        The bytes are those of all connections together. The `n` bytes are delivered before the RST, both sides get it,
        other connections go on, and then the proxy is back to normal. A second call replaces the first.
        """
        if n < 0:
            raise ValueError(f"drop_after must be 0 bytes or more, not {n!r}")
        if direction not in ("client", "server"):
            raise ValueError(f"direction must be 'client' or 'server', not {direction!r}")
        self._call(lambda: setattr(self._relay, "drop", (direction, n)))

    @property
    def connections(self) -> list[ProxiedConnection]:
        """The live connections, oldest first."""
        return self._ask(lambda: [c for c in self._history if c.closed is None])

    @property
    def history(self) -> list[ProxiedConnection]:
        """All connections that were ever accepted, oldest first."""
        return self._ask(lambda: list(self._history))

    @property
    def accepted(self) -> int:
        """How many connections were accepted."""
        return self._ask(lambda: len(self._history))

    def snapshot(self) -> dict[int, tuple[int, int]]:
        """Bytes that arrived from (client, server) so far, by connection id, closed connections too."""
        return self._ask(lambda: {c.id: (c._client.arrived, c._server.arrived) for c in self._history})

    def __repr__(self) -> str:
        state = (self._state() or ["up"]) if self._open else ["stopped" if self.port else "new"]
        live = sum(c.closed is None for c in self._history)
        state.append(f"{live} of {len(self._history)} connections open")
        host, port = self.upstream
        return f"<{type(self).__name__} {self.host}:{self.port} -> {host}:{port} {', '.join(state)}>"

    def _state(self) -> list[str]:
        """What is not normal."""
        relay = self._relay
        state = [word for word, on in (("refusing", not self._listener), ("blackhole", relay.blackholed)) if on]
        if relay.delay:
            state.append(f"delay {relay.delay * 1000:g} ms")
        if relay.drop:
            state.append(f"drop after {relay.drop[1]} B from the {relay.drop[0]}")
        return state

    def _socket(self) -> socket.socket:
        """A new socket for the listening side."""
        return socket.socket()

    # Calls into the proxy's thread

    def _call(self, act: Callable[[], T]) -> T:
        future: Future[T] = Future()
        if self._thread is None:
            raise RuntimeError(f"{self!r} is not running")
        with self._lock:
            if not self._open:
                raise RuntimeError(f"{self!r} is not running")
            self._calls.append((act, future))
            os.eventfd_write(self._waker, 1)
        return future.result()

    def _ask(self, read: Callable[[], T]) -> T:
        return self._call(read) if self._open and self._thread else read()

    def _sync(self) -> None:
        self._ask(lambda: None)

    def _run(self) -> None:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        try:
            while self._open:
                self._serve(self._relay.wait())
                while self._calls:
                    self._answer(*self._calls.popleft())
        finally:
            self._close()

    def _answer(self, act: Callable[[], Any], future: Future[Any]) -> None:
        for _ in range(_ROUNDS):
            if not self._serve(self._relay.epoll.poll(0)):
                break
        try:
            future.set_result(act())
        except Exception as error:
            future.set_exception(error)

    def _halt(self) -> None:
        self._end_all(self._relay.finish, "stop")
        self._open = False

    def _close(self) -> None:
        with self._lock:
            self._open = False
            while self._calls:
                self._calls.popleft()[1].set_exception(RuntimeError(f"{self!r} stopped"))
        self._end_all(self._relay.abort, "stop")
        self._unlisten()
        with descriptors:
            _running.discard(self)
            self._let_go()

    def _let_go(self) -> None:
        self._relay.epoll.close()
        os.close(self._waker)
        self._reserved.close()

    def _forget(self) -> None:
        """In a forked child: close the descriptors and touch nothing that the parent shares, such as its epoll set."""
        self._thread = None
        self._open = False
        self._let_go()
        for link in self._relay.links.values():
            for end in link.ends:
                end.sock.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # From here on everything runs in the proxy's thread

    def _serve(self, events: list[tuple[int, int]]) -> bool:
        """Handle `events` and what is due; whether there was anything but a call."""
        listening = False
        for fd, mask in events:
            if fd == self._waker:
                os.eventfd_read(fd)
            elif end := self._relay.ends.get(fd):
                self._relay.event(end, mask)
            elif self._listener is not None and fd == self._listener.fileno():
                listening = True
        if listening:  # last: a descriptor number that an event above set free is given away only here
            self._accept()
        self._relay.flush_due()
        return any(fd != self._waker for fd, _ in events)

    def _accept(self) -> None:
        accepted = True
        while accepted and self._listener is not None:
            about = ProxiedConnection(len(self._history) + 1, self.record, self._sync)
            self._history.append(about)
            accepted = self._relay.accept(self._listener, about)
            if not accepted:
                self._history.pop()

    def _listen(self) -> None:
        if self._listener is not None:
            return
        with descriptors:
            self._listener = self._socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setblocking(False)
        self._listener.bind((self.host, self.port))
        self._listener.listen(1024)
        self._relay.epoll.register(self._listener, select.EPOLLIN)

    def _unlisten(self) -> None:
        if self._listener is None:
            return
        self._relay.epoll.unregister(self._listener)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # in force even while a child that is being spawned holds a copy
        with descriptors:
            self._listener.close()
            self._listener = None

    def _up(self) -> None:
        relay = self._relay
        self._listen()
        relay.blackholed, relay.delay, relay.drop = False, 0.0, None
        for link in list(relay.links.values()):
            relay.dial(link)
            for end in link.ends:
                relay.flush(end)

    def _blackhole(self) -> None:
        self._listen()
        self._relay.blackholed = True

    def _half_close(self) -> None:
        for link in list(self._relay.links.values()):
            self._relay.half_close(link)

    def _forget_all(self) -> None:
        for link in list(self._relay.links.values()):
            self._relay.forget(link)

    def _end_all(self, end: Callable[[Link, str], None], why: str) -> None:
        for link in list(self._relay.links.values()):
            end(link, why)


def _in_child() -> None:
    try:
        for proxy in list(_running):
            proxy._forget()
        _running.clear()
    finally:
        descriptors.release()


os.register_at_fork(before=descriptors.acquire, after_in_parent=descriptors.release, after_in_child=_in_child)
