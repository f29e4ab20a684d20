"""Action plugin: run a small program on the host with bytes or files of the controller.

One command over the host's connection does what copying, unpacking and running would need a dozen for. Files go in
pieces through the same kind of command: a host needs no sftp and no Python for it, its login may write what it likes,
what its disk says arrives as it is, and neither this machine's memory nor its disk holds a large file once more.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

_SPEC: dict[str, dict[str, Any]] = {
    "script": {"type": "str", "required": True},
    "words": {"type": "list", "elements": "str", "default": []},
    "stdin": {"type": "str"},
    "stdin_command": {"type": "list", "elements": "str"},
    "stdin_dir": {"type": "str"},
    "upload": {"type": "dict"},
    "upload_dir": {"type": "str"},
    "room_bytes": {"type": "int", "default": 0},
    "writes": {"type": "bool", "default": True},
}
_BLOCK_BYTES = 64 << 10
_PIECE_BLOCKS = 512  # 32 MiB: what a cut costs, and what a far host's answers cost, both stay small
_REPORT_SECONDS = 10.0
# Arguments: the folder to upload into, the bytes that must fit. Answers {"folder"}: a fresh one below it.
_BEGIN = r"""umask 022
refuse() {
  echo "error: nothing can be put into $1 on the host ($2); make room there or correct its permissions" >&2
  exit 4
}
said=$(mkdir -p "$1" 2>&1) || refuse "$1" "$said"
room=$(df -Pk "$1" 2>/dev/null | tail -n 1 | sed -n 's/^.* \([0-9][0-9]*\)  *[0-9][0-9]*% .*/\1/p')
[ -z "$room" ] || [ "$room" -ge $(($2 / 1024)) ] ||
  refuse "$1" "$(($2 / 1048576 + 1)) MiB are needed, $((room / 1024)) MiB are free"
