"""What the fault proxy knows of one connection: how many bytes came from each side, and which.

Kept apart from the sockets, so that it can still be read after they are closed. `FaultProxy` hands it out, through
`connections` and `history`; nobody else makes one.

Example::

    [connection] = proxy.connections
    assert connection.forwarded == (connection.client_bytes, connection.server_bytes)     # nothing is held back
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

__all__ = ["Flow", "ProxiedConnection", "Side"]

Side = Literal["client", "server"]


class Flow:
    """What came from one side of a connection."""

    __slots__ = ("arrived", "data", "forwarded")

    def __init__(self, record: bool) -> None:
        self.arrived = 0
        self.forwarded = 0
        self.data: bytearray | None = bytearray() if record else None


class ProxiedConnection:
    """One connection that the proxy accepted: what went through it, also after its end.

    `id` counts from 1 in the order of acceptance; `opened` and `closed` are `time.monotonic()`; `ended` says how it
    ended: "closed", "client reset", "server reset", "upstream unreachable", or the proxy's method that did it.
    """

    __slots__ = ("_client", "_server", "_sync", "closed", "ended", "id", "opened")

    def __init__(self, number: int, record: bool, sync: Callable[[], None]) -> None:
        self.id = number
        self.opened = time.monotonic()
        self.closed: float | None = None
        self.ended: str | None = None
        self._client = Flow(record)
        self._server = Flow(record)
        self._sync = sync

    def _flow(self, side: Side) -> Flow:
        self._sync()
        return self._client if side == "client" else self._server

    @property
    def client_bytes(self) -> int:
        """Bytes that arrived from the client."""
        return self._flow("client").arrived

    @property
    def server_bytes(self) -> int:
        """Bytes that arrived from the server."""
        return self._flow("server").arrived

    @property
    def forwarded(self) -> tuple[int, int]:
        """Bytes passed on: the client's to the server, the server's to the client. Less than arrived while held."""
        self._sync()
        return self._client.forwarded, self._server.forwarded

    @property
    def sent(self) -> bytes:
        """All that arrived from the client. Raises RuntimeError without `record=True`."""
        return self._recorded("client")

    @property
    def received(self) -> bytes:
        """All that arrived from the server. Raises RuntimeError without `record=True`."""
        return self._recorded("server")

    def _recorded(self, side: Side) -> bytes:
        data = self._flow(side).data
        if data is None:
            raise RuntimeError("nothing was recorded: make the proxy with record=True")
        return bytes(data)

    def __repr__(self) -> str:
        state = self.ended or "open"
        return f"<ProxiedConnection {self.id} {state}, {self._client.arrived} B -> {self._server.arrived} B <->"
