"""Checkpoints on disk: what counts as one, which one is taken, what is removed, when one is due."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import checkpoint
from trainer.checkpoint import MANIFEST, Schedule, Store

PARTS = {"data": "d", "base": "b", "modules": "m", "previous": "p", "parameters": "hash", "gate": "g"}
VERSIONS = dict.fromkeys(checkpoint.LIBRARIES, "1.0") | {"bitsandbytes": None, "tokenizers": "9"}


def inputs(**changes: Any) -> dict[str, Any]:
    """Inputs of a training; changes of a part, of `learning_rate` or `torch`, or of where it is carried out."""
    parts = {**PARTS, **{name: value for name, value in changes.items() if name in PARTS}}
    rate = {"learning_rate": changes.get("learning_rate", 1e-4), "seed": 42}
    versions = {**VERSIONS, **{name: value for name, value in changes.items() if name in VERSIONS}}
    usual = {"device": "cpu", "dtype": "float32", "processes": 1, "sharded": False}
    place = [changes.get(name, value) for name, value in usual.items()]
    return checkpoint.made_with(parts, rate, versions, *place)


def fill(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 100)
    (folder / "loop").write_bytes(b"l")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "checkpoints" / "style"


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(folder, inputs())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def chosen(folder: Path, **changes: Any) -> tuple[int | None, dict[str, str]]:
    """(step, {name: reason} of what was passed over) as a new process would choose."""
    choice = Store(folder, inputs(**changes)).choose()
    found = choice.checkpoint
    return found.step if found else None, {item["name"]: item["reason"] for item in choice.skipped}


def test_a_checkpoint_is_bound_to_its_files_and_inputs(store: Store, folder: Path) -> None:
    assert store.write(3, 10, fill) == 101
    manifest = json.loads((folder / "step-3" / MANIFEST).read_text(encoding="utf-8"))
    assert (manifest["step"], manifest["total_steps"], manifest["key"]) == (3, 10, store.key)
    assert manifest["made_with"] == inputs()
    assert {name: item["size"] for name, item in manifest["files"].items()} == {"weights": 100, "loop": 1}
    choice = Store(folder, inputs()).choose()
    assert choice.skipped == [] and choice.checkpoint is not None
    assert (choice.checkpoint.path, choice.checkpoint.total_steps) == (folder / "step-3", 10)


def test_nothing_is_there_to_choose_at_first(folder: Path) -> None:
    assert chosen(folder) == (None, {})
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("of somebody", encoding="utf-8")
    (folder / "step-five").mkdir()
    assert chosen(folder) == (None, {})


def test_the_manifest_comes_last_and_the_name_after_it(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    original = os.fsync

    def watched(descriptor: int) -> None:
        (fresh,) = (path for path in folder.iterdir() if path.name.startswith(".")) if folder.exists() else [folder]
        seen.append(names(fresh))
        original(descriptor)

    store.write(1, 10, fill)
    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(checkpoint, "_put_in_place", lambda fresh, final: seen.append({"in place"}))
    store.write(2, 10, fill)
    files, whole = {"weights", "loop"}, {"weights", "loop", MANIFEST}
    assert seen == [files, files, whole, whole, {"in place"}]  # each file, the manifest, the folder; then the rename


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a byte": (lambda f: (f / "weights").write_bytes(b"w" * 99 + b"v"), "weights has another sha256"),
    "cut": (lambda f: (f / "weights").write_bytes(b"w"), "weights has 1 bytes instead of 100"),
    "a file gone": (lambda f: (f / "loop").unlink(), "loop is missing"),
    "a file more": (lambda f: (f / "more").touch(), "more is not in its manifest"),
    "a link": (lambda f: ((f / "loop").rename(f / "x"), (f / "loop").symlink_to("weights"), (f / "x").unlink()),
               "loop is no regular file"),
    "a folder": (lambda f: ((f / "loop").unlink(), (f / "loop").mkdir()), "loop is no regular file"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), f"it has no {MANIFEST}"),
    "empty manifest": (lambda f: (f / MANIFEST).write_text(""), "cannot be read"),
    "list": (lambda f: (f / MANIFEST).write_text("[]"), "has the schema None"),
    "newer": (lambda f: edit(f, schema=2), "has the schema 2, known is 1"),
    "other step": (lambda f: edit(f, step=5), "does not fit it (step or key)"),
    "other inputs": (lambda f: edit(f, made_with={}), "does not fit it (step or key)"),
    "no key": (lambda f: edit(f, key=None), "does not fit it (key)"),
}  # fmt: skip


def edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}), encoding="utf-8")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(store: Store, folder: Path, damage: str) -> None:
    for step in (2, 4):
        store.write(step, 10, fill)
    assert chosen(folder) == (4, {})
    harm, reason = DAMAGES[damage]
    harm(folder / "step-4")
    step, skipped = chosen(folder)
    assert step == 2 and skipped.keys() == {"step-4"} and reason in skipped["step-4"]
    assert names(folder) == {"step-2", "step-4"}, "choosing removes nothing"


def test_steps_decide_and_not_times(store: Store, folder: Path) -> None:
    for step in (9, 10):
        store.write(step, 100, fill)
    os.utime(folder / "step-9", (2e9, 2e9))
    assert chosen(folder)[0] == 10
    store.write(11, 100, fill)
    assert names(folder) == {"step-10", "step-11"}


def test_a_damaged_one_stays_until_a_newer_is_complete(store: Store, folder: Path) -> None:
    for step in (2, 4):
        store.write(step, 10, fill)
    DAMAGES["a byte"][0](folder / "step-4")
    (folder / ".step-5.1").mkdir()
    again = Store(folder, inputs())
    assert (again.choose().checkpoint or pytest.fail()).step == 2
    again.write(3, 10, fill)
    assert names(folder) == {"step-2", "step-3", "step-4", ".step-5.1"}
    again.write(4, 10, fill)
    assert names(folder) == {"step-3", "step-4", ".step-5.1"} and chosen(folder)[0] == 4
    again.write(5, 10, fill)
    assert names(folder) == {"step-4", "step-5"}


def test_what_does_not_verify_is_not_the_one_before(store: Store, folder: Path) -> None:
    for step in (2, 4):
        store.write(step, 10, fill)
    DAMAGES["a byte"][0](folder / "step-4")
    again = Store(folder, inputs())
    again.choose()
    again.write(6, 10, fill)
    assert names(folder) == {"step-2", "step-6"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"learning_rate": 2e-4}, "learning_rate was 0.0001, is 0.0002"), ({"torch": "2.0"}, "torch was 1.0, is 2.0"),
     ({"bitsandbytes": "0.5"}, "bitsandbytes was None, is 0.5"), ({"data": "x"}, "the training data changed"),
     ({"base": "x"}, "the base model changed"), ({"modules": "x"}, "the trainer's code changed"),
     ({"previous": "x"}, "the stage before changed"), ({"device": "cuda"}, "device was cpu, is cuda"),
     ({"processes": 2}, "the number of processes was 1, is 2"),
     ({"sharded": True}, "shard_base was False, is True"),
     ({"dtype": "bfloat16"}, "dtype was float32, is bfloat16"), ({"data": "x", "torch": "2"},
     "torch was 1.0, is 2; the training data changed")],
)  # fmt: skip
def test_a_checkpoint_of_other_inputs_is_refused_with_the_difference(
    store: Store, folder: Path, change: dict[str, Any], reason: str
) -> None:
    store.write(3, 10, fill)
    assert chosen(folder, **change) == (None, {"step-3": f"it was made otherwise: {reason}"})


@pytest.mark.parametrize("change", [{}, {"gate": "x"}, {"parameters": "x"}, {"tokenizers": "10"}])
def test_what_does_not_shape_a_training_does_not_stop_its_resume(
    store: Store, folder: Path, change: dict[str, Any]
) -> None:
    store.write(3, 10, fill)
    assert chosen(folder, **change) == (3, {})


def test_checkpoints_of_other_inputs_go_when_there_is_one_of_these(store: Store, folder: Path) -> None:
    for step in (80, 90):
        store.write(step, 100, fill)
    other = Store(folder, inputs(learning_rate=0.5))
    assert other.choose().checkpoint is None and names(folder) == {"step-80", "step-90"}
    other.write(1, 100, fill)
    assert names(folder) == {"step-1"}
    other.write(80, 100, fill)
    assert chosen(folder, learning_rate=0.5) == (80, {})


def full(folder: Path) -> None:
    fill(folder)
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_leaves_what_was_there(store: Store, folder: Path) -> None:
    store.write(1, 10, fill)
    with pytest.raises(OSError, match="No space left"):
        store.write(2, 10, full)
    assert names(folder) == {"step-1"} and chosen(folder) == (1, {})
    store.write(2, 10, fill)
    assert chosen(folder) == (2, {})


def test_a_name_that_cannot_be_given_leaves_what_had_it(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(2, 10, fill)
    other = Store(folder, inputs(learning_rate=0.5))
    original = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if self.name.startswith(".step-2.") and self.name != ".step-2.gone":
            raise OSError(errno.EIO, "Input/output error")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(OSError, match="Input/output"):
        other.write(2, 10, fill)
    assert names(folder) == {"step-2"} and chosen(folder) == (2, {})


def test_half_removed_checkpoints_are_not_taken_for_damaged_ones(store: Store, folder: Path) -> None:
    store.write(1, 10, fill)
    shutil.copytree(folder / "step-1", folder / ".step-9.gone")
    (folder / ".step-9.gone" / "loop").unlink()
    assert chosen(folder) == (1, {})
    store.write(2, 10, fill)
    assert names(folder) == {"step-1", "step-2"}


def test_everything_of_a_stage_is_removed_and_nothing_else(store: Store, folder: Path) -> None:
    for step in (1, 2):
        store.write(step, 10, fill)
    DAMAGES["a byte"][0](folder / "step-1")
    (folder / ".step-3.77").mkdir()
    (folder / ".step-4.gone").mkdir()
    beside = Store(folder.parent / "writing", inputs())
    beside.write(1, 10, fill)
    checkpoint.remove_all(folder)
    assert not folder.exists() and beside.choose().checkpoint is not None
    checkpoint.remove_all(folder)  # nothing there: nothing to do
    folder.mkdir()
    (folder / "notes.txt").touch()
    (folder / "step-1").mkdir()
    checkpoint.remove_all(folder)
    assert names(folder) == {"notes.txt"}


def test_links_are_followed_by_nobody(store: Store, folder: Path, tmp_path: Path) -> None:
    store.write(1, 10, fill)
    (folder / "step-1").rename(tmp_path / "step-7")
    (folder / "step-7").symlink_to(tmp_path / "step-7")
    assert chosen(folder) == (None, {})
    checkpoint.remove_all(folder)
    assert (tmp_path / "step-7" / "weights").is_file()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def due(schedule: Schedule, clock: Clock, steps: range, seconds_per_step: float, cost: float = 0.0) -> list[int]:
    """The steps after which a checkpoint is due in a run up to the last of `steps`."""
    found = []
    for step in steps:
        clock.now += seconds_per_step
        if schedule.due(step, step == steps[-1]):
            found.append(step)
            clock.now += cost
            schedule.written(cost)
    return found


def test_steps_are_obeyed_whatever_they_cost() -> None:
    clock = Clock()
    assert due(Schedule(3, 0, 9.9, clock), clock, range(1, 11), 0.01, cost=9.9) == [3, 6, 9]
    assert due(Schedule(500, 0, 9.9, clock), clock, range(1, 200), 0.01) == []


def test_time_is_kept_and_never_costs_more_than_its_share() -> None:
    clock = Clock()
    assert due(Schedule(0, 60, 0.125, clock), clock, range(1, 31), 10.0, cost=0.125) == [6, 12, 18, 24, 30]
    # A slow disk: 10 s for each, so that one comes every 500 s at the most.
    assert due(Schedule(0, 60, 10.0, clock), clock, range(1, 101), 10.0, cost=10.0) == [50, 100]
    assert due(Schedule(0, 60, 0.1, clock), clock, range(1, 101), 10.0, cost=10.0) == [6, 56]


def test_the_end_is_kept_when_that_is_cheap() -> None:
    clock = Clock()
    assert due(Schedule(500, 300, 0.06, clock), clock, range(1, 31), 1.0) == [30]
    assert due(Schedule(500, 300, 0.06, clock), clock, range(1, 31), 0.01) == []  # trained again in a moment
    assert due(Schedule(0, 300, 0.06, clock), clock, range(1, 31), 1.0) == [30]


@pytest.mark.parametrize(("steps", "seconds", "off"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_checkpoints_are_off_only_when_neither_steps_nor_time_ask_for_them(steps: int, seconds: int, off: bool) -> None:
    assert Schedule(steps, seconds, 0.1).is_off is off
