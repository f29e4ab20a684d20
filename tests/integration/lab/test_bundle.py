"""Bundles on their way to a host over SSH: applied, refused, taken back; cut lines, full disks, little Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab.remote import ONE, Remote, assert_trained_once, error_of
from tests.lab import Host, Lab, LabError
from trainer import content

REPOSITORY = Path(__file__).resolve().parents[3]
ROOT = "/root/autodl-tmp/stagegate"
OLD_PYTHON = Path.home() / ".pyenv" / "versions" / "3.8.18"
NOISE_BYTES = 96 << 20  # several pieces of an upload, so that something can happen between them
Done = subprocess.CompletedProcess[str]


def build(source: Path, output: Path, age: int = 1800000000) -> Path:
    words = ["bundle", "build", "--source", str(source), "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(age)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of one small tree: an old one, a new one, and a large one that is newer still."""
    folder = tmp_path_factory.mktemp("bundles")
    tree = folder / "tree"
    shutil.copytree(REPOSITORY / "trainer", tree / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / ".bundleinclude").write_text("*\n")
    made = {}
    for age, name in enumerate(("old", "new", "large")):
        (tree / "notes.txt").write_text(name)
        if name == "large":
            (tree / "noise.bin").write_bytes(os.urandom(NOISE_BYTES))
        made[name] = build(tree, folder / f"{name}.tar.gz", 1800000000 + age)
    return made


class Carrier:
    """A controller with bundles for one host."""

    def __init__(self, box: Host, folder: Path, **inventory: Any) -> None:
        self.box, self.folder = box, folder
        self.root = Path(f"{box.root}{ROOT}")
        self.lead(**inventory)

    def lead(self, **inventory: Any) -> None:
        """Take this way to the host."""
        self.inventory = self.box.lab.write_inventory(self.folder / "hosts.yml", self.box, **inventory)

    def command(self, playbook: str, *words: str, **given: Any) -> list[str]:
        variables = json.dumps({key: str(value) for key, value in given.items()})
        return ["ansible-playbook", "-i", str(self.inventory), f"playbooks/{playbook}.yml", "-e", variables, *words]

    def play(self, playbook: str, *words: str, retries: int = 0, **given: Any) -> Done:
        environment = {"ANSIBLE_SSH_RETRIES": str(retries)}
        return self.box.lab.run(self.command(playbook, *words, **given), cwd=REPOSITORY, env=environment, timeout=120)

    def apply(self, bundle: Path, *words: str, **given: Any) -> Done:
        return self.play("bundle_apply", *words, **{"checkout_bundle": bundle, **given})

    def in_use(self) -> str:
        """Which tree the host has, as it came; "" before the first."""
        if not (self.root / "code").is_symlink():
            return ""
        release = self.root / os.readlink(self.root / "code")
        content.verify(release, release.name)
        return (release / "notes.txt").read_text()

    def uploads(self) -> list[Path]:
        return sorted((self.root / "releases").glob(".[ai]*-*"))


@pytest.fixture
def carrier(box: Host, tmp_path: Path) -> Carrier:
    return Carrier(box, tmp_path)


def changed(done: Done) -> bool:
    """Whether a run that must have ended well changed something."""
    assert done.returncode == 0, done.stdout + done.stderr
    return "changed=0 " not in done.stdout


def test_it_is_sent_once_and_an_older_one_needs_force_and_can_be_taken_back(
    carrier: Carrier, bundles: dict[str, Path]
) -> None:
    assert changed(carrier.apply(bundles["new"], "--check")) and not carrier.root.exists()
    first = carrier.apply(bundles["new"], "-vvv")
    assert changed(first) and carrier.in_use() == "new" and " conv=notrunc" in first.stdout
    again = carrier.apply(bundles["new"], "-vvv")
    assert not changed(again) and " conv=notrunc" not in again.stdout

    older = carrier.apply(bundles["old"])
    assert older.returncode == 2 and "older than what is in use" in error_of(older.stderr)
    assert carrier.in_use() == "new"
    carrier.box.noisy_login()
    assert changed(carrier.apply(bundles["old"], checkout_bundle_force=True)) and carrier.in_use() == "old"
    assert changed(carrier.play("bundle_rollback")) and carrier.in_use() == "new"
    assert carrier.play("bundle_rollback").returncode == 2 and carrier.in_use() == "new"
    assert carrier.uploads() == []


def test_a_corrupted_archive_is_refused_before_anything_is_sent(
    carrier: Carrier, bundles: dict[str, Path], tmp_path: Path
) -> None:
    for path in bundles["new"].parent.glob("new.*"):
        shutil.copy(path, tmp_path)
    copy = tmp_path / "new.tar.gz"
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    refused = carrier.apply(copy, "-vvv")
    assert refused.returncode == 2 and "sha256" in error_of(refused.stderr)
    assert "SSH: EXEC " not in refused.stdout and not carrier.root.exists()
    copy.write_bytes(bundles["new"].read_bytes())
    assert changed(carrier.apply(copy))


