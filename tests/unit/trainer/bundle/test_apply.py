"""An apply: the whole tree or nothing, a second one changes nothing, and what was before can be had again."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.bundle import small
from tests.unit.trainer.bundle.small import Host
from trainer import content, release
from trainer.bundle import apply
from trainer.errors import HostUnfit, InputError, Interrupted, TrainerError
from trainer.state import Layout

NEWER = small.NEWER


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_bundle_becomes_the_release_in_use(host: Host) -> None:
    found = host.apply(host.old)
    assert host.seen() == small.OLD and small.left_over(host.root) == []
    source_id = small.source_id(small.OLD)
    assert os.readlink(host.root / "code") == f"releases/{source_id}"
    record = content.check_release(host.root / "code", source_id)
    assert (record["made_at"], record["commit"]) == (small.MADE_AT, "")
    assert record["bundle_sha256"] == hashlib.sha256(host.old.read_bytes()).hexdigest()
    assert (host.root / "code" / "run.sh").stat().st_mode & 0o777 == 0o755
    assert found == {
        "changed": True, "source_id": source_id, "commit": "", "bundle": "old.tar.gz", "files": 4,
        "bytes": found["bytes"], "added": 4, "replaced": 0, "removed": 0, "backup": "",
        "lines": [f"old.tar.gz is applied as {source_id}: 4 added, 0 replaced, 0 removed"],
    }  # fmt: skip


def test_applied_again_it_changes_nothing_on_disk(host: Host) -> None:
    host.apply(host.old)
    host.apply(host.new)
    (host.root / "code" / "own.jsonl").write_text("{}")
    again = host.unchanged(lambda: host.apply(host.new))
    assert again["changed"] is False and again["lines"] == [f"new.tar.gz is applied already as {again['source_id']}"]
    host.new.with_name("new.tar.gz.sha256").unlink()
    assert host.unchanged(lambda: host.apply(host.new, without_sha256=True))["changed"] is False


def test_a_damaged_bundle_is_refused_also_where_the_whole_one_is_applied(host: Host) -> None:
    host.apply(host.old)
    whole = host.old.read_bytes()
    host.old.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="the sha256 of 'old.tar.gz' is"):
        host.unchanged(lambda: host.apply(host.old))
    host.old.write_bytes(whole)
    assert host.apply(host.old)["changed"] is False


def test_another_bundle_of_the_same_tree_changes_nothing_but_times(host: Host) -> None:
    host.apply(host.old)
    same = small.pack(host.folder / "bundles", small.OLD, "same.tar.gz", NEWER)
    assert same.read_bytes() != host.old.read_bytes()
    code = small.snapshot(host.root / "releases" / small.source_id(small.OLD))
    assert host.apply(same)["changed"] is False
    assert small.snapshot(host.root / "releases" / small.source_id(small.OLD)) == code
    assert small.left_over(host.root) == [] and not (host.root / "backups").exists()


def test_the_old_layout_applies(host: Host) -> None:
    """Members begin with ./, folders are members, modes and owners are somebody's, the manifest is sha1 or sha256."""
    for algorithm, warnings in (("sha256", 0), ("sha1", 1)):
        listing = "".join(
            f"{hashlib.new(algorithm, text.encode()).hexdigest()}  ./{name}\n" for name, text in small.OLD.items()
        )
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for folder in (".", "./trainer", "./data", "./empty"):
                info = tarfile.TarInfo(folder)
                info.type, info.mode, info.uid, info.uname = tarfile.DIRTYPE, 0o2775, 1234, "somebody"
                tar.addfile(info)
            for name, text in [*small.OLD.items(), ("SYNC_MANIFEST.txt", listing)]:
                info = tarfile.TarInfo(f"./{name}")
                info.size, info.mtime, info.uid = len(text.encode()), small.MADE_AT, 1234
                info.mode = 0o775 if name.endswith(".sh") else 0o664
                tar.addfile(info, io.BytesIO(text.encode()))
        bundle = small.write(host.folder / f"{warnings}.tar.gz", gzip.compress(packed.getvalue()))
        found = host.apply(bundle)
        assert found["changed"] and sum("sha1" in line for line in found["lines"]) == warnings
        assert {**small.OLD, "SYNC_MANIFEST.txt": listing} == host.seen()
        assert (host.root / "code" / "empty").is_dir()
        modes = {path.stat().st_mode & 0o7777 for path in (host.root / "code").resolve().rglob("*")}
        assert modes == {0o755, 0o644}
        assert (host.root / "code" / "run.sh").stat().st_uid == os.getuid()
        content.check_release(host.root / "code", found["source_id"])


