"""What tests do to bare sockets at the two ends of the fault proxy: read exactly, abort, fill up, look for RST.

Only for tests with sockets of their own; a driver's socket belongs to the driver.

Example::

    abort(client)
    assert read(server, 10) == b"last words"
    assert is_reset(server)
"""

from __future__ import annotations

import select
import socket
import struct

__all__ = ["TIMEOUT", "abort", "fill", "is_reset", "is_reset_after_fin", "read"]

TIMEOUT = 60.0  # seconds; only what is broken makes a test wait this long


def read(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes. Raises EOFError when the peer's FIN comes before."""
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise EOFError(f"ended after {len(data)} of {size} bytes")
        data += chunk
    return bytes(data)


def is_reset(sock: socket.socket) -> bool:
    """Whether the next thing that comes is RST; waits for it."""
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def is_reset_after_fin(sock: socket.socket) -> bool:
    """The same on a socket that got FIN before: Linux' recv() goes on to say end of file, the socket knows better."""
    watch = select.poll()
    watch.register(sock, 0)
    if watch.poll(TIMEOUT * 1000) != [(sock.fileno(), select.POLLERR | select.POLLHUP)]:
        return False
    try:
        sock.sendall(b"x")
    except BrokenPipeError:
        return True
    return False


def abort(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(sock: socket.socket) -> int:
    """Send zeros until nothing more is taken for 0.5 s; how many were."""
    sent = 0
    sock.settimeout(0.5)
    try:
        while sent < 1 << 28:
            sent += sock.send(bytes(65536))
    except TimeoutError:
        pass
    sock.settimeout(TIMEOUT)
    return sent
