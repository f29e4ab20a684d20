"""What the last run on this host measured, where it was one like that which is to be estimated. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config import Parameters
from trainer.device import Device
from trainer.state import Layout

# What tokens per second depend on, beside the device.
SHAPING = (
    "model_name_or_path", "model_revision", "use_qlora", "compute_dtype", "lora_r", "lora_target_modules",
    "lora_dropout", "gradient_checkpointing", "attention", "packing", "tokens_per_pass", "fused_kernels",
    "share_prefixes", "num_processes", "shard_base",
)  # fmt: skip
START = ("import_seconds", "load_seconds", "prepare_seconds")  # once for a plan
REST = (
    "estimate_seconds",
    "data_seconds",
    "setup_seconds",
    "checkpoint_seconds",
    "save_seconds",
    "score_seconds",
    "check_seconds",
)


@dataclass(frozen=True)
class LastRun:
    """One report's rates (tokens per second) and seconds, None where it measured none.

    The factors are measured seconds over those that the device's figures had given for the same work: they carry
    over to stages of other sizes, where a rate does not (a batch of 40 answers lasts little longer than one of 3).
    """

    stage: str
    created_at: str
    train_rate: float | None
    generate_rate: float | None
    times: Mapping[str, float]
    train_factor: float | None = None
    generate_factor: float | None = None

    def seconds(self, names: tuple[str, ...]) -> float:
        return sum(float(self.times.get(name) or 0.0) for name in names)


def of(layout: Layout, parameters: Parameters, device: Device, stage: str = "") -> LastRun | None:
    """The newest report of the same base, device and parameters; one of the same stage goes before the others."""
    alike = [report for report in _reports(layout) if is_alike(report, parameters, device)]
    if not alike:
        return None
    newest = max(alike, key=lambda report: (report["stage"] == stage, str(report["created_at"])))
    measured, times = newest["measured"], newest.get("times") or {}
    figures = (newest.get("estimate") or {}).get("from_figures") or {}
    return LastRun(
        stage=newest["stage"],
        created_at=str(newest["created_at"]),
        train_rate=_positive(measured, "train_tokens_per_second"),
        generate_rate=_positive(measured, "generated_tokens_per_second"),
        times=times,
        train_factor=_factor(_positive(newest.get("training") or {}, "seconds"), figures, "train_seconds"),
        generate_factor=_factor(_positive(times, "generate_seconds"), figures, "generate_seconds"),
    )


def _positive(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


def _factor(seconds: float | None, figures: Mapping[str, Any], name: str) -> float | None:
    told = _positive(figures, name)
    return seconds / told if seconds and told else None


def _reports(layout: Layout) -> Iterator[dict[str, Any]]:
    for path in sorted(layout.adapters.glob("*/eval_report_*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # being replaced, or damaged: then nothing is learnt from it
            continue
        if isinstance(report, dict) and isinstance(report.get("measured"), dict) and "stage" in report:
            yield report


def is_alike(report: Mapping[str, Any], parameters: Parameters, device: Device) -> bool:
    """Whether a report's rates hold for these parameters on this device."""
    environment, told = report.get("environment") or {}, report.get("parameters") or {}
    if device.kind == "cuda":
        same = environment.get("gpu") == device.name
    else:
        same = environment.get("gpu") is None and environment.get("cpu_count") == os.cpu_count()
    return same and all((told.get(name) or {}).get("value") == getattr(parameters, name) for name in SHAPING)
