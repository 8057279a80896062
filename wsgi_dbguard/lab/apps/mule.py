"""A uWSGI mule that asks the database for one token after the other, through the engine of echo.py.

Writes a line for each to the file ``mules`` in the working directory: ``right``, or what was wrong. Started with
``--mule=mule.py`` beside echo.py or trials.py.
"""

from __future__ import annotations

import time
from uuid import uuid4

import echo
from sqlalchemy import text

PAUSE = 0.02  # seconds; it is there to be disturbed, not to be a load


def ask(token: str) -> str:
    try:
        with echo.engine.connect() as connection:
            answer = connection.scalar(text("SELECT :token"), {"token": token})
    except Exception as error:
        return repr(error).replace("\n", " ")
    return "right" if answer == token else f"{token}: {answer}"


def work() -> None:
    while True:
        line = ask(uuid4().hex)
        with open("mules", "a") as told:
            told.write(f"{line}\n")
        time.sleep(PAUSE)


work()
