"""What a stage is asked, how its answers are scored, and what its gate is judged on. No torch.

The answers come through a callable, so this module neither loads nor knows a model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import digest, fingerprint, metrics
from trainer.config import Parameters, by_scope
from trainer.data import Row, load_rows, question
from trainer.errors import InputError
from trainer.leakage import Leak, leakage
from trainer.records import RecordError, by_id
from trainer.stages import Stage, StageTable, judge
from trainer.state import read_json, write_json

MOST_TRAINED = 1000  # trained questions that a stage is asked: a rate of 0.9 is then known to +-0.02 (95 %)
Answer = Callable[[Sequence[Row]], tuple[list[Row], int]]  # rows -> (predictions, generated tokens)


@dataclass(frozen=True)
class QuestionSet:
    """Questions to be answered: the stage's own rows (`trained`) or a benchmark (`held_out`)."""

    name: str
    questions: str
    file: str
    rows: list[Row]
    warnings: list[str]


def question_sets(
    stage: Stage, table: StageTable, parameters: Parameters, data_root: Path, training: Sequence[Row],
    trained_rows: int = 0, leaks: Mapping[str, list[Leak]] | None = None,
) -> list[QuestionSet]:  # fmt: skip
    """What a stage is asked: its trained questions where the gate wants them, then every benchmark.

    `training` are the rows of the stage, or a sample of its `trained_rows`; then `leaks` tells of all of them.
    """
    sets = []
    if gate_questions(stage, parameters) == "trained":
        total = max(trained_rows, len(training))
        asked = [training[place * len(training) // MOST_TRAINED] for place in range(MOST_TRAINED)]
        rows = [row for row in (asked if len(training) > MOST_TRAINED else training) if question(row)]
        warning = f"sample: asked {len(rows)} of the {total} trained rows, evenly spaced over the file"
        sets.append(QuestionSet("trained", "trained", stage.data, rows, [warning] if total > MOST_TRAINED else []))
    if stage.benchmarks:
        for name, file in table.benchmarks.items():
            rows = load_rows(data_root / file)
            warnings = [
                f"leakage: benchmark row {asked} is {how} training row {trained}"
                for asked, trained, how in (leakage(training, rows) if leaks is None else leaks[name])
            ]
            sets.append(QuestionSet(name, "held_out", file, rows, warnings))
    return sets


def gate_questions(stage: Stage, parameters: Parameters) -> str:
    """A stage without benchmarks can only be judged on what it was trained on."""
    return parameters.gate_questions if stage.benchmarks else "trained"


def evaluate(sets: Sequence[QuestionSet], answer: Answer) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The evaluations (one for each set, shape in the eval report) and the seconds of each part."""
    evaluations = []
    times = {"generate_seconds": 0.0, "score_seconds": 0.0}
    for asked in sets:
        started = time.monotonic()
        predictions, tokens = answer(asked.rows)
        answered = time.monotonic()
        result = metrics.score(asked.rows, predictions)
        scored = time.monotonic()
        times["generate_seconds"] += answered - started
        times["score_seconds"] += scored - answered
        evaluations.append(
            {
                "name": asked.name,
                "questions": asked.questions,
                "file": asked.file,
                "result": result,
                "answered": metrics.answered(predictions, asked.rows),
                "base": None,
                "warnings": asked.warnings,
                "seconds": round(answered - started, 3),
                "tokens": tokens,
                "predictions": predictions,
            }
        )
    return evaluations, {name: round(value, 3) for name, value in times.items()}


def base_scores(
    sets: Sequence[QuestionSet], answer: Answer, cache: Path, base_hash: str, parameters: Parameters
) -> list[dict[str, Any]]:
    """The base model's summaries on the same sets, from the cache where nothing that shapes them changed.

    Rows are cached one by one: the multitask stage asks what the stages before it asked.
    """
    shaping = {**by_scope(parameters, "evaluation"), "gate_questions": None}
    # Quantisation and the type of the computation change the base's answers too.
    shaping["model"] = [parameters.use_qlora, parameters.compute_dtype, parameters.enable_thinking]
    modules = fingerprint.of_modules(("encoding", "generate"))
    path = cache / f"base_answers_{digest.of_value([base_hash, shaping, modules])[:16]}.json"
    known: dict[str, Row] = (read_json(path) or {"answers": {}})["answers"]
    keys = {id(row): _question_key(row) for asked in sets for row in asked.rows}
    unknown = {keys[id(row)]: row for asked in sets for row in asked.rows if keys[id(row)] not in known}
    if unknown:
        # Two sets may use one id for two questions: each gets its key as id while it is asked.
        asked_rows = [{**row, "id": key} for key, row in unknown.items()]
        known.update({item["id"]: item for item in answer(asked_rows)[0]})
        write_json(path, {"schema": 1, "answers": known})
    scores = []
    for asked in sets:
        predictions = [{**known[keys[id(row)]], "id": row["id"]} for row in asked.rows]
        scores.append(metrics.score(asked.rows, predictions)["summary"])
    return scores


def _question_key(row: Row) -> str:
    messages = list(row.get("messages") or [])
    if messages and messages[-1].get("role") == "assistant":
        messages.pop()
    return digest.of_value([messages, row.get("query"), row.get("tools")])


def gate(stage: Stage, parameters: Parameters, evaluations: Sequence[dict[str, Any]], mode: str) -> dict[str, Any]:
    """The gate's verdict, judged on the stage's own question sets taken together."""
    questions = gate_questions(stage, parameters)
    wanted = ["trained"] if questions == "trained" else list(stage.benchmarks)
    chosen = [item for item in evaluations if item["name"] in wanted]
    rows = [row for item in chosen for row in item["result"]["rows"]]
    measured = metrics.summarise(rows)
    n = sum(item["answered"]["n"] for item in chosen)
    answered = sum(item["answered"]["value"] * item["answered"]["n"] for item in chosen if item["answered"]["n"])
    measured = {**measured, "answered": {"value": answered / n if n else None, "n": n}}
    passed, reasons = judge(stage.gate, measured)
    return {
        "mode": mode,
        "questions": questions,
        "targets": dict(stage.gate),
        "measured": {name: measured[name] for name in stage.gate},
        "passed": passed,
        "reasons": reasons,
    }


def score_files(benchmark: Path, predictions: Path) -> dict[str, Any]:
    """The score result of two JSONL files; InputError for files or ids that do not fit.

    `predictions_<stage>.jsonl` holds the answers to several question sets, each row with its `set`, and two
    sets may use one id. Of such a file only the rows of one set are scored: the one that holds every id of
    the benchmark. When no set does, or more than one, nothing is scored.
    """
    rows = load_rows(benchmark)
    answers = load_rows(predictions)
    try:
        ids = set(by_id(rows, "benchmark"))
        return metrics.score(rows, _of_one_set(answers, ids, predictions, benchmark))
    except RecordError as problem:
        file = benchmark if problem.origin == "benchmark" else predictions
        raise InputError(f"{file}: {problem.sentence}") from None


def _of_one_set(answers: list[Row], ids: set[str], predictions: Path, benchmark: Path) -> list[Row]:
    """The rows of the one question set that holds the benchmark's ids; all rows of a file without sets."""
    sets: dict[str, list[Row]] = {}
    for answer in answers:
        sets.setdefault(str(answer.get("set") or ""), []).append(answer)
    if set(sets) == {""}:
        return answers
    if "" in sets:
        count = f"{len(sets[''])} of {len(answers)} rows have no set"
        raise InputError(f"{predictions}: {count}; name the question set in every row or in none")
    fitting = [name for name, own in sets.items() if ids <= {str(answer.get("id")) for answer in own}]
    if len(fitting) == 1:
        return sets[fitting[0]]
    if fitting:
        named = f"the question sets {' and '.join(fitting)} all hold the ids of {benchmark}"
        raise InputError(f"{predictions}: {named}; keep the rows of the one that is meant")
    named = f"no question set ({', '.join(sets)}) holds every id of {benchmark}"
    raise InputError(f"{predictions}: {named}; name the benchmark that one of them was asked from")


def write_predictions(path: Path, evaluations: Sequence[dict[str, Any]]) -> None:
    """All answers of a stage as JSONL, each with the name of its question set."""
    with path.open("w", encoding="utf-8") as stream:
        for item in evaluations:
            for prediction in item["predictions"]:
                stream.write(json.dumps({"set": item["name"], **prediction}, ensure_ascii=False) + "\n")
