"""From rows to token ids and labels: what the model sees and which tokens carry loss. No torch.

Every assistant turn becomes one example: the prompt is the conversation before it, rendered exactly as at
generation time (with the recorded `enable_thinking`), and only the turn itself, up to and including the stop
token, carries loss. So the think block that Qwen3's template adds stays in the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError
from trainer.lines import Finding, Findings, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that carries no loss (torch's and transformers' convention)
SILENT = 1  # the stop token alone teaches silence
BATCH_ROWS = 256  # rows that are tokenised at a time: more are not faster


@dataclass(frozen=True)
class Example:
    """One trained turn: ids and labels of equal length, labels IGNORED in the prompt."""

    row_id: str
    turn: int
    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def load_tokenizer(path: str, *, revision: str | None = None, local_only: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model with padding and a chat template; InputError when it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=None if Path(path).is_dir() else revision, local_files_only=local_only,
            trust_remote_code=False,
        )  # fmt: skip
    except (OSError, ValueError) as problem:
        raise InputError(f"no tokenizer could be loaded from {path!r}: {first_line(problem)}") from None
    if not tokenizer.chat_template:
        raise InputError(f"the tokenizer of {path!r} has no chat template; use an instruction-tuned model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def first_line(problem: Exception) -> str:
    """The first line of an exception's text, or its name where it has none: fit for a sentence."""
    return str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__


def normal_messages(messages: Sequence[Row]) -> list[Row]:
    """Messages as chat templates want them: tool arguments as objects, content always a text."""
    return [_normal_message(message) for message in messages]


def _normal_message(message: Row) -> Row:
    plain: Row = {"role": message["role"], "content": message.get("content") or ""}
    if message.get("tool_calls"):
        plain["tool_calls"] = [_normal_call(call) for call in message["tool_calls"]]
    return plain


def _normal_call(call: Row) -> Row:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {"text": arguments}
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Row], tools: Any, *, enable_thinking: bool
) -> str:
    """The text before an answer, ended by the opening of the assistant's turn."""
    return str(
        tokenizer.apply_chat_template(
            normal_messages(messages),
            tools=tools or None,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=enable_thinking,
        )  # fmt: skip
    )


def render_turn(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Row], tools: Any, *, enable_thinking: bool
) -> tuple[str, str]:
    """(prompt, completion) of the last message, an assistant's; completion ends with the stop token.

    ValueError when the template does not render the conversation as a continuation of its prompt.
    """
    prompt = render_prompt(tokenizer, messages[:-1], tools, enable_thinking=enable_thinking)
    whole = str(
        tokenizer.apply_chat_template(
            normal_messages(messages), tools=tools or None, tokenize=False, enable_thinking=enable_thinking
        )
    )
    if not whole.startswith(prompt):
        raise ValueError("the chat template does not continue its own prompt with the answer")
    completion = whole[len(prompt) :].rstrip()
    stop = str(tokenizer.eos_token)
    return prompt, completion if completion.endswith(stop) else completion + stop


def question_of(row: Row) -> tuple[list[Row], Any]:
    """The messages of a benchmark or training row up to the turn that is asked for, and its tools."""
    messages = list(row.get("messages") or [{"role": "user", "content": row.get("query", "")}])
    if messages[-1]["role"] == "assistant":
        messages.pop()
    return messages, row.get("tools")


def render_row(row: Row, tokenizer: PreTrainedTokenizerBase, *, enable_thinking: bool) -> list[tuple[int, str, str]]:
    """(turn, prompt, completion) of each assistant turn; raises whatever the template's author chose."""
    messages, tools = row["messages"], row.get("tools")
    return [
        (turn, *render_turn(tokenizer, messages[: turn + 1], tools, enable_thinking=enable_thinking))
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def encode_row(row: Row, tokenizer: PreTrainedTokenizerBase, *, enable_thinking: bool) -> list[Example]:
    """One example for each assistant turn of a row."""
    return _tokenised([(str(row["id"]), render_row(row, tokenizer, enable_thinking=enable_thinking))], tokenizer)[0]


def encode_rows(
    rows: Iterable[tuple[int, Row]], tokenizer: PreTrainedTokenizerBase, *, enable_thinking: bool
) -> Iterator[tuple[int, list[Example] | str]]:
    """Each line with the examples of its row, or with why the chat template refuses it; BATCH_ROWS are held at a time.

    A fast tokenizer takes a batch at once, on as many threads as TOKENIZERS_PARALLELISM lets it.
    """
    waiting = iter(rows)
    while batch := list(islice(waiting, BATCH_ROWS)):
        rendered: list[tuple[int, str, Any]] = []
        for number, row in batch:
            try:
                turns: Any = render_row(row, tokenizer, enable_thinking=enable_thinking)
                rendered.append((number, str(row["id"]), turns))
            except Exception as problem:  # a template raises whatever its author chose
                rendered.append((number, "", first_line(problem)))
        sound = iter(_tokenised([(name, turns) for _, name, turns in rendered if isinstance(turns, list)], tokenizer))
        for number, _, turns in rendered:
            yield number, next(sound) if isinstance(turns, list) else turns


def _tokenised(
    rows: Sequence[tuple[str, list[tuple[int, str, str]]]], tokenizer: PreTrainedTokenizerBase
) -> list[list[Example]]:
    texts = [text for _, turns in rows for _, *pair in turns for text in pair]
    ids = iter(tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else [])
    found = []
    for name, turns in rows:
        examples = []
        for turn, _, _ in turns:
            head, tail = next(ids), next(ids)
            examples.append(Example(name, turn, head + tail, [IGNORED] * len(head) + tail))
        found.append(examples)
    return found


def refusal(file: str, line: int, reason: str) -> Finding:
    """The finding on a row that the chat template does not render."""
    problem = f"the chat template refuses it ({reason})"
    return Finding("error", file, line, "messages", problem, "change the turns or the base model")


def fault(file: str, line: int, row_id: str, turn: int, tokens: int, trained: int, max_length: int) -> Finding | None:
    """The finding on an example of so many tokens that is too long or trains nothing; None for a sound one."""
    where = f"messages[{turn}]"
    if tokens > max_length:
        problem = f"row {row_id!r} has {tokens} tokens, the limit is {max_length}"
        return Finding("error", file, line, where, problem, "shorten it or raise max_length")
    if trained <= SILENT:
        problem = f"row {row_id!r} trains no token"
        return Finding("error", file, line, where, problem, "give the assistant an answer")
    return None


def encode(
    rows: Iterable[tuple[int, Row]], tokenizer: PreTrainedTokenizerBase, file: str,
    *, enable_thinking: bool, max_length: int,
) -> tuple[list[Example], list[Finding]]:  # fmt: skip
    """All examples of a file; an error names each row that is too long or would train no token."""
    examples: list[Example] = []
    findings = Findings(file)
    for line, found in encode_rows(rows, tokenizer, enable_thinking=enable_thinking):
        if isinstance(found, str):
            findings.take([refusal(file, line, found)])
            continue
        for one in found:
            wrong = fault(file, line, one.row_id, one.turn, len(one.input_ids), one.trained_tokens, max_length)
            findings.take([wrong] if wrong else [])
        examples += found
    return examples, findings.told()
