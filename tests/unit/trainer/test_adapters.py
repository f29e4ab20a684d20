"""Adapter folders: fresh ones, copies for a new score, and the switch into place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer import stages
from trainer.adapters import fresh_folder, initial_hash, publish
from trainer.config import Parameters
from trainer.errors import InputError
from trainer.state import Layout

STAGE = stages.load().stage("sample")
WEIGHTS = "adapter_model.safetensors"


def folder_with(path: Path, weights: str) -> Path:
    path.mkdir(parents=True)
    (path / WEIGHTS).write_text(weights, encoding="utf-8")
    return path


def weights_in(folder: Path) -> str:
    return (folder / WEIGHTS).read_text(encoding="utf-8")


def test_a_stage_starts_in_a_fresh_folder(layout: Layout) -> None:
    folder = fresh_folder(layout, STAGE, "train")
    assert (folder.parent, list(folder.iterdir())) == (layout.adapters, [])
    (folder / "half").write_text("of an attempt that was lost", encoding="utf-8")
    assert list(fresh_folder(layout, STAGE, "train").iterdir()) == []


def test_a_new_score_starts_from_a_copy_of_the_adapter(layout: Layout) -> None:
    final = folder_with(layout.adapters / STAGE.adapter, "trained")
    folder = fresh_folder(layout, STAGE, "evaluate")
    assert folder != final and weights_in(folder) == "trained"
    (folder / WEIGHTS).write_text("spoilt", encoding="utf-8")
    assert weights_in(final) == "trained"
    assert weights_in(fresh_folder(layout, STAGE, "evaluate")) == "trained", "a lost attempt leaves nothing behind"


def test_a_new_score_of_no_adapter_is_an_error_and_training_is_not(layout: Layout) -> None:
    with pytest.raises(OSError):
        fresh_folder(layout, STAGE, "evaluate")
    assert fresh_folder(layout, STAGE, "train").is_dir()


def test_the_folder_before_is_kept_and_only_that(tmp_path: Path) -> None:
    final, previous = tmp_path / "adapter_style", tmp_path / ".adapter_style.previous"
    for number in range(3):
        publish(folder_with(tmp_path / ".adapter_style.new", f"run {number}"), final)
        assert weights_in(final) == f"run {number}"
    assert weights_in(previous) == "run 1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [previous.name, final.name]


def test_the_first_adapter_has_nothing_before_it(tmp_path: Path) -> None:
    publish(folder_with(tmp_path / "new", "first"), tmp_path / "adapter_style")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_style"]


def test_what_was_kept_stays_when_nothing_takes_its_place(tmp_path: Path) -> None:
    # A power loss between the two renames leaves only the kept folder.
    previous = folder_with(tmp_path / ".adapter_style.previous", "kept")
    publish(folder_with(tmp_path / "new", "next"), tmp_path / "adapter_style")
    assert weights_in(tmp_path / "adapter_style") == "next" and weights_in(previous) == "kept"


def test_a_folder_that_cannot_be_moved_leaves_the_former_in_its_place(tmp_path: Path) -> None:
    final = folder_with(tmp_path / "adapter_style", "former")
    with pytest.raises(OSError):
        publish(tmp_path / "is not there", final)
    assert weights_in(final) == "former" and [path.name for path in tmp_path.iterdir()] == ["adapter_style"]
    publish(folder_with(tmp_path / "is there", "next"), final)
    assert weights_in(final) == "next"
    with pytest.raises(OSError):
        publish(tmp_path / "is not there", tmp_path / "adapter_writing")
    assert not (tmp_path / "adapter_writing").exists()


def test_an_adapter_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = folder_with(tmp_path / "new", "next")
    (fresh / "adapter_config.json").touch()
    final, synced = tmp_path / "adapter_style", []
    original = os.fsync

    def watched(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), final.exists()))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    publish(fresh, final)
    before = {path for path, in_place in synced if not in_place}
    assert before == {fresh, fresh / WEIGHTS, fresh / "adapter_config.json"}
    assert (tmp_path, True) in synced


def test_an_adapter_to_begin_with_is_known_by_its_hash(layout: Layout, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "earlier", "trained")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert initial_hash(layout, STAGE, Parameters()) == ""
    found = initial_hash(layout, STAGE, Parameters(initial_adapter=str(folder)))
    (folder / WEIGHTS).write_text("trained further", encoding="utf-8")
    assert found != initial_hash(layout, STAGE, Parameters(initial_adapter=str(folder))) != ""


def test_what_cannot_be_begun_with_is_refused(layout: Layout, tmp_path: Path) -> None:
    own = folder_with(layout.adapters / STAGE.adapter, "trained")
    (own / "adapter_config.json").write_text("{}", encoding="utf-8")
    other = stages.load().stage("style")
    assert initial_hash(layout, other, Parameters(initial_adapter=str(own)))  # of another stage: fine
    for named, words in (
        (str(own), "which stage sample itself writes"),
        ("adapter_style", "give the absolute path"),
        (str(tmp_path), "which lacks adapter_config.json"),
    ):
        with pytest.raises(InputError, match=words):
            initial_hash(layout, STAGE, Parameters(initial_adapter=named))
