"""Exact resume: a training killed anywhere, any number of times, ends with the bytes and losses of one that was not."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer

from tests.unit.trainer.interrupted import STEPS, Attempt, Server, read_json, read_reports
from trainer import feed, resume
from trainer.checkpoint import Schedule
from trainer.crew import ALONE
from trainer.errors import TrainingFailed

KILLED = -signal.SIGKILL
ENDED = -signal.SIGTERM


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # One thread: the order of additions, and so the last bit of a sum, must not depend on the machine's load.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield Server()


class Case:
    """A training in a folder of its own, to be broken off and gone on with."""

    def __init__(self, server: Server, folder: Path, parameters: dict[str, Any]) -> None:
        self.server = server
        self.folder = folder
        self.parameters = parameters
        self.results, self.checkpoints = folder / "results", folder / "checkpoints"

    def run(self, inputs: dict[str, Any] | None = None, **more: Any) -> int | None:
        parameters = {**self.parameters, **more.pop("parameters", {})}
        attempt = Attempt(self.results, parameters, self.checkpoints, inputs or {"data": "d"}, **more)
        return self.server.run(attempt)

    @property
    def result(self) -> tuple[str, Any]:
        """The adapter's sha256 and its log of losses."""
        weights = (self.results / "adapter_model.safetensors").read_bytes()
        return hashlib.sha256(weights).hexdigest(), read_json(self.results / "losses.json")

    @property
    def record(self) -> dict[str, Any]:
        return dict(read_json(self.results / "record.json"))

    def reports(self, *events: str) -> list[dict[str, Any]]:
        return read_reports(self.results / "reports.jsonl", *events)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.iterdir()) if self.checkpoints.exists() else []


