"""The arguments of a function in a SQL text, as far as they are plain: literals, and parameters of the driver's.

Example::

    text = "select set_config('search_path', %(path)s, false)"
    parsed = parse(text, text.index("(") + 1)
    [value(each, {"path": "tenant"}) for each in parsed]        # ["search_path", "tenant", False]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["UNKNOWN", "Argument", "parse", "split", "value"]

UNKNOWN = None
# ("value", literal), ("name" or "position", of a parameter), ("hash", of other arguments) or ("unknown", None)
Argument = tuple[str, Any]

_CAST = re.compile(r"\s*::\s*\w+(?:\s+\w+)*(?:\(\d+\))?$")
_NAMED = re.compile(r"%\((\w+)\)s|:(\w+)")
_POSITIONAL = re.compile(r"%s|\?")
_BOOLEANS = {"true": True, "false": False, "'t'": True, "'f'": False, "'true'": True, "'false'": False}
_HASH = re.compile(r"(hashtext(?:extended)?)\s*\(", re.IGNORECASE)  # as locks are named in PostgreSQL
_QUOTES = "'\"`"


def split(text: str) -> Iterator[str]:
    """The parts of `text` between commas, up to its end or to the parenthesis that closes it."""
    depth, begin, quote = 0, 0, ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character == "(":
            depth += 1
        elif character == ")":
            if not depth:
                yield text[begin:index]
                return
            depth -= 1
        elif character == "," and not depth:
            yield text[begin:index]
            begin = index + 1
    yield text[begin:]


def parse(statement: str, begin: int) -> tuple[Argument, ...]:
    """The arguments that begin at `begin`, after the opening parenthesis."""
    found: list[Argument] = []
    before = len(_POSITIONAL.findall(statement, 0, begin))
    for part in split(statement[begin:]):
        text = _CAST.sub("", part.strip())
        if text.lower() in _BOOLEANS:
            found.append(("value", _BOOLEANS[text.lower()]))
        elif text[:1] == text[-1:] == "'" and len(text) > 1:
            found.append(("value", text[1:-1].replace("''", "'")))
        elif text.isdecimal():
            found.append(("value", int(text)))
        elif match := _NAMED.fullmatch(text):
            found.append(("name", match[1] or match[2]))
        elif _POSITIONAL.fullmatch(text):
            found.append(("position", before))
        elif (match := _HASH.match(text)) and _closes(text, match.end()):
            inner = parse(statement, begin + part.index("(") + 1)
            found.append(("hash", (match[1].lower(), inner)))
        else:
            found.append(("unknown", UNKNOWN))
        before += len(_POSITIONAL.findall(part))
        begin += len(part) + 1
    return tuple(found)


def _closes(text: str, begin: int) -> bool:
    """Whether the parenthesis before `begin` is closed by the last character."""
    return begin + sum(len(part) + 1 for part in split(text[begin:])) == len(text)


def value(argument: Argument, parameters: Mapping[str, Any] | Sequence[Any]) -> Any:
    """What it stands for with these `parameters`, or UNKNOWN."""
    kind, content = argument
    if kind == "value":
        return content
    if kind == "hash":
        name, inner = content
        values = [value(each, parameters) for each in inner]
        return UNKNOWN if UNKNOWN in values else f"{name}({', '.join(map(repr, values))})"
    try:
        return UNKNOWN if kind == "unknown" else parameters[content]
    except (KeyError, IndexError, TypeError):
        return UNKNOWN
