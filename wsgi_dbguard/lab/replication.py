"""A primary and its replica, PostgreSQL or MariaDB, with replication that can be stopped and resumed at will.

Both pairs offer the same: `primary` and `replica` are servers of the lab, `pause_replay()` has the replica receive but
not apply (so that its lag is certain, not a matter of luck), `resume_replay()` undoes that, `caught_up()` waits until
the replica shows all that the primary has.

Example::

    with PostgreSQLPair() as pair:
        pair.pause_replay()
        pair.primary.query("insert into items values (1)")
        pair.replica.query("select * from items")       # nothing
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

from .mariadb import MariaDB
from .postgres import PostgreSQL
from .process import wait_until
from .server import NAME, DatabaseServer

__all__ = ["MariaDBPair", "Pair", "PostgreSQLPair", "Standby"]

PATIENCE = 60.0  # seconds, for what takes milliseconds on a machine that is not busy


class Standby(PostgreSQL):
    """A hot standby of `primary`, which must run: its first start copies the cluster."""

    def __init__(self, primary: PostgreSQL, **options: Any) -> None:
        self._primary = primary
        super().__init__(**options)

    def promote(self) -> None:
        """It becomes a primary of its own; returns when it has."""
        self.query("select pg_promote(true)")
        wait_until(lambda: self.query("select not pg_is_in_recovery()")[0][0], timeout=PATIENCE, what="the promotion")

    def follow(self, primary: PostgreSQL | None) -> None:
        """Receive from `primary` instead, or from nobody."""
        source = ""
        if primary is not None:
            primary.query("select pg_create_physical_replication_slot(%s)", f"standby_{self.port}")
            source = f"host={primary.socket_directory} port={primary.port} user={NAME}"
        self.query("alter system set primary_conninfo = %s", source)
        self.query("select pg_reload_conf()")
        if primary is None:
            gone = "select not exists (select from pg_stat_wal_receiver)"
            wait_until(lambda: self.query(gone)[0][0], timeout=PATIENCE, what="the end of its receiver")

    def _make_cluster(self) -> None:
        source = f"host={self._primary.socket_directory} port={self._primary.port} user={NAME}"
        # The slot has the primary keep what this standby has not received yet, also while it is away: the next
        # checkpoint, of the next standby's copy for example, would remove it, and this one would never catch up.
        slot = ["--create-slot", f"--slot=standby_{self.port}"]
        options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--wal-method=stream", *slot]
        with self._run(self._bin / "pg_basebackup", "-D", self.directory, "-d", source, *options) as backup:
            if backup.wait(120.0):
                raise RuntimeError(f"pg_basebackup failed:\n{backup.output(last=20)}")


class Pair:
    """A primary with a replica, running in its `with` block."""

    primary: DatabaseServer
    replica: DatabaseServer

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self.caught_up()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        raise NotImplementedError

    def pause_replay(self) -> None:
        """What is committed from now on is not seen on the replica."""
        raise NotImplementedError

    def resume_replay(self) -> None:
        """Undo `pause_replay()`."""
        raise NotImplementedError

    def caught_up(self) -> None:
        """Wait until all that was committed so far is seen on the replica. Raises TimeoutError."""
        raise NotImplementedError


class PostgreSQLPair(Pair):
    """PostgreSQL with a hot standby, asynchronous; `settings` are both servers'. Raises ServerMissing."""

    primary: PostgreSQL
    replica: Standby

    def __init__(self, **settings: str) -> None:
        super().__init__()
        # The standby tells what it has applied, and asks again for a lost primary, without delay.
        self._settings = {"wal_receiver_status_interval": "1", "wal_retrieve_retry_interval": "200ms", **settings}

    def _start(self, stack: ExitStack) -> None:
        self.primary = stack.enter_context(PostgreSQL(settings=self._settings))
        self.replica = stack.enter_context(Standby(self.primary, settings=self._settings))

    def pause_replay(self) -> None:
        self.replica.query("select pg_wal_replay_pause()")
        state = "select pg_get_wal_replay_pause_state() = 'paused'"
        wait_until(lambda: self.replica.query(state)[0][0], timeout=PATIENCE, what="the pause of replay")

    def resume_replay(self) -> None:
        self.replica.query("select pg_wal_replay_resume()")

    def caught_up(self) -> None:
        ((position,),) = self.primary.query("select pg_current_wal_flush_lsn()::text")
        done = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
        wait_until(
            lambda: self.replica.query(done, position)[0][0], timeout=PATIENCE, what=f"{position} on the replica"
        )


class MariaDBPair(Pair):
    """MariaDB with a read-only replica by GTID, asynchronous; `settings` are both servers'. Raises ServerMissing."""

    primary: MariaDB
    replica: MariaDB

    def __init__(self, **settings: str) -> None:
        super().__init__()
        self._settings = settings

    def _start(self, stack: ExitStack) -> None:
        common = {"log_bin": "binlog", "sync_binlog": "0", **self._settings}
        self.primary = stack.enter_context(MariaDB(settings={"server_id": "1", **common}))
        self.replica = stack.enter_context(
            MariaDB(settings={"server_id": "2", "read_only": "ON", "slave_net_timeout": "10", **common})
        )
        self.primary.query("create user repl@'127.0.0.1'")
        self.primary.query("grant replication slave on *.* to repl@'127.0.0.1'")
        # Both began with the same tables, so the replica begins here.
        ((position,),) = self.primary.query("select @@global.gtid_binlog_pos")
        self.replica.query("set global gtid_slave_pos = %s", position)
        self.replica.query(
            "change master to master_host = %s, master_port = %s, master_user = 'repl', master_connect_retry = 1,"
            " master_use_gtid = slave_pos",
            self.primary.host,
            self.primary.port,
        )
        self.replica.query("start slave")

    def pause_replay(self) -> None:
        self.replica.query("stop slave sql_thread")

    def resume_replay(self) -> None:
        self.replica.query("start slave sql_thread")

    def caught_up(self) -> None:
        ((position,),) = self.primary.query("select @@global.gtid_binlog_pos")
        done = "select master_gtid_wait(%s, 1)"
        wait_until(
            lambda: self.replica.query(done, position)[0][0] == 0, timeout=PATIENCE, what=f"{position} on the replica"
        )
