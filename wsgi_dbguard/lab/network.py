"""A network that forgets: a fault proxy behind a link of its own, on which packets can vanish without a word.

A firewall or NAT that drops a connection sends neither FIN nor RST, and nobody acknowledges what is sent. Here the
listening side of a `FaultProxy` is in a network namespace, at the far end of a veth pair, so that TCP keepalive,
TCP_USER_TIMEOUT, retransmissions and connects that hang are the kernel's own and real. All other faults of `FaultProxy`
are there as well.

Needs root on Linux and `ip` (Debian: iproute2); `available()` says what is missing. The addresses are of 198.18.0.0/15,
which is for tests of networks (RFC 2544), and lead into the namespace for as long as it is there.

Example::

    with PostgreSQL() as database, SilentDrop(database.host, database.port) as link:
        engine = create_engine(database.url_through(link.host, link.port))
        with engine.connect():
            pass
        link.drop()                        # what the engine sends now is lost, and it is told nothing
        link.heal()                        # retransmissions get through again

A middlebox that lost its table and answers with RST: `link.drop()`, `link.reset()`, `link.heal()`; the client's next
packet is for a connection that is not there. One that says nothing: `link.forget()`.
"""

from __future__ import annotations

import ctypes
import functools
import ipaddress
import itertools
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from .process import gone, wait_until
from .provision import ServerMissing, program
from .proxy import FaultProxy

__all__ = ["SilentDrop", "available"]

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NETWORK = ipaddress.ip_network("198.18.0.0/15")
# Hardware addresses, locally administered: of our end, of the far end, and of no end. A frame to that one reaches the
# other end of the pair, whose kernel takes it for somebody else's and drops it. Taking the link down would be less
# silent: routes vanish, and the sender's TCP hears that the host is unreachable instead of nothing.
_NEAR, _FAR, _NOBODY = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
_numbers = itertools.count(1)
_PATIENCE = 10.0  # seconds for the kernel, on a busy machine
# States of proc_pid_net(5) in which a socket still believes in its connection: ESTABLISHED, FIN_WAIT1, FIN_WAIT2,
# CLOSE_WAIT, LAST_ACK, CLOSING.
_CONNECTED = frozenset({"01", "04", "05", "08", "09", "0B"})


