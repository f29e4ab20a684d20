"""The action plugin artifacts_fetch: what it asks of a connection, its limit, and lines that drop."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError

REPOSITORY = Path(__file__).resolve().parents[3]


def load() -> ModuleType:
    path = REPOSITORY / "action_plugins" / "artifacts_fetch.py"
    spec = importlib.util.spec_from_file_location("artifacts_fetch_under_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


plugin = load()


class Connection:
    """A connection whose transfers do what a test says."""

    def __init__(self, **options: Any) -> None:
        self.options = {"ssh_transfer_method": "smart", "reconnection_retries": 3, "scp_extra_args": "", **options}
        self.outcomes: list[Any] = []
        self.seen: list[dict[str, Any]] = []

    def has_option(self, name: str) -> bool:
        return name in self.options

    def get_option(self, name: str) -> Any:
        return self.options[name]

    def set_option(self, name: str, value: Any) -> None:
        self.options[name] = value

    def fetch_file(self, source: str, target: str) -> None:
        self.seen.append(dict(self.options))
        outcome = self.outcomes.pop(0) if self.outcomes else b"content"
        if isinstance(outcome, Exception):
            raise outcome
        Path(target).write_bytes(outcome)


class Scripted(plugin.ActionModule):  # type: ignore[misc, name-defined]
    """The plugin with scripted host commands."""

    def __init__(self, replies: list[Any] | None = None, **arguments: Any) -> None:
        self._connection = Connection()
        self._args = {"reconnect_timeout_seconds": 60, **arguments}
        self._vars: dict[str, Any] = {}
        self._replies = replies or []
        self._cuts, self._stopped = 0, plugin.threading.Event()
        self.ran: list[list[str]] = []
        self.said: list[str] = []

    def _trainer_cli(self, words: list[str]) -> Any:
        self.ran.append(words)
        reply = self._replies.pop(0) if self._replies else {"answer": {}}
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _say(self, lines: list[str]) -> None:
        self.said += lines


LOST = AnsibleConnectionFailure("Failed to connect to the host via sftp: Connection closed")


def test_a_file_is_fetched_by_one_method_in_one_try(tmp_path: Path) -> None:
    action = Scripted()
    assert action._fetch("/there", str(tmp_path / "x"), 100) == {"ok": True}
    assert (tmp_path / "x").read_bytes() == b"content"
    assert (
        action._connection.seen[0] | {"ssh_transfer_method": "sftp", "reconnection_retries": 0}
        == (action._connection.seen[0])
    )
    local = Scripted()
    local._connection.options = {}
    assert local._fetch("/there", str(tmp_path / "x"), 100) == {"ok": True}, "a connection without such options"


@pytest.mark.parametrize("source", ["/there\n!touch /tmp/stagegate-hostile", "/th\x1bere", "/th\rere"])
def test_a_path_that_could_be_an_order_to_sftp_is_refused(tmp_path: Path, source: str) -> None:
    action = Scripted()
    reply = action._fetch(source, str(tmp_path / "x"), 100)
    assert not reply["ok"] and not reply["lost"] and "is not a plain path" in reply["reason"]
    assert action._connection.seen == []
    assert action._fetch("/there it's", str(tmp_path / "x"), 100)["ok"]


def test_a_cut_is_reported_when_the_host_answers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin.time, "sleep", lambda seconds: None)
    action = Scripted(replies=[LOST, LOST, {"answer": {}}])
    action._connection.outcomes = [LOST]
    assert action._fetch("/there", str(tmp_path / "x"), 100) == {"ok": False, "lost": True}
    assert action.ran == [["stages", "--json"]] * 3


def test_a_host_that_stays_away_ends_the_task_and_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(plugin.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(plugin.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + 30))
    action = Scripted(replies=[LOST] * 99)
    action._connection.outcomes = [LOST]
    with pytest.raises(plugin.GivenUp, match="same command goes on with it") as caught:
        action._fetch("/there", str(tmp_path / "x"), 100)
    assert caught.value.result["trainer_exit_code"] == 7 and len(action.ran) < 6


def test_transfers_that_break_off_at_once_are_not_tried_for_ever(tmp_path: Path) -> None:
    action = Scripted()
    action._connection.outcomes = [LOST] * 5
    replies = [action._fetch("/there", str(tmp_path / "x"), 100) for _ in range(5)]
    assert all(reply["lost"] for reply in replies[:4])
    assert "broke off 5 times: Failed to connect" in replies[4]["reason"] and not replies[4]["lost"]
    action._connection.outcomes = [b"x", LOST]
    assert action._fetch("/there", str(tmp_path / "x"), 100)["ok"]
    assert action._fetch("/there", str(tmp_path / "x"), 100)["lost"], "one that moved counts anew"


@pytest.mark.parametrize(
    "failures", [[AnsibleConnectionFailure("subsystem request failed on channel 0\n")], [LOST, LOST]]
)
def test_a_host_without_sftp_is_reached_by_the_old_scp(tmp_path: Path, failures: list[Exception]) -> None:
    action = Scripted()
    action._connection.outcomes = list(failures)
    for _ in failures:
        assert action._fetch("/there", str(tmp_path / "x"), 100)["lost"]
    assert action._fetch("/there", str(tmp_path / "x"), 100)["ok"]
    assert [seen["ssh_transfer_method"] for seen in action._connection.seen[:-1]] == ["sftp"] * len(failures)
    assert (action._connection.seen[-1]["ssh_transfer_method"], action._connection.seen[-1]["scp_extra_args"]) == (
        "scp", "-O",
    )  # fmt: skip


def test_a_refusal_is_no_cut(tmp_path: Path) -> None:
    action = Scripted()
    action._connection.outcomes = [AnsibleError("failed to transfer\n\nnot a regular file\n")]
    assert action._fetch("/there", str(tmp_path / "x"), 100) == {
        "ok": False, "lost": False, "reason": "not a regular file",
    }  # fmt: skip
    assert action.ran == []


def test_a_host_command_that_is_refused_goes_back_to_the_one_that_asked() -> None:
    refused = {"failed": True, "msg": "collect first", "trainer_exit_code": 2}
    assert Scripted(replies=[refused])._run_there(["export"]) == {"ok": False, "lost": False, "reason": "collect first"}
    away = {"failed": True, "msg": "the host has not answered", "trainer_exit_code": 7}
    with pytest.raises(plugin.GivenUp, match="the host has not answered; what has arrived is kept"):
        Scripted(replies=[away])._run_there(["export"])


def run_limited(tmp_path: Path, size: int) -> int:
    """Bytes that a process, started like sftp by a connection plugin, could write of 3 MiB under a limit."""
    code = (
        "import importlib.util, subprocess, sys\n"
        "spec = importlib.util.spec_from_file_location('m', sys.argv[1])\n"
        "m = importlib.util.module_from_spec(spec); sys.modules['m'] = m; spec.loader.exec_module(m)\n"
        "with m.limited(int(sys.argv[3])):\n"
        "    subprocess.run(['dd', 'if=/dev/zero', 'of=' + sys.argv[2], 'bs=65536', 'count=48'])\n"
        "open(sys.argv[2] + '2', 'wb').write(b'x' * (int(sys.argv[3]) + 1))\n"
    )
    words = [str(REPOSITORY / "action_plugins" / "artifacts_fetch.py"), str(tmp_path / "x"), str(size)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x2").stat().st_size == size + 1, "the limit ends with the transfer"
    return (tmp_path / "x").stat().st_size


def test_a_file_without_end_is_cut_by_the_kernel(tmp_path: Path) -> None:
    assert run_limited(tmp_path, 1 << 20) == 1 << 20
    assert run_limited(tmp_path, 3 << 20) == 3 << 20


def test_only_own_children_are_ended_and_the_spared_stay() -> None:
    code = (
        "import importlib.util, subprocess, sys\n"
        "spec = importlib.util.spec_from_file_location('m', sys.argv[1])\n"
        "m = importlib.util.module_from_spec(spec); sys.modules['m'] = m; spec.loader.exec_module(m)\n"
        "one, two = (subprocess.Popen(['sleep', '60']) for _ in range(2))\n"
        "ended = m.end_children({two.pid})\n"
        "print(ended == [one.pid], one.wait(30), two.poll()); two.kill(); two.wait()\n"
    )
    path = str(REPOSITORY / "action_plugins" / "artifacts_fetch.py")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "-15", "None"], done.stderr


SIDE = """
import json, sys
def ask(request):
    print(json.dumps(request), flush=True)
    return json.loads(sys.stdin.readline() or "{}")
