"""The tables of parameters and stages, for terminals and for the README."""

from __future__ import annotations

import dataclasses

import pytest

from trainer import config, stages, tables


@pytest.mark.parametrize(
    ("name", "limits"),
    [("seed", ">= 0, <= 4294967295"), ("learning_rate", "> 0"), ("gate_questions", "held_out | trained"),
     ("use_qlora", "")],
)  # fmt: skip
def test_limits_and_choices_are_told_in_short(name: str, limits: str) -> None:
    found = tables.described(config.FIELDS[name])["limits"]
    assert found.startswith(limits) if limits else found == ""


@pytest.mark.parametrize("name", list(config.FIELDS))
def test_every_parameter_has_a_type_and_help(name: str) -> None:
    found = tables.described(config.FIELDS[name])
    assert set(found) == {"type", "unit", "limits", "help"}
    assert found["help"] and found["type"] in ("str", "int", "float", "bool", "bool | auto")


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (False, "false"), (8, "8"), (2e-4, "0.0002"), ("a", "a")])
def test_a_value_is_shown_as_one_types_it(value: object, text: str) -> None:
    assert tables.literal(value) == text


@pytest.mark.parametrize(("name", "item"), [(n, f) for n, f in config.FIELDS.items() if f.type != "str"])
def test_what_is_shown_as_a_default_is_accepted_as_an_input(name: str, item: dataclasses.Field[object]) -> None:
    good, findings = config.checked({name: tables.literal(item.default)}, "test")
    assert findings == [] and good[name]["value"] == item.default


def columns(row: str) -> int:
    return row.replace("\\|", "").count("|")


def test_the_parameter_table_has_a_row_for_each() -> None:
    rows = tables.markdown_parameters().splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == list(config.FIELDS)
    assert len({columns(row) for row in rows}) == 1, "a choice does not break the table"
    assert any("\\|" in row for row in rows)


def test_the_stage_table_has_a_row_for_each() -> None:
    rows = tables.markdown_stages().splitlines()
    table = stages.load()
    assert [row.split(" ")[1] for row in rows[2:]] == table.names and len({columns(row) for row in rows}) == 1
    for stage, row in zip(table.stages, rows[2:], strict=True):
        assert f"`{stage.tag}`" in row and f"`{stage.data}`" in row and f"`{stage.adapter}`" in row
        assert all(f"{metric.replace('_', ' ')} >= {value:.2f}" in row for metric, value in stage.gate.items())
