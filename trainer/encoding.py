"""From rows to token ids and labels: what the model sees and which tokens carry loss. No torch.

Every assistant turn becomes one example: the prompt is the conversation before it, rendered exactly as at
generation time (with the recorded `enable_thinking`), and only the turn itself, up to and including the stop
token, carries loss. So the think block that Qwen3's template adds stays in the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data import Finding, Row
from trainer.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that carries no loss (torch's and transformers' convention)


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


def encode_row(row: Row, tokenizer: PreTrainedTokenizerBase, *, enable_thinking: bool) -> list[Example]:
    """One example for each assistant turn of a row."""
    examples = []
    for turn, message in enumerate(row["messages"]):
        if message["role"] != "assistant":
            continue
        prompt, completion = render_turn(
            tokenizer, row["messages"][: turn + 1], row.get("tools"), enable_thinking=enable_thinking
        )
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tail = tokenizer(completion, add_special_tokens=False)["input_ids"]
        examples.append(Example(str(row["id"]), turn, head + tail, [IGNORED] * len(head) + tail))
    return examples


def encode(
    rows: Sequence[tuple[int, Row]], tokenizer: PreTrainedTokenizerBase, file: str,
    *, enable_thinking: bool, max_length: int,
) -> tuple[list[Example], list[Finding]]:  # fmt: skip
    """All examples of a file; an error names each row that is too long or would train no token."""
    examples: list[Example] = []
    findings: list[Finding] = []
    for number, row in rows:
        try:
            found = encode_row(row, tokenizer, enable_thinking=enable_thinking)
        except Exception as problem:  # a template raises whatever its author chose
            findings.append(
                Finding("error", file, number, "messages", f"the chat template refuses it ({first_line(problem)})",
                        "change the turns or the base model")
            )  # fmt: skip
            continue
        for example in found:
            where = f"messages[{example.turn}]"
            if len(example.input_ids) > max_length:
                findings.append(
                    Finding("error", file, number, where,
                            f"row {example.row_id!r} has {len(example.input_ids)} tokens, the limit is {max_length}",
                            "shorten it or raise max_length")
                )  # fmt: skip
            elif example.trained_tokens <= 1:  # the stop token alone teaches silence
                findings.append(
                    Finding("error", file, number, where, f"row {example.row_id!r} trains no token",
                            "give the assistant an answer")
                )  # fmt: skip
        examples += found
    return examples, findings
