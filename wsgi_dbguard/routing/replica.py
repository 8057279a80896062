"""One replica as this process knows it: how far it has come, when it was last that far behind, whether it fails.

Two numbers decide. Its high-water mark is the position that it was last seen to have applied: what that covers can be
read there, with no question asked. And `covered` is the moment (by our clock) of the newest position of the primary
that the replica is known to have applied: all that was committed before is there. So its lag is at most the time since
then, whoever's clock goes wrong, on an idle primary too, and when nobody looked for long.

After a failover a replica may have more of the old primary than the new one has. It follows nobody then, and is left
alone until it was made anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from wsgi_dbguard import failures
from wsgi_dbguard.errors import DatabaseUnavailable
from wsgi_dbguard.failures import Failure
from wsgi_dbguard.request import current

from .config import RoutingConfig
from .positions import Position, covers
from .servers import NotReplicating, PoolExhausted, applied, applied_by

__all__ = ["Replica", "Sample"]

logger = logging.getLogger(__name__)

Sample = tuple[float, Position]  # `time.monotonic()` before the primary was asked, and what it said
_GONE = frozenset({Failure.DISCONNECT, Failure.UNAVAILABLE})


class Replica:
    """The engine of a replica, and what is known of its server."""

    def __init__(self, engine: Engine, config: RoutingConfig, name: str) -> None:
        self.engine = engine
        self.name = name
        self.requests = 0  # that read from it; counted by `Replicas`
        self._config = config
        self._copies: WeakKeyDictionary[Engine, Engine] = WeakKeyDictionary()
        # As little as can be between the question and the answer: one round trip where the driver allows it.
        self._asking = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.reset()
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "handle_error", self._on_error)

    def reset(self) -> None:
        """Nothing is known, as after a fork."""
        self._lock = threading.Lock()
        self.mark: Position | None = None
        self._answered = 0.0  # when it told the mark
        self.covered: float | None = None
        self.out_until = 0.0
        self.probes = 0

    def __repr__(self) -> str:
        state = "out" if self.is_out(monotonic()) else f"lag at most {self.lag:.1f} s"
        return f"<Replica {self.name} at {self.mark} {state}>"

    @property
    def lag(self) -> float:
        """Seconds that it is behind at most; infinite where nothing is known."""
        return float("inf") if self.covered is None else monotonic() - self.covered

    def is_out(self, now: float) -> bool:
        """Whether it failed lately."""
        return now < self.out_until

    def usable(self, now: float) -> bool:
        """Whether it is within `max_lag`, and has not failed lately."""
        covered = self.covered
        return covered is not None and now - covered <= self._config.max_lag and not self.is_out(now)

    def has(self, position: Position) -> bool:
        """Whether it is known to have applied `position`."""
        mark = self.mark
        return mark is not None and covers(mark, position)

    def engine_like(self, bind: Engine, primary: Engine) -> Engine:
        """Its engine, with the execution options that `bind`, a copy of the primary's engine, has."""
        if bind is primary:
            return self.engine
        copy = self._copies.get(bind)
        if copy is None:
            copy = self._copies[bind] = self.engine.execution_options(**bind.get_execution_options())
        return copy

    def ask(self) -> bool:
        """Ask how far it is, and note it. Whether it answered."""
        self.probes += 1
        began = monotonic()
        try:
            mark = applied(self._asking, self._config.probe_timeout)
        except PoolExhausted:
            return False
        except NotReplicating:
            self._take_out("it replicates nothing; was it promoted?")
            return False
        except Exception as error:  # drivers have some of their own when a socket is cut
            self._take_out(error)
            return False
        answered = monotonic()
        with self._lock:
            if self._goes_back(mark):
                if began < self._answered:  # another answer has overtaken this one
                    return True
                self.covered = None
            self.mark, self._answered = mark, answered
        return True

    def compare(self, samples: Sequence[Sample], again: Callable[[], Position | None]) -> None:
        """Note how far behind it is, by the `samples` of the primary; `again` asks that once more, if it answers."""
        mark = self.mark
        if mark is None or not samples:
            return
        if mark.strays(samples[-1][1]):  # or it has what came after that sample
            primary = again()
            if primary is not None and mark.strays(primary):
                self._take_out(f"it is at {mark}, and does not follow the primary, which is at {primary}")
                return
        seen = [at for at, position in samples if covers(mark, position)]
        with self._lock:
            if self.mark is None or not covers(self.mark, mark):
                return  # it has gone back in the meantime
            if self.covered is not None:
                seen.append(self.covered)
            self.covered = max(seen, default=None)

    def _goes_back(self, mark: Position) -> bool:
        """Whether it has less than it was seen to have."""
        return self.mark is not None and not covers(mark, self.mark)

    def _take_out(self, reason: object) -> None:
        now = monotonic()
        news = not self.is_out(now)
        with self._lock:
            self.out_until = now + self._config.out_for
            self.mark = self.covered = None
        if news:
            logger.warning("%s is left alone for %g s: %s", self.name, self._config.out_for, reason)

    def _on_connect(self, connection: Any, entry: ConnectionPoolEntry) -> None:
        """After a crash a replica applies again what it has applied before, and lets clients in already.

        What is known of it is then too much. All connections to it are new ones, so each new one is asked.
        """
        if self.mark is None:
            return
        try:
            mark = applied_by(self.engine, connection)
        except NotReplicating:
            self._take_out("it replicates nothing; was it promoted?")
        except Exception as error:  # whoever uses the connection will meet it too
            self._take_out(error)
        else:
            with self._lock:
                if not self._goes_back(mark):
                    return
                self.mark, self.covered = mark, None
            logger.warning("%s has gone back to %s: it was restarted, or is several servers", self.name, mark)
        request = current.get()
        if request is not None and request.stand_in:  # it was chosen by what was known
            request.database_failed(Failure.DISCONNECT, committing=False, replica=True)
            raise DatabaseUnavailable(None, None, ConnectionError(f"{self.name} is not what it was"))

    def _on_error(self, context: ExceptionContext) -> None:
        connecting = context.connection is None
        failure = failures.classify(context.original_exception, connecting=connecting)
        if failure in _GONE or context.is_disconnect:
            self._take_out(context.original_exception)
