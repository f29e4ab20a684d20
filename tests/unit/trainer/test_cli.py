"""The command line from outside: exit codes, the last line of standard error, and answers that parse."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer import cli, commands, source
from trainer.state import Layout

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs one command in this process: (exit code, standard output, lines of standard error)."""

    def run(*words: str, stdin: str = "", root: Path | None = None) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = cli.main(["--project-root", str(root or tmp_path / "host"), *words])
        found = capsys.readouterr()
        return code, found.out, found.err.splitlines()

    return run


def answer_of(found: tuple[int, str, list[str]]) -> dict[str, Any]:
    code, out, err = found
    assert (code, err) == (0, []), err
    assert out.count("\n") == 1, "one JSON object"
    return dict(json.loads(out))


# --- wrong calls ----------------------------------------------------------------------------------------------------

BAD_CALLS = [
    (["statu"], 2, "there is no command 'statu'; did you mean status?"),
    ([], 2, "the following arguments are required: COMMAND"),
    (["status", "--jsn"], 2, "there is no option --jsn; did you mean --json"),
    (["supervise"], 2, "the following arguments are required: --plan"),
    (["watch", "--after", "x"], 2, "--after: invalid int value: 'x'"),
    (["watch"], 2, "no plan was ever submitted in"),
    (["watch", "--plan", "p", "--stage", "stile"], 2, "there is no stage 'stile'; did you mean style?"),
    (["watch", "--plan", "p", "--json"], 2, "watch --json follows one stage; name it with --stage"),
    (["submit", "--set", "lora_r"], 2, "--set 'lora_r' has no value; write NAME=VALUE"),
    (["submit", "--set", "lora_rr=8"], 2, "command line --set lora_rr: there is no parameter"),
    (["submit", "--set", "lora_r=eight"], 2, "command line --set lora_r is 'eight'; give a whole number"),
    (["submit", "--stages", "stile"], 2, "there is no stage 'stile'; did you mean style?"),
    (["submit", "--gate", "open"], 2, "the gate is 'open'; choose one of strict, warn, off"),
    (["submit", "--profile", "large"], 2, "there is no profile 'large'"),
    (["submit", "--data-root", "/nowhere"], 2, "the data root '/nowhere' is not a folder"),
    (["submit", "--stages", "style"], 3, "the gate before stage style is closed: stage sample has not run"),
    (["submit", "--input", "/nowhere.json"], 2, "No such file or directory: /nowhere.json"),
    (["check", "--set", "model_name_or_path=/nowhere"], 2, "the base model '/nowhere' is not a folder of this host"),
    (["params", "--stage", "stile"], 2, "there is no stage 'stile'"),
    (["params", "--set", "model_name_or_path=Qwen/Qwen3-8B-Instruct"], 2, "use Qwen/Qwen3-8B"),
    (["supervise", "--plan", "p"], 7, "the plan here is none, not p; submit it again"),
    (["collect"], 3, "nothing was trained in"),
    (["export", "--export-id", "0" * 64, "--token", "01234567"], 2, "there is no export 000000000000"),
    (["import", "--export-id", "0"], 2, "the following arguments are required: --host-root"),
    (["source", "pack"], 2, "source pack needs --output FILE"),
    (["source", "unpack"], 2, "invalid choice: 'unpack'"),
    (["diagnose", "--log", "/nowhere.log"], 2, "No such file or directory: /nowhere.log"),
    (["score", "--benchmark", "b", "--predictions", "/nowhere.jsonl", "--output", "o"], 2, "b: cannot be read"),
    (["base", "build", "--corpus", "/nowhere"], 2, "no course text in /nowhere"),
]


@pytest.mark.parametrize(("words", "code", "sentence"), BAD_CALLS, ids=[" ".join(item[0]) for item in BAD_CALLS])
def test_a_wrong_call_ends_with_one_sentence_and_its_exit_code(
    call: Any, words: list[str], code: int, sentence: str
) -> None:
    found, out, err = call(*words)
    assert (found, out) == (code, "")
    assert err[-1].startswith("error: ") and sentence in err[-1], err
    assert not any("Traceback" in row for row in err)
    assert len([row for row in err if row.startswith("error: ")]) == 1 + len(err[:-1])


@pytest.mark.parametrize(
    ("stdin", "sentence"),
    [
        ("", "the input is no JSON"),
        ("{", "the input is no JSON"),
        ("[]", "the input is a list; give one JSON object"),
        ("[" * 100_000, "the input is no JSON"),
        ('{"stage": []}', "the plan has no field 'stage'; did you mean stages?"),
        ('{"stages": "style"}', "the plan's stages is 'style'; give a list"),
        ('{"overrides": [1]}', "the plan's overrides is [1]"),
    ],
)
def test_a_wrong_request_is_an_input_error(call: Any, stdin: str, sentence: str) -> None:
    for command in ("submit", "check"):
        code, _, err = call(command, "--input", "-", "--json", stdin=stdin)
        assert code == 2 and err[-1].startswith("error: ") and sentence in err[-1]


