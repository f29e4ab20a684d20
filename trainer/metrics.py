"""The metrics of an answer set, each between 0 and 1, each with n and a 95 % interval.

key_point_coverage   share of the row's key points that the answer covers (see `keypoints`)
format_compliance    1 when the answer has its own prompt's sections and ended by itself
                     (see `format_faults`)
refusal_accuracy     1 when the answer refuses exactly when it should (see `refusal`)
citation_accuracy    with a `citations` list in the prediction: F1 against the expected ones, so
                     that invented citations cost; else the share of the expected ones found in
                     the text, where an invented one cannot be told from prose
tool_call_accuracy   1 when the calls equal the expected ones, names and arguments, in any order

A row carries a metric only when it says what is expected. A missing or empty answer (no text
beside think blocks, and no tool call) counts 0 in every metric that its row carries, refusals
included.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer import keypoints, refusal
from trainer.mathtext import contains, normal, without_thinking

Row = Mapping[str, Any]
METRICS = (
    "key_point_coverage",
    "format_compliance",
    "refusal_accuracy",
    "citation_accuracy",
    "tool_call_accuracy",
)
_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
_ENDED = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn", "tool_calls"})

_THINK_MARK = re.compile(r"</?think(?:ing)?\b[^>]*>", re.IGNORECASE)
_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_BRACKETED = r"[ \t]*[（(][^（）()\n]*[）)]"
_PROMPT_LINE = re.compile(r"^[ \t]*(?:[-*+•>]|\d+[.、)）])?[ \t]*(#{2,6}|#(?=[ \t]))([ \t]*)([^#\n]+)$")
_PROMPT_INLINE = re.compile(
    r"(?<![A-Za-z0-9#])(#{2,6}|#(?=[ \t]))([ \t]*)([^\s#/、，。,;；:：|`\"“”'‘’「」『』（()）]+"
    rf"(?:[ \t]+[A-Z][A-Za-z]*)*(?:{_BRACKETED})?)"
)
_TAIL = re.compile(
    r"(?:(?:这|共|等)?[二两三四五六七八]\s*个?(?:小节|部分|小标题|标题|节|段|栏).*"
    r"|以及|和|与|及|并|再)$"
)
_FORBIDDEN = re.compile(
    r"(?:不要|不得|不写|不用|避免|禁止|勿|do not|don't|never)"
    r"(?!.{0,6}(?:省|缺|漏|跳过|改|合并|omit|skip|drop|rename))"
    r"[^。；;\n.]*$",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^ {0,3}(#{1,6})([ \t\u3000]*)(.*?)[ \t#]*$")
_TITLE = re.compile(rf"([^（(:：]*)(?:{_BRACKETED})?[ \t]*(?:[:：](.*))?")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True)
class Section:
    """A required section. `label` as the prompt writes it; `spaced`: a space stands after the
    marks."""

    label: str
    level: int
    name: str
    spaced: bool


def required_sections(row: Row) -> list[Section]:
    """The sections that the row's own system prompt names, in their order, each once.

    A line that is a heading is taken whole (up to a colon or dash); headings inside a sentence
    end at punctuation, white space or "三个部分". A bracket (`### 检查（…）`) is no part of the
    name, so any bracket or none is accepted in the answer. A heading that the prompt forbids
    ("不要写 ### 总结") is not required.
    """
    found: dict[tuple[int, str], Section] = {}
    for message in row.get("messages") or []:
        if message.get("role") != "system":
            continue
        for line in _text(message.get("content")).splitlines():
            for section in _named_sections(line):
                found.setdefault((section.level, section.name), section)
    return list(found.values())


def _named_sections(line: str) -> list[Section]:
    whole = _PROMPT_LINE.match(line)
    matches = [whole] if whole else list(_PROMPT_INLINE.finditer(line))
    out = []
    for match in matches:
        if not whole and _FORBIDDEN.search(line[: match.start()]):
            continue
        text = re.split(r"[:：]|\s[-–—]|——", match[3])[0] if whole else _TAIL.sub("", match[3])
        text = text.replace("*", "").replace("`", "").strip()
        name = _plain(re.split(r"[（(]", text)[0])
        if name:
            label = f"{match[1]}{' ' if match[2] else ''}{text}"
            out.append(Section(label, len(match[1]), name, bool(match[2])))
    return out


def _plain(heading: str) -> str:
    return unicodedata.normalize("NFKC", heading).strip().casefold()


def format_faults(row: Row, prediction: Row) -> list[str]:
    """What the answer's form lacks, in words; empty means compliant.

    Every required section once, in order, with content; no think mark left, even an empty one;
    ended by the stop token: `finish_reason` "length" (the cap) or any other reason but stop
    fails, an absent one is taken as ended. Headings in code fences do not count; other headings
    are allowed. Without required sections the answer only has to be there and to end. The number
    of `#` must be the prompt's.
    """
    response = _text(prediction.get("response"))
    faults = []
    if _THINK_MARK.search(response):
        faults.append("think block left in the answer")
    reason = prediction.get("finish_reason")
    if reason == "length":
        faults.append("cut off: reached the cap of new tokens before the stop token")
    elif reason is not None and reason not in _ENDED:
        faults.append(f"not ended by the stop token: finish_reason {reason}")
    return faults + _section_faults(required_sections(row), without_thinking(response))


def _section_faults(required: Sequence[Section], text: str) -> list[str]:
    places: dict[Section, list[int]] = {section: [] for section in required}
    bodies: list[str] = []  # one for each heading that can end a section, in order
    fence = ""
    for line in text.splitlines():
        mark = _FENCE.match(line)
        heading = None if fence or mark else _HEADING.match(line)
        section, rest = _section_of(heading, required) if heading else (None, "")
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        if heading and (section or any(len(heading[1]) <= item.level for item in required)):
            bodies.append(rest)
            if section:
                places[section].append(len(bodies) - 1)
        elif bodies and not heading:
            bodies[-1] += "\n" + line
    faults = [f"section missing: {item.label}" for item in required if not places[item]]
    faults += [f"section repeated: {item.label}" for item in required if len(places[item]) > 1]
    for item in required:
        if places[item] and not any(_has_content(bodies[index]) for index in places[item]):
            faults.append(f"section empty: {item.label}")
    order = [item.label for item in sorted((s for s in required if places[s]), key=lambda s: places[s][0])]
    if order != [item.label for item in required if places[item]]:
        faults.append("sections out of order: " + " / ".join(order))
    return faults


def _section_of(heading: re.Match[str], required: Sequence[Section]) -> tuple[Section | None, str]:
    """The required section that a heading line is, with the text that follows a colon on that
    line."""
    for section in required:
        if len(heading[1]) != section.level or (section.spaced and not heading[2]):
            continue
        title = _TITLE.fullmatch(re.sub("[*`]", "", heading[3]).strip())
        if title and _plain(title[1]) == section.name:
            return section, title[2] or ""
    return None, ""


def _has_content(body: str) -> bool:
    return any(unicodedata.category(char)[0] in "LN" or unicodedata.category(char) == "Sm" for char in body)


def score(benchmark_rows: Sequence[Row], predictions: Sequence[Row]) -> dict[str, Any]:
    """Scores predictions against benchmark rows (both kinds of design section 7, mixed freely).

    Returns {"summary", "by_type", "rows", "missing", "unexpected"}; rows stand in benchmark order
    with their metrics and what they missed. ValueError for a row or prediction without id, for an
    id given twice, and for rows or predictions that cannot be judged.
    """
    rows = _by_id(benchmark_rows, "benchmark")
    answers = _by_id(predictions, "predictions")
    scored = [_score_row(row, answers.get(key)) for key, row in rows.items()]
    types = dict.fromkeys(row["type"] for row in scored)
    return {
        "summary": summarise(scored),
        "by_type": {kind: summarise([row for row in scored if row["type"] == kind]) for kind in types},
        "rows": scored,
        "missing": [row["id"] for key, row in rows.items() if key not in answers],
        "unexpected": [item["id"] for key, item in answers.items() if key not in rows],
    }


def _by_id(items: Iterable[Row], where: str) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for number, item in enumerate(items, 1):
        key = item.get("id")
        if key is None or key == "":
            raise ValueError(f"{where}: record {number} has no id; give every record the id of its row")
        if str(key) in found:
            raise ValueError(f"{where}: id {key} stands there twice; keep one record for each id")
        found[str(key)] = item
    return found


def _score_row(row: Row, prediction: Row | None) -> dict[str, Any]:
    points, expected = _expected(row)
    answer = prediction or {}
    metrics: dict[str, float] = {}
    missed: list[str] = []

    def note(metric: str, value: float, faults: Iterable[str]) -> None:
        metrics[metric] = value
        missed.extend(faults)

    if is_empty(answer):
        carried = {"format_compliance", *expected, *(["key_point_coverage"] if points else [])}
        for metric in (name for name in METRICS if name in carried):
            note(metric, 0.0, [])
        missed.append("no prediction" if prediction is None else "empty answer")
    else:
        text = without_thinking(_text(answer.get("response")))
        if points:
            form = normal(text)
            gaps = [point.label for point in points if not keypoints.covered(point, form)]
            note(
                "key_point_coverage",
                1 - len(gaps) / len(points),
                (f"key point: {gap}" for gap in gaps),
            )
        faults = format_faults(row, answer)
        note("format_compliance", float(not faults), faults)
        for metric, wanted in expected.items():
            note(metric, *_JUDGES[metric](wanted, answer, text))
    return {
        "id": row["id"],
        "type": str(row.get("type") or (row.get("meta") or {}).get("type") or "other"),
        "question": question(row),
        "response": _text(answer.get("response")),
        "derived": any(point.derived for point in points),
        "metrics": metrics,
        "missed": missed,
    }


def _expected(row: Row) -> tuple[list[keypoints.KeyPoint], dict[str, Any]]:
    """Key points, and what the row expects for each of the other metrics that it carries."""
    given = row.get("expected")
    messages = row.get("messages") or []
    last = messages[-1] if messages else {}
    wanted: dict[str, Any] = {}
    if isinstance(given, Mapping) and given:
        try:
            points = keypoints.explicit(given.get("key_points"))
        except ValueError as problem:
            raise ValueError(f"benchmark: row {row['id']}: {problem}") from None
        if isinstance(given.get("should_refuse"), bool):
            wanted["refusal_accuracy"] = given["should_refuse"]
        citations, calls = given.get("citations"), given.get("tool_calls")
    elif last.get("role") == "assistant":
        points = keypoints.derive(_text(last.get("content")), question(row))
        if row.get("refusal_type") not in (None, "", "none", False):
            wanted["refusal_accuracy"] = True
        citations, calls = None, last.get("tool_calls")
    else:
        raise ValueError(
            f"benchmark: row {row['id']} has neither expected nor a reference answer; give it "
            "an expected object or end its messages with an assistant turn"
        )
    if citations:
        wanted["citation_accuracy"] = citations
    if calls:
        wanted["tool_call_accuracy"] = calls
    return points, wanted


def question(row: Row) -> str:
    """The last user message, or `query`."""
    asked = [m for m in row.get("messages") or [] if m.get("role") == "user"]
    return _text(asked[-1].get("content")) if asked else _text(row.get("query"))


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):  # content in parts, as multimodal APIs write it
        return "".join(_text(part.get("text")) for part in value if isinstance(part, Mapping))
    if not isinstance(value, str):
        raise ValueError(f"text expected, found {value!r}; write it as a string")
    return value


def is_empty(prediction: Row) -> bool:
    """Whether there is neither text beside think blocks nor a tool call."""
    return not without_thinking(_text(prediction.get("response"))) and not prediction.get("tool_calls")


def _judge_refusal(wanted: bool, prediction: Row, text: str) -> tuple[float, list[str]]:
    given = prediction.get("refused")
    if given is not None and not isinstance(given, bool):
        raise ValueError(f"predictions: {prediction['id']}: refused is {given!r}; give true or false")
    refused = refusal.is_refusal(text) if given is None else given
    if refused == wanted:
        return 1.0, []
    return 0.0, ["refusal expected, but answered" if wanted else "answer expected, but refused"]


def _judge_citations(wanted: Any, prediction: Row, text: str) -> tuple[float, list[str]]:
    expected = _listed(wanted)
    given = prediction.get("citations")
    if given is None:
        body = normal(text)
        lost = [item for item in expected if not contains(normal(_citation(item)), body)]
        return 1 - len(lost) / len(expected), [f"citation missing: {_citation(item)}" for item in lost]
    listed = list(dict.fromkeys(_citation(item) for item in _listed(given)))
    lost = [item for item in expected if not any(_cites(item, entry) for entry in listed)]
    invented = [entry for entry in listed if not any(_cites(item, entry) for item in expected)]
    recall = 1 - len(lost) / len(expected)
    precision = 1 - len(invented) / len(listed) if listed else 0.0
    value = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    faults = [f"citation missing: {_citation(item)}" for item in lost]
    return value, faults + [f"citation not expected: {entry}" for entry in invented]


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, (str, Mapping)) else list(value)


def _citation(item: object) -> str:
    if isinstance(item, Mapping):
        keys = ("id", "source", "title", "text", "url")
        item = next((item[key] for key in keys if item.get(key)), json.dumps(item, ensure_ascii=False))
    return str(item)


def _cites(expected: object, entry: str) -> bool:
    return contains(normal(_citation(expected)), normal(entry))


def _judge_tool_calls(wanted: Any, prediction: Row, text: str) -> tuple[float, list[str]]:
    given = prediction.get("tool_calls")
    if given is None:  # not parsed by whoever generated: Qwen's own notation
        given = [json.loads(found) for found in _TOOL_CALL.findall(text) if _is_json(found)]
    expected = Counter(_call(item) for item in _listed(wanted))
    made = Counter(_call(item) for item in _listed(given))
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


_JUDGES = {
    "refusal_accuracy": _judge_refusal,
    "citation_accuracy": _judge_citations,
    "tool_call_accuracy": _judge_tool_calls,
}


def summarise(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Each metric's mean over the scored rows that carry it: {metric: {"value", "n", "ci95"}}."""
    found = [row["metrics"] for row in rows]
    return {name: _figure([item[name] for item in found if name in item]) for name in METRICS}


def answered(predictions: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """Share of the rows that have a non-empty answer: {"value", "n", "ci95"}."""
    answers = _by_id(predictions, "predictions")
    return _figure([float(not is_empty(answers.get(str(row["id"]), {}))) for row in rows])


def _figure(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"value": None, "n": 0, "ci95": None}
    value = math.fsum(values) / len(values)
    return {"value": value, "n": len(values), "ci95": list(wilson(value, len(values)))}


def wilson(mean: float, n: int) -> tuple[float, float]:
    """95 % score interval of a mean of n values in [0, 1] (Wilson, J. Am. Stat. Assoc. 22, 1927,
    209-212).

    Exact in form for values 0 and 1; for values between them the variance is at most mean * (1 -
    mean), so the interval is wider than need be, never narrower.
    """
    z2 = _Z95 * _Z95
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(max(0.0, mean * (1 - mean)) / n + z2 / (4 * n * n))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
