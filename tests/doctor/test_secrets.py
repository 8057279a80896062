"""Passwords in what others wrote."""

from __future__ import annotations

import pytest

from wsgi_dbguard.doctor.secrets import Secrets, is_secret


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://app:hunter2@db/app", "postgresql://app:***@db/app"),
        ("mysql+pymysql://app:hun@ter:2@db/app?x=1", "mysql+pymysql://app:***@db/app?x=1"),
        ("connect(host='db', password='hunter2')", "connect(host='db', password=***)"),
        ("{'password': 'hunter2', 'user': 'app'}", "{'password': ***, 'user': 'app'}"),
        ("PGPASSWORD=hunter2 psql", "PGPASSWORD=*** psql"),
        ("passwd: hunter2", "passwd: ***"),
        ("http://db.example:5432/ and a@b", "http://db.example:5432/ and a@b"),
        ("the password is wrong", "the password is wrong"),
    ],
)
def test_what_looks_like_a_password_is_hidden(text: str, shown: str) -> None:
    assert Secrets().hide(text) == shown


def test_known_passwords_are_hidden_wherever_they_stand() -> None:
    secrets = Secrets()
    secrets.add("p@ss/w0rd", b"bytes-word", "x")
    assert secrets.hide("p@ss/w0rd p%40ss%2Fw0rd abytes-wordb x 'x' xx") == "*** *** a***b *** '***' xx"


def test_the_environment_gives_passwords_away_by_name_and_by_url() -> None:
    secrets = Secrets(
        {
            "DB_PASSWORD": "hunter22",
            "DATABASE_URL": "postgresql://app:swordfish@db/app",
            "PWD": "/srv/shop",
            "USE_TOKEN": "1",
        }
    )
    assert secrets.hide("hunter22 swordfish /srv/shop 1") == "*** *** /srv/shop 1"


@pytest.mark.parametrize("name", ["password", "sslpassword", "PASSWD", "passphrase", "api_key", "auth_token", "pwd"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["passfile", "sslmode", "host", "passenger"])
def test_names_of_what_is_none(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize("word", ["x", "://", "password", "a:b@"])
@pytest.mark.timeout(60)
def test_long_lines_take_no_long_time(word: str) -> None:
    assert Secrets().hide(word * 20_000)
