"""README says what the code says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from wsgi_dbguard import GuardConfig

README = Path(__file__).parents[1] / "README.md"


def settings_table() -> str:
    """The table of settings as it must stand in README: made from the declarations."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for setting in fields(GuardConfig):
        default = ", ".join(map(str, setting.default)) if isinstance(setting.default, tuple) else setting.default
        rows.append(f"| `{setting.name}` | {default} | {setting.metadata['meaning']} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_settings_is_the_declared_one() -> None:
    assert settings_table() in README.read_text()


if __name__ == "__main__":  # writes the table into README
    text = re.sub(
        r"\| setting \| default.*?\n\n", lambda _: settings_table() + "\n", README.read_text(), flags=re.DOTALL
    )
    README.write_text(text)
