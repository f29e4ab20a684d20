"""Building a bundle as a whole."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.bundle.sources import TEXTS, built, commit, make, packed_names, unpacked
from trainer import content
from trainer.bundle import build, compress, manifest, placing, reading, verify, whitelist
from trainer.bundle.reader import Caps
from trainer.errors import HostUnfit, InputError

ROOT = Path(__file__).resolve().parents[4]
NAMES = {"x.tar.gz", "x.tar.gz.sha256", "x.SYNC_MANIFEST.sha256", "x.apply.pyz"}
TOKEN = "hf_" + "aB3dE6gH9j" * 4


@pytest.fixture(autouse=True)
def no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(
        tmp_path / "source", {**TEXTS, "data/电场 é.txt": "ε₀\n", "data/large.bin": random.Random(1).randbytes(2 << 20)}
    )


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "x.tar.gz"


def check(output: Path) -> verify.Verified:
    return verify.check(output, without_sha256=False, caps=Caps(), target=verify.Hashed())


def sets(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.parent.iterdir()}


def command(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **more.pop("env", {})}
    return subprocess.run(
        [*more.pop("before", []), sys.executable, "-m", "trainer", "bundle", "build", *words],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        **more,
    )  # fmt: skip


def test_a_build_is_what_its_answer_says(source: Path, output: Path) -> None:
    head = commit(source)
    answer = built(source, output)
    found = check(output)
    assert set(sets(output)) == NAMES
    assert (answer["bundle"], answer["commit"], answer["left_out"]) == (str(output), head, [])
    assert (found.commit, found.made_at, found.lines) == (head, answer["made_at"], [])
    assert answer["source_id"] == content.source_id(found.entries)
    assert answer["files"] == len(found.entries) - 1 == len(TEXTS) + 2
    assert answer["bytes"] == sum(
        (source / name).stat().st_size for name, _, _ in found.entries if name != manifest.NAME
    )
    assert answer["packed_bytes"] == output.stat().st_size
    assert answer["lines"][-1].startswith(f"{output}: {answer['files']} files, ")


def test_the_usual_tools_accept_it(source: Path, output: Path, tmp_path: Path) -> None:
    answer = built(source, output)
    there = tmp_path / "there"
    there.mkdir()
    subprocess.run(["gzip", "-t", output], check=True)
    subprocess.run(["tar", "-xzf", output], cwd=there, check=True)
    for listing, folder in ((manifest.NAME, there), ("x.tar.gz.sha256", output.parent)):
        done = subprocess.run(
            ["sha256sum", "--strict", "-c", listing], cwd=folder, check=True, capture_output=True, text=True
        )
        assert done.stderr == "" and "FAILED" not in done.stdout
    assert (there / manifest.NAME).read_bytes() == output.with_name("x.SYNC_MANIFEST.sha256").read_bytes()
    assert content.source_id(content.entries(there, content.walked_files(there))) == answer["source_id"]
    assert (there / "data" / "电场 é.txt").read_text() == "ε₀\n"


def change_umask(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.umask(0o077)


def change_cores(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "available_cores", lambda: 7)


def change_clock(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 4e8)


def change_times(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in source.rglob("*.py"):
        os.utime(path, (1, 1))


def change_modes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "README.md").chmod(0o600)
    (source / "trainer" / "a.py").chmod(0o466)


def change_order(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    class Shuffled:
        def __init__(self, path: bytes) -> None:
            with real(path) as found:
                self.items = sorted(found, key=lambda item: hashlib.sha256(os.fsencode(item.name)).digest())

        def __enter__(self) -> list[os.DirEntry[bytes]]:
            return self.items

        def __exit__(self, *problem: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)


def change_owner(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    for path in (source, *source.rglob("*")):
        os.chown(path, 65534, 65534)


def change_place(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = source.with_name("copy")
    shutil.copytree(source, copy)
    shutil.rmtree(source)
    copy.rename(source)


CIRCUMSTANCES = [
    change_umask, change_cores, change_clock, change_times, change_modes, change_order, change_owner, change_place,
]  # fmt: skip


@pytest.mark.parametrize("circumstance", CIRCUMSTANCES, ids=lambda one: one.__name__)
def test_two_builds_of_the_same_tree_are_the_same_bytes(
    circumstance: Callable[[Path, pytest.MonkeyPatch], None],
    source: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit(source)
    built(source, output)
    before, umask = sets(output), os.umask(0o022)
    try:
        circumstance(source, monkeypatch)
        shutil.rmtree(output.parent)
        output.parent.mkdir()
        built(source, output)
    finally:
        os.umask(umask)
        monkeypatch.undo()
    assert sets(output) == before


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"TZ": "Pacific/Kiritimati", "LC_ALL": "de_DE"},
        {"LANG": "C.UTF-8"},
    ],
)
def test_locale_and_time_zone_make_no_difference(environment: dict[str, str], source: Path, output: Path) -> None:
    commit(source)
    built(source, output)
    before = sets(output)
    done = command("--source", str(source), "--output", str(output), "--json", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == len(TEXTS) + 2
    assert sets(output) == before


def test_another_tree_is_another_bundle(source: Path, output: Path) -> None:
    one = built(source, output)
    (source / "README.md").chmod(0o755)
    assert built(source, output)["source_id"] != one["source_id"]


def appear(source: Path) -> None:
    (source / "data" / "new").write_text("x")


def touch_back(source: Path) -> None:
    path = source / "data" / "rows.jsonl"
    before = path.stat()
    path.write_text('{"id": 9}\n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_a_copy(source: Path) -> None:
    path = source / "README.md"
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def link(source: Path) -> None:
    (source / "trainer" / "sub").rename(source / "moved")
    (source / "trainer" / "sub").symlink_to("../moved")


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (appear, "'data/new' appeared"),
    (touch_back, "'data/rows.jsonl'"),
    (replace_by_a_copy, "'README.md' was replaced by another file"),
    (link, "'trainer/sub'"),
    (lambda source: (source / "README.md").unlink(), "'README.md' is gone"),
    (lambda source: (source / "README.md").write_text("# much longer\n"), "'README.md' grew from 4 to 14 bytes"),
    (lambda source: (source / "README.md").write_text(""), "'README.md' shrank from 4 to 0 bytes"),
    (lambda source: (source / "README.md").write_text("# y\n"), "'README.md'"),
    (lambda source: (source / "data" / "rows.jsonl").write_text("longer than before\n"), "'data/rows.jsonl'"),
    (lambda source: (source / "trainer" / "a.py").unlink(), "'trainer/a.py'"),
    (lambda source: (source / "trainer" / "a.py").chmod(0o755), "'trainer/a.py'"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[str(number) for number in range(len(CHANGES))])
def test_a_source_that_changes_is_noticed_and_nothing_is_left(
    change: Callable[[Path], object], words: str, source: Path, output: Path
) -> None:
    def progress(done: int, total: int) -> None:
        if done > 4 and not changed:  # README.md is read, data/rows.jsonl and trainer/ are not
            changed.append(change(source))

    changed: list[object] = []
    with pytest.raises(InputError) as caught:
        built(source, output, progress=progress)
    assert words in str(caught.value) and changed
    assert sets(output) == {}


def test_a_change_that_left_no_trace_in_the_times_is_noticed(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the kernel's clock had not ticked between a first look and an edit."""

    def of(found: os.stat_result) -> reading.Stamp:
        return reading.Stamp(found.st_dev, found.st_ino, found.st_mode, found.st_size, 0, moment)

    def progress(done: int, total: int) -> None:
        (source / "README.md").write_text("# y\n")

    moment = time.time_ns()
    monkeypatch.setattr(reading.Stamp, "of", of)
    with pytest.raises(reading.Changed, match=r"\('README.md'\)"):
        built(source, output, progress=progress)
    assert sets(output) == {}


