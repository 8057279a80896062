"""A request's body, of which the beginning was read before the application comes to it."""

from __future__ import annotations

from typing import Any

from wsgi_dbguard.replay import RecordedInput

__all__ = ["ReadBody"]


class ReadBody(RecordedInput):
    """``wsgi.input`` by the methods that remember; what else the server's own stream offers would go on behind them."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no {name}, as it was read before")
