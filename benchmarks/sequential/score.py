"""Scores of the answers that generate.py wrote, with the metrics of this repository, in one process.

    python score.py --output FOLDER SET=FILE.jsonl …

It writes scores.json: {set: {"adapter": summary, "base": summary}}.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer import metrics

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("sets", nargs="+")
arguments = parser.parse_args()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


scores = {}
for item in arguments.sets:
    name, _, file = item.partition("=")
    rows = read(Path(file))
    scores[name] = {
        "adapter": metrics.score(rows, read(arguments.output / f"predictions_{name}.jsonl"))["summary"],
        "base": metrics.score(rows, read(arguments.output / f"base_{name}.jsonl"))["summary"],
    }
(arguments.output / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