def test_changes_outside_the_whitelist_are_none(source: Path, output: Path) -> None:
    def progress(done: int, total: int) -> None:
        (source / "notes.txt").write_text(str(done))
        (source / "README.md").read_text()

    built(source, output, progress=progress)
    assert check(output).lines == []


def test_all_findings_come_at_once_and_before_anything_is_written(source: Path, output: Path) -> None:
    (source / "trainer" / "link").symlink_to("a.py")
    (source / "data" / "a\\b").write_text("x")
    (source / whitelist.NAME).write_text("trainer/\ndata/\nnone\n.env\n")
    with pytest.raises(InputError) as caught:
        built(source, output, progress=lambda done, total: pytest.fail("it was read"))
    found = " | ".join([*caught.value.lines, str(caught.value)])
    for words in (
        "'trainer/link' is a symbolic link",
        "has a backslash",
        "line 3: 'none' matches",
        "line 4: '.env' is a",
    ):
        assert words in found
    assert str(caught.value).endswith("(and 3 more above)") and sets(output) == {}


def test_of_very_many_findings_the_first_are_shown(source: Path, output: Path) -> None:
    for number in range(200):
        (source / "data" / f"link{number:03}").symlink_to("rows.jsonl")
    with pytest.raises(InputError) as caught:
        built(source, output)
    assert len(caught.value.lines) == build.MOST_FINDINGS
    assert caught.value.lines[0] == "150 more findings like these are not shown"


