"""What a stage leaves behind: training.json, predictions, training_config.json and the eval report. No torch."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer import config, content, evaluate, fingerprint, hub, stages, state, steps
from trainer import report as reports
from trainer.errors import TrainingFailed

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "tokenizers", "datasets")


def adapter_hash(folder: Path, stage: str) -> str:
    """The hash of an adapter just written; TrainingFailed when it was not."""
    found = fingerprint.of_adapter(folder)
    if found is None:
        raise TrainingFailed(f"the adapter of stage {stage} was not written; look at the log above")
    return found


def eval_report(
    job: dict[str, Any], stage: stages.Stage, parameters: config.Parameters, layout: state.Layout, adapter: str,
    evaluations: list[dict[str, Any]], training: dict[str, Any], figures: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The report of a stage; `figures` are its times, choices and measured values."""
    return {
        "schema": 1,
        "stage": stage.name,
        "adapter": stage.adapter,
        "created_at": state.now(),
        "plan_id": job["plan_id"],
        "attempt": job["attempt"],
        "gate": evaluate.gate(stage, parameters, evaluations, job["gate"]),
        "fingerprint": {**job["fingerprint"], "adapter": adapter},
        "evaluations": evaluations,
        "training": training,
        "parameters": job["parameters"],
        "environment": {**environment(job, parameters), **hub.described(parameters, layout)},
        **figures,
    }


def write(report: dict[str, Any], folder: Path, trained: bool) -> None:
    """All files of a result; the answers go into the predictions and leave the report."""
    evaluations = report["evaluations"]
    evaluate.write_predictions(folder / f"predictions_{report['stage']}.jsonl", evaluations)
    for item in evaluations:
        del item["predictions"]
    if trained:
        keys = ("stage", "plan_id", "attempt", "created_at", "fingerprint", "training", "parameters", "environment")
        write_plain_json(folder / "training_config.json", {"schema": 1, **{key: report[key] for key in keys}})
    reports.write_eval_report(report, folder)


def write_plain_json(path: Path, value: Any) -> None:
    """Indented JSON for people; these files become durable with the folder that holds them."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str | None]:
    """The libraries that a result depends on, None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def environment(job: dict[str, Any], parameters: config.Parameters) -> dict[str, Any]:
    """What the result was made with: versions, device, base, code."""
    import torch

    return {
        "python": platform.python_version(),
        **versions(),
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "cpu_count": os.cpu_count(),
        "base_model": parameters.model_name_or_path,
        "base_hash": job["base_hash"],
        "source_id": job["source_id"],
        "source_commit": (content.read_record(steps.code_root()) or {}).get("commit", ""),
        "enable_thinking": parameters.enable_thinking,
    }
