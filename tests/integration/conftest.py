"""Checkouts with a stand-in trainer, made once for all test modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.line import ANSIBLE_PARTS, REPOSITORY, Line


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A checkout whose host holds nothing yet."""
    folder = tmp_path_factory.mktemp("line") / "fresh"
    for part in ANSIBLE_PARTS:
        source, target = REPOSITORY / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    gpu_host = folder / "roles" / "gpu_host"  # its inputs are real, its tasks have tests of their own
    for part in ("defaults", "meta", "vars"):
        shutil.copytree(REPOSITORY / "roles" / "gpu_host" / part, gpu_host / part)
    (gpu_host / "tasks").mkdir()
    (gpu_host / "tasks" / "main.yml").write_text("---\n[]\n")
    shutil.copytree(Path(__file__).parent / "fake_trainer", folder / "trainer")
    shutil.copy(REPOSITORY / "trainer" / "stages.yml", folder / "trainer")
    (folder / ".venv").symlink_to(sys.prefix)
    return Line(folder)


@pytest.fixture(scope="session")
def trained(fresh: Line) -> tuple[Line, subprocess.CompletedProcess[str]]:
    """A second checkout whose host has trained every stage, and how that run ended."""
    line = Line(fresh.folder.with_name("trained"))
    shutil.copytree(fresh.folder, line.folder, symlinks=True)
    line.outcomes(stage_seconds=0.1)
    return line, line.run()


@pytest.fixture
def line(trained: tuple[Line, subprocess.CompletedProcess[str]], tmp_path: Path) -> Line:
    """A checkout with its code on the host and no stage run."""
    own = Line(tmp_path / "own")
    shutil.copytree(trained[0].folder, own.folder, symlinks=True)
    own.forget()
    return own
