"""What a fault of the matrix is: when it strikes, how it is made and undone, and what has to come of it.

The faults themselves are declared in `wsgi_dbguard.lab.faults`.

Example::

    Fault("FIN", lambda stage: stage.proxy.fin(), moment=Moment.POOL)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .drivers import Database, Driver
from .stage import Stage

__all__ = ["BOTH", "MARIADB", "POSTGRESQL", "REQUESTS", "THREADS", "Act", "Fault", "Moment", "nothing"]

THREADS = 3  # that make requests of a pool
REQUESTS = 5  # of each of them after the fault

Act = Callable[[Stage], object]
BOTH: tuple[Database, ...] = ("postgresql", "mariadb")
POSTGRESQL: tuple[Database, ...] = ("postgresql",)
MARIADB: tuple[Database, ...] = ("mariadb",)


class Moment(StrEnum):
    """Where a connection is when the fault strikes."""

    POOL = "in the pool"
    BETWEEN = "between statements"  # in use, in no transaction
    TRANSACTION = "in a transaction"
    QUERY = "during a query"


def nothing(stage: Stage) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """Something that happens to connections.

    inject: makes it happen, and returns when it has. undo: takes it back, whatever became of it. prepare: what has to
    be there before the pools are opened. breaks: whether a pool that nothing looks after must fail, or else nobody may;
    None: that depends on the driver.
    idle: seconds that the connections lie in the pool after it. settings, session, writes: see `Pool`. arguments: what
    a driver is told besides. reconnects: how many new connections a guarded pool may open, None for any number.
    costs: how many requests of a guarded pool it may cost, though connections were in the pool; note: why, and whatever
    else the reader of the table should know.
    interrupt: what interrupts the application itself, see `interrupts`; then the rest does not apply.
    """

    name: str
    inject: Act
    databases: tuple[Database, ...] = BOTH
    moment: Moment = Moment.POOL
    undo: Act = nothing
    prepare: Act = nothing
    breaks: bool | None = True
    idle: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    session: Mapping[Database, tuple[str, ...]] = field(default_factory=dict)
    writes: bool = False
    arguments: Callable[[Driver], Mapping[str, Any]] = lambda driver: {}
    applies: Callable[[Driver], bool] = lambda driver: True
    reconnects: int | None = None
    pings: int | None = None
    costs: int = 0
    note: str = ""
    interrupt: str = ""

    @property
    def title(self) -> str:
        """Name and moment, which no two faults share."""
        return f"{self.name}, {self.moment}"

    def __str__(self) -> str:
        return self.title
