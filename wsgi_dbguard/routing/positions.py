"""How far a server is, as its own replication counts: positions that can be compared, joined, and written as text.

A position `covers` another one if all that was committed at the other is there as well; `join` is the least position
that covers both.
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


class Lsn:
    """A place in PostgreSQL's write-ahead log, in bytes from its beginning."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value

    @classmethod
    def parse(cls, text: str) -> Lsn:
        match = re.fullmatch(r"([0-9A-F]{1,8})/([0-9A-F]{1,8})", text, re.ASCII)
        if not match:
            raise ValueError(f"no LSN: {text!r}")
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    @classmethod
    def inserted(cls, text: str, block: int, segment: int) -> Lsn:
        """The end of the last record, from ``pg_current_wal_insert_lsn()``; `block` and `segment` are sizes in bytes.

        Where that record ends with its page, the function tells the place behind the next page's header: 24 bytes, or
        40 at the beginning of a segment (access/xlog_internal.h: SizeOfXLogShortPHD, SizeOfXLogLongPHD). Replay rests
        at the page's end, and gets no further while nothing is written.
        """
        value = cls.parse(text).value
        header = 40 if value % segment < block else 24
        return cls(value - header if value % block == header else value)

    def covers(self, other: Lsn) -> bool:
        return self.value >= other.value

    def join(self, other: Lsn) -> Lsn:
        return self if self.covers(other) else other

    def __str__(self) -> str:
        return f"{self.value >> 32:X}/{self.value & 0xFFFFFFFF:X}"


class MariaDBGtids:
    """The last transaction of each replication domain, as in ``0-1-4711,1-1-12``: domain, server, sequence number.

    The server's number does not count: it is another one after a failover, and the sequence goes on.
    """

    __slots__ = ("last",)

    def __init__(self, last: Mapping[int, tuple[int, int]]) -> None:
        self.last = dict(last)  # by domain: server, sequence number

    @classmethod
    def parse(cls, text: str) -> MariaDBGtids:
        last: dict[int, tuple[int, int]] = {}
        for each in text.replace("\n", "").split(","):
            match = re.fullmatch(r"\s*(\d{1,10})-(\d{1,10})-(\d{1,20})\s*", each, re.ASCII)
            if not match:
                raise ValueError(f"no GTID position: {text!r}")
            domain, server, number = map(int, match.groups())
            if domain not in last or last[domain][1] < number:
                last[domain] = server, number
        return cls(last)

    def covers(self, other: MariaDBGtids) -> bool:
        return all(domain in self.last and self.last[domain][1] >= each[1] for domain, each in other.last.items())

    def join(self, other: MariaDBGtids) -> MariaDBGtids:
        joined = dict(self.last)
        for domain, each in other.last.items():
            if domain not in joined or joined[domain][1] < each[1]:
                joined[domain] = each
        return MariaDBGtids(joined)

    def __str__(self) -> str:
        return ",".join(f"{domain}-{server}-{number}" for domain, (server, number) in sorted(self.last.items()))


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
