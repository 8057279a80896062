"""What a statement changes on its connection that outlives the transaction: settings, locks, temporary tables.

Read from its text, so only what is plain there: not what a function or a procedure does by itself. In doubt something
is changed and nothing is undone: a text of several statements undoes nothing, and a lock that is taken for each row of
a query is not given back. Nothing is changed by SET LOCAL in PostgreSQL, SET TRANSACTION and SET GLOBAL.

Example::

    changes("SET search_path TO tenant", None, "postgresql")    # (Change("search_path", ...),)
    changes("select pg_advisory_unlock(%s)", (42,), "postgresql")  # (Change("lock 42", undo=True),)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from . import arguments
from .arguments import Argument

__all__ = ["ANYTHING", "COMMIT", "DATABASE", "ROLLBACK", "TRANSACTION_NAMES", "Change", "changes", "touches"]

ANYTHING = "anything"  # not to be put right
COMMIT = "commit"
ROLLBACK = "rollback"  # of the transaction, or to a savepoint
DATABASE = "database()"
_LONGEST = 4096  # characters
_BEGINNING = 256  # characters: of a longer statement, which is full of data; beyond them calls are looked for


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is changed; with `undo` put back to what it was.

    `key` names it: a setting by its name, ``@name`` a variable of MySQL's, and other things by kind and name ("lock
    42", "temp orders"); ``*`` as the name stands for all of the kind. `transactional`: a rollback undoes it.
    """

    key: str
    undo: bool = False
    transactional: bool = False
    reset: bool = False  # to what the server thinks right


@dataclass(frozen=True, slots=True)
class _Call:
    """Of a function, whose arguments may be known only when the statement is sent."""

    name: str
    arguments: tuple[Argument, ...] = ()
    plain: bool = False  # made once for each time that the statement is sent


_TOUCHES = re.compile(
    r"""(?:^|;|\*/|/\*M?!\d*|(?:--|\#)[^\n]*\n)\s*(?:set|reset|use|discard|listen|unlisten|lock|unlock|flush|prepare
        |deallocate|declare|close|commit|end|rollback|abort|drop)\b
    | \b(?:pg_)?temp(?:orary|_\d+)?\b | \bset_config\s*\( | _advisory_(?:un)?lock | \b(?:get|release)_lock
    | \brelease_all_locks | \bupdate\s[^;]*?\bpg_settings\b | \binto\s+@ | @`?[\w.$]+`?\s*:=""",
    re.IGNORECASE | re.VERBOSE,
)


def touches(statement: str) -> bool:
    """Whether `statement` may change such a thing: a cheap look, to be followed by `changes`."""
    # Optimization: SQLAlchemy sends the same few texts again and again. To search a long one is dear.
    if len(statement) <= _LONGEST:
        return _touches(statement)
    lower = statement.lower()
    return any(name in lower for name in _LASTING) or bool(_TOUCHES.search(statement, 0, _BEGINNING))


_LASTING = ("set_config", "_advisory_lock", "get_lock")


@lru_cache(maxsize=512)
def _touches(statement: str) -> bool:
    return _TOUCHES.search(statement) is not None


def changes(statement: str, parameters: Any, dialect: str) -> tuple[Change, ...]:
    """What `statement` changes with `parameters` (the driver's); `dialect` is SQLAlchemy's name of the database."""
    found: list[Change] = []
    parsed = _parse(statement[:_LONGEST], dialect == "postgresql")
    if len(statement) > _LONGEST:
        parsed += tuple(_Call(match[1].lower()) for match in _CALLS.finditer(statement))
    for each in parsed:
        change = each if isinstance(each, Change) else _called(each, parameters)
        if change and not (change.undo and len(statement) > _LONGEST):
            found.append(change)
    return tuple(found)


@lru_cache(maxsize=256)
def _parse(statement: str, postgresql: bool) -> tuple[Change | _Call, ...]:
    found: list[Change | _Call] = []
    comments = _COMMENTS if postgresql else _MYSQL_COMMENTS
    if not postgresql:
        statement = _EXECUTED_COMMENTS.sub(r" \1 ", statement)
    parts = [text for part in statement.split(";") if (text := comments.sub(" ", part).strip())]
    for text in parts:
        word = text.split(None, 1)[0].lower()
        rest = text[len(word) :].strip()
        if word == "set":
            found += _postgresql_set(rest) if postgresql else _mysql_set(rest)
        else:
            others = _other(word, rest, text, postgresql)
            found += others if len(parts) == 1 else (replace(each, reset=False) for each in others if not each.undo)
    calls = _CALLS.findall(statement)  # in a comment as well, for what looks like one may be in quotes
    plain = len(parts) == 1 and not _CONDITIONAL.search(parts[0]) and _CALLS.findall(parts[0]) == calls
    for match in _CALLS.finditer(statement):
        found.append(_Call(match[1].lower(), arguments.parse(statement, match.end()), plain))
    return tuple(found)


