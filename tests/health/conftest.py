"""What tests of the health endpoints share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from wsgi_dbguard import events, worker
from wsgi_dbguard.health import sharing
from wsgi_dbguard.health.reporter import reporter


@pytest.fixture(autouse=True)
def _no_reporter_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The thread and the file of this process end with the test, and so do the events."""
    monkeypatch.setattr(events, "_ring", None)
    monkeypatch.setattr(worker, "_listeners", [])
    # A process that runs other tests beside this one is no worker of the same server.
    monkeypatch.setattr(sharing, "_owner", os.getpid)
    yield
    reporter.end()
    worker._after_fork()
