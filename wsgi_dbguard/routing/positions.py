"""How far a server is, as its own replication counts: positions that can be compared, joined, and written as text.

A position `covers` another one if all that was committed at the other is there as well; `join` is the least position
that covers both. Servers of two histories, as there may be after a failover, do not cover each other, however far they
are: a replica that received more of the old primary than the new one had goes on counting where it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self

__all__ = ["Lsn", "MariaDBGtids", "MySQLGtids", "Position", "covers", "parse"]


class Position(Protocol):
    """How far a server is. `str()` of it is what `parse` reads."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError for what is no position."""

    def covers(self, other: Any) -> bool: ...

    def join(self, other: Any) -> Self: ...

    def strays(self, primary: Any) -> bool:
        """Whether a replica that is here cannot be one of the primary that was, later, at `primary`."""


class Lsn:
    """A place in PostgreSQL's write-ahead log, in bytes from its beginning; and the timeline, 0 where not known.

    Each promotion begins a new timeline. A server on a later one has what the earlier ones had at its beginning, and
    what they had besides is lost.
    """

    __slots__ = ("timeline", "value")

    def __init__(self, value: int, timeline: int = 0) -> None:
        self.value = value
        self.timeline = timeline

    @classmethod
    def parse(cls, text: str) -> Lsn:
        match = re.fullmatch(r"([0-9A-F]{1,8})/([0-9A-F]{1,8})(?:/([0-9A-F]{1,8}))?", text, re.ASCII)
        if not match:
            raise ValueError(f"no LSN: {text!r}")
        return cls(int(match[1], 16) << 32 | int(match[2], 16), int(match[3] or "0", 16))

    @classmethod
    def inserted(cls, text: str, block: int, segment: int) -> Lsn:
        """The end of the last record, from ``pg_current_wal_insert_lsn()``; `block` and `segment` are sizes in bytes.

        Where that record ends with its page, the function tells the place behind the next page's header: 24 bytes, or
        40 at the beginning of a segment (access/xlog_internal.h: SizeOfXLogShortPHD, SizeOfXLogLongPHD). Replay rests
        at the page's end, and gets no further while nothing is written.
        """
        there = cls.parse(text)
        header = 40 if there.value % segment < block else 24
        return cls(there.value - header if there.value % block == header else there.value, there.timeline)

    def covers(self, other: Lsn) -> bool:
        return self.value >= other.value and self.timeline >= other.timeline

    def join(self, other: Lsn) -> Lsn:
        return Lsn(max(self.value, other.value), max(self.timeline, other.timeline))

    def strays(self, primary: Lsn) -> bool:
        return self.timeline < primary.timeline

    def __str__(self) -> str:
        """As PostgreSQL has it, with the timeline as a third number."""
        text = f"{self.value >> 32:X}/{self.value & 0xFFFFFFFF:X}"
        return f"{text}/{self.timeline:X}" if self.timeline else text


