"""The rows of the matrix, each played once: what the command prints and what the tests assert on.

A server is started when the first row needs it, and serves all rows of its kind. A row that cannot be played on this
machine says why (`ServerMissing`).

Example::

    with Rows() as rows:
        for outcome in rows.play(fault_named("FIN, in the pool"), "postgresql"):
            print(outcome)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Self

from .contenders import Contender
from .drivers import DRIVERS, Database, Driver
from .fault import Fault
from .faults import FAULTS
from .mariadb import MariaDB
from .matrix import Outcome, play
from .postgres import PostgreSQL
from .provision import ServerMissing
from .stage import Server, Stage

__all__ = ["Rows", "cells"]

_SERVERS: Mapping[Database, Callable[[bool], AbstractContextManager[Server]]] = {
    "postgresql": lambda system: PostgreSQL(system=system),
    "mariadb": lambda system: MariaDB(),
}


def cells(*, fault: str = "", driver: str = "") -> list[tuple[Fault, Driver]]:
    """Every fault with every driver that it can happen to; only those with `fault` in the title, and that driver."""
    return [
        (each, one)
        for each in FAULTS
        for one in DRIVERS
        if one.database in each.databases and each.applies(one) and fault in each.title and driver in ("", one.name)
    ]


class Rows:
    """Plays faults; all drivers of a database that are installed, or `drivers` of them, in one go.

    `contenders`: for these; `system`: on Debian's PostgreSQL instead of the wheel's.
    """

    def __init__(
        self, drivers: Iterable[Driver] = DRIVERS, contenders: Iterable[Contender] = Contender, *, system: bool = False
    ) -> None:
        self.system = system
        self.drivers = [driver for driver in drivers if not driver.missing()]
        self.contenders = list(contenders)
        self._stages: dict[Database, Stage] = {}
        self._played: dict[tuple[str, Database], list[Outcome]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def play(self, fault: Fault, database: Database) -> list[Outcome]:
        """What came of the fault, for each driver of the database and each contender; played at the first call.

        Raises ServerMissing when it cannot be played here, and what `matrix.play` raises.
        """
        key = fault.title, database
        if key not in self._played:
            drivers = [driver for driver in self.drivers if driver.database == database]
            self._played[key] = play(self.stage(database), fault, drivers, self.contenders)
        return self._played[key]

    def stage(self, database: Database) -> Stage:
        """Where the database's faults are played. Raises ServerMissing."""
        if database not in self._stages:
            server = self._start(database)
            stage = Stage(server, database, spare=lambda: self._start(database))
            self._stages[database] = self._stack.enter_context(stage)
        return self._stages[database]

    def _start(self, database: Database) -> Server:
        make = _SERVERS.get(database)
        if make is None:
            raise ServerMissing(f"no {database} server")
        return self._stack.enter_context(make(self.system))
