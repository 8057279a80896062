"""Passwords in what others wrote."""

from __future__ import annotations

import pytest

from wsgi_dbguard.doctor.secrets import Secrets, is_secret, passwords_in


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://app:hunter2@db/app", "postgresql://app:***@db/app"),
        ("mysql+pymysql://app:hun@ter:2@db/app?x=1", "mysql+pymysql://app:***@db/app?x=1"),
        ("connect(host='db', password='hunter2')", "connect(host='db', password=***)"),
        ("{'password': 'hunter2', 'user': 'app'}", "{'password': ***, 'user': 'app'}"),
        ("PGPASSWORD=hunter2 psql", "PGPASSWORD=*** psql"),
        ("passwd: hunter2", "passwd: ***"),
        (r"{'password': 'hunt\'er2', 'x': 1}", "{'password': ***, 'x': 1}"),
        ("SERVER=db;PWD={hunt;er2};UID=app", "SERVER=db;PWD=***;UID=app"),
        ("odbc_connect=UID%3Dapp%3BPWD%3Dhunter2", "odbc_connect=UID%3Dapp%3BPWD%3D***"),
        ("SET @pw='hunter2'", "SET @pw=***"),
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


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ("host=db password=hunter2 user=app", "hunter2"),
        ("-c app.password=hunter2", "hunter2"),
        ("DRIVER%3D%7BODBC%7D%3BPWD%3Dhunter2", "hunter2"),
        ("x://?dsn=host%253Ddb%2Bpassword%253Dhunter2", "hunter2"),
        ("postgresql://app:hun ter\"2'@db/app", "hun ter\"2'"),
        ("postgresql://app:hun ter@2@db/app", "hun ter@2"),
    ],
)
def test_passwords_are_found_in_urls_and_arguments(text: str, password: str) -> None:
    assert password in passwords_in(text)


def test_a_password_with_a_quote_or_a_blank_is_hidden_however_it_is_written() -> None:
    secrets = Secrets({"DATABASE_URL": "postgresql://app:hun ter\"'2@db/app"})
    for text in ("hun ter\"'2", repr("hun ter\"'2"), "hun%20ter%22%272", "hun+ter%22%272", "hun ter%22%272"):
        assert "ter" not in secrets.hide(f"got {text}")


def test_a_password_that_is_part_of_a_common_word_leaves_the_word() -> None:
    secrets = Secrets()
    secrets.add("postgres")
    assert secrets.hide("postgresql://postgres@db: postgres!") == "postgresql://***@db: ***!"
