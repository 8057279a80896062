"""A SQL text without its comments and the contents of its quotes; and the arguments of a function in it, as far as they
are plain: literals, and parameters of the driver's.

Example::

    text = "select set_config('search_path', %(path)s, false) -- (why)"
    code = readings(text, postgresql=True)[0].code              # "select set_config('~~~~~~~~~~~', %(path)s, false)"
    parsed = parse(text, code, text.index("(") + 1)
    [value(each, {"path": "tenant"}) for each in parsed]        # ["search_path", "tenant", False]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from .patterns import lazily

__all__ = ["HIDDEN", "UNKNOWN", "VALUE", "Argument", "Reading", "parse", "readings", "split", "value"]

HIDDEN = "~"  # stands for a character in quotes


class Reading(NamedTuple):
    """What the server may take a text for.

    `code` is `text` with spaces for the comments and HIDDEN for what is in quotes, but for plain names in double or
    back quotes. `closed`: no quote and no comment is open at the end.
    """

    text: str
    code: str
    closed: bool


def readings(statement: str, postgresql: bool, short: bool = False) -> list[Reading]:
    """All that `statement` may be read as: more than one where it depends on the version or a setting of the server.

    `short`: quotes are emptied, so that positions in `code` are not those in `text`.
    """
    texts = [statement]
    if not postgresql and _EXECUTED.search(statement):
        end = statement.rfind("*/") + 2
        texts.insert(0, _EXECUTED.sub(r" \1 ", statement[:end]) + statement[end:])
    # Whether a backslash escapes a quote is set by standard_conforming_strings and by NO_BACKSLASH_ESCAPES.
    doubtful = "\\'" in statement or '\\"' in statement
    modes = (False, True) if doubtful else (not postgresql,)
    found = [_reading(text, postgresql, escapes, short) for text in texts for escapes in modes]
    return [each for each in found if each.closed] or found  # the server refuses what is open


_EXECUTED = lazily(r"/\*M?!\d*(.*?)(?:\*/|\Z)", re.DOTALL)  # comments that MySQL and MariaDB execute, by version


def _quoted(quote: str, escapes: bool) -> str:
    inside, pair = (rf"[^{quote}\\]*+", rf"(?:{quote * 2}|\\.)") if escapes else (f"[^{quote}]*+", quote * 2)
    return f"{quote}{inside}(?:{pair}{inside})*+{quote}"


@cache  # Optimization: only what touches a session's state is read so closely, and many applications never send it
def _tokens(postgresql: bool, escapes: bool) -> re.Pattern[str]:
    """Comments and quotes. An open one goes to the end of the text and has a group; in PostgreSQL the first is of tags.

    Linear: nothing is given back (the possessive quantifiers). Each alternative begins with a plain character: so those
    that begin none are passed over fast.
    """
    # Optimization: rows of literals are one token.
    one = r"(?:[\s,\d.]|null\b|NULL\b)*+"
    rows = rf"{{}}(?:{one}(?:\)\s*+,\s*+\({one})?+{{}}){{{{8,}}}}+"
    single, double = _quoted("'", escapes), _quoted('"', escapes and not postgresql)
    kinds = [rows.format(single, single), single, r"'.*+()", r"/\*.*+()"]
    if postgresql:
        comment = r"/\*(?:[^*/]++|\*(?!/)|/(?!\*))*+\*/"
        for _ in range(3):  # one in another
            comment = rf"/\*(?:[^*/]++|\*(?!/)|/(?!\*)|{comment})*+\*/"
        dollar = r"\$(?<![\w$]\$)"
        body = rf"{dollar}((?:[^\W\d]\w*+)?)\$(?:[^$]++|\$(?!\1\$))*+\$\1\$"
        kinds = [body, comment, r"--[^\n\r]*+", *kinds, double, r'".*+()', rf"{dollar}\w*+\$.*+()"]
        for letter in "eE":
            kinds += [rf"{letter}(?<![\w$]{letter}){quoted}" for quoted in (_quoted("'", True), "'.*+()")]
    else:
        kinds = [r"/\*(?:[^*]++|\*(?!/))*+\*/", r"--(?=[\s\x00-\x1f]|\Z)[^\n]*+", r"#[^\n]*+", *kinds]
        kinds += [rows.format(double, double), double, r'".*+()', _quoted("`", False), r"`.*+()"]
    return re.compile("|".join(kinds), re.DOTALL)


_PLAIN = lazily(r"[\w.$]+")


def _reading(text: str, postgresql: bool, escapes: bool, short: bool) -> Reading:
    closed = True

    def hide(match: re.Match[str]) -> str:
        nonlocal closed
        token = match[0]
        closed = closed and (match.lastindex or 0) <= postgresql
        if token[0] in "-#/":
            return " " if short else " " * len(token)
        quote = token[0] if token[0] in '"`' else "'"
        if quote != "'" and _PLAIN.fullmatch(token, 1, len(token) - 1):
            return token
        return quote + ("" if short else HIDDEN * (len(token) - 2)) + quote

    return Reading(text, _tokens(postgresql, escapes).sub(hide, text), closed)


UNKNOWN = None
# ("value", literal), ("name" or "position", of a parameter), ("hash", of other arguments) or ("unknown", None)
Argument = tuple[str, Any]

_CAST = r"(?:\s*+::\s*+\w++(?:\s++varying\b)?(?:\(\d++\))?)?"
# In a Reading's code: a literal or a parameter, or in PostgreSQL the hash by which a lock is named.
_ONE = rf"(?:'{HIDDEN}*+'|\"{HIDDEN}*+\"|\"\w++\"|\d++|true\b|false\b|null\b|%s|%\(\w++\)s|:\w++|\?){_CAST}"
VALUE = rf"(?:{_ONE}|hashtext(?:extended)?\s*+\(\s*+{_ONE}(?:\s*+,\s*+{_ONE})*+\s*+\){_CAST})"

_CASTS = lazily(rf"{_CAST}\s*\Z")
_NAMED = lazily(r"%\((\w+)\)s|:(\w+)")
_BOOLEANS = {"true": True, "false": False, "'t'": True, "'f'": False, "'true'": True, "'false'": False}
_HASH = lazily(r"(hashtext(?:extended)?)\s*+\(", re.IGNORECASE)
_VALUE = lazily(VALUE, re.IGNORECASE)
_POSITION = lazily(r"%(?:%|(s))")  # drivers know no quotes here
_MARK = lazily(r"(\?)")
_DELIMITER = lazily(r"[(),]")


def split(code: str, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Where the parts of `code` between commas begin and end, up to its end or to the parenthesis that closes it."""
    depth = 0
    for match in _DELIMITER.finditer(code, begin):
        if match[0] == "(":
            depth += 1
        elif match[0] == ")" and depth:
            depth -= 1
        elif not depth:
            yield begin, match.start()
            begin = match.end()
            if match[0] == ")":
                return
    yield begin, len(code)


