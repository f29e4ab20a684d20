"""What the host computes with, as torch finds it and as nvidia-smi tells it without torch."""

from __future__ import annotations

import math
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer import device, gpu, memory

H200 = ("NVIDIA H200", 143771, (9, 0))
T4 = ("Tesla T4", 15360, (7, 5))


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def cuda(monkeypatch: pytest.MonkeyPatch, *cards: tuple[str, int, tuple[int, int]]) -> None:
    """Let torch find these cards."""
    import torch

    def properties(index: int) -> Any:
        name, mebibytes, (major, minor) = cards[index]
        return SimpleNamespace(name=name, total_memory=mebibytes << 20, major=major, minor=minor)

    def native(*, including_emulation: bool) -> bool:
        assert not including_emulation, "an emulated bfloat16 is slower than float16"
        return cards[0][2] >= (8, 0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", native)


def smi(monkeypatch: pytest.MonkeyPatch, *cards: gpu.Card) -> None:
    """Let nvidia-smi tell of these cards."""

    def answer(command: list[str]) -> str:
        if "-L" in command:
            return "\n".join(f"GPU {number}: {card[0]} (UUID: GPU-{number})" for number, card in enumerate(cards))
        told = [(name, str(mebibytes), *([".".join(map(str, cap))] if cap else [])) for name, mebibytes, cap in cards]
        return "\n".join(", ".join(words) for words in told)

    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(gpu, "_answer", answer)


def test_a_host_without_a_gpu_is_its_processor_and_the_memory_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(memory, "limit_mib", lambda: 512)
    smi(monkeypatch)
    found = device.found()
    assert (found.kind, found.count, found.memory_bytes, found.capability) == ("cpu", 1, 512 * 2**20, None)
    assert not (found.bf16_native or found.flash_attention or found.liger)
    assert found.name and found.cores >= 1
    assert device.told() == found
    monkeypatch.setattr(memory, "limit_mib", lambda: None)
    assert device.found().memory_bytes == 0


@pytest.mark.parametrize(
    ("cards", "memory_mib", "capability", "native"),
    [((H200,), 143771, (9, 0), True), ((T4, T4), 15360, (7, 5), False), ((H200, T4), 15360, (7, 5), False)],
)
def test_a_gpu_is_found_with_the_memory_of_one(
    monkeypatch: pytest.MonkeyPatch, cards: Any, memory_mib: int, capability: Any, native: bool
) -> None:
    cuda(monkeypatch, *cards)
    found = device.found()
    assert (found.kind, found.name, found.count) == ("cuda", cards[0][0], len(cards))
    assert (found.memory_bytes, found.capability) == (memory_mib * 2**20, capability)
    assert found.bf16_native == native


def test_nvidia_smi_tells_the_same_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for cards in ([H200], [T4, T4], [H200, T4]):
        cuda(monkeypatch, *cards)
        smi(monkeypatch, *cards)
        assert device.told() == device.found()
    smi(monkeypatch, ("NVIDIA H200", 143771, None))  # an old driver
    assert device.told().capability is None and not device.told().bf16_native


def test_hidden_cards_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, H200, H200)
    assert device.told().count == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert (device.told().kind, device.told().count) == ("cuda", 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.told().kind == "cpu"


def test_told_wants_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would fail
    smi(monkeypatch, H200)
    assert device.told().kind == "cuda"
    with pytest.raises(ImportError):
        device.found()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Put a flash-attn and a Liger on the path whose modules hold `text`."""
    for package, distribution in (("flash_attn", "flash_attn"), ("liger_kernel", "liger_kernel")):
        (folder / package / "transformers").mkdir(parents=True, exist_ok=True)
        (folder / package / "__init__.py").write_text(text, encoding="utf-8")
        (folder / package / "transformers" / "__init__.py").write_text("", encoding="utf-8")
        info = folder / f"{distribution}-2.8.3.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Name: {distribution.replace('_', '-')}\nVersion: 2.8.3\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers remembers whether flash-attn is there: ask as a fresh process does."""
    import transformers.utils

    def asked(kernels_fallback_ok: bool = False) -> bool:
        assert not kernels_fallback_ok, "kernels of a hub are a download"
        return device._is_installed("flash-attn")

    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", asked)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("flash_attn", "liger_kernel")]:
        monkeypatch.delitem(sys.modules, name)


def test_kernels_count_when_they_are_installed_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncached: None
) -> None:
    cuda(monkeypatch, H200)
    smi(monkeypatch, H200)
    assert not device.found().flash_attention and not device.found().liger
    install(tmp_path, monkeypatch, "raise ImportError('undefined symbol: _ZN3c105Error')")
    assert not device.found().flash_attention and not device.found().liger
    install(tmp_path, monkeypatch, "")
    for found in (device.found(), device.told()):
        assert found.flash_attention and found.liger
    for name in ("flash_attn", "liger_kernel", "liger_kernel.transformers"):
        assert isinstance(sys.modules.pop(name), types.ModuleType)


def test_cores_are_those_of_the_affinity_within_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    for quota, expected in ((None, 16), (2.0, 2), (1.5, 2), (0.3, 1), (64.0, 16)):
        monkeypatch.setattr(memory, "core_quota", lambda quota=quota: quota)
        assert device.cores() == expected
    monkeypatch.undo()
    assert 1 <= device.cores() <= (os.cpu_count() or math.inf)
