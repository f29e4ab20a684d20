"""Every hostile bundle is refused for what is hostile in it, its twin is accepted, and every Python says the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.bundle import hostile
from tests.unit.trainer.bundle.hostile_case import Bundle, Case, Make
from tests.unit.trainer.bundle.hostile_layouts import Layout
from tests.unit.trainer.bundle.hostile_tar import digest

REPOSITORY = Path(__file__).resolve().parents[4]
DEADLINE_SECONDS = 600.0
OLDEST, NEWEST = (3, 8), (3, 13)
PLACES = ("/usr/bin", "/usr/local/bin", "/opt/*/bin", "~/.pyenv/versions/*/bin", "~/.local/share/uv/python/*/bin",
          "~/*conda*/bin", "~/*conda*/envs/*/bin")  # fmt: skip
Verdict = dict[str, Any]


def version_of(python: str) -> str:
    """major.minor.micro of an interpreter, empty for what is none."""
    asked = [python, "-c", "import sys; print('.'.join(map(str, sys.version_info[:3])))"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def pythons() -> dict[str, str]:
    """Version to path: the running Python, and one of each minor version that is supported and on the machine."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for place in PLACES:
        path = Path(place).expanduser()
        folders += sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    found = {".".join(map(str, sys.version_info[:3])): sys.executable}
    named = {os.path.realpath(path) for folder in folders for path in folder.glob("python3*")}
    for path in sorted(path for path in named if re.search(r"/python3(\.\d+)?$", path)):
        version = version_of(path)
        minors = {tuple(map(int, known.split(".")[:2])) for known in found}
        if version and OLDEST <= (minor := tuple(map(int, version.split(".")[:2]))) <= NEWEST and minor not in minors:
            found[version] = path
    return found


PYTHONS = pythons()
HERE = next(iter(PYTHONS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def canaries(folder: Path) -> Path:
    """The folder that hostile names and links aim at."""
    return hostile.outside(folder)


@pytest.fixture(scope="module")
def verdicts(folder: Path, canaries: Path) -> dict[str, dict[str, Verdict]]:
    """Python's version -> name of the bundle -> verdict; one process of each Python judges them all."""
    hostile.write_all(folder)

    def judge(version: str) -> dict[str, Verdict]:
        work = folder / f"python-{version}"
        work.mkdir()
        command = [PYTHONS[version], "-B", "-m", "tests.unit.trainer.bundle.verdicts", str(folder), str(work)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": str(work), "LC_ALL": "C"}
        ended = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS
        )
        assert ended.returncode == 0, f"Python {version}: {ended.stderr[-2000:]}"
        shutil.rmtree(work)
        return {row["name"]: row for row in map(json.loads, ended.stdout.splitlines())}

    with ThreadPoolExecutor(2) as pool:
        judged = dict(zip(PYTHONS, pool.map(judge, PYTHONS), strict=True))
    alive = {path.name: path.read_text() for path in canaries.iterdir()}
    assert alive == dict.fromkeys(hostile.CANARIES, "alive\n")
    return judged


def assert_tree(verdict: Verdict, bundle: Bundle) -> None:
    """Accepted by both, and what lies there is what went in: regular files, one link each, our modes."""
    assert "source_id" in verdict["verify"], verdict["verify"]
    assert verdict["apply"] == verdict["verify"]
    wanted = [
        [name, oct(0o100755 if entry.executable else 0o100644), 1, digest(entry.content).decode()]
        for name, entry in bundle.tree.items()
    ]
    assert verdict["tree"] == sorted(wanted)
    assert (verdict["changed"], verdict["staged"]) == ([], [])


@pytest.mark.parametrize("case", hostile.CASES, ids=lambda case: case.name)
def test_a_hostile_bundle_is_refused_for_what_is_hostile_and_leaves_nothing(
    case: Case, verdicts: dict[str, dict[str, Verdict]]
) -> None:
    verdict = verdicts[HERE][case.name]
    assert verdict["verify"].get("error") == "InputError", verdict["verify"]
    assert verdict["apply"] == verdict["again"] == verdict["verify"]
    sentence = verdict["verify"]["sentence"]
    assert [part for part in case.fragments if part not in sentence] == [], sentence
    assert sentence.isprintable() and ";" in sentence, "one line with a remedy"
    assert (verdict["changed"], verdict["staged"], verdict["tree"]) == ([], [], [])


@pytest.mark.parametrize("case", hostile.CASES, ids=lambda case: case.name)
def test_its_harmless_twin_is_accepted(case: Case, verdicts: dict[str, dict[str, Verdict]], canaries: Path) -> None:
    twin, other = (case.make(Make(side, canaries)) for side in (False, True))
    assert twin.files != other.files or twin.name != other.name
    assert_tree(verdicts[HERE][f"{case.name}.twin"], twin)


@pytest.mark.parametrize("layout", hostile.LAYOUTS, ids=lambda layout: layout.name)
def test_what_looks_odd_and_is_harmless_is_accepted(
    layout: Layout, verdicts: dict[str, dict[str, Verdict]], canaries: Path
) -> None:
    verdict = verdicts[HERE][layout.name]
    assert_tree(verdict, layout.make(Make(False, canaries)))
    assert len(verdict["lines"]) == len(layout.lines)
    assert all(part in line for part, line in zip(layout.lines, verdict["lines"], strict=True))


@pytest.mark.parametrize("version", PYTHONS)
def test_every_python_says_the_same(version: str, verdicts: dict[str, dict[str, Verdict]]) -> None:
    here, there = verdicts[HERE], verdicts[version]
    assert set(there) == set(here)
    assert {name: row for name, row in there.items() if row != here[name]} == {}


@pytest.mark.parametrize("side", [*hostile.CASES, *hostile.LAYOUTS], ids=lambda side: side.name)
def test_what_must_be_accepted_is_an_archive_to_another_reader(
    side: Case | Layout, canaries: Path, tmp_path: Path
) -> None:
    bundle = side.make(Make(False, canaries))
    with tarfile.open(hostile.write_files(bundle, tmp_path / "bundle")) as archive:
        members = {member.name: member for member in archive if member.isfile()}
        found = {name.removeprefix("./"): archive.extractfile(member).read() for name, member in members.items()}  # type: ignore[union-attr]
    assert found == {name: entry.content for name, entry in bundle.tree.items()}


def test_the_cases_are_many_and_of_all_classes() -> None:
    names = [case.name for case in hostile.CASES] + [layout.name for layout in hostile.LAYOUTS]
    assert len(names) == len(set(names)) and len(hostile.CASES) >= 100
    assert {case.kind for case in hostile.CASES} == {
        "names", "types", "metadata", "framing", "sizes", "outer", "manifest",
    }  # fmt: skip
    assert [case.name for case in hostile.CASES if not case.name.startswith(f"{case.kind}-")] == []


def test_the_table_names_every_case_once() -> None:
    rows = hostile.table().splitlines()
    assert all(sum(row.startswith(f"| {case.name} |") for row in rows) == 1 for case in hostile.CASES)
