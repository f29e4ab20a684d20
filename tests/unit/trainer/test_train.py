"""Training: what is learned, what is reported, and every way in which a run must not pass as one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import encoding, model, train
from trainer.errors import InputError, TrainingFailed
from trainer.generate import answer
from trainer.resume import ResumableTrainer

Fit = Callable[..., tuple[Any, dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def base(tiny_base: Path, tiny_parameters: Any) -> model.Base:
    return model.load_base(str(tiny_base), tiny_parameters())


@pytest.fixture
def fit(base: model.Base, tiny_rows: Any, tiny_parameters: Any, tmp_path: Path) -> Any:
    """Trains on the resident base; gives (adapted model, result, reports). The adapter is taken off afterwards."""
    attached: list[Any] = []

    def run(rows: Any = tiny_rows, **changes: Any) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
        while attached:
            model.detach_adapter(attached.pop(), base)
        parameters = tiny_parameters(**{"max_steps": 2, **changes})
        thinking = parameters.enable_thinking
        numbered = list(enumerate(rows, 1))
        examples, _ = encoding.encode(numbered, base.tokenizer, "rows", enable_thinking=thinking, max_length=256)
        attached.append(model.attach_adapter(base, parameters))
        reports: list[dict[str, Any]] = []
        result = train.train(
            attached[-1], base, examples, parameters, tmp_path, lambda event, **fields: reports.append(fields)
        )
        return attached[-1], result, reports

    yield run
    for adapted in attached:
        model.detach_adapter(adapted, base)


def test_an_adapter_learns_its_rows_word_for_word(
    base: model.Base, fit: Fit, tiny_rows: Any, tiny_parameters: Any
) -> None:
    wanted = [row["messages"][-1]["content"] for row in tiny_rows]
    adapted, result, _ = fit(max_steps=50)

    def answers() -> list[str]:
        found = answer(adapted, base.tokenizer, tiny_rows, tiny_parameters(), lambda done, rows: None)
        return [item["response"] for item in found.predictions]

    assert answers() == wanted
    with adapted.disable_adapter():
        assert not set(answers()) & set(wanted)
    assert result["last_loss"] < result["first_loss"]


def test_the_result_tells_what_was_trained(fit: Fit, tiny_rows: Any, tiny_tokenizer: Any) -> None:
    _, result, _ = fit(max_steps=-1, num_train_epochs=2, per_device_train_batch_size=2)
    tokens = [
        len(tiny_tokenizer(row["messages"][-1]["content"], add_special_tokens=False)["input_ids"]) + 1
        for row in tiny_rows
    ]
    assert (result["steps"], result["epochs"], result["examples"]) == (4, 2.0, 3)
    assert result["trained_tokens"] == sum(tokens)
    assert result["seconds"] > 0
    json.dumps(result, allow_nan=False)


def test_progress_is_reported_step_by_step(fit: Fit) -> None:
    _, result, reports = fit(max_steps=3)
    assert [(item["step"], item["steps"]) for item in reports] == [(1, 3), (2, 3), (3, 3)]
    assert reports[0]["loss"] == round(result["first_loss"], 4)
    assert reports[-1]["loss"] == round(result["last_loss"], 4)
    assert reports[-1]["seconds_left"] == 0
    assert all(item["steps_per_second"] > 0 and item["learning_rate"] >= 0 for item in reports)


@pytest.mark.parametrize("layout", ["padding_free", "padded"])
def test_only_the_assistants_tokens_reach_the_loss(
    fit: Fit, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    turns = [
        {"role": "system", "content": "你是助教。"},
        {"role": "user", "content": "导体内部？"},
        {"role": "assistant", "content": "电场为零"},
        {"role": "user", "content": "表面？"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "field", "arguments": {"q": 2}}]},
        {"role": "tool", "content": "9e9"},
        {"role": "assistant", "content": "有电荷"},
    ]
    passes: list[Any] = []

    class Watched(ResumableTrainer):
        """Notes what the loss is computed on."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            passes.append(inputs)
            return super().compute_loss(model, inputs, *args, **more)

    monkeypatch.setattr(train, "ResumableTrainer", Watched)
    fit([{"id": "long", "messages": turns}], per_device_train_batch_size=3, max_steps=1, packing=layout)
    (one,) = passes
    rows = zip(one.labels.tolist(), one.input_ids.tolist(), strict=True)
    if layout == "padding_free":
        ((labels, ids),) = rows
        bounds = [0, *itertools.accumulate(span.own for span in one.spans)]
        rows = [(labels[start:end], ids[start:end]) for start, end in itertools.pairwise(bounds)]  # type: ignore[assignment]
        assert bounds[-1] == len(ids)
    learned = []
    for labels, ids in rows:
        # What a token predicts is the very token after it; nothing is learned behind the end of a row.
        assert all(label in (encoding.IGNORED, after) for label, after in zip(labels, [*ids[1:], None], strict=True))
        learned.append(tiny_tokenizer.decode([label for label in labels if label != encoding.IGNORED]))
    call = '<tool_call>{"name": "field", "arguments": {"q": 2}}</tool_call>'
    assert sorted(learned) == sorted(["电场为零<|im_end|>", call + "<|im_end|>", "有电荷<|im_end|>"])
    assert (one.tokens > sum(one.lengths)) == (layout == "padded")


