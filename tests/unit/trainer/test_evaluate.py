"""What a stage is asked, what its gate is judged on, and the base model's scores that are computed once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer import evaluate, fingerprint, stages
from trainer.config import Parameters
from trainer.errors import InputError

Row = dict[str, Any]
TABLE = stages.load()
TRAINED = Parameters(gate_questions="trained")
HELD_OUT = Parameters(gate_questions="held_out")


def load(root: Path, stage: str) -> list[Row]:
    text = (root / TABLE.stage(stage).data).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def sets_of(root: Path, stage: str, parameters: Parameters) -> list[evaluate.QuestionSet]:
    return evaluate.question_sets(TABLE.stage(stage), TABLE, parameters, root, load(root, stage))


class Model:
    """Answers by a rule, and counts what it was asked."""

    def __init__(self, rule: Callable[[Row], str] = lambda row: "") -> None:
        self.rule = rule
        self.asked: list[list[Row]] = []

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        self.asked.append(list(rows))
        return [{"id": row["id"], "response": self.rule(row), "finish_reason": "stop", "tokens": 2} for row in rows]


def knows(row: Row) -> str:
    """The reference answer of a trained row, the key points of a benchmark row."""
    if "expected" in row:
        return "、".join(row["expected"]["key_points"])
    return str(row["messages"][-1]["content"])


@pytest.mark.parametrize(
    ("stage", "parameters", "names"),
    [
        ("sample", TRAINED, ["trained"]),
        ("sample", HELD_OUT, ["trained"]),  # no benchmark is its own: it can only be asked what it was trained on
        ("style", TRAINED, ["trained", "style", "writing"]),
        ("style", HELD_OUT, ["style", "writing"]),
        ("all", HELD_OUT, ["style", "writing"]),
    ],
)
def test_what_a_stage_is_asked(tiny_data: Path, stage: str, parameters: Parameters, names: list[str]) -> None:
    found = sets_of(tiny_data, stage, parameters)
    assert [item.name for item in found] == names
    for item in found:
        held_out = item.name != "trained"
        assert item.questions == ("held_out" if held_out else "trained")
        assert item.file == (TABLE.benchmarks[item.name] if held_out else TABLE.stage(stage).data)
        wanted = (tiny_data / item.file).read_text(encoding="utf-8").splitlines()
        assert [row["id"] for row in item.rows] == [json.loads(line)["id"] for line in wanted]


def test_leakage_stands_beside_the_score(tiny_data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    assert all(item.warnings == [] for item in sets_of(root, "style", TRAINED))
    leaked = {"id": "leaked", "type": "concept", "query": "高斯定理 ？", "expected": {"key_points": ["电通量"]}}
    with (root / TABLE.benchmarks["style"]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(leaked) + "\n")
    found = sets_of(root, "style", TRAINED)
    warning = "leakage: benchmark row leaked is the same as training row style-3"
    assert [item.warnings for item in found] == [[], [warning], []]
    evaluations, _ = evaluate.evaluate(found, Model(knows))
    assert [item["warnings"] for item in evaluations] == [[], [warning], []]
    assert sets_of(root, "writing", TRAINED)[1].warnings == []  # that stage was not trained on the row


def test_of_many_trained_rows_a_spread_sample_is_asked_and_the_report_says_so(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "MOST_TRAINED", 2)
    trained, *_ = sets_of(tiny_data, "style", TRAINED)
    assert [row["id"] for row in trained.rows] == ["style-1", "style-2"]
    assert trained.warnings == ["sample: asked 2 of the 3 trained rows, evenly spaced over the file"]
    monkeypatch.setattr(evaluate, "MOST_TRAINED", 3)
    trained, *_ = sets_of(tiny_data, "style", TRAINED)
    assert len(trained.rows) == 3 and trained.warnings == []


def test_what_a_survey_knows_stands_for_rows_that_are_not_held(tiny_data: Path) -> None:
    rows = load(tiny_data, "style")[:1]
    leaks = {"style": [("held-style-1", "r-99", "the same as")], "writing": []}
    style = TABLE.stage("style")
    trained, judged, other = evaluate.question_sets(style, TABLE, TRAINED, tiny_data, rows, 5000, leaks)
    assert trained.warnings == ["sample: asked 1 of the 5000 trained rows, evenly spaced over the file"]
    assert judged.warnings == ["leakage: benchmark row held-style-1 is the same as training row r-99"]
    assert other.warnings == []


def test_a_benchmark_that_is_broken_is_an_error(tiny_data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    sets_of(root, "style", TRAINED)
    with (root / TABLE.benchmarks["style"]).open("a", encoding="utf-8") as stream:
        stream.write('{"id": "half\n')
    with pytest.raises(InputError, match="the data has 1 fault: .*style_benchmark.jsonl:3: broken JSON"):
        sets_of(root, "style", TRAINED)


def test_an_evaluation_holds_scores_answers_and_costs(tiny_data: Path) -> None:
    model = Model(knows)
    evaluations, times = evaluate.evaluate(sets_of(tiny_data, "style", TRAINED), model)
    assert [len(rows) for rows in model.asked] == [6]
    first = evaluations[0]
    assert (first["name"], first["questions"], first["tokens"], first["base"]) == ("trained", "trained", 6, None)
    assert first["answered"]["value"] == 1.0
    assert first["result"]["summary"]["key_point_coverage"]["value"] == 1.0
    assert [item["id"] for item in first["predictions"]] == ["style-1", "style-2", "style-3"]
    assert set(times) == {"generate_seconds", "score_seconds", "generated_tokens_per_second"}


def test_a_question_that_stands_in_two_sets_is_asked_once(tiny_data: Path) -> None:
    sets = sets_of(tiny_data, "style", TRAINED)
    again = {**sets[1].rows[0], "id": "again", "expected": {"key_points": ["反比"]}}
    sets[2].rows.append(again)
    model = Model(lambda row: f"{row['id']}：平方，减小")
    evaluations, _ = evaluate.evaluate(sets, model)
    assert [len(rows) for rows in model.asked] == [6]
    one, other = evaluations[1]["predictions"][0], evaluations[2]["predictions"][-1]
    assert (one["id"], other["id"]) == ("held-style-1", "again")
    assert one["response"] == other["response"]
    assert evaluations[1]["result"]["rows"][0]["metrics"]["key_point_coverage"] == 1.0
    assert evaluations[2]["result"]["rows"][-1]["metrics"]["key_point_coverage"] == 0.0
    assert [item["tokens"] for item in evaluations] == [6, 4, 4]  # of each set, as if it had been asked alone
    again["query"] += "？"  # another question
    evaluate.evaluate(sets, model)
    assert len(model.asked[-1]) == 7


def test_the_same_question_with_another_reference_is_another(tiny_data: Path) -> None:
    # The reference's length may cap the answer.
    sets = sets_of(tiny_data, "style", TRAINED)
    row = sets[0].rows[0]
    sets[1].rows.append({**row, "id": "again", "messages": [*row["messages"][:-1], {**row["messages"][-1]}]})
    model = Model(knows)
    evaluate.evaluate(sets, model)
    sets[1].rows[-1]["messages"][-1]["content"] += "。"
    evaluate.evaluate(sets, model)
    assert [len(rows) for rows in model.asked] == [6, 7]


def test_the_seconds_of_the_sets_are_those_of_the_call(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0, 105.0])
    monkeypatch.setattr(evaluate.time, "monotonic", lambda: next(clock))
    evaluations, figures = evaluate.evaluate(sets_of(tiny_data, "style", TRAINED), Model(knows))
    assert figures == {"generate_seconds": 4.0, "score_seconds": 1.0, "generated_tokens_per_second": 3.0}
    assert [item["seconds"] for item in evaluations] == [2.0, 1.333, 0.667]  # 6, 4 and 2 of 12 tokens


def test_the_report_counts_the_answers_that_a_cap_has_cut(tiny_data: Path) -> None:
    ends = iter(["reference", "", "reference", "max_new_tokens", "", ""])

    def answer(rows: Sequence[Row]) -> list[Row]:
        found = []
        for row in rows:
            by = next(ends)
            end: Row = {"finish_reason": "length", "cut_by": by} if by else {"finish_reason": "stop"}
            found.append({"id": row["id"], "response": "x", "tokens": 1, **end})
        return found

    evaluations, _ = evaluate.evaluate(sets_of(tiny_data, "style", TRAINED), answer)
    assert [item["cut"] for item in evaluations] == [{"reference": 2}, {"max_new_tokens": 1}, {}]


def judged(root: Path, stage: str, parameters: Parameters, rule: Callable[[Row], str], mode: str = "strict") -> Row:
    evaluations, _ = evaluate.evaluate(sets_of(root, stage, parameters), Model(rule))
    return evaluate.gate(TABLE.stage(stage), parameters, evaluations, mode)


def test_the_gate_opens_for_answers_that_reach_its_targets(tiny_data: Path) -> None:
    for parameters in (TRAINED, HELD_OUT):
        verdict = judged(tiny_data, "style", parameters, knows, "warn")
        assert verdict["passed"] and verdict["reasons"] == []
        assert (verdict["mode"], verdict["questions"]) == ("warn", parameters.gate_questions)
        assert verdict["targets"] == dict(TABLE.stage("style").gate)
        assert verdict["measured"]["key_point_coverage"]["n"] == (3 if parameters is TRAINED else 2)


def test_the_gate_is_judged_on_the_questions_it_names(tiny_data: Path) -> None:
    def by_heart(row: Row) -> str:
        return "不知道" if "expected" in row else knows(row)

    assert judged(tiny_data, "style", TRAINED, by_heart)["passed"]
    verdict = judged(tiny_data, "style", HELD_OUT, by_heart)
    assert not verdict["passed"]
    assert verdict["reasons"] == ["key point coverage 0.000 < 0.90 (n=2)"]


def test_a_benchmark_of_another_stage_does_not_count(tiny_data: Path) -> None:
    assert judged(tiny_data, "style", HELD_OUT, lambda row: "" if "writing" in row["id"] else knows(row))["passed"]
    assert not judged(tiny_data, "writing", HELD_OUT, lambda row: "" if "writing" in row["id"] else knows(row))[
        "passed"
    ]


def test_two_benchmarks_are_judged_row_by_row_together(tiny_data: Path) -> None:
    # Two rows of style at 1 and one of writing at 0: 2/3 over the rows, not 1/2 over the benchmarks.
    verdict = judged(tiny_data, "all", HELD_OUT, lambda row: "不知道" if "writing" in row["id"] else knows(row))
    measured = verdict["measured"]["key_point_coverage"]
    assert measured["n"] == 3
    assert measured["value"] == pytest.approx(2 / 3)
    (reason,) = verdict["reasons"]
    assert reason.startswith("key point coverage 0.66") and reason.endswith(" < 0.88 (n=3)")
    assert judged(tiny_data, "all", HELD_OUT, knows)["passed"]


def test_the_smoke_gate_wants_an_answer_to_every_question(tiny_data: Path) -> None:
    assert judged(tiny_data, "sample", HELD_OUT, lambda row: "随便")["passed"]
    verdict = judged(tiny_data, "sample", HELD_OUT, lambda row: " " if row["id"] == "style-1" else "随便")
    assert verdict["reasons"] == ["answered 0.500 < 1.00 (n=2)"]


@pytest.fixture
def scores(tiny_data: Path, tmp_path: Path) -> Callable[..., tuple[list[Any], list[Row]]]:
    """Base scores of a stage through one cache; gives (summaries, the rows that the model was asked)."""

    def run(
        stage: str = "style", parameters: Parameters = TRAINED, base_hash: str = "base", root: Path = tiny_data,
        rule: Callable[[Row], str] = knows,
    ) -> tuple[list[Any], list[Row]]:  # fmt: skip
        model = Model(rule)
        found = evaluate.base_scores(sets_of(root, stage, parameters), model, tmp_path, base_hash, parameters)
        return found, [row for rows in model.asked for row in rows]

    return run


def test_the_base_is_asked_each_question_once(scores: Any) -> None:
    def rule(row: Row) -> str:
        return "平方" if row.get("query") == "点电荷？" else "不知道"

    first, asked = scores(rule=rule)
    assert len(asked) == 6
    assert first[1]["key_point_coverage"]["value"] == pytest.approx(0.25)  # one of two points in one of two rows
    assert scores(rule=rule) == (first, [])


def test_questions_of_later_stages_take_the_places_that_are_left(scores: Any, tiny_data: Path, tmp_path: Path) -> None:
    sets = sets_of(tiny_data, "sample", TRAINED)
    ahead = [row for asked in sets_of(tiny_data, "all", TRAINED) for row in asked.rows]
    own, model = len(sets[0].rows), Model(knows)

    def run(places: int) -> list[Row]:
        model.asked.clear()
        evaluate.base_scores(sets, model, tmp_path, "base", TRAINED, (), ahead, places)
        return [row for rows in model.asked for row in rows]

    assert len(run(own + 2)) == own + 2
    assert run(100) == [], "nothing of its own to ask: nobody else is asked for either"
    other = Model(knows)
    evaluate.base_scores(sets, other, tmp_path, "another base", TRAINED, (), ahead, 100)
    assert len(other.asked) == 1, "one batch"
    assert scores("all", base_hash="another base") == (scores("all", base_hash="a third")[0], [])
    few = Model(knows)
    evaluate.base_scores(sets, few, tmp_path, "a fourth", TRAINED, (), ahead, 1)
    assert len(few.asked[0]) == own, "its own questions are asked whatever places there are"


def test_stages_that_share_questions_share_answers(scores: Any) -> None:
    scores("style")
    _, asked = scores("all")
    assert [row["messages"][0]["content"] for row in asked] == ["摘要？", "引用？"]


def test_a_new_row_alone_is_asked(scores: Any, tiny_data: Path, tmp_path: Path) -> None:
    scores()
    root = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    with (root / TABLE.benchmarks["style"]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"id": "new", "query": "磁通？", "expected": {"key_points": ["面积"]}}) + "\n")
    found, asked = scores(root=root)
    assert [row["query"] for row in asked] == ["磁通？"]
    assert found[1]["key_point_coverage"]["n"] == 3


def test_another_expectation_of_a_known_question_is_only_scored(scores: Any, tiny_data: Path, tmp_path: Path) -> None:
    scores()
    root = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    path = root / TABLE.benchmarks["writing"]
    path.write_text(path.read_text(encoding="utf-8").replace("总结", "展望"), encoding="utf-8")
    found, asked = scores(root=root)
    assert asked == []
    assert found[2]["key_point_coverage"]["value"] == 0.0


@pytest.mark.parametrize(("ratio", "anew"), [(2.0, ["style-2"]), (0.0, [])])
def test_another_reference_is_asked_again_where_its_length_caps_the_answer(
    scores: Any, tiny_data: Path, tmp_path: Path, ratio: float, anew: list[str]
) -> None:
    parameters = replace(TRAINED, max_new_tokens_ratio=ratio)
    scores(parameters=parameters)
    root = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    path = root / TABLE.stage("style").data
    path.write_text(path.read_text(encoding="utf-8").replace("电场为零", "处处是零"), encoding="utf-8")
    found, asked = scores(root=root, parameters=parameters, rule=lambda row: "电场为零")
    assert [row["id"] for row in asked] == anew
    assert found[0]["key_point_coverage"]["value"] < 1.0


def test_one_id_in_two_sets_is_two_questions(scores: Any, tiny_data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    for name in TABLE.benchmarks:
        path = root / TABLE.benchmarks[name]
        path.write_text(path.read_text(encoding="utf-8").replace(f"held-{name}-1", "same"), encoding="utf-8")
    found, asked = scores(parameters=HELD_OUT, root=root)
    assert len(asked) == 3
    assert [item["key_point_coverage"]["value"] for item in found] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({}, False),
        ({"learning_rate": 0.5, "num_train_epochs": 9.0, "lora_r": 3, "seed": 1, "stage_timeout_seconds": 5}, False),
        ({"gate_questions": "trained"}, False),
        ({"per_device_eval_batch_size": 3, "merge_adapter": "off"}, False),  # the base has no adapter to merge
        ({"max_new_tokens": 7}, True),
        ({"max_new_tokens_ratio": 3.0}, True),
        ({"use_qlora": False}, True),
        ({"compute_dtype": "float32"}, True),
        ({"enable_thinking": True}, True),
    ],
)
def test_what_makes_the_base_answer_anew(scores: Any, change: Row, anew: bool) -> None:
    scores(parameters=TRAINED)
    assert bool(scores(parameters=replace(TRAINED, **change))[1]) is anew


def test_how_the_base_really_computes_binds_its_answers(tiny_data: Path, tmp_path: Path) -> None:
    def asked(computed: tuple[Any, ...], parameters: Parameters = TRAINED) -> int:
        model, sets = Model(knows), sets_of(tiny_data, "style", TRAINED)
        evaluate.base_scores(sets, model, tmp_path, "base", parameters, computed)
        return sum(map(len, model.asked))

    assert asked((True, "torch.bfloat16")) == 6
    assert asked((True, "torch.bfloat16"), replace(TRAINED, use_qlora="auto")) == 0  # the host chose the same
    assert asked((False, "torch.bfloat16"), replace(TRAINED, use_qlora="auto")) == 6
    assert asked((True, "torch.float16")) == 6


def test_another_base_or_code_answers_anew(scores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores()
    assert len(scores(base_hash="another")[1]) == 6
    assert scores(base_hash="base")[1] == []
    monkeypatch.setattr(fingerprint, "of_modules", lambda names: "other code")
    assert len(scores()[1]) == 6


def test_predictions_are_written_with_their_question_set(tiny_data: Path, tmp_path: Path) -> None:
    evaluations, _ = evaluate.evaluate(sets_of(tiny_data, "writing", TRAINED), Model(knows))
    path = tmp_path / "predictions_writing.jsonl"
    evaluate.write_predictions(path, evaluations)
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [(item["set"], item["id"]) for item in found] == [
        ("trained", "writing-1"), ("trained", "writing-2"), ("style", "held-style-1"), ("style", "held-style-2"),
        ("writing", "held-writing-1"),
    ]  # fmt: skip
    assert found[0]["response"] == "先写目的" and "先写目的" in lines[0]


def test_files_are_scored_as_stages_are(tiny_data: Path, tmp_path: Path) -> None:
    benchmark, predictions = tiny_data / TABLE.benchmarks["style"], tmp_path / "predictions.jsonl"
    rows = [{"id": "held-style-1", "response": "平方，减小"}, {"id": "held-style-2", "response": "变化率"}]
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert evaluate.score_files(benchmark, predictions)["summary"]["key_point_coverage"]["value"] == 1.0
    predictions.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[0]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="held-style-1 stands there twice"):
        evaluate.score_files(benchmark, predictions)


def test_of_a_stages_predictions_the_set_of_the_benchmark_is_scored(tiny_data: Path, tmp_path: Path) -> None:
    evaluations, _ = evaluate.evaluate(sets_of(tiny_data, "style", TRAINED), Model(knows))
    path = tmp_path / "predictions_style.jsonl"
    evaluate.write_predictions(path, evaluations)
    for item in evaluations[1:]:
        found = evaluate.score_files(tiny_data / item["file"], path)
        assert (found["summary"], found["unexpected"]) == (item["result"]["summary"], [])
    with pytest.raises(InputError, match="no question set .* holds every id"):
        evaluate.score_files(tiny_data / TABLE.stage("writing").data, path)
