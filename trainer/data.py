"""Reading and checking the training and benchmark rows (JSONL, design section 7). No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer import config, keypoints
from trainer.errors import InputError
from trainer.leakage import Leak, Leakage
from trainer.leakage import leakage as leakage
from trainer.leakage import question as question
from trainer.lines import Finding as Finding
from trainer.lines import Findings, Lines
from trainer.lines import Row as Row
from trainer.seen import Seen
from trainer.stages import Stage, StageTable

ROLES = ("system", "user", "assistant", "tool")
ROW_FIELDS = ("id", "mode", "messages", "tools", "refusal_type", "meta", "type", "query", "expected")
EXPECTED_FIELDS: Mapping[str, type] = {
    "key_points": list, "citations": list, "tool_calls": list, "should_refuse": bool,
}  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """What one walk through a stage's files tells: the findings, the rows and the sha256 of the training file,
    and for each benchmark that the stage may be asked which of its questions are among them."""

    findings: list[Finding]
    rows: int
    sha256: str
    leaks: dict[str, list[Leak]]


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
    lines = Lines(path, shown)
    rows = list(lines)
    return rows, lines.findings.told()


def load_rows(path: Path) -> list[Row]:
    """The rows of a file that must be sound; InputError with every fault otherwise."""
    rows, findings = read_rows(path)
    raise_errors(findings + check_shape(rows, str(path)))
    return [row for _, row in rows]


def check_shape(rows: Iterable[tuple[int, Row]], file: str) -> list[Finding]:
    """Findings on fields of another kind than every reader of rows or predictions counts on."""
    faults = Findings(file)
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
    return faults.told()


def raise_errors(findings: Iterable[Finding]) -> None:
    """InputError with every error among the findings, the lines above and the count in the sentence."""
    wrong = [finding for finding in findings if finding.severity == "error"]
    if wrong:
        first = str(wrong[0]).removeprefix("error: ")
        number = sum(finding.count for finding in wrong)
        count = "the data has 1 fault" if number == 1 else f"the data has {number} faults, the first"
        raise InputError(f"{count}: {first}", map(str, wrong))


def check_rows(rows: Iterable[tuple[int, Row]], file: str, *, benchmark: bool) -> list[Finding]:
    """Findings on ids, fields, roles, turns and expectations of the rows of one file."""
    faults = Findings(file)
    seen = Seen()
    for number, row in rows:
        _check_id(row, number, seen, faults)
        for name in row:
            if name not in ROW_FIELDS and (hint := _field_hint(name)):
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
    return faults.told()


@lru_cache(maxsize=1024)  # a field of the user's own stands in every row
def _field_hint(name: str) -> str:
    return config.suggestion(name, ROW_FIELDS)


def _check_id(row: Row, number: int, seen: Seen, faults: Findings) -> None:
    name = row.get("id")
    if not isinstance(name, str) or not name.strip():
        faults.add(number, "id", f"is {name!r}", "give every row a text of its own")
    elif first := seen.first_line(name, number):
        faults.add(number, "id", f"{name!r} is also in line {first}", "give every row its own id")


def _check_messages(messages: Any, number: int, faults: Findings, *, benchmark: bool) -> None:
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


def _check_turn(message: Mapping[str, Any], name: str, number: int, faults: Findings) -> None:
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


def _check_expected(row: Row, number: int, faults: Findings) -> None:
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


def survey(root: Path, table: StageTable, stage: Stage) -> Survey:
    """One walk through the training file of a stage, after its benchmarks, which are small and held."""
    judged = {name: read_rows(root / file, file) for name, file in table.benchmarks.items()}
    looked = Leakage({name: [row for _, row in rows] for name, (rows, _) in judged.items() if stage.benchmarks})
    lines = Lines(root / stage.data, stage.data)
    faults = check_rows(_looked_at(lines, looked), stage.data, benchmark=False)
    findings = lines.findings.told() + faults
    for name, file in table.benchmarks.items():
        rows, broken = judged[name]
        findings += broken + check_rows(rows, file, benchmark=True)
        if name in stage.benchmarks:
            findings += leakage_findings(looked.told(name), stage.data, file)
    leaks = {name: looked.told(name) for name in looked.found}
    return Survey(list(dict.fromkeys(findings)), lines.rows, lines.sha256, leaks)


def _looked_at(lines: Lines, looked: Leakage) -> Iterable[tuple[int, Row]]:
    for number, row in lines:
        looked.look(row)
        yield number, row


def check_stage(root: Path, table: StageTable, stage: Stage) -> list[Finding]:
    """Findings on the training file of a stage and every benchmark it is judged on or compared by."""
    return survey(root, table, stage).findings


def leakage_findings(leaks: Iterable[Leak], data: str, file: str) -> list[Finding]:
    """Leakage between a training file and a benchmark as warnings."""
    return [
        Finding(
            "warning", file, 0, "id",
            f"question {asked!r} is {how} {trained!r} in {data}",
            "remove one of them: the score on it shows memory, not skill",
        )
        for asked, trained, how in leaks
    ]  # fmt: skip
