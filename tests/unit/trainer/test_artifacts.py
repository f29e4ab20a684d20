"""What comes home: the run folder, the archive, and the refusal of everything that is not what the host sent."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import artifacts
from trainer.errors import InputError, Interrupted

Members = list[tuple[tarfile.TarInfo, bytes]]
LOG = "logs/train_style.log"
FILES = {"state/plan.json": b'{"schema": 1}', LOG: b"step 1\n", "adapter/adapter_style/a.json": b"{}"}


@pytest.fixture
def host(line: Any) -> Any:
    """A host on which a whole plan has ended."""
    line.record_plan(outcomes={"style": {"status": "passed", "message": "the gate is open", "exit_code": 0}})
    line.finish()
    return line


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def send(host: Any, folder: Path, home: Path) -> dict[str, Any]:
    """Collect, export and receive, as the playbook does."""
    collected = artifacts.collect(host.layout)
    sent = artifacts.export(host.layout, collected["run"], folder / "export.tar")
    received = artifacts.receive(folder / "export.tar", sent["sha256"], home)
    assert received["export_id"] == collected["export_id"]
    return received


# --- collecting -----------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_summary_reports_logs_issues_and_a_manifest(host: Any) -> None:
    found = artifacts.collect(host.layout)
    run = host.layout.runs / found["run"]
    files = tree(run)
    assert {"TRAINING_SUMMARY.md", "ISSUES.md", "issues.jsonl", "MANIFEST.sha256"} <= set(files)
    assert {"eval_report_style.md", "eval_report_all.json", "logs/train_style_20261122T101010.log"} <= set(files)
    listed = dict(reversed(row.split("  ")) for row in files.pop("MANIFEST.sha256").decode().splitlines())
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert run.stat().st_mode & 0o777 == 0o755


def test_collecting_twice_gives_the_same_run(host: Any) -> None:
    first = artifacts.collect(host.layout)
    assert artifacts.collect(host.layout) == first
    assert [p.name for p in host.layout.runs.iterdir()] == [first["run"]]


def test_a_new_result_or_a_damaged_run_folder_gives_a_new_run(host: Any) -> None:
    first = artifacts.collect(host.layout)
    host.finish("style", status="missed")
    second = artifacts.collect(host.layout)
    assert second["run"] != first["run"] and second["export_id"] != first["export_id"]
    (host.layout.runs / second["run"] / "TRAINING_SUMMARY.md").write_text("edited")
    third = artifacts.collect(host.layout)
    assert third["run"] not in (first["run"], second["run"])
    assert len(list(host.layout.runs.iterdir())) == 3, "runs before are kept"


def test_an_export_leaves_out_locks_links_and_hidden_files(host: Any, tmp_path: Path) -> None:
    found = artifacts.collect(host.layout)
    host.layout.lock.touch()
    (host.layout.adapters / ".adapter_style.previous").mkdir()
    (host.layout.adapters / ".adapter_style.previous" / "old.json").touch()
    (host.layout.logs / "link.log").symlink_to("/etc/passwd")
    assert artifacts.collect(host.layout)["export_id"] != "", "still packable"
    artifacts.export(host.layout, found["run"], tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as tar:
        names = tar.getnames()
    assert names[0] == "MANIFEST.sha256" and sorted(names[1:]) == names[1:]
    assert not [n for n in names if "lock" in n or "link" in n or "previous" in n]
    assert "adapter/adapter_style/adapter_model.safetensors" in names


@pytest.mark.parametrize("run", ["run_19990101_000000", "../state", "run_", "."])
def test_a_run_that_is_not_there_cannot_be_exported(host: Any, tmp_path: Path, run: str) -> None:
    artifacts.collect(host.layout)
    with pytest.raises(InputError, match="there is no run .* collect first"):
        artifacts.export(host.layout, run, tmp_path / "x.tar")


# --- the way home ---------------------------------------------------------------------------------------------------


def test_everything_comes_home_unchanged(host: Any, tmp_path: Path) -> None:
    home = tmp_path / "home" / "outputs"
    received = send(host, tmp_path, home)
    there = {name: text for name, text in tree(host.layout.outputs).items() if not name.startswith("cache/")}
    here = tree(home)
    assert here.pop(".collected.json") and here == there
    assert [text.split(":")[0] for text in received["lines"]] == ["Summary", "Adapters", "Best model"]
    summary = received["lines"][0].removeprefix("Summary: ")
    assert summary.startswith(str(home)) and Path(summary).is_file()
    assert artifacts.imported(home) == received
    assert not [p for p in home.iterdir() if p.name.startswith(".incoming")]


def test_what_is_there_is_noticed_when_it_changes(host: Any, tmp_path: Path) -> None:
    home = tmp_path / "outputs"
    assert artifacts.imported(home) == {"export_id": "", "lines": []}
    received = send(host, tmp_path, home)
    weights = home / "adapter" / "adapter_style" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(b"other")
    assert artifacts.imported(home)["export_id"] == ""
    weights.unlink()
    assert artifacts.imported(home)["export_id"] == ""
    weights.write_bytes(before)
    assert artifacts.imported(home)["export_id"] == received["export_id"]


def test_a_second_receive_replaces_and_keeps_what_it_does_not_bring(host: Any, tmp_path: Path) -> None:
    home = tmp_path / "outputs"
    first = send(host, tmp_path, home)
    (home / "adapter" / "adapter_style" / "stale.json").write_text("of an earlier adapter")
    (home / "own.txt").write_text("the user's")
    host.finish("style", status="missed")
    second = send(host, tmp_path, home)
    assert second["export_id"] != first["export_id"] and artifacts.imported(home) == second
    assert json.loads((home / "state" / "style.json").read_text())["status"] == "missed"
    assert not (home / "adapter" / "adapter_style" / "stale.json").exists(), "an adapter is replaced as a whole"
    assert (home / "own.txt").read_text() == "the user's" and len(list((home / "training_sync").iterdir())) == 2
    assert not list(home.rglob(".*.old"))


def test_the_closing_lines_speak_of_this_export_only(line: Any, tmp_path: Path) -> None:
    home = tmp_path / "outputs"
    old = home / "adapter" / "adapter_writing"
    old.mkdir(parents=True)
    (old / "adapter_model.safetensors").write_text("of a host that is gone")
    line.record_plan("sample")
    line.finish("sample")
    lines = send(line, tmp_path, home)["lines"]
    assert "adapter_sample" in lines[1] and "adapter_writing" not in lines[1]
    assert old.is_dir(), "it is not thrown away either"


@pytest.mark.parametrize("place", ["adapter/adapter_style", "state/style.json", "training_sync"])
def test_a_failure_in_the_middle_leaves_the_former_files(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    home = tmp_path / "outputs"
    received = send(host, tmp_path, home)
    before = tree(home)
    host.finish(status="missed")
    real = os.replace

    def full(old: Any, new: Any) -> None:
        if place in str(new):
            raise OSError(28, "No space left on device")
        real(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            send(host, tmp_path, home)
    assert tree(home) == before
    assert artifacts.imported(home) == received
    assert send(host, tmp_path, home)["export_id"] != received["export_id"]


def test_a_failure_of_the_first_receive_leaves_nothing_behind(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, real = tmp_path / "outputs", os.replace

    def full(old: Any, new: Any) -> None:
        if "state/style" in str(new):
            raise OSError(28, "No space left on device")
        real(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            send(host, tmp_path, home)
    assert tree(home) == {} and artifacts.imported(home)["export_id"] == ""


def test_a_lock_without_a_plan_is_in_nobodys_way(host: Any, tmp_path: Path) -> None:
    lock = tmp_path / "outputs" / "state" / "supervisor.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert artifacts.imported(tmp_path / "outputs") != send(host, tmp_path, tmp_path / "outputs")
    host.finish("style", status="missed")
    received = send(host, tmp_path, tmp_path / "outputs")
    assert artifacts.imported(tmp_path / "outputs") == received, "a copy stays one"


def test_a_hosts_own_outputs_are_home_already_and_are_never_marked_as_a_copy(host: Any, tmp_path: Path) -> None:
    host.layout.lock.touch()
    before = tree(host.layout.outputs)
    received = send(host, tmp_path, host.layout.outputs)
    after = tree(host.layout.outputs)
    assert set(before) <= set(after) and not (host.layout.outputs / artifacts.COLLECTED).exists()
    assert received["lines"][0].startswith(f"Summary: {host.layout.outputs}")
    host.finish("style", status="missed")
    sent = (tmp_path / "export.tar").read_bytes()
    with pytest.raises(InputError, match="a host trains in .* itself; name another folder"):
        artifacts.receive(tmp_path / "export.tar", hashlib.sha256(sent).hexdigest(), host.layout.outputs)


# --- hostile archives -----------------------------------------------------------------------------------------------


def regular(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def manifest_of(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


def members(files: dict[str, bytes] | None = None, manifest: bytes | None = None) -> Members:
    files = FILES if files is None else files
    text = manifest_of(files) if manifest is None else manifest
    return [regular("MANIFEST.sha256", text), *(regular(name, files[name]) for name in sorted(files))]


def arrive(folder: Path, found: Members | bytes) -> dict[str, Any]:
    """Receive an archive of these members (or bytes) in an empty folder."""
    raw = io.BytesIO()
    if isinstance(found, bytes):
        raw.write(found)
    else:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for info, content in found:
                tar.addfile(info, io.BytesIO(content))
    folder.mkdir(exist_ok=True)
    (folder / "export.tar").write_bytes(raw.getvalue())
    return artifacts.receive(folder / "export.tar", hashlib.sha256(raw.getvalue()).hexdigest(), folder / "home")


def with_extra(extra: tuple[tarfile.TarInfo, bytes]) -> Callable[[], Members]:
    return lambda: [*members(), extra]


def instead(name: str, extra: tuple[tarfile.TarInfo, bytes]) -> Callable[[], Members]:
    return lambda: [extra if info.name == name else (info, content) for info, content in members()]


def listed(name: str, content: bytes = b"x") -> Callable[[], Members]:
    """The manifest names the member as it should be; only the name itself is hostile."""
    return lambda: members({**FILES, name: content})


def manifest_with(line: str) -> Callable[[], Members]:
    return lambda: members(manifest=manifest_of(FILES) + line.encode() + b"\n")


HEX = "0" * 64
HOSTILE: dict[str, Callable[[], Members]] = {
    "symlink": instead(LOG, special(LOG, tarfile.SYMTYPE, "/etc/passwd")),
    "hard link": instead(LOG, special(LOG, tarfile.LNKTYPE, "state/plan.json")),
    "fifo": instead(LOG, special(LOG, tarfile.FIFOTYPE)),
    "device": instead(LOG, special(LOG, tarfile.CHRTYPE)),
    "folder": with_extra(special("logs/more", tarfile.DIRTYPE)),
    "extra symlink": with_extra(special("logs/more", tarfile.SYMTYPE, "..")),
    "member that is not in the manifest": with_extra(regular("logs/more.log", b"x")),
    "member twice": with_extra(regular(LOG, FILES[LOG])),
    "manifest twice": lambda: [members()[0], *members()],
    "wrong content": instead(LOG, regular(LOG, b"step 2\n")),
    "shorter content": instead(LOG, regular(LOG, b"step")),
    "missing member": lambda: members()[:-1],
    "nothing but a manifest": lambda: members()[:1],
    "no manifest": lambda: members()[1:],
    "manifest not first": lambda: [*members()[1:], members()[0]],
    "empty manifest": lambda: [regular("MANIFEST.sha256", b"")],
    "no member at all": lambda: [],
    "absolute": listed("/tmp/stagegate-hostile"),
    "parent": listed("logs/../../hostile"),
    "parent first": listed("../hostile"),
    "dot": listed("logs/./hostile"),
    "hidden": listed("logs/.hostile"),
    "the marker of copies": listed(".collected.json"),
    "another folder": listed("cache/x.json"),
    "top level": listed("logs"),
    "file and folder of one name": listed(f"{LOG}/x"),
    "space": listed("logs/a b"),
    "backslash": listed("logs/a\\b"),
    "garbage line": manifest_with("garbage"),
    "short hash": manifest_with(f"{'0' * 40}  logs/x"),
    "capital hash": manifest_with(f"{'A' * 64}  logs/x"),
    "binary mark": manifest_with(f"{HEX} *logs/x"),
    "empty line": manifest_with(""),
    "entry without a member": manifest_with(f"{HEX}  logs/zzz.log"),
    "entry twice": manifest_with(f"{hashlib.sha256(FILES['state/plan.json']).hexdigest()}  state/plan.json"),
    "byte order mark": lambda: members(manifest=b"\xef\xbb\xbf" + manifest_of(FILES)),
    "carriage returns": lambda: members(manifest=manifest_of(FILES).replace(b"\n", b"\r\n")),
    "no last newline": lambda: members(manifest=manifest_of(FILES).rstrip(b"\n")),
    "another order": lambda: members(manifest=b"".join(reversed(manifest_of(FILES).splitlines(keepends=True)))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_taken_over(tmp_path: Path, kind: str) -> None:
    with pytest.raises(Interrupted) as caught:
        arrive(tmp_path, HOSTILE[kind]())
    assert caught.value.exit_code == 7 and "\n" not in str(caught.value)
    assert list((tmp_path / "home").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export.tar", "home"]
    assert not Path("/tmp/stagegate-hostile").exists()


HARMLESS: dict[str, Callable[[], Members]] = {
    "as it is": members,
    "one more that is listed": listed("logs/more.log"),
    "an empty file": listed("logs/empty.log", b""),
    "a deep folder": listed("adapter/adapter_style/a/b/c.json"),
    "dots and dashes": listed("logs/a-b.c_d..e"),
    "beside a file of a longer name": listed(f"{LOG}x"),
    "one file": lambda: members({LOG: b"x"}),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_the_harmless_twin_of_each_is_taken_over(tmp_path: Path, kind: str) -> None:
    arrive(tmp_path, HARMLESS[kind]())
    found = tree(tmp_path / "home")
    assert found.pop(".collected.json") and LOG in found
    assert found == {info.name: content for info, content in HARMLESS[kind]() if info.name != "MANIFEST.sha256"}


@pytest.mark.parametrize("kept", [0, 100, 512, 700, 1024, 2000])
def test_a_truncated_archive_is_refused(tmp_path: Path, kept: int) -> None:
    arrive(tmp_path / "whole", members())
    whole = (tmp_path / "whole" / "export.tar").read_bytes()
    with pytest.raises(Interrupted):
        arrive(tmp_path, whole[:kept])
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("content", [b"no tar at all", b"\x1f\x8b\x08", b"\0" * 10240])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Interrupted, match="collect again"):
        arrive(tmp_path, content)


def test_an_archive_that_is_not_the_one_that_was_sent_is_not_opened(host: Any, tmp_path: Path) -> None:
    run = artifacts.collect(host.layout)["run"]
    sent = artifacts.export(host.layout, run, tmp_path / "export.tar")
    with pytest.raises(Interrupted, match=r"the archive arrived as \w{12}, the host sent 000000000000; collect again"):
        artifacts.receive(tmp_path / "export.tar", HEX, tmp_path / "home")
    assert not (tmp_path / "home").exists()
    artifacts.receive(tmp_path / "export.tar", sent["sha256"], tmp_path / "home")


def test_a_link_that_somebody_put_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep.txt").write_text("mine")
    (tmp_path / "home" / "adapter").mkdir(parents=True)
    (tmp_path / "home" / "adapter" / "adapter_style").symlink_to(outside)
    arrive(tmp_path, members())
    assert tree(outside) == {"keep.txt": b"mine"}
    assert not (tmp_path / "home" / "adapter" / "adapter_style").is_symlink()