def test_byte_code_in_an_old_bundle_is_no_part_of_the_release(host: Host) -> None:
    files = {**small.OLD, "trainer/__pycache__/a.cpython-38.pyc": "old"}
    found = host.apply(small.pack(host.folder, files))
    assert host.apply(host.folder / "x.tar.gz")["changed"] is False
    (host.root / "code" / "trainer" / "__pycache__" / "a.cpython-38.pyc").write_text("made anew")
    assert content.check_release(host.root / "code", found["source_id"])
    assert host.apply(host.folder / "x.tar.gz")["changed"] is False


def test_a_refused_bundle_leaves_a_fresh_host_fresh(host: Host) -> None:
    files = {**small.OLD, "SYNC_MANIFEST.txt": "x"}
    bad = small.pack(host.folder, {**files, "data/later.txt": "later"}, "bad.tar.gz")
    data = gzip.decompress(bad.read_bytes()).replace(b"later\0", b"Later\0")
    small.write(bad, gzip.compress(data))
    with pytest.raises(InputError, match="not what its manifest says .*data/later.txt"):
        host.apply(bad)
    assert not host.root.exists()
    host.root.mkdir()
    with pytest.raises(InputError):
        host.apply(bad)
    assert list(host.root.iterdir()) == []
    host.apply(small.pack(host.folder, {**files, "data/later.txt": "later"}, "good.tar.gz"))


# --- which of two, and what was before


def test_an_older_bundle_is_refused_without_force(host: Host) -> None:
    host.apply(host.new)
    with pytest.raises(InputError) as caught:
        host.apply(host.old)
    assert str(caught.value) == (
        "the bundle old.tar.gz is of 2023-11-14 22:13:20 UTC, older than what is in use, of 2023-11-14 22:14:20 UTC; "
        "bring a newer one, or apply it all the same with --force"
    )
    assert host.seen() == small.NEW and small.left_over(host.root) == []
    assert not (host.root / "backups").exists(), "nothing was saved for it"
    assert host.apply(host.old, force=True)["changed"] and host.seen() == small.OLD


@pytest.mark.parametrize(("installed", "brought"), [(0, 5), (5, 0), (0, 0), (5, 5), (5, 6)])
def test_an_age_that_is_unknown_or_not_older_is_no_reason(host: Host, installed: int, brought: int) -> None:
    host.apply(small.pack(host.folder, small.OLD, "installed.tar.gz", installed))
    host.apply(small.pack(host.folder, small.NEW, "brought.tar.gz", brought))
    assert host.seen() == small.NEW


def test_rollbacks_go_back_one_by_one(host: Host) -> None:
    third = {**small.NEW, "third.txt": "3\n"}
    for bundle in (host.old, host.new, small.pack(host.folder, third, "third.tar.gz", NEWER)):
        host.apply(bundle)
    found = host.rollback()
    assert host.seen() == small.NEW and found["changed"] and found["source_id"] == small.source_id(small.NEW)
    assert not Path(found["backup"]).exists()
    host.rollback()
    assert host.seen() == small.OLD and small.left_over(host.root) == []
    with pytest.raises(InputError, match=r"there is no backup in .* \(there: none\)"):
        host.unchanged(host.rollback)
    assert host.apply(host.new)["changed"] and host.seen() == small.NEW
    host.rollback()
    assert host.seen() == small.OLD


