"""The worker: one base for all stages, and everything that a stage leaves behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from trainer import credentials, fingerprint, stages, worker
from trainer.config import FIELDS
from trainer.state import Layout

TABLE = stages.load()
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "training.json", "training_config.json"}


def folder_of(host: Any, stage: str) -> Path:
    return Path(host.layout.adapters / TABLE.stage(stage).adapter)


def test_the_base_is_loaded_once_for_the_whole_plan(finished_line: Any) -> None:
    _, workers = finished_line.watched
    assert len(workers) == 1
    first, *later = (finished_line.report(name)["times"]["load_seconds"] for name in TABLE.names)
    assert max(later) < first / 10


@pytest.mark.parametrize("stage", TABLE.names)
def test_a_stage_leaves_its_files_and_no_other(finished_line: Any, stage: str) -> None:
    wanted = {f"eval_report_{stage}.json", f"eval_report_{stage}.md", f"predictions_{stage}.jsonl"}
    found = {path.name for path in folder_of(finished_line, stage).iterdir()}
    assert found == ADAPTER_FILES | wanted  # and so no pickled .bin among them


def test_the_report_tells_what_the_result_was_made_with(finished_line: Any) -> None:
    report = finished_line.report("style")
    assert (report["stage"], report["adapter"], report["attempt"]) == ("style", "adapter_style", 1)
    assert report["plan_id"] == finished_line.plan()["plan_id"]
    assert set(report["parameters"]) == set(FIELDS)
    assert report["parameters"]["learning_rate"] == {"value": 0.01, "source": "test"}
    assert report["parameters"]["lora_r"] == {"value": 16, "source": "default"}
    environment = report["environment"]
    assert environment["base_model"] == str(finished_line.base)
    assert environment["base_hash"] == report["fingerprint"]["parts"]["base"]
    assert environment["enable_thinking"] is False
    assert environment["source_commit"] == ""  # this code is no release
    assert all(environment[name] for name in ("python", "torch", "transformers", "peft", "trl"))
    assert environment["gpu"] is None or isinstance(environment["gpu"], str)


def test_the_report_tells_what_was_trained_and_measured(finished_line: Any) -> None:
    report = finished_line.report("all")
    training = report["training"]
    assert (training["rows"], training["examples"], training["steps"]) == (5, 5, 60)
    assert training["dropped"] == []
    assert training["last_loss"] < training["first_loss"]
    assert [item["name"] for item in report["evaluations"]] == ["trained", "style", "writing"]
    for item in report["evaluations"]:
        assert item["result"]["summary"]["key_point_coverage"]["n"] == len(item["result"]["rows"])
        assert item["base"]["key_point_coverage"]["n"] == len(item["result"]["rows"])
    trained = report["evaluations"][0]
    assert trained["result"]["summary"]["key_point_coverage"]["value"] == 1.0
    assert trained["base"]["key_point_coverage"]["value"] < 0.5  # the lift is real
    assert set(report["times"]) >= {
        "load_seconds",
        "train_seconds",
        "save_seconds",
        "generate_seconds",
        "score_seconds",
    }


@pytest.mark.parametrize("stage", TABLE.names)
def test_the_report_and_the_state_are_bound_to_the_adapter(finished_line: Any, stage: str) -> None:
    folder = folder_of(finished_line, stage)
    found = fingerprint.of_adapter(folder)
    assert finished_line.report(stage)["fingerprint"]["adapter"] == found
    assert finished_line.states()[stage]["fingerprint"]["adapter"] == found
    settings = json.loads((folder / "training_config.json").read_text(encoding="utf-8"))
    assert settings["fingerprint"]["adapter"] == found
    assert settings["parameters"] == finished_line.report(stage)["parameters"]


def test_predictions_are_what_was_answered(finished_line: Any) -> None:
    path = folder_of(finished_line, "writing") / "predictions_writing.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    trained = {item["id"]: item["response"] for item in found if item["set"] == "trained"}
    assert trained == {"writing-1": "先写目的", "writing-2": "注明来源"}
    assert {item["finish_reason"] for item in found if item["set"] == "trained"} == {"stop"}
    assert {item["set"] for item in found} == {"trained", "style", "writing"}


def test_the_base_answered_every_question_once(finished_line: Any) -> None:
    (cache,) = finished_line.layout.cache.glob("base_answers_*.json")
    assert len(json.loads(cache.read_text(encoding="utf-8"))["answers"]) == 8  # 5 trained and 3 held out
    asked = [event["rows"] for event in finished_line.events() if event.get("questions") == "base model"]
    assert asked == [8]  # those of later stages took the places that the first one left


def test_a_worker_nobody_listens_to_ends(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    found = worker.Worker(Layout(tmp_path), writing)
    found.report("note", text="heard")
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        found.report("note", text="nobody hears this")


def test_a_token_in_a_report_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    found = worker.Worker(Layout(tmp_path), writing)
    credentials.put(found.layout, "hf_token", "hf_canary0123456789")
    found.report("note", text="GET with hf_canary0123456789 failed")
    assert json.loads(os.read(reading, 4096)) == {"event": "note", "text": "GET with *** failed"}
    os.close(reading)
    found.report_stream.close()