def test_a_secret_is_refused_and_nothing_is_left(source: Path, output: Path) -> None:
    (source / "data" / "rows.jsonl").write_text(f"\n{TOKEN}\n")
    with pytest.raises(InputError, match=r"'data/rows\.jsonl', line 2: what looks like a Hugging Face token") as caught:
        built(source, output)
    assert TOKEN not in str(caught.value) and sets(output) == {}


def test_what_is_never_packed_is_left_out_and_named(source: Path, output: Path) -> None:
    for name in ("data/.env", "trainer/__pycache__/a.pyc", "data/id_rsa"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(TOKEN)
    answer = built(source, output)
    assert answer["left_out"] == ["data/.env", "data/id_rsa", "trainer/__pycache__/"]
    assert "left out: 'trainer/__pycache__/', a cache" in answer["lines"]
    assert packed_names(output) == [
        *sorted([*TEXTS, "data/large.bin", "data/电场 é.txt"], key=str.encode),
        manifest.NAME,
    ]
    assert TOKEN.encode() not in unpacked(output)


def test_an_output_inside_the_packed_tree_is_not_packed(source: Path) -> None:
    output = source / "data" / "x.tar.gz"
    first = built(source, output)
    before = output.read_bytes()
    assert built(source, output)["source_id"] == first["source_id"] and output.read_bytes() == before
    assert not any(name.startswith("data/x.") for name in packed_names(output))


def test_the_default_name_is_that_of_the_tree(source: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    answer = build.run(parser.parse_args(["--source", str(source)]), tmp_path / "root")
    folder = tmp_path / "root" / "outputs" / "bundles"
    assert Path(answer["bundle"]) == folder / f"stagegate-{answer['source_id']}.tar.gz"
    assert check(Path(answer["bundle"])).sha256
    assert [path for path in folder.iterdir() if path.name.startswith(placing.MAKING)] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--source", "{tmp}/none"], "error: the source '{tmp}/none' is not a folder; name a source tree"),
        (["--source", "{tmp}"], "error: there is no whitelist {tmp}/.bundleinclude; write one, or name another"),
        (["--source", "{source}", "--whitelist", "{tmp}/none"], "error: there is no whitelist {tmp}/none; write one"),
        (
            ["--source", "{source}", "--output", "{tmp}/none/x.tar.gz"],
            "error: the folder '{tmp}/none' of the output is",
        ),
        (
            ["--source", "{source}", "--output", "{tmp}/x.zip"],
            "error: the output '{tmp}/x.zip' does not end in .tar.gz",
        ),
        (["--source", "{source}", "--output", "{tmp}/a\\b.tar.gz"], "error: the output: the name"),
        (["--sorce", "x"], "error: there is no option --sorce; did you mean --source"),
    ],
)
def test_wrong_options_are_one_sentence(words: list[str], sentence: str, source: Path, tmp_path: Path) -> None:
    known = {"tmp": str(tmp_path), "source": str(source)}
    root = tmp_path / "root"
    done = command(*(word.format(**known) for word in words), env={"TRAIN_SYNC_PROJECT_ROOT": str(root)})
    assert not root.exists()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(sentence.format(**known)) and done.stderr.count("\n") == 1


