"""`wsgi-dbguard doctor`: what is wrong with a deployment, before it goes wrong.

The application is imported in a process of its own (`looking` starts it, `child` runs in it), after the server's
configuration was read there by the server's rules (`gunicorn`, `uwsgi`), as the server does it. What is found there
(`observing`, `database`) comes back as plain data (`facts`), without passwords (`secrets`). The checks (`checks`) make
findings of it, each of a declared kind (`kinds`), and `report` writes them down.

Example::

    from wsgi_dbguard.doctor import Order, examine
    facts, findings = examine(Order(target="wsgi:application", server="gunicorn", file="gunicorn.conf.py"))
    [finding.kind.id for finding in findings]       # ["DBG-S1-unchecked"]
"""

from __future__ import annotations

from dataclasses import replace

from .facts import Facts, decode, encode
from .kinds import Finding
from .looking import CannotLook, Order, look

__all__ = ["CannotLook", "Order", "examine"]


def examine(order: Order) -> tuple[Facts, list[Finding]]:
    """What was seen and what there is to say about it.

    Raises:
        CannotLook: the application could not be imported, or the server's configuration not be read.
    """
    from .checks import findings

    facts, secrets = look(order)
    found = [
        replace(
            each, seen=secrets.hide(each.seen), happens=secrets.hide(each.happens), change=secrets.hide(each.change)
        )
        for each in findings(facts)
    ]
    # Only now: the checks compare texts, and a password may be a part of one.
    return decode(Facts, secrets.hide_all(encode(facts))), found
