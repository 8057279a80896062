"""The figures of a timeline: each request in the slot in which it was sent, and an explanation for the guard's."""

from __future__ import annotations

from wsgi_dbguard.lab.load import Answer, Kind
from wsgi_dbguard.lab.slots import UNEXPLAINED, figures_of
from wsgi_dbguard.lab.timeline import Span, Timeline, Track


def answer(sent: float, kind: Kind = "ok", *, took: float = 0.01, what: str = "") -> Answer:
    return Answer("token", kind, "200" if kind == "ok" else "503", sent, took, what)


def timeline(*tracks: Track) -> Timeline:
    faults = [Span("restart", 0.2, 0.5), Span("demotion", 0.6, 0.7)]
    return Timeline(1.0, faults, list(tracks), "18.0")


def test_requests_and_connections_are_counted_where_they_began() -> None:
    pages = [answer(0.05), answer(0.09, took=0.7), answer(0.31, "failed", took=15.0), answer(0.99, "wrong")]
    track = Track("nothing", {"GET": pages, "POST": [answer(0.35)]}, opened=[0.12, 0.19])
    found = figures_of(timeline(track))["contenders"]["nothing"]
    assert found["pages"] == {"requests": 4, "ok": 1, "held": 1, "failed": 1, "wrong": 1}
    assert found["orders"] == {"requests": 1, "ok": 1, "held": 0, "failed": 0, "wrong": 0, "lost": 0, "twice": 0}
    assert found["slots"] == {
        "ok": [1, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        "held": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "failed": [0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        "wrong": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        "latency": [0.7, 0, 0, 15.0, 0, 0, 0, 0, 0, 0.01],
        "opened": [0, 2, 0, 0, 0, 0, 0, 0, 0, 0],
    }
    assert (found["slowest"], found["opened"]) == (15.0, 2)
    assert [failure["second"] for failure in found["failures"]] == [0.31, 0.99]


def test_contenders_are_ranked_by_pages_that_failed() -> None:
    tracks = [Track(f"{number}", {"GET": [answer(0.1, "failed")] * number, "POST": []}) for number in (2, 0, 1)]
    tracks.append(Track("wrong", {"GET": [answer(0.1, "wrong")], "POST": []}))
    assert list(figures_of(timeline(*tracks))["contenders"]) == ["0", "1", "2", "wrong"]


def test_what_the_guard_failed_is_explained_or_said_not_to_be() -> None:
    unavailable, unknown = "body urn:wsgi-dbguard:unavailable", "body urn:wsgi-dbguard:outcome-unknown"
    orders = [
        answer(0.3, "failed", what=unavailable),
        answer(0.3, "failed", what=unknown),
        answer(0.65, "failed", what=unavailable),
    ]
    pages = [answer(0.3, "failed", what=unavailable), answer(0.3, "failed", what="TimeoutError: timed out")]
    found = figures_of(timeline(Track("guard", {"GET": pages, "POST": orders})))["contenders"]["guard"]["failures"]
    whys = [failure["why"] for failure in found]
    assert whys[:2] == [UNEXPLAINED] * 2  # no page may fail
    assert ["broke" in whys[2], "COMMIT" in whys[3], "demotion" in whys[4]] == [True] * 3
    assert [failure["fault"] for failure in found[2:]] == ["restart", "restart", "demotion"]
