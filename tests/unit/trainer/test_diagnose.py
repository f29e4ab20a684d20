"""Diagnoses: one cause once, in the order of the log, and an honest word where it is unknown."""

from __future__ import annotations

import pytest

from tests.unit.trainer.known_causes import KINDS, TRACE, kinds
from trainer import diagnose as doctor


@pytest.mark.parametrize(
    ("signal", "kind", "expected"),
    [
        (9, None, ["killed"]),
        (15, None, ["terminated"]),
        (11, None, ["crashed"]),
        (7, None, ["shared memory"]),
        (9, "timeout", ["timeout"]),
        (9, "cancelled", ["cancelled"]),
        (None, "GateMissed", ["gate missed"]),
        (None, "missed", ["gate missed"]),
        (None, "empty_answers", ["empty answers"]),
        (None, "lost", ["unknown"]),
        (40, None, ["unknown"]),
        (None, None, ["unknown"]),
    ],
)  # fmt: skip
def test_signal_and_recorded_kind_name_a_cause(signal: int | None, kind: str | None, expected: list[str]) -> None:
    assert kinds("step 3/84 loss 1.2\n", signal=signal, kind=kind) == expected


def test_a_kernel_message_settles_who_sent_signal_nine() -> None:
    kernel = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task=python,pid=4242"
    assert kinds(f"step 3\n{kernel}\nKilled\n", signal=9) == ["host memory"]


def test_a_cause_that_is_told_a_thousand_times_is_named_once() -> None:
    line = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB."
    issues = doctor.diagnose(f"{line}\n" * 1000, exit_signal=None, error_kind=None)
    assert len(issues) == 1
    assert "(seen 1000 times)" in issues[0].symptom
    assert "per_device_train_batch_size=1 -e trainer_hp_gradient_accumulation_steps=16" in issues[0].action


def test_different_causes_are_all_named_in_the_order_of_the_log() -> None:
    log = "step 3/84 loss nan\nOSError: [Errno 28] No space left on device: 'x'\nstep 4/84 loss nan\n"
    assert kinds(log) == ["loss not finite", "no space"]


def test_a_wrong_id_hides_the_general_message_about_it() -> None:
    log = (
        "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. (Request ID: Root=1)\n"
        "Repository Not Found for url: https://huggingface.co/Qwen/Qwen3-8B-Instruct/resolve/main/c\n"
        ""
    )
    issues = doctor.diagnose(log, exit_signal=None, error_kind="InputError")
    assert [KINDS[issue.cause] for issue in issues] == ["wrong qwen id"]
    assert "Qwen/Qwen3-8B`" in issues[0].action
    assert kinds(log.replace("8B-Instruct", "9B")) == ["model missing"]


def test_escapes_and_progress_bars_are_stripped() -> None:
    log = (
        "\r  4%|▍         | 1/28 [00:01<00:30,  1.1s/it]\r  7%|▋         | 2/28 [00:02<00:29]"
        "\x1b[31mtorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB\x1b[0m\n"
    )
    issue = doctor.diagnose(log, exit_signal=None, error_kind=None)[0]
    assert issue.symptom == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"


def test_unknown_says_so_with_the_last_lines() -> None:
    log = "".join(f"line {n}\n" for n in range(50)) + TRACE + "ZeroDivisionError: division by zero\n"
    (issue,) = doctor.diagnose(log, exit_signal=None, error_kind=None, stage="style", phase="training")
    assert issue.cause.startswith("Unknown")
    assert "ZeroDivisionError: division by zero" in issue.symptom
    assert "line 3 " not in issue.symptom
    assert (issue.stage, issue.phase, issue.severity) == ("style", "training", "error")
    (healthy,) = doctor.diagnose("step 1\n", exit_signal=None, error_kind=None)
    assert healthy.severity == "info"


def test_a_refusal_of_the_trainer_is_told_in_its_own_words() -> None:
    log = "checking\nerror: unknown parameter 'learning_rat'; did you mean learning_rate?\n"
    (issue,) = doctor.diagnose(log, exit_signal=None, error_kind="InputError")
    assert issue.symptom == "error: unknown parameter 'learning_rat'; did you mean learning_rate?"
    assert "own sentence" in issue.cause
