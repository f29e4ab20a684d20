"""Action plugin: run `python -m trainer …` through the host's connection and read its JSON answer.

A module could not print while it runs, and its connection would not outlive a dropped line; this
runs on the controller, shows each line as it comes and waits for a host that is away.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import filter_loader
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
    "known": {"type": "dict", "default": {}},
    "reconnect_timeout_seconds": {"type": "int", "default": 300},
    "answer_timeout_seconds": {"type": "int", "default": 0},
}
_NO_CODE = 97  # chosen outside the trainer's own exit codes and the shell's 126, 127
_FIRST_PAUSE_SECONDS, _PAUSE_SECONDS = 1.0, 5.0  # before a call is repeated
# By transport: a poll over ssh costs the host a process and the line a round trip.
_LEAST_POLL_SECONDS = {"local": 0.25}
_POLL_SECONDS = 2.0
# A login script that asks a question reads from our standard input: empty lines for it to read.
_PADDING = "\n" * 10


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
    `follow`: repeat while the answer says `more`, passing its cursor on; `known`: its last answer, if there is one.
    `reconnect_timeout_seconds`: how long to wait for a host that cannot be reached meanwhile. A call whose
    connection was lost is repeated: every command of the trainer may be asked twice.
    `answer_timeout_seconds`: a call without an answer for so long counts as a lost connection; 0: only ssh decides.

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
        if self._connection.has_option("reconnection_retries"):  # those of ssh would hide an outage
            self._connection.set_option("reconnection_retries", 0)
        outcome = self._follow() if self._args["follow"] else self._once()
        return {**result, "changed": False, **outcome}

    def _once(self) -> dict[str, Any]:
        outage = Outage(self._say, self._args["reconnect_timeout_seconds"], "asking again")
        reply = self._persistently([], outage)
        if isinstance(reply, dict):
            return reply
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
        if self._args["known"]:
            self._say(self._args["known"].get("lines", []))
            return {"answer": self._args["known"]}
        cursor, outage = 0, Outage(self._say, self._args["reconnect_timeout_seconds"], "the plan goes on there")
        while True:
            started = time.monotonic()
            reply = self._persistently(["--after", str(cursor)], outage)
            if isinstance(reply, dict):
                return reply
            if reply.answer is None or not (reply.rc == 0 or reply.answer.get("result")):
                return self._failure(reply)
            self._say(reply.answer.get("lines", []))
            cursor = int(reply.answer.get("cursor", cursor))
            if not reply.answer.get("more"):
                return {"answer": reply.answer}
            least = _LEAST_POLL_SECONDS.get(self._connection.transport, _POLL_SECONDS)
            if (rest := least - (time.monotonic() - started)) > 0:
                time.sleep(rest)

    def _persistently(self, more_words: list[str], outage: Outage) -> Reply | dict[str, Any]:
        """The reply of a call that is repeated while the host is away, or the result that ends the task."""
        while True:
            try:
                reply = self._call(more_words)
            except AnsibleError as failure:
                found = self._why(failure)
                if found["kind"] == "unknown" and not isinstance(failure, AnsibleConnectionFailure):
                    raise
                if found["lasts"]:
                    return _result(found["exit_code"], found["sentence"])
                if not outage.goes_on(found["sentence"]):
                    code = 7 if self._args["follow"] else found["exit_code"]
                    return _result(code, outage.sentence())
                self._reconnect_later(outage.pause_seconds)
                continue
            outage.ends()
            return reply

    def _why(self, failure: Exception) -> dict[str, Any]:
        """What the filter ssh_failure makes of a failed connection."""
        found: dict[str, Any] = filter_loader.get("ssh_failure").j2_function(str(failure))
        return found

    def _call(self, more_words: list[str]) -> Reply:
        """One run of the command on the host. Raises AnsibleConnectionFailure."""
        words = [self._args["python"], "-m", "trainer"]
        if self._args["project_root"]:
            words += ["--project-root", self._args["project_root"]]
        run = shlex.join(words + self._args["command"] + more_words)
        environment = f"{self._compute_environment_string()} PYTHONUTF8=1".strip()
        data = "" if self._args["input"] is None else json.dumps(self._args["input"])
        nonce = f"stagegate-{secrets.token_hex(8)}"
        # Connections without pipelining take no stdin: the shell on the host feeds it.
        piped = self._connection.has_pipelining
        if self._args["secret"] and not piped:
            return Reply(2, None, f"error: {_NO_STDIN}")
        feed = skip_to(nonce) if piped else f"printf %s {shlex.quote(data)} |"
        script = f"cd {shlex.quote(self._args['code_dir'])} 2>/dev/null || exit {_NO_CODE}; {feed} {environment} {run}"
        # With data on standard input there is no terminal, which would mix stderr into stdout.
        in_data = f"{_PADDING}{nonce}\n{data}".encode() if piped else None
        with deadline(self._args["answer_timeout_seconds"], self._hang_up):
            done = self._low_level_execute_command(framed(nonce, script), in_data=in_data)
        return reply_of(nonce, done["rc"], done["stdout"], done["stderr"])

    def _reconnect_later(self, seconds: float) -> None:
        time.sleep(seconds)
        self._hang_up()  # a stale shared connection would only time out again

    def _hang_up(self) -> None:
        """End the shared connection of ssh, if there is one."""
        if self._connection.transport != "ssh":
            return
        program = self._connection.get_option("ssh_executable")
        command = self._connection._build_command(program, "ssh", "-O", "exit", str(self._connection.host))
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)

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

    def __init__(self, say: Callable[[list[str]], None], timeout_seconds: float, meanwhile: str) -> None:
        self._say = say
        self._timeout_seconds = timeout_seconds
        self._meanwhile = meanwhile
        self._since: float | None = None
        self._next_report_seconds = 0.0
        self._reason = ""
        self.pause_seconds = _FIRST_PAUSE_SECONDS

    def goes_on(self, reason: str) -> bool:
        """Note one failed try; False when the host has been away for too long."""
        self._reason = reason
        self.pause_seconds = _FIRST_PAUSE_SECONDS if self._since is None else _PAUSE_SECONDS
        if self._since is None:
            self._since, self._next_report_seconds = time.monotonic(), 0.0
        away = time.monotonic() - self._since
        if away >= self._next_report_seconds:
            self._say([f"host unreachable for {clock(away)}, {self._meanwhile}"])
            self._next_report_seconds = min(max(2 * away, 10.0), away + _LONGEST_SILENCE_SECONDS)
        return away < self._timeout_seconds

    def ends(self) -> None:
        """Note a successful try."""
        if self._since is not None:
            self._say([f"host reachable again after {clock(time.monotonic() - self._since)}"])
        self._since = None

    def sentence(self) -> str:
        """Why the waiting was given up."""
        away = clock(time.monotonic() - (self._since or time.monotonic()))
        kept = "; what runs there goes on, and the same command finds it again"
        return f"the host has not answered for {away}: {self._reason}{kept}"


_LONGEST_SILENCE_SECONDS = 600.0


class Unanswered(BaseException):
    """A call took too long. No Exception: the connection plugin would take it for a reason to try again."""


@contextlib.contextmanager
def deadline(seconds: int, hang_up: Callable[[], None]) -> Iterator[None]:
    """AnsibleConnectionFailure when the body takes longer; 0: no limit."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Unanswered

    if not seconds:
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Unanswered:
        hang_up()
        raise AnsibleConnectionFailure(f"Timeout, server gave no answer within {seconds} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def framed(nonce: str, script: str) -> str:
    """A shell line that runs `script` between lines of `nonce` on both streams: whatever else a login writes."""
    begin = f"printf '\\n%s\\n' {nonce}; printf '\\n%s\\n' {nonce} >&2"
    end = f"printf '\\n%s %s\\n' {nonce} $code; printf '\\n%s\\n' {nonce} >&2"
    return f"{begin}; ( {script} ); code=$?; {end}; exit $code"


def skip_to(nonce: str) -> str:
    """Shell words that read standard input up to the line `nonce`; a login script may have read a part before it."""
    return f'while IFS= read -r line; do [ "$line" = {nonce} ] && break; done;'


def reply_of(nonce: str, rc: int, stdout: str, stderr: str) -> Reply:
    """The reply within the frame. Raises AnsibleConnectionFailure when the frame is not closed."""
    before, begun, rest = stdout.partition(f"{nonce}\n")
    body, ended, code = rest.partition(f"{nonce} ")
    if not begun:
        last = [line for line in (stdout + "\n" + stderr).splitlines() if line.strip()][-1:] or ["no word"]
        sentence = f"the login shell of the host ran no command, it ended with code {rc} ({last[0].strip()})"
        return Reply(4, None, f"error: {sentence}; look at the startup files of the user there")
    if not ended:
        raise AnsibleConnectionFailure("Connection aborted: the answer was cut off")
    said = stderr.replace("\r", "").partition(f"{nonce}\n")[2].partition(f"{nonce}\n")[0]
    return Reply(int(code.split()[0]), last_object(body), said)


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
        except (ValueError, RecursionError):  # a hostile host may nest as deep as it likes
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
