"""Publishing: each unit wholly old or wholly new, whatever happens in the middle."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.road import tree
from trainer import publication
from trainer.errors import Interrupted
from trainer.landing import Landing, opened
from trainer.listing import Entry

OLD = {
    "adapter/a/config.json": b"old", "adapter/a/stale.json": b"stale", "logs/x.log": b"old", "state/plan.json": b"old",
}  # fmt: skip
NEW = {
    "adapter/a/config.json": b"new", "adapter/a/more.json": b"more", "adapter/b/config.json": b"b",
    "logs/x.log": b"new", "state/plan.json": b"new",
}  # fmt: skip
UNITS = ["adapter/a", "adapter/b", "logs/x.log", "state/plan.json"]


def entries_of(files: dict[str, bytes]) -> list[Entry]:
    return [Entry(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in sorted(files.items())]


def land(landing: Landing, files: dict[str, bytes]) -> list[Entry]:
    """Put the content of these files into the landing folder as verified objects."""
    entries = entries_of(files)
    for entry in entries:
        landing.object(entry).write_bytes(files[entry.path])
        landing.verified.add(entry.sha256)
    return entries


def publish(home: Path, files: dict[str, bytes], export_id: str = "e" * 64) -> list[str]:
    with opened(home) as landing:
        publication.finish(landing)
        return publication.publish(landing, land(landing, files), export_id)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Outputs that were published once, with a file of the user's."""
    publish(tmp_path, OLD, "0" * 64)
    (tmp_path / "own.txt").write_text("mine")
    return tmp_path


