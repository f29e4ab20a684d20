"""An apply or a rollback that is killed, or refused by the disk, at each single call that touches the project root.

strace counts the calls of one kind and process, so one run is traced, and then each of its calls is met in a run of its
own. What is counted begins with the first call that names the project root: the start of Python is of no interest.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit.trainer.bundle import small
from trainer import content
from trainer.bundle import apply
from trainer.state import Layout

REPOSITORY = Path(apply.__file__).resolve().parents[2]
RUN_SECONDS = 60
DRIVER = """
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from trainer.bundle import apply
from trainer.errors import TrainerError
from trainer.state import Layout
layout = Layout(Path(sys.argv[3]))
try:
    if sys.argv[2] == "rollback":
        apply.rollback(layout, None, None)
    else:
        apply.apply(apply.Request(layout, Path(sys.argv[4])))
except TrainerError as problem:
    print(problem, file=sys.stderr)
    sys.exit(problem.exit_code)
"""
MAKES = (
    "mkdir", "mkdirat", "mknod", "mknodat", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
    "symlinkat", "write", "writev", "pwrite64", "fsync", "fdatasync", "syncfs", "ftruncate", "fallocate",
    "copy_file_range", "sendfile",
)  # fmt: skip
CHANGES = (
    "unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "utime", "utimes",
    "utimensat", "futimesat",
)  # fmt: skip
CALLS = ("openat", "open", "creat", "flock", *MAKES, *CHANGES)
EDITED = {**small.OLD, "trainer/a.py": "print('edited')\n"}


class Call(NamedTuple):
    """The `number`-th call of its kind in the main thread; whether it makes a file, or opens one of the bundle's."""

    kind: str
    number: int
    is_creating: bool
    is_of_bundle: bool


@pytest.fixture(scope="module", autouse=True)
def strace(tmp_path_factory: pytest.TempPathFactory) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run(
        ["strace", "-f", "-qq", "-o", str(tmp_path_factory.mktemp("strace") / "out"), "-e", "inject=mkdir:error=EIO",
         "true"], capture_output=True, text=True, check=False, timeout=RUN_SECONDS,
    )  # fmt: skip
    if tried.returncode != 0:
        pytest.skip(f"strace is not permitted here: {tried.stderr.strip()[:200]}")


class Scene:
    """A project root in a state that can be had again and again, and what is done to it."""

    def __init__(self, folder: Path, action: str, bundle: str, before: tuple[str, ...]) -> None:
        self.folder, self.action = folder, action
        self.root, self.template = folder / "root", folder / "template"
        self.bundles = {
            "old": small.pack(folder / "bundles", small.OLD, "old.tar.gz"),
            "new": small.pack(folder / "bundles", small.NEW, "new.tar.gz", small.MADE_AT + 1),
        }
        self.bundle = self.bundles[bundle]
        self.template.mkdir()
        for name in before:
            apply.apply(apply.Request(Layout(self.template), self.bundles[name]))

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    def again(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.template, self.root, symlinks=True)

    def words(self) -> list[str]:
        return [
            sys.executable, "-I", "-S", "-E", "-c", DRIVER, str(REPOSITORY), self.action, str(self.root),
            str(self.bundle),
        ]  # fmt: skip

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["strace", "-f", "-qq", *options, *self.words()], capture_output=True, text=True, check=False,
            timeout=RUN_SECONDS,
        )  # fmt: skip

    def calls(self) -> list[Call]:
        """The calls of a whole run, from the first that names the project root."""
        self.again()
        out = self.folder / "traced"
        done = self.run("-o", str(out), "-e", "trace=" + ",".join(f"?{kind}" for kind in CALLS))
        assert done.returncode == 0, done.stderr
        counted: Counter[str] = Counter()
        found, main = [], ""
        for row in out.read_text(encoding="utf-8", errors="replace").splitlines():
            match = re.match(r"(\d+) +(\w+)\((.*)", row)
            if match is None or match[1] != (main or match[1]):
                continue
            main = match[1]
            counted[match[2]] += 1
            if found or str(self.root) in row:
                found.append(Call(match[2], counted[match[2]], "O_CREAT" in row, str(self.bundle.parent) in row))
        assert len(found) > 30, "the run was seen"
        return found

    def meet(self, call: Call, what: str) -> subprocess.CompletedProcess[str]:
        """A run with this done to that call."""
        self.again()
        return self.run(
            "-o", os.devnull, "-e", f"trace={call.kind}", "-e", f"inject={call.kind}:{what}:when={call.number}"
        )

    def tree(self) -> dict[str, str]:
        """The tree in use, which is what its name says but where it was edited before; {} before the first."""
        code = self.root / "code"
        if not os.path.lexists(code):
            return {}
        assert code.is_dir(), f"code is a link to {os.readlink(code)!r}, and nothing is there"
        found = small.seen(self.root)
        if found != EDITED:
            content.verify(code.resolve(), code.resolve().name)
            assert content.check_release(code, code.resolve().name)
        return found

    def apply(self, name: str) -> None:
        """The next apply works, leaves nothing behind, and the one behind it changes nothing."""
        request = apply.Request(self.layout, self.bundles[name], force=True)
        apply.apply(request)
        assert self.tree() == {"old": small.OLD, "new": small.NEW}[name]
        assert small.left_over(self.root) == []
        before = small.snapshot(self.root)
        assert apply.apply(request)["changed"] is False
        assert small.snapshot(self.root) == before


