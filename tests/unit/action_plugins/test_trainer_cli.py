"""The action plugin trainer_cli: reading answers among noise, following, and hosts that go away."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

REPOSITORY = Path(__file__).resolve().parents[3]


def load() -> ModuleType:
    path = REPOSITORY / "action_plugins" / "trainer_cli.py"
    spec = importlib.util.spec_from_file_location("trainer_cli_under_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


plugin = load()


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        ('{"a": 1}\n', {"a": 1}),
        ('Welcome to the box\n{"a": 1}\nlogout\n', {"a": 1}),
        ('{"a": 1}\n{"a": 2}\n', {"a": 2}),
        ('{"a": 1}\n{broken\n', {"a": 1}),
        ("[1]\n", None),
        ("", None),
    ],
)
def test_answer_is_the_last_object(stdout: str, expected: dict[str, Any] | None) -> None:
    assert plugin.last_object(stdout) == expected


def test_error_line_and_the_findings_above_it() -> None:
    stderr = "row 3: no id\n\nerror: 1 bad row\nShared connection closed.\n"
    assert plugin.error_text(stderr) == (["row 3: no id"], "1 bad row")
    assert plugin.error_text("Traceback\nKeyError: 'x'\n") == ([], "")


@pytest.mark.parametrize(("seconds", "text"), [(42.9, "00:42"), (90, "01:30"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert plugin.clock(seconds) == text


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(plugin.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(plugin.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Scripted(plugin.ActionModule):  # type: ignore[misc, name-defined]
    """The plugin with scripted replies instead of a connection."""

    def __init__(self, replies: list[Any], timeout_seconds: int = 60) -> None:
        self._args = {"follow_timeout_seconds": timeout_seconds, "command": ["watch"]}
        self._replies = replies
        self.said: list[str] = []
        self.asked: list[list[str]] = []

    def _call(self, more_words: list[str]) -> Any:
        self.asked.append(more_words)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _say(self, lines: list[str]) -> None:
        self.said += lines

    def _reconnect_later(self) -> None:
        plugin.time.sleep(20.0)


def reply(more: bool, cursor: int, line: str) -> Any:
    end = None if more else {"stage": "style", "status": "passed", "exit_code": 0, "message": ""}
    answer = {"lines": [line], "cursor": cursor, "more": more, "result": end}
    return plugin.Reply(0, answer, "")


def test_following_passes_the_cursor_on(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    action = Scripted([reply(True, 4, "step 1"), reply(False, 5, "passed")])
    assert action._follow()["answer"]["result"]["status"] == "passed"
    assert action.asked == [["--after", "0"], ["--after", "4"]]
    assert action.said == ["step 1", "passed"]


def test_dropped_connection_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    away = AnsibleConnectionFailure("Connection timed out")
    action = Scripted([reply(True, 1, "step 1"), away, away, reply(False, 2, "passed")])
    assert "failed" not in action._follow()
    assert action.said == [
        "step 1",
        "host unreachable for 00:00, the plan goes on there",
        "host unreachable for 00:20, the plan goes on there",
        "host reachable again after 00:40",
        "passed",
    ]


def test_host_away_for_too_long_ends_the_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    action = Scripted([AnsibleConnectionFailure("no route to host")] * 9, timeout_seconds=60)
    ended = action._follow()
    assert ended["trainer_exit_code"] == 7
    assert "01:00 (no route to host)" in ended["msg"] and "plan goes on" in ended["msg"]


@pytest.mark.parametrize(
    ("rc", "stderr", "code", "part"),
    [
        (7, "error: plan x runs", 7, "plan x runs"),
        (1, "Traceback\nKeyError: 'x'", 5, "ended with code 1: KeyError: 'x'"),
        (0, "", 5, "gave no JSON answer"),
    ],
)
def test_failures_become_one_sentence(rc: int, stderr: str, code: int, part: str) -> None:
    ended = Scripted([])._failure(plugin.Reply(rc, None, stderr))
    assert ended["failed"] and ended["trainer_exit_code"] == code
    assert part in ended["msg"] and not ended["msg"].startswith("error")


class Wire:
    """A connection that notes what it is given; `takes_input` is whether it has a standard input."""

    def __init__(self, takes_input: bool) -> None:
        self.has_pipelining = takes_input
        self.commands: list[tuple[str, bytes | None]] = []


def handed_over(takes_input: bool, secret: bool) -> tuple[Any, Wire]:
    action = plugin.ActionModule.__new__(plugin.ActionModule)
    wire = Wire(takes_input)
    action._connection = wire
    action._compute_environment_string = lambda: ""

    def execute(command: str, in_data: bytes | None) -> dict[str, Any]:
        wire.commands.append((command, in_data))
        return {"rc": 0, "stdout": "{}", "stderr": ""}

    action._low_level_execute_command = execute
    action._args = {
        "python": "python3", "project_root": "/p", "code_dir": "/p/code", "command": ["secret", "put"],
        "input": {"value": "hf_canary"}, "secret": secret,
    }  # fmt: skip
    return action._call([]), wire


def test_a_secret_goes_through_standard_input_or_not_at_all() -> None:
    reply, wire = handed_over(takes_input=True, secret=True)
    assert reply.rc == 0 and wire.commands[0][1] == b'{"value": "hf_canary"}' and "canary" not in wire.commands[0][0]
    reply, wire = handed_over(takes_input=False, secret=True)
    assert reply.rc == 2 and wire.commands == []
    assert "takes no standard input" in plugin.error_text(reply.stderr)[1]
    reply, wire = handed_over(takes_input=False, secret=False)
    assert reply.rc == 0 and "hf_canary" in wire.commands[0][0], "what is no secret may stand in the command"
