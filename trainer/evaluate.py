"""What a stage is asked, how its answers are scored, and what its gate is judged on. No torch.

The answers come through a callable, so this module neither loads nor knows a model.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import digest, fingerprint, metrics
from trainer.config import PLACE, Parameters, by_scope
from trainer.data import Row, load_rows, question
from trainer.errors import InputError
from trainer.leakage import Leak, leakage
from trainer.records import RecordError, by_id
from trainer.stages import Stage, StageTable, judge
from trainer.state import read_json, write_json

MOST_TRAINED = 1000  # trained questions that a stage is asked: a rate of 0.9 is then known to +-0.02 (95 %)
Answer = Callable[[Sequence[Row]], list[Row]]  # rows -> their predictions, in the order of the rows


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
    """The evaluations (one for each set, shape in the eval report), the seconds of each part, and tokens per second.

    All sets are asked in one call, and a question that stands in two of them once. So the seconds of one set are
    its share of that call, by the tokens of its answers.
    """
    started = time.monotonic()
    keys = [[question_key(row, with_reference=True) for row in asked.rows] for asked in sets]
    unique = {key: row for own, asked in zip(keys, sets, strict=True) for key, row in zip(own, asked.rows, strict=True)}
    found = dict(zip(unique, answer(list(unique.values())), strict=True)) if unique else {}
    answered = time.monotonic()
    predictions = [
        [{**found[key], "id": row["id"]} for key, row in zip(own, asked.rows, strict=True)]
        for own, asked in zip(keys, sets, strict=True)
    ]
    tokens = [sum(item["tokens"] for item in own) for own in predictions]
    evaluations = [
        {
            "name": asked.name,
            "questions": asked.questions,
            "file": asked.file,
            "result": metrics.score(asked.rows, own),
            "answered": metrics.answered(own, asked.rows),
            "cut": cut(own),
            "base": None,
            "warnings": asked.warnings,
            "seconds": round((answered - started) * count / max(sum(tokens), 1), 3),
            "tokens": count,
            "predictions": own,
        }
        for asked, own, count in zip(sets, predictions, tokens, strict=True)
    ]
    generated, seconds = sum(item["tokens"] for item in found.values()), max(answered - started, 1e-9)
    figures = {
        "generate_seconds": seconds,
        "score_seconds": time.monotonic() - answered,
        "generated_tokens_per_second": generated / seconds,
    }
    return evaluations, {name: round(value, 3) for name, value in figures.items()}


def cut(predictions: Sequence[Row]) -> dict[str, int]:
    """How many answers each limit has cut: {reference | max_new_tokens | context: count}."""
    return dict(Counter(str(item.get("cut_by")) for item in predictions if item.get("finish_reason") == "length"))


def base_scores(
    sets: Sequence[QuestionSet], answer: Answer, cache: Path, base_hash: str, parameters: Parameters,
    computed: Sequence[Any] = (), ahead: Sequence[Row] = (), places: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """The base model's summaries on the same sets, from the cache where nothing that shapes them changed.

    Rows are cached one by one: the multitask stage asks what the stages before it asked. `computed` says how the
    base really computes (quantised, type), where the parameters leave that to the host. When some are to be answered,
    rows `ahead` fill them up to so many `places`, and are in the cache when their stage comes.
    """
    path = cache / f"base_answers_{_base_key(base_hash, parameters, computed)}.json"
    known: dict[str, Row] = (read_json(path) or {"answers": {}})["answers"]
    capped = bool(parameters.max_new_tokens_ratio)  # only then the reference shapes the answer
    keys = [[question_key(row, with_reference=capped) for row in asked.rows] for asked in sets]
    unknown = {
        key: row
        for own, asked in zip(keys, sets, strict=True)
        for key, row in zip(own, asked.rows, strict=True)
        if key not in known
    }
    if unknown:
        for row in ahead:
            key = question_key(row, with_reference=capped)
            if len(unknown) < places and key not in known:
                unknown.setdefault(key, row)
        known.update(zip(unknown, answer(list(unknown.values())), strict=True))
        write_json(path, {"schema": 1, "answers": known})
    scores = []
    for own, asked in zip(keys, sets, strict=True):
        predictions = [{**known[key], "id": row["id"]} for key, row in zip(own, asked.rows, strict=True)]
        scores.append(metrics.score(asked.rows, predictions)["summary"])
    return scores


def _base_key(base_hash: str, parameters: Parameters, computed: Sequence[Any]) -> str:
    """The hash of what shapes the base's answers, which no adapter, merging or size of a batch does."""
    shaping = by_scope(parameters, "evaluation")
    for name in ("gate_questions", "merge_adapter", "per_device_eval_batch_size"):
        del shaping[name]
    # Quantisation and the type of the computation change the base's answers too.
    shaping["model"] = [*(computed or (parameters.use_qlora, parameters.compute_dtype)), parameters.enable_thinking]
    modules = fingerprint.of_modules(("decoder", "encoding", "generate"))
    return digest.of_value([base_hash, shaping, modules])[:16]


def asks_the_base_alike(one: Parameters, other: Parameters) -> bool:
    """Whether the base's answers under these parameters are the same answers of the same base."""
    same = all(getattr(one, name) == getattr(other, name) for name in PLACE)
    return same and _base_key("", one, ()) == _base_key("", other, ())


def question_key(row: Row, *, with_reference: bool) -> str:
    """The hash of what a row asks, and of its reference answer where its length caps the answer."""
    messages = list(row.get("messages") or [])
    reference = messages.pop() if messages and messages[-1].get("role") == "assistant" else None
    return digest.of_value([messages, row.get("query"), row.get("tools"), reference if with_reference else None])


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
