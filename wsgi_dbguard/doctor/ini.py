"""uWSGI's ini files, read without uWSGI: includes, placeholders, conditions.

uWSGI has ``--show-config``, but on the way to it daemonizes, writes its pid file, runs what stands in ``exec-asap`` and
replaces unix sockets: not what somebody wants of a look at the server that is running. A test compares the two.

Read: ``ini``, ``include``, ``inherit`` with ``exec://`` (the command is run, as uWSGI runs it), ``%d`` and the other
magic variables of the file, ``%(option)``, ``$(VARIABLE)``, ``@(file)``, ``if-…``/``endif``, ``set-placeholder``.
Refused, with a word: ``for`` loops, other addresses than files and ``exec://``, other formats than ini.

Example::

    options = read(Path("uwsgi.ini"), os.environ)
    last(options, "processes")
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["IniError", "Options", "read"]

Options = list[tuple[str, str]]
_INCLUDES = ("ini", "include", "inherit")
_CONDITION = re.compile(r"if-(not-)?(env|opt|file|dir|exists|reload)")
_PLACEHOLDER = re.compile(r"%\(([^()]*)\)")
_ARITHMETIC = re.compile(r"(.+?) ([-+*/]) (.+)")
_VARIABLE = re.compile(r"\$\(([^()]*)\)")
_CONTENT = re.compile(r"@\(([^()]*)\)")
_MAGIC = re.compile(r"%([a-zA-Z0-9])")
_DEEPEST = 20  # files that include each other
_PATIENCE = 30.0  # seconds for a command of exec://


class IniError(Exception):
    """The file is not there, or says something that is not understood here."""


@dataclass
class _Reader:
    environ: Mapping[str, str]
    options: Options = field(default_factory=list)
    # Of the if- that is open: does it hold, and the text that it found, which %(_) stands for.
    condition: tuple[bool, str] | None = None


def read(file: str, environ: Mapping[str, str]) -> Options:
    """All options in the order in which uWSGI takes them, those of its environment (``UWSGI_…``) last.

    Raises:
        IniError: the file is not there, or says something that is not understood here.
    """
    reader = _Reader(environ)
    _read(reader, file, 0)
    for name, value in environ.items():
        if name.startswith("UWSGI_") and name not in ("UWSGI_RELOADS", "UWSGI_ORIGINAL_PROC_NAME"):
            reader.options.append((name.removeprefix("UWSGI_").lower().replace("_", "-"), value))
    placeholders = list(reader.options)
    return [
        (name, _later(reader, value, placeholders))
        for name, value in reader.options
        if name not in ("set-placeholder", "set-ph", "set")
    ]


def _read(reader: _Reader, address: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise IniError(f"{address} is included by itself, or too deep")
    path, colon, section = address.rpartition(":")
    if address.startswith("exec://"):
        path, section, text = address, "uwsgi", _output(address.removeprefix("exec://"))
    elif "://" in address:
        raise IniError(f"{address}: only files and exec:// are read")
    else:
        if not colon:
            path, section = address, "uwsgi"
        if not path.endswith(".ini") and path.rpartition(".")[2] in ("xml", "yaml", "yml", "json", "js"):
            raise IniError(f"{path}: only ini files are read")
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise IniError(f"{path}: {error.strerror}") from None
    magic = _magic(path)
    current, found = "", False
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line[0] in ";#":
            continue
        if line[0] == "[":
            current = line.partition("]")[0][1:].strip()
            found = found or current == section
        elif current == section:
            name, _, value = line.partition("=")
            _option(reader, name.strip(), _immediate(value.strip(), magic), f"{path}:{number}", depth)
    if not found:
        raise IniError(f"{path}: there is no section [{section}]")


def _option(reader: _Reader, name: str, value: str, where: str, depth: int) -> None:
    if name in ("endif", "end"):
        if reader.condition is None:
            raise IniError(f"{where}: {name} without an if")
        reader.condition = None
    elif name.startswith("if-"):
        if reader.condition is not None:
            raise IniError(f"{where}: {name} inside another if: uWSGI does not take that")
        reader.condition = _condition(reader, name, value, where)
    elif reader.condition is not None and not reader.condition[0]:
        return
    elif name in ("for", "endfor", "for-glob", "for-times", "for-readline"):
        raise IniError(f"{where}: loops ({name}) are not read here; write the lines out, or give doctor another file")
    elif name in _INCLUDES:
        if _PLACEHOLDER.search(value) or _VARIABLE.search(value):
            raise IniError(f"{where}: uWSGI takes no %(option) or $(VARIABLE) in an include; %d is the directory")
        _read(reader, value, depth + 1)
    else:
        if reader.condition is not None:
            value = value.replace("%(_)", reader.condition[1])
        if name in ("set-placeholder", "set-ph", "set"):
            reader.options.append((name, value))
            name, _, value = value.partition("=")
        # An option without a value is switched on.
        reader.options.append((name.strip(), value.strip() if value else ("" if name == "env" else "true")))


def _condition(reader: _Reader, name: str, value: str, where: str) -> tuple[bool, str]:
    known = _CONDITION.fullmatch(name)
    if known is None:
        raise IniError(f"{where}: {name} is not understood here")
    what, _, expected = value.partition("=")
    match known[2]:
        case "env":
            text = reader.environ.get(what)
            found = text is not None and (not expected or text == expected)
        case "opt":
            text = next((content for option, content in reader.options if option == what), None)
            found = text is not None and (not expected or text == expected)
        case "reload":
            text, found = "", False
        case kind:
            text = value
            test: Callable[[str], bool] = {"file": os.path.isfile, "dir": os.path.isdir}.get(kind, os.path.exists)
            found = test(value)
    return found is not bool(known[1]), text or ""


def _magic(path: str) -> dict[str, str]:
    """The variables of the file, by uWSGI's letters (see "Magic variables" in its documentation)."""
    full = path if path.startswith("exec://") else os.path.realpath(path)
    directory = os.path.dirname(full) + "/"
    name = os.path.basename(full)
    cores = str(os.cpu_count() or 1)
    stem, _, extension = name.rpartition(".")
    folder = os.path.basename(directory.rstrip("/"))
    return {"p": full, "d": directory, "s": name, "n": stem or name, "e": extension, "c": folder, "k": cores, "o": path}


