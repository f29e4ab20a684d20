"""Action plugin: print plain lines at once, without Ansible's result framing."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()


class ActionModule(ActionBase):
    """`lines`: the lines to print; each begins with `[host] ` when the play has several hosts."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print the lines; never changes, never fails."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={"lines": {"type": "list", "elements": "str", "required": True}}
        )
        several = len(task_vars.get("ansible_play_hosts_all", [])) > 1
        prefix = f"[{task_vars['inventory_hostname']}] " if several else ""
        for line in args["lines"]:
            display.display(prefix + line)
        return {**result, "changed": False}
