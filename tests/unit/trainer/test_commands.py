"""What each command does with sound input: its answer, what it writes, and what it leaves alone."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.road import Road
from trainer import artifacts, base, cli, commands, config, process, stages, tables
from trainer.errors import InputError
from trainer.state import append_event, read_json, write_json

Call = Callable[..., tuple[int, str, list[str]]]
NOT_BUILT = {"model_name_or_path": "embedded"}  # no tokenizer to load, and no torch with it
FAILED = {"status": "failed", "message": "stage style broke", "exit_code": 5}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: Any) -> Call:
    """Runs one command on the host of `line`: (exit code, standard output, lines of standard error)."""

    def run(*words: str, stdin: Any = None) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("" if stdin is None else json.dumps(stdin)))
        capsys.readouterr()
        code = cli.main(["--project-root", str(line.layout.root), *words])
        found = capsys.readouterr()
        return code, found.out, found.err.splitlines()

    return run


def answer_of(found: tuple[int, str, list[str]]) -> dict[str, Any]:
    assert found[0] == 0, found[2]
    return dict(json.loads(found[1]))


def score_words(benchmark: Path, predictions: Path, output: Path) -> list[str]:
    return ["score", "--benchmark", str(benchmark), "--predictions", str(predictions), "--output", str(output)]


# --- parameters and stages ------------------------------------------------------------------------------------------


def test_params_checks_a_request_for_the_controller(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_R", "8")
    monkeypatch.setenv("LEARNING_RATE", "2e-4")
    given = {"profile": "embedded", "overrides": {"learning_rate": "3e-4", "use_qlora": "no"}}
    found = answer_of(call("params", "--input", "-", "--json", stdin=given))
    assert found == {
        "overrides": {
            "lora_r": {"value": 8, "source": "environment LORA_R"},
            "learning_rate": {"value": 3e-4, "source": "variable trainer_hp_learning_rate"},
            "use_qlora": {"value": False, "source": "variable trainer_hp_use_qlora"},
        }
    }


@pytest.mark.parametrize(
    ("given", "sentences"),
    [
        ({"overrides": {"lr": 1, "seed": "x"}}, ["trainer_hp_lr: there is no parameter", "trainer_hp_seed is 'x'"]),
        ({"profile": "embeded"}, ["there is no profile 'embeded'; did you mean embedded?"]),
        ({"parameters": {}}, ["the input has no field 'parameters'"]),
        ({"overrides": [1]}, ["the input's overrides are [1]; give an object"]),
    ],
)  # fmt: skip
def test_params_refuses_a_wrong_request_with_every_finding(call: Call, given: Any, sentences: list[str]) -> None:
    code, out, err = call("params", "--input", "-", "--json", stdin=given)
    assert (code, out) == (2, "") and len(err) == len(sentences)
    assert all(wanted in found for wanted, found in zip(sentences, err, strict=True)), err


def test_params_shows_every_parameter_with_value_source_and_help(call: Call) -> None:
    code, out, _ = call("params", "--profile", "embedded", "--stage", "style")
    assert code == 0
    for name in config.FIELDS:
        assert f"{name} = " in out
    assert "use_qlora = false  [profile embedded]" in out and "seed = 42  [default]" in out
    found = answer_of(call("params", "--json"))
    assert [row["name"] for row in found["parameters"]] == list(config.FIELDS)
    assert all(
        row["help"] and row["type"] in ("str", "int", "float", "bool", "bool | auto") for row in found["parameters"]
    )
    assert next(row for row in found["parameters"] if row["name"] == "seed")["limits"] == ">= 0, <= 4294967295"


def test_stages_shows_the_table(call: Call) -> None:
    found = answer_of(call("stages", "--json"))
    assert [(r["name"], r["tag"]) for r in found["stages"]][-1] == ("all", "multitask")
    assert call("stages")[1].count("\n") == len(stages.load().stages)


def test_the_tables_for_the_readme_are_printed_as_they_are(call: Call) -> None:
    assert call("params", "--markdown")[1] == tables.markdown_parameters() + "\n"
    assert call("stages", "--markdown")[1] == tables.markdown_stages() + "\n"


# --- check ----------------------------------------------------------------------------------------------------------


def test_check_tells_that_the_data_is_sound(call: Call, line: Any) -> None:
    request = line.request(parameters=NOT_BUILT)
    found = answer_of(call("check", "--input", "-", "--json", stdin=request))
    assert found["findings"] == []
    assert "data is sound: sample 1, style 2, writing 2, all 4 rows" in found["lines"][-1]
    assert found["lines"][0].startswith("lengths are checked when the base model is there")
    assert not line.layout.plan.exists(), "looking plans nothing"


def test_check_tells_every_finding_also_as_data(call: Call, line: Any) -> None:
    (line.data / "training" / "processed" / "style_sft.jsonl").write_text("{\n[]\n", encoding="utf-8")
    code, out, err = call("check", "--input", "-", "--json", stdin=line.request("style"))
    findings = json.loads(out)["findings"]
    assert code == 2 and err[-1].startswith("error: the data has 2 faults, the first: ")
    assert [(f["severity"], f["line"]) for f in findings] == [("error", 1), ("error", 2)]
    assert all(set(f) == {"severity", "file", "line", "field", "problem", "remedy", "count"} for f in findings)


def test_check_for_people_tells_errors_on_standard_error_only(call: Call, line: Any) -> None:
    request = line.request("sample", parameters={"model_name_or_path": "./nowhere"})
    sentence = "the base model './nowhere' is not a folder of this host; correct model_name_or_path"
    assert call("check", "--input", "-", stdin=request) == (2, "", [f"error: {sentence}"])
    code, out, err = call("check", "--input", "-", "--json", stdin=request)
    assert (code, err) == (2, [f"error: {sentence}"])
    assert [item["field"] for item in json.loads(out)["findings"]] == ["model_name_or_path"], "the answer comes as well"


def test_a_data_root_can_be_named_beside_a_request(call: Call, line: Any, tmp_path: Path) -> None:
    request = {**line.request("sample", parameters=NOT_BUILT), "data_root": ""}
    found = answer_of(call("check", "--data-root", str(line.data), "--input", "-", "--json", stdin=request))
    assert "data is sound: sample 1 rows" in found["lines"][-1]
    assert call("check", "--data-root", str(tmp_path / "none"), "--input", "-", stdin=request)[0] == 2


# --- score and diagnose ---------------------------------------------------------------------------------------------


def test_score_writes_and_shows_every_metric(call: Call, tmp_path: Path, put_rows: Any) -> None:
    benchmark = [
        {"id": "a", "type": "concept", "query": "什么是电场？", "expected": {"key_points": ["单位电荷", "力"]}},
        {"id": "b", "type": "refusal", "query": "替我写作业", "expected": {"should_refuse": True}},
        {"id": "c", "messages": [{"role": "user", "content": "什么是电势？"},
                                 {"role": "assistant", "content": "电势是单位正电荷的电势能。"}]},
    ]  # fmt: skip
    answers = [{"id": "a", "response": "单位电荷受到的作用"}, {"id": "c", "response": "电势是单位正电荷的电势能。"}]
    put_rows(tmp_path / "benchmark.jsonl", benchmark)
    put_rows(tmp_path / "answers.jsonl", answers)
    target = tmp_path / "new" / "score.json"
    files = (tmp_path / "benchmark.jsonl", tmp_path / "answers.jsonl", target)
    code, out, err = call(*score_words(*files))
    assert (code, err) == (0, [])
    found = json.loads(target.read_text(encoding="utf-8"))
    assert set(found["summary"]) == {
        "key_point_coverage", "format_compliance", "refusal_accuracy", "citation_accuracy", "tool_call_accuracy",
    }  # fmt: skip
    assert found["summary"]["key_point_coverage"]["value"] == 0.75 and found["summary"]["key_point_coverage"]["n"] == 2
    assert found["missing"] == ["b"] and found["summary"]["refusal_accuracy"]["value"] == 0.0
    assert "key point coverage: 0.750 n=2" in out and "tool call accuracy: not measured" in out


@pytest.mark.parametrize(
    ("benchmark", "answers", "words"),
    [
        ('{"id": "a", "query": "x", "expected": {"key_points": "x"}}', '{"id": "a", "response": ""}', "key_points"),
        ('{"id": "a", "query": "x", "expected": {"key_points": ["x"]}}', '{"id": "a", "response": 5}', "text expected"),
        ('{"id": "a", "query": "x", "expected": {"key_points": ["x"]}}', '{"response": "x"}', "no id"),
        ('{"id": "a", "query": "x", "expected": {"key_points": ["x"]}}', "{", "broken JSON"),
        ('{"id": "a", "query": "x"}', '{"id": "a", "response": "x"}', "neither expected nor a reference"),
        ('{"id": "a", "messages": 5}', '{"id": "a", "response": "x"}', "messages: is 5; give a list"),
        ('{"id": "a", "messages": ["x"]}', '{"id": "a", "response": "x"}', "messages: is ['x']; give a list"),
        ('{"id": "a", "messages": {"x": 1}}', '{"id": "a", "response": "x"}', "messages: is {'x': 1}; give a list"),
        ('{"id": "a", "meta": 5, "query": "x"}', '{"id": "a", "response": "x"}', "meta: is 5; give an object"),
        ('{"id": "a", "expected": [1]}', '{"id": "a", "response": "x"}', "expected: is [1]; give an object"),
        ('{"id": "a", "query": "x", "expected": {"tool_calls": [{"name": "f"}]}}',
         '{"id": "a", "response": "x", "tool_calls": 5}', "tool_calls: is 5; give a list"),
    ],
)  # fmt: skip
def test_score_refuses_rows_that_cannot_be_judged_in_one_sentence(
    call: Call, tmp_path: Path, benchmark: str, answers: str, words: str
) -> None:
    paths = [tmp_path / name for name in ("benchmark.jsonl", "answers.jsonl", "score.json")]
    for path, text in zip(paths, (benchmark, answers), strict=False):
        path.write_text(text + "\n", encoding="utf-8")
    code, _, err = call(*score_words(*paths))
    assert code == 2 and err[-1].startswith("error: ") and words in err[-1]
    assert not paths[2].exists()


def test_diagnose_names_a_known_cause(call: Call, tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n")
    found = answer_of(call("diagnose", "--log", str(tmp_path / "train.log"), "--json"))
    assert len(found["issues"]) == 1 and "memory" in found["issues"][0]["cause"].lower()
    assert "do:" in call("diagnose", "--log", str(tmp_path / "train.log"))[1]


# --- plans ----------------------------------------------------------------------------------------------------------


def test_submit_answers_as_json_or_with_its_lines(call: Call, line: Any) -> None:
    found = answer_of(call("submit", "--input", "-", "--json", stdin=line.request()))
    assert set(found) == {"plan_id", "action", "lines"} and found["action"] == "start"
    line.finish()
    assert answer_of(call("submit", "--input", "-", "--json", stdin=line.request()))["action"] == "none"


def test_a_collected_copy_is_never_trained_in(call: Call, line: Any) -> None:
    line.layout.outputs.mkdir(parents=True)
    marker = line.layout.outputs / artifacts.COLLECTED
    marker.touch()
    for words in (["submit", "--input", "-"], ["cancel"], ["collect"]):
        code, _, err = call(*words, stdin=line.request())
        assert code == 2 and "is a copy that was collected from a host; name the host's folder" in err[-1]
    marker.unlink()
    assert call("submit", "--input", "-", stdin=line.request())[0] == 0


def test_status_of_nothing(call: Call, line: Any) -> None:
    found = answer_of(call("status", "--json"))
    assert (found["plan"], found["running"], found["stages"], found["exit_code"]) == (None, False, {}, 0)
    assert found["message"] == "no plan was submitted yet" and len(found["lines"]) == 5
    assert not line.layout.root.exists(), "looking makes no folders"


def test_status_of_a_plan(call: Call, line: Any) -> None:
    line.finish("sample")
    line.finish("style", status="missed")
    record = line.record_plan("style", outcomes={"style": FAILED})
    found = answer_of(call("status", "--json"))
    assert found["plan"] == record and not found["running"] and set(found["stages"]) == {"sample", "style"}
    assert (found["exit_code"], found["message"]) == (5, "stage style broke")
    shown = call("status")[1]
    assert "style   missed" in shown and "key point coverage 0.500 n=11" in shown and "all     never ran" in shown
    other = answer_of(call("status", "--plan", "another", "--json"))
    assert (other["exit_code"], other["message"]) == (0, "plan another had nothing to do")


def test_status_of_a_running_plan_and_of_one_that_was_lost(call: Call, line: Any) -> None:
    plan_id = line.record_plan("sample", status="running")["plan_id"]
    with process.locked(line.layout.lock):
        found = answer_of(call("status", "--json"))
        assert found["running"] and found["message"] == f"plan {plan_id} is running"
    found = answer_of(call("status", "--json"))
    assert not found["running"] and found["plan"]["status"] == "ended"
    assert found["stages"]["sample"]["status"] == "lost" and found["exit_code"] == 7


def test_cancel_answers_with_what_was_done(call: Call, line: Any) -> None:
    nothing = {"cancelled": False, "lines": ["no plan is running: nothing to cancel"]}
    assert answer_of(call("cancel", "--json")) == nothing
    plan_id = answer_of(call("submit", "--input", "-", "--json", stdin=line.request("sample")))["plan_id"]
    done = {"cancelled": True, "lines": [f"plan {plan_id} was cancelled before it began"]}
    assert answer_of(call("cancel", "--json")) == done
    assert answer_of(call("cancel", "--json")) == nothing
    assert call("cancel")[1] == "no plan is running: nothing to cancel\n"


# --- watching -------------------------------------------------------------------------------------------------------


def test_watch_answers_as_json_with_cursor_and_result(call: Call, line: Any) -> None:
    plan_id = line.record_plan("style", status="running")["plan_id"]
    words = ("watch", "--plan", plan_id, "--stage", "style", "--wait-seconds", "0", "--json")
    with process.locked(line.layout.lock):
        append_event(line.layout, "phase", plan_id=plan_id, stage="style", phase="loading")
        found = answer_of(call(*words))
    assert found["lines"] == ["style   loading"] and found["more"] is True and found["result"] is None
    line.record_plan("style", outcomes={"style": FAILED})
    plan_id = line.record_plan("style", outcomes={"style": FAILED})["plan_id"]
    found = answer_of(call("watch", "--plan", plan_id, "--stage", "style", "--after", str(found["cursor"]), "--json"))
    assert found["more"] is False and found["result"] == {"stage": "style", **FAILED}


def test_watch_ends_as_the_first_stage_that_did_not_end_well(call: Call, line: Any) -> None:
    closed = {"status": "closed", "message": "closed: stage style is failed", "exit_code": 3}
    line.record_plan("style", "writing", outcomes={"style": FAILED, "writing": closed})
    code, out, err = call("watch")
    assert (code, err) == (5, ["error: stage style broke"])
    assert out.splitlines() == ["style   stage style broke", "writing closed: stage style is failed"]
    assert call("watch", "--stage", "writing")[::2] == (3, ["error: closed: stage style is failed"])


def test_watch_of_a_plan_that_did_well(call: Call, line: Any) -> None:
    line.finish("sample")
    line.record_plan("sample", outcomes={"sample": {"status": "passed", "message": "open", "exit_code": 0}})
    code, out, err = call("watch")
    assert (code, err) == (0, []) and out.startswith("sample  passed on held-out questions: answered 1.000")


def test_ctrl_c_detaches_and_says_how_to_go_on(call: Call, line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line.record_plan("sample", status="running")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.watch, "follow", interrupt)
    code, _, err = call("watch")
    assert code == 7 and err[-1].startswith("error: detached")
    assert any(row.strip().startswith("watch it:") and str(line.layout.root) in row for row in err)


def test_run_submits_starts_and_watches(call: Call, line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def supervisor(command: list[str], **options: Any) -> None:
        assert options["start_new_session"] and options["cwd"] == commands.steps.code_root()
        started.append(command)
        record = read_json(line.layout.plan)
        assert record is not None and record["plan_id"] == command[-1]
        line.finish("sample")
        passed = {"status": "passed", "message": "the gate is open", "exit_code": 0}
        write_json(line.layout.plan, {**record, "status": "ended", "outcomes": {"sample": passed}})

    words = ("run", "--stages", "sample", "--data-root", str(line.data), "--set", f"model_name_or_path={line.base}")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", supervisor)
        code, out, err = call(*words)
    assert (code, err) == (0, []) and out.splitlines()[-1].startswith("sample  passed")
    assert started[0][1:3] == ["-m", "trainer"] and "supervise" in started[0]
    code, out, _ = call(*words)
    assert code == 0 and out.startswith("sample  ") and len(started) == 1, "nothing is started in vain"


# --- the way home ---------------------------------------------------------------------------------------------------


def test_collect_export_import_and_imported(
    call: Call, line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = str(tmp_path / "home")
    assert answer_of(call("imported", "--output-dir", home, "--json")) == {"export_id": "", "lines": []}
    line.record_plan("sample", outcomes={})
    line.finish("sample")
    collected = answer_of(call("collect", "--json"))
    assert set(collected) == {"run", "export_id", "files", "bytes", "lines"}
    assert answer_of(call("collect", "--anew", "--json")) == collected
    piece = ("export", "--export-id", collected["export_id"], "--token", "01234567")
    sent = answer_of(call(*piece, "--files", "0-2", "--offset", "0", "--most-bytes", "10", "--json"))
    assert 0 < sent["bytes"] <= 30
    assert answer_of(call(*piece, "--end", "--json")) == {"lines": []}
    collected = answer_of(call("collect", "--json"))
    road = Road(line.layout)
    road.answer = lambda value: print(json.dumps({"answer": value}))  # type: ignore[attr-defined]
    monkeypatch.setattr(commands.courier, "Pipe", lambda: road)
    words = ["import", "--host-root", str(line.layout.root), "--export-id", collected["export_id"]]
    words += ["--output-dir", home, "--max-total-bytes", "1000000", "--max-file-bytes"]
    code, _, err = call(*words, "10")
    assert code == 7 and "more than 10 bytes; raise artifacts_max_file_bytes" in err[-1]
    received = answer_of(call(*words, "100000"))["answer"]
    assert received["export_id"] == collected["export_id"] and len(received["lines"]) == 3 and received["changed"]
    del received["changed"]
    assert answer_of(call("imported", "--output-dir", home, "--json")) == received


def test_source_pack_verify_and_publish(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, unpacked = tmp_path / "tree", tmp_path / "host" / "releases" / ".incoming-1"
    for folder in (tree, unpacked):
        folder.mkdir(parents=True)
        (folder / "a.py").write_text("print(1)\n")
    monkeypatch.setattr(commands.steps, "code_root", lambda: tree)
    packed = answer_of(call("source", "pack", "--output", str(tmp_path / "x.tar.gz"), "--json"))
    assert packed["files"] == 1 and (tmp_path / "x.tar.gz").is_file()
    expected, commit = packed["source_id"], "c" * 40
    assert answer_of(call("source", "hash", "--json")) == {**packed, "commit": ""}
    words = ("source", "verify", "--expect", expected, "--json")
    with contextlib.chdir(unpacked):
        assert answer_of(call(*words)) == {"source_id": expected, "commit": ""}
        (unpacked / "a.py").write_text("print(2)\n")
        code, _, err = call(*words)
        assert code == 2 and f"expected {expected}" in err[-1]
        (unpacked / "a.py").write_text("print(1)\n")
        publish = ("--project-root", str(tmp_path / "host"), "source", "publish", "--expect", expected)
        assert call(*publish, "--commit", commit)[:2] == (0, f"{expected}\n")
    with contextlib.chdir(tmp_path / "host" / "code"):
        assert answer_of(call(*words, "--commit", commit)) == {"source_id": expected, "commit": commit}
        code, _, err = call(*words, "--commit", "d" * 40)
        assert code == 2 and "is of commit cccc" in err[-1]


def test_base_build_names_the_folder(call: Call, line: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []

    def build(models: Path, corpus: Path) -> Path:
        asked.extend([models, corpus])
        return models / "embedded-0"

    monkeypatch.setattr(base, "build", build)
    assert call("base", "build", "--corpus", str(tmp_path))[1].strip().endswith("models/embedded-0")
    assert asked == [line.layout.models, tmp_path]


def test_an_answer_of_no_lines_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    commands.answer(argparse.Namespace(json=False), {"lines": []})
    assert capsys.readouterr().out == ""
    commands.answer(argparse.Namespace(json=False), {"lines": ["a", "b"]})
    assert capsys.readouterr().out == "a\nb\n"


def test_training_root_is_the_layout_of_a_host(tmp_path: Path) -> None:
    assert commands.training_root(tmp_path).root == tmp_path
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / artifacts.COLLECTED).touch()
    with pytest.raises(InputError, match="is a copy"):
        commands.training_root(tmp_path)
