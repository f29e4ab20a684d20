"""The exit codes that users and CI rely on."""

from __future__ import annotations

import pytest

from trainer import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("InputError", 2),
        ("NotReady", 3),
        ("HostUnfit", 4),
        ("TrainingFailed", 5),
        ("GateMissed", 6),
        ("Interrupted", 7),
    ],
)
def test_each_named_error_has_its_exit_code_and_is_found_by_name(kind: str, code: int) -> None:
    problem = errors.KINDS[kind]("what is wrong", ["one finding"])
    assert (problem.exit_code, str(problem), problem.lines) == (code, "what is wrong", ["one finding"])
    assert isinstance(problem, errors.TrainerError)
