"""The worker: one base for all stages, and everything that a stage leaves behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_data
from tests.unit.trainer.interrupted import Server, carry_out_job, read_reports
from trainer import checkpoint, credentials, digest, fingerprint, stages, worker
from trainer.config import FIELDS, table
from trainer.errors import InputError
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
    assert asked == [2, 4, 2]  # the last stage asks nothing new


@pytest.fixture
def resident(tmp_path: Path) -> Iterator[worker.Worker]:
    """A worker in this process, its reports thrown away."""
    reading, writing = os.pipe()
    found = worker.Worker(Layout(tmp_path), writing)
    yield found
    os.close(reading)
    found.report_stream.close()


def test_the_resident_base_is_kept_while_its_parameters_are_the_same(
    resident: worker.Worker, tiny_parameters: Any, tiny_corpus: Path
) -> None:
    first = resident.resident_base(tiny_parameters(), tiny_corpus)
    same = tiny_parameters(learning_rate=0.5, max_new_tokens=3, lora_r=2, num_train_epochs=9.0)
    assert resident.resident_base(same, tiny_corpus) is first
    other = resident.resident_base(tiny_parameters(compute_dtype="bfloat16"), tiny_corpus)
    assert other is not first
    assert str(other.dtype) == "torch.bfloat16"


def test_a_base_that_is_not_there_is_refused_in_one_sentence(
    resident: worker.Worker, tiny_parameters: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    from trainer.errors import InputError

    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        resident.resident_base(tiny_parameters(model_name_or_path=str(tmp_path / "empty")), tiny_corpus)
    assert str(tmp_path / "empty") in str(caught.value) and "\n" not in str(caught.value)
    assert resident.resident_base(tiny_parameters(), tiny_corpus).source


def test_a_worker_nobody_listens_to_ends(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    found = worker.Worker(Layout(tmp_path), writing)
    found.report("note", text="heard")
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        found.report("note", text="nobody hears this")


def test_a_base_of_a_hub_is_fetched_and_loaded_from_its_copy(
    resident: worker.Worker, online: Any, tiny_parameters: Any, tiny_corpus: Path, model_hub: Any
) -> None:
    there = {name: getattr(online(), name) for name in ("model_name_or_path", "hf_endpoint")}
    found = resident.resident_base(tiny_parameters(**there), tiny_corpus)
    assert found.source == str(resident.layout.models / "acme--Tiny-3" / model_hub.branches["main"])


def test_a_token_in_a_report_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    found = worker.Worker(Layout(tmp_path), writing)
    credentials.put(found.layout, "hf_token", "hf_canary0123456789")
    found.report("note", text="GET with hf_canary0123456789 failed")
    assert json.loads(os.read(reading, 4096)) == {"event": "note", "text": "GET with *** failed"}
    os.close(reading)
    found.report_stream.close()


class Reached(Exception):
    """The worker went on to the training."""


@pytest.mark.parametrize(("late_edit", "expected"), [(b"\n", InputError), (b"", Reached)])
def test_data_that_changed_after_the_plan_had_looked_is_refused(
    tmp_path: Path, tiny_parameters: Any, monkeypatch: pytest.MonkeyPatch, late_edit: bytes, expected: type[Exception]
) -> None:
    data = write_data(tmp_path / "data")
    file = data / TABLE.stage("sample").data
    job = {
        "stage": "sample", "mode": "train", "parameters": table(tiny_parameters(), dict.fromkeys(FIELDS, "test")),
        "data_root": str(data), "folder": str(tmp_path), "corpus": str(tmp_path),
        "fingerprint": {"parts": {"data": digest.of_file(file)}},
    }  # fmt: skip
    file.write_bytes(file.read_bytes() + late_edit)

    def train(*_: Any) -> None:
        raise Reached

    monkeypatch.setattr(worker.Worker, "resident_base", lambda *_: None)
    monkeypatch.setattr(worker.Worker, "_train", train)
    with pytest.raises(expected):
        worker.Worker(Layout(tmp_path), os.dup(2)).carry_out(job)


@pytest.fixture
def make_job(tmp_path: Path, tiny_data: Path, tiny_parameters: Any) -> Callable[..., dict[str, Any]]:
    """Makes a job as the supervisor sends it, in a fresh folder each time."""

    def make(name: str, **changes: Any) -> dict[str, Any]:
        parameters = tiny_parameters(max_steps=9, max_new_tokens=4, **changes)
        stage, folder = TABLE.stage("sample"), tmp_path / name
        folder.mkdir()
        training = fingerprint.training_parts(stage, parameters, tiny_data, "base", "")
        parts = {**training, **fingerprint.evaluation_parts(stage, TABLE, parameters, tiny_data)}
        return {
            "stage": "sample", "mode": "train", "plan_id": "p", "attempt": 1, "gate": "strict",
            "parameters": table(parameters, dict.fromkeys(FIELDS, "test")), "base_hash": "base", "source_id": "s",
            "fingerprint": {"training": digest.of_value(training), "evaluation": "e", "parts": parts},
            "data_root": str(tiny_data), "corpus": str(tmp_path), "folder": str(folder), "log": "log",
            "checkpoints": str(tmp_path / "checkpoints" / "sample"),
        }  # fmt: skip

    return make


def test_a_stage_lost_in_evaluation_goes_to_evaluation_again(
    tmp_path: Path, make_job: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    server, reports = Server(), tmp_path / "reports"
    plain = {name: value for name, value in make_job("plain").items() if name != "checkpoints"}
    assert server.call(carry_out_job, tmp_path, plain, reports, False) == 0
    assert read_reports(reports, "checkpoint", "resumed") == []
    assert server.call(carry_out_job, tmp_path, make_job("one", save_steps=3), reports, True) == -signal.SIGKILL
    steps = [report["step"] for report in read_reports(reports, "checkpoint")]
    assert steps == [3, 6, 9]
    again = make_job("two", save_steps=3)
    assert server.call(carry_out_job, tmp_path, again, reports, False) == 0
    (resumed,) = read_reports(reports, "resumed")
    assert (resumed["step"], resumed["checkpoint"], resumed["skipped"]) == (9, "step-9", [])
    whole, found = (json.loads((tmp_path / name / "eval_report_sample.json").read_text()) for name in ("plain", "two"))
    assert found["fingerprint"]["adapter"] == whole["fingerprint"]["adapter"]
    assert found["training"]["resumed_from_steps"] == [9] and whole["training"]["resumed_from_steps"] == []
    assert (found["times"]["train_seconds"], found["training"]["checkpoints_written"]) == (0, 3)
    assert found["times"]["checkpoint_seconds"] > 0 == whole["times"]["checkpoint_seconds"]
    assert "| resumed from | step 9 |" in (tmp_path / "two" / "eval_report_sample.md").read_text(encoding="utf-8")
    assert "spent" not in found["training"]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"learning_rate": 0.5}, ["learning_rate was 0.01, is 0.5"]), ({"save_steps": 7, "max_new_tokens": 9}, [])],
)
def test_only_what_shapes_the_training_binds_its_checkpoints(
    make_job: Callable[..., dict[str, Any]], resident: worker.Worker, tiny_parameters: Any, tiny_corpus: Path,
    change: dict[str, Any], words: list[str],
) -> None:  # fmt: skip
    base = resident.resident_base(tiny_parameters(), tiny_corpus)
    before, after = tiny_parameters(), tiny_parameters(**change)
    job = make_job("one")
    one, other = (worker.store(job, parameters, base) for parameters in (before, after))
    assert one is not None and other is not None
    assert checkpoint.differences(one.inputs, other.inputs) == words
    assert one.inputs["device"] == base.model.device.type and one.inputs["dtype"] == "float32"
    assert all(one.inputs["libraries"][name] for name in ("torch", "transformers", "trl", "peft", "accelerate"))
    assert worker.store({**job, "checkpoints": ""}, before, base) is None
