"""Action plugin: ask y/n on the controller's terminal; refuse where nobody can answer."""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsiblePromptInterrupt, AnsiblePromptNoninteractive
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

_YES = {"1", "true", "yes", "y"}


class ActionModule(ActionBase):
    """`prompt`: the question; `probe`: only find out whether it could be asked.

    Result: `answer` (bool). Fails with exit code 2 without a terminal. TRAIN_SYNC_ASSUME_YES in the
    environment answers yes; TRAIN_SYNC_NON_INTERACTIVE counts as having no terminal.
    """

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask, or probe; {"answer": True or False}."""
        result: dict[str, Any] = super().run(tmp, task_vars or {})
        _, args = self.validate_argument_spec(
            argument_spec={
                "prompt": {"type": "str", "default": ""},
                "probe": {"type": "bool", "default": False},
            }
        )
        if _wished("TRAIN_SYNC_ASSUME_YES"):
            return {**result, "changed": False, "answer": True}
        try:
            if _wished("TRAIN_SYNC_NON_INTERACTIVE"):
                raise AnsiblePromptNoninteractive
            answer = _probe() if args["probe"] else _ask(args["prompt"])
        except AnsiblePromptNoninteractive:
            return {**result, "failed": True, "msg": _REFUSAL, "trainer_exit_code": 2}
        except AnsiblePromptInterrupt:
            answer = False
        return {**result, "changed": False, "answer": answer}


_REFUSAL = (
    "trainer_confirm_after_sample asks a question, and there is no terminal to answer it on: "
    "set TRAIN_SYNC_ASSUME_YES=1 or leave trainer_confirm_after_sample off"
)


def _wished(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in _YES


def _probe() -> bool:
    """Raise AnsiblePromptNoninteractive without a terminal; waits for nothing."""
    display.prompt_until("", seconds=0)
    return True


def _ask(question: str) -> bool:
    """True for y or yes, False for n, no or nothing; asks again otherwise."""
    while True:
        given = display.prompt_until(f"{question} [y/N]: ").decode(errors="replace").strip().lower()
        if given in {"y", "yes"}:
            return True
        if given in {"n", "no", ""}:
            return False
