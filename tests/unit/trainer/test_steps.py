"""What each stage of a plan has to do and why, and which gate is closed."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest

from trainer import stages, steps
from trainer.errors import InputError, NotReady
from trainer.state import StateError, read_stage, standing_result, write_json

ALL = ["sample", "style", "writing", "all"]
TRAIN = dict.fromkeys(ALL, "train")
KEEP = dict.fromkeys(ALL, "keep")


def touch_rows(line: Any, name: str) -> None:
    """Change a data file in its bytes and not in its rows."""
    path = next(line.data.rglob(name))
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


# --- what each stage has to do --------------------------------------------------------------------------------------


def test_a_fresh_host_trains_everything(line: Any) -> None:
    assert line.modes() == TRAIN
    assert line.steps("sample")["sample"] == ("train", "it was not trained before")


def test_nothing_is_trained_again_when_nothing_has_changed(line: Any) -> None:
    line.finish()
    assert line.modes() == KEEP
    _, reason = line.steps()["style"]
    assert "data, base model, parameters and code" in reason and line.plan().plan_id.split("-")[1] in reason


def test_changed_rows_redo_their_stage_and_the_later_ones_only(line: Any) -> None:
    line.finish()
    touch_rows(line, "style_sft.jsonl")
    found = line.steps()
    assert {name: mode for name, (mode, _) in found.items()} == {**TRAIN, "sample": "keep"}
    assert found["style"][1] == "changed: data"
    assert found["writing"][1] == "changed: stage style"
    assert found["all"][1] == "changed: stage writing"


def test_a_parameter_of_the_evaluation_only_scores_again(line: Any) -> None:
    line.finish()
    found = line.steps(parameters={"max_new_tokens": 7})
    assert {mode for mode, _ in found.values()} == {"evaluate"}
    assert found["style"][1] == "changed for the score only: evaluation parameters"


def test_the_gates_questions_are_nothing_to_a_stage_without_benchmarks(line: Any) -> None:
    line.finish()
    found = line.steps(parameters={"gate_questions": "trained"})
    assert {name: mode for name, (mode, _) in found.items()} == {**dict.fromkeys(ALL, "evaluate"), "sample": "keep"}
    assert found["style"][1] == "changed for the score only: evaluation parameters"


def test_a_parameter_of_the_run_only_changes_nothing(line: Any) -> None:
    line.finish()
    assert line.modes(parameters={"stage_timeout_seconds": 99}) == KEEP


@pytest.mark.parametrize("parameters", [{"learning_rate": 0.5}, {"lora_r": 4}, {"seed": 1}])
def test_a_parameter_of_the_training_trains_everything(line: Any, parameters: dict[str, Any]) -> None:
    line.finish()
    found = line.steps(parameters=parameters)
    assert {name: mode for name, (mode, _) in found.items()} == TRAIN
    assert found["sample"][1] == "changed: parameters"
    assert found["style"][1] == "changed: parameters, stage sample"


def test_another_base_model_trains_everything(line: Any) -> None:
    line.finish()
    (line.base / "model.safetensors").write_text("other weights")
    assert line.steps()["sample"] == ("train", "changed: base model")


def test_a_changed_benchmark_scores_again_what_is_judged_on_benchmarks(line: Any) -> None:
    line.finish()
    touch_rows(line, "writing_benchmark.jsonl")
    assert line.modes() == {"sample": "keep", "style": "evaluate", "writing": "evaluate", "all": "evaluate"}


def test_changed_or_missing_adapter_files_are_trained_again(line: Any) -> None:
    line.finish()
    folder = line.layout.adapters / "adapter_writing"
    before = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    wanted = ("train", "the files of adapter_writing are not those that were trained")
    assert line.steps()["writing"] == wanted
    (folder / "adapter_model.safetensors").unlink()
    assert line.steps()["writing"] == wanted
    (folder / "adapter_model.safetensors").write_bytes(before)
    assert line.modes() == KEEP


def test_a_missing_report_is_made_again_without_training(line: Any) -> None:
    line.finish()
    (line.layout.adapters / "adapter_style" / "eval_report_style.json").unlink()
    assert line.modes() == {**KEEP, "style": "evaluate"}


def test_a_report_of_another_score_is_made_again_without_training(line: Any) -> None:
    line.finish()
    path = line.layout.adapters / "adapter_style" / "eval_report_style.json"
    before = path.read_text(encoding="utf-8")
    report = json.loads(before)
    report["fingerprint"]["evaluation"] = "of a run that was lost before its state was written"
    for text in (json.dumps(report), "{", "[]", '{"fingerprint": 5}'):
        path.write_text(text, encoding="utf-8")
        assert line.modes() == {**KEEP, "style": "evaluate"}
    path.write_text(before, encoding="utf-8")
    assert line.modes() == KEEP


@pytest.mark.parametrize("status", ["failed", "lost", "cancelled", "closed", "skipped", "running"])
def test_a_stage_that_did_not_come_to_an_end_is_trained(line: Any, status: str) -> None:
    line.finish()
    record = read_stage(line.layout, "style")
    assert record is not None
    write_json(line.layout.stage("style"), {**record, "status": status})
    assert line.steps()["style"] == ("train", f"its last run is {status}")


def supersede(line: Any, name: str, status: str) -> None:
    """End a stage in another way while its result still stands, as the ledger does."""
    known = read_stage(line.layout, name)
    assert known is not None
    ended = {**known, "status": status, "fingerprint": None, "gate": None, "superseded": standing_result(known)}
    write_json(line.layout.stage(name), ended)


@pytest.mark.parametrize("status", ["failed", "lost", "cancelled", "closed", "skipped", "running"])
def test_a_result_stands_whatever_was_tried_since(line: Any, status: str) -> None:
    line.finish()
    supersede(line, "style", status)
    assert line.modes() == KEEP
    assert line.submit()["action"] == "start", "its state is to be written anew"
    assert line.modes("writing", gate="off") == {"writing": "keep"}, "the stage before is the one that stands"
    with pytest.raises(NotReady) if status != "skipped" else nullcontext():
        line.submit("writing")


def test_a_former_result_stands_for_its_own_inputs_only(line: Any) -> None:
    line.finish()
    supersede(line, "all", "closed")
    assert line.modes() == KEEP
    assert line.modes(parameters={"max_new_tokens": 7})["all"] == "evaluate"
    weights = line.layout.adapters / "adapter_multitask" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(b"other")
    assert line.steps()["all"] == ("train", "the files of adapter_multitask are not those that were trained")
    weights.write_bytes(before)
    assert line.modes() == KEEP
    touch_rows(line, "all_sft.jsonl")
    assert line.steps()["all"] == ("train", "changed: data")


def test_a_missed_stage_stands_as_missed_until_something_changes(line: Any) -> None:
    line.finish("sample")
    line.finish("style", status="missed")
    assert line.modes("sample", "style") == {"sample": "keep", "style": "keep"}
    touch_rows(line, "style_sft.jsonl")
    assert line.modes("sample", "style") == {"sample": "keep", "style": "train"}


def test_a_state_that_cannot_be_trusted_never_means_start_again(line: Any) -> None:
    line.finish()
    line.layout.stage("style").write_text('{"schema": 2}')
    with pytest.raises(StateError):
        line.steps()
    with pytest.raises(StateError):
        line.submit()
    assert not line.layout.plan.exists()


# --- gates ----------------------------------------------------------------------------------------------------------


def test_a_later_stage_alone_waits_for_the_gates_before_it(line: Any) -> None:
    with pytest.raises(NotReady) as caught:
        line.submit("style")
    assert str(caught.value) == (
        "the gate before stage style is closed: stage sample has not run; run sample first (tag sample), "
        "or set the gate to warn"
    )
    assert caught.value.exit_code == 3
    warned = line.submit("style", gate="warn")
    assert warned["action"] == "start" and "warning: the gate before stage style is closed" in warned["lines"][0]
    assert line.submit("style", gate="off")["lines"] == []
    assert line.submit("sample", "style")["action"] == "start", "what the plan itself contains needs no open gate"
    line.finish("sample")
    assert line.submit("style") ["action"] == "start"  # fmt: skip


def test_a_gap_in_the_selection_is_looked_at_too(line: Any) -> None:
    line.finish("sample")
    with pytest.raises(NotReady, match="the gate before stage writing is closed: stage style has not run"):
        line.submit("sample", "writing")
    line.finish("style")
    assert line.submit("sample", "writing")["action"] == "start"


@pytest.mark.parametrize(
    ("status", "words"), [("missed", r"missed its gate \(key point coverage 0.500 < 0.90 \(n=11\)\)"),
                          ("failed", "is failed"), ("running", "is running"), ("cancelled", "is cancelled")],
)  # fmt: skip
def test_a_gate_is_closed_behind_a_stage_that_did_not_pass(line: Any, status: str, words: str) -> None:
    line.finish("sample", status="missed")
    record = read_stage(line.layout, "sample")
    assert record is not None
    write_json(line.layout.stage("sample"), {**record, "status": status})
    with pytest.raises(NotReady, match=f"stage sample {words}"):
        line.submit("style")


def test_a_gate_that_was_passed_with_other_inputs_is_closed(line: Any) -> None:
    line.finish("sample")
    assert line.submit("style")["action"] == "start"
    touch_rows(line, "style_sft_sample.jsonl")
    with pytest.raises(NotReady, match="stage sample passed with other data;"):
        line.submit("style")


def test_a_gate_that_was_passed_with_another_base_or_other_targets_is_closed(line: Any) -> None:
    line.finish("sample")
    weights = line.base / "model.safetensors"
    before = weights.read_text()
    weights.write_text("other")
    with pytest.raises(NotReady, match="stage sample passed with other base model;"):
        line.submit("style")
    weights.write_text(before)
    assert line.submit("style")["action"] == "start"
    record = read_stage(line.layout, "sample")
    assert record is not None
    record["fingerprint"]["parts"]["gate"] = "of an older table"
    write_json(line.layout.stage("sample"), record)
    with pytest.raises(NotReady, match="stage sample passed with other targets;"):
        line.submit("style")


def test_a_gate_whose_adapter_was_changed_is_closed(line: Any) -> None:
    line.finish("sample")
    (line.layout.adapters / "adapter_sample" / "adapter_model.safetensors").write_text("other")
    with pytest.raises(NotReady, match="the files of adapter_sample are no longer those that passed"):
        line.submit("style")


def test_the_smoke_stage_can_be_left_out_as_asked_for(line: Any) -> None:
    assert line.submit("style", skip_sample=True)["action"] == "start"
    line.finish("style", "writing", "all")
    assert line.submit(skip_sample=True)["action"] == "start", "the skipping itself is to be written down"
    line.finish("sample")
    known = read_stage(line.layout, "sample")
    assert known is not None
    write_json(line.layout.stage("sample"), {**known, "status": "skipped"})
    assert line.submit(skip_sample=True)["action"] == "none"
    assert line.submit("style")["action"] == "none", "a stage that was skipped as asked holds nobody up"
    assert line.submit()["action"] == "start", "who asks for it gets it"


def test_every_step_says_where_its_parameters_came_from(line: Any) -> None:
    step = steps.steps(line.plan("style", profile="embedded"), line.layout)[0]
    assert step.sources["model_name_or_path"] == "test" and step.sources["lora_dropout"] == "profile embedded"
    assert set(step.fingerprint) == {"training", "evaluation", "parts"}
    assert json.loads(json.dumps(step.fingerprint)) == step.fingerprint
    assert {"data", "base", "parameters", "modules", "previous"} <= set(step.fingerprint["parts"])


def test_the_shipped_data_is_the_default_and_a_relative_root_lies_below_the_code() -> None:
    assert steps.data_root("") == steps.data_root("data") == steps.code_root() / "data"
    assert all((steps.data_root("") / stage.data).is_file() for stage in stages.load().stages)
    with pytest.raises(InputError, match="is not a folder"):
        steps.data_root("no-such-folder")
