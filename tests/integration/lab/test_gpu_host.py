"""gpu_host on rented boxes: the provider's Miniconda is enough and stays as it is, and nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Host, Lab

REPOSITORY = Path(__file__).resolve().parents[3]
PLAY = """
- name: Prepare the hosts
  hosts: gpu_hosts
  gather_facts: false
  roles: [gpu_host]
"""
VENV = "/root/autodl-tmp/stagegate/venv"
CONDA_FILES = "find /root/miniconda3/ -name __pycache__ -prune -o -printf '%P %s %l\\n' | sort | sha256sum"
SMALL = {"gpu_host_gate": "off", "project_root": "/root/autodl-tmp/stagegate", "gpu_host_venv_dir": VENV}


def provision(lab: Lab, host: Host, folder: Path, *arguments: str, **given: Any) -> Any:
    inventory = lab.write_inventory(folder / "hosts.yml", host, **{**SMALL, **given})
    (folder / "play.yml").write_text(PLAY)
    command = ["ansible-playbook", "-i", str(inventory), str(folder / "play.yml"), *arguments]
    return lab.run(command, cwd=REPOSITORY, env={"ANSIBLE_DISPLAY_OK_HOSTS": "true"}, timeout=600)


@pytest.fixture
def conda(world: Lab) -> Any:
    (host,) = world.add(1, python="miniconda")
    yield host
    world.remove(host)


def test_miniconda_alone_is_enough_and_its_torch_is_used(conda: Host, world: Lab, tmp_path: Path) -> None:
    before = conda.run(CONDA_FILES).stdout
    dry = provision(world, conda, tmp_path, "--check")
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert "would create the venv" in dry.stdout, dry.stdout
    assert "/root/miniconda3 is used" in dry.stdout, dry.stdout
    assert conda.run("ls /root/autodl-tmp").stdout.split() in ([], ["lost+found"])

    first = provision(world, conda, tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    where = conda.run(f"{VENV}/bin/python -c 'import torch; print(torch.__file__)'").stdout
    assert where.startswith("/root/miniconda3/")
    assert "Downloading" not in conda.run(f"cat {VENV}/gpu_host/install.log").stdout
    assert conda.run(CONDA_FILES).stdout == before

    again = provision(world, conda, tmp_path)
    assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout

    # Power was lost while the venv was filled: no stamp, and a package whose files were not written.
    site = conda.run(f"{VENV}/bin/python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))'").stdout.strip()
    conda.run(f"rm {VENV}/gpu_host/stamp; mkdir {site}/half-1.0.dist-info; touch {site}/half-1.0.dist-info/METADATA")
    repaired = provision(world, conda, tmp_path)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert conda.run(f"ls {site} | grep -c half-; test -s {VENV}/gpu_host/stamp", check=False).stdout.strip() == "0"
    assert "changed=0 " in provision(world, conda, tmp_path).stdout


def test_a_host_without_any_python_is_refused_in_one_sentence(world: Lab, tmp_path: Path) -> None:
    (bare,) = world.add(1, python="none")
    try:
        done = provision(world, bare, tmp_path)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 4, done.stdout + done.stderr
        assert last.startswith("error: ") and "a Python on the host must be 3.11 or newer" in last
        assert "found: none" in last
        assert json.loads(bare.run("printf '[%s]' \"$(ls /root/autodl-tmp | grep -c venv)\"").stdout) == [0]
    finally:
        world.remove(bare)
