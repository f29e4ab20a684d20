"""Questions that later stages of the plan will ask the base, for the places of a batch that would stay empty. No torch.

A batch of few answers takes about as long as a full one: the weights are read for each token, whoever it is for. What
is not worth a stage's failure is left to the stage that asks it: files with faults, files that are never held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import evaluate
from trainer.config import Parameters
from trainer.data import load_rows
from trainer.errors import InputError
from trainer.lines import Row, is_big
from trainer.stages import StageTable


def rows(
    coming: Sequence[Mapping[str, Any]], parameters: Parameters, table: StageTable, data_root: Path
) -> list[Row]:  # fmt: skip
    """The questions of the stages to come ({stage, parameters as in a job}), of those that ask the base as this one.

    Each once: stages share their benchmarks, and the last one has the rows of those before it.
    """
    found: dict[str, Row] = {}
    for item in coming:
        later = Parameters(**{name: told["value"] for name, told in item["parameters"].items()})
        if not evaluate.asks_the_base_alike(parameters, later):
            continue
        stage = table.stage(item["stage"])
        training = data_root / stage.data
        trained = evaluate.gate_questions(stage, later) == "trained"
        with contextlib.suppress(InputError, OSError):
            if any(is_big(data_root / file) for file in (stage.data, *table.benchmarks.values())):
                continue
            own = load_rows(training) if trained else []
            leaks: dict[str, list[Any]] = {name: [] for name in table.benchmarks}  # told when their stage comes
            sets = evaluate.question_sets(stage, table, later, data_root, own, leaks=leaks)
            for asked in sets:
                found |= {evaluate.question_key(row, with_reference=True): row for row in asked.rows}
    return list(found.values())
