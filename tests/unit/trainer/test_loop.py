"""Steps in passes: what memory that runs out changes, and what it never does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.interrupted import ROWS
from trainer import encoding, loop, model, prefixes, train
from trainer.choices import Choices
from trainer.crew import Crew
from trainer.errors import TrainingFailed
from trainer.ladder import Rung
from trainer.packing import PADDED, PADDING_FREE
from trainer.resume import ResumableTrainer


@pytest.fixture(scope="module")
def base(tiny_base: Path, tiny_parameters: Any) -> model.Base:
    return model.load_base(str(tiny_base), tiny_parameters())


@pytest.fixture(scope="module")
def examples(base: model.Base) -> list[encoding.Example]:
    """Seven rows, so that the second step of an epoch is short."""
    found, _ = encoding.encode(list(enumerate(ROWS, 1)), base.tokenizer, "x", enable_thinking=False, max_length=256)
    return found


class Outcome:
    """A training: its record, what it reported, the passes of every step that counted, and the weights."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self.reports: list[dict[str, Any]] = []
        self.passes: list[list[list[str]]] = []
        self.weights: list[torch.Tensor] = []
        self.forwards = 0  # of the second decoder layer, those of recomputed activations included

    def of(self, event: str) -> list[dict[str, Any]]:
        return [report for report in self.reports if report["event"] == event]

    @property
    def log(self) -> list[tuple[int, float]]:
        return [(report["step"], report["learning_rate"]) for report in self.of("progress")]

    @property
    def losses(self) -> list[float]:
        return [report["loss"] for report in self.of("progress")]

    @property
    def rows(self) -> list[list[str]]:
        """Which rows each step had."""
        return [sorted(name for names in step for name in names) for step in self.passes]


Run = Callable[..., Outcome]