said=$(mktemp -d "$1/.incoming-XXXXXXXX" 2>&1) || refuse "$1" "$said"
printf '{"folder": "%s"}\n' "${said##*/}"
"""
# Arguments: the file, the block of the file at which the piece on standard input begins. The same piece may come twice:
# a connection that was lost is tried again.
_PIECE = f"""umask 077
said=$(dd of="$1" bs={_BLOCK_BYTES} seek="$2" conv=notrunc 2>&1) && echo '{{}}' && exit
said=$(printf '%s' "$said" | head -n 1 | sed 's/^.*: //')
echo "error: $1 cannot be written on the host ($said); make room there or correct its permissions" >&2
exit 4
"""


class ActionModule(ActionBase):
    """Arguments.

    `script`: text of a POSIX shell script; `words`: its arguments.
    `stdin`: text, or `stdin_command`: words of a command of the controller, run in `stdin_dir`, whose output is sent.
    `upload`: files of the controller by the names that they get in a fresh folder below `upload_dir` on the host. That
    folder is the script's first argument, before `words`; the script removes it. `room_bytes`: what must be free there
    beside them.
    `writes`: not run in check mode, which reports a change instead.

    The script answers with a JSON object on its last line, whose `lines` are printed, or ends with a line
    `error: <sentence>` on stderr; findings above it are printed. Result: `answer`, or `failed`, `msg`,
    `trainer_exit_code`; `changed` as the answer says, else as `writes`.
    """

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make the input, run the script once."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec=_SPEC,
            mutually_exclusive=[("stdin", "stdin_command")],
            required_by={"stdin_dir": "stdin_command", "upload": "upload_dir"},
        )
        several = len(task_vars.get("ansible_play_hosts_all", [])) > 1
        self._prefix = f"[{task_vars['inventory_hostname']}] " if several else ""
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
        if (data or args["upload"]) and not self._connection.has_pipelining:
            sentence = f"error: the connection {self._connection.transport!r} takes no input; use ssh or local"
            return {**result, **failure(2, sentence)}
        words = args["words"]
        if args["upload"]:
            found = self._upload(args["upload"], args["upload_dir"], args["room_bytes"])
            if found.get("failed"):
                return {**result, **found}
            words = [f"{args['upload_dir']}/{found['answer']['folder']}", *words]
            if self._connection.has_option("reconnection_retries"):  # a second run would find the upload gone
                self._connection.set_option("reconnection_retries", 0)
        done = self._script(args["script"], words, data)
        if done.get("failed"):
            return {**result, **done}
        self._say(done["answer"].get("lines", []))
        return {**result, **done, "changed": args["writes"] and bool(done["answer"].get("changed", True))}

    def _upload(self, files: Mapping[str, str], folder: str, room_bytes: int) -> dict[str, Any]:
        """Bring files into a fresh folder; {"answer": {"folder"}} or a failed result. Raises AnsibleConnectionFailure.

        The folder of an upload that broke off with the connection goes when the releases are pruned.
        """
        total_bytes = sum(os.path.getsize(path) for path in files.values())
        made = self._script(_BEGIN, [folder, str(total_bytes + room_bytes)])
        if made.get("failed"):
            return made
        fresh, sent_bytes, reported = f"{folder}/{made['answer']['folder']}", 0, time.monotonic()
        for name, block, piece in pieces(files):
            done = self._script(_PIECE, [f"{fresh}/{name}", str(block)], piece)
            if done.get("failed"):
                self._script('rm -rf "$1"; echo "{}"', [fresh])
                return done
            sent_bytes += len(piece)
            if time.monotonic() - reported >= _REPORT_SECONDS:
                self._say([f"sent {sent_bytes >> 20} of {total_bytes >> 20} MiB"])
                reported = time.monotonic()
        return made

    def _script(self, script: str, words: list[str], data: bytes = b"") -> dict[str, Any]:
        """Run a script on the host: {"answer"} or a failed result, whose findings are printed."""
        nonce = f"stagegate-{secrets.token_hex(8)}"  # what a login says of its own stands before it
        command = f"{self._compute_environment_string()} {shlex.join(['sh', '-c', script, 'sh', *words])}".strip()
        if not data:  # without any input ssh asks for a terminal, which mixes both outputs
            command, data = f"{command} < /dev/null", b"\n" if self._connection.has_pipelining else b""
        try:
            done = self._low_level_execute_command(f"echo {nonce} >&2; {command}", in_data=data or None)
        except AnsibleConnectionFailure as problem:
            _, began, reason = str(problem).rpartition(nonce)
            if not began:
                raise
            raise AnsibleConnectionFailure(f"Connection aborted: {reason.strip() or 'no word of why'}") from None
        answer = last_object(done["stdout"])
        if not done["rc"] and answer is not None:
            return {"answer": answer}
        before, _, behind = done["stderr"].rpartition(nonce)
        said = behind or before
        self._say([*(answer or {}).get("lines", []), *findings(said)])
        return failure(done["rc"], said)

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            display.display(self._prefix + line)


def pieces(files: Mapping[str, str]) -> Iterator[tuple[str, int, bytes]]:
    """(name, block at which it begins, bytes) of each piece of the files; an empty file is one empty piece."""
    for name, path in files.items():
        with open(path, "rb") as stream:
            block = 0
            while (piece := stream.read(_PIECE_BLOCKS * _BLOCK_BYTES)) or not block:
                yield name, block, piece
                block += _PIECE_BLOCKS


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


def findings(stderr: str) -> list[str]:
    """The lines above the last line `error: …`; none without one."""
    lines = [line.rstrip() for line in stderr.splitlines()]
    last = max((number for number, line in enumerate(lines) if line.startswith("error: ")), default=0)
    return [line for line in lines[:last] if line]


def failure(rc: int, stderr: str) -> dict[str, Any]:
    """The failed result for an exit status and what stood on stderr."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    sentence = (
        said[-1] if said else f"the host's answer was not understood (code {rc}): {(lines or ['nothing said'])[-1]}"
    )
    return {"failed": True, "msg": sentence, "trainer_exit_code": rc if 2 <= rc <= 7 else 5}
