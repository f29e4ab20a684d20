"""Reading and checking the training and benchmark rows (JSONL, design section 7). No torch."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer import config, keypoints
from trainer.errors import InputError
from trainer.stages import Stage, StageTable

Row = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")
ROW_FIELDS = ("id", "mode", "messages", "tools", "refusal_type", "meta", "type", "query", "expected")
EXPECTED_FIELDS: Mapping[str, type] = {
    "key_points": list, "citations": list, "tool_calls": list, "should_refuse": bool,
}  # fmt: skip
# Character-bigram overlap (Jaccard) from which two questions count as near the same: paraphrases that keep
# nine of ten characters lie above it, different questions of one subject below 0.5.
NEAR_SAME = 0.8


@dataclass(frozen=True)
class Finding:
    """One fault in a data file: where it is, what is wrong with the value found, what to do."""

    severity: str
    file: str
    line: int
    field: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        place = self.file + (f":{self.line}" if self.line else "")
        name = f"{self.field}: " if self.field else ""
        return f"{self.severity}: {place}: {name}{self.problem}; {self.remedy}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Faults:
    """Collects the findings of one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Finding] = []

    def add(self, line: int, field: str, problem: str, remedy: str, severity: str = "error") -> None:
        self.found.append(Finding(severity, self.file, line, field, problem, remedy))


def resolve_root(folder: Path) -> Path:
    """The data root (the folder that holds `training/`) for a folder that a user names.

    Accepted: the root itself, the project folder above it (`data/training`), or its `training` folder.
    """
    if not folder.is_dir():
        raise InputError(f"the data root {str(folder)!r} is not a folder; name one that holds training/")
    for root, sign in ((folder, "training"), (folder / "data", "training"), (folder.parent, folder.name)):
        if sign == "training" and (root / sign / "processed").is_dir():
            return root
    raise InputError(f"the data root {str(folder)!r} holds no training/processed; name the folder that holds training/")


def read_rows(path: Path, shown: str = "") -> tuple[list[tuple[int, Row]], list[Finding]]:
    """The rows of a JSONL file with their line numbers, and a finding for every line that is not a row."""
    faults = _Faults(shown or str(path))
    rows: list[tuple[int, Row]] = []
    try:
        raw = path.read_bytes()
    except OSError as problem:
        faults.add(0, "", f"cannot be read ({problem.strerror})", "put the file there or name another data root")
        return rows, faults.found
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeDecodeError as problem:
            faults.add(number, "", f"is not UTF-8 (byte {problem.start})", "save the file as UTF-8")
        except UnicodeEncodeError:
            faults.add(number, "", "holds half of a surrogate pair", "write the whole character")
        except (ValueError, RecursionError) as problem:
            faults.add(number, "", f"broken JSON ({problem})", "write one JSON object a line")
        else:
            if isinstance(row, dict):
                rows.append((number, row))
            else:
                faults.add(number, "", f"is a {type(row).__name__}, not an object", "write one JSON object a line")
    if not rows and not faults.found:
        faults.add(0, "", "holds no row", "add rows or name another data root")
    return rows, faults.found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    if doubled:
        raise ValueError(f"the name {doubled[0]!r} stands twice in one object")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def load_rows(path: Path) -> list[Row]:
    """The rows of a file that must be sound; InputError with every fault otherwise."""
    rows, findings = read_rows(path)
    raise_errors(findings + check_shape(rows, str(path)))
    return [row for _, row in rows]


def check_shape(rows: Iterable[tuple[int, Row]], file: str) -> list[Finding]:
    """Findings on fields of another kind than every reader of rows or predictions counts on."""
    faults = _Faults(file)
    for number, row in rows:
        for name in ("meta", "expected"):
            if not isinstance(row.get(name), (dict, type(None))):
                faults.add(number, name, f"is {row[name]!r}", "give an object or leave it out")
        for name in ("citations", "tool_calls"):
            if not isinstance(row.get(name), (list, dict, str, type(None))):
                faults.add(number, name, f"is {row[name]!r}", "give a list or leave it out")
        messages = row.get("messages")
        if messages is not None and not (isinstance(messages, list) and all(isinstance(m, dict) for m in messages)):
            faults.add(number, "messages", f"is {messages!r:.60}", "give a list of {role, content}")
    return faults.found


