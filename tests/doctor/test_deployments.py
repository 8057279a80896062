"""The doctor on five broken deployments, one for each of the stories S1 to S5, and on the repaired ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgi_dbguard.cli.config import deploy_directory
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing
from wsgi_dbguard.lab.replication import PostgreSQLPair

from .conftest import Examine
from .deployments import DEPLOYMENTS, Deployment


@pytest.fixture(scope="module")
def pair() -> Iterator[PostgreSQLPair]:
    try:
        made = PostgreSQLPair()
        with made:
            yield made
    except ServerMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("deployment", [each for each in DEPLOYMENTS if not each.replica], ids=str)
def test_each_deployment_has_its_findings_and_no_others(
    deployment: Deployment, site: Path, database: PostgreSQL, look: Examine
) -> None:
    check(deployment, site, look)


@pytest.mark.slow
@pytest.mark.parametrize("deployment", [each for each in DEPLOYMENTS if each.replica], ids=str)
def test_each_deployment_with_a_replica_has_its_findings_and_no_others(
    deployment: Deployment, site: Path, pair: PostgreSQLPair, look: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", pair.primary.url())
    monkeypatch.setenv("REPLICA_URL", pair.replica.url())
    check(deployment, site, look)


def check(deployment: Deployment, site: Path, look: Examine) -> None:
    deployment.write(site)
    facts, findings = look()
    assert [each.kind.id for each in findings] == deployment.ids
    assert facts.unseen == []
    for finding in findings:
        assert deployment.seen in finding.seen


@pytest.mark.parametrize("file", ["gunicorn.conf.py", "uwsgi.ini"])
def test_the_shipped_example_has_no_findings(
    file: str, site: Path, database: PostgreSQL, look: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("app.py", "wsgi.py", "dbguard.ini", file):
        shutil.copy(deploy_directory() / name, site)
    facts, findings = look()
    assert findings == []
    assert facts.unseen == []
    assert facts.server is not None
    assert (facts.server.processes, facts.server.threads) == {"uwsgi.ini": (4, 4), "gunicorn.conf.py": (2, 4)}[file]
