"""A shop, by Flask and Flask-SQLAlchemy, as its users write one: the session is the extension's, nothing else is done
about connections. See lab/shop.py for what is asked of it; `wrapped` serves it guarded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request, stream_with_context
from flask_sqlalchemy import SQLAlchemy
from shop_items import Base, Item
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

application = Flask(__name__)
application.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
application.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 3, "max_overflow": 0, "pool_timeout": 1}


db = SQLAlchemy(application, model_class=Base)


@application.get("/healthz")
def healthz() -> str:
    return "ok"


@application.get("/items")
def items() -> str:
    return " ".join(db.session.scalars(select(Item.name).order_by(Item.name)))


@application.post("/items")
def add() -> tuple[str, int]:
    db.session.add(Item(name=request.form["name"]))
    db.session.commit()
    return "added", 201


@application.post("/items/<int:number>/sell")
def sell(number: int) -> str:
    item = db.get_or_404(Item, number)
    item.stock -= 1
    db.session.commit()
    return "sold"


@application.post("/items/<int:number>/delete")
def delete(number: int) -> str:
    db.session.delete(db.get_or_404(Item, number))
    db.session.commit()
    return "deleted"


@application.get("/items.csv")
def export() -> Response:
    def lines() -> Iterator[str]:
        yield "name,stock\n"
        for item in db.session.scalars(select(Item).order_by(Item.name)):
            yield f"{item.name},{item.stock}\n"

    return Response(stream_with_context(lines()), mimetype="text/csv")


@application.get("/report")
def report() -> str:
    """Gets over a database that fails, and then has a bug."""
    count: Any
    try:
        count = db.session.scalar(select(func.count(Item.id)))
    except OperationalError:
        db.session.rollback()
        count = None
    return str(count + 1)


@application.get("/broken")
def broken() -> str:
    return str(1 // 0)
