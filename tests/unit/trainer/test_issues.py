"""Issues: what is kept of them, what is never shown, and what a torn file loses."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from trainer import issues as records
from trainer.diagnose import diagnose


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("token hf_AbCdEfGhIjKlMnOpQrStUv rejected", "hf_AbCd"),
        ("Authorization: Bearer abcdef123456", "abcdef"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpwYXNz"),
        ("ssh failed with password=geheim7, again", "geheim7"),
        ('password: "two words"', "two words"),
        ("HF_TOKEN=abc123 python", "abc123"),
        ("https://user:geheim7@mirror/x", "geheim7"),
        ("GET /x?X-Amz-Signature=deadbeef&y=1", "deadbeef"),
    ],
)
def test_secrets_are_redacted(text: str, secret: str) -> None:
    assert secret not in records.redact(text)
    issue = diagnose(f"error: {text}\n", exit_signal=None, error_kind=None)[0]
    assert secret not in json.dumps(asdict(issue))


@pytest.mark.parametrize(
    "text",
    [
        "tokens: 4096",
        "pad_token=<|endoftext|>",
        "max_new_tokens=320",
        "https://mirror/x",
        "hf_transfer and hf_hub_download",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert records.redact(text) == text


def make_issue(symptom: str = "boom", **changes: str) -> records.Issue:
    values = {
        "time": "2026-11-22T10:00:00+00:00",
        "phase": "training",
        "stage": "style",
        "severity": "error",
        "symptom": symptom,
        "cause": "a cause",
        "action": "run `x -e a=1`",
    }
    return records.Issue(**{**values, **changes})


def test_issues_are_appended_and_rendered_again(tmp_path: Path) -> None:
    records.append_issues(tmp_path, [make_issue("first")])
    records.append_issues(tmp_path, [make_issue("second"), make_issue("Authorization: Bearer abcdef123")])
    lines = (tmp_path / "issues.jsonl").read_text(encoding="utf-8").splitlines()
    assert [set(json.loads(line)) for line in lines] == [set(asdict(make_issue()))] * 3
    text = (tmp_path / "ISSUES.md").read_text(encoding="utf-8")
    assert text.index("second") < text.index("first")
    assert "- Action: run `x -e a=1`" in text
    assert "abcdef123" not in text + lines[2]


def test_a_torn_line_is_named_and_swallows_nothing(tmp_path: Path) -> None:
    records.append_issues(tmp_path, [make_issue("first")])
    path = tmp_path / "issues.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": "2026')
    records.append_issues(tmp_path, [make_issue("second")])
    issues, problems = records.read_issues(path)
    assert [issue.symptom for issue in issues] == ["first", "second"]
    assert problems == ["issues.jsonl, line 2, is not an issue record and is left out"]
    assert problems[0] in (tmp_path / "ISSUES.md").read_text(encoding="utf-8")


def test_hostile_symptoms_do_not_break_issues_md() -> None:
    text = records.render_issues([make_issue("a\n## b <script> | `c`", cause="see <img src=x>")])
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Issues",
        "## style: error",
    ]
    assert "<script" not in text
    assert "<img" not in text
    assert "None." in records.render_issues([])
