"""The benchmark of generation runs to its last line at tiny size, and its ways answer the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import generation


def test_every_way_answers_the_same_and_has_its_figures(
    tiny_base: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rounds", "2", "--rows", "4", "--steps", "1", "--cap", "5"]
    assert generation.main([*options, "--base", str(tiny_base), "--data-root", str(tiny_data)]) == 0
    text = capsys.readouterr().out
    assert "4 questions of" in text and re.search(r"Machine: .* commit \w+", text)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| (generate|ours)", line)]
    assert [row[0] for row in rows] == [way.name for way in generation.ways()]
    assert all(re.fullmatch(r"\d+\.\d, \d+\.\d, \d+\.\d", row[2]) and int(row[3]) > 0 for row in rows)
    assert len({row[3] for row in rows}) == 1 and {row[6] for row in rows} == {"0"}
    assert rows[0][5] == "1.0"
