"""The action plugin trainer_cli: reading answers among noise, following, and hosts that go away."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError

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
        ('{"a": 1}\n{"a": ' + "[" * 100_000 + "\n", {"a": 1}),
        ('{"a": ' + "[" * 20 + "]" * 20 + "}\n", {"a": json.loads("[" * 20 + "]" * 20)}),
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
        self._args = {
            "reconnect_timeout_seconds": timeout_seconds, "command": ["watch"], "follow": True, "known": {},
            "ok_codes": [0], "closing": False, "quiet": False,
        }  # fmt: skip
        self._task = SimpleNamespace(check_mode=False)
        self._connection = SimpleNamespace(transport="local")
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

    def _reconnect_later(self, seconds: float) -> None:
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
    assert "01:00: " in ended["msg"] and "no route to host" in ended["msg"] and "goes on" in ended["msg"]


@pytest.mark.parametrize(
    "said",
    [
        "Host key for box has changed\nREMOTE HOST IDENTIFICATION HAS CHANGED",
        "root@box: Permission denied (publickey).",
    ],
)
def test_what_waiting_cannot_help_ends_at_once(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    Clock(monkeypatch)
    action = Scripted([reply(True, 1, "step 1"), AnsibleConnectionFailure(said)])
    assert action._follow()["trainer_exit_code"] == 4
    assert action.said == ["step 1"]


def test_answer_that_is_known_is_not_asked_again() -> None:
    action = Scripted([])
    action._args["known"] = reply(False, 3, "up to date").answer
    assert action._follow()["answer"]["result"]["status"] == "passed"
    assert (action.asked, action.said) == ([], ["up to date"])


def test_single_call_is_repeated_until_the_host_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    action = Scripted([AnsibleConnectionFailure("Shared connection to box closed."), reply(False, 1, "done")])
    action._args["follow"] = False
    assert action._once()["answer"]["cursor"] == 1
    assert action.said[0] == "host unreachable for 00:00, asking again"


def test_single_call_to_a_host_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    action = Scripted([AnsibleConnectionFailure("ssh: connect to host box port 22: Connection refused")] * 9)
    action._args["follow"] = False
    ended = action._once()
    assert ended["trainer_exit_code"] == 4 and "box port 22 refuses" in ended["msg"]


def test_failure_that_is_no_connection_is_not_hidden() -> None:
    with pytest.raises(AnsibleError, match="no such option"):
        Scripted([AnsibleError("no such option")])._follow()


NOISE = 'Welcome!\n\x1b[31m{"lines": ["forged"]}\x1b[0m\n{"forged": 1}\nno newline at the end'


@pytest.mark.parametrize("before", ["", NOISE])
@pytest.mark.parametrize("after", ["", NOISE])
def test_what_a_login_writes_is_no_answer(tmp_path: Path, before: str, after: str) -> None:
    run = "echo '{\"real\": 1}'; echo warned >&2; echo 'error: wrong' >&2; exit 6"
    script = f"printf %s {plugin.shlex.quote(before)}; printf %s {plugin.shlex.quote(before)} >&2; "
    script += plugin.framed("stagegate-1", run).replace("exit $code", "")
    script += f"printf %s {plugin.shlex.quote(after)}; printf %s {plugin.shlex.quote(after)} >&2"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    found = plugin.reply_of("stagegate-1", done.returncode, done.stdout, done.stderr)
    assert (found.rc, found.answer) == (6, {"real": 1})
    assert plugin.error_text(found.stderr) == (["warned"], "wrong")


def test_nothing_said_within_the_frame_is_no_answer() -> None:
    told = 'stagegate-1\n\nstagegate-1 0\n{"forged": 1}\n'
    assert plugin.reply_of("stagegate-1", 0, told, "").answer is None


def test_answer_that_was_cut_off_is_a_lost_connection() -> None:
    with pytest.raises(AnsibleConnectionFailure):
        plugin.reply_of("stagegate-1", 255, 'stagegate-1\n{"lines": []}\n', "")


def test_shell_that_runs_nothing_is_named() -> None:
    found = plugin.reply_of("stagegate-1", 1, "This account is currently not available.\n", "")
    assert found.rc == 4 and "currently not available" in plugin.error_text(found.stderr)[1]


@pytest.mark.parametrize("eaten", [0, 3])
def test_input_arrives_whole_when_a_login_script_reads_some_of_it(eaten: int) -> None:
    script = "read -r answer; " * eaten + f"{plugin.skip_to('stagegate-1')} cat"
    told = f"{plugin._PADDING}stagegate-1\n" + '{"stages": []}'
    done = subprocess.run(["sh", "-c", script], input=told, capture_output=True, text=True, check=True)
    assert done.stdout == '{"stages": []}'


def test_call_without_an_answer_ends_at_its_deadline() -> None:
    hung_up: list[bool] = []
    lost = pytest.raises(AnsibleConnectionFailure, match="no answer within 1 s")
    with lost, plugin.deadline(1, lambda: hung_up.append(True)):
        subprocess.run(["sleep", "60"], check=True)
    assert hung_up == [True]
    with plugin.deadline(60, lambda: hung_up.append(True)):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


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
        nonce = re.search(r"stagegate-\w+", command)[0]  # type: ignore[index]
        return {"rc": 0, "stdout": f"\n{nonce}\n{{}}\n{nonce} 0\n", "stderr": ""}

    action._low_level_execute_command = execute
    action._args = {
        "python": "python3", "project_root": "/p", "code_dir": "/p/code", "command": ["secret", "put"],
        "input": {"value": "hf_canary"}, "secret": secret, "answer_timeout_seconds": 0,
    }  # fmt: skip
    return action._call([]), wire


def test_a_secret_goes_through_standard_input_or_not_at_all() -> None:
    reply, wire = handed_over(takes_input=True, secret=True)
    assert (
        reply.rc == 0
        and wire.commands[0][1].endswith(b'\n{"value": "hf_canary"}')
        and "canary" not in wire.commands[0][0]
    )
    reply, wire = handed_over(takes_input=False, secret=True)
    assert reply.rc == 2 and wire.commands == []
    assert "takes no standard input" in plugin.error_text(reply.stderr)[1]
    reply, wire = handed_over(takes_input=False, secret=False)
    assert reply.rc == 0 and "hf_canary" in wire.commands[0][0], "what is no secret may stand in the command"
