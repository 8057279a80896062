"""Where one attempt of a request reads, by one `Replicas`: decided once, and undone by the first sign of a write."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING
from weakref import WeakSet

from sqlalchemy import RootTransaction

from wsgi_dbguard.request import Request

from .servers import PoolExhausted, written
from .tokens import Token

if TYPE_CHECKING:
    from .replica import Replica
    from .replicas import Replicas

__all__ = ["Route"]

logger = logging.getLogger(__name__)


class Route:
    """What is known of one attempt. `texts` are the tokens that came with it."""

    __slots__ = ("_unfinished", "decided", "group", "https", "primary", "replica", "texts", "wrote")

    def __init__(self, group: Replicas, texts: list[str], *, https: bool) -> None:
        self.group = group
        self.texts = texts
        self.https = https
        self.decided = False
        self.replica: Replica | None = None  # where it reads; None: at the primary
        self.primary = False  # from now on nothing but the primary
        self.wrote = False  # or may have
        self._unfinished: WeakSet[RootTransaction] | None = None  # of the primary, in which it wrote

    def writes(self, transaction: RootTransaction | None) -> None:
        """Something happens at the primary that may write; in `transaction`, if that is known."""
        self.wrote = True
        if transaction is not None:
            if self._unfinished is None:  # most requests never write, and a WeakSet takes a while to make
                self._unfinished = WeakSet()
            self._unfinished.add(transaction)

    def depart(
        self, request: Request, headers: list[tuple[str, str]], *, failed: bool = False
    ) -> list[tuple[str, str]]:
        """The headers, about to leave, with the new position if the request may have written."""
        if not self.wrote or (failed and not request.in_doubt and not request.commits):
            return headers
        config = self.group.config
        text = self.group.tokens.dump(self._token(request, failed).after(self.group.tokens.load(self.texts)))
        if text is None:  # too long for a cookie
            text = self.group.tokens.dump(self._pin())
        assert text is not None
        secure = self.https if config.secure is None else config.secure
        cookie = f"{config.cookie}={text}; Max-Age={int(config.lifetime)}; Path=/; HttpOnly; SameSite=Lax"
        return [*headers, ("Set-Cookie", f"{cookie}; Secure" if secure else cookie), (config.header, text)]

    def _token(self, request: Request, failed: bool) -> Token:
        # Nobody asks a database that has just failed. And what is committed after this has no position yet.
        if request.in_doubt or failed or request.streams or self._goes_on():
            return self._pin()
        try:
            return Token(written(self.group.asking, self.group.config.probe_timeout))
        except PoolExhausted:
            logger.info("%r: no connection is left to read the primary's position with: a pin instead", request)
        except Exception as error:  # the response is not to fail because of that
            logger.warning("%r: the primary's position could not be read, a pin instead: %s", request, error)
        return self._pin()

    def _goes_on(self) -> bool:
        """Whether it has written what it has not committed yet: the position of that commit is not known."""
        return self._unfinished is not None and any(each.is_active for each in self._unfinished)

    def _pin(self) -> Token:
        self.group.count("pins")
        return Token(None, time.time() + self.group.config.pin)
