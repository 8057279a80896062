"""The page in a real browser: no complaint of its console, fresh without a reload, in the dark and on a phone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.chromium import Browser, program
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing
from wsgi_dbguard.lab.servers import APPS, Server, gunicorn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="no chromium: apt-get install chromium"),
]

TOKEN = "a-token_for/tests+only="
WIDE = "document.documentElement.scrollWidth <= innerWidth"
TAB = 9
# The page's pauses are a tenth of what they are, and counted.
FASTER = "window.rounds = 0; const later = setTimeout; window.setTimeout = (f, ms) => { rounds++; later(f, ms / 10) }"


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    try:
        server = PostgreSQL()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="module")
def server(database: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with gunicorn(
        "healthy:guarded()", "--worker-class=gthread", "--threads=4", "--workers=2", guarded=True,
        directory=tmp_path_factory.mktemp("gunicorn"), path=[APPS],
        DATABASE_URL=database.url(), HEALTHY_TOKEN=TOKEN,
    ) as server:  # fmt: skip
        server.ready("/-/db/livez")
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=FASTER)
        yield browser


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Browser]:
    """The page, open; at the end of the test nothing was complained of."""
    browser.open("about:blank")  # what the page before asked for in vain is told of before this is there
    browser.errors.clear()
    browser.look()
    browser.open(server.url + "/-/db/", token=TOKEN)
    yield browser
    browser.run("0")  # whatever it has had to say by now
    assert browser.errors == []


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where pictures go: for people, name a directory in HEALTH_SHOTS."""
    return Path(os.environ.get("HEALTH_SHOTS") or tmp_path)


def title(begin: str) -> str:
    return f"document.title.startsWith({begin!r}) && document.querySelector('h1').innerText.includes({begin!r})"


def test_it_tells_of_an_outage_and_of_its_end_without_a_reload(
    tab: Browser, server: Server, database: PostgreSQL, shots: Path
) -> None:
    tab.run("window.here = true")
    with urlopen(server.url + "/echo?token=x") as answer:
        assert answer.read() == b"x"
    tab.wait(title("All databases can be reached"))
    tab.shot(shots / "well.png")
    database.stop()
    ask_quietly(server)
    tab.wait(title("Database away"))
    # The state is known before the event is noted, and of another worker both are known a second later.
    tab.wait("document.getElementById('workers-now').innerText.includes('Away for')")
    tab.wait("document.getElementById('events-now').innerText.includes('The database is away')")
    for scheme in ("light", "dark"):
        tab.look(scheme=scheme)
        tab.shot(shots / f"{scheme}.png")
    tab.look(width=360, height=800, mobile=True)
    tab.shot(shots / "narrow.png")
    database.start()
    tab.look()
    tab.wait(title("All databases can be reached"))  # nobody has asked for anything but the page
    assert tab.run("window.here")


def ask_quietly(server: Server) -> None:
    """A request that the database fails."""
    with pytest.raises(HTTPError):
        urlopen(server.url + "/echo?token=x")


def test_it_is_dark_where_that_is_preferred(tab: Browser) -> None:
    def light(scheme: str) -> list[bool]:
        tab.look(scheme=scheme)
        tab.wait(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
        colours = "['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])"
        return [sum(map(int, each[4:-1].split(","))) > 382 for each in tab.run(colours)]

    assert light("light") == [True, False]
    assert light("dark") == [False, True]


@pytest.mark.parametrize("width", [320, 360, 736, 1280])
def test_nothing_is_wider_than_the_screen(tab: Browser, width: int) -> None:
    tab.look(width=width, height=800, mobile=width < 800)
    tab.wait(f"innerWidth === {width}")
    assert tab.run(WIDE)


def test_the_keyboard_reaches_all_that_can_be_used_and_pausing_keeps_it_as_it_is(tab: Browser) -> None:
    tab.press("Tab", TAB)
    assert tab.run("document.activeElement.className") == "skip"
    tab.press("Tab", TAB)
    assert tab.run("document.activeElement.id") == "pause"
    at = "document.querySelector('#detail time').dateTime"
    first = tab.run(at)
    tab.wait(f"{at} !== {first!r}")
    assert tab.run("document.activeElement.id") == "pause"  # news have not moved it
    tab.run("document.activeElement.click()")
    assert tab.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert tab.run("document.activeElement.innerText") == "Resume"
    rounds = tab.run("rounds")
    tab.wait(f"rounds > {rounds}")  # one may have been on its way
    paused = tab.run(at)
    tab.wait(f"rounds > {rounds + 20}")
    assert tab.run(at) == paused
    tab.run("document.activeElement.click()")
    tab.wait(f"{at} !== {paused!r}")


def test_a_server_that_is_gone_is_told(browser: Browser, database: PostgreSQL, tmp_path: Path) -> None:
    with gunicorn(
        "healthy:guarded()", guarded=True, directory=tmp_path, path=[APPS], DATABASE_URL=database.url()
    ) as server:
        server.ready("/-/db/livez")
        browser.look()
        browser.open(server.url + "/-/db/")
    browser.wait("document.getElementById('stale').innerText.startsWith('No news since')")
    assert browser.run("!document.getElementById('stale').hidden")
    browser.errors.clear()


def test_everything_that_is_seen_is_told_to_who_does_not_see(tab: Browser) -> None:
    assert tab.run("[...document.querySelectorAll('svg')].every(each => each.getAttribute('aria-label').length > 40)")
    assert tab.run("document.querySelectorAll('svg').length") >= 2
    assert tab.run("[...document.querySelectorAll('table')].every(each => each.caption && each.tHead)")
    assert tab.run("document.querySelectorAll('h1').length") == 1
