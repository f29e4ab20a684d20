"""The stage table: reading trainer/stages.yml, looking stages up, judging their gates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

import yaml

from trainer import config
from trainer.errors import InputError

GATE_METRICS = ("answered", "key_point_coverage", "format_compliance")
GATE_MODES = ("strict", "warn", "off")
ROUNDING = 1e-9  # a mean of shares may end just below the target that it equals


@dataclass(frozen=True)
class Stage:
    """One record of stages.yml; `data` and `benchmarks` are paths below the data root."""

    name: str
    tag: str
    title: str
    adapter: str
    data: str
    benchmarks: tuple[str, ...]
    gate: Mapping[str, float]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class StageTable:
    """All stages in their order, the benchmarks by name, and the profiles."""

    stages: tuple[Stage, ...]
    benchmarks: Mapping[str, str]
    profiles: Mapping[str, Mapping[str, Any]]

    @property
    def names(self) -> list[str]:
        return [stage.name for stage in self.stages]

    def stage(self, name: str) -> Stage:
        """The stage of this name; InputError with `did you mean` for an unknown one."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        hint = config.suggestion(name, self.names) or f"; choose from {', '.join(self.names)}"
        raise InputError(f"there is no stage {name!r}{hint}")

    def before(self, name: str) -> list[Stage]:
        """The stages whose gates stand before `name`, in order."""
        return list(self.stages[: self.names.index(name)])

    def ordered(self, names: Iterable[str]) -> list[str]:
        """`names`, each known and once, in the order of the line; InputError when there is none."""
        wanted = {self.stage(name).name for name in names}
        if not wanted:
            raise InputError(f"no stage is selected; choose from {', '.join(self.names)}")
        return [name for name in self.names if name in wanted]

    def profile(self, name: str, stage: str) -> dict[str, Any]:
        """The parameters that a profile sets for a stage; an empty name is no profile."""
        if not name:
            return {}
        if name not in self.profiles:
            hint = config.suggestion(name, self.profiles) or f"; choose from {', '.join(self.profiles)}"
            raise InputError(f"there is no profile {name!r}{hint}")
        record = self.profiles[name]
        return {**record.get("parameters", {}), **record.get("stages", {}).get(stage, {})}

    def resolve(
        self, stage: str, profile: str, overrides: Mapping[str, config.Override]
    ) -> tuple[config.Parameters, dict[str, str]]:
        """The parameters of a stage with the source of each value."""
        record = self.stage(stage)
        return config.resolve(stage, record.parameters, profile, self.profile(profile, stage), overrides)


@cache
def load() -> StageTable:
    """The shipped table; InputError names every fault in it at once."""
    return parse(files("trainer").joinpath("stages.yml").read_text(encoding="utf-8"))


def parse(text: str) -> StageTable:
    """A stage table from YAML text; InputError with all faults when it does not hold together."""
    try:
        raw = yaml.safe_load(text)
        stages = tuple(Stage(**{**record, "benchmarks": tuple(record["benchmarks"])}) for record in raw["stages"])
        table = StageTable(stages, dict(raw["benchmarks"]), dict(raw.get("profiles") or {}))
        findings = _faults(table)
    except (yaml.YAMLError, TypeError, ValueError, KeyError, AttributeError) as problem:
        raise InputError(f"stages.yml cannot be read: {problem}; compare it with the shipped one") from None
    config.raise_findings([f"stages.yml: {finding}" for finding in findings])
    return table


def _faults(table: StageTable) -> list[str]:
    found: list[str] = []
    for key in ("name", "tag", "adapter"):
        values = [getattr(stage, key) for stage in table.stages]
        found += [f"{key} {value!r} stands twice" for value in sorted({v for v in values if values.count(v) > 1})]
    for stage in table.stages:
        found += [
            f"stage {stage.name}: unknown gate metric {metric!r}{config.suggestion(metric, GATE_METRICS)}"
            for metric in stage.gate
            if metric not in GATE_METRICS
        ]
        found += [
            f"stage {stage.name}: the target of {metric} is {target!r}; give a share from 0 to 1"
            for metric, target in stage.gate.items()
            if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 <= target <= 1
        ]
        found += [
            f"stage {stage.name}: there is no benchmark {name!r}{config.suggestion(name, table.benchmarks)}"
            for name in stage.benchmarks
            if name not in table.benchmarks
        ]
        found += [f"stage {stage.name}: {fault}" for path in (stage.data, stage.adapter) for fault in _leaves(path)]
        found += config.checked(stage.parameters, f"stage {stage.name}")[1]
    found += [f"benchmark {name}: {fault}" for name, path in table.benchmarks.items() for fault in _leaves(path)]
    for name, record in table.profiles.items():
        layers = [record.get("parameters", {}), *record.get("stages", {}).values()]
        for layer in layers:
            found += config.checked(layer, f"profile {name}")[1]
        found += [f"profile {name}: there is no stage {s!r}" for s in record.get("stages", {}) if s not in table.names]
    return found


def _leaves(path: str) -> list[str]:
    outside = PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts
    return [f"{path!r} leaves its folder; name a path below it"] if outside else []


def judge(targets: Mapping[str, float], measured: Mapping[str, Mapping[str, Any]]) -> tuple[bool, list[str]]:
    """Whether every target is reached, and a sentence for each that is not.

    `measured` maps a metric to {"value": share in [0, 1] or None, "n": rows}. A metric that could not be
    measured (None, n = 0) misses its target: a gate never opens for want of evidence.
    """
    reasons = []
    for metric, target in targets.items():
        found = measured.get(metric) or {"value": None, "n": 0}
        value, n = found["value"], found["n"]
        words = metric.replace("_", " ")
        if value is None:
            reasons.append(f"{words} could not be measured (n=0), target {target:.2f}")
        elif not value >= target - ROUNDING:  # also for NaN
            shown = math.floor(value * 1000) / 1000 if math.isfinite(value) else value  # 0.8996 is not "0.900 < 0.90"
            reasons.append(f"{words} {shown:.3f} < {target:.2f} (n={n})")
    return not reasons, reasons
