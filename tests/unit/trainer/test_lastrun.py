"""trainer/lastrun.py: which earlier report tells how fast this host is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer import lastrun
from trainer.config import FIELDS, Parameters, table
from trainer.device import Device
from trainer.state import Layout

CPU = Device("cpu", "some processor", 1, 8 << 30, False, None, False, False, 2)
GPU = Device("cuda", "NVIDIA H200", 1, 141 << 30, True, (9, 0), False, False, 16)
PARAMETERS = Parameters(model_name_or_path="embedded")


def report(stage: str = "style", created_at: str = "2026-01-02T03:04:05", **changes: Any) -> dict[str, Any]:
    return {
        "stage": stage, "created_at": created_at,
        "parameters": table(PARAMETERS, dict.fromkeys(FIELDS, "test")),
        "environment": {"gpu": None, "cpu_count": os.cpu_count()},
        "measured": {"train_tokens_per_second": 500.0, "generated_tokens_per_second": 100.0},
        "times": {"import_seconds": 3.0, "load_seconds": 4.0, "save_seconds": 0.5, "train_seconds": 9.0},
        **changes,
    }  # fmt: skip


def write(layout: Layout, found: Any, folder: str = "adapter_style") -> None:
    path = layout.adapters / folder / "eval_report_x.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found if isinstance(found, str) else json.dumps(found), encoding="utf-8")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_a_host_that_never_ran_tells_nothing(layout: Layout) -> None:
    assert lastrun.of(layout, PARAMETERS, CPU) is None


def test_the_last_run_tells_its_rates_and_its_seconds(layout: Layout) -> None:
    write(layout, report())
    found = lastrun.of(layout, PARAMETERS, CPU)
    assert found is not None and (found.stage, found.train_rate, found.generate_rate) == ("style", 500.0, 100.0)
    assert found.seconds(lastrun.START) == 7.0 and found.seconds(lastrun.REST) == 0.5


def test_what_it_needed_of_the_figures_is_a_factor(layout: Layout) -> None:
    figures = {"from_figures": {"train_seconds": 4.0, "generate_seconds": 10.0}}
    more = {"training": {"seconds": 12.0}, "times": {"generate_seconds": 5.0, "train_seconds": 3.0}}
    write(layout, report(estimate=figures, **more))
    found = lastrun.of(layout, PARAMETERS, CPU)
    assert found is not None and (found.train_factor, found.generate_factor) == (3.0, 0.5)
    write(layout, report(estimate={"from_figures": None}, **more))
    found = lastrun.of(layout, PARAMETERS, CPU)
    assert found is not None and found.train_factor is found.generate_factor is None


def test_the_same_stage_goes_before_a_newer_one(layout: Layout) -> None:
    write(layout, report("style", "2026-01-01"), "adapter_style")
    write(layout, report("all", "2026-01-03"), "adapter_multitask")
    newest, same = (lastrun.of(layout, PARAMETERS, CPU, stage) for stage in ("writing", "style"))
    assert newest is not None and same is not None
    assert (newest.stage, same.stage) == ("all", "style")


@pytest.mark.parametrize(
    ("changes", "device", "alike"),
    [
        ({}, CPU, True),
        ({"lora_r": 8}, CPU, False),
        ({"use_qlora": "auto"}, CPU, False),
        ({"learning_rate": 0.5, "num_train_epochs": 9.0}, CPU, True),  # no faster and no slower for it
        ({}, GPU, False),
    ],
)
def test_only_a_run_like_it_counts(layout: Layout, changes: dict[str, Any], device: Device, alike: bool) -> None:
    write(layout, report())
    assert (lastrun.of(layout, replace(PARAMETERS, **changes), device) is not None) == alike


@pytest.mark.parametrize(("gpu", "alike"), [("NVIDIA H200", True), ("NVIDIA A100-SXM4-80GB", False), (None, False)])
def test_a_run_on_another_card_does_not_count(layout: Layout, gpu: str | None, alike: bool) -> None:
    write(layout, report(environment={"gpu": gpu, "cpu_count": 999}))
    assert (lastrun.of(layout, PARAMETERS, GPU) is not None) == alike


@pytest.mark.parametrize("damaged", ["{", "[]", json.dumps({"stage": "x"}), json.dumps({"measured": {}})])
def test_reports_that_tell_nothing_are_passed_over(layout: Layout, damaged: str) -> None:
    write(layout, damaged, "adapter_sample")
    assert lastrun.of(layout, PARAMETERS, CPU) is None
    write(layout, report(), "adapter_style")
    assert lastrun.of(layout, PARAMETERS, CPU) is not None


def test_a_rate_that_was_not_measured_is_none(layout: Layout) -> None:
    write(layout, report(measured={"train_tokens_per_second": 0.0}))
    found = lastrun.of(layout, PARAMETERS, CPU)
    assert found is not None and found.train_rate is None and found.generate_rate is None