def test_a_rollback_brings_back_what_users_put_there_also_when_the_release_was_pruned(host: Host) -> None:
    host.apply(host.old)
    (host.root / "code" / "own.jsonl").write_text("{}")
    (host.root / "code" / "trainer" / "a.py").write_text("print('edited')\n")
    host.apply(host.new)
    for path in (host.root / "releases").glob(f"{small.source_id(small.OLD)}*"):
        path.rename(host.folder / "gone")
    found = host.rollback()
    assert host.seen() == {**small.OLD, "own.jsonl": "{}", "trainer/a.py": "print('edited')\n"}
    assert content.check_release(host.root / "code", found["source_id"]), "as what it is, not as the release it was"


def test_nothing_to_roll_back_is_said(host: Host) -> None:
    with pytest.raises(InputError, match="no release is in use in .*host; apply a bundle there first"):
        host.rollback()
    assert not host.root.exists()
    host.apply(host.old)
    with pytest.raises(InputError, match="there is no backup"):
        host.unchanged(host.rollback)


def test_an_edited_release_is_replaced_and_kept(host: Host) -> None:
    host.apply(host.old)
    (host.root / "code" / "trainer" / "a.py").write_text("print('edited')\n")
    found = host.apply(host.old)
    assert found["changed"] and host.seen() == small.OLD and "it is kept in" in found["lines"][0]
    host.rollback()
    assert host.seen()["trainer/a.py"] == "print('edited')\n"


def test_the_release_of_a_plan_stays(host: Host) -> None:
    host.apply(host.old)
    host.layout.state.mkdir(parents=True)
    planned = small.source_id(small.OLD)
    host.layout.plan.write_text(json.dumps({"schema": 1, "source_id": planned, "status": "running"}))
    for number in range(release.KEPT + 2):
        host.apply(small.pack(host.folder, {"a.txt": str(number)}, f"{number}.tar.gz", NEWER))
    assert content.check_release(host.root / "releases" / planned, planned)
    names = [path.name for path in (host.root / "releases").iterdir() if path.name != ".lock"]
    assert len(names) == release.KEPT + 1


# --- looking only


def test_a_dry_run_names_every_file_and_leaves_no_trace(host: Host) -> None:
    request = apply.Request(host.layout, host.new)
    found = host.unchanged(lambda: apply.preview(request))
    assert found["changed"] and (found["added"], found["replaced"], found["removed"]) == (4, 0, 0)
    assert not host.root.exists()
    host.apply(host.old)
    found = host.unchanged(lambda: apply.preview(request))
    assert found["lines"] == [
        "would add data/new.txt", "would replace SYNC_MANIFEST.sha256", "would replace trainer/a.py",
        "would remove data/电场.txt",
        f"new.tar.gz would be applied as {small.source_id(small.NEW)}: 1 added, 2 replaced, 1 removed",
    ]  # fmt: skip
    assert host.apply(host.new)["added"] == 1
    assert host.unchanged(lambda: apply.preview(request))["changed"] is False
    with pytest.raises(InputError, match="older than what is in use"):
        host.unchanged(lambda: apply.preview(apply.Request(host.layout, host.old)))
    assert host.unchanged(lambda: apply.preview(apply.Request(host.layout, host.old, force=True)))["changed"]


# --- what was put in our way


def test_a_release_that_is_a_link_is_neither_used_nor_followed(host: Host) -> None:
    outside = Host(host.folder / "other")
    outside.apply(host.old)
    (host.root / "releases").mkdir(parents=True)
    planted = host.root / "releases" / small.source_id(small.OLD)
    planted.symlink_to(outside.root / "releases" / planted.name)
    (host.root / "code").symlink_to(f"releases/{planted.name}")
    before = small.snapshot(outside.root)
    assert host.apply(host.old)["changed"] and not planted.is_symlink() and host.seen() == small.OLD
    assert small.snapshot(outside.root) == before


def test_a_folder_of_the_tree_that_became_a_link_is_an_edit(host: Host) -> None:
    host.apply(host.old)
    (host.root / "code" / "trainer").rename(host.folder / "trainer")
    (host.root / "code" / "trainer").symlink_to(host.folder / "trainer")
    assert host.apply(host.old)["changed"], "what lies behind it is not looked at"
    assert not (host.root / "code" / "trainer").is_symlink() and host.seen() == small.OLD


