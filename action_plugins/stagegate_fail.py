"""Action plugin: end a host with one sentence and an exit code of the project's table."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()


class ActionModule(ActionBase):
    """`msg`: one sentence; `exit_code`: 2 to 7; `lines`: findings printed above the sentence."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print the lines and fail; the callback `exit_code` ends the run with the code."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={
                "msg": {"type": "str", "required": True},
                "exit_code": {"type": "int", "required": True},
                "lines": {"type": "list", "elements": "str", "default": []},
            }
        )
        several = len(task_vars.get("ansible_play_hosts_all", [])) > 1
        prefix = f"[{task_vars['inventory_hostname']}] " if several else ""
        for line in args["lines"]:
            display.display(prefix + line)
        failure = {"failed": True, "msg": args["msg"], "trainer_exit_code": args["exit_code"]}
        return {**result, **failure}
