"""The issues of a plan: the record, issues.jsonl, ISSUES.md, and the secrets that neither may show."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from trainer import state
from trainer.markdown import render
from trainer.report import encodable

_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)[^\"'\n\r}]+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), r"\1 ***"),
    (re.compile(r"(://)[^/\s@\"']+@"), r"\1***@"),
    (
        re.compile(
            r"(?i)([\w-]{0,40}(?:passw(?:or)?d|passphrase|secret|(?<!pad_)(?<!eos_)(?<!bos_)(?<!unk_)token"
            r"|api[_-]?key|access[_-]?key|signature|credential)[\"']?\s*[=:]\s*)"
            r"(\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)"
        ),
        r"\1***",
    ),
    # long enough that hf_transfer and ms-marco stay readable
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{10,}|gh[pos]_\w{16,}|github_pat_\w{16,})"), "***"),
    (re.compile(r"\b(?:sk-[\w-]{16,}|ms-[0-9a-f-]{20,})"), "***"),
    (re.compile(r"\bAKIA[A-Z0-9]{12,}"), "***"),
)


@dataclass(frozen=True)
class Issue:
    """One finding; `severity` is error, warning or info, `time` ISO 8601 in UTC."""

    time: str
    phase: str
    stage: str
    severity: str
    symptom: str
    cause: str
    action: str


def redact(text: str) -> str:
    """`text` without tokens, passwords, Authorization headers and credentials in addresses."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def append_issues(folder: Path, issues: Iterable[Issue]) -> None:
    """Append to folder/issues.jsonl (one JSON a line, fsynced) and render ISSUES.md from it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "issues.jsonl"
    records = [{name: redact(str(text)) for name, text in asdict(issue).items()} for issue in issues]
    text = encodable("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in records))
    with path.open("ab+") as stream:
        # a line torn by a crash must not swallow the next one
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
        torn = stream.read(1) not in (b"", b"\n")
        stream.write(("\n" * torn + text).encode())
        stream.flush()
        os.fsync(stream.fileno())
    known, problems = read_issues(path)
    state.write_text(folder / "ISSUES.md", render_issues(known, problems))


def read_issues(path: Path) -> tuple[list[Issue], list[str]]:
    """The issues of an issues.jsonl and a sentence for each unreadable line; no file, no issues."""
    issues, problems = [], []
    names = [field.name for field in fields(Issue)]
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            record = ()
        if isinstance(record, Mapping) and set(names) <= set(record):
            issues.append(Issue(**{name: str(record[name]) for name in names}))
        elif record is not None:
            problems.append(f"{path.name}, line {number}, is not an issue record and is left out")
    return issues, problems


def render_issues(issues: Sequence[Issue], problems: Sequence[str] = ()) -> str:
    """ISSUES.md: every issue with symptom, cause and action, the newest first."""
    return render("issues.md.j2", issues=list(reversed(issues)), problems=problems)
