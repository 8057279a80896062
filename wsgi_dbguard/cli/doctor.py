"""``wsgi-dbguard doctor``: what is wrong with a deployment, with ids, hints, and an exit code that a CI can use.

The application is imported, in a process of its own, and its databases are asked for their limits; nothing is changed.
What is looked at and how is told in `wsgi_dbguard.doctor`::

    $ wsgi-dbguard doctor wsgi:application --gunicorn gunicorn.conf.py
    $ wsgi-dbguard doctor --uwsgi uwsgi.ini --json | jq '.findings[].id'
    $ wsgi-dbguard doctor --list

Exit codes: 0 nothing as bad as ``--fail-on``; 1 there is; 2 could not look; 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ._seconds import Seconds

if TYPE_CHECKING:
    from wsgi_dbguard.doctor.facts import Facts
    from wsgi_dbguard.doctor.kinds import Finding

__all__ = ["doctor"]

SEVERITIES = ("error", "warning", "info", "never")


@click.command()
@click.argument("target", required=False, default="")
@click.option("--gunicorn", metavar="FILE", help="The gunicorn.conf.py that the application is served with.")
@click.option("--uwsgi", metavar="FILE", help="The uWSGI ini that it is served with.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--fail-on",
    type=click.Choice(SEVERITIES),
    default="warning",
    show_default=True,
    help="Exit with 1 for findings of this severity or worse.",
)
@click.option("--no-database", is_flag=True, help="Ask no database; do not connect to any.")
@click.option(
    "--timeout",
    type=Seconds(1, 3600),
    default=60,
    show_default=True,
    help="Seconds that the import may take.",
)
@click.option("--list", "list_kinds", is_flag=True, help="Print all findings that there are, by id.")
def doctor(
    target: str,
    gunicorn: str | None,
    uwsgi: str | None,
    as_json: bool,
    fail_on: str,
    no_database: bool,
    timeout: float,
    list_kinds: bool,
) -> None:
    """Look for what will go wrong with an application's database connections.

    TARGET is module:callable, module:factory(), or a module with `application` or `app`. Without it the server's
    configuration has to name the application. It is imported, and its databases are asked for their limits.

    Exit code 0: nothing to report, or nothing as bad as --fail-on; 1: findings; 2: could not look.
    """
    from wsgi_dbguard.doctor import CannotLook, Order, examine, report

    if list_kinds:
        click.echo(report.kinds_text())
        return
    if gunicorn and uwsgi:
        raise click.UsageError("--gunicorn or --uwsgi: one server at a time")
    server = "gunicorn" if gunicorn else "uwsgi" if uwsgi else ""
    if not target and not server:
        raise click.UsageError("which application? Give TARGET, such as wsgi:application")
    order = Order(target=target, server=server, file=gunicorn or uwsgi or "", database=not no_database, timeout=timeout)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # one that is not UTF-8
    try:
        with _ended_by_sigterm():
            facts, findings = examine(order)
    except CannotLook as error:
        if as_json:
            click.echo(json.dumps({"error": str(error), "output": error.output.splitlines()}, indent=2))
        else:
            if error.output:
                click.echo(error.output, err=True)
            click.echo(f"Could not look: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    if as_json:
        click.echo(json.dumps(report.as_dict(facts, findings), indent=2))
    elif sys.stdout.isatty():
        _show(facts, findings)
    else:
        click.echo(report.text(facts, findings))
    from wsgi_dbguard.doctor.kinds import at_least

    sys.exit(any(at_least(each.kind.severity, fail_on) for each in findings))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: not without the process that it has started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(facts: Facts, findings: list[Finding]) -> None:
    """On a terminal."""
    from rich.console import Console

    from wsgi_dbguard.doctor import report

    console = Console(highlight=False)
    console.print(report.heading(facts), markup=False)
    if findings:
        console.print(report.table(findings))
    console.print(report.summary(facts, findings), markup=False)
