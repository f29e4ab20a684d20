"""The tables of parameters and stages, as `params`, `stages` and the README show them. No torch."""

from __future__ import annotations

from typing import Any

from trainer import config, stages


def described(item: Any) -> dict[str, Any]:
    """Type, unit, limits and help of a parameter's field."""
    meta = item.metadata
    bounds = [
        f"{words} {config.shown_limit(meta[key])}"
        for key, words in (("minimum", ">="), ("above", ">"), ("maximum", "<="))
        if meta[key] is not None
    ]
    return {
        "type": "bool | auto" if item.type == config.SWITCH else item.type,
        "unit": meta["unit"],
        "limits": ", ".join(bounds) or " | ".join(meta["choices"]),
        "help": meta["help"],
    }


def literal(value: Any) -> str:
    """A value as one types it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def markdown_parameters() -> str:
    """The parameter table of the README."""
    lines = ["| parameter | default | type | what it is |", "|---|---|---|---|"]
    for name, item in config.FIELDS.items():
        found = described(item)
        limits = found["limits"].replace("|", "\\|")
        kind = " ".join(
            part for part in (found["type"].replace("|", "or"), found["unit"] and f"({found['unit']})", limits) if part
        )
        lines.append(f"| `{name}` | `{literal(item.default)}` | {kind} | {found['help']} |")
    return "\n".join(lines)


def markdown_stages() -> str:
    """The stage table of the README."""
    lines = ["| stage | tag | trains on | adapter | gate |", "|---|---|---|---|---|"]
    for stage in stages.load().stages:
        gate = ", ".join(f"{name.replace('_', ' ')} >= {value:.2f}" for name, value in stage.gate.items())
        lines.append(f"| {stage.name} | `{stage.tag}` | {stage.title}: `{stage.data}` | `{stage.adapter}` | {gate} |")
    return "\n".join(lines)
