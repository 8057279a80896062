"""The command line: ``wsgi-dbguard``, also ``python -m wsgi_dbguard``.

One module in this package is one command: the module ``config`` holds the click command ``config``, and no list of
them is kept elsewhere. A module is imported when its command runs, or when ``--help`` asks all of them for their
first line, so it imports what is heavy or optional (flask, gunicorn, `wsgi_dbguard.lab`) inside its functions.
Modules whose names begin with an underscore are no commands::

    $ wsgi-dbguard --help
    $ wsgi-dbguard config gunicorn --path
"""

from __future__ import annotations

import importlib
import pkgutil

import click

from wsgi_dbguard import __version__

__all__ = ["main"]


class _CommandModules(click.Group):
    """A group whose commands are the modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command


@click.group(cls=_CommandModules, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsgi-dbguard")
def main() -> None:
    """Keep SQLAlchemy's pooled connections alive, and never shared across forked workers."""
