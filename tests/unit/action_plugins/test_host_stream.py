"""The action plugin host_stream: bytes in, one JSON answer out, one sentence otherwise."""

from __future__ import annotations

import hashlib
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
        self._connection = SimpleNamespace(
            has_pipelining=has_pipelining, transport="odd", options={"reconnection_retries": 5},
            has_option=lambda name: name == "reconnection_retries",
            set_option=lambda name, value: self._connection.options.update({name: value}),
        )  # fmt: skip
        self.ran: list[str] = []
        self.retries: list[int] = []
        self.times, self.login = 1, ":"

    def validate_argument_spec(self, **words: Any) -> Any:
        defaults = {name: item.get("default") for name, item in plugin._SPEC.items()}
        return None, {**defaults, "writes": True, **self._task.args}

    def _compute_environment_string(self, *words: Any) -> str:
        return "GIVEN=yes"

    def _low_level_execute_command(self, command: str, in_data: bytes | None = None, **words: Any) -> dict[str, Any]:
        self.ran.append(command)
        self.retries.append(self._connection.options["reconnection_retries"])
        for _ in range(self.times if " conv=notrunc" in command else 1):
            done = subprocess.run(
                ["sh", "-c", f"{self.login}; {command}"], input=in_data or b"", capture_output=True, check=False
            )
        return {"rc": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}


