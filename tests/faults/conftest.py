"""The servers of the matrix, and silence about what is broken on purpose."""

import logging
from collections.abc import Iterator

import pytest

from wsgi_dbguard.lab.rows import Rows


@pytest.fixture(scope="session")
def rows() -> Iterator[Rows]:
    """All rows of the matrix; each is played when it is first asked for."""
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # pg8000's close() of a dead connection fails
    with Rows() as all_rows:
        yield all_rows
