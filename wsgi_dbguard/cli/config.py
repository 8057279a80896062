"""``wsgi-dbguard config``: the configuration files people copy or include, from the installed package.

The files are those of the directory ``deploy``: inside the package when it was installed from a wheel, beside it in
a checkout. uWSGI can include its one without a copy, by ``ini = exec://wsgi-dbguard config uwsgi``; copy the others
and change them::

    $ wsgi-dbguard config gunicorn > gunicorn.conf.py
    $ wsgi-dbguard config nginx --for uwsgi > /etc/nginx/sites-available/notes
    $ ls "$(wsgi-dbguard config --path)"        # all, with the example applications
"""

from __future__ import annotations

from pathlib import Path

import click

import wsgi_dbguard

__all__ = ["config"]

SERVERS = ("gunicorn", "uwsgi")
FILES = {
    ("gunicorn", "gunicorn"): "gunicorn.conf.py",
    ("uwsgi", "uwsgi"): "dbguard.ini",
    ("systemd", "gunicorn"): "systemd/wsgi-dbguard-gunicorn.service",
    ("systemd", "uwsgi"): "systemd/wsgi-dbguard-uwsgi.service",
    ("nginx", "gunicorn"): "nginx/gunicorn.conf",
    ("nginx", "uwsgi"): "nginx/uwsgi.conf",
}


def deploy_directory() -> Path:
    """Where the shipped files are.

    Raises:
        FileNotFoundError: neither in the package nor beside it: the installation is incomplete.
    """
    package = Path(wsgi_dbguard.__file__).resolve().parent
    for directory in (package / "deploy", package.parent / "deploy"):
        if (directory / "dbguard.ini").is_file():
            return directory
    raise FileNotFoundError(f"no deploy directory in {package}, nor beside it: was the package installed whole?")


@click.command()
@click.argument("what", type=click.Choice(list(dict.fromkeys(what for what, _ in FILES))), required=False)
@click.option("--path", "show_path", is_flag=True, help="Print where the file is, or where all are, not what is in it.")
@click.option(
    "--for", "server", type=click.Choice(SERVERS), help="The server that systemd or nginx is for.  [default: gunicorn]"
)
def config(what: str | None, show_path: bool, server: str | None) -> None:
    """Print a configuration file to copy or include.

    uWSGI includes its one without a copy: ini = exec://wsgi-dbguard config uwsgi
    """
    if what is None:
        if not show_path or server:
            raise click.UsageError("which one? Only --path goes without.")
        name = "."
    else:
        default = what if what in SERVERS else SERVERS[0]
        if (what, server or default) not in FILES:
            raise click.UsageError(f"--for {server} does not go with {what}")
        name = FILES[what, server or default]
    try:
        path = deploy_directory() / name
    except FileNotFoundError as missing:
        raise click.ClickException(str(missing)) from missing
    click.echo(path if show_path else path.read_text(encoding="utf-8"), nl=show_path)
