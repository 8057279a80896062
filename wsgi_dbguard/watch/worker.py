"""A thread for each way, so that no beat is waited for longer than it may take."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

from .beats import Beat, Trouble
from .ways import OneWay, Statement

__all__ = ["Worker"]


class Worker:
    """Has the beats of one way done in a thread of its own. `patience`: seconds that a beat is waited for."""

    def __init__(self, way: OneWay, statement: Statement, *, patience: float, begun: float) -> None:
        self._way = way
        self._statement = statement
        self._patience = patience
        self._begun = begun
        self._orders: SimpleQueue[int | None] = SimpleQueue()
        self._beat: Beat | None = None
        self._done = threading.Event()
        self._done.set()
        self._thread = threading.Thread(target=self._run, name=f"watch {way.way}", daemon=True)
        self._thread.start()

    def begin(self, number: int) -> None:
        """Have the beat done; unless the one before is still on its way, which then goes for this one too."""
        self._number, self._asked = number, time.monotonic()
        if self._done.is_set():
            self._done.clear()
            self._beat = None
            self._orders.put(number)

    def end(self) -> Beat:
        """The beat, or a silent one if it is not over in time."""
        left = self._asked + self._patience - time.monotonic()
        if self._done.wait(max(left, 0.0)) and self._beat is not None and self._beat.number == self._number:
            return self._beat
        waited = time.monotonic() - self._asked
        return Beat(
            way=self._way.way,
            number=self._number,
            at=self._asked - self._begun,
            took=waited,
            trouble=Trouble.SILENT,
            error=f"no answer within {self._patience:g} s",
            held=self._way.holds(),
        )

    def stop(self) -> None:
        """End the thread, and close what its way has open. A thread that is stuck in a driver ends with the process."""
        self._orders.put(None)
        if not self._done.wait(self._patience):
            self._way.cut()
        self._thread.join(self._patience)

    def _run(self) -> None:
        while (number := self._orders.get()) is not None:
            self._beat = self._way.beat(number, self._statement)
            self._done.set()
        with self._way.bounded():
            self._way.close()
