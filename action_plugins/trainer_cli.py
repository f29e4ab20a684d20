"""Action plugin: run `python -m trainer …` through the host's connection and read its JSON answer.

A module could not print while it runs, and its connection would not outlive a dropped line; this
runs on the controller, shows each line as it comes and waits for a host that is away.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

_SPEC: dict[str, dict[str, Any]] = {
    "command": {"type": "list", "elements": "str", "required": True},
    "input": {"type": "dict"},
    "secret": {"type": "bool", "default": False},
    "python": {"type": "str", "required": True},
    "code_dir": {"type": "str", "required": True},
    "project_root": {"type": "str", "default": ""},
    "ok_codes": {"type": "list", "elements": "int", "default": [0]},
    "writes": {"type": "bool", "default": False},
    "closing": {"type": "bool", "default": False},
    "quiet": {"type": "bool", "default": False},
    "follow": {"type": "bool", "default": False},
    "follow_timeout_seconds": {"type": "int", "default": 3600},
}
_NO_CODE = 97  # chosen outside the trainer's own exit codes and the shell's 126, 127
_RETRY_SECONDS = 5.0
_LEAST_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Reply:
    """One call's outcome: exit status, the JSON object of stdout (None without one), stderr."""

    rc: int
    answer: dict[str, Any] | None
    stderr: str


