"""Real connections over a recording proxy: not one byte from any child, and the parent never notices.

The scenarios (first parameter `forks`) run in interpreters of their own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import scoped_session, sessionmaker

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks
    from wsgi_dbguard.lab.postgres import PostgreSQL

DRIVERS = ["psycopg2", "psycopg"]
CHILDREN = [("os.fork", "end"), ("os.fork", "sys.exit"), ("os.fork", "os._exit"), ("multiprocessing", "")]
HOLDERS = ["connection", "detached", "raw", "session", "stream"]
KEYS = itertools.count(1)  # of advisory locks, tables and application names


def failure(of: Callable[[], Any]) -> str | None:
    try:
        of()
    except Exception as error:
        return type(error).__name__
    return None


def busy_parent(
    forks: Forks, url: str, direct: dict[str, Any], key: int, guarded: bool, children: list[list[Any]]
) -> dict[str, Any]:
    """Children do their worst while the parent holds rows that are not committed, and its other thread is in a query.

    The other thread's query waits for an advisory lock, so that it is a query of exactly the right length.
    """
    if guarded:
        forks.guard()
    observer = psycopg2.connect(**direct)
    observer.autocommit = True
    observing = observer.cursor()

    def observe(sql: str) -> list[Any]:
        observing.execute(sql)
        return [row[0] for row in observing.fetchall()]

    observing.execute(f"create table rows_{key} (holder text); select pg_advisory_lock({key})")
    engine = create_engine(url, pool_size=8)
    insert = f"insert into rows_{key} values ('%s')"
    backend = text("select pg_backend_pid()")

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
    stream_result = stream.execute(text("select * from generate_series(1, 1000)"), execution_options=options)
    read = [row[0] for row in stream_result.fetchmany(5)]
    with engine.connect(), engine.connect():  # one stays in the pool, the other thread takes the other one
        pass
    answers = []

    def ask() -> None:
        with engine.connect() as mine:
            answers.append(mine.execute(text(f"select 'mine' from pg_advisory_lock({key})")).scalar())

    thread = threading.Thread(target=ask)
    thread.start()
    waiting = f"select count(*) from pg_locks where locktype = 'advisory' and objid = {key} and not granted"
    forks.wait(lambda: observe(waiting) == [1])
    parents = observe(f"select pid from pg_stat_activity where application_name = '{key}'")

    def live() -> dict[str, Any]:
        """What an application might do with what it inherited, and worse."""
        lost = [failure(use) for use in (lambda: session.execute(backend), session.commit)]
        for each in (connection, detached, stream):
            lost += [failure(partial(each.execute, backend)), failure(each.commit)]
        no_use = [failure(use) for use in (stream_result.fetchall, lambda: raw.cursor().execute("commit"))]
        session.rollback()
        own = {session.execute(backend).scalar()}
        session.commit()
        session.remove()
        own.add(session.execute(backend).scalar())
        for each in (connection, detached, stream):
            each.rollback()
            own.add(each.execute(backend).scalar())
            each.commit()
        failure(stream_result.close)
        failure(lambda: raw.rollback())
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
        before = forks.ask("snapshot")
        told = forks.child(live, by=by, leave=leave)
        after = forks.ask("snapshot")
        wire = {number: [count, after[number]] for number, count in before.items() if count != after[number]}
        lives.append({"told": told, "wire": wire})
    if not guarded:  # what comes next could hang
        forks.tell(result={"lives": lives})
        os._exit(0)

    survivors = observe(f"select pid from pg_stat_activity where application_name = '{key}'")
    visible = observe(f"select holder from rows_{key}")
    observe(f"select pg_advisory_unlock({key})::text")
    thread.join(20)
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
        "visible": observe(f"select holder from rows_{key} order by 1"),
        "answers": answers,
        "stream": read == list(range(1, 1001)),
    }


def killed_parent(forks: Forks, url: str, guarded: bool) -> None:
    """The parent is killed, its child lives on, with a connection of its own."""
    if guarded:
        forks.guard()
    engine = create_engine(url)
    held = [engine.connect() for _ in range(3)]
    held[0].close()
    held[1].detach()
    ours, theirs = os.pipe()
    if not os.fork():
        os.close(theirs)
        os.read(ours, 1)  # end of file: the parent is gone
        own = create_engine(url) if not guarded else engine
        with own.connect() as connection:
            forks.ask(str(connection.execute(text("select pg_backend_pid()")).scalar()))
        forks.tell(result="told")
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def tls_postgres() -> Iterator[PostgreSQL]:
    from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing

    try:
        server = PostgreSQL(tls=True)
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(params=["postgres", "tls_postgres"], ids=["plain", "tls"])
def server(request: pytest.FixtureRequest) -> PostgreSQL:
    found: PostgreSQL = request.getfixturevalue(request.param)
    return found


def direct(server: PostgreSQL) -> dict[str, Any]:
    return {"host": str(server.socket_directory), "port": server.port, "user": "dbguard", "dbname": "dbguard"}


@pytest.fixture
def lives(server: PostgreSQL, scenario: Callable[..., Any]) -> Callable[..., Any]:
    """`busy_parent` with a recording proxy between; it snapshots the bytes that came from the client."""
    from wsgi_dbguard.lab.proxy import FaultProxy

    def run(driver: str, guarded: bool, children: list[tuple[str, str]]) -> Any:
        key = next(KEYS)
        with FaultProxy(server.host, server.port) as proxy:
            return scenario(
                busy_parent,
                answer=lambda _: {number: sent for number, (sent, _) in proxy.snapshot().items()},
                url=server.url_through(proxy.host, proxy.port, driver, application_name=str(key)),
                direct=direct(server),
                key=key,
                guarded=guarded,
                children=children,
            )

    return run


@pytest.mark.parametrize("driver", DRIVERS)
def test_without_the_guard_children_write_on_their_parents_connections(driver: str, lives: Callable[..., Any]) -> None:
    (life,) = lives(driver, False, CHILDREN[:1])["lives"]
    assert life["wire"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_no_child_puts_a_byte_on_its_parents_connections_and_the_parent_never_notices(
    driver: str, lives: Callable[..., Any], tmp_path: Path
) -> None:
    told = lives(driver, True, CHILDREN)
    # SQLAlchemy's own rules: the transaction is lost, until rollback() or remove() says that this is known.
    harmless = {"lost": ["PendingRollbackError"], "worked": 0, "own": True}
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
    assert "Traceback" not in stderr


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("driver", DRIVERS)
def test_no_backend_is_left_when_the_parent_is_killed_while_children_live_on(
    driver: str, guarded: bool, server: PostgreSQL, scenario: Callable[..., Any]
) -> None:
    from wsgi_dbguard.lab.process import wait_until

    name = str(next(KEYS))
    left: list[bool] = []

    def backends() -> list[int]:
        return [pid for (pid,) in server.query("select pid from pg_stat_activity where application_name = %s", name)]

    def answer(own: str) -> None:
        try:
            # Without the guard nothing is to happen, so there is nothing to wait for.
            wait_until(lambda: backends() == [int(own)], timeout=20.0 if guarded else 0.5, what="the parent's backends")
        except TimeoutError:
            left.append(True)

    url = server.url(driver, application_name=name)
    assert scenario(killed_parent, answer=answer, url=url, guarded=guarded) == "told"
    assert left == ([] if guarded else [True])
