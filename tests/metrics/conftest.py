"""What tests of the exporters share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from wsgi_dbguard.lab.postgres import PostgreSQL

Page = Counter[str]
APPLICATION = "measured"


def parsed(text: str) -> Page:
    """The samples of a page: by name, and by name and the values of their labels but the pool's."""
    page: Page = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values = [value for name, value in sorted(sample.labels.items()) if not name.endswith("pool_name")]
            if not sample.name.endswith("_bucket"):
                page[sample.name] += sample.value  # type: ignore[assignment]
            if values:
                page[" ".join([sample.name, *values])] += sample.value  # type: ignore[assignment]
    return page


@pytest.fixture
def parse() -> Callable[[str], Page]:
    """The samples of a page, see `parsed`."""
    return parsed


@pytest.fixture
def scrape() -> Callable[[str], Page]:
    """`scrape(URL)`: what is there."""

    def scrape(url: str) -> Page:
        with urlopen(url, timeout=60) as response:
            return parsed(response.read().decode())

    return scrape


@pytest.fixture
def open_at() -> Callable[[PostgreSQL], int]:
    """How many connections of the measured application the server has."""

    def open_at(database: PostgreSQL) -> int:
        ((count,),) = database.query("select count(*) from pg_stat_activity where application_name = %s", APPLICATION)
        return int(count)

    return open_at
