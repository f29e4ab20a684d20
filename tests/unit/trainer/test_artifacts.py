"""What a host sends home: the run folder, the listing, and pieces of what is listed, also while a plan runs."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.road import MIB, exported, large, tree
from trainer import artifacts, listing
from trainer.errors import InputError, Interrupted

LOG = "logs/train_style_20261122T101010.log"
TOKEN = "0123abcd"


@pytest.fixture
def host(line: Any) -> Any:
    """A host on which a whole plan has ended."""
    line.record_plan(outcomes={"style": {"status": "passed", "message": "the gate is open", "exit_code": 0}})
    line.finish()
    return line


def listed(host: Any, found: dict[str, Any]) -> list[listing.Entry]:
    """The entries of the listing that a collect has written."""
    text = host.layout.cache / f"export_{found['export_id']}" / "listing"
    assert listing.id_of(text.read_bytes()) == found["export_id"]
    return listing.parse(text.read_bytes(), listing.Caps(1 << 40, 1 << 40))


def piece(host: Any, found: dict[str, Any], *names: str, offset: int = 0, most: int = 1 << 40) -> tuple[bytes, str]:
    """(content, hash of what is before) of an export of these files."""
    places = [entry.path for entry in listed(host, found)]
    numbers = ",".join(str(places.index(name)) for name in names)
    answer = artifacts.export(host.layout, found["export_id"], numbers, offset, most, TOKEN)
    content = (host.layout.cache / f"export_{found['export_id']}" / f"piece-{TOKEN}").read_bytes()
    assert answer["bytes"] == len(content)
    return content, answer["before"]


# --- the run folder -------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_summary_reports_logs_issues_and_a_manifest(host: Any) -> None:
    found = artifacts.collect(host.layout)
    run = host.layout.runs / found["run"]
    files = tree(run)
    assert {"TRAINING_SUMMARY.md", "ISSUES.md", "issues.jsonl", "MANIFEST.sha256"} <= set(files)
    assert {"eval_report_style.md", "eval_report_all.json", LOG} <= set(files)
    rows = dict(reversed(row.split("  ")) for row in files.pop("MANIFEST.sha256").decode().splitlines())
    assert rows == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert run.stat().st_mode & 0o777 == 0o755


def test_collecting_twice_gives_the_same_run(host: Any) -> None:
    first = artifacts.collect(host.layout)
    assert artifacts.collect(host.layout) == first == artifacts.collect(host.layout, anew=True)
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


def test_two_that_collect_at_once_make_two_runs(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def other_was_quicker(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", real)
        (target / "logs").mkdir(parents=True)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", other_was_quicker)
    found = artifacts.collect(host.layout)
    assert found["run"].endswith("_2") and len(list(host.layout.runs.iterdir())) == 2


# --- the listing ----------------------------------------------------------------------------------------------------


def test_everything_is_listed_as_it_is(host: Any) -> None:
    found = artifacts.collect(host.layout)
    content = exported(host.layout)
    entries = listed(host, found)
    assert {e.path: e.sha256 for e in entries} == {n: hashlib.sha256(c).hexdigest() for n, c in content.items()}
    assert {e.path: e.size for e in entries} == {name: len(c) for name, c in content.items()}
    assert (found["files"], found["bytes"]) == (len(content), sum(map(len, content.values())))


def test_locks_links_and_hidden_files_stay(host: Any) -> None:
    before = artifacts.collect(host.layout)["export_id"]
    host.layout.lock.touch()
    (host.layout.adapters / ".adapter_style.previous").mkdir()
    (host.layout.adapters / ".adapter_style.previous" / "old.json").touch()
    (host.layout.logs / "link.log").symlink_to("/etc/passwd")
    os.mkfifo(host.layout.logs / "pipe.log")
    assert artifacts.collect(host.layout)["export_id"] == before
    (host.layout.logs / "more.log").touch()
    assert artifacts.collect(host.layout)["export_id"] != before


def test_a_large_file_is_hashed_once_until_it_changes_or_anew_is_asked(host: Any) -> None:
    path = large(host.layout, 2)
    long_ago = time.time() - 60
    os.utime(path, (long_ago, long_ago))
    first = artifacts.collect(host.layout)["export_id"]
    memory = host.layout.cache / "export_hashes.json"
    known = json.loads(memory.read_text())
    assert list(known["files"]) == ["adapter/adapter_style/adapter_model.safetensors"]
    known["files"]["adapter/adapter_style/adapter_model.safetensors"][-1] = "f" * 64
    memory.write_text(json.dumps(known))
    assert artifacts.collect(host.layout)["export_id"] != first, "the memory is used"
    assert artifacts.collect(host.layout, anew=True)["export_id"] == first
    path.write_bytes(b"other")
    assert artifacts.collect(host.layout)["export_id"] != first


def test_an_adapter_that_is_swapped_while_it_is_hashed_is_listed_as_a_whole(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real, swaps = host.layout.adapters / "adapter_style", artifacts._hash, []

    def swap(path: Path, *more: Any) -> str:
        if path.parent == folder and path.name == "adapter_model.safetensors" and len(swaps) < swap_times:
            swaps.append(path)
            for file in folder.iterdir():
                text = file.read_text()
                file.unlink()
                file.write_text(f"{text} {len(swaps)}")
        return real(path, *more)

    swap_times = 2
    monkeypatch.setattr(artifacts, "_hash", swap)
    entries = {e.path: e.sha256 for e in listed(host, artifacts.collect(host.layout))}
    for file in folder.iterdir():
        assert entries[f"adapter/adapter_style/{file.name}"] == hashlib.sha256(file.read_bytes()).hexdigest()
    swap_times, swaps = 99, []
    with pytest.raises(Interrupted, match="keep changing; collect again"):
        artifacts.collect(host.layout)


# --- pieces ---------------------------------------------------------------------------------------------------------


def test_a_piece_is_the_files_one_behind_the_other(host: Any) -> None:
    found = artifacts.collect(host.layout)
    names = ["adapter/adapter_style/adapter_model.safetensors", LOG, "state/plan.json"]
    content, before = piece(host, found, *names)
    assert content == b"".join((host.layout.outputs / name).read_bytes() for name in names)
    assert before == hashlib.sha256(b"").hexdigest()


def test_a_piece_of_one_file_goes_on_behind_an_offset(host: Any) -> None:
    path = large(host.layout, 3)
    found = artifacts.collect(host.layout)
    name = path.relative_to(host.layout.outputs).as_posix()
    content, before = piece(host, found, name, offset=MIB + 5, most=100)
    assert content == path.read_bytes()[MIB + 5 : MIB + 105]
    assert before == hashlib.sha256(path.read_bytes()[: MIB + 5]).hexdigest()
    assert piece(host, found, name, offset=3 * MIB)[0] == b""
    for places, offset in (("0-1", 1), ("0", 1 << 40)):
        with pytest.raises(InputError, match="--offset"):
            artifacts.export(host.layout, found["export_id"], places, offset, 10, TOKEN)


def test_what_a_running_plan_writes_comes_as_it_was_listed(host: Any) -> None:
    events, state = host.layout.events, host.layout.stage("style")
    events.write_text('{"event": 1}\n')
    found = artifacts.collect(host.layout)
    was = {"state/events.jsonl": events.read_bytes(), "state/style.json": state.read_bytes()}
    with events.open("a") as stream:
        stream.write('{"event": 2}\n')
    state.write_text("{}")
    assert piece(host, found, *was)[0] == b"".join(was.values())


def test_a_file_that_became_shorter_does_not_shift_the_others(host: Any) -> None:
    found = artifacts.collect(host.layout)
    size = (host.layout.outputs / LOG).stat().st_size
    (host.layout.outputs / LOG).write_bytes(b"x")
    plan = host.layout.plan.read_bytes()
    assert piece(host, found, LOG, "state/plan.json")[0] == b"x" + bytes(size - 1) + plan


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "gone"])
def test_what_is_no_file_any_more_is_not_read(host: Any, kind: str) -> None:
    found = artifacts.collect(host.layout)
    assert piece(host, found, LOG)[0] == b"step 1\n"
    path = host.layout.outputs / LOG
    path.unlink()
    {"link": lambda: path.symlink_to("/etc/passwd"), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir,
     "gone": lambda: None}[kind]()  # fmt: skip
    with pytest.raises((InputError, OSError)):
        piece(host, found, LOG)


@pytest.mark.parametrize(
    ("export_id", "numbers", "token", "words"),
    [
        ("f" * 64, "0", TOKEN, "there is no export ffffffffffff .* collect first"),
        ("../state", "0", TOKEN, "'../state' is not the id of an export"),
        (None, "999", TOKEN, "'999' names no file"),
        (None, "1-0", TOKEN, "'1-0' names no file"),
        (None, "0,", TOKEN, "'' names no file"),
        (None, "0", "../../x", "'../../x' of a piece is not 8 hex digits"),
    ],
)
def test_an_export_of_something_else_is_refused(
    host: Any, export_id: str | None, numbers: str, token: str, words: str
) -> None:
    found = artifacts.collect(host.layout)["export_id"]
    artifacts.export(host.layout, found, "0-1,2", 0, 10, TOKEN)
    with pytest.raises(InputError, match=words):
        artifacts.export(host.layout, export_id or found, numbers, 0, 10, token)


def test_the_end_of_an_export_leaves_the_piece_of_another_controller(host: Any) -> None:
    found = artifacts.collect(host.layout)["export_id"]
    folder = host.layout.cache / f"export_{found}"
    for token in ("0" * 8, "1" * 8):
        artifacts.export(host.layout, found, "0", 0, 10, token)
    artifacts.end_export(host.layout, found, "0" * 8)
    assert not (folder / "piece-00000000").exists() and (folder / "piece-11111111").exists()
    artifacts.end_export(host.layout, found, "1" * 8)
    assert not folder.exists()


def test_old_exports_go_and_young_ones_stay(host: Any) -> None:
    for name, age in (("export_old", 2 * 86400), ("export_young", 60)):
        (host.layout.cache / name).mkdir(parents=True)
        os.utime(host.layout.cache / name, (time.time() - age,) * 2)
    artifacts.collect(host.layout)
    assert [p.name for p in sorted(host.layout.cache.glob("export_[oy]*"))] == ["export_young"]
