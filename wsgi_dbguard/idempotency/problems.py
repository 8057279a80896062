"""What a client is told instead of an answer of the application."""

from wsgi_dbguard.answers import Problem

__all__ = ["APPLIED", "CARRIED_OUT", "INCOMPLETE", "MALFORMED", "MISMATCH", "MISSING", "RUNNING", "UNSETTLED"]

MISSING = Problem(
    "urn:wsgi-dbguard:idempotency-key-missing",
    400,
    "Idempotency-Key is missing",
    "This request has to have an Idempotency-Key header.",
    retry=False,
)
MALFORMED = Problem(
    "urn:wsgi-dbguard:idempotency-key-malformed",
    400,
    "Idempotency-Key is malformed",
    'The Idempotency-Key header has to be one string of 1 to 255 characters, such as "8e03978e-40d5-43dd-bc93".',
    retry=False,
)
MISMATCH = Problem(
    "urn:wsgi-dbguard:idempotency-key-reused",
    422,
    "Idempotency-Key is already used",
    "This Idempotency-Key was used for another request. Each operation has to have a key of its own.",
    retry=False,
)
RUNNING = Problem(
    "urn:wsgi-dbguard:idempotency-running",
    409,
    "A request is outstanding for this Idempotency-Key",
    "A request with this Idempotency-Key is still being worked at. Send it again to get its answer.",
    retry=True,
)
CARRIED_OUT = Problem(
    "urn:wsgi-dbguard:idempotency-applied",
    409,
    "Applied already",
    "The request with this Idempotency-Key was carried out, but its answer is not there any more: fetch the current "
    "state.",
    retry=False,
)
APPLIED = Problem(
    CARRIED_OUT.type,
    409,
    "Applied already, in part or whole",
    "The request with this Idempotency-Key failed or was interrupted after it had saved something: a part of it, or "
    "all of it. Look at the current state before you send it with another key.",
    retry=False,
)
INCOMPLETE = Problem(
    "urn:wsgi-dbguard:idempotency-body-incomplete",
    400,
    "Request body is incomplete",
    "The body ended before its Content-Length: nothing was done this time. Send it again with the same key.",
    retry=True,
)
UNSETTLED = Problem(
    "urn:wsgi-dbguard:idempotency-unsettled",
    503,
    "Database unavailable",
    "The database could not be reached to see whether this request was carried out. Send it again with the same "
    "Idempotency-Key: it will not be done twice.",
    retry=True,
)