@pytest.fixture
def run(
    base: model.Base, examples: list[encoding.Example], tiny_parameters: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:  # fmt: skip
    """Trains with a memory that holds `room` tokens in a pass, `room_recomputed` with gradient checkpointing."""

    def carry_out(
        room: int = 10**9, room_recomputed: int = 10**9, choices: Choices | None = None, error: Any = None,
        crew: Crew | None = None, **changes: Any,
    ) -> Outcome:  # fmt: skip
        outcome = Outcome()

        class Watched(ResumableTrainer):
            """Runs out of memory where a pass is too large, as a device of that size would."""

            def training_step(self, *args: Any, **more: Any) -> Any:
                outcome.passes.append([])
                return super().training_step(*args, **more)

            def _try(self, *args: Any, **more: Any) -> Any:
                outcome.passes[-1].clear()
                return super()._try(*args, **more)

            def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
                outcome.passes[-1].append([item.row_id for item in inputs.items])
                return super().compute_loss(model, inputs, *args, **more)

        layers = base.model.base_model.layers

        def allocate(module: Any, given: Any, kept: Any) -> None:
            """In the middle of the model, so that half of a graph is there when memory runs out."""
            outcome.forwards += module.training
            recomputes = bool(layers[0].gradient_checkpointing)
            tokens = kept.numel() // kept.shape[-1]
            if module.training and tokens > (room_recomputed if recomputes else room):
                raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        monkeypatch.setattr(train, "ResumableTrainer", Watched)
        hook = layers[1].input_layernorm.register_forward_hook(allocate)
        values = {"max_steps": 6, "per_device_train_batch_size": 4, **changes}
        parameters = tiny_parameters(**values)
        adapted = model.attach_adapter(base, parameters)

        def report(event: str, **fields: Any) -> None:
            outcome.reports.append({"event": event, **fields})

        try:
            more = {"crew": crew} if crew else {}
            outcome.record = train.train(
                adapted, base, examples, parameters, tmp_path, report, choices=choices, **more
            )  # fmt: skip
            outcome.weights = [w.detach().clone() for w in adapted.parameters() if w.requires_grad]
        finally:
            hook.remove()
            model.detach_adapter(adapted, base)
        return outcome

    yield carry_out
    assert base.model.config._attn_implementation == "sdpa", "the resident base is as it was"
    assert "forward" not in vars(base.model) and not base.model.base_model.layers[0].gradient_checkpointing


def test_a_step_is_one_pass_where_memory_allows(run: Run, examples: list[encoding.Example]) -> None:
    found = run()
    assert [len(step) for step in found.passes] == [1] * 6
    assert [len(step) for step in found.rows] == [4, 3] * 3, "the last step of an epoch is short"
    for first, second in zip(found.rows[::2], found.rows[1::2], strict=True):
        assert sorted(first + second) == sorted(example.row_id for example in examples)
    assert len({str(rows) for rows in found.rows[::2]}) > 1, "every epoch is shuffled anew"
    assert found.record["out_of_memory"] == [] and not found.of("out_of_memory")


def test_memory_that_runs_out_changes_no_sample_no_step_and_no_rate(run: Run) -> None:
    plain, poor = run(), run(room=90)
    assert poor.rows == plain.rows and poor.log == plain.log and poor.record["steps"] == 6
    assert poor.losses == pytest.approx(plain.losses, abs=2e-4)  # reported with four digits
    for a, b in zip(poor.weights, plain.weights, strict=True):
        assert torch.allclose(a, b, atol=2e-3), "AdamW takes rounding for direction where a gradient is near zero"
    falls = poor.record["out_of_memory"]
    assert falls and not any(fall["to"]["gradient_checkpointing"] for fall in falls)
    assert [len(step) > 1 for step in poor.passes] == [True] * 6


def test_every_rung_is_reported_and_noted_and_recorded(run: Run) -> None:
    found = run(room=90)
    falls = found.record["out_of_memory"]
    for fall, event in zip(falls, found.of("out_of_memory"), strict=True):
        assert (event["step"], event["before"], event["after"]) == (fall["step"], fall["from"], fall["to"])
        assert fall["pass"]["rows"] > 1 and fall["pass"]["tokens"] > 90
        assert fall["to"]["tokens_per_pass"] == fall["pass"]["tokens"] // 2
    notes = [report["text"] for report in found.of("note")]
    assert len(notes) == len(falls) and all(note.startswith("out of memory at step ") for note in notes)
    assert found.record["tokens_per_pass"] == falls[-1]["to"]["tokens_per_pass"]
    json.dumps(found.record, allow_nan=False)


def test_what_just_fits_takes_no_rung(run: Run, examples: list[encoding.Example]) -> None:
    by_name = {example.row_id: len(example.input_ids) for example in examples}
    largest = max(sum(by_name[name] for name in step) for step in run().rows)
    assert run(room=largest).record["out_of_memory"] == []
    assert run(room=largest - 1).record["out_of_memory"] != []


def test_a_row_that_fits_with_checkpointing_only(run: Run, examples: list[encoding.Example]) -> None:
    longest = max(len(example.input_ids) for example in examples)
    plain, poor = run(), run(room=longest - 1)
    assert poor.record["gradient_checkpointing"] is True
    assert [fall["to"]["gradient_checkpointing"] for fall in poor.record["out_of_memory"]][-1] is True
    assert poor.rows == plain.rows and poor.log == plain.log
    assert poor.losses == pytest.approx(plain.losses, abs=2e-4)
    assert "gradient checkpointing is on from here" in poor.of("note")[-1]["text"]


def test_a_row_that_fits_nowhere_is_named(run: Run, examples: list[encoding.Example]) -> None:
    longest = max(examples, key=lambda example: len(example.input_ids))
    room = len(longest.input_ids) - 1
    with pytest.raises(TrainingFailed) as caught:
        run(room=room, room_recomputed=room)
    text = str(caught.value)
    assert text.startswith(f"row '{longest.row_id}' with its {room + 1} tokens does not fit alone into the ")
    assert "\n" not in text and "shorten it" in text


@pytest.mark.parametrize(
    ("error", "steps"),
    [(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None), (MemoryError(), 6),
     (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 6)],
)  # fmt: skip
def test_only_memory_is_tried_again(run: Run, error: Exception, steps: int | None) -> None:
    if steps is None:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            run(room=90, error=error)
    else:
        assert run(room=90, error=error).record["steps"] == steps


def chosen(
    layout: str = PADDING_FREE, tokens: int = 10_000, checkpointing: bool = False, *, shared: bool = False,
    kernel: str = "fused",
) -> Choices:  # fmt: skip
    choices = Choices()
    names = {
        "packing": layout, "shared_prefixes": shared, "tokens_per_pass": tokens,
        "gradient_checkpointing": checkpointing, "compile": False, "adapter_kernel": kernel,
    }  # fmt: skip
    for name, value in names.items():
        choices.add(name, value, "measured")
    return choices


def test_a_step_that_is_tried_again_draws_the_same_numbers(run: Run) -> None:
    # From one row for each pass on, memory can only run out for want of checkpointing, which changes no number.
    plain = run(choices=chosen(tokens=1), lora_dropout=0.5)
    poor = run(choices=chosen(tokens=1), lora_dropout=0.5, room=1)
    assert poor.record["gradient_checkpointing"] and not plain.record["gradient_checkpointing"]
    assert all(torch.equal(a, b) for a, b in zip(poor.weights, plain.weights, strict=True))


@pytest.mark.parametrize("layout", [PADDING_FREE, PADDED])
@pytest.mark.parametrize("tokens", [1, 120, 10_000])
def test_layout_and_size_of_passes_change_rounding_only(run: Run, layout: str, tokens: int) -> None:
    plain, other = run(), run(choices=chosen(layout, tokens))
    assert other.rows == plain.rows and other.log == plain.log
    assert other.losses == pytest.approx(plain.losses, abs=2e-4)
    assert other.record["layout"] == layout and other.record["tokens_per_pass"] == tokens


def test_the_record_counts_tokens_and_padding(run: Run, examples: list[encoding.Example]) -> None:
    by_name = {example.row_id: example for example in examples}
    for layout in (PADDING_FREE, PADDED):
        found = run(choices=chosen(layout))
        seen = [by_name[name] for step in found.rows for name in step]
        padded = sum(len(step) * max(len(by_name[name].input_ids) for name in step) for step in found.rows)
        tokens = sum(len(example.input_ids) for example in seen)
        record = found.record
        assert record["train_tokens"] == tokens
        assert record["train_tokens_trained"] == sum(example.trained_tokens for example in seen)
        assert record["padding_share"] == (
            0 if layout == PADDING_FREE else pytest.approx(1 - tokens / padded, abs=1e-4)
        )
        assert (record["passes"], record["passes_per_step"], record["prefix_share"]) == (6, 1.0, 0)
        assert record["train_tokens_per_second"] > 0


def test_shared_beginnings_and_the_adapters_kernels_change_rounding_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "LEAST", 4)  # these rows are short
    plain = run(choices=chosen(kernel="peft"))
    for choices in (chosen(shared=True, kernel="peft"), chosen(kernel="fused"), chosen(shared=True)):
        found = run(choices=choices)
        assert found.losses == pytest.approx(plain.losses, abs=2e-4)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found.weights, plain.weights, strict=True))
        assert (found.record["prefix_share"] > 0) == choices.value("shared_prefixes")
        assert found.record["train_tokens"] == plain.record["train_tokens"]
        assert found.record["pass_tokens"] == pytest.approx(
            plain.record["pass_tokens"] * (1 - found.record["prefix_share"]), rel=1e-3
        )


