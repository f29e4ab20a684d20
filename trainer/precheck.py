"""The check before anything is loaded: data, parameters, packages and base model, all findings at once. No torch."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from trainer import base, config, data, encoding, fingerprint, stages, steps
from trainer.data import Finding
from trainer.errors import InputError
from trainer.plan import Plan
from trainer.state import Layout

PARAMETERS = "parameters"  # the place of a finding that is in no file
PACKAGES = "packages"


@dataclass(frozen=True)
class Inspection:
    """What was found, and the lines that say so."""

    findings: list[Finding]
    lines: list[str]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    def raise_errors(self) -> None:
        """InputError with all errors; a wrong parameter alone reads as one, not as a fault of the data."""
        errors = self.errors
        if errors and all(finding.file == PARAMETERS for finding in errors):
            raise InputError(f"{errors[0].problem}; {errors[0].remedy}", map(str, errors[1:]))
        data.raise_errors(errors)


def inspect(plan: Plan, layout: Layout) -> Inspection:
    """Everything that can be known about a plan's inputs without torch."""
    table = stages.load()
    root = steps.data_root(plan.data_root)
    findings: list[Finding] = []
    notes: list[str] = []
    for name in plan.stages:
        stage = table.stage(name)
        parameters, _ = table.resolve(name, plan.profile, plan.overrides)
        findings += data.check_stage(root, table, stage)
        findings += _check_base(parameters, layout)
        if not any(f.severity == "error" and f.file in (stage.data, PARAMETERS) for f in findings):
            more, note = _check_lengths(layout, stage, parameters, root)
            findings += more
            notes += [note] if note else []
    findings = list(dict.fromkeys(findings + check_packages(steps.code_root() / "requirements" / "trainer.txt")))
    lines = [str(finding) for finding in findings] + list(dict.fromkeys(notes))
    if not any(finding.severity == "error" for finding in findings):
        counts = {name: len(data.read_rows(root / table.stage(name).data)[0]) for name in plan.stages}
        counted = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(f"data is sound: {counted} rows; python {platform.python_version()}")
    return Inspection(findings, lines)


def check_packages(requirements: Path) -> list[Finding]:
    """Warnings on pinned packages that are not installed here, or in another version."""
    if not requirements.is_file():
        return []
    pinned = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    findings = []
    for name, version in pinned:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
        if found.split("+")[0] != version:  # +cpu, +cu130: builds of one version
            remedy = f"{version} is pinned: install requirements/trainer.txt before training"
            findings.append(Finding("warning", PACKAGES, 0, name, f"is {found}", remedy))
    return findings


def _check_base(parameters: config.Parameters, layout: Layout) -> list[Finding]:
    """A finding when the base model is named as a folder that is none, or its corpus is missing."""
    try:
        fingerprint.of_base(parameters, layout, steps.corpus())
    except InputError as problem:
        return [_base_finding(problem)]
    return []


def _base_finding(problem: InputError) -> Finding:
    sentence, _, remedy = str(problem).partition("; ")
    return Finding("error", PARAMETERS, 0, "model_name_or_path", sentence, remedy or "correct model_name_or_path")


def _check_lengths(
    layout: Layout, stage: stages.Stage, parameters: config.Parameters, root: Path
) -> tuple[list[Finding], str]:
    """Rows that are too long or train nothing, where the base's tokenizer is at hand; else a note."""
    path = parameters.model_name_or_path
    if path == base.NAME:
        path = str(base.location(layout.models, steps.corpus()))
    try:
        metadata.version("transformers")
        present = Path(path).is_dir()
    except metadata.PackageNotFoundError:
        present = False
    if not present:
        return [], "lengths are checked when the base model is there, before anything is trained"
    try:
        tokenizer = encoding.load_tokenizer(path, local_only=True)
    except InputError as problem:  # a finding among the others, not instead of them
        return [_base_finding(problem)], ""
    numbered, _ = data.read_rows(root / stage.data, stage.data)
    _, findings = encoding.encode(
        numbered, tokenizer, stage.data, enable_thinking=parameters.enable_thinking, max_length=parameters.max_length
    )
    return findings, ""
