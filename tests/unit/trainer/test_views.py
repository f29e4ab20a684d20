"""What the commands that look answer, and that they leave everything alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.command_line import FAILED, NOT_BUILT, Call, answer_of
from trainer import config, process, stages, tables


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


# --- status ---------------------------------------------------------------------------------------------------------


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
