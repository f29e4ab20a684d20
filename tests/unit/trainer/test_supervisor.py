"""Plans that are really carried out, by real processes: to the end, past missed gates, killed, cancelled, too slow."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.stand_in import StandIn, carry_out, results
from trainer.errors import TrainingFailed
from trainer.state import derive_states, read_events, read_stage
from trainer.supervisor import LOG_TAIL_LINES, Cancelled
from trainer.workshop import WorkerLost

STAGES = ["sample", "style", "writing", "all"]
ENDLESS = 1_000_000  # steps: a stage that runs until somebody ends it


def statuses(host: Any) -> dict[str, str]:
    return {name: state["status"] for name, state in host.states().items()}


def issues(host: Any) -> list[dict[str, Any]]:
    path = host.layout.logs / "issues.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def adapter(host: Any, name: str) -> bytes:
    return bytes((host.layout.adapters / f"adapter_{name}" / "adapter_model.safetensors").read_bytes())


def assert_the_log_tells_the_states(host: Any) -> None:
    """The event log alone rebuilds every state file, and no torn or temporary file is left."""
    assert derive_states(host.events()) == host.states()
    files = {path.name for path in host.layout.state.iterdir()}
    assert files == {"plan.json", "events.jsonl", "supervisor.lock", *(f"{name}.json" for name in host.states())}


# The whole line, and what does not run again


def test_a_plan_runs_from_its_first_stage_to_its_last(finished_line: Any) -> None:
    code, _ = finished_line.watched
    assert code == 0
    assert statuses(finished_line) == dict.fromkeys(STAGES, "passed")
    record = finished_line.plan()
    assert record["status"] == "ended"
    assert {name: (item["status"], item["exit_code"]) for name, item in record["outcomes"].items()} == dict.fromkeys(
        STAGES, ("passed", 0)
    )
    started = [event["stage"] for event in finished_line.events() if event["event"] == "stage started"]
    assert started == STAGES
    assert_the_log_tells_the_states(finished_line)


def test_the_events_of_a_stage_tell_its_story(finished_line: Any) -> None:
    told = [event for event in finished_line.events() if event.get("stage") == "style"]
    phases = [event["state"]["phase"] for event in told if event["event"] == "phase"]
    assert phases == ["loading", "training", "evaluating"]
    steps = [(event["step"], event["steps"]) for event in told if "step" in event]
    assert steps[0] == (1, 60) and steps[-1] == (60, 60)
    answered = [(event["questions"], event["answered"], event["rows"]) for event in told if "answered" in event]
    assert answered == [("trained and style and writing", 6, 6)]
    assert told[-1]["event"] == "stage ended"
    asked_first = [event["rows"] for event in finished_line.events() if event.get("questions") == "base model"]
    assert len(set(asked_first)) == 1 and asked_first[0] > 6, "the first stage's base answered for all of them"


def test_every_stage_leaves_its_adapter_and_its_log(finished_line: Any) -> None:
    names = ["adapter_multitask", "adapter_sample", "adapter_style", "adapter_writing"]
    assert sorted(path.name for path in finished_line.layout.adapters.iterdir()) == names
    for name, state in finished_line.states().items():
        log = finished_line.root / state["log"]
        assert log.name.startswith(f"train_{name}_")
        assert "'loss'" in log.read_text(encoding="utf-8")
    assert len({state["log"] for state in finished_line.states().values()}) == len(STAGES)


def test_the_smoke_gate_was_judged_on_its_answers(finished_line: Any) -> None:
    state = finished_line.states()["sample"]
    assert state["gate"]["measured"]["answered"] == {"value": 1.0, "n": 2}
    assert state["gate"]["passed"] and state["message"] == "the gate is open"


def test_nothing_is_started_when_everything_is_up_to_date(finished_line: Any) -> None:
    before = {path: path.read_bytes() for path in finished_line.layout.state.iterdir()}
    answer = finished_line.submit(gate_questions="trained")
    assert answer["action"] == "none"
    assert finished_line.submit("style", gate_questions="trained")["action"] == "none"
    assert {path: path.read_bytes() for path in finished_line.layout.state.iterdir()} == before
    # An ended plan is not run again by a supervisor that comes late.
    late = finished_line.start(finished_line.plan()["plan_id"])
    assert late.wait(60) == 0
    assert {path: path.read_bytes() for path in finished_line.layout.state.iterdir()} == before


def test_an_adapter_that_was_changed_by_hand_is_trained_again(finished_line: Any, make_host: Any) -> None:
    host = make_host(finished_line)
    assert host.submit("sample", gate_questions="trained")["action"] == "none"
    path = host.layout.adapters / "adapter_sample" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert host.submit("sample", gate_questions="trained")["action"] == "start"


# A missed gate


@pytest.fixture(scope="module")
def after_a_miss(finished_line: Any, make_host: Any) -> dict[str, Any]:
    """Three plans one after another on a host whose stages had passed, judged on held-out questions now."""
    host = make_host(finished_line)
    found: dict[str, Any] = {"host": host, "before": adapter(host, "style")}
    for gate in ("strict", "warn", "off"):
        code, _ = host.carry_out(gate=gate, gate_questions="held_out")
        found[gate] = {
            "code": code, "plan": host.plan(), "states": host.states(), "style": adapter(host, "style"),
            "issues": issues(host), "derived": derive_states(host.events()),
        }  # fmt: skip
    return found


def test_a_missed_gate_closes_the_way(after_a_miss: dict[str, Any]) -> None:
    found = after_a_miss["strict"]
    assert found["code"] == 6
    outcomes = {name: (item["status"], item["exit_code"]) for name, item in found["plan"]["outcomes"].items()}
    assert outcomes == {
        "sample": ("up to date", 0), "style": ("missed", 6), "writing": ("closed", 3), "all": ("closed", 3)
    }  # fmt: skip
    assert found["states"]["writing"]["message"] == "closed: stage style missed its gate"
    assert found["states"]["style"]["message"].startswith("stage style missed its gate: key point coverage 0.")
    assert not found["states"]["style"]["gate"]["passed"]
    assert found["derived"] == found["states"]


def test_a_missed_gate_is_an_issue(after_a_miss: dict[str, Any]) -> None:
    (issue,) = after_a_miss["strict"]["issues"]
    assert (issue["stage"], issue["phase"], issue["severity"]) == ("style", "evaluating", "error")
    assert "eval_report_style.md" in issue["action"]
    text = (after_a_miss["host"].layout.logs / "ISSUES.md").read_text(encoding="utf-8")
    assert "style" in text


def test_other_questions_are_a_new_score_of_the_same_weights(after_a_miss: dict[str, Any]) -> None:
    state = after_a_miss["strict"]["states"]["style"]
    assert state["mode"] == "evaluate"
    assert state["reason"] == "changed for the score only: evaluation parameters"
    assert state["attempt"] == 2
    assert after_a_miss["strict"]["style"] == after_a_miss["before"]


def test_a_gate_that_warns_goes_on_and_ends_with_its_code(after_a_miss: dict[str, Any]) -> None:
    found = after_a_miss["warn"]
    assert found["code"] == 6
    assert {name: (item["status"], item["exit_code"]) for name, item in found["plan"]["outcomes"].items()} == {
        "sample": ("up to date", 0), "style": ("missed", 6), "writing": ("missed", 6), "all": ("missed", 6)
    }  # fmt: skip
    assert {name: state["status"] for name, state in found["states"].items()} == {
        "sample": "passed", "style": "missed", "writing": "missed", "all": "missed"
    }  # fmt: skip
    # The style stage has not changed: its miss stands without another run.
    assert found["style"] == after_a_miss["before"]
    assert found["states"]["style"]["attempt"] == 2
    assert found["derived"] == found["states"]


def test_a_gate_that_is_off_ends_well_and_runs_nothing_anew(after_a_miss: dict[str, Any]) -> None:
    found = after_a_miss["off"]
    assert found["code"] == 0
    assert {item["exit_code"] for item in found["plan"]["outcomes"].values()} == {0}
    assert "worker" not in found["plan"]
    assert found["states"] == after_a_miss["warn"]["states"]


def test_a_stage_behind_a_missed_gate_is_refused(after_a_miss: dict[str, Any]) -> None:
    host = after_a_miss["host"]
    refused = host.ask("writing", gate_questions="held_out")
    assert refused.returncode == 3
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("error: the gate before stage writing is closed: stage style missed its gate (key point")
    assert host.ask("writing", gate_questions="held_out", gate="warn").returncode == 0


def test_a_gate_that_opens_again_brings_back_what_it_had_closed(finished_line: Any, make_host: Any) -> None:
    host = make_host(finished_line)
    weights = {name: adapter(host, name) for name in ("sample", "style", "writing", "multitask")}
    reports = {name: host.report(name) for name in STAGES}
    before = host.states()
    assert host.carry_out(gate_questions="held_out")[0] == 6
    assert statuses(host) == {"sample": "passed", "style": "missed", "writing": "closed", "all": "closed"}
    cursor = len(host.events())
    assert host.carry_out(gate_questions="trained")[0] == 0
    assert {name: item["status"] for name, item in host.plan()["outcomes"].items()} == {
        "sample": "up to date", "style": "passed", "writing": "up to date", "all": "up to date"
    }  # fmt: skip
    started = [e for e in host.events()[cursor:] if e["event"] == "stage started"]
    assert [(e["stage"], e["state"]["mode"]) for e in started] == [("style", "evaluate")], "nothing is trained again"
    assert {name: adapter(host, name) for name in weights} == weights
    for name in ("sample", "writing", "all"):
        assert host.report(name) == reports[name]
        assert host.states()[name] == {**before[name], "updated_at": host.states()[name]["updated_at"]}
    assert host.states()["style"]["gate"] == before["style"]["gate"]
    assert_the_log_tells_the_states(host)
    assert host.submit(gate_questions="trained")["action"] == "none"


# Results that stand whatever was tried since; a stand-in does the worker's part


HELD_OUT = {"parameters": {"gate_questions": "held_out"}}
TRAINED = {"parameters": {"gate_questions": "trained"}}


def modes_of(line: Any, *names: str, **request: Any) -> list[tuple[str, str]]:
    """What one more plan, which must do well, has the worker do."""
    worker = StandIn()
    assert carry_out(line, worker, *names, **request) == 0
    states = {name: read_stage(line.layout, name) for name in STAGES}
    known = {name: state for name, state in states.items() if state}
    assert derive_states(read_events(line.layout)[0]) == known
    assert all(state["superseded"] is None for name, state in known.items() if name in names or not names)
    return worker.jobs


def test_a_job_is_told_which_stages_are_still_to_come(line: Any) -> None:
    first, second = StandIn(), StandIn()
    assert carry_out(line, first, skip_sample=True, **TRAINED) == 0
    assert first.coming == [["writing", "all"], ["all"], []]
    path = line.data / "training" / "processed" / "style_sft.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert carry_out(line, second, "style", "writing", skip_sample=True, **TRAINED) == 0
    assert second.jobs[0] == ("style", "train") and "all" not in second.coming[0], "it is not in the plan"


def test_what_a_missed_gate_closed_is_back_when_the_gate_opens(line: Any) -> None:
    assert modes_of(line, **TRAINED) == [(name, "train") for name in STAGES]
    before = results(line)
    worker = StandIn(fragile=("style",))
    assert carry_out(line, worker, **HELD_OUT) == 6
    assert worker.jobs == [("style", "evaluate")], "the smoke stage asks no held-out questions"
    closed = read_stage(line.layout, "writing")
    assert closed is not None and closed["status"] == "closed" and closed["fingerprint"] is None
    assert closed["superseded"]["plan_id"] == before["writing"]["state"]["plan_id"]
    again = StandIn(fragile=("style",))
    assert carry_out(line, again, **HELD_OUT) == 6 and again.jobs == []  # closed twice
    assert modes_of(line, **TRAINED) == [("style", "evaluate")]
    after = results(line)
    assert {name: after[name] for name in ("sample", "writing", "all")} == {
        name: before[name] for name in ("sample", "writing", "all")
    }


def test_a_gate_that_warns_brings_back_what_was_closed_too(line: Any) -> None:
    modes_of(line, **TRAINED)
    assert carry_out(line, StandIn(fragile=("style",)), **HELD_OUT) == 6
    worker = StandIn(fragile=("style",))
    assert carry_out(line, worker, gate="warn", **HELD_OUT) == 6
    assert worker.jobs == [("writing", "evaluate"), ("all", "evaluate")], "the missed one stands as missed"


def test_a_closed_stage_whose_data_changed_is_trained_when_the_gate_opens(line: Any) -> None:
    modes_of(line, **TRAINED)
    assert carry_out(line, StandIn(fragile=("style",)), **HELD_OUT) == 6
    path = line.data / "training" / "processed" / "all_sft.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert modes_of(line, **TRAINED) == [("style", "evaluate"), ("all", "train")]


def test_a_smoke_test_that_was_left_out_once_is_not_trained_again(line: Any) -> None:
    modes_of(line)
    before = results(line)
    worker = StandIn()
    assert carry_out(line, worker, skip_sample=True) == 0
    skipped = read_stage(line.layout, "sample")
    assert skipped is not None and skipped["status"] == "skipped" and worker.jobs == []
    assert line.submit(skip_sample=True)["action"] == "none"
    assert modes_of(line) == [] and results(line) == before
    restored = [event for event in read_events(line.layout)[0] if event["event"] == "stage restored"]
    assert [event["stage"] for event in restored] == ["sample"]


@pytest.mark.parametrize(
    ("problem", "status"),
    [(TrainingFailed("out of memory"), "failed"), (WorkerLost("it died", 9), "lost"), (Cancelled(), "cancelled"),
     (OSError("the disk is full"), "failed")],
)  # fmt: skip
def test_a_broken_attempt_with_another_value_does_not_cost_the_former_result(
    line: Any, problem: Exception, status: str
) -> None:
    modes_of(line)
    before = results(line)
    other = {"parameters": {"lora_r": 4}}
    for _ in range(2):
        assert carry_out(line, StandIn(broken={"sample": problem}), **other) in (5, 7)
        state = read_stage(line.layout, "sample")
        assert state is not None and (state["status"], state["mode"]) == (status, "train")
    assert line.steps(**other)["sample"] == ("train", "changed: parameters")
    assert modes_of(line) == [] and results(line) == before


def test_a_result_that_was_replaced_does_not_come_back(line: Any) -> None:
    modes_of(line)
    assert modes_of(line, parameters={"lora_r": 4}) == [(name, "train") for name in STAGES]
    assert modes_of(line) == [(name, "train") for name in STAGES]


def test_a_former_result_whose_adapter_was_changed_is_trained_again(line: Any) -> None:
    modes_of(line)
    assert carry_out(line, StandIn(broken={"sample": TrainingFailed("x")}), parameters={"lora_r": 4}) == 5
    path = line.layout.adapters / "adapter_writing" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes() + b"0")
    assert line.steps()["writing"] == ("train", "the files of adapter_writing are not those that were trained")
    assert modes_of(line) == [("writing", "train")]


def test_a_stage_that_had_missed_is_missed_again_and_not_trained(line: Any) -> None:
    assert carry_out(line, StandIn(fragile=("sample",)), "sample", **HELD_OUT) == 6
    assert carry_out(line, StandIn(broken={"sample": TrainingFailed("x")}), "sample",
                     parameters={"gate_questions": "held_out", "lora_r": 4}) == 5  # fmt: skip
    worker = StandIn(fragile=("sample",))
    assert carry_out(line, worker, "sample", **HELD_OUT) == 6
    assert worker.jobs == []
    state = read_stage(line.layout, "sample")
    assert state is not None and state["status"] == "missed" and "stage sample missed its gate" in state["message"]


# Ends that nobody wished for


@pytest.fixture(scope="module")
def killed_worker(make_host: Any) -> dict[str, Any]:
    """A worker killed in training; what others were told while it ran, and what was left."""
    host = make_host()
    plan = host.submit("sample", "style", max_steps=ENDLESS)
    supervisor = host.start(plan["plan_id"])
    host.wait_for_training("sample")
    found: dict[str, Any] = {"host": host, "plan_id": plan["plan_id"], "status": host.status()}
    found["second"] = host.run("supervise", "--plan", plan["plan_id"])
    found["same"] = host.submit("sample", max_steps=ENDLESS)
    found["other"] = host.ask("sample", max_steps=5)
    os.kill(host.plan()["worker"]["pid"], signal.SIGKILL)
    _, found["errors"] = supervisor.communicate(timeout=60)
    found["code"] = supervisor.returncode
    return found


def test_a_plan_has_one_supervisor(killed_worker: dict[str, Any]) -> None:
    assert killed_worker["second"].returncode == 7
    assert "a plan is running here" in killed_worker["second"].stderr
    assert killed_worker["status"]["running"]
    assert killed_worker["status"]["stages"]["sample"]["status"] == "running"
    started = [event for event in killed_worker["host"].events() if event["event"] == "stage started"]
    assert [event["state"]["status"] for event in started if event["stage"] == "sample"] == ["running"]


def test_a_submit_watches_the_plan_that_covers_it_and_refuses_another(killed_worker: dict[str, Any]) -> None:
    assert killed_worker["same"]["action"] == "watch"
    assert killed_worker["same"]["plan_id"] == killed_worker["plan_id"]
    assert killed_worker["other"].returncode == 7
    assert f"plan {killed_worker['plan_id']} is running here with other" in killed_worker["other"].stderr


def test_a_killed_worker_is_a_lost_stage(killed_worker: dict[str, Any]) -> None:
    host = killed_worker["host"]
    assert killed_worker["code"] == 7
    state = host.states()["sample"]
    assert (state["status"], state["exit_code"]) == ("lost", 7)
    assert "signal SIGKILL" in state["message"]
    log = (host.root / state["log"]).read_text(encoding="utf-8").splitlines()
    assert state["error"]["log_tail"] == log[-LOG_TAIL_LINES:]
    assert any("'loss'" in line for line in state["error"]["log_tail"])
    assert host.states()["style"]["message"] == "closed: stage sample is lost"
    assert statuses(host) == {"sample": "lost", "style": "closed"}
    assert not (host.layout.adapters / "adapter_sample").exists()
    assert_the_log_tells_the_states(host)
    assert host.status()["exit_code"] == 7


def test_a_killed_worker_is_an_issue(killed_worker: dict[str, Any]) -> None:
    found = issues(killed_worker["host"])
    assert found
    assert {item["stage"] for item in found} == {"sample"}
    assert {item["phase"] for item in found} == {"training"}
    assert any("kill" in item["cause"].lower() for item in found)


def test_a_stage_that_takes_too_long_is_ended_and_named(make_host: Any, is_gone: Callable[..., bool]) -> None:
    host = make_host()
    code, _ = host.carry_out("sample", "style", stage_timeout_seconds=2)
    assert code == 5
    state = host.states()["sample"]
    assert (state["status"], state["error"]["kind"]) == ("failed", "TrainingFailed")
    assert state["message"] == "stage sample ran longer than stage_timeout_seconds = 2; raise it"
    assert is_gone(host.plan()["worker"], 0)
    assert statuses(host)["style"] == "closed"
    assert issues(host)
    assert_the_log_tells_the_states(host)


def test_rows_that_are_too_long_fail_as_input(make_host: Any) -> None:
    host = make_host()
    code, _ = host.carry_out("sample", "style", max_length=16)
    assert code == 2
    state = host.states()["sample"]
    assert (state["status"], state["exit_code"], state["error"]["kind"]) == ("failed", 2, "InputError")
    assert state["message"].startswith(
        "the data has 2 faults, the first: training/processed/style_sft_sample.jsonl:1: "
    )
    assert "the limit is 16; shorten it or raise max_length" in state["message"]
    log = (host.root / state["log"]).read_text(encoding="utf-8")
    assert all(f"row 'style-{number}' has" in log for number in (1, 2))  # each of them, all at once
    assert statuses(host)["style"] == "closed"
    assert not (host.layout.adapters / "adapter_sample").exists()


# Plans that need no worker


def test_data_that_is_gone_when_its_turn_comes_fails_the_stage(make_host: Any, tmp_path: Path) -> None:
    host = make_host()
    host.data_root = Path(shutil.copytree(host.data_root, tmp_path / "data"))
    plan = host.submit("sample", "style")
    (host.data_root / "training" / "processed" / "style_sft_sample.jsonl").unlink()
    supervisor = host.start(plan["plan_id"])
    assert supervisor.wait(60) == 2
    assert statuses(host) == {"sample": "failed", "style": "closed"}
    assert "style_sft_sample.jsonl" in host.states()["sample"]["message"]
    assert host.plan()["status"] == "ended"


def test_a_smoke_test_that_is_left_out_is_written_down(make_host: Any) -> None:
    host = make_host()
    code, _ = host.carry_out("sample", skip_sample=True)
    assert code == 0
    assert statuses(host) == {"sample": "skipped"}
    assert host.plan()["outcomes"]["sample"]["status"] == "skipped"
    assert host.submit("sample", skip_sample=True)["action"] == "none"
    assert host.submit("sample")["action"] == "start"


def test_a_supervisor_runs_only_the_plan_that_is_there(make_host: Any) -> None:
    host = make_host()
    nothing = host.run("supervise", "--plan", "x")
    assert nothing.returncode == 7
    assert nothing.stderr.splitlines()[-1] == "error: the plan here is none, not x; submit it again"
    plan = host.submit("sample", skip_sample=True)
    other = host.run("supervise", "--plan", "x")
    assert other.returncode == 7
    assert f"the plan here is {plan['plan_id']}, not x" in other.stderr
    assert host.run("supervise", "--plan", plan["plan_id"]).returncode == 0


def test_a_plan_made_with_other_code_is_refused(make_host: Any) -> None:
    host = make_host()
    plan = host.submit("sample", skip_sample=True)
    record = host.plan()
    host.layout.plan.write_text(json.dumps({**record, "code_hash": "0" * 64}), encoding="utf-8")
    refused = host.run("supervise", "--plan", plan["plan_id"])
    assert refused.returncode == 2
    assert "was made with the code 000000000000" in refused.stderr and "submit the plan again" in refused.stderr
    host.layout.plan.write_text(json.dumps(record), encoding="utf-8")
    assert host.run("supervise", "--plan", plan["plan_id"]).returncode == 0


def test_other_code_than_the_plans_is_refused_where_watchers_see_it(make_host: Any) -> None:
    host = make_host()
    answer = host.submit("sample")
    record = host.plan()
    host.layout.plan.write_text(json.dumps({**record, "code_hash": "0" * 64}))
    refused = host.run("supervise", "--plan", answer["plan_id"])
    assert refused.returncode == 2
    assert "was made with the code 000000000000" in refused.stderr
    assert (host.plan()["status"], host.plan()["outcomes"]["sample"]["exit_code"]) == ("ended", 2)


def test_a_plan_whose_supervisor_is_gone_is_not_taken_over(make_host: Any) -> None:
    host = make_host()
    answer = host.submit("sample")
    host.layout.plan.write_text(json.dumps({**host.plan(), "status": "running"}))
    refused = host.run("supervise", "--plan", answer["plan_id"])
    assert (refused.returncode, "is gone" in refused.stderr) == (7, True)
