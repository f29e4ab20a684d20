"""`bundle verify | apply | rollback` as a user calls it: answers, exit codes, signals, the program beside a bundle."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.bundle import small
from trainer import cli
from trainer.bundle import application, command

REPOSITORY = Path(cli.__file__).resolve().parents[1]
DEADLINE_SECONDS = 60.0


class Host:
    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "host"
        self.old = small.pack(folder / "bundles", small.OLD, "old.tar.gz")
        self.new = small.pack(folder / "bundles", small.NEW, "new.tar.gz", small.MADE_AT + 60)

    def words(self, *words: object) -> list[str]:
        return ["--project-root", str(self.root), "bundle", *map(str, words)]

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "trainer", *self.words(*words)]

    def start(self, *words: object, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words), cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, **more,
        )  # fmt: skip

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Somebody else publishes for a while."""
        with (self.root / "releases" / ".lock").open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def wait_for_staging(self) -> None:
        """Until an apply has unpacked its bundle and stands before the lock."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            if list((self.root / "releases").glob(".applying-*/tree/SYNC_MANIFEST.sha256")):
                return
            time.sleep(0.02)
        raise AssertionError("it never came so far")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def said(host: Host, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main(host.words(*words))
    return code, *capsys.readouterr()


def test_the_way_of_a_bundle(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(host, capsys, "verify", "--bundle", host.old)
    assert (code, err) == (0, "") and not host.root.exists()
    assert out.splitlines()[0] == f"old.tar.gz is whole: the source {small.source_id(small.OLD)}"
    assert re.fullmatch(r"4 files, \d+ bytes, \d+\.\d s", out.splitlines()[-1])
    code, out, err = said(host, capsys, "apply", "--bundle", host.old, "--dry-run")
    assert (code, err) == (0, "") and "would add trainer/a.py" in out and not host.root.exists()
    code, out, err = said(host, capsys, "apply", "--bundle", host.old)
    assert (code, err) == (0, "") and "old.tar.gz is applied as" in out and small.seen(host.root) == small.OLD
    code, out, err = said(host, capsys, "apply", "--bundle", host.new, "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "") and answer["changed"] is True and answer["replaced"] == 2
    assert said(host, capsys, "rollback")[0] == 0 and small.seen(host.root) == small.OLD
    answer = json.loads(said(host, capsys, "apply", "--bundle", host.old, "--json")[1])
    assert answer["changed"] is False and answer["data_errors"] == []
    answer = json.loads(said(host, capsys, "verify", "--bundle", host.new, "--json")[1])
    assert answer["source_id"] == small.source_id(small.NEW) and answer["algorithm"] == "sha256"


def test_the_project_root_may_stand_behind_the_action(host: Host, tmp_path: Path) -> None:
    assert cli.main(["bundle", "apply", "--bundle", str(host.old), "--project-root", str(tmp_path / "other")]) == 0
    assert small.seen(tmp_path / "other") == small.OLD and not host.root.exists()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["apply"], 2, "the following arguments are required: --bundle; see `python -m trainer bundle apply --help`"),
        (["aply"], 2, "there is no command 'aply'; did you mean apply?"),
        (["apply", "--bundle", "x.tar.gz", "--forced"], 2, "there is no option --forced; did you mean --force"),
        (["apply", "--bundle", "nowhere.tar.gz"], 2, "there is no file 'nowhere.tar.gz' in"),
        (["rollback"], 2, "no release is in use in"),
        (["verify", "--bundle", "x.zip"], 2, "'x.zip' is no bundle by its name"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(
    host: Host, capsys: pytest.CaptureFixture[str], words: list[str], code: int, sentence: str
) -> None:
    found, out, err = said(host, capsys, *words)
    assert (found, out) == (code, "") and len(err.splitlines()) == 1
    assert err.startswith("error: ") and sentence in err


def test_the_flags_reach_the_apply(host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    places = ["--staging-dir", tmp_path / "staging", "--backup-root", tmp_path / "saved"]
    assert said(host, capsys, "apply", "--bundle", host.new, *places)[0] == 0
    code, _, err = said(host, capsys, "apply", "--bundle", host.old, *places, "--keep-staging")
    assert code == 2 and "older" in err.splitlines()[-1]
    assert err.splitlines()[0].startswith(f"what was staged is kept in {tmp_path / 'staging'}/.kept-")
    host.old.with_name("old.tar.gz.sha256").unlink()
    assert said(host, capsys, "apply", "--bundle", host.old, *places, "--force")[0] == 2
    code, out, _ = said(host, capsys, "apply", "--bundle", host.old, *places, "--force", "--without-sha256")
    assert code == 0 and small.seen(host.root) == small.OLD and "only the manifest inside" in out
    assert len(list((tmp_path / "saved").iterdir())) == 1
    assert said(host, capsys, "rollback", *places)[0] == 0 and small.seen(host.root) == small.NEW


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_nothing(host: Host, number: signal.Signals) -> None:
    assert cli.main(host.words("apply", "--bundle", host.old)) == 0
    with host.held():
        started = host.start("apply", "--bundle", host.new)
        host.wait_for_staging()
        started.send_signal(number)
        out, err = started.communicate(timeout=DEADLINE_SECONDS)
    assert started.returncode == 7 and out == ""
    assert err == f"error: stopped by {number.name}: the tree in use is the one of before; run the command again\n"
    assert small.seen(host.root) == small.OLD and small.left_over(host.root) == []
    assert cli.main(host.words("apply", "--bundle", host.new)) == 0 and small.seen(host.root) == small.NEW


def test_a_signal_that_is_ignored_does_not_end_it(host: Host) -> None:
    assert cli.main(host.words("apply", "--bundle", host.old)) == 0
    with host.held():
        started = host.start(
            "apply", "--bundle", host.new, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
        )
        host.wait_for_staging()
        started.send_signal(signal.SIGHUP)
    _, err = started.communicate(timeout=DEADLINE_SECONDS)
    assert (started.returncode, err) == (0, "") and small.seen(host.root) == small.NEW


def test_a_signal_behind_the_switch_says_that_it_is_done(host: Host) -> None:
    files = {"trainer/__main__.py": "import time; time.sleep(300)\n", "data/rows.jsonl": "{}\n"}
    bundle = small.pack(host.folder, files, "slow.tar.gz")
    started = host.start("apply", "--bundle", bundle)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (host.root / "code").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # the check of its data is under way, or about to be
    started.send_signal(signal.SIGTERM)
    _, err = started.communicate(timeout=DEADLINE_SECONDS)
    assert started.returncode == 7 and "the tree in use is the new one as a whole" in err
    assert small.seen(host.root) == files and small.left_over(host.root) == []


def test_signals_are_as_they_were_behind_it(host: Host) -> None:
    before = [signal.getsignal(number) for number in command.STOPPING]
    assert cli.main(host.words("apply", "--bundle", host.old)) == 0
    assert [signal.getsignal(number) for number in command.STOPPING] == before


# --- the real trainer


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The trainer and its data, as texts."""
    files = [path for name in ("trainer", "data") for path in (REPOSITORY / name).rglob("*") if path.is_file()]
    return {
        path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
        for path in files
        if "__pycache__" not in path.parts
    }


