"""Histograms in plain Python, for Prometheus: what is noted in them never waits, and is gone after a fork."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator

from .instruments import BOUNDARIES, Instrument

__all__ = ["Histograms"]


class Histograms:
    """The notes of one process, by instrument and pool.

    A note is left in a queue; `settle` adds up what is there. It may be called by anybody at any time: who finds
    another at it leaves the work to that one, be it the same thread, which the garbage collector interrupted.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As new, whoever was at it."""
        self._notes: deque[tuple[Instrument, str, float]] = deque()
        self._lock = threading.Lock()
        self._known: dict[tuple[Instrument, str], list[float]] = {}
        self._news: set[tuple[Instrument, str, int]] = set()

    def note(self, instrument: Instrument, pool: str, seconds: float) -> None:
        self._notes.append((instrument, pool, seconds))

    def settle(self) -> None:
        notes = self._notes
        while notes and self._lock.acquire(blocking=False):
            try:
                while notes:
                    instrument, pool, seconds = notes.popleft()
                    counts = self._known.get((instrument, pool))
                    if counts is None:
                        counts = self._known[instrument, pool] = [0.0] * (len(BOUNDARIES) + 2)
                        self._news.update((instrument, pool, part) for part in range(len(counts)))
                    bucket = bisect_left(BOUNDARIES, seconds)
                    counts[bucket] += 1
                    counts[-1] += seconds
                    self._news.add((instrument, pool, bucket))
                    self._news.add((instrument, pool, len(counts) - 1))
            finally:
                self._lock.release()

    def read(self) -> Iterator[tuple[Instrument, str, list[float]]]:
        """For each: how many in each bucket (not those below it as well), those above all, and last their sum."""
        self.settle()
        for (instrument, pool), counts in list(self._known.items()):
            yield instrument, pool, counts[:]

    def news(self) -> Iterator[tuple[Instrument, str, int, float]]:
        """What has changed since the last call: the position in `read`, and its value. Not for two callers at once."""
        self.settle()
        news, self._news = self._news, set()
        for instrument, pool, part in news:
            yield instrument, pool, part, self._known[instrument, pool][part]