_EXECUTED_COMMENTS = re.compile(r"/\*M?!\d*(.*?)\*/", re.DOTALL)  # by MySQL and MariaDB
_CONDITIONAL = re.compile(r"\b(?:from|where|having|limit|case|if|coalesce|and|or|values|explain)\b", re.IGNORECASE)
_COMMENTS = re.compile(r"/\*.*?\*/|^(?:(?!/\*)[^'\"])*\*/|--[^\n]*(?:\n|$)", re.DOTALL)
_MYSQL_COMMENTS = re.compile(rf"{_COMMENTS.pattern}|#[^\n]*(?:\n|$)", re.DOTALL)
_CALLS = re.compile(
    r"\b(set_config|pg_(?:try_)?advisory_lock(?:_shared)?|pg_advisory_unlock(?:_shared|_all)?"
    r"|get_lock|release_lock|release_all_locks)\s*\(",
    re.IGNORECASE,
)
_NAME = r'["`]?([a-z_][\w.$]*)["`]?'
_TEMPORARY = re.compile(
    r"(?:create\s+(?:or\s+replace\s+)?(?:(?:local|global)\s+)?|\binto\s+(?:(?:local|global)\s+)?)temp(?:orary)?\s+"
    r"(?:recursive\s+)?(?:(?:table|view|sequence)\s+)?(?:if\s+not\s+exists\s+)?([\w.$\"`]+)"
    r"|(?:^create\s[^(]*?|\binto\s+(?:table\s+)?)(\"?pg_temp(?:_\d+)?\"?\.[\w$\"]+)",
    re.IGNORECASE,
)
_TEMPORARY_SCHEMA = re.compile(r"pg_temp(?:_\d+)?\.")
_ON_COMMIT_DROP = re.compile(r"\bon\s+commit\s+drop\b", re.IGNORECASE)
_DROP = re.compile(
    r"(?:temporary\s+)?(?:table|view|sequence)\s+(?:if\s+exists\s+)?(.*?)\s*(?:cascade|restrict)?$",
    re.IGNORECASE | re.DOTALL,
)
_DEALLOCATE = re.compile(rf"(?:prepare\s+)?{_NAME}", re.IGNORECASE)
_WITH_HOLD = re.compile(rf"{_NAME}.*?\bcursor\s+with\s+hold\b", re.IGNORECASE | re.DOTALL)
_UPDATED_SETTINGS = re.compile(r"\bupdate\s+(?:only\s+)?(?:pg_catalog\.)?pg_settings\b", re.IGNORECASE)
_ALL = ("*", "all")


def _other(word: str, rest: str, text: str, postgresql: bool) -> Iterator[Change]:
    """Of any statement but SET."""
    if word in ("create", "select", "with") and (match := _TEMPORARY.search(text)):
        if not (postgresql and _ON_COMMIT_DROP.search(text)):
            yield Change(f"temp {_table(match[1] or match[2])}", transactional=postgresql)
    elif word == "drop" and (match := re.match(r"prepare\s+(.*)", rest, re.IGNORECASE)):
        yield Change(f"prepared {match[1].lower()}", undo=True)
    elif word == "drop" and (match := _DROP.match(rest)):
        for name in match[1].split(","):
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
            yield replace(change, reset=True)
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
_NOT_OF_THE_SESSION = re.compile(r"(?:local|transaction|constraints|seed)\b", re.IGNORECASE)


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
_MYSQL_NOT_OF_THE_SESSION = re.compile(r"(?:transaction|password|default\s+role|statement)\b", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    r"(?:(global|session|local|persist|persist_only)\s+)?(@@(?:(global|session|local|persist|persist_only)\.)?|@)?"
    r"`?([a-z_][\w$]*)`?\s*:?=",
    re.IGNORECASE,
)
_SESSION_TRANSACTION = re.compile(r"(?:session|local)\s+transaction\s+(.*)", re.IGNORECASE | re.DOTALL)
TRANSACTION_NAMES = {"transaction_isolation": "tx_isolation", "transaction_read_only": "tx_read_only"}
_MYSQL_ASSIGNED = re.compile(r"\binto\s+@`?[\w.$]+`?(?:\s*,\s*@`?[\w.$]+`?)*|@`?[\w.$]+`?\s*:=", re.IGNORECASE)
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
    for part in arguments.split(rest):
        match = _ASSIGNMENT.match(part.strip())
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
    else:
        for match in _MYSQL_ASSIGNED.finditer(text):
            for name in re.findall(r"@`?([\w.$]+)", match[0]):
                yield Change(f"@{name.lower()}")


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
