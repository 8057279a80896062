"""The dashboard and the alerts ask for what is exported, and the example lines make several workers one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from wsgi_dbguard.cli.config import deploy_directory
from wsgi_dbguard.lab.load import LoadGenerator
from wsgi_dbguard.lab.process import Child, wait_until
from wsgi_dbguard.metrics import prometheus
from wsgi_dbguard.metrics.instruments import CAUSES, INSTRUMENTS, STATE

RULES = deploy_directory() / "prometheus" / "wsgi-dbguard.rules.yml"
DASHBOARD = deploy_directory() / "grafana" / "wsgi-dbguard.json"
# Names of samples, with the labels that they have.
EXPORTED: dict[str, set[str]] = {}
for each in INSTRUMENTS:
    labels = {label.replace(".", "_") for label in each.labels} | {"job", "instance"}
    if each.kind == "histogram":
        EXPORTED[f"{prometheus.metric_name(each)}_bucket"] = labels | {"le"}
        EXPORTED[f"{prometheus.metric_name(each)}_count"] = EXPORTED[f"{prometheus.metric_name(each)}_sum"] = labels
    else:
        EXPORTED[prometheus.metric_name(each)] = labels
VALUES = {
    STATE.replace(".", "_"): {"used", "idle"},
    "wsgi_dbguard_cause": set(CAUSES),
    "wsgi_dbguard_replay_outcome": {"succeeded", "failed"},
    "wsgi_dbguard_leak_kind": {"connection", "session"},
}
NAME = re.compile(r"\b(?:db_client|wsgi_dbguard)_\w+")
SELECTOR = re.compile(r"\b((?:db_client|wsgi_dbguard)_\w+)(?:\{([^}]*)\})?")


def alerts() -> list[str]:
    return re.findall(r"^ +expr: (.+)$", RULES.read_text(), re.MULTILINE)


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def queries() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel.get("targets", ()))


def variables() -> Iterator[str]:
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"^label_values\((.*), \w+\)$", r"\1", variable["definition"])


def legend_labels() -> set[str]:
    return set(NAME.findall(json.dumps([panel.get("targets") for panel in panels()])))


@pytest.mark.parametrize("expression", [*alerts(), *queries(), *variables()])
def test_each_expression_asks_for_what_is_exported(expression: str) -> None:
    assert expression.count("(") == expression.count(")")
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
    asked = SELECTOR.findall(re.sub(r"by \([^)]*\)", "", expression))
    assert asked
    for name, selector in asked:
        assert name in EXPORTED
        assert grouped <= EXPORTED[name]
        for label, _, value in re.findall(r'(\w+)(=~?)"([^"]*)"', selector):
            assert label in EXPORTED[name]
            assert value.startswith("$") or set(value.split("|")) <= VALUES[label]


def test_each_name_in_a_legend_or_a_text_is_a_label_of_something() -> None:
    labels = {label for known in EXPORTED.values() for label in known}
    assert legend_labels() <= labels | set(EXPORTED)
    assert set(re.findall(r"\$labels\.(\w+)", RULES.read_text())) <= labels


def test_the_dashboard_shows_everything() -> None:
    shown = {name for query in queries() for name, _ in SELECTOR.findall(query)}
    assert {name for name in EXPORTED if not name.endswith(("_sum", "_count"))} - shown - {
        "db_client_connection_count", "db_client_connection_idle_max",
    } == set()  # fmt: skip
    assert "db_client_connection_count" in shown


def test_panels_do_not_lie_upon_each_other_and_are_told_apart() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: Counter[tuple[int, int]] = Counter()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns = range(place["x"], place["x"] + place["w"])
        taken.update((x, y) for x in columns for y in range(place["y"], place["y"] + place["h"]))
    assert set(taken.values()) == {1}


def test_each_alert_has_a_name_of_its_own_a_severity_and_a_text() -> None:
    text = RULES.read_text()
    names = re.findall(r"^ +- alert: (\w+)$", text, re.MULTILINE)
    assert len(set(names)) == len(names) == len(alerts()) == text.count("severity: ") == text.count("summary: ")


WSGI = """
from app import create_app
from wsgi_dbguard import DBGuard
from wsgi_dbguard.metrics import prometheus

app = create_app()
prometheus.install()

@DBGuard
def application(environ, start_response):
    page = prometheus.application if environ["PATH_INFO"] == "/metrics" else app
    return page(environ, start_response)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gunicorn", "uwsgi"])
def test_the_example_lines_make_the_figures_those_of_all_workers(
    name: str, site: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir()
    (site / "wsgi.py").write_text(WSGI)
    serve: Callable[..., tuple[Child, str]] = request.getfixturevalue(name)
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    if name == "gunicorn":
        configuration = site / "gunicorn.conf.py"
        text = configuration.read_text()
        assert text.count("\n# raw_env = ") == 1
        text = text.replace("\n# raw_env = ", "\nraw_env = ").replace("/run/notes/metrics", str(directory))
        configuration.write_text(text)
        variables = {}
    _, url = serve(**variables)
    load = LoadGenerator(f"{url}/echo?token={{token}}", threads=4, requests=200)
    result = load.run()
    assert (result.failed, result.wrong) == (0, 0)

    def told() -> Counter[str]:
        with urlopen(f"{url}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        found: Counter[str] = Counter()
        for line in lines:
            if not line.startswith("#"):
                found[line.partition("{")[0].partition(" ")[0]] += float(line.rpartition(" ")[2])  # type: ignore[assignment]
        return found

    wait_until(lambda: told()["wsgi_dbguard_checkouts_total"] == 200, timeout=60, what="the figures")
    assert told()["db_client_connection_use_time_seconds_count"] == 200
