"""The ORM: S4, a Session for everybody; S5, reads from a replica; S6, updates that overwrite each other."""

from __future__ import annotations

from collections.abc import Iterator

from wsgi_dbguard.doctor.facts import Facts, SessionFacts
from wsgi_dbguard.doctor.kinds import KINDS, Finding

from .words import listed

__all__ = ["CHECKS"]


def shared_session(facts: Facts) -> Iterator[Finding]:
    """Sessions that live as long as the process."""
    for session in facts.app.sessions:
        name = f"{session.name} is a Session" if session.name else "A Session that outlives the import is"
        if session.left_over:
            yield KINDS["DBG-S4-closed"](
                seen=f"{name} made at {session.made_at or 'an unknown line'}; it is closed, and no function names it.",
                happens="Nothing, as long as no request uses it: one Session for all of them would be shared.",
                change=f"{_at(session)}: del, or a function around it.",
            )
            continue
        open_now = ", in a transaction already" if session.in_transaction else ""
        healed = "The guard rolls it back after each request, but cannot make it safe for two at once."
        yield KINDS["DBG-S4-session"](
            seen=f"{name} made at {session.made_at or 'an unknown line'}{open_now}, for all requests of the process.",
            happens="After one lost connection every request fails with \"Can't reconnect until invalid transaction is "
            "rolled back\"; threads use it at once and see, commit and roll back each other's work."
            + (f" {healed}" if facts.app.guard is not None else ""),
            change=f"{_at(session)}: scoped_session(sessionmaker(engine)), with remove() at the end of each request.\n"
            "Or: make a Session in each view.",
        )


def _at(session: SessionFacts) -> str:
    return f"At {session.made_at}" if session.made_at else "There"


def replica_reads(facts: Facts) -> Iterator[Finding]:
    """A `get_bind` of the application's own, and a replica among its engines."""
    standbys = [each for each in facts.databases if each.standby and not each.error]
    if not standbys:
        return
    urls = {each.number: each.url for each in facts.app.engines}
    replicas = listed(urls.get(each.engine, "") for each in standbys)
    for maker in facts.app.makers:
        if maker.splits and not maker.routed:
            kind = KINDS["DBG-S5-expire" if maker.expires else "DBG-S5-split"]
            expires = " and expires its objects at commit (expire_on_commit)" if maker.expires else ""
            yield kind(
                seen=f"{maker.class_name}, of the sessionmaker at {maker.made_at or 'an unknown line'}, has a get_bind "
                f"of its own{expires}; a replica: {replicas}.",
                happens="An attribute that is read just after a commit is read from the replica, which may not have "
                "the row yet: ObjectDeletedError. And the page that the client is redirected to says 404."
                if maker.expires
                else "What a client has just written is not there yet when its next request reads from the replica: "
                "404, or yesterday's values.",
                change=f"Derive {maker.class_name} from wsgi_dbguard.routing.RoutingSession, without a get_bind of its "
                "own, and make Replicas(primary, [replica]) with a secret of yours beside it.",
            )


def stale_updates(facts: Facts) -> Iterator[Finding]:
    """`StaleDataError` is named, and hardly ever raised."""
    if facts.app.stale_at and not facts.app.versioned:
        yield KINDS["DBG-S6-version"](
            seen=f"{listed(facts.app.stale_at)}: StaleDataError is named; no mapped class has a version_id_col.",
            happens="It is raised only for rows that are gone. Of two requests that change the same row, the later one "
            "overwrites the earlier one's change, and nobody is told.",
            change='In the mapped class: __mapper_args__ = {"version_id_col": version}, an integer column.',
        )


CHECKS = (shared_session, replica_reads, stale_updates)
