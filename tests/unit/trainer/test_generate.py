"""Answers: in batches as one by one, ended by the stop token or the cap, with the tool calls they make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import chat
from trainer import encoding, generate, model, train
from trainer.errors import HostUnfit, InputError

STOP = "<|im_end|>"


def silent(done: int, rows: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def base(tiny_base: Path, tiny_parameters: Any) -> model.Base:
    return model.load_base(str(tiny_base), tiny_parameters())


@pytest.fixture(scope="module")
def tutor(
    tiny_base: Path, tiny_parameters: Any, tiny_rows: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A model that has learned its rows: it ends its answers itself."""
    found = model.load_base(str(tiny_base), tiny_parameters())
    numbered = list(enumerate(tiny_rows, 1))
    examples, _ = encoding.encode(numbered, found.tokenizer, "rows", enable_thinking=False, max_length=256)
    adapted = model.attach_adapter(found, tiny_parameters())
    train.train(adapted, found, examples, tiny_parameters(), tmp_path_factory.mktemp("train"), lambda *_, **__: None)
    yield adapted


def asked(number: int, question: str) -> dict[str, Any]:
    return {"id": f"q{number}", "query": question}


QUESTIONS = [asked(n, "点电荷的电场随距离怎样变化？" * size) for n, size in enumerate((3, 1, 6, 2, 4, 1, 5))]


@pytest.mark.parametrize("trained", [False, True])
def test_answers_in_a_batch_are_those_of_single_questions(
    base: model.Base, tutor: Any, tiny_rows: Any, tiny_parameters: Any, trained: bool
) -> None:
    rows = [*QUESTIONS, *tiny_rows]

    def predictions(size: int) -> list[dict[str, Any]]:
        parameters = tiny_parameters(per_device_eval_batch_size=size)
        return generate.answer(tutor if trained else base.model, base.tokenizer, rows, parameters, silent).predictions

    single = predictions(1)
    assert predictions(4) == single
    assert predictions(64) == single
    assert [item["id"] for item in single] == [row["id"] for row in rows]
    if trained:
        assert {"stop"} <= {item["finish_reason"] for item in single}


def test_an_answer_ends_with_its_stop_token(
    tutor: Any, tiny_rows: Any, tiny_tokenizer: Any, tiny_parameters: Any
) -> None:
    found = generate.answer(tutor, tiny_tokenizer, tiny_rows, tiny_parameters(), silent)
    for row, item in zip(tiny_rows, found.predictions, strict=True):
        wanted = row["messages"][-1]["content"]
        assert item["response"] == wanted
        assert item["finish_reason"] == "stop"
        assert item["tokens"] == len(tiny_tokenizer(wanted + STOP, add_special_tokens=False)["input_ids"])
    assert found.tokens == sum(item["tokens"] for item in found.predictions)
    assert found.seconds > 0


def test_an_answer_at_the_cap_is_not_a_finished_one(
    tutor: Any, tiny_rows: Any, tiny_tokenizer: Any, tiny_parameters: Any
) -> None:
    whole = generate.answer(tutor, tiny_tokenizer, tiny_rows, tiny_parameters(), silent).predictions
    longest = max(item["tokens"] for item in whole)

    def at(cap: int) -> list[dict[str, Any]]:
        return generate.answer(
            tutor, tiny_tokenizer, tiny_rows, tiny_parameters(max_new_tokens=cap), silent
        ).predictions

    assert at(longest) == whole
    cut = at(longest - 1)
    expected = ["length" if item["tokens"] == longest else "stop" for item in whole]
    assert [item["finish_reason"] for item in cut] == expected
    assert max(item["tokens"] for item in cut) == longest - 1


