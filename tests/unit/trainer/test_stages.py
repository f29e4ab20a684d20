"""The stage table as shipped, faults in a table, and the judging of gates."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from trainer import stages
from trainer.errors import InputError

# design.md, section 2: (name, tag, adapter, targets)
PROMISED = [
    ("sample", "sample", "adapter_sample", {"answered": 1.0}),
    ("style", "style", "adapter_style", {"key_point_coverage": 0.90, "format_compliance": 0.95}),
    ("writing", "writing", "adapter_writing", {"key_point_coverage": 0.85, "format_compliance": 0.90}),
    ("all", "multitask", "adapter_multitask", {"key_point_coverage": 0.88, "format_compliance": 0.92}),
]


def table(**changes: Any) -> str:
    """A sound table of two stages as YAML; `style` changes the second stage, other names the top level."""
    first = {
        "name": "sample", "tag": "sample", "title": "Smoke", "adapter": "adapter_sample", "data": "training/a.jsonl",
        "benchmarks": [], "gate": {"answered": 1.0}, "parameters": {},
    }  # fmt: skip
    second = {
        **first, "name": "style", "tag": "style", "adapter": "adapter_style", "benchmarks": ["style"],
        "gate": {"key_point_coverage": 0.9}, **changes.pop("style", {}),
    }  # fmt: skip
    top = {"benchmarks": {"style": "training/eval/style.jsonl"}, "stages": [first, second], "profiles": {}}
    return yaml.safe_dump({**top, **changes})


def test_the_shipped_table_is_the_one_that_was_promised() -> None:
    found = [(s.name, s.tag, s.adapter, dict(s.gate)) for s in stages.load().stages]
    assert found == PROMISED


def test_the_embedded_profile_sets_only_what_differs_from_the_default() -> None:
    shipped = stages.load()
    for stage in shipped.names:
        plain, _ = shipped.resolve(stage, "", {})
        small, sources = shipped.resolve(stage, "embedded", {})
        for name in shipped.profile("embedded", stage):
            assert getattr(plain, name) != getattr(small, name), f"{name} is set to its default"
            assert sources[name] == "profile embedded"


def test_a_table_is_read_with_its_profiles() -> None:
    profile = {"small": {"parameters": {"lora_r": 4}, "stages": {"style": {"lora_r": 8}}}}
    found = stages.parse(table(profiles=profile))
    assert found.profile("small", "sample") == {"lora_r": 4} and found.profile("small", "style") == {"lora_r": 8}
    assert found.profile("", "style") == {}
    assert stages.parse(table(profiles={"bare": {"stages": {}}})).profile("bare", "style") == {}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"style": {"name": "sample"}}, "name 'sample' stands twice"),
        ({"style": {"adapter": "adapter_sample"}}, "adapter 'adapter_sample' stands twice"),
        ({"style": {"gate": {"key_point_coverge": 0.9}}}, "unknown gate metric 'key_point_coverge'; did you mean"),
        ({"style": {"gate": {"answered": "high"}}}, "the target of answered is 'high'; give a share"),
        ({"style": {"gate": {"answered": 90}}}, "the target of answered is 90; give a share"),
        ({"style": {"benchmarks": ["stile"]}}, "no benchmark 'stile'; did you mean style"),
        ({"style": {"data": "../rows.jsonl"}}, "leaves its folder"),
        ({"style": {"data": "/rows.jsonl"}}, "leaves its folder"),
        ({"style": {"parameters": {"lora_rank": 8}}}, "there is no parameter 'lora_rank'"),
        ({"style": {"parameters": {"lora_r": 0}}}, "lora_r is 0"),
        ({"benchmarks": {"style": "../style.jsonl"}}, "benchmark style: '../style.jsonl' leaves its folder"),
        ({"profiles": {"small": {"parameters": {"lora_r": "x"}}}}, "profile small: lora_r is 'x'"),
        ({"profiles": {"small": {"stages": {"stile": {}}}}}, "profile small: there is no stage 'stile'"),
    ],
)
def test_a_fault_in_a_table_is_named(changes: dict[str, Any], sentence: str) -> None:
    stages.parse(table())
    with pytest.raises(InputError) as caught:
        stages.parse(table(**changes))
    assert sentence in str(caught.value) and str(caught.value).startswith("stages.yml: ")


def test_all_faults_of_a_table_are_named_at_once() -> None:
    broken = {"tag": "sample", "gate": {"accuracy": 1}, "parameters": {"lora_r": 0}}
    with pytest.raises(InputError) as caught:
        stages.parse(table(style=broken))
    assert len([*caught.value.lines, str(caught.value)]) == 3


@pytest.mark.parametrize(
    "text",
    ["", "[]", "stages: 5", "a: [", "stages: [{name: x}]\nbenchmarks: {}", table(style={"gate": None}),
     table(style={"parameters": None}), table(style={"extra": 1}), table(profiles={"small": None})],
)  # fmt: skip
def test_a_table_of_another_shape_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match=r"stages\.yml cannot be read"):
        stages.parse(text)


def test_stages_are_looked_up_ordered_and_misspelt() -> None:
    shipped = stages.load()
    assert shipped.ordered(["all", "sample", "all"]) == ["sample", "all"]
    assert [stage.name for stage in shipped.before("writing")] == ["sample", "style"]
    with pytest.raises(InputError, match=r"no stage 'writting'; did you mean writing\?"):
        shipped.stage("writting")
    with pytest.raises(InputError, match="choose from sample, style, writing, all"):
        shipped.stage("multi")
    with pytest.raises(InputError, match="no stage is selected"):
        shipped.ordered([])
    with pytest.raises(InputError, match=r"no profile 'embeded'; did you mean embedded\?"):
        shipped.profile("embeded", "style")


@pytest.mark.parametrize(
    ("value", "n", "passed"),
    [(0.9, 10, True), (0.95, 10, True), (0.8999999999999999, 10, True), (0.8996, 10, False), (0.0, 10, False),
     (None, 0, False), (float("nan"), 3, False)],
)  # fmt: skip
def test_a_gate_opens_at_its_target_and_never_for_want_of_evidence(value: Any, n: int, passed: bool) -> None:
    measured = {"key_point_coverage": {"value": value, "n": n}}
    found, reasons = stages.judge({"key_point_coverage": 0.9}, measured)
    assert found is passed and bool(reasons) is not passed


def test_reasons_name_metric_value_target_and_number_of_rows() -> None:
    targets = {"key_point_coverage": 0.9, "format_compliance": 0.95, "answered": 1.0}
    measured = {"key_point_coverage": {"value": 0.8996, "n": 28}, "answered": {"value": 1.0, "n": 28}}
    passed, reasons = stages.judge(targets, measured)
    assert not passed
    assert reasons == [
        "key point coverage 0.899 < 0.90 (n=28)",  # not rounded up to its target
        "format compliance could not be measured (n=0), target 0.95",
    ]
