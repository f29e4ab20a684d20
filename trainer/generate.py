"""Answering questions in batches, greedy, each ended by the stop token or its own cap."""

from __future__ import annotations

import gc
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trainer import decoder
from trainer.config import Parameters
from trainer.crew import ALONE, Crew
from trainer.data import Row
from trainer.encoding import question_of, render_prompt, render_turn
from trainer.errors import HostUnfit, InputError, TrainingFailed
from trainer.ladder import is_out_of_memory

BATCH = 64  # questions at a time where nobody says how many memory holds
SHORTEST_CAP = 64  # tokens: a cap from a very short reference would cut answers that only say it in other words
PROGRESS_SECONDS = 1.0  # between two reports
_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Answers:
    """Predictions in the order of the rows, the seconds it took and the tokens that were generated.

    `out_of_memory` has an entry for each time that the batch was halved: {during, batch, next_batch, message}.
    """

    predictions: list[Row]
    seconds: float
    tokens: int
    out_of_memory: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """A question as token ids, the most tokens of its answer, and what sets that limit."""

    row: Row
    prompt: list[int]
    cap: int
    limit: str  # max_new_tokens, reference or context


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], parameters: Parameters,
    progress: Callable[[int, int], None], *, batch: int = 0, report: Callable[..., None] | None = None,
    crew: Crew = ALONE,
) -> Answers:  # fmt: skip
    """One greedy answer for each row, at most `batch` at a time (0: per_device_eval_batch_size, else BATCH).

    `progress(done, all)` is called now and then, and at the end; `report("out_of_memory", **entry)` when a batch
    did not fit and is halved. A prediction that its limit has cut (finish_reason length) names that limit as `cut_by`.
    `crew` are the processes that share the base's weights, if any do: each answers rows of its own at the same time,
    even when it has none. Errors: InputError for a question without room for an answer, HostUnfit for one that memory
    does not hold alone, TrainingFailed for a batch that it does not hold where the base is in shares.
    """
    started = time.monotonic()
    asked = [ask(model, tokenizer, row, parameters) for row in rows]
    batch = batch or parameters.per_device_eval_batch_size or BATCH
    was_training = model.training
    model.eval()
    try:
        answers, halvings = _answer_all(model, tokenizer, asked, batch, _seldom(progress, len(rows)), report, crew)
    finally:
        model.train(was_training)
    found = []
    for index, item in enumerate(asked):
        record = prediction(str(item.row["id"]), answers[index], tokenizer)
        found.append({**record, "cut_by": item.limit} if record["finish_reason"] == "length" else record)
    return Answers(found, time.monotonic() - started, sum(item["tokens"] for item in found), halvings)


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: Row, parameters: Parameters) -> Asked:
    """The row's question with its cap: the least of max_new_tokens, the model's room, and the reference's cap."""
    messages, tools = question_of(row)
    text = render_prompt(tokenizer, messages, tools, enable_thinking=parameters.enable_thinking)
    prompt: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    limits = [(parameters.max_new_tokens, "max_new_tokens"), (_room(model, row, prompt), "context")]
    reference = _reference_cap(tokenizer, row, parameters)
    cap, limit = min([*limits, *([(reference, "reference")] if reference else [])], key=lambda item: item[0])
    return Asked(row, prompt, cap, limit)


def _room(model: PreTrainedModel, row: Row, prompt: Sequence[int]) -> int:
    """How many tokens the answer to a question may have; InputError when the model has no room for any."""
    longest = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    if longest and len(prompt) >= longest:
        raise InputError(
            f"the question of row {str(row['id'])!r} has {len(prompt)} tokens, the base model takes {longest} "
            "with the answer; shorten the row"
        )
    return longest - len(prompt) if longest else sys.maxsize


def _reference_cap(tokenizer: PreTrainedTokenizerBase, row: Row, parameters: Parameters) -> int:
    """max_new_tokens_ratio times the tokens of the row's reference answer, 0 where nothing can be told from one.

    With enable_thinking the thoughts come before the answer, and no reference tells how long they are.
    """
    messages = row.get("messages") or []
    if not parameters.max_new_tokens_ratio or parameters.enable_thinking or len(messages) < 2:
        return 0
    if messages[-1]["role"] != "assistant":
        return 0
    try:
        _, text = render_turn(tokenizer, messages, row.get("tools"), enable_thinking=parameters.enable_thinking)
    except Exception:  # a template raises whatever its author chose, and need not continue its own prompt
        return 0
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return max(SHORTEST_CAP, int(parameters.max_new_tokens_ratio * tokens))


