"""The checks: functions that are given `Facts` and yield findings. They ask nobody and change nothing.

`findings` runs them all. Each kind of finding is declared in `wsgi_dbguard.doctor.kinds`, and made in one place here.
"""

from __future__ import annotations

from wsgi_dbguard.doctor.facts import Facts
from wsgi_dbguard.doctor.kinds import KINDS, SEVERITIES, Finding

from . import databases, forks, pools, sessions, sizes, timeouts

__all__ = ["findings"]

_CHECKS = (
    *forks.CHECKS,
    *pools.CHECKS,
    *sessions.CHECKS,
    *sizes.CHECKS,
    *timeouts.CHECKS,
    *databases.CHECKS,
)
_ORDER = list(KINDS)


def findings(facts: Facts) -> list[Finding]:
    """All that there is to say, once; the worst first, of the same severity in the order of the table of kinds."""
    # Two engines with the same URL that one line has made are told of alike.
    found = dict.fromkeys(finding for check in _CHECKS for finding in check(facts))
    return sorted(found, key=lambda each: (SEVERITIES.index(each.kind.severity), _ORDER.index(each.kind.id)))