def raise_errors(findings: Iterable[Finding]) -> None:
    """InputError with every error among the findings, the lines above and the count in the sentence."""
    wrong = [str(finding) for finding in findings if finding.severity == "error"]
    if wrong:
        first = wrong[0].removeprefix("error: ")
        count = "the data has 1 fault" if len(wrong) == 1 else f"the data has {len(wrong)} faults, the first"
        raise InputError(f"{count}: {first}", wrong)


def check_rows(rows: Iterable[tuple[int, Row]], file: str, *, benchmark: bool) -> list[Finding]:
    """Findings on ids, fields, roles, turns and expectations of the rows of one file."""
    faults = _Faults(file)
    seen: dict[str, int] = {}
    for number, row in rows:
        _check_id(row, number, seen, faults)
        for name in row:
            if name not in ROW_FIELDS and (hint := config.suggestion(name, ROW_FIELDS)):
                faults.add(number, name, "is not a field of a row", f"rename it{hint}", "warning")
        if "messages" in row:
            _check_messages(row["messages"], number, faults, benchmark=benchmark)
        elif not benchmark:
            faults.add(number, "messages", "is missing", "give the turns as a list of {role, content}")
        elif not isinstance(row.get("query"), str) or not row["query"].strip():
            faults.add(number, "query", "neither messages nor a query", "give the question")
        if not isinstance(row.get("tools", []), list):
            faults.add(number, "tools", "is not a list", "give the tool definitions as a list")
        if benchmark:
            _check_expected(row, number, faults)
    return faults.found


def _check_id(row: Row, number: int, seen: dict[str, int], faults: _Faults) -> None:
    name = row.get("id")
    if not isinstance(name, str) or not name.strip():
        faults.add(number, "id", f"is {name!r}", "give every row a text of its own")
    elif name in seen:
        faults.add(number, "id", f"{name!r} is also in line {seen[name]}", "give every row its own id")
    else:
        seen[name] = number


def _check_messages(messages: Any, number: int, faults: _Faults, *, benchmark: bool) -> None:
    if not isinstance(messages, list) or not messages:
        faults.add(number, "messages", "is not a list with turns", "give a list of {role, content}")
        return
    before = ""
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            hint = config.suggestion(str(role), ROLES)
            faults.add(number, name, f"has the role {role!r}", f"use one of {', '.join(ROLES)}{hint}")
            return
        role = message["role"]
        _check_turn(message, name, number, faults)
        allowed = {
            "": ("system", "user"), "system": ("user",), "user": ("assistant",),
            "assistant": ("user",), "assistant+tools": ("tool",), "tool": ("tool", "assistant"),
        }[before]  # fmt: skip
        if role not in allowed:
            where = f"after {before.replace('+tools', ' with tool_calls')}" if before else "first"
            faults.add(number, name, f"the role {role!r} stands {where}", f"expected {' or '.join(allowed)}")
            return
        before = "assistant+tools" if message.get("tool_calls") else role
    last_roles = ("assistant", "user", "tool") if benchmark else ("assistant",)
    if messages[-1]["role"] not in last_roles or before == "assistant+tools":
        faults.add(number, "messages", f"the last turn is {before}", "end with the answer of the assistant")


def _check_turn(message: Mapping[str, Any], name: str, number: int, faults: _Faults) -> None:
    content, calls = message.get("content"), message.get("tool_calls")
    if calls and message["role"] != "assistant":
        faults.add(
            number, f"{name}.tool_calls", f"stands in a turn of {message['role']}", "only the assistant calls tools"
        )
    if content is not None and not isinstance(content, str):
        faults.add(number, f"{name}.content", f"is a {type(content).__name__}", "give a text")
    elif not (content or "").strip() and not calls:
        faults.add(number, f"{name}.content", "is empty", "write the turn or leave it out")
    if calls is not None and not isinstance(calls, list):
        faults.add(number, f"{name}.tool_calls", f"is a {type(calls).__name__}", "give a list of calls")
        return
    for index, call in enumerate(calls or []):
        function = call.get("function", call) if isinstance(call, dict) else {}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            faults.add(
                number, f"{name}.tool_calls[{index}]", "names no function", 'give {"function": {"name", "arguments"}}'
            )
        elif not isinstance(function.get("arguments", {}), (dict, str)):
            faults.add(
                number, f"{name}.tool_calls[{index}].arguments", "is no object", "give an object or its JSON text"
            )


