"""Answering questions in batches: left padding, greedy, ended by the stop token or the cap."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trainer.config import Parameters
from trainer.data import Row
from trainer.encoding import question_of, render_prompt
from trainer.errors import InputError

_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Answers:
    """Predictions in the order of the rows, the seconds it took and the tokens that were generated."""

    predictions: list[Row]
    seconds: float
    tokens: int


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], parameters: Parameters,
    progress: Callable[[int, int], None],
) -> Answers:  # fmt: skip
    """One greedy answer for each row; `progress(done, all)` is called after every batch."""
    started = time.monotonic()
    prompts = [_encode(tokenizer, row, parameters) for row in rows]
    caps = [_room(model, row, ids, parameters) for row, ids in zip(rows, prompts, strict=True)]
    answers: dict[int, Row] = {}
    was_training = model.training
    model.eval()
    try:
        for chosen in _batches(prompts, caps, parameters.per_device_eval_batch_size or 64):
            outputs = _generate(model, tokenizer, [prompts[i] for i in chosen], caps[chosen[0]])
            for index, tokens in zip(chosen, outputs, strict=True):
                answers[index] = prediction(str(rows[index]["id"]), tokens, tokenizer)
            progress(len(answers), len(rows))
    finally:
        model.train(was_training)
    found = [answers[index] for index in range(len(rows))]
    return Answers(found, time.monotonic() - started, sum(item["tokens"] for item in found))


def _encode(tokenizer: PreTrainedTokenizerBase, row: Row, parameters: Parameters) -> list[int]:
    messages, tools = question_of(row)
    text = render_prompt(tokenizer, messages, tools, enable_thinking=parameters.enable_thinking)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _room(model: PreTrainedModel, row: Row, prompt: Sequence[int], parameters: Parameters) -> int:
    """How many tokens the answer to a question may have; InputError when the model has no room for any."""
    longest = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    if longest and len(prompt) >= longest:
        raise InputError(
            f"the question of row {str(row['id'])!r} has {len(prompt)} tokens, the base model takes {longest} "
            "with the answer; shorten the row"
        )
    return min(parameters.max_new_tokens, longest - len(prompt)) if longest else parameters.max_new_tokens


def _batches(prompts: Sequence[Sequence[int]], caps: Sequence[int], size: int) -> list[list[int]]:
    """The rows' indices in batches: of one cap, because a batch stops as one, and of like length, to pad little."""
    batches: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: (-caps[index], len(prompts[index]))):
        if batches and len(batches[-1]) < size and caps[batches[-1][0]] == caps[index]:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an answer: the tokenizer's end token and ChatML's end of turn."""
    found = {tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")}
    return sorted(token for token in found if token is not None)


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[list[int]], cap: int
) -> list[list[int]]:
    """The generated ids of each prompt, at most `cap`, stop token included where there is one, padding removed."""
    width = max(len(ids) for ids in batch)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(item)) + item for item in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(item)) + [1] * len(item) for item in batch], device=model.device)
    stops = stop_tokens(tokenizer)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=cap,
                eos_token_id=stops,
                pad_token_id=pad,
                use_cache=True,
            ),
        )
    return [_until_stop(row, stops) for row in output[:, width:].tolist()]


def _until_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    for position, token in enumerate(tokens):
        if token in stops:
            return tokens[: position + 1]
    return tokens


def prediction(row_id: str, tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> Row:
    """A prediction record: the text, how it ended, its tokens, and the tool calls that it makes."""
    stops = stop_tokens(tokenizer)
    stopped = bool(tokens) and tokens[-1] in stops
    body = tokens[:-1] if stopped else tokens
    text = str(tokenizer.decode(body, skip_special_tokens=False)).strip()
    record: dict[str, Any] = {
        "id": row_id,
        "response": text,
        "finish_reason": "stop" if stopped else "length",
        "tokens": len(tokens),
    }
    calls = tool_calls(text)
    if calls:
        record["tool_calls"] = calls
    return record


def tool_calls(text: str) -> list[dict[str, Any]]:
    """The calls in `<tool_call>{...}</tool_call>` of an answer (Qwen3's form); malformed ones are no calls."""
    found = []
    for match in _TOOL_CALL.finditer(text):
        try:
            call = json.loads(match.group(1))
        except ValueError:
            continue
        if isinstance(call, dict) and isinstance(call.get("name"), str):
            found.append({"name": call["name"], "arguments": call.get("arguments", {})})
    return found