def test_checkpointing_by_choice_gives_the_same_weights(run: Run) -> None:
    plain, other = run(), run(gradient_checkpointing=True)
    assert other.record["gradient_checkpointing"] and not plain.record["gradient_checkpointing"]
    assert (plain.forwards, other.forwards) == (plain.record["passes"], 2 * other.record["passes"])
    assert other.losses == plain.losses
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(other.weights, plain.weights, strict=True))


def test_what_was_chosen_is_carried_out(run: Run) -> None:
    asked = {"packing": PADDING_FREE, "tokens_per_pass": 500, "gradient_checkpointing": False}
    found = run(choices=chosen(PADDED, 70, True), **asked)
    assert (found.record["layout"], found.record["tokens_per_pass"]) == (PADDED, 70)
    assert found.record["gradient_checkpointing"] is True


def test_choices_are_made_from_parameters_base_and_examples(
    base: model.Base, examples: list[encoding.Example], tiny_parameters: Any
) -> None:
    found = train.choose(tiny_parameters(compile_above_steps=60, gradient_checkpointing="auto"), base, examples)
    assert [choice.name for choice in found.values()] == [
        "packing", "shared_prefixes", "gradient_checkpointing", "tokens_per_pass", "compile", "adapter_kernel"
    ]  # fmt: skip
    assert (found.value("packing"), found.value("gradient_checkpointing")) == (PADDING_FREE, False)
    assert (found.value("compile"), found.value("adapter_kernel")) == (True, "peft")
    assert all(choice.reason for choice in found.values())


