"""What nvidia-smi tells, and that a host without a (working) one is simply silent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from trainer import gpu
from trainer.gpu import count, gpu_load


def put_command(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Put a shell script in the place of nvidia-smi."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!{shutil.which('sh')}\n{text}\n", encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_load_is_told_in_percent_and_mebibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    put_command(tmp_path, monkeypatch, f"echo \"$*\" > '{asked}'\necho '97, 21811, 24576'\necho '3, 5, 24576'")
    assert gpu_load() == {"gpu_percent": 97, "gpu_memory_mib": 21811, "gpu_memory_total_mib": 24576}
    assert "utilization.gpu,memory.used,memory.total" in asked.read_text(encoding="utf-8")
    assert "nounits" in asked.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'",
        "echo '[N/A], 21811, 24576'",
        "echo '97, 21811'",
        "printf '\\377\\376\\n'",
        "exit 0",
        "echo '97, 21811, 24576'; exit 9",
        "kill -9 $$",
    ],
)
def test_a_command_that_tells_no_figures_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    put_command(tmp_path, monkeypatch, text)
    assert gpu_load() == {}


def test_a_command_that_cannot_be_started_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_command(tmp_path, monkeypatch, "")
    (tmp_path / "nvidia-smi").write_text("#!/nowhere/sh\n", encoding="utf-8")
    assert gpu_load() == {}


def test_a_host_without_the_command_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_load() == {}


def test_a_driver_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, path = tmp_path / "asked", os.environ["PATH"]
    put_command(tmp_path, monkeypatch, f"echo x >> '{asked}'\nexec {shutil.which('sleep')} 30")
    monkeypatch.setattr(gpu, "WAIT_SECONDS", 0.5)
    hanging: list[Any] = []
    monkeypatch.setattr(gpu, "_hanging", hanging)
    assert gpu_load() == {} and gpu_load() == {}
    assert asked.read_text(encoding="utf-8") == "x\n", "and not asked again at once"
    hanging[0][1].wait(10)
    monkeypatch.setattr(gpu, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(gpu, "WAIT_SECONDS", 20.0)
    monkeypatch.setenv("PATH", path)
    put_command(tmp_path, monkeypatch, "echo '97, 21811, 24576'")
    assert gpu_load()["gpu_percent"] == 97


def test_every_card_is_told_with_its_capability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_command(tmp_path, monkeypatch, "echo 'NVIDIA H200, 143771, 9.0'\necho 'Tesla T4, 15360, 7.5'")
    assert gpu.cards() == [("NVIDIA H200", 143771, (9, 0)), ("Tesla T4", 15360, (7, 5))]


def test_a_driver_that_does_not_know_capabilities_tells_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    put_command(tmp_path, monkeypatch, f'case "$*" in *compute_cap*) {refusal};; esac\necho "Tesla K80, 11441"')
    assert gpu.cards() == [("Tesla K80", 11441, None)]


@pytest.mark.parametrize("text", ["exit 9", "exit 0", "echo 'NVIDIA-SMI has failed'", "echo 'H200, [N/A], 9.0'"])
def test_a_command_that_tells_no_cards_is_a_host_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    put_command(tmp_path, monkeypatch, text)
    assert gpu.cards() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert gpu.cards() == []


# How many there are

FOUR = "\n".join(f"GPU {n}: NVIDIA H200 (UUID: GPU-{n}aa{n}-77)" for n in range(4))
DIVIDED = (
    FOUR.splitlines()[0] + "\n  MIG 1g.18gb     Device  0: (UUID: MIG-5c)\n  MIG 1g.18gb     Device  1: (UUID: MIG-6d)"
)


@pytest.mark.parametrize(
    ("listed", "visible", "expected"),
    [
        (FOUR, None, 4),
        (FOUR, "0,2", 2),
        (FOUR, " 3 , 1 ", 2),
        (FOUR, "", 0),
        (FOUR, "-1", 0),
        (FOUR, "NoDevFiles", 0),
        (FOUR, "1,-1,2", 1),
        (FOUR, "0,9,1", 1),
        (FOUR, "0,0", 0),
        (FOUR, "GPU-2aa2-77,GPU-0aa", 2),
        (FOUR, "GPU-", 0),
        (DIVIDED, None, 1),
        (DIVIDED, "MIG-5c,MIG-6d", 1),
        (DIVIDED, "0", 1),
        (DIVIDED, "", 0),
        ("No devices were found", None, 0),
        ("", "0", 0),
    ],
)
def test_what_cuda_would_show_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, visible: str | None, expected: int
) -> None:
    asked = tmp_path / "asked"
    put_command(tmp_path, monkeypatch, f"echo \"$*\" > '{asked}'\necho '{listed}'")
    assert count({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == expected
    assert asked.read_text(encoding="utf-8") == "-L\n"


def test_a_command_that_fails_or_is_missing_counts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_command(tmp_path, monkeypatch, f"echo '{FOUR}'\nexit 9")
    assert count({}) == 0
    (tmp_path / "nvidia-smi").unlink()
    assert count({}) == 0
