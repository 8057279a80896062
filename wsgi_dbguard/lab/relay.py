"""What moves bytes, FIN and RST between the two sides of the fault proxy's connections, late, in part or not at all.

One epoll set, any number of connections, no threads: whoever owns a `Relay` calls it from one thread, as `FaultProxy`
does, which is what tests use. Nothing is ever waited for but in `wait()`: what cannot be sent yet is held, and the
sender is no longer read from once `_HELD` bytes are. FIN is passed on as FIN, RST as RST after the bytes before it.

Example, one connection without faults::

    relay = Relay(socket.AF_INET, ("127.0.0.1", 5432))
    relay.accept(listener, ProxiedConnection(1, record=False, sync=lambda: None))
    while relay.links:
        for fd, mask in relay.wait():
            if end := relay.ends.get(fd):
                relay.event(end, mask)
        relay.flush_due()
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import select
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from math import inf
from typing import Any

from .proxied import ProxiedConnection, Side

__all__ = ["End", "Link", "Relay", "descriptors"]

_CHUNK = 65536
_HELD = 1 << 20  # bytes one direction holds before the proxy stops reading from the sender
_SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes in a TCP socket's send queue that were not sent yet
_RST = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; it runs before TCP: what it drops is not acknowledged either
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # linux/filter.h: one instruction, BPF_RET|BPF_K, keep 0 bytes
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# Critical section: a descriptor is made or closed. A fork waits for its end, or the child could keep one unseen.
descriptors = threading.Lock()


class _Mark(enum.Enum):
    FIN = "FIN"
    RST = "RST"


class End:
    """One socket of a connection, and what waits to be sent to it."""

    def __init__(self, sock: socket.socket, side: Side, link: Link) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.side = side
        self.link = link
        self.flow = link.about._client if side == "client" else link.about._server  # what comes from this socket
        self.outbox: deque[tuple[float, bytes | memoryview | _Mark]] = deque()  # (when it is due, what)
        self.held = 0  # bytes in the outbox
        self.mask: int | None = None  # what epoll watches for; None: not registered
        self.ready = side == "client"  # connected
        self.reading = True  # no FIN came from it
        self.writing = True  # no FIN was sent to it
        self.blocked = False  # its send buffer is full
        self.dead = False  # it sent RST
        self.wake = inf

    @property
    def peer(self) -> End:
        return self.link.server if self.side == "client" else self.link.client


class Link:
    """The two ends of a connection."""

    def __init__(self, about: ProxiedConnection, client: socket.socket, server: socket.socket) -> None:
        self.about = about
        self.client = End(client, "client", self)
        self.server = End(server, "server", self)
        self.ends = (self.client, self.server)
        self.dialled = False
        self.ending = False  # an RST is on its way
        self.closed = False


class Relay:
    """Moves bytes, FIN and RST between the ends of all connections. Knows no threads: one thread uses it."""

    def __init__(self, family: int, address: Any) -> None:
        self.family = family
        self.address = address
        self.epoll = select.epoll()
        self.blackholed = False
        self.delay = 0.0
        self.drop: tuple[Side, int] | None = None
        self.links: dict[int, Link] = {}
        self.ends: dict[int, End] = {}
        self.timed: set[End] = set()

    def wait(self) -> list[tuple[int, int]]:
        """The next events; none when a delayed byte is due first."""
        if not self.timed:
            return self.epoll.poll()
        left = min(end.wake for end in self.timed) - time.monotonic()
        if left > 0:  # epoll_wait counts in milliseconds, select in microseconds
            select.select([self.epoll], [], [], left)
        return self.epoll.poll(0)

    def flush_due(self) -> None:
        now = time.monotonic()
        for end in [end for end in self.timed if end.wake <= now]:
            self.flush(end)

    def accept(self, listener: socket.socket, about: ProxiedConnection) -> bool:
        """Accept one connection; False when there is none, or no descriptor for it."""
        try:
            with descriptors:
                client, _ = listener.accept()
                try:
                    link = Link(about, client, socket.socket(self.family))
                except OSError:
                    client.close()
                    raise
                self.links[about.id] = link
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _FULL:  # the listener stays readable: do not spin until a descriptor is free
                time.sleep(0.01)
            return False
        for end in link.ends:
            end.sock.setblocking(False)
            end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._register(link.client, select.EPOLLIN)
        if not self.blackholed:
            self.dial(link)
        return True

    def dial(self, link: Link) -> None:
        if link.dialled:
            return
        link.dialled = True
        error = link.server.sock.connect_ex(self.address)
        if error not in (0, errno.EINPROGRESS):
            self.abort(link, "upstream unreachable")
            return
        self._register(link.server, select.EPOLLOUT)

    def event(self, end: End, mask: int) -> None:
        if not end.ready:
            error = end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            end.ready = error in (0, errno.ECONNRESET, errno.EPIPE)  # a refused connection is ECONNREFUSED
            if not end.ready:
                self.abort(end.link, "upstream unreachable")
            elif error:
                self._got_reset(end)
            else:
                self.flush(end)
            return
        if mask & select.EPOLLOUT:
            end.blocked = False
            self.flush(end)
        if mask & select.EPOLLIN and end.reading:
            self._read(end)
        elif mask & (select.EPOLLHUP | select.EPOLLERR):
            self._hung_up(end)

    def _read(self, end: End) -> bool:
        """Read once; whether there was anything."""
        if end.link.closed:
            return False
        try:
            data = end.sock.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            end.reading = False
            self._got_reset(end)
            return False
        if not data:
            end.reading = False
            if not end.dead:
                self._put(end.peer, _Mark.FIN)
            return False
        end.flow.arrived += len(data)
        if end.flow.data is not None:
            end.flow.data += data
        self._put(end.peer, data)
        return True

    def _hung_up(self, end: End) -> None:
        # Comes when reading is paused or over: after RST, or when FIN went both ways (then for ever, so stop watching).
        if end.link.closed:
            return
        if end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._got_reset(end)
            return
        while end.reading and self._read(end):
            pass
        if not end.reading:
            self._watch(end, None)

    def _got_reset(self, end: End) -> None:
        if end.dead or end.link.closed:
            return
        end.dead = end.link.ending = True
        end.link.about.ended = end.link.about.ended or f"{end.side} reset"
        end.outbox.clear()
        end.held = 0
        while end.reading and self._read(end):  # what came before the RST is still in the kernel's buffer
            pass
        end.reading = False
        self._watch(end, None)
        if end.peer.dead:
            self.abort(end.link, "")
        else:
            self._put(end.peer, _Mark.RST)

    def _put(self, end: End, item: bytes | _Mark) -> None:
        if end.dead or end.link.closed:
            return
        due = time.monotonic() + self.delay if self.delay else 0.0
        end.outbox.append((due, item))
        if isinstance(item, bytes):
            end.held += len(item)
        self.flush(end)

    def flush(self, end: End) -> None:
        """Send what is due to `end`, then watch for what its connection waits for next."""
        link = end.link
        end.wake = inf
        while end.outbox and end.ready and not (end.blocked or self.blackholed or link.closed):
            due, item = end.outbox[0]
            now = time.monotonic()
            if due > now:
                end.wake = due
                break
            if item is _Mark.FIN:
                end.outbox.popleft()
                self._shut(end)
            elif item is _Mark.RST:
                # close() with SO_LINGER throws away what the kernel has not sent yet: look again in a millisecond.
                if struct.unpack("i", fcntl.ioctl(end.sock, _SIOCOUTQNSD, bytes(4)))[0]:
                    end.wake = now + 0.001
                    break
                self.abort(link, "")
            elif isinstance(item, (bytes, memoryview)):
                self._send(end, item)
        if link.closed:
            return
        (self.timed.discard if end.wake == inf else self.timed.add)(end)
        if not any(e.reading or e.writing or e.outbox for e in link.ends):
            self._close(link, "closed")
            return
        for e in link.ends:
            reads = e.reading and e.peer.held < _HELD
            self._watch(e, select.EPOLLIN * reads | select.EPOLLOUT * (e.blocked or not e.ready))

    def _send(self, end: End, item: bytes | memoryview) -> None:
        quota = len(item)
        if self.drop is not None and self.drop[0] == end.peer.side:
            quota = self.drop[1]
        if not end.writing:
            sent = len(item)  # half_close(): nobody to send it to
        elif not quota:
            self._drop(end)
            return
        else:
            try:
                sent = end.sock.send(item[:quota])
            except BlockingIOError:
                end.blocked = True
                return
            except OSError:
                self._got_reset(end)
                return
            end.peer.flow.forwarded += sent
            if self.drop is not None and self.drop[0] == end.peer.side:
                self.drop = (self.drop[0], self.drop[1] - sent)
        end.held -= sent
        due, _ = end.outbox.popleft()
        if sent < len(item):
            end.outbox.appendleft((due, memoryview(item)[sent:]))

    def _drop(self, end: End) -> None:
        self.drop = None
        end.link.ending = True
        end.link.about.ended = "drop_after"
        for e in end.link.ends:
            e.reading = False
            e.outbox.clear()
            e.held = 0
        end.outbox.append((0.0, _Mark.RST))

    def _expedite(self, end: End) -> None:
        """Send what is held for `end` whatever its delay; lose what cannot be sent now."""
        end.outbox = deque((0.0, item) for _, item in end.outbox)
        self.flush(end)
        end.outbox.clear()
        end.held = 0

    def half_close(self, link: Link) -> None:
        if link.ending:
            return
        self._expedite(link.client)
        if not link.closed:
            self._shut(link.client)
            self.flush(link.client)

    def forget(self, link: Link) -> None:
        """Leave a connection to itself; what its client sends is thrown away by the kernel before TCP sees it."""
        if link.ending:
            return
        instructions = ctypes.create_string_buffer(_DROP_ALL)
        program = struct.pack("HP", 1, ctypes.addressof(instructions))  # struct sock_fprog
        link.client.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        link.ending = link.dialled = True
        link.about.ended = "forget"
        for end in link.ends:
            self._watch(end, None)
            self.timed.discard(end)
            end.outbox.clear()
            end.held = 0

    def _shut(self, end: End) -> None:
        end.writing = False
        with suppress(OSError):
            end.sock.shutdown(socket.SHUT_WR)

    def finish(self, link: Link, why: str) -> None:
        """End a connection with FIN on both sides."""
        for end in link.ends:
            self._expedite(end)
        for end in link.ends:
            self._shut(end)
        self._close(link, why)

    def abort(self, link: Link, why: str) -> None:
        """End a connection with RST on both sides."""
        if link.closed:
            return
        for end in link.ends:
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        self._close(link, why)

    def _close(self, link: Link, why: str) -> None:
        if link.closed:
            return
        link.closed = True
        link.about.ended = link.about.ended or why
        link.about.closed = time.monotonic()
        for end in link.ends:
            self._watch(end, None)
            self.timed.discard(end)
        with descriptors:
            del self.links[link.about.id]
            for end in link.ends:
                end.sock.close()

    def _register(self, end: End, mask: int) -> None:
        self.ends[end.fd] = end
        end.mask = mask
        self.epoll.register(end.fd, mask)

    def _watch(self, end: End, mask: int | None) -> None:
        """Watch `end` for `mask`, RST always (a mask of 0); None ends it, before close(): a child may hold a copy."""
        if end.mask is None or end.mask == mask:
            return
        end.mask = mask
        if mask is None:
            self.epoll.unregister(end.fd)
            del self.ends[end.fd]
        else:
            self.epoll.modify(end.fd, mask)