class MariaDBGtids:
    """Transactions by replication domain and server, as in ``0-1-4711,0-2-4713,1-1-12``: the last one of each.

    The sequence numbers of a domain go on after a failover, with another server's number: of two servers that are
    further than the old primary's 0-1-4711, one may have its 0-1-4712 and the other one the new primary's 0-2-4712.
    """

    __slots__ = ("last",)

    def __init__(self, last: Mapping[tuple[int, int], int]) -> None:
        self.last = dict(last)  # sequence number, by domain and server

    @classmethod
    def parse(cls, text: str) -> MariaDBGtids:
        last: dict[tuple[int, int], int] = {}
        for each in text.replace("\n", "").split(","):
            match = re.fullmatch(r"\s*(\d{1,10})-(\d{1,10})-(\d{1,20})\s*", each, re.ASCII)
            if not match:
                raise ValueError(f"no GTID position: {text!r}")
            domain, server, number = map(int, match.groups())
            last[domain, server] = max(number, last.get((domain, server), 0))
        return cls(last)

    @classmethod
    def applied(cls, text: str, logged: str) -> MariaDBGtids:
        """What a replica has, from ``gtid_slave_pos``, and from the ``gtid_binlog_state`` of its own binary log.

        The first tells the last transaction of each domain, the second the last one of each server, old primaries
        included. But it may be ahead: what is in the log is not yet to be seen.
        """
        here = cls.parse(text)
        newest = {domain: number for (domain, _), number in here.last.items()}
        earlier = cls.parse(logged).last.items() if logged else ()
        return cls({each: number for each, number in earlier if number < newest.get(each[0], 0)} | here.last)

    def covers(self, other: MariaDBGtids) -> bool:
        return all(self.last.get(each, -1) >= number for each, number in other.last.items())

    def join(self, other: MariaDBGtids) -> MariaDBGtids:
        either = self.last.keys() | other.last.keys()
        return MariaDBGtids({each: max(self.last.get(each, 0), other.last.get(each, 0)) for each in either})

    def strays(self, primary: MariaDBGtids) -> bool:
        # The primary tells the last transaction of each domain that it has in its log.
        for (domain, server), number in primary.last.items():
            ours = [(each, last) for (where, each), last in self.last.items() if where == domain]
            if any(last > number or (last == number and each != server) for each, last in ours):
                return True
        return False

    def __str__(self) -> str:
        return ",".join(f"{domain}-{server}-{number}" for (domain, server), number in sorted(self.last.items()))


class MySQLGtids:
    """A set of transactions, as in ``3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:11,…``: source (and tag), intervals."""

    __slots__ = ("intervals",)

    def __init__(self, intervals: Mapping[str, Iterable[tuple[int, int]]]) -> None:
        self.intervals = {source: _merged(each) for source, each in intervals.items()}

    @classmethod
    def parse(cls, text: str) -> MySQLGtids:
        intervals: dict[str, list[tuple[int, int]]] = {}
        for each in re.sub(r"\s", "", text).lower().split(","):
            source, *parts = each.split(":")
            if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", source) or not parts:
                raise ValueError(f"no set of GTIDs: {text!r}")
            name = source
            for part in parts:
                match = re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", part, re.ASCII)
                if match:
                    intervals.setdefault(name, []).append((int(match[1]), int(match[2] or match[1])))
                elif re.fullmatch(r"[a-z_][a-z0-9_]{0,31}", part):
                    name = f"{source}:{part}"
                else:
                    raise ValueError(f"no set of GTIDs: {text!r}")
        return cls(intervals)

    def covers(self, other: MySQLGtids) -> bool:
        return all(
            any(low <= start and end <= high for low, high in self.intervals.get(source, ()))
            for source, each in other.intervals.items()
            for start, end in each
        )

    def join(self, other: MySQLGtids) -> MySQLGtids:
        sources = self.intervals.keys() | other.intervals.keys()
        return MySQLGtids({each: [*self.intervals.get(each, ()), *other.intervals.get(each, ())] for each in sources})

    def strays(self, primary: MySQLGtids) -> bool:
        # What somebody did at the replica itself is of a source that the primary does not know.
        shared = self.intervals.keys() & primary.intervals.keys()
        return not primary.covers(MySQLGtids({each: self.intervals[each] for each in shared}))

    def __str__(self) -> str:
        return ",".join(
            ":".join([source, *(f"{low}-{high}" for low, high in each)])
            for source, each in sorted(self.intervals.items())
        )


def _merged(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], high)
        else:
            merged.append((low, high))
    return merged


def covers(one: Position, other: Position) -> bool:
    """Whether all of `other` is in `one`; positions of two kinds have nothing to do with each other."""
    return type(one) is type(other) and one.covers(other)


def parse(text: str) -> Position:
    """The position that `text` tells; the kinds look different. Raises ValueError for what is none."""
    if "/" in text:
        return Lsn.parse(text)
    return MySQLGtids.parse(text) if ":" in text else MariaDBGtids.parse(text)
