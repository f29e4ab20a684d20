"""Fetch one commit of a repository on the host and publish its tree: `python - PROJECT_ROOT URL COMMIT [FILE …]`.

A FILE is a shell script of the host's provider that sets a proxy; every second try to fetch goes by it.

It is sent to a host that holds no code yet, so it needs the standard library and git only. A bare repository
beside the releases keeps what was fetched; it is a cache, made anew when it is damaged. Nothing asks for a password.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

TRIES, RETRY_SECONDS = 3, 3.0
FETCH_SECONDS = 900
LOCK_SECONDS = 900
PROBE_BYTES = 8 << 20  # as much as a source tree usually is
SHOWN_COMMITS = 5
WORKTREE = "use checkout_source=worktree, which sends the controller's files"
LFS = b"version https://git-lfs.github.com/spec/"
ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "SSH_ASKPASS": "/bin/false",
    "SSH_ASKPASS_REQUIRE": "never",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    "LC_ALL": "C",
}
SSH_OPTIONS = "-o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15"
NOT_INHERITED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY")
SETTINGS = [
    "gc.auto=0", "maintenance.auto=false", "core.autocrlf=false", "fetch.fsckObjects=true",
    "http.lowSpeedLimit=1000", "http.lowSpeedTime=60", "protocol.version=2",
]  # fmt: skip
# What git says -> (exit code, what is wrong and what to do); the first that fits.
CAUSES = [
    (r"No space left|Read-only file system|Disk quota|Permission denied(?! \()", 4,
     "the commit cannot be written on the host; make room there or correct the permissions of the project root"),
    (r"Host key verification failed", 4,
     "the host does not know the host key of the repository's server; add it to ~/.ssh/known_hosts there"),
    (r"could not read (Username|Password)|Authentication failed|Permission denied \(|returned error: 40[13]", 4,
     f"the host may not read the repository; give it a deploy key, forward your agent, or {WORKTREE}"),
    (r"does not appear to be a git repository|[Rr]epository.* not found|returned error: 404|not a git repository", 2,
     f"there is no such repository for the host; correct checkout_git_url, or {WORKTREE}"),
]  # fmt: skip


class Refused(Exception):
    """One sentence and the exit code that it ends with."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Repository:
    """The bare repository of a project root. Whoever uses it holds `lock`, which git's processes inherit."""

    def __init__(self, root: Path, url: str, lock: int, ways_out: list[str]) -> None:
        self.folder, self.url, self.lock = root / "repository.git", url, lock
        self.ways_out = [path for path in ways_out if os.path.isfile(path)]

    def git(
        self, *words: str, limit_seconds: float = 300, more: dict[str, str] | None = None, by_way_out: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run git on this repository; `more` is added to its environment, or what the provider's files set."""
        ssh = f"{os.environ.get('GIT_SSH_COMMAND', 'ssh')} {SSH_OPTIONS}"
        kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        command = ["git", f"--git-dir={self.folder}", *(word for item in SETTINGS for word in ("-c", item)), *words]
        if by_way_out and self.ways_out:
            command = [
                "sh",
                "-c",
                f'for way in {shlex.join(self.ways_out)}; do . "$way"; done >&2; exec "$@"',
                "sh",
                *command,
            ]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", env={**kept, **ENVIRONMENT, "GIT_SSH_COMMAND": ssh, **(more or {})},
            pass_fds=[self.lock], start_new_session=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=limit_seconds)
        except BaseException as problem:  # its helpers end with it
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(problem, subprocess.TimeoutExpired):
                raise
            out, err = "", f"no end within {limit_seconds:.0f} s"
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def prepare(self) -> None:
        """Make the repository, or clear away what a killed git left in it: nobody else uses it now."""
        if self.git("rev-parse", "--git-dir").returncode or not (self.folder / "objects").is_dir():
            self.make_anew()
        for left in self.folder.parent.glob(".repository-*"):
            shutil.rmtree(left, ignore_errors=True)
        for pattern in (
            "**/*.lock",
            "objects/**/tmp_*",
            "objects/pack/.tmp-*",
            "objects/incoming-*",
            "objects/tmp_objdir-*",
        ):
            for left in self.folder.glob(pattern):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def make_anew(self) -> None:
        """An empty repository in the place of the damaged one."""
        fresh = Path(tempfile.mkdtemp(prefix=".repository-", dir=self.folder.parent))
        try:
            done = subprocess.run(
                ["git", "init", "--quiet", "--bare", "--template=", str(fresh)],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                refuse(done.stderr, self.url, "")
            if os.path.lexists(self.folder):
                os.rename(self.folder, fresh / "damaged")
            os.rename(fresh, self.folder)
            shutil.rmtree(self.folder / "damaged", ignore_errors=True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def holds(self, commit: str) -> bool:
        """Whether the commit and everything in its tree is here and readable."""
        listed = self.git("rev-list", "--objects", "--max-count=1", "--quiet", commit)
        return self.git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0 and listed.returncode == 0

    def fetch(self, commit: str) -> None:
        """Bring the commit with the history that is shown; a server that gives no single commits gives everything."""
        ways = [["--depth", str(SHOWN_COMMITS), self.url, commit],
                [self.url, "+refs/heads/*:refs/fetched/heads/*", "+refs/tags/*:refs/fetched/tags/*"]]  # fmt: skip
        said = ""
        for way in ways:
            for attempt in range(TRIES):
                time.sleep(RETRY_SECONDS * attempt)
                options = ["--no-tags", "--quiet", "--no-auto-gc", "--force"]
                done = self.git("fetch", *options, *way, limit_seconds=FETCH_SECONDS, by_way_out=attempt % 2 == 1)
                said = done.stderr
                if done.returncode == 0 or final(said):
                    break
            if done.returncode == 0 and self.holds(commit):
                self.git("update-ref", f"refs/stagegate/{commit}", commit)
                return
            if done.returncode and not is_missing(said):
                refuse(said, self.url, commit)
        raise Refused(
            2, f"the commit {commit} is not in {self.url} (never pushed, or gone with a forced push); "
               f"push it, name another checkout_git_version, or {WORKTREE}"
        )  # fmt: skip

    def export(self, commit: str, target: Path) -> None:
        """The commit's files in the empty folder `target`, compared with the commit when they are written."""
        listed = self.git("ls-tree", "-r", "-z", commit).stdout
        for kind, meaning in (("160000 ", "a submodule"), ("120000 ", "a symbolic link")):
            odd = [row.partition("\t")[2] for row in listed.split("\0") if row.startswith(kind)]
            if odd:
                raise Refused(
                    2, f"{odd[0]!r} in the commit {commit} is {meaning}, which is not brought to a host; "
                       "put plain files in its place"
                )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix=".index-", dir=self.folder) as folder:
            for number, last in enumerate((["checkout-index", "--all"], ["update-index", "-q", "--refresh"])):
                index = {"GIT_INDEX_FILE": f"{folder}/{number}"}  # a second one trusts no times of the first
                for words in (["read-tree", commit], last):
                    done = self.git(f"--work-tree={target}", *words, more=index)
                    if done.returncode:
                        raise OSError(done.stderr or done.stdout or f"git {words[0]} ended with {done.returncode}")
        for path in target.rglob("*"):
            if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(LFS):
                raise Refused(
                    2, f"{str(path.relative_to(target))!r} in the commit {commit} lies in Git LFS, which is not "
                       f"brought to a host; keep such files outside, or {WORKTREE}"
                )  # fmt: skip

    def last_commits(self, commit: str) -> list[str]:
        """The last commits as lines: hash, date, subject; nothing in them moves a terminal's cursor."""
        done = self.git("log", f"-{SHOWN_COMMITS}", "--date=short", "--format=%h %ad %s", commit)
        return ["  " + "".join(c if c.isprintable() else "?" for c in row) for row in done.stdout.splitlines()]


def is_missing(said: str) -> bool:
    """Whether git said that the commit is not to be had (so)."""
    return bool(re.search(r"not our ref|unadvertised object|[Cc]ould ?n.t find remote ref|bad object|^$", said))


def final(said: str) -> bool:
    """Whether trying again is of no use."""
    return is_missing(said) or any(re.search(pattern, said) for pattern, _, _ in CAUSES)


def refuse(said: str, url: str, commit: str) -> NoReturn:
    """Raise what git's words mean."""
    lines = [
        row for row in said.splitlines() if re.match(r"fatal|error|remote|ssh|Host key|git", row)
    ] or said.splitlines()
    first = re.sub(r"://[^/@\s]*@", "://", (lines or ["it said nothing"])[0])
    for pattern, code, sentence in CAUSES:
        if re.search(pattern, said):
            raise Refused(code, f"{url}: {sentence} ({first})")
    raise Refused(
        4, f"the host cannot fetch the commit {commit[:12]} from {url} ({first}); try again, give it a way out with "
           f"checkout_environment, or {WORKTREE}"
    )  # fmt: skip


@contextlib.contextmanager
def alone(path: Path) -> Any:
    """Two runs use the repository one after the other; also one whose git outlived it."""
    deadline = time.monotonic() + LOCK_SECONDS
    with path.open("ab") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Refused(7, f"another run has held {path} for {LOCK_SECONDS} s; try again later") from None
                time.sleep(0.2)
        yield stream.fileno()


def publish(root: Path, tree: Path, commit: str) -> dict[str, Any]:
    """The answer of the tree's own trainer, which verifies and publishes it."""
    if not (tree / "trainer" / "release.py").is_file():
        raise Refused(2, f"the commit {commit} holds no trainer that this role can publish; name a newer one")
    words = ["--project-root", str(root), "source", "publish", "--commit", commit, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *words], cwd=tree, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Refused(done.returncode if 2 <= done.returncode <= 7 else 5, last.removeprefix("error: "))
    return dict(json.loads(done.stdout.splitlines()[-1]))


def bring(root: Path, url: str, commit: str, ways_out: list[str]) -> dict[str, Any]:
    """Fetch, export, publish; a damaged repository is made anew once."""
    if not shutil.which("git"):
        raise Refused(4, f"the host has no git; install it there, or {WORKTREE}")
    releases = root / "releases"
    releases.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=releases))
    try:
        incoming.chmod(0o755)
        with alone(root / ".repository.lock") as lock:
            repository = Repository(root, url, lock, ways_out)
            repository.prepare()
            if not repository.holds(commit):
                fetch_or_begin_anew(repository, commit)
            try:
                repository.export(commit, incoming)
            except OSError:  # the disk refuses, or an object that is there cannot be read
                clear(incoming)
                probe(incoming)
                repository.make_anew()
                repository.fetch(commit)
                repository.export(commit, incoming)
            commits = repository.last_commits(commit)
        answer = publish(root, incoming, commit)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return {**answer, "lines": [f"code: {url} at {commit[:12]}", *commits, *answer["lines"]]}


def fetch_or_begin_anew(repository: Repository, commit: str) -> None:
    """Fetch; when git calls its own repository broken, once more into an empty one."""
    try:
        repository.fetch(commit)
    except Refused:
        if repository.git("fsck", "--connectivity-only", "--no-dangling").returncode == 0:
            raise
        repository.make_anew()
        repository.fetch(commit)


def probe(folder: Path) -> None:
    """Write a little: OSError with the reason that git does not give."""
    path = folder / "probe"
    try:
        path.write_bytes(bytes(PROBE_BYTES))
    finally:
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Empty a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def main(root: str, url: str, commit: str, *ways_out: str) -> int:
    """Answer with one JSON object, or end with `error: …`."""

    def end(number: int, frame: Any) -> NoReturn:
        raise Refused(7, "interrupted")

    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        print(json.dumps(bring(Path(root), url, commit, list(ways_out))))
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return refused.code
    except OSError as problem:
        detail = (str(problem.strerror or problem).splitlines() or ["?"])[0]
        print(f"error: the commit cannot be put into {root} on the host ({detail}); make room there or correct the "
              "permissions of the project root", file=sys.stderr)  # fmt: skip
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