def test_a_request_file_that_is_not_text_is_an_input_error(call: Any, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_bytes(b"\xff{}")
    code, _, err = call("submit", "--input", str(tmp_path / "request.json"))
    assert code == 2 and err[-1].startswith("error: the input is no JSON")


def test_options_beside_an_input_are_refused_and_not_lost(call: Any) -> None:
    code, _, err = call("check", "--input", "-", "--set", "lora_r=8", stdin="{}")
    assert code == 2 and err == ["error: --set beside --input; say it in the input"]
    assert call("check", "--input", "-", "--json", stdin='{"profile": "embedded"}')[0] == 0


def test_all_findings_stand_above_the_sentence(call: Any, data_root: Path) -> None:
    for name in ("style_sft_sample", "style_sft"):
        (data_root / "training" / "processed" / f"{name}.jsonl").write_text("{\n[]\n")
    words = ("check", "--profile", "embedded", "--data-root", str(data_root))
    code, _, err = call(*words, "--set", "model_name_or_path=/nowhere")
    assert code == 2 and err[-1].startswith("error: the data has 5 faults, the first: training/processed/")
    assert len(err) == 6 and any("/nowhere" in row for row in err[:-1])


def test_without_a_terminal_or_arguments_nothing_is_a_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for words, code in ((["score", "--benchmark", "nowhere"], 2), (["params", "--stage", "x"], 2), (["status"], 0)):
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *words], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code and "Traceback" not in done.stderr
        assert code == 0 or done.stderr.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


def test_a_reader_that_goes_away_is_no_failure(tmp_path: Path) -> None:
    command = f"{sys.executable} -m trainer params --markdown | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


# --- right calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *commands.COMMANDS])
def test_help_is_there_for_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*([command] if command else []), "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: trainer {command}".rstrip())


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.strip()[0].isdigit()


def test_every_command_of_the_parser_is_carried_out_by_one() -> None:
    actions = cli.build_parser()._subparsers
    assert actions is not None
    assert list(actions._group_actions[0].choices or []) != []
    assert set(actions._group_actions[0].choices or []) == set(commands.COMMANDS)


def test_the_project_root_comes_from_the_option_then_the_environment_then_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = [tmp_path / name for name in ("option", "environment", "here")]
    for root in roots:
        root.mkdir()
    monkeypatch.chdir(roots[2])
    assert cli.main(["watch"]) == 2 and f"submitted in {roots[2]};" in capsys.readouterr().err
    monkeypatch.setenv("TRAIN_SYNC_PROJECT_ROOT", str(roots[1]))
    assert cli.main(["watch"]) == 2 and f"submitted in {roots[1]};" in capsys.readouterr().err
    assert cli.main(["--project-root", str(roots[0]), "watch"]) == 2
    assert f"submitted in {roots[0]};" in capsys.readouterr().err


def test_the_environment_counts_below_the_command_line(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARNING_RATE", "5e-5")
    monkeypatch.setenv("NUM_TRAIN_EPOCHS", "3")
    found = answer_of(call("params", "--stage", "style", "--set", "learning_rate=1e-3", "--json"))
    rows = {row["name"]: (row["value"], row["source"]) for row in found["parameters"]}
    assert rows["learning_rate"] == (1e-3, "command line --set learning_rate")
    assert rows["num_train_epochs"] == (3.0, "environment NUM_TRAIN_EPOCHS")
    assert rows["seed"] == (42, "default")


def test_a_host_does_not_add_its_own_environment_to_a_request(
    call: Any, line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNING_RATE", "0.5")
    request = json.dumps(line.request("sample"))
    assert answer_of(call("submit", "--input", "-", "--json", stdin=request))["action"] == "start"
    written = json.loads(Layout(line.layout.root).plan.read_text(encoding="utf-8"))
    assert set(written["overrides"]) == {"model_name_or_path"}


@pytest.mark.parametrize(("value", "skipped"), [("1", True), ("Yes", True), ("0", False), ("", False)])
def test_the_smoke_stage_can_be_left_out_by_the_environment(
    call: Any, line: Any, monkeypatch: pytest.MonkeyPatch, value: str, skipped: bool
) -> None:
    monkeypatch.setenv("TRAIN_SYNC_SKIP_SAMPLE", value)
    words = ("submit", "--data-root", str(line.data), "--set", f"model_name_or_path={line.base}", "--json")
    answer_of(call(*words, root=line.layout.root))
    assert json.loads(line.layout.plan.read_text(encoding="utf-8"))["skip_sample"] is skipped


def test_the_source_of_this_checkout_is_hashed(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "describe", lambda root: {"source_id": "0" * 16, "files": 1, "bytes": 2})
    assert answer_of(call("source", "hash", "--json"))["source_id"] == "0" * 16
    assert call("source", "hash")[1] == "0" * 16 + "\n"


def test_project_root_may_stand_before_or_behind_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--project-root", str(tmp_path), "status"], ["status", "--project-root", str(tmp_path)]):
        assert cli.main(words) == 0
        assert "no plan was submitted yet" in capsys.readouterr().out
    assert cli.main(["status", "--project-rot", str(tmp_path)]) == 2


def test_misspelt_commands_and_options_are_named_with_the_right_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["statsu"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'statsu'; did you mean status?\n"
    assert cli.main(["status", "--jsn"]) == 2
    assert "there is no option --jsn; did you mean --json" in capsys.readouterr().err
