"""Benchmark rows and answers to them, for the tests of everything that shapes a score."""

from __future__ import annotations

from typing import Any

from trainer import metrics

STYLE = "回答必须依次包含：\n### 结论\n### 推导\n### 检查（量纲与极限）"


GOOD = "### 结论\nE=0。\n### 推导\n由高斯定律。\n### 检查（量纲与极限）\n单位是 V/m。"


def row(expected: dict[str, Any] | None = None, system: str = "", **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "导体内部的电场是多少？"})
    given_part = {"key_points": ["E=0"]} if expected is None else expected
    return {"id": "a", "type": "concept", "messages": messages, "expected": given_part, **more}


def one(benchmark: dict[str, Any], response: str, **more: Any) -> dict[str, Any]:
    [scored] = metrics.score([benchmark], [{"id": "a", "response": response, **more}])["rows"]
    return dict(scored)


def reference_row(answer: str, **more: Any) -> dict[str, Any]:
    made = row(system=STYLE)
    made.pop("expected")
    return {
        **made,
        "messages": [*made["messages"], {"role": "assistant", "content": answer}],
        **more,
    }