def parse(statement: str, code: str, begin: int) -> tuple[Argument, ...]:
    """The arguments that begin at `begin`, after the opening parenthesis; `code` as in Reading."""
    return tuple(_argument(statement, code, *part) for part in split(code, begin))


def _argument(statement: str, code: str, begin: int, end: int) -> Argument:
    begin = end - len(code[begin:end].lstrip())
    if not _VALUE.fullmatch(code[begin:end].rstrip()):
        return ("unknown", UNKNOWN)
    if match := _HASH.match(code, begin, end):
        return ("hash", (match[1].lower(), parse(statement, code, match.end())))
    text = statement[begin : _CASTS.search(code, begin, end).start()]  # type: ignore[union-attr]  # at least the end
    if text.lower() in _BOOLEANS:
        return ("value", _BOOLEANS[text.lower()])
    if text[0] in "'\"":
        return ("value", text[1:-1].replace(text[0] * 2, text[0]))
    if text.isdecimal():
        return ("value", int(text))
    if match := _NAMED.fullmatch(text):
        return ("name", match[1] or match[2])
    if text in ("%s", "?"):
        places = _POSITION.findall(statement, 0, begin) if text == "%s" else _MARK.findall(code, 0, begin)
        return ("position", sum(map(bool, places)))
    return ("unknown", UNKNOWN)


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
