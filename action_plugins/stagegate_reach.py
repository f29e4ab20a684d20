"""Action plugin: the first contact of a play with a host; why it fails becomes one sentence and an exit code."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import filter_loader

_INPUT, _UNFIT = 2, 4
_UNCHOSEN = (
    "REMOTE_HOST is set and no inventory is chosen, which would use the embedded host of this machine; "
    "add -i inventory/remote.yml, or unset REMOTE_HOST"
)
_TRIES = 3  # of what may be an accident: sshd drops connections when many come at once
_PAUSE_SECONDS = 2.0
_LINES = 10  # empty lines on standard input; a login script that asks a question reads some of them


class ActionModule(ActionBase):
    """Takes no arguments; looks at the address (`remote_address`, `ansible_host`) before it connects.

    Result: `noisy`: whether the login writes to standard output, which breaks sftp and scp.
    Fails with 2 for a wrong address or the wrong inventory, with 4 for a host that cannot be used.
    """

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the address, log in once, and look at what the login shell does."""
        self._vars = task_vars or {}
        result: dict[str, Any] = {**super().run(tmp, self._vars), "changed": False, "noisy": False}
        self.validate_argument_spec(argument_spec={})
        findings = self._address_findings()
        if findings:
            return {**result, "failed": True, "msg": "; ".join(findings), "trainer_exit_code": _INPUT}
        if self._connection.transport == "local":
            return result
        if self._connection.has_option("reconnection_retries"):  # a wrong password must not be tried again and again
            self._connection.set_option("reconnection_retries", 0)
        try:
            told, rc, nonce = self._log_in()
        except AnsibleError as failure:
            return {**result, **self._refusal(failure)}
        sentence = complaint(told, rc, nonce)
        if sentence:
            return {**result, "failed": True, "msg": sentence, "trainer_exit_code": _UNFIT}
        return {**result, "noisy": told.partition(nonce)[0].strip() != ""}

    def _address_findings(self) -> list[str]:
        """What is wrong with where to connect to, before anything is connected."""
        if self._vars.get("inventory_unchosen") and os.environ.get("REMOTE_HOST", "").strip():
            return [_UNCHOSEN]
        pasted = self._templar.template(self._vars.get("remote_address"))
        if pasted:
            return list(pasted["findings"])
        if self._connection.transport == "local":
            return []
        host = self._connection.get_option("host")
        found = _filter("remote_address")(host)
        if found["findings"] or found["host"] != host:
            name = self._vars["inventory_hostname"]
            return [f"ansible_host of {name} is {host!r}; give a name or an address alone (ansible_port, ansible_user)"]
        return []

    def _log_in(self) -> tuple[str, int, str]:
        """(standard output, exit status, marker) of a line that counts what is left of its standard input."""
        nonce = f"stagegate-{secrets.token_hex(8)}"
        script = f'n=0; while IFS= read -r line; do [ "$line" = {nonce} ] && break; n=$((n+1)); done'
        script += f"; printf '\\n%s %s\\n' {nonce} $n"
        data = "\n" * _LINES + nonce + "\n"
        for left in range(_TRIES - 1, -1, -1):
            try:
                done = self._low_level_execute_command(script, in_data=data.encode())
                break
            except AnsibleConnectionFailure as failure:
                if not left or _filter("ssh_failure")(str(failure))["kind"] not in ("dropped", "booting", "unknown"):
                    raise
                time.sleep(_PAUSE_SECONDS)
        return done["stdout"], done["rc"], nonce

    def _refusal(self, failure: AnsibleError) -> dict[str, Any]:
        found = _filter("ssh_failure")(str(failure))
        if found["kind"] == "unknown key":  # with a password Ansible throws away what ssh said: it may be a changed one
            found = _filter("ssh_failure")(self._ask_ssh() or str(failure))
        if found["kind"] == "unknown" and not isinstance(failure, AnsibleConnectionFailure):
            raise failure
        return {"failed": True, "msg": found["sentence"], "trainer_exit_code": found["exit_code"]}

    def _ask_ssh(self) -> str:
        """What ssh says about the host key, without a try to log in."""
        program = self._connection.get_option("ssh_executable")
        command = self._connection._build_command(program, "ssh", str(self._connection.host), "true")
        options = ("PreferredAuthentications=none", "BatchMode=yes", "ControlMaster=no", "ControlPath=none")
        command[1:1] = [word for option in options for word in ("-o", option)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stderr.decode(errors="replace")


def complaint(told: str, rc: int, nonce: str) -> str:
    """Why a login that worked is of no use, or an empty text."""
    noise, marker, rest = told.partition(nonce)
    advice = "let the startup files there write and ask only in a session with a terminal ([ -t 0 ])"
    if not marker:
        last = ([line.strip() for line in told.splitlines() if line.strip()] or ["it wrote nothing"])[-1]
        return (
            f"the login shell of the host runs no command, it ended with code {rc} ({last}); look at its startup files"
        )
    if any(line.lstrip().startswith("{") for line in noise.splitlines()):
        return (
            f"the login of the host writes a line that begins with '{{', which hides the answers of modules: {advice}"
        )
    if int(rest.split()[0]) < _LINES:
        return f"the login of the host asks a question and reads what was sent to the modules: {advice}"
    return ""


def _filter(name: str) -> Any:
    return filter_loader.get(name).j2_function