def test_a_line_that_is_cut_in_the_upload(carrier: Carrier, bundles: dict[str, Path]) -> None:
    """With a second try it goes on where it was; without, the old code stays and the next run works."""
    assert changed(carrier.apply(bundles["new"]))
    breaking = carrier.box.lab.proxy(carrier.box, cut_after_bytes=NOISE_BYTES // 2, direction="to_host")
    carrier.lead(ansible_host=breaking.address, ansible_port=breaking.port)
    cut = carrier.apply(bundles["large"])
    assert cut.returncode == 4 and "the connection was lost" in error_of(cut.stderr), cut.stdout + cut.stderr
    (left,) = carrier.uploads()
    assert carrier.in_use() == "new" and 0 < (left / "large.tar.gz").stat().st_size < NOISE_BYTES

    os.utime(left, (0, 0))  # days later
    before = breaking.connections
    assert changed(carrier.apply(bundles["large"], retries=2)) and carrier.in_use() == "large"
    assert breaking.connections > before + 1 and carrier.uploads() == []


def test_two_controllers_with_one_bundle_both_succeed(carrier: Carrier, bundles: dict[str, Path]) -> None:
    command = carrier.command("bundle_apply", checkout_bundle=bundles["large"])
    both = [carrier.box.lab.controller(command, cwd=REPOSITORY) for _ in range(2)]
    assert [running.wait(120) for running in both] == [0, 0], "\n".join(running.output for running in both)
    assert carrier.in_use() == "large" and carrier.uploads() == []


def fill_at_once(box: Host) -> None:
    """Fill a disk that is being written to: what it may hold is never less than what it holds."""
    for left in range(10, 0, -1):
        try:
            box.fill_disk(leave_bytes=NOISE_BYTES // 4)
            return
        except LabError:
            if left == 1:
                raise


@pytest.mark.parametrize("moment", ["before", "in the upload", "in the apply"])
def test_a_full_disk_leaves_the_old_code(carrier: Carrier, bundles: dict[str, Path], moment: str) -> None:
    assert changed(carrier.apply(bundles["new"]))
    names = sorted(path.name for path in (carrier.root / "releases").iterdir())
    if moment == "before":
        carrier.box.fill_disk(leave_bytes=NOISE_BYTES)
    elif moment == "in the apply":
        carrier.box.fill_inodes(leave=20)
    command = carrier.command("bundle_apply", checkout_bundle=bundles["large"])
    running = carrier.box.lab.controller(command, cwd=REPOSITORY)
    if moment == "in the upload":
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for folder in carrier.uploads() for path in folder.glob("large.tar.gz")):
            assert time.monotonic() < deadline and running.returncode is None, running.output
            time.sleep(0.01)
        fill_at_once(carrier.box)
    assert running.wait(60) == 4, running.output
    said = error_of(running.output)
    assert "make room" in said and ("MiB are needed" if moment == "before" else "No space left on device") in said
    assert carrier.in_use() == "new"
    assert sorted(path.name for path in (carrier.root / "releases").iterdir()) == names
    carrier.box.free_disk()
    carrier.box.free_inodes()
    assert changed(carrier.apply(bundles["large"])) and carrier.in_use() == "large"


@pytest.fixture
def bare(world: Lab, tmp_path: Path) -> Iterator[Host]:
    """A host without any Python."""
    host = world.add(python="none")[0]
    yield host
    world.remove(host)


def test_a_host_that_has_python_3_8_and_nothing_else(bare: Host, bundles: dict[str, Path], tmp_path: Path) -> None:
    carrier = Carrier(bare, tmp_path)
    refused = carrier.apply(bundles["old"])
    assert refused.returncode == 4 and "has no Python 3.8 or newer" in error_of(refused.stderr)
    assert carrier.uploads() == [] and carrier.in_use() == ""
    if not (OLD_PYTHON / "bin" / "python3.8").exists():
        pytest.skip(f"there is no Python 3.8 in {OLD_PYTHON}")
    unneeded = shutil.ignore_patterns("test", "__pycache__", "site-packages", "config-*", "idlelib", "ensurepip", "*.a")
    for part in ("bin", "lib"):  # to its own path: it may look for its libraries there
        shutil.copytree(OLD_PYTHON / part, f"{bare.root}{OLD_PYTHON / part}", ignore=unneeded, symlinks=True)
    (bare.root / "usr/local/bin/python3.8").symlink_to(OLD_PYTHON / "bin" / "python3.8")

    first = carrier.apply(bundles["old"])
    assert changed(first) and "the data is not checked here" not in first.stdout  # none came with it
    assert not changed(carrier.apply(bundles["old"])), "it finds it there with that Python"
    assert changed(carrier.apply(bundles["new"])) and carrier.in_use() == "new"
    assert changed(carrier.play("bundle_rollback")) and carrier.in_use() == "old"


def test_what_a_bundle_brought_is_trained_with(remote: Remote, tmp_path: Path) -> None:
    bundle = build(REPOSITORY, tmp_path / "x.tar.gz")
    done = remote.run(*ONE, checkout_source="bundle", checkout_bundle=str(bundle))
    assert done.returncode == 0, done.stdout + done.stderr
    assert_trained_once(remote)
    in_use = Path(os.readlink(remote.root / "code")).name
    assert remote.plan()["source_id"] == in_use and f"is applied as {in_use}" in done.stdout
    again = remote.run(*ONE, checkout_source="bundle", checkout_bundle=str(bundle))
    assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout + again.stderr
