"""What is different with MariaDB: positions of another kind, and error 1290."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.replication import MariaDBPair
from wsgi_dbguard.routing import Replicas, RoutingSession
from wsgi_dbguard.routing.positions import covers
from wsgi_dbguard.routing.servers import applied, written

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair() -> Iterator[MariaDBPair]:
    try:
        pair = MariaDBPair(log_bin_trust_function_creators="ON")
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with pair:
        pair.primary.query("create table visits (n int)")
        pair.primary.query(
            "create function visit() returns int modifies sql data begin insert into visits values (1); return 1; end"
        )
        pair.primary.query("grant execute on dbguard.* to dbguard@'%', dbguard@localhost")
        yield pair


def test_a_replica_that_has_more_than_the_primary_is_left_alone(pair: MariaDBPair) -> None:
    """As after a failover to one that had less; this primary is idle from then on."""
    primary, replica = create_engine(pair.primary.url("pymysql")), create_engine(pair.replica.url("pymysql"))
    replicas = Replicas(primary, [replica], secret="secret", check_every=0.1, out_for=0.0)
    (one,) = replicas.replicas
    new_session = sessionmaker(primary, class_=RoutingSession)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        with new_session() as session:
            return [b"%d" % session.scalar(text("SELECT @@server_id"))]

    client = Client(DBGuard(application, primary, replica))
    wait_until(lambda: client.get("/").data == b"2", timeout=60.0, what="the replica")
    pair.replica.query("stop slave")
    ((before,),) = pair.replica.query("select @@global.gtid_slave_pos")
    domain, server, number = before.split("-")
    try:
        pair.replica.query("set global gtid_slave_pos = %s", f"{domain}-{server}-{int(number) + 100}")
        wait_until(lambda: client.get("/").data == b"1", timeout=60.0, what="the end of its use")
        before_that = one.probes
        answers: set[bytes] = set()

        def looked() -> bool:
            answers.add(client.get("/").data)
            return one.probes > before_that + 3

        wait_until(looked, timeout=60.0, what="more looks at it")
        assert answers == {b"1"}
    finally:
        pair.replica.query("set global gtid_slave_pos = %s", before)
        pair.replica.query("start slave")
    wait_until(lambda: client.get("/").data == b"2", timeout=60.0, what="its return")
    for engine in (primary, replica):
        engine.dispose()


@pytest.mark.parametrize("driver", ["pymysql", "mysqlclient"])
@pytest.mark.parametrize("name", ["mysql", "mariadb"])
def test_a_write_that_reached_the_replica_runs_again_on_the_primary(pair: MariaDBPair, driver: str, name: str) -> None:
    urls = [each.url(driver).replace("mysql+", f"{name}+") for each in (pair.primary, pair.replica)]
    primary, replica = (create_engine(url) for url in urls)
    replicas = Replicas(primary, [replica], secret="secret")
    new_session = sessionmaker(primary, class_=RoutingSession)
    before = pair.primary.query("select count(*) from visits")[0][0]
    places: list[Any] = []

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with new_session() as session:
            places.append(session.scalar(text("SELECT @@server_id")))
            if environ["PATH_INFO"] == "/visit":
                session.scalar(text("SELECT visit()"))
                session.commit()
        start_response("200 OK", [])
        return [b""]

    client = Client(DBGuard(application, primary, replica))
    wait_until(lambda: client.get("/").status_code == 200 and places[-1] == 2, timeout=60.0, what="the replica")
    del places[:]
    answer = client.get("/visit")
    assert (answer.status_code, places) == (200, [2, 1])
    assert pair.primary.query("select count(*) from visits")[0][0] == before + 1
    assert replicas.stats()["primary"]["again"] == 1
    primary.dispose()
    replica.dispose()


def test_after_a_failover_a_replica_has_what_was_written_at_either_primary(pair: MariaDBPair) -> None:
    """The last test of this pair: it changes their parts."""
    old, new = pair.primary, pair.replica
    engines = [create_engine(each.url("pymysql")) for each in (old, new)]
    old.query("insert into visits values (2)")
    at_the_old_one = written(engines[0], 30.0)
    pair.caught_up()
    new.query("stop slave")
    new.query("set global read_only = off")
    old.query("set global gtid_slave_pos = @@global.gtid_binlog_pos")
    new.query("create user if not exists repl@'127.0.0.1'")
    new.query("grant replication slave on *.* to repl@'127.0.0.1'")
    old.query(
        "change master to master_host = %s, master_port = %s, master_user = 'repl', master_use_gtid = slave_pos",
        new.host,
        new.port,
    )
    assert covers(applied(engines[0], 30.0), at_the_old_one)
    new.query("insert into visits values (3)")
    at_the_new_one = written(engines[1], 30.0)
    assert not covers(applied(engines[0], 30.0), at_the_new_one)
    old.query("start slave")
    wait_until(lambda: covers(applied(engines[0], 30.0), at_the_new_one), timeout=60.0, what="the write, replicated")
    assert old.query("select count(*) from visits where n in (2, 3)") == [(2,)]
    there = applied(engines[0], 30.0)
    assert covers(there, at_the_old_one)
    assert not there.strays(written(engines[1], 30.0))
    for engine in engines:
        engine.dispose()
