"""The application by its name, as the servers take it. ::

    load("wsgi:application")            # a name in a module
    load("shop:create_app('test')")     # a factory, with literal arguments
    load("wsgi")                        # `application`, else `app`, in that module
    load("deploy/wsgi.py:app")          # a file: its name ends in .py, or has a directory, as in ./site.wsgi

Only names and calls with literals: nothing of what is given is run as a program.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["TargetError", "load"]

DEFAULTS = ("application", "app")


class TargetError(Exception):
    """There is no such module, or nothing callable of that name in it."""


def load(target: str) -> Any:
    """The WSGI application. What its import raises passes through.

    Raises:
        TargetError: `target` cannot be read, or does not name a callable.
    """
    module_name, _, name = target.partition(":")
    if not module_name:
        raise TargetError(f"{target!r} names no module: write module:callable")
    is_file = module_name.endswith(".py") or os.sep in module_name
    module = _file(Path(module_name)) if is_file else _module(module_name)
    found = _named(module, name, target) if name else _default(module)
    if not callable(found):
        raise TargetError(f"{target!r} is of type {type(found).__name__}, not a WSGI application")
    if isinstance(found, FunctionType) and not _takes_a_request(found):
        raise TargetError(f"{target!r} does not take environ and start_response: for a factory write {target}()")
    return found


def _takes_a_request(function: FunctionType) -> bool:
    try:
        inspect.signature(function).bind({}, None)
    except TypeError:
        return False
    return True


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        # Of the application itself: one that it imports is an error of its own, to be shown with its traceback.
        if missing.name is not None and f"{name}.".startswith(f"{missing.name}."):
            raise TargetError(f"there is no module {name!r} in {os.getcwd()}, nor among what is installed") from None
        raise
    except (TypeError, ValueError) as wrong:
        if not all(part.isidentifier() for part in name.split(".")):
            raise TargetError(f"{name!r} is no module's name") from wrong
        raise


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"there is no file {str(path)!r}")
    # By a loader of its own, since the name may end in anything: .wsgi, or nothing at all.
    spec = importlib.util.spec_from_file_location(path.stem, path, loader=SourceFileLoader(path.stem, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _default(module: ModuleType) -> Any:
    for name in DEFAULTS:
        if hasattr(module, name):
            return getattr(module, name)
    raise TargetError(f"module {module.__name__!r} has neither `application` nor `app`: write module:callable")


def _named(module: ModuleType, expression: str, target: str) -> Any:
    try:
        node: ast.expr = ast.parse(expression, mode="eval").body
        call = node if isinstance(node, ast.Call) else None
        arguments = [ast.literal_eval(each) for each in call.args] if call else []
        keywords = {each.arg or "": ast.literal_eval(each.value) for each in call.keywords} if call else {}
        names = _names(call.func if call else node)
    except (SyntaxError, ValueError):
        raise TargetError(f"{target!r} cannot be read: write module:name or module:factory(literals)") from None
    found: Any = module
    for name in names:
        try:
            found = getattr(found, name)
        except AttributeError:
            raise TargetError(f"there is no {name!r} in {module.__name__!r}") from None
    if call is None:
        return found
    if not callable(found):
        raise TargetError(f"{target!r} calls a {type(found).__name__}")
    return found(*arguments, **keywords)


def _names(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*_names(node.value), node.attr]
    raise ValueError
