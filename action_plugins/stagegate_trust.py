"""Action plugin: show a host's keys, ask, and pin them in the known_hosts file that ssh really reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsiblePromptInterrupt, AnsiblePromptNoninteractive
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import filter_loader
from ansible.utils.display import Display

display = Display()

# One connection for each type: ssh shows the key that it negotiates, through a ProxyJump, too; ssh-keyscan cannot.
_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512,rsa-sha2-256")
_SECONDS = 60
_INTO_THAT_FILE = (
    "GlobalKnownHostsFile=/dev/null", "HashKnownHosts=no", "StrictHostKeyChecking=accept-new", "UpdateHostKeys=no",
    "KnownHostsCommand=none",
)  # fmt: skip
# Only the key is wanted: no login, no shared connection that has it already.
_NO_LOGIN = ("PreferredAuthentications=none", "BatchMode=yes", "ControlMaster=no", "ControlPath=none")


class ActionModule(ActionBase):
    """`fingerprint`: SHA256:… of the key to trust, instead of an answer on the terminal.

    Result: `changed` when a key was pinned. Fails with 2 when nobody can answer or the fingerprint is another one,
    with 4 when the host cannot be reached, with 7 when the answer is no. Host key checking is never turned off.
    """

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Look whether ssh trusts the host; if not, show, ask and pin."""
        self._vars = task_vars or {}
        result: dict[str, Any] = {**super().run(tmp, self._vars), "changed": False}
        _, args = self.validate_argument_spec(argument_spec={"fingerprint": {"type": "str", "default": ""}})
        if self._connection.transport != "ssh":
            return {**result, "msg": "not reached over ssh"}
        try:
            changed = self._trust(args["fingerprint"].strip())
        except Refused as refusal:
            return {**result, "failed": True, "msg": str(refusal), "trainer_exit_code": refusal.code}
        return {**result, "changed": changed}

    def _trust(self, wished: str) -> bool:
        standing = self._standing()
        with tempfile.TemporaryDirectory(prefix="stagegate_") as folder:
            keys = self._fetch(Path(folder), standing)
            known = self._known_hosts()
            old = old_fingerprints(known, keys[0].place)
            if standing["kind"] == "trusted":
                shown = old or [key.shown for key in keys]
                display.display(f"{keys[0].place} is trusted already: {', '.join(shown)}")
                return False
            for line in introduction(keys, old):
                display.display(line)
            chosen = self._chosen(keys, wished, bool(old))
            if self._task.check_mode:
                return True
            pin(known, keys[0].place, chosen, self._config().get("hashknownhosts") == "yes")
        after = self._standing()
        if after["kind"] != "trusted":
            raise Refused(4, f"{known} holds the key now and ssh still refuses it: {after['sentence']}")
        display.display(f"{keys[0].place} is trusted from now on ({known})")
        return True

    def _standing(self) -> dict[str, Any]:
        """What ssh thinks of the host key now: kind `trusted`, or the failure."""
        done = self._ssh("StrictHostKeyChecking=yes", *_NO_LOGIN)
        said = done.stderr.decode(errors="replace")
        found: dict[str, Any] = filter_loader.get("ssh_failure").j2_function(said)
        if done.returncode == 0 or found["kind"] in ("login", "too many keys"):
            return {"kind": "trusted"}
        if found["kind"] not in ("unknown key", "changed key"):
            raise Refused(4, found["sentence"])
        return found

    def _fetch(self, folder: Path, standing: dict[str, Any]) -> list[Key]:
        """The host's keys under the name by which ssh looks them up."""
        keys: list[Key] = []
        for number, kind in enumerate(_TYPES):
            file = folder / f"{number}"
            self._ssh(f"UserKnownHostsFile={file}", f"HostKeyAlgorithms={kind}", *_INTO_THAT_FILE, *_NO_LOGIN)
            if file.is_file():
                keys += [Key(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not keys:
            raise Refused(4, f"no host key could be read: {standing.get('sentence', 'ssh wrote nothing')}")
        return keys

    def _chosen(self, keys: list[Key], wished: str, replaces: bool) -> list[Key]:
        """The keys that were confirmed; Refused otherwise."""
        if wished:
            found = [key for key in keys if key.fingerprint == with_prefix(wished)]
            if not found:
                raise Refused(2, f"the host shows no key with the fingerprint {with_prefix(wished)}: do not log in")
            return found
        if replaces:
            given = with_prefix(self._ask("To replace the old key, paste the new fingerprint (nothing: stop): "))
            found = [key for key in keys if key.fingerprint == given]
        else:
            given = self._ask("Is this what the provider or the host's owner shows? [yes/no]: ")
            found = keys if given.lower() == "yes" else []
        if not found:
            raise Refused(7, "the host key was not confirmed, nothing was changed")
        return found

    def _ask(self, question: str) -> str:
        try:
            return str(display.prompt_until(question).decode(errors="replace").strip())
        except AnsiblePromptNoninteractive:
            raise Refused(
                2,
                "there is no terminal to confirm the host key on; compare the fingerprint with the provider's and give "
                "it: -e trust_fingerprint=SHA256:… or TRUST_FINGERPRINT in the environment",
            ) from None
        except AnsiblePromptInterrupt:
            return ""

    def _known_hosts(self) -> Path:
        """The first file that ssh reads and writes for this host."""
        names = self._config().get("userknownhostsfile", "").split() or ["~/.ssh/known_hosts"]
        path = Path(names[0]).expanduser()
        if str(path) in ("none", "/dev/null"):
            raise Refused(2, f"UserKnownHostsFile in ~/.ssh/config is {path}; name a file that keeps host keys")
        return path

    def _config(self) -> dict[str, str]:
        """ssh's settings for this host, all names in small letters."""
        rows = self._ssh(words=["-G"]).stdout.decode(errors="replace").splitlines()
        return dict(row.partition(" ")[::2] for row in rows)

    def _ssh(self, *options: str, words: list[str] | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run ssh as the connection would, with options that come before the connection's own."""
        program = self._connection.get_option("ssh_executable")
        host = str(self._connection.get_option("host"))
        command = self._connection._build_command(program, "ssh", host, *([] if words else ["true"]))
        command[1:1] = [*(words or []), *(word for option in options for word in ("-o", option))]
        try:
            return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise Refused(
                4, f"{host} did not show a key within {_SECONDS} s; look at the address and the port"
            ) from None


class Refused(Exception):
    """Ends the task with `code` and one sentence."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Key:
    """One line of a known_hosts file: `place` (`name` or `[name]:port`), type and fingerprint."""

    def __init__(self, line: str) -> None:
        self.line = line.strip()
        self.place = self.line.split()[0]
        done = subprocess.run(
            ["ssh-keygen", "-l", "-f", "-"], input=self.line, capture_output=True, text=True, check=True
        )
        _, self.fingerprint, *_, kind = done.stdout.split()
        self.shown = f"{kind.strip('()')} {self.fingerprint}"


def with_prefix(fingerprint: str) -> str:
    """SHA256:… of a fingerprint that was given with or without its prefix."""
    bare = fingerprint.strip().removeprefix("SHA256:").rstrip("=")
    return f"SHA256:{bare}" if bare else ""


def introduction(keys: list[Key], old: list[str]) -> list[str]:
    """What to show before the question."""
    lines = [f"{keys[0].place} shows {'these keys' if len(keys) > 1 else 'this key'}:"]
    lines += [f"  {key.shown}" for key in keys]
    if old:
        lines += ["It was trusted with another key:", *(f"  {shown}" for shown in old)]
        lines += ["That is another machine, one that was set up anew, or an attack: somebody who answers in its place."]
    return lines


def old_fingerprints(known: Path, place: str) -> list[str]:
    """`TYPE SHA256:…` of the keys that a known_hosts file holds for a host, hashed names included."""
    if not known.is_file():
        return []
    words = ["ssh-keygen", "-l", "-F", place, "-f", str(known)]
    rows = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    found = [row.split() for row in rows if "SHA256:" in row]
    return [
        f"{row[-2]} {row[-1]}" if row[-1].startswith("SHA256:") else f"{row[-1].strip('()')} {row[1]}" for row in found
    ]


def pin(known: Path, place: str, keys: list[Key], hashed: bool) -> None:
    """Write the file anew, with these keys for the host instead of those it held; a rename puts it in place."""
    target = known.resolve()  # dot files are often links
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".stagegate_") as folder:
        fresh, added = Path(folder) / "known_hosts", Path(folder) / "added"
        if target.exists():
            shutil.copy2(target, fresh)
            subprocess.run(["ssh-keygen", "-R", place, "-f", str(fresh)], capture_output=True, check=False)
        added.write_text("".join(f"{key.line}\n" for key in keys), encoding="utf-8")
        if hashed:
            subprocess.run(["ssh-keygen", "-H", "-f", str(added)], capture_output=True, check=True)
        before = fresh.read_text(encoding="utf-8", errors="surrogateescape") if fresh.exists() else ""
        before += "\n" if before and not before.endswith("\n") else ""
        with fresh.open("w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(before + added.read_text(encoding="utf-8"))
            stream.flush()
            os.fsync(stream.fileno())
        fresh.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o600)
        os.replace(fresh, target)