def units(found: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    return {unit: {n: c for n, c in found.items() if n == unit or n.startswith(f"{unit}/")} for unit in UNITS}


def test_units_are_replaced_and_the_rest_stays(home: Path) -> None:
    publish(home, NEW)
    assert tree(home) == {**NEW, "own.txt": b"mine"}
    assert publication.imported(home)["export_id"] == "e" * 64
    assert not (home / ".incoming").exists() and not list(home.rglob(".*.old"))


def test_leftovers_of_older_versions_go_with_a_success(home: Path) -> None:
    (home / ".incoming-a1b2c3").mkdir()
    (home / "adapter" / ".a.old").mkdir()
    publish(home, NEW)
    assert not (home / ".incoming-a1b2c3").exists() and not (home / "adapter" / ".a.old").exists()


def test_what_is_the_same_is_not_touched(home: Path) -> None:
    stamps = {name: (home / name).stat().st_ino for name in OLD}
    publish(home, {**OLD, "logs/x.log": b"new"})
    after = {name: (home / name).stat().st_ino for name in OLD}
    assert {name for name in OLD if after[name] != stamps[name]} == {"logs/x.log"}


def test_equal_files_of_two_places_are_two_files(home: Path) -> None:
    publish(home, {"logs/x.log": b"same", "logs/y.log": b"same"})
    (home / "logs" / "y.log").write_bytes(b"edited")
    assert (home / "logs" / "x.log").read_bytes() == b"same"


@pytest.mark.parametrize("place", UNITS)
def test_a_failure_in_the_middle_leaves_the_former_files(
    home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    before, real = tree(home), os.replace

    def full(old: Any, new: Any) -> None:
        if str(new).endswith(place):
            raise OSError(28, "No space left on device")
        real(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            publish(home, NEW)
    assert tree(home) == before and publication.imported(home)["export_id"] == "0" * 64
    publish(home, NEW)
    assert tree(home) == {**NEW, "own.txt": b"mine"}


class Killed(BaseException):
    """The process is gone: nothing that would run after it runs."""


LAST_STEP = 15


@pytest.mark.parametrize("step", range(LAST_STEP + 1))
def test_a_kill_at_any_step_leaves_whole_units_and_the_next_finishes(
    home: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    calls = [0]

    def counted(real: Any) -> Any:
        def call(*words: Any, **named: Any) -> Any:
            if calls[0] == step:
                raise Killed
            calls[0] += 1
            return real(*words, **named)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", counted(os.replace))
        patched.setattr(Path, "rename", counted(Path.rename))
        patched.setattr(publication, "remove", counted(publication.remove))
        patched.setattr(publication, "_switch_back", lambda *words: (_ for _ in ()).throw(Killed))
        try:
            publish(home, NEW)
            finished = True
        except Killed:
            finished = False
    assert finished is (step == LAST_STEP), "all steps and no more are tried"
    old, new, found = units(OLD), units(NEW), units(tree(home))
    for unit in UNITS:
        aside = (home / unit).with_name(f".{Path(unit).name}.old")
        moved_aside = unit.startswith("adapter/") and not found[unit] and aside.exists()
        assert found[unit] in (old[unit], new[unit]) or moved_aside, unit
    if (home / ".incoming" / "journal.json").exists() or finished:
        assert publication.imported(home)["export_id"] == "e" * 64, "whoever looks finishes"
    else:
        assert found == old and publication.imported(home)["export_id"] == "0" * 64
        publish(home, NEW)
    assert tree(home) == {**NEW, "own.txt": b"mine"}
    assert not list(home.rglob(".*.old")) and not (home / ".incoming").exists()


def test_what_has_not_arrived_is_never_published(home: Path) -> None:
    before = tree(home)
    with opened(home) as landing:
        entries = land(landing, NEW)
        landing.verified.discard(entries[0].sha256)
        with pytest.raises(Interrupted, match="adapter/a/config.json has not arrived"):
            publication.publish(landing, entries, "e" * 64)
        assert tree(home) == before
        landing.verified.add(entries[0].sha256)
        publication.publish(landing, entries, "e" * 64)


def test_a_link_that_somebody_put_in_the_way_is_replaced_and_not_followed(home: Path, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "config.json").write_text("mine")
    (home / "adapter" / "b").symlink_to(outside)
    publish(home, NEW)
    assert tree(outside) == {"config.json": b"mine"} and not (home / "adapter" / "b").is_symlink()


ODD_REPORT = {
    "schema": 1, "gate": [], "evaluations": 3, "fingerprint": "x", "plan_id": 1, "attempt": {}, "stage": "style",
    "adapter": "adapter_style",
}  # fmt: skip


@pytest.mark.parametrize("report", ['{"schema": 1}', "[" * 100_000, json.dumps(ODD_REPORT)])
def test_reports_that_make_no_sense_do_not_keep_the_files_away(home: Path, report: str) -> None:
    state = '{"schema": 1, "stage": "style", "status": "passed", "fingerprint": "x", "plan_id": 1, "attempt": {}}'
    strange = {
        "adapter/adapter_style/eval_report_style.json": report.encode(), "state/style.json": state.encode(),
        "logs/issues.jsonl": b"[" * 100_000, "training_sync/run_1/TRAINING_SUMMARY.md": b"x",
    }  # fmt: skip
    lines = publish(home, strange)
    assert lines[0].startswith(f"Summary: {home}/training_sync/run_1") and all(line.isprintable() for line in lines)
    assert strange.items() <= tree(home).items()


def test_the_closing_lines_speak_of_this_export_only(home: Path) -> None:
    weights = "adapter_model.safetensors"
    publish(home, {f"adapter/adapter_writing/{weights}": b"of a host that is gone"})
    lines = publish(home, {f"adapter/adapter_sample/{weights}": b"new"})
    assert "adapter_sample" in lines[1] and "adapter_writing" not in lines[1]
    assert (home / "adapter" / "adapter_writing").is_dir(), "it is not thrown away either"


def test_what_was_published_is_noticed_when_it_changes(home: Path, tmp_path_factory: Any) -> None:
    assert publication.imported(tmp_path_factory.mktemp("nothing")) == {"export_id": "", "lines": []}
    log = home / "logs" / "x.log"
    for change in (lambda: log.write_bytes(b"odd"), log.unlink, lambda: log.symlink_to(home / "own.txt")):
        change()
        assert publication.imported(home)["export_id"] == ""
    log.unlink()
    log.write_bytes(b"old")
    assert publication.imported(home)["export_id"] == "0" * 64
