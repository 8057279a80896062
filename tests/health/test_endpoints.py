"""What is answered under the prefix, to whom, and what never is: secrets, and requests of the application's own."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from sqlalchemy import create_engine
from werkzeug.test import Client, TestResponse, create_environ

from wsgi_dbguard import DBGuard, worker

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

TOKEN = "a-token_for/tests+only="
SECRETS = ("swordfish", "bearskin", "somebody")
# Nobody listens there, and nobody asks.
ENGINE = create_engine("postgresql+psycopg2://somebody:swordfish@127.0.0.1:1/shop?sslpassword=bearskin")
PAGE = "/-/db/"

reached: list[str] = []


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    reached.append(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"the application"]


class Browser(Client):
    """Closes each answer, as servers do."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        return super().open(*args, **{**kwargs, "buffered": True})


def client(**settings: Any) -> Browser:
    reached.clear()
    return Browser(validator(DBGuard(validator(application), ENGINE, health="/-/db", **settings)))


def get(path: str, **headers: str) -> TestResponse:
    """Of a server without a token."""
    return client().get(path, headers=headers)


@pytest.fixture
def ending() -> Iterable[None]:
    worker.end()
    yield
    worker._after_fork()


def test_livez_is_alive_whatever_the_database_does() -> None:
    assert (get("/-/db/livez").status_code, get("/-/db/livez").text) == (200, "alive\n")


def test_readyz_is_503_while_the_database_cannot_be_reached() -> None:
    answer = get("/-/db/readyz")
    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (503, "away\n", "1")


def test_readyz_is_503_from_sigterm_on_and_livez_is_not(ending: None) -> None:
    assert (get("/-/db/readyz").status_code, get("/-/db/readyz").text) == (503, "draining\n")
    assert get("/-/db/livez").status_code == 200


@pytest.mark.parametrize("path", ["/-/db/livez", "/-/db/readyz", PAGE, "/-/db", "/-/db/nothing"])
def test_nothing_under_the_prefix_reaches_the_application_or_counts_as_a_request(path: str) -> None:
    guard = DBGuard(application, ENGINE, health="/-/db")
    reached.clear()
    answer = Browser(guard).get(path)
    assert (reached, guard.stats()["requests"]) == ([], 0)
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/-/dbx", "/-/d", "/x/-/db/livez"])
def test_other_paths_are_the_applications(path: str) -> None:
    assert get(path).text == "the application"
    assert reached == [path]


def test_without_the_setting_they_are_the_applications_too() -> None:
    assert Browser(DBGuard(application, ENGINE)).get("/-/db/livez").text == "the application"


def test_the_outermost_guard_that_has_the_setting_answers() -> None:
    inner = DBGuard(application, ENGINE, health="/-/db")
    outer = DBGuard(inner, ENGINE, health="/-/db")
    assert Browser(outer).get("/-/db/livez").text == "alive\n"
    assert Browser(DBGuard(inner, ENGINE)).get("/-/db/livez").text == "alive\n"


@pytest.mark.parametrize("path", ["/-/db/livez", "/-/db/readyz", PAGE])
def test_head_has_the_headers_and_no_body(path: str) -> None:
    whole, head = get(path), client().head(path)
    assert head.status == whole.status
    assert head.data == b""
    assert int(head.headers["Content-Length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_405_and_their_body_is_read(method: str) -> None:
    body = BytesIO(b"x" * 100)
    answer = client().open("/-/db/readyz", method=method, input_stream=body, content_length=100)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert body.tell() == 100


def test_unknown_paths_are_404() -> None:
    assert get("/-/db/nothing").status_code == 404
    assert get("/-/db/livez/").status_code == 404


def test_the_prefix_alone_leads_to_the_page_behind_any_proxy() -> None:
    answer = get("/-/db")
    assert (answer.status_code, answer.headers["Location"]) == (308, "db/")


# The page


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
        ("*/*", "text/html; charset=utf-8"),
        ("", "text/html; charset=utf-8"),
        ("application/json", "application/json"),
        ("application/json, text/html;q=0.5", "application/json"),
        ("application/json;q=0.2, text/html", "text/html; charset=utf-8"),
        ("application/json;q=0", "text/html; charset=utf-8"),
        ("application/json;q=nonsense", "text/html; charset=utf-8"),
    ],
)
def test_json_is_for_who_prefers_it(accept: str, kind: str) -> None:
    answer = get(PAGE, Accept=accept)
    assert (answer.headers["Content-Type"], answer.headers["Vary"]) == (kind, "Accept")


def test_json_and_page_say_the_same_and_nothing_secret() -> None:
    document = json.loads(get(PAGE, Accept="application/json").text)
    page = get(PAGE).text
    assert document["headline"] in page
    assert "127.0.0.1:1/shop" in page
    for secret in SECRETS:
        assert secret not in page
        assert secret not in json.dumps(document)


def test_the_page_may_load_and_run_nothing_but_its_own() -> None:
    policy = get(PAGE).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_a_name_that_is_markup_is_text() -> None:
    engine = create_engine("postgresql+psycopg2://127.0.0.1:1/x", pool_logging_name="<script>alert(1)</script>")
    page = Browser(DBGuard(application, engine, health="/-/db")).get(PAGE).text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page


# The token


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer  {TOKEN}", basic(TOKEN)])
def test_who_has_the_token_sees_the_page(authorization: str) -> None:
    assert client(health_token=TOKEN).get(PAGE, headers={"Authorization": authorization}).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    ["", TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", "Bearer", basic("wrong"), "Basic !", "Basic /w==",
     f"Digest {TOKEN}", "Bearer \xfc"],
)  # fmt: skip
def test_who_has_not_is_asked_for_it(authorization: str) -> None:
    answer = client(health_token=TOKEN).get(PAGE, headers={"Authorization": authorization})
    assert answer.status_code == 401
    assert [each.partition(" ")[0] for each in answer.headers.getlist("WWW-Authenticate")] == ["Basic", "Bearer"]
    assert TOKEN not in answer.text


def test_machines_need_no_token() -> None:
    assert client(health_token=TOKEN).get("/-/db/livez").status_code == 200
    assert client(health_token=TOKEN).get("/-/db/readyz").status_code == 503


def test_the_token_is_in_no_repr() -> None:
    guard = DBGuard(application, ENGINE, health="/-/db", health_token=TOKEN)
    assert TOKEN not in repr(guard.config)
    assert TOKEN not in repr(guard)


# What it costs others


def test_who_does_not_set_it_imports_nothing_of_it(run_python: Callable[..., str]) -> None:
    program = """
import sys
from sqlalchemy import create_engine
from wsgi_dbguard import DBGuard
import wsgi_dbguard.hooks.gunicorn
DBGuard(lambda environ, start_response: [], create_engine("sqlite://"))
print([name for name in sys.modules if name.startswith(("wsgi_dbguard.health", "wsgi_dbguard.metrics"))])
"""
    assert run_python(program) == "[]\n"


def test_a_path_that_is_missing_is_the_applications() -> None:
    environ = create_environ("/")
    del environ["PATH_INFO"]
    seen: list[Any] = []
    DBGuard(lambda environ, start_response: seen.append(environ) or [], ENGINE, health="/-/db")(environ, print)  # type: ignore[func-returns-value,arg-type]
    assert seen
