"""A keyed request whose COMMIT, or its reply, is lost: the row says what became of it, on either database."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection
from werkzeug.test import Client, TestResponse

from wsgi_dbguard import DBGuard
from wsgi_dbguard.idempotency import Idempotent, create_table
from wsgi_dbguard.lab.mariadb import MariaDB, ServerMissing
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

pytestmark = pytest.mark.slow

SEED = 20261121
ORDERS = 400
THREADS = 8
LONGEST = 120.0  # seconds that a client goes on
FAULTS = ("terminate", "reset", "drop request", "drop reply")
ANSWERS = {
    (201, "well"),
    (409, "idempotency-applied"),
    (409, "idempotency-running"),
    (503, "unavailable"),
    (503, "idempotency-unsettled"),
}
MOMENTS = ("begin", "inserted", "commit", "committed")


@pytest.fixture(scope="module", params=["psycopg2", "pymysql"])
def database(request: pytest.FixtureRequest) -> Iterator[PostgreSQL | MariaDB]:
    try:
        server = PostgreSQL() if request.param == "psycopg2" else MariaDB()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server as running:
        running.query("create table orders (item varchar(40))")  # without a key: what is doubled shall be seen
        yield running


@pytest.fixture
def proxy(database: PostgreSQL | MariaDB) -> Iterator[FaultProxy]:
    database.query("delete from orders")
    with FaultProxy(database.host, database.port) as proxy:
        yield proxy


@pytest.fixture
def engine(database: PostgreSQL | MariaDB, proxy: FaultProxy, make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    driver, options = ("psycopg2", {}) if isinstance(database, PostgreSQL) else ("pymysql", {"ssl_disabled": "true"})
    engine = make_engine(database.url_through(proxy.host, proxy.port, driver, **options), pool_size=THREADS)
    create_table(engine)
    database.query("delete from idempotency_keys")
    yield engine
    engine.dispose()


class Shop:
    """Inserts what it is sent; `strike` runs with the name of each moment that it comes to."""

    def __init__(self, engine: Engine, strike: Callable[[str, str, int], object]) -> None:
        self.engine = engine
        self.strike = strike
        self.runs = 0
        self.tries = 1  # of its transaction, within one run
        # Strike at each COMMIT, after the mark: what is put around it later comes before.
        do_commit = engine.dialect.do_commit

        def commit(connection: PoolProxiedConnection) -> None:
            item, pid = connection.info.pop("item", ("", 0))
            if item:
                self.strike("commit", item, pid)
            do_commit(connection)

        engine.dialect.do_commit = commit  # type: ignore[method-assign, assignment]
        self.backend = text(f"select {'pg_backend_pid' if engine.dialect.name == 'postgresql' else 'connection_id'}()")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.runs += 1
        item = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
        for tries in range(1, self.tries + 1):
            try:
                self.order(item)
                break
            except DBAPIError:
                if tries == self.tries:
                    raise
        start_response("201 Created", [("Content-Type", "text/plain")])
        yield b"well"

    def order(self, item: str) -> None:
        with Session(self.engine) as session:
            pid = session.scalar(self.backend) or 0
            session.connection().info["item"] = item, pid
            self.strike("begin", item, pid)
            session.execute(text("insert into orders values (:item)"), {"item": item})
            self.strike("inserted", item, pid)
            session.commit()
            self.strike("committed", item, pid)
            session.scalar(text("select 1"))


def post(app: WSGIApplication, item: str) -> TestResponse:
    return Client(app).post("/orders", data=item, headers={"Idempotency-Key": f'"{item}"'})


def told(response: TestResponse) -> tuple[int, str]:
    problem: Any = response.json if response.is_json else None
    return response.status_code, problem["type"].rpartition(":")[2] if problem else response.text


def once(act: Callable[[], object]) -> Callable[[str, str, int], None]:
    """Strikes at the first COMMIT."""
    struck: list[str] = []

    def strike(moment: str, item: str, pid: int) -> None:
        if moment == "commit" and not struck:
            struck.append(item)
            act()

    return strike


Wrap = Callable[..., Any]


def inside(app: Shop, lease: float = 60.0, **settings: Any) -> WSGIApplication:
    return DBGuard(Idempotent(app, app.engine, principal=None, lease=lease), app.engine, **settings)


def outside(app: Shop, **settings: Any) -> WSGIApplication:
    return Idempotent(DBGuard(app, app.engine, **settings), app.engine, principal=None)


def alone(app: Shop, **settings: Any) -> WSGIApplication:
    return Idempotent(app, app.engine, principal=None)


@pytest.mark.parametrize("wrap", [inside, outside, alone])
def test_a_commit_that_was_carried_out_is_known_to_be(
    engine: Engine, proxy: FaultProxy, database: PostgreSQL | MariaDB, wrap: Wrap
) -> None:
    shop = Shop(engine, once(lambda: proxy.drop_after(0, direction="server")))
    app = wrap(shop, replay="uncommitted")
    assert told(post(app, "a")) == (409, "idempotency-applied")
    assert told(post(app, "a")) == (409, "idempotency-applied")
    assert (shop.runs, database.query("select item from orders")) == (1, [("a",)])


@pytest.mark.parametrize("wrap", [inside, outside, alone])
def test_one_that_was_not_frees_the_key(
    engine: Engine, proxy: FaultProxy, database: PostgreSQL | MariaDB, wrap: Wrap
) -> None:
    shop = Shop(engine, once(lambda: proxy.drop_after(0, direction="client")))
    app = wrap(shop)
    first = post(app, "a")
    assert told(first) == (503, "unavailable")
    assert int(first.headers["Retry-After"]) >= 1
    assert database.query("select count(*) from orders") == [(0,)]
    assert told(post(app, "a")) == (201, "well")
    assert (shop.runs, database.query("select item from orders")) == (2, [("a",)])


def test_or_lets_the_guard_run_it_again(engine: Engine, proxy: FaultProxy, database: PostgreSQL | MariaDB) -> None:
    shop = Shop(engine, once(lambda: proxy.drop_after(0, direction="client")))
    app = inside(shop, replay="uncommitted")
    assert told(post(app, "a")) == (201, "well")
    assert post(app, "a").headers["Idempotent-Replayed"] == "true"
    assert (shop.runs, database.query("select item from orders")) == (2, [("a",)])


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("wrap", [inside, alone])
def test_an_application_that_tries_again_by_itself_commits_once(
    engine: Engine, proxy: FaultProxy, database: PostgreSQL | MariaDB, wrap: Wrap, carried_out: bool
) -> None:
    """As with a decorator around its transaction: the next mark finds out what became of the COMMIT in doubt."""
    shop = Shop(engine, once(lambda: proxy.drop_after(0, direction="server" if carried_out else "client")))
    shop.tries = 3
    app = wrap(shop)
    expected = (409, "idempotency-applied") if carried_out else (201, "well")
    assert [told(post(app, "a")), told(post(app, "a"))] == [expected, expected]
    assert (shop.runs, database.query("select item from orders")) == (1, [("a",)])


def test_what_it_does_wrong_afterwards_is_no_outcome_unknown(engine: Engine, proxy: FaultProxy) -> None:
    shop = Shop(engine, once(lambda: proxy.drop_after(0, direction="client")))
    shop.tries = 2

    def fails(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        list(shop(environ, start_response))
        raise KeyError("a bug")

    app = DBGuard(Idempotent(fails, engine, principal=None), engine)
    with pytest.raises(KeyError):
        post(app, "a")
    assert told(post(app, "a")) == (409, "idempotency-applied")


@pytest.mark.parametrize("wrap", [inside, outside])
def test_with_settle_the_answer_is_the_applications(
    engine: Engine, proxy: FaultProxy, database: PostgreSQL | MariaDB, wrap: Wrap
) -> None:
    """The guard finds out first that the COMMIT was carried out, and the application goes on; not so in MariaDB."""
    shop = Shop(engine, once(lambda: proxy.drop_after(0, direction="server")))
    app = wrap(shop, settle=True)
    expected = (201, "well") if isinstance(database, PostgreSQL) else (409, "idempotency-applied")
    assert [told(post(app, "a")), told(post(app, "a"))] == [expected, expected]
    assert (shop.runs, database.query("select item from orders")) == (1, [("a",)])


def test_a_database_that_is_away_when_it_is_asked_leaves_it_to_the_next_time(
    engine: Engine, proxy: FaultProxy, database: PostgreSQL | MariaDB
) -> None:
    """The COMMIT was carried out, its reply is lost, and nobody can be asked."""

    def strike() -> None:
        proxy.refuse()
        proxy.drop_after(0, direction="server")

    shop = Shop(engine, once(strike))
    app = inside(shop, replay="uncommitted")
    first = post(app, "a")
    assert told(first) == (503, "idempotency-unsettled")
    assert int(first.headers["Retry-After"]) >= 1
    proxy.up()
    answers: list[tuple[int, str]] = []

    def over() -> bool:
        answers.append(told(post(app, "a")))
        return answers[-1] not in ((503, "unavailable"), (409, "idempotency-running"))

    database.query("update idempotency_keys set expires = 1")  # its lease is over
    wait_until(over, timeout=LONGEST, what="the database to be reached again")
    assert answers[-1] == (409, "idempotency-applied")
    assert (shop.runs, database.query("select item from orders")) == (1, [("a",)])


def test_every_order_is_there_once_whatever_is_lost(
    engine: Engine, proxy: FaultProxy, database: PostgreSQL | MariaDB
) -> None:
    """Clients that repeat their order until they are told that it was carried out."""
    dice = random.Random(SEED)
    plan = {
        f"order {number}": (dice.choice(MOMENTS), dice.choice(FAULTS))
        for number in range(ORDERS)
        if dice.random() < 0.4
    }  # fmt: skip
    struck: Counter[tuple[str, str]] = Counter()

    def strike(moment: str, item: str, pid: int) -> None:
        if plan.get(item, ("", ""))[0] != moment:
            return
        _, fault = plan.pop(item)
        struck[moment, fault] += 1
        if fault == "terminate":
            database.terminate(pid)
        elif fault == "reset":
            proxy.reset()  # everybody's
        else:
            proxy.drop_after(0, direction="client" if fault == "drop request" else "server")

    app = inside(Shop(engine, strike), lease=2.0, replay="uncommitted", hold=60.0, retry_after=0.1)
    heard: Counter[tuple[int, str]] = Counter()

    def order(number: int) -> tuple[int, str]:
        answers: list[tuple[int, str]] = []

        def over() -> bool:
            answers.append(told(post(app, f"order {number}")))
            heard[answers[-1]] += 1
            assert answers[-1] in ANSWERS
            return answers[-1] in ((201, "well"), (409, "idempotency-applied"))

        wait_until(over, timeout=LONGEST, what=f"order {number}, told {answers}", interval=0.05)
        return answers[-1]

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(order, range(ORDERS)))
    rows = Counter(item for (item,) in database.query("select item from orders"))
    assert rows == {f"order {number}": 1 for number in range(ORDERS)}
    assert set(struck) == {(moment, fault) for moment in MOMENTS for fault in FAULTS}
    print(sorted(heard.items()), json.dumps({str(key): count for key, count in struck.items()}))
