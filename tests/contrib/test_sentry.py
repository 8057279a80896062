"""Sentry, by logging alone: an outage and a leak are one event each, with the `before_send` of the page on logging."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentry_sdk")

PAGE = Path(__file__).parents[2] / "wsgi_dbguard" / "docs" / "logging.md"
# In a process of its own: Sentry changes logging, Flask and threads for good.
APPLICATION = """
import atexit, json, threading
from concurrent.futures import ThreadPoolExecutor

from flask import Flask, request
from sqlalchemy import create_engine, text
from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

server = PostgreSQL()
atexit.register(server.close)
server.start()
engine = create_engine(server.url(), pool_size=6)
app = Flask(__name__)
kept = []
under_way = threading.Barrier(3)


@app.get("/")
def index():
    with engine.connect() as connection:
        return str(connection.scalar(text("select 1")))


@app.get("/slow")
def slow():
    with engine.connect() as connection:
        assert request.environ["wsgi_dbguard.attempt"] == 1  # there is no database for a second one
        under_way.wait(60.0)
        return str(connection.scalar(text("select pg_sleep(60)")))


@app.get("/leak")
def leak():
    kept.append(engine.connect())
    return "kept"


app.wsgi_app = DBGuard(app.wsgi_app, engine, retry_after=0.1, leak_stacks=True)


def ask(path):
    with app.test_client().get(path) as response:
        return response.status_code


with ThreadPoolExecutor(4) as threads:
    assert set(threads.map(ask, ["/"] * 8)) == {200}
    waiting = [threads.submit(ask, "/slow") for _ in range(2)]
    under_way.wait(60.0)
    server.kill()
    assert {each.result(60.0) for each in waiting} == {503}
    assert set(threads.map(ask, ["/"] * 100)) == {503}
    server.start()
    wait_until(lambda: ask("/") == 200, timeout=60.0, what="a database")
outage, events[:] = list(events), []
ask("/leak")
print(json.dumps([outage, events]))
kept[0].close()
engine.dispose()
"""
IN_MEMORY = """
from sentry_sdk.transport import Transport

events = []


class Memory(Transport):
    def capture_envelope(self, envelope):
        events.extend(item.payload.json for item in envelope.items if item.type == "event")
"""


def documented() -> str:
    """What the page has its reader write, with a transport that sends nothing."""
    (snippet,) = re.findall(r"```python\n(import sentry_sdk.*?)```", PAGE.read_text(), re.DOTALL)
    return str(snippet).replace("sentry_sdk.init(", "sentry_sdk.init(transport=Memory, ")


@pytest.mark.slow
def test_an_outage_and_a_leak_are_one_event_each(tmp_path: Path) -> None:
    program = tmp_path / "shop.py"
    program.write_text(IN_MEMORY + documented() + APPLICATION)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    outage, leak = json.loads(done.stdout)
    assert [(each["level"], each["logger"]) for each in outage] == [("error", "wsgi_dbguard.breaker")]
    assert "the database is away" in outage[0]["logentry"]["message"]
    assert [(each["level"], each["logger"]) for each in leak] == [("error", "wsgi_dbguard.leaks")]
    assert "GET /leak left a connection of " in leak[0]["logentry"]["message"]
    assert re.search(r'shop\.py", line \d+, in leak', leak[0]["logentry"]["message"])
