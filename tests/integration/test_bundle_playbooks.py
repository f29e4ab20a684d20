"""The playbooks for bundles with the real trainer, on a host that is a folder: build, apply, refuse, go back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_data
from tests.integration.line import ANSIBLE_PARTS, REPOSITORY, Line, error_line
from trainer import content

FILES = REPOSITORY / "roles" / "checkout" / "files"
OLD, NEW = "1700000000", "1800000000"  # ages of bundles, as SOURCE_DATE_EPOCH gives them
Done = subprocess.CompletedProcess[str]


class Project(Line):
    """A copy of the project with few rows, which builds bundles, and its embedded host."""

    @property
    def code(self) -> Path:
        return self.host / "code"

    def build(self, name: str = "x.tar.gz", age: str = NEW) -> Path:
        """A bundle of the tree as it is, by the command line."""
        path = self.folder / "carried" / name
        path.parent.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "trainer", "bundle", "build", "--output", str(path)], cwd=self.folder,
            env=self.environment(SOURCE_DATE_EPOCH=age), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return path

    def play(self, playbook: str, *words: str, bundle: Path | None = None, **given: Any) -> Done:
        variables = {**({"checkout_bundle": str(bundle)} if bundle else {}), **given}
        return self.run("-e", json.dumps(variables), *words, playbook=f"playbooks/{playbook}.yml")

    def apply(self, bundle: Path, *words: str, **given: Any) -> Done:
        return self.play("bundle_apply", *words, bundle=bundle, **given)

    def change(self, text: str) -> None:
        (self.folder / "trainer" / "notes.txt").write_text(text)

    def notes(self) -> str:
        """The file that `change` writes, as the host has it, whose code is what its id says."""
        content.check_release(self.code, self.code.resolve().name)
        return (self.code / "trainer" / "notes.txt").read_text()

    def leftovers(self) -> list[str]:
        return [path.name for path in (self.host / "releases").glob(".*") if path.name != ".lock"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What the tests get copies of."""
    folder = tmp_path_factory.mktemp("project") / "original"
    for part in (*ANSIBLE_PARTS, ".bundleinclude"):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        source = REPOSITORY / part
        shutil.copytree(source, folder / part) if source.is_dir() else shutil.copy(source, folder / part)
    gpu_host = folder / "roles" / "gpu_host"  # its inputs are real, its tasks have tests of their own
    for part in ("defaults", "meta", "vars"):
        shutil.copytree(REPOSITORY / "roles" / "gpu_host" / part, gpu_host / part)
    (gpu_host / "tasks").mkdir()
    (gpu_host / "tasks" / "main.yml").write_text("---\n[]\n")
    shutil.copytree(REPOSITORY / "trainer", folder / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".bundleinclude").write_text("trainer/  # all of it\ndata/\n")
    write_data(folder / "data")
    (folder / ".venv").symlink_to(sys.prefix)
    project = Project(folder)
    project.change("first")
    project.build()
    return project


@pytest.fixture
def project(original: Project, tmp_path: Path) -> Project:
    own = Project(tmp_path / "own")
    shutil.copytree(original.folder, own.folder, symlinks=True)
    return own


def changed(done: Done) -> int:
    """The number of changes of a run that must have ended well."""
    assert done.returncode == 0, done.stdout + done.stderr
    return sum(map(int, re.findall(r" changed=(\d+) ", done.stdout)))


def refused(done: Done, code: int = 2) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    return error_line(done)


def test_build_writes_what_is_carried_and_changes_nothing_the_second_time(project: Project) -> None:
    path = project.folder / "carried" / "y.tar.gz"
    assert changed(project.play("bundle_build", "--check", bundle=path)) == 1 and not path.exists()
    first = project.play("bundle_build", bundle=path)
    assert changed(first) == 1 and str(path) in first.stdout
    beside = {name: path.with_name(name) for name in ("y.tar.gz.sha256", "y.SYNC_MANIFEST.sha256", "y.apply.pyz")}
    assert all(item.is_file() for item in beside.values())
    kept = path.read_bytes()
    assert changed(project.play("bundle_build", bundle=path)) == 0 and path.read_bytes() == kept
    project.change("other")
    assert changed(project.play("bundle_build", bundle=path)) == 1 and path.read_bytes() != kept
    beside["y.apply.pyz"].unlink()
    assert changed(project.play("bundle_build", bundle=path)) == 1 and beside["y.apply.pyz"].is_file()
    assert "does not end in .tar.gz" in refused(project.play("bundle_build", bundle=path.with_suffix(".zip")))


