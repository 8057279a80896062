"""What a statement changes on its connection that outlives the transaction: settings, locks, temporary tables.

Read from its text without comments and literals, so only what is plain there: not what a function or a procedure does
by itself. In doubt something is changed and nothing is undone: a text of several statements, of more than 4096
characters, or that servers read in different ways undoes nothing, and a lock is given back only where nothing but
such calls and plain values is selected. Nothing is changed by SET LOCAL in PostgreSQL, SET TRANSACTION and SET GLOBAL.

Example::

    changes("SET search_path TO tenant", None, "postgresql")    # (Change("search_path", ...),)
    changes("select pg_advisory_unlock(%s)", (42,), "postgresql")  # (Change("lock 42", undo=True),)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from . import arguments
from .arguments import HIDDEN, Argument, Reading
from .patterns import lazily
from .statements import ANYTHING, LONGEST, touches_long

__all__ = ["ANYTHING", "COMMIT", "DATABASE", "ROLLBACK", "TRANSACTION_NAMES", "Change", "changes"]

COMMIT = "commit"
ROLLBACK = "rollback"  # of the transaction, or to a savepoint
DATABASE = "database()"


class Change(NamedTuple):
    """One thing that is changed; with `undo` put back to what it was.

    `key` names it: a setting by its name, ``@name`` a variable of MySQL's, and other things by kind and name ("lock
    42", "temp orders"); ``*`` as the name stands for all of the kind. `transactional`: a rollback undoes it.
    """

    key: str
    undo: bool = False
    transactional: bool = False
    reset: bool = False  # to what the server thinks right


class _Call(NamedTuple):
    """Of a function, whose arguments may be known only when the statement is sent."""

    name: str
    arguments: tuple[Argument, ...] = ()
    plain: bool = False  # made once for each time that the statement is sent


def changes(statement: str, parameters: Any, dialect: str) -> tuple[Change, ...]:
    """What `statement` changes with `parameters` (the driver's); `dialect` is SQLAlchemy's name of the database."""
    parse = _parse if len(statement) <= LONGEST else _parse.__wrapped__
    parsed = parse(statement, dialect == "postgresql")
    called = (each if isinstance(each, Change) else _called(each, parameters) for each in parsed)
    return tuple(each for each in called if each)


@lru_cache(maxsize=256)
def _parse(statement: str, postgresql: bool) -> tuple[Change | _Call, ...]:
    long = len(statement) > LONGEST
    readings = arguments.readings(statement, postgresql, short=long)
    doubtful = len(readings) > 1 or any(mark in statement for mark in _DOUBTFUL)
    found: list[Change | _Call] = []
    for reading in readings:
        if not long or touches_long(reading.code):
            each = _read(reading, postgresql, doubtful=long or doubtful or not reading.closed)
            found += each if not found else [one for one in each if one not in found]
    if not any(reading.closed for reading in readings):
        found.append(Change(ANYTHING))
    return tuple(found)


def _read(reading: Reading, postgresql: bool, doubtful: bool) -> list[Change | _Call]:
    found: list[Change | _Call] = []
    parts = [text for part in reading.code.split(";") if (text := part.strip())]
    several = doubtful or len(parts) != 1
    for text in parts:
        word = _WORD.match(text)[0].lower()  # type: ignore[index]  # perhaps empty
        rest = text[len(word) :].strip()
        if word == "set":
            found += _postgresql_set(rest) if postgresql else _mysql_set(rest)
        elif word == "do" and postgresql:  # what is quoted is executed
            found += _block(reading.text)
        else:
            for each in _other(word, rest, text, postgresql):
                if not (each.undo and (several or HIDDEN in each.key)):
                    found.append(each._replace(reset=False) if several else each)
    if not any(name in reading.code.lower() for name in _CALLED):
        return found
    plain = not several and _plain().fullmatch(parts[0]) is not None
    for number, match in enumerate(_CALLS.finditer(reading.code)):
        known = not doubtful and number < _MOST_CALLS
        given = arguments.parse(reading.text, reading.code, match.end()) if known else ()
        found.append(_Call(_name(match), given, plain))
    return found


def _block(text: str) -> Iterator[Change | _Call]:
    """Of PostgreSQL's DO."""
    if _SETS.search(text) or _TEMPORARY.search(text):
        yield Change(ANYTHING, transactional=True)
    yield from (_Call(_name(match)) for match in _CALLS.finditer(text))


_DOUBTFUL = ("\\'", '\\"', "/*!", "/*M!")  # of which only one reading may be complete


def _name(match: re.Match[str]) -> str:
    return _WORD.match(match[0])[0].lower()  # type: ignore[index]


_WORD = lazily(r"\w*")
_MOST_CALLS = 16  # whose arguments are looked at
_SETS = lazily(r"(?:;|\b(?:begin|then|else|loop)\b)\s*+(?:re)?set\s+(?!local\b)", re.IGNORECASE)
_CALLED = ("set_config", "_advisory_", "_lock")
_CALL = (
    r"\b(?:set_config|pg_(?:try_)?advisory_lock(?:_shared)?|pg_advisory_unlock(?:_shared|_all)?"
    r"|get_lock|release_lock|release_all_locks)\b[\"`]?\s*+\("
)
_CALLS = lazily(_CALL, re.IGNORECASE)


@cache  # Optimization: it takes 20 ms to compile, and most applications take no lock by hand
def _plain() -> re.Pattern[str]:
    """A statement that selects nothing but such calls and values."""
    values = rf"(?:{arguments.VALUE}(?:\s*+,\s*+{arguments.VALUE})*+)?+"
    selected = (
        rf"(?:(?:(?:pg_catalog\.)?[\"`]?{_CALL}\s*+{values}\s*+\)(?:::\w++)?|{arguments.VALUE})"
        rf"(?:\s*+=\s*+{arguments.VALUE})?+(?:\s++as\s++[\"`]?[\w$]++[\"`]?)?+)"
    )
    return re.compile(rf"(?:select|do)\s++{selected}(?:\s*+,\s*+{selected})*+", re.IGNORECASE)


_NAME = r'["`]?([a-z_][\w.$]*)["`]?'
_TEMPORARY = lazily(
    r"(?:create\s+(?:or\s+replace\s+)?(?:(?:local|global)\s+)?|\binto\s+(?:(?:local|global)\s+)?)temp(?:orary)?\s+"
    r"(?:recursive\s+)?(?:(?:table|view|sequence)\s+)?(?:if\s+not\s+exists\s+)?([\w.$\"`~]+)"
    r"|(?:^create\s[^(]*?|\binto\s+(?:table\s+)?)(\"?pg_temp(?:_\d+)?\"?\s*\.\s*[\w$\"~]+)",
    re.IGNORECASE,
)
_TEMPORARY_SCHEMA = lazily(r"pg_temp(?:_\d+)?\.")
_ON_COMMIT_DROP = lazily(r"\bon\s+commit\s+drop\b", re.IGNORECASE)
_DROP = lazily(
    r"(?:temporary\s+)?(?:table|view|sequence)\s+(?:if\s+exists\s+)?(.*)",
    re.IGNORECASE | re.DOTALL,
)
_DEALLOCATE = lazily(rf"(?:prepare\s+)?{_NAME}", re.IGNORECASE)
_WITH_HOLD = lazily(rf"{_NAME}.*?\bcursor\s+with\s+hold\b", re.IGNORECASE | re.DOTALL)
_UPDATED_SETTINGS = lazily(r"\bupdate\s+(?:only\s+)?(?:\"?pg_catalog\"?\s*\.\s*)?\"?pg_settings\b", re.IGNORECASE)
_ALL = ("*", "all")


def _other(word: str, rest: str, text: str, postgresql: bool) -> Iterator[Change]:
    """Of any statement but SET."""
    if (
        word in ("create", "select", "with", "explain")
        and "temp" in text.lower()
        and (match := _TEMPORARY.search(text))
    ):
        if not (postgresql and _ON_COMMIT_DROP.search(text)):
            yield Change(f"temp {_table(match[1] or match[2])}", transactional=postgresql)
    elif word == "drop" and (match := re.match(r"prepare\s+(.*)", rest, re.IGNORECASE)):
        yield Change(f"prepared {match[1].lower()}", undo=True)
    elif word == "drop" and (match := _DROP.match(rest)):
        for name in match[1].split(","):
            name = re.sub(r"\b(?:cascade|restrict)\s*$", "", name, flags=re.IGNORECASE)
            yield Change(f"temp {_table(name)}", undo=True, transactional=postgresql)
    elif word == "prepare" and not re.match(r"transaction\b", rest, re.IGNORECASE):
        yield Change(f"prepared {_bare(rest.partition('(')[0].partition(' ')[0])}")
    elif word == "deallocate" and (match := _DEALLOCATE.match(rest)):
        yield Change(f"prepared {'*' if match[1].lower() == 'all' else match[1].lower()}", undo=True)
    elif postgresql:
        yield from _postgresql_other(word, rest, text)
    else:
        yield from _mysql_other(word, rest, text)


def _bare(name: str) -> str:
    """The last part of a name, without quotes and schema."""
    return name.strip().rpartition(".")[2].strip('"` ').lower()


def _table(name: str) -> str:
    """A name without quotes, with its schema unless that is the one of temporary tables."""
    return _TEMPORARY_SCHEMA.sub("", re.sub(r"[\"`\s]", "", name).lower(), count=1)


def _postgresql_other(word: str, rest: str, text: str) -> Iterator[Change]:
    if word in ("commit", "end", "prepare"):  # PREPARE TRANSACTION
        yield Change(COMMIT)
    elif word in ("rollback", "abort"):
        yield Change(ROLLBACK)
    elif word == "reset":
        for change in _postgresql_set(rest):
            yield change._replace(reset=True)
    elif word == "listen":
        yield Change(f"listen {_bare(rest)}", transactional=True)
    elif word == "unlisten":
        yield Change(f"listen {_bare(rest)}", undo=True, transactional=True)
    elif word == "declare" and (match := _WITH_HOLD.match(rest)):
        yield Change(f"cursor {match[1].lower()}", transactional=True)
    elif word == "close":
        yield Change(f"cursor {'*' if rest.lower() in _ALL else _bare(rest)}", undo=True)
    elif word in ("update", "with") and _UPDATED_SETTINGS.search(text):
        yield Change(ANYTHING, transactional=True)  # which it is the condition says
    elif word == "discard" and rest.lower() in ("all", "temp", "temporary"):
        for kind in ("temp",) if rest.lower() != "all" else ("temp", "prepared", "listen", "lock", "cursor"):
            yield Change(f"{kind} *", undo=True, transactional=kind in ("temp", "listen"))
        if rest.lower() == "all":  # also of what was set when the connection was opened
            yield Change(ANYTHING)


_SPECIAL = {"time zone": "timezone", "names": "client_encoding", "schema": "search_path", "role": "role",
            "xml option": "xmloption"}  # fmt: skip
_CHARACTERISTICS = ("default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable")
_NOT_OF_THE_SESSION = lazily(r"(?:local|transaction|constraints|seed)\b", re.IGNORECASE)


def _postgresql_set(rest: str) -> Iterator[Change]:
    if _NOT_OF_THE_SESSION.match(rest):
        return
    text = re.sub(r"^session\s+", "", rest, flags=re.IGNORECASE)
    lower = " ".join(text.lower().split(None, 2)[:2])
    if lower.startswith("characteristics as"):
        for name in _CHARACTERISTICS:
            yield Change(name, transactional=True)
        return
    for words, name in _SPECIAL.items():
        if lower == words or lower.startswith(f"{words} "):
            yield Change(name, transactional=True)
            return
    match = re.match(rf"{_NAME}\s*(?:=|to\b|$)", text, re.IGNORECASE)
    known = match is not None and match[1].lower() not in ("all", "authorization")
    yield Change(match[1].lower() if match and known else ANYTHING, transactional=True)


# Other spellings, and what a statement sets beside what it names.
_NAMES = ("character_set_client", "character_set_results", "character_set_connection", "collation_connection")
_MYSQL_NOT_OF_THE_SESSION = lazily(r"(?:transaction|password|default\s+role|statement)\b", re.IGNORECASE)
_ASSIGNMENT = lazily(
    r"(?:(global|session|local|persist|persist_only)\s+)?(@@(?:(global|session|local|persist|persist_only)\.)?|@)?"
    r"`?([a-z_][\w$]*)`?\s*:?=",
    re.IGNORECASE,
)
_SESSION_TRANSACTION = lazily(r"(?:session|local)\s+transaction\s+(.*)", re.IGNORECASE | re.DOTALL)
TRANSACTION_NAMES = {"transaction_isolation": "tx_isolation", "transaction_read_only": "tx_read_only"}
_VARIABLE = r"(?<![\w@])@(?:[\w.$]++|[\"'`][\w.$~]++[\"'`])"
_VARIABLES = lazily(_VARIABLE)
_MYSQL_ASSIGNED = lazily(rf"\binto\s*+{_VARIABLE}(?:\s*+,\s*+{_VARIABLE})*+|{_VARIABLE}\s*+:=", re.IGNORECASE)
_GIVES = ("call", "get", "load")  # parameters for what is given out, GET DIAGNOSTICS, and LOAD DATA
_QUOTES = "\"'`"
_FOR_ONE_STATEMENT = frozenset({"insert_id", "last_insert_id", "identity", "rand_seed1", "rand_seed2"})
_CLOCK = "timestamp"  # what it was is not what it is to be


def _mysql_set(rest: str) -> Iterator[Change]:
    if _MYSQL_NOT_OF_THE_SESSION.match(rest):
        return
    if re.match(r"(?:names|char(?:acter\s+)?set)\b", rest, re.IGNORECASE):
        yield from map(Change, _NAMES)
        return
    if match := _SESSION_TRANSACTION.match(rest):
        if "isolation" in match[1].lower():
            yield Change("tx_isolation")
        if re.search(r"\bread\s+(?:only|write)\b", match[1], re.IGNORECASE):
            yield Change("tx_read_only")
        return
    scope = "session"
    for begin, end in arguments.split(rest):
        match = _ASSIGNMENT.match(rest[begin:end].strip())
        if match is None:
            yield Change(ANYTHING)
            return
        word, prefix, inner, name = match.groups()
        name = name.lower()
        if prefix == "@":
            yield Change(f"@{name}")
            continue
        if word:
            scope = word.lower()
        if (inner or scope).lower() not in ("session", "local") or name in _FOR_ONE_STATEMENT:
            continue
        yield Change(ANYTHING if name == _CLOCK else TRANSACTION_NAMES.get(name, name))


def _mysql_other(word: str, rest: str, text: str) -> Iterator[Change]:
    if word == "use":
        yield Change(DATABASE)
    elif word == "lock":
        yield Change("tables locked")
    elif word == "unlock":
        yield Change("tables *", undo=True)
    elif word == "flush" and re.search(r"\b(?:read\s+lock|for\s+export)\b", text, re.IGNORECASE):
        yield Change("tables locked")
    elif word in ("execute", "begin") and re.match(r"(?:immediate|not\s+atomic)\b", rest, re.IGNORECASE):
        yield Change(ANYTHING)
    elif "@" in text:
        for assigned in [text] if word in _GIVES else (match[0] for match in _MYSQL_ASSIGNED.finditer(text)):
            for name in _VARIABLES.findall(assigned):
                yield Change(ANYTHING if HIDDEN in name else f"@{name[1:].strip(_QUOTES).lower()}")


_LOCAL = (True, "true", "t", "on", "yes", "1")  # until the end of the transaction


def _called(call: _Call, parameters: Any) -> Change | None:
    known: Mapping[str, Any] | Sequence[Any] = parameters if isinstance(parameters, Mapping | Sequence) else ()
    values = [arguments.value(each, known) for each in call.arguments]
    if call.name == "set_config":
        if len(values) != 3 or not isinstance(values[0], str):
            return Change(ANYTHING, transactional=True)
        return None if values[2] in _LOCAL else Change(values[0].lower(), transactional=True)
    undo = "unlock" in call.name or call.name.startswith("release_")
    if call.name in ("pg_advisory_unlock_all", "release_all_locks"):
        key = "*"
    else:
        # The other argument of GET_LOCK is how long it waits. A list is of executemany.
        values = values[:1] if call.name == "get_lock" else values
        doubtful = isinstance(parameters, list) or not values or not all(isinstance(each, str | int) for each in values)
        key = "?" if doubtful else ", ".join(map(repr, values)) + " shared" * call.name.endswith("_shared")
    if not call.plain or key == "?":
        return None if undo else Change("lock ?")
    return Change(f"lock {key}", undo=undo)