def _seldom(progress: Callable[[int, int], None], rows: int) -> Callable[[int], None]:
    """Passes the number of answers on at most once in PROGRESS_SECONDS, and when all are there."""
    last = time.monotonic()

    def told(done: int) -> None:
        nonlocal last
        if done == rows or time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            progress(done, rows)

    return told


def _answer_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked], batch: int,
    told: Callable[[int], None], report: Callable[..., None] | None, crew: Crew,
) -> tuple[dict[int, list[int]], list[dict[str, Any]]]:  # fmt: skip
    """The tokens of each answer by its place in `asked`, and the entry of each halving of the batch."""
    answers: dict[int, list[int]] = {}
    halvings: list[dict[str, Any]] = []

    def done(index: int, tokens: list[int]) -> None:
        answers[index] = tokens
        told(len(answers))

    run = by_decoder if decoder.is_for(model) else by_generate
    # The longest first: they end last, and what does not fit shows at once.
    order = sorted(range(len(asked)), key=lambda index: (len(asked[index].prompt), asked[index].cap), reverse=True)
    if crew.size > 1:
        _answer_in_step(model, tokenizer, {index: asked[index] for index in order}, batch, done, crew)
    while left := [index for index in order if index not in answers]:
        try:
            run(model, tokenizer, {index: asked[index] for index in left}, batch, done)
            continue
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            message = str(problem).strip().partition("\n")[0]
        # Here, after the exception: its traceback held the tensors of the batch.
        _free(model)
        left = [index for index in order if index not in answers]
        if batch == 1:
            raise HostUnfit(_alone(asked[left[0]]))
        smaller = max(1, min(batch, len(left)) // 2)
        halvings.append({"during": "answering", "batch": batch, "next_batch": smaller, "message": message})
        if report:
            report("out_of_memory", **halvings[-1])
        batch = smaller
    return answers, halvings


def _answer_in_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: dict[int, Asked], batch: int,
    done: Callable[[int, list[int]], None], crew: Crew,
) -> None:  # fmt: skip
    """All answers on a base in shares. TrainingFailed where memory runs out: the others wait in the middle of it."""
    try:
        by_decoder(model, tokenizer, asked, batch, done, crew)
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        less = f"set per_device_eval_batch_size to {batch // 2} or less" if batch > 1 else "lower max_new_tokens"
        raise TrainingFailed(
            f"out of memory while answering {batch} questions at a time, and processes that share the base cannot try "
            f"fewer; {less}"
        ) from problem


def _free(model: PreTrainedModel) -> None:
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def _alone(item: Asked) -> str:
    return (
        f"memory does not hold the answer to row {str(item.row['id'])!r} alone ({len(item.prompt)} tokens and up to "
        f"{item.cap} of the answer); shorten the row, lower max_new_tokens, or take a host with more memory"
    )


def by_decoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: dict[int, Asked], batch: int,
    done: Callable[[int, list[int]], None], crew: Crew = ALONE,
) -> None:  # fmt: skip
    """Answer with rows that come and go (see `decoder`)."""
    places, items = list(asked), list(asked.values())
    found = decoder.Decoder(model, stop_tokens(tokenizer), tokenizer.pad_token_id, crew)
    prompts, caps = [item.prompt for item in items], [item.cap for item in items]
    found.answer(prompts, caps, batch, lambda place, tokens: done(places[place], tokens))


def by_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: dict[int, Asked], batch: int,
    done: Callable[[int, list[int]], None],
) -> None:  # fmt: skip
    """Answer batch after batch with transformers' own loop, for models with a cache of another kind.

    A batch runs to the largest of its caps; each answer is cut at its own: greedy tokens do not depend on later ones.
    """
    stops, pad, places = stop_tokens(tokenizer), tokenizer.pad_token_id, list(asked)
    for chosen in [places[start : start + batch] for start in range(0, len(places), batch)]:
        width = max(len(asked[index].prompt) for index in chosen)
        prompts = [(width - len(asked[index].prompt), asked[index].prompt) for index in chosen]
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor([[pad] * gap + ids for gap, ids in prompts], device=model.device),
                attention_mask=torch.tensor([[0] * gap + [1] * len(ids) for gap, ids in prompts], device=model.device),
                generation_config=GenerationConfig(
                    do_sample=False, max_new_tokens=max(asked[index].cap for index in chosen), eos_token_id=stops,
                    pad_token_id=pad, use_cache=True,
                ),
            )  # fmt: skip
        for index, row in zip(chosen, output[:, width:].tolist(), strict=True):
            done(index, _until_stop(row[: asked[index].cap], stops))


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an answer: the tokenizer's end token and ChatML's end of turn."""
    found = {tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")}
    return sorted(token for token in found if token is not None)


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
