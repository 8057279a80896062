"""The way to the database, and whether there is one."""

from __future__ import annotations

from collections.abc import Iterator

from wsgi_dbguard.doctor.facts import Facts
from wsgi_dbguard.doctor.kinds import KINDS, Finding

from .words import engine_at, sentence

__all__ = ["CHECKS"]


def reached(facts: Facts) -> Iterator[Finding]:
    """Databases that gave no answer."""
    errors = {each.engine: each.error for each in facts.databases if each.error}
    for engine in facts.app.engines:
        if engine.number in errors:
            yield KINDS["DBG-DB-unreachable"](
                seen=sentence(f"{engine_at(engine)} cannot reach its server: {errors[engine.number].splitlines()[0]}"),
                happens="Its limits and timeouts were not compared with anything. If the application cannot reach it "
                "from here either, its requests fail.",
                change="Start it, or mend the URL; or run doctor where it can be reached, or with --no-database.",
            )


def pooler(facts: Facts) -> Iterator[Finding]:
    """What a pooler that gives a server for each transaction breaks."""
    for engine in facts.app.engines:
        database = facts.database(engine)
        if database is not None and database.prepared_fails:
            yield KINDS["DBG-DB-prepared"](
                seen=sentence(
                    f"{engine_at(engine)} reaches PostgreSQL through a pooler in transaction mode (PgBouncer), and "
                    f"{engine.driver} makes server-side prepared statements. One was tried, and was gone in the next "
                    "transaction."
                ),
                happens="A statement that is executed for the sixth time is prepared; then it fails on another server: "
                "prepared statement does not exist, or already exists.",
                change='create_engine(…, connect_args={"prepare_threshold": None}); or PgBouncer 1.21 with '
                "max_prepared_statements.",
            )


def encryption(facts: Facts) -> Iterator[Finding]:
    """What others on the way can read."""
    for engine in facts.app.engines:
        database = facts.database(engine)
        if database is not None and database.remote and database.tls is False:
            argument = "sslmode=verify-full" if engine.dialect == "postgresql" else "ssl_ca=/path/to/ca.pem"
            yield KINDS["DBG-DB-tls"](
                seen=sentence(f"{engine_at(engine)} reaches a server on another host without TLS."),
                happens="Whoever is on the way reads all data, and can change it; with some logins the password too.",
                change=f"In the URL: {argument}",
            )


def engines(facts: Facts) -> Iterator[Finding]:
    """An import after which there is nothing to look at."""
    if not facts.app.engines:
        yield KINDS["DBG-APP-engines"](
            seen=f"After the import of {facts.app.target} there is no SQLAlchemy engine.",
            happens="Nothing is known of its pools and databases: engines that the first request makes are not seen.",
            change="Give the factory, such as module:create_app(), or make the engine at import: it opens no "
            "connection.",
        )


CHECKS = (reached, pooler, encryption, engines)
