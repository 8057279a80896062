"""The database drivers that the matrix runs every fault against, and how each one is told what the others are told too.

Only names and arguments: a driver is imported when an engine is made with it, and one that is not installed is skipped
with the reason that `Driver.missing` gives.

Example::

    for driver in DRIVERS:
        if reason := driver.missing():
            print(driver.name, "is skipped:", reason)
        else:
            engine = create_engine(driver.url("postgresql://app@127.0.0.1:5432/app"))
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import URL, make_url

__all__ = ["DRIVERS", "Database", "Driver", "driver_named"]

Database = Literal["postgresql", "mariadb"]


@dataclass(frozen=True)
class Driver:
    """A driver, by its name in the package registry.

    `dialect` is what a SQLAlchemy URL begins with, `module` what is imported. `interactive` are the arguments that make
    the server take it for a person (interactive_timeout applies to it then), where the driver can do that.
    """

    name: str
    database: Database
    dialect: str
    module: str
    interactive: Mapping[str, Any] = field(default_factory=dict)

    def missing(self) -> str | None:
        """Why it cannot be used here, or None when it can."""
        try:
            found = importlib.util.find_spec(self.module)
        except ModuleNotFoundError:  # of the package above it
            found = None
        return None if found else f"{self.name} is not installed"

    def url(self, server: URL | str) -> URL:
        """The URL of a server for this driver."""
        return make_url(server).set(drivername=self.dialect)

    def __str__(self) -> str:
        return self.name


_CLIENT_INTERACTIVE = 1 << 10  # a capability flag of MySQL's handshake

DRIVERS = (
    Driver("psycopg2", "postgresql", "postgresql+psycopg2", "psycopg2"),
    Driver("psycopg", "postgresql", "postgresql+psycopg", "psycopg"),
    Driver("pg8000", "postgresql", "postgresql+pg8000", "pg8000"),
    Driver("pymysql", "mariadb", "mysql+pymysql", "pymysql", {"client_flag": _CLIENT_INTERACTIVE}),
    Driver("mysqlclient", "mariadb", "mysql+mysqldb", "MySQLdb", {"client_flag": _CLIENT_INTERACTIVE}),
    Driver("mariadb", "mariadb", "mariadb+mariadbconnector", "mariadb", {"client_flag": _CLIENT_INTERACTIVE}),
    Driver("mysql-connector", "mariadb", "mysql+mysqlconnector", "mysql.connector"),
)


def driver_named(name: str) -> Driver:
    """The driver of that name. Raises KeyError."""
    return {driver.name: driver for driver in DRIVERS}[name]