@pytest.fixture
def act(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(plugin.ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    printed: list[str] = []
    monkeypatch.setattr(plugin.display, "display", printed.append)

    def run(
        hosts: int = 1, times: int = 1, login: str = ":", **args: Any
    ) -> tuple[dict[str, Any], list[str], list[str]]:
        printed.clear()
        action = Action(**args)
        action.times, action.login, run.last = times, login, action  # type: ignore[attr-defined]
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


def test_findings_are_printed_and_what_a_login_says_is_not(act: Any) -> None:
    script = """echo '{"lines": ["applied"]}'; printf 'row 1\\n\\nrow 2\\nerror: two errors\\nbye\\n' >&2; exit 2"""
    result, printed, _ = act(script=script, login="echo welcome >&2; echo 'error: no mail' >&2")
    assert (result["msg"], printed) == ("two errors", ["applied", "row 1", "row 2"])
    assert act(script="echo oh >&2; exit 1")[1] == []


def test_check_mode_runs_what_only_looks(act: Any) -> None:
    result, _, ran = act(script=COUNT, check_mode=True)
    assert result == {"changed": True, "answer": {}} and ran == []
    result, _, ran = act(script=COUNT, check_mode=True, writes=False)
    assert result["answer"]["bytes"] == 0 and len(ran) == 1


def test_a_connection_that_takes_no_input_is_refused_only_when_there_is_some(act: Any) -> None:
    assert "'odd' takes no input" in act(script=COUNT, stdin="x", has_pipelining=False)[0]["msg"]
    assert act(script=COUNT, has_pipelining=False)[0]["answer"]["bytes"] == 0


# Shows what came, and removes it as a script must.
SHOW = """cd "$1" && sha256sum * | sort > "$2" && printf '{"mode": "%s", "folder": "%s"}\\n' "$(stat -c %a .)" "$1"
rm -rf "$1" """


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files of no piece, less than one, exactly two, and more, by names that a shell could stumble over."""
    monkeypatch.setattr(plugin, "_PIECE_BLOCKS", 2)
    sizes = {"empty": 0, "it's": 1000, "a b.gz": 4 * plugin._BLOCK_BYTES, "$x.sha256": 5 * plugin._BLOCK_BYTES + 7}
    for number, (name, size) in enumerate(sizes.items()):
        (tmp_path / name).write_bytes(bytes([number + 1]) * size)
    return {name: str(tmp_path / name) for name in sizes}


def sums(files: dict[str, str]) -> list[str]:
    return sorted(f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()}  {name}" for name, path in files.items())


@pytest.mark.parametrize("times", [1, 2])  # a piece whose answer was lost comes again
def test_files_lie_in_a_fresh_private_folder_when_the_script_begins(
    act: Any, files: dict[str, str], tmp_path: Path, times: int
) -> None:
    where, seen = tmp_path / "host" / "releases", tmp_path / "seen"
    result, _, ran = act(times=times, script=SHOW, words=[str(seen)], upload=files, upload_dir=str(where), stdin="x")
    assert seen.read_text().splitlines() == sums(files)
    assert result["answer"]["mode"] == "700" and Path(result["answer"]["folder"]).parent == where
    assert list(where.iterdir()) == [] and len(ran) == 1 + 1 + 1 + 2 + 3 + 1


def test_a_lost_connection_repeats_a_piece_and_never_the_script(
    act: Any, files: dict[str, str], tmp_path: Path
) -> None:
    act(script=SHOW, words=[str(tmp_path / "seen")], upload=files, upload_dir=str(tmp_path / "host"))
    assert act.last.retries == [5] * 8 + [0]
    act(script=COUNT)
    assert act.last.retries == [5]


def test_check_mode_uploads_nothing(act: Any, files: dict[str, str], tmp_path: Path) -> None:
    result, _, ran = act(script=SHOW, check_mode=True, upload=files, upload_dir=str(tmp_path / "host"))
    assert result == {"changed": True, "answer": {}} and ran == [] and not (tmp_path / "host").exists()


def test_a_disk_without_the_room_is_known_before_anything_is_sent(
    act: Any, files: dict[str, str], tmp_path: Path
) -> None:
    words: dict[str, Any] = {"script": SHOW, "words": [str(tmp_path / "seen")], "upload": files}
    result, _, ran = act(**words, upload_dir=str(tmp_path / "host"), room_bytes=1 << 60)
    assert result["trainer_exit_code"] == 4 and len(ran) == 1 and list((tmp_path / "host").iterdir()) == []
    assert f"{(1 << 40) + 1} MiB are needed" in result["msg"] and "make room there" in result["msg"]
    assert "answer" in act(**words, upload_dir=str(tmp_path / "host"), room_bytes=1 << 20)[0]


def test_a_folder_that_cannot_be_made_is_one_sentence(act: Any, files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result, _, ran = act(script=SHOW, upload=files, upload_dir=str(tmp_path / "file" / "releases"))
    assert result["trainer_exit_code"] == 4 and "Not a directory" in result["msg"] and len(ran) == 1


def test_a_disk_that_refuses_a_piece_leaves_nothing(
    act: Any, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "host"
    cut = plugin._PIECE.replace('of="$1"', 'of="$([ "$2" = 0 ] && echo "$1" || echo /dev/full)"')
    monkeypatch.setattr(plugin, "_PIECE", cut)
    result, _, ran = act(script=SHOW, upload=files, upload_dir=str(where))
    assert result["trainer_exit_code"] == 4 and list(where.iterdir()) == []
    assert "(No space left on device); make room there" in result["msg"] and "a b.gz cannot be written" in result["msg"]


def test_a_connection_without_input_uploads_nothing(act: Any, files: dict[str, str], tmp_path: Path) -> None:
    result, _, ran = act(script=SHOW, has_pipelining=False, upload=files, upload_dir=str(tmp_path / "host"))
    assert "'odd' takes no input" in result["msg"] and ran == []


def test_a_long_upload_tells_how_far_it_is(
    act: Any, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "_REPORT_SECONDS", 0.0)
    words = [str(tmp_path / "seen")]
    _, printed, _ = act(script=SHOW, words=words, upload=files, upload_dir=str(tmp_path / "host"))
    assert len(printed) == 7 and printed[-1] == "sent 0 of 0 MiB"


@pytest.mark.parametrize("changed", [True, False])
def test_the_answer_says_whether_something_changed(act: Any, changed: bool) -> None:
    script = f"echo '{{\"changed\": {str(changed).lower()}}}'"
    assert act(script=script)[0]["changed"] is changed
    assert act(script=script, writes=False)[0]["changed"] is False


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("Failed: {}\nclient_loop: Broken pipe", "Connection aborted: client_loop: Broken pipe"),
        ("Data could not be sent: {}\n", "Connection aborted: no word of why"),
        ("Failed: Connection refused", "Failed: Connection refused"),
    ],
)
def test_a_line_that_breaks_behind_the_login_is_called_so(
    act: Any, monkeypatch: pytest.MonkeyPatch, said: str, sentence: str
) -> None:
    def breaks(self: Action, command: str, **words: Any) -> dict[str, Any]:
        raise plugin.AnsibleConnectionFailure(said.format(command.split()[1]))

    monkeypatch.setattr(Action, "_low_level_execute_command", breaks)
    with pytest.raises(plugin.AnsibleConnectionFailure, match=f"^{sentence}$"):
        act(script=COUNT)
