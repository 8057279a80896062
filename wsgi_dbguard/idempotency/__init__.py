"""A request that is sent twice is done once: the Idempotency-Key header, kept in the application's own database.

In wsgi.py::

    from wsgi_dbguard import DBGuard
    from wsgi_dbguard.idempotency import Idempotent, create_table

    create_table(engine)        # or the statements of `python -m wsgi_dbguard.idempotency postgresql` in a migration
    application = DBGuard(Idempotent(application, engine, principal=lambda environ: environ.get("REMOTE_USER")), engine)

A client gives each operation a key of its own choice and sends the same key when it repeats the request
(draft-ietf-httpapi-idempotency-key-header-07). It is told:

* the first answer once more, with ``Idempotent-Replayed: true``;
* 409 while the first one is still running, with Retry-After; 409 "applied" if its answer was not kept: its detail tells
  whether the request was carried out (an answer that was too large) or failed or died after it had committed something,
  a part of it or all;
* 422 if the key was used for another request (method, path, query, length and the first `body_limit` bytes, 64 KiB, of
  the body are compared); 400 for a key that is missing where it is required, or malformed, and for a body that ends
  before its Content-Length, which takes no key.

How: a row with the key is committed before the application runs (the claim, with an owner and a lease). It is marked as
applied in the application's own transaction, just before its COMMIT, so either both last or none. Afterwards the answer
is added. A claim whose lease is over, since its process died or was stopped, is given to the next one that asks: the
old owner's COMMIT then finds no row of its own and fails (`ClaimLost`), so nothing is done twice. And a COMMIT whose
reply was lost is looked up; where the application itself tries again first, its next COMMIT finds out: it fails as well
if the lost one was carried out.

If the row cannot be marked (a lock, a deadlock, a full disk, a lost connection), the application's COMMIT fails with
the driver's error, and its transaction is rolled back for certain. Transactions in two phases are marked before they
are prepared; savepoints have nothing to do with it.

PostgreSQL tells what has written: a transaction that only read is no mark. MariaDB and MySQL do not, so there each
COMMIT is one, but that of START TRANSACTION READ ONLY: a request that has committed a transaction that only read, and
fails later, has used up its key (409 "applied"). End such a transaction by a rollback where that matters.

Only transactions by this one Engine (and its ``execution_options()`` copies) are marked, not those of another engine of
the same database. With a ``search_path`` that is set for each tenant, give the table with its schema,
``table="public.idempotency_keys"``; with a role for each tenant (SET ROLE), grant them SELECT and UPDATE on it.

In PostgreSQL's REPEATABLE READ and SERIALIZABLE a transaction that began before the claim, such as one that `principal`
has left open, cannot see it: its COMMIT fails (`ClaimUnseen`, a serialization failure), nothing is done and the key is
free again. It will fail each time: let `principal`, and what stands around `Idempotent`, end their transactions. In
SERIALIZABLE the mark is a read and a write more, so now and then a reason more for a serialization failure.

When not to use it: for effects outside this one database (mail, other databases); they are as often done as the
application runs. Writes that are committed past SQLAlchemy, in autocommit, or by the server itself (DDL in MySQL), and
those of threads that run outside the request's context, do not mark the row: a request that did them and ended well is
answered from the row, one that failed or died after them does them again. A transaction that was made READ ONLY by a
statement, not by ``postgresql_readonly``, cannot be committed in a keyed request in PostgreSQL. A process that is
stopped between the mark and its COMMIT keeps the row locked, until the server or the network ends its connection
(PostgreSQL: ``idle_in_transaction_session_timeout``); until then others get their 409. So does a transaction that was
prepared, until somebody commits it or rolls it back.

`Idempotent` belongs inside of `DBGuard`, which then may run a request again: as the same owner, and with what the row
says about a COMMIT in doubt. The guard's ``deadline`` bounds what is asked of the keys, each time anew, but not the
mark, which is part of the COMMIT. The other way round nothing is done twice either, but a request that had committed a
transaction that only read, before the database was lost, is told "outcome unknown" by the guard; and with
`wsgi_dbguard.routing` an answer that is given again brings no position for the client's next reads.
"""

from .claims import ClaimLost
from .header import parse_key
from .marker import ClaimUnseen
from .middleware import Idempotent
from .table import create_table, ddl, purge

__all__ = ["ClaimLost", "ClaimUnseen", "Idempotent", "create_table", "ddl", "parse_key", "purge"]