def test_build_names_its_bundle_by_itself(project: Project) -> None:
    assert changed(project.play("bundle_build")) == 1
    (path,) = project.folder.glob("outputs/bundles/*.tar.gz")
    assert changed(project.apply(path.relative_to(project.folder))) == 1  # as it is typed


def test_apply_from_a_dry_run_to_a_run_without_change(project: Project) -> None:
    bundle = project.folder / "carried" / "x.tar.gz"
    dry = project.apply(bundle, "--check")
    assert changed(dry) == 1 and "would add trainer/notes.txt" in dry.stdout and not project.host.exists()

    first = project.apply(bundle)
    assert changed(first) == 1 and "data is sound" in first.stdout
    assert project.notes() == "first" and project.leftovers() == []
    assert f"the code is {project.code.resolve().name}, commit unknown" in first.stdout

    for words in ((), ("--check",)):
        assert changed(project.apply(bundle, *words)) == 0

    (project.code / "trainer" / "cli.py").write_text("edited by hand")
    assert changed(project.apply(bundle, "--check")) == 1
    assert changed(project.apply(bundle)) == 1 and project.notes() == "first"


def test_an_older_bundle_needs_force_and_each_step_is_taken_back(project: Project) -> None:
    new = project.folder / "carried" / "x.tar.gz"
    project.change("before")
    old = project.build("old.tar.gz", OLD)
    changed(project.apply(new))
    for words in (("--check",), ()):
        said = refused(project.apply(old, *words))
        assert "2023-11-14" in said and "2027-01-15" in said and project.notes() == "first"
    assert changed(project.apply(old, checkout_bundle_force="true")) == 1 and project.notes() == "before"

    assert changed(project.play("bundle_rollback", "--check")) == 1 and project.notes() == "before"
    back = project.play("bundle_rollback")
    assert changed(back) == 1 and project.notes() == "first", back.stdout
    assert "there is no backup" in refused(project.play("bundle_rollback"))
    assert project.notes() == "first" and project.leftovers() == []


def test_backups_and_staging_lie_where_they_are_asked_for(project: Project) -> None:
    backups = project.folder / "elsewhere"
    where = {"checkout_bundle_backup_dir": str(backups)}
    changed(project.apply(project.folder / "carried" / "x.tar.gz"))
    project.change("second")
    second = project.build("second.tar.gz")
    said = refused(project.apply(second, **where, checkout_bundle_staging_dir=str(project.folder / "none")))
    assert str(project.folder / "none") in said and not backups.exists()
    assert changed(project.apply(second, **where, checkout_bundle_staging_dir=str(project.folder))) == 1
    assert len(list(backups.glob("*/BACKUP.json"))) == 1 and not (project.host / "backups").exists()
    refused(project.play("bundle_rollback"))
    assert changed(project.play("bundle_rollback", **where)) == 1 and project.notes() == "first"


def test_wrong_data_is_told_as_often_as_it_is_asked_for(project: Project) -> None:
    rows = project.folder / "data" / "training" / "processed" / "style_sft.jsonl"
    sound = rows.read_text()
    rows.write_text(sound + '{"id": "broken"}\n')
    wrong = project.build("wrong.tar.gz")
    for _ in range(2):
        done = project.apply(wrong)
        said = refused(done)
        assert "send a corrected" in said and "error: " not in said.removeprefix("error: ")
        assert "style_sft.jsonl:4" in done.stdout, done.stdout
        assert project.notes() == "first", "it is applied all the same"
    rows.write_text(sound)
    assert changed(project.apply(project.build("right.tar.gz"))) == 1


