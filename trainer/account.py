"""What a stage measured, and beside it what was estimated for it before it began. No torch of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import device, estimation, peaks, shape
from trainer.basefacts import BaseFacts
from trainer.config import Parameters
from trainer.errors import TrainerError
from trainer.stages import Stage, StageTable
from trainer.state import Layout

if TYPE_CHECKING:
    from trainer.model import Base

Figures = dict[str, Any]


def estimated(
    layout: Layout, stage: Stage, table: StageTable, parameters: Parameters, data_root: Path, base: Base,
    processes: int = 0,
) -> Figures | None:  # fmt: skip
    """The estimate of a stage for its report, by the same functions as `python -m trainer estimate`; None without one.

    A report is not worth a failed stage: what cannot be estimated is left out.
    """
    host = estimation.Host(layout, device.found(), data_root)
    facts = BaseFacts(shape.of_config(base.model.config.to_dict()), "its config.json", None, 0)
    try:
        return estimation.of_stage(host, stage, table, parameters, facts, base.tokenizer, processes).as_dict()
    except TrainerError:
        return None


def measured(
    training: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]], times: Mapping[str, float],
    found: Mapping[str, Any],
) -> Figures:  # fmt: skip
    """Peaks of memory and rates of a stage; `training` is its record, `found` what its answers measured.

    Rates are tokens per second: of all tokens that went through the model in training (in all attempts that led to
    the result), and of the answers with the adapter.
    """
    names = ("train_tokens", "train_tokens_per_second")
    figures = {**peaks.measured(), **{name: training[name] for name in names if name in training}}
    if seconds := times.get("generate_seconds"):
        generated = sum(int(item.get("tokens") or 0) for item in evaluations)
        figures["generated_tokens_per_second"] = round(generated / seconds, 1)
    return {**figures, **found}


def rows(report: Mapping[str, Any]) -> list[tuple[str, str, float | None, float | None]]:
    """(what, unit, estimated, measured) of a report, where one of both is known; unit: bytes, seconds or tokens/s.

    A part that had nothing to do (answers remembered from before, an adapter trained before) measured nothing.
    """
    before, after = report.get("estimate") or {}, report.get("measured") or {}
    training, times = report.get("training") or {}, report.get("times") or {}
    on_gpu = (report.get("environment") or {}).get("gpu") is not None
    lines: list[tuple[str, str, Any, Any]] = [
        ("memory of the GPU" if on_gpu else "memory of the process", "bytes", before.get("memory_bytes"),
         after.get("peak_memory_bytes")),
        ("training", "seconds", before.get("train_seconds"), training.get("seconds") or times.get("train_seconds")),
        ("answers with the adapter", "seconds", before.get("generate_seconds"), times.get("generate_seconds")),
        ("answers of the base alone", "seconds", before.get("base_seconds"), times.get("base_seconds")),
        ("training", "tokens/s", before.get("train_tokens_per_second"), after.get("train_tokens_per_second")),
        ("answers with the adapter", "tokens/s", before.get("generated_tokens_per_second"),
         after.get("generated_tokens_per_second")),
    ]  # fmt: skip
    return [(what, unit, told or None, found or None) for what, unit, told, found in lines if told or found]
