"""The callback exit_code: which failure ends the run, and what is printed last."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


def load() -> ModuleType:
    path = REPOSITORY / "callback_plugins" / "exit_code.py"
    spec = importlib.util.spec_from_file_location("exit_code_under_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


plugin = load()


def result(host: str, **answer: Any) -> Any:
    return SimpleNamespace(host=SimpleNamespace(get_name=lambda: host), result=answer)


def stats(failures: tuple[str, ...] = (), dark: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(failures=dict.fromkeys(failures, 1), dark=dict.fromkeys(dark, 1))


class Printed:
    """What the callback displays, by stream."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.err: list[str] = []

    def display(self, line: str, stderr: bool = False) -> None:
        (self.err if stderr else self.out).append(line)


@pytest.fixture
def callback() -> Any:
    made = plugin.CallbackModule()
    made._display = Printed()
    return made


def test_good_run_prints_the_closing_lines_and_ends_normally(callback: Any) -> None:
    callback.v2_runner_on_ok(result("a", trainer_closing=["Summary: x"]))
    callback.v2_playbook_on_stats(stats())
    assert (callback._display.out, callback._display.err) == (["Summary: x"], [])


def test_trainer_failure_ends_with_its_code_and_sentence(callback: Any) -> None:
    callback.v2_runner_on_failed(result("a", msg="gate missed", trainer_exit_code=6))
    with pytest.raises(SystemExit) as ended:
        callback.v2_playbook_on_stats(stats(failures=("a",)))
    assert ended.value.code == 6
    assert callback._display.err == ["error: gate missed"]


def test_ansibles_own_failure_keeps_ansibles_code(callback: Any) -> None:
    callback.v2_runner_on_failed(result("a", msg="no such\nfile"))
    callback.v2_playbook_on_stats(stats(failures=("a",)))
    assert callback._display.err == ["error: no such file"]


def test_several_hosts_end_with_the_worst(callback: Any) -> None:
    callback.v2_runner_on_failed(result("a", msg="closed", trainer_exit_code=3))
    callback.v2_runner_on_failed(result("b", msg="missed", trainer_exit_code=6))
    with pytest.raises(SystemExit) as ended:
        callback.v2_playbook_on_stats(stats(failures=("a", "b")))
    assert ended.value.code == 6
    assert callback._display.err == ["[a] closed", "error: [b] missed"]


def test_rescued_and_ignored_failures_do_not_count(callback: Any) -> None:
    callback.v2_runner_on_failed(result("a", msg="rescued", trainer_exit_code=6))
    callback.v2_runner_on_failed(result("b", msg="ignored", trainer_exit_code=6), True)
    callback.v2_playbook_on_stats(stats(failures=("b",)))
    assert callback._display.err == []


def test_unreachable_host_is_named(callback: Any) -> None:
    callback.v2_runner_on_unreachable(
        result("a", msg="Failed to connect: ssh: connect to host box port 22: Connection refused")
    )
    with pytest.raises(SystemExit) as ended:
        callback.v2_playbook_on_stats(stats(dark=("a",)))
    assert ended.value.code == 4
    assert callback._display.err[0].startswith("error: box port 22 refuses the connection; ")


def test_untrusted_key_of_a_host_with_a_password_is_named(callback: Any) -> None:
    said = "Using a SSH password instead of a key is not possible because Host Key checking is enabled. Please"
    callback.v2_runner_on_failed(result("a", msg=said))
    with pytest.raises(SystemExit) as ended:
        callback.v2_playbook_on_stats(stats(failures=("a",)))
    assert ended.value.code == 4
    assert "make trust" in callback._display.err[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["/checkout/inventory/remote.yml"], "-i inventory/remote.yml "),
        (["/elsewhere/my hosts.yml", "two,"], "-i '/elsewhere/my hosts.yml' -i two, "),
        (["/checkout/default.yml"], ""),
    ],
)
def test_commands_carry_the_inventory_that_was_given(
    monkeypatch: pytest.MonkeyPatch, given: list[str], words: str
) -> None:
    monkeypatch.setattr(plugin.os, "getcwd", lambda: "/checkout")
    monkeypatch.setattr(plugin.constants, "DEFAULT_HOST_LIST", ["/checkout/default.yml"])
    monkeypatch.setattr(plugin.context, "CLIARGS", {"inventory": given})
    assert plugin.chosen_inventory() == words


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"msg": "one"}, "one"),
        ({"msg": "x", "argument_errors": ["a is 1", "b is 2"]}, "a is 1; b is 2"),
        ({"msg": "x", "results": [{"msg": "fine"}, {"failed": True, "msg": "second"}]}, "second"),
        ({}, "a task failed without a word"),
    ],
)
def test_sentence(answer: dict[str, Any], expected: str) -> None:
    assert plugin.sentence(answer) == expected
