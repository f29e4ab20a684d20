"""The exit codes that users and CI rely on."""

from __future__ import annotations

import errno
import os

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


def test_what_the_disk_refuses_is_told_with_its_words_and_what_to_do() -> None:
    with errors.refused_by_disk("nothing can be written", "make room"):
        pass
    with (
        pytest.raises(errors.HostUnfit, match=r"^nothing can be written \(No space left on device\); make room$"),
        errors.refused_by_disk("nothing can be written", "make room"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")
    with (
        pytest.raises(errors.HostUnfit, match=r"^nothing can be written \(odd\); make room$"),
        errors.refused_by_disk("nothing can be written", "make room"),
    ):
        raise OSError("odd")
    with pytest.raises(ValueError), errors.refused_by_disk("nothing can be written", "make room"):
        raise ValueError("not the disk")
