"""Callback plugin: the run ends with the trainer's exit code, its closing lines and one error line.

Ansible knows one code for every failed task. The project's table (0, 2 to 7) tells a missed gate
from a locked host, so failures that carry `trainer_exit_code` decide how the process ends.
"""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ansible import constants, context
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader

DOCUMENTATION = """
name: exit_code
type: aggregate
short_description: end with the trainer's exit code
description:
  - Ends ansible-playbook with the worst C(trainer_exit_code) of the failed results.
  - Prints the results' C(trainer_closing) lines after the recap and C(error) as stderr's last line.
requirements:
  - enabled in the configuration
"""

_ANSIBLE_FAILED = 2
_INTERRUPTED = 7
_CLEAN_UP_SECONDS = 5.0
_KEY_CHECKING = "Host Key checking is enabled"


@dataclass(frozen=True)
class Failure:
    """One failed result; `code` is None for Ansible's own failures."""

    host: str
    code: int | None
    sentence: str


class CallbackModule(CallbackBase):
    """Remembers failures and closing lines, speaks after the recap, ends the process."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "exit_code"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._failures: list[Failure] = []
        self._closing: dict[str, list[str]] = {}
        self._hosts: set[str] = set()
        self._plan_runs = False
        self._interrupted = False
        self._said = False

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Make the trainer's lines appear at once in pipes too, and listen for Ctrl-C and other ends."""
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        ansible_handler = signal.getsignal(signal.SIGINT)
        if not callable(ansible_handler):
            return
        handler = self._interrupt_handler(ansible_handler)
        # A closed terminal (HUP; nohup ignores it) and a kill leave nothing that polls either.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)
        atexit.register(self._say_interrupted)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Keep closing lines; learn whether a plan is under way on a host."""
        host, answer = result.host.get_name(), result.result
        self._hosts.add(host)
        if "trainer_closing" in answer:
            self._closing[host] = [str(line) for line in answer["trainer_closing"]]
        if _answered(answer).get("action") in ("start", "watch"):
            self._plan_runs = True

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Keep the failure's code and sentence."""
        host, answer = result.host.get_name(), result.result
        self._hosts.add(host)
        if not ignore_errors:
            code = answer.get("trainer_exit_code")
            found = _ssh_failure(answer) if code is None and _KEY_CHECKING in sentence(answer) else None
            if found:  # with a password the connection plugin makes this a failure of the task
                self._failures.append(Failure(host, found["exit_code"], found["sentence"]))
            else:
                self._failures.append(Failure(host, code, sentence(answer)))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Keep why the host cannot be reached."""
        host, found = result.host.get_name(), _ssh_failure(result.result)
        self._hosts.add(host)
        self._failures.append(Failure(host, found["exit_code"], found["sentence"]))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print what comes last; raise SystemExit where the trainer decides the exit code."""
        for host, lines in self._closing.items():
            for line in lines:
                self._display.display(self._prefix(host) + line)
        # A rescued failure is none: only hosts that Ansible itself counts as failed.
        lasting = [f for f in self._failures if f.host in stats.failures or f.host in stats.dark]
        if not lasting:
            return
        worst = max(lasting, key=_severity)
        for failure in lasting:
            if failure is not worst:
                self._error(self._prefix(failure.host) + failure.sentence)
        self._error(f"error: {self._prefix(worst.host)}{worst.sentence}")
        if any(failure.code for failure in lasting):
            # The executor's `finally` cleans up; only the code that it would return is replaced.
            raise SystemExit(_severity(worst))

    def _prefix(self, host: str) -> str:
        return f"[{host}] " if len(self._hosts) > 1 else ""

    def _error(self, line: str) -> None:
        self._display.display(line, stderr=True)

    def _interrupt_handler(
        self, ansible_handler: Callable[[int, FrameType | None], Any]
    ) -> Callable[[int, FrameType | None], None]:
        def handle(signum: int, frame: FrameType | None) -> None:
            self._interrupted = True
            self._leave_soon()
            try:
                ansible_handler(signal.SIGINT, frame)  # stops the workers
            except KeyboardInterrupt:
                raise SystemExit(_INTERRUPTED) from None

        return handle

    def _leave_soon(self) -> None:
        """End the process even if Ansible's own end hangs.

        A worker that is killed while it hands a line over takes the lock of the queue with it, and the
        strategy's clean-up then waits for that lock for ever (seen with core 2.19.14).
        """
        timer = threading.Timer(_CLEAN_UP_SECONDS, self._leave)
        timer.daemon = True
        timer.start()

    def _leave(self) -> None:
        self._say_interrupted()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_INTERRUPTED)

    def _say_interrupted(self) -> None:
        if not self._interrupted or self._said:
            return
        self._said = True
        if not self._plan_runs:
            print("error: interrupted before a plan was started", file=sys.stderr)
            return
        print(
            "The plan goes on on the host. To watch it again: the same command.\n"
            f"To see its state: ansible-playbook {chosen_inventory()}playbooks/status.yml\n"
            f"To stop it:       ansible-playbook {chosen_inventory()}playbooks/cancel.yml\n"
            "error: interrupted while watching; the plan goes on on the host",
            file=sys.stderr,
        )


def chosen_inventory() -> str:
    """`-i …` as it was given on the command line, with a space behind it; empty for the default inventory."""
    given = list(context.CLIARGS.get("inventory") or [])
    if given == list(constants.DEFAULT_HOST_LIST):
        return ""
    here = os.getcwd() + os.sep
    return "".join(f"-i {shlex.quote(str(source).removeprefix(here))} " for source in given)


def _ssh_failure(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the filter ssh_failure makes of a result, whose message keeps the line breaks of ssh."""
    found: dict[str, Any] = filter_loader.get("ssh_failure").j2_function(str(result.get("msg") or ""))
    return found


def _severity(failure: Failure) -> int:
    return failure.code or _ANSIBLE_FAILED


def _answered(result: Mapping[str, Any]) -> Mapping[str, Any]:
    answer = result.get("answer")
    return answer if isinstance(answer, Mapping) else {}


def sentence(result: Mapping[str, Any]) -> str:
    """One line from a failed result: the first failed item's message, or the result's own."""
    for item in result.get("results") or []:
        if isinstance(item, Mapping) and item.get("failed"):
            return sentence(item)
    message = result.get("msg") or "a task failed without a word"
    findings = result.get("argument_errors") or [message]
    return " ".join("; ".join(str(finding) for finding in findings).split())
