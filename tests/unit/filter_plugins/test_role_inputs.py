"""Misspelt role inputs are named, right ones are not."""

from __future__ import annotations

from filter_plugins.role_inputs import unknown_inputs

SPECIFICATIONS = [
    {"argument_specs": {"main": {"options": {"trainer_gate": {}}}, "status": {"options": {"trainer_python": {}}}}},
    {"argument_specs": {"main": {"short_description": "takes nothing"}}},
]


def test_known_inputs_of_every_entry_point_and_the_roles_outputs_pass() -> None:
    names = ["trainer_gate", "trainer_python", "checkout_source_id", "trainer_hp_anything"]
    assert unknown_inputs(names, SPECIFICATIONS, [{"checkout_source_id": "x"}, None]) == []


def test_misspelt_input_is_named_with_the_right_one() -> None:
    assert unknown_inputs(["trainer_gatee"], SPECIFICATIONS) == [
        "no role has an input 'trainer_gatee'; did you mean trainer_gate?"
    ]


def test_every_wrong_name_is_named_at_once() -> None:
    assert len(unknown_inputs(["trainer_xyzzy", "gpu_host_foo"], SPECIFICATIONS)) == 2
