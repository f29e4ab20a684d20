"""The plan: what is asked for, what each stage has to do and why, and which gate is closed."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from trainer import fingerprint, plan, process, stages
from trainer.errors import InputError, Interrupted, NotReady
from trainer.state import StateError, read_events, read_json, read_stage, standing_result, write_json

ALL = ["sample", "style", "writing", "all"]
TRAIN = dict.fromkeys(ALL, "train")
KEEP = dict.fromkeys(ALL, "keep")


def touch_rows(line: Any, name: str) -> None:
    """Change a data file in its bytes and not in its rows."""
    path = next(line.data.rglob(name))
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


# --- what is asked for ----------------------------------------------------------------------------------------------


def test_the_default_is_every_stage_behind_strict_gates() -> None:
    found = plan.from_request({})
    assert (found.stages, found.gate, found.profile, found.skip_sample) == (ALL, "strict", "", False)
    assert found.code_hash == fingerprint.of_code()


def test_a_plan_is_known_by_its_content() -> None:
    first, same = plan.from_request({"stages": ["all", "style"]}), plan.from_request({"stages": ["style", "all"]})
    assert first.stages == ["style", "all"] and first.content() == same.content()
    assert first.plan_id.split("-")[1] == same.plan_id.split("-")[1]
    other = plan.from_request({"stages": ["style"]})
    assert other.plan_id.split("-")[1] != first.plan_id.split("-")[1]
    assert first.covers(other) and not other.covers(first)


@pytest.mark.parametrize(
    "change", [{"gate": "warn"}, {"overrides": {"lora_r": 8}}, {"skip_sample": True}, {"profile": "embedded"},
               {"data_root": "/other"}, {"source_id": "0123"}],
)  # fmt: skip
def test_a_plan_covers_no_plan_that_asks_for_something_else(change: dict[str, Any]) -> None:
    asked = {"overrides": {"lora_r": 16}}
    assert plan.from_request(asked).covers(plan.from_request({**asked, "stages": ["style"]}))
    assert not plan.from_request(asked).covers(plan.from_request({**asked, "stages": ["style"], **change}))


def test_where_a_value_came_from_does_not_make_it_another_plan() -> None:
    one, other = ({"overrides": {"lora_r": {"value": value, "source": source}}}
                  for value, source in (("8", "environment LORA_R"), (8, "command line")))  # fmt: skip
    assert plan.from_request(one).covers(plan.from_request(other))


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"stage": ["style"]}, "the plan has no field 'stage'; did you mean stages?"),
        ({"gate": "strct"}, "the gate is 'strct'; choose one of strict, warn, off; did you mean strict?"),
        ({"gate": True}, "the gate is True; choose one of"),
        ({"stages": ["stlye"]}, "there is no stage 'stlye'; did you mean style?"),
        ({"stages": "style"}, "the plan's stages is 'style'; give a list"),
        ({"stages": [5]}, "the plan's stages hold 5; give a name"),
        ({"profile": "embeded"}, "there is no profile 'embeded'; did you mean embedded?"),
        ({"profile": 5}, "the plan's profile is 5; give a text"),
        ({"overrides": {"lora_rank": 8}}, "there is no parameter 'lora_rank'; did you mean lora_"),
        ({"overrides": {"lora_r": {"value": 0, "source": "x {y}"}}}, "x {y}: lora_r is 0; it must be at least 1"),
        ({"overrides": ["lora_r"]}, "the plan's overrides is ['lora_r']; give an object"),
        ({"skip_sample": "false"}, "the plan's skip_sample is 'false'; give true or false"),
        ({"data_root": 5}, "the plan's data_root is 5; give a text"),
    ],
)
def test_a_wrong_request_is_refused_in_one_sentence(request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        plan.from_request(request_)
    assert sentence in str(caught.value)


def test_all_findings_on_a_request_come_at_once() -> None:
    wrong = {"stages": ["stlye"], "overrides": {"lora_r": 0, "seed": "x"}}
    with pytest.raises(InputError) as caught:
        plan.from_request(wrong)
    assert len([*caught.value.lines, str(caught.value)]) == 3


@pytest.mark.parametrize(("given", "gate"), [(False, "off"), ("off", "off"), (None, "strict"), ("", "strict")])
def test_yamls_bare_off_is_off_and_never_strict(given: Any, gate: str) -> None:
    assert plan.from_request({"gate": given}).gate == gate


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


# --- submitting -----------------------------------------------------------------------------------------------------


def test_a_plan_is_written_down_and_is_to_be_started(line: Any) -> None:
    answer = line.submit("sample", "style")
    record = plan.read_record(line.layout)
    assert record is not None and answer["action"] == "start"
    assert (record["plan_id"], record["status"], record["outcomes"]) == (answer["plan_id"], "submitted", {})
    assert plan.of_record(record) == plan.read_plan(line.layout)
    assert [e["event"] for e in read_events(line.layout)[0]] == ["plan submitted"]


def test_nothing_is_to_be_done_when_every_stage_has_passed(line: Any) -> None:
    line.finish()
    assert line.submit()["action"] == "none"
    assert not line.layout.plan.exists() and read_events(line.layout)[0] == []
    touch_rows(line, "all_sft.jsonl")
    assert line.submit()["action"] == "start"
    assert line.submit("style")["action"] == "none"


def test_a_missed_stage_is_told_again_and_not_called_done(line: Any) -> None:
    line.finish(status="missed")
    assert line.submit()["action"] == "start"


def test_a_running_plan_is_watched_for_a_part_of_it_and_refused_for_anything_else(line: Any) -> None:
    first = line.submit("sample", "style")
    with process.locked(line.layout.lock):
        watched = line.submit("style")
        assert (watched["action"], watched["plan_id"]) == ("watch", first["plan_id"])
        assert first["plan_id"] in watched["lines"][0]
        for asked in ({"gate": "warn"}, {"parameters": {"lora_r": 4}}, {"skip_sample": True}):
            with pytest.raises(Interrupted, match="is running here with other stages, parameters or code") as caught:
                line.submit("style", **asked)
            assert caught.value.exit_code == 7
        with pytest.raises(Interrupted):
            line.submit("sample", "style", "writing")
        assert plan.read_plan(line.layout).plan_id == first["plan_id"]  # type: ignore[union-attr]
    assert line.submit("sample", gate="warn")["action"] == "start", "nobody holds the lock any more"


def test_a_plan_that_is_just_closing_is_waited_for(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = {"status": "passed", "message": "the gate is open", "exit_code": 0}
    line.record_plan("sample", status="running", outcomes={"sample": passed})
    closing = process.locked(line.layout.lock)
    closing.__enter__()
    supervisor = threading.Timer(0.3, closing.__exit__, (None, None, None))
    supervisor.start()
    assert line.submit("sample", gate="warn")["action"] == "start", "not refused for the sake of a moment"
    supervisor.join()
    line.record_plan("sample", status="running", outcomes={"sample": passed})
    monkeypatch.setattr(plan, "CLOSING_SECONDS", 0.2)
    with process.locked(line.layout.lock), pytest.raises(Interrupted, match="is running here"):
        line.submit("sample", gate="warn")


def test_faulty_data_stops_the_plan_with_every_fault(line: Any) -> None:
    processed = line.data / "training" / "processed"
    (processed / "style_sft.jsonl").write_text("{\n", encoding="utf-8")
    (processed / "writing_sft.jsonl").unlink()
    with pytest.raises(InputError, match="the data has 2 faults, the first: training/processed/style_sft.jsonl:1"):
        line.submit()
    assert not line.layout.plan.exists()
    assert line.submit("sample")["action"] == "start", "the data of other stages is not looked at"


def test_a_warning_on_the_data_is_told_and_stops_nothing(line: Any, put_rows: Any) -> None:
    leaked = {"id": "b", "query": "什么是电势？", "expected": {"key_points": ["功"]}}
    put_rows(line.data / "training" / "eval" / "style_benchmark.jsonl", [leaked])
    answer = line.submit("sample", "style")
    assert answer["action"] == "start"
    assert len(answer["lines"]) == 1 and answer["lines"][0].startswith("warning: training/eval/style_benchmark.jsonl")


def test_a_missing_base_model_is_an_input_error(line: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder of this host; correct model_name_or_path"):
        line.submit(parameters={"model_name_or_path": str(tmp_path / "nowhere")})
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


# --- the record -----------------------------------------------------------------------------------------------------


def test_a_plan_file_that_is_no_plan_is_not_guessed_at(line: Any) -> None:
    assert plan.read_record(line.layout) is None and plan.read_plan(line.layout) is None
    line.submit("sample")
    record = read_json(line.layout.plan)
    assert record is not None and plan.read_record(line.layout) == record
    for broken in ({**record, "status": "maybe"}, {k: v for k, v in record.items() if k != "outcomes"}):
        write_json(line.layout.plan, broken)
        with pytest.raises(StateError, match="is not a plan; restore it or move it away"):
            plan.read_record(line.layout)


def test_a_plan_of_other_code_is_not_carried_out(line: Any) -> None:
    found = line.plan("sample")
    plan.check_code(found)
    with pytest.raises(InputError, match="was made with the code 0123.*; submit the plan again"):
        plan.check_code(plan.Plan(**{**found.__dict__, "code_hash": "0123"}))


def test_every_step_says_where_its_parameters_came_from(line: Any) -> None:
    step = plan.steps(line.plan("style", profile="embedded"), line.layout)[0]
    assert step.sources["model_name_or_path"] == "test" and step.sources["lora_dropout"] == "profile embedded"
    assert set(step.fingerprint) == {"training", "evaluation", "parts"}
    assert json.loads(json.dumps(step.fingerprint)) == step.fingerprint
    assert {"data", "base", "parameters", "modules", "previous"} <= set(step.fingerprint["parts"])


def test_the_shipped_data_is_the_default_and_a_relative_root_lies_below_the_code() -> None:
    assert plan.data_root("") == plan.data_root("data") == plan.code_root() / "data"
    assert all((plan.data_root("") / stage.data).is_file() for stage in stages.load().stages)
    with pytest.raises(InputError, match="is not a folder"):
        plan.data_root("no-such-folder")
