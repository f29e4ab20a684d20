"""Reading and checking rows: every fault with file, line, field and remedy, all at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import data, stages, steps
from trainer.errors import InputError

CALL = {"function": {"name": "lookup", "arguments": {"q": "ε₀"}}}


def turns(*pairs: Any) -> list[dict[str, Any]]:
    return [pair if isinstance(pair, dict) else {"role": pair[0], "content": pair[1]} for pair in pairs]


def row(*pairs: Any, **more: Any) -> dict[str, Any]:
    return {"id": "r-1", "mode": "style", "messages": turns(*pairs), **more}


GOOD = row(("system", "你是助教"), ("user", "什么是电场？"), ("assistant", "力。"))
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def findings(*rows: dict[str, Any], benchmark: bool = False) -> list[data.Finding]:
    return data.check_rows(list(enumerate(rows, 1)), "rows.jsonl", benchmark=benchmark)


def bench(**more: Any) -> dict[str, Any]:
    return {"id": "b-1", "type": "concept", "query": "什么是电场？", "expected": {"key_points": ["力"]}, **more}


# --- lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem", "remedy"),
    [
        (b'{"id": "a"', "broken JSON", "one JSON object a line"),
        (b'{"id": "a"} {"id": "b"}', "broken JSON (Extra data", "one JSON object a line"),
        (b'{"id": NaN}', "NaN is not JSON", "one JSON object a line"),
        (b'{"id": -Infinity}', "-Infinity is not JSON", "one JSON object a line"),
        (b'{"id": "a", "meta": {"x": 1, "x": 2}}', "the name 'x' stands twice", "one JSON object a line"),
        (b'["a"]', "is a list, not an object", "one JSON object a line"),
        (b'"a"', "is a str, not an object", "one JSON object a line"),
        (b'{"id": "\xff"}', "is not UTF-8 (byte 8)", "save the file as UTF-8"),
        (b'{"id": "\\ud83d"}', "half of a surrogate pair", "write the whole character"),
        (b"[" * 100_000, "broken JSON", "one JSON object a line"),
    ],
)
def test_a_line_that_is_no_row_is_an_error_with_its_number(
    tmp_path: Path, line: bytes, problem: str, remedy: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "first"}\n' + line + b'\n{"id": "last"}\n')
    rows, found = data.read_rows(path, "shown.jsonl")
    assert [(number, item["id"]) for number, item in rows] == [(1, "first"), (3, "last")]
    assert [(f.severity, f.file, f.line) for f in found] == [("error", "shown.jsonl", 2)]
    assert problem in found[0].problem and remedy in found[0].remedy
    assert str(found[0]).startswith("error: shown.jsonl:2: ")


@pytest.mark.parametrize(
    "text",
    [b'{"id": "a"}\n{"id": "b"}\n', b'{"id": "a"}\r\n{"id": "b"}\r\n', b'\xef\xbb\xbf{"id": "a"}\n{"id": "b"}',
     b'\n{"id": "a"}\n  \n{"id": "b"}\n\n', b'{"id": "a", "meta": {"s": "\\ud83d\\ude00"}}\n{"id": "b"}'],
)  # fmt: skip
def test_bom_crlf_blank_lines_and_a_missing_last_newline_are_accepted(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text)
    rows, found = data.read_rows(path)
    assert [item["id"] for _, item in rows] == ["a", "b"] and found == []


def test_empty_missing_and_wrong_kinds_of_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    for name, problem in (("empty.jsonl", "holds no row"), ("missing.jsonl", "No such file"), (".", "directory")):
        rows, found = data.read_rows(tmp_path / name, "training/x.jsonl")
        assert rows == [] and len(found) == 1
        assert problem in found[0].problem and "another data root" in found[0].remedy
        assert str(found[0]).startswith("error: training/x.jsonl: ")


def test_loading_a_broken_file_tells_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a"}\n[]\n{\n', encoding="utf-8")
    with pytest.raises(InputError, match="the data has 2 faults, the first: ") as caught:
        data.load_rows(path)
    assert [line.split(": ")[1] for line in caught.value.lines] == [f"{path}:2", f"{path}:3"]
    path.write_text('{"id": "a"}\n', encoding="utf-8")
    assert data.load_rows(path) == [{"id": "a"}]


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    rows, found = data.read_rows(path)
    assert rows or found, "a file holds rows or a finding says why not"


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "good",
    [
        GOOD,
        row(("user", "一"), ("assistant", "二"), ("user", "三"), ("assistant", "四")),
        row(("user", "查"), ASKS, ("tool", "8.85e-12"), ("assistant", "ε₀")),
        row(("user", "查"), ASKS, ("tool", "1"), ("tool", "2"), ("assistant", "好"), ("user", "谢"),
            ("assistant", "嗯")),
        row(("user", "查"), ASKS, ("tool", "空"), ASKS, ("tool", "8.85e-12"), ("assistant", "ε₀")),
        row(("user", "查"), {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]},
            ("tool", "1"), ("assistant", "好")),
        {**GOOD, "tools": [], "refusal_type": "homework", "meta": {"topic": "x"}, "colour": "own field"},
    ],
)  # fmt: skip
def test_sound_training_rows_have_no_findings(good: dict[str, Any]) -> None:
    assert findings(good) == []


@pytest.mark.parametrize(
    ("bad", "field", "words"),
    [
        ({**GOOD, "id": ""}, "id", "give every row a text of its own"),
        ({**GOOD, "id": 5}, "id", "is 5"),
        ({"id": "a"}, "messages", "is missing"),
        ({"id": "a", "messages": []}, "messages", "is not a list with turns"),
        ({"id": "a", "messages": 5}, "messages", "is not a list with turns"),
        ({"id": "a", "messages": ["hi"]}, "messages[0]", "has the role 'hi'"),
        (row(("usr", "一"), ("assistant", "二")), "messages[0]", "did you mean user?"),
        (row({"role": ["user"], "content": "一"}), "messages[0]", "has the role ['user']"),
        (row(("assistant", "二")), "messages[0]", "the role 'assistant' stands first; expected system or user"),
        (row(("user", "一"), ("user", "二"), ("assistant", "三")), "messages[1]", "stands after user"),
        (row(("system", "一"), ("assistant", "二")), "messages[1]", "stands after system; expected user"),
        (row(("user", "一"), ("system", "二"), ("assistant", "三")), "messages[1]", "'system' stands after user"),
        (row(("user", "一"), ("assistant", "二"), ("assistant", "三")), "messages[2]", "expected user"),
        (row(("user", "一"), ("tool", "1"), ("assistant", "二")), "messages[1]", "'tool' stands after user"),
        (row(("user", "查"), ASKS, ("assistant", "二")), "messages[2]", "after assistant with tool_calls; expected"),
        (row(("user", "查"), ASKS, ("tool", "1"), ("user", "二")), "messages[3]", "expected tool or assistant"),
        (row(("user", "查"), ASKS), "messages", "end with the answer of the assistant"),
        (row(("user", "一")), "messages", "the last turn is user"),
        (row(("user", "一"), ("assistant", " ")), "messages[1].content", "is empty"),
        (row(("user", "一"), ("assistant", None)), "messages[1].content", "is empty"),
        (row(("user", ["一"]), ("assistant", "二")), "messages[0].content", "is a list; give a text"),
        (row({"role": "user", "content": "一", "tool_calls": [CALL]}, ("assistant", "二")),
         "messages[0].tool_calls", "only the assistant calls tools"),
        (row(("user", "一"), {"role": "assistant", "content": "二", "tool_calls": "f"}),
         "messages[1].tool_calls", "is a str; give a list of calls"),
        (row(("user", "查"), {"role": "assistant", "tool_calls": [{"function": {}}]}, ("tool", "1"),
             ("assistant", "二")), "messages[1].tool_calls[0]", "names no function"),
        (row(("user", "查"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": 5}]}, ("tool", "1"),
             ("assistant", "二")), "messages[1].tool_calls[0].arguments", "is no object"),
        ({**GOOD, "tools": {}}, "tools", "is not a list"),
    ],
)  # fmt: skip
def test_a_faulty_training_row_is_named_with_field_and_remedy(bad: dict[str, Any], field: str, words: str) -> None:
    found = findings({**GOOD, "id": "other"}, bad)
    assert {(f.severity, f.line) for f in found} == {("error", 2)}
    hit = [f for f in found if f.field == field]
    assert hit and words in f"{hit[0].problem}; {hit[0].remedy}"


def test_an_id_given_twice_names_the_first_line() -> None:
    found = findings(GOOD, {**GOOD, "id": "r-2"}, GOOD)
    assert [(f.line, f.field) for f in found] == [(3, "id")] and "also in line 1" in found[0].problem


def test_a_misspelt_field_is_a_warning() -> None:
    found = findings({**GOOD, "refusal_typ": "homework"})
    assert [(f.severity, f.field) for f in found] == [("warning", "refusal_typ")]
    assert "did you mean refusal_type?" in found[0].remedy
    data.raise_errors(found)  # a warning does not stop anybody


# --- benchmarks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "good",
    [
        bench(),
        bench(messages=turns(("system", "助教"), ("user", "问"))),
        {"id": "b", "messages": turns(("user", "问")), "expected": {}},
        {"id": "b", "messages": turns(("user", "问"), ("assistant", "参考答案"))},
        {"id": "b", "messages": turns(("user", "查"), ASKS, ("tool", "1")), "expected": {"should_refuse": False}},
        bench(expected={"key_points": ["a", ["b", "c"], {"any": ["d"]}, {"text": "e", "alternatives": ["f"]}],
                        "citations": [], "tool_calls": [], "should_refuse": True}),
    ],
)  # fmt: skip
def test_both_kinds_of_benchmark_rows_are_accepted(good: dict[str, Any]) -> None:
    assert findings(good, benchmark=True) == []


@pytest.mark.parametrize(
    ("bad", "field", "words"),
    [
        ({"id": "b", "expected": {}}, "query", "neither messages nor a query"),
        (bench(query=" "), "query", "neither messages nor a query"),
        ({"id": "b", "messages": turns(("user", "问"))}, "expected", "end the messages with a reference answer"),
        ({"id": "b", "query": "问"}, "expected", "is missing"),
        ({"id": "b", "messages": turns(("user", "查"), ASKS)}, "messages", "the last turn is"),
        (bench(expected=["力"]), "expected", "is a list; give an object"),
        (bench(expected={"keypoints": []}), "expected.keypoints", "did you mean key_points?"),
        (bench(expected={"key_points": "力"}), "expected.key_points", "give a list"),
        (bench(expected={"should_refuse": "yes"}), "expected.should_refuse", "give true or false"),
        (bench(expected={"key_points": ["力", ""]}), "expected.key_points[1]", "give a text"),
        (bench(expected={"key_points": [5]}), "expected.key_points[0]", "is 5"),
        (bench(expected={"key_points": [[]]}), "expected.key_points[0]", "is []"),
        (bench(expected={"key_points": [{"text": "a", "alternatives": 5}]}), "expected.key_points[0]", "give a text"),
        (bench(expected={"key_points": [{"any": None}]}), "expected.key_points[0]", "give a text"),
    ],
)
def test_a_faulty_benchmark_row_is_named(bad: dict[str, Any], field: str, words: str) -> None:
    found = findings(bad, benchmark=True)
    hit = [f for f in found if f.field == field]
    assert hit and words in f"{hit[0].problem}; {hit[0].remedy}"
    assert all(f.severity == "error" for f in found)


def test_what_a_benchmark_may_do_a_training_row_may_not() -> None:
    assert findings(bench(), benchmark=True) == []
    assert [f.field for f in findings(bench())] == ["messages"]


# --- leakage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "how"),
    [
        ("什么是电场强度，它的单位是什么？", "the same as"),
        ("什么是电场强度，它的单位是什么?", "the same as"),
        ("什么是电场强度 ， 它的单位是什么", "the same as"),
        ("什么是电场强度，它的单位是什么呢？", "near the same as"),
        ("什么是电势，怎样从电场求出电势？", ""),
        ("？！", ""),
    ],
)
def test_leakage_finds_same_and_near_the_same_questions(trained: str, how: str) -> None:
    asked = [bench(query="什么是电场强度，它的单位是什么？")]
    found = data.leakage([row(("user", trained), ("assistant", "答"))], asked)
    assert found == ([("b-1", "r-1", how)] if how else [])


def test_leakage_looks_at_every_user_turn_and_survives_faulty_rows() -> None:
    talk = row(("user", "你好吗？"), ("assistant", "好"), ("user", "什么是电场？"), ("assistant", "力"))
    faulty: list[dict[str, Any]] = [{"id": "x", "messages": 5}, {"id": "y", "messages": ["hi"]}, {"id": "z"}]
    assert data.leakage([*faulty, talk], [bench(), *faulty]) == [("b-1", "r-1", "the same as")]


def test_leakage_is_a_warning_on_the_benchmarks_own_stage(data_root: Path, put_rows: Any) -> None:
    table = stages.load()
    path = data_root / "training" / "eval" / "style_benchmark.jsonl"
    assert data.check_stage(data_root, table, table.stage("style")) == []
    put_rows(path, [bench(id="b-7", query="什么是电势？")])
    found = data.check_stage(data_root, table, table.stage("style"))
    assert [(f.severity, f.file) for f in found] == [("warning", "training/eval/style_benchmark.jsonl")]
    assert "'b-7' is the same as 's-2' in training/processed/style_sft.jsonl" in found[0].problem
    assert data.check_stage(data_root, table, table.stage("writing")) == [], "not judged on it"


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_data_root_may_be_named_in_three_ways(tmp_path: Path, data_root: Path) -> None:
    assert data.resolve_root(data_root) == data_root
    assert data.resolve_root(data_root / "training") == data_root
    assert data.resolve_root(tmp_path) == tmp_path / "data", "the project folder above it"


def test_a_folder_without_training_data_is_refused(tmp_path: Path, data_root: Path) -> None:
    for wrong in (tmp_path / "none", data_root / "training" / "eval", data_root / "training" / "processed"):
        with pytest.raises(InputError, match="the data root .* that holds training/"):
            data.resolve_root(wrong)


def test_a_stage_tells_the_faults_of_all_its_files_at_once(data_root: Path) -> None:
    (data_root / "training" / "processed" / "style_sft.jsonl").write_text('{"id": "a"}\n{\n', encoding="utf-8")
    (data_root / "training" / "eval" / "writing_benchmark.jsonl").unlink()
    table = stages.load()
    found = data.check_stage(data_root, table, table.stage("style"))
    assert [(Path(f.file).name, f.line) for f in found] == [
        ("style_sft.jsonl", 2), ("style_sft.jsonl", 1), ("writing_benchmark.jsonl", 0),
    ]  # fmt: skip
    with pytest.raises(InputError, match="the data has 3 faults"):
        data.raise_errors(found)


# --- the shipped data -----------------------------------------------------------------------------------------------


def test_the_shipped_data_is_sound_and_has_the_promised_size() -> None:
    root, table = steps.data_root(""), stages.load()
    for stage in table.stages:
        assert [str(f) for f in data.check_stage(root, table, stage)] == []
    files = [stage.data for stage in table.stages] + [table.benchmarks["style"], table.benchmarks["writing"]]
    rows = {file: data.load_rows(root / file) for file in files}
    assert [len(rows[file]) for file in files] == [3, 28, 12, 40, 11, 6]
    sample, style, writing, both = ([json.dumps(r, sort_keys=True) for r in rows[s.data]] for s in table.stages)
    assert set(sample) <= set(style), "the sample is a part of the style rows"
    assert Counter(both) == Counter(style + writing), "`all` is their union"
