"""A project root with states, reports and adapters of stages that have ended, for the summary's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer import summary

STAGES = [
    {"name": name, "tag": tag, "title": name.title(), "adapter": f"adapter_{tag}", "gate": {}}
    for name, tag in (
        ("sample", "sample"),
        ("style", "style"),
        ("writing", "writing"),
        ("all", "multitask"),
    )
]


ADAPTERS = {record["name"]: str(record["adapter"]) for record in STAGES}


def figures(coverage: float, compliance: float = 1.0, width: float = 0.1, n: int = 11) -> dict[str, Any]:
    def entry(value: float) -> dict[str, Any]:
        return {"value": value, "n": n, "ci95": [value - width, value + width]}

    return {"key_point_coverage": entry(coverage), "format_compliance": entry(compliance)}


def evaluation(name: str, measured: dict[str, Any], ids: str = "abc", **more: Any) -> dict[str, Any]:
    rows = [{"id": f"{name}-{i}", "type": "t", "metrics": {}} for i in ids]
    return {
        "name": name,
        "questions": "held_out",
        "file": f"{name}.jsonl",
        "base": figures(0.05, 0.0),
        "warnings": [],
        "seconds": 1.0,
        "tokens": 9,
        "result": {
            "summary": measured,
            "by_type": {},
            "rows": rows,
            "missing": [],
            "unexpected": [],
        },
        **more,
    }


def hashes(stage: str) -> dict[str, Any]:
    return {
        "training": f"t-{stage}",
        "evaluation": f"e-{stage}",
        "adapter": f"a-{stage}",
        "parts": {},
    }


class Host:
    """A project root that is filled stage by stage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write(
            "state/plan.json",
            {
                "schema": 1,
                "plan_id": "p1",
                "created_at": "2026-11-22T09:00:00+00:00",
                "gate": "strict",
                "stages": list(ADAPTERS),
                "skip_sample": False,
                "profile": "embedded",
                "source_id": "abc",
                "overrides": {"seed": {"value": 9, "source": "command line"}},
            },
        )

    def write(self, name: str, record: object) -> None:
        path = self.root / "outputs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")

    def state(self, stage: str, status: str = "passed", **more: Any) -> None:
        self.write(
            f"state/{stage}.json",
            {
                "schema": 1,
                "stage": stage,
                "status": status,
                "plan_id": "p1",
                "attempt": 1,
                "started_at": "2026-11-22T10:00:00+00:00",
                "ended_at": "2026-11-22T10:01:05+00:00",
                "log": f"outputs/logs/train_{stage}_1.log",
                "message": "",
                "reason": "",
                "fingerprint": hashes(stage),
                **more,
            },
        )

    def report(self, stage: str, /, *evaluations: dict[str, Any], passed: bool = True, **more: Any) -> None:
        gate = {
            "mode": "strict",
            "questions": "trained",
            "passed": passed,
            "reasons": [],
            "targets": {"key_point_coverage": 0.9},
            "measured": {"key_point_coverage": {"value": 0.95 if passed else 0.5, "n": 28}},
        }
        folder = f"adapter/{ADAPTERS[stage]}"
        parameters = {
            "seed": {"value": 42, "source": "default"},
            "num_train_epochs": {"value": len(stage), "source": "profile embedded"},
            "use_qlora": {"value": False, "source": "profile embedded"},
        }
        self.write(
            f"{folder}/eval_report_{stage}.json",
            {
                "schema": 1,
                "stage": stage,
                "adapter": ADAPTERS[stage],
                "plan_id": "p1",
                "attempt": 1,
                "gate": gate,
                "fingerprint": hashes(stage),
                "evaluations": list(evaluations),
                "parameters": parameters,
                "environment": {"python": "3.11.7", "gpu": None},
                **more,
            },
        )
        self.write(f"{folder}/adapter_model.safetensors", "weights")

    def passed(self, stage: str, *evaluations: dict[str, Any]) -> None:
        self.state(stage)
        self.report(stage, *evaluations)

    def context(self) -> dict[str, Any]:
        return summary.collect_context(self.root, STAGES)

    def text(self) -> str:
        return summary.build_summary(self.context())


def fill(host: Host, style: float = 0.4, writing: float = 0.3, both: float = 0.6) -> None:
    host.passed("sample")
    host.passed("style", evaluation("style", figures(style)), evaluation("writing", figures(0.1)))
    host.passed("writing", evaluation("style", figures(0.1)), evaluation("writing", figures(writing)))
    host.passed("all", evaluation("style", figures(both)), evaluation("writing", figures(both)))
