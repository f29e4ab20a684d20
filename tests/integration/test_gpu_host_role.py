"""The role gpu_host against this machine: the gate, whose torch is used, the venv, and a run without change."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 300
PLAY = """
- name: Prepare the host
  hosts: localhost
  connection: local
  gather_facts: false
  roles: [gpu_host]
  post_tasks:
    - name: Show what the gate let pass
      ansible.builtin.debug:
        msg: "let through: {{ __gpu_host_warnings | default([]) | length }}"
"""
# Printed like by a driver of that version; `name` and memory are those of the card.
SMI = """#!/bin/sh
case "$*" in
*compute_cap*) echo '0, {capability}' ;;
*query-gpu*) echo "0, {name}, {driver}, {mib}, {mib}, [N/A]" ;;
*) echo "| NVIDIA-SMI {driver}   Driver Version: {driver}   CUDA Version: {cuda} |" ;;
esac
"""
OLD = {
    "name": "NVIDIA GeForce GTX 1060 6GB",
    "driver": "470.161.03",
    "cuda": "11.4",
    "mib": "6144",
    "capability": "6.1",
}
GOOD = {"name": "NVIDIA GeForce RTX 4090", "driver": "550.54.14", "cuda": "12.4", "mib": "24564", "capability": "8.9"}
FAKE_TORCH = {
    "__init__.py": "from torch.version import __version__\nclass cuda:\n    is_available = lambda: True\n",
    "version.py": "__version__ = '{version}'\ncuda = '{cuda}'\n",
}


def write_wheel(folder: Path, name: str, version: str = "1.0", files: dict[str, str] | None = None) -> str:
    """A wheel with one module (or the given files); returns the requirement with its hash."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    contents = {
        **(files or {f"{module}.py": "VALUE = 1\n"}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for inner, text in contents.items():
            wheel.writestr(inner, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Host:
    """A folder that is the host, and the way to run the role against it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder, folder / "host" / "venv"
        self.record = self.venv / "gpu_host"
        self.stamp = self.record / "stamp"
        self.lock = folder / "packages.lock"
        self.pins = folder / "pins.txt"
        self.tools = folder / "tools"
        self.tools.mkdir()
        self.given: dict[str, Any] = {}
        self.lock.write_text(write_wheel(folder, "stagegate-probe"))
        self.pins.write_text("torch==9.9\n")
        (folder / "play.yml").write_text(PLAY)
        self.card(OLD)

    def card(self, facts: dict[str, str]) -> None:
        text = SMI
        for key, value in facts.items():
            text = text.replace("{" + key + "}", value)
        (self.tools / "nvidia-smi").write_text(text)
        (self.tools / "nvidia-smi").chmod(0o755)

    def command(self, gate: str, *arguments: str, **given: Any) -> tuple[list[str], dict[str, str]]:
        inputs: dict[str, Any] = {
            "project_root": str(self.folder / "host"),
            "gpu_host_gate": gate,
            "gpu_host_python_path": sys.executable,
            "gpu_host_lock_files": [str(self.lock)],
            "gpu_host_torch_requirement": "",
            "gpu_host_constraints_files": [str(self.pins)],
            "gpu_host_pip_arguments": ["--no-index", f"--find-links={self.folder}"],
            "gpu_host_pip_delay_seconds": 0,
            "gpu_host_memory_min_mib": 1,
            "gpu_host_disk_min_mib": 1,
            "gpu_host_inodes_min": 1,
            **self.given,
            **given,
        }
        settings = {
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_DISPLAY_OK_HOSTS": "true",
            "PATH": f"{self.tools}:{os.environ['PATH']}",
        }
        playbook = str(Path(sys.executable).parent / "ansible-playbook")
        return [playbook, "-i", "localhost,", "play.yml", "-e", json.dumps(inputs), *arguments], {
            **os.environ,
            **settings,
        }

    def run(self, gate: str, *arguments: str, **given: Any) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(gate, *arguments, **given)
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS,
            check=False,
        )  # fmt: skip

    def imports(self, code: str) -> str:
        done = subprocess.run([self.venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.strip()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def provider_python(folder: Path, torch: str, cuda: str) -> Path:
    """A Python installation of its own (no venv) that carries a torch, as images of providers do."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    theirs, ours = Path(sys.base_prefix) / "lib", folder / "lib"
    (ours / name / "site-packages" / "torch").mkdir(parents=True)
    (folder / "bin").mkdir()
    shutil.copy2(Path(sys.base_prefix) / "bin" / name, folder / "bin" / "python3")
    for path in theirs.glob("libpython*"):
        (ours / path.name).symlink_to(path)
    for path in (theirs / name).iterdir():
        if path.name not in ("site-packages", "dist-packages", "__pycache__"):
            (ours / name / path.name).symlink_to(path)
    site = ours / name / "site-packages"
    for inner, text in FAKE_TORCH.items():
        (site / "torch" / inner).write_text(text.replace("{version}", torch).replace("{cuda}", cuda))
    info = site / f"torch-{torch}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n")
    (info / "INSTALLER").write_text("conda\n")
    return folder / "bin" / "python3"


def test_the_role_from_a_refusal_to_a_run_without_change(host: Host) -> None:
    host.given["gpu_host_memory_min_mib"] = 1 << 30
    strict = host.run("strict")
    assert strict.returncode == 4, strict.stdout
    last = strict.stderr.strip().splitlines()[-1]
    for part in ("error: the host is not fit", "6144 MiB", "limit of the"):
        assert part in last
    assert strict.stdout.count(" -> ") == 2, "each finding stands with its remedy"
    assert not host.venv.exists()

    dry = host.run("off", "--check")
    assert dry.returncode == 0, dry.stdout
    assert "would create the venv" in dry.stdout and "changed=1 " in dry.stdout
    assert not (host.folder / "host").exists()

    warn = host.run("warn")
    assert warn.returncode == 0, warn.stdout
    assert "let through: 2" in warn.stdout
    assert host.imports("import stagegate_probe; print(stagegate_probe.VALUE)") == "1"
    assert len(host.stamp.read_text().splitlines()[0]) == 64
    assert not list((host.folder / "host" / "outputs" / "cache").iterdir()), "downloads are removed when all is done"

    again = host.run("off")
    assert again.returncode == 0, again.stdout
    assert "changed=0 " in again.stdout and "ok=3 " in again.stdout
    assert "let through: 0" in again.stdout


def test_a_package_that_cannot_be_had_stops_and_is_tried_again_next_time(host: Host) -> None:
    good = host.lock.read_text()
    host.lock.write_text(good + f"stagegate-missing==9.9 --hash=sha256:{'0' * 64}\n")
    failed = host.run("off")
    assert failed.returncode == 4, failed.stdout
    assert "stagegate-missing==9.9" in failed.stderr.strip().splitlines()[-1]
    assert not host.stamp.exists()
    host.lock.write_text(good)
    assert host.run("off").returncode == 0
    assert "changed=0 " in host.run("off").stdout


def test_a_good_torch_of_the_provider_is_used_and_not_touched(host: Host) -> None:
    python = provider_python(host.folder / "miniconda3", "2.8.0+cu128", "12.8")
    before = sorted(p for p in (host.folder / "miniconda3").rglob("*") if "__pycache__" not in p.parts)
    host.card(GOOD)
    torch = {"gpu_host_python_path": str(python), "gpu_host_torch_requirement": "torch==9.9"}
    first = host.run("strict", **torch)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "torch 2.8.0+cu128 of" in first.stdout and "sees the GPU" in first.stdout
    assert host.imports("import torch, stagegate_probe; print(torch.__version__)") == "2.8.0+cu128"
    assert "miniconda3" in host.imports("import torch; print(torch.__file__)")
    after = sorted(p for p in (host.folder / "miniconda3").rglob("*") if "__pycache__" not in p.parts)
    assert after == before
    again = host.run("strict", **torch)
    assert "changed=0 " in again.stdout, again.stdout

    # Another decision, once it is asked for: a torch of the venv's own, which needs a newer driver than this.
    write_wheel(
        host.folder, "torch", "9.9", {f"torch/{k}": v.replace("{version}", "9.9") for k, v in FAKE_TORCH.items()}
    )
    refused = host.run("strict", **torch, gpu_host_torch="install")
    assert refused.returncode == 4 and "550.54.14 is too old" in refused.stderr
    assert "gpu_host_torch_index_url" in refused.stdout
    own = host.run("strict", **torch, gpu_host_torch="install", gpu_host_torch_cuda="12.6")
    assert own.returncode == 0, own.stdout + own.stderr
    assert host.imports("import torch; print(torch.__version__)") == "9.9"
    assert "changed=0 " in host.run("strict", **torch, gpu_host_torch="install", gpu_host_torch_cuda="12.6").stdout


def test_a_torch_that_is_too_old_is_not_used(host: Host) -> None:
    python = provider_python(host.folder / "miniconda3", "2.5.1+cu124", "12.4")
    host.card(GOOD)
    torch = {"gpu_host_python_path": str(python), "gpu_host_torch_requirement": "torch==9.9"}
    dry = host.run("strict", "--check", **torch, gpu_host_torch_cuda="12.6")
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert "torch 2.5.1+cu124 is older than 2.6" in dry.stdout
    refused = host.run("strict", **torch, gpu_host_torch="provider")
    assert refused.returncode == 4
    assert "gpu_host_torch is provider, but" in refused.stderr.strip().splitlines()[-1]
