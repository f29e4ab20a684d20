"""A JSONL file as a stream: hashed and judged on the way, never held, its findings bounded."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest

from trainer import data, lines
from trainer.errors import InputError


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def row(number: int) -> str:
    return json.dumps({"id": f"r-{number}", "text": "x" * 200})


def test_a_walk_tells_rows_hash_and_findings_and_can_be_repeated(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row(1), "", "[]", row(4))
    found = lines.Lines(path, "rows")
    for _ in range(2):
        assert [(number, item["id"]) for number, item in found] == [(1, "r-1"), (4, "r-4")]
        assert (found.rows, [item.line for item in found.findings.told()]) == (2, [3])
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_walked_through_without_being_held(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *(row(number) for number in range(20_000)))
    found = lines.Lines(path)
    next(iter(found))
    tracemalloc.start()
    count = sum(1 for _ in found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < path.stat().st_size / 20


def test_so_many_findings_are_told_in_full_and_the_others_counted() -> None:
    found = lines.Findings("rows", shown=3)
    for line in range(1, 4):
        found.add(line, "id", "is wrong", "mend it")
    assert [item.line for item in found.told()] == [1, 2, 3]
    for line in range(4, 1007):
        found.add(line, "id", "is wrong", "mend it")
    found.add(2000, "", "is odd", "look", "warning")
    *first, odd, rest = found.told()
    assert [item.line for item in first] == [1, 2, 3]
    assert (odd.severity, odd.line, rest.count) == ("warning", 2000, 1003), "errors do not push a warning out"
    assert str(rest) == "error: rows: and 1,003 more errors like these; correct those named first"


def test_findings_that_were_counted_elsewhere_are_counted_on() -> None:
    one, other = lines.Findings("rows", shown=2), lines.Findings("rows", shown=2)
    for line in range(1, 6):
        one.add(line, "id", "is wrong", "mend it")
    other.take(one.told())
    assert [item.line for item in other.told()] == [1, 2, 0] and other.told() == one.told()


def test_the_sentence_counts_also_what_is_not_told(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *(["{}"] * (lines.SHOWN + 5)))
    with pytest.raises(InputError, match=f"the data has {2 * (lines.SHOWN + 5)} faults, the first: .*:1: id") as caught:
        data.raise_errors(data.check_rows(lines.Lines(path), "rows", benchmark=False))
    assert len(caught.value.lines) == lines.SHOWN + 1
    assert "and 1,010 more errors" in caught.value.lines[-1]


@pytest.mark.parametrize(("length", "rows"), [(100, 3), (101, 2)])
def test_a_line_that_has_no_end_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, rows: int
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    long = '{"id": "' + "x" * (length - 11) + '"}'
    path = write(tmp_path / "rows.jsonl", '{"id": "a"}', long, '{"id": "b"}')
    found = lines.Lines(path)
    assert len([item for _, item in found]) == rows
    assert [(item.line, item.remedy) for item in found.findings.told()] == (
        [] if rows == 3 else [(2, "write one JSON object a line")]
    )
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_sample_is_spaced_evenly_and_always_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *(text for n in range(100) for text in (row(n), "")))
    found = lines.Lines(path)
    names = [item["id"] for item in found.sample(4, 100)]
    assert names == ["r-0", "r-25", "r-50", "r-75"] == [item["id"] for item in found.sample(4, 100)]
    assert len(found.sample(100, 100)) == len(found.sample(500, 100)) == 100


@pytest.mark.parametrize("depth", [150, 800])
def test_what_is_nested_too_deep_to_be_written_is_refused_as_what_is_too_deep_to_be_read(
    tmp_path: Path, depth: int
) -> None:
    deep = "[" * depth + "]" * depth
    path = write(tmp_path / "rows.jsonl", f'{{"id": "a", "meta": {deep}}}', '{"id": "b"}')
    found = lines.Lines(path)
    rows = [item for _, item in found]
    for item in rows:
        json.dumps(item)
    assert len(rows) + len(found.findings.told()) == 2


def test_a_file_is_big_from_a_size_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", row(1))
    monkeypatch.setattr(lines, "BIG_BYTES", path.stat().st_size + 1)
    assert not lines.is_big(path) and not lines.is_big(tmp_path / "missing.jsonl")
    monkeypatch.setattr(lines, "BIG_BYTES", path.stat().st_size)
    assert lines.is_big(path)