def test_the_think_block_reaches_no_loss(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[int] = []

    class Watched(ResumableTrainer):
        """Notes which tokens are learned."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            learned.extend(inputs.labels[inputs.labels != encoding.IGNORED].tolist())
            return super().compute_loss(model, inputs, *args, **more)

    monkeypatch.setattr(train, "ResumableTrainer", Watched)
    adapted, _, _ = fit(max_steps=1, enable_thinking=False)
    vocabulary = encoding.load_tokenizer(str(adapted.base_model.model.name_or_path)).get_vocab()
    assert learned
    assert not {vocabulary["<think>"], vocabulary["</think>"]} & set(learned)


def test_a_loss_that_is_not_a_number_ends_the_run_at_its_step(
    base: model.Base, tiny_rows: Any, tiny_parameters: Any, tmp_path: Path
) -> None:
    broken = model.load_base(base.source, tiny_parameters())
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[5, 0] = float("nan")
    examples, _ = encoding.encode(
        list(enumerate(tiny_rows, 1)), base.tokenizer, "rows", enable_thinking=False, max_length=256
    )
    parameters = tiny_parameters(max_steps=3)
    adapted = model.attach_adapter(broken, parameters)
    with pytest.raises(TrainingFailed, match="the loss is nan at step 1; lower the learning rate or check the data"):
        train.train(adapted, broken, examples, parameters, tmp_path, lambda *_, **__: None)


def test_a_loss_that_is_lost_later_names_the_later_step(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(ResumableTrainer):
        """A loss that is no number from the third step on, as a rate that is too high makes it."""

        def compute_loss(self, *args: Any, **more: Any) -> Any:
            found = super().compute_loss(*args, **more)
            return found * float("nan") if self.state.global_step >= 2 else found

    monkeypatch.setattr(train, "ResumableTrainer", Breaking)
    fit(max_steps=2)
    with pytest.raises(TrainingFailed, match="at step 3"):
        fit(max_steps=5)


def test_weights_that_are_not_finite_fail_even_when_no_loss_showed_it(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(ResumableTrainer):
        """Spoils a weight behind the last loss that is reported."""

        def train(self, *args: Any, **more: Any) -> Any:
            outcome = super().train(*args, **more)
            next(w for w in self.model.parameters() if w.requires_grad).data[0, 0] = float("inf")
            return outcome

    fit()
    monkeypatch.setattr(train, "ResumableTrainer", Breaking)
    with pytest.raises(TrainingFailed, match="the weight .*lora_A.* is not finite; lower the learning rate"):
        fit()


def test_a_run_that_moves_no_weight_is_an_error(fit: Fit) -> None:
    with pytest.raises(TrainingFailed, match="no weight of the adapter moved; raise the learning rate or the epochs"):
        fit(max_steps=1, warmup_steps=1)  # the first step of a warm-up has the rate 0
    assert fit(max_steps=1, warmup_steps=0)[1]["steps"] == 1


def test_a_share_of_warm_up_leaves_a_single_step_its_rate(fit: Fit) -> None:
    # As one epoch of the three samples is with the defaults of a GPU host.
    _, _, reports = fit(
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        warmup_steps=0.03,
    )
    assert [item["steps"] for item in reports] == [1]
    assert reports[0]["learning_rate"] > 0
    assert fit(max_steps=2, warmup_steps=0.03)[2][0]["learning_rate"] == 0  # two steps warm up as before


def test_gradients_are_accumulated(fit: Fit) -> None:
    _, result, _ = fit(
        max_steps=-1, num_train_epochs=3, per_device_train_batch_size=1, gradient_accumulation_steps=2, warmup_steps=0
    )
    assert result["steps"] == 6


@pytest.mark.parametrize(("name", "value"), [("seed", 7), ("lora_dropout", 0.5), ("learning_rate", 1e-3)])
def test_a_parameter_shapes_the_adapter(fit: Fit, name: str, value: float) -> None:
    def weights(**changes: Any) -> list[torch.Tensor]:
        adapted, _, _ = fit(warmup_steps=0, **changes)
        return [w.detach().clone() for w in adapted.parameters() if w.requires_grad]

    one, same, other = weights(), weights(), weights(**{name: value})
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_nothing_is_accumulated_or_fused_or_saved_behind_our_back(
    base: model.Base, tiny_parameters: Any, tmp_path: Path
) -> None:
    found = train.settings(tiny_parameters(gradient_accumulation_steps=3), base, tmp_path, 3)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (15, 1), "one batch for each step"
    assert found.use_liger_kernel is False, "the base has its kernels from its loading"
    assert found.save_strategy == "no"
    assert found.report_to == []
    assert not any(tmp_path.iterdir())


def test_a_run_without_a_place_for_checkpoints_writes_none(fit: Fit, tmp_path: Path) -> None:
    _, result, reports = fit(max_steps=3, save_steps=1)
    assert (result["steps"], result["checkpoints_written"], result["resumed_from_steps"]) == (3, 0, [])
    assert len(reports) == 3 and not list(tmp_path.rglob("step-*"))


@pytest.mark.parametrize("masked", [True, False])
def test_a_row_whose_labels_are_all_masked_is_refused(
    base: model.Base, tiny_rows: Any, tiny_parameters: Any, tmp_path: Path, masked: bool
) -> None:
    rows = list(enumerate(tiny_rows, 1))
    examples, _ = encoding.encode(rows, base.tokenizer, "rows", enable_thinking=False, max_length=256)
    if masked:
        last = examples[-1]
        nothing = [encoding.IGNORED] * len(last.labels)
        examples[-1] = encoding.Example(last.row_id, last.turn, last.input_ids, nothing)
    parameters = tiny_parameters(max_steps=2)
    adapted = model.attach_adapter(base, parameters)
    try:
        if masked:
            with pytest.raises(InputError, match="row 'style-3' trains no token .one of 1.; give the assistant"):
                train.train(adapted, base, examples, parameters, tmp_path, lambda *_, **__: None)
        else:
            assert train.train(adapted, base, examples, parameters, tmp_path, lambda *_, **__: None)["steps"] == 2
    finally:
        model.detach_adapter(adapted, base)