def spoil(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def test_what_is_no_bundle_touches_no_host(project: Project) -> None:
    good = project.folder / "carried" / "x.tar.gz"
    folder = project.folder / "copies"
    shutil.copytree(good.parent, folder)
    other = folder / "x.zip"
    shutil.copy(good, other)
    assert "names no bundle" in refused(project.play("bundle_apply"))
    assert "ends in .tar.gz" in refused(project.apply(other))
    assert "gone.tar.gz" in refused(project.apply(folder / "gone.tar.gz"))
    assert "sha256" in refused(project.apply(spoil(folder / "x.tar.gz")))
    said = refused(project.apply(good, checkout_bundle_forse=True))
    assert "'checkout_bundle_forse'" in said and "checkout_bundle_force" in said
    assert not project.host.exists()

    good.with_name("x.tar.gz.sha256").unlink()
    assert "x.tar.gz.sha256" in refused(project.apply(good)) and not project.host.exists()
    assert changed(project.apply(good, checkout_bundle_without_sha256="yes")) == 1 and project.notes() == "first"


def test_the_line_begins_with_the_bundle_and_goes_on_with_its_code(project: Project) -> None:
    """provision.yml and train_all.yml: a wrong bundle ends them before anything is prepared."""
    given = {"checkout_source": "bundle"}
    bundle = project.folder / "carried" / "x.tar.gz"
    assert "names no bundle" in refused(project.play("train_all", "--tags", "sample", **given))
    assert "gone.tar.gz" in refused(project.play("provision", bundle=bundle.with_name("gone.tar.gz"), **given))
    assert not project.host.exists()
    assert changed(project.play("provision", bundle=bundle, **given)) == 1 and project.notes() == "first"
    again = project.play("train_all", "--tags", "precheck", bundle=bundle, **given)
    assert again.stdout.count("is whole") == 1, "it is verified once, first of all"


def test_a_bundle_of_the_older_scripts_applies_as_it_is(project: Project, tmp_path: Path) -> None:
    """Members that begin with ./, a plain listing inside, nothing but tar and sha256sum."""
    tree, name = tmp_path / "tree", "it's an (old) one.tar.gz"
    for part in ("trainer", "data"):
        shutil.copytree(project.folder / part, tree / part)
    script = """cd "$1" && find . -type f ! -name SYNC_MANIFEST.txt -exec sha256sum {} + > SYNC_MANIFEST.txt
    tar -czf "$2/$3" ./trainer ./data ./SYNC_MANIFEST.txt && cd "$2" && sha256sum "$3" > "$3.sha256" """
    subprocess.run(["sh", "-c", script, "sh", str(tree), str(tmp_path), name], check=True)
    assert changed(project.apply(tmp_path / name)) == 1 and project.notes() == "first"
    assert changed(project.apply(tmp_path / name)) == 0


def python_of(wished: str, path: Path) -> str:
    """The choice of the host's script with nothing but this folder on the PATH."""
    script = (FILES / "python.sh").read_text().replace("/root/miniconda3", "/none").replace("/opt/conda", "/none")
    return subprocess.run(
        ["/bin/sh", "-c", f'{script}\npython_of "$1"', "sh", wished],
        env={"PATH": str(path)}, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip


def test_the_first_python_that_is_new_enough_is_taken(tmp_path: Path) -> None:
    def program(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    real, old, stub = f'exec {sys.executable} "$@"', "exit 1", "exit 127"
    assert python_of("/none/python", tmp_path) == ""
    program("python3.8", real)
    assert python_of("/none/python", tmp_path) == "python3.8"
    program("python3", old), program("python3.12", stub), program("python3.11", real)
    assert python_of("/none/python", tmp_path) == "python3.11"
    assert python_of(program("venv", old), tmp_path) == "python3.11"
    assert python_of(program("my venv", real), tmp_path) == str(tmp_path / "my venv")
    program("python3", real)
    assert python_of("", tmp_path) == "python3"


def test_a_host_without_python_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    script = "\n".join((FILES / name).read_text() for name in ("python.sh", "bundle.sh"))
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("rm", "cat", "mktemp", "mkdir"):
        (tools / name).symlink_to(shutil.which(name) or "")
    upload = tmp_path / "releases" / ".incoming-x"
    upload.mkdir(parents=True)
    script = script.replace("/root/miniconda3", "/none").replace("/opt/conda", "/none")
    command = ["/bin/sh", "-c", script, "sh", str(upload), str(tmp_path), "/none/python", "verify"]
    done = subprocess.run(command, input="", env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 4 and done.stderr.startswith("error: the host has no Python 3.8 or newer (/none/python")
    assert not upload.exists()
    upload.mkdir()
    os.symlink(sys.executable, tools / "python3")
    done = subprocess.run(
        command, input="print('{}')", env={"PATH": str(tools)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "{}\n") and not upload.exists()