def test_the_code_check_of_a_plan_sees_the_release_that_was_applied(
    host: Host, real: dict[str, str], line: Any
) -> None:
    """`line` holds a small data root and a base; the code is the bundle's."""
    bundle = small.pack(host.folder, real, "real.tar.gz")
    started = host.start("apply", "--bundle", bundle, "--json")
    out, err = started.communicate(timeout=DEADLINE_SECONDS)
    assert started.returncode == 0, err
    answer = json.loads(out)
    assert any(text.startswith("data is sound: ") for text in answer["lines"]), answer["lines"]
    code = (host.root / "code").resolve()
    for source_id, wanted in ((answer["source_id"], 0), ("f" * 16, 2)):
        request = json.dumps(line.request("sample", source_id=source_id))
        words = [sys.executable, "-m", "trainer", "--project-root", str(host.root), "submit", "--input", "-", "--json"]
        done = subprocess.run(
            words, cwd=code, input=request, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        supervised = subprocess.run(
            [sys.executable, "-c", CHECK_SOURCE, str(host.root)], cwd=code, capture_output=True, text=True,
            timeout=DEADLINE_SECONDS, check=False,
        )  # fmt: skip
        assert supervised.returncode == wanted, supervised.stderr


CHECK_SOURCE = """
import sys
from pathlib import Path
from trainer import plan
from trainer.errors import TrainerError
from trainer.state import Layout
try:
    plan.check_source(plan.read_plan(Layout(Path(sys.argv[1]))))
except TrainerError as problem:
    sys.exit(problem.exit_code)
"""


def test_faults_in_the_data_are_shown_behind_the_apply(
    host: Host, real: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "data/training/processed/style_sft.jsonl"
    bundle = small.pack(host.folder, {**real, name: "no JSON\n"}, "faulty.tar.gz")
    for _ in range(2):  # it is said again as long as it is so
        code, out, err = said(host, capsys, "apply", "--bundle", bundle)
        assert code == 2 and "faulty.tar.gz is applied" in out
        assert err.splitlines()[0].startswith("error: training/processed/style_sft.jsonl:1: ")
        assert err.splitlines()[-1] == (
            "error: faulty.tar.gz is applied, but its data has an error; send a corrected bundle, or take this one "
            "back with `bundle rollback`"
        )
    code, out, _ = said(host, capsys, "apply", "--bundle", bundle, "--json")
    assert code == 2 and json.loads(out)["data_errors"]


# --- the program beside a bundle


def test_the_program_beside_a_bundle_applies_it(host: Host, tmp_path: Path) -> None:
    program = host.old.with_name("old.apply.pyz")
    program.write_bytes(application.build())
    words = [sys.executable, "-I", str(program)]

    def called(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words, *more], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
        )

    done = called("apply", "--project-root", str(host.root))
    assert (done.returncode, done.stderr) == (0, ""), "its own bundle is the one beside"
    assert small.seen(host.root) == small.OLD
    assert called("apply", "--bundle", str(host.new), "--project-root", str(host.root)).returncode == 0
    assert called("rollback", "--project-root", str(host.root)).returncode == 0
    assert small.seen(host.root) == small.OLD
    wrong = called("apply", "--forec")
    assert wrong.returncode == 2 and "see `python3 old.apply.pyz " in wrong.stderr
    assert "invalid" in called("build").stderr or "there is no command 'build'" in called("build").stderr


def test_the_bundle_of_a_program_is_the_one_of_its_name(tmp_path: Path) -> None:
    for name in ("x.apply.pyz", "x.zip"):
        (tmp_path / name).touch()
    assert command.own_bundle(tmp_path / "x.apply.pyz") == tmp_path / "x.tar.gz"
    assert command.own_bundle(tmp_path / "x.zip") is None
    assert command.own_bundle(tmp_path) is None and command.own_bundle() is None
    shutil.copytree(tmp_path, tmp_path / "y.apply.pyz")
    assert command.own_bundle(tmp_path / "y.apply.pyz") is None, "a folder"


def test_a_terminal_sees_lines_of_its_width_and_the_answer(host: Host) -> None:
    leader, follower = pty.openpty()
    with host.old.open("rb"):
        done = subprocess.run(
            host.command("apply", "--bundle", host.old), cwd=REPOSITORY, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=follower, text=True, timeout=DEADLINE_SECONDS, check=False,
        )  # fmt: skip
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):
        while piece := os.read(leader, 4096):
            shown += piece
    os.close(leader)
    assert done.returncode == 0 and "is applied as" in done.stdout
    assert all(len(row) <= 80 for row in re.split(r"[\r\n]", shown.decode()))
