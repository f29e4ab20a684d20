"""How a command answers, and which folder may be trained in."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from trainer import answers, artifacts
from trainer.errors import InputError


def test_an_answer_of_no_lines_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    answers.answer(argparse.Namespace(json=False), {"lines": []})
    assert capsys.readouterr().out == ""
    answers.answer(argparse.Namespace(json=False), {"lines": ["a", "b"]})
    assert capsys.readouterr().out == "a\nb\n"


def test_training_root_is_the_layout_of_a_host(tmp_path: Path) -> None:
    assert answers.training_root(tmp_path).root == tmp_path
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / artifacts.COLLECTED).touch()
    with pytest.raises(InputError, match="is a copy"):
        answers.training_root(tmp_path)
