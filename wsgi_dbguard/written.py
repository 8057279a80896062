"""How many bytes were written to a TCP socket, as the kernel counts them: whoever wrote them, and however.

A driver tells what it was asked to do, an event what SQLAlchemy did. The kernel is passed by nobody: not by a cursor on
a raw connection, a ping of the driver's own, or another process that shares the socket; nor by TLS or compression. Two
counts that are equal prove that nothing was sent in between.

The count is what was sent (`tcpi_bytes_sent`, Linux 4.19 and later, what was sent again included) and what still waits
to be (`tcpi_notsent_bytes`): it never falls, and grows with each byte that is written.

Example::

    count = counter(fd)
    if count is not None:
        before = count()
        cursor.execute("select 1")
        assert count() > before
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from . import libc

__all__ = ["counter"]

# Of Linux: <linux/tcp.h>, <asm-generic/socket.h>
_SOL_SOCKET, _SO_PROTOCOL = 1, 38
_IPPROTO_TCP, _TCP_INFO = 6, 11
_INT = struct.Struct("=i")
_COUNTS = struct.Struct("=144xI52xQ")  # of struct tcp_info


def counter(fd: int) -> Callable[[], int | None] | None:
    """What counts the bytes that were written to the socket `fd`; None where they are not counted.

    So it is with a Unix socket, with what only looks like TCP (MPTCP has several connections), and on other systems.
    The counter takes one system call, and answers None when `fd` was closed. It is for one thread at a time.
    """
    # The system's own, for any descriptor: a socket object would close it, or hold a duplicate of it.
    getsockopt = libc.function("getsockopt")
    if getsockopt is None:
        return None
    import ctypes

    getsockopt.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    value, length = ctypes.create_string_buffer(_COUNTS.size), ctypes.c_uint32(_INT.size)
    into, size = ctypes.byref(value), ctypes.byref(length)  # which keep what they point to
    if getsockopt(fd, _SOL_SOCKET, _SO_PROTOCOL, into, size) or _INT.unpack_from(value) != (_IPPROTO_TCP,):
        return None
    length.value = _COUNTS.size
    if getsockopt(fd, _IPPROTO_TCP, _TCP_INFO, into, size) or length.value != _COUNTS.size:  # of an older kernel
        return None

    def count() -> int | None:
        if getsockopt(fd, _IPPROTO_TCP, _TCP_INFO, into, size):
            return None
        waiting, sent = _COUNTS.unpack_from(value)
        return int(waiting + sent)

    return count
