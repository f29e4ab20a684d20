"""The action plugin stagegate_reach: what a login that worked may still be unfit for."""

from __future__ import annotations

import pytest
from plugin_files import load

plugin = load("stagegate_reach")
GOOD = f"\nstagegate-1 {plugin._LINES}\n"


@pytest.mark.parametrize("told", [GOOD, "Welcome\n\x1b[32mGPU box\x1b[0m\n" + GOOD, "a { in a line\n" + GOOD + "bye\n"])
def test_usable_login_has_no_complaint(told: str) -> None:
    assert plugin.complaint(told, 0, "stagegate-1") == ""


@pytest.mark.parametrize(
    ("told", "rc", "part"),
    [
        ("This account is currently not available.\n", 1, "with code 1 (This account is currently not available.)"),
        ("", 127, "it wrote nothing"),
        ("{ hello }\n" + GOOD, 0, "begins with '{'"),
        (f"\nstagegate-1 {plugin._LINES - 1}\n", 0, "asks a question"),
    ],
)
def test_login_that_breaks_the_modules_is_named(told: str, rc: int, part: str) -> None:
    assert part in plugin.complaint(told, rc, "stagegate-1")
