"""Which statements give a sign of a write."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Sequence,
    Table,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    update,
)

from wsgi_dbguard.routing.session import writes

from .conftest import Item

items = Table("items", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer))
inserted = insert(items).values(n=1).returning(items.c.id).cte("inserted")

READS = [
    select(items),
    select(func.count()).select_from(items),
    select(items).union(select(items)),
    select(exists().where(items.c.n == 1)),
    select(items.c.n).cte("some").select(),
    select(text("n")).select_from(text("items")),
    text("SELECT * FROM items"),
    text("-- a word\nselect 1"),
    text("WITH some AS (SELECT 1) SELECT * FROM some"),
    text("SHOW timezone"),
    text("SELECT id FROM items").columns(items.c.id),
    select(Item).from_statement(text("SELECT * FROM items")),
    select(literal_column("id"), literal_column("'update'")),
]
WRITES = [
    insert(items),
    update(items).values(n=1),
    delete(items),
    select(inserted.c.id),
    select(items).where(items.c.id.in_(select(inserted.c.id))),
    select(literal(1)).add_cte(update(items).values(n=2).cte("updated")),
    select(items).with_for_update(),
    select(items).with_for_update(read=True),
    select(select(items).with_for_update().subquery()),
    select(func.nextval("items_id_seq")),
    select(Sequence("items_id_seq").next_value()),
    select(func.pg_advisory_xact_lock(1)),
    select(func.get_lock("x", 1)),
    select(text("nextval('x')")),
    select(literal_column("pg_advisory_xact_lock(1)::text")),
    select(Item).from_statement(text("UPDATE items SET n = 1 RETURNING *")),
    text("DELETE FROM items RETURNING id").columns(items.c.id),
    select(text("DELETE FROM items RETURNING id").columns(items.c.id).cte("gone")),
    text("INSERT INTO items VALUES (1)"),
    text("SELECT * FROM items FOR UPDATE"),
    text("SELECT * FROM items FOR NO KEY UPDATE"),
    text("SELECT * FROM items FOR SHARE"),
    text("SELECT * FROM items LOCK IN SHARE MODE"),
    text("WITH gone AS (DELETE FROM items RETURNING *) SELECT * FROM gone"),
    text("SELECT * INTO copies FROM items"),
    text("SELECT setval('x', 1)"),
    text("SELECT pg_try_advisory_lock(1)"),
    text("SET work_mem = '1MB'"),
    text("CREATE TABLE x (n int)"),
    text("CALL p()"),
    text("SELECT 1; DELETE FROM items"),
    text(""),
]


@pytest.mark.parametrize("statement", READS, ids=str)
def test_reads(statement: Any) -> None:
    assert not writes(statement)


@pytest.mark.parametrize("statement", WRITES, ids=str)
def test_signs_of_a_write(statement: Any) -> None:
    assert writes(statement)
