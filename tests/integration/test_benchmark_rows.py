"""benchmarks/rows.py to its last line, at tiny size."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks import rows
from trainer import data


def test_its_rows_are_sound_and_the_same_every_time(tmp_path: Path) -> None:
    found = list(rows.synthetic(50))
    assert found == list(rows.synthetic(50)) != list(rows.synthetic(50, seed=1))
    assert data.check_rows(enumerate(found, 1), "rows", benchmark=False) == []
    lengths = [len(row["messages"][-1]["content"]) for row in found]
    assert max(lengths) > 1.5 * min(lengths), "they differ, as those of the course do"


def test_every_figure_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(rows.__file__)), "--sizes", "20", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    heading, _, head, rule, *lines = done.stdout.splitlines()
    assert re.search(r"\d+ cores .* \d{4}-\d\d-\d\d, commit \w+", heading)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[1] for row in cells] == list(rows.MEASURES)
    assert {len(row) for row in cells} == {len(head.strip("|").split("|"))} == {len(rule.strip("|").split("|"))}
    for _, _, _, _, rate, before, peak, _ in cells:
        assert float(rate.replace(",", "")) > 0 and int(peak) >= int(before) > 0
    assert cells[-1][-1].startswith("loss ")
    assert list(tmp_path.iterdir()) == []