def scenes(folder: Path, name: str) -> tuple[Scene, list[dict[str, str]], str]:
    """(scene, trees that may be seen, the bundle to apply next) by name."""
    if name == "first":
        return Scene(folder, "apply", "new", ()), [{}, small.NEW], "new"
    if name == "upgrade":
        return Scene(folder, "apply", "new", ("old",)), [small.OLD, small.NEW], "new"
    if name == "edited":  # the same release anew, while the edited one is in use
        scene = Scene(folder, "apply", "old", ("old",))
        (scene.template / "code" / "trainer" / "a.py").write_text(EDITED["trainer/a.py"], encoding="utf-8")
        return scene, [EDITED, small.OLD], "old"
    return Scene(folder, "rollback", "new", ("old", "new")), [small.NEW, small.OLD], "new"


NAMES = ("first", "upgrade", "edited", "rollback")


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_call_the_tree_is_wholly_old_or_new_and_the_next_apply_works(tmp_path: Path, name: str) -> None:
    scene, allowed, bundle = scenes(tmp_path, name)
    seen = []
    for call in scene.calls():
        done = scene.meet(call, "signal=SIGKILL")
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), f"{call} was not met: {done}"
        seen.append(scene.tree())
        assert seen[-1] in allowed, call
        if name == "rollback" and seen[-1] == allowed[0]:
            apply.rollback(scene.layout, None, None)
            assert scene.tree() == allowed[1] and small.left_over(scene.root) == [], call
        scene.apply(bundle)
        assert name != "edited" or is_kept(scene.root, EDITED["trainer/a.py"]), call
    assert seen[0] == allowed[0] and seen[-1] == allowed[1], "some were killed before the switch, some behind it"


def is_kept(root: Path, text: str) -> bool:
    return any(path.read_text(encoding="utf-8") == text for path in root.rglob("a.py"))


def refused(calls: list[Call], number: int) -> Iterator[Call]:
    """The calls that can end with this error."""
    for call in calls:
        makes = call.kind in MAKES or call.is_creating
        if makes or (number == errno.EIO and call.kind in (*CHANGES, "openat", "open")):
            yield call


# The longest scene adds an exchange of two folders, which no full disk and no broken one tell apart.
@pytest.mark.parametrize(
    ("number", "name"),
    [*((errno.ENOSPC, name) for name in NAMES), *((errno.EIO, name) for name in NAMES if name != "edited")],
)
def test_refused_by_the_disk_at_any_call_it_is_whole_and_says_so(tmp_path: Path, name: str, number: int) -> None:
    scene, allowed, bundle = scenes(tmp_path, name)
    codes = set()
    for call in refused(scene.calls(), number):
        done = scene.meet(call, f"error={errno.errorcode[number]}")
        codes.add(done.returncode)
        found = scene.tree()
        assert found in allowed, call
        if done.returncode == 0:
            assert found == allowed[1], call
        else:
            codes_of_it = (2,) if call.is_of_bundle else (4,)  # a file that cannot be opened is an input error
            assert done.returncode in codes_of_it and len(done.stderr.splitlines()) == 1, (call, done)
            assert os.strerror(number) in done.stderr, (call, done)
        assert not [left for left in small.left_over(scene.root) if left.startswith(".applying-")], (call, done)
        scene.apply(bundle)
        assert name != "edited" or is_kept(scene.root, EDITED["trainer/a.py"]), call
    assert 4 in codes
