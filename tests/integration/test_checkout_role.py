"""The role checkout against folders of this machine: as one stream, by git, and what can go wrong on the way."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer import content, source

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = REPOSITORY / "roles" / "checkout" / "files"
ENVIRONMENT = {
    **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ},
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "PYTHONDONTWRITEBYTECODE": "1",
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
}  # fmt: skip
PLAY = """
- name: Bring the source
  hosts: localhost
  connection: local
  gather_facts: false
  roles: [checkout]
  post_tasks:
    - name: Show what the plan would name
      ansible.builtin.debug:
        msg: "plan: {{ checkout_source_id }} {{ checkout_source_commit }}."
"""
Done = subprocess.CompletedProcess[str]


def git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], check=True, env=ENVIRONMENT, capture_output=True, text=True
    ).stdout.strip()


class Origin:
    """A repository that holds the trainer and a file that changes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, folder.as_uri()
        shutil.copytree(REPOSITORY / "trainer", folder / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / ".gitignore").write_text("__pycache__/\n")
        git(folder, "init", "--quiet", "--initial-branch=main")
        for number in range(7):
            self.commit(f"change {number}")

    def commit(self, text: str, name: str = "notes.txt") -> str:
        (self.folder / name).write_text(text)
        git(self.folder, "add", "--all")
        git(self.folder, "commit", "--quiet", "--message", text)
        return self.head()

    def head(self) -> str:
        return git(self.folder, "rev-parse", "HEAD")


class Host:
    """A project root, reached by the role's own programs."""

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.url, self.releases = root, url, root / "releases"

    def words(self, commit: str, python: str = sys.executable) -> list[str]:
        script = (FILES / "fetch.sh").read_text()
        return ["/bin/sh", "-c", script, "sh", str(self.root), python, self.url, commit]

    def fetch(self, commit: str, **environment: str) -> Done:
        with (FILES / "export_commit.py").open() as program:
            return subprocess.run(
                self.words(commit), stdin=program, env={**ENVIRONMENT, **environment}, capture_output=True, text=True,
                timeout=120, check=False,
            )  # fmt: skip

    def start(self, commit: str, **environment: str) -> subprocess.Popen[str]:
        with (FILES / "export_commit.py").open() as program:
            return subprocess.Popen(
                self.words(commit), stdin=program, env={**ENVIRONMENT, **environment}, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip

    def code(self) -> dict[str, Any]:
        """The record of the code, whose files are compared with it."""
        return content.check_release(self.root / "code", (self.root / "code").resolve().name)

    def leftovers(self) -> list[str]:
        return [path.name for path in self.releases.glob(".*") if path.name != ".lock"]


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "origin")


@pytest.fixture
def host(tmp_path: Path, origin: Origin) -> Host:
    (tmp_path / "host").mkdir()
    return Host(tmp_path / "host", origin.url)


