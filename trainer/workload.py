"""How much a stage has to do: its rows and questions in tokens, counted or, without a tokenizer, from characters.

No torch. A large file is read as a stream, and of its rows only some, evenly spaced, are counted and stand for all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import encoding
from trainer.characters import CJK
from trainer.config import Parameters
from trainer.errors import InputError
from trainer.evaluate import MOST_TRAINED, gate_questions
from trainer.stages import Stage, StageTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
SAMPLE = 1000  # rows of a file that are tokenised: about a second
LINE_BYTES = 64 << 20  # a longer line is no row
# Qwen's documentation: a token is 1.5 to 1.8 Chinese characters, or 3 to 4 English ones.
HAN_PER_TOKEN, OTHERS_PER_TOKEN = 1.5, 3.0
TURN_TOKENS = 5  # that a chat template puts around a turn: its two marks, the role, two line ends
_HAN = re.compile(f"[{CJK}]")
LEAST_CAP = 64  # what max_new_tokens_ratio leaves to every answer (trainer.config)


@dataclass(frozen=True)
class Question:
    """A question that is to be answered, or `count` questions like it; tokens, `reference` 0 where there is none."""

    prompt: int
    reference: int
    count: float = 1.0


@dataclass(frozen=True)
class Workload:
    """What a stage trains on and is asked. `counted` says how the tokens were found."""

    rows: int
    examples: int
    tokens: int
    trained_tokens: int
    longest: int
    pairs: float  # of tokens that see each other: half the squared length of every example
    questions: tuple[Question, ...]
    counted: str

    @property
    def trained_share(self) -> float:
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    @property
    def usual_answer(self) -> float:
        """The mean length of the references, or of what is trained, where the questions have none."""
        known = [question.reference for question in self.questions if question.reference]
        return sum(known) / len(known) if known else self.trained_tokens / max(1, self.examples)

    @property
    def asked(self) -> int:
        return round(sum(question.count for question in self.questions))


def of_stage(
    stage: Stage, table: StageTable, parameters: Parameters, root: Path, tokenizer: PreTrainedTokenizerBase | None
) -> Workload:
    """The work of a stage below a data root; InputError when a file cannot be read or holds no row to train on."""
    count = _Counter(tokenizer, parameters.enable_thinking)
    rows, longest, number = sample(root / stage.data, stage.data)
    weight = number / len(rows) if rows else 0.0
    examples = [example for row in rows for example in count.examples(row)]
    lengths = [length for length, _ in [*examples, *count.examples(longest)]]
    if not examples:
        raise InputError(f"{stage.data} holds no row with an answer to train on; look at it with `check`")
    questions: list[Question] = []
    if gate_questions(stage, parameters) == "trained":
        share = min(number, MOST_TRAINED) / len(rows)
        questions += [count.question(row, share) for row in rows]
    for file in table.benchmarks.values() if stage.benchmarks else ():
        asked, _, all_asked = sample(root / file, file)
        questions += [count.question(row, all_asked / len(asked)) for row in asked]
    sampled = f", from {len(rows)} of {number} rows" if weight > 1 else ""
    return Workload(
        rows=number,
        examples=round(len(examples) * weight),
        tokens=round(sum(length for length, _ in examples) * weight),
        trained_tokens=round(sum(trained for _, trained in examples) * weight),
        longest=max(lengths),
        pairs=sum(length * length / 2 for length, _ in examples) * weight,
        questions=tuple(questions),
        counted=("counted" if tokenizer else "estimated from the characters") + sampled,
    )


def sample(path: Path, shown: str) -> tuple[list[Row], Row, int]:
    """At most 2 x SAMPLE rows, evenly spaced, that of the longest line, and how many lines there are."""
    kept: list[bytes] = []
    step, number, longest = 1, 0, b""
    try:
        with path.open("rb") as stream:
            for line in _lines(stream):
                if number % step == 0:
                    kept.append(line)
                    if len(kept) == 2 * SAMPLE:
                        kept, step = kept[::2], 2 * step
                longest = max(longest, line, key=len)
                number += 1
    except OSError as problem:
        raise InputError(
            f"{shown} cannot be read ({problem.strerror}); put the file there or name another data root"
        ) from None
    return [row for line in kept if (row := _row(line)) is not None], _row(longest) or {}, number


def _lines(stream: Any) -> Iterator[bytes]:
    while line := stream.readline(LINE_BYTES):
        if line.strip():
            yield line


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):  # `check` names it
        return None
    return row if isinstance(row, dict) else None


def answer_tokens(question: Question, parameters: Parameters, usual: float) -> tuple[int, int]:
    """(tokens that are expected, tokens that are allowed) of an answer; `usual` stands for a missing reference."""
    cap = parameters.max_new_tokens
    if question.reference and parameters.max_new_tokens_ratio:
        cap = min(cap, max(LEAST_CAP, math.ceil(question.reference * parameters.max_new_tokens_ratio)))
    return min(cap, question.reference or max(1, round(usual))), cap


def steps_of(parameters: Parameters, examples: int) -> int:
    """Optimiser steps of a training, as transformers counts them: a part of an epoch's last step is a step."""
    if parameters.max_steps > 0:
        return parameters.max_steps
    per_step = parameters.per_device_train_batch_size * parameters.gradient_accumulation_steps
    return max(1, math.ceil(parameters.num_train_epochs * -(-examples // per_step)))


class _Counter:
    """Counts tokens with the base's tokenizer, or guesses them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, enable_thinking: bool) -> None:
        self.tokenizer = tokenizer
        self.enable_thinking = enable_thinking

    def examples(self, row: Row) -> list[tuple[int, int]]:
        """(tokens, trained tokens) of each example of a row; none of a row that cannot be rendered."""
        if self.tokenizer is not None:
            try:
                found = encoding.encode_row(row, self.tokenizer, enable_thinking=self.enable_thinking)
            except Exception:  # a template raises whatever its author chose; `check` names the row
                return []
            return [(len(example.input_ids), example.trained_tokens) for example in found]
        counts, before = [], 0
        for message in _messages(row):
            tokens = characters_to_tokens(_text(message)) + TURN_TOKENS
            before += tokens
            if message.get("role") == "assistant":
                counts.append((before, tokens))
        return counts

    def question(self, row: Row, count: float) -> Question:
        messages, reference = _messages(row), 0
        if messages and messages[-1].get("role") == "assistant":
            reference = self._length(_text(messages[-1])) + 1
            messages = messages[:-1]
        texts = [_text(message) for message in messages] or [str(row.get("query") or "")]
        return Question(sum(self._length(text) + TURN_TOKENS for text in texts) + TURN_TOKENS, reference, count)

    def _length(self, text: str) -> int:
        if self.tokenizer is None:
            return characters_to_tokens(text)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def characters_to_tokens(text: str) -> int:
    """About how many tokens a text has; rather too many than too few."""
    han = len(_HAN.findall(text))
    return math.ceil(han / HAN_PER_TOKEN + (len(text) - han) / OTHERS_PER_TOKEN)


def _messages(row: Row) -> list[Row]:
    messages = row.get("messages")
    if not isinstance(messages, list):
        return []
    return [message for message in messages if isinstance(message, dict)]


def _text(message: Row) -> str:
    """What of a turn becomes tokens: its content, and its tool calls as JSON."""
    content = message.get("content")
    calls = message.get("tool_calls")
    return (content if isinstance(content, str) else "") + (json.dumps(calls, ensure_ascii=False) if calls else "")