class ActionModule(ActionBase):
    """Arguments.

    `command`: words after `python -m trainer`; `input`: sent as JSON on stdin.
    `secret`: the input may stand in no command line, so a connection that takes no stdin is refused.
    `python`, `code_dir`, `project_root`: where on the host (no `project_root` on the controller).
    `ok_codes`: exit codes that are no failure. `writes`: not run in check mode.
    `closing`: the lines are kept for the end of the whole run; `quiet`: they are not printed.
    `follow`: repeat while the answer says `more`, passing its cursor on.
    `follow_timeout_seconds`: how long to wait for a host that cannot be reached meanwhile.

    Result: `answer` (the JSON object), or `failed`, `msg`, `trainer_exit_code`.
    """

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the command once, or follow it to its end."""
        self._vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, self._vars)
        _, self._args = self.validate_argument_spec(argument_spec=_SPEC)
        if self._task.check_mode and self._args["writes"]:
            return {**result, "changed": True, "answer": {}, "msg": f"would run: {self._words()}"}
        outcome = self._follow() if self._args["follow"] else self._once()
        return {**result, "changed": False, **outcome}

    def _once(self) -> dict[str, Any]:
        reply = self._call([])
        if self._task.check_mode and reply.rc == _NO_CODE:
            return {"skipped": True, "answer": {}, "msg": "the host has no code yet"}
        if reply.answer is None or reply.rc not in self._args["ok_codes"]:
            return self._failure(reply)
        if self._args["closing"]:
            return {"answer": reply.answer, "trainer_closing": reply.answer.get("lines", [])}
        if not self._args["quiet"]:
            self._say(reply.answer.get("lines", []))
        return {"answer": reply.answer}

    def _follow(self) -> dict[str, Any]:
        """Print lines until the answer carries no `more`; a dropped connection only interrupts."""
        cursor, outage = 0, Outage(self._say, self._args["follow_timeout_seconds"])
        while True:
            started = time.monotonic()
            try:
                reply = self._call(["--after", str(cursor)])
            except AnsibleConnectionFailure as failure:
                if not outage.goes_on():
                    return _result(7, outage.sentence(failure))
                self._reconnect_later()
                continue
            outage.ends()
            if reply.answer is None or not (reply.rc == 0 or reply.answer.get("result")):
                return self._failure(reply)
            self._say(reply.answer.get("lines", []))
            cursor = int(reply.answer.get("cursor", cursor))
            if not reply.answer.get("more"):
                return {"answer": reply.answer}
            if time.monotonic() - started < _LEAST_POLL_SECONDS:
                time.sleep(_LEAST_POLL_SECONDS)

    def _call(self, more_words: list[str]) -> Reply:
        """One run of the command on the host. Raises AnsibleConnectionFailure."""
        words = [self._args["python"], "-m", "trainer"]
        if self._args["project_root"]:
            words += ["--project-root", self._args["project_root"]]
        run = shlex.join(words + self._args["command"] + more_words)
        environment = f"{self._compute_environment_string()} PYTHONUTF8=1".strip()
        data = None if self._args["input"] is None else json.dumps(self._args["input"])
        # Connections without pipelining take no stdin: the shell on the host feeds it.
        piped = data is not None and not self._connection.has_pipelining
        if piped and self._args["secret"]:
            return Reply(2, None, f"error: {_NO_STDIN}")
        feed = f"printf %s {shlex.quote(data or '')} | " if piped else ""
        command = f"cd {shlex.quote(self._args['code_dir'])} 2>/dev/null || exit {_NO_CODE}; {feed}{environment} {run}"
        in_data = data.encode() if data is not None and not piped else None
        done = self._low_level_execute_command(command, in_data=in_data)
        return Reply(done["rc"], last_object(done["stdout"]), done["stderr"])

    def _reconnect_later(self) -> None:
        time.sleep(_RETRY_SECONDS)
        try:  # a stale shared connection would only time out again
            self._connection.reset()
        except Exception as problem:  # the next call tells whether the host is back
            display.vvv(f"resetting the connection: {problem}")

    def _failure(self, reply: Reply) -> dict[str, Any]:
        """The result of a failed call; findings are printed, the sentence becomes `msg`."""
        if reply.rc == _NO_CODE:
            return _result(3, f"{self._args['code_dir']} is not there on the host: {_PUBLISH_FIRST}")
        if reply.rc in (126, 127):
            return _result(4, f"the host cannot run {self._args['python']}: {_PUBLISH_FIRST}")
        findings, sentence = error_text(reply.stderr)
        if reply.answer is not None:
            findings = reply.answer.get("lines", [])
        self._say(findings)
        if not sentence:
            state = "gave no JSON answer" if reply.rc == 0 else f"ended with code {reply.rc}"
            last = (reply.stderr.strip().splitlines() or ["it wrote nothing to stderr"])[-1]
            sentence = f"`{self._words()}` {state}: {last}"
        return _result(reply.rc if 2 <= reply.rc <= 7 else 5, sentence)

    def _words(self) -> str:
        return shlex.join(["trainer", *self._args["command"]])

    def _say(self, lines: list[str]) -> None:
        several = len(self._vars.get("ansible_play_hosts_all", [])) > 1
        prefix = f"[{self._vars['inventory_hostname']}] " if several else ""
        for line in lines:
            display.display(prefix + str(line))


_NO_STDIN = "this connection takes no standard input, so no secret can be handed over; use ssh or local with pipelining"
_PUBLISH_FIRST = "run playbooks/train_all.yml once, which puts it there"


class Outage:
    """How long a host has been away; speaks when that begins, when it doubles, and at its end."""

    def __init__(self, say: Callable[[list[str]], None], timeout_seconds: float) -> None:
        self._say = say
        self._timeout_seconds = timeout_seconds
        self._since: float | None = None
        self._next_report_seconds = 0.0

    def goes_on(self) -> bool:
        """Note one failed try; False when the host has been away for too long."""
        if self._since is None:
            self._since, self._next_report_seconds = time.monotonic(), 0.0
        away = time.monotonic() - self._since
        if away >= self._next_report_seconds:
            self._say([f"host unreachable for {clock(away)}, the plan goes on there"])
            self._next_report_seconds = max(2 * away, 10.0)
        return away < self._timeout_seconds

    def ends(self) -> None:
        """Note a successful try."""
        if self._since is not None:
            self._say([f"host reachable again after {clock(time.monotonic() - self._since)}"])
        self._since = None

    def sentence(self, failure: Exception) -> str:
        """Why the watching was given up."""
        away = clock(time.monotonic() - (self._since or time.monotonic()))
        reason = str(failure).strip().splitlines()[-1:] or ["no reason given"]
        return (
            f"the host has not answered for {away} ({reason[0]}); the plan goes on there, "
            "and the same command watches it again"
        )


def clock(seconds: float) -> str:
    """42 -> "00:42"; 3723 -> "1:02:03"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def last_object(stdout: str) -> dict[str, Any] | None:
    """The last line of `stdout` that is a JSON object; None without one (logins may write, too)."""
    for line in reversed(stdout.splitlines()):
        if not line.lstrip().startswith("{"):
            continue
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, Mapping):
            return dict(found)
    return None


def error_text(stderr: str) -> tuple[list[str], str]:
    """(lines above it, sentence) of the last line `error: <sentence>`; ([], "") without one."""
    lines = [line.rstrip() for line in stderr.splitlines()]
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("error: "):
            return [line for line in lines[:index] if line], lines[index].removeprefix("error: ")
    return [], ""


def _result(code: int, sentence: str) -> dict[str, Any]:
    return {"failed": True, "msg": sentence, "trainer_exit_code": code}