@functools.cache
def available() -> str | None:
    """Why there can be no `SilentDrop` here, or None: a link was made in a namespace that is gone again."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    try:
        program("ip", package="iproute2")
    except ServerMissing as missing:
        return str(missing)
    try:
        namespace = _make_namespace()
    except OSError as error:
        return f"no network namespace can be made: {error}"
    try:
        _inside(namespace, lambda: _ip("link add name a type veth peer name b"))
    except OSError as error:
        return f"no veth pair can be made: {error}"
    finally:
        os.close(namespace)
    return None


class SilentDrop(FaultProxy):
    """A FaultProxy to `host`:`port` that listens in a network of its own between start() and stop().

    Its `host`, known after start(), is an address that every process on this machine can connect to. start() raises
    RuntimeError where `available()` has something to say.
    """

    def __init__(self, host: str, port: int, *, record: bool = False) -> None:
        super().__init__(host, port, record=record)
        self.dropping = False
        # IFNAMSIZ leaves 15 bytes. The pid tells others when nobody needs it any more.
        self._interface = f"dbg{os.getpid()}-{next(_numbers)}"
        self._near = ""
        # Nothing else keeps the namespace: when this is closed, be it by the death of the process, it and its link go.
        self._namespace: int | None = None

    def start(self) -> Self:
        if self.port:
            return super().start()  # which refuses
        if reason := available():
            raise RuntimeError(reason)
        try:
            self._connect()
            return super().start()
        except BaseException:
            self._disconnect()
            raise

    def stop(self) -> None:
        """Heal the link, end all connections with RST, which no lost packet delays, and remove the link."""
        with suppress(RuntimeError):
            self.heal()
            clients = self._call(self._clients)
            self.reset()
            # An RST that follows lost bytes is asked back for (RFC 5961, 3.2), so the link is needed a while longer.
            with suppress(TimeoutError):
                wait_until(lambda: not clients & self._connected(), timeout=_PATIENCE, what="the end of all clients")
        super().stop()
        self._disconnect()

    def up(self) -> None:
        """Back to normal, the link too."""
        self.heal()
        super().up()

    def drop(self) -> None:
        """From now on every packet vanishes, in both directions, those of new connections too, until heal()."""
        self._call(lambda: self._address(_NOBODY, _NOBODY))
        self.dropping = True

    def heal(self) -> None:
        """Let packets through again. TCP sends again what was lost when its timers say so: that can take as long again
        as the drop took."""
        self._call(lambda: self._address(_NEAR, _FAR))
        self.dropping = False

    def _state(self) -> list[str]:
        return ["dropping"] * self.dropping + super()._state()

    def _socket(self) -> socket.socket:
        assert self._namespace is not None
        return _inside(self._namespace, socket.socket)  # stays there, whoever uses it

    def _forget(self) -> None:
        super()._forget()
        if self._namespace is not None:
            os.close(self._namespace)
            self._namespace = None

    def _clients(self) -> set[int]:
        """The ports from which clients are connected."""
        found = set()
        for link in self._relay.links.values():
            with suppress(OSError):  # it has just gone
                found.add(link.client.sock.getpeername()[1])
        return found

    def _connected(self) -> set[int]:
        """Those whose sockets, on this side of the link, have not heard of an end."""
        there = f"{int.from_bytes(socket.inet_aton(self.host), sys.byteorder):08X}:{self.port:04X}"
        sockets = [line.split()[1:4] for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
        return {int(near[-4:], 16) for near, far, state in sockets if far == there and state in _CONNECTED}

    # The link

    def _connect(self) -> None:
        _sweep()
        self._namespace = _make_namespace()
        peer = f"name {self._interface} address {_NEAR} netns {os.getpid()}"
        self._inside(f"link add name far address {_FAR} type veth peer {peer}")
        # Two addresses that are nobody else's, since the interface's index is nobody else's.
        index = socket.if_nametoindex(self._interface) % (_NETWORK.num_addresses // 2)
        self._near, self.host = str(_NETWORK[2 * index]), str(_NETWORK[2 * index + 1])
        self._inside(f"address add {self.host}/31 dev far", "link set far up")
        _ip(f"address add {self._near}/31 dev {self._interface}", f"link set {self._interface} up")
        self._address(_NEAR, _FAR)
        # Until then packets are lost. A lost SYN-ACK costs a second, and who gets it twice then asks nothing back for
        # half a second (tcp_invalid_ratelimit of ip-sysctl), so that an RST after lost bytes would be lost as well.
        wait_until(self._carries, timeout=_PATIENCE, what=f"{self._interface} to carry packets")

    def _carries(self) -> bool:
        """Whether the kernel has found time to put both ends into service: the queue of one that is not drops all."""
        return "qdisc noop " not in self._inside("link show far") + _ip(f"link show {self._interface}")

    def _address(self, near: str, far: str) -> None:
        """Address frames so. Permanent entries: there is no ARP, which would find out and report it."""
        self._inside(f"neighbour replace {self._near} lladdr {near} dev far nud permanent")
        _ip(f"neighbour replace {self.host} lladdr {far} dev {self._interface} nud permanent")

    def _inside(self, *commands: str) -> str:
        assert self._namespace is not None
        return _inside(self._namespace, lambda: _ip(*commands))

    def _disconnect(self) -> None:
        namespace, self._namespace = self._namespace, None
        if namespace is not None:
            with suppress(OSError):
                _ip(f"link delete {self._interface}")  # at once; a namespace is removed when the kernel finds time
            os.close(namespace)


def _ip(*commands: str) -> str:
    """What ip(8) prints, run in the network of the calling thread. Raises OSError with its words."""
    done = subprocess.run(
        [program("ip", package="iproute2"), "-batch", "-"], input="\n".join(commands), capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(done.stderr.strip())
    return done.stdout


def _in_thread(act: Callable[[], T]) -> T:
    """Call `act` in a thread of its own: unshare(2) and setns(2) move the calling thread only, which then ends."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(act())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name="SilentDrop")
    thread.start()
    thread.join()
    return result.result()


def _libc(function: str, *args: int) -> None:
    """os.unshare() and os.setns() of Python 3.12."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*args):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _make_namespace() -> int:
    """A descriptor of a new network namespace, which lives as long as it is open."""

    def make() -> int:
        _libc("unshare", _CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    return _in_thread(make)


def _inside(namespace: int, act: Callable[[], T]) -> T:
    def enter_and_act() -> T:
        _libc("setns", namespace, _CLONE_NEWNET)
        return act()

    return _in_thread(enter_and_act)


def _sweep() -> None:
    """Remove the links of owners that are gone: a TCP connection with unsent bytes keeps one for some minutes."""
    for _, name in socket.if_nameindex():
        match = re.fullmatch(r"dbg(\d+)-\d+", name)
        if match and gone(int(match[1])):
            with suppress(OSError):
                _ip(f"link delete {name}")
