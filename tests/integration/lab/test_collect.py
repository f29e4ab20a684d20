"""Collect over SSH: lines that are cut, controllers that die, and hosts that lie."""

from __future__ import annotations

import base64
import io
import shlex
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Host
from tests.lab.lab import REPOSITORY
from tests.lab.namespaces import wait_until

MIB = 1 << 20
WEIGHTS = "adapter/adapter_style/adapter_model.safetensors"
SIZE = 100 * MIB
UNSURE = 20 * MIB  # the end of what was cut (16 MiB), listing, small files, and SSH's own part
# The host's trainer with a lie: what it has listed once it lists again, and between the two something happens.
LIE = """
_honest = collect
def collect(layout, anew=False):
    import json, subprocess
    memory = layout.root / "answer"
    if memory.exists():
        return json.loads(memory.read_text())
    answer = _honest(layout)
    memory.write_text(json.dumps(answer))
    subprocess.run({command!r}, shell=True, check=True, cwd=layout.outputs)
    return answer
"""


class Trained:
    """A host with an adapter of 100 MiB and small files, and a controller's checkout that collects from it."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host, self.folder, self.home = host, folder, folder / "outputs"
        self.root = f"{host.data}/stagegate"
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            tar.add(REPOSITORY / "trainer", "trainer", filter=lambda i: None if "__pycache__" in i.name else i)
        code = f"mkdir -p {self.root}/code && base64 -d | tar -xz -C {self.root}/code"
        host.run(code, input=base64.b64encode(packed.getvalue()).decode())
        host.run(
            f"cd {self.root} && mkdir -p outputs/state outputs/logs outputs/{Path(WEIGHTS).parent} && cd outputs && "
            f"head -c {SIZE} /dev/urandom > {WEIGHTS} && "
            "for i in $(seq 50); do echo step $i > logs/train_$i.log; done && "
            'echo \'{"schema": 1, "plan_id": "p", "stages": ["style"], "status": "ended", "outcomes": {}}\' '
            "> state/plan.json"
        )

    def command(self, **more: Any) -> list[str]:
        inventory = self.host.lab.write_inventory(
            self.folder / f"hosts{len(list(self.folder.glob('hosts*')))}.yml", self.host,
            artifacts_output_dir=str(self.home), artifacts_python="/root/miniconda3/bin/python", project_root=self.root,
            gpu_host_gate="off", **more,
        )  # fmt: skip
        return ["ansible-playbook", "-i", str(inventory), "playbooks/collect.yml"]

    def collect(self, **more: Any) -> Any:
        return self.host.lab.run(self.command(**more), cwd=REPOSITORY)

    def through(self, proxy: Any) -> dict[str, Any]:
        return {"ansible_host": proxy.address, "ansible_port": proxy.port}

    def is_home(self) -> bool:
        """Whether every file of the host that goes home is there with its content."""
        hashes = self.host.run(f"cd {self.root}/outputs && sha256sum {WEIGHTS} logs/* state/plan.json").stdout
        (self.folder / "hashes").write_text(hashes)
        words = ["sh", "-c", f"cd {shlex.quote(str(self.home))} && sha256sum --quiet -c ../hashes"]
        return self.host.lab.run(words, cwd=REPOSITORY).returncode == 0


@pytest.fixture
def trained(box: Host, tmp_path: Path) -> Trained:
    return Trained(box, tmp_path)


def test_a_cut_line_is_ridden_out_and_what_had_arrived_is_not_fetched_again(trained: Trained) -> None:
    proxy = trained.host.lab.proxy(trained.host, cut_after_bytes=60 * MIB, times=1)
    done = trained.collect(**trained.through(proxy))
    assert done.returncode == 0, done.stdout + done.stderr
    assert trained.is_home() and proxy.connections >= 2
    assert SIZE < proxy.from_host_bytes < SIZE + UNSURE
    assert "Summary: " in done.stdout


def test_a_killed_controller_is_followed_by_one_that_goes_on(trained: Trained) -> None:
    lab = trained.host.lab
    stalling = lab.proxy(trained.host, stall_after_bytes=60 * MIB, times=1)
    first = lab.controller(trained.command(**trained.through(stalling)), cwd=REPOSITORY)
    wait_until(lambda: sum(p.stat().st_size for p in trained.home.rglob("*.got")) > 58 * MIB, "58 MiB", 120)
    second = trained.collect()
    assert second.returncode == 7, second.stdout + second.stderr
    assert "error: another collect (process " in second.stderr.splitlines()[-1]
    first.lose()
    assert not (trained.home / "adapter").exists(), "nothing is half there"
    proxy = lab.proxy(trained.host)
    third = trained.collect(**trained.through(proxy))
    assert third.returncode == 0, third.stdout + third.stderr
    assert trained.is_home() and proxy.from_host_bytes < SIZE - 60 * MIB + UNSURE
    assert not (trained.home / ".incoming").exists()
    fourth = trained.collect()
    assert fourth.returncode == 0 and "changed=0" in fourth.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"truncate -s 1T {WEIGHTS}", "arrived with more than was listed"),
        (f"printf x | dd of={WEIGHTS} conv=notrunc bs=1 status=none", "arrived as "),
        (f"rm {WEIGHTS}; ln -s /etc/passwd {WEIGHTS}", "arrived with "),
        (f"rm {WEIGHTS}; mkfifo {WEIGHTS}", "arrived not at all"),
        ("echo 'step 0' > logs/train_1.log", "logs/train_1.log is listed as"),
        ("true", ""),
    ],
)
def test_a_host_that_sends_something_else_than_it_lists(trained: Trained, command: str, words: str) -> None:
    lie = LIE.format(command=command)
    trained.host.run(f"cat >> {trained.root}/code/trainer/artifacts.py", input=lie)
    done = trained.collect()
    if not words:
        assert done.returncode == 0 and trained.is_home(), done.stdout + done.stderr
        return
    assert done.returncode == 7, done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and words in last and "nothing was taken over" in last
    assert not (trained.home / "adapter").exists() and not (trained.home / ".collected.json").exists()
    assert max(p.lstat().st_size for p in trained.home.rglob("*")) <= SIZE


def test_a_host_without_sftp(trained: Trained) -> None:
    trained.host.set_sshd(Subsystem="")
    done = trained.collect()
    assert done.returncode == 0, done.stdout + done.stderr
    assert trained.is_home()


def test_a_noisy_login_is_no_matter(trained: Trained) -> None:
    trained.host.noisy_login()
    done = trained.collect()
    assert done.returncode == 0, done.stdout + done.stderr
    assert trained.is_home()


def test_a_stated_cap_is_refused_before_the_file_is_fetched(trained: Trained) -> None:
    proxy = trained.host.lab.proxy(trained.host)
    done = trained.collect(**trained.through(proxy), artifacts_max_file_bytes=SIZE - 1)
    assert done.returncode == 7, done.stdout + done.stderr
    assert "raise artifacts_max_file_bytes" in done.stderr.splitlines()[-1]
    assert proxy.from_host_bytes < 5 * MIB