@pytest.fixture(scope="module")
def make_case(server: Server, tiny_parameters: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    def make(**changes: Any) -> Case:
        values = {
            "max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
            "tokens_per_pass": 100, "lora_dropout": 0.2, "weight_decay": 0.01, "save_seconds": 0, "save_steps": 1,
            **changes,
        }  # fmt: skip
        return Case(server, tmp_path_factory.mktemp("case"), dict(vars(tiny_parameters(**values))))

    return make


@pytest.fixture(scope="module")
def whole(make_case: Callable[..., Case]) -> tuple[str, Any]:
    """What the training gives when nothing happens to it, and no checkpoint is written."""
    case = make_case(save_steps=0)
    assert case.run() == 0
    assert case.names() == [] and case.record["checkpoints_written"] == 0
    found = case.result
    assert len(found[1]["losses"]) == found[1]["counted"] == STEPS
    return found


@pytest.mark.parametrize(
    ("save_steps", "kills", "resumed"),
    [(1, [1, 4, 5, 6, 12], [3, 4, 5, 11]), (2, [4, 5, 8, 8], [2, 4, 6, 6]), (3, [3, 6, 11, 12], [3, 9, 9])],
)  # an epoch has two steps: an odd one lies in its middle
def test_a_training_killed_again_and_again_ends_as_if_it_had_not_been(
    make_case: Callable[..., Case], whole: Any, save_steps: int, kills: list[int], resumed: list[int]
) -> None:
    case = make_case(save_steps=save_steps)
    assert [case.run(kill_in_step=step) for step in kills] == [KILLED] * len(kills)
    assert case.run() == 0
    assert case.result == whole
    assert [report["step"] for report in case.reports("resumed")] == resumed
    assert case.record["resumed_from_steps"] == list(dict.fromkeys(resumed)), "those that led to the result"
    assert set(case.names()) == {f"step-{STEPS}", f"step-{STEPS - save_steps}"}


def test_a_loss_that_is_logged_over_several_steps_is_the_same(make_case: Callable[..., Case]) -> None:
    plain, case = (make_case(logging_steps=3, save_steps=steps) for steps in (0, 2))
    assert plain.run() == 0
    assert [case.run(kill_in_step=step) for step in (6, 9)] == [KILLED] * 2  # on from 4 and 8, between two logs
    assert case.run() == 0
    assert case.result == plain.result and len(plain.result[1]["losses"]) == 5  # 1, 3, 6, 9, 12
    assert case.record["resumed_from_steps"] == [4, 8]


def test_other_steps_between_logs_hold_from_the_resume_on(make_case: Callable[..., Case], whole: Any) -> None:
    case = make_case()
    assert case.run(kill_in_step=5) == KILLED
    assert case.run(parameters={"logging_steps": 4}) == 0
    weights, log = case.result
    assert weights == whole[0]
    assert [entry["step"] for entry in log["losses"]] == [1, 2, 3, 4, 8, 12]


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_killed_at_any_moment_of_writing_a_checkpoint(make_case: Callable[..., Case], whole: Any, name: str) -> None:
    case = make_case(save_steps=3)
    moments = range(1, 12) if name == "fsync" else range(1, 4)
    assert [case.run(kill_at_call=(name, moment)) for moment in moments] == [KILLED] * len(moments)
    assert case.run() == 0
    assert case.result == whole
    assert case.names() == ["step-12", "step-9"], "what was left half-written is gone with the first newer one"


@pytest.mark.parametrize("moment", [12, 18])
def test_a_half_written_checkpoint_is_named_and_not_used(
    make_case: Callable[..., Case], whole: Any, moment: int
) -> None:
    # The first checkpoint's ten calls (its folder's parent; six files, the manifest, the folder; after the rename the
    # folder above) lie behind: 11 to 16 are the files of the second, 17 its manifest, 18 its folder before the rename.
    case = make_case()
    assert case.run(kill_at_call=("fsync", moment)) == KILLED
    (half,) = (name for name in case.names() if name != "step-1")
    assert half.startswith(".step-2.")
    assert case.run() == 0 and case.result == whole
    (report,) = case.reports("resumed")
    assert (report["step"], report["checkpoint"]) == (1, "step-1")
    assert report["skipped"] == [{"name": half, "reason": "its writing was interrupted"}]
    assert case.record["checkpoints_skipped"] == report["skipped"]


def test_a_host_that_dies_in_every_writing_does_not_fill_its_disk(make_case: Callable[..., Case]) -> None:
    case = make_case()
    assert [case.run(kill_at_call=("fsync", 4)) for _ in range(3)] == [KILLED] * 3
    assert len(case.names()) == 2


def test_a_damaged_checkpoint_is_passed_over_until_a_newer_one_is_whole(
    make_case: Callable[..., Case], whole: Any
) -> None:
    case = make_case(save_steps=2)
    assert case.run(kill_in_step=7) == KILLED
    assert case.names() == ["step-4", "step-6"]
    weights = case.checkpoints / "step-6" / resume.WEIGHTS
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 1
    weights.write_bytes(bytes(spoilt))
    assert case.run(kill_in_step=5) == KILLED
    assert case.names() == ["step-4", "step-6"], "nothing newer is whole yet"
    assert case.run() == 0 and case.result == whole
    reason = f"{resume.WEIGHTS} has another sha256 than its manifest"
    for report in case.reports("resumed"):
        assert (report["step"], report["skipped"]) == (4, [{"name": "step-6", "reason": reason}])
    assert case.names() == ["step-10", "step-12"]


def test_a_changed_input_begins_anew_and_says_which(make_case: Callable[..., Case], whole: Any) -> None:
    case = make_case(save_steps=4)
    before = {"parameters": {"learning_rate": 0.5}}
    assert case.run(before, kill_in_step=10) == KILLED
    assert case.names() == ["step-4", "step-8"]
    now = {"parameters": {"learning_rate": 0.01}}
    assert case.run(now, kill_in_step=3) == KILLED
    assert case.names() == ["step-4", "step-8"], "kept until there is a newer one"
    assert case.run(now, kill_in_step=6) == KILLED
    assert case.names() == ["step-4"], "of the new inputs"
    assert case.run(now) == 0 and case.result == whole
    reports = case.reports("not resumed", "resumed")
    assert [report["event"] for report in reports] == ["not resumed", "not resumed", "resumed"]
    reason = "it was made otherwise: learning_rate was 0.5, is 0.01"
    assert reports[0]["skipped"] == [{"name": name, "reason": reason} for name in ("step-8", "step-4")]
    assert any("trains from its beginning" in report["text"] for report in case.reports("note"))


def test_a_training_that_was_complete_is_not_carried_out_again(make_case: Callable[..., Case], whole: Any) -> None:
    case = make_case(save_steps=6)
    assert case.run() == 0
    first, count = case.record, len(case.reports("progress"))
    (case.results / "adapter_model.safetensors").unlink()
    assert case.run() == 0 and case.result == whole
    assert len(case.reports("progress")) == count == STEPS, "nothing was trained"
    assert case.reports("note")[-1]["text"].startswith("training was complete in step-12: ")
    again = case.record
    assert again["resumed_from_steps"] == [12] and again["spent"]["train_seconds"] == 0
    same = ("steps", "epochs", "examples", "trained_tokens", "first_loss", "last_loss")
    assert {name: again[name] for name in same} == {name: first[name] for name in same}


def test_the_seconds_of_training_are_those_of_all_attempts(make_case: Callable[..., Case]) -> None:
    case = make_case()
    assert case.run(kill_in_step=10) == KILLED
    assert case.run() == 0
    record = case.record
    earlier = read_json(case.checkpoints / "step-12" / resume.LOOP)
    assert record["seconds"] > record["spent"]["train_seconds"] > 0
    assert record["checkpoint_seconds"] > record["spent"]["checkpoint_seconds"] > 0
    assert record["checkpoints_written"] == earlier["checkpoints_written"] == 12


def test_a_training_that_ran_out_of_memory_goes_on_with_the_same_passes(make_case: Callable[..., Case]) -> None:
    plain, case, unaware = (make_case(save_steps=steps) for steps in (0, 1, 1))
    assert plain.run(full_in_step=3) == 0
    (fall,) = plain.record["out_of_memory"]
    assert fall["step"] == 3 and fall["to"]["tokens_per_pass"] < 100
    assert case.run(full_in_step=3, kill_in_step=6) == KILLED
    assert [case.run(kill_in_step=7), case.run()] == [KILLED, 0], "memory does not run out again"
    assert case.result == plain.result
    assert case.record["out_of_memory"] == [fall] and case.record["passes"] == plain.record["passes"]
    assert unaware.run() == 0 and unaware.record["out_of_memory"] == []
    assert unaware.result != plain.result, "the passes do shape the last bits"


def test_passes_of_another_size_are_taken_when_they_are_asked_for(make_case: Callable[..., Case]) -> None:
    case = make_case(lora_dropout=0.0)
    assert case.run(full_in_step=3, kill_in_step=6) == KILLED
    assert case.run(parameters={"tokens_per_pass": 70}) == 0
    assert case.record["tokens_per_pass"] == 70 and len(case.record["out_of_memory"]) == 1


def test_sigterm_ends_the_step_and_leaves_a_checkpoint(make_case: Callable[..., Case], whole: Any) -> None:
    case = make_case(save_steps=0, save_seconds=1000)
    assert [case.run(terminate_in_step=(step,)) for step in (3, 4, 9)] == [resume.TERMINATED] * 3
    assert [report["step"] for report in case.reports("checkpoint")] == [3, 4, 9]
    assert case.run() == 0
    assert case.result == whole and case.record["resumed_from_steps"] == [3, 4, 9]


def test_a_second_sigterm_ends_at_once(make_case: Callable[..., Case], whole: Any) -> None:
    case = make_case(save_steps=2)
    assert case.run(terminate_in_step=(5, 5)) == ENDED
    assert case.names() == ["step-2", "step-4"]
    assert case.run() == 0 and case.result == whole


def test_sigterm_without_checkpoints_ends_at_once(make_case: Callable[..., Case]) -> None:
    case = make_case(save_steps=0)
    assert case.run(terminate_in_step=(2,)) == ENDED
    assert case.names() == []


def test_sigterm_on_a_full_disk_ends_without_a_checkpoint(make_case: Callable[..., Case], whole: Any) -> None:
    case = make_case(save_steps=0, save_seconds=1000)
    assert case.run(terminate_in_step=(3,), file_limit_bytes=50_000) == resume.TERMINATED
    assert case.names() == [] and case.reports("checkpoint") == []
    assert case.run() == 0 and case.result == whole


@pytest.mark.parametrize("limit", [2_000, 100_000])
def test_a_full_disk_costs_the_checkpoints_and_not_the_training(
    make_case: Callable[..., Case], whole: Any, limit: int
) -> None:
    case = make_case(save_steps=2)
    assert case.run(file_limit_bytes=limit) == 0
    assert case.result == whole
    assert case.names() == [] and case.record["checkpoints_written"] == 0
    (note,) = case.reports("note")
    assert note["text"].startswith("no checkpoint could be written at step 2 (")


def test_a_loss_that_is_no_number_reaches_no_checkpoint(make_case: Callable[..., Case]) -> None:
    case = make_case(logging_steps=12)  # the loss itself would be looked at with the last step
    assert case.run(nan_in_step=5) == TrainingFailed.exit_code
    (report,) = case.reports("failed")
    assert report["message"].startswith("the loss is not finite at step 5; lower the learning rate")
    assert case.names() == ["step-3", "step-4"]


@pytest.fixture
def small() -> torch.nn.Module:
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad = False
    return model


def saved(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    from safetensors.torch import save_file

    save_file(weights, folder / resume.WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("weights", "odd"),
    [({}, "weight"), ({"weight": torch.ones(2, 3), "more": torch.ones(1)}, "more"),
     ({"weight": torch.ones(3, 2)}, "weight"), ({"weight": torch.ones(2, 3, dtype=torch.bfloat16)}, "weight")],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, small: torch.nn.Module, weights: dict[str, torch.Tensor], odd: str
) -> None:
    before = small.weight.clone()
    with pytest.raises(TrainingFailed, match=f"do not fit the adapter: 1 differ, the first is {odd}; remove"):
        resume.load_weights(small, saved(tmp_path, weights))
    assert torch.equal(small.weight, before)


def test_weights_that_fit_are_taken(tmp_path: Path, small: torch.nn.Module) -> None:
    resume.load_weights(small, saved(tmp_path, {"weight": torch.ones(2, 3)}))
    assert torch.equal(small.weight, torch.ones(2, 3)) and small.weight.requires_grad


def test_random_numbers_that_were_not_restored_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = resume.ResumableTrainer.__new__(resume.ResumableTrainer)
    trainer.args = SimpleNamespace(world_size=1, parallel_mode=None)
    trainer.crew = ALONE
    torch.manual_seed(1)
    trainer._save_rng_state(str(tmp_path))
    torch.manual_seed(2)
    trainer._load_rng_state(str(tmp_path))
    assert torch.initial_seed() == 1 or torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(1).get_state())
    torch.manual_seed(2)
    monkeypatch.setattr(Trainer, "_load_rng_state", lambda *_: None)  # as it does when it only logs its failure
    with pytest.raises(TrainingFailed, match="random numbers of .* could not be restored; remove that checkpoint"):
        trainer._load_rng_state(str(tmp_path))


@pytest.mark.parametrize(("tokens", "refused"), [(0, True), (1, False)])
def test_a_step_that_trains_no_token_is_an_error(tokens: int, refused: bool) -> None:
    trainer = resume.ResumableTrainer.__new__(resume.ResumableTrainer)
    trainer.state = SimpleNamespace(global_step=3)
    steps = iter([feed.Step([], tokens)])
    if refused:
        with pytest.raises(TrainingFailed, match="step 4 trains no token; check the labels of its rows"):
            trainer.get_batch_samples(steps, 1, torch.device("cpu"))
    else:
        assert trainer.get_batch_samples(steps, 1, torch.device("cpu")) == ([feed.Step([], tokens)], tokens)


def test_a_keeper_without_a_store_has_nothing_to_go_on_from() -> None:
    keeper = resume.Keeper(None, Schedule(1, 0, 0), lambda *_, **__: None)
    before = signal.getsignal(signal.SIGTERM)
    assert keeper.choose() is None
    with keeper.training():
        assert signal.getsignal(signal.SIGTERM) == before
    account = json.loads(json.dumps(keeper.account()))
    assert account["resumed_from_steps"] == [] and account["checkpoints_written"] == 0
