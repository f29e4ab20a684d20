"""Files held against each other: tests and modules, requirements and constraints, README and code."""

from __future__ import annotations

import configparser
import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest
import readme
import tomllib
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("trainer", "trainer/bundle")
# `__init__` and `__main__` hold nothing to test.
MODULES = sorted(p for package in PACKAGES for p in (ROOT / package).glob("*.py") if not p.stem.startswith("__"))
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
REQUIREMENTS = ("controller.txt", "trainer.txt", "dev.txt")
PINNED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;#]+)(?P<rest>.*)")


def pins(name: str) -> dict[str, str]:
    found = {}
    for row in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
        if match := PINNED.fullmatch(row.strip()):
            found[match["name"].lower().replace("_", "-")] = match["version"]
    return found


def requirement_lines(name: str) -> list[str]:
    rows = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return [row for row in rows if row.strip() and not row.startswith(("#", "-r "))]


def test_every_package_of_the_trainer_is_known_here() -> None:
    assert {p.parent.relative_to(ROOT).as_posix() for p in (ROOT / "trainer").rglob("*.py")} == set(PACKAGES)


@pytest.mark.parametrize("module", [path.relative_to(ROOT).as_posix() for path in MODULES])
def test_every_module_of_the_trainer_has_its_test_file(module: str) -> None:
    folder, _, name = module.rpartition("/")
    assert (ROOT / "tests" / "unit" / folder / f"test_{name}").is_file()


@pytest.mark.parametrize("folder", ["filter_plugins", "callback_plugins"])
def test_every_plugin_has_its_test_file(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        assert (ROOT / "tests" / "unit" / folder / f"test_{path.name}").is_file(), path.name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_test_file_of_the_trainer_has_its_module(package: str) -> None:
    modules = [path.stem for path in MODULES if path.parent == ROOT / package]
    names = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "unit" / package).glob("test_*.py")}
    stray = [name for name in names if not any(name == m or name.startswith(f"{m}_") for m in modules)]
    assert stray == [], "a test whose module is gone"


def test_what_a_bundle_carries_is_what_its_program_imports() -> None:
    from trainer.bundle import application

    carried = set(application.modules())
    own = {f"trainer.bundle.{path.stem}" for path in MODULES if path.parent.name == "bundle"}
    assert own & carried == own - application.CONTROLLER_ONLY and own >= application.CONTROLLER_ONLY
    code = (
        "import sys, trainer.arguments, trainer.bundle.command\nprint(*(n for n in sys.modules if n[:7] == 'trainer'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert carried >= set(done.stdout.split())


def test_what_a_bundle_carries_is_held_to_the_oldest_python() -> None:
    from trainer.bundle import application

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["ruff"]["per-file-target-version"]
    carried = {path.relative_to(ROOT).as_posix() for path in application.modules().values()}
    carried |= {f"roles/checkout/files/{name}.py" for name in ("data", "look")}  # sent to the same hosts
    assert set(listed.values()) == {"py38"}
    assert [path for path in sorted(carried) if not any(fnmatch.fnmatch(path, glob) for glob in listed)] == []
    stale = [glob for glob in listed if glob.startswith("trainer/") and not fnmatch.filter(carried, glob)]
    assert stale == [], "not carried any more"


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_direct_requirement_is_pinned_with_a_reason_and_locked_to_the_same_version(name: str) -> None:
    locked = pins("constraints.txt")
    for row in requirement_lines(name):
        match = PINNED.fullmatch(row.strip())
        assert match, f"{row!r} is not pinned with =="
        assert re.fullmatch(r"\s+#\s+\S.+", match["rest"]), f"{row!r} gives no reason"
        assert locked.get(match["name"].lower().replace("_", "-")) == match["version"], row


def test_the_constraints_hold_versions_only_and_each_once() -> None:
    rows = requirement_lines("constraints.txt")
    assert all(PINNED.fullmatch(row) and not row.endswith("+cpu") for row in rows)
    assert len(pins("constraints.txt")) == len(rows)


def test_a_version_that_is_stated_twice_is_the_same() -> None:
    stated: dict[str, set[str]] = {}
    for name in REQUIREMENTS:
        for package, version in pins(name).items():
            stated.setdefault(package, set()).add(version)
    assert {package: found for package, found in stated.items() if len(found) > 1} == {}
    core = pins("controller.txt")["ansible-core"]
    for path in (ROOT / "roles").glob("*/meta/main.yml"):
        least = yaml.safe_load(path.read_text(encoding="utf-8"))["galaxy_info"]["min_ansible_version"]
        assert core.startswith(f"{least}."), f"{path} asks for {least}, installed is {core}"


def test_the_oldest_python_is_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "requirements/trainer.txt", ".ci/run")]
    host = yaml.safe_load((ROOT / "roles" / "gpu_host" / "defaults" / "main.yml").read_text(encoding="utf-8"))
    found = {
        "pyproject requires-python": re.findall(r'requires-python = ">=([\d.]+)"', project),
        "mypy": re.findall(r'python_version = "([\d.]+)"', project),
        "Makefile check": [".".join(pair) for pair in re.findall(r"version_info < \((\d+), (\d+)\)", makefile)],
        "Makefile words": re.findall(r"older than Python ([\d.]+\d)", makefile),
        "README, trainer.txt, .ci/run": [v for text in texts for v in re.findall(r"Python ([\d.]+\d)\+", text)],
        "gpu_host_python_min": [host["gpu_host_python_min"]],
    }
    assert all(found.values()), f"one of them is gone: {found}"
    assert {version for versions in found.values() for version in versions} == {"3.11"}, found


def test_the_tables_of_the_readme_are_fresh() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in readme.TABLES:
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        assert text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end)
    assert readme.with_tables(text) == text, "run `make tables`"


def test_a_stale_table_would_be_noticed() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    stale = text.replace("| `seed` | `42` |", "| `seed` | `43` |")
    assert stale != text and readme.with_tables(stale) == text


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    from trainer.errors import KINDS

    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Exit codes")[2].partition("\n## ")[0]
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", text, re.MULTILINE)}
    assert codes == {0, *(kind.exit_code for kind in KINDS.values())}


def test_what_ansible_cfg_names_is_there() -> None:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "ansible.cfg", encoding="utf-8")
    for key in ("inventory", "roles_path", "action_plugins", "callback_plugins", "filter_plugins"):
        if key in settings["defaults"]:
            for name in settings["defaults"][key].split(","):
                assert (ROOT / name.strip()).exists(), key
    for name in settings["defaults"]["callbacks_enabled"].split(","):
        assert (ROOT / "callback_plugins" / f"{name.strip()}.py").is_file()


def test_every_playbook_that_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"playbooks/\w+\.yml", text)):
        assert (ROOT / name).is_file(), name


def test_every_command_that_the_readme_names_exists() -> None:
    from trainer.commands import COMMANDS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"python -m trainer ([a-z]+)", text))
    assert named and named <= set(COMMANDS)


def test_inputs_of_every_role_are_checked_for_misspelt_names() -> None:
    variables = yaml.safe_load((ROOT / "roles" / "trainer" / "vars" / "main.yml").read_text(encoding="utf-8"))
    assert variables["__trainer_roles"] == ROLES


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_its_scenario_and_says_how_to_run_it(role: str) -> None:
    scenario = ROOT / "roles" / role / "molecule" / "default"
    for name in ("molecule.yml", "converge.yml", "verify.yml"):
        assert (scenario / name).is_file(), name
    assert f"`make molecule ROLE={role}`" in (ROOT / "roles" / role / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^molecule:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
