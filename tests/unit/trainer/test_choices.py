"""Choices: what was chosen, and why."""

from __future__ import annotations

import pytest

from trainer.choices import Choices


def test_choices_keep_their_order_and_their_reasons() -> None:
    choices = Choices()
    choices.add("dtype", "float32", "the host has no GPU")
    choices.add("attention", "sdpa", "asked for")
    assert choices.value("dtype") == "float32"
    assert choices.table() == [
        {"name": "dtype", "value": "float32", "reason": "the host has no GPU"},
        {"name": "attention", "value": "sdpa", "reason": "asked for"},
    ]
    with pytest.raises(KeyError):
        choices.value("packing")