def test_progress_is_told_now_and_then_and_at_the_end(
    base: model.Base, tiny_parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = tiny_parameters(per_device_eval_batch_size=3, max_new_tokens=2)

    def told() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        generate.answer(base.model, base.tokenizer, QUESTIONS, parameters, lambda *counts: seen.append(counts))
        return seen

    monkeypatch.setattr(generate, "PROGRESS_SECONDS", 1e9)
    assert told() == [(7, 7)]
    monkeypatch.setattr(generate, "PROGRESS_SECONDS", 0.0)
    assert told() == [(done, 7) for done in range(1, 8)]


def test_no_questions_are_no_work(base: model.Base, tiny_parameters: Any) -> None:
    found = generate.answer(base.model, base.tokenizer, [], tiny_parameters(), silent)
    assert (found.predictions, found.tokens) == ([], 0)


def test_the_model_comes_back_in_the_mode_it_was_in(base: model.Base, tiny_parameters: Any) -> None:
    for mode in (True, False):
        base.model.train(mode)
        generate.answer(base.model, base.tokenizer, QUESTIONS[:1], tiny_parameters(max_new_tokens=1), silent)
        assert base.model.training is mode


def test_a_question_without_room_for_an_answer_is_named_in_one_sentence(base: model.Base, tiny_parameters: Any) -> None:
    limit = base.model.config.max_position_embeddings
    bare = encoding.render_prompt(base.tokenizer, [{"role": "user", "content": ""}], None, enable_thinking=False)
    frame = len(base.tokenizer(bare, add_special_tokens=False)["input_ids"])
    letter = "龘"
    size = len(base.tokenizer(letter, add_special_tokens=False)["input_ids"])
    fits = (limit - 1 - frame) // size
    rows = [asked(1, "电场？"), asked(2, letter * fits)]
    found = generate.answer(base.model, base.tokenizer, rows, tiny_parameters(max_new_tokens=8), silent).predictions
    assert 1 <= found[1]["tokens"] <= limit - frame - fits * size
    assert found[0]["tokens"] <= 8
    rows[1] = asked(2, letter * (fits + 1))
    width = frame + (fits + 1) * size
    with pytest.raises(InputError) as caught:
        generate.answer(base.model, base.tokenizer, rows, tiny_parameters(max_new_tokens=8), silent)
    assert str(caught.value) == (
        f"the question of row 'q2' has {width} tokens, the base model takes {limit} with the answer; shorten the row"
    )


def test_a_long_question_does_not_shorten_the_answers_beside_it(base: model.Base, tiny_parameters: Any) -> None:
    limit = base.model.config.max_position_embeddings
    bare = encoding.render_prompt(base.tokenizer, [{"role": "user", "content": ""}], None, enable_thinking=False)
    frame = len(base.tokenizer(bare, add_special_tokens=False)["input_ids"])
    rows = [asked(1, "电场？"), asked(2, "x" * (limit - frame - 2))]

    def predictions(size: int) -> list[dict[str, Any]]:
        parameters = tiny_parameters(per_device_eval_batch_size=size, max_new_tokens=8)
        return generate.answer(base.model, base.tokenizer, rows, parameters, silent).predictions

    assert predictions(2) == predictions(1)


def test_sampling_settings_of_a_model_do_not_reach_the_answers(
    base: model.Base, tiny_base: Path, tiny_parameters: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "model"))
    settings = {"do_sample": True, "temperature": 9.0, "top_k": 50, "repetition_penalty": 1.5, "max_length": 3}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    parameters = tiny_parameters(max_new_tokens=6)
    other = model.load_base(str(folder), parameters)
    plain, found, again = (
        generate.answer(of, base.tokenizer, QUESTIONS[:2], parameters, silent).predictions
        for of in (base.model, other.model, other.model)
    )
    assert found == again == plain


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>{"name": "f", "arguments": {"q": 2}}</tool_call>', [{"name": "f", "arguments": {"q": 2}}]),
        ('算。\n<tool_call>\n{"name": "f"}\n</tool_call>', [{"name": "f", "arguments": {}}]),
        (
            '<tool_call>{"name": "f", "arguments": {"a": {"b": 1}}}</tool_call><tool_call>{"name": "g"}</tool_call>',
            [{"name": "f", "arguments": {"a": {"b": 1}}}, {"name": "g", "arguments": {}}],
        ),
        ('<tool_call>{"name": "f", "arguments": </tool_call>', []),
        ('<tool_call>{"name": "f"}', []),
        ('<tool_call>{"arguments": {}}</tool_call>', []),
        ('<tool_call>{"name": 3}</tool_call>', []),
        ('<tool_call>["f"]</tool_call>', []),
        ('{"name": "f", "arguments": {}}', []),
        ('<tool_call>{bad}</tool_call><tool_call>{"name": "g"}</tool_call>', [{"name": "g", "arguments": {}}]),
    ],
)
def test_tool_calls_are_read_and_malformed_ones_are_none(tiny_tokenizer: Any, text: str, calls: list[Any]) -> None:
    assert generate.tool_calls(text) == calls
    record = generate.prediction(
        "r", tiny_tokenizer(text + STOP, add_special_tokens=False)["input_ids"], tiny_tokenizer
    )
    assert record.get("tool_calls", []) == calls
    assert ("tool_calls" in record) == bool(calls)
    assert record["response"] == text


