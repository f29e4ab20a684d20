"""The check before anything is loaded: data, parameters, packages and base model, all findings at once. No torch."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from trainer import base, config, copies, data, encoding, examples, fingerprint, hub, stages, steps, surveys
from trainer.data import Finding, Survey
from trainer.errors import InputError, TrainerError
from trainer.plan import Plan
from trainer.repositories import TITLES, Listing
from trainer.state import Layout

PARAMETERS = "parameters"  # the place of a finding that is in no file
PACKAGES = "packages"
BASE_FIELDS = ("model_name_or_path", "model_revision", "use_modelscope", "model_sources", "hf_endpoint")


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


@dataclass(frozen=True)
class BaseCheck:
    """Findings and lines on a base model, and its folder when it lies whole on this host."""

    findings: list[Finding]
    notes: list[str]
    folder: Path | None


def inspect(plan: Plan, layout: Layout) -> Inspection:
    """Everything that can be known about a plan's inputs without torch."""
    table = stages.load()
    root = steps.data_root(plan.data_root)
    findings: list[Finding] = []
    notes: list[str] = []
    counts: dict[str, int] = {}
    looked_at: dict[tuple[str, ...], BaseCheck] = {}  # the network is asked once, not once for each stage
    for name in plan.stages:
        stage = table.stage(name)
        parameters, _ = table.resolve(name, plan.profile, plan.overrides)
        found = surveys.of_stage(root, table, stage, layout.cache)
        findings += found.findings
        counts[name] = found.rows
        key = tuple(str(getattr(parameters, field)) for field in BASE_FIELDS)
        if key not in looked_at:
            looked_at[key] = check_base(parameters, layout)
        findings += looked_at[key].findings
        notes += looked_at[key].notes
        if not any(f.severity == "error" and f.file in (stage.data, PARAMETERS) for f in findings):
            more, note = _check_lengths(looked_at[key].folder, stage, parameters, root, layout, found)
            findings += more
            notes += [note] if note else []
    findings = list(dict.fromkeys(findings + check_packages(steps.code_root() / "requirements" / "trainer.txt")))
    lines = [str(finding) for finding in findings] + list(dict.fromkeys(notes))
    if not any(finding.severity == "error" for finding in findings):
        lines.append(_counted(counts))
    return Inspection(findings, lines)


def inspect_data(named_root: str) -> Inspection:
    """The rows of every stage and nothing else: the check of data that came in a bundle, before there is a model."""
    table = stages.load()
    root = steps.data_root(named_root)
    found = {name: surveys.of_stage(root, table, table.stage(name)) for name in table.names}
    findings = list(dict.fromkeys(finding for survey in found.values() for finding in survey.findings))
    lines = [str(finding) for finding in findings]
    if not any(finding.severity == "error" for finding in findings):
        lines.append(_counted({name: survey.rows for name, survey in found.items()}))
    return Inspection(findings, lines)


def _counted(counts: Mapping[str, int]) -> str:
    counted = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"data is sound: {counted} rows; python {platform.python_version()}"


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


def check_base(parameters: config.Parameters, layout: Layout) -> BaseCheck:
    """Whether the base model is there, or can be had, and can be trained."""
    name = parameters.model_name_or_path
    try:
        if not hub.is_remote(name):
            fingerprint.of_base(parameters, layout, steps.corpus())
            if name == base.NAME:
                return BaseCheck([], [], base.location(layout.models, steps.corpus()))
            folder = Path(name).expanduser()
            return BaseCheck(_check_folder(folder), [], folder)
        listing = hub.resolve(parameters, layout, remember=False)
        notes = [note] if (note := hub.moved(parameters, layout)) else []
        if copies.is_complete(layout, listing):
            folder = copies.location(layout, listing)
            return BaseCheck(_check_folder(folder), notes, folder)
        copies.check_access(parameters, layout, listing)
    except TrainerError as problem:
        return BaseCheck([_base_finding(problem)], [], None)
    source = f"{TITLES[listing.source]} ({listing.endpoint})"
    told = (
        f"{name}: {copies.size(listing.size)} in {len(listing.files)} files come from {source}, commit {listing.commit}"
    )
    return BaseCheck(_check_listing(listing), [*notes, told], None)


def _check_listing(listing: Listing) -> list[Finding]:
    """Findings on a model that is still to come."""
    if listing.architectures and not _is_causal(listing.architectures):
        return [_unfit(f"the base model {listing.name!r} is a {listing.architectures[0]}")]
    missing = [name for name in ("config.json", "tokenizer_config.json") if name not in listing.files]
    return [_unfit(f"the base model {listing.name!r} has no {missing[0]}")] if missing else []


def _check_folder(folder: Path) -> list[Finding]:
    """Findings on the configuration and weights of a model in a folder; its tokenizer is loaded for the lengths."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = [str(name) for name in settings.get("architectures") or []]
    except (OSError, ValueError, AttributeError) as problem:
        return [_unfit(f"the config.json of {str(folder)!r} cannot be read ({type(problem).__name__})")]
    if names and not _is_causal(names):
        return [_unfit(f"the base model in {str(folder)!r} is a {names[0]}")]
    if not any(folder.glob("*.safetensors")):
        return [_unfit(f"the base model in {str(folder)!r} has no safetensors weights")]
    return []


def _is_causal(architectures: Iterable[str]) -> bool:
    """What AutoModelForCausalLM loads is named so; a classifier or an encoder is not."""
    return any(name.endswith("ForCausalLM") for name in architectures)


def _unfit(problem: str) -> Finding:
    return Finding("error", PARAMETERS, 0, "model_name_or_path", problem, "name an instruction-tuned causal model")


def _base_finding(problem: TrainerError) -> Finding:
    sentence, _, remedy = str(problem).rpartition("; ") if "; " in str(problem) else (str(problem), "", "")
    return Finding("error", PARAMETERS, 0, "model_name_or_path", sentence, remedy or "correct model_name_or_path")


def _check_lengths(
    folder: Path | None, stage: stages.Stage, parameters: config.Parameters, root: Path, layout: Layout, survey: Survey
) -> tuple[list[Finding], str]:
    """Rows that are too long or train nothing, where the base's tokenizer is at hand; else a note."""
    path = str(folder)
    try:
        metadata.version("transformers")
        present = folder is not None and folder.is_dir()
    except metadata.PackageNotFoundError:
        present = False
    if not present:
        return [], "lengths are checked when the base model is there, before anything is trained"
    try:
        tokenizer = encoding.load_tokenizer(path, local_only=True)
    except InputError as problem:  # a finding among the others, not instead of them
        return [_base_finding(problem)], ""
    source = examples.of_survey(root, stage, survey)
    return examples.checked(source, tokenizer, parameters, parameters.max_length, layout.cache)[1], ""
