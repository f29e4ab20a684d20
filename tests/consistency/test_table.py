"""The stage table and the playbook say the same, and no Ansible file knows a parameter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer import config, plan, stages

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE_FOLDERS = ("playbooks", "roles", "inventory", "action_plugins", "callback_plugins", "filter_plugins")
STEPS = ("connection", "parameters", "precheck", "verdict")  # uses of the role that are no stages


def plays(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def ansible_files() -> list[Path]:
    found = [ROOT / "ansible.cfg", ROOT / "train_all.yml"]
    for folder in ANSIBLE_FOLDERS:
        found += [p for p in (ROOT / folder).rglob("*") if p.suffix in (".yml", ".yaml", ".py", ".j2", ".sh", ".ini")]
    return [path for path in found if path.name != "README.md" and "molecule" not in path.relative_to(ROOT).parts]


def test_the_playbook_has_one_line_for_each_stage_in_order_with_its_tag() -> None:
    (play,) = plays("playbooks/train_all.yml")
    lines = [
        (role["trainer_stage"], role["tags"])
        for role in play["roles"]
        if role["role"] == "trainer" and role["trainer_stage"] not in STEPS
    ]
    assert lines == [(stage.name, [stage.tag]) for stage in stages.load().stages]


def test_no_stage_is_called_like_a_step_and_no_tag_is_taken() -> None:
    table = stages.load()
    assert not set(table.names) & {*STEPS, "plan"}, "state/plan.json is the plan's"
    assert not {stage.tag for stage in table.stages} & {
        "all",
        "always",
        "never",
        "tagged",
        "untagged",
        "precheck",
        "collect",
    }


def test_the_line_begins_with_the_parameters_and_ends_with_the_verdict() -> None:
    (play,) = plays("playbooks/train_all.yml")
    order = [role.get("trainer_stage", role["role"]) for role in play["roles"]]
    names = stages.load().names
    assert order == ["parameters", "connection", "gpu_host", "checkout", "precheck", *names, "artifacts", "verdict"]


def test_the_steps_of_the_role_are_those_of_the_playbook() -> None:
    variables = plays("roles/trainer/vars/main.yml")
    assert tuple(variables["__trainer_steps"]) == STEPS
    for step in (*STEPS, "stage"):
        assert (ROOT / "roles" / "trainer" / "tasks" / f"{step}.yml").is_file()


def test_the_gates_of_the_stages_have_the_same_words_everywhere() -> None:
    specs = plays("roles/trainer/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert tuple(specs["trainer_gate"]["choices"]) == stages.GATE_MODES
    host = plays("roles/gpu_host/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert tuple(host["gpu_host_gate"]["choices"]) == stages.GATE_MODES


def test_profiles_named_in_inventories_exist() -> None:
    known = stages.load().profiles
    for path in ansible_files():
        for name in re.findall(r"^\s*trainer_profile:[ \t]*[\"']?([a-z_]+)", path.read_text(encoding="utf-8"), re.M):
            assert name in known, f"{path.name} names the profile {name}"


PARAMETER = re.compile(
    r"\btrainer_hp_(?P<variable>\w+)|^\s*(?:-\s*)?(?P<key>\w+)\s*[:=]|[\"'](?P<quoted>\w+)[\"']", re.MULTILINE
)


def parameters_named_in(text: str) -> set[str]:
    found = {name for match in PARAMETER.finditer(text) for name in match.groups() if name}
    return found & set(config.FIELDS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("trainer_hp_learning_rate: 1e-4", {"learning_rate"}),
        ("    lora_r: 16", {"lora_r"}),
        ("  - seed: 1", {"seed"}),
        ("{{ {'use_qlora': true} }}", {"use_qlora"}),
        ("# every variable that begins with trainer_hp_", set()),
        ("'^trainer_hp_.'", set()),
        ("description: the seed and the learning_rate", set()),
    ],
)
def test_the_search_for_parameters_finds_them(text: str, found: set[str]) -> None:
    assert parameters_named_in(text) == found


def test_no_ansible_file_names_a_parameter() -> None:
    files = ansible_files()
    assert len(files) > 20
    named = {str(path.relative_to(ROOT)): parameters_named_in(path.read_text(encoding="utf-8")) for path in files}
    assert {name: found for name, found in named.items() if found} == {}


def test_no_default_of_a_parameter_stands_in_another_module() -> None:
    """A keyword argument or a constant with a parameter's own default would be a second place for it."""
    for path in (ROOT / "trainer").glob("*.py"):
        if path.name in ("config.py", "base.py"):  # the recipe of the embedded base is no stage's parameter
            continue
        for name, item in config.FIELDS.items():
            pattern = rf"\b{name}\s*(?::[^=\n(]+)?=\s*{re.escape(repr(item.default))}(?![\w.])"
            assert not re.search(pattern, path.read_text(encoding="utf-8")), f"{path.name} repeats {name}"


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir()))
def test_the_inputs_of_a_role_are_its_specification(name: str) -> None:
    specs = plays(f"roles/{name}/meta/argument_specs.yml")["argument_specs"]
    options = {key: item for entry in specs.values() for key, item in entry["options"].items()}
    defaults = plays(f"roles/{name}/defaults/main.yml") or {}
    own = {key for key, item in options.items() if key in defaults or not item.get("required")}
    assert own == set(defaults), "every default is specified, and what is not required has a default"
    assert all(key.startswith(f"{name}_") for key in options)
    assert all(item.get("description") and item.get("type") for item in options.values())
    for key, item in options.items():
        if key in defaults and "choices" in item:
            assert defaults[key] in item["choices"]


def test_importing_what_needs_no_torch_imports_none() -> None:
    """The controller and the supervisor never load it; only these modules may, and `worker` inside its functions."""
    heavy = {
        "continuation", "decoder", "feed", "generate", "loop", "lowrank", "merging", "model", "packing", "prefixes",
        "resume", "sharding", "train",
    }  # fmt: skip
    names = sorted(p.stem for p in (ROOT / "trainer").glob("*.py") if p.stem not in {*heavy, "__main__"})
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module('trainer.' + name if name != '__init__' else 'trainer')\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'peft', 'trl', 'datasets',"
        " 'accelerate', 'tokenizers', 'safetensors', 'bitsandbytes', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_torch_free_commands_need_the_controllers_packages_only() -> None:
    """As on a controller that has PyYAML and Jinja2 and nothing else of the requirements."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'trl', 'datasets', 'tokenizers', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from trainer.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for words in (["params", "--input", "-", "--json"], ["stages", "--json"], ["source", "hash", "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=ROOT, input="{}", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_time_that_a_plan_may_take_is_the_same_with_and_without_ansible() -> None:
    assert plays("roles/trainer/defaults/main.yml")["trainer_plan_timeout_seconds"] == plan.PLAN_TIMEOUT_SECONDS


def test_the_providers_proxy_files_are_those_that_a_checkout_tries() -> None:
    providers = plays("roles/gpu_host/vars/main.yml")["__gpu_host_providers"]
    listed = providers.values() if isinstance(providers, dict) else providers
    known = {path for provider in listed for path in provider.get("environment_files", [])}
    assert known == set(plays("roles/checkout/defaults/main.yml")["checkout_environment_files"]) != set()
