"""What a benchmark row asks for and what a prediction says: ids, texts, expectations.

Each of the two comes from a file of its own, so a record that cannot be judged says which of them it is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from trainer import keypoints
from trainer.data import Row, question
from trainer.mathtext import without_thinking

Origin = Literal["benchmark", "predictions"]


class RecordError(ValueError):
    """A record that cannot be judged: `origin` says in which file, `sentence` what is wrong with it."""

    def __init__(self, origin: Origin, sentence: str) -> None:
        super().__init__(f"{origin}: {sentence}")
        self.origin, self.sentence = origin, sentence


def by_id(items: Iterable[Row], origin: Origin) -> dict[str, Row]:
    """The records by id, in their order; RecordError for one without id and for an id given twice."""
    found: dict[str, Row] = {}
    for number, item in enumerate(items, 1):
        key = item.get("id")
        if key is None or key == "":
            raise RecordError(origin, f"record {number} has no id; give every record the id of its row")
        if str(key) in found:
            raise RecordError(origin, f"id {key} stands there twice; keep one record for each id")
        found[str(key)] = item
    return found


def text_of(record: Row, value: object, origin: Origin) -> str:
    """A text within a record, "" where it is left out; RecordError for anything that is no text."""
    if value is None:
        return ""
    if isinstance(value, list):  # content in parts, as multimodal APIs write it
        return "".join(text_of(record, part.get("text"), origin) for part in value if isinstance(part, Mapping))
    if not isinstance(value, str):
        raise RecordError(origin, f"{record.get('id')}: text expected, found {value!r}; write it as a string")
    return value


def response(prediction: Row) -> str:
    """The answer as it was generated, think blocks included."""
    return text_of(prediction, prediction.get("response"), "predictions")


def is_empty(prediction: Row) -> bool:
    """Whether there is neither text beside think blocks nor a tool call."""
    return not without_thinking(response(prediction)) and not prediction.get("tool_calls")


def listed(value: Any) -> list[Any]:
    """A list of expectations or answers, where a single one may stand without its list."""
    return [value] if isinstance(value, (str, Mapping)) else list(value)


def expectations(row: Row) -> tuple[list[keypoints.KeyPoint], dict[str, Any]]:
    """Key points, and what the row expects for each of the other metrics that it carries.

    RecordError for a row with neither `expected` nor a reference answer.
    """
    given = row.get("expected")
    if isinstance(given, Mapping) and given:
        return _explicit(row, given)
    messages = row.get("messages") or []
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        raise RecordError(
            "benchmark",
            f"row {row['id']} has neither expected nor a reference answer; give it "
            "an expected object or end its messages with an assistant turn",
        )
    points = keypoints.derive(text_of(row, last.get("content"), "benchmark"), question(row))
    refuses = None if row.get("refusal_type") in (None, "", "none", False) else True
    return points, _wanted(refuses, None, last.get("tool_calls"))


def _explicit(row: Row, given: Mapping[str, Any]) -> tuple[list[keypoints.KeyPoint], dict[str, Any]]:
    try:
        points = keypoints.explicit(given.get("key_points"))
    except ValueError as problem:
        raise RecordError("benchmark", f"row {row['id']}: {problem}") from None
    refuses = given.get("should_refuse")
    return points, _wanted(
        refuses if isinstance(refuses, bool) else None, given.get("citations"), given.get("tool_calls")
    )


def _wanted(refuses: bool | None, citations: Any, calls: Any) -> dict[str, Any]:
    """Only what is expected: a row without citations carries no citation metric."""
    wanted: dict[str, Any] = {} if refuses is None else {"refusal_accuracy": refuses}
    if citations:
        wanted["citation_accuracy"] = citations
    if calls:
        wanted["tool_call_accuracy"] = calls
    return wanted
