"""Which processes hold the client's end of a database connection?

A connection that two processes hold is shared, whether or not somebody has used it yet; one that nobody holds any more
is left over in the server. Neither can be told from inside the processes. Linux only: it reads /proc, which shows the
descriptors of one's own processes, or to root those of all.

Example::

    ends = database.query("select pid, client_port from pg_stat_activity where client_port > 0")
    pids = [server.child.pid, *descendants(server.child.pid)]
    held = holders((port for _, port in ends), pids, to=database.port)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["holders"]


def holders(ports: Iterable[int], pids: Iterable[int], *, to: int) -> dict[int, set[int]]:
    """For each TCP port of a client's end, those of the processes `pids` that have that socket open.

    to: the port of the database server.
    """
    held: dict[int, set[int]] = {port: set() for port in ports}
    port_of = {inode: port for inode, port in _ports(to).items() if port in held}
    for pid in pids:
        for inode in _sockets(pid):
            if inode in port_of:
                held[port_of[inode]].add(pid)
    return held


def _ports(to: int) -> dict[str, int]:
    """By inode, the local port of each connected socket."""
    found = {}
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        # proc_pid_net(5): sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
        columns = line.split()
        local, remote = (int(address.rpartition(":")[2], 16) for address in columns[1:3])
        if remote == to:
            found[columns[9]] = local
    return found


def _sockets(pid: int) -> set[str]:
    found = set()
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("socket:["):
                    found.add(target[len("socket:[") : -1])
    return found