def test_a_layout_that_the_model_does_not_take_is_told(
    run: Run, base: model.Base, examples: list[encoding.Example], tiny_parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.packing, "refusal", lambda _: "its rows see each other")
    found = train.choose(tiny_parameters(packing=PADDING_FREE), base, examples)
    assert (found["packing"].value, found["packing"].reason) == (PADDED, "its rows see each other")
    assert run().record["layout"] == PADDED


@pytest.mark.parametrize(("above", "compiled"), [(0, 0), (7, 0), (6, 2), (1, 2)])
def test_layers_are_compiled_from_a_number_of_steps_on(
    run: Run, base: model.Base, monkeypatch: pytest.MonkeyPatch, above: int, compiled: int
) -> None:
    plain = run()
    seen: list[dict[str, Any]] = []
    original = torch.nn.Module.compile

    def traced(self: Any, **options: Any) -> None:
        """Without the compiler's own kernels, which take a minute: what it traces and calls is the same."""
        seen.append(options)
        original(self, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    found = run(compile_above_steps=above)
    assert seen == [{"dynamic": True}] * compiled
    assert found.losses == pytest.approx(plain.losses, abs=2e-4)
    assert all(layer._compiled_call_impl is None for layer in base.model.base_model.layers)


@pytest.mark.parametrize("fused", ["auto", "off"])
@pytest.mark.parametrize("changes", [{"compute_dtype": "bfloat16"}, {"use_qlora": True}])
def test_an_adapter_is_trained_in_32_bits_on_a_base_of_fewer(
    examples: list[encoding.Example], tiny_base: Path, tiny_parameters: Any, tmp_path: Path, changes: dict[str, Any],
    fused: str,
) -> None:  # fmt: skip
    parameters = tiny_parameters(max_steps=6, per_device_train_batch_size=4, fused_kernels=fused, **changes)
    base = model.load_base(str(tiny_base), parameters)
    adapted = model.attach_adapter(base, parameters)
    inner: list[torch.dtype] = []
    name = "q_proj" if parameters.fused_kernels == "auto" else "q_proj.lora_A.default"
    layer = next(m for found, m in adapted.named_modules() if found.endswith(name))
    layer.register_forward_hook(lambda module, given, out: inner.append(given[0].dtype) if module.training else None)
    record = train.train(adapted, base, examples, parameters, tmp_path, lambda *_, **__: None)
    assert record["layout"] == PADDING_FREE and record["last_loss"] < record["first_loss"]
    assert {w.dtype for w in adapted.parameters() if w.requires_grad} == {torch.float32}
    assert set(inner) == {base.dtype}, "activations are not widened for the adapter"


class Half(Crew):
    """One of two processes whose peer has no row and no wish of its own."""

    size = 2

    def share(self, items: Any) -> Any:
        return list(items) if self.rank == 0 else []


def test_a_process_without_rows_adds_nothing_and_does_not_fail(run: Run) -> None:
    plain, half = run(choices=chosen()), run(choices=chosen(), crew=Half())
    assert half.losses == plain.losses
    assert all(torch.equal(a, b) for a, b in zip(half.weights, plain.weights, strict=True))

    class Idle(Half):
        rank = 1

    with pytest.raises(TrainingFailed, match="no weight of the adapter moved"):
        run(crew=Idle())


def test_a_checkpoint_holds_the_manner_of_the_steps() -> None:
    running = loop.Running(PADDED, Rung(512, True), [{"step": 3}], loop.Counts(1, 2, 3, 4), {"packing": "auto"})
    assert loop.Running.of(json.loads(json.dumps(running.record()))) == running
    fresh = loop.Running(PADDING_FREE, Rung(4096, False), asked={"packing": "auto"})
    assert fresh.resumed(running) == running
    asked = loop.Running(PADDING_FREE, Rung(4096, False), asked={"packing": "padding_free"})
    resumed = asked.resumed(running)
    assert (resumed.layout, resumed.rung) == (PADDING_FREE, Rung(4096, False))
    assert resumed.out_of_memory == [{"step": 3}] and resumed.counts == running.counts