def test_a_full_disk_is_one_sentence_and_the_old_bundle_stays(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(source, output)
    before = sets(output)

    def write(self: compress.GzipWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compress.GzipWriter, "write", write)
    with pytest.raises(HostUnfit, match=r"the bundle cannot be written to .* \(No space left on device\); make room"):
        built(source, output)
    assert sets(output) == before


def test_term_ends_a_build_as_ctrl_c_does(source: Path, output: Path) -> None:
    with (source / "data" / "large.bin").open("wb") as stream:
        stream.truncate(4 << 30)
    build_it = [sys.executable, "-m", "trainer", "bundle", "build", "--source", str(source), "--output", str(output)]
    running = subprocess.Popen(build_it, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(output.parent.glob(f"{placing.MAKING}*/archive")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (7, "error: stopped by SIGTERM: nothing was built; run it again\n")
    assert sets(output) == {}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("rename,renameat,renameat2", ["old", "refused", "refused", "refused", "refused", "new"]),
        ("unlink,unlinkat", ["old", "new"]),
        ("fsync", ["old"] * 4 + ["refused", "refused", "new", "new"]),
    ],
)
def test_a_build_that_is_killed_leaves_no_mixed_set(
    calls: str, expected: list[str], source: Path, output: Path
) -> None:
    built(source, output)
    old = sets(output)
    (source / "README.md").write_text("# new\n")
    built(source, output.with_name("y.tar.gz"))
    new = hashlib.sha256(sets(output)["y.tar.gz"]).hexdigest()
    outcomes = []
    for number in range(1, 30):
        shutil.rmtree(output.parent)
        output.parent.mkdir()
        for name, data in old.items():
            (output.parent / name).write_bytes(data)
        kill = ["-e", f"trace={calls}", "-e", f"inject={calls}:signal=SIGKILL:when={number}"]
        before = ["strace", "-f", "-qq", "-o", "/dev/null", *kill]
        done = command("--source", str(source), "--output", str(output), before=before)
        found = sets_of_files(output)
        if found == old:
            outcomes.append("old")
        elif "x.tar.gz.sha256" in found:
            assert check(output).sha256 == new
            outcomes.append("new")
        else:
            with pytest.raises(InputError):
                check(output)
            outcomes.append("refused")
        if done.returncode == 0:
            break
    assert (done.returncode, outcomes) == (0, expected)
    (output.parent / f"{placing.MAKING}killed").mkdir()
    built(source, output)  # what was killed is swept
    assert set(os.listdir(output.parent)) == NAMES


def sets_of_files(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.parent.iterdir() if path.is_file()}


def test_our_own_tree_is_built_from_its_own_whitelist(output: Path) -> None:
    answer = built(ROOT, output)
    names = set(packed_names(output))
    assert {"trainer/stages.yml", "data/training/processed/all_sft.jsonl", "requirements/trainer.lock"} <= names
    assert not any(part in name.split("/") for name in names for part in ("__pycache__", ".git", "outputs", "tests"))
    assert answer["files"] + 1 == len(names)
