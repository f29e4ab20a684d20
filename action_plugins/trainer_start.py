"""Action plugin: start the supervisor of a submitted plan by Ansible's async, whatever happens to the connection.

Async only starts it. Whether it runs is asked from the state on the host: after a lost connection nothing is
launched a second time before the host has said that nobody runs the plan. Should two launches meet there all the
same, the lock and the plan's status let one of them in.
"""

from __future__ import annotations

import shlex
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

_SPEC: dict[str, dict[str, Any]] = {
    "plan": {"type": "str", "required": True},
    "python": {"type": "str", "required": True},
    "code_dir": {"type": "str", "required": True},
    "project_root": {"type": "str", "required": True},
    "plan_timeout_seconds": {"type": "int", "required": True},
    "reconnect_timeout_seconds": {"type": "int", "default": 300},
    "start_timeout_seconds": {"type": "int", "default": 60},
}
_MARGIN_SECONDS = 3600  # the host ends a plan that takes too long; async must never be the first
_PAUSE_SECONDS = 1.0
_HEARD_SECONDS = 15.0  # a launch whose answer was lost has begun after so long, or was never heard


class ActionModule(ActionBase):
    """Arguments.

    `plan`: the id that `submit` answered; `python`, `code_dir`, `project_root`: where on the host.
    `plan_timeout_seconds`: how long the host lets the plan run.
    `reconnect_timeout_seconds`: how long to wait for a host that went away during the launch.
    `start_timeout_seconds`: how long the supervisor may take to begin.

    Result: `launches`: how often the supervisor was launched (0 when it ran already), or `failed`, `msg`,
    `trainer_exit_code`. The job files lie in `ansible_async_dir` and are removed when the plan has begun.
    """

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Launch, and look until the plan has begun."""
        self._vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, self._vars)
        _, self._args = self.validate_argument_spec(argument_spec=_SPEC)
        if self._task.check_mode:
            return {**result, "changed": True, "msg": "would start the supervisor"}
        if self._connection.has_option("reconnection_retries"):  # ssh would send the launch again, unasked
            self._connection.set_option("reconnection_retries", 0)
        return {**result, **self._start()}

    def _start(self) -> dict[str, Any]:
        launches, ends_at = 0, time.monotonic() + self._args["reconnect_timeout_seconds"]
        while True:
            launch = self._launch()
            launches += 1
            if launch.get("failed"):
                return launch
            patience = self._args["start_timeout_seconds"]
            standing = self._wait_for_beginning(min(patience, _HEARD_SECONDS) if launch["interrupted"] else patience)
            if standing.get("failed"):
                return standing
            if standing["begun"]:
                self._clean_up()
                return {"changed": True, "launches": launches}
            if not launch["interrupted"] or time.monotonic() >= ends_at:
                return _failure(self._args["plan"])
            display.vv(f"plan {self._args['plan']} was not started before the connection was lost: starting it again")

    def _launch(self) -> dict[str, Any]:
        """{"interrupted": whether the connection was lost meanwhile}, or the failure of the launch."""
        run = [self._args["python"], "-m", "trainer", "--project-root", self._args["project_root"]]
        run += ["supervise", "--plan", self._args["plan"]]
        task = self._task.copy()
        task.async_val = self._args["plan_timeout_seconds"] + _MARGIN_SECONDS
        task.poll = 0
        # The supervisor writes its own log; async would keep its output in memory.
        task.args = {
            "_raw_params": f"exec {shlex.join(run)} </dev/null >/dev/null 2>&1",
            "_uses_shell": True,
            "chdir": self._args["code_dir"],
        }
        try:
            told = self._action("ansible.legacy.command", task).run(task_vars=self._vars)
        except AnsibleConnectionFailure as failure:
            display.vv(f"the connection was lost during the launch: {failure}")
            return {"interrupted": True}
        except AnsibleError as failure:  # a transfer that the lost connection cut off
            display.vv(f"the launch broke: {failure}")
            return {"interrupted": True}
        if told.get("failed"):
            return {
                "failed": True,
                "msg": f"the supervisor could not be launched: {told.get('msg')}",
                "trainer_exit_code": 4,
            }
        return {"interrupted": False}

    def _wait_for_beginning(self, seconds: float) -> dict[str, Any]:
        """{"begun": whether the plan is no longer only submitted}; a failure when the host stays away."""
        deadline = time.monotonic() + seconds
        while True:
            told = self._ask("status", "--plan", self._args["plan"], "--json")
            if told.get("failed"):
                return told
            record = told["answer"].get("plan") or {}
            if record.get("plan_id") != self._args["plan"]:
                return _failure(self._args["plan"], f": plan {record.get('plan_id', 'none')} took its place")
            if record.get("status") != "submitted" or told["answer"].get("running"):
                return {"begun": True}
            if time.monotonic() >= deadline:
                return {"begun": False}
            time.sleep(_PAUSE_SECONDS)

    def _ask(self, *words: str) -> dict[str, Any]:
        """A command of the trainer; it waits for a host that is away."""
        task = self._task.copy()
        task.args = {
            "command": list(words),
            "quiet": True,
            "reconnect_timeout_seconds": self._args["reconnect_timeout_seconds"],
            **{name: self._args[name] for name in ("python", "code_dir", "project_root")},
        }
        told: dict[str, Any] = self._action("trainer_cli", task).run(task_vars=self._vars)
        return told

    def _clean_up(self) -> None:
        """Remove the job files: the plan's state tells everything, and async would keep them for ever."""
        folder = str(self.get_shell_option("async_dir", default=""))
        if not folder.startswith(f"{self._args['project_root'].rstrip('/')}/"):
            return  # somebody else's jobs may lie there, too
        try:
            self._low_level_execute_command(f"rm -rf -- {shlex.quote(folder)}", in_data=b"\n")
        except AnsibleError as failure:  # the plan runs: that its files stay is no reason to fail
            display.vv(f"the job files stay: {failure}")

    def _action(self, name: str, task: Any) -> Any:
        return self._shared_loader_obj.action_loader.get(
            name, task=task, connection=self._connection, play_context=self._play_context, loader=self._loader,
            templar=self._templar, shared_loader_obj=self._shared_loader_obj,
        )  # fmt: skip


def _failure(plan: str, why: str = "") -> dict[str, Any]:
    sentence = f"the supervisor of plan {plan} did not start{why}; run the playbook again"
    return {"failed": True, "msg": sentence, "trainer_exit_code": 7}