def test_the_project_root_may_be_a_link_and_no_file(host: Host) -> None:
    (host.folder / "real").mkdir()
    (host.folder / "link").symlink_to("real")
    apply.apply(apply.Request(Layout(host.folder / "link"), host.old))
    assert small.seen(host.folder / "real") == small.OLD
    host.root.write_text("a file")
    with pytest.raises(InputError, match="the project root .*host is no folder; name another"):
        host.apply(host.old)
    assert host.root.read_text() == "a file"


# --- where to


def test_staging_and_backups_may_lie_elsewhere(host: Host) -> None:
    (host.folder / "staging").mkdir()
    places = {"staging_dir": host.folder / "staging", "backup_root": host.folder / "saved"}
    host.apply(host.old, **places)
    found = host.apply(host.new, **places)
    assert Path(found["backup"]).parent == host.folder / "saved" and not (host.root / "backups").exists()
    assert list((host.folder / "staging").iterdir()) == []
    with pytest.raises(InputError, match="there is no backup in .*backups"):
        host.rollback()
    apply.rollback(host.layout, places["staging_dir"], places["backup_root"])
    assert host.seen() == small.OLD


def test_what_was_staged_is_kept_where_that_is_asked_for(host: Host) -> None:
    host.apply(host.new)
    with pytest.raises(InputError, match="older") as caught:
        host.apply(host.old, keep_staging=True)
    (line,) = caught.value.lines
    kept = Path(line.rpartition(" ")[2])
    assert line.startswith("what was staged is kept in ") and kept.parent == host.root / "releases"
    assert (kept / "trainer" / "a.py").read_text() == small.OLD["trainer/a.py"]
    assert small.left_over(host.root) == [kept.name]
    host.apply(host.new)
    assert kept.is_dir(), "nobody sweeps it"


# --- two at once, and the disk


def apply_in_process(root: Path, bundle: Path, answers: Any) -> None:
    try:
        answers.put(apply.apply(apply.Request(Layout(root), bundle, force=True))["changed"])
    except TrainerError as problem:
        answers.put(str(problem))


@pytest.mark.parametrize("names", [("new", "new", "new"), ("old", "new", "old")])
def test_several_at_once_end_with_one_whole_tree(host: Host, names: tuple[str, ...]) -> None:
    host.apply(small.pack(host.folder, {"first.txt": "1"}, "first.tar.gz", 0))
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=apply_in_process, args=(host.root, getattr(host, n), answers)) for n in names]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert set(found) <= {True, False}
    assert len(set(names)) > 1 or sorted(found) == [False, False, True], "of the same bundle one changes something"
    assert host.seen() in [{"old": small.OLD, "new": small.NEW}[name] for name in names]
    assert small.left_over(host.root) == []


def test_a_lock_that_is_held_too_long_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.apply(host.old)
    monkeypatch.setattr(release, "LOCK_SECONDS", 0.0)
    with (host.root / "releases" / ".lock").open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(Interrupted, match="another run has been publishing"):
            host.apply(host.new)
    assert host.seen() == small.OLD and small.left_over(host.root) == []
    host.apply(host.new)


@pytest.mark.parametrize("name", ["mkdir", "open", "write", "fsync", "rename", "symlink", "replace", "link"])
@pytest.mark.parametrize("number", [13, 28, 30, 122])  # not permitted, full, read-only, over quota
def test_a_disk_that_refuses_is_said_and_nothing_is_left(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    host.apply(host.old)
    before = host.seen()

    def refused(*words: Any, **_: Any) -> Any:
        if name == "open" and not words[1] & os.O_CREAT:
            return real(*words, **_)
        raise OSError(number, os.strerror(number))

    real = getattr(os, name)
    with monkeypatch.context() as patched, pytest.raises(HostUnfit, match=os.strerror(number)) as caught:
        patched.setattr(os, name, refused)
        host.apply(host.new)
    assert caught.value.exit_code == 4 and host.seen() == before and small.left_over(host.root) == []
    assert not (host.root / "releases" / small.source_id(small.NEW)).exists(), "no release that nobody uses"
    host.apply(host.new)
    assert host.seen() == small.NEW
