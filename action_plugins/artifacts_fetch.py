"""Action plugin: bring a host's export here. `python -m trainer import` on the controller decides, this fetches.

Ansible's `fetch` hashes on the host with a module, starts from zero after a cut and leaves what was cut under the
final name. The connection plugin's own `fetch_file` is one sftp call at wire speed; what it lacks is added here: a
limit that the kernel enforces (a host may send without end), and a line that drops. The commands on the host go
through trainer_cli, which knows how to wait for a host that is away.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

_SPEC: dict[str, dict[str, Any]] = {
    "export_id": {"type": "str", "required": True},
    "python": {"type": "str", "required": True},
    "project_root": {"type": "str", "required": True},
    "output_dir": {"type": "str", "required": True},
    "controller_python": {"type": "str", "required": True},
    "controller_code_dir": {"type": "str", "required": True},
    "max_file_bytes": {"type": "int", "required": True},
    "max_total_bytes": {"type": "int", "required": True},
    "reconnect_timeout_seconds": {"type": "int", "required": True},
}
_LEAST_LIMIT_BYTES = 16 << 20  # ssh's own small files (shared memory, known_hosts) fall under the limit, too
_FRUITLESS_CUTS = 5
_CUTS_UNTIL_SCP = 2
_RETRY_SECONDS = 5.0
Message = dict[str, Any]


class GivenUp(Exception):
    """The host stayed away; carries the result of the task."""

    def __init__(self, result: Message) -> None:
        super().__init__(result["msg"])
        self.result = result


class ActionModule(ActionBase):
    """Arguments.

    `export_id`: what `collect` answered on the host; `python`, `project_root`: where on the host.
    `controller_python`, `controller_code_dir`: the trainer on this side; `output_dir`: where everything goes.
    `max_file_bytes`, `max_total_bytes`: what a file, and all together, may have.
    `reconnect_timeout_seconds`: how long to wait for a host that went away.

    Result: `answer`, `changed`, `trainer_closing`, or `failed`, `msg`, `trainer_exit_code`.
    """

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> Message:
        """Start the arriving side and do what it asks until it has answered."""
        self._vars = task_vars or {}
        result: Message = super().run(tmp, self._vars)
        _, self._args = self.validate_argument_spec(argument_spec=_SPEC)
        self._cuts, self._stopped = 0, threading.Event()
        with tempfile.TemporaryFile() as errors, self._arriving_side(errors) as side:
            try:
                answer = self._serve(side)
            except GivenUp as end:
                return {**result, **end.result}
            code = side.wait()
            errors.seek(0)
            stderr = errors.read().decode(errors="replace")
        if code or answer is None:
            return {**result, **self._failure(code, stderr)}
        return {**result, "changed": answer["changed"], "answer": answer, "trainer_closing": answer["lines"]}

    @contextlib.contextmanager
    def _arriving_side(self, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        """The process that decides. It ends by itself when this one is gone."""
        a = self._args
        command = [
            a["controller_python"], "-m", "trainer", "import", "--host-root", a["project_root"],
            "--export-id", a["export_id"], "--output-dir", a["output_dir"],
            "--max-file-bytes", str(a["max_file_bytes"]), "--max-total-bytes", str(a["max_total_bytes"]),
        ]  # fmt: skip
        side = subprocess.Popen(
            command, cwd=a["controller_code_dir"], env={**os.environ, "PYTHONUTF8": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        try:
            yield side
        finally:
            with contextlib.suppress(BrokenPipeError):
                side.stdin.close()  # type: ignore[union-attr]
            side.wait()
            side.stdout.close()  # type: ignore[union-attr]

    def _serve(self, side: subprocess.Popen[bytes]) -> Message | None:
        """Do what is asked; returns the last answer, None when the other side ended without one."""
        asked: queue.Queue[Message | None] = queue.Queue()
        threading.Thread(target=self._listen, args=(side, asked), daemon=True).start()
        while (message := asked.get()) is not None:
            if "answer" in message:
                return dict(message["answer"])
            reply = self._run_there(message["run"]) if "run" in message else self._fetch(**message["fetch"])
            with contextlib.suppress(BrokenPipeError):
                side.stdin.write(json.dumps(reply).encode() + b"\n")  # type: ignore[union-attr]
                side.stdin.flush()  # type: ignore[union-attr]
        return None

    def _listen(self, side: subprocess.Popen[bytes], asked: queue.Queue[Message | None]) -> None:
        """Show lines and stop transfers at once, also while one is under way."""
        for line in side.stdout or []:
            message = json.loads(line)
            if "say" in message:
                self._say(message["say"])
            elif "stop" in message:
                self._stopped.set()
                end_children({side.pid})
            else:
                asked.put(message)
        asked.put(None)

    def _run_there(self, words: list[str]) -> Message:
        """A command of the host's trainer, repeated while the host is away."""
        ended = time.monotonic() + self._args["reconnect_timeout_seconds"]
        while True:
            try:
                result = self._trainer_cli(words)
                break
            except AnsibleConnectionFailure as failure:
                if time.monotonic() > ended:
                    raise GivenUp(_result(7, f"the host does not answer ({_last(failure)}); {_KEPT}")) from None
                time.sleep(_RETRY_SECONDS)
        if not result.get("failed"):
            return {"ok": True, "answer": result["answer"]}
        if result.get("trainer_exit_code") in (4, 7):  # it stayed away, or nobody can log in any more
            raise GivenUp({**result, "msg": f"{result['msg']}; {_KEPT}"})
        return {"ok": False, "lost": False, "reason": result["msg"]}

    def _trainer_cli(self, words: list[str]) -> Message:
        task = self._task.copy()
        task.args = {
            "command": words,
            "python": self._args["python"],
            "code_dir": f"{self._args['project_root']}/code",
            "project_root": self._args["project_root"],
            "quiet": True,
            "reconnect_timeout_seconds": self._args["reconnect_timeout_seconds"],
        }
        action = self._shared_loader_obj.action_loader.get(
            "trainer_cli", task=task, connection=self._connection, play_context=self._play_context,
            loader=self._loader, templar=self._templar, shared_loader_obj=self._shared_loader_obj,
        )  # fmt: skip
        found: Message = action.run(task_vars=self._vars)
        return found

    def _fetch(self, source: str, target: str, limit_bytes: int) -> Message:
        """One file through the connection. A cut is reported when the host can be reached again."""
        if not (source + target).isprintable():  # sftp reads its orders line by line
            return {"ok": False, "lost": False, "reason": f"{source!r} is not a plain path"}
        self._choose_transfer()
        self._stopped.clear()
        try:
            with limited(max(limit_bytes, _LEAST_LIMIT_BYTES)):
                self._connection.fetch_file(source, target)
            self._cuts = 0
            return {"ok": True}
        except AnsibleConnectionFailure as failure:
            reason = _last(failure)
        except (AnsibleError, OSError) as failure:
            # A shared connection that dies in the middle may end sftp with another status than that of ssh.
            broke_off = os.path.exists(target) and 0 < os.path.getsize(target) < limit_bytes
            if not (broke_off or self._stopped.is_set()):
                return {"ok": False, "lost": False, "reason": _last(failure)}
            reason = "it stood still" if self._stopped.is_set() else _last(failure)
        self._cuts = 0 if os.path.exists(target) and os.path.getsize(target) else self._cuts + 1
        # Over a shared connection, a host without sftp looks like one whose line drops at once.
        if ("subsystem request failed" in reason or self._cuts >= _CUTS_UNTIL_SCP) and self._use_scp():
            return {"ok": False, "lost": True}
        if self._cuts >= _FRUITLESS_CUTS:
            return {"ok": False, "lost": False, "reason": f"the transfer broke off {self._cuts} times: {reason}"}
        self._run_there(["stages", "--json"])
        return {"ok": False, "lost": True}

    def _choose_transfer(self) -> None:
        """One method and one try: what ssh would do by itself begins the file again, or holds it in memory."""
        for option, value, unless in (("ssh_transfer_method", "sftp", ("scp",)), ("reconnection_retries", 0, ())):
            if self._connection.has_option(option) and self._connection.get_option(option) not in unless:
                self._connection.set_option(option, value)

    def _use_scp(self) -> bool:
        """For hosts without sftp; False when that is tried already."""
        has_methods = self._connection.has_option("ssh_transfer_method")
        if not has_methods or self._connection.get_option("ssh_transfer_method") == "scp":
            return False
        self._connection.set_option("ssh_transfer_method", "scp")
        extra = self._connection.get_option("scp_extra_args") or ""
        self._connection.set_option("scp_extra_args", f"{extra} -O".strip())  # the new scp speaks sftp
        return True

    def _failure(self, code: int, stderr: str) -> Message:
        """The result when the other side ended with an error; findings are printed."""
        lines = [line for line in stderr.splitlines() if line.strip()] or ["it wrote nothing to stderr"]
        if not lines[-1].startswith("error: "):
            return _result(5, f"collect ended with code {code}: {lines[-1]}")
        self._say(lines[:-1])
        return _result(code, lines[-1].removeprefix("error: "))

    def _say(self, lines: list[str]) -> None:
        several = len(self._vars.get("ansible_play_hosts_all", [])) > 1
        prefix = f"[{self._vars['inventory_hostname']}] " if several else ""
        for line in lines:
            display.display(prefix + str(line))


_KEPT = "what has arrived is kept, and the same command goes on with it"


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes in the body, neither by this process nor by those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    core = resource.getrlimit(resource.RLIMIT_CORE)
    lowered = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (0, core[1]))  # the signal at the limit would write a core file
    resource.setrlimit(resource.RLIMIT_FSIZE, (lowered, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_CORE, core)


def end_children(spared: set[int]) -> list[int]:
    """End the processes that this one has started, but for those that are spared; returns whom."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=False)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    own = [int(row[0]) for row in rows if len(row) == 3 and int(row[1]) == os.getpid() and row[2] != "ps"]
    for pid in own:
        if pid not in spared:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    return [pid for pid in own if pid not in spared]


def _last(failure: Exception) -> str:
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _result(code: int, sentence: str) -> Message:
    return {"failed": True, "msg": sentence, "trainer_exit_code": code}
