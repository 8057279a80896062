"""Keeps SQLAlchemy's pooled connections alive in WSGI applications, and never shared across forked workers.

In wsgi.py::

    from wsgi_dbguard import DBGuard
    application = DBGuard(application)

See `DBGuard` (requests), `guard` (one engine, outside WSGI), `after_fork` (servers that fork unseen), and
`wsgi_dbguard.hooks` for gunicorn and uWSGI.
"""

from .config import GuardConfig
from .errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    ForkWarning,
    LeakWarning,
    OutcomeUnknown,
    SettingError,
    SharedSessionWarning,
)
from .fork import after_fork
from .guards import guard
from .middleware import DBGuard
from .pool import PoolGuard
from .replay import replayable

__all__ = [
    "DBGuard",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "ForkWarning",
    "GuardConfig",
    "LeakWarning",
    "OutcomeUnknown",
    "PoolGuard",
    "SettingError",
    "SharedSessionWarning",
    "after_fork",
    "guard",
    "replayable",
]
__version__ = "0.1.0"
