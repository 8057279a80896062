"""The errors and warnings of wsgi_dbguard, in one place.

Errors that reach an application subclass SQLAlchemy's own, so that ``except`` clauses written before the guard keep
working. Warnings are categories of their own, so that each can be filtered, or turned into an error in a test run::

    warnings.filterwarnings("error", category=ForkWarning)
"""

from sqlalchemy.exc import OperationalError

__all__ = [
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "ForkWarning",
    "LeakWarning",
    "OutcomeUnknown",
    "SettingError",
    "SharedSessionWarning",
]


class DatabaseUnavailable(OperationalError):
    """The database is away. ``orig`` is what this attempt to connect met, or, of a caller that was not to try, an error
    like the one that the last attempt met."""


class DeadlineExceeded(OperationalError):
    """The request has spent its time in the database (setting ``deadline``), so the statement was not sent.

    Also where a server ends a cancelled statement without an error (MySQL's SLEEP): what it returned is not to be used.
    """


class OutcomeUnknown(OperationalError):
    """The connection was lost during a COMMIT, in a request: what was to be committed may have been saved or not."""


class LeakWarning(RuntimeWarning):
    """A request ended and left a Session in a transaction, or a connection checked out."""


class SharedSessionWarning(RuntimeWarning):
    """Two requests that ran at the same time used one Session, which is not safe."""


class SettingError(ValueError):
    """A setting with an impossible value. The message names the setting, the value and its bound."""


class ForkWarning(RuntimeWarning):
    """A process opened database connections and forked: the child was cut off from them.

    Nothing is broken when this shows, the fork guard has done its work; but connections that the master opened
    at import sit idle in it for ever. The message says where they were opened.
    """
