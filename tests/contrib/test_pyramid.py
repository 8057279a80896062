"""The helper, the PasteDeploy filter and `includeme` for Pyramid."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import create_engine
from werkzeug.test import Client

from wsgi_dbguard import DBGuard, GuardConfig, SettingError
from wsgi_dbguard.contrib.pyramid import filter_app_factory, make_wsgi_app
from wsgi_dbguard.guards import guard_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports pkg_resources
    from paste.deploy import loadapp  # type: ignore[import-untyped]
    from pyramid.config import Configurator, global_registries

pytestmark = pytest.mark.usefixtures("every_engine")

INI = """
[app:main]
use = call:{module}:main
filter-with = dbguard
dbguard.hold = 10
dbguard.keepalive = 20, 5, 3
dbguard.leaks = warn

[filter:dbguard]
paste.filter_app_factory = wsgi_dbguard.contrib.pyramid:filter_app_factory
{more}
"""


def configurator(*includes: str, **settings: Any) -> Any:
    config = Configurator(settings={key.replace("__", "."): value for key, value in settings.items()})
    for each in includes:
        config.include(each)
    config.add_route("page", "/")
    config.add_view(
        lambda request: str("wsgi_dbguard.request" in request.environ), route_name="page", renderer="string"
    )
    return config


def main(global_config: dict[str, str], **settings: str) -> Any:
    config = configurator()
    config.registry.settings.update(settings)
    return config.make_wsgi_app()


def page(app: Any) -> str:
    return Client(app).get("/").text


def load(directory: Path, more: str = "", *, ini: str = INI) -> Any:
    """The application of an ini file, as ``pserve`` and ``gunicorn --paste`` load it."""
    file = directory / "production.ini"
    file.write_text(ini.format(module="contrib_pyramid_of_the_tests", more=more))
    return loadapp(f"config:{file}")


@pytest.fixture(autouse=True)
def by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module by a name that an ini file can say."""
    module = ModuleType("contrib_pyramid_of_the_tests")
    module.main = main  # type: ignore[attr-defined]
    module.between = between  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_the_helper_wraps_with_the_applications_settings() -> None:
    app = make_wsgi_app(configurator(dbguard__hold="10", dbguard__replay="off", sqlalchemy__url=""), replay="safe")
    assert isinstance(app, DBGuard)
    assert app.config == GuardConfig(hold=10.0)
    assert page(app) == "True"


@pytest.mark.parametrize(("key", "value"), [("dbguard.holt", "1"), ("dbguard.hold", "soon")])
def test_a_wrong_setting_is_refused(key: str, value: str) -> None:
    settings = {key.replace(".", "__"): value}
    with pytest.raises(SettingError, match=key):
        make_wsgi_app(configurator(**settings))
    with pytest.raises(SettingError, match=key):
        configurator("wsgi_dbguard.contrib.pyramid", **settings)
    with pytest.raises(SettingError, match=key):
        filter_app_factory(configurator(**settings).make_wsgi_app(), {})


def test_the_filter_wraps_with_the_applications_settings_and_its_own(tmp_path: Path) -> None:
    app = load(tmp_path, "hold = 5")
    assert isinstance(app, DBGuard)
    assert app.config == GuardConfig(hold=5.0, keepalive=(20, 5, 3), leaks="warn")
    assert page(app) == "True"


def test_the_filter_refuses_a_setting_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="unknown setting holt"):
        load(tmp_path, "holt = 5")


def between(app: Any, global_conf: Any) -> Any:
    """A filter that shows nothing of what it stands around."""
    return lambda environ, start_response: app(environ, start_response)


def test_the_filter_finds_the_applications_settings_past_another_filter(tmp_path: Path) -> None:
    main = INI.replace("[app:main]", "[pipeline:main]\npipeline = dbguard between app\n\n[app:app]")
    more = "\n[filter:between]\npaste.filter_app_factory = {module}:between"
    app = load(tmp_path, ini=main.replace("filter-with = dbguard\n", "").replace("{more}", more))
    assert isinstance(app, DBGuard)
    assert app.config == GuardConfig(hold=10.0, keepalive=(20, 5, 3), leaks="warn")
    assert page(app) == "True"


def test_the_filter_takes_any_wsgi_application() -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"well"]

    global_registries.empty()
    app = filter_app_factory(application, None, deadline="3")
    assert app.config == GuardConfig(deadline=3.0)
    assert page(app) == "well"


def test_included_it_guards_pools_and_says_once_that_requests_are_not(caplog: pytest.LogCaptureFixture) -> None:
    app = configurator("wsgi_dbguard.contrib.pyramid", dbguard__hold="10").make_wsgi_app()
    engine = create_engine("sqlite://")
    found = guard_of(engine)
    assert found is not None
    assert found.config.hold == 10.0
    with caplog.at_level(logging.WARNING, "wsgi_dbguard"):
        assert [page(app), page(app)] == ["False", "False"]
    assert [each.getMessage()[:24] for each in caplog.records] == ["Requests are not guarded"]


def test_included_and_wrapped_it_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    app = make_wsgi_app(configurator("wsgi_dbguard.contrib.pyramid", dbguard__hold="10"))
    with caplog.at_level(logging.WARNING, "wsgi_dbguard"):
        assert page(app) == "True"
    assert caplog.records == []
