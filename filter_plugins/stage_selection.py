"""Which stages a run selects by its tags, and how a run ends: pure functions on plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# What a watched stage's status means when its answer carries no exit code of its own.
_STATUS_CODES: Mapping[str, int] = {
    "closed": 3,
    "failed": 5,
    "missed": 6,
    "lost": 7,
    "cancelled": 7,
}
_HOST_UNFIT = 4


def _runs(tags: frozenset[str], run_tags: Sequence[str], skip_tags: Sequence[str]) -> bool:
    """Whether Ansible runs a task with these tags (the rule of Taggable.evaluate_tags)."""
    only, skip = set(run_tags), set(skip_tags)
    if only:
        chosen = (
            "always" in tags
            or ("all" in only and "never" not in tags)
            or not tags.isdisjoint(only)
            or ("tagged" in only and "never" not in tags)
        )
        if not chosen:
            return False
    if "all" in skip:
        return "always" in tags and "always" not in skip
    return tags.isdisjoint(skip) and "tagged" not in skip


def selected_stages(
    stages: Iterable[Mapping[str, Any]], run_tags: Sequence[str], skip_tags: Sequence[str]
) -> list[str]:
    """The names of the stages whose tag Ansible selects, in the table's order.

    `stages`: records with `name` and `tag`; `run_tags`, `skip_tags`: the magic variables
    ansible_run_tags and ansible_skip_tags.
    """
    return [str(stage["name"]) for stage in stages if _runs(frozenset({str(stage["tag"])}), run_tags, skip_tags)]


def _stage_code(result: Mapping[str, Any], gate: str) -> int:
    """The exit code that one watched stage contributes to the run (0: none)."""
    status = str(result.get("status") or "")
    if status == "missed" and gate == "off":
        return 0
    return int(result.get("exit_code") or _STATUS_CODES.get(status, 0))


def run_verdict(
    results: Iterable[Mapping[str, Any]], gate: str = "strict", warnings: Iterable[Any] = ()
) -> dict[str, Any]:
    """How the run ends: {"exit_code": code, "message": its sentence}; 0, "" if all is well.

    `results`: {stage, status, exit_code, message} of every stage watched, in their order: the first that did
    not end well decides, as the stages behind it are closed for its sake. `warnings`: findings (records with
    `problem`, or sentences) that a gate in mode `warn` let pass.
    """
    for result in results:
        code = _stage_code(result, gate)
        if code:
            name = f"stage {result.get('stage')}"
            message = str(result.get("message") or f"it ended as {result.get('status')}")
            return {"exit_code": code, "message": message if name in message else f"{name}: {message}"}
    found = [_sentence(finding) for finding in warnings]
    if found:
        return {"exit_code": _HOST_UNFIT, "message": f"the run went on with an unfit host: {'; '.join(found)}"}
    return {"exit_code": 0, "message": ""}


def _sentence(finding: Any) -> str:
    """One finding as text, whatever form its author gave it."""
    if isinstance(finding, Mapping):
        return str(finding.get("problem") or finding.get("message") or dict(finding))
    return str(finding)


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filter names and their functions."""
        return {"run_verdict": run_verdict, "selected_stages": selected_stages}
