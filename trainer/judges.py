"""Whether an answer refuses, cites and calls tools as its row expects; each with what it missed, in words."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from trainer import refusal
from trainer.data import Row
from trainer.mathtext import contains, normal
from trainer.records import RecordError, listed

_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def judge_refusal(wanted: bool, prediction: Row, text: str) -> tuple[float, list[str]]:
    """1 or 0 and the fault; `text` is the answer without think blocks, a `refused` of the prediction outranks it."""
    given = prediction.get("refused")
    if given is not None and not isinstance(given, bool):
        raise RecordError("predictions", f"{prediction['id']}: refused is {given!r}; give true or false")
    refused = refusal.is_refusal(text) if given is None else given
    if refused == wanted:
        return 1.0, []
    return 0.0, ["refusal expected, but answered" if wanted else "answer expected, but refused"]


def judge_citations(wanted: Any, prediction: Row, text: str) -> tuple[float, list[str]]:
    """F1 of the listed citations, or without a list the share that the text names; each lost or invented one."""
    expected = listed(wanted)
    given = prediction.get("citations")
    if given is None:
        body = normal(text)
        lost = [item for item in expected if not contains(normal(_citation(item)), body)]
        return 1 - len(lost) / len(expected), [f"citation missing: {_citation(item)}" for item in lost]
    cited = list(dict.fromkeys(_citation(item) for item in listed(given)))
    lost = [item for item in expected if not any(_cites(item, entry) for entry in cited)]
    invented = [entry for entry in cited if not any(_cites(item, entry) for item in expected)]
    recall = 1 - len(lost) / len(expected)
    precision = 1 - len(invented) / len(cited) if cited else 0.0
    value = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    faults = [f"citation missing: {_citation(item)}" for item in lost]
    return value, faults + [f"citation not expected: {entry}" for entry in invented]


def _citation(item: object) -> str:
    if isinstance(item, Mapping):
        keys = ("id", "source", "title", "text", "url")
        item = next((item[key] for key in keys if item.get(key)), json.dumps(item, ensure_ascii=False))
    return str(item)


def _cites(expected: object, entry: str) -> bool:
    return contains(normal(_citation(expected)), normal(entry))


def judge_tool_calls(wanted: Any, prediction: Row, text: str) -> tuple[float, list[str]]:
    """1 when the calls are the expected ones in any order, else 0; each missing or unexpected call."""
    given = prediction.get("tool_calls")
    if given is None:  # not parsed by whoever generated: Qwen's own notation
        given = [json.loads(found) for found in _TOOL_CALL.findall(text) if _is_json(found)]
    expected = Counter(_call(item) for item in listed(wanted))
    made = Counter(_call(item) for item in listed(given))
    faults = [f"tool call missing: {call}" for call in (expected - made).elements()]
    faults += [f"tool call not expected: {call}" for call in (made - expected).elements()]
    return float(not faults), faults


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _call(item: Any) -> str:
    """One spelling of a call, `name {"argument": value}`, equal for equal calls: 2 = 2.0, but not
    "2" or true."""
    inner = item.get("function") if isinstance(item, Mapping) else None
    call = inner if isinstance(inner, Mapping) else item
    if not isinstance(call, Mapping):
        return f"{call!r}"
    arguments = call.get("arguments")
    if isinstance(arguments, str) and _is_json(arguments or "{}"):
        arguments = json.loads(arguments or "{}")
    plain = json.dumps(_plain_value(arguments or {}), ensure_ascii=False, sort_keys=True)
    return f"{call.get('name')} {plain}"


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        # Twelve digits: 0.1 + 0.2 computed by two programs must not differ; whole numbers lose
        # their ".0".
        value = float(f"{value:.12g}")
        return int(value) if value.is_integer() else value
    return value


JUDGES = {
    "refusal_accuracy": judge_refusal,
    "citation_accuracy": judge_citations,
    "tool_call_accuracy": judge_tool_calls,
}