def test_what_a_prediction_says_of_its_end(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("电场为零" + STOP, add_special_tokens=False)["input_ids"]
    stopped = {"id": "r", "response": "电场为零", "finish_reason": "stop", "tokens": len(ids)}
    assert generate.prediction("r", ids, tiny_tokenizer) == stopped
    assert generate.prediction("r", ids[:-1], tiny_tokenizer) == {
        **stopped, "finish_reason": "length", "tokens": len(ids) - 1
    }  # fmt: skip
    assert generate.prediction("r", ids[-1:], tiny_tokenizer)["response"] == ""
    assert generate.stop_tokens(tiny_tokenizer) == [ids[-1]]


def test_answering_keeps_no_gradient(base: model.Base, tiny_parameters: Any) -> None:
    generate.answer(base.model, base.tokenizer, QUESTIONS[:1], tiny_parameters(max_new_tokens=1), silent)
    assert all(weight.grad is None for weight in base.model.parameters())
    assert torch.is_grad_enabled()


def capped(base: model.Base, tiny_parameters: Any, row: dict[str, Any], **changes: Any) -> tuple[int, str]:
    """The cap of a row's answer and what sets it."""
    item = generate.ask(base.model, base.tokenizer, row, tiny_parameters(**changes))
    return item.cap, item.limit


def test_a_reference_caps_the_answer(base: model.Base, tiny_parameters: Any) -> None:
    answer = "电场强度等于单位正电荷所受的力，" * 8
    tokens = len(base.tokenizer(answer + STOP, add_special_tokens=False)["input_ids"])
    assert tokens > generate.SHORTEST_CAP
    row = chat("long", "电场？", answer)

    def cap(**changes: Any) -> tuple[int, str]:
        return capped(base, tiny_parameters, row, **{"max_new_tokens": 400, **changes})

    assert cap(max_new_tokens_ratio=1.0) == (tokens, "reference")
    assert cap(max_new_tokens_ratio=1.5) == (int(1.5 * tokens), "reference")
    assert cap(max_new_tokens_ratio=0.1) == (generate.SHORTEST_CAP, "reference")  # never less
    assert cap(max_new_tokens_ratio=0.0) == (400, "max_new_tokens")
    assert cap(max_new_tokens_ratio=1.0, max_new_tokens=tokens) == (tokens, "max_new_tokens")
    assert cap(max_new_tokens_ratio=1.0, max_new_tokens=tokens + 1) == (tokens, "reference")
    assert cap(max_new_tokens_ratio=1.0, enable_thinking=True) == (400, "max_new_tokens")  # thoughts have no reference


@pytest.mark.parametrize(
    ("row", "limit"),
    [
        (chat("r", "电场？", "零"), "reference"),
        ({**chat("r", "电场？", "零"), "expected": {"key_points": ["零"]}}, "reference"),
        ({"id": "r", "query": "电场？", "expected": {"key_points": ["零"]}}, "max_new_tokens"),
        ({"id": "r", "messages": [{"role": "user", "content": "电场？"}]}, "max_new_tokens"),
    ],
)
def test_a_row_without_a_reference_has_only_the_other_caps(
    base: model.Base, tiny_parameters: Any, row: dict[str, Any], limit: str
) -> None:
    assert capped(base, tiny_parameters, row, max_new_tokens=200)[1] == limit


def test_calls_of_tools_are_part_of_the_reference(base: model.Base, tiny_parameters: Any) -> None:
    call = {"function": {"name": "measure", "arguments": {"what": "电场" * 30}}}
    row = chat("r", "电场？", "")
    row["messages"][-1]["tool_calls"] = [call]
    cap, limit = capped(base, tiny_parameters, row, max_new_tokens=400, max_new_tokens_ratio=1.0)
    assert limit == "reference" and cap > generate.SHORTEST_CAP


def test_the_room_of_the_model_is_a_cap_of_its_own(base: model.Base, tiny_parameters: Any) -> None:
    long = asked(1, "点电荷的电场随距离怎样变化？" * 10)
    prompt = generate.ask(base.model, base.tokenizer, long, tiny_parameters()).prompt
    room = base.model.config.max_position_embeddings - len(prompt)
    assert capped(base, tiny_parameters, long, max_new_tokens=room + 1) == (room, "context")
    assert capped(base, tiny_parameters, long, max_new_tokens=room) == (room, "max_new_tokens")


def test_each_row_of_a_batch_is_cut_at_its_own_cap_and_says_at_which(
    base: model.Base, tiny_parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "SHORTEST_CAP", 5)
    rows = [chat("short", "电场？", "零"), asked(2, "点电荷？"), chat("longer", "导体？", "单位正电荷所受的力" * 2)]

    def answers(**changes: Any) -> list[dict[str, Any]]:
        parameters = tiny_parameters(max_new_tokens=40, max_new_tokens_ratio=1.0, **changes)
        return generate.answer(base.model, base.tokenizer, rows, parameters, silent).predictions

    together = answers()
    assert together == answers(per_device_eval_batch_size=1)
    assert [item["finish_reason"] for item in together] == ["length"] * 3  # this base never ends an answer
    assert [item["cut_by"] for item in together] == ["reference", "max_new_tokens", "reference"]
    assert together[0]["tokens"] == 5 < together[2]["tokens"] < together[1]["tokens"] == 40


def test_an_answer_that_ended_itself_was_cut_by_nothing(
    tutor: Any, tiny_rows: Any, tiny_tokenizer: Any, tiny_parameters: Any
) -> None:
    found = generate.answer(tutor, tiny_tokenizer, tiny_rows, tiny_parameters(), silent).predictions
    assert all(item["finish_reason"] == "stop" and "cut_by" not in item for item in found)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_models_with_another_cache_answer_by_transformers_own_loop(
    tutor: Any, tiny_rows: Any, tiny_tokenizer: Any, tiny_parameters: Any, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    rows = [*QUESTIONS, *tiny_rows]
    monkeypatch.setattr(generate, "SHORTEST_CAP", 3)
    parameters = tiny_parameters(per_device_eval_batch_size=size, max_new_tokens_ratio=0.5)
    wanted = generate.answer(tutor, tiny_tokenizer, rows, parameters, silent)
    assert {item["finish_reason"] for item in wanted.predictions} == {"stop", "length"}
    monkeypatch.setattr(generate.decoder, "is_for", lambda model: False)
    monkeypatch.setattr(generate, "by_decoder", None)
    assert generate.answer(tutor, tiny_tokenizer, rows, parameters, silent).predictions == wanted.predictions


CPU_WORDS = (
    "[enforce fail at alloc_cpu.cpp:132] . DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4398046511104 bytes. Error code 12 (Cannot allocate memory)\nframe #0: somewhere"
)
OUT_OF_MEMORY = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": lambda: RuntimeError(CPU_WORDS),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "python": lambda: MemoryError(),
}


class Small:
    """Lets a model fail as if its memory held only so many rows at a time, from its `begin`-th call on."""

    def __init__(self, network: Any, holds: int, error: Any, begin: int = 0) -> None:
        self.seen: list[int] = []

        def check(module: Any, inputs: Any, kwargs: dict[str, Any]) -> None:
            self.seen.append(len(kwargs["input_ids"]))
            if len(self.seen) > begin and self.seen[-1] > holds:
                raise error()

        self.handle = network.register_forward_pre_hook(check, with_kwargs=True)

    def __enter__(self) -> Small:
        return self

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
@pytest.mark.parametrize("begin", [0, 4])
@pytest.mark.parametrize("own_loop", [True, False])
def test_a_batch_that_memory_does_not_hold_is_halved_and_the_answers_are_the_same(
    base: model.Base, tiny_parameters: Any, monkeypatch: pytest.MonkeyPatch, kind: str, begin: int, own_loop: bool
) -> None:
    parameters = tiny_parameters(per_device_eval_batch_size=6, max_new_tokens=8)
    wanted = generate.answer(base.model, base.tokenizer, QUESTIONS, parameters, silent)
    assert wanted.out_of_memory == []
    monkeypatch.setattr(generate.decoder, "is_for", lambda model: own_loop)
    told: list[tuple[str, dict[str, Any]]] = []

    def report(event: str, **fields: Any) -> None:
        told.append((event, fields))

    with Small(base.model, 2, OUT_OF_MEMORY[kind], begin):
        found = generate.answer(base.model, base.tokenizer, QUESTIONS, parameters, silent, report=report)
    assert found.predictions == wanted.predictions
    assert [(item["batch"], item["next_batch"]) for item in found.out_of_memory] == [(6, 3), (3, 1)]
    assert all(item["during"] == "answering" and "\n" not in item["message"] for item in found.out_of_memory)
    assert told == [("out_of_memory", item) for item in found.out_of_memory]


def test_a_batch_that_just_fits_is_not_halved(base: model.Base, tiny_parameters: Any) -> None:
    parameters = tiny_parameters(per_device_eval_batch_size=6, max_new_tokens=4)
    with Small(base.model, 6, OUT_OF_MEMORY["cuda"]) as memory:
        found = generate.answer(base.model, base.tokenizer, QUESTIONS, parameters, silent)
    assert found.out_of_memory == [] and max(memory.seen) == 6


def test_only_rows_without_an_answer_are_asked_again(base: model.Base, tiny_parameters: Any) -> None:
    rows = [chat("ends first", "电场？", "零"), *QUESTIONS[:3]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "SHORTEST_CAP", 2)
        parameters = tiny_parameters(per_device_eval_batch_size=4, max_new_tokens=9, max_new_tokens_ratio=0.1)
        with Small(base.model, 2, OUT_OF_MEMORY["cuda"], begin=3) as memory:
            found = generate.answer(base.model, base.tokenizer, rows, parameters, silent)
    assert found.predictions[0]["tokens"] == 2
    # All four are read, one ends after its second token; of the other three two are read again, then the last one.
    assert memory.seen[:4] == [4, 4, 3, 3]
    assert max(memory.seen[4:]) == 1 and found.out_of_memory[0]["next_batch"] == 1


def test_a_row_that_memory_does_not_hold_alone_is_named_in_one_sentence(base: model.Base, tiny_parameters: Any) -> None:
    parameters = tiny_parameters(per_device_eval_batch_size=2, max_new_tokens=9)
    with Small(base.model, 0, OUT_OF_MEMORY["cpu"]), pytest.raises(HostUnfit) as caught:
        generate.answer(base.model, base.tokenizer, QUESTIONS[:3], parameters, silent)
    prompt = generate.ask(base.model, base.tokenizer, QUESTIONS[2], parameters).prompt
    assert str(caught.value) == (
        f"memory does not hold the answer to row 'q2' alone ({len(prompt)} tokens and up to 9 of the answer); "
        "shorten the row, lower max_new_tokens, or take a host with more memory"
    )
    with Small(base.model, 1, OUT_OF_MEMORY["cpu"]):
        found = generate.answer(base.model, base.tokenizer, QUESTIONS[:3], parameters, silent)
    assert len(found.predictions) == 3


@pytest.mark.parametrize("problem", [RuntimeError("shapes do not match"), ValueError("out of memory"), KeyError("x")])
def test_another_error_is_not_tried_again(base: model.Base, tiny_parameters: Any, problem: Exception) -> None:
    def fail() -> Exception:
        return problem

    with Small(base.model, 0, fail) as memory, pytest.raises(type(problem)):
        generate.answer(base.model, base.tokenizer, QUESTIONS, tiny_parameters(), silent)
    assert len(memory.seen) == 1


def test_a_real_allocation_that_fails_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert generate.is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not generate.is_out_of_memory(other.value)
