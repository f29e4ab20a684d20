"""Action plugin: run a small program on the host with bytes of the controller as its standard input.

One command over the host's connection does what copying, unpacking and running would need a dozen for.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

_SPEC: dict[str, dict[str, Any]] = {
    "script": {"type": "str", "required": True},
    "words": {"type": "list", "elements": "str", "default": []},
    "stdin": {"type": "str"},
    "stdin_command": {"type": "list", "elements": "str"},
    "stdin_dir": {"type": "str"},
    "writes": {"type": "bool", "default": True},
}


class ActionModule(ActionBase):
    """Arguments.

    `script`: text of a POSIX shell script; `words`: its arguments.
    `stdin`: text, or `stdin_command`: words of a command of the controller, run in `stdin_dir`, whose output is sent.
    `writes`: not run in check mode, which reports a change instead.

    The script answers with a JSON object on its last line, whose `lines` are printed, or ends with a line
    `error: <sentence>` on stderr. Result: `answer`, or `failed`, `msg`, `trainer_exit_code`.
    """

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make the input, run the script once."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec=_SPEC,
            mutually_exclusive=[("stdin", "stdin_command")],
            required_by={"stdin_dir": "stdin_command"},
        )
        if self._task.check_mode and args["writes"]:
            return {**result, "changed": True, "answer": {}}
        data = (args["stdin"] or "").encode()
        if args["stdin_command"]:
            made = subprocess.run(
                args["stdin_command"], cwd=args["stdin_dir"], stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            if made.returncode:
                return {**result, **failure(made.returncode, made.stderr.decode(errors="replace"))}
            data = made.stdout
        if data and not self._connection.has_pipelining:
            sentence = f"error: the connection {self._connection.transport!r} takes no input; use ssh or local"
            return {**result, **failure(2, sentence)}
        words = ["sh", "-c", args["script"], "sh", *args["words"]]
        command = f"{self._compute_environment_string()} {shlex.join(words)}".strip()
        done = self._low_level_execute_command(command, in_data=data or None)
        answer = last_object(done["stdout"])
        if done["rc"] or answer is None:
            return {**result, **failure(done["rc"], done["stderr"])}
        several = len(task_vars.get("ansible_play_hosts_all", [])) > 1
        prefix = f"[{task_vars['inventory_hostname']}] " if several else ""
        for line in answer.get("lines", []):
            display.display(prefix + line)
        return {**result, "changed": args["writes"], "answer": answer}


def last_object(stdout: str) -> dict[str, Any] | None:
    """The last line of `stdout` that is a JSON object; None without one (logins may write, too)."""
    for line in reversed(stdout.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return dict(found)
    return None


def failure(rc: int, stderr: str) -> dict[str, Any]:
    """The failed result for an exit status and what stood on stderr."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    sentence = (
        said[-1] if said else f"the host's answer was not understood (code {rc}): {(lines or ['nothing said'])[-1]}"
    )
    return {"failed": True, "msg": sentence, "trainer_exit_code": rc if 2 <= rc <= 7 else 5}
