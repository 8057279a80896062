"""Real connections over a recording proxy: not one byte from any child, and the parent never notices.

The scenario (first parameter `forks`) runs in interpreters of its own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import gc
import itertools
import os
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import scoped_session, sessionmaker

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks
    from wsgi_dbguard.lab.peers import Peer

QUICK = ["psycopg2", "mysqlclient"]
TLS = True
CHILDREN = [("os.fork", "end"), ("os.fork", "sys.exit"), ("os.fork", "os._exit"), ("multiprocessing", "")]
HOLDERS = ["connection", "detached", "raw", "session", "stream"]
OURS = r'File ".*/wsgi_dbguard/\w+\.py"'  # in a traceback; SQLAlchemy logs one when a stream's server is not there
KEYS = itertools.count(1)  # of advisory locks and tables


def busy_parent(
    forks: Forks, url: str, certificate: str | None, key: int, guarded: bool, children: list[list[Any]]
) -> dict[str, Any]:
    """Children do their worst while the parent holds rows that are not committed, and its other thread is in a query.

    The other thread's query waits for an advisory lock, so that it is a query of exactly the right length.
    """
    if guarded:
        forks.guard()
    engine = forks.engine(url, certificate, pool_size=8)
    sql = forks.sql(engine)
    insert = f"insert into rows_{key} values ('%s')"
    backend = text(sql.backend)

    connection = engine.connect()
    connection.execute(text(insert % "connection"))
    detached = engine.connect()
    detached.detach()
    detached.execute(text(insert % "detached"))
    raw = engine.raw_connection()
    raw.cursor().execute(insert % "raw")
    session = scoped_session(sessionmaker(engine))
    session.execute(text(insert % "session"))
    stream = engine.connect()
    stream.execute(text(insert % "stream"))
    options = {"stream_results": True, "max_row_buffer": 10}
    stream_result = stream.execute(text(sql.numbers), execution_options=options)
    read = [row[0] for row in stream_result.fetchmany(5)]
    with engine.connect(), engine.connect():  # one stays in the pool, the other thread takes the other one
        pass
    answers = []

    def ask() -> None:
        with engine.connect() as mine:
            answers.append(mine.execute(text(sql.locked.format(key=key))).scalar())

    thread = threading.Thread(target=ask)
    thread.start()
    forks.wait(lambda: forks.ask("waiting") == 1, timeout=60.0)
    parents = forks.ask("backends")

    def live() -> dict[str, Any]:
        """What an application might do with what it inherited, and worse."""
        lost = [forks.failure(use) for use in (lambda: session.execute(backend), session.commit)]
        for each in (connection, detached, stream):
            lost += [forks.failure(partial(each.execute, backend)), forks.failure(each.commit)]
        no_use = [forks.failure(use) for use in (stream_result.fetchall, lambda: raw.cursor().execute("commit"))]
        session.rollback()
        own = {session.execute(backend).scalar()}
        session.commit()
        session.remove()
        own.add(session.execute(backend).scalar())
        for each in (connection, detached, stream):
            each.rollback()
            own.add(each.execute(backend).scalar())
            each.commit()
        forks.failure(stream_result.close)
        forks.failure(lambda: raw.rollback())
        raw.close()
        for each in (connection, detached, stream):
            each.close()
        session.remove()
        engine.dispose()
        gc.collect()
        with engine.connect() as fresh:
            own.add(fresh.execute(backend).scalar())
        engine.dispose()
        return {"lost": sorted(map(str, set(lost))), "worked": no_use.count(None), "own": not own & set(parents)}

    lives = []
    for by, leave in children:
        before = forks.ask("wire")
        told = forks.child(live, by=by, leave=leave, timeout=60.0)
        after = forks.ask("wire")
        wire = {number: [count, after[number]] for number, count in before.items() if count != after[number]}
        lives.append({"told": told, "wire": wire})
    if not guarded:  # what comes next could hang
        forks.tell(result={"lives": lives})
        os._exit(0)

    survivors = forks.ask("backends")
    visible = forks.ask("rows")
    forks.ask("unlock")
    thread.join(60.0)
    read += [row[0] for row in stream_result]
    raw.commit()
    raw.close()
    for each in (session, connection, detached, stream):
        each.commit()
        each.close()
    engine.dispose()
    return {
        "lives": lives,
        "backends kept": set(parents) <= set(survivors),
        "visible before the commit": visible,
        "visible": forks.ask("rows"),
        "answers": answers,
        "stream": read == list(range(1, 1001)),
    }


@pytest.fixture
def lives(peer: Peer, scenario: Callable[..., Any]) -> Callable[..., Any]:
    """`busy_parent` with a proxy between, which counts the bytes that came from the client."""
    from wsgi_dbguard.lab.proxy import FaultProxy

    def run(guarded: bool, children: list[tuple[str, str]]) -> Any:
        key = next(KEYS)
        query = peer.server.query
        locking = {name: getattr(peer.sql, name).format(key=key) for name in ("lock", "waiting", "unlock")}
        answers: dict[str, Callable[[], Any]] = {
            "wire": lambda: {number: sent for number, (sent, _) in proxy.snapshot().items()},
            "backends": peer.server.backends,
            "rows": lambda: [holder for (holder,) in query(f"select holder from rows_{key} order by holder")],
            "waiting": lambda: query(locking["waiting"])[0][0],
            "unlock": lambda: query(locking["unlock"])[0][0],
        }
        peer.alone()
        query(f"create table rows_{key} (holder text)")
        query(locking["lock"])
        try:
            with FaultProxy(peer.server.host, peer.server.port) as proxy:
                return scenario(
                    busy_parent,
                    answer=lambda question: answers[question](),
                    url=peer.url(proxy.port),
                    certificate=peer.certificate,
                    key=key,
                    guarded=guarded,
                    children=children,
                    timeout=240.0,
                )
        finally:
            query(locking["unlock"])

    return run


@pytest.mark.slow
def test_without_the_guard_children_write_on_their_parents_connections(lives: Callable[..., Any]) -> None:
    (life,) = lives(False, CHILDREN[:1])["lives"]
    assert life["wire"]


def test_no_child_puts_a_byte_on_its_parents_connections_and_the_parent_never_notices(
    lives: Callable[..., Any], peer: Peer, tmp_path: Path
) -> None:
    told = lives(True, CHILDREN)
    # SQLAlchemy's own rules: the transaction is lost, until rollback() or remove() says that this is known. With
    # mysql-connector SQLAlchemy has all rows in memory, of a stream as well: those can be read.
    worked = int(peer.driver == "mysql-connector")
    harmless = {"lost": ["PendingRollbackError"], "worked": worked, "own": True}
    assert told == {
        "lives": [{"told": harmless, "wire": {}} for _ in CHILDREN],
        "backends kept": True,
        "visible before the commit": [],
        "visible": HOLDERS,
        "answers": ["mine"],
        "stream": True,
    }
    stderr = (tmp_path / "stderr").read_text()
    assert stderr.count("ForkWarning") == 1
    assert "ResourceWarning" not in stderr
    assert not re.search(OURS, stderr)
