"""The plan: what is asked for, how it is recorded, and when it is submitted."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from trainer import content, fingerprint, plan, process
from trainer.errors import InputError, Interrupted
from trainer.state import StateError, read_events, read_json, write_json

ALL = ["sample", "style", "writing", "all"]


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


# --- time and place -------------------------------------------------------------------------------------------------


def test_how_long_a_plan_may_run_does_not_make_it_another_plan(line: Any) -> None:
    first, other = line.plan("style"), line.plan("style", plan_timeout_seconds="60")
    assert (first.plan_timeout_seconds, other.plan_timeout_seconds) == (259200, 60)
    assert first.content() == other.content() and first.covers(other) and other.covers(first)
    line.submit("sample", plan_timeout_seconds=60)
    assert plan.read_plan(line.layout).plan_timeout_seconds == 60  # type: ignore[union-attr]
    with process.locked(line.layout.lock):
        answer = line.submit("sample")
    assert answer["action"] == "watch" and answer["lines"][1] == "its plan_timeout_seconds stays 60"


@pytest.mark.parametrize("value", [0, -1, "x", 1.5, True, [1]])
def test_a_time_limit_that_is_no_number_of_seconds_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="plan_timeout_seconds is .*; give a whole number of seconds, at least 1"):
        plan.from_request({"plan_timeout_seconds": value})
    assert plan.from_request({"plan_timeout_seconds": 1}).plan_timeout_seconds == 1


def test_the_file_of_an_earlier_version_is_read_with_the_default(line: Any) -> None:
    record = line.record_plan("sample")
    del record["plan_timeout_seconds"]
    write_json(line.layout.plan, record)
    assert plan.read_plan(line.layout).plan_timeout_seconds == plan.PLAN_TIMEOUT_SECONDS  # type: ignore[union-attr]


def test_a_plan_that_was_submitted_a_moment_ago_is_answered_again(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = line.submit("sample", "style")
    monkeypatch.setattr(plan, "now", lambda: "2001-01-01T00:00:00.000+00:00")  # clocks do not matter
    again = line.submit("sample")
    assert (again["plan_id"], again["action"]) == (first["plan_id"], "start"), "whoever starts it first carries it out"
    other = line.submit("style", gate="warn", skip_sample=True)
    assert other["plan_id"] != first["plan_id"]
    monkeypatch.setattr(plan, "START_SECONDS", -1.0)
    assert line.submit("style", gate="warn", skip_sample=True)["action"] == "start"
    assert plan.read_record(line.layout)["created_at"].startswith("2001"), "written anew"  # type: ignore[index]


def test_the_age_of_a_plan_is_of_no_clock_that_somebody_sets(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line.submit("sample")
    record = plan.read_record(line.layout)
    assert record is not None and 0 <= plan.age_seconds(record) < 60
    assert plan.age_seconds({**record, "created_at": "1999-01-01T00:00:00+00:00"}) < 60
    monkeypatch.setattr(plan, "boot_id", lambda: "another boot")
    assert plan.age_seconds(record) == float("inf")


def test_a_source_is_that_of_the_release_or_none(line: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan.check_source(line.plan("sample"))
    code = tmp_path / "releases" / "fresh"
    code.mkdir(parents=True)
    (code / "a.py").write_text("print(1)\n")
    shipped = content.entries(code, ["a.py"])
    right, wrong = content.source_id(shipped), "f" * 16
    content.write_record(code, shipped, content.Origin())
    code = code.rename(code.with_name(right))
    monkeypatch.setattr(plan, "code_root", lambda: code)
    plan.check_source(line.plan("sample", source_id=right))
    with pytest.raises(
        InputError, match=f"names the source {wrong}, and this code runs from .*releases/{right}; start"
    ):
        plan.check_source(line.plan("sample", source_id=wrong))
    (code / "a.py").write_text("print(2)\n")
    with pytest.raises(InputError, match=f"is not the source {right} any more \\(a.py\\)"):
        plan.check_source(line.plan("sample", source_id=right))
    monkeypatch.setattr(plan, "code_root", lambda: tmp_path / right)
    with pytest.raises(InputError, match=f"start it from releases/{right}"):
        plan.check_source(line.plan("sample", source_id=right))