"""


def arriving(tmp_path: Path, text: str) -> dict[str, Any]:
    """The result of a task whose arriving side is this program."""
    package = tmp_path / "trainer"
    package.mkdir(exist_ok=True)
    (package / "__main__.py").write_text(SIDE + text)
    names = ("export_id", "project_root", "output_dir", "max_file_bytes", "max_total_bytes")
    action = Scripted(controller_python=sys.executable, controller_code_dir=str(tmp_path), **dict.fromkeys(names, "0"))
    with open(os.devnull, "r+b") as _, (tmp_path / "errors").open("w+b") as errors:
        with action._arriving_side(errors) as side:
            answer = action._serve(side)
            code = side.wait(30)
        errors.seek(0)
        found = {"answer": answer} if answer else action._failure(code, errors.read().decode())
    return {**found, "said": action.said, "ran": action.ran}


def test_the_other_side_is_served_to_its_answer(tmp_path: Path) -> None:
    text = f"""
print(json.dumps({{"say": ["collect: 1 of 2 MiB"]}}), flush=True)
fetched = ask({{"fetch": {{"source": "/there", "target": {str(tmp_path / "x")!r}, "limit_bytes": 9}}}})
print(json.dumps({{"answer": {{"ran": ask({{"run": ["export"]}}), "fetched": fetched}}}}), flush=True)
"""
    found = arriving(tmp_path, text)
    assert found["answer"] == {"ran": {"ok": True, "answer": {}}, "fetched": {"ok": True}}
    assert found["said"] == ["collect: 1 of 2 MiB"] and found["ran"] == [["export"]]


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("print('row 1', file=sys.stderr); print('error: 1 bad row', file=sys.stderr); sys.exit(7)", 7, "1 bad row"),
        ("raise KeyError('x')", 5, "collect ended with code 1: KeyError: 'x'"),
        ("sys.exit(3)", 5, "collect ended with code 3: it wrote nothing to stderr"),
    ],
)
def test_an_error_of_the_other_side_becomes_the_result(tmp_path: Path, text: str, code: int, message: str) -> None:
    found = arriving(tmp_path, text)
    assert (found["trainer_exit_code"], found["msg"]) == (code, message) and found["failed"]
    assert found["said"] == (["row 1"] if code == 7 else [])
    assert json.dumps(found)