def answer(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def refusal(done: Done, code: int) -> str:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr


def test_a_commit_becomes_the_release_that_its_files_would_become(origin: Origin, host: Host) -> None:
    found = answer(host.fetch(origin.head()))
    assert found["source_id"] == source.describe(origin.folder)["source_id"]
    assert (host.code()["source_id"], host.code()["commit"]) == (found["source_id"], origin.head())
    lines = found["lines"]
    assert lines[0] == f"code: {origin.url} at {origin.head()[:12]}" and len(lines) == 6
    assert [line.split(" ", 4)[4] for line in lines[1:]] == [f"change {number}" for number in (6, 5, 4, 3, 2)]
    first = git(origin.folder, "rev-parse", "HEAD~6")
    answer(host.fetch(first))  # backwards, and further than what was fetched
    assert host.code()["commit"] == first and (host.root / "code" / "notes.txt").read_text() == "change 0"
    assert host.leftovers() == []


def test_a_commit_that_a_forced_push_removed_is_said_to_be_gone_unless_the_host_has_it(
    origin: Origin, host: Host
) -> None:
    gone = origin.commit("regretted")
    answer(host.fetch(gone))
    git(origin.folder, "reset", "--quiet", "--hard", "HEAD~1")
    git(origin.folder, "reflog", "expire", "--expire=now", "--all")
    git(origin.folder, "gc", "--quiet", "--prune=now")
    after = origin.commit("instead")
    answer(host.fetch(after))
    assert host.code()["commit"] == after
    answer(host.fetch(gone))
    assert host.code()["commit"] == gone
    fresh = Host(host.root.with_name("fresh"), origin.url)
    said = refusal(fresh.fetch(gone), 2)
    assert f"the commit {gone} is not in" in said and "forced push" in said and "worktree" in said
    assert fresh.leftovers() == [] and not (fresh.root / "code").exists()
    answer(fresh.fetch(after))


def test_a_server_that_gives_no_single_commits_gives_its_branches(origin: Origin, host: Host) -> None:
    """As protocol 0 over a server of old settings."""
    inner = git(origin.folder, "rev-parse", "HEAD~2")
    program = (FILES / "export_commit.py").read_text().replace("protocol.version=2", "protocol.version=0")
    done = subprocess.run(
        host.words(inner), input=program, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert len(answer(done)["lines"]) == 6 and host.code()["commit"] == inner


def lose_objects(mirror: Path) -> None:
    shutil.rmtree(mirror / "objects")


def cut_packs(mirror: Path) -> None:
    for path in (mirror / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_head(mirror: Path) -> None:
    (mirror / "HEAD").write_text("garbage")


def spoil_config(mirror: Path) -> None:
    (mirror / "config").write_bytes(b"[core\0")


def leave_locks(mirror: Path) -> None:
    for name in ("shallow.lock", "HEAD.lock", "config.lock", "packed-refs.lock"):
        (mirror / name).write_text("")
    (mirror / "objects" / "pack" / "tmp_pack_x").write_text("half")


def lock_refs(mirror: Path) -> None:
    for path in list((mirror / "refs" / "stagegate").iterdir()):
        path.with_name(f"{path.name}.lock").write_text("")
        path.unlink()


def become_a_file(mirror: Path) -> None:
    shutil.rmtree(mirror)
    mirror.write_text("")


DAMAGES = [lose_objects, cut_packs, spoil_head, spoil_config, leave_locks, lock_refs, become_a_file]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_repository_on_the_host_is_made_anew(
    origin: Origin, host: Host, damage: Callable[[Path], None]
) -> None:
    old = origin.head()
    answer(host.fetch(old))
    damage(host.root / "repository.git")
    new = origin.commit("later")
    answer(host.fetch(new))
    assert host.code()["commit"] == new
    damage(host.root / "repository.git")
    answer(host.fetch(old))
    assert host.code()["commit"] == old and host.leftovers() == []
    assert sorted(path.name for path in host.root.glob(".*")) == [".repository.lock"]


def test_a_run_that_is_killed_anywhere_leaves_a_host_that_the_next_one_completes(origin: Origin, host: Host) -> None:
    for number in range(8):
        commit = origin.commit(f"kill {number}")
        run = host.start(commit)
        time.sleep(0.06 * number)
        run.kill()  # the program itself: sh has become it
        run.communicate()
        answer(host.fetch(commit))
        assert host.code()["commit"] == commit


def test_a_git_that_outlived_its_run_is_waited_for(origin: Origin, host: Host, tmp_path: Path) -> None:
    real = shutil.which("git")
    wrapper, started, go_on = tmp_path / "bin" / "git", tmp_path / "started", tmp_path / "go_on"
    wrapper.parent.mkdir()
    wrapper.write_text(f"""#!/bin/sh
case " $* " in *" fetch "*) echo half > "{host.root}/repository.git/shallow.lock"; touch "{started}"
  while [ ! -e "{go_on}" ]; do sleep 0.05; done; exit 1 ;; esac
exec {real} "$@"
""")
    wrapper.chmod(0o755)
    killed = host.start(origin.head(), PATH=f"{wrapper.parent}:{ENVIRONMENT['PATH']}")
    while not started.exists():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    waiting = host.start(origin.head())
    time.sleep(1.0)
    assert waiting.poll() is None, "the lock is git's as long as it lives"
    go_on.touch()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert host.code()["commit"] == origin.head()


def test_every_second_try_goes_by_the_way_out_of_the_provider(origin: Origin, host: Host, tmp_path: Path) -> None:
    wrapper, turbo = tmp_path / "bin" / "git", tmp_path / "network turbo"
    wrapper.parent.mkdir()
    wrapper.write_text(f"""#!/bin/sh
case " $* " in *" fetch "*)
  [ "$https_proxy" = way ] || {{ echo 'fatal: unable to access: timed out' >&2; exit 128; }} ;;
esac
exec {shutil.which("git")} "$@"
""")
    wrapper.chmod(0o755)
    turbo.write_text("export https_proxy=way; echo noise of the provider\n")
    command = [*host.words(origin.head()), str(tmp_path / "not there"), str(turbo)]
    environment = {**ENVIRONMENT, "PATH": f"{wrapper.parent}:{ENVIRONMENT['PATH']}"}
    program = (FILES / "export_commit.py").read_text().replace("RETRY_SECONDS = 3, 3.0", "RETRY_SECONDS = 3, 0.0")
    for words, code in ((command[:-1], 4), (command, 0)):
        done = subprocess.run(
            words, input=program, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stderr
    assert host.code()["commit"] == origin.head()


def test_a_run_that_is_ended_clears_up(origin: Origin, host: Host, tmp_path: Path) -> None:
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\ntouch "{tmp_path}/started"; sleep 30\n')
    wrapper.chmod(0o755)
    run = host.start(origin.head(), PATH=f"{wrapper.parent}:{ENVIRONMENT['PATH']}")
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=20)
    assert (run.returncode, err) == (7, "error: interrupted\n")
    assert host.leftovers() == []


def test_two_controllers_with_different_commits_both_succeed(origin: Origin, host: Host) -> None:
    commits = [git(origin.folder, "rev-parse", f"HEAD~{number}") for number in (0, 6)]
    runs = [host.start(commit) for commit in commits]
    ended = [(*run.communicate(timeout=120), run.returncode) for run in runs]
    assert [code for _, _, code in ended] == [0, 0], ended
    names = [json.loads(out)["source_id"] for out, _, _ in ended]
    assert len(set(names)) == 2 and host.code()["commit"] in commits and host.leftovers() == []
    for name in names:
        content.check_release(host.releases / name, name)


def test_a_host_without_git_is_told_of_worktree(origin: Origin, host: Host, tmp_path: Path) -> None:
    said = refusal(host.fetch(origin.head(), PATH=str(tmp_path)), 4)
    assert "the host has no git" in said and "checkout_source=worktree" in said
    answer(host.fetch(origin.head()))


def add_submodule(origin: Origin) -> None:
    git(origin.folder, "update-index", "--add", "--cacheinfo", f"160000,{origin.head()},vendor")


def add_link(origin: Origin) -> None:
    (origin.folder / "link").symlink_to("notes.txt")


def add_pointer(origin: Origin) -> None:
    (origin.folder / "weights.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def add_foreign_trainer(origin: Origin) -> None:
    (origin.folder / "trainer" / "release.py").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [(add_submodule, "'vendor' in the commit .* is a submodule"), (add_link, "'link' in the commit .* symbolic link"),
     (add_pointer, "'weights.bin' in the commit .* Git LFS"), (add_foreign_trainer, "holds no trainer that")],
)  # fmt: skip
def test_what_is_no_plain_file_of_the_commit_is_refused(
    origin: Origin, host: Host, change: Callable[[Origin], None], words: str
) -> None:
    good = origin.head()
    change(origin)
    if change is not add_submodule:
        git(origin.folder, "add", "--all")
    git(origin.folder, "commit", "--quiet", "--message", "odd")
    with pytest.raises(AssertionError, match=words):
        answer(host.fetch(origin.head()))
    refusal(host.fetch(origin.head()), 2)
    assert host.leftovers() == [] and not (host.root / "code").exists()
    answer(host.fetch(good))


class Closed(http.server.BaseHTTPRequestHandler):
    """A server that wants a password."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def closed_url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Closed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/x.git"
    server.shutdown()
    server.server_close()


def test_a_private_repository_asks_nobody(host: Host, origin: Origin, closed_url: str) -> None:
    said = refusal(Host(host.root, closed_url).fetch(origin.head()), 4)
    assert "the host may not read the repository" in said and "deploy key" in said


def test_a_repository_that_is_not_there_is_named(host: Host, origin: Origin) -> None:
    said = refusal(Host(host.root, f"{origin.url}/gone").fetch(origin.head()), 2)
    assert "there is no such repository" in said and "checkout_git_url" in said


def test_subjects_of_commits_do_not_move_the_cursor(host: Host, origin: Origin) -> None:
    lines = answer(host.fetch(origin.commit("red \x1b[31m text")))["lines"]
    assert lines[1].endswith("red ?[31m text")


def on_small_disk(folder: Path, options: str, words: list[str], data: bytes) -> Done:
    """Run the words in a mount namespace where `folder` is a file system of its own."""
    mount = f'mount -t tmpfs -o size=200k,{options} none "$0" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, str(folder), *words]
    done = subprocess.run(command, input=data, env=ENVIRONMENT, capture_output=True, timeout=120, check=False)
    text = done.stderr.decode()
    if "unshare" in text or "mount:" in text:
        pytest.skip(f"namespaces are not allowed here: {text.strip()}")
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), text)


@pytest.mark.parametrize(("options", "words"), [("rw", "No space left on device"), ("ro", "Read-only file system")])
@pytest.mark.parametrize("way", ["git", "worktree"])
def test_a_disk_that_refuses_is_one_sentence(
    host: Host, origin: Origin, tmp_path: Path, options: str, words: str, way: str
) -> None:
    data, command = (FILES / "export_commit.py").read_bytes(), host.words(origin.head())
    if way == "worktree":
        data, command = stream(origin, host)
    said = refusal(on_small_disk(host.root, options, command, data), 4)
    assert words in said and "make room" in said
    done = subprocess.run(command, input=data, env=ENVIRONMENT, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def stream(origin: Origin, host: Host) -> tuple[bytes, list[str]]:
    """The files of a checkout as they are sent, and the command that receives them."""
    pack = [sys.executable, "-m", "trainer", "source", "pack", "--output", "-"]
    data = subprocess.run(pack, cwd=origin.folder, env=ENVIRONMENT, capture_output=True, check=True).stdout
    expected = source.describe(origin.folder)["source_id"]
    script = (FILES / "receive.sh").read_text()
    return data, ["/bin/sh", "-c", script, "sh", str(host.root), sys.executable, expected, ""]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_stream_that_is_cut_publishes_nothing(host: Host, origin: Origin, share: float) -> None:
    data, command = stream(origin, host)
    cut = data[: int(len(data) * share)]
    done = subprocess.run(command, input=cut, env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 4 and done.stderr.decode().startswith("error: the source cannot be put into")
    assert host.leftovers() == [] and not (host.root / "code").exists()
    done = subprocess.run(command, input=data, env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0 and host.code()


class Line:
    """Runs of the role from a checkout onto a host."""

    def __init__(self, checkout: Path, root: Path) -> None:
        self.checkout, self.root = checkout, root
        (checkout.parent / "play.yml").write_text(PLAY)

    def run(self, *words: str, **given: str) -> Done:
        variables = {
            "checkout_project_root": str(self.root), "checkout_python": sys.executable,
            "checkout_repository_dir": str(self.checkout), **given,
        }  # fmt: skip
        settings = {
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_INVENTORY": "localhost,",
            "ANSIBLE_DISPLAY_OK_HOSTS": "true", "ANSIBLE_NOCOLOR": "1",
        }  # fmt: skip
        playbook = str(Path(sys.executable).parent / "ansible-playbook")
        return subprocess.run(
            [playbook, str(self.checkout.parent / "play.yml"), "-e", json.dumps(variables), *words],
            cwd=self.checkout.parent, env={**ENVIRONMENT, **settings}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip


def test_the_worktree_from_a_dry_run_to_a_run_without_change(origin: Origin, host: Host) -> None:
    line = Line(origin.folder, host.root / "deep")
    dry = line.run("--check")
    assert dry.returncode == 0, dry.stdout
    assert "changed=1 " in dry.stdout and not line.root.exists()

    (origin.folder / "notes.txt").write_text("an edit that is not committed")
    expected = source.describe(origin.folder)["source_id"]
    first = line.run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "changed=1 " in first.stdout and f"plan: {expected} ." in first.stdout
    assert (line.root / "code" / "notes.txt").read_text() == "an edit that is not committed"

    for words in ((), ("--check",)):
        again = line.run(*words)
        assert "changed=0 " in again.stdout and f"plan: {expected} ." in again.stdout
        assert again.returncode == 0, again.stdout

    (line.root / "code" / "trainer" / "cli.py").write_text("edited by hand")
    healed = line.run()
    assert "not what was sent there" in healed.stdout and "changed=1 " in healed.stdout
    assert content.check_release(line.root / "code", expected)


def test_git_pins_the_commit_of_the_checkout_and_warns_of_local_edits(origin: Origin, host: Host) -> None:
    clone = origin.folder.with_name("clone")
    git(origin.folder, "clone", "--quiet", origin.url, str(clone))
    line, commit = Line(clone, host.root), origin.head()
    dry = line.run("--check", checkout_source="git")
    assert dry.returncode == 0 and "changed=1 " in dry.stdout and list(host.root.iterdir()) == [], dry.stdout
    first = line.run(checkout_source="git")
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"plan: {host.code()['source_id']} {commit}." in first.stdout and "change 2" in first.stdout

    (clone / "notes.txt").write_text("local")
    again = line.run(checkout_source="git")
    assert "changed=0 " in again.stdout and "local edits are not trained with ('notes.txt')" in again.stdout
    assert f"plan: {host.code()['source_id']} {commit}." in again.stdout

    newer = origin.commit("newer")
    moved = line.run(checkout_source="git", checkout_git_version="main")
    assert "changed=1 " in moved.stdout and host.code()["commit"] == newer

    refused = line.run(checkout_source="git", checkout_git_url="https://me:hunter2@example.org/x.git")
    assert refused.returncode == 2 and "holds a password or token" in refused.stderr.splitlines()[-1]
    missing = line.run(checkout_source="git", checkout_git_version="0" * 40)
    assert missing.returncode == 2 and "is not in" in missing.stderr.splitlines()[-1]
    assert host.code()["commit"] == newer