def _immediate(value: str, magic: dict[str, str]) -> str:
    return _MAGIC.sub(lambda found: magic.get(found[1], found[0]), value)


def _later(reader: _Reader, value: str, placeholders: Options) -> str:
    """What uWSGI replaces when all is read: variables, then files, then options, the first of a name."""

    def option(found: re.Match[str]) -> str:
        name, operator, right = found[1], "", ""
        if calculation := _ARITHMETIC.fullmatch(found[1]):
            name, operator, right = calculation.groups()
        text = next((content for each, content in placeholders if each == name), "" if operator else found[0])
        if not operator:
            return text
        left, other = int(text) if text.isdecimal() else 0, int(right) if right.isdecimal() else 0
        return str({"+": left + other, "-": left - other, "*": left * other}.get(operator, left // (other or 1)))

    for _ in range(_DEEPEST):
        before = value
        value = _VARIABLE.sub(lambda found: reader.environ.get(found[1], found[0]), value)
        value = _PLACEHOLDER.sub(option, value)
        if value == before:
            break
    return _CONTENT.sub(_content, value)


def _content(found: re.Match[str]) -> str:
    try:
        return Path(found[1]).read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise IniError(f"@({found[1]}): {error.strerror}") from None


def _output(command: str) -> str:
    try:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise IniError(f"exec://{command} did not end within {_PATIENCE:g} s") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise IniError(f"exec://{command} failed: {last[0]}")
    return done.stdout
