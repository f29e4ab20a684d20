"""The action plugin host_stream: bytes in, one JSON answer out, one sentence otherwise."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


def load() -> ModuleType:
    path = REPOSITORY / "action_plugins" / "host_stream.py"
    spec = importlib.util.spec_from_file_location("host_stream_under_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plugin = load()


class Action(plugin.ActionModule):  # type: ignore[misc,name-defined]
    """The plugin with a shell of this machine as its connection."""

    def __init__(self, check_mode: bool = False, has_pipelining: bool = True, **args: Any) -> None:
        self._task = SimpleNamespace(check_mode=check_mode, args=args, environment=[])
        self._connection = SimpleNamespace(has_pipelining=has_pipelining, transport="odd")
        self.ran: list[str] = []

    def validate_argument_spec(self, **words: Any) -> Any:
        defaults = {name: item.get("default") for name, item in plugin._SPEC.items()}
        return None, {**defaults, "writes": True, **self._task.args}

    def _compute_environment_string(self, *words: Any) -> str:
        return "GIVEN=yes"

    def _low_level_execute_command(self, command: str, in_data: bytes | None = None, **words: Any) -> dict[str, Any]:
        self.ran.append(command)
        done = subprocess.run(["sh", "-c", command], input=in_data or b"", capture_output=True, check=False)
        return {"rc": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}


@pytest.fixture
def act(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(plugin.ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    printed: list[str] = []
    monkeypatch.setattr(plugin.display, "display", printed.append)

    def run(hosts: int = 1, **args: Any) -> tuple[dict[str, Any], list[str], list[str]]:
        printed.clear()
        action = Action(**args)
        result = action.run(task_vars={"ansible_play_hosts_all": ["h"] * hosts, "inventory_hostname": "h"})
        return result, printed, action.ran

    return run


COUNT = 'echo welcome; echo "{\\"bytes\\": $(wc -c), \\"word\\": \\"$1 $GIVEN\\", \\"lines\\": [\\"done\\"]}"'


def test_the_input_reaches_the_script_and_its_answer_comes_back(act: Any) -> None:
    result, printed, ran = act(script=COUNT, words=["a b"], stdin="x" * 200_000)
    assert result == {"changed": True, "answer": {"bytes": 200_000, "word": "a b yes", "lines": ["done"]}}
    assert printed == ["done"] and len(ran) == 1
    assert act(script=COUNT, hosts=2)[1] == ["[h] done"]
    assert act(script=COUNT, writes=False)[0]["changed"] is False


def test_the_input_can_be_what_a_command_of_the_controller_prints(act: Any, tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys, os; sys.stdout.buffer.write(bytes(999) + os.getcwd().encode())"]
    result, _, _ = act(script=COUNT, stdin_command=words, stdin_dir=str(tmp_path))
    assert result["answer"]["bytes"] == 999 + len(str(tmp_path.resolve()))


def test_a_command_of_the_controller_that_fails_sends_nothing(act: Any) -> None:
    words = ["sh", "-c", "echo 'error: no tree' >&2; exit 2"]
    result, _, ran = act(script=COUNT, stdin_command=words)
    assert (result["failed"], result["msg"], result["trainer_exit_code"]) == (True, "no tree", 2) and ran == []


@pytest.mark.parametrize(
    ("script", "code", "sentence"),
    [
        ("echo noise >&2; echo 'error: the disk is full' >&2; exit 4", 4, "the disk is full"),
        (
            "echo 'sh: x: not found' >&2; exit 127",
            5,
            "the host's answer was not understood (code 127): sh: x: not found",
        ),
        ("echo '{broken'", 5, "the host's answer was not understood (code 0): nothing said"),
    ],
)
def test_a_script_that_fails_is_one_sentence(act: Any, script: str, code: int, sentence: str) -> None:
    result, _, _ = act(script=script)
    assert (result["msg"], result["trainer_exit_code"], result["failed"]) == (sentence, code, True)


def test_check_mode_runs_what_only_looks(act: Any) -> None:
    result, _, ran = act(script=COUNT, check_mode=True)
    assert result == {"changed": True, "answer": {}} and ran == []
    result, _, ran = act(script=COUNT, check_mode=True, writes=False)
    assert result["answer"]["bytes"] == 0 and len(ran) == 1


def test_a_connection_that_takes_no_input_is_refused_only_when_there_is_some(act: Any) -> None:
    assert "'odd' takes no input" in act(script=COUNT, stdin="x", has_pipelining=False)[0]["msg"]
    assert act(script=COUNT, has_pipelining=False)[0]["answer"]["bytes"] == 0
