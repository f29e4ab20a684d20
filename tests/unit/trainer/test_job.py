"""The path of one stage through the worker."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import write_data
from tests.unit.trainer.interrupted import Server, carry_out_job, read_reports
from trainer import checkpoint, digest, fingerprint, job, stages
from trainer.choices import Choices
from trainer.config import FIELDS, table
from trainer.errors import InputError
from trainer.resident import Resident
from trainer.state import Layout

TABLE = stages.load()


def ignore(*_: Any, **__: Any) -> None:
    """A report that nobody hears."""


def test_seconds_within_another_part_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 10.0, 20.0, 21.0])
    monkeypatch.setattr(job.time, "monotonic", lambda: next(clock))
    times = job.Times()
    with times.of("outer"), times.of("inner"):
        pass
    assert times.seconds == {"inner_seconds": 3.0, "outer_seconds": 7.0}
    with times.of("outer"):
        pass
    times.move("outer", {"train_seconds": 5.5})
    assert times.seconds == {"inner_seconds": 3.0, "outer_seconds": 2.5, "train_seconds": 5.5}


class Reached(Exception):
    """The worker went on to the training."""


@pytest.mark.parametrize(("late_edit", "expected"), [(b"\n", InputError), (b"", Reached)])
def test_data_that_changed_after_the_plan_had_looked_is_refused(
    tmp_path: Path, tiny_parameters: Any, monkeypatch: pytest.MonkeyPatch, late_edit: bytes, expected: type[Exception]
) -> None:
    data = write_data(tmp_path / "data")
    file = data / TABLE.stage("sample").data
    asked = {
        "stage": "sample", "mode": "train", "parameters": table(tiny_parameters(), dict.fromkeys(FIELDS, "test")),
        "data_root": str(data), "folder": str(tmp_path), "corpus": str(tmp_path),
        "fingerprint": {"parts": {"data": digest.of_file(file)}},
    }  # fmt: skip
    file.write_bytes(file.read_bytes() + late_edit)

    def train(*_: Any) -> None:
        raise Reached

    monkeypatch.setattr(Resident, "get", lambda *_: SimpleNamespace(choices=Choices()))
    monkeypatch.setattr(job.StageJob, "_train", train)
    with pytest.raises(expected):
        job.StageJob(asked, Layout(tmp_path), Resident(Layout(tmp_path), ignore), ignore).carry_out()


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
    chosen = {choice["name"]: choice["value"] for choice in found["choices"]}
    assert (chosen["dtype"], chosen["quantise"], chosen["attention"]) == ("float32", False, "sdpa")
    assert "| resumed from | step 9 |" in (tmp_path / "two" / "eval_report_sample.md").read_text(encoding="utf-8")
    assert "spent" not in found["training"]
    for report in (whole, found):
        assert report["estimate"]["steps"] == 9 and report["estimate"]["counted"] == "counted"
        assert report["estimate"]["memory_bytes"] > 0 and report["measured"]["peak_process_bytes"] > 0
        assert report["wall_seconds"] > 0.9 * sum(report["times"].values())
    assert "| memory of the process |" in (tmp_path / "plain" / "eval_report_sample.md").read_text(encoding="utf-8")


def test_the_base_answers_for_later_stages_in_the_places_that_are_left(
    tmp_path: Path, make_job: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    server, reports = Server(), tmp_path / "reports"
    plain = make_job("plain")
    later = [{"stage": name, "parameters": plain["parameters"]} for name in ("style", "writing")]

    def known() -> int:
        (cache,) = Layout(tmp_path).cache.glob("base_answers_*.json")
        count = len(json.loads(cache.read_text(encoding="utf-8"))["answers"])
        cache.unlink()
        return count

    assert server.call(carry_out_job, tmp_path, plain, reports, False) == 0
    alone = known()
    assert server.call(carry_out_job, tmp_path, {**make_job("more"), "coming": later}, reports, False) == 0
    assert known() > alone
    few = {**make_job("few", per_device_eval_batch_size=alone), "coming": later}
    assert server.call(carry_out_job, tmp_path, few, reports, False) == 0
    assert known() == alone
    found = [json.loads((tmp_path / name / "eval_report_sample.json").read_text()) for name in ("plain", "more", "few")]
    assert (
        found[0]["evaluations"][0]["base"] == found[1]["evaluations"][0]["base"] == found[2]["evaluations"][0]["base"]
    )


def test_rows_that_are_mapped_train_what_rows_that_are_held_train(
    tmp_path: Path, make_job: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    server, reports = Server(), tmp_path / "reports"
    held = {name: value for name, value in make_job("held").items() if name != "checkpoints"}
    assert server.call(carry_out_job, tmp_path, held, reports, False) == 0
    assert server.call(carry_out_job, tmp_path, make_job("lost", save_steps=3), reports, True, True) == -signal.SIGKILL
    assert server.call(carry_out_job, tmp_path, make_job("mapped", save_steps=3), reports, False, True) == 0
    assert [report["step"] for report in read_reports(reports, "resumed")] == [9]
    whole, found = (
        json.loads((tmp_path / name / "eval_report_sample.json").read_text()) for name in ("held", "mapped")
    )
    assert found["fingerprint"]["adapter"] == whole["fingerprint"]["adapter"]
    for name in ("rows", "examples", "trained_tokens", "first_loss", "last_loss"):
        assert found["training"][name] == whole["training"][name]
    assert [item["result"] for item in found["evaluations"]] == [item["result"] for item in whole["evaluations"]]
    assert list(Layout(tmp_path).cache.glob("examples-sample-*/examples.arrow"))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"learning_rate": 0.5}, ["learning_rate was 0.01, is 0.5"]), ({"save_steps": 7, "max_new_tokens": 9}, [])],
)
def test_only_what_shapes_the_training_binds_its_checkpoints(
    make_job: Callable[..., dict[str, Any]], tmp_path: Path, tiny_parameters: Any, tiny_corpus: Path,
    change: dict[str, Any], words: list[str],
) -> None:  # fmt: skip
    base = Resident(Layout(tmp_path), ignore).get(tiny_parameters(), tiny_corpus)
    before, after = tiny_parameters(), tiny_parameters(**change)
    asked = make_job("one")
    one, other = (job.store(asked, parameters, base) for parameters in (before, after))
    assert one is not None and other is not None
    assert checkpoint.differences(one.inputs, other.inputs) == words
    assert one.inputs["device"] == base.model.device.type and one.inputs["dtype"] == "float32"
    assert all(one.inputs["libraries"][name] for name in ("torch", "transformers", "trl", "peft", "accelerate"))
    assert job.store({**asked, "checkpoints": ""}, before, base) is None


def test_auto_binds_checkpoints_to_what_was_chosen(
    make_job: Callable[..., dict[str, Any]], tmp_path: Path, tiny_parameters: Any, tiny_corpus: Path
) -> None:
    base = Resident(Layout(tmp_path), ignore).get(tiny_parameters(use_qlora="auto"), tiny_corpus)
    asked, auto = make_job("one"), tiny_parameters(use_qlora="auto")
    whole = job.store(asked, auto, base)
    named = job.store(asked, tiny_parameters(use_qlora=False), base)
    base.quantised = True
    quantised = job.store(asked, auto, base)
    assert whole is not None and named is not None and quantised is not None
    assert checkpoint.differences(whole.inputs, named.inputs) == []
    assert checkpoint.differences(whole.inputs, quantised.inputs) == ["use_qlora was False, is True"]


def test_the_log_tells_each_choice_once(
    make_job: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = job.StageJob(make_job("one"), Layout(tmp_path), Resident(Layout(tmp_path), ignore), ignore)
    base, training = Choices(), Choices()
    base.add("dtype", "float32", "asked for")
    training.add("compile", False, "compile_above_steps is 0")
    for choices in (base, training, base):
        found.take(choices)
    assert capsys.readouterr().out == "dtype: float32 (asked for)\ncompile: false (compile_above_steps is 0)\n"
    training.add("compile", True, "another reason")
    found.take(training)
    assert capsys.readouterr().out == "compile: true (another reason)\n"
    assert found.choices.table()[1]["reason"] == "another reason" and len(found.choices) == 2


def test_how_a_stage_was_answered_stands_in_its_report(
    tmp_path: Path, make_job: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from trainer.decoder import Decoder

    batches: list[int] = []
    real = Decoder.answer

    def answer(self: Any, prompts: Any, caps: Any, slots: int, done: Any) -> None:
        batches.append(slots)
        if len(batches) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, prompts, caps, slots, done)

    layout = Layout(tmp_path)
    resident, told = Resident(layout, ignore), list[str]()

    def carry_out(name: str, **changes: Any) -> dict[str, Any]:
        asked = {key: value for key, value in make_job(name, **changes).items() if key != "checkpoints"}
        job.StageJob(asked, layout, resident, lambda event, **fields: told.append(event)).carry_out()
        found: dict[str, Any] = json.loads((tmp_path / name / "eval_report_sample.json").read_text(encoding="utf-8"))
        return found

    monkeypatch.setattr(Decoder, "answer", answer)
    short = carry_out("short", per_device_eval_batch_size=2)
    assert [(item["batch"], item["next_batch"]) for item in short["out_of_memory"]] == [(2, 1)]
    assert told.count("out_of_memory") == 1 and batches == [2, 1, 2]  # the base alone is asked with the first batch
    merged = next(item for item in short["choices"] if item["name"] == "merge")
    assert merged["value"] is True and merged["reason"]
    assert short["measured"]["generated_tokens_per_second"] > 0
    assert {"generate_seconds", "score_seconds", "base_seconds"} <= set(short["times"])
    (evaluation,) = short["evaluations"]
    assert sum(evaluation["cut"].values()) == 2  # four tokens end no answer

    before = {name: weight.clone() for name, weight in resident.base.model.named_parameters()}  # type: ignore[union-attr]
    plain = carry_out("plain", merge_adapter="off")
    assert plain["out_of_memory"] == []
    assert {"name": "merge", "value": False, "reason": "as merge_adapter asks"} in plain["choices"]
    predictions = [(tmp_path / name / "predictions_sample.jsonl").read_text("utf-8") for name in ("short", "plain")]
    assert predictions[0] == predictions[1]
    assert len(batches) == 4  # the base's answers were there
    after = dict(resident.base.model.named_parameters())  # type: ignore[union-attr]
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
