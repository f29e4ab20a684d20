"""Answers: in batches as one by one, ended by the stop token or the cap, with the tool calls they make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import encoding, generate, model, train
from trainer.errors import InputError

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