def _check_expected(row: Row, number: int, faults: _Faults) -> None:
    expected = row.get("expected")
    if expected is None:
        messages = row.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        if not isinstance(last, dict) or last.get("role") != "assistant":
            faults.add(number, "expected", "is missing", "give expected, or end the messages with a reference answer")
        return
    if not isinstance(expected, dict):
        faults.add(number, "expected", f"is a {type(expected).__name__}", "give an object")
        return
    for name, value in expected.items():
        if name not in EXPECTED_FIELDS:
            hint = config.suggestion(name, EXPECTED_FIELDS) or f"; known: {', '.join(EXPECTED_FIELDS)}"
            faults.add(number, f"expected.{name}", "is not known", f"rename or remove it{hint}")
        elif not isinstance(value, EXPECTED_FIELDS[name]):
            kind = "true or false" if EXPECTED_FIELDS[name] is bool else "a list"
            faults.add(number, f"expected.{name}", f"is {value!r}", f"give {kind}")
    points = expected.get("key_points")
    for index, point in enumerate(points if isinstance(points, list) else []):
        if not _is_key_point(point):
            faults.add(
                number, f"expected.key_points[{index}]", f"is {point!r}", "give a text or a list of alternatives"
            )


def _is_key_point(point: Any) -> bool:
    """Whether the scoring could hold an answer against it: one rule, kept there."""
    try:
        return bool(keypoints.explicit([point]))
    except ValueError:
        return False


def question(row: Row) -> str:
    """The last user turn of a row, or its query."""
    users = list(_user_turns(row))
    return users[-1] if users else str(row.get("query") or "")


def leakage(training: Iterable[Row], benchmark: Iterable[Row]) -> list[tuple[str, str, str]]:
    """(benchmark id, training id, "same" | "near the same") for each benchmark question seen in training."""
    asked = [(str(row.get("id")), _plain(question(row))) for row in benchmark]
    prepared = [(name, text, _bigrams(text)) for name, text in asked if text]
    found: dict[str, tuple[str, str, str]] = {}
    for row in training:
        for turn in _user_turns(row):
            plain = _plain(turn)
            grams = _bigrams(plain)
            for name, text, wanted in prepared:
                if text == plain:
                    found[name] = (name, str(row.get("id")), "the same as")
                elif name not in found and _jaccard(grams, wanted) >= NEAR_SAME:
                    found[name] = (name, str(row.get("id")), "near the same as")
    return list(found.values())


def _user_turns(row: Row) -> Iterator[str]:
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else []:  # faulty rows are compared too
        if isinstance(message, dict) and message.get("role") == "user":
            yield str(message.get("content") or "")


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


def _bigrams(text: str) -> frozenset[str]:
    return frozenset(text[i : i + 2] for i in range(len(text) - 1))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one and other else 0.0


def check_stage(root: Path, table: StageTable, stage: Stage) -> list[Finding]:
    """Findings on the training file of a stage and every benchmark it is judged on or compared by."""
    rows, findings = read_rows(root / stage.data, stage.data)
    findings += check_rows(rows, stage.data, benchmark=False)
    for name, file in table.benchmarks.items():
        judged, more = read_rows(root / file, file)
        findings += more + check_rows(judged, file, benchmark=True)
        if name in stage.benchmarks:
            findings += leakage_findings([row for _, row in rows], [row for _, row in judged], stage.data, file)
    return list(dict.fromkeys(findings))


def leakage_findings(training: list[Row], benchmark: list[Row], data: str, file: str) -> list[Finding]:
    """Leakage between a training file and a benchmark as warnings."""
    return [
        Finding(
            "warning", file, 0, "id",
            f"question {asked!r} is {how} {trained!r} in {data}",
            "remove one of them: the score on it shows memory, not skill",
        )
        for asked, trained, how in leakage(training, benchmark)
    ]  # fmt: skip
