"""Leakage in one walk: the same findings as comparing every question with every row."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import leakage

Row = dict[str, Any]


def one_by_one(training: list[Row], benchmark: list[Row]) -> list[tuple[str, str, str]]:
    """What leakage means, without a short cut."""
    asked = [(row["id"], leakage.plain(row["query"])) for row in benchmark]
    found: dict[str, tuple[str, str, str]] = {}
    for row in training:
        for turn in leakage.user_turns(row):
            text = leakage.plain(turn)
            for name, wanted in asked:
                ours, theirs = leakage.bigrams(text), leakage.bigrams(wanted)
                if wanted and wanted == text:
                    found[name] = (name, row["id"], "the same as")
                elif ours and theirs and name not in found and 5 * len(ours & theirs) >= 4 * len(ours | theirs):
                    found[name] = (name, row["id"], "near the same as")
    return list(found.values())


def asked(texts: list[str]) -> list[Row]:
    return [{"id": f"b-{number % 4}", "query": text} for number, text in enumerate(texts)]


def trained(texts: list[list[str]]) -> list[Row]:
    rows = []
    for number, turns in enumerate(texts):
        messages = [{"role": "user", "content": turn} for turn in turns]
        rows.append({"id": f"r-{number}", "messages": messages})
    return rows


WORDS = st.text("ab电场？ ", max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=6), st.lists(st.lists(WORDS, max_size=3), max_size=6))
def test_short_cuts_change_nothing(questions: list[str], turns: list[list[str]]) -> None:
    rows, judged = trained(turns), asked(questions)
    assert leakage.leakage(rows, judged) == one_by_one(rows, judged)


QUESTION = "导体在静电平衡时内部的电场为什么处处等于零请说明理由"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(QUESTION)), st.sampled_from(["", "电", "呢", "？"])), max_size=8))
def test_a_question_that_was_changed_a_little_is_judged_the_same_way(changes: list[tuple[int, str]]) -> None:
    text = QUESTION
    for place, put in changes:
        text = text[:place] + put + text[place + (put == "") :]
    rows, judged = trained([[text], [text * 40]]), asked([QUESTION, "什么是电势"])
    assert leakage.leakage(rows, judged) == one_by_one(rows, judged)


def test_one_walk_looks_for_all_benchmarks() -> None:
    looked = leakage.Leakage({"style": asked([QUESTION]), "writing": asked(["摘要怎样写", QUESTION])})
    for row in trained([["摘要怎样写？"], [QUESTION]]):
        looked.look(row)
    assert looked.told("style") == [("b-0", "r-1", "the same as")]
    assert looked.told("writing") == [("b-0", "r-0", "the same as"), ("b-1", "r-1", "the same as")]


def test_a_benchmark_without_questions_finds_nothing() -> None:
    assert leakage.leakage(trained([["电场"], [""]]), [{"id": "x"}, {"id": "y", "query": "？！"}]) == []
