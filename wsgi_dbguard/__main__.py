"""``python -m wsgi_dbguard``: the same as the command ``wsgi-dbguard``."""

from wsgi_dbguard.cli import main

if __name__ == "__main__":
    main(prog_name="wsgi-dbguard")
