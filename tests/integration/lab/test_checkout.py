"""The source on its way to a host over SSH: whole, cut, onto a full disk, and by git of the host itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.lab import Host
from trainer import source

REPOSITORY = Path(__file__).resolve().parents[3]
PYTHON = "/root/miniconda3/bin/python"
ROOT = "/root/autodl-tmp/stagegate"
PLAY = """
- name: Bring the source
  hosts: gpu_hosts
  gather_facts: false
  roles: [checkout]
"""


@pytest.fixture
def play(tmp_path: Path) -> Path:
    path = tmp_path / "play.yml"
    path.write_text(PLAY)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with the real trainer and enough bytes that a connection can break in the middle."""
    root = tmp_path / "checkout"
    subprocess.run(["cp", "-r", str(REPOSITORY / "trainer"), f"{root}-"], check=True)
    root.mkdir()
    Path(f"{root}-").rename(root / "trainer")
    (root / ".gitignore").write_text("__pycache__/\n")
    for words in (["init", "--quiet"], ["add", "--all"], [*NAMED, "commit", "--quiet", "--message", "first"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    return root


NAMED = ["-c", "user.name=a", "-c", "user.email=a@example.org"]


def command(
    box: Host, play: Path, checkout: Path, *words: str, **given: str
) -> tuple[list[str], dict[str, str | None]]:
    inventory = box.lab.write_inventory(play.with_name("hosts.yml"), box)
    variables = {"checkout_project_root": ROOT, "checkout_python": PYTHON, "checkout_repository_dir": str(checkout)}
    argv = ["ansible-playbook", "-i", str(inventory), str(play), "-e", json.dumps({**variables, **given}), *words]
    return argv, {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}


def run(box: Host, play: Path, checkout: Path, *words: str, **given: str) -> subprocess.CompletedProcess[str]:
    argv, environment = command(box, play, checkout, *words, **given)
    return box.lab.run(argv, cwd=REPOSITORY, env=environment, timeout=120)


def published(box: Host) -> str:
    """The id of the code on the host, which its own trainer has just verified."""
    said = box.run(f"cd {ROOT}/code && PYTHONDONTWRITEBYTECODE=1 {PYTHON} -m trainer source verify").stdout
    return str(said.strip())


def releases(box: Host) -> list[str]:
    return str(box.run(f"ls -A {ROOT}/releases").stdout).split()


def commands_over_ssh(done: subprocess.CompletedProcess[str]) -> int:
    return done.stdout.count("SSH: EXEC ")


def test_one_command_sends_it_and_one_finds_it_there(box: Host, play: Path, checkout: Path) -> None:
    first = run(box, play, checkout, "-vvv")
    assert first.returncode == 0, first.stdout
    expected = source.describe(checkout)["source_id"]
    assert published(box) == expected and sorted(releases(box)) == [".lock", expected]
    assert commands_over_ssh(first) == 2
    again = run(box, play, checkout, "-vvv")
    assert "changed=0 " in again.stdout and commands_over_ssh(again) == 1


def test_a_link_that_is_cut_in_the_middle_of_the_stream(box: Host, play: Path, checkout: Path) -> None:
    assert run(box, play, checkout).returncode == 0
    before = published(box)
    (checkout / "noise.bin").write_bytes(os.urandom(32 << 20))
    argv, environment = command(box, play, checkout)
    soon = "-o ControlMaster=no -o ServerAliveInterval=2 -o ServerAliveCountMax=2 -o ConnectTimeout=3"
    environment |= {"ANSIBLE_SSH_ARGS": soon, "ANSIBLE_SSH_RETRIES": "0"}
    running = box.lab.controller(argv, cwd=REPOSITORY, env=environment)
    box.cut_when(lambda: any(Path(box.root, ROOT.lstrip("/"), "releases").glob(".incoming-*/*")), 60)
    assert running.wait(60) not in (0, 2), running.output
    box.mend()
    assert published(box) == before
    assert run(box, play, checkout).returncode == 0
    assert published(box) == source.describe(checkout)["source_id"]


def test_a_full_disk_leaves_the_old_code(box: Host, play: Path, checkout: Path) -> None:
    assert run(box, play, checkout).returncode == 0
    before, names = published(box), sorted(releases(box))
    (checkout / "noise.bin").write_bytes(os.urandom(8 << 20))
    box.fill_disk(leave_bytes=4 << 20)
    full = run(box, play, checkout)
    assert full.returncode == 4, full.stdout
    last = full.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the source cannot be put into") and "make room there" in last
    assert published(box) == before and sorted(releases(box)) == names
    box.free_disk()
    assert run(box, play, checkout).returncode == 0
    assert published(box) == source.describe(checkout)["source_id"]


def test_the_host_fetches_a_commit_by_itself(box: Host, play: Path, checkout: Path) -> None:
    subprocess.run(["cp", "-r", str(checkout / ".git"), str(box.root / "root" / "origin.git")], check=True)
    box.run("chown -R root:root /root/origin.git")
    given = {"checkout_source": "git", "checkout_git_url": "file:///root/origin.git"}
    first = run(box, play, checkout, "-vvv", **given)
    assert first.returncode == 0, first.stdout
    assert published(box) == source.describe(checkout)["source_id"] and commands_over_ssh(first) == 2
    again = run(box, play, checkout, "-vvv", **given)
    assert "changed=0 " in again.stdout and commands_over_ssh(again) == 1
