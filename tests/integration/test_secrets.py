"""Secrets over the embedded host, with Ansible at its loudest: a private base is fetched, and no token stays."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LEARNING, REPOSITORY, write_data
from tests.model_hub import NAME, ModelHub, files_of

# Made anew for each run: this file is itself part of the source that goes to the host.
CANARIES = {name: f"hf_{secrets.token_hex(16)}" for name in ("trainer_hf_token", "HF_TOKEN", "REMOTE_PASSWORD")}
GIVEN = CANARIES["trainer_hf_token"]


def shown_in(content: bytes) -> list[str]:
    """The names of the canaries in some bytes."""
    return [name for name, value in CANARIES.items() if value.encode() in content]


class Watch(threading.Thread):
    """Looks at the arguments of every process until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.seen: list[str] = []
        self.looks = 0

    def run(self) -> None:
        while not self.over.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    arguments = path.read_bytes()
                except OSError:  # it ended meanwhile
                    continue
                self.seen += [f"{name}: {arguments[:200]!r}" for name in shown_in(arguments)]
            self.looks += 1
            time.sleep(0.02)


class Box:
    """The playbook with a home, a folder for temporary files, a project root and outputs of its own."""

    def __init__(self, folder: Path, hub: ModelHub) -> None:
        self.hub = hub
        self.scanned = folder / "scanned"
        for name in ("home", "tmp"):
            (self.scanned / name).mkdir(parents=True)
        self.host = self.scanned / "host"
        self.data = write_data(folder / "data")
        self.vault = folder / "vault.json"  # where a user keeps it: the only file that may hold it
        self.vault.write_text(json.dumps({"trainer_hf_token": GIVEN}), encoding="utf-8")
        self.vault.chmod(0o600)

    def run(self, *words: str, **parameters: Any) -> tuple[subprocess.CompletedProcess[bytes], Watch]:
        variables = {
            "gpu_host_venv_dir": sys.prefix,
            "artifacts_output_dir": str(self.scanned / "outputs"),
            "trainer_data_root": str(self.data),
            "trainer_gate": "off",
            **{f"trainer_hp_{name}": value for name, value in {**LEARNING, **parameters}.items()},
            "trainer_hp_max_steps": 2,
            "trainer_hp_model_name_or_path": NAME,
            "trainer_hp_model_sources": "hub",
            "trainer_hp_hf_endpoint": self.hub.url,
        }
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        watch = Watch()
        watch.start()
        try:
            done = subprocess.run(
                [
                    str(Path(sys.executable).parent / "ansible-playbook"), "playbooks/train_all.yml", "-vvvv",
                    "-e", json.dumps(variables), "-e", f"@{self.vault}", *words,
                ],
                cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, timeout=400, check=False,
                env={
                    **kept, "HOME": str(self.scanned / "home"), "TMPDIR": str(self.scanned / "tmp"),
                    "TRAIN_SYNC_PROJECT_ROOT": str(self.host), "ANSIBLE_NOCOLOR": "1", "OMP_NUM_THREADS": "1",
                    "HF_HUB_OFFLINE": "0", "ANSIBLE_DISPLAY_OK_HOSTS": "1",
                    **{name: value for name, value in CANARIES.items() if name.isupper()},
                },
            )  # fmt: skip
        finally:
            watch.over.set()
            watch.join()
        return done, watch

    def files_with_canaries(self) -> list[str]:
        found = []
        for path in self.scanned.rglob("*"):
            if path.is_file() and not path.is_symlink() and (names := shown_in(path.read_bytes())):
                found.append(f"{path}: {names}")
        return found


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Box]:
    hub = ModelHub(token=GIVEN, private=True).start()
    hub.publish(files_of(tiny_base))
    yield Box(tmp_path_factory.mktemp("box"), hub)
    hub.stop()


def assert_nothing_is_shown(box: Box, done: subprocess.CompletedProcess[bytes], watch: Watch) -> None:
    assert shown_in(done.stdout) == [] and shown_in(done.stderr) == []
    assert watch.looks > 10 and watch.seen == []
    assert box.files_with_canaries() == []
    assert not (box.host / ".secrets").exists(), "it is gone with the plan"


def test_a_token_that_opens_the_base_is_used_and_then_nowhere(box: Box) -> None:
    done, watch = box.run("--tags", "precheck,sample,collect")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    state = json.loads((box.host / "outputs" / "state" / "sample.json").read_text(encoding="utf-8"))
    assert state["status"] in ("passed", "missed") and state["gate"]
    fetched = box.hub.asked("model.safetensors")
    assert len(fetched) == 1 and fetched[0].authorization == f"Bearer {GIVEN}"
    assert_nothing_is_shown(box, done, watch)
    report = json.loads((box.host / "outputs/adapter/adapter_sample/eval_report_sample.json").read_text("utf-8"))
    assert report["environment"]["base_commit"] == box.hub.branches["main"]


def test_a_token_that_is_refused_is_not_shown_either(box: Box) -> None:
    box.hub.token = "hf_another_one_entirely"
    done, watch = box.run("--tags", "precheck", model_revision="v2")
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("error: ") and "or it is private" in last
    assert_nothing_is_shown(box, done, watch)


def test_the_search_would_find_a_token(box: Box) -> None:
    """What makes the tests above worth something: a canary in a file or among arguments does not escape them."""
    left = box.scanned / "tmp" / "left.txt"
    left.write_text(f"token={GIVEN}", encoding="utf-8")
    assert box.files_with_canaries() == [f"{left}: ['trainer_hf_token']"]
    left.unlink()
    watch = Watch()
    watch.start()
    subprocess.run([sys.executable, "-c", "import time; time.sleep(0.5)", GIVEN], check=True)
    watch.over.set()
    watch.join()
    assert watch.seen
