"""trainer/peaks.py: the most memory of a stage, counted anew with each."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer import peaks


def test_a_peak_is_that_since_it_was_reset() -> None:
    peaks.reset()
    before = peaks.measured()["peak_process_bytes"]
    held = b"x" * (64 << 20)
    during = peaks.measured()["peak_process_bytes"]
    del held
    assert during - before > 48 << 20
    slack = 8 << 20  # the kernel counts by processor and adds up now and then
    assert peaks.measured()["peak_process_bytes"] > during - slack, "what is given back was a peak all the same"
    peaks.reset()
    assert peaks.measured()["peak_process_bytes"] < during - (48 << 20)
    assert peaks.measured()["peak_memory_bytes"] == peaks.measured()["peak_process_bytes"], "without a GPU"


def test_a_kernel_that_counts_nothing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "CLEAR", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(peaks, "STATUS", tmp_path / "status")
    monkeypatch.setitem(sys.modules, "torch", None)
    peaks.reset()
    assert peaks.measured() == {}
    (tmp_path / "status").write_text("VmPeak:  900 kB\nVmHWM:\t  800 kB\nVmRSS:  700 kB\n", encoding="utf-8")
    assert peaks.measured() == {"peak_memory_bytes": 819200, "peak_process_bytes": 819200}


def test_on_gpus_it_is_the_fullest_card(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[int] = []
    cards = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, device_count=lambda: 2,
        reset_peak_memory_stats=reset.append, max_memory_reserved=lambda card: 100 + card,
        max_memory_allocated=lambda card: 90 - card,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cards))
    peaks.reset()
    found = peaks.measured()
    assert reset == [0, 1]
    assert (found["peak_memory_bytes"], found["peak_allocated_bytes"]) == (101, 90)
    assert found["peak_process_bytes"] > 1000
    cards.is_initialized = lambda: False  # nothing was put on a card: nothing is asked of it
    assert "peak_allocated_bytes" not in peaks.measured()
